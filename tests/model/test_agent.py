"""Agents: what they take, what they list, and how choosers and filters may err."""

import pytest

from tests.model.support import work
from zodbjobs import Agent, Job, NeverRetry, status
from zodbjobs.facts import Assignment


def put(side, count=1, **wishes):
    jobs = [side.queue.put(work, **wishes) for _ in range(count)]
    side.commit()
    return jobs


def even(job):
    return not job.priority % 2


def hasty(job):
    raise RuntimeError('too hasty')


def nothing(agent):
    return None


def first(agent):
    return agent.queue.claim()


def last_even(agent):
    """Claims more than it returns."""
    claimed = [agent.queue.claim(even), agent.queue.claim(even)]
    return claimed[-1]


def pulls(agent):
    return agent.queue.pull()


def peeks(agent):
    return agent.queue.peek()


def number(agent):
    return 5


def claims_and_fails(agent):
    agent.queue.claim()
    raise RuntimeError('after the claim')


def puts_back(agent):
    agent.queue.putBack(agent.queue.claim())


# Settings ----------------------------------------------------------------------------------


def test_defaults():
    agent = Agent()
    assert (agent.size, agent.filter, agent.chooser, agent.channels) == (3, None, None, None)
    assert (len(agent), bool(agent), list(agent), agent.queue) == (0, True, [], None)
    assert repr(agent) == '<Agent None size 3>'


@pytest.mark.parametrize(
    ('settings', 'error', 'words'),
    [
        ({'size': -1}, ValueError, 'whole number'),
        ({'size': 1.5}, ValueError, 'whole number'),
        ({'size': True}, ValueError, 'whole number'),
        ({'filter': 3}, ValueError, 'the number of jobs is size='),
        ({'chooser': 3}, ValueError, 'the number of jobs is size='),
        ({'filter': even, 'chooser': first}, ValueError, 'not both'),
        ({'channels': 'mail'}, TypeError, r"use \['mail'\]"),
        ({'channels': [5]}, TypeError, 'a channel is a text'),
    ],
)
def test_bad_settings_are_refused(settings, error, words):
    with pytest.raises(error, match=words):
        Agent(**settings)
    agent = Agent(**({'filter': even} if len(settings) > 1 else {}))
    with pytest.raises(error, match=words):
        for name, value in settings.items():
            setattr(agent, name, value)


def test_a_filter_makes_way_for_a_chooser():
    agent = Agent(filter=even)
    agent.filter = None
    agent.chooser = first
    with pytest.raises(ValueError, match='set chooser to None'):
        agent.filter = even


def test_channels_are_names_once():
    assert Agent(channels=['mail', None, 'mail', '']).channels == ('mail', '')


# What it takes -----------------------------------------------------------------------------


def test_it_takes_what_it_has_room_for(side, queue):
    jobs = put(side, 5)
    assert side.claimed_jobs(2) == jobs[:2]
    assert side.claimed_jobs(0) == []
    assert side.claimed_jobs(2) == jobs[2:4]
    assert list(side.agent) == jobs[:4]


def test_jobs_ahead_are_assigned_and_others_active(side, queue):
    jobs = put(side, 4)
    found = side.claim(1, ahead=2)
    assert [assignment.ahead for assignment in found] == [False, True, True]
    assert [job.status for job in jobs] == ['active', 'assigned', 'assigned', 'pending']
    assert [job.agent for job in jobs] == [side.agent] * 3 + [None]


def test_what_runs_once_is_not_taken_ahead(side, queue):
    plain, once, other = (
        queue.put(work), queue.put(work, retry_policy_factory=NeverRetry), queue.put(work)
    )  # fmt: skip
    side.commit()
    assert side.claimed_jobs(1, ahead=5) == [plain, other]
    assert side.claimed_jobs(1) == [once]


def test_channels(side, queue):
    mail, web, none = (queue.put(work, channel=name) for name in ('mail', 'web', None))
    side.commit()
    for channels, expected in ((['mail', 'unheard'], [mail]), ([None], [none]), (None, [web])):
        side.agent.channels = channels
        assert side.claimed_jobs(9) == expected


