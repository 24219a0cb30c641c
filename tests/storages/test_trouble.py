"""What is raised when servers go away or transactions meet, provoked for real and classified."""

import threading

import pytest
import transaction
from persistent.mapping import PersistentMapping
from transaction.interfaces import NoTransaction, TransientError
from ZODB.POSException import ConflictError, POSKeyError, ReadConflictError

from zodbjobs.runtime import trouble
from zodbjobs.runtime.address import open_database
from zodbjobs.testing.storages import close_database

pytestmark = pytest.mark.usefixtures('no_thread_stays')

STEPS = ('tpc_begin', 'commit', 'tpc_vote', 'tpc_finish')


class Striker:
    """A data manager that strikes when its transaction comes to a step."""

    def __init__(self, step, strike, first):
        self._step, self._strike = step, strike
        self._key = ' ' if first else '~'  # the storages' own keys are between

    def sortKey(self):
        return self._key

    def abort(self, transaction):
        pass

    def tpc_abort(self, transaction):
        pass

    def _come_to(self, step):
        if step == self._step:
            self._strike()

    def tpc_begin(self, transaction):
        self._come_to('tpc_begin')

    def commit(self, transaction):
        self._come_to('commit')

    def tpc_vote(self, transaction):
        self._come_to('tpc_vote')

    def tpc_finish(self, transaction):
        self._come_to('tpc_finish')


def raised_by(call):
    """The exception that `call()` raises, or None."""
    try:
        call()
    except Exception as exc:
        return exc
    return None


def assert_lost(exc):
    assert exc is not None
    assert trouble.is_disconnected(exc), repr(exc)
    assert not trouble.is_conflict(exc)


@pytest.fixture
def client(shared):
    """A ZODB connection to a server that may be cut: (connection, cut, restore)."""
    if shared.kind == 'zeo':
        address = f'{shared.uri}?wait_timeout=1'
        cut, restore = shared.server.stop, shared.server.start
    else:
        address = shared.uri

        def cut():
            shared.server.execute(f'ALTER DATABASE {shared.name} ALLOW_CONNECTIONS false')
            shared.server.disconnect(shared.name)

        def restore():
            shared.server.execute(f'ALTER DATABASE {shared.name} ALLOW_CONNECTIONS true')

    with shared.db.transaction() as connection:
        connection.root()['stone'] = PersistentMapping(changes=0)
    db = open_database(address)  # after that, so that it has none of it in its cache
    connection = db.open(transaction.TransactionManager())
    yield connection, cut, restore
    manager = connection.transaction_manager
    raised_by(manager.abort)
    raised_by(connection.close)
    raised_by(lambda: close_database(db))


def test_reading_from_a_server_that_is_gone(client):
    connection, cut, _ = client
    connection.root()
    cut()
    assert_lost(raised_by(lambda: connection.root()['stone']['changes']))


@pytest.mark.parametrize('first', [True, False], ids=['before', 'after'])
@pytest.mark.parametrize('step', STEPS)
def test_committing_to_a_server_that_goes(client, step, first):
    """Whatever is raised is a lost connection, and the next transaction works again."""
    connection, cut, restore = client
    manager = connection.transaction_manager
    connection.root()['stone']['changes'] = 1
    manager.get().join(Striker(step, cut, first))
    exc = raised_by(manager.commit)
    if exc is None:
        assert (step, first) == ('tpc_finish', False)  # it was committed by then
    else:
        assert_lost(exc)
    restore()
    for _ in range(20):
        exc = raised_by(lambda: change_again(connection))
        if exc is None:
            break
        assert_lost(exc)
    assert exc is None


def change_again(connection):
    try:
        connection.transaction_manager.abort()
        connection.root()['stone']['changes'] = 2
        connection.transaction_manager.commit()
    except NoTransaction:
        pass


def test_a_server_that_shuts_down_at_once(tmp_path):
    """psycopg2 raises the bare DatabaseError then."""
    psycopg2 = pytest.importorskip('psycopg2')
    assert trouble.is_disconnected(psycopg2.DatabaseError('server closed the connection'))
    assert not trouble.is_disconnected(psycopg2.ProgrammingError("can't adapt type 'X'"))
    assert not trouble.is_conflict(psycopg2.ProgrammingError("can't adapt type 'X'"))


