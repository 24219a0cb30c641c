"""Jobs that write nothing need no commit of their own; whatever they write, they commit it."""

import logging

import pytest
import transaction
import zope.event
from persistent.mapping import PersistentMapping

from tests.runtime.support import root
from zodbjobs import Job, local, status
from zodbjobs.interfaces import CancelledError, JobCompleted
from zodbjobs.model.queue import Queue
from zodbjobs.model.retry import NeverRetry
from zodbjobs.runtime import ended

seen = []


@pytest.fixture
def layer(layer):
    seen.clear()
    layer.root['log'] = PersistentMapping()
    transaction.commit()
    return layer


def look(result=None):
    """Read, and see oneself as a job that has begun."""
    job = local.getJob()
    seen.append((job.attempts, job.active_start is not None, job.status, len(root()['log'])))
    return len(root())


def write():
    root()['log']['written'] = True


def call_back():
    local.getJob().addCallback(look)


def annotate():
    local.getJob().annotations['note'] = 1


def hook_the_commit():
    transaction.get().addAfterCommitHook(lambda done: seen.append(('committed', done)))


def commit_twice():
    root()['log']['first'] = 1
    transaction.commit()
    return 'done'


def empty_the_cache():
    local.getJob()._p_jar.cacheMinimize()
    return 'done'


def abort():
    transaction.abort()
    return 'done'


def return_a_list():
    seen.append([1, {'two': (2.0, b'3')}])
    return seen[-1]


def return_a_persistent_object():
    return root()['log']


def fail():
    raise ValueError('no')


class Rides:
    """Which jobs rode: how their reports came in."""

    def __init__(self, layer):
        self.reports = []
        self._reactor = layer.reactor
        self._reported = layer.dispatcher.reported
        layer.dispatcher.reported = self

    def __call__(self, report):
        self.reports.append(report)
        self._reported(report)

    @property
    def last(self):
        assert self._reactor.settle(5, until=lambda: self.reports)
        assert self.reports[-1].kind == ended.FINISHED
        return self.reports[-1].outcome is not None


@pytest.fixture
def rides(layer):
    return Rides(layer)


def run(layer, call, **wishes):
    job = layer.queue.put(call, **wishes)
    transaction.commit()
    layer.reactor.wait_for(job)
    return job


def test_one_that_reads_rides(layer, rides):
    job = run(layer, look)
    assert seen == [(1, True, status.ACTIVE, 0)]
    assert rides.last
    assert (job.status, job.outcome, job.result) == (status.COMPLETED, 'success', len(layer.root))
    assert job.attempts == 1 and job.agent is layer.agent
    assert job.begin_after <= job.active_start <= job.active_end
    assert list(layer.agent.completed) == [job]
    assert layer.agent.held_count() == 0 and len(layer.queue) == 0
    assert layer.dispatcher.getStatistics()['successful'] == 1


@pytest.mark.parametrize(
    'call',
    [
        write,
        call_back,
        annotate,
        hook_the_commit,
        empty_the_cache,
        return_a_persistent_object,
    ],
)
def test_one_that_has_something_to_commit_does_not(layer, rides, call):
    job = run(layer, call)
    assert not rides.last
    assert job.outcome == 'success' and job.attempts == 1
    assert job.active_start is not None and job.active_end is not None


def test_what_it_wrote_is_there(layer):
    run(layer, write)
    assert layer.root['log']['written']
    job = run(layer, call_back)
    assert [callback.result for callback in job.callbacks] == [len(layer.root)]
    assert run(layer, annotate).annotations['note'] == 1
    run(layer, hook_the_commit)
    assert seen[-1] == ('committed', True)


@pytest.mark.parametrize('call', [commit_twice, abort])
def test_one_that_ends_its_transaction_itself(layer, call):
    job = run(layer, call)
    assert (job.outcome, job.result, job.attempts) == ('success', 'done', 1)
    assert ('first' in layer.root['log']) == (call is commit_twice)


def test_a_failure_does_not_ride(layer, rides, caplog):
    with caplog.at_level(logging.CRITICAL, 'zodbjobs'):
        job = run(layer, fail)
    assert not rides.last and job.outcome == 'failure' and job.attempts == 1
    layer.reactor.time_flies(5)
    assert list(layer.agent.completed) == [job]


def test_one_that_runs_at_most_once_does_not(layer, rides):
    assert run(layer, look, retry_policy_factory=NeverRetry).outcome == 'success'
    assert not rides.last


