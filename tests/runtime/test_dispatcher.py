"""What a dispatcher hands out: to whom, in which order, how many, and when.

Time is virtual; the database, the dispatchers and their threads are real.
"""

import datetime
import logging
import queue
import threading
import uuid

import pytest
import transaction
from zope.testing import cleanup

from tests.runtime.support import gate, said
from zodbjobs import Agent, Dispatcher, Failure, Job, Queue, local, serial, status, testing
from zodbjobs.interfaces import (
    KEY,
    BadStatusError,
    CancelledError,
    DependencyError,
    DuplicateJobError,
    JobAdded,
    JobClaimed,
    QueueClosed,
    TimeoutError,
)
from zodbjobs.runtime import dispatcher as dispatchers

OTHER = uuid.UUID('00000000-0000-0000-0000-0000000000aa')

#: Far less than a poll interval.
MOMENT_SECONDS = 0.1


def say(word='done'):
    said.append(word)
    return word


def wait(word='done'):
    assert gate.wait(10)
    return say(word)


def fail():
    raise RuntimeError('on purpose')


def agent_name():
    return local.getAgentName(), str(local.getDispatcher().UUID)


@pytest.fixture
def other(layer):
    """A second dispatcher on the same database and reactor, with no agent yet."""
    other = Dispatcher(layer.db, layer.reactor, uuid=OTHER)
    other.activate()
    layer.reactor.time_passes()
    transaction.begin()
    yield other
    gate.set()
    testing.tear_down_dispatcher(other)


def commit(layer):
    """Commit, and let the dispatchers look."""
    transaction.commit()
    layer.reactor.settle()
    transaction.begin()


def resize(layer, size):
    layer.agent.size = size
    transaction.commit()
    layer.reactor.time_flies(5)


def running(layer, count=1):
    """Wait until so many jobs run in threads, a moment of virtual time at most.

    A dispatcher leaves new jobs for a moment to another one whose lane they are in.
    """
    layer.reactor.settle(0.1, until=lambda: len(layer.dispatcher.getActiveJobIds()) == count)
    layer.reactor.time_flies(MOMENT_SECONDS)
    assert layer.reactor.settle(
        5, until=lambda: len(layer.dispatcher.getActiveJobIds()) == count
    ), layer.dispatcher.getActiveJobIds()
    transaction.begin()


def after(layer, seconds):
    """Seconds of virtual time pass, without waiting for jobs that are blocked."""
    layer.reactor.time_flies(seconds)


def test_what_was_claimed_ahead_goes_back_when_no_thread_comes_to_it(layer):
    """No attempt is counted, and the order stays."""
    layer.agent.size = 1
    transaction.commit()
    after(layer, 5)
    short = [layer.queue.put(say) for _ in range(3)]
    transaction.commit()
    layer.reactor.wait_for(*short)
    pool = layer.dispatcher.queues['']['main']
    pool.mean_seconds = 0.001
    said.clear()
    long, *others = [layer.queue.put(call) for call in (wait, say, say)]
    transaction.commit()
    running(layer)
    assert layer.reactor.settle(5, until=lambda: pool.held_count() == 2)
    transaction.begin()
    assert [job.status for job in others] == [status.ASSIGNED] * 2
    after(layer, 1)
    assert layer.reactor.settle(5, until=lambda: pool.held_count() == 0)
    transaction.begin()
    assert [job.status for job in (long, *others)] == [status.ACTIVE] + [status.PENDING] * 2
    assert list(layer.queue) == others and pool.ahead_count() == 0
    gate.set()
    layer.reactor.wait_for(long, *others)
    assert [job.attempts for job in (long, *others)] == [1, 1, 1]
    assert layer.agent.held_count() <= 1


class TestStart:
    def test_a_job_starts_at_the_commit_and_not_at_the_poll(self, layer):
        """No virtual time passes between the commit and the result."""
        job = layer.queue.put(say)
        transaction.commit()
        layer.reactor.wait_for(job, attempts=1)
        assert (job.status, job.result, job.outcome) == (status.COMPLETED, 'done', 'success')
        assert job.active_start == job.active_end == job.begin_after

    def test_what_was_aborted_never_ran(self, layer):
        """An aborted put leaves nothing behind."""
        layer.queue.put(say)
        transaction.abort()
        after(layer, 10)
        assert said == [] and len(layer.queue) == 0

    @pytest.mark.parametrize('when', ['begin_after', 'delay', 'naive'])
    def test_a_later_job_starts_at_its_instant(self, layer, when):
        """begin_after and delay are kept to the second, whatever the poll interval."""
        from zodbjobs import clock

        due = clock.now() + datetime.timedelta(seconds=92)
        wishes = {
            'begin_after': {'begin_after': due},
            'delay': {'delay': 92},
            'naive': {'begin_after': due.replace(tzinfo=None)},
        }[when]
        job = layer.queue.put(say, **wishes)
        transaction.commit()
        after(layer, 91)
        assert said == []
        assert job.status == status.PENDING
        after(layer, 1)
        layer.reactor.wait_for(job, attempts=1)
        assert job.active_start == due

    def test_begin_after_may_be_changed_while_it_waits(self, layer):
        """A waiting job is filed anew."""
        job = layer.queue.put(say, delay=3600)
        commit(layer)
        job.begin_after = None
        transaction.commit()
        layer.reactor.wait_for(job, attempts=1)
        assert job.result == 'done'

    def test_many_later_jobs_of_one_instant_all_start(self, layer):
        """Ties in time lose nobody."""
        jobs = [layer.queue.put(Job(say, i), delay=60) for i in range(30)]
        transaction.commit()
        after(layer, 60)
        layer.reactor.wait_for(*jobs, attempts=3)
        assert sorted(said) == list(range(30))