def test_a_closed_connection_of_the_driver(postgres):
    connection = postgres.server.connect(postgres.name)
    cursor = connection.cursor()
    connection.close()
    assert_lost(raised_by(connection.cursor))
    assert_lost(raised_by(lambda: cursor.execute('SELECT 1')))


def test_a_session_that_an_administrator_ends(postgres):
    connection = postgres.server.connect(postgres.name)
    with connection.cursor() as cursor:
        exc = raised_by(lambda: cursor.execute('SELECT pg_terminate_backend(pg_backend_pid())'))
        assert_lost(exc)


def test_a_session_that_ends_with_a_code(postgres):
    """The code that comes with a shutdown, when it comes before the line is cut."""
    connection = postgres.server.connect(postgres.name)
    with connection.cursor() as cursor:
        exc = raised_by(
            lambda: cursor.execute(
                "DO $$ BEGIN RAISE 'terminating connection' USING ERRCODE = '57P01'; END $$"
            )
        )
    connection.close()
    assert exc.pgcode == '57P01'
    assert_lost(exc)


def test_a_server_that_lets_nobody_in(postgres):
    postgres.server.execute(f'ALTER DATABASE {postgres.name} ALLOW_CONNECTIONS false')
    assert_lost(raised_by(lambda: postgres.server.connect(postgres.name)))


def test_a_statement_that_is_wrong_or_was_cancelled_is_neither(postgres):
    connection = postgres.server.connect(postgres.name)
    for statement in (
        'SELECT nonsense',
        'SELECT 1/0',
        "SET statement_timeout = '1ms'; SELECT pg_sleep(5)",
    ):
        with connection.cursor() as cursor:
            exc = raised_by(lambda cursor=cursor, sql=statement: cursor.execute(sql))
        assert exc is not None
        assert not trouble.is_disconnected(exc)
        assert not trouble.is_conflict(exc)
    connection.close()


def test_a_deadlock_of_the_server_is_a_conflict(postgres):
    postgres.server.execute(f'ALTER DATABASE {postgres.name} SET deadlock_timeout = 10')
    one, other = (postgres.server.connect(postgres.name) for _ in range(2))
    raised = []

    def lock(connection, *keys):
        with connection.cursor() as cursor:
            cursor.execute('SELECT pg_advisory_xact_lock(%s)', (keys[0],))
            met.wait()
            cursor.execute('SELECT pg_advisory_xact_lock(%s)', (keys[1],))

    met = threading.Barrier(2)
    threads = []
    for connection, keys in ((one, (1, 2)), (other, (2, 1))):
        connection.autocommit = False
        threads.append(
            threading.Thread(
                target=lambda c=connection, k=keys: raised.append(raised_by(lambda: lock(c, *k)))
            )
        )
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one.close()
    other.close()
    exc = next(exc for exc in raised if exc is not None)
    assert trouble.is_conflict(exc)
    assert not trouble.is_disconnected(exc)


# Conflicts.


def two_connections(db):
    return [db.open(transaction.TransactionManager()) for _ in range(2)]


def test_a_write_conflict(storage):
    with storage.db.transaction() as connection:
        connection.root()['stone'] = PersistentMapping()
    one, other = two_connections(storage.db)
    for each in (one, other):
        each.root()['stone']['changed by'] = str(each)
    one.transaction_manager.commit()
    exc = raised_by(other.transaction_manager.commit)
    assert isinstance(exc, ConflictError)
    assert trouble.is_conflict(exc)
    assert not trouble.is_disconnected(exc)
    for each in (one, other):
        each.transaction_manager.abort()
        each.close()


def test_a_read_conflict(storage):
    with storage.db.transaction() as connection:
        connection.root()['stone'] = PersistentMapping()
        connection.root()['other'] = PersistentMapping()
    one, other = two_connections(storage.db)
    other.root()['stone']._p_activate()
    other.readCurrent(other.root()['stone'])
    other.root()['other']['changed'] = True
    one.root()['stone']['changed'] = True
    one.transaction_manager.commit()
    exc = raised_by(other.transaction_manager.commit)
    assert isinstance(exc, ReadConflictError)
    assert trouble.is_conflict(exc)
    for each in (one, other):
        each.transaction_manager.abort()
        each.close()


