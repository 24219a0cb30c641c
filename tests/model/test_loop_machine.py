"""A loop against a simple model: whatever is said in whatever order, both tell the same.

The model keeps a dict and looks at all of it each time; the loop has shards,
slips and trees.  Transactions are committed or aborted, and two connections take turns.
"""

import copy
import dataclasses
import math
import random

import transaction
import ZODB
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.model import support
from zodbjobs import Loop, clock

IDS = st.integers(0, 24)
SOME = st.lists(IDS, max_size=8)
SPANS = st.sampled_from([-7200, -60, 0, 30, 3600, 7200])

#: Two ids of one moment lie a microsecond apart.
DRIFT = 0.001

#: How much longer one of two ids must have waited to be surely first.
NEARLY = 1.1

#: Who has waited no longer may come in any order.
BRIEFLY = 11


@dataclasses.dataclass
class Id:
    """What the model knows of an id; seconds."""

    added: float
    updated: float | None = None
    until: float | None = None
    token: int | None = None
    bump: float | None = None
    failures: int = 0


class Model:
    """What a loop promises, in the plainest way."""

    def __init__(self):
        self.ids = {}

    def known(self, ids, now, adds):
        """The ids that are here or are added by this."""
        for id in dict.fromkeys(ids):
            if adds and id not in self.ids:
                self.ids[id] = Id(now)
            if id in self.ids:
                yield self.ids[id]

    def add(self, ids, now, updated):
        new = set(ids) - set(self.ids)
        self.ids |= {id: Id(now, now if updated else None) for id in new}
        return len(new)

    def remove(self, ids):
        return len([self.ids.pop(id) for id in set(ids) & set(self.ids)])

    def did(self, ids, now, adds, token=None):
        count = 0
        for one in self.known(ids, now, adds):
            if token in (None, one.token):
                count += 1
                one.updated, one.failures = now, 0
                self._free(one)
        return count

    def unlock(self, ids, now, adds, token=None):
        count = len(set(ids) - set(self.ids)) if adds else 0
        for one in self.known(ids, now, adds):
            if token in (None, one.token):
                count += one.until is not None
                self._free(one)
        return count

    def _free(self, one):
        one.until = one.bump if one.token is not None else None
        one.token = one.bump = None

    def bump(self, ids, until, now, adds, take_over=False):
        """`until` is a moment, or a dict of one for each id."""
        return sum(
            self._bump(one, until[id] if isinstance(until, dict) else until, now, take_over)
            for id in dict.fromkeys(ids)
            for one in self.known([id], now, adds)
        )

    def _bump(self, one, until, now, take_over):
        before = copy.copy(one)
        if take_over and one.token is not None and max(now, until) < one.until:
            one.until = until if one.bump is None else min(until, one.bump)
            one.token = one.bump = None
        else:
            if one.token is not None:
                one.bump = until if one.bump is None else min(one.bump, until)
            if one.token is None or one.until <= now:
                one.until = until if one.until is None else min(one.until, until)
        return one != before

    def eligible(self, now, min_loop_time):
        """{id: (rank, seconds waited)}; smaller ranks go first, longer waits do."""
        found = {}
        for id, one in self.ids.items():
            if one.until is not None:
                if one.until <= now:
                    found[id] = 0, now - one.until
            elif one.updated is None:
                found[id] = 1, now - one.added
            elif one.updated <= now - min_loop_time:
                found[id] = 2, now - one.updated
        return found

    def take(self, ids, until, token):
        for id in ids:
            one = self.ids[id]
            one.failures += one.token is not None
            one.until, one.token, one.bump = until, token, None