class TestBeginBy:
    def test_a_job_that_began_in_time_has_no_timeout(self, layer):
        """begin_by is about the beginning."""
        job = layer.queue.put(say, begin_by=datetime.timedelta(seconds=1))
        transaction.commit()
        layer.reactor.wait_for(job)
        assert job.result == 'done'

    def test_a_date_long_past_fails_at_once(self, layer):
        """As the usage text shows it."""
        long_ago = datetime.datetime(2006, 7, 21, 12)
        job = layer.queue.put(say, long_ago, datetime.timedelta(hours=1))
        transaction.commit()
        layer.reactor.wait_for(job)
        assert job.result.check(TimeoutError) and said == []

    def test_it_expires_when_nobody_has_room(self, layer):
        """All threads are busy, and still the job fails about when its time is up."""
        resize(layer, 1)
        blocking = layer.queue.put(wait)
        transaction.commit()
        running(layer)
        late = layer.queue.put(say, begin_by=datetime.timedelta(seconds=60))
        told = late.addCallbacks(failure=say)
        transaction.commit()
        after(layer, 59)
        assert late.status == status.PENDING
        after(layer, 10)
        assert late.status in (status.CALLBACKS, status.COMPLETED)
        assert late.result.check(TimeoutError)
        gate.set()
        layer.reactor.wait_for(blocking, late, told)
        assert {type(word) for word in said} == {str, Failure} and len(said) == 2

    def test_it_expires_in_a_paused_queue(self, layer):
        """Nobody may run it, and nobody needs to."""
        layer.queue.pause()
        job = layer.queue.put(say, begin_by=datetime.timedelta(seconds=60))
        transaction.commit()
        after(layer, 70)
        assert job.result.check(TimeoutError)

    def test_it_expires_while_it_waits_for_another_job(self, layer):
        """A dependency does not stop the clock."""
        first = layer.queue.put(say, delay=3600)
        job = layer.queue.put(say, begin_by=datetime.timedelta(seconds=60), after=[first])
        transaction.commit()
        after(layer, 70)
        layer.reactor.wait_for(job, attempts=2)
        assert job.result.check(TimeoutError)
        after(layer, 3600)
        layer.reactor.wait_for(first)
        assert said == ['done'] and len(layer.queue) == 0

    def test_an_expired_job_may_be_selected_by_nobody(self, layer):
        """A filter that refuses the job cannot keep it from expiring."""
        layer.agent.filter = refuse
        transaction.commit()
        after(layer, 5)
        job = layer.queue.put(say, begin_by=datetime.timedelta(seconds=60))
        transaction.commit()
        after(layer, 70)
        assert job.result.check(TimeoutError)


def refuse(job):
    return False


class TestOrder:
    def blocked(self, layer):
        """An agent of one thread, which is busy."""
        resize(layer, 1)
        layer.queue.put(Job(wait, 'first'))
        transaction.commit()
        running(layer)

    def finish(self, layer, *jobs):
        gate.set()
        transaction.commit()
        layer.reactor.wait_for(*jobs)
        return said[1:]

    def test_fifo(self, layer):
        """Equal jobs run in the order they were put, also when there are many."""
        self.blocked(layer)
        jobs = [layer.queue.put(Job(say, i)) for i in range(40)]
        assert self.finish(layer, *jobs) == list(range(40))

    def test_priority(self, layer):
        """Smaller first; equal ones in their order; it may be changed."""
        self.blocked(layer)
        jobs = [layer.queue.put(Job(say, p), priority=p) for p in (5, 2**32 - 1, 0, 7)]
        jobs.append(layer.queue.put(Job(say, 'default')))
        jobs.append(layer.queue.put(Job(say, 6), priority=100))
        transaction.commit()
        transaction.begin()
        jobs[-1].priority = 6
        assert self.finish(layer, *jobs) == [0, 5, 6, 7, 'default', 2**32 - 1]

    def test_due_order_goes_by_date(self, layer):
        """What became due earlier goes first, whenever it was put."""
        self.blocked(layer)
        jobs = [layer.queue.put(Job(say, n), delay=n) for n in (20, 10)]
        transaction.commit()
        after(layer, 30)
        jobs.append(layer.queue.put(Job(say, 'new')))
        assert self.finish(layer, *jobs) == [10, 20, 'new']

    def test_put_order_goes_by_put(self, layer):
        """With order 'put' the date only says from when on."""
        layer.queue.order = 'put'
        self.blocked(layer)
        jobs = [layer.queue.put(Job(say, n), delay=n) for n in (20, 10)]
        transaction.commit()
        after(layer, 30)
        jobs.append(layer.queue.put(Job(say, 'new')))
        assert self.finish(layer, *jobs) == [20, 10, 'new']

    def test_order_changed_while_jobs_wait(self, layer):
        """They are sorted anew."""
        self.blocked(layer)
        jobs = []
        for n in (20, 10):
            jobs.append(layer.queue.put(Job(say, n), delay=n))
            transaction.commit()
            after(layer, 3)
        after(layer, 30)
        layer.queue.order = 'put'
        assert self.finish(layer, *jobs) == [20, 10]


class TestRefiling:
    """A sorted job whose place was changed leaves a stale entry in the trees."""

    @pytest.fixture
    def sorted_jobs(self, layer):
        resize(layer, 1)
        layer.queue.put(Job(wait, -1))
        jobs = [layer.queue.put(Job(say, i)) for i in range(40)]
        transaction.commit()
        running(layer)
        assert layer.queue.ready.waiting() == len(layer.queue) == 40 and said == []
        return jobs

    def go(self, layer, *jobs):
        transaction.commit()
        gate.set()
        resize(layer, 3)
        layer.reactor.wait_for(*jobs)
        said.remove(-1)

    def test_each_runs_once_and_the_count_is_right(self, layer, sorted_jobs):
        """Moved to the front, to the back, twice, and to another quota."""
        layer.queue.quotas.create('q')
        sorted_jobs[30].priority = 1
        sorted_jobs[31].priority = 2**32 - 1
        sorted_jobs[32].priority = 1
        transaction.commit()
        sorted_jobs[32].priority = 2
        sorted_jobs[33].quota_names = ['q']
        sorted_jobs[34].channel = 'c'
        self.go(layer, *sorted_jobs)
        assert sorted(said) == list(range(40))
        assert [job.attempts for job in sorted_jobs] == [1] * 40
        after(layer, 10)
        assert len(layer.queue) == 0
        assert len(layer.agent.history.done) == 41
        assert not layer.agent.held_count()

    @pytest.mark.parametrize('deed', ['hold', 'move', 'remove'])
    def test_an_entry_that_went_stale_never_comes_to_life_again(self, layer, sorted_jobs, deed):
        """No two filings of a job share a token, or a stale entry would pass for the live one."""
        job = layer.queue.put(say, delay=60)
        due = job.begin_after
        tokens = [job._token]
        for _ in range(30 if deed == 'remove' else 100):
            if deed == 'hold':
                job.hold()
                tokens.append(job._token)
                job.resume()
            elif deed == 'move':
                job.priority += 1
            else:
                layer.queue.remove(job)
                layer.queue.put(job, begin_after=due)
            tokens.append(job._token)
        assert len(set(tokens)) == len(tokens)

    def test_held_and_resumed_many_times(self, layer, sorted_jobs):
        """It runs once, and is counted once."""
        victim = sorted_jobs[20]
        for _ in range(7):
            victim.hold('wait')
            transaction.commit()
            after(layer, 5)
            assert victim.status == status.HELD
            victim.resume()
            transaction.commit()
            after(layer, 5)
        assert len(layer.queue) == 40
        self.go(layer, *sorted_jobs)
        assert sorted(said) == list(range(40))
        after(layer, 10)
        assert len(layer.queue) == 0

    def test_somebody_waits_for_a_refiled_job(self, layer, sorted_jobs):
        """Its end is heard although a stale entry of it was claimed beside it."""
        waiting = layer.queue.put(Job(say, 'after'), after=[sorted_jobs[20]])
        sorted_jobs[20].priority = 1
        self.go(layer, *sorted_jobs, waiting)
        assert said.index(20) < said.index('after')

    def test_removed_and_put_again(self, layer, sorted_jobs):
        """It runs once, at its new place."""
        layer.queue.remove(sorted_jobs[0])
        layer.queue.put(sorted_jobs[0])
        self.go(layer, *sorted_jobs)
        assert sorted(said) == list(range(40))
        after(layer, 10)
        assert len(layer.queue) == 0


