"""What was claimed ahead, and what may overtake it."""

import pytest
import transaction

from tests.runtime.support import gate, said
from zodbjobs import Job, status
from zodbjobs.facts import Assignment
from zodbjobs.runtime.held import OVERTAKE_LIMIT, Held
from zodbjobs.runtime.pool import AHEAD_LIMIT


def say(word):
    said.append(word)


def wait():
    assert gate.wait(10)


def held_job(number, priority=5):
    return Assignment(number.to_bytes(8, 'big'), number, '', 'main', priority=priority)


@pytest.fixture
def held():
    found = Held()
    for number in (1, 2, 3):
        found.append(held_job(number))
    return found


def order(held):
    return [held.pop().token for _ in range(len(held))]


class TestHeld:
    def test_first_come_first_served(self, held):
        assert len(held) == 3 and order(held) == [1, 2, 3] and not held

    def test_by_priority(self, held):
        held.append(held_job(4, 1))
        held.append(held_job(5, 9))
        held.append(held_job(6, 1))
        assert order(held) == [4, 6, 1, 2, 3, 5]

    def test_put_back_to_the_head_of_its_priority(self, held):
        first, second = held.pop(), held.pop()
        held.append(held_job(4, 1))
        held.put_back([first, second])
        assert order(held) == [4, 1, 2, 3]

    def test_all_at_once(self, held):
        assert [each.token for each in held.take_all()] == [1, 2, 3] and not held

    def test_who_leaves_others_behind(self, held):
        assert held.is_overtaken_by(held_job(4, 1))
        assert not held.is_overtaken_by(held_job(4, 5))
        assert not Held().is_overtaken_by(held_job(4, 1))

    def test_so_many_may_come_before(self, held):
        assert held.overtaking() == (5, OVERTAKE_LIMIT)
        for number in range(OVERTAKE_LIMIT - 1):
            held.append(held_job(10 + number, 1))
        assert held.overtaking() == (5, 1)
        held.append(held_job(4, 2))
        assert held.overtaking() == (5, 0)
        assert Held().overtaking() == (0, 0)


@pytest.fixture
def crowd(layer):
    """A job that runs in the only thread until `gate` is set, behind one that has ended, and as
    many short ones as may be claimed ahead; gives the jobs, and leaves one more waiting."""
    layer.agent.size = 1
    transaction.commit()
    layer.reactor.time_flies(5)
    first = layer.queue.put(Job(say, 'first'))
    transaction.commit()
    layer.reactor.wait_for(first)
    layer.dispatcher.queues['']['main'].mean_seconds = 0.001
    jobs = [layer.queue.put(Job(say, 'ended')), layer.queue.put(wait)]
    jobs += [layer.queue.put(Job(say, 'short')) for _ in range(AHEAD_LIMIT)]
    transaction.commit()
    pool = layer.dispatcher.queues['']['main']
    assert layer.reactor.settle(5, until=lambda: pool.held_count() == AHEAD_LIMIT - 1)
    assert layer.reactor.settle(5, until=lambda: len(layer.dispatcher.getActiveJobIds()) == 2)
    transaction.begin()
    said.clear()
    yield jobs
    gate.set()


def test_what_is_more_urgent_overtakes_what_was_claimed_ahead(layer, crowd):
    """And what has ended is written down right after it."""
    urgent = layer.queue.put(Job(say, 'urgent'), priority=0)
    transaction.commit()
    layer.reactor.settle()
    transaction.begin()
    ended, runs, *short = crowd
    assert urgent.status == status.ASSIGNED and layer.agent.claimed_at(runs)
    assert ended.status == status.COMPLETED
    gate.set()
    layer.reactor.wait_for(urgent, *crowd)
    assert said == ['urgent'] + ['short'] * len(short)


def test_what_is_not_more_urgent_waits(layer, crowd):
    late = layer.queue.put(Job(say, 'late'))
    transaction.commit()
    layer.reactor.settle()
    transaction.begin()
    assert late.status == status.PENDING
    gate.set()
    layer.reactor.wait_for(late, *crowd)
    assert said[-1] == 'late'


def test_so_many_overtake_and_more_wait_for_the_next_claim(layer, crowd):
    """Nothing is lost of what came while nobody looked: after a moment somebody does."""
    urgent = [layer.queue.put(Job(say, number), priority=0) for number in range(OVERTAKE_LIMIT + 2)]
    transaction.commit()
    layer.reactor.settle()
    transaction.begin()
    found = [job.status for job in urgent]
    assert found == [status.ASSIGNED] * OVERTAKE_LIMIT + [status.PENDING] * 2
    gate.set()
    layer.reactor.wait_for(*urgent, *crowd)
    assert said[:OVERTAKE_LIMIT] == list(range(OVERTAKE_LIMIT))


def test_two_that_come_shortly_after_each_other(layer, crowd):
    for word in ('urgent', 'again'):
        layer.queue.put(Job(say, word), priority=0)
        transaction.commit()
        layer.reactor.settle()
    layer.reactor.time_flies(0.02)
    pool = layer.dispatcher.queues['']['main']
    assert pool.overtaking()[1] == OVERTAKE_LIMIT - 2
    gate.set()
    layer.reactor.wait_for(*crowd)
    assert said[:2] == ['urgent', 'again']
