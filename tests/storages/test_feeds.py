"""Feeds on every storage: what merges, how notices are numbered, who hears of whom."""

import threading

import pytest
import transaction

from zodbjobs import Feeds, testing
from zodbjobs.model import reservations
from zodbjobs.runtime import delivery, wakeup
from zodbjobs.testing.waiting import wait_until

#: Far below the poll of a storage that pushes.
SOON_SECONDS = 5


class Client:
    """A client of the data, with a connection: of a file, another connection of the only one."""

    def __init__(self, place, db=None):
        self.db = place.open() if db is None else db
        self.manager = transaction.TransactionManager()
        self.connection = self.db.open(self.manager)
        self.begin, self.commit = self.manager.begin, self.manager.commit
        self.begin()

    @property
    def feeds(self):
        return self.connection.root()['feeds']

    def until(self, look):
        """Begin anew until look() comes true: a ZEO client sees what others commit a bit later."""

        def looked():
            self.manager.abort()
            self.begin()
            return look()

        assert wait_until(looked, SOON_SECONDS)

    def close(self):
        self.manager.abort()
        delivery.stop(self.db)
        wakeup.hang_up(self.db)
        self.connection.close()


@pytest.fixture
def clients(storage):
    """Three clients of a database with feeds of every kind."""
    reservations.clear()
    with storage.db.transaction() as connection:
        feeds = connection.root()['feeds'] = Feeds()
        connection.add(feeds)
        feeds.feed('feed', {'max_length': 40})
        feeds.sorted_feed('list')
        feeds.queue('queue')
        feeds.job('job')
    clients = [Client(storage) for _ in range(3)]
    yield clients
    for client in clients:
        client.close()
    reservations.clear()


def test_publishers_merge_and_nothing_is_lost(clients):
    """Three clients publish at the same time, while chunks are opened."""
    for round in range(20):
        for client in clients:
            client.begin()
            for name in ('list', 'queue', 'job'):
                client.feeds[name].publish(round)
        for client in clients:
            client.commit()
    feeds = clients[0].feeds
    clients[0].until(lambda: len(feeds['list']) == 60)
    assert [len(feeds[name]) for name in ('queue', 'job')] == [60, 60]
    assert sorted(feeds['list'].get_all().values()) == sorted([*range(20)] * 3)
    told = [notice.value for notice in feeds['list'].notices() if notice.kind == 'publish']
    assert told == sorted(told), 'numbers grow with the commits'


def test_few_conflict_where_a_long_list_grows(clients):
    """An application that tries again after a conflict loses nothing, and seldom has to."""
    conflicts = 0
    for round in range(60):
        for client in clients[:2]:
            client.begin()
            client.feeds['list'].append(round)
        for client in clients[:2]:
            try:
                client.commit()
            except transaction.interfaces.TransientError:
                conflicts += 1
                client.until(lambda: True)
                client.feeds['list'].append(round)  # noqa: B023
                client.commit()
    feed = clients[2].feeds['list']
    clients[2].until(lambda: len(feed) == 120)
    assert sorted(feed.get_all().values()) == sorted([*range(60)] * 2)
    assert conflicts <= 12


def test_a_slow_publisher_is_not_missed(clients):
    slow, quick, reader = clients
    slow.begin()
    slow.feeds['feed'].publish('slow', 'slow')
    seen, heard = 0, []
    for number in range(50):
        quick.begin()
        quick.feeds['feed'].publish(number)
        quick.commit()
        reader.begin()
        heard += [notice.value for notice in reader.feeds['feed'].notices(seen)]
        seen = reader.feeds['feed'].last_number
    slow.commit()
    reader.until(lambda: any(notice.id == 'slow' for notice in reader.feeds.notices(seen)))
    heard += [notice.value for notice in reader.feeds['feed'].notices(seen)]
    assert [item for item in heard if item is not None] == [*range(50), 'slow']


def test_a_reopened_database_tells_the_same(clients, storage):
    clients[0].feeds['feed'].publish('x')
    clients[0].commit()
    notices = clients[0].feeds.notices()
    for client in clients:
        client.close()
    storage.reopen()
    with storage.db.transaction() as connection:
        assert connection.root()['feeds'].notices() == notices
    clients.clear()


def test_a_pack_takes_nothing_from_the_log(clients, storage):
    first, _, reader = clients
    for number in range(50):
        first.begin()
        first.feeds['list'].append(number)
        first.commit()
    reader.until(lambda: len(reader.feeds['list']) == 50)
    before = reader.feeds.notices()
    storage.db.pack()
    reader.begin()
    reader.connection.cacheMinimize()
    assert reader.feeds.notices() == before


def test_a_handler_hears_soon_of_other_clients(clients):
    publisher, listener = clients[:2]
    heard = []
    listener.feeds.register_handler('publish_notice', lambda *call: heard.append(call[1]))
    testing.wait_for_notices(listener.feeds)
    for number in range(3):
        publisher.begin()
        publisher.feeds['feed'].publish(number)
        publisher.commit()
        assert wait_until(lambda: len(heard) == number + 1, SOON_SECONDS)  # noqa: B023
    publisher.feeds.feed('new').publish('in a feed that is new')
    publisher.commit()
    assert wait_until(lambda: len(heard) == 4, SOON_SECONDS)


def test_a_reader_hears_soon_of_a_message(clients):
    writer, reader = clients[:2]
    got = []

    def put():
        writer.begin()
        writer.feeds['queue'].put('hello')
        writer.commit()
        got.append('put')

    timer = threading.Timer(0.3, put)
    timer.start()
    assert reader.feeds['queue'].get(timeout=SOON_SECONDS) == 'hello'
    reader.commit()
    timer.join()
    assert got == ['put']


def test_of_two_processes_one_gets_the_message(clients):
    writer, first, second = clients
    for item in 'ab':
        writer.feeds['queue'].put(item)
    writer.commit()
    for client in (first, second):
        client.until(lambda: len(client.feeds['queue']) == 2)  # noqa: B023
    assert first.feeds['queue'].get(0) == 'a'
    reservations.clear()  # as if the second was another process
    assert second.feeds['queue'].get(0) == 'a'
    first.commit()
    with pytest.raises(transaction.interfaces.TransientError):
        second.commit()
    second.until(lambda: len(second.feeds['queue']) == 1)
    assert second.feeds['queue'].get(0) == 'b'
    second.commit()


def test_a_deletion_meets_who_publishes(clients):
    publisher, deleter = clients[:2]
    publisher.feeds['feed'].publish('late')
    deleter.feeds.delete_feed('feed')
    deleter.commit()
    with pytest.raises(transaction.interfaces.TransientError):
        publisher.commit()