class TestAgents:
    def test_size_follows_live(self, layer):
        """Up, down to nothing, and up again; threads never exceed it."""
        jobs = [layer.queue.put(Job(wait, i)) for i in range(5)]
        transaction.commit()
        running(layer, 3)
        assert layer.dispatcher.queues['']['main'].getSize() == 3
        layer.agent.size = 5
        transaction.commit()
        after(layer, 5)
        running(layer, 5)
        layer.agent.size = 0
        transaction.commit()
        after(layer, 5)
        gate.set()
        layer.reactor.wait_for(*jobs)
        late = layer.queue.put(say)
        transaction.commit()
        after(layer, 20)
        assert late.status == status.PENDING
        resize(layer, 1)
        layer.reactor.wait_for(late)

    def test_filter(self, layer):
        """An agent takes what its filter accepts; others get the rest."""
        layer.agent.filter = is_say
        record = layer.queue.dispatchers[layer.dispatcher.UUID]
        record['second'] = Agent(filter=is_agent_name, size=1)
        jobs = [layer.queue.put(call) for call in (say, agent_name, say)]
        nobodys = layer.queue.put(fail)
        transaction.commit()
        layer.reactor.wait_for(*jobs)
        assert jobs[1].result[0] == 'second'
        assert nobodys.status == status.PENDING

    def test_a_filter_that_raises_harms_nobody_else(self, layer, caplog):
        """The job stays for others, the jobs it can judge run, the error is logged."""
        layer.agent.filter = touchy
        bad = layer.queue.put(fail)
        good = layer.queue.put(say)
        transaction.commit()
        layer.reactor.wait_for(good)
        assert bad.status == status.PENDING
        assert 'cannot judge' in caplog.text
        layer.agent.filter = None
        transaction.commit()
        after(layer, 5)
        layer.reactor.wait_for(bad)

    def test_chooser(self, layer):
        """It takes from the queue what it likes."""
        layer.agent.chooser = choose_say
        commit(layer)
        jobs = [layer.queue.put(call) for call in (fail, say, say, say, say, say)]
        transaction.commit()
        layer.reactor.wait_for(*jobs[1:])
        assert jobs[0].status == status.PENDING
        assert len(layer.queue) == 1

    @pytest.mark.parametrize('chooser', ['raises', 'claims_and_raises', 'nonsense', 'not_claimed'])
    def test_a_bad_chooser_harms_nobody_else(self, layer, caplog, chooser):
        """Whatever it does, other agents and queues go on and no job is lost."""
        layer.agent.chooser = globals()[chooser]
        layer.queues['second'] = Queue()
        transaction.commit()
        after(layer, 5)
        transaction.begin()
        job = layer.queue.put(say)
        transaction.commit()
        after(layer, 10)
        transaction.begin()
        second = layer.queues['second'].dispatchers[layer.dispatcher.UUID]
        second['main'] = Agent()
        elsewhere = layer.queues['second'].put(Job(say, 'elsewhere'))
        transaction.commit()
        after(layer, 5)
        layer.reactor.wait_for(elsewhere)
        assert job.status == status.PENDING
        assert job in layer.queue and list(layer.queue) == [job]
        assert any(record.levelno >= logging.ERROR for record in caplog.records)
        layer.agent.chooser = None
        transaction.commit()
        after(layer, 5)
        layer.reactor.wait_for(job)

    def test_a_chooser_that_takes_more_than_it_returns(self, layer):
        """What it kept goes back to the queue."""
        layer.agent.chooser = greedy
        commit(layer)
        jobs = [layer.queue.put(Job(say, i)) for i in range(6)]
        transaction.commit()
        after(layer, 5)
        layer.agent.chooser = None
        transaction.commit()
        after(layer, 5)
        layer.reactor.wait_for(*jobs)
        assert sorted(said) == list(range(6))

    def test_channels(self, layer):
        """An agent with channels leaves the others alone; None takes all."""
        layer.agent.channels = ['mail', None]
        commit(layer)
        mail = layer.queue.put(say, channel='mail')
        plain = layer.queue.put(say)
        images = layer.queue.put(say, channel='images')
        transaction.commit()
        layer.reactor.wait_for(mail, plain)
        after(layer, 10)
        assert images.status == status.PENDING
        record = layer.queue.dispatchers[layer.dispatcher.UUID]
        record['images'] = Agent(channels=['images'], size=1)
        transaction.commit()
        after(layer, 5)
        layer.reactor.wait_for(images)

    def test_removed_live(self, layer):
        """Only when it holds no jobs; its threads end and the others go on."""
        record = layer.queue.dispatchers[layer.dispatcher.UUID]
        record['main'].channels = [None]
        record['second'] = Agent(channels=['c'], size=2)
        transaction.commit()
        after(layer, 5)
        job = layer.queue.put(wait, channel='c')
        transaction.commit()
        running(layer)
        with pytest.raises(ValueError, match='still has 1'):
            del record['second']
        gate.set()
        layer.reactor.wait_for(job)
        pool = layer.dispatcher.queues['']['second']
        del record['second']
        transaction.commit()
        after(layer, 5)
        assert set(layer.dispatcher.queues['']) == {'main'}
        pool.join(5)
        assert not any(thread.is_alive() for thread in pool.threads)
        left = layer.queue.put(say)
        transaction.commit()
        layer.reactor.wait_for(left)

    def test_removed_in_the_instant_its_job_ended(self, layer):
        """Who waited for the job goes on all the same."""
        record = layer.queue.dispatchers[layer.dispatcher.UUID]
        record['main'].channels = [None]
        record['second'] = Agent(channels=['c'], size=1)
        transaction.commit()
        after(layer, 5)
        job = layer.queue.put(change_and_wait, channel='c')  # its worker itself completes it
        waiting = layer.queue.put(say, after=[job])
        transaction.commit()
        running(layer)
        gate.set()
        while job.status != status.COMPLETED:  # and the dispatcher has not looked again
            transaction.begin()
        del record['second']
        transaction.commit()
        layer.reactor.wait_for(waiting)
        assert said == ['done', 'done']

    def test_replaced_live(self, layer):
        """A new agent under an old name has threads of its own; the pool of connections fits."""
        after(layer, 5)
        record = layer.queue.dispatchers[layer.dispatcher.UUID]
        connections = layer.db.getPoolSize()
        del record['main']
        record['main'] = Agent(size=2)
        transaction.commit()
        after(layer, 5)
        assert layer.db.getPoolSize() == connections - 1
        job = layer.queue.put(say)
        transaction.commit()
        layer.reactor.wait_for(job)

    def test_several_queues(self, layer):
        """A queue added live is served from the next poll on; removed, it is left alone."""
        second = layer.queues['second'] = Queue()
        transaction.commit()
        after(layer, 5)
        second.dispatchers[layer.dispatcher.UUID]['main'] = Agent(size=1)
        transaction.commit()
        after(layer, 5)
        jobs = [second.put(say), layer.queue.put(say)]
        transaction.commit()
        layer.reactor.wait_for(*jobs)
        assert jobs[0].queue is second
        assert set(layer.dispatcher.queues) == {'', 'second'}
        del layer.queues['second']
        transaction.commit()
        after(layer, 10)
        assert set(layer.dispatcher.queues) == {''}
        job = layer.queue.put(say)
        transaction.commit()
        layer.reactor.wait_for(job)

    def test_a_queue_added_in_the_moment_of_a_poll(self, layer, caplog):
        """It is served from the next poll on, as if it had been added after this one."""
        other = Dispatcher(layer.db, layer.reactor, uuid=OTHER)
        other.activate()
        other._manager = AddingQueue(other._manager, layer.db)
        layer.reactor.time_flies(6)
        transaction.begin()
        second = layer.queues['second']
        assert second.dispatchers[OTHER].activated is not None
        assert 'held for dead' not in caplog.text
        testing.tear_down_dispatcher(other)

    def test_several_dispatchers(self, layer, other):
        """They share the work, none is done twice, and each knows its own."""
        layer.queue.dispatchers[OTHER]['main'] = Agent(size=3)
        transaction.commit()
        after(layer, 5)
        jobs = [layer.queue.put(Job(wait, i)) for i in range(6)]
        transaction.commit()
        layer.reactor.time_flies(0.1)  # one leaves new jobs to the other for a moment
        assert layer.reactor.settle(
            5,
            until=lambda: len(layer.dispatcher.getActiveJobIds() + other.getActiveJobIds()) == 6,
        )
        assert len(other.getActiveJobIds()) == 3
        gate.set()
        layer.reactor.wait_for(*jobs)
        assert sorted(said) == list(range(6))
        assert {job.agent.parent.UUID for job in jobs} == {OTHER, layer.dispatcher.UUID}

    def test_a_second_dispatcher_takes_over_at_a_stop(self, layer, other):
        """What one hands back starts with the other at once."""
        job = layer.queue.put(say, channel='c')
        layer.agent.size = 0
        layer.queue.dispatchers[OTHER]['main'] = Agent(channels=['d'])
        transaction.commit()
        after(layer, 5)
        layer.queue.dispatchers[OTHER]['main'].channels = None
        transaction.commit()
        testing.tear_down_dispatcher(layer.dispatcher)
        layer.reactor.wait_for(job)
        assert job.agent.parent.UUID == OTHER


