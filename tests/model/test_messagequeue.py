"""Message queues: order, transactions, and readers that do not take the same message."""

import pytest
from ZODB.POSException import ConflictError

from zodbjobs import Feeds
from zodbjobs.interfaces import Empty
from zodbjobs.model import reservations
from zodbjobs.model.lanes import CHUNK_ENTRIES


@pytest.fixture(autouse=True)
def forgotten():
    reservations.clear()
    yield
    reservations.clear()


@pytest.fixture
def messages(side):
    feeds = side.root['feeds'] = Feeds()
    side.commit()
    messages = feeds.queue('messages')
    side.commit()
    return messages


def put(messages, *items):
    ids = [messages.put(item) for item in items]
    messages._p_jar.transaction_manager.commit()
    return ids


def test_first_come_first_served_and_high_before_all(messages):
    put(messages, 'a', b'b')
    messages.publish('urgent', messages.HIGH)
    messages.put('urgent too', priority=messages.HIGH)
    assert len(messages) == len(list(messages)) == 4
    assert [messages.get(0) for _ in range(4)] == ['urgent', 'urgent too', 'a', b'b']
    with pytest.raises(Empty):
        messages.get(timeout=0)
    with pytest.raises(ValueError, match='HIGH'):
        messages.put('x', priority=7)


def test_none_is_a_message(messages):
    put(messages, None)
    assert messages.get(0) is None


@pytest.mark.parametrize('timeout', [-1, 'soon', True, float('nan')])
def test_a_timeout_is_seconds(messages, timeout):
    with pytest.raises(ValueError, match='seconds to wait'):
        messages.get(timeout)


def test_an_aborted_get_gives_back(messages, side, house):
    put(messages, 'a', 'b')
    assert messages.get(0) == 'a'
    side.abort()
    other = house.side()
    assert other.twin(messages).get(0) == 'a'
    other.commit()
    side.begin()
    assert messages.get(0) == 'b'


def test_readers_of_one_process_take_different_messages(messages, house):
    put(messages, *'abc')
    readers = [house.side() for _ in range(4)]
    assert [reader.twin(messages).get(0) for reader in readers[:3]] == ['a', 'b', 'c']
    with pytest.raises(Empty):
        readers[3].twin(messages).get(0)
    readers[1].abort()
    assert readers[3].twin(messages).get(0) == 'b'
    for reader in readers:
        reader.commit()
    readers[0].begin()
    assert len(readers[0].twin(messages)) == 0


def test_readers_of_two_processes_never_both_have_it(messages, house):
    put(messages, 'a', 'b')
    first, second = house.side(), house.side()
    assert first.twin(messages).get(0) == 'a'
    reservations.clear()
    assert second.twin(messages).get(0) == 'a'
    first.commit()
    with pytest.raises(ConflictError):
        second.commit()
    second.abort()
    assert second.twin(messages).get(0) == 'b'
    second.commit()


def test_a_get_that_a_savepoint_took_back_is_not_lost(messages, side, house, turned):
    put(messages, 'a')
    savepoint = side.transaction_manager.savepoint()
    assert messages.get(0) == 'a'
    savepoint.rollback()
    side.root['other'] = 'work'
    side.commit()
    turned.advance(reservations.AFTERWARDS_SECONDS + 1)
    other = house.side()
    assert other.twin(messages).get(0) == 'a'


def test_what_was_reserved_is_forgotten(messages, side, monkeypatch):
    monkeypatch.setattr(reservations, 'REMEMBERED', 10)
    put(messages, *range(100))
    assert [messages.get(0) for _ in range(100)] == list(range(100))
    side.commit()
    assert len(reservations._taken) <= 100
    put(messages, 'x')
    messages.get(0)
    assert len(reservations._taken) <= 10


def test_a_queue_that_ran_empty_keeps_few_records(messages, side, turned):
    for _ in range(5):
        put(messages, *range(200))
        for _ in range(200):
            messages.get(0)
        side.commit()
        turned.advance(20)
    assert len(list(messages.normal.places())) <= 200 // CHUNK_ENTRIES + 2
