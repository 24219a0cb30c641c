"""Bad input while it runs: each is a clear error or a recorded failure, and nobody else suffers.

What has vanished is made to vanish: classes and functions of a module that the
test takes away after the job was put.
"""

import logging
import sys
import threading
import types

import pytest
import transaction
import ZODB
from persistent import Persistent

from tests.runtime.support import gate, said
from zodbjobs import Agent, Dispatcher, Job, Queue, local, parallel, status
from zodbjobs.interfaces import KEY, DependencyError
from zodbjobs.model.call import Vanished
from zodbjobs.runtime import dispatcher as dispatchers

PASSING = 'tests_passing_module'


@pytest.fixture
def passing():
    """A module that can be made to vanish, with all that the database remembers of it."""
    module = types.ModuleType(PASSING)
    exec(SOURCE, module.__dict__)
    sys.modules[PASSING] = module
    yield module
    sys.modules.pop(PASSING, None)


SOURCE = """
from persistent import Persistent
from zodbjobs import Job
from zodbjobs.model.retry import NeverRetry

def function():
    return 'was here'

def filter(job):
    return True

def chooser(agent):
    return agent.queue.claim()

class Thing(Persistent):
    def method(self):
        return 'was here'
    __call__ = method

class OddJob(Job):
    pass

class Policy(NeverRetry):
    pass

class Plain:
    pass
"""


def vanish(layer, *jobs):
    """Commit, and begin anew without the module, as a process started after a deployment does.

    The dispatcher must have stopped, or died.  Returns the jobs, as they are found now.
    """
    transaction.commit()
    oids = [job._p_oid for job in jobs]
    sys.modules.pop(PASSING, None)
    uuid = layer.dispatcher.UUID
    layer.connection.close()
    dispatchers.clear()
    layer.db = ZODB.DB(layer.db.storage)  # no connection of it has met the module
    layer.connection = layer.db.open()
    layer.root = layer.connection.root()
    layer.queues = layer.root[KEY]
    layer.queue = layer.queues['']
    layer.agent = layer.queue.dispatchers[uuid]['main']
    layer.dispatcher = Dispatcher(layer.db, layer.reactor, uuid=uuid)
    layer.dispatcher.activate()
    layer.reactor.time_flies(1)
    transaction.begin()
    return [layer.connection.get(oid) for oid in oids]


def say(word='done'):
    said.append(word)
    return word


def is_healthy(layer):
    """Others go on: a new job runs, and nothing is left of the bad ones."""
    transaction.begin()
    job = layer.queue.put(Job(say, 'healthy'))
    transaction.commit()
    layer.reactor.wait_for(job)
    layer.reactor.time_flies(10)
    transaction.begin()
    return (
        job.result == 'healthy'
        and layer.dispatcher._flight == {}
        and layer.agent.held_count() == 0
        and len(layer.agent) == 0
        and layer.dispatcher.getStatusInfo()['status'] == 'RUNNING'
    )


@pytest.fixture
def stopped(layer):
    """The dispatcher is not there: jobs are put, and the module goes before it comes."""
    layer.dispatcher.deactivate()
    transaction.begin()
    return layer


