"""A dispatcher dies without a word: its jobs are recovered, once, and it leaves no trace later."""

import asyncio
import collections
import threading
import uuid

import pytest
import transaction
import zope.event

from tests.faults.conftest import ERRORS, Fault
from zodbjobs import Agent, Dispatcher, Job, NeverRetry, local, serial, status, testing
from zodbjobs.interfaces import (
    AbortedError,
    DispatcherActivated,
    DispatcherDeactivated,
    JobInterrupted,
)
from zodbjobs.runtime import dispatcher as dispatchers

SAME = None
OTHER = uuid.UUID('00000000-0000-0000-0000-0000000000aa')

said = []
gates = collections.defaultdict(threading.Event)  # by name; whoever comes first makes one
stopped = set()  # names of those that have waited


@pytest.fixture(autouse=True)
def closed_gates():
    said.clear()
    gates.clear()
    stopped.clear()
    yield
    for gate in gates.values():
        gate.set()


@pytest.fixture(params=[SAME, OTHER], ids=['same name', 'another name'])
def heir(request, layer):
    """A function: the dispatcher dies now; returns the one that comes after it."""
    made = []

    def die():
        die_without_a_word(layer)
        heir = Dispatcher(layer.db, layer.reactor, uuid=request.param or layer.dispatcher.UUID)
        made.append(heir)
        heir.activate()
        layer.reactor.time_passes()
        transaction.begin()
        agents = layer.queue.dispatchers[heir.UUID]
        if 'main' not in agents:
            agents['main'] = Agent(size=3)
        transaction.commit()
        layer.reactor.time_flies(5)
        transaction.begin()
        return heir

    yield die
    for gate in gates.values():
        gate.set()
    for heir in made:
        testing.tear_down_dispatcher(heir)


def die_without_a_word(layer):
    """As after kill -9: it looks at nothing any more, and the system takes its locks away."""
    dead = layer.dispatcher
    dead.activated = False
    dead._listener.close()
    dead._witness.release()
    layer.reactor.unwatch(dead)
    dispatchers.pop(dead.UUID)


def root():
    return local.getJob()._p_jar.root()


def work(name):
    said.append(name)
    root()['count'] += 1
    return name


def stop_at(name):
    """Wait in the middle of the work, the first time only."""
    said.append(name)
    root()['count'] += 1
    if name not in stopped:
        stopped.add(name)
        assert gates[name].wait(20)
    return name


def tell(name, result):
    return work(name)


def stop_telling(name, result):
    return stop_at(name)


def return_stopping(name):
    return Job(stop_at, name)


def put(layer, *jobs, **wishes):
    """Put them, and wait until a body is in its middle."""
    found = [layer.queue.put(job, **wishes) for job in jobs]
    transaction.commit()
    assert layer.reactor.settle(5, until=lambda: gates)
    transaction.begin()
    return found


def check(layer, heir, *jobs):
    """They are done by the heir, nothing is left over, and the zombie changes nothing."""
    layer.reactor.wait_for(*jobs)
    transaction.begin()
    before = layer.root['count'], [(job.status, job.result, job._p_serial) for job in jobs]
    pool = layer.dispatcher.queues['']['main']
    pool.stop()
    for gate in gates.values():
        gate.set()
    pool.join(5)
    assert not any(thread.is_alive() for thread in pool.threads)
    layer.reactor.time_flies(10)
    transaction.begin()
    assert (layer.root['count'], [(j.status, j.result, j._p_serial) for j in jobs]) == before
    assert heir._flight == {} and len(layer.queue) == 0
    for record in layer.queue.dispatchers.values():
        for agent in record.values():
            assert agent.held_count() == 0 and len(agent) == 0
    for quota in layer.queue.quotas.values():
        quota.clean()
        assert len(quota) == 0
    transaction.abort()