def test_one_with_callbacks_does_not(layer, rides):
    job = layer.queue.put(look)
    job.addCallback(look)
    transaction.commit()
    layer.reactor.wait_for(job)
    assert not rides.last and len(seen) == 2


def test_its_result_belongs_to_nobody_else(layer, rides):
    job = run(layer, return_a_list)
    assert rides.last
    assert job.result == [1, {'two': (2.0, b'3')}]
    assert rides.reports[-1].outcome.result is not seen[-1]


def test_several_ride_in_one_commit(layer, rides):
    """One commit takes them, one writes all their ends."""
    layer.agent.size = 1
    jobs = [layer.queue.put(look) for _ in range(20)]
    transaction.commit()
    before = layer.db.lastTransaction()
    layer.reactor.wait_for(*jobs)
    transactions = [[r.oid for r in found] for found in layer.db.storage.iterator(before)][1:]
    assert sum(found.count(jobs[-1]._p_oid) for found in transactions) == 1
    assert len(transactions) < 20 and all(report.outcome for report in rides.reports)


def test_a_subscriber_that_writes_makes_it_commit(layer, rides):
    """And it is told once."""
    told = []

    def hear(event):
        if isinstance(event, JobCompleted):
            told.append(event.object.result)
            event.object._p_jar.root()['log']['heard'] = True

    zope.event.subscribers.append(hear)
    try:
        job = run(layer, look)
    finally:
        zope.event.subscribers.remove(hear)
    assert told == [job.result] and not rides.last
    assert layer.root['log']['heard']


class Meddler:
    """Holds a report back, so that something may happen before it is written."""

    def __init__(self, dispatcher, deed):
        self._reported, self._deed = dispatcher.reported, deed
        dispatcher.reported = self

    def __call__(self, report):
        deed, self._deed = self._deed, None
        if deed is not None and report.outcome is not None:
            deed()
        self._reported(report)


def in_between(layer, deed, call=look):
    """Run a job; after its call, and before its outcome is written, do `deed(job)`."""
    job = layer.queue.put(call)
    transaction.commit()

    def meddle():
        manager = transaction.TransactionManager()
        connection = layer.db.open(manager)
        manager.begin()
        deed(connection.get(job._p_oid))
        manager.commit()
        connection.close()

    Meddler(layer.dispatcher, meddle)
    layer.reactor.wait_for(job)
    return job


def test_a_callback_that_came_after_the_call_is_told(layer):
    job = in_between(layer, lambda job: job.addCallback(look))
    layer.reactor.time_flies(5)
    transaction.begin()
    assert len(seen) == 2
    assert job.callbacks[0].status == status.COMPLETED and job.attempts == 1


def test_one_that_was_cancelled_after_the_call(layer):
    job = in_between(layer, lambda job: job.cancel())
    assert job.result.check(CancelledError) and job.attempts == 1
    assert layer.agent.held_count() == 0


def test_one_that_was_given_away_is_not_written(layer):
    """Its new filing is run."""

    def give_away(job):
        job.agent.retired(job.oid, job._token)
        job.was_interrupted()

    job = in_between(layer, give_away)
    assert job.outcome == 'success' and len(seen) == 2
    layer.reactor.time_flies(5)
    transaction.begin()
    assert layer.agent.held_count() == 0 and len(layer.queue) == 0


def test_the_queue_was_removed(layer):
    second = layer.queues['second'] = Queue()
    transaction.commit()
    layer.reactor.time_flies(5)
    second.dispatchers[layer.dispatcher.UUID]['main'] = type(layer.agent)(size=1)
    job = second.put(Job(look))
    transaction.commit()

    def remove():
        manager = transaction.TransactionManager()
        connection = layer.db.open(manager)
        manager.begin()
        del connection.get(layer.queues._p_oid)['second']
        manager.commit()
        connection.close()

    Meddler(layer.dispatcher, remove)
    layer.reactor.time_flies(10)
    transaction.begin()
    assert job.outcome == 'success'
    assert seen and layer.dispatcher._reports == []


def test_a_stop_writes_what_rode(layer):
    job = layer.queue.put(look)
    transaction.commit()
    Meddler(layer.dispatcher, lambda: None)
    land = layer.dispatcher._ring
    layer.reactor.settle(5, until=lambda: layer.dispatcher.getActiveJobIds() or seen)
    layer.dispatcher._ring = lambda: None  # no pass comes before the stop
    layer.reactor.settle(5, until=lambda: seen)
    layer.dispatcher.deactivate()
    layer.dispatcher._ring = land
    transaction.begin()
    assert job.outcome == 'success' and job.attempts == 1
