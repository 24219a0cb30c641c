"""Rings reach those who listen: in the process, across processes, after a lost connection."""

import logging
import subprocess
import sys
import threading

import pytest
import transaction
import ZEO
import ZODB
import zope.event
from persistent.mapping import PersistentMapping
from ZODB.tests.hexstorage import HexStorage

from zodbjobs.runtime import storages, wakeup

pytestmark = pytest.mark.usefixtures('no_thread_stays')

#: Nothing here takes as long; a ring that does not come is a failure, not a wait.
PATIENCE_SECONDS = 10


class Rings:
    """Counts its calls, from whatever thread, and waits for them."""

    def __init__(self):
        self.count = 0
        self._changed = threading.Condition()

    def __call__(self):
        with self._changed:
            self.count += 1
            self._changed.notify_all()

    def wait_for(self, count):
        with self._changed:
            return self._changed.wait_for(lambda: self.count >= count, PATIENCE_SECONDS)

    def expect(self, count):
        """Fail unless there are just `count` calls, after waiting for that many."""
        assert self.wait_for(count), f'{self.count} rings, not {count}'
        assert self.count == count


@pytest.fixture
def hear():
    """hear(db) -> (Rings, Listener), listening for sure; all closed after the test."""
    listening = []

    def start(db):
        rings = Rings()
        listener = wakeup.listen(db, rings)
        listening.append((listener, db))
        if storages.kind(db) == storages.POSTGRESQL:
            assert rings.wait_for(1)  # the line is open, and says so
            rings.count = 0
        return rings, listener

    yield start
    for listener, db in listening:
        listener.close()
        if hasattr(db, 'storage'):
            wakeup.hang_up(db)


def commit(db, ring=True, name='stone', **options):
    """One transaction that changes the object `name` in the root and rings; returns its oid."""
    manager = transaction.TransactionManager(**options)
    manager.begin()
    connection = db.open(manager)
    try:
        stone = connection.root().setdefault(name, PersistentMapping())
        stone['changes'] = stone.get('changes', 0) + 1
        if ring:
            wakeup.ring_after_commit(connection)
        manager.commit()
        return stone._p_oid
    finally:
        manager.begin()
        connection.close()
        manager.abort()


# In one process, on every storage.


def test_a_commit_rings_in_its_own_process(storage, hear):
    rings, _ = hear(storage.db)
    commit(storage.db)
    rings.expect(1)
    commit(storage.db, explicit=True)
    rings.expect(2)


def test_it_rings_after_the_commit_and_not_before(storage, hear):
    seen = []

    def look():
        manager = transaction.TransactionManager()
        connection = storage.db.open(manager)
        seen.append('stone' in connection.root())
        connection.close()

    rings, _ = hear(storage.db)
    listener = wakeup.listen(storage.db, look)
    if storage.kind == 'postgres':
        seen.clear()  # a new listener is not told that the line is open already
    commit(storage.db)
    rings.expect(1)
    listener.close()
    assert seen == [True]


def test_many_puts_in_a_transaction_hang_one_hook(storage, hear):
    rings, _ = hear(storage.db)
    manager = transaction.TransactionManager()
    connection = storage.db.open(manager)
    for _ in range(10_000):
        wakeup.ring_after_commit(connection)
    assert len(list(manager.get().getAfterCommitHooks())) == 1
    manager.commit()
    connection.close()
    rings.expect(1)


def test_abort_and_failure_are_silent(storage, hear):
    rings, _ = hear(storage.db)
    manager = transaction.TransactionManager()
    connection = storage.db.open(manager)
    connection.root()['unpicklable'] = threading.Lock()
    wakeup.ring_after_commit(connection)
    manager.abort()
    connection.root()['unpicklable'] = threading.Lock()
    wakeup.ring_after_commit(connection)
    with pytest.raises(TypeError):
        manager.commit()
    manager.abort()
    connection.close()
    commit(storage.db)  # the fence: had the others rung, there would be more than one
    rings.expect(1)


def test_every_listener_rings_until_it_is_closed(storage, hear):
    first, closing = hear(storage.db)
    second = Rings()
    staying = wakeup.listen(storage.db, second)
    commit(storage.db)
    first.expect(1)
    second.expect(1)
    closing.close()
    closing.close()
    commit(storage.db)
    second.expect(2)
    staying.close()
    commit(storage.db)
    assert (first.count, second.count) == (1, 2)


def test_a_listener_that_fails_disturbs_neither_the_commit_nor_the_others(storage, hear, caplog):
    def fail():
        raise ZeroDivisionError

    failing = wakeup.listen(storage.db, fail)
    rings, _ = hear(storage.db)
    commit(storage.db)
    rings.expect(1)
    failing.close()
    assert 'a listener failed when it was woken' in caplog.text
    with storage.db.transaction() as connection:
        assert connection.root()['stone']['changes'] == 1


