"""What users may expect of a queue: its order, its counts, its refusals."""

import datetime

import pytest

from tests.model.support import work
from zodbjobs import clock


def sort_all(side):
    """Have a dispatcher sort everything that waits in the lanes, and commit."""
    look = side.look()
    look.sort()
    look.file_rest(leave=0)
    side.commit()


def hence(seconds):
    """The datetime in so many seconds."""
    return clock.now() + datetime.timedelta(seconds=seconds)


# Order -------------------------------------------------------------------------------------


def test_first_come_first_served(side, queue):
    jobs = [queue.put(work) for _ in range(5)]
    assert list(queue) == jobs
    assert queue.peek() is jobs[0]
    side.commit()
    assert side.claimed_jobs(5) == jobs


def test_a_job_that_is_put_again_is_the_last(side, queue):
    first, second = queue.put(work), queue.put(work)
    queue.remove(first)
    queue.put(first)
    assert list(queue) == [second, first]
    side.commit()
    assert side.claimed_jobs(2) == [second, first]


@pytest.mark.parametrize('is_sorted', [False, True])
def test_jobs_for_one_date_keep_the_order_of_their_puts(side, queue, turned, is_sorted):
    date = hence(60)
    jobs = [queue.put(work, date) for _ in range(4)]
    queue.remove(jobs[0])
    queue.put(jobs[0], date)
    side.commit()
    if is_sorted:
        sort_all(side)
    expected = [*jobs[1:], jobs[0]]
    assert list(queue) == expected
    turned.advance(61)
    assert list(queue) == expected
    assert side.claimed_jobs(4) == expected


@pytest.mark.parametrize('is_sorted', [False, True])
def test_the_smaller_priority_goes_first(side, queue, is_sorted):
    low, high, usual = queue.put(work, priority=7), queue.put(work, priority=3), queue.put(work)
    side.commit()
    if is_sorted:
        sort_all(side)
    usual.priority = 5
    assert list(queue) == [high, usual, low]
    side.commit()
    assert side.claimed_jobs(3) == [high, usual, low]


def test_a_date_that_has_passed_is_as_good_as_none(side, queue):
    first = queue.put(work)
    past = queue.put(work, hence(-3600))
    assert past.begin_after == clock.now()
    assert list(queue) == [first, past]


def test_order_put_forgets_the_dates_of_what_is_due(side, queue, turned):
    queue.order = 'put'
    late = queue.put(work, delay=60)
    turned.advance(1)
    soon = queue.put(work, delay=30)
    side.commit()
    sort_all(side)
    turned.advance(61)
    assert list(queue) == [late, soon]
    assert side.claimed_jobs(2) == [late, soon]


@pytest.mark.parametrize('is_sorted', [False, True])
def test_the_order_may_be_changed_while_jobs_wait(side, queue, turned, is_sorted):
    late = queue.put(work, delay=60)
    turned.advance(1)
    soon = queue.put(work, delay=30)
    side.commit()
    if is_sorted:
        sort_all(side)
    turned.advance(61)
    assert list(queue) == [soon, late]
    queue.order = 'put'
    assert list(queue) == [late, soon]
    queue.order = 'due'
    assert list(queue) == [soon, late]
    assert len(queue) == 2
    with pytest.raises(ValueError, match="'put'"):
        queue.order = 'random'


# Dates -------------------------------------------------------------------------------------


def test_begin_by_without_begin_after_counts_from_the_put(side, queue, turned):
    job = queue.put(work, begin_by=60)
    assert job.begin_by == datetime.timedelta(seconds=60)
    side.commit()
    sort_all(side)
    turned.advance(61)
    side.claim()
    assert job.result.type.__name__ == 'TimeoutError'


@pytest.mark.parametrize(
    'wish',
    [
        {'begin_after': datetime.datetime.max},
        {'begin_by': datetime.timedelta.max},
        {'begin_after': datetime.datetime.max, 'begin_by': datetime.timedelta.max},
        {'begin_after': datetime.datetime.min, 'begin_by': 60},
    ],
)
def test_dates_at_the_ends_of_time_stop_nobody(side, queue, wish):
    """Sorting keys have 63 bits; a key too large would fail every pass of every dispatcher."""
    far, job = queue.put(work, **wish), queue.put(work)
    side.commit()
    sort_all(side)
    assert job in side.claimed_jobs(2)
    assert list(queue) in ([], [far])
    if wish.get('begin_after') == datetime.datetime.max:
        assert far.begin_after.replace(tzinfo=None) == datetime.datetime.max
