"""on_error: which failures of an attempt it hears of, how often, and what it may still change."""

import asyncio
import logging

import pytest
import transaction
from ZODB.POSException import ConflictError

from zodbjobs import local
from zodbjobs.runtime import ride

heard = []
plan = {}


@pytest.fixture(autouse=True)
def forget():
    heard.clear()
    plan.clear()


def book():
    return local.getJob()._p_jar.root()['book']


def count(name):
    book()[name] = book().get(name, 0) + 1


def failed(task, error):
    heard.append((type(error).__name__, task.retries))
    count('errors')
    if 'retries' in plan:
        task.retries = plan.pop('retries')


def meet(error):
    """Raise `error` as often as `plan` says."""
    count('work')
    plan['times'] -= 1
    if plan['times'] >= 0:
        raise error
    return 'done'


def spoil(stage, error):
    """Let the commit fail of `error`, as often as `plan` says."""
    count('work')
    plan['times'] -= 1
    if plan['times'] >= 0:
        transaction.get().join(Spoiler(stage, error))
    return 'done'


def return_what_cannot_be_stored():
    count('work')
    plan['times'] -= 1
    return (i for i in 'ab') if plan['times'] >= 0 else 'done'


def change_what_cannot_be_stored():
    count('work')
    plan['times'] -= 1
    if plan['times'] >= 0:
        book()['bad'] = lambda: None
    return 'done'


async def fail_later():
    await asyncio.sleep(0)
    plan['times'] -= 1
    if plan['times'] >= 0:
        raise ValueError('later')
    return 'done'


class Spoiler:
    """A data manager that does nothing, and fails at a stage of the commit."""

    transaction_manager = None

    def __init__(self, stage, error):
        setattr(self, stage, self._fail)
        self.error = error

    def _fail(self, transaction):
        raise self.error

    def abort(self, transaction):
        pass

    tpc_begin = commit = tpc_vote = tpc_finish = tpc_abort = abort

    def sortKey(self):
        return '~~'  # after the database


def run(layer, function, *args, times=1, retries=1):
    """Run a task that fails so often; returns it."""
    plan['times'] = times
    with layer.tasks.options(on_error=failed, retries=retries):
        task = layer.tasks.task(function, *args)
    transaction.commit()
    layer.reactor.wait_for(task)
    transaction.begin()
    return task


@pytest.mark.parametrize(
    'function, args, error',
    [
        (meet, (ValueError('x'),), 'ValueError'),
        (spoil, ('tpc_vote', OSError('no space')), 'OSError'),
        (spoil, ('commit', ValueError('x')), 'ValueError'),
        (return_what_cannot_be_stored, (), 'TypeError'),
        (change_what_cannot_be_stored, (), None),
        (fail_later, (), 'ValueError'),
    ],
    ids=['call', 'vote', 'commit', 'result', 'stored', 'coroutine'],
)
@pytest.mark.parametrize('times', [1, 2])
def test_it_hears_of_every_failed_attempt(layer, function, args, error, times):
    task = run(layer, function, *args, times=times)
    assert [retries for _, retries in heard] == [1, 0][:times]
    assert error is None or {name for name, _ in heard} == {error}
    assert layer.root['book']['errors'] == times and task.attempts == 2
    assert task.outcome == ('success' if times == 1 else 'failure')
    if function is not fail_later:
        assert layer.root['book'].get('work', 0) == (1 if times == 1 else 0)


def test_it_may_give_more_retries_to_what_failed_in_its_commit(layer):
    plan['retries'] = 1
    task = run(layer, spoil, 'tpc_vote', ValueError('x'), retries=0)
    assert (task.outcome, task.attempts, len(heard)) == ('success', 2, 1)


@pytest.mark.parametrize('how', [(meet,), (spoil, 'tpc_vote')], ids=['call', 'commit'])
def test_a_conflict_is_no_error_unless_there_are_too_many(layer, how):
    task = run(layer, *how, ConflictError('x'), times=4, retries=0)
    assert not heard and (task.outcome, task.conflicts, task.attempts) == ('success', 4, 1)
    task = run(layer, *how, ConflictError('x'), times=5, retries=0)
    assert heard == [('ConflictError', 0)] and task.outcome == 'failure'
    del heard[:]
    task = run(layer, *how, ConflictError('x'), times=9, retries=1)
    assert heard == [('ConflictError', 1)]
    assert (task.outcome, task.attempts) == ('success', 2)
    del heard[:]
    task = run(layer, *how, ConflictError('x'), times=10, retries=1)
    assert heard == [('ConflictError', 1), ('ConflictError', 0)] and task.outcome == 'failure'
    assert task.result.check(ConflictError)


def disturbed(task, error):
    """An on_error with which somebody else conflicts, once or for ever."""
    failed(task, error)
    if len(heard) <= plan['disturbs']:
        manager = transaction.TransactionManager()
        connection = local.getDispatcher().db.open(manager)
        connection.root()['book']['other'] = len(heard)
        manager.commit()
        connection.close()


@pytest.mark.parametrize('disturbs', [2, 1000])
def test_what_it_writes_is_written_although_it_conflicts(layer, caplog, disturbs):
    plan.update(times=1, disturbs=disturbs)
    with layer.tasks.options(on_error=disturbed):
        task = layer.tasks.task(meet, ValueError('x'))
    transaction.commit()
    layer.reactor.wait_for(task)
    transaction.begin()
    critical = [each for each in caplog.records if each.levelno == logging.CRITICAL]
    assert len(heard) == (3 if disturbs == 2 else 10)
    assert layer.root['book'].get('errors') == (1 if disturbs == 2 else None)
    assert len(critical) == (0 if disturbs == 2 else 1) and task.outcome == 'failure'


def test_a_cancelled_task_and_one_that_must_not_begin_are_no_errors(layer):
    layer.agent.size = 0
    transaction.commit()
    with layer.tasks.options(on_error=failed):
        first = layer.tasks.task(meet, ValueError('x'))
        with layer.tasks.options(depends_on=first):
            second = layer.tasks.task(meet, ValueError('x'))
    transaction.commit()
    first.cancel()
    layer.agent.size = 1
    transaction.commit()
    layer.reactor.wait_for(first, second)
    transaction.begin()
    assert (first.outcome, second.outcome) == ('cancelled', 'failure') and not heard


@pytest.mark.parametrize('hooked', [False, True])
def test_tasks_without_hooks_may_share_a_commit(layer, hooked):
    with layer.tasks.options(**{'on_start': print} if hooked else {}):
        task = layer.tasks.task(str, 1)
    transaction.commit()
    assert ride.may_ride(task) is not hooked
