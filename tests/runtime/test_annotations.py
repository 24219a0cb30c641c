"""What running jobs tell the world, and what they may ask it, while they run."""

import threading

import pytest
import transaction

from tests.runtime.support import gate, said
from zodbjobs import Agent, Dispatcher, Job, clock, local, status, testing
from zodbjobs.runtime.annotations import ATTEMPTS, PROGRESS_SECONDS


def started(layer, count=1):
    """Wait until so many jobs said that they have begun."""
    assert layer.reactor.settle(5, until=lambda: len(said) >= count)
    transaction.begin()


def tell_and_wait(name='hello', value='from within'):
    local.setLiveAnnotation(name, value)
    said.append('told')
    assert gate.wait(10)
    return local.getJob().annotations.get(name, 'not in my transaction')


def ask(name, timeout=0, poll=1, job=None):
    said.append('asked')
    start = clock.monotonic()
    value = local.getLiveAnnotation(name, 'default', timeout, poll, job)
    return value, clock.monotonic() - start


class TestLive:
    def test_told_while_it_runs(self, layer):
        """Others see it at once; the job's own transaction does not."""
        job = layer.queue.put(tell_and_wait)
        transaction.commit()
        started(layer)
        assert testing.wait_for_annotation(job, 'hello') == 'from within'
        assert job.status == status.ACTIVE
        gate.set()
        layer.reactor.wait_for(job)
        assert job.result == 'not in my transaction'
        assert job.annotations['hello'] == 'from within'
        assert job.conflicts == 0

    def test_asked_while_it_runs(self, layer):
        """As the usage text stops a job: what is committed elsewhere is seen."""
        job = layer.queue.put(Job(ask, 'stop', timeout=60))
        transaction.commit()
        started(layer)
        job.annotations['stop'] = True
        transaction.commit()
        layer.reactor.wait_for(job, attempts=5)
        assert job.result[0] is True and job.result[1] < 60

    def test_nothing_is_there(self, layer):
        """The default at once, or when the time is over."""
        at_once = layer.queue.put(Job(ask, 'nothing'))
        later = layer.queue.put(Job(ask, 'nothing', timeout=30, poll=7))
        transaction.commit()
        layer.reactor.wait_for(at_once, later, attempts=20)
        assert at_once.result == ('default', 0)
        assert later.result == ('default', 30)

    @pytest.mark.parametrize('two', [False, True], ids=['one dispatcher', 'two'])
    def test_one_job_asks_another(self, layer, two):
        """Between jobs of one dispatcher, and of two."""
        other = None
        if two:
            other = Dispatcher(layer.db, layer.reactor, uuid='00000000-0000-0000-0000-0000000000aa')
            other.activate()
            layer.reactor.time_passes()
            transaction.begin()
            layer.agent.channels = ['a']
            layer.queue.dispatchers[other.UUID]['main'] = Agent(channels=['b'])
            transaction.commit()
            layer.reactor.time_flies(5)
        teller = layer.queue.put(Job(wait_and_tell), channel='a')
        asker = layer.queue.put(Job(ask, 'word', timeout=60, job=teller), channel='b')
        transaction.commit()
        layer.reactor.time_flies(5)
        started(layer, 2)
        gate.set()
        layer.reactor.wait_for(teller, asker, attempts=10)
        assert asker.result[0] == 'the word'
        if other is not None:
            testing.tear_down_dispatcher(other)

    def test_on_another_job(self, layer):
        """A job may annotate another one, also one that waits or runs."""
        running = layer.queue.put(tell_and_wait)
        waiting = layer.queue.put(say, delay=3600)
        transaction.commit()
        started(layer)
        teller = layer.queue.put(Job(annotate, [running, waiting]))
        transaction.commit()
        layer.reactor.wait_for(teller)
        for job in (running, waiting):
            assert testing.wait_for_annotation(job, 'from outside') == 1
        gate.set()
        layer.reactor.wait_for(running)
        assert running.outcome == 'success' and running.conflicts == 0

    def test_a_job_that_fails(self, layer):
        """What it told stays, though its own changes do not."""
        job = layer.queue.put(tell_and_fail)
        transaction.commit()
        layer.reactor.wait_for(job)
        assert job.outcome == 'failure' and dict(job.annotations) == {'live': 1}

    def test_in_a_callback(self, layer):
        """On the callback."""
        job = layer.queue.put(say)
        callback = job.addCallback(Job(tell_in_callback))
        transaction.commit()
        layer.reactor.wait_for(job, callback)
        assert testing.wait_for_annotation(callback, 'told') == 'done'

    def test_many_writers(self, layer):
        """They are written in order, each of them, whatever conflicts."""
        jobs = [layer.queue.put(Job(tell_many, n)) for n in range(3)]
        common = layer.queue.put(say, delay=3600)
        layer.root['common'] = common
        transaction.commit()
        layer.reactor.wait_for(*jobs)
        layer.reactor.settle()
        transaction.begin()
        for n, job in enumerate(jobs):
            assert job.annotations['last'] == 9
            assert common.annotations[f'last {n}'] == 9

    def test_a_value_that_cannot_be_stored(self, layer, caplog):
        """It is logged; the job and later annotations are not concerned."""
        job = layer.queue.put(Job(tell_badly))
        transaction.commit()
        layer.reactor.wait_for(job)
        assert testing.wait_for_annotation(job, 'good') == 1
        assert 'bad' not in job.annotations and "'bad' could not be written" in caplog.text

    def test_a_job_that_was_never_put(self, layer):
        """Has no live annotations."""
        job = layer.queue.put(annotate_new)
        transaction.commit()
        layer.reactor.wait_for(job)
        assert job.result.check(ValueError) and 'not stored' in job.result.getErrorMessage()

    def test_a_stop_writes_what_is_left(self, layer):
        """What was told before the stop is there after it."""
        job = layer.queue.put(Job(tell_many, 0, None))
        transaction.commit()
        layer.reactor.wait_for(job)
        layer.dispatcher.deactivate()
        transaction.begin()
        assert job.annotations['last'] == 9

    def test_readers_are_woken_by_a_stop(self, layer):
        """A job that waits for an annotation does not hold up the drain beyond its grace."""
        layer.queue.put(Job(ask, 'never', timeout=3600))
        transaction.commit()
        started(layer)
        layer.dispatcher.grace = 0.01
        layer.dispatcher.deactivate()
        assert layer.dispatcher.activated is False

    def test_a_write_is_tried_often_enough(self):
        """Against one that others write at the same time."""
        assert ATTEMPTS >= 5


