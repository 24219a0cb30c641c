"""What is tried again, how often and when: the policies, and who asks them.

Conflicts are real ones, made by a second connection; commits fail in a hook
and in a data manager.  Time is virtual, so that a wait is a date and no sleep.
"""

import datetime
import logging

import pytest
import transaction
import zope.component
from transaction.interfaces import TransientError
from ZEO.Exceptions import ClientDisconnected
from ZODB.POSException import ConflictError, POSKeyError

from tests.runtime.support import gate, is_idle, root, said
from zodbjobs import (
    Job,
    NeverRetry,
    RetryCommonForever,
    RetryCommonFourTimes,
    RetryPolicy,
    clock,
    status,
    testing,
)
from zodbjobs.interfaces import AbortedError, IJob, IRetryPolicy
from zodbjobs.runtime import attempt


@pytest.fixture
def layer(layer):
    layer.root['count'] = 0
    transaction.commit()
    return layer


@pytest.fixture
def adapt():
    """A function: register a policy as the adapter of that name."""

    def register(factory, name=''):
        zope.component.provideAdapter(factory, (IJob,), IRetryPolicy, name)

    return register  # testing.tearDown forgets all registrations


def put(layer, call, *args, **wishes):
    job = layer.queue.put(Job(call, *args), **wishes)
    transaction.commit()
    return job


def run(layer, call, *args, **wishes):
    """Put it, wait for its end, and return the job."""
    return finish(layer, put(layer, call, *args, **wishes))


def finish(layer, job):
    """Let time pass from one date of the job to the next, and give each attempt its time."""
    for _ in range(100):
        layer.reactor.settle(5)
        transaction.begin()
        if job.status == status.COMPLETED:
            return job
        wait_seconds = (job.begin_after - clock.now()).total_seconds()
        layer.reactor.time_flies(max(wait_seconds, 1))
    raise AssertionError(testing.waiting.standing(job))


def count_up():
    root()['count'] += 1


def begins():
    """Seconds since the first time, of each time the body ran."""
    first = said[0]
    return [round((moment - first) / clock.SECOND) for moment in said]


# Bodies.


def conflicting(times):
    """Meet a real conflict with another connection so many times."""
    said.append(clock.micros())
    count_up()
    if len(said) <= times:
        with root()._p_jar.db().transaction() as other:
            other.root()['other'] = len(said)
        root()['own'] = len(said)
    return 'done'


def raising(error, times=1000):
    said.append(clock.micros())
    count_up()
    if len(said) <= times:
        raise error
    return 'done'


def spoilt_before_commit(error, times=1000):
    said.append(clock.micros())
    count_up()
    if len(said) <= times:
        transaction.get().addBeforeCommitHook(throw, (error,))
    return 'done'


def spoilt_in_vote(error, times=1000):
    said.append(clock.micros())
    count_up()
    if len(said) <= times:
        transaction.get().join(Spoiler(error))
    return 'done'


def throw(error):
    raise error


class Spoiler:
    """A data manager that does nothing, and fails in its vote."""

    transaction_manager = None

    def __init__(self, error):
        self.error = error

    def abort(self, transaction):
        pass

    tpc_begin = commit = tpc_finish = tpc_abort = abort

    def tpc_vote(self, transaction):
        raise self.error

    def sortKey(self):
        return 'a spoiler'


class Lost(ClientDisconnected):
    """A connection that is gone."""