def test_two_databases_in_a_transaction_ring_each_for_itself(storage, hear):
    other = ZODB.DB(None, databases=storage.db.databases, database_name='other')
    storage.db.databases.setdefault('other', other)
    rings, _ = hear(storage.db)
    others, _ = hear(other)
    manager = transaction.TransactionManager()
    connection = storage.db.open(manager)
    wakeup.ring_after_commit(connection.get_connection('other'))
    manager.commit()
    assert (rings.count, others.count) == (0, 1)
    wakeup.ring_after_commit(connection)
    wakeup.ring_after_commit(connection.get_connection('other'))
    manager.commit()
    assert (rings.count, others.count) == (1, 2)
    connection.close()
    other.close()


def test_a_hook_finds_its_database_closed(tmp_path):
    db = ZODB.DB(None)
    manager = transaction.TransactionManager()
    connection = db.open(manager)
    wakeup.ring_after_commit(connection)
    connection.close()
    db.close()
    manager.commit()


# Across processes.


def test_another_client_rings(shared, hear):
    other = shared.open()
    rings, listener = hear(shared.db)
    assert listener.pushes
    commit(other)
    assert rings.wait_for(1)


def test_another_process_rings(shared, hear, interpreter):
    rings, listener = hear(shared.db)
    listener.watch({commit(shared.db, ring=False)})
    there = interpreter()
    there.run('import transaction')
    there.run('from zodbjobs.runtime import address, wakeup')
    there.run(f'connection = address.open_database({shared.uri!r}).open()')
    there.run('connection.root()["stone"]["changes"] = 7; wakeup.ring_after_commit(connection)')
    assert rings.count == 0
    there.run('transaction.commit()')
    rings.expect(1)
    with shared.db.transaction() as connection:
        assert connection.root()['stone']['changes'] == 7


def test_a_file_has_one_process_so_nobody_pushes(tmp_path):
    db = ZODB.DB(None)
    listener = wakeup.listen(db, Rings())
    assert not listener.pushes
    listener.close()
    db.close()


def test_a_commit_here_is_not_heard_a_second_time_from_the_server(postgres, hear):
    other = postgres.open()
    rings, _ = hear(postgres.db)
    commit(postgres.db)
    commit(other)  # notifications keep their order: an echo of the first would come before this
    assert rings.wait_for(2)
    commit(other)
    rings.expect(3)


def test_only_watched_objects_ring_over_zeo(zeo, hear):
    other = zeo.open()
    rings, listener = hear(zeo.db)
    watched = commit(other, ring=False, name='watched')
    rings.expect(1)  # nothing was said yet, so everything matters
    listener.watch({watched})
    elsewhere = commit(other, ring=False, name='else')
    commit(other, ring=False, name='watched')
    rings.expect(2)
    listener.watch({elsewhere})
    commit(other, ring=False, name='watched')
    commit(other, ring=False, name='else')
    rings.expect(3)


def test_the_database_under_a_listener_still_sees_what_others_change(zeo, hear):
    """The wrapper that listens stands between the storage and the database's caches."""
    other = zeo.open()
    connection = zeo.db.open(transaction.TransactionManager())
    rings, _ = hear(zeo.db)
    for changes in (1, 2, 3):
        commit(other)
        rings.expect(changes)
        connection.sync()
        assert connection.root()['stone']['changes'] == changes
    connection.close()


def test_zeo_rings_when_it_is_connected_again(zeo, hear):
    rings, listener = hear(zeo.db)
    listener.watch(set())
    zeo.server.stop()
    zeo.server.start()
    assert rings.wait_for(1)


def test_listening_below_a_wrapper_that_transforms_records(zeo, hear):
    address = ('127.0.0.1', zeo.server.port)
    # The plain client has made a plain root; a wrapped one wants its own kind.
    first, second = (ZODB.DB(PrefixStorage(ZEO.client(address))) for _ in range(2))
    assert storages.kind(first) == storages.ZEO
    rings, listener = hear(first)
    watched = commit(second, ring=False)
    assert rings.wait_for(1)
    listener.watch({watched})
    commit(second, ring=False)
    rings.expect(2)
    with first.transaction() as connection:
        assert connection.root()['stone']['changes'] == 2
    wakeup.hang_up(first)
    first.close()
    second.close()


class PrefixStorage(HexStorage):
    """Transforms what it stores, reads what is plain, as compressing wrappers do."""

    def loadBefore(self, oid, tid):
        found = self.base.loadBefore(oid, tid)
        if found is None or not found[0].startswith(b'.h'):
            return found
        return super().loadBefore(oid, tid)


# PostgreSQL's line.


def cut(place):
    """Cut all connections to the database of `place`, but leave the server up."""
    place.server.disconnect(place.name)