@pytest.mark.parametrize('is_sorted', [False, True])
def test_jobs_to_conclude_are_found_by_their_channel(side, queue, is_sorted):
    job = queue.put(work, channel='mail')
    job.addCallback(work)
    job.cancel()
    side.commit()
    if is_sorted:
        side.file_all()
        side.commit()
    side.agent.channels = ['web']
    assert side.claim(9) == []
    side.agent.channels = ['mail']
    assert side.claimed_jobs(9) == [job]


def test_an_assignment_says_what_is_needed(side, queue):
    queue.quotas.create('q')
    (job,) = put(side, quota_names=['q'])
    (found,) = side.claim()
    assert found == Assignment(job._p_oid, job._token, '', 'main', ('q',), job_class=Job)
    assert found.job_id == (job.oid, '')


# Filters -----------------------------------------------------------------------------------


def test_a_filter_leaves_jobs_for_others(side, queue):
    jobs = [queue.put(work, priority=n) for n in range(1, 5)]
    side.commit()
    side.agent.filter = even
    assert side.claimed_jobs(9) == [jobs[1], jobs[3]]
    assert (list(queue), len(queue)) == ([jobs[0], jobs[2]], 2)


def test_a_filter_that_raises_takes_nothing_and_is_reported(side, queue):
    jobs = put(side, 2)
    side.agent.filter = hasty
    complaints = []
    assert side.claim(9, complain=lambda *said: complaints.append(said)) == []
    assert [(str(error), 'hasty' in what) for what, error in complaints] == [
        ('too hasty', True)
    ] * 2
    assert list(queue) == jobs
    side.agent.filter = None
    assert side.claimed_jobs(9) == jobs


def test_a_filter_is_not_asked_about_filings_that_were_withdrawn(side, queue):
    jobs = [queue.put(work, priority=2) for _ in range(3)]
    side.commit()
    side.file_all()
    jobs[0].hold()
    jobs[1].priority = 4
    side.commit()
    asked.clear()
    side.agent.filter = ask
    assert side.claim(9) == []
    assert asked == [jobs[2], jobs[1]]
    ready = queue.ready
    assert (len(queue), ready.waiting(), ready.dropped()) == (2, 1, 0)
    assert list(queue) == [jobs[2], jobs[1]]


asked = []


def ask(job):
    asked.append(job)
    return False


# Choosers ----------------------------------------------------------------------------------


@pytest.mark.parametrize('chooser', [first, nothing])
def test_a_chooser_takes_what_it_wants(side, queue, chooser):
    jobs = put(side, 3)
    side.agent.chooser = chooser
    expected = jobs[:2] if chooser is first else []
    assert side.claimed_jobs(2) == expected
    assert list(side.agent) == expected
    assert [job.status for job in expected] == ['active'] * len(expected)
    assert (list(queue), len(queue)) == (jobs[len(expected) :], 3 - len(expected))


def test_what_a_chooser_claims_and_does_not_return_goes_back(side, queue):
    queue.quotas.create('q', 9)
    jobs = [queue.put(work, priority=n, quota_names=['q']) for n in range(1, 7)]
    side.commit()
    side.agent.chooser = last_even
    assert side.claimed_jobs(1) == [jobs[3]]
    assert list(queue) == [job for job in jobs if job is not jobs[3]]
    assert len(queue) == 5
    assert list(queue.quotas['q']) == [jobs[3]]


@pytest.mark.parametrize('chooser', [hasty, number, pulls, peeks, claims_and_fails])
def test_a_chooser_that_errs_loses_nothing_and_is_reported(side, queue, chooser):
    jobs = put(side, 2)
    side.agent.chooser = chooser
    complaints = []
    assert side.claim(9, complain=lambda *said: complaints.append(said)) == []
    assert len(complaints) == 1
    assert chooser.__name__ in complaints[0][0]
    assert (set(queue), len(queue), list(side.agent)) == (set(jobs), 2, [])
    side.commit()
    side.agent.chooser = first
    assert set(side.claimed_jobs(9)) == set(jobs)


def test_a_chooser_may_put_back(side, queue):
    jobs = put(side, 2)
    side.agent.chooser = puts_back
    assert side.claim(9) == []
    assert (list(queue), len(queue)) == (jobs, 2)
    side.agent.chooser = None
    assert side.claimed_jobs(9) == jobs


