"""The n-th commit fails: every job ends once all the same, with its effects, and no slot leaks."""

import pytest
import transaction
from BTrees.Length import Length
from twisted.internet.defer import succeed

from tests.faults.conftest import ERRORS, Fault
from zodbjobs import Job, local, parallel, serial, status

said = []


def root():
    return local.getJob()._p_jar.root()


def count_up(value=1):
    said.append('body')
    root()['effects'].change(value)
    return value


def tell(result):
    said.append('told')
    root()['told'].change(1)
    return result


def return_job():
    root()['effects'].change(10)
    return Job(count_up, 100)


def results(*jobs):
    return [job.result for job in jobs]


async def coroutine():
    return 'later'


def deferred():
    return succeed('fired')


def put_story(layer):
    """A job of every kind; returns them with what their results must be, and the effects."""
    layer.queue.quotas.create('one')
    layer.root['effects'], layer.root['told'] = Length(), Length()  # they meet no conflicts
    plain = layer.queue.put(count_up, quota_names=['one'])
    told = plain.addCallback(Job(tell))
    outer = layer.queue.put(return_job, quota_names=['one'])
    told_too = outer.addCallbacks(success=Job(tell))
    parts = [Job(count_up, 1000) for _ in range(2)]
    whole = layer.queue.put(parallel(*parts, postprocess=results))
    row = layer.queue.put(serial(Job(count_up, 10000), Job(count_up, 10000), postprocess=results))
    later = layer.queue.put(coroutine)
    fired = layer.queue.put(deferred)
    first = [plain, outer, whole, row, later, fired]
    after = layer.queue.put(Job(count_up, 100000), after=first)
    transaction.commit()
    expected = {
        plain: 1, told: 1, outer: 100, told_too: 100, whole: [1000, 1000],
        row: [10000, 10000], later: 'later', fired: 'fired', after: 100000,
    }  # fmt: skip
    return expected, 122111


def check_story(layer, expected, effects):
    """All has happened exactly once, and nothing is left over."""
    for _ in range(40):
        layer.reactor.settle(5)
        transaction.begin()
        if {job.status for job in expected} == {status.COMPLETED}:
            break
        layer.reactor.time_flies(5)
    assert {job: job.result for job in expected} == expected
    assert (layer.root['effects'](), layer.root['told']()) == (effects, 2)
    layer.reactor.time_flies(10)
    transaction.begin()
    assert layer.dispatcher._flight == {} and not layer.dispatcher._threadless
    assert layer.agent.held_count() == 0 and len(layer.agent) == 0
    assert len(layer.queue) == 0 and list(layer.queue) == []
    quota = layer.queue.quotas['one']
    quota.clean()
    assert len(quota) == 0
    transaction.abort()
    listed = list(layer.agent.history)
    assert len(listed) == len(set(listed))
    assert {job for job in expected if job._parent is None} <= set(listed)


#: A story has about 20 commits of workers: each of them, and several in a row, but not so many
#: that one job might meet five conflicts, which would be its failure.
STRIKES = [(n, n) for n in range(1, 21)] + [(1, 4), (3, 6), (5, 8)]


@pytest.mark.parametrize('strikes', STRIKES, ids=str)
@pytest.mark.parametrize(
    ('error', 'after'),
    [('conflict', False), ('disconnected', False), ('disconnected', True)],
    ids=['conflict', 'disconnected', 'answer lost'],
)
def test_a_worker(layer, plant_in_workers, error, after, strikes):
    """It tries again, and it sees when its commit was made all the same."""
    said.clear()
    fault = plant_in_workers(Fault(ERRORS[error], *strikes, after=after))
    story = put_story(layer)
    check_story(layer, *story)
    assert fault.struck


@pytest.mark.parametrize('number', range(1, 21))
def test_a_worker_with_an_error_that_nobody_knows(layer, plant_in_workers, number):
    """The job may fail by it, once; all end, and nothing leaks."""
    said.clear()
    fault = plant_in_workers(Fault(ERRORS['arbitrary'], number, number))
    expected, _ = put_story(layer)
    layer.reactor.wait_for(*expected, attempts=20)
    assert fault.struck
    failed = [job for job in expected if job.outcome != 'success']
    assert len(failed) <= 3  # the one, who waits for its result, and who gets it told
    layer.reactor.time_flies(10)
    transaction.begin()
    assert layer.dispatcher._flight == {}
    assert layer.agent.held_count() == 0 and len(layer.agent) == 0 and len(layer.queue) == 0


@pytest.mark.parametrize('strikes', [(n, n) for n in range(1, 9)] + [(1, 20), (2, 9)], ids=str)
@pytest.mark.parametrize(
    ('error', 'after'),
    [('conflict', False), ('disconnected', False), ('disconnected', True),
     ('arbitrary', False), ('arbitrary', True)],
)  # fmt: skip
def test_a_pass(layer, plant_in_passes, error, after, strikes):
    """Jobs that were claimed by a pass that did not know it are found again."""
    said.clear()
    fault = plant_in_passes(Fault(ERRORS[error], *strikes, after=after), layer.dispatcher)
    story = put_story(layer)
    check_story(layer, *story)
    assert fault.struck
