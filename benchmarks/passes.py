"""Passes: what a pass of the dispatcher costs where few of its queues have work.

One of some queues gets a job now and then.  Counted is the processor's time of
the dispatcher's thread for a pass, commits and all: half of the passes claim a job,
the others write down what became of it.
"""

import contextlib
import statistics
import time

from benchmarks import staff, work
from benchmarks.measure import COST, Figure
from zodbjobs import Queue
from zodbjobs.interfaces import KEY

#: Long enough for a job to be done, and written down.
BETWEEN_SECONDS = 0.03

#: Until every queue has been looked at, and has been found idle.
SETTLE_SECONDS = 1

THREADS = 2


def measure(place, scale):
    yield tuple(_pass(place, count, scale.passes) for count in scale.queues)


def _pass(place, count, jobs):
    queue = place.fresh()
    queues = place.producer.root()[KEY]
    for number in range(1, count):
        queues[f'queue {number}'] = Queue()
    place.manager.commit()
    with staff.dispatcher(place.db, THREADS) as dispatcher:
        time.sleep(SETTLE_SECONDS)
        with _timed(dispatcher) as laps:
            for _ in range(jobs):
                place.manager.begin()
                queue.put(work.nothing)
                place.manager.commit()
                time.sleep(BETWEEN_SECONDS)
    name = f'a pass over {count} queue{"s" if count > 1 else ""}, one with work: processor'
    note = f'median of {len(laps)} passes for {jobs} jobs'
    return Figure(name, statistics.median(laps), 's', COST, note)


@contextlib.contextmanager
def _timed(dispatcher):
    """Gives a list that gets the seconds of each pass that is made meanwhile."""
    laps, make_pass = [], dispatcher._make_pass

    def timed():
        started = time.thread_time()
        make_pass()
        laps.append(time.thread_time() - started)

    dispatcher._make_pass = timed
    try:
        yield laps
    finally:
        del dispatcher._make_pass
