"""What a user may expect of callbacks: who is told what, when, in which order, and how often."""

import datetime
import logging
import threading

import pytest
import transaction
from twisted.internet.defer import Deferred
from ZODB.POSException import ConflictError

from tests.runtime.support import gate, is_idle, root, said, waiting
from zodbjobs import (
    Failure,
    Job,
    NeverRetry,
    RetryPolicy,
    local,
    parallel,
    status,
)
from zodbjobs.interfaces import AbortedError, BadStatusError, QueueClosed, TimeoutError
from zodbjobs.runtime import attempt


@pytest.fixture
def layer(layer):
    layer.root['count'] = 0
    transaction.commit()
    return layer


def finish(layer, *jobs, **wishes):
    transaction.commit()
    layer.reactor.wait_for(*jobs, **wishes)
    transaction.begin()


def work(value='result'):
    said.append('work')
    return value


def fail():
    said.append('work')
    raise ValueError('on purpose')


def wait(value='result'):
    assert gate.wait(10)
    return work(value)


def begin(layer, job):
    """Let the job come into the middle of its work."""
    transaction.commit()
    layer.reactor.settle(5, until=layer.dispatcher.getActiveJobIds)
    transaction.begin()
    assert job.status == status.ACTIVE


def wait_once(value='result'):
    said.append('begun')
    assert gate.wait(10)
    return value


def give_waiting():
    job = Job(wait_once)
    job.retry_policy_factory = NeverRetry
    return job


def give_parallel():
    return parallel(Job(wait_once))


def give_deferred():
    waiting.append(Deferred())
    return waiting[0]


def tell(name, result=None):
    said.append((name, result))
    return f'{name} was told'


def tell_type(name, result):
    said.append((name, type(result).__name__))
    return name


class TestWho:
    def test_always(self, layer):
        """Each gets the result of the job, in the order they were added."""
        job = layer.queue.put(work)
        callbacks = [job.addCallback(Job(tell, name)) for name in 'abc']
        assert job.callbacks == tuple(callbacks)
        finish(layer, job, attempts=1)
        assert said == ['work', *[(name, 'result') for name in 'abc']]
        assert [each.result for each in callbacks] == [f'{name} was told' for name in 'abc']
        assert {each.status for each in callbacks} == {status.COMPLETED}
        assert [each.parent for each in callbacks] == [job] * 3
        assert job.result == 'result' and is_idle(layer)

    @pytest.mark.parametrize(
        ('call', 'name', 'kind'), [(work, 'yes', 'str'), (fail, 'no', 'Failure')]
    )
    def test_success_and_failure(self, layer, call, name, kind):
        """One of the two; what is added to the pair gets the result of the one chosen."""
        job = layer.queue.put(call)
        pair = job.addCallbacks(Job(tell_type, 'yes'), Job(tell_type, 'no'))
        after = pair.addCallback(Job(tell_type, 'after'))
        finish(layer, job)
        assert said == ['work', (name, kind), ('after', 'str')]
        assert pair.result == name == after.parent.result
        chosen = pair.success if name == 'yes' else pair.failure
        other = pair.failure if name == 'yes' else pair.success
        assert (chosen.status, other.status) == (status.COMPLETED, status.NEW)
        assert chosen.result == name
        assert is_idle(layer)

    @pytest.mark.parametrize(('call', 'side'), [(fail, 'success'), (work, 'failure')])
    def test_a_missing_side_passes_the_result_on(self, layer, call, side):
        """Unchanged."""
        job = layer.queue.put(call)
        pair = job.addCallbacks(**{side: Job(tell_type, 'never')})
        after = pair.addCallback(Job(tell_type, 'after'))
        finish(layer, job)
        assert said[1:] == [('after', 'Failure' if call is fail else 'str')]
        assert after.result == 'after'
        assert pair.outcome == job.outcome

    def test_callbacks_of_a_side(self, layer):
        """A job given as one side may have callbacks of its own."""
        side = Job(tell, 'side')
        below = side.addCallback(Job(tell, 'below'))
        job = layer.queue.put(work)
        pair = job.addCallbacks(success=side)
        finish(layer, job)
        assert said == ['work', ('side', 'result'), ('below', 'side was told')]
        assert (side.status, below.status, pair.status) == (status.COMPLETED,) * 3

    def test_chains(self, layer):
        """Callbacks of callbacks get their parent's result, however deep."""
        job = each = layer.queue.put(work)
        for name in range(20):
            each = each.addCallback(Job(tell, name))
        finish(layer, job)
        assert said[1] == (0, 'result') and said[20] == (19, '18 was told')

    def test_after_the_result_is_committed(self, layer):
        """In the same thread, in transactions of their own."""
        job = layer.queue.put(note_thread)
        callback = job.addCallback(Job(see_thread))
        finish(layer, job)
        assert callback.result == (job.result, status.CALLBACKS, True)

    def test_a_new_job_only(self, layer):
        """One that runs, or follows another, is refused."""
        job, other = layer.queue.put(work), layer.queue.put(work)
        callback = job.addCallback(Job(tell, 'a'))
        for used in (callback, other, job):
            with pytest.raises(BadStatusError):
                other.addCallback(used)