def say():
    return 'done'


def wait_and_tell():
    said.append('waits')
    assert gate.wait(10)
    local.setLiveAnnotation('word', 'the word')
    return 'done'


def annotate(jobs):
    for job in jobs:
        local.setLiveAnnotation('from outside', 1, job)


def tell_and_fail():
    local.setLiveAnnotation('live', 1)
    local.getJob().annotations['own'] = 1
    raise ValueError('on purpose')


def tell_in_callback(result):
    local.setLiveAnnotation('told', result)


def tell_many(number, common='common'):
    for i in range(10):
        local.setLiveAnnotation('last', i)
        if common:
            other = local.getJob()._p_jar.root()[common]
            local.setLiveAnnotation(f'last {number}', i, other)


def tell_badly():
    local.setLiveAnnotation('bad', threading.Lock())
    local.setLiveAnnotation('good', 1)


def annotate_new():
    local.setLiveAnnotation('a', 1, Job(say))


def make_progress(steps, wait=True):
    for i in range(1, steps + 1):
        local.progress(i, steps, f'step {i}')
    said.append('done')
    if wait:
        assert gate.wait(10)


class TestProgress:
    def test_seen_while_it_runs(self, layer):
        """The first at once; the newest after a moment, however many there were."""
        job = layer.queue.put(Job(make_progress, 500))
        transaction.commit()
        started(layer)
        first = testing.wait_for_annotation(job, 'zodbjobs.progress')
        assert first['total'] == 500 and first['done'] >= 1
        layer.reactor.time_flies(PROGRESS_SECONDS)
        layer.reactor.settle(0.1)
        transaction.begin()
        assert job.progress == {'done': 500, 'total': 500, 'message': 'step 500'}
        gate.set()
        layer.reactor.wait_for(job)

    def test_written_seldom(self, layer):
        """A loop that reports each step costs the database next to nothing."""
        job = layer.queue.put(Job(make_progress, 500, wait=False))
        transaction.commit()
        size = layer.db.getSize()
        layer.reactor.wait_for(job)
        layer.reactor.time_flies(1)
        layer.reactor.settle()
        assert layer.db.getSize() - size < 10_000

    def test_the_last_is_kept_when_the_job_has_ended(self, layer):
        """Nothing of it is lost, neither at the end nor at a stop."""
        job = layer.queue.put(Job(make_progress, 3, wait=False))
        transaction.commit()
        layer.reactor.wait_for(job)
        layer.dispatcher.deactivate()
        transaction.begin()
        assert job.progress == {'done': 3, 'total': 3, 'message': 'step 3'}

    def test_none_before(self, layer):
        """A job that said nothing has none."""
        job = layer.queue.put(say)
        transaction.commit()
        assert job.progress is None
        layer.reactor.wait_for(job)
        assert job.progress is None and len(job.annotations) == 0
