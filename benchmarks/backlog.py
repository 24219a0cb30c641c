"""Backlog: whether the verbs cost more where many jobs wait.

The waiting jobs are sorted, as a dispatcher leaves them.  No worker runs here:
the steps of a dispatcher's claim are taken by hand, each put and each claim in
a transaction of its own.
"""

import statistics
import uuid

import transaction

from benchmarks import work
from benchmarks.measure import COST, Figure, Stopwatch
from zodbjobs import Agent, clock
from zodbjobs.interfaces import KEY
from zodbjobs.model.handout import Round

#: Jobs that one claim takes.
K = 8

#: Jobs put in one transaction when the queue is filled.
BATCH = 5_000

VERBS = ('put', f'claim({K})', 'peek', 'len')


def measure(place, scale):
    queue = place.fresh()
    claimer = Claimer(place)
    _times(
        place, queue, claimer, 2, scale.claim_seconds
    )  # caches are warm, and the lanes have their chunks
    empty = _times(place, queue, claimer, scale.claims, scale.claim_seconds)
    yield tuple(_figures('an empty queue', empty, empty))
    waiting = 0
    for backlog in scale.backlogs:
        filled = fill(place, queue, claimer, backlog - waiting, scale.fill_seconds)
        waiting += filled
        found = _times(place, queue, claimer, scale.claims, scale.claim_seconds)
        place.manager.begin()
        yield (
            *_figures(f'{waiting:,} waiting', found, empty),
            Figure(f'len says, {waiting:,} waiting', len(queue), 'jobs'),
        )
        if waiting < backlog:
            note = f'{backlog:,} were not reached in {scale.fill_seconds:.0f} s'
            yield (Figure('the largest backlog', waiting, 'jobs', note=note),)
            break
    claimer.close()


def _figures(where, found, empty):
    for verb in VERBS:
        times = found[verb] / empty[verb]
        note = '' if found is empty else f'{times:.2f} x empty'
        yield Figure(f'{verb}, {where}', found[verb], 's', COST, note, {'to_empty': times})


class Claimer:
    """A dispatcher's hands: a connection of its own, and an agent."""

    def __init__(self, place):
        self.manager = transaction.TransactionManager()
        self.connection = place.db.open(self.manager)
        self.manager.begin()
        self.queue = self.connection.root()[KEY]['']
        record = self.queue.dispatchers.register(uuid.uuid4())
        record.activate()
        self.agent = record['main'] = Agent(size=K)
        self.manager.commit()
        self._held = []

    def claim(self):
        """Claim K jobs and take the former ones off the agent's list, in one transaction."""
        self.manager.begin()
        for oid, token in self._held:
            self.agent.retired(oid, token)
        look = Round(self.queue, clock.micros())
        look.sort()
        found = look.pick(self.agent, K)
        look.file_rest()
        self.manager.commit()
        self._held = [(int.from_bytes(one.oid, 'big'), one.token) for one in found]
        return len(found)

    def sort(self):
        """Sort what lies in the lanes."""
        moved = True
        while moved:
            self.manager.begin()
            look = Round(self.queue, clock.micros())
            look.sort()
            look.file_rest(leave=0)
            moved = look.touched
            self.manager.commit()

    def close(self):
        self.connection.close()


def fill(place, queue, claimer, count, seconds):
    """Put and sort `count` jobs, for so many seconds at most; returns how many were put."""
    started = clock.monotonic()
    reached = 0
    while reached < count and clock.monotonic() - started < seconds:
        place.manager.begin()
        batch = min(BATCH, count - reached)
        for _ in range(batch):
            queue.put(work.nothing)
        place.manager.commit()
        claimer.sort()
        reached += batch
    place.manager.begin()
    return reached


def _times(place, queue, claimer, claims, seconds):
    """{verb: median seconds}; peek and len meet K jobs more than the backlog."""
    watches = {verb: Stopwatch() for verb in VERBS}
    put, claim, peek, length = watches.values()
    deadline = clock.monotonic() + seconds
    while not claim.laps or (len(claim.laps) < claims and clock.monotonic() < deadline):
        for _ in range(K):
            place.manager.begin()
            with put:
                queue.put(work.nothing)
                place.manager.commit()
        claimer.manager.begin()
        with peek:
            claimer.queue.peek()
        with length:
            len(claimer.queue)
        with claim:
            taken = claimer.claim()
        if taken != K:
            raise RuntimeError(f'a claim took {taken} of {K} jobs')
    return {verb: statistics.median(watch.laps) for verb, watch in watches.items()}