def note_thread():
    return threading.get_ident()


def see_thread(result):
    with local.getJob()._p_jar.db().transaction() as connection:
        seen = connection.get(local.getJob().parent._p_oid)
        return threading.get_ident(), seen.status, seen.result == result


class TestFailures:
    def test_a_callback_that_fails(self, layer, caplog):
        """The job and the other callbacks are not concerned; it is logged as critical."""
        job = layer.queue.put(work)
        bad = job.addCallback(Job(tell_wrongly))
        worse = bad.addCallbacks(failure=Job(tell_type, 'failed'))
        good = job.addCallback(Job(tell, 'good'))
        finish(layer, job)
        assert job.outcome == 'success' and bad.outcome == 'failure'
        assert worse.result == 'failed' and good.result == 'good was told'
        assert [r.levelno for r in caplog.records if r.levelno > logging.INFO] == [logging.CRITICAL]
        assert is_idle(layer)

    def test_its_log_level_and_policy(self, layer, caplog):
        """Given with it."""
        job = layer.queue.put(work)
        bad = job.addCallback(
            Job(tell_wrongly), failure_log_level=logging.INFO, retry_policy_factory=RetryPolicy(2)
        )
        caplog.set_level(logging.INFO)
        finish(layer, job)
        assert bad.attempts == 3
        records = [r for r in caplog.records if r.name == 'zodbjobs.events']
        assert [r.levelno for r in records] == [logging.INFO]

    @pytest.mark.parametrize('times', [1, 7])
    def test_conflicts(self, layer, times):
        """Again at once, without end; the effects happen once, and the job does not run again."""
        job = layer.queue.put(work)
        callback = job.addCallback(Job(conflict, times))
        finish(layer, job)
        assert callback.result == 'done' and callback.conflicts == times
        assert layer.root['count'] == 1 and said.count('work') == 1

    def test_an_error_at_its_commit_is_waited_out(self, layer):
        """By a date: the worker does other jobs, and the job is in CALLBACKS meanwhile."""
        layer.agent.size = 1
        transaction.commit()
        layer.reactor.time_flies(5)
        job = layer.queue.put(work)
        callback = job.addCallback(Job(spoilt, 3))
        last = job.addCallback(Job(tell, 'last'))
        transaction.commit()
        layer.reactor.time_flies(0.5)
        other = layer.queue.put(work)
        finish(layer, other, attempts=1)
        assert job.status == status.CALLBACKS and layer.dispatcher._flight == {}
        finish(layer, job)
        assert callback.result == 'done' and last.result and layer.root['count'] == 1
        assert said.count('work') == 2
        assert is_idle(layer)

    @pytest.mark.parametrize('bad', ['exit', 'unpicklable'])
    def test_whatever_it_does(self, layer, bad):
        """It is run once, and fails."""
        job = layer.queue.put(work)
        callback = job.addCallback(Job(misbehave, bad))
        finish(layer, job)
        assert callback.outcome == 'failure' and said.count('called') == 1
        assert is_idle(layer)

    def test_a_policy_that_would_hold_it(self, layer):
        """Fails it: the job that it follows could not end otherwise."""
        job = layer.queue.put(work)
        callback = job.addCallback(
            Job(tell_wrongly), retry_policy_factory=RetryPolicy(0, on_exhausted='hold')
        )
        finish(layer, job)
        assert callback.outcome == 'failure' and job.status == status.COMPLETED


