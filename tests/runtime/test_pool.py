"""What the dispatcher may expect of an agent's threads and slots.

The pool and its threads are the real ones; the work is a function, not a job.
"""

import asyncio
import threading
import time

import pytest
import transaction
from twisted.internet.defer import Deferred

from tests.runtime.support import gate, said, waiting
from zodbjobs import Job, local, status
from zodbjobs.interfaces import TimeLimitExceeded
from zodbjobs.runtime.annotations import Surroundings
from zodbjobs.runtime.pool import (
    AHEAD_JOB_SECONDS,
    AHEAD_LIMIT,
    AgentThreadPool,
    LoopThread,
    Raised,
    Worker,
    await_value,
)


class Errand:
    """Work for a thread, which tells when it begins and waits until it may end."""

    priority = 2**31

    def __init__(self, keeps_slot=False, error=None):
        self.keeps_slot = keeps_slot
        self.error = error
        self.begun = threading.Event()
        self.may_end = threading.Event()
        self.thread = None

    def run(self):
        self.thread = threading.current_thread()
        self.begun.set()
        assert self.may_end.wait(10)
        if self.error is not None:
            raise self.error
        return self.keeps_slot

    def end(self):
        self.may_end.set()


class Runner(Worker):
    """A worker whose assignments are Errands."""

    def do(self, assignment, resume=None):
        self.assignment = assignment
        keeps_slot = assignment.run() if resume is None else resume[0].run()
        self.assignment = None
        return keeps_slot


class Pool(AgentThreadPool):
    worker_class = Runner


class Office:
    """What a pool needs of a dispatcher."""

    statistics = None

    def __init__(self):
        self.lost_ones = []
        self.overran_ones = []
        self.lost = self.lost_ones.append
        self.overran = self.overran_ones.append


@pytest.fixture
def pool():
    office = Office()
    pool = Pool(office, Surroundings(office, '', 'main'), b'oid', 2)
    pool.errands = []
    yield pool
    pool.stop()
    for errand in pool.errands:
        errand.end()
    pool.join(5)
    assert not any(thread.is_alive() for thread in pool.threads)


def send(pool, count=1, **kinds):
    """Submit so many Errands."""
    errands = [Errand(**kinds) for _ in range(count)]
    pool.errands += errands
    for errand in errands:
        pool.submit(errand)
    return errands if count > 1 else errands[0]


def begun(errands):
    return [errand.begun.is_set() for errand in errands]


def until(look):
    """Wait in real time, for what a thread does next."""
    deadline = time.monotonic() + 5
    while not look():
        assert time.monotonic() < deadline
        threading.Event().wait(0.001)


class TestThreads:
    def test_made_when_needed_and_used_again(self, pool):
        """No thread without work; one that is idle takes the next."""
        assert pool.threads == []
        first = send(pool)
        assert first.begun.wait(5) and len(pool.threads) == 1
        first.end()
        until(lambda: pool._busy == 0)
        second = send(pool)
        assert second.begun.wait(5)
        assert second.thread is first.thread and len(pool.threads) == 1

    def test_never_more_than_its_size(self, pool):
        """The rest is held, and begins in order."""
        errands = send(pool, 4)
        until(lambda: begun(errands) == [True, True, False, False])
        assert (len(pool.threads), pool.getSize(), pool.waiting_count()) == (2, 2, 2)
        errands[1].end()
        until(lambda: begun(errands) == [True, True, True, False])
        errands[0].end()
        until(lambda: begun(errands) == [True] * 4)

    def test_grows(self, pool):
        """What was held begins at once."""
        errands = send(pool, 4)
        assert pool.setSize(4) == 2
        until(lambda: begun(errands) == [True] * 4)
        assert len(pool.threads) == 4 and pool.setSize() == 0

    def test_shrinks(self, pool):
        """Running work ends, then the threads do."""
        pool.setSize(4)
        errands = send(pool, 6)
        until(lambda: sum(begun(errands)) == 4)
        assert pool.setSize(1) == -3
        for errand in errands[:3]:
            errand.end()
        until(lambda: len(pool.threads) == 1)
        assert begun(errands) == [True] * 4 + [False] * 2
        errands[3].end()
        until(lambda: begun(errands[4:]) == [True, False])

    def test_shrinks_and_grows_at_once(self, pool):
        """No thread ends that is needed again."""
        pool.setSize(3)
        errands = send(pool, 3)
        until(lambda: begun(errands) == [True] * 3)
        pool.setSize(1)
        pool.setSize(3)
        for errand in errands:
            errand.end()
        until(lambda: pool._busy == 0)
        again = send(pool, 3)
        until(lambda: begun(again) == [True] * 3)

    def test_size_zero(self, pool):
        """Nothing begins; what had begun goes on, and may be resumed."""
        first = send(pool, keeps_slot=True)
        assert first.begun.wait(5)
        first.end()
        pool.setSize(0)
        until(lambda: pool.threads == [])
        held = send(pool)
        rest = Errand()
        pool.errands.append(rest)
        pool.submit(first, resume=(rest,))
        assert rest.begun.wait(5) and not held.begun.is_set()
        rest.end()
        until(lambda: pool._taken == 0)
        pool.setSize(1)
        assert held.begun.wait(5)

    def test_lives_through_errors(self, pool):
        """An error of the worker itself is told, and the thread takes the next work."""
        bad = send(pool, error=SystemExit(1))
        assert bad.begun.wait(5)
        bad.end()
        until(lambda: pool.dispatcher.lost_ones == [bad])
        good = send(pool)
        assert good.begun.wait(5) and good.thread is bad.thread