class AddingQueue:
    """A transaction manager: just before its first commit somebody else adds a queue."""

    def __init__(self, real, db):
        self.real = real
        self.rest = [db]

    def __getattr__(self, name):
        return getattr(self.real, name)

    def commit(self):
        while self.rest:
            with self.rest.pop().transaction() as connection:
                connection.root()[KEY]['second'] = Queue()
        self.real.commit()


def is_say(job):
    return job.callable is say


def is_agent_name(job):
    return job.callable is agent_name


def touchy(job):
    if job.callable is fail:
        raise ValueError('cannot judge')
    return True


def choose_say(agent):
    return agent.queue.claim(filter=is_say)


def raises(agent):
    raise ValueError('no idea')


def claims_and_raises(agent):
    agent.queue.claim()
    raise ValueError('no idea')


def nonsense(agent):
    return 'a job'


def not_claimed(agent):
    return agent.queue.peek()


def greedy(agent):
    agent.queue.claim()
    return agent.queue.claim()


class TestQuotas:
    running = 0
    most = 0
    guard = threading.Lock()

    @pytest.fixture(autouse=True)
    def counts(self):
        TestQuotas.running = TestQuotas.most = 0

    def put(self, layer, count, *names):
        jobs = [layer.queue.put(Job(counted, i), quota_names=names) for i in range(count)]
        transaction.commit()
        return jobs

    def test_never_exceeded_and_in_order(self, layer):
        """A quota of one runs its jobs one by one, first come first served."""
        layer.queue.quotas.create('one')
        jobs = self.put(layer, 20, 'one')
        layer.reactor.wait_for(*jobs)
        assert said == list(range(20))
        assert TestQuotas.most == 1

    def test_the_next_starts_without_the_poll(self, layer):
        """A place is free the moment its job has ended: no virtual time passes."""
        layer.queue.quotas.create('one')
        jobs = self.put(layer, 5, 'one')
        layer.reactor.wait_for(*jobs, attempts=1)
        assert len(said) == 5

    def test_the_next_starts_without_the_poll_at_another_dispatcher(self, layer, other):
        """The place that one dispatcher frees is seen by the other."""
        layer.queue.quotas.create('one')
        layer.agent.channels = ['a']
        layer.queue.dispatchers[OTHER]['main'] = Agent(channels=['b'], size=1)
        transaction.commit()
        after(layer, 5)
        first = layer.queue.put(wait, channel='a', quota_names=['one'])
        transaction.commit()
        running(layer)
        second = layer.queue.put(say, channel='b', quota_names=['one'])
        transaction.commit()
        layer.reactor.time_flies(0.1)  # far less than a poll, and enough for courtesy
        assert second.status == status.PENDING
        gate.set()
        layer.reactor.wait_for(first, second, attempts=3, poll_interval=MOMENT_SECONDS)
        assert second.result == 'done'

    def test_a_full_quota_keeps_nobody_else(self, layer):
        """Jobs behind it run; a removed quota limits nobody."""
        layer.queue.quotas.create('none', size=0)
        jobs = self.put(layer, 3, 'none')
        free = layer.queue.put(say)
        transaction.commit()
        layer.reactor.wait_for(free)
        assert [job.status for job in jobs] == [status.PENDING] * 3
        layer.queue.quotas.remove('none')
        transaction.commit()
        after(layer, 5)
        layer.reactor.wait_for(*jobs)

    def test_several_for_one_job(self, layer):
        """All of them must have room, and all are taken."""
        layer.queue.quotas.create('one')
        layer.queue.quotas.create('two', 2)
        both = layer.queue.put(wait, quota_names=['two', 'one'])
        transaction.commit()
        running(layer)
        assert len(layer.queue.quotas['one']) == len(layer.queue.quotas['two']) == 1
        ones = self.put(layer, 1, 'one')
        twos = self.put(layer, 1, 'two')
        layer.reactor.wait_for(*twos)
        assert ones[0].status == status.PENDING
        gate.set()
        layer.reactor.wait_for(both, *ones)

    def test_resized_live(self, layer):
        """More at once after growing; shrinking stops nobody and then holds."""
        resize(layer, 6)
        layer.queue.quotas.create('q')
        jobs = [layer.queue.put(Job(wait, i), quota_names=['q']) for i in range(6)]
        transaction.commit()
        running(layer, 1)
        quota = layer.queue.quotas['q']
        quota.size = 3
        transaction.commit()
        after(layer, 5)
        running(layer, 3)
        assert quota.filled and len(quota) == 3
        quota.size = 1
        transaction.commit()
        after(layer, 5)
        running(layer, 3)
        gate.set()
        layer.reactor.wait_for(*jobs)
        jobs = self.put(layer, 6, 'q')
        layer.reactor.wait_for(*jobs)
        assert TestQuotas.most == 1

    def test_over_two_dispatchers(self, layer, other):
        """The limit holds over all of them."""
        layer.queue.quotas.create('q', 2)
        layer.queue.dispatchers[OTHER]['main'] = Agent(size=3)
        transaction.commit()
        after(layer, 5)
        jobs = self.put(layer, 30, 'q')
        layer.reactor.wait_for(*jobs)
        assert TestQuotas.most <= 2
        assert sorted(said) == list(range(30))

    def test_a_place_is_free_again_after_a_failure_and_a_cancel(self, layer):
        """However a job ends, its place is free."""
        layer.queue.quotas.create('q')
        failing = layer.queue.put(fail, quota_names=['q'])
        cancelled = layer.queue.put(say, quota_names=['q'])
        cancelled.cancel()
        last = layer.queue.put(say, quota_names=['q'])
        transaction.commit()
        layer.reactor.wait_for(failing, cancelled, last)
        assert said == ['done']
        after(layer, 5)
        assert not layer.queue.quotas['q'].filled

    def test_a_quota_given_after_the_put(self, layer):
        """quota_names may be set while the job waits."""
        layer.queue.quotas.create('none', size=0)
        job = layer.queue.put(say, delay=10)
        commit(layer)
        job.quota_names = ['none']
        transaction.commit()
        after(layer, 20)
        assert job.status == status.PENDING
        job.quota_names = ()
        transaction.commit()
        layer.reactor.wait_for(job, attempts=1)
        with pytest.raises(ValueError, match='unknown quota name'):
            layer.queue.put(say, quota_names=['nowhere'])


