"""Queues without work are not looked at, and whatever brings work to one is noticed at once."""

import pytest
import transaction

from tests.runtime.support import said
from zodbjobs import Agent, Job, Queue
from zodbjobs.runtime import look


def say(word):
    said.append(word)


@pytest.fixture
def both(layer):
    """Two queues that are served; their passes so far have found nothing."""
    layer.queues['second'] = Queue()
    transaction.commit()
    layer.reactor.time_flies(6)
    layer.queues['second'].dispatchers[layer.dispatcher.UUID]['main'] = Agent(size=1)
    transaction.commit()
    layer.reactor.time_flies(6)
    return layer


@pytest.fixture
def looked(both, monkeypatch):
    """The names of the queues that are looked at from now on."""
    names = []
    make = look.Look.make

    def note(self):
        names.append(self.queue.name)
        return make(self)

    monkeypatch.setattr(look.Look, 'make', note)
    return names


def test_only_the_queue_that_has_work_is_looked_at(both, looked):
    both.queue.put(Job(say, 'here'))
    transaction.commit()
    both.reactor.settle()
    assert said == ['here'] and set(looked) == {''}
    for word in ('there', 'again'):
        looked.clear()
        both.queues['second'].put(Job(say, word))
        transaction.commit()
        both.reactor.settle()
    assert said == ['here', 'there', 'again'] and set(looked) == {'second'}


def test_so_it_is_with_a_small_cache(both, looked):
    """What must be known of idle queues is not thrown out of the dispatcher's cache."""
    both.db.setCacheSize(20)
    both.reactor.time_flies(6)
    looked.clear()
    for word in ('here', 'again', 'and again'):
        both.queue.put(Job(say, word))
        transaction.commit()
        both.reactor.settle()
    assert said == ['here', 'again', 'and again'] and set(looked) == {''}


def test_a_poll_looks_everywhere(both, looked):
    both.reactor.time_flies(6)
    assert set(looked) == {'', 'second'}


def test_a_job_for_later_begins_on_time(both, looked):
    both.queues['second'].put(Job(say, 'later'), delay=1)
    transaction.commit()
    both.reactor.settle()
    looked.clear()
    both.reactor.time_flies(0.9)
    assert said == [] and looked == []
    both.reactor.time_flies(0.2)
    assert said == ['later']


def test_a_job_is_let_go_by_one_of_another_queue(both):
    """Its entry is sorted in by the very pass that does not look at its queue."""
    first = both.queue.put(Job(say, 'first'), delay=1)
    both.queues['second'].put(Job(say, 'second'), depends_on=first)
    transaction.commit()
    both.reactor.settle()
    both.queue.put(Job(say, 'between'))
    transaction.commit()
    both.reactor.settle()
    both.reactor.time_flies(1.1)
    both.reactor.settle()
    assert said == ['between', 'first', 'second']


def test_what_waits_is_looked_at_until_it_is_gone(both, looked):
    """Also while nobody has room for it: a place may come free in many ways."""
    both.agent.size = 0
    both.queue.put(Job(say, 'waits'))
    transaction.commit()
    both.reactor.settle()
    looked.clear()
    both.queues['second'].put(Job(say, 'other'))
    transaction.commit()
    both.reactor.settle()
    assert set(looked) == {'', 'second'} and said == ['other']
    both.agent.size = 1
    transaction.commit()
    both.reactor.time_flies(6)
    assert said == ['other', 'waits']


@pytest.mark.parametrize('change', ['pause', 'resize', 'chooser'])
def test_a_change_of_settings_is_seen(both, looked, change):
    second = both.queues['second']
    if change == 'pause':
        second.pause()
    elif change == 'resize':
        second.dispatchers[both.dispatcher.UUID]['main'].size = 2
    else:
        second.dispatchers[both.dispatcher.UUID]['other'] = Agent(size=1)
    both.queue.put(Job(say, 'here'))  # so that there is a pass
    transaction.commit()
    both.reactor.settle()
    assert 'second' in looked
