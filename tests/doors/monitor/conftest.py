"""A database in virtual time, with one agent of one thread, for what monitors see."""

import operator
import threading

import pytest
import transaction

from zodbjobs import Job, testing
from zodbjobs.runtime import dispatcher as dispatchers

#: What lets jobs that block go on.
gate = threading.Event()

#: Says that one has begun.
entered = threading.Event()


def block():
    entered.set()
    assert gate.wait(20)


@pytest.fixture
def layer(monkeypatch):
    gate.clear()
    monkeypatch.setattr(dispatchers, 'THREADS_END_SECONDS', 0.05)  # for jobs that block
    found = testing.setUp()
    found.agent.size = 1
    transaction.commit()
    found.reactor.time_passes()
    yield found
    gate.set()
    testing.tearDown()


@pytest.fixture
def put(layer):
    """put(call=multiplication, args, queue='', **options) -> a job, committed."""

    def put(call=operator.mul, args=(6, 7), queue='', **options):
        job = layer.queues[queue].put(Job(call, *args), **options)
        transaction.commit()
        return job

    return put


@pytest.fixture
def run(layer):
    """run(*jobs): let them run to their end."""

    def run(*jobs):
        layer.reactor.wait_for(*jobs)
        transaction.begin()

    return run


@pytest.fixture
def busy(put):
    """busy(**options) -> a job that keeps a thread until the test is over."""

    def busy(**options):
        entered.clear()
        job = put(block, (), **options)
        testing.wait_for_start(job)
        assert entered.wait(20)
        transaction.begin()
        return job

    return busy
