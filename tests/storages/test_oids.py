"""A ZEO server that is killed forgets which object ids it gave; nobody may lose an object by it."""

import contextlib

import pytest
import transaction
import ZODB
from persistent.mapping import PersistentMapping
from ZEO.ClientStorage import ClientStorage
from ZODB.utils import p64, u64

from zodbjobs import Job, Queue, Queues
from zodbjobs.interfaces import KEY
from zodbjobs.runtime import oids, trouble
from zodbjobs.runtime.oids import FreshIds, give_ids_once
from zodbjobs.testing.storages import close_database

pytestmark = pytest.mark.usefixtures('no_thread_stays')


@pytest.fixture
def unprotected(zeo):
    """A ZODB.DB on a ZEO client that nobody of ours has touched."""
    db = ZODB.DB(ClientStorage(('127.0.0.1', zeo.server.port), wait_timeout=10))
    yield db
    close_database(db)


def restart(server):
    """The server's next life knows the ids that were committed, and no others."""
    server.stop()
    server.start()


@contextlib.contextmanager
def opened(db):
    connection = db.open(transaction.TransactionManager())
    try:
        yield connection
    finally:
        connection.transaction_manager.abort()
        connection.close()


def ids_over_a_restart(db, server):
    """What a client gives while its server has two lives."""
    given = [db.storage.new_oid() for _ in range(30)]
    restart(server)
    return given + [db.storage.new_oid() for _ in range(150)]


def test_a_client_of_zeo_gives_ids_twice(unprotected, zeo):
    """What ZEO does, and why there is something to do; if this fails, ZEO has mended it."""
    given = ids_over_a_restart(unprotected, zeo.server)
    assert len(set(given)) < len(given)


def test_no_id_is_given_twice(zeo):
    given = ids_over_a_restart(zeo.db, zeo.server)
    assert len(set(given)) == len(given)


def test_a_client_that_has_given_some_already(unprotected, zeo):
    storage = unprotected.storage
    before = [storage.new_oid() for _ in range(30)]
    give_ids_once(unprotected)
    given = before + ids_over_a_restart(unprotected, zeo.server)
    assert len(set(given)) == len(given)


def test_a_connection_that_has_looked_its_way_up_before(unprotected, zeo):
    """ZODB's adapters keep the client's method from the first call on."""
    with opened(unprotected) as connection:
        before = [connection.new_oid()]
        give_ids_once(unprotected)
        given = [connection.new_oid() for _ in range(40)]
        restart(zeo.server)
        given = before + given + [connection.new_oid() for _ in range(150)]
    assert len(set(given)) == len(given)


def fill_over_a_restart(connection, server, count):
    """Commit `count` new objects, some of which got their ids before a restart; then count them."""
    root = connection.root()
    root['shelf'] = PersistentMapping()
    connection.transaction_manager.commit()
    shelf = root['shelf']
    for number in range(count):
        if number == count // 3:
            restart(server)
        book = shelf[number] = PersistentMapping(number=number)
        if number % 3:
            connection.add(book)  # as a put does; the others get their ids at the commit
    connection.transaction_manager.commit()
    connection.cacheMinimize()
    return sum(shelf[number].get('number') == number for number in range(count))


def test_a_transaction_that_spans_a_restart_loses_objects(unprotected, zeo):
    """This is how jobs were lost."""
    with opened(unprotected) as connection:
        try:
            kept = fill_over_a_restart(connection, zeo.server, 200)
        except (ValueError, KeyError) as error:
            assert 'oid' in str(error) or isinstance(error, KeyError)
        else:
            assert kept < 200


def test_a_transaction_that_spans_a_restart_keeps_its_objects(zeo):
    with opened(zeo.db) as connection:
        assert fill_over_a_restart(connection, zeo.server, 200) == 200


