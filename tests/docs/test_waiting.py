"""Jobs that wait without a thread, in virtual time."""

import asyncio
import threading

import pytest
import transaction
from twisted.internet.defer import Deferred

from zodbjobs import local, testing


@pytest.fixture
def layer():
    layer = testing.setUp()
    yield layer
    testing.tearDown()


async def take_a_moment():
    await asyncio.sleep(0.05)  # real: it is another loop than the reactor's
    return 'done'


def take_three_virtual_seconds():
    answer = Deferred()
    reactor = local.getReactor()
    reactor.callFromThread(reactor.callLater, 3, answer.callback, 'done')
    return answer


def answer_from_a_thread():
    answer = Deferred()
    reactor = local.getReactor()
    threading.Timer(0.05, reactor.callFromThread, (answer.callback, 'done')).start()
    return answer


@pytest.mark.parametrize('call', [take_a_moment, take_three_virtual_seconds, answer_from_a_thread])
def test_wait_for_what_comes_later(layer, call):
    """tutorial.rst, testing.rst."""
    job = layer.queue.put(call)
    transaction.commit()
    layer.reactor.wait_for(job)
    assert job.result == 'done'
