"""Benchmarks: what zodbjobs costs, told in commits of the storage it stands on.

``make bench`` (``python -m benchmarks``) prints a table for each storage and
writes the same as JSON.  Absolute figures depend on the machine and on who else
uses it, so each stands beside the raw commit rate of the same storage, measured
right before and after it in the same run; compare ratios.

`measure` knows how to time, `storages` what to time on; each group of rows has
a module of its own (see `parts`), `report` prints.
"""