class TestDefault:
    """RetryCommonFourTimes."""

    @pytest.mark.parametrize('times', [1, 4])
    def test_conflicts_are_tried_again_at_once(self, layer, times):
        """Four times, inside one attempt; the database's effects happen once."""
        job = run(layer, conflicting, times)
        assert (job.result, job.attempts, job.conflicts) == ('done', 1, times)
        assert len(said) == times + 1 and begins()[-1] == 0
        assert layer.root['count'] == 1
        assert is_idle(layer)

    def test_the_fifth_conflict_is_the_end(self, layer):
        """Then it is the job's failure."""
        job = run(layer, conflicting, 5)
        assert job.result.check(ConflictError) and len(said) == 5
        assert layer.root['count'] == 0
        assert (job.attempts, job.conflicts) == (1, 4)
        assert is_idle(layer)

    @pytest.mark.parametrize('call', [raising, spoilt_before_commit, spoilt_in_vote])
    @pytest.mark.parametrize('error', [ConflictError('x'), TransientError('x')], ids=type)
    def test_in_the_call_and_at_the_commit_alike(self, layer, call, error):
        """They share one count, and whatever calls itself transient is a conflict."""
        job = run(layer, call, error)
        assert job.result.check(type(error)) and len(said) == 5
        said.clear()
        job = run(layer, call, error, 4)
        assert job.result == 'done' and layer.root['count'] == 1

    def test_they_share_one_count(self, layer):
        """Conflicts of both kinds: five attempts in all."""
        job = run(layer, conflicting_in_turn)
        assert job.result.check(ConflictError) and len(said) == 5

    @pytest.mark.parametrize('call', [raising, spoilt_before_commit, spoilt_in_vote])
    def test_a_lost_connection_is_waited_out(self, layer, call):
        """For ever: after 5, 10, 15 ... 60, 60 seconds, without a thread."""
        job = put(layer, call, Lost('gone'), 14)
        layer.reactor.settle()
        layer.reactor.time_flies(4)
        assert len(said) == 1 and job.status == status.PENDING
        assert layer.dispatcher._flight == {}
        assert job.begin_after == clock.now() + datetime.timedelta(seconds=1)
        finish(layer, job)
        steps = [b - a for a, b in zip(begins(), begins()[1:], strict=False)]
        assert steps == [*range(5, 61, 5), 60, 60]
        assert (job.result, job.attempts) == ('done', 15)
        assert layer.root['count'] == 1
        assert is_idle(layer)

    @pytest.mark.parametrize('call', [raising, spoilt_before_commit, spoilt_in_vote])
    @pytest.mark.parametrize('error', [ValueError('own'), POSKeyError(b'12345678')], ids=type)
    def test_an_own_error_is_not_tried_again(self, layer, call, error, caplog):
        """Also at the commit: then what would have been the outcome is logged."""
        caplog.set_level(logging.INFO)
        job = run(layer, call, error)
        assert job.result.check(type(error)) and len(said) == 1
        assert layer.root['count'] == 0
        lost = [r for r in caplog.records if 'lost the outcome' in r.getMessage()]
        assert len(lost) == (call is not raising)
        assert all("'done'" in r.getMessage() for r in lost)
        assert is_idle(layer)

    def test_it_keeps_its_quota_while_it_runs_again(self, layer):
        """The place is free while the job waits for its date, and taken again then."""
        layer.queue.quotas.create('one')
        job = layer.queue.put(Job(raising, Lost('gone'), 1), quota_names=['one'])
        transaction.commit()
        layer.reactor.time_flies(1)
        other = put(layer, raising, ValueError(), quota_names=['one'])
        layer.reactor.wait_for(other, attempts=1)
        assert job.status == status.PENDING
        finish(layer, job)
        assert job.result == 'done' and is_idle(layer)


def conflicting_in_turn():
    said.append(clock.micros())
    error = ConflictError('x')
    if len(said) % 2:
        raise error
    transaction.get().join(Spoiler(error))


class TestForever:
    @pytest.mark.parametrize('times', [12])
    def test_conflicts(self, layer, times):
        """Without end."""
        job = run(layer, conflicting, times, retry_policy_factory=RetryCommonForever)
        assert job.result == 'done' and job.conflicts == times

    @pytest.mark.parametrize('call', [spoilt_before_commit, spoilt_in_vote])
    def test_an_own_error_at_the_commit(self, layer, call):
        """After 0, 1, 2 ... seconds."""
        job = run(layer, call, ValueError(), 5, retry_policy_factory=RetryCommonForever)
        assert job.result == 'done' and begins() == [0, 0, 1, 3, 6, 10]
        assert layer.root['count'] == 1

    def test_an_own_error_in_the_call(self, layer):
        """That is the job's result."""
        job = run(layer, raising, ValueError(), retry_policy_factory=RetryCommonForever)
        assert job.outcome == 'failure' and len(said) == 1


