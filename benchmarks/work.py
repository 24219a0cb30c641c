"""The jobs that the benchmarks run.  Workers of other processes import them from here."""

import time

from zodbjobs import clock


def nothing(*args):
    """Do nothing, at once."""


def sleep(seconds):
    """Take so long without using the processor, as a job that waits for a network does."""
    time.sleep(seconds)


def tell_start():
    """Return the moment at which the call began, in microseconds."""
    return clock.micros()
