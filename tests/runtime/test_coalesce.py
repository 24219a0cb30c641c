"""Agents that run several tiny jobs in one commit: what goes together, and what goes alone."""

import logging

import pytest
import transaction
from persistent.mapping import PersistentMapping

from tests.runtime.support import root
from zodbjobs import Agent, Job, clock, local, status
from zodbjobs.model.retry import NeverRetry
from zodbjobs.runtime.joblog import ANNOTATION

log = logging.getLogger('shop')
seen = []


@pytest.fixture
def layer(layer):
    seen.clear()
    layer.root['log'] = PersistentMapping()
    layer.agent.size = 1
    layer.agent.coalesce = 0.5
    transaction.commit()
    layer.reactor.time_flies(5)
    run(layer, note, -1)  # now it is known that jobs are short here, and they are claimed ahead
    seen.clear()
    return layer


def note(number):
    seen.append(number)
    root()['log'][number] = True
    return number


def note_and_fail(number):
    note(number)
    raise ValueError(number)


def note_and_commit(number):
    note(number)
    transaction.commit()


def note_and_abort(number):
    note(number)
    transaction.abort()
    return number


def return_job(number):
    note(number)
    return Job(note, number * 10)


def note_and_conflict(number):
    """Another connection writes the same object, once."""
    note(number)
    if seen.count(number) == 1:
        manager = transaction.TransactionManager()
        connection = local.getJob()._p_jar.db().open(manager)
        connection.root()['log'][f'other {number}'] = True
        manager.commit()
        connection.close()


def note_twice(*numbers):
    return [note(number) for number in numbers]


def run(layer, call, *args, **wishes):
    job = layer.queue.put(Job(call, *args), **wishes)
    transaction.commit()
    layer.reactor.wait_for(job)
    return job


def run_all(layer, *jobs, **wishes):
    """Put them in one transaction, and wait for all; returns the oids that each commit wrote."""
    for job in jobs:
        layer.queue.put(job, **wishes)
    transaction.commit()
    before = layer.db.lastTransaction()
    layer.reactor.wait_for(*jobs)
    layer.reactor.time_flies(5)
    transaction.begin()
    assert layer.agent.held_count() == 0 and len(layer.queue) == 0
    assert layer.dispatcher._flight == {}
    return [{record.oid for record in found} for found in layer.db.storage.iterator(before)][1:]


def together(commits, *jobs):
    """Whether one commit made all of these final."""
    return any({job._p_oid for job in jobs} <= commit for commit in commits)


def test_tiny_jobs_are_one_commit(layer):
    jobs = [Job(note, number) for number in range(10)]
    commits = run_all(layer, *jobs)
    assert seen == list(range(10))
    assert together(commits, *jobs)
    assert [job.result for job in jobs] == seen and {job.attempts for job in jobs} == {1}
    assert set(layer.root['log']) == {-1, *range(10)}
    assert list(layer.agent.completed)[9::-1] == jobs or len(list(layer.agent.completed)) == 11
    assert layer.dispatcher.getStatistics()['successful'] == 11


def note_and_warn(number):
    log.info('not kept of a success')
    log.warning('number %s', number)
    return note(number)


def test_what_they_warn_of_is_kept_with_each(layer):
    """As of jobs that run alone; of one that is run again, what it said then."""
    jobs = [Job(note, 1), Job(note_and_warn, 2), Job(note_and_warn, 3), Job(note_and_conflict, 4)]
    commits = run_all(layer, *jobs[:3])
    assert together(commits, *jobs[:3])
    assert [kept(job) for job in jobs[:3]] == [[], ['number 2'], ['number 3']]
    again = Job(note_and_warn, 5)
    run_all(layer, again, jobs[3])
    assert seen.count(5) == 2 and kept(again) == ['number 5']


def kept(job):
    return [text for _, level, text in job.annotations.get(ANNOTATION, ())]