class TestNever:
    @pytest.mark.parametrize(
        ('call', 'error'),
        [(raising, ConflictError('x')), (spoilt_in_vote, ConflictError('x')),
         (raising, Lost('gone')), (spoilt_before_commit, ValueError())],
    )  # fmt: skip
    def test_the_first_error_is_the_end(self, layer, call, error):
        """Whatever it is."""
        job = run(layer, call, error, 1, retry_policy_factory=NeverRetry)
        assert job.result.check(type(error)) and len(said) == 1
        assert layer.root['count'] == 0 and is_idle(layer)

    def test_an_interruption_is_the_end(self, layer):
        """Also when it was stopped cleanly, after its grace: it had begun."""
        job = put(layer, block, retry_policy_factory=NeverRetry)
        layer.reactor.settle(5, until=lambda: bool(said))
        layer.dispatcher.grace = 0.01
        pool = layer.dispatcher.queues['']['main']
        layer.dispatcher.deactivate()
        layer.dispatcher.activate()
        finish(layer, job)
        assert job.result.check(AbortedError) and len(said) == 1
        assert job.interruptions == 0
        gate.set()
        pool.join(5)

    def test_claimed_but_not_begun(self, layer):
        """It is never claimed ahead, so a stop finds it waiting, and it runs later."""
        layer.agent.size = 1
        transaction.commit()
        layer.reactor.time_flies(5)
        layer.reactor.wait_for(*[put(layer, raising, ValueError()) for _ in range(5)])
        blocking = put(layer, block)
        job = put(layer, raising, ValueError(), 0, retry_policy_factory=NeverRetry)
        layer.reactor.settle(0.05)
        assert job.status == status.PENDING
        gate.set()
        layer.reactor.wait_for(blocking, job)
        assert job.result == 'done'


def block():
    said.append(clock.micros())
    assert gate.wait(10)
    return 'done'