def test_quotas_hold_for_choosers_and_those_after_them(side, queue):
    queue.quotas.create('q')
    free, *jobs = put(side), *put(side, 3, quota_names=['q'])
    chooses, plain = Agent(chooser=first), Agent()
    side.record['chooses'], side.record['plain'] = chooses, plain
    side.commit()
    look = side.look()
    look.sort()
    assert [a.oid for a in look.pick(plain, 1)] == [free[0]._p_oid]
    assert [a.oid for a in look.pick(chooses, 3)] == [jobs[0]._p_oid]
    assert look.pick(plain, 3) == []
    look.file_rest()
    assert len(queue) == 2


def test_jobs_to_conclude_do_not_wait_for_choosers(side, queue):
    """A chooser cannot claim them, and they would wait for ever."""
    cancelled, job = queue.put(work), queue.put(work)
    cancelled.addCallback(work)
    cancelled.cancel()
    side.commit()
    side.agent.chooser = first
    assert set(side.claimed_jobs(9)) == {cancelled, job}


# What it lists -----------------------------------------------------------------------------


def test_it_lists_its_jobs_the_longest_held_first(side, queue, turned):
    jobs = put(side, 3)
    for job in jobs:
        turned.advance(1)
        assert side.claimed_jobs() == [job]
    agent = side.agent
    assert (list(agent), len(agent), agent[1]) == (jobs, 3, jobs[1])
    assert (agent.index(jobs[2]), jobs[0] in agent, Job(work) in agent) == (2, True, False)
    with pytest.raises(ValueError):
        agent.index(Job(work))
    side.run(jobs[0])
    assert list(agent) == jobs[1:]


def test_a_job_with_callbacks_to_tell_is_still_its_own(side, queue):
    (job,) = put(side)
    callback = job.addCallback(work)
    (assignment,) = side.claim()
    side.work(assignment)
    assert job.status == status.CALLBACKS
    assert (list(side.agent), len(side.agent)) == ([job], 1)
    callback.settled(None)
    callback.finished()
    job.finished()
    assert (list(side.agent), len(side.agent)) == ([], 0)


def test_a_job_that_waits_for_one_it_returned_is_listed_without_a_place(side, queue):
    (outer,) = put(side)
    (assignment,) = side.claim()
    inner = queue.put(work)
    outer.begun(1, side.agent._p_oid)
    outer.waits_for_job(inner)
    side.agent.retired(outer.oid, assignment.token)
    side.agent.waiting[outer.oid] = outer
    assert (list(side.agent), side.agent.held_count()) == ([outer], 0)
    side.commit()
    assert side.claimed_jobs() == [inner]
    side.run(inner, 'inner')
    assert (outer.status, outer.result) == (status.COMPLETED, 'inner')
    assert list(side.agent) == []


def test_a_withdrawn_filing_is_not_listed(house, side, queue):
    (job,) = put(side)
    side.file_all()
    side.commit()
    other = house.side()
    other.begin()
    other.twin(job).priority = 1
    side.claim()
    side.commit()
    other.commit()
    side.begin()
    assert (job.status, list(side.agent), list(queue)) == (status.PENDING, [], [job])
    assert side.claimed_jobs() == [job]
    assert (list(side.agent), side.agent.held_count()) == ([job], 1)
    assert (len(queue), queue.ready.dropped()) == (0, 0)


def test_only_the_right_filing_is_retired(side, queue):
    (job,) = put(side)
    (assignment,) = side.claim()
    agent = side.agent
    assert not agent.retired(job.oid, assignment.token + 1)
    assert not agent.retired(job.oid + 1, assignment.token)
    assert agent.holds(job.oid, assignment.token) == (False,)
    assert agent.retired(job.oid, assignment.token)
    assert agent.holds(job.oid, assignment.token) is None


def test_stats_are_plain_values(side, queue):
    put(side, 3)
    agent = side.agent
    agent.channels, agent.filter = [None], even
    side.claim(1, ahead=1)
    assert agent.stats() == {
        'size': 3, 'len': 2, 'active': 1, 'channels': ('',), 'filter': 'even', 'chooser': None,
    }  # fmt: skip
