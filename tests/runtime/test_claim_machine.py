"""Claims as a state machine: whatever consumers do, and however late, no job is lost or doubled."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from ZODB.POSException import ConflictError

from tests.model import support
from zodbjobs import Message, NeverRetry, RetryCommonForever, clock
from zodbjobs.interfaces import ACTIVE, COMPLETED, HELD, PENDING, ClaimLost
from zodbjobs.runtime.consumer import Consumer

LEASE = 10


class Known:
    """What must be true of a job."""

    def __init__(self, number, priority, due):
        self.number = number
        self.priority = priority
        self.due = due  # microseconds
        self.state = PENDING
        self.claim = None  # the Claim that holds it now
        self.end = 0  # when its lease ends
        self.claims = 0


class Claims(RuleBasedStateMachine):
    """Two consumers, one of which may be late, and the application."""

    @initialize()
    def start(self):
        self.folder = tempfile.TemporaryDirectory()
        self.time = support.TurnedClock()
        self.former = clock.use(self.time)
        self.house = support.file_house(Path(self.folder.name))
        self.side = self.house.first
        self.side.queue.order = 'put'
        self.side.commit()
        self.sides = [self.house.side(), self.house.side()]
        for side in self.sides:
            side.begin()
        self.consumers = [side.queue.consumer('worker') for side in self.sides]
        self.jobs = {}  # number -> Known
        self.old = []  # (consumer's number, Claim, Known) of claims that were lost, maybe

    def teardown(self):
        if hasattr(self, 'house'):
            for consumer, side in zip(self.consumers, self.sides, strict=True):
                side.abort()
                consumer.close()
            self.house.close()
            clock.use(self.former)
            self.folder.cleanup()

    # the model

    def expire(self):
        """Leases that have ended are taken back by whoever looks."""
        for known in self.jobs.values():
            if known.state == ACTIVE and known.end <= self.time.now:
                known.state, known.claim = PENDING, None

    def job(self, side, known):
        return next(job for job in self.all(side) if job.body == b'%d' % known.number)

    def all(self, side):
        side.begin()
        return [side.connection.get(oid) for oid in self.oids]

    oids: tuple = ()

    # what happens

    @rule(priority=st.integers(1, 3), delay=st.sampled_from([0, 0, 5]))
    def put(self, priority, delay):
        self.side.begin()
        number = len(self.jobs)
        job = self.side.queue.put(
            Message(b'%d' % number), priority=priority, delay=delay or None, lease=LEASE,
            retry_policy_factory=RetryCommonForever,
        )  # fmt: skip
        self.side.commit()
        self.oids += (job._p_oid,)
        self.jobs[number] = Known(number, priority, self.time.now + delay * clock.SECOND)

    @rule(which=st.integers(0, 1))
    def claim(self, which):
        consumer: Consumer = self.consumers[which]
        self.sides[which].abort()
        self.expire()
        due = [
            known
            for known in self.jobs.values()
            if known.state == PENDING and known.due <= self.time.now
        ]
        wanted = min(due, key=lambda known: (known.priority, known.number), default=None)
        consumer._held.clear()  # nothing warns of leases that are about to end
        found = consumer.claim(0)
        if wanted is None:
            assert found is None
            return
        assert found is not None, wanted.number
        assert found.body == b'%d' % wanted.number
        wanted.claims += 1
        assert found.token == wanted.claims
        wanted.state, wanted.claim = ACTIVE, found
        wanted.end = self.time.now + LEASE * clock.SECOND
        self.old.append((which, found, wanted))

    @precondition(lambda self: self.old)
    @rule(
        data=st.data(),
        verb=st.sampled_from(['finish', 'release', 'later', 'hold', 'touch', 'abort']),
        fresh=st.booleans(),
    )
    def use(self, data, verb, fresh):
        """Use any claim there ever was, at once or too late."""
        which, claim, known = data.draw(st.sampled_from(self.old))
        side = self.sides[which]
        if fresh or verb == 'touch':
            side.begin()
        ours = known.claim is claim
        nobody = known.state == PENDING and known.claims == claim.token
        if verb == 'touch':
            self.touch(claim, known, ours)
            return
        deed = {
            'finish': claim.finish, 'abort': claim.finish, 'release': claim.release,
            'later': lambda: claim.release(delay=3), 'hold': claim.hold,
        }[verb]  # fmt: skip
        try:
            deed()
            if verb == 'abort':
                side.abort()
                return
            side.commit()
        except (ClaimLost, ConflictError):
            side.abort()
            assert not ours or not fresh, 'a claim that was held was lost'
            return
        assert ours or nobody, 'a lost claim was used'
        known.claim = None
        known.state = {'finish': COMPLETED, 'hold': HELD}.get(verb, PENDING)
        if verb == 'later':
            known.due = self.time.now + 3 * clock.SECOND

    def touch(self, claim, known, ours):
        try:
            claim.touch()
        except ClaimLost:
            assert not ours
        else:
            assert ours
            known.end = self.time.now + LEASE * clock.SECOND

    @precondition(lambda self: any(known.state == HELD for known in self.jobs.values()))
    @rule(data=st.data())
    def resume(self, data):
        held = [known for known in self.jobs.values() if known.state == HELD]
        known = data.draw(st.sampled_from(held))
        self.job(self.side, known).resume()
        self.side.commit()
        known.state = PENDING

    @rule(seconds=st.sampled_from([1, 3, 4, 9, 11]))
    def wait(self, seconds):
        self.time.advance(seconds)

    # what must hold

    @invariant()
    def every_job_stands_where_it_must(self):
        if not hasattr(self, 'house'):
            return
        for job, known in zip(self.all(self.side), self.jobs.values(), strict=True):
            overdue = known.state == ACTIVE and known.end <= self.time.now
            assert job.status in ({ACTIVE, PENDING} if overdue else {known.state}), known.number
        waiting = sum(job.status == PENDING for job in self.all(self.side))
        assert len(self.side.queue) == waiting


Claims.TestCase.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)


@pytest.mark.usefixtures('same_clock_afterwards')
class TestClaims(Claims.TestCase):
    """The machine, as a test."""


def test_once_is_once(tmp_path):
    former = clock.use(support.TurnedClock())
    house = support.file_house(tmp_path)
    house.first.queue.put(Message(b'1'), retry_policy_factory=NeverRetry)
    house.first.commit()
    with house.first.queue.consumer('worker') as consumer:
        assert consumer.claim(0).token == 1
        clock._source.advance(1000)
        assert consumer.claim(0) is None
    house.close()
    clock.use(former)