def test_in_the_middle_of_the_work(layer, heir, caplog):
    """It counts as one interruption, runs again, and its effects happen once."""
    layer.queue.quotas.create('one')
    (job,) = put(layer, Job(stop_at, 'work'), quota_names=['one'])
    caplog.clear()
    found = heir()
    check(layer, found, job)
    assert (job.result, job.interruptions) == ('work', 1)
    assert job.attempts == 2  # both had begun
    assert layer.root['count'] == 1 and said == ['work', 'work']
    assert 'went to another worker' in caplog.text  # said by the zombie
    if found.UUID == OTHER:
        assert layer.queue.dispatchers[layer.dispatcher.UUID].dead


def test_what_must_not_be_repeated(layer, heir):
    """It is parked as a failure that says so."""
    (job,) = put(layer, Job(stop_at, 'work'), retry_policy_factory=NeverRetry)
    told = job.addCallbacks(failure=Job(tell, 'told'))
    transaction.commit()
    check(layer, heir(), job, told)
    assert job.result.check(AbortedError) and 'not known' in job.result.getErrorMessage()
    assert said == ['work', 'told'] and layer.root['count'] == 1


def test_claimed_and_not_begun(layer, heir):
    """They run once, at their old places."""
    layer.agent.size = 1
    transaction.commit()
    layer.reactor.time_flies(5)
    warm = [layer.queue.put(Job(work, 'warm')) for _ in range(5)]
    transaction.commit()
    layer.reactor.wait_for(*warm)
    said.clear()
    jobs = put(layer, Job(stop_at, 'first'), *(Job(work, i) for i in range(5)))
    assert {job.status for job in jobs[1:]} == {status.ASSIGNED}
    check(layer, heir(), *jobs)
    assert set(said) == {'first', 0, 1, 2, 3, 4}  # a conflict may run a body once more
    assert layer.root['count'] == 11
    assert [job.interruptions for job in jobs] == [1, 0, 0, 0, 0, 0]
    assert {job.attempts for job in jobs[1:]} == {1}


def test_in_the_middle_of_telling(layer, heir):
    """What was told is not told again; the rest is; the job itself does not run again."""
    job = Job(work, 'work')
    callbacks = [
        job.addCallback(Job(tell, 'first')),
        job.addCallback(Job(stop_telling, 'second')),
        job.addCallback(Job(tell, 'third')),
    ]
    below = callbacks[1].addCallback(Job(tell, 'below'))
    put(layer, job)
    assert job.status == status.CALLBACKS
    check(layer, heir(), job, *callbacks, below)
    assert said == ['work', 'first', 'second', 'second', 'below', 'third']
    assert layer.root['count'] == 5
    assert job.interruptions == 1 and callbacks[1].interruptions == 1
    assert job.attempts == 1


def test_while_an_outer_job_waits(layer, heir):
    """The inner one runs again, and the outer one gets its result; it is not interrupted."""
    (job,) = put(layer, Job(return_stopping, 'inner'))
    inner = job.result
    check(layer, heir(), job, inner)
    assert job.result == 'inner' and layer.root['count'] == 1
    assert (job.interruptions, inner.interruptions) == (0, 1)


def test_in_a_part_and_again_in_the_postprocess(layer, heir):
    """Parts that are done are not done again."""
    whole = serial(Job(work, 1), Job(stop_at, 2), Job(work, 3), postprocess=stop_at_end)
    put(layer, whole)
    found = heir()
    check(layer, found, whole)
    assert whole.result == [1, 2, 3, 'end']
    assert said.count(1) == said.count(3) == 1 and said.count(2) == 2
    assert layer.root['count'] == 4


def stop_at_end(*jobs):
    return [*(job.result for job in jobs), work('end')]


def test_ended_and_not_written_down(layer, heir):
    """Its end was committed and nobody looked since: who waited for it goes on."""
    layer.queue.quotas.create('one')
    job = layer.queue.put(Job(stop_at, 'work'), id='name', quota_names=['one'])
    waiting = layer.queue.put(Job(work, 'after'), after=[job], quota_names=['one'])
    transaction.commit()
    assert layer.reactor.settle(5, until=lambda: gates)
    die_without_a_word(layer)
    gates['work'].set()
    while job.status != status.COMPLETED:
        transaction.begin()
    layer.dispatcher.activated = True  # for `heir`, which lets it die
    dispatchers._dispatchers[layer.dispatcher.UUID] = layer.dispatcher
    found = heir()
    again = layer.queue.put(Job(work, 'name again'), id='name')
    transaction.commit()
    check(layer, found, job, waiting, again)
    assert (job.attempts, job.interruptions, job.outcome) == (1, 0, 'success')
    assert said == ['work', 'after', 'name again'] or said == ['work', 'name again', 'after']