class TestVanished:
    @pytest.mark.parametrize(
        'kind', ['function', 'method', 'object', 'argument', 'function argument', 'plain argument']
    )
    def test_what_a_job_needs(self, stopped, passing, kind):
        """It fails by name; the jobs beside it run."""
        layer = stopped
        before = layer.queue.put(Job(say, 'before'))
        thing = layer.root['thing'] = passing.Thing()
        transaction.commit()
        call = {
            'function': passing.function,
            'method': thing.method,
            'object': thing,
            'argument': Job(say, word=thing),
            'function argument': Job(say, passing.function),
            'plain argument': Job(say, passing.Plain()),
        }[kind]
        job = layer.queue.put(call)
        after = layer.queue.put(Job(say, 'after'))
        depends = layer.queue.put(say, depends_on=job)
        job, before, after, depends = vanish(layer, job, before, after, depends)
        layer.reactor.wait_for(job, before, after, depends)
        assert job.outcome == 'failure' and job.attempts == 1
        assert job.result.check(Vanished) and PASSING in job.result.getErrorMessage()
        assert depends.result.check(DependencyError)
        assert sorted(said) == ['after', 'before']
        assert is_healthy(layer)

    def test_the_class_of_a_job(self, stopped, passing, caplog):
        """Nobody can run it or tell what became of it; all others go on, also in its quota."""
        layer = stopped
        layer.queue.quotas.create('one')
        odd = layer.queue.put(passing.OddJob(say, 'odd'), quota_names=['one'])
        oid = odd.oid
        jobs = [layer.queue.put(Job(say, i), quota_names=['one']) for i in range(3)]
        jobs = vanish(layer, *jobs)
        layer.reactor.wait_for(*jobs)
        assert said == [0, 1, 2]
        assert 'class is gone' in caplog.text and str(oid) in caplog.text
        assert is_healthy(layer)

    @pytest.mark.parametrize('kind', ['class', 'argument', 'nested argument'])
    def test_what_ran_as_its_dispatcher_died(self, layer, passing, kind):
        """The recovery of the others is not hindered by it."""
        odd = {
            'class': passing.OddJob(wait),
            'argument': Job(wait, passing.function),
            'nested argument': Job(wait, [passing.function]),
        }[kind]
        layer.queue.put(odd)
        jobs = [layer.queue.put(wait) for _ in range(2)]
        transaction.commit()
        assert layer.reactor.settle(5, until=lambda: len(said) == 3)
        dead = layer.dispatcher
        dead.activated = False
        dead._listener.close()
        dead._witness.release()
        layer.reactor.unwatch(dead)
        pool = dead.queues['']['main']
        odd, *jobs = vanish(layer, odd, *jobs)
        assert layer.reactor.settle(5, until=lambda: len(said) >= 5)
        gate.set()
        pool.stop()
        layer.reactor.wait_for(*jobs)
        assert [job.result for job in jobs] == ['waited'] * 2
        assert is_healthy(layer)
        pool.join(5)

    def test_the_class_of_a_callback(self, stopped, passing, caplog):
        """The job and its other callbacks end."""
        layer = stopped
        job = layer.queue.put(say)
        job.addCallback(passing.OddJob(say))
        pair = job.addCallbacks(success=passing.OddJob(say))
        other = job.addCallback(Job(told))
        job, pair, other = vanish(layer, job, pair, other)
        layer.reactor.wait_for(job, other)
        assert job.result == 'done' and said == ['done', 'told']
        assert pair.result.check(Vanished)
        assert is_healthy(layer)

    def test_the_class_of_a_dependency(self, stopped, passing):
        """It will never succeed: who depends on it fails."""
        layer = stopped
        odd = layer.queue.put(passing.OddJob(say), delay=3600)
        depends = layer.queue.put(say, depends_on=odd)
        after = layer.queue.put(Job(say, 'after'), after=odd)
        depends, after = vanish(layer, depends, after)
        layer.reactor.wait_for(depends, after)
        assert depends.result.check(DependencyError) and after.result == 'after'
        assert is_healthy(layer)

    @pytest.mark.parametrize('kind', ['dependent', 'outer', 'part'])
    def test_the_class_of_who_waits(self, stopped, passing, kind):
        """The job that it waits for ends."""
        layer = stopped
        job = layer.queue.put(say)
        if kind == 'dependent':
            layer.queue.put(passing.OddJob(say), after=job)
        elif kind == 'outer':
            job.add_outer(layer.queue.put(passing.OddJob(say)))
        else:
            layer.queue.put(parallel(passing.OddJob(say), job))
        (job,) = vanish(layer, job)
        layer.reactor.wait_for(job)
        assert job.result == 'done'
        transaction.begin()
        other = layer.queue.put(say)
        transaction.commit()
        layer.reactor.wait_for(other)
        assert layer.dispatcher.getStatusInfo()['status'] == 'RUNNING'

    def test_the_class_of_a_policy(self, stopped, passing, caplog):
        """What it would have said nobody knows, so the job is not run."""
        layer = stopped
        job = layer.queue.put(say, retry_policy_factory=passing.Policy)
        (job,) = vanish(layer, job)
        layer.reactor.wait_for(job)
        assert job.result.check(Vanished) and said == []
        assert is_healthy(layer)

    @pytest.mark.parametrize('kind', ['filter', 'chooser'])
    def test_the_function_of_an_agent(self, stopped, passing, caplog, kind):
        """It takes nothing, and says so; other agents work."""
        layer = stopped
        setattr(layer.agent, kind, getattr(passing, kind))
        record = layer.queue.dispatchers[layer.dispatcher.UUID]
        record['other'] = Agent(channels=['c'])
        layer.agent.channels = [None] if kind == 'filter' else None
        job = layer.queue.put(say)
        other = layer.queue.put(Job(say, 'other'), channel='c')
        job, other = vanish(layer, job, other)
        layer.reactor.wait_for(other)
        layer.reactor.time_flies(10)
        assert job.status == status.PENDING and said == ['other']
        assert PASSING in caplog.text
        transaction.begin()
        setattr(layer.agent, kind, None)
        transaction.commit()
        layer.reactor.time_flies(5)
        layer.reactor.wait_for(job)
        assert is_healthy(layer)

    def test_a_result(self, layer, passing):
        """Other jobs and their lists can be read."""
        job = layer.queue.put(make_plain)
        transaction.commit()
        layer.reactor.wait_for(job)
        layer.dispatcher.deactivate()
        (job,) = vanish(layer, job)
        assert list(layer.agent.history) == [job] and job.outcome == 'success'
        waiting = layer.queue.put(Job(say, 'after'), after=job)
        transaction.commit()
        layer.reactor.wait_for(waiting)
        assert is_healthy(layer)


