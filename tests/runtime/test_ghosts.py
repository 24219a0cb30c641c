"""An object of a known class is read once; see `runtime.ghosts`."""

import pytest
import transaction
from persistent.mapping import PersistentMapping
from ZODB.MappingStorage import DB
from ZODB.POSException import POSKeyError

from zodbjobs.runtime.ghosts import ghost_of


@pytest.fixture
def stored():
    """(database, the oid of a mapping in it, which no connection has in its cache)."""
    db = DB()
    with db.transaction() as connection:
        connection.root()['it'] = it = PersistentMapping(name='it')
        connection.add(it)
        oid = it._p_oid
        del it
    connection.cacheMinimize()
    yield db, oid
    db.close()


def test_it_is_read_once(stored):
    db, oid = stored
    connection = db.open(transaction.TransactionManager())
    reads = []
    load = connection._storage.load
    connection._storage.load = lambda oid: reads.append(oid) or load(oid)
    it = ghost_of(connection, oid, PersistentMapping)
    assert it._p_jar is connection and it._p_changed is None and reads == []
    assert it['name'] == 'it' and reads == [oid]
    assert connection.get(oid) is it and ghost_of(connection, oid, PersistentMapping) is it


def test_without_a_class_it_is_found_all_the_same(stored):
    db, oid = stored
    connection = db.open(transaction.TransactionManager())
    assert ghost_of(connection, oid, None)['name'] == 'it'


def test_what_is_not_there_shows_when_it_is_used(stored):
    db, _ = stored
    connection = db.open(transaction.TransactionManager())
    nowhere = ghost_of(connection, b'\0' * 7 + b'\x77', PersistentMapping)
    with pytest.raises(POSKeyError):
        nowhere._p_activate()
