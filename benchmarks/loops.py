"""Loops: what the verbs cost where a loop has many ids, and what conflicts when all use it at once.

The costs are those of one connection, each with its commit.  The conflicts are
counted with several workers that take and finish ids, and an application that
bumps ids in transactions that stay open for a while.  Storages other than a file
get fewer ids; the rows say how many.
"""

import random
import threading
import time

import transaction
from ZODB.POSException import ConflictError

from benchmarks.measure import COST, PLAIN, Figure, Stopwatch
from zodbjobs import Loop, clock

#: Ids per transaction while the loop is filled.
BULK = 10_000

#: Ids of one batch.
BATCH = 1000

ROUNDS = 7
WORKERS = 3


def measure(place, scale):
    place.fresh()
    count = scale.loop_ids if place.path else max(100, int(scale.loop_ids * scale.slow_share))
    place.manager.begin()
    loop = place.producer.root()['loop'] = Loop()
    place.manager.commit()
    with Stopwatch() as filling:
        for first in range(0, count, BULK):
            loop.add(range(first, min(first + BULK, count)))
            place.manager.commit()
    many = f'a loop of {count:,} ids'
    batch = min(BATCH, count // 10)
    yield (
        Figure(f'loops: {many} filled, each', filling.total / count, 's', COST,
               f'{BULK:,} in a transaction'),
        *_batches(place, loop, batch, many),
        *_singles(place, loop, count, many),
    )  # fmt: skip
    yield _conflicts(place, scale, count)
    place.manager.begin()
    del place.producer.root()['loop']
    place.manager.commit()


def _batches(place, loop, size, many):
    get, did = Stopwatch(), Stopwatch()
    for _ in range(ROUNDS):
        with get:
            batch = loop.get(size)
            place.manager.commit()
        with did:
            loop.did(batch)
            place.manager.commit()
    yield Figure(f'loops: get({size:,}) of {many}', get.median, 's', COST)
    yield Figure(f'loops: did of these {size:,}', did.median, 's', COST)


def _singles(place, loop, count, many):
    deeds = {
        'bump of one id': lambda: loop.bump(random.randrange(count)),
        'get(1)': lambda: loop.get(1),
        'check of one id': lambda: loop.check(random.randrange(count)),
        'stats()': loop.stats,
        'stale(3600)': lambda: loop.stale(3600),
    }
    for name, deed in deeds.items():
        watch = Stopwatch()
        for _ in range(5 * ROUNDS):
            with watch:
                deed()
                place.manager.commit()
        yield Figure(f'loops: {name} of {many}', watch.median, 's', COST)


class Crew:
    """Threads that use the loop for some seconds, and count their conflicts."""

    def __init__(self, db, seconds):
        self.db = db
        self.end = clock.monotonic() + seconds
        self.guard = threading.Lock()
        self.counts = {}

    def work(self, deed):
        """Do `deed(loop)`, which yields the name of what is to be committed, again and again."""
        manager = transaction.TransactionManager()
        connection = self.db.open(manager)
        try:
            while clock.monotonic() < self.end:
                manager.begin()
                for kind in deed(connection.root()['loop']):
                    try:
                        manager.commit()
                        self.count(kind, 0)
                    except ConflictError:
                        manager.abort()
                        self.count(kind, 1)
                        break
        finally:
            manager.abort()
            connection.close()

    def count(self, kind, conflicts):
        with self.guard:
            done, lost = self.counts.get(kind, (0, 0))
            self.counts[kind] = done + 1, lost + conflicts


def _conflicts(place, scale, count):
    crew = Crew(place.db, scale.produce_seconds)

    def update(loop):
        batch = loop.get(10, min_loop_time=0)
        yield 'get'
        loop.did(batch)
        yield 'did'

    def bump(loop):
        loop.bump(random.randrange(count))
        time.sleep(scale.open_seconds / 10)  # a request goes on
        yield 'bump'

    deeds = [update] * WORKERS + [bump] * 2
    threads = [threading.Thread(target=crew.work, args=(deed,)) for deed in deeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tuple(
        Figure(
            f'loops: conflicts, {kind}', lost / done, '', PLAIN,
            f'{lost} of {done} transactions, {WORKERS} workers and 2 applications at once',
            {'transactions': done, 'conflicts': lost},
        )
        for kind, (done, lost) in sorted(crew.counts.items())
    )  # fmt: skip