class TestPolicy:
    """RetryPolicy, and `retries`, which is one without a backoff."""

    def test_retries(self, layer):
        """So many more attempts; none by itself."""
        job = run(layer, raising, ValueError(), retries=3)
        assert job.result.check(ValueError)
        assert (len(said), job.attempts, begins()[-1]) == (4, 4, 0)
        said.clear()
        job = run(layer, raising, ValueError(), 3, retries=3)
        assert job.result == 'done' and layer.root['count'] == 1
        said.clear()
        assert run(layer, raising, ValueError(), retries=0).attempts == 1

    @pytest.mark.parametrize(('backoff', 'expected'), [
        (60, [0, 60, 120, 180]),
        ([1, 10], [0, 1, 11, 21]),
        (lambda count: 2**count, [0, 2, 6, 14]),
    ], ids=['number', 'sequence', 'function'])  # fmt: skip
    def test_backoff(self, layer, backoff, expected):
        """A stored date: the thread takes other work meanwhile."""
        backoff = powers if callable(backoff) else backoff
        job = put(layer, raising, ValueError(), retry_policy_factory=RetryPolicy(3, backoff))
        layer.reactor.settle()
        transaction.begin()
        assert job.status == status.PENDING and layer.dispatcher._flight == {}
        assert job.begin_after == clock.now() + datetime.timedelta(seconds=expected[1])
        finish(layer, job)
        assert begins() == expected and job.attempts == 4

    def test_over_a_restart(self, layer):
        """The date and the count are in the database: another process goes on with them."""
        policy = RetryPolicy(2, [60, 600], jitter=0.5)
        job = put(layer, raising, ValueError(), retry_policy_factory=policy)
        layer.reactor.settle(5, until=lambda: said)
        for backoff in (60, 600):
            layer.reactor.settle()
            transaction.begin()
            due = job.begin_after
            seconds = (due - clock.now()).total_seconds()
            assert backoff < seconds <= 1.5 * backoff
            layer.dispatcher.deactivate()
            layer.dispatcher.activate()
            layer.reactor.time_flies(seconds - 1)
            transaction.begin()
            assert job.begin_after == due and job.status == status.PENDING
            layer.reactor.time_flies(2)
        finish(layer, job)
        assert job.attempts == len(said) == 3 and job.outcome == 'failure'

    def test_on_exhausted_hold(self, layer):
        """It is set aside with the reason; resumed it has one attempt more."""
        policy = RetryPolicy(1, 10, on_exhausted='hold')
        job = put(layer, raising, ValueError('why'), retry_policy_factory=policy)
        layer.reactor.time_flies(30)
        layer.reactor.settle()
        transaction.begin()
        assert job.status == status.HELD and 'why' in job.hold_reason
        assert job.attempts == 2 and job.result is None
        assert is_idle(layer)
        job.args.append(0)
        job.resume()
        transaction.commit()
        finish(layer, job)
        assert job.result == 'done' and job.attempts == 3

    def test_on_exhausted_hold_of_a_coroutine(self, layer):
        """The same for what failed later."""
        policy = RetryPolicy(0, on_exhausted='hold')
        job = layer.queue.put(later_failure, retry_policy_factory=policy)
        transaction.commit()
        layer.reactor.settle(5, until=lambda: refreshed(job).status == status.HELD)
        assert job.status == status.HELD
        assert is_idle(layer)

    def test_cancelled_is_not_held(self, layer):
        """A cancelled job is cancelled, whatever its policy."""
        policy = RetryPolicy(0, on_exhausted='hold')
        job = put(layer, block, retry_policy_factory=policy)
        layer.reactor.settle(5, until=lambda: bool(said))
        transaction.begin()
        job.cancel()
        transaction.commit()
        gate.set()
        finish(layer, job)
        assert job.outcome == 'cancelled'

    def test_conflicts_and_errors_count_apart(self, layer):
        """A conflict uses up no retry."""
        job = run(layer, conflict_then_fail, retries=1)
        assert job.result == 'done' and (job.attempts, job.conflicts) == (2, 2)

    def test_an_unpicklable_policy_is_refused_by_put(self, layer):
        """With what to do instead; the transaction stays usable."""
        with pytest.raises((TypeError, ValueError)):
            layer.queue.put(raising, retry_policy_factory=lambda job: None)
        with pytest.raises(ValueError, match='both'):
            layer.queue.put(raising, retries=1, retry_policy_factory=NeverRetry)
        transaction.commit()
        assert len(layer.queue) == 0


def powers(count):
    return 2**count


async def later_failure():
    raise ValueError('later')


def conflict_then_fail():
    said.append(clock.micros())
    if len(said) in (1, 3):
        raise ConflictError('x')
    if len(said) == 2:
        raise ValueError('own')
    return 'done'


def refreshed(job):
    transaction.begin()
    return job


class TestDeadline:
    def test_before_it_the_job_is_tried_again(self, layer):
        """begin_by is about the beginning, and does not forbid retries."""
        job = run(layer, conflicting, 2, begin_by=datetime.timedelta(hours=1))
        assert job.result == 'done' and job.conflicts == 2

    def test_after_it_there_is_no_further_attempt(self, layer):
        """The error of the last one is the result."""
        job = put(layer, block_and_fail, begin_by=datetime.timedelta(seconds=60), retries=5)
        layer.reactor.settle(5, until=lambda: bool(said))
        layer.reactor.time_flies(61)
        gate.set()
        finish(layer, job)
        assert job.result.check(ValueError) and len(said) == 1

    def test_it_does_not_move_with_the_dates_of_retries(self, layer):
        """Attempts at 0 and 40 seconds; 80 would be too late."""
        job = run(
            layer, raising, ValueError('own'),
            begin_by=datetime.timedelta(seconds=60), retry_policy_factory=RetryPolicy(10, 40),
        )  # fmt: skip
        assert job.result.check(ValueError) and begins() == [0, 40]

    def test_a_lost_connection_is_nobodys_failure(self, layer):
        """It is waited out beyond the deadline, too."""
        job = run(layer, raising, Lost('gone'), 3, begin_by=datetime.timedelta(seconds=7))
        assert job.result == 'done' and begins() == [0, 5, 15, 30]