def counted(i):
    with TestQuotas.guard:
        TestQuotas.running += 1
        TestQuotas.most = max(TestQuotas.most, TestQuotas.running)
    threading.Event().wait(0.001)
    with TestQuotas.guard:
        TestQuotas.running -= 1
    said.append(i)


class TestUniqueIds:
    def test_free_again_when_the_job_has_ended(self, layer):
        """An id is taken from the put to the end of the job, whatever its end is."""
        for call in (say, fail):
            job = layer.queue.put(call, id='x')
            transaction.commit()
            if job.status == status.PENDING:
                with pytest.raises(DuplicateJobError):
                    layer.queue.put(say, id='x')
            layer.reactor.wait_for(job)
        job = layer.queue.put(say, id='x', delay=60)
        transaction.commit()
        job.cancel()
        assert layer.queue.put(say, id='x') is not job

    def test_taken_while_it_runs(self, layer):
        """A running job can be kept, not replaced."""
        job = layer.queue.put(wait, id='x')
        transaction.commit()
        running(layer)
        assert layer.queue.put(say, id='x', on_conflict='keep') is job
        with pytest.raises(DuplicateJobError, match='cannot be replaced'):
            layer.queue.put(say, id='x', on_conflict='replace')
        gate.set()
        layer.reactor.wait_for(job)
        again = layer.queue.put(say, id='x', on_conflict='keep')
        assert again is not job

    def test_replaced_while_it_waits(self, layer):
        """The old one never runs."""
        layer.queue.put(Job(say, 'old'), id='x', delay=5)
        commit(layer)
        new = layer.queue.put(Job(say, 'new'), id='x', on_conflict='replace')
        transaction.commit()
        layer.reactor.wait_for(new)
        after(layer, 10)
        assert said == ['new'] and len(layer.queue) == 0


class TestDependencies:
    def test_success(self, layer):
        """It starts as soon as the other has succeeded, without a poll."""
        first = layer.queue.put(Job(wait, 1))
        second = layer.queue.put(Job(say, 2), depends_on=[first])
        third = layer.queue.put(Job(say, 3), depends_on=[second, first], after=first)
        transaction.commit()
        running(layer)
        layer.reactor.settle(0.05)
        assert said == [] and second.status == status.PENDING
        assert len(layer.queue) == 2 and list(layer.queue) == [second, third]
        gate.set()
        layer.reactor.wait_for(third, attempts=1)
        assert said == [1, 2, 3]

    def test_failure(self, layer):
        """depends_on completes with DependencyError, down the chain; after runs."""
        first = layer.queue.put(fail)
        second = layer.queue.put(say, depends_on=first)
        third = layer.queue.put(say, depends_on=second)
        finally_ = layer.queue.put(Job(say, 'after'), after=[first, second, third])
        told = third.addCallbacks(failure=say)
        transaction.commit()
        layer.reactor.wait_for(first, second, third, finally_, told, attempts=1)
        assert second.result.check(DependencyError) and third.result.check(DependencyError)
        assert said[-1] == 'after' or said[0] == 'after'
        assert len(said) == 2

    def test_on_what_has_ended(self, layer):
        """A job that has ended blocks nobody."""
        good, bad = layer.queue.put(say), layer.queue.put(fail)
        transaction.commit()
        layer.reactor.wait_for(good, bad)
        runs = layer.queue.put(say, depends_on=good, after=bad)
        fails = layer.queue.put(say, depends_on=bad)
        transaction.commit()
        layer.reactor.wait_for(runs, fails)
        assert runs.outcome == 'success' and fails.result.check(DependencyError)

    def test_removed(self, layer):
        """What was taken out will not succeed."""
        first = layer.queue.put(say, delay=60)
        second = layer.queue.put(say, depends_on=first)
        third = layer.queue.put(say, after=first)
        commit(layer)
        layer.queue.remove(first)
        transaction.commit()
        layer.reactor.wait_for(second, third, attempts=1)
        assert second.result.check(DependencyError)
        assert third.result == 'done'

    def test_cancelled_and_expired(self, layer):
        """Neither is a success."""
        cancelled = layer.queue.put(say, delay=60)
        layer.queue.quotas.create('none', 0)
        expired = layer.queue.put(
            say, delay=10, quota_names=['none'], begin_by=datetime.timedelta(seconds=10)
        )
        jobs = [layer.queue.put(say, depends_on=[job]) for job in (cancelled, expired)]
        commit(layer)
        cancelled.cancel()
        transaction.commit()
        after(layer, 30)
        layer.reactor.wait_for(*jobs)
        assert all(job.result.check(DependencyError) for job in jobs)

    def test_across_queues(self, layer):
        """The other job may be in another queue, which another agent serves."""
        second = layer.queues['second'] = Queue()
        transaction.commit()
        after(layer, 5)
        second.dispatchers[layer.dispatcher.UUID]['main'] = Agent(size=1)
        transaction.commit()
        after(layer, 5)
        first = second.put(Job(wait, 1))
        waiting = layer.queue.put(Job(say, 2), depends_on=first)
        transaction.commit()
        running(layer)
        gate.set()
        layer.reactor.wait_for(first, waiting, attempts=1)
        assert said == [1, 2]

    def test_across_dispatchers(self, layer, other):
        """The one that may go on starts at once, though another dispatcher must take it."""
        layer.agent.channels = ['a']
        layer.queue.dispatchers[OTHER]['main'] = Agent(channels=['b'], size=1)
        transaction.commit()
        after(layer, 5)
        first = layer.queue.put(Job(wait, 1), channel='a')
        second = layer.queue.put(Job(say, 2), channel='b', after=first)
        transaction.commit()
        running(layer)
        layer.reactor.settle(0.05)
        gate.set()
        layer.reactor.wait_for(first, second, attempts=3, poll_interval=MOMENT_SECONDS)
        assert said == [1, 2]

    def test_on_a_job_that_returned_a_job(self, layer):
        """It goes on when the outer job has its result, without a poll."""
        outer = layer.queue.put(outer_job)
        waiting = layer.queue.put(Job(say, 'after'), depends_on=outer)
        composed = layer.queue.put(serial(say, say))
        waiting_too = layer.queue.put(Job(say, 'composed'), after=composed)
        transaction.commit()
        layer.reactor.wait_for(outer, waiting, composed, waiting_too, attempts=1)
        assert waiting.result == 'after' and waiting_too.result == 'composed'


