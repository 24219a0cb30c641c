"""Retry policies, rule by rule: how often, and how long until.

How attempts follow their advice is in tests/runtime.
"""

import datetime

import pytest
from ZEO.Exceptions import ClientDisconnected
from ZODB.POSException import ConflictError, ReadConflictError
from zope.component import globalregistry, provideAdapter

from tests.model.support import work
from zodbjobs import (
    Failure,
    Job,
    NeverRetry,
    RetryCommonForever,
    RetryCommonFourTimes,
    RetryPolicy,
)
from zodbjobs.interfaces import IJob, IRetryPolicy
from zodbjobs.model.retry import policy_for

OWN, CONFLICT, LOST = ValueError('own'), ConflictError(), ClientDisconnected()
FOR_EVER = 100  # often enough to call it that


def seconds(advice):
    """False, True, or the seconds of a timedelta."""
    return advice if isinstance(advice, bool) else advice.total_seconds()


def advices(policy, method, error, times):
    """What a policy says to the same error, time after time in one run."""
    cache = {}
    ask = getattr(policy, method)
    return [seconds(ask(Failure(error), cache)) for _ in range(times)]


WAITS = [min(60, 5 * n) for n in range(1, FOR_EVER + 1)]
COMMIT_WAITS = [min(60, n) for n in range(FOR_EVER)]
YES, NO = [True] * FOR_EVER, [False] * FOR_EVER


@pytest.mark.parametrize(
    ('factory', 'method', 'error', 'expected'),
    [
        (RetryCommonFourTimes, 'jobError', OWN, NO),
        (RetryCommonFourTimes, 'commitError', OWN, NO),
        (RetryCommonFourTimes, 'jobError', CONFLICT, [True] * 4 + NO),
        (RetryCommonFourTimes, 'commitError', ReadConflictError(), [True] * 4 + NO),
        (RetryCommonFourTimes, 'jobError', LOST, WAITS),
        (RetryCommonFourTimes, 'commitError', LOST, WAITS),
        (RetryCommonForever, 'jobError', OWN, NO),
        (RetryCommonForever, 'commitError', OWN, COMMIT_WAITS),
        (RetryCommonForever, 'jobError', CONFLICT, YES),
        (RetryCommonForever, 'commitError', CONFLICT, YES),
        (RetryCommonForever, 'jobError', LOST, WAITS),
        (NeverRetry, 'jobError', OWN, NO),
        (NeverRetry, 'commitError', OWN, NO),
        (NeverRetry, 'jobError', CONFLICT, NO),
        (NeverRetry, 'commitError', CONFLICT, NO),
        (NeverRetry, 'jobError', LOST, NO),
        (RetryPolicy(2), 'jobError', OWN, [0, 0] + NO),
        (RetryPolicy(2), 'commitError', OWN, [0, 0] + NO),
        (RetryPolicy(2), 'jobError', CONFLICT, [True] * 4 + NO),
        (RetryPolicy(0), 'jobError', OWN, NO),
        (RetryPolicy(3, 2.5), 'jobError', OWN, [2.5] * 3 + NO),
        (RetryPolicy(4, [1, 10]), 'jobError', OWN, [1, 10, 10, 10] + NO),
        (RetryPolicy(3, lambda n: n * n), 'jobError', OWN, [1, 4, 9] + NO),
        (RetryPolicy(1, lambda n: -5), 'jobError', OWN, [0] + NO),
    ],
)
def test_the_rules(factory, method, error, expected):
    policy = factory(Job(work))
    assert advices(policy, method, error, FOR_EVER) == expected[:FOR_EVER]


def test_conflicts_in_the_call_and_at_the_commit_are_counted_together():
    policy, cache = RetryCommonFourTimes(Job(work)), {}
    answers = [policy.jobError(Failure(CONFLICT), cache) for _ in range(2)]
    answers += [policy.commitError(Failure(CONFLICT), cache) for _ in range(3)]
    assert answers == [True] * 4 + [False]


def test_lost_connections_and_conflicts_are_counted_apart():
    policy, cache = RetryCommonFourTimes(Job(work)), {}
    for _ in range(20):
        policy.jobError(Failure(LOST), cache)
    assert [policy.jobError(Failure(CONFLICT), cache) for _ in range(5)] == [True] * 4 + [False]


@pytest.mark.parametrize(
    ('factory', 'borne'),
    [
        (RetryCommonFourTimes, 9), (RetryCommonForever, FOR_EVER), (NeverRetry, 0),
        (RetryPolicy(0), 9),
    ],
)  # fmt: skip
def test_interruptions(factory, borne):
    job = Job(work)
    policy = factory(job)
    for count in range(1, FOR_EVER + 1):
        job._interruptions = count
        assert policy.interrupted() == (count <= borne)


def test_counts_go_on_in_the_next_life(house, side, queue):
    job = queue.put(work, retry_policy_factory=RetryPolicy(2))
    policy, cache = job.getRetryPolicy(), {}
    policy.jobError(Failure(OWN), cache)
    policy.updateData(cache)
    side.commit()
    there = house.side().twin(job)
    assert advices(there.getRetryPolicy(), 'jobError', OWN, 2) == [0, False]


