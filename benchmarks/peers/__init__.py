"""The same work done by other job systems, beside zodbjobs: ``python -m benchmarks.peers``.

Every system runs with its own worker command, in processes of its own, on this
machine, and stores so that a put that has returned survives a power cut.  All
run the same job, `tick`.  Rounds alternate between the systems, and medians are
told.  The modules ``with_...`` are what a user of each system would write; they
and their workers run in an environment of their own (``.venv-peers``), and know
where to find things from the environment variables that `places` names.
"""
