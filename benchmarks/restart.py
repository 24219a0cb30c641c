"""Restart: how long no job is done when the only worker process is killed.

It is killed with SIGKILL in the middle of a job, while others wait, and a new
one is started at once.  Measured is from the kill to the start of the first
job in the new process, with the start of Python and all, and to the moment at
which the job that was running is begun again.
"""

import os
import statistics
import tempfile

from benchmarks import staff, work
from benchmarks.measure import PLAIN, Figure, wait_until
from zodbjobs import Job, clock, status

THREADS = 2

#: Jobs that wait meanwhile.
WAITING = 10

#: Seconds for the first process to begin, and for the second to do it all.
PATIENCE_SECONDS = 30


def measure(place, scale):
    found = [once(place) for _ in range(scale.kills)]
    note = f'median of {len(found)}, with the start of the interpreter'
    firsts, rescues = zip(*found, strict=True)
    yield (
        Figure('kill -9 of the only worker to the first job of the next',
               statistics.median(firsts), 's', PLAIN, note),
        Figure('kill -9 of the only worker to the second start of what it ran',
               statistics.median(rescues), 's', PLAIN, note),
    )  # fmt: skip


def once(place):
    """(seconds to the first job, seconds until the interrupted one is begun again)."""
    with tempfile.TemporaryDirectory(prefix='bench-') as folder:
        path = os.path.join(folder, 'hangs')
        queue = place.fresh()
        jobs = [queue.put(Job(work.hang_once, path), priority=0)]
        jobs += [queue.put(work.tell_start) for _ in range(WAITING)]
        place.manager.commit()
        oids = [job._p_oid for job in jobs]
        if not place.several:
            place.close()
        with staff.worker_process(place.uri, 1) as victim:
            if not wait_until(lambda: os.path.exists(path), PATIENCE_SECONDS):
                raise RuntimeError('the first worker has begun nothing')
            killed = clock.micros()
            victim.kill()
        with staff.worker_process(place.uri, THREADS) as process:
            process.ask()
            wait_until(lambda: process.ask('look')['done'] >= len(oids), PATIENCE_SECONDS)
    if not place.several:  # nobody could look before it has gone
        place.reopen()
    starts = _starts(place, oids)
    return (min(starts) - killed) / clock.SECOND, (starts[0] - killed) / clock.SECOND


def _starts(place, oids):
    """When each of the jobs was begun, in microseconds, once all of them are done."""

    def all_done():
        place.manager.begin()
        return all(place.producer.get(oid).status == status.COMPLETED for oid in oids)

    if not wait_until(all_done, PATIENCE_SECONDS):
        raise RuntimeError('the second worker has not done it all')
    return [place.producer.get(oid).result for oid in oids]
