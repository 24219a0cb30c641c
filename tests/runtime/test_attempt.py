"""What becomes of one attempt of a job: its results, errors, hooks, and what it returns for later.

Time is virtual; the database, the dispatcher and its threads are real.
"""

import asyncio
import datetime
import logging
import threading

import pytest
import transaction
from persistent import Persistent
from persistent.mapping import PersistentMapping
from transaction.interfaces import DoomedTransaction
from twisted.internet.defer import Deferred, fail, succeed

from tests.runtime.support import gate, is_idle, root, said, waiting
from zodbjobs import Failure, Job, NeverRetry, clock, local, parallel, status
from zodbjobs.interfaces import DependencyError, JobCompleted, JobFiled, JobRescheduled, JobStarted
from zodbjobs.model.retry import RetryPolicy


def run(layer, call, *args, **wishes):
    """Put it, wait for its end, and return the job."""
    job = layer.queue.put(Job(call, *args) if args else call, **wishes)
    transaction.commit()
    layer.reactor.wait_for(job)
    # Its end is committed; the worker still has to say so.
    layer.reactor.settle(5, until=lambda: not layer.dispatcher.getActiveJobIds())
    return job


def say(word='done'):
    said.append(word)
    return word


# Results.


class Thing(Persistent):
    size = 1


def set_and_return(value):
    root()['log'] = value
    return value


def make_thing():
    thing = root()['thing'] = Thing()
    return thing


def homeless_thing():
    return Thing()


def unpicklable():
    root()['log'] = 'changed'
    return threading.Lock()


def thing_of_another_connection():
    connection = root()._p_jar.db().open(transaction.TransactionManager())
    try:
        return connection.root()
    finally:
        connection.close()


def return_failure():
    root()['log'] = 'kept'
    try:
        raise ValueError('told, not raised')
    except ValueError:
        return Failure()


def unpicklable_argument():
    root()['log'] = threading.Lock()
    return 'done'


class TestResults:
    def test_the_work_and_its_result_are_one(self, layer):
        """What the job changed, its result and its end come in one transaction."""
        job = run(layer, set_and_return, [1, {'a': 2}])
        assert (job.result, job.outcome) == ([1, {'a': 2}], 'success')
        assert layer.root['log'] == [1, {'a': 2}]
        assert job._p_serial == layer.root._p_serial
        assert (job.attempts, job.interruptions, job.conflicts) == (1, 0, 0)
        assert is_idle(layer)

    def test_persistent_objects(self, layer):
        """A stored one, and a new one that gets its home with the job."""
        job = run(layer, make_thing)
        assert job.result is layer.root['thing']
        assert run(layer, homeless_thing).result.size == 1

    @pytest.mark.parametrize('call', [unpicklable, thing_of_another_connection])
    def test_what_cannot_be_stored_is_a_failure(self, layer, call):
        """Recorded, not tried again, and the work is undone with it."""
        layer.root['log'] = None
        job = run(layer, call)
        assert job.outcome == 'failure' and job.attempts == 1
        assert 'result of' in job.result.getErrorMessage()
        assert layer.root['log'] is None
        assert is_idle(layer)

    def test_what_the_work_stored_cannot_be_stored(self, layer):
        """The commit fails, and that is the result."""
        job = run(layer, unpicklable_argument)
        assert job.outcome == 'failure' and job.result.check(TypeError)
        assert is_idle(layer)

    def test_a_returned_failure(self, layer):
        """It counts as one, and what the job changed is kept."""
        job = run(layer, return_failure)
        told = job.addCallbacks(failure=Job(str))
        transaction.commit()
        layer.reactor.wait_for(told)
        assert told.outcome == 'success'
        assert job.outcome == 'failure' and job.result.check(ValueError)
        assert layer.root['log'] == 'kept'
        assert layer.dispatcher.getStatistics()['failed'] == 1


# Errors.


def change_and_raise(error):
    root()['log'] = 'changed'
    raise error


class Unkind(BaseException):
    """None of Python's own."""