def test_a_put_protects_the_client_of_its_process(unprotected, zeo):
    """A web server that only puts was opened by others than us."""
    with opened(unprotected) as connection:
        queues = connection.root()[KEY] = Queues()
        queues[''] = Queue()
        connection.transaction_manager.commit()
        queues[''].put(Job(len, ()))
        connection.transaction_manager.commit()
    assert isinstance(unprotected.storage._oids, FreshIds)
    given = ids_over_a_restart(unprotected, zeo.server)
    assert len(set(given)) == len(given)


def test_two_clients_with_the_same_id_conflict(zeo):
    """One of them has got its id before the restart.  Nothing is lost, one of them tries again."""
    other_db = zeo.open()
    with opened(zeo.db) as one:
        one.root()['shelf'] = PersistentMapping()
        one.root()['board'] = PersistentMapping()
        one.transaction_manager.commit()
        with opened(other_db) as other:
            book, box = PersistentMapping(name='book'), PersistentMapping(name='box')
            one.root()['shelf']['book'] = book
            one.add(book)
            restart(zeo.server)
            other.transaction_manager.begin()
            other.root()['board']['box'] = box
            other.add(box)
            assert box._p_oid == book._p_oid
            zeo.db.storage.ping()  # connected again
            other.transaction_manager.commit()
            with pytest.raises(Exception) as caught:
                one.transaction_manager.commit()
            assert trouble.is_conflict(caught.value)
            one.transaction_manager.abort()
            one.root()['shelf']['book'] = PersistentMapping(name='book')
            one.transaction_manager.commit()
        one.cacheMinimize()
        found = one.root()['shelf']['book']['name'], one.root()['board']['box']['name']
        assert found == ('book', 'box')


def test_others_than_zeos_clients_are_left_alone(storage):
    give_ids_once(storage.db)
    kept = getattr(storage.db.storage, '_oids', None)
    assert isinstance(kept, FreshIds) == (storage.kind == 'zeo')


# The list itself, with a client that does nothing else.


class Client:
    """A client's bookkeeping of ids, as in ZEO.ClientStorage.new_oid; `server` is [next id]."""

    def __init__(self):
        self._connection_generation = 1
        self.server = [1]
        self._oids = []

    def ask(self):
        first = self.server[0]
        self.server[0] += 100
        return [p64(number) for number in range(first, first + 100)]

    def new_oid(self):
        while True:
            try:
                return u64(self._oids.pop())
            except IndexError:
                self._oids[:0] = reversed(self.ask())

    def is_reconnected(self, next_id):
        self._connection_generation += 1
        self.server[0] = next_id


@pytest.fixture
def client():
    client = Client()
    client._oids = FreshIds(client)
    return client


def test_ids_come_in_the_order_of_the_server(client):
    assert [client.new_oid() for _ in range(250)] == list(range(1, 251))


def test_ids_of_a_former_life_are_thrown_away(client):
    assert client.new_oid() == 1
    assert len(client._oids) == 99
    client.is_reconnected(next_id=500)
    assert client.new_oid() == 500


def test_an_answer_of_the_former_server_is_thrown_away(client):
    """The client was connected again between the answer and its arrival."""
    ask = client.ask

    def answer_late():
        found = ask()
        if client._connection_generation == 1:
            client.is_reconnected(next_id=1000)
        return found

    client.ask = answer_late
    assert client.new_oid() == 1000


def test_a_server_that_starts_again_from_below_is_asked_until_it_is_above(client):
    given = {client.new_oid() for _ in range(950)}
    client.is_reconnected(next_id=1)
    assert given.isdisjoint({client.new_oid() for _ in range(200)})


def test_a_server_with_another_file_is_not_asked_for_ever(client, monkeypatch, caplog):
    monkeypatch.setattr(oids, 'MOST_ROUNDS', 3)
    client.server[0] = 10**6
    client.new_oid()
    client.is_reconnected(next_id=1)
    assert client.new_oid() == 301
    assert 'much lower object ids' in caplog.text
