"""Finished jobs of an agent: in what order they are shown, and for how long they are kept."""

import pytest

from tests.model.support import DAY, SECOND, fails, work
from zodbjobs import Failure, Job
from zodbjobs.model.history import History


class Ended:
    """What history needs of a job: its latest token, and whether it is unfinished."""

    def __init__(self, name, token=1):
        self.name = name
        self._token = token
        self.unfinished = False

    def is_unfinished(self):
        return self.unfinished

    def __repr__(self):
        return self.name


@pytest.fixture
def history():
    return History()


def add(history, name, now, failed=False, ttl=None):
    job = Ended(name)
    history.add(1, job, now, failed, ttl)
    return job


def names(jobs):
    return [job.name for job in jobs]


# Order -------------------------------------------------------------------------------------


def test_the_newest_come_first_whatever_became_of_them(history):
    add(history, 'a', 10)
    add(history, 'b', 20, failed=True)
    add(history, 'c', 30, ttl=DAY)
    add(history, 'd', 40, failed=True, ttl=DAY)
    add(history, 'e', 50)
    assert names(history) == names(history.newest()) == ['e', 'd', 'c', 'b', 'a']
    assert names(history.newest(2)) == ['e', 'd']
    assert names(history.newest_failed()) == ['d', 'b']
    assert names(history.newest_failed(1)) == ['d']


def test_jobs_that_ended_at_once_are_all_there(history):
    expected = [add(history, f'{n}', 5).name for n in range(200)]
    assert names(history) == expected[::-1]


def test_an_empty_history(history):
    assert (list(history), list(history.newest_failed()), history.is_due(10 * DAY)) == (
        [],
        [],
        False,
    )


# Retention ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('failed', 'ttl', 'kept'),
    [
        (False, None, 7 * DAY),
        (True, None, 30 * DAY),
        (False, 3 * SECOND, 3 * SECOND),
        (True, 3 * SECOND, 3 * SECOND),
        (False, 100 * DAY, 100 * DAY),  # longer than usual
        (True, 100 * DAY, 100 * DAY),
        (False, 2**70, None),  # for ever, as far as keys go
    ],
)
def test_how_long_a_job_is_kept(history, failed, ttl, kept):
    now = 1000 * DAY
    job = add(history, 'job', now, failed, ttl)
    last = now + (50_000 * DAY if kept is None else kept)
    assert not history.is_due(last - 1)
    assert history.sweep(last - 1) == []
    assert list(history) == [job]
    if kept is not None:
        assert history.is_due(last)
        assert history.sweep(last) == [job]
        assert (list(history), history.is_due(last + DAY)) == ([], False)


@pytest.mark.parametrize('ttl', [0, -1])
def test_a_job_that_nobody_wants_is_not_listed(history, ttl):
    assert not history.add(1, Ended('job'), 5, False, ttl)
    assert history.add(1, Ended('other'), 5, False, 1)
    assert names(history) == ['other']


def test_the_limits_may_be_set(history):
    history.keep_seconds = 1
    history.keep_failed_seconds = 2
    for failed in (False, True):
        add(history, f'failed: {failed}', SECOND, failed)
    assert names(history.sweep(2 * SECOND)) == ['failed: False']
    assert names(history.sweep(3 * SECOND)) == ['failed: True']


@pytest.mark.parametrize('failed', [False, True])
def test_there_is_a_bound(history, failed):
    history.keep_count = 3
    start = 1000 * DAY
    for n in range(5):
        assert history.is_due(start + n) == (n > 3)
        add(history, f'{n}', start + n, failed)
    add(history, 'of the other kind', start + 5, not failed)
    assert names(history.sweep(start + 5)) == ['0', '1']
    assert not history.is_due(start + 5)
    assert names(history) == ['of the other kind', '4', '3', '2']
    assert [*history.counts().values()] in ([3, 1, 0], [1, 3, 0])


def test_the_bound_holds_for_those_with_a_ttl_too(history):
    history.keep_count = 2
    for n in range(4):
        add(history, f'{n}', n, ttl=DAY)
    assert names(history.sweep(5)) == ['0', '1']
    assert names(history.sweep(2 * DAY)) == ['2', '3']
    assert history.sweep(3 * DAY) == []
    assert history.counts()['kept'] == 0


def test_some_are_forgotten_at_a_time(history):
    for n in range(10):
        add(history, f'{n}', n)
    assert names(history.sweep(8 * DAY, limit=4)) == ['0', '1', '2', '3']
    assert history.is_due(8 * DAY)
    assert names(history.sweep(8 * DAY, limit=100)) == ['4', '5', '6', '7', '8', '9']


def test_keys_are_not_mistaken_for_those_of_a_job_that_is_gone(history):
    """Two jobs of one microsecond: the end of one ttl leaves the other alone."""
    add(history, 'short', 5, ttl=1)
    add(history, 'long', 5, ttl=100)
    assert names(history.sweep(50)) == ['short']
    assert names(history.sweep(105)) == ['long']


# Jobs that changed since -------------------------------------------------------------------


def test_a_job_that_runs_again_is_not_shown_until_it_ended_again(history):
    job = add(history, 'job', 5, failed=True)
    job._token = 2
    assert (list(history), list(history.newest_failed())) == ([], [])
    history.add(2, job, 9, False)
    assert list(history) == [job]


def test_jobs_whose_end_was_undone_are_found(history):
    jobs = [add(history, f'{n}', n, ttl=DAY if n % 2 else None) for n in range(10)]
    jobs[1].unfinished = jobs[8].unfinished = True
    jobs[4].unfinished, jobs[4]._token = True, 2  # it runs again, that is not the same
    found, before = history.undone(limit=5)
    assert found == [jobs[8]]
    more, before = history.undone(before, limit=5)
    assert more == [jobs[1]]
    assert history.undone(before) == ([], None)


# In a queue --------------------------------------------------------------------------------


def test_ended_jobs_are_listed_with_their_agent(side, queue, turned):
    good, bad, cancelled = queue.put(work), queue.put(fails, result_ttl=5), queue.put(work)
    side.commit()
    side.claim(2)
    side.run(good)
    turned.advance(1)
    side.run(bad, Failure(ValueError()))
    cancelled.cancel()
    turned.advance(1)
    side.commit()
    assert list(side.agent.history) == [bad, good]
    side.claim(2)
    side.run_report(cancelled)
    assert list(side.agent.completed) == [cancelled, bad, good]
    assert list(side.agent.history.newest_failed()) == [cancelled, bad]
    turned.advance(5)
    side.retire()
    assert list(side.agent.history) == [cancelled, good]
    turned.advance(8 * 86_400)
    side.retire()
    assert list(side.agent.history) == [cancelled]


def test_jobs_in_a_history_keep_what_they_know(house, side, queue):
    job = queue.put(Job(work, 1))
    assert side.agent.history is not None
    side.commit()
    side.claim()
    side.run(job, 'result')
    side.commit()
    (found,) = house.side().twin(side.agent).history
    assert (found.result, found.agent.name, found.queue.name) == ('result', 'main', '')
