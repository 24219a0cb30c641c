"""Loops on every storage: two clients of one database, and what stands after a restart."""

import contextlib

import pytest
import transaction
from ZODB.POSException import ConflictError

from zodbjobs import Loop
from zodbjobs.testing.waiting import wait_until


class Client:
    """A client of its own: of a file, another connection."""

    def __init__(self, place):
        self.manager = transaction.TransactionManager()
        self.connection = place.open().open(self.manager)

    def begin(self):
        """See what was committed until now; returns the loop."""
        self.manager.abort()
        self.manager.begin()
        self.connection.sync()
        return self.connection.root()['loop']

    def until(self, look):
        """The loop, as soon as look(loop) is true: clients hear of commits a little later."""
        assert wait_until(lambda: look(self.begin()), 10)
        return self.begin()

    def commit(self):
        self.manager.commit()

    def close(self):
        self.manager.abort()
        self.connection.close()


@pytest.fixture
def clients(storage):
    with storage.db.transaction() as connection:
        loop = connection.root()['loop'] = Loop(shards=4)
        loop.add(range(200))
    with (
        contextlib.closing(Client(storage)) as first,
        contextlib.closing(Client(storage)) as second,
    ):
        yield first, second


def test_the_application_conflicts_with_nobody(clients):
    """All slips of a short time lie in the same records; the storage merges them."""
    application, worker = clients
    slow = application.begin()
    slow.bump([1, 2, 3])
    slow.add([1000, 1001])
    slow.did([7])
    loop = worker.begin()
    batch = loop.get(50)
    loop.bump([1, 2, 3])
    loop.did(batch[:25])
    worker.commit()
    application.commit()
    loop = worker.until(lambda loop: len(loop) == 202)
    assert loop.check(7)[7][0] is not None
    assert set(loop.get(3, test=True)) <= {1, 2, 3} | set(batch)


def test_work_and_did_stand_whatever_comes_between(clients):
    worker, other = clients
    batch = worker.begin().get(20)
    worker.commit()
    worker.begin()
    worker.connection.root()['work'] = list(batch)
    for _ in range(3):
        loop = other.until(lambda loop: loop.held(batch))
        loop.bump(batch)
        loop.did(loop.get(20))
        other.commit()
    worker.connection.root()['loop'].did(batch)
    worker.commit()
    loop = other.until(lambda loop: loop.held(batch) == [])
    assert other.connection.root()['work'] == batch
    assert set(loop.get(20, test=True)) == set(batch)  # bumped meanwhile


def test_of_two_that_take_the_same_ids_one_conflicts(clients):
    first, second = clients
    first.begin().get(200)
    second.begin().get(200)
    first.commit()
    with pytest.raises(ConflictError):
        second.commit()
    assert second.until(lambda loop: loop.get(200, test=True) == [])


def test_a_lease_that_was_taken_over_cannot_be_finished(clients):
    late, later = clients
    batch = late.begin().get(5, lock_for=1e-6)
    late.commit()
    late.begin().did(batch)
    loop = later.until(lambda loop: set(loop.get(5, test=True)) == set(batch))
    assert set(loop.get(5)) == set(batch)
    later.commit()
    with pytest.raises(ConflictError):
        late.commit()
    assert late.until(lambda loop: not loop.held(batch)).did(batch) == 0


def test_a_loop_outlives_a_restart(storage, clients):
    for number, client in enumerate(clients):
        loop = client.until(lambda loop, taken=10 * number: loop.stats()['locked'] == taken)
        loop.bump([number, 150])
        batch = loop.get(10)
        client.commit()
    loop = clients[0].until(lambda loop: loop.held(batch))
    former = loop.stats()
    for client in clients:
        client.close()
    storage.reopen()
    with contextlib.closing(Client(storage)) as again:
        loop = again.begin()
        stats = loop.stats()
        for name in ('total', 'never_updated', 'locked', 'min_id', 'max_id'):
            assert stats[name] == former[name]
        assert loop.held(batch) == batch and loop.did(batch) == 10