class LoopMachine(RuleBasedStateMachine):
    """One rule per verb; after each step all answers are compared."""

    shards = 4

    @initialize()
    def open(self):
        self.clock = support.TurnedClock()
        self.clock.now = support.START
        self.former_clock = clock.use(self.clock)
        self.db = ZODB.DB(None)
        self.managers = [transaction.TransactionManager() for _ in range(2)]
        self.connections = [self.db.open(manager) for manager in self.managers]
        self.turn = 0
        self.connections[0].root()['loop'] = Loop(self.shards)
        self.managers[0].commit()
        self.managers[1].begin()
        self.model, self.stored = Model(), Model()
        self.batches = []

    def teardown(self):
        for manager, connection in zip(self.managers, self.connections, strict=True):
            manager.abort()
            connection.close()
        self.db.close()
        clock.use(self.former_clock)

    @property
    def loop(self):
        return self.connections[self.turn].root()['loop']

    @property
    def now(self):
        return self.clock.now / support.SECOND

    def verb(self, name, test, *args, **options):
        """Call a verb of the loop; with `test` the model must not change."""
        verb = getattr(self.loop, name)
        if test:
            former = copy.deepcopy(self.model)
            answer = verb(*args, test=True, **options)
            return answer, lambda: setattr(self, 'model', former)
        return verb(*args, **options), lambda: None

    @rule(ids=SOME, updated=st.booleans(), test=st.booleans())
    def add(self, ids, updated, test):
        answer, undo = self.verb('add', test, ids, updated)
        assert answer == self.model.add(ids, self.now, updated)
        undo()

    @rule(ids=SOME, test=st.booleans())
    def remove(self, ids, test):
        answer, undo = self.verb('remove', test, ids)
        assert answer == self.model.remove(ids)
        undo()

    @rule(ids=SOME, adds=st.booleans(), test=st.booleans())
    def did(self, ids, adds, test):
        answer, undo = self.verb('did', test, ids, adds)
        assert answer == self.model.did(ids, self.now, adds)
        undo()

    @rule(ids=SOME, adds=st.booleans(), test=st.booleans())
    def unlock(self, ids, adds, test):
        answer, undo = self.verb('unlock', test, ids, adds)
        assert answer == self.model.unlock(ids, self.now, adds)
        undo()

    @rule(ids=SOME, span=SPANS, adds=st.booleans(), test=st.booleans(), take_over=st.booleans())
    def bump(self, ids, span, adds, test, take_over):
        answer, undo = self.verb('bump', test, ids, span, adds, take_over=take_over)
        assert answer == self.model.bump(ids, self.now + span, self.now, adds, take_over)
        undo()

    @rule(ids=SOME, span=SPANS, width=st.sampled_from([1, 3600]), take_over=st.booleans())
    def bump_at_random(self, ids, span, width, take_over):
        state = random.getstate()
        answer = self.loop.bump(ids, (span, span + width), take_over=take_over)
        random.setstate(state)
        low, high = span * support.SECOND, (span + width) * support.SECOND
        until = {
            id: self.now + random.randint(low, high) / support.SECOND for id in dict.fromkeys(ids)
        }
        assert answer == self.model.bump(ids, until, self.now, True, take_over)

    @rule(
        limit=st.integers(0, 9),
        lock_for=st.sampled_from([1, 600, 3600]),
        min_loop_time=st.sampled_from([-3600, 0, 3600]),
        test=st.booleans(),
    )
    def get(self, limit, lock_for, min_loop_time, test):
        batch, undo = self.verb('get', test, limit, lock_for, min_loop_time)
        left = self.model.eligible(self.now, min_loop_time)
        assert len(batch) == min(limit, len(left))
        for id in batch:
            rank, waited = left.pop(id)  # it may be taken, and is taken once
            for other, (other_rank, other_waited) in left.items():
                assert other_rank >= rank, other
                if other_rank == rank and (rank != 1 or self.shards == 1):
                    assert other_waited <= self.at_most(waited) + DRIFT, other
        self.model.take(batch, self.now + lock_for, batch.token)
        undo()
        if not test and batch:
            self.batches.append(batch)

    def at_most(self, waited):
        """How long an id may have waited that comes behind one that waited so long."""
        return max(BRIEFLY, waited * NEARLY)

    @rule(number=st.integers(0, 5), part=st.sampled_from([slice(None), slice(2)]))
    def did_batch(self, number, part):
        if self.batches:
            batch = self.batches[-1 - number % len(self.batches)][part]
            expected = self.model.did(batch, self.now, False, batch.token)
            assert self.loop.did(batch) == expected

    @rule(number=st.integers(0, 5))
    def unlock_batch(self, number):
        if self.batches:
            batch = self.batches[-1 - number % len(self.batches)]
            assert self.loop.unlock(batch) == self.model.unlock(batch, self.now, False, batch.token)

    @rule(seconds=st.sampled_from([0, 1, 29, 3600, 3601, 86_400]))
    def wait(self, seconds):
        self.clock.advance(seconds)

    @rule(stay=st.booleans())
    def commit(self, stay):
        self.managers[self.turn].commit()
        self.stored = copy.deepcopy(self.model)
        self.turn = self.turn if stay else 1 - self.turn
        self.connections[self.turn].cacheMinimize()
        self.managers[self.turn].begin()

    @rule()
    def abort(self):
        self.managers[self.turn].abort()
        self.model = copy.deepcopy(self.stored)

    @invariant()
    def the_loop_tells_what_the_model_knows(self):
        if not hasattr(self, 'model'):
            return
        ids, now = self.model.ids, self.now
        assert set(self.loop) == set(ids) and len(self.loop) == len(ids)
        found = self.loop.check(range(25))
        assert set(found) == set(ids)
        for id, (since, left) in found.items():
            one = ids[id]
            assert near(since, None if one.updated is None else now - one.updated)
            assert near(left, None if one.until is None else one.until - now)
        failures = {
            id: one.failures + (one.token is not None and one.until <= now)
            for id, one in ids.items()
        }
        failures = {id: count for id, count in failures.items() if count}
        assert self.loop.failures() == failures
        self.check_stats(ids.values(), now, failures)

    def check_stats(self, ids, now, failures):
        stats = self.loop.stats()
        locks = [one.until - now for one in ids if one.until is not None]
        left = [span for span in locks if span > 0]
        over = [-span for span in locks if span <= 0]
        updates = [now - one.updated for one in ids if one.updated is not None]
        assert stats['total'] == len(ids)
        assert stats['never_updated'] == len(ids) - len(updates)
        assert (stats['locked'], stats['bumped']) == (len(left), len(over))
        assert stats['failing'] == len(failures)
        assert stats['min_id'] == min(self.model.ids, default=None)
        assert stats['max_id'] == max(self.model.ids, default=None)
        for name, spans in {'lock': left, 'bump': over, 'update': updates}.items():
            assert near(stats[f'min_{name}_time'], min(spans, default=0))
            assert near(stats[f'max_{name}_time'], max(spans, default=0))
        ages = [now - (one.added if one.updated is None else one.updated) for one in ids]
        assert near(self.loop.oldest(), max(ages, default=None))
        dues = [one.until or (one.updated or -math.inf) + 3600 for one in ids]
        due = self.loop.next_due(3600)
        due = None if due is None else due.timestamp()
        assert near(due, max(0, min(dues)) if dues else None)
        for seconds in (1.5, 1800, 5400):
            assert self.loop.stale(seconds) == sum(age >= seconds for age in ages)


def near(one, other):
    if one is None or other is None:
        return one is other
    return abs(one - other) < DRIFT


class ExactMachine(LoopMachine):
    """With one shard the order is exact."""

    shards = 1

    def at_most(self, waited):
        return waited


TestLoop = LoopMachine.TestCase
TestExactLoop = ExactMachine.TestCase
TestLoop.settings = TestExactLoop.settings = settings(
    max_examples=12, stateful_step_count=30, deadline=None
)