def outer_job():
    return Job(say, 'inner')


class TestHold:
    def test_held_and_resumed(self, layer):
        """Held it does not run; resumed it starts at the commit."""
        job = layer.queue.put(say, delay=5)
        commit(layer)
        job.hold('let me look')
        transaction.commit()
        after(layer, 60)
        assert (job.status, job.hold_reason) == (status.HELD, 'let me look')
        assert len(layer.queue) == 0
        job.resume()
        transaction.commit()
        layer.reactor.wait_for(job, attempts=1)
        assert job.result == 'done' and job.hold_reason is None

    def test_a_running_job_cannot_be_held(self, layer):
        """The error says how it stands."""
        job = layer.queue.put(wait)
        transaction.commit()
        running(layer)
        with pytest.raises(BadStatusError, match='active'):
            job.hold()
        gate.set()
        layer.reactor.wait_for(job)

    def test_held_before_anybody_looked(self, layer):
        """In the transaction of the put."""
        job = layer.queue.put(say)
        job.hold()
        transaction.commit()
        after(layer, 10)
        assert job.status == status.HELD
        job.cancel()
        transaction.commit()
        layer.reactor.wait_for(job)
        assert job.outcome == 'cancelled' and said == []


class TestCancel:
    def test_before_it_runs(self, layer):
        """It completes with CancelledError, and its callbacks are told at the commit."""
        job = layer.queue.put(say, delay=60)
        told = job.addCallback(say)
        commit(layer)
        job.cancel()
        transaction.commit()
        layer.reactor.wait_for(job, told, attempts=1)
        assert job.outcome == 'cancelled' and job.result.check(CancelledError)
        assert len(said) == 1 and said[0].check(CancelledError)
        after(layer, 100)
        assert len(said) == 1 and len(layer.queue) == 0
        with pytest.raises(BadStatusError):
            job.cancel()

    def test_while_it_runs(self, layer):
        """Its result and its changes are not kept."""
        layer.root['log'] = 0
        job = layer.queue.put(change_and_wait)
        told = job.addCallback(say)
        transaction.commit()
        running(layer)
        job.cancel()
        transaction.commit()
        gate.set()
        layer.reactor.wait_for(job, told)
        assert job.outcome == 'cancelled'
        assert layer.root['log'] == 0
        assert said[-1].check(CancelledError)
        after(layer, 5)
        assert not layer.agent.held_count() and len(layer.agent) == 0

    def test_while_it_waits_for_the_job_it_returned(self, layer):
        """The outer job ends, the inner one goes on; each is kept once."""
        outer = layer.queue.put(outer_of_waiting)
        told = outer.addCallback(say)
        transaction.commit()
        layer.reactor.settle(5, until=lambda: refreshed(outer).result is not None)
        running(layer)
        inner = outer.result
        outer.cancel()
        transaction.commit()
        layer.reactor.settle(5, until=lambda: refreshed(told).status == status.COMPLETED)
        assert outer.outcome == 'cancelled'
        gate.set()
        layer.reactor.wait_for(outer, inner, told)
        assert inner.result == 'inner' and outer.outcome == 'cancelled'
        after(layer, 10)
        assert len(layer.agent) == 0 and not list(layer.agent.waiting)[1:]
        assert list(layer.agent.history).count(outer) == 1
        assert len(layer.agent.history.done) == 1


def refreshed(job):
    transaction.begin()
    return job


def change_and_wait():
    local.getJob()._p_jar.root()['log'] = 1
    wait()


def outer_of_waiting():
    return Job(wait, 'inner')


class TestRetryAgain:
    def test_a_finished_failure_runs_again(self, layer):
        """job.retry() starts it at the commit; its counts begin anew."""
        said.clear()
        job = layer.queue.put(fails_once)
        transaction.commit()
        layer.reactor.wait_for(job)
        assert job.outcome == 'failure'
        job.retry()
        transaction.commit()
        layer.reactor.wait_for(job, attempts=1)
        assert job.result == 'second' and job.attempts == 1
        with pytest.raises(BadStatusError, match='succeeded'):
            job.retry()
        after(layer, 10)
        assert list(layer.agent.history).count(job) == 1


def fails_once():
    if say('x') and len(said) == 1:
        raise ValueError('first')
    return 'second'


