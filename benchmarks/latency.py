"""Latency: from the call of commit in one place to the start of the job in another.

One job at a time, with pauses between: on an idle system; beside a steady
stream of other jobs; and, for a job of the first priority, beside a backlog
that keeps every thread busy.  The worker is another process where the storage
lets two in.  All read the same machine's clock.
"""

import contextlib
import threading
import time

import transaction

from benchmarks import staff, work
from benchmarks.measure import COST, Figure, percentile, wait_until
from benchmarks.throughput import fill, idle
from zodbjobs import clock, status
from zodbjobs.interfaces import KEY

#: Long enough for a job to be done and its worker to be idle again.
BETWEEN_SECONDS = 0.025

#: Not counted: threads and connections are made for these.
WARM_UP = 5

#: For the last job to be done.
END_SECONDS = 30

#: Between two other jobs of the stream.
STREAM_SECONDS = 0.02

THREADS = 2

PERCENTS = (50, 95, 99)


def measure(place, scale):
    loads = [
        ('idle', contextlib.nullcontext, None),
        (f'beside {1 / STREAM_SECONDS:.0f} jobs/s', lambda: _stream(place), None),
        ('first priority, beside a backlog', lambda: _backlog(place, scale), 0),
    ]
    for name, load, priority in loads:
        queue = place.fresh()
        with _workers(place), load():
            waits = _all(place, queue, scale, priority)
        where = 'worker process' if place.several else 'thread'
        note = f'in another {where}, {len(waits)} jobs'
        if name == 'idle':
            note += f', poll every {staff.POLL_SECONDS} s'
        yield tuple(
            Figure(f'commit to start, {name}, p{each}', percentile(waits, each), 's', COST, note)
            for each in PERCENTS
        )


def _all(place, queue, scale, priority):
    """Seconds that each job waited."""
    starts = [_put(place, queue, priority) for _ in range(WARM_UP)]
    deadline = clock.monotonic() + scale.start_seconds
    while len(starts) < WARM_UP + scale.starts and clock.monotonic() < deadline:
        starts.append(_put(place, queue, priority))
    return _waits(place, starts)[WARM_UP:]


@contextlib.contextmanager
def _workers(place):
    if place.several:
        with staff.worker_process(place.uri, THREADS) as process:
            process.ask()
            yield
    else:
        with staff.dispatcher(place.db, THREADS):
            yield


@contextlib.contextmanager
def _stream(place):
    """Another thread puts a job that does nothing every `STREAM_SECONDS`."""
    end = threading.Event()

    def produce():
        manager = transaction.TransactionManager()
        with contextlib.closing(place.db.open(manager)) as connection:
            while not end.wait(STREAM_SECONDS):
                manager.begin()
                connection.root()[KEY][''].put(work.nothing)
                manager.commit()

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


@contextlib.contextmanager
def _backlog(place, scale):
    """More waiting jobs than can be done meanwhile."""
    queue = place.producer.root()[KEY]['']
    fill(place, queue, idle, scale.latency_backlog)
    yield


def _put(place, queue, priority):
    """Put a job; returns its oid and when its commit began, in microseconds."""
    time.sleep(BETWEEN_SECONDS)
    place.manager.begin()
    job = queue.put(work.tell_start, priority=priority)
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
