"""The jobs that the benchmarks run.  Workers of other processes import them from here."""

import os
import time

from zodbjobs import clock


def nothing(*args):
    """Do nothing, at once."""


def sleep(seconds):
    """Take so long without using the processor, as a job that waits for a network does."""
    time.sleep(seconds)


def compute(seconds):
    """Use the processor of this thread for so long."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        sum(range(100))


def write(counter):
    """Work of its own in the database: change an object that no other job changes."""
    counter['count'] = counter.get('count', 0) + 1


def tell_start():
    """Return the moment at which the call began, in microseconds."""
    return clock.micros()


def hang_once(path):
    """Whoever comes first never comes to an end; the next one returns when it began."""
    began = clock.micros()
    try:
        with open(path, 'x') as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return began
    time.sleep(600)  # until this process is killed
    return None