class TestSlots:
    def test_kept_without_a_thread(self, pool):
        """Work that waits for a Deferred keeps its slot until it was resumed."""
        first, second = send(pool, 2, keeps_slot=True)
        held = send(pool)
        for errand in (first, second):
            assert errand.begun.wait(5)
            errand.end()
        until(lambda: pool._busy == 0)
        assert not held.begun.is_set() and pool.waiting_count() == 1
        rest = Errand()
        pool.errands.append(rest)
        pool.submit(first, resume=(rest,))
        assert rest.begun.wait(5) and not held.begun.is_set()
        rest.end()
        assert held.begun.wait(5)

    def test_given_up(self, pool):
        """Or until it is given up."""
        first, second = send(pool, 2, keeps_slot=True)
        held = send(pool)
        for errand in (first, second):
            errand.end()
        until(lambda: pool._busy == 0)
        assert not held.begun.is_set()
        pool.free_slot()
        assert held.begun.wait(5)

    def test_withdrawn(self, pool):
        """What no thread has begun comes back in order, and takes no slot."""
        running = send(pool, 2)
        until(lambda: begun(running) == [True] * 2)
        held = send(pool, 3)
        assert pool.withdraw() == held and pool.waiting_count() == 0
        for errand in running:
            errand.end()
        until(lambda: pool._taken == 0)
        assert begun(held) == [False] * 3
        assert send(pool).begun.wait(5)


class TestAhead:
    def test_only_for_short_work(self, pool):
        """By the mean of what was measured, and never without limit."""
        assert pool.ahead_count() == 0
        pool.measured(AHEAD_JOB_SECONDS * 2)
        assert pool.ahead_count() == 0
        for _ in range(50):
            pool.measured(0.01)
        assert 10 <= pool.ahead_count() <= 20  # a tenth of a second for two threads
        for _ in range(50):
            pool.measured(0)
        assert pool.ahead_count() == AHEAD_LIMIT


class TestLoopThread:
    def test_runs_coroutines_and_tells_of_them(self):
        """Their values, or what they raised; one thread for all, which ends at a stop."""
        loop = LoopThread()
        told, others = [], set(threading.enumerate())
        for coroutine in (give(1), give(2), fail()):
            loop.start(coroutine, told.append)
        until(lambda: len(told) == 3)
        assert {value for value in told if isinstance(value, int)} == {1, 2}
        (raised,) = [value for value in told if isinstance(value, Raised)]
        assert isinstance(raised.error, ValueError)
        (thread,) = {t for t in threading.enumerate() if t.name == 'zodbjobs asyncio'} - others
        loop.stop()
        loop.stop()
        thread.join(5)
        assert not thread.is_alive()

    def test_can_be_started_anew(self):
        """After a stop, as a dispatcher that is activated again does."""
        loop = LoopThread()
        told = []
        loop.start(give(1), told.append)
        until(lambda: told)
        loop.stop()
        loop.start(give(2), told.append)
        until(lambda: told == [1, 2])
        loop.stop()

    def test_a_deferred_is_touched_in_the_reactors_thread(self):
        """By callFromThread, as Twisted wants it."""
        calls, told = [], []

        class Reactor:
            @staticmethod
            def callFromThread(call, *args):
                calls.append((call, args))

        deferred = Deferred()
        await_value(deferred, told.append, Reactor, None)
        assert told == []
        ((call, args),) = calls
        call(*args)
        deferred.callback('fired')
        assert told == ['fired']


async def give(value):
    return value


async def fail():
    raise ValueError('in the loop')


def overrun():
    said.append(threading.current_thread().name)
    assert gate.wait(10)
    local.getJob()._p_jar.root()['late'] = 1
    return 'too late'


def wait_to_be_asked():
    said.append('asked')
    while not local.getJob().stop_requested:
        if gate.wait(0.001):
            return 'never asked'
    return 'stopped in time'


async def waiting_coroutine(way):
    said.append('begun')
    try:
        while not gate.is_set():
            await asyncio.sleep(0.001)
    except asyncio.CancelledError:
        said.append('asked')
        if way == 'stop':
            raise
        while way == 'ignore' and not gate.is_set():
            await asyncio.sleep(0.001)
    return 'cleaned up' if way == 'clean up' else 'too late'