class TestPause:
    def test_paused_and_unpaused(self, layer):
        """Nothing is handed out; what runs ends; unpausing starts the rest at the commit."""
        running_job = layer.queue.put(wait)
        transaction.commit()
        running(layer)
        layer.queue.pause()
        job = layer.queue.put(say)
        transaction.commit()
        gate.set()
        layer.reactor.wait_for(running_job)
        after(layer, 60)
        assert job.status == status.PENDING
        layer.queue.unpause()
        transaction.commit()
        layer.reactor.wait_for(job, attempts=1)

    def test_until(self, layer):
        """It goes on by itself at that instant."""
        layer.queue.pause(60)
        job = layer.queue.put(say)
        transaction.commit()
        after(layer, 59)
        assert job.status == status.PENDING
        until = layer.queue.paused_until
        after(layer, 1)
        layer.reactor.wait_for(job, attempts=1)
        assert job.active_start == until

    def test_other_queues_go_on(self, layer):
        """A pause is the queue's own."""
        second = layer.queues['second'] = Queue()
        layer.queue.pause()
        transaction.commit()
        after(layer, 5)
        second.dispatchers[layer.dispatcher.UUID]['main'] = Agent(size=1)
        job = second.put(say)
        transaction.commit()
        after(layer, 5)
        layer.reactor.wait_for(job)


class TestClosed:
    def test_takes_nothing_new_and_finishes_the_rest(self, layer):
        """put raises, what waits runs."""
        job = layer.queue.put(say, delay=5)
        layer.queue.closed = True
        transaction.commit()
        with pytest.raises(QueueClosed):
            layer.queue.put(say)
        after(layer, 5)
        layer.reactor.wait_for(job)
        assert job.result == 'done'


class TestEvents:
    def test_claimed_and_added(self, layer, listen):
        """JobAdded in the putting transaction, JobClaimed with the assignment."""
        heard = listen(JobAdded, JobClaimed)
        job = layer.queue.put(say)
        assert [type(event) for event in heard] == [JobAdded]
        assert heard[0].object is job and heard[0].queue is layer.queue
        transaction.commit()
        layer.reactor.wait_for(job)
        assert [type(event) for event in heard] == [JobAdded, JobClaimed]
        assert heard[1].object.oid == job._p_oid and heard[1].object.agent == 'main'

    def test_a_subscriber_to_claims_that_raises(self, layer, listen, caplog):
        """It is logged; the jobs run."""

        def fail_to_hear(event):
            raise ValueError('bad ear')

        listen(JobClaimed, deed=fail_to_hear)
        jobs = [layer.queue.put(say) for _ in range(3)]
        transaction.commit()
        layer.reactor.wait_for(*jobs)
        assert 'bad ear' in caplog.text


class TestLooks:
    """What a process can be asked about itself."""

    def test_status(self, layer):
        """The keys of zc.async, and what they say over the life of a dispatcher."""
        info = layer.dispatcher.getStatusInfo()
        assert set(info) == {
            'status', 'poll interval', 'time since last poll', 'uptime', 'uuid'
        }  # fmt: skip
        assert info['status'] == 'RUNNING'
        assert info['uuid'] == layer.dispatcher.UUID
        assert info['poll interval'] == datetime.timedelta(seconds=5)
        after(layer, 100)
        assert layer.dispatcher.getStatusInfo()['uptime'] >= datetime.timedelta(seconds=100)
        layer.dispatcher.deactivate()
        assert layer.dispatcher.getStatusInfo()['status'] == 'STOPPED'

    def test_statistics_and_job_info(self, layer):
        """As the usage text prints them: while a job runs, and after."""
        failed = layer.queue.put(fail)
        done = layer.queue.put(Job(say, 42))
        active = layer.queue.put(wait)
        transaction.commit()
        layer.reactor.wait_for(failed, done)
        running(layer)
        found = layer.dispatcher.getStatistics()
        assert set(found) == {
            'started', 'successful', 'failed', 'unknown',
            'shortest successful', 'longest successful', 'shortest failed', 'longest failed',
            'shortest active', 'longest active', 'statistics start', 'statistics end',
        }  # fmt: skip
        assert (found['started'], found['successful'], found['failed']) == (3, 1, 1)
        assert found['longest active'] == (active.oid, 'unnamed')
        assert found['shortest failed'] == (failed.oid, 'unnamed')
        assert found['longest successful'] == (done.oid, 'unnamed')
        assert found['statistics start'] <= found['statistics end']
        ((oid, database),) = layer.dispatcher.getActiveJobIds()
        info = layer.dispatcher.getJobInfo(oid, database)
        assert set(info) == {
            'agent', 'call', 'completed', 'failed', 'poll id', 'queue', 'quota names',
            'reassigned', 'result', 'started', 'thread',
        }  # fmt: skip
        assert info['agent'] == 'main' and info['completed'] is None
        assert info['thread'] is not None and info['poll id'] is not None
        gate.set()
        layer.reactor.wait_for(active)
        assert layer.dispatcher.getActiveJobIds() == []
        info = layer.dispatcher.getJobInfo(done.oid)
        assert info['result'] == '42' and info['completed'] is not None and not info['failed']
        info = layer.dispatcher.getJobInfo(failed.oid)
        assert info['failed'] and 'on purpose' in info['result']

    def test_polls(self, layer):
        """A poll names the jobs it claimed."""
        job = layer.queue.put(say)
        transaction.commit()
        layer.reactor.wait_for(job)
        job_id = (job.oid, 'unnamed')
        info = layer.dispatcher.getJobInfo(*job_id)
        poll = layer.dispatcher.getPollInfo(at=info['poll id'])
        assert poll['']['main']['new jobs'] == [job_id]
        assert poll['']['main']['size'] == 3 and poll['']['main']['error'] is None
        assert next(layer.dispatcher.iterPolls(count=1)).key >= poll.key

    def test_active_is_seen_from_another_connection(self, layer):
        """While the call runs, without a commit of its own; so are its agent and queue."""
        job = layer.queue.put(wait)
        transaction.commit()
        running(layer)
        with layer.db.transaction() as connection:
            seen = connection.get(job._p_oid)
            assert seen.status == status.ACTIVE
            assert seen.agent.name == 'main' and len(seen.agent) == 1
            assert list(seen.agent) == [seen]
            assert len(seen.queue) == 0 and seen.result is None
            assert seen.queue.stats()['running'] == 1
        gate.set()
        layer.reactor.wait_for(job)
        assert len(layer.agent) == 0
        assert job.agent is layer.agent

    def test_ahead_is_assigned(self, layer):
        """Of short jobs more are claimed than there are threads: those are ASSIGNED."""
        resize(layer, 1)
        warm = [layer.queue.put(say) for _ in range(5)]
        transaction.commit()
        layer.reactor.wait_for(*warm)
        jobs = [layer.queue.put(wait) for _ in range(3)]
        transaction.commit()
        running(layer)
        assert [job.status for job in jobs] == [
            status.ACTIVE, status.ASSIGNED, status.ASSIGNED
        ]  # fmt: skip
        gate.set()
        layer.reactor.wait_for(*jobs)