def tell_wrongly(result):
    raise LookupError('nobody there')


def conflict(times, result):
    said.append('called')
    root()['count'] += 1
    if said.count('called') <= times:
        with root()._p_jar.db().transaction() as other:
            other.root()['other'] = len(said)
    return 'done'


def spoilt(times, result):
    said.append('called')
    root()['count'] += 1
    if said.count('called') <= times:
        transaction.get().addBeforeCommitHook(throw)
    return 'done'


def throw():
    raise LookupError('spoilt')


def misbehave(bad, result):
    said.append('called')
    if bad == 'exit':
        raise SystemExit(1)
    return threading.Lock()


class TestLate:
    def test_on_a_finished_job(self, layer):
        """It is queued in the caller's transaction, which is not committed by that."""
        job = layer.queue.put(work)
        finish(layer, job)
        late = job.addCallback(Job(tell, 'late'))
        assert late.status == status.PENDING and late in layer.queue
        transaction.abort()
        layer.reactor.time_flies(10)
        assert said == ['work'] and job.callbacks == ()
        late = job.addCallback(Job(tell, 'late'))
        pair = job.addCallbacks(success=Job(tell, 'yes'))
        finish(layer, late, pair, attempts=1)
        assert sorted(said[1:]) == [('late', 'result'), ('yes', 'result')]
        assert job.status == status.COMPLETED and late.parent is job
        assert is_idle(layer)

    def test_on_one_that_failed(self, layer):
        """It gets the failure."""
        job = layer.queue.put(fail)
        finish(layer, job)
        late = job.addCallbacks(failure=Job(tell_type, 'late'))
        finish(layer, late)
        assert said[1:] == [('late', 'Failure')]

    def test_in_a_closed_queue(self, layer):
        """The error is that of a put."""
        job = layer.queue.put(work)
        finish(layer, job)
        layer.queue.closed = True
        with pytest.raises(QueueClosed):
            job.addCallback(Job(tell, 'late'))

    def test_by_a_callback(self, layer):
        """Added while callbacks run, to the same job: it is told, too."""
        job = layer.queue.put(work)
        job.addCallback(Job(add_another, 3))
        finish(layer, job)
        assert said[1:] == [3, 2, 1, 0]
        assert len(job.callbacks) == 4
        assert {each.status for each in job.callbacks} == {status.COMPLETED}

    @pytest.mark.parametrize('policy', [None, NeverRetry], ids=['usual', 'never'])
    def test_while_it_runs(self, layer, policy):
        """Added from outside: that does not disturb the job, and it is told."""
        job = layer.queue.put(wait, retry_policy_factory=policy, channel='mine', priority=7)
        first = job.addCallback(Job(tell, 'first'))
        begin(layer, job)
        callback = job.addCallback(Job(tell, 'added'))
        pair = job.addCallbacks(success=Job(tell, 'yes'))
        assert job.callbacks == (first, callback, pair)
        transaction.commit()
        gate.set()
        finish(layer, job, callback, pair)
        assert callback.result == 'added was told' and job.result == 'result'
        assert job.conflicts == 0 and said[:2] == ['work', ('first', 'result')]
        assert sorted(said[2:]) == [('added', 'result'), ('yes', 'result')]
        assert callback.parent is job and job.stats()['callbacks'] == 3
        assert (callback.channel, callback.priority) == ('mine', 7)  # an agent for these took it
        assert is_idle(layer)

    def test_added_and_not_committed(self, layer):
        """The caller's transaction counts."""
        job = layer.queue.put(wait)
        begin(layer, job)
        job.addCallback(Job(tell, 'never'))
        transaction.abort()
        gate.set()
        finish(layer, job)
        assert job.callbacks == () and said == ['work'] and is_idle(layer)

    def test_while_it_runs_in_a_closed_queue(self, layer):
        """It belongs to work that is under way."""
        job = layer.queue.put(wait)
        begin(layer, job)
        layer.queue.closed = True
        callback = job.addCallback(Job(tell, 'added'))
        transaction.commit()
        gate.set()
        finish(layer, job, callback)
        assert said == ['work', ('added', 'result')]

    @pytest.mark.parametrize('call', [give_waiting, give_parallel], ids=['job', 'parallel'])
    def test_while_it_waits_for_a_job(self, layer, call):
        """That one must not be disturbed either: its end is written into both."""
        job = layer.queue.put(call)
        begin(layer, job)
        layer.reactor.settle(5, until=lambda: said)
        callback = job.addCallback(Job(tell, 'added'))
        transaction.commit()
        gate.set()
        finish(layer, job, callback)
        assert said.count('begun') == 1 and callback.result == 'added was told'
        assert is_idle(layer)

    def test_while_it_waits_for_a_deferred(self, layer):
        """The value is not lost, whatever the policy."""
        job = layer.queue.put(give_deferred, retry_policy_factory=NeverRetry)
        transaction.commit()
        layer.reactor.settle(5, until=lambda: layer.dispatcher._threadless)
        transaction.begin()
        callback = job.addCallback(Job(tell, 'added'))
        transaction.commit()
        waiting[0].callback('value')
        finish(layer, job, callback)
        assert (job.result, said) == ('value', [('added', 'value')])

    def test_handed_back_and_taken_out(self, layer):
        """It goes with its job, and is run when that is put again."""
        job = layer.queue.put(wait)
        begin(layer, job)
        callback = job.addCallback(Job(tell, 'added'))
        transaction.commit()
        layer.dispatcher.grace = 0.01
        layer.dispatcher.deactivate()
        transaction.begin()
        assert job.status == callback.status == status.PENDING
        layer.queue.remove(job)
        assert callback.status == status.NEW and job.callbacks == (callback,)
        assert len(layer.queue) == 0
        transaction.commit()
        gate.set()
        assert layer.reactor.insist(lambda: said == ['work'], 5)  # in vain, in the former thread
        said.clear()
        layer.dispatcher.activate()
        layer.reactor.time_flies(10)
        layer.queue.put(job)
        finish(layer, job)
        assert said == ['work', ('added', 'result')] and is_idle(layer)

    def test_in_the_moment_the_last_one_was_told(self, layer, monkeypatch):
        """Between the last look and COMPLETED."""
        job = layer.queue.put(work)
        job.addCallback(Job(tell, 'first'))
        transaction.commit()
        finish_now = attempt.Attempt.finish
        monkeypatch.setattr(attempt.Attempt, 'finish', add_and(finish_now))
        finish(layer, job)
        finish(layer, *job.callbacks)
        assert [each.outcome for each in job.callbacks] == ['success'] * 2
        assert said == ['work', ('first', 'result'), ('between', 'result')]

    def test_two_writers(self, layer):
        """Who adds a callback to a job that has just ended is told by a ConflictError."""
        job = layer.queue.put(work)
        transaction.commit()
        job.addCallback(Job(tell, 'lost'))
        layer.reactor.settle()
        with pytest.raises(ConflictError):
            transaction.commit()
        transaction.abort()
        late = job.addCallback(Job(tell, 'late'))
        finish(layer, late)
        assert said == ['work', ('late', 'result')]


