"""The process ends at the n-th commit of its workers, before or after it: the next one goes on."""

import threading

import pytest
from ZEO.Exceptions import ClientDisconnected

from tests.faults.test_commits import check_story, put_story, said
from tests.faults.test_deaths import die_without_a_word
from zodbjobs import Dispatcher, NeverRetry
from zodbjobs.interfaces import AbortedError


class End:
    """From commit number `first` on nothing comes of any: the threads stand still there.

    With `after` that commit is made, and nobody hears of it.
    """

    def __init__(self, first, after):
        self.first = first
        self.after = after
        self.count = 0
        self.reached = threading.Event()
        self.gate = threading.Event()  # opened when all is over: what zombies do is looked at, too
        self._guard = threading.Lock()

    def commit(self, commit):
        with self._guard:
            self.count += 1
            number = self.count
        if number < self.first:
            return commit()
        if number == self.first and self.after:
            commit()
        self.reached.set()
        assert self.gate.wait(60)
        raise ClientDisconnected('the process has ended')


@pytest.fixture
def end_at(layer, plant_in_workers):
    """A function: the present process ends at that commit."""
    ends = []

    def plant(first, after):
        ends.append(plant_in_workers(End(first, after)))
        return ends[-1]

    yield plant
    for end in ends:
        end.gate.set()


def once():
    said.append('once')
    return 'once'


@pytest.mark.filterwarnings('ignore:coroutine .* was never awaited')  # by the process that ended
@pytest.mark.parametrize('after', [False, True], ids=['before', 'after'])
@pytest.mark.parametrize('number', range(1, 20))
def test_at_a_commit(layer, end_at, monkeypatch, number, after):
    """All effects happen once, what may run once does not run twice, and nothing is left over."""
    said.clear()
    end = end_at(number, after)
    wary = layer.queue.put(once, retry_policy_factory=NeverRetry)
    story = put_story(layer)
    assert layer.reactor.settle(20, until=end.reached.is_set)
    old = layer.dispatcher
    (pool,) = old.queues[''].values()
    die_without_a_word(layer)
    monkeypatch.undo()  # the heir's workers are sound
    layer.dispatcher = Dispatcher(layer.db, layer.reactor, uuid=old.UUID)
    layer.dispatcher.activate()
    layer.reactor.time_passes()
    check_story(layer, *story)
    assert wary.result == 'once' or wary.result.check(AbortedError)
    assert said.count('once') <= 1
    pool.stop()
    end.gate.set()
    pool.join(5)
    assert not any(thread.is_alive() for thread in pool.threads)
    check_story(layer, *story)
