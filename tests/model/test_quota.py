"""Quotas: exact with any number of claimers, resizable, and no burden to completions."""

import pytest
from ZODB.POSException import ConflictError

from tests.model.support import work
from zodbjobs.model.job import WAITS_FOR_DEFERRED


@pytest.fixture
def quota(queue):
    queue.quotas.create('images')
    return queue.quotas['images']


def put(side, count, **wishes):
    jobs = [side.queue.put(work, quota_names=['images'], **wishes) for _ in range(count)]
    side.commit()
    return jobs


def ready_side(house):
    side = house.side()
    assert side.agent is not None
    side.commit()
    return side


# How many may run --------------------------------------------------------------------------


@pytest.mark.parametrize('size', [0, 1, 2, 3])
def test_no_more_run_than_its_size(side, queue, quota, size):
    quota.size = size
    jobs = put(side, 3)
    assert side.claimed_jobs(9) == jobs[:size]
    assert (len(quota), quota.filled, list(quota)) == (size, True, jobs[:size])
    assert side.claimed_jobs(9) == []


def test_a_place_is_free_when_its_job_has_finished(side, queue, quota):
    first, second = put(side, 2)
    assert side.claimed_jobs(9) == [first]
    side.run(first)
    assert len(quota) == 0  # the report says so
    assert side.claimed_jobs(9) == [second]


def test_a_completion_does_not_write_the_quota(side, queue, quota):
    first, second = put(side, 2)
    (assignment,) = side.claim()
    side.commit()
    side.work(assignment)
    assert not quota._p_changed
    assert len(quota) == 1  # forgotten only when somebody looks
    assert quota.clean() == 1
    assert side.claimed_jobs(9) == [second]
    assert first.outcome == 'success'


def test_it_may_be_resized_while_jobs_run(side, queue, quota):
    quota.size = 2
    jobs = put(side, 4)
    assert side.claimed_jobs(9) == jobs[:2]
    quota.size = 1  # stops nobody
    assert [job.status for job in jobs[:2]] == ['active'] * 2
    side.run(jobs[0])
    assert side.claimed_jobs(9) == []
    side.run(jobs[1])
    assert side.claimed_jobs(9) == [jobs[2]]
    quota.size = 5
    assert side.claimed_jobs(9) == [jobs[3]]


def test_a_job_may_need_several(side, queue, quota):
    queue.quotas.create('disk', 2)
    both = queue.put(work, quota_names=['images', 'disk'])
    disk = queue.put(work, quota_names=['disk', 'disk'])
    image = queue.put(work, quota_names=['images'])
    third = queue.put(work, quota_names=['disk'])
    side.commit()
    assert disk.quota_names == ('disk',)
    assert side.claimed_jobs(9) == [both, disk]
    side.run(both)
    assert side.claimed_jobs(9) == [image, third]


def test_a_full_quota_holds_nobody_else_up(side, queue, quota):
    jobs = put(side, 2)
    free = queue.put(work)
    side.commit()
    assert side.claimed_jobs(9) == [jobs[0], free]


def test_places_that_count_no_more_are_seen_in_the_middle_of_a_claim(house, side, queue, quota):
    """One side's finished jobs leave room for the other, also before they are written down."""
    quota.size = 2
    first, second = ready_side(house), ready_side(house)
    jobs = put(side, 4)
    first.begin()
    (assignment,) = first.claim()
    first.commit()
    first.work(assignment)
    first.commit()
    second.begin()
    assert [job._p_oid for job in second.claimed_jobs(9)] == [job._p_oid for job in jobs[1:3]]


# Exact with two claimers -------------------------------------------------------------------


def test_two_claimers_cannot_both_take_the_last_place(house, side, queue, quota):
    first, second = ready_side(house), ready_side(house)
    put(side, 1, channel='a'), put(side, 1, channel='b')
    for each, channel in ((first, 'a'), (second, 'b')):
        each.begin()
        each.agent.channels = [channel]
        each.commit()
        each.begin()
        assert len(each.claim()) == 1  # different jobs, in different groups
    first.commit()
    with pytest.raises(ConflictError):
        second.commit()
    second.abort()
    assert second.claim() == []


def test_a_claim_conflicts_with_a_smaller_size(house, side, queue, quota):
    claimer, operator = ready_side(house), house.side()
    put(side, 1)
    for each in (claimer, operator):
        each.begin()
    operator.queue.quotas['images'].size = 0
    claimer.claim()
    operator.commit()
    with pytest.raises(ConflictError):
        claimer.commit()


# Who takes a place -------------------------------------------------------------------------


def test_a_job_that_waits_for_one_it_returned_takes_none(side, queue, quota):
    outer, other = put(side, 2)
    side.claim()
    outer.begun(1, side.agent._p_oid)
    outer.waits_for_job(queue.put(work))
    assert side.claimed_jobs(1) == [other]


def test_a_job_that_waits_for_a_deferred_keeps_its_place(side, queue, quota):
    outer, _ = put(side, 2)
    side.claim()
    outer.begun(1, side.agent._p_oid)
    outer.waits_for_deferred()
    assert outer.waits == WAITS_FOR_DEFERRED
    assert side.claimed_jobs(9) == []


def test_what_goes_back_to_wait_leaves_its_place(side, queue, quota, turned):
    first, second = put(side, 2)
    side.claim()
    first.rescheduled(turned.micros() + 1000)
    assert side.claimed_jobs(1) == [second]


def test_a_claim_without_an_agent_takes_a_place(side, queue, quota):
    first, second = put(side, 2)
    assert queue.claim() is first
    assert queue.claim() is None
    assert side.claimed_jobs(9) == []
    queue.putBack(first)
    assert queue.claim() is first
    first.cancel()
    assert queue.claim() is second


def test_names_may_be_changed_while_the_job_waits(side, queue, quota):
    first, second = put(side, 2)
    second.quota_names = ()
    assert side.claimed_jobs(9) == [first, second]


# Making and removing -----------------------------------------------------------------------


def test_a_name_is_given_once(queue, quota):
    quota.size = 7
    with pytest.raises(ValueError, match=r"a quota 'images' already.*quotas\['images'\].size"):
        queue.quotas.create('images')
    assert queue.quotas['images'].size == 7


@pytest.mark.parametrize('size', [-1, 1.5, '2', None, True])
def test_a_size_is_a_whole_number(queue, quota, size):
    with pytest.raises(ValueError, match='whole number'):
        quota.size = size
    with pytest.raises(ValueError, match='whole number'):
        queue.quotas.create('other', size)
    assert (quota.size, list(queue.quotas)) == (1, ['images'])


def test_jobs_that_name_a_removed_quota_run_without(side, queue, quota):
    jobs = put(side, 2)
    queue.quotas.remove('images')
    with pytest.raises(KeyError):
        queue.quotas.remove('images')
    assert side.claimed_jobs(9) == jobs
    with pytest.raises(ValueError, match='unknown quota name'):
        queue.put(work, quota_names=['images'])


def test_quotas_are_a_mapping(queue, quota):
    queue.quotas.create('a', 2)
    quotas = queue.quotas
    assert (list(quotas), len(quotas), 'a' in quotas, bool(quotas)) == (['a', 'images'], 2, True, 1)
    assert list(quotas.keys()) == ['a', 'images']
    assert [each.size for each in quotas.values()] == [2, 1]
    assert dict(quotas.items())['images'] is quota
    assert quotas.get('b') is None
    with pytest.raises(TypeError, match='text'):
        quotas.create(5)
    assert repr(quota) == "<Quota 'images' 0 of 1>"
