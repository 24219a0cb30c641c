"""Several beanstalk gateways, and Python beside them, on one database of each kind."""

import threading

import pytest
import transaction

from tests.doors.beanstalk.support import Desk
from tests.storages.support import together
from zodbjobs import Message, Queue, Queues, clock
from zodbjobs.interfaces import COMPLETED, KEY


@pytest.fixture
def place(storage):
    with storage.db.transaction() as connection:
        queues = connection.root()[KEY] = Queues()
        queue = queues['work'] = Queue()
        queue.order = 'put'
        queue.tube = True
    return storage


@pytest.fixture
def desks(place):
    made = [Desk(place.open(), exclusive=False, source=clock.SystemTime()) for _ in range(2)]
    yield made
    for desk in made:
        desk.store.close()


def until(look):
    """What look() says once it is true: other clients of ZEO see a commit a moment later."""
    pause = threading.Event()
    for _ in range(1000):
        answer = look()
        if answer:
            return answer
        pause.wait(0.01)
    raise AssertionError('it does not come true')


def talk(desk):
    client = desk.client()
    client.say(b'use work', b'watch work', b'ignore default')
    return client


def test_every_job_is_given_to_one_client_of_one_gateway(desks):
    count, found = 30, []

    def work(desk):
        mine = talk(desk)
        for number in range(count):
            mine.put(b'%d' % number)
        while (answer := mine.say(b'reserve-with-timeout 0')) != b'TIMED_OUT\r\n':
            number = answer.split()[1]
            assert mine.say(b'delete ' + number) == b'DELETED\r\n'
            found.append(number)

    assert together(work, desks) == []
    last = talk(desks[0])
    while (answer := last.say(b'reserve-with-timeout 0')) != b'TIMED_OUT\r\n':
        found.append(answer.split()[1])  # what a thread that stopped early has left
    assert len(found) == len(set(found)) == 2 * count


def test_a_dead_gateway_loses_its_reservations_in_time(desks):
    first, second = (talk(desk) for desk in desks)
    first.put(b'1', ttr=1)
    assert first.say(b'reserve').startswith(b'RESERVED 1 ')
    assert second.say(b'reserve-with-timeout 0') == b'TIMED_OUT\r\n'
    second.send(b'reserve\r\n')
    done = threading.Event()
    answer = b''
    for _ in range(100):  # the first one's timer is not looked at any more: it is dead
        answer = second.heard()
        if answer:
            break
        done.wait(0.05)
        desks[1].reactor.advance(0.05)
    assert answer.startswith(b'RESERVED 1 ')
    assert first.say(b'delete 1') == b'NOT_FOUND\r\n'


def test_python_and_clients_share_a_queue(place, desks):
    client = talk(desks[0])
    manager = transaction.TransactionManager()
    connection = place.open().open(manager)
    queue = connection.root()[KEY]['work']
    try:
        job = queue.put(Message(b'from python'))
        manager.commit()
        client.send(b'reserve\r\n')
        answer = until(lambda: (desks[0].gateway.rung(), client.heard())[1])
        assert answer.endswith(b'from python\r\n')
        number = answer.split()[1]
        assert client.say(b'delete ' + number) == b'DELETED\r\n'
        until(lambda: (manager.begin(), job.status == COMPLETED)[1])
        mine = client.put(b'from a client')
        with queue.consumer('python') as consumer:
            claim = consumer.claim(10)
            assert (claim.body, claim.job._number) == (b'from a client', mine)
            until(lambda: b'state: reserved' in client.say(b'stats-job %d' % mine))
            assert client.say(b'delete %d' % mine) == b'NOT_FOUND\r\n'
            claim.finish()
            manager.commit()
        until(lambda: client.say(b'stats-job %d' % mine) == b'NOT_FOUND\r\n')
    finally:
        manager.abort()
        connection.close()