class TestErrors:
    @pytest.mark.parametrize(
        'error',
        [
            ValueError('no'),
            SystemExit(3),
            KeyboardInterrupt(),
            GeneratorExit(),
            asyncio.CancelledError(),
            Unkind('worse'),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_whatever_is_raised_is_a_failure(self, layer, error):
        """The work is undone, the worker lives, the next job runs in the same thread."""
        layer.agent.size = 1
        layer.root['log'] = None
        transaction.commit()
        layer.reactor.time_flies(5)
        job = run(layer, change_and_raise, error)
        assert job.outcome == 'failure' and job.result.check(type(error))
        assert layer.root['log'] is None
        (thread,) = layer.dispatcher.queues['']['main'].threads
        assert run(layer, threading.get_ident).result == thread.ident
        assert is_idle(layer)

    def test_logged_once_with_its_traceback(self, layer, caplog):
        """At ERROR, or at the level that was wished for."""
        run(layer, change_and_raise, ValueError('mark'))
        (record,) = [r for r in caplog.records if r.name == 'zodbjobs.events']
        assert record.levelno == logging.ERROR and 'change_and_raise' in record.getMessage()
        caplog.clear()
        run(layer, change_and_raise, ValueError('mark'), failure_log_level=logging.CRITICAL)
        assert [r.levelno for r in caplog.records if r.name == 'zodbjobs.events'] == [50]


# Jobs that meddle with the transaction.


def commit_half():
    root()['log'] = 'first'
    transaction.commit()
    root()['log2'] = 'second'
    return 'done'


def abort_half():
    root()['log'] = 'first'
    transaction.abort()
    root()['log2'] = 'second'
    return 'done'


def begin_anew():
    root()['log'] = 'first'
    transaction.begin()
    root()['log2'] = 'second'
    return 'done'


def doom():
    root()['log'] = 'first'
    transaction.doom()


def close_connection():
    connection = root()._p_jar
    transaction.abort()
    connection.close()
    return 'done'


def close_connection_at_once():
    root()._p_jar.close()


class TestMeddling:
    @pytest.mark.parametrize(('call', 'first'), [
        (commit_half, 'first'), (abort_half, None), (begin_anew, None),
    ])  # fmt: skip
    def test_commit_and_abort(self, layer, call, first):
        """What was committed or undone stays so; the rest belongs to the result."""
        job = run(layer, call)
        assert job.result == 'done'
        assert (layer.root.get('log'), layer.root['log2']) == (first, 'second')
        assert job.attempts == 1
        assert job.active_start is not None and job.agent is layer.agent
        assert is_idle(layer)

    def test_doom(self, layer):
        """A doomed transaction is a failed job."""
        job = run(layer, doom)
        assert job.result.check(DoomedTransaction)
        assert layer.root.get('log') is None
        assert is_idle(layer)

    @pytest.mark.parametrize('call', [close_connection, close_connection_at_once])
    def test_a_closed_connection(self, layer, call):
        """The job fails, and the next one has a connection."""
        layer.agent.size = 1
        transaction.commit()
        layer.reactor.time_flies(5)
        job = run(layer, call)
        assert job.outcome == 'failure'
        assert run(layer, set_and_return, 1).result == 1
        assert layer.root['log'] == 1
        assert is_idle(layer)

    def test_it_changes_its_own_job(self, layer):
        """Annotations and arguments of the running job are stored with its end."""
        job = run(layer, Job.bind(annotate))
        assert job.result == 'done'
        assert job.annotations['seen'] == 1 and job.kwargs == {'more': 2}


def annotate(job):
    job.annotations['seen'] = 1
    job.kwargs['more'] = 2
    return 'done'


# Hooks.


class Hooked(Job):
    """Says what is done with it; raises where it is told to."""

    bad = ''

    def setUp(self):
        said.append('setUp')
        self._raise('setUp')
        return 'info'

    def tearDown(self, setup_info):
        said.append(f'tearDown {setup_info} {self.status}')
        root()['torn'] = self.status
        self._raise('tearDown')

    def _raise(self, place):
        if place in self.bad:
            raise SystemExit(place) if 'exit' in self.bad else ValueError(place)


def fails_twice():
    said.append('call')
    if said.count('call') < 3:
        raise ValueError('again')
    return 'third'


class TestHooks:
    def put(self, layer, call, bad='', **wishes):
        job = Hooked(call)
        job.bad = bad
        job = layer.queue.put(job, **wishes)
        transaction.commit()
        layer.reactor.wait_for(job)
        layer.reactor.settle(5, until=layer.dispatcher.is_quiet)  # tearDown is after the commit
        transaction.begin()
        return job

    def test_around_the_call_and_after_the_commit(self, layer):
        """tearDown gets what setUp returned, in a transaction of its own."""
        job = self.put(layer, say)
        layer.reactor.settle()
        transaction.begin()
        assert said == ['setUp', 'done', 'tearDown info completed']
        assert layer.root['torn'] == status.COMPLETED
        assert job.result == 'done'

    def test_once_for_each_attempt(self, layer):
        """Also for those that failed."""
        job = self.put(layer, fails_twice, retries=2)
        assert job.result == 'third' and job.attempts == 3
        assert [word.split()[0] for word in said] == ['setUp', 'call', 'tearDown'] * 3

    @pytest.mark.parametrize('bad', ['setUp', 'setUp exit'])
    def test_a_set_up_that_raises(self, layer, bad):
        """It fails the job, which is not called."""
        job = self.put(layer, say, bad)
        assert job.outcome == 'failure' and 'setUp' in job.result.getErrorMessage()
        assert 'done' not in said
        assert is_idle(layer)

    @pytest.mark.parametrize('bad', ['tearDown', 'tearDown exit'])
    @pytest.mark.parametrize('callback', [False, True])
    def test_a_tear_down_that_raises(self, layer, caplog, bad, callback):
        """The outcome stands; it is logged as critical, and what it did is undone."""
        job = Hooked(say)
        job.bad = bad
        told = job.addCallback(Job(say, 'told')) if callback else None
        layer.queue.put(job)
        transaction.commit()
        layer.reactor.wait_for(job)
        layer.reactor.settle(5, until=layer.dispatcher.is_quiet)  # tearDown is after the commit
        assert job.result == 'done' and job.attempts == 1
        assert said.count('done') == 1 and said.count('told') == 0
        assert told is None or told.outcome == 'failure'  # say() got one argument too many
        assert 'torn' not in layer.root
        assert [r.levelno for r in caplog.records if 'tearDown of' in r.getMessage()] == [50]
        assert is_idle(layer)

    def test_in_callbacks(self, layer):
        """A callback that is such a job has its hooks too, also one that was chosen."""
        job = layer.queue.put(say)
        job.addCallback(Hooked(str))
        job.addCallbacks(success=Hooked(repr), failure=Hooked(str))
        transaction.commit()
        layer.reactor.wait_for(job)
        assert [word.split()[0] for word in said[1:]] == ['setUp', 'tearDown'] * 2


# Returned jobs.


def nest(depth):
    return depth if depth == 0 else Job(nest, depth - 1)


def put_and_return(depth=0):
    return local.getQueue().put(Job(nest, depth), begin_after=None)


def return_finished(job):
    return job


def fail_inside():
    return Job(change_and_raise, ValueError('inner'))


def change_and_return_job():
    root()['log'] = 'outer'
    return Job(wait, 'inner')


def wait(word='done'):
    assert gate.wait(10)
    return say(word)


def return_itself():
    return local.getJob()


def return_what_depends_on_me():
    return local.getQueue().put(say, depends_on=local.getJob())


def return_parallel_of_me():
    return parallel(say, local.getJob())


class TestReturnedJobs:
    def test_thirty_levels(self, layer):
        """The innermost result is everybody's, without any poll."""
        job = layer.queue.put(Job(nest, 30))
        transaction.commit()
        layer.reactor.wait_for(job, attempts=1)
        assert job.result == 0
        assert is_idle(layer)
        assert len(layer.agent.history.done) == 31

    @pytest.mark.parametrize('call', [put_and_return, return_finished, fail_inside])
    def test_kinds(self, layer, call):
        """One that it put itself, one that has finished, one that fails."""
        args = (run(layer, say),) if call is return_finished else ()
        job = run(layer, call, *args)
        expected = {put_and_return: 0, return_finished: 'done'}.get(call)
        if call is fail_inside:
            assert job.result.check(ValueError) and job.outcome == 'failure'
        else:
            assert job.result == expected and job.outcome == 'success'
        assert is_idle(layer)

    def test_while_it_waits(self, layer):
        """Its own work is committed, it is ACTIVE, its result is the job; it takes no slot."""
        layer.agent.size = 1
        transaction.commit()
        layer.reactor.time_flies(5)
        job = layer.queue.put(change_and_return_job)
        told = job.addCallback(Job(say))
        transaction.commit()
        assert layer.reactor.settle(
            5, until=lambda: inner_of(job) and active(layer) == [(job.result.oid, 'unnamed')]
        )
        inner = inner_of(job)
        assert layer.root['log'] == 'outer'
        assert job.status == status.ACTIVE and inner.status == status.ACTIVE
        layer.reactor.time_flies(5)
        transaction.begin()
        assert set(layer.agent) == {job, inner} and len(layer.agent) == 2
        assert active(layer) == [(inner.oid, 'unnamed')]
        gate.set()
        layer.reactor.wait_for(job, told)
        assert job.result == 'inner' == inner.result and said == ['inner', 'inner']
        assert is_idle(layer)

    @pytest.mark.parametrize(
        'call', [return_itself, return_what_depends_on_me, return_parallel_of_me]
    )
    def test_it_cannot_wait_for_itself(self, layer, call):
        """A clear failure, not a job that waits for ever."""
        job = run(layer, call)
        assert job.result.check(ValueError) and 'wait' in job.result.getErrorMessage()
        assert is_idle(layer)

    def test_two_that_wait_for_each_other(self, layer):
        """The second one fails, and so does the first."""
        first = layer.queue.put(Job(return_partner, 'second'))
        second = layer.queue.put(Job(return_partner, 'first'))
        layer.root['partners'] = PersistentMapping(first=first, second=second)
        transaction.commit()
        layer.reactor.wait_for(first, second)
        assert {first.outcome, second.outcome} == {'failure'}
        assert first.result.check(ValueError) or second.result.check(ValueError)
        assert is_idle(layer)

    def test_an_inner_job_that_was_cancelled(self, layer):
        """The outer one gets its CancelledError."""
        job = layer.queue.put(return_later)
        transaction.commit()
        layer.reactor.settle(5, until=lambda: inner_of(job))
        inner_of(job).cancel()
        transaction.commit()
        layer.reactor.wait_for(job, attempts=1)
        assert job.outcome == 'cancelled'
        assert is_idle(layer)

    @pytest.mark.parametrize('how', ['remove', 'pull', 'clear'])
    def test_an_inner_job_that_was_taken_out(self, layer, how):
        """It will never have a result: the outer one fails, and says why."""
        job = layer.queue.put(return_later)
        told = job.addCallbacks(failure=Job(str))
        transaction.commit()
        layer.reactor.settle(5, until=lambda: inner_of(job))
        inner = inner_of(job)
        getattr(layer.queue, how)(*((inner,) if how == 'remove' else ()))
        transaction.commit()
        layer.reactor.wait_for(job, told, attempts=2)
        assert job.result.check(DependencyError)
        words = job.result.getErrorMessage()
        assert 'taken out of its queue' in words and f'oid {inner.oid}' in words
        assert is_idle(layer)

    def test_an_inner_job_that_was_moved(self, layer):
        """Taken out and put again, in one transaction: the outer one waits on."""
        job = layer.queue.put(return_later)
        transaction.commit()
        layer.reactor.settle(5, until=lambda: inner_of(job))
        inner = inner_of(job)
        layer.queue.remove(inner)
        layer.queue.put(inner, delay=20)
        transaction.commit()
        layer.reactor.time_flies(15)
        assert inner_of(job) is inner and job.status == status.ACTIVE
        layer.reactor.wait_for(job, inner, attempts=3)
        assert job.result == inner.result == 'done' and is_idle(layer)

    @pytest.mark.parametrize('policy', [None, NeverRetry], ids=['usual', 'never'])
    def test_an_inner_job_that_runs_already(self, layer, policy):
        """It is not disturbed by being waited for."""
        inner = layer.queue.put(wait_at_gate, retry_policy_factory=policy)
        layer.root['partners'] = PersistentMapping(inner=inner)
        transaction.commit()
        layer.reactor.settle(5, until=lambda: active(layer))
        outers = [layer.queue.put(Job(return_partner, 'inner')) for _ in range(2)]
        transaction.commit()
        layer.reactor.settle(5, until=lambda: all(inner_of(outer) for outer in outers))
        gate.set()
        layer.reactor.wait_for(inner, *outers)
        assert {job.result for job in (inner, *outers)} == {'gone through'}
        assert (inner.conflicts, inner.attempts) == (0, 1)
        assert is_idle(layer)


def wait_at_gate():
    assert gate.wait(10)
    return 'gone through'


def return_partner(name):
    return root()['partners'][name]


def return_later():
    return local.getQueue().put(say, delay=3600)


def active(layer):
    return layer.dispatcher.getActiveJobIds()


def inner_of(job):
    transaction.begin()
    return job.result


# Deferreds and coroutines.


def deferred_now():
    return succeed('now')


def deferred_failed():
    return fail(ValueError('later'))


def deferred_later():
    root()['log'] = 'before'
    waiting.append(Deferred())
    return waiting[-1]


def deferred_on_reactor():
    deferred = Deferred()
    reactor = local.getReactor()
    reactor.callFromThread(reactor.callLater, 60, deferred.callback, 'in a minute')
    return deferred


def deferred_in_thread():
    deferred = Deferred()
    threading.Thread(target=deferred.callback, args=('thread',)).start()
    return deferred


async def coroutine(value=1):
    for _ in range(3):
        await asyncio.sleep(0)
    return value


async def changing_coroutine():
    root()['log'] = 'in the loop'


async def failing_coroutine():
    said.append('call')
    await asyncio.sleep(0)
    raise ValueError('in the loop')


async def waiting_coroutine():
    while not gate.is_set():
        await asyncio.sleep(0.001)
    return 'open'


async def coroutine_of_job():
    return Job(nest, 1)


class TestDeferred:
    @pytest.mark.parametrize(('call', 'result'), [
        (deferred_now, 'now'), (deferred_in_thread, 'thread'), (deferred_on_reactor, 'in a minute'),
        (coroutine, 1), (coroutine_of_job, 0),
    ])  # fmt: skip
    def test_the_value_is_the_result(self, layer, call, result):
        """Whenever and from wherever it comes."""
        job = layer.queue.put(call)
        told = job.addCallback(Job(say))
        transaction.commit()
        layer.reactor.wait_for(job, told, attempts=20)
        assert job.result == result and said == [result]
        assert job.attempts == 1
        assert is_idle(layer)

    @pytest.mark.parametrize('call', [deferred_failed, failing_coroutine])
    def test_a_failure_is_the_result(self, layer, call):
        """And is tried again like any other, if that was wished for."""
        job = run(layer, call)
        assert job.result.check(ValueError) and job.attempts == 1
        job = run(layer, call, retries=2)
        assert job.result.check(ValueError) and job.attempts == 3
        assert is_idle(layer)

    def test_while_it_waits(self, layer):
        """Slot and quota are kept, the thread is free, what it did is committed."""
        layer.queue.quotas.create('one')
        job = layer.queue.put(deferred_later, quota_names=['one'])
        transaction.commit()
        layer.reactor.settle(5, until=lambda: waiting and layer.dispatcher.awaits_deferred)
        transaction.begin()
        assert layer.root['log'] == 'before'
        assert job.status == status.ACTIVE and job.result is None
        assert active(layer) == [] and layer.queue.quotas['one'].filled
        assert layer.dispatcher.flight_count('', 'main') == 1
        others = [layer.queue.put(wait) for _ in range(3)]
        transaction.commit()
        layer.reactor.settle(5, until=lambda: len(active(layer)) == 2)
        layer.reactor.time_flies(10)
        assert len(active(layer)) == 2
        waiting[0].callback('fired')
        layer.reactor.wait_for(job)
        assert job.result == 'fired'
        layer.reactor.settle(5, until=lambda: len(active(layer)) == 3)
        gate.set()
        layer.reactor.wait_for(*others)
        assert is_idle(layer)

    def test_many_coroutines_at_once(self, layer):
        """They take slots, not threads."""
        layer.agent.size = 10
        transaction.commit()
        layer.reactor.time_flies(5)
        jobs = [layer.queue.put(waiting_coroutine) for _ in range(10)]
        transaction.commit()
        assert layer.reactor.settle(5, until=lambda: all_wait(layer, 10))
        gate.set()
        layer.reactor.wait_for(*jobs, attempts=20)
        assert {job.result for job in jobs} == {'open'}
        assert is_idle(layer)

    def test_a_coroutine_has_no_database(self, layer):
        """Outside its thread there is no running job to get at; that is said clearly."""
        job = run(layer, changing_coroutine)
        assert job.outcome == 'failure' and layer.root.get('log') is None
        assert is_idle(layer)

    def test_cancelled_while_it_waits(self, layer):
        """It ends at once; its slot is free at the next poll, and what fires changes nothing."""
        job = layer.queue.put(deferred_later)
        told = job.addCallback(Job(say))
        transaction.commit()
        layer.reactor.settle(5, until=lambda: waiting and layer.dispatcher.awaits_deferred)
        transaction.begin()
        job.cancel()
        transaction.commit()
        layer.reactor.wait_for(job, told, attempts=1)
        assert job.outcome == 'cancelled' and len(said) == 1
        assert is_idle(layer)
        waiting[0].callback('too late')
        layer.reactor.settle()
        assert job.outcome == 'cancelled' and len(said) == 1
        assert is_idle(layer)

    def test_a_value_that_cannot_be_stored(self, layer):
        """It is a failure like any other result."""
        job = layer.queue.put(deferred_later)
        transaction.commit()
        layer.reactor.settle(5, until=lambda: waiting and layer.dispatcher.awaits_deferred)
        waiting[0].callback(threading.Lock())
        layer.reactor.wait_for(job)
        assert 'result of' in job.result.getErrorMessage()
        assert is_idle(layer)

    def test_handed_back_at_a_stop(self, layer):
        """It counts neither as an attempt nor as an interruption, and runs again."""
        layer.dispatcher.grace = 0.01
        job = layer.queue.put(deferred_later)
        transaction.commit()
        layer.reactor.settle(5, until=lambda: waiting and layer.dispatcher.awaits_deferred)
        layer.dispatcher.deactivate()
        transaction.begin()
        assert job.status == status.PENDING
        assert (job.attempts, job.interruptions) == (0, 0)
        layer.dispatcher.activate()
        layer.reactor.settle(
            5, until=lambda: len(waiting) == 2 and layer.dispatcher.awaits_deferred
        )
        waiting[0].callback('old')
        layer.reactor.settle()
        waiting[1].callback('new')
        layer.reactor.wait_for(job)
        assert (job.result, job.attempts) == ('new', 1)
        assert is_idle(layer)


def all_wait(layer, count):
    return layer.dispatcher.flight_count('', 'main') == count and not active(layer)


# Events.


def retry_in_a_minute():
    return RetryPolicy(1, 60)


def explode(event):
    raise LookupError('bad ear')


class TestEvents:
    def test_in_the_transaction_of_the_attempt(self, layer, listen):
        """Started before the call; completed with the result, which a subscriber may go by."""
        heard = listen(JobStarted, JobCompleted, deed=write_down)
        job = run(layer, say)
        assert [type(event) for event in heard] == [JobStarted, JobCompleted]
        assert layer.root['JobCompleted'] == 'done' and layer.root['JobStarted'] is None
        assert layer.root._p_serial == job._p_serial

    def test_completed_once_for_every_kind_of_end(self, layer, listen):
        """Failed, cancelled, expired, ended by an inner job or by a part; callbacks too."""
        heard = listen(JobCompleted)
        failing = layer.queue.put(Job(change_and_raise, ValueError()))
        outer = layer.queue.put(Job(nest, 2))
        composed = layer.queue.put(parallel(say, say))
        late = layer.queue.put(say, datetime.datetime(2006, 7, 21, 12), datetime.timedelta(hours=1))
        cancelled = layer.queue.put(say, delay=60)
        told = failing.addCallbacks(failure=Job(str))
        transaction.commit()
        cancelled.cancel()
        transaction.commit()
        jobs = [failing, outer, composed, late, cancelled, told]
        layer.reactor.wait_for(*jobs)
        oids = [event.object._p_oid for event in heard]
        assert {job: oids.count(job._p_oid) for job in jobs} == dict.fromkeys(jobs, 1)

    def test_rescheduled(self, layer, listen):
        """With the date that it has now."""
        dues = []
        listen(JobRescheduled, deed=lambda event: dues.append(event.object.begin_after))
        job = layer.queue.put(fails_twice, retry_policy_factory=RetryPolicy(2, 60))
        transaction.commit()
        start = clock.now()
        layer.reactor.wait_for(job, attempts=30)
        assert dues == [start + datetime.timedelta(seconds=s) for s in (60, 120)]

    @pytest.mark.parametrize('event', [JobStarted, JobCompleted])
    def test_a_subscriber_that_raises_fails_the_job(self, layer, listen, event, caplog):
        """It takes part in the job's transaction; the outcome is recorded all the same."""
        listen(event, deed=explode)
        job = layer.queue.put(Job(set_and_return, 1))
        told = job.addCallbacks(failure=Job(str))
        transaction.commit()
        layer.reactor.wait_for(job, told, attempts=3)
        assert job.result.check(LookupError) and layer.root.get('log') is None
        assert is_idle(layer)

    @pytest.mark.parametrize('call', [nest, change_and_raise])
    def test_a_subscriber_that_raises_at_a_failure_or_a_parents_end(self, layer, listen, call):
        """There the outcome stands already."""
        layer.root['log'] = None
        listen(JobCompleted, deed=explode)
        arg = 2 if call is nest else ValueError('own')
        job = run(layer, call, arg)
        assert job.status == status.COMPLETED
        assert job.result.check(ValueError if call is change_and_raise else LookupError)
        assert is_idle(layer)

    def test_a_subscriber_that_raises_at_a_reschedule(self, layer, listen):
        """The job runs again all the same."""
        listen(JobRescheduled, deed=explode)
        job = layer.queue.put(fails_twice, retries=2)
        transaction.commit()
        layer.reactor.wait_for(job)
        assert job.result == 'third'
        assert is_idle(layer)

    def test_a_subscriber_that_raises_where_jobs_are_let_go(self, layer, listen):
        """The bookkeeping of the queue is not its business."""
        job = layer.queue.put(say)
        waiting = layer.queue.put(say, after=[job])
        heard = listen(JobFiled, deed=explode)
        other = layer.queue.put(say)
        transaction.commit()
        layer.reactor.wait_for(job, waiting, other, attempts=1)
        assert heard and waiting.result == 'done'
        assert is_idle(layer)


def write_down(event):
    event.object._p_jar.root()[type(event).__name__] = event.object.result


# What a job may ask.


def ask():
    return {
        'job': local.getJob(),
        'queue': local.getQueue(),
        'agent': local.getAgentName(),
        'uuid': local.getDispatcher().UUID,
        'reactor': local.getReactor() is local.getDispatcher().reactor,
        'status': local.getJob().status,
        'start': local.getJob().active_start is not None,
    }


class TestLocal:
    def test_in_a_job_and_in_a_callback(self, layer):
        """In a callback the job is the callback."""
        job = layer.queue.put(ask)
        callback = job.addCallback(asked)
        transaction.commit()
        layer.reactor.wait_for(job, callback)
        for each in (job, callback):
            assert each.result == {
                'job': each, 'queue': layer.queue, 'agent': 'main', 'reactor': True,
                'uuid': layer.dispatcher.UUID, 'status': status.ACTIVE, 'start': True,
            }  # fmt: skip

    def test_outside(self, layer):
        """None, and ValueError for what needs a job."""
        functions = ('getJob', 'getQueue', 'getDispatcher', 'getReactor', 'getAgentName')
        assert [getattr(local, name)() for name in functions] == [None] * 5
        with pytest.raises(ValueError, match='not initialized'):
            local.setLiveAnnotation('a', 1)
        with pytest.raises(ValueError, match='not initialized'):
            local.getLiveAnnotation('a')


def asked(result):
    return ask()