def add_another(count, result):
    said.append(count)
    if count:
        local.getJob().parent.addCallback(Job(add_another, count - 1))


def add_and(finish):
    """`finish`, but the first time another connection adds a callback to the job before."""
    rest = [True]

    def finish_later(self):
        if rest and type(self) is attempt.Attempt:
            rest.clear()
            with self.worker.dispatcher.db.transaction() as connection:
                connection.get(self.oid).addCallback(Job(tell, 'between'))
        return finish(self)

    return finish_later


class TestReturning:
    def test_a_job(self, layer):
        """The callback waits for it without a thread; the others and the job do not wait."""
        job = layer.queue.put(work)
        callback = job.addCallback(Job(return_waiting))
        below = callback.addCallback(Job(tell, 'below'))
        last = job.addCallback(Job(tell, 'last'))
        transaction.commit()
        layer.reactor.wait_for(job, last, attempts=1)
        assert callback.status == status.ACTIVE and said == ['work', ('last', 'result')]
        gate.set()
        finish(layer, callback, below, attempts=2)
        assert callback.result == 'inner' and below.result == 'below was told'
        assert is_idle(layer)

    def test_parallel_jobs(self, layer):
        """Also several."""
        job = layer.queue.put(work)
        callback = job.addCallback(Job(return_parallel))
        finish(layer, job, callback)
        assert callback.result == ['a', 'b'] and is_idle(layer)

    @pytest.mark.parametrize('kind', ['deferred', 'coroutine', 'chosen'])
    def test_something_later(self, layer, kind):
        """A Deferred or a coroutine: the worker waits for it."""
        job = layer.queue.put(work)
        call = Job(return_coroutine if kind == 'coroutine' else return_deferred)
        callback = job.addCallbacks(success=call) if kind == 'chosen' else job.addCallback(call)
        last = job.addCallback(Job(tell, 'last'))
        finish(layer, job, attempts=20)
        assert callback.result == 'later' and last.result == 'last was told'
        assert is_idle(layer)