def test_a_lock_that_rows_are_waited_for_in_vain(postgres):
    """RelStorage waits for the row of an object that another transaction has voted on."""
    with postgres.db.transaction() as connection:
        connection.root()['stone'] = PersistentMapping()
    impatient = open_database(f'{postgres.uri}&commit_lock_timeout=1')
    one, other = postgres.db.open(transaction.TransactionManager()), None
    other = impatient.open(transaction.TransactionManager())
    raised = []

    def commit_other():
        other.root()['stone']['changed'] = 2
        raised.append(raised_by(other.transaction_manager.commit))
        other.transaction_manager.abort()

    one.root()['stone']['changed'] = 1
    one.transaction_manager.get().join(Striker('tpc_finish', commit_other, first=True))
    one.transaction_manager.commit()
    one.close()
    other.close()
    close_database(impatient)
    assert type(raised[0]).__module__.startswith('relstorage')
    assert trouble.is_conflict(raised[0])
    assert not trouble.is_disconnected(raised[0])


def test_a_lost_connection_dressed_as_a_conflict(postgres):
    """As above, but while it waits for the row its connection is cut."""
    with postgres.db.transaction() as connection:
        connection.root()['stone'] = PersistentMapping()
    waiting = postgres.open()
    one = postgres.db.open(transaction.TransactionManager())
    other = waiting.open(transaction.TransactionManager())
    raised = []

    def commit_other():
        other.root()['stone']['changed'] = 2
        raised.append(raised_by(other.transaction_manager.commit))
        raised_by(other.transaction_manager.abort)

    thread = threading.Thread(target=commit_other)

    def cut_the_one_that_waits():
        thread.start()
        blocked = []
        while not blocked:
            blocked = postgres.server.execute(
                'SELECT pg_terminate_backend(pid) FROM pg_stat_activity'
                f" WHERE datname = '{postgres.name}' AND wait_event_type = 'Lock'"
            )
        thread.join()

    one.root()['stone']['changed'] = 1
    one.transaction_manager.get().join(Striker('tpc_finish', cut_the_one_that_waits, first=True))
    one.transaction_manager.commit()
    one.close()
    assert isinstance(raised[0], ConflictError)
    assert_lost(raised[0])
    raised_by(other.close)


def test_the_commit_lock_that_zeos_server_gave_up(zeo):
    """Client-side conflict resolution under load: the server has no lock when it is to finish."""
    client = zeo.db.storage
    record = transaction.Transaction()
    client.tpc_begin(record)
    client.store(client.new_oid(), b'\0' * 8, b'data', '', record)
    exc = raised_by(lambda: client.tpc_finish(record))
    assert type(exc).__name__ == 'ServerException'
    assert trouble.is_conflict(exc)
    assert not trouble.is_disconnected(exc)


def test_other_exceptions_of_zeos_server_are_no_conflicts(zeo):
    exc = raised_by(lambda: zeo.db.storage._call('undoLog', 'no number'))
    assert type(exc).__name__ in ('ServerException', 'TypeError')
    assert not trouble.is_conflict(exc)
    assert not trouble.is_disconnected(exc)


def test_in_short_is_one_line():
    assert trouble.in_short(OSError('gone away\n\tIs it running?\n')) == 'gone away'
    assert trouble.in_short(ValueError()) == 'ValueError'


# Neither.


def test_an_object_that_is_not_there_is_neither(storage):
    connection = storage.db.open(transaction.TransactionManager())
    exc = raised_by(lambda: connection.get(b'\0\0\0\0\0\0\1\0'))
    connection.close()
    assert isinstance(exc, POSKeyError)
    assert not trouble.is_disconnected(exc)
    assert not trouble.is_conflict(exc)


def test_transient_errors_of_others_are_conflicts():
    class BusyElsewhere(TransientError):
        pass

    assert trouble.is_conflict(BusyElsewhere())


def test_an_applications_own_causes_are_its_own():
    """Its other server is not ours."""
    psycopg2 = pytest.importorskip('psycopg2')
    exc = ValueError('no rates today')
    exc.__cause__ = psycopg2.OperationalError('their server is down')
    assert not trouble.is_disconnected(exc)
    assert not trouble.is_conflict(exc)


def test_an_exception_that_is_its_own_cause():
    exc = ConflictError('again')
    exc.__cause__ = exc
    assert trouble.is_conflict(exc)


@pytest.mark.parametrize(
    'exc', [ValueError('x'), KeyError('x'), OSError(104, 'reset'), Exception()]
)
def test_ordinary_exceptions_are_neither(exc):
    assert not trouble.is_disconnected(exc)
    assert not trouble.is_conflict(exc)