def test_without_it_each_has_its_own(layer):
    layer.agent.coalesce = 0
    transaction.commit()
    layer.reactor.time_flies(5)
    jobs = [Job(note, number) for number in range(4)]
    commits = run_all(layer, *jobs)
    assert all(len(commit & {job._p_oid for job in jobs}) <= 1 for commit in commits)


def test_one_that_fails_takes_nobody_along(layer, caplog):
    jobs = [Job(note, 1), Job(note_and_fail, 2), Job(note, 3)]
    commits = run_all(layer, *jobs)
    assert together(commits, jobs[0], jobs[2]) and not together(commits, jobs[0], jobs[1])
    assert [job.outcome for job in jobs] == ['success', 'failure', 'success']
    assert set(layer.root['log']) == {-1, 1, 3}
    assert jobs[1].attempts == 1


@pytest.mark.parametrize('call', [note_and_commit, note_and_abort])
def test_one_that_ends_the_transaction_doubles_nothing(layer, call):
    jobs = [Job(note, 1), Job(call, 2), Job(note, 3)]
    run_all(layer, *jobs)
    assert [job.outcome for job in jobs] == ['success'] * 3
    assert [job.attempts for job in jobs] == [1, 2 if call is note_and_commit else 1, 1]
    assert set(layer.root['log']) >= {-1, 1, 3}


def test_a_conflict_has_all_run_alone(layer):
    jobs = [Job(note, 1), Job(note_and_conflict, 2), Job(note, 3)]
    commits = run_all(layer, *jobs)
    assert not together(commits, *jobs[:2])
    assert [job.outcome for job in jobs] == ['success'] * 3
    assert set(layer.root['log']) == {-1, 1, 2, 3, 'other 2'}


def test_one_that_returns_a_job_waits_for_it(layer):
    jobs = [Job(note, 1), Job(return_job, 2), Job(note, 3)]
    run_all(layer, *jobs)
    assert [job.result for job in jobs] == [1, 20, 3]


def test_callbacks_are_told(layer):
    job = Job(note, 1)
    callback = job.addCallback(note_twice)
    run_all(layer, job, Job(note, 2))
    assert callback.status == status.COMPLETED and callback.result == [1]


@pytest.mark.parametrize('wishes', [{'retry_policy_factory': NeverRetry}, {'time_limit': 60}])
def test_special_ones_run_alone(layer, wishes):
    jobs = [Job(note, number) for number in range(3)]
    commits = run_all(layer, *jobs, **wishes)
    assert not together(commits, *jobs) and seen == [0, 1, 2]


def test_ids_and_quotas_are_free_afterwards(layer):
    layer.queue.quotas.create('q', 5)
    jobs = [Job(note, number) for number in range(3)]
    run_all(layer, *jobs, quota_names=['q'])
    assert len(layer.queue.quotas['q']) == 0
    for _ in range(2):
        assert run(layer, note, 7, id='seven').outcome == 'success'


def test_the_time_is_bounded(layer, monkeypatch):
    """Nothing is begun after it."""
    moments = iter(range(1000))
    monkeypatch.setattr(clock, 'monotonic', lambda: next(moments))
    jobs = [Job(note, number) for number in range(6)]
    for job in jobs:
        layer.queue.put(job)
    transaction.commit()
    before = layer.db.lastTransaction()
    layer.reactor.wait_for(*jobs)
    commits = [{record.oid for record in found} for found in layer.db.storage.iterator(before)][1:]
    assert not together(commits, jobs[0], jobs[5])


@pytest.mark.parametrize('seconds', [-1, 2, float('nan')])
def test_it_is_a_short_time(seconds):
    with pytest.raises(ValueError, match='coalesce is from 0 to 1 seconds'):
        Agent(coalesce=seconds)


@pytest.mark.parametrize('seconds', [None, True, '1'])
def test_it_is_a_number(seconds):
    with pytest.raises(TypeError, match='coalesce is seconds'):
        Agent(coalesce=seconds)
