"""Conflicts: transactions of the application that are open for long beside claiming dispatchers.

Several producers put a job each and commit 200 ms later, as web requests do;
one more puts without a pause, so that dispatchers claim and change the lanes
all the time.  Where the storage lets two processes in, two dispatchers claim.
"""

import contextlib
import threading
import time

import transaction
from ZODB.POSException import ConflictError

from benchmarks import staff, work
from benchmarks.measure import Figure
from zodbjobs.interfaces import KEY

THREADS = 2


def measure(place, scale):
    place.fresh()
    end = threading.Event()
    slow = [Producer(place, end, scale.open_seconds) for _ in range(scale.producers)]
    busy = Producer(place, end, 0)
    with contextlib.ExitStack() as stack:
        stack.enter_context(staff.dispatcher(place.db, THREADS))
        dispatchers = 1 + place.several
        if place.several:
            stack.enter_context(staff.worker_process(place.uri, THREADS)).ask()
        produce([*slow, busy], end, scale.produce_seconds)
        commits, failures = place.tally.commits, place.tally.failures
    held = f'open for {scale.open_seconds * 1000:.0f} ms'
    beside = f'beside {dispatchers} dispatcher{"s" if dispatchers > 1 else ""}'
    yield (
        _figure(f'conflicts of {len(slow)} producers, {held}', slow, beside),
        _figure('conflicts of one producer without a pause', [busy], beside),
        Figure(
            'commits of the dispatcher here and its workers that failed',
            failures - busy.lost - sum(one.lost for one in slow),
            '',
            note=f'{commits - busy.commits - sum(one.commits for one in slow):,} held',
        ),
    )


def _figure(name, producers, beside):
    commits = sum(producer.commits for producer in producers)
    lost = sum(producer.lost for producer in producers)
    note = f'in {commits + lost:,} transactions {beside}'
    return Figure(name, lost, '', note=note, facts={'transactions': commits + lost})


class Producer(threading.Thread):
    """Puts a job per transaction, which it keeps open for so many seconds, until the end."""

    def __init__(self, place, end, open_seconds):
        super().__init__(daemon=True)
        self._place, self._end, self._open_seconds = place, end, open_seconds
        self.commits = self.lost = 0
        self.error = None

    def run(self):
        manager = transaction.TransactionManager()
        connection = self._place.db.open(manager)
        try:
            while not self._end.is_set():
                self._put(manager, connection)
        except Exception as error:  # noqa: BLE001 - told in the main thread
            self.error = error
            manager.abort()
        finally:
            connection.close()

    def _put(self, manager, connection):
        manager.begin()
        connection.root()[KEY][''].put(work.nothing)
        time.sleep(self._open_seconds)
        try:
            manager.commit()
            self.commits += 1
        except ConflictError:
            manager.abort()
            self.lost += 1


def produce(producers, end, seconds):
    """Let the producers produce for so many seconds."""
    for producer in producers:
        producer.start()
    time.sleep(seconds)
    end.set()
    for producer in producers:
        producer.join()
        if producer.error is not None:
            raise producer.error