def wait(*args):
    said.append('wait')
    assert gate.wait(10)
    return 'waited'


def fail():
    raise RuntimeError('on purpose')


def told(result):
    return say('told')


def make_plain():
    return sys.modules[PASSING].Plain()


class Unfriendly(Persistent):
    """Its repr, hash and comparison raise."""

    def __repr__(self):
        raise RuntimeError('no repr')

    def __eq__(self, other):
        raise RuntimeError('no comparison')

    def __hash__(self):
        raise RuntimeError('no hash')

    def __bool__(self):
        raise RuntimeError('no truth')


class UnfriendlyError(Exception):
    def __str__(self):
        raise RuntimeError('no text')

    __repr__ = __str__


def unfriendly_result():
    return Unfriendly()


def unfriendly_error():
    raise UnfriendlyError


def take(thing):
    return 'taken'


def deep(depth=0):
    return deep(depth + 1)


def huge():
    return 'x' * 100_000


def rename_thread():
    threading.current_thread().name = 'mine'
    return 'done'


def kill_tracing():
    sys.settrace(None)
    return 'done'


class TestUnfriendly:
    """Values, errors and functions that do not behave."""

    def test_a_result_and_an_argument(self, layer):
        """That cannot be shown, compared or asked."""
        argument = layer.root['thing'] = Unfriendly()
        transaction.commit()
        jobs = [layer.queue.put(unfriendly_result), layer.queue.put(Job(take, argument))]
        outer = layer.queue.put(parallel(Job(take, argument)))
        transaction.commit()
        layer.reactor.wait_for(*jobs, outer)
        assert [job.outcome for job in (*jobs, outer)] == ['success'] * 3
        info = layer.dispatcher.getJobInfo(jobs[0].oid)
        assert 'Unfriendly' in info['result'] and repr(jobs[1])
        assert is_healthy(layer)

    def test_an_error(self, layer):
        """That has no text."""
        job = layer.queue.put(unfriendly_error)
        transaction.commit()
        layer.reactor.wait_for(job)
        assert job.result.check(UnfriendlyError) and job.result.getTraceback()
        assert is_healthy(layer)

    def test_too_deep_and_too_big(self, layer):
        """A RecursionError is a failure; what statistics keep of a result is bounded."""
        jobs = [layer.queue.put(deep), layer.queue.put(huge)]
        transaction.commit()
        layer.reactor.wait_for(*jobs)
        assert jobs[0].result.check(RecursionError)
        assert len(jobs[1].result) == 100_000
        assert len(layer.dispatcher.getJobInfo(jobs[1].oid)['result']) <= 10_000
        assert is_healthy(layer)

    @pytest.mark.parametrize('call', [rename_thread, kill_tracing])
    def test_its_thread_is_not_sacred(self, layer, call):
        """What it does to its thread does not disturb the pool."""
        job = layer.queue.put(call)
        transaction.commit()
        layer.reactor.wait_for(job)
        assert job.result == 'done' and is_healthy(layer)

    def test_nothing_is_left_in_the_thread(self, layer):
        """After a job, a worker's thread runs no job."""
        layer.agent.size = 1
        transaction.commit()
        layer.reactor.time_flies(5)
        jobs = [layer.queue.put(fail), layer.queue.put(leave_dirt), layer.queue.put(find_dirt)]
        transaction.commit()
        layer.reactor.wait_for(*jobs)
        assert jobs[2].result is None

    def test_a_queue_that_goes_while_its_job_runs(self, layer):
        """The job ends; the others go on."""
        second = layer.queues['second'] = Queue()
        transaction.commit()
        layer.reactor.time_flies(5)
        second.dispatchers[layer.dispatcher.UUID]['main'] = Agent(size=1)
        job = second.put(wait)
        waiting = second.put(say)
        transaction.commit()
        layer.reactor.time_flies(5)
        assert layer.reactor.settle(5, until=lambda: said)
        del layer.queues['second']
        transaction.commit()
        layer.reactor.time_flies(10)
        gate.set()
        layer.reactor.wait_for(job)
        assert job.result == 'waited' and waiting.status == status.PENDING
        assert is_healthy(layer)

    def test_many_bad_ones_among_good_ones(self, layer, caplog):
        """Every good one succeeds, every bad one fails."""
        caplog.set_level(logging.CRITICAL, 'zodbjobs')
        bad = [fail, unfriendly_error, deep, exit_worker]
        jobs = [layer.queue.put(bad[i % 4] if i % 2 else say) for i in range(40)]
        transaction.commit()
        layer.reactor.wait_for(*jobs, attempts=20)
        outcomes = [job.outcome for job in jobs]
        assert outcomes == ['success', 'failure'] * 20
        assert is_healthy(layer)


def leave_dirt():
    local.getJob()._p_jar.root()['dirt'] = 1
    raise RuntimeError('dirty')


def find_dirt():
    return local.getJob()._p_jar.root().get('dirt')


def exit_worker():
    raise SystemExit(1)
