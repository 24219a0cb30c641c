"""All that is stored.

A class's module path is part of the file format, so what stands here does not
move.  Nothing here commits, sleeps, starts a thread or knows who calls it.
"""
