"""Latency: from the call of commit in one place to the start of the job in another.

The system is idle: one job at a time, with pauses between.  The worker is
another process where the storage lets two in.  Both read the same machine's
clock.
"""

import contextlib
import time

from benchmarks import staff, work
from benchmarks.measure import COST, Figure, percentile, wait_until
from zodbjobs import clock, status

#: Long enough for a job to be done and its worker to be idle again.
BETWEEN_SECONDS = 0.025

#: Not counted: threads and connections are made for these.
WARM_UP = 5

#: For the last job to be done.
END_SECONDS = 10

PERCENTS = (50, 95, 99)


def measure(place, scale):
    queue = place.fresh()
    with _workers(place):
        starts = [_put(place, queue) for _ in range(WARM_UP)]
        deadline = clock.monotonic() + scale.start_seconds
        while len(starts) < WARM_UP + scale.starts and clock.monotonic() < deadline:
            starts.append(_put(place, queue))
        waits = _waits(place, starts)[WARM_UP:]
    where = 'worker process' if place.several else 'thread'
    note = f'in another {where}, {len(waits)} jobs, poll every {staff.POLL_SECONDS} s'
    yield tuple(
        Figure(f'commit to start, idle, p{each}', percentile(waits, each), 's', COST, note)
        for each in PERCENTS
    )


@contextlib.contextmanager
def _workers(place):
    if place.several:
        with staff.worker_process(place.uri, 2) as process:
            process.ask()
            yield
    else:
        with staff.dispatcher(place.db, 2):
            yield


def _put(place, queue):
    """Put a job; returns its oid and when its commit began, in microseconds."""
    time.sleep(BETWEEN_SECONDS)
    place.manager.begin()
    job = queue.put(work.tell_start)
    began = clock.micros()
    place.manager.commit()
    return job._p_oid, began


def _waits(place, starts):
    """Seconds that each job waited; a lost one would be an error of the engine."""
    last = starts[-1][0]

    def all_done():
        place.manager.begin()
        return place.producer.get(last).status == status.COMPLETED

    if not wait_until(all_done, END_SECONDS):
        raise RuntimeError(f'a job was not done after {END_SECONDS} seconds')
    return [(place.producer.get(oid).result - began) / clock.SECOND for oid, began in starts]