def return_waiting(result):
    return Job(wait, 'inner')


def return_parallel(result):
    return parallel(Job(work, 'a'), Job(work, 'b'), postprocess=Job(results))


def results(*jobs):
    return [job.result for job in jobs]


def return_deferred(result):
    deferred = Deferred()
    local.getReactor().callFromThread(deferred.callback, 'later')
    return deferred


async def return_coroutine(result):
    return 'later'


class TestDeadline:
    def test_counts_from_the_result(self, layer):
        """A callback's begin_by has nothing to do with when it was added."""
        callback = Job(tell, 'in time')
        callback.begin_by = datetime.timedelta(seconds=60)
        job = layer.queue.put(work, delay=3600)
        job.addCallback(callback)
        transaction.commit()
        layer.reactor.time_flies(3600)
        finish(layer, job)
        assert callback.result == 'in time was told'

    def test_passed(self, layer):
        """While another callback took its time."""
        late = Job(tell, 'late')
        late.begin_by = datetime.timedelta(seconds=5)
        job = layer.queue.put(work)
        job.addCallback(Job(block_once))
        job.addCallback(late)
        told = late.addCallbacks(failure=Job(tell_type, 'told'))
        transaction.commit()
        layer.reactor.settle(5, until=lambda: 'blocked' in said)
        layer.reactor.time_flies(10)
        gate.set()
        finish(layer, job)
        assert late.result.check(TimeoutError) and told.result == 'told'


class TestResumed:
    """A worker that ended in the middle of telling: others tell the rest."""

    def stop_in_callback(self, layer, policy=None):
        job = layer.queue.put(work)
        first = job.addCallback(Job(tell, 'first'))
        second = job.addCallback(Job(block_once), retry_policy_factory=policy)
        third = job.addCallback(Job(tell, 'third'))
        transaction.commit()
        layer.reactor.settle(5, until=lambda: 'blocked' in said)
        pool = layer.dispatcher.queues['']['main']
        layer.dispatcher.grace = 0.01
        layer.dispatcher.deactivate()
        transaction.begin()
        assert job.status == status.CALLBACKS
        gate.set()
        pool.join(5)
        layer.dispatcher.activate()
        finish(layer, job)
        return job, first, second, third

    def test_what_was_told_is_not_told_again(self, layer):
        """And the job itself does not run again."""
        job, *callbacks = self.stop_in_callback(layer)
        assert said.count('work') == 1 and said.count(('first', 'result')) == 1
        assert said.count(('third', 'result')) == 1
        assert {each.status for each in callbacks} == {status.COMPLETED}
        assert job.result == 'result' and job.attempts == 1
        assert is_idle(layer)

    def test_at_most_once(self, layer):
        """A callback that must not be repeated is aborted when it had begun."""
        _, _, second, third = self.stop_in_callback(layer, NeverRetry)
        assert said.count('blocked') == 1
        assert second.result.check(AbortedError) and third.outcome == 'success'


def block_once(result):
    said.append('blocked')
    assert gate.wait(10)
    return 'done'


def test_results_are_not_chained_between_siblings():
    """Called by hand, without a dispatcher, a job tells its callbacks all the same."""
    said.clear()
    job = Job(work)
    first, second = job.addCallback(Job(tell, 1)), job.addCallbacks(failure=Job(tell, 2))
    assert job() == 'result'
    assert said == ['work', (1, 'result')]
    assert first.result == '1 was told' and second.result == 'result'
    assert isinstance(Job(fail)(), Failure)