def block_and_fail():
    block()
    raise ValueError('own')

    def test_interrupted_and_late(self, layer):
        """There is no further attempt either."""
        job = layer.queue.put(
            Job(raising, ValueError(), 0), delay=1, begin_by=datetime.timedelta(seconds=60)
        )
        layer.queue.pause(120)
        job._interrupted = True
        job._attempts = 1
        transaction.commit()
        finish(layer, job)
        assert job.result.check(AbortedError) and said == []


class TestChoice:
    """Which policy is asked: the job's own, the put's, or that of the process."""

    def test_process_default(self, layer, adapt):
        """The adapter '' is for jobs, 'callback' for callbacks."""
        adapt(NeverRetry)
        assert run(layer, raising, ConflictError('x')).conflicts == 0
        assert len(said) == 1
        adapt(Tenacious, 'callback')
        job = layer.queue.put(len, retries=0)
        told = job.addCallback(fails_twice)
        transaction.commit()
        said.clear()
        layer.reactor.wait_for(job, told, attempts=10)
        assert told.result == 'third'

    def test_of_the_put_and_of_the_job(self, layer, adapt):
        """A name is that of an adapter."""
        adapt(NeverRetry)
        adapt(Tenacious, 'tenacious')
        job = run(layer, raising, ValueError(), 2, retry_policy_factory='tenacious')
        assert job.result == 'done'
        said.clear()
        job = Job(raising, ValueError(), 2)
        job.retry_policy_factory = Tenacious
        layer.queue.put(job)
        transaction.commit()
        finish(layer, job)
        assert job.result == 'done'

    def test_a_name_that_nobody_knows(self, layer, caplog):
        """The error of the job is its result; the log tells that there is no such policy."""
        job = run(layer, raising, ValueError('own'), retry_policy_factory='nowhere')
        assert job.result.check(ValueError) and 'nowhere' in caplog.text
        assert run(layer, raising, None, 0, retry_policy_factory='nowhere').result == 'done'
        assert is_idle(layer)

    @pytest.mark.parametrize('kind', ['raises', 'nonsense', 'incomplete', 'bad_data', 'exits'])
    def test_a_bad_policy(self, layer, caplog, kind):
        """No further attempt, an error in the log, and the worker lives."""
        job = run(layer, raising, ValueError('own'), retry_policy_factory=globals()[kind])
        assert job.result.check(ValueError) and len(said) == 1
        if kind not in ('bad_data',):
            assert 'retry policy' in caplog.text
        assert is_idle(layer)
        said.clear()
        job = run(layer, raising, ValueError('own'), 0, retry_policy_factory=globals()[kind])
        assert job.result == 'done'

    @pytest.mark.parametrize(('answer', 'expected'), [
        (True, [0, 0]), (datetime.timedelta(0), [0, 0]), (datetime.timedelta(-1), [0, 0]),
        (datetime.timedelta(seconds=90), [0, 90]),
        (datetime.datetime(2006, 8, 10, 16, 44, 22, 211), [0, 3600]),
        (datetime.datetime(1999, 1, 1), [0, 0]),
    ])  # fmt: skip
    def test_what_a_policy_may_answer(self, layer, answer, expected):
        """True, a timedelta or a datetime, which is UTC if it is naive."""
        Answering.answer = answer
        job = put(layer, raising, ValueError(), 1, retry_policy_factory=Answering)
        finish(layer, job)
        assert begins() == expected and job.result == 'done'

    def test_put_back_it_comes_first(self, layer):
        """Tried again at once, a job keeps its place before those put later."""
        layer.agent.size = 1
        transaction.commit()
        layer.reactor.time_flies(5)
        first = layer.queue.put(Job(named, 'a', 1), retries=1)
        rest = [layer.queue.put(Job(named, name, 0)) for name in 'bc']
        transaction.commit()
        layer.reactor.wait_for(first, *rest)
        assert said == ['a', 'a', 'b', 'c'] or said == ['a', 'b', 'a', 'c']
        assert first.result == 'a'

    def test_made_once_and_kept(self, layer):
        """A policy stays with its job, with what it stored."""
        job = run(layer, raising, ValueError(), 2, retry_policy_factory=Tenacious)
        policy = job.getRetryPolicy()
        assert isinstance(policy, Tenacious) and policy.times == 2
        assert policy is job.getRetryPolicy()

    def test_shipped_ones_keep_their_promises(self):
        """They provide IRetryPolicy."""
        from zope.interface.verify import verifyObject

        job = Job(len)
        plan = RetryPolicy(1)(job)
        for policy in (RetryCommonFourTimes(job), RetryCommonForever(job), NeverRetry(job), plan):
            assert verifyObject(IRetryPolicy, policy)