def test_data_that_did_not_change_is_not_written(side, queue):
    job = queue.put(work)
    policy = job.getRetryPolicy()
    side.commit()
    policy.updateData({})
    assert not job._p_changed
    policy.updateData({'conflict': 1, 'kind': 'conflict'})
    assert job._p_changed
    assert policy.data == {'conflict': 1}
    side.commit()
    policy.updateData({'conflict': 1})
    assert not job._p_changed


@pytest.mark.parametrize(
    ('args', 'error', 'words'),
    [
        ((-1,), ValueError, 'whole number'),
        ((1.5,), ValueError, 'whole number'),
        ((True,), ValueError, 'whole number'),
        ((1, []), ValueError, 'give 0'),
        ((1, ['soon']), TypeError, 'made of seconds'),
        ((1, 'soon'), TypeError, 'made of seconds'),
        ((1, 0, 'park'), ValueError, "'fail' or 'hold'"),
        ((1, 0, 'fail', 1.5), ValueError, 'from 0 to 1'),
        ((1, 0, 'fail', -0.1), ValueError, 'from 0 to 1'),
        ((1, 0, 'fail', 'some'), TypeError, 'such as 0.2'),
    ],
)
def test_a_bad_plan_is_refused(args, error, words):
    with pytest.raises(error, match=words):
        RetryPolicy(*args)


def test_a_plan_shows_itself():
    assert repr(RetryPolicy(3, [1, 5], 'hold')) == "RetryPolicy(3, (1, 5), 'hold')"
    assert RetryPolicy(1, on_exhausted='hold')(Job(work)).on_exhausted == 'hold'


def test_jitter_makes_waits_longer_and_different(house, side, queue):
    """By up to its fraction; the same job waits as long in every life, as nothing is drawn."""
    plan = RetryPolicy(50, [10, 100], jitter=0.5)
    assert repr(plan) == "RetryPolicy(50, (10, 100), 'fail', jitter=0.5)"
    jobs = [queue.put(work, retry_policy_factory=plan) for _ in range(40)]
    side.commit()
    first = [wait_after(job, 1) for job in jobs]
    second = [wait_after(job, 2) for job in jobs]
    assert all(10 <= wait <= 15 for wait in first) and all(100 <= wait <= 150 for wait in second)
    assert len(set(first)) == 40 and max(first) - min(first) > 4
    assert [wait_after(house.side().twin(job), 1) for job in jobs[:3]] == first[:3]
    assert (plan.seconds(1), plan.seconds(2, 0.5), plan.seconds(9, 1)) == (10, 125, 150)


def wait_after(job, count):
    """Seconds until the attempt that follows the failed one of that number."""
    policy = policy_for(job)
    return policy.jobError(Failure(ValueError()), {'errors': count - 1}).total_seconds()


def test_only_who_promises_it_runs_once(queue):
    assert queue.put(work, retry_policy_factory=NeverRetry).runs_once
    assert not queue.put(work, retry_policy_factory=RetryPolicy(0)).runs_once
    assert not queue.put(work).runs_once


# Which policy ------------------------------------------------------------------------------


@pytest.fixture
def adapters():
    """Adapters of the process, gone after the test."""
    globalregistry.base.__init__('base')
    yield lambda factory, name='': provideAdapter(factory, (IJob,), IRetryPolicy, name)
    globalregistry.base.__init__('base')


class Special(RetryCommonForever):
    pass


def test_a_job_s_own_wish_comes_first(queue, adapters):
    adapters(Special)
    adapters(Special, 'special')
    assert type(policy_for(queue.put(work))) is Special
    assert type(policy_for(queue.put(work, retry_policy_factory='special'))) is Special
    assert type(policy_for(queue.put(work, retry_policy_factory=NeverRetry))) is NeverRetry
    assert policy_for(queue.put(work, retries=4)).plan.retries == 4
    job = queue.put(work, retry_policy_factory='unheard')
    with pytest.raises(LookupError, match="'unheard', and no adapter"):
        job.getRetryPolicy()


def test_callbacks_have_a_default_of_their_own(queue, adapters):
    callback = queue.put(work).addCallback(work)
    assert type(policy_for(callback)) is RetryCommonForever
    adapters(NeverRetry)
    assert type(policy_for(callback)) is RetryCommonForever
    adapters(Special, 'callback')
    assert type(policy_for(callback)) is Special


def test_without_adapters(queue, adapters):
    assert type(policy_for(queue.put(work))) is RetryCommonFourTimes


def test_a_choice_follows_the_side_that_was_called(queue):
    job = queue.put(work)
    choice = job.addCallbacks(success=Job(work))
    choice.success.retry_policy_factory = NeverRetry
    job.settled(None)
    assert type(choice.getRetryPolicy()) is NeverRetry
    other = queue.put(work)
    choice = other.addCallbacks(success=Job(work), retry_policy_factory=Special)
    other.settled(None)
    assert type(choice.getRetryPolicy()) is Special


def test_made_once_and_kept(side, queue):
    job = queue.put(work, retry_policy_factory=RetryPolicy(1))
    policy = job.getRetryPolicy()
    side.commit()
    job.retry_policy_factory = NeverRetry
    assert job.getRetryPolicy() is policy


def test_waiting_is_a_date_and_no_sleep():
    advice = RetryCommonFourTimes(Job(work)).jobError(Failure(LOST), {})
    assert advice == datetime.timedelta(seconds=5)