def test_waiting_for_a_deferred(layer, heir):
    """What was to fire is lost with the process: the job is interrupted and runs again."""
    job = layer.queue.put(wait_for_gate)
    transaction.commit()
    assert layer.reactor.settle(5, until=lambda: layer.dispatcher._threadless)
    found = heir()
    gates['open'] = threading.Event()
    check(layer, found, job)
    assert job.result == 'open'
    assert (job.attempts, job.interruptions) == (2, 1)


async def wait_for_gate():
    while 'open' not in gates:
        await asyncio.sleep(0.001)
    return 'open'


def test_said_by_events_and_records(layer, heir):
    """The dead one is deactivated, its heir activated."""
    heard = []
    zope.event.subscribers.append(heard.append)
    try:
        found = heir()
    finally:
        zope.event.subscribers.remove(heard.append)
    said = [
        (type(event), event.object.UUID)
        for event in heard
        if isinstance(event, (DispatcherActivated, DispatcherDeactivated))
    ]
    assert set(said) == {
        (DispatcherDeactivated, layer.dispatcher.UUID), (DispatcherActivated, found.UUID)
    }  # fmt: skip


@pytest.mark.parametrize('heir', [OTHER], indirect=True, ids=['another name'])
def test_a_death_is_logged_when_it_is_written_down(layer, heir, plant_in_passes, caplog):
    """Once, however often its commit conflicts: until then nothing has happened."""
    found = heir()
    layer.queue.dispatchers[layer.dispatcher.UUID].activate()
    transaction.commit()
    caplog.clear()
    fault = plant_in_passes(Fault(ERRORS['conflict'], 1, 2), found)
    layer.reactor.time_flies(5)
    transaction.begin()
    assert fault.struck and layer.queue.dispatchers[layer.dispatcher.UUID].dead
    assert caplog.text.count(f'dispatcher {layer.dispatcher.UUID} is dead') == 1


def test_interruptions_are_announced(layer, heir):
    """Each job once; a subscriber that raises does not keep the others from being recovered."""
    heard = []

    def hear(event):
        if isinstance(event, JobInterrupted):
            heard.append(event.object.oid)
            raise LookupError('bad ear')

    jobs = put(layer, Job(stop_at, 'work'), Job(wait_with, 'work'))
    assert layer.reactor.settle(5, until=lambda: len(said) == 2)
    zope.event.subscribers.append(hear)
    try:
        found = heir()
    finally:
        zope.event.subscribers.remove(hear)
    gates['work'].set()
    check(layer, found, *jobs)
    assert set(heard) == {job.oid for job in jobs}
    assert {job.interruptions for job in jobs} == {1}


def wait_with(name):
    said.append(name)
    assert gates[name].wait(20)


def test_wrongly_held_for_dead(layer, caplog):
    """A living one whose record was closed goes on serving, says so, and loses what it ran."""
    (job,) = put(layer, Job(stop_at, 'work'))
    layer.queue.dispatchers[layer.dispatcher.UUID].died()
    transaction.commit()
    layer.reactor.time_flies(5)
    transaction.begin()
    assert layer.queue.dispatchers[layer.dispatcher.UUID].activated is not None
    assert 'held for dead' in caplog.text
    gates['work'].set()
    layer.reactor.wait_for(job)
    assert job.result == 'work' and layer.root['count'] == 1
    assert (job.interruptions, job.attempts) == (1, 2)
    layer.reactor.time_flies(5)
    transaction.begin()
    assert layer.dispatcher._flight == {} and layer.agent.held_count() == 0