def named(name, failures):
    said.append(name)
    if said.count(name) <= failures:
        raise ValueError(name)
    return name


class Tenacious(NeverRetry):
    """Tries again after ten seconds, three times, and counts in its own attribute."""

    once = False
    times = 0

    def jobError(self, failure, data_cache):
        data_cache.setdefault('times', self.times)
        data_cache['times'] += 1
        return datetime.timedelta(seconds=10) if data_cache['times'] <= 3 else False

    def updateData(self, data_cache):
        self.times = data_cache.get('times', self.times)
        self.job._policy = self


class Answering(NeverRetry):
    answer = None

    def jobError(self, failure, data_cache):
        return self.answer


def fails_twice(result):
    said.append('call')
    if len(said) < 3:
        raise ValueError('again')
    return 'third'


def raises(job):
    raise LookupError('no policy')


class nonsense(NeverRetry):
    def jobError(self, failure, data_cache):
        return 'perhaps'


class incomplete:
    def __init__(self, job):
        pass


class bad_data(NeverRetry):
    def jobError(self, failure, data_cache):
        data_cache['x'] = 1
        return False

    def updateData(self, data_cache):
        raise LookupError('no data')


class exits(NeverRetry):
    def jobError(self, failure, data_cache):
        raise SystemExit(1)


class TestInterrupted:
    """What a policy says when a worker ended before the job did."""

    def test_nine_are_borne_and_the_tenth_is_the_end(self, layer):
        """Each is counted."""
        job = layer.queue.put(raising, delay=3600)
        transaction.commit()
        for count in range(9):
            job._interruptions = count
            job._interrupted = True
            assert job.getRetryPolicy().interrupted() is True
        job._interruptions = 9
        assert job.getRetryPolicy().interrupted() is True
        job._interruptions = 10
        assert job.getRetryPolicy().interrupted() is False

    @pytest.mark.parametrize(('answer', 'result'), [
        (True, [0]), (datetime.timedelta(seconds=30), [30]), (False, []), ('what', []),
    ])  # fmt: skip
    def test_its_answer_is_followed(self, layer, answer, result):
        """At once, later, or never again."""
        Patient.answer = answer
        start = clock.micros()
        job = layer.queue.put(Job(raising, ValueError(), 0), retry_policy_factory=Patient, delay=1)
        job._interrupted = True  # as the recovery of its agent does
        transaction.commit()
        finish(layer, job)
        assert [round((m - start) / clock.SECOND) - 1 for m in said] == result
        if result:
            assert job.result == 'done' and job.attempts == 1
        else:
            assert job.result.check(AbortedError)
        assert is_idle(layer)


class Patient(RetryCommonFourTimes):
    answer = None

    def interrupted(self):
        return self.answer


def test_pauses_are_short(monkeypatch):
    """The first pause of a worker whose storage has trouble is well below a second."""
    assert attempt.FIRST_PAUSE_SECONDS <= 1 < attempt.LONGEST_PAUSE_SECONDS