def test_a_line_that_was_cut_is_opened_again_and_rings(postgres, hear):
    other = postgres.open()
    rings, listener = hear(postgres.db)
    cut(postgres)
    assert rings.wait_for(1)  # something may have been committed meanwhile
    assert listener.pushes
    rings.count = 0
    commit(other)
    assert rings.wait_for(1)


def test_a_kept_connection_for_notifying_was_cut(postgres, hear):
    other = postgres.open()
    rings, _ = hear(postgres.db)
    commit(other)
    assert rings.wait_for(1)
    postgres.server.execute(
        'SELECT pg_terminate_backend(pid) FROM pg_stat_activity'
        f" WHERE datname = '{postgres.name}' AND application_name = 'zodbjobs: notify'"
    )
    commit(other)
    assert rings.wait_for(2)


def test_who_cannot_notify_commits_all_the_same(postgres, hear, caplog):
    rings, listener = hear(postgres.db)
    connection = postgres.db.open(transaction.TransactionManager())
    connection.root()['stone'] = PersistentMapping()
    connection.transaction_manager.commit()  # RelStorage is connected now, we are not
    postgres.server.execute(f'ALTER DATABASE {postgres.name} ALLOW_CONNECTIONS false')
    caplog.set_level(logging.INFO, 'zodbjobs.wakeup')
    for changes in (1, 2, 3):
        connection.root()['stone']['changes'] = changes
        wakeup.ring_after_commit(connection)
        connection.transaction_manager.commit()
    rings.expect(3)
    assert caplog.text.count('cannot notify other processes') == 1
    postgres.server.execute(f'ALTER DATABASE {postgres.name} ALLOW_CONNECTIONS true')
    connection.close()
    with postgres.db.transaction() as connection:
        assert connection.root()['stone']['changes'] == 3


def test_a_line_that_cannot_be_opened_says_so_and_ends_when_told(postgres, caplog):
    caplog.set_level(logging.INFO, 'zodbjobs.wakeup')
    postgres.server.execute(f'ALTER DATABASE {postgres.name} ALLOW_CONNECTIONS false')
    listener = wakeup.listen(postgres.db, Rings())
    assert not listener.pushes
    listener.close()  # the fixture looks for the thread
    postgres.server.execute(f'ALTER DATABASE {postgres.name} ALLOW_CONNECTIONS true')


def test_threads_that_notify_at_once_share_the_work(postgres, hear):
    """A notification under way is not enough for a commit that came after it; one more is."""
    other = postgres.open()
    rings, _ = hear(postgres.db)
    commit(other)
    assert rings.wait_for(1)
    bell = wakeup._exchange_of(other)._bell
    sent = []
    entered, leave = threading.Event(), threading.Event()

    def send():
        type(bell)._send(bell)
        sent.append(threading.current_thread())
        entered.set()
        assert leave.wait(PATIENCE_SECONDS)

    bell._send = send
    first = threading.Thread(target=bell.ring)
    first.start()
    assert entered.wait(PATIENCE_SECONDS)
    for _ in range(5):
        bell.ring()  # returns at once, although the first is still at it
    leave.set()
    first.join()
    assert sent == [first, first]
    assert rings.wait_for(2)  # two that come together may ring once
    wakeup.hang_up(other)


# The event.


class Put:
    """As `zodbjobs.interfaces.JobAdded`: says that it rings, and where."""

    rings = True

    def __init__(self, connection):
        self.connection = connection


def test_the_event_of_a_put_rings(tmp_path, hear):
    db = ZODB.DB(None)
    rings, _ = hear(db)
    with db.transaction() as connection:
        zope.event.notify(Put(connection))
        zope.event.notify(object())
    rings.expect(1)
    db.close()


def test_a_put_rings_whatever_others_raise_who_hear_of_it():
    """Also those that were there before us: the application may go on, and commit the job."""
    code = """if True:
        import zope.event
        zope.event.subscribers.append(lambda event: 1 / 0)
        import transaction, ZODB
        from zodbjobs import Queue
        from zodbjobs.runtime import wakeup
        db = ZODB.DB(None)
        rings = []
        listener = wakeup.listen(db, lambda: rings.append(1))
        queue = db.open().root.queue = Queue()
        transaction.commit()
        try:
            queue.put(print)
        except ZeroDivisionError:
            transaction.commit()
        print(len(queue), len(rings))
    """
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert run.stdout == '1 1\n', run.stderr


def test_a_put_into_a_queue_without_a_home_rings_nowhere():
    wakeup.job_added(Put(None))


def test_neither_reactor_nor_server_packages_are_imported():
    code = (
        'import sys; import zodbjobs.runtime.wakeup, zodbjobs.runtime.witness,'
        ' zodbjobs.runtime.trouble, zodbjobs.runtime.storages;'
        ' print([name for name in ("twisted.internet.reactor", "ZEO", "relstorage", "psycopg2")'
        ' if name in sys.modules])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'
