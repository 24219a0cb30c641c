"""Job feeds: claims that end, results that stay, and workers that lost their claim."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from ZODB.POSException import ConflictError

from tests.model import support
from zodbjobs import Feeds, clock
from zodbjobs.interfaces import ClaimLost, Empty
from zodbjobs.model import jobfeed, reservations


@pytest.fixture
def jobs(side):
    reservations.clear()
    feeds = side.root['feeds'] = Feeds()
    side.commit()
    jobs = feeds.job('jobs', {'lease': 60})
    side.commit()
    yield jobs
    reservations.clear()


def put(jobs, *items):
    ids = [jobs.put(item) for item in items]
    jobs._p_jar.transaction_manager.commit()
    return ids


def get(jobs):
    claim = jobs.get(0)
    jobs._p_jar.transaction_manager.commit()
    return claim


def test_the_life_of_an_item(jobs, side):
    put(jobs, 'work')
    urgent = jobs.put('urgent', priority=jobs.HIGH)
    side.commit()
    id, item, cancelled = get(jobs)
    assert (id, item, cancelled) == (urgent, 'urgent', 0)
    assert jobs.get_state(id) == 'claimed' and id in jobs and len(jobs) == 2
    jobs.finish(id, 'done', result=True, timeout=5)
    side.commit()
    assert jobs.get_result(id) == ('urgent', 'done') == jobs.get_result(id, 0)
    assert id not in jobs and len(jobs) == 1
    told = [notice.arguments for notice in jobs.notices() if notice.kind == 'finish']
    assert told == [('jobs', id, 'done')]


def test_results_go_when_their_time_is_over(jobs, turned):
    ids = put(jobs, 1, 2, 3)
    claims = [get(jobs) for _ in ids]
    jobs.finish(claims[0], 'x', timeout=5)
    jobs.finish(claims[1], None, result=True)
    jobs.finish(claims[2])
    assert jobs.get_result(ids[1], 0) == (2, None)
    with pytest.raises(LookupError, match='finished without a result'):
        jobs.get_result(ids[2], 0)
    turned.advance(6)
    with pytest.raises(LookupError, match='not kept any more'):
        jobs.get_result(ids[0], 0)
    turned.advance(jobfeed.RESULT_SECONDS)
    put(jobs, 4)
    jobs.finish(get(jobs))
    assert len(jobs.results) == len(jobs.endings) == 0


def test_a_claim_that_ends_comes_back_and_counts(jobs, turned):
    (id,) = put(jobs, 'work')
    claim = get(jobs)
    with pytest.raises(Empty):
        jobs.get(0)
    assert jobs._next_change() == 60
    turned.advance(61)
    again = get(jobs)
    assert again == (id, 'work', 1) and jobs.get_failure_count(id) == 1
    with pytest.raises(ClaimLost, match='claimed again'):
        jobs.finish(claim)
    with pytest.raises(ClaimLost):
        jobs.cancel(claim)
    jobs.finish(again)
    with pytest.raises(ClaimLost, match='finished or retracted'):
        jobs.finish(claim)


def test_a_late_worker_may_finish_if_nobody_else_began(jobs, turned):
    put(jobs, 'work', 'other')
    claim = get(jobs)
    turned.advance(61)
    assert get(jobs).item == 'other', 'what came back stands at the end'
    assert jobs.get_state(claim.id) == 'available'
    jobs.finish(claim, 'late')
    assert jobs.get_result(claim, 0).result == 'late'


def test_a_worker_that_lost_its_claim_cannot_commit(jobs, side, house, turned):
    put(jobs, 'work')
    claim = get(jobs)
    side.root['effect'] = 'of the first'
    jobs.finish(claim)
    turned.advance(61)
    reservations.clear()
    other = house.side()
    assert get(other.twin(jobs)).id == claim.id
    with pytest.raises(ConflictError):
        side.commit()
    side.abort()
    assert 'effect' not in side.root


def test_cancel_puts_at_the_end_stall_sets_aside_retry_offers_again(jobs):
    first, second = put(jobs, 1, 2)
    get(jobs)
    jobs.cancel(first)
    assert get(jobs).id == second
    assert get(jobs) == (first, 1, 1)
    jobs.stall(first)
    assert jobs.get_state(first) == 'stalled' and jobs.get_failure_count(first) == 0
    with pytest.raises(Empty):
        jobs.get(0)
    jobs.retry(first)
    assert get(jobs) == (first, 1, 0)
    (third,) = put(jobs, 3)
    jobs.stall(third)
    jobs.retract(third)
    assert jobs.get_ids() == [first, second]


def test_what_does_not_fit_raises_and_changes_nothing(jobs):
    (id,) = put(jobs, 'work')
    for verb in (jobs.finish, jobs.cancel):
        with pytest.raises(LookupError, match='must be claimed, and it is available'):
            verb(id)
    with pytest.raises(LookupError, match='must be stalled, and it is available'):
        jobs.retry(id)
    jobs.stall(id)
    with pytest.raises(LookupError, match='it is stalled'):
        jobs.stall(id)
    for verb in (
        jobs.finish, jobs.cancel, jobs.stall, jobs.retry, jobs.retract, jobs.get_failure_count,
        jobs.get_state, lambda id: jobs.get_result(id, 0),
    ):  # fmt: skip
        with pytest.raises(LookupError):
            verb('nothing')
    assert jobs.get_item('nothing') is None and jobs.get_item(id) == 'work'


def test_all_who_wait_may_find_an_ended_claim(jobs, side, house, turned):
    """They look at the same moment, and do not conflict over who puts it back."""
    put(jobs, 1, 2, 3)
    for _ in range(3):
        get(jobs)
    turned.advance(61)
    readers = [house.side() for _ in range(3)]
    claims = []
    for reader in readers:
        try:
            claims.append(reader.twin(jobs).get(0))
        except Empty:
            claims.append(None)
    for reader in readers:
        reader.commit()
    assert claims[1:] == [None, None] and claims[0].cancelled == 1
    side.begin()
    items = [claims[0].item, get(jobs).item, get(jobs).item]
    assert sorted(items) == [1, 2, 3]


class JobMachine(RuleBasedStateMachine):
    """A JobFeed against lists: whatever happens, each item is in one place."""

    LEASE = 30

    @initialize()
    def make(self):
        import transaction
        import ZODB

        self.former = clock.use()
        self.time = support.TurnedClock()
        clock.use(self.time)
        reservations.clear()
        self.db = ZODB.DB(None)
        self.connection = self.db.open()
        feeds = self.connection.root()['feeds'] = Feeds()
        transaction.commit()
        self.jobs = feeds.job('jobs', {'lease': self.LEASE})
        self.high, self.normal, self.claimed, self.stalled = [], [], {}, []
        self.failures = {}

    def teardown(self):
        import transaction

        transaction.abort()
        self.connection.close()
        self.db.close()
        clock.use(self.former)

    def all_ids(self):
        return [*self.high, *self.normal, *self.claimed, *self.stalled]

    @rule(high=st.booleans())
    def put(self, high):
        id = self.jobs.put('item', high or None)
        (self.high if high else self.normal).append(id)
        self.failures[id] = 0

    @rule()
    def get(self):
        now = self.time.now
        ended = [(end, id) for id, (end, _) in self.claimed.items() if end <= now]
        for _, id in sorted(ended):
            del self.claimed[id]
            self.normal.append(id)
            self.failures[id] += 1
        line = self.high or self.normal
        if not line:
            with pytest.raises(Empty):
                self.jobs.get(0)
            return
        claim = self.jobs.get(0)
        assert claim.id == line.pop(0) and claim.cancelled == self.failures[claim.id]
        self.claimed[claim.id] = (now + self.LEASE * clock.SECOND, claim)

    @rule(seconds=st.integers(1, 20))
    def wait(self, seconds):
        self.time.advance(seconds)

    def claims(self):
        return bool(self.claimed)

    @precondition(claims)
    @rule(index=st.integers(0, 99), by_claim=st.booleans(), what=st.sampled_from('fcs'))
    def answer(self, index, by_claim, what):
        id = list(self.claimed)[index % len(self.claimed)]
        _, claim = self.claimed.pop(id)
        verb = {'f': self.jobs.finish, 'c': self.jobs.cancel, 's': self.jobs.stall}[what]
        verb(claim if by_claim else id)
        if what == 'f':
            del self.failures[id]
        elif what == 'c':
            self.failures[id] += 1
            self.normal.append(id)
        else:
            self.failures[id] = 0
            self.stalled.append(id)

    @precondition(lambda self: self.stalled)
    @rule()
    def retry(self):
        id = self.stalled.pop(0)
        self.jobs.retry(id)
        self.normal.append(id)

    @precondition(lambda self: self.all_ids())
    @rule(index=st.integers(0, 99))
    def retract(self, index):
        id = self.all_ids()[index % len(self.all_ids())]
        self.jobs.retract(id)
        for line in (self.high, self.normal, self.stalled):
            if id in line:
                line.remove(id)
        self.claimed.pop(id, None)

    @rule()
    def commit(self):
        self.connection.transaction_manager.commit()

    @invariant()
    def everything_is_in_one_place(self):
        if hasattr(self, 'jobs'):
            assert sorted(self.jobs.get_ids()) == sorted(self.all_ids())
            assert len(self.jobs.high) == len(self.high)
            assert len(self.jobs.normal) == len(self.normal)
            assert len(self.jobs.leases) == len(self.claimed)
            assert all(self.jobs.get_state(id) == 'stalled' for id in self.stalled)


TestJobs = JobMachine.TestCase
TestJobs.settings = settings(max_examples=25, stateful_step_count=30)