class TestThreaded:
    """With activate(threaded=True) passes are made in threads of the reactor's pool."""

    @pytest.fixture
    def threaded(self, layer):
        other = Dispatcher(layer.db, layer.reactor, uuid=OTHER)
        other.activate(threaded=True)
        yield other
        testing.tear_down_dispatcher(other)

    def test_serves(self, layer, threaded):
        """As any other."""
        layer.reactor.settle()
        transaction.begin()
        layer.agent.size = 0
        layer.queue.dispatchers[OTHER]['main'] = Agent()
        jobs = [layer.queue.put(Job(say, i)) for i in range(10)]
        transaction.commit()
        layer.reactor.wait_for(*jobs)
        assert sorted(said) == list(range(10))

    def test_no_ring_is_lost(self, layer, threaded):
        """Whenever it rings while a pass is made, another pass follows."""
        begun, may_end = queue.SimpleQueue(), queue.SimpleQueue()
        make = threaded._guarded_pass

        def gated_pass():
            begun.put(threading.current_thread())
            may_end.get(timeout=5)
            return make()

        threaded._guarded_pass = gated_pass
        layer.reactor.time_passes()
        for _ in range(3):
            begun.get(timeout=5)
            threaded._ring()
            layer.reactor.time_passes()
            layer.reactor.insist(lambda: threaded._again, 5)
            may_end.put(True)
        begun.get(timeout=5)
        may_end.put(True)
        del threaded._guarded_pass


class TestLife:
    def test_registry(self, layer):
        """get, pop and clear find the dispatchers of this process."""
        found = layer.dispatcher
        assert dispatchers.get() is found and dispatchers.get(found.UUID) is found
        assert dispatchers.get(OTHER) is None and dispatchers.get(OTHER, 'x') == 'x'
        with pytest.raises(ValueError, match='already'):
            Dispatcher(layer.db, layer.reactor, uuid=found.UUID)
        with pytest.raises(ValueError, match='already'):
            found.activate()
        assert dispatchers.pop(found.UUID) is found
        with pytest.raises(KeyError):
            dispatchers.pop(found.UUID)
        Dispatcher(layer.db, layer.reactor, uuid=OTHER)
        cleanup.cleanUp()  # of zope.testing, for those whose tests use it
        assert dispatchers.get(OTHER) is None

    def test_stopped_and_started_again(self, layer, caplog):
        """The same object serves again: same record, same agents, nothing counted as trouble."""
        caplog.set_level(logging.INFO)
        after(layer, 5)
        connections = layer.db.getPoolSize()
        layer.dispatcher.deactivate()
        assert layer.db.getPoolSize() == connections - 2 - 3
        assert layer.dispatcher.activated is False
        assert layer.dispatcher._flight == {}
        with pytest.raises(ValueError, match='not activated'):
            layer.dispatcher.deactivate()
        job = layer.queue.put(say)
        transaction.commit()
        after(layer, 10)
        assert job.status == status.PENDING
        record = layer.queue.dispatchers[layer.dispatcher.UUID]
        assert record.activated is None and not record.dead
        caplog.clear()
        layer.dispatcher.activate()
        after(layer, 1)
        layer.reactor.wait_for(job)
        assert layer.db.getPoolSize() == connections
        assert record.activated is not None
        assert not [r for r in caplog.records if r.levelno >= logging.WARNING]

    def test_stopped_and_started_again_with_threads(self, layer):
        """All threads of the second life work."""
        for _ in range(2):
            jobs = [layer.queue.put(Job(wait, i)) for i in range(3)]
            transaction.commit()
            running(layer, 3)
            gate.set()
            layer.reactor.wait_for(*jobs)
            gate.clear()
            layer.dispatcher.deactivate()
            layer.dispatcher.activate()
            after(layer, 1)

    def test_a_job_that_outlives_the_grace(self, layer, caplog):
        """Handed back uncounted; the late worker leaves no trace; the job runs in the next life."""
        layer.root['log'] = 0
        job = layer.queue.put(change_and_wait)
        layer.queue.quotas.create('q')
        job.quota_names = ['q']
        transaction.commit()
        running(layer)
        pool = layer.dispatcher.queues['']['main']
        layer.dispatcher.grace = 0.01
        layer.dispatcher.deactivate()
        transaction.begin()
        assert job.status == status.PENDING
        assert (job.attempts, job.interruptions) == (0, 0)
        assert layer.agent.held_count() == 0 and list(layer.queue) == [job]
        gate.set()
        pool.join(5)
        transaction.begin()
        assert job.status == status.PENDING and layer.root['log'] == 0
        layer.dispatcher.activate()
        after(layer, 1)
        layer.reactor.wait_for(job)
        assert layer.root['log'] == 1
        assert (job.attempts, job.interruptions, job.outcome) == (1, 0, 'success')
        assert layer.dispatcher._flight == {}
        after(layer, 5)
        assert len(layer.queue.quotas['q']) == 0

    def test_the_late_worker_ends_after_the_next_life_began(self, layer):
        """The job runs twice at once then, and counts once; all threads are free afterwards."""
        layer.root['log'] = 0
        job = layer.queue.put(change_and_wait)
        transaction.commit()
        running(layer)
        old_pool = layer.dispatcher.queues['']['main']
        layer.dispatcher.grace = 0.01
        layer.dispatcher.deactivate()
        layer.dispatcher.grace = 30
        layer.dispatcher.activate()
        after(layer, 1)
        running(layer)
        gate.set()
        old_pool.join(5)
        layer.reactor.wait_for(job)
        assert job.outcome == 'success' and layer.root['log'] == 1
        assert job.attempts == 1
        assert layer.reactor.settle(5, until=lambda: not layer.dispatcher._flight)
        gate.clear()
        jobs = [layer.queue.put(Job(wait, i)) for i in range(3)]
        transaction.commit()
        running(layer, 3)
        gate.set()
        layer.reactor.wait_for(*jobs)

    def test_stopped_with_jobs_claimed_ahead(self, layer):
        """What no thread has begun goes back to its place, in order."""
        resize(layer, 1)
        warm = [layer.queue.put(say) for _ in range(5)]
        transaction.commit()
        layer.reactor.wait_for(*warm)
        said.clear()
        jobs = [layer.queue.put(Job(wait, i)) for i in range(30)]
        transaction.commit()
        running(layer)
        layer.dispatcher.grace = 0.01
        layer.dispatcher.deactivate()
        transaction.begin()
        assert list(layer.queue) == jobs
        assert {job.status for job in jobs} == {status.PENDING}
        gate.set()
        layer.dispatcher.activate()
        after(layer, 1)
        layer.reactor.wait_for(*jobs)
        assert [word for word in said if word] == list(range(1, 30))
        assert {(job.attempts, job.interruptions) for job in jobs} == {(1, 0)}

    def test_the_reactor_stops_it(self, layer):
        """Stopping the reactor drains the dispatcher."""
        job = layer.queue.put(say)
        transaction.commit()
        layer.reactor.wait_for(job)
        layer.reactor.stop()
        assert layer.dispatcher.activated is False
        transaction.begin()
        assert layer.queue.dispatchers[layer.dispatcher.UUID].activated is None