def waiting_deferred(way):
    """As a client that may be told to hang up."""

    def hang_up(deferred):
        said.append('asked')
        if way == 'clean up':
            deferred.callback('cleaned up')

    said.append('begun')
    deferred = Deferred(hang_up)
    if way == 'ignore':
        waiting.append(Deferred())
        deferred.addErrback(lambda failure: waiting[-1])
    return deferred


class TestTimeLimit:
    """Of a real pool: a job that runs too long loses its thread, not its slot for ever."""

    def test_hard(self, layer):
        """The job fails, others use the slot, and the late thread leaves no trace."""
        layer.agent.size = 1
        transaction.commit()
        layer.reactor.time_flies(5)
        job = layer.queue.put(overrun, time_limit=(5, 10))
        after = layer.queue.put(Job(len, 'abc'))
        transaction.commit()
        layer.reactor.settle(5, until=lambda: said)
        layer.reactor.time_flies(11)
        layer.reactor.wait_for(job, after)
        assert job.result.check(TimeLimitExceeded) and after.result == 3
        gate.set()
        until(lambda: len(layer.dispatcher.queues['']['main'].threads) == 1)
        layer.reactor.settle()
        transaction.begin()
        assert 'late' not in layer.root and job.result.check(TimeLimitExceeded)
        assert layer.dispatcher._flight == {}
        assert layer.dispatcher.queues['']['main']._taken == 0

    def test_soft(self, layer):
        """A job that asks may end by itself."""
        job = layer.queue.put(wait_to_be_asked, time_limit=5)
        transaction.commit()
        layer.reactor.settle(5, until=lambda: said)
        layer.reactor.time_flies(6)
        layer.reactor.wait_for(job)
        assert job.result == 'stopped in time' and job.status == status.COMPLETED

    @pytest.mark.parametrize(
        'call', [waiting_coroutine, waiting_deferred], ids=['async', 'deferred']
    )
    @pytest.mark.parametrize(
        ('way', 'result'),
        [
            ('stop', 'TimeLimitExceeded'),
            ('clean up', 'cleaned up'),
            ('ignore', 'TimeLimitExceeded'),
        ],
    )
    def test_without_a_thread(self, layer, call, way, result):
        """It is cancelled in the way of Twisted or asyncio; if that is in vain it is given up."""
        layer.queue.quotas.create('one')
        job = layer.queue.put(Job(call, way), time_limit=(5, 10), quota_names=['one'])
        transaction.commit()
        layer.reactor.settle(5, until=lambda: said and layer.dispatcher._threadless)
        layer.reactor.time_flies(4)
        transaction.begin()
        assert job.status == status.ACTIVE and said == ['begun']
        layer.reactor.time_flies(2)
        layer.reactor.settle(5, until=lambda: 'asked' in said)
        if way != 'ignore':
            layer.reactor.wait_for(job, attempts=1)
        else:
            layer.reactor.time_flies(5)
            layer.reactor.wait_for(job, attempts=2)
        found = job.result.type.__name__ if job.outcome == 'failure' else job.result
        assert found == result
        assert said == ['begun', 'asked']
        gate.set()
        for deferred in waiting:
            deferred.callback('too late')
        layer.reactor.time_flies(5)
        transaction.begin()
        assert job.attempts == 1 and job.result != 'too late'
        assert layer.dispatcher._flight == {} and not layer.dispatcher._threadless
        assert layer.dispatcher.queues['']['main']._taken == 0
        layer.queue.quotas['one'].clean()
        assert len(layer.queue.quotas['one']) == 0

    def test_without_a_thread_and_again(self, layer):
        """Its policy is asked."""
        job = layer.queue.put(Job(waiting_coroutine, 'stop'), time_limit=(5, 90), retries=1)
        transaction.commit()
        layer.reactor.wait_for(job, attempts=20)
        assert said == ['begun', 'asked'] * 2 and job.attempts == 2
        assert job.result.check(TimeLimitExceeded)

    def test_cancelled_without_a_thread(self, layer):
        """What it waits for is cancelled at the next poll."""
        job = layer.queue.put(Job(waiting_coroutine, 'stop'))
        transaction.commit()
        layer.reactor.settle(5, until=lambda: said and layer.dispatcher._threadless)
        transaction.begin()
        job.cancel()
        transaction.commit()
        layer.reactor.wait_for(job)
        layer.reactor.time_flies(5)
        assert layer.reactor.wait_until(lambda: 'asked' in said, 1)  # in the thread of its loop
        assert said == ['begun', 'asked'] and job.outcome == 'cancelled'

    def test_cancelled(self, layer):
        """Asked to stop, too."""
        job = layer.queue.put(wait_to_be_asked)
        transaction.commit()
        layer.reactor.settle(5, until=lambda: said)
        transaction.begin()
        job.cancel()
        transaction.commit()
        layer.reactor.time_flies(2)
        layer.reactor.wait_for(job)
        assert job.outcome == 'cancelled'
