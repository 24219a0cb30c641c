"""The storages that are measured: fresh databases, with servers in processes of their own.

They are those of `zodbjobs.testing.storages` with two differences: ZEO's server
does not share our interpreter, and PostgreSQL syncs to disk, as it would for users.
"""

import contextlib
import os
import subprocess
import tempfile

import transaction
from ZODB.Connection import Connection

from benchmarks.measure import Tally, wait_until
from zodbjobs import Queue, Queues
from zodbjobs.interfaces import KEY
from zodbjobs.runtime import shared_file, wakeup, zeoserver
from zodbjobs.testing.storages import TestDatabase, postgres_database

TITLES = {
    'file': 'FileStorage',
    'zeo': 'ZEO (FileStorage behind a server process, unix socket)',
    'postgres': 'RelStorage on PostgreSQL (unix socket)',
}

#: Seconds until a ZEO server has its socket; it takes 1 to 2.
SERVER_SECONDS = 20

#: What the tests switch off, because nobody misses their data.
DURABLE = ('fsync', 'full_page_writes')


class Place(TestDatabase):
    """A database that is measured; opened by this process, and by others through `uri`.

    `producer` is a connection with a transaction manager of its own, for the
    thread that measures.  `tally` counts the commits of all other connections.
    """

    def __init__(self, kind, uri, several=True, path=None):
        self.path = path
        super().__init__(kind, uri, several)
        self._begin()

    def open(self):
        db = super().open()
        if self.tally is None:
            self.tally = Tally()
            db.klass = _counting(self.tally)
        return db

    tally = None

    def _begin(self):
        # The first connection has been made already and is not counted: it is for us.
        self.producer = self.db.open(transaction.TransactionManager())

    @property
    def manager(self):
        """The transaction manager of `producer`."""
        return self.producer.transaction_manager

    def fresh(self):
        """Open the database anew, with an empty queue; returns the queue.

        What stood in the database is garbage afterwards: a part begins with
        cold caches and meets nothing that an earlier one has left behind.
        """
        self.reopen()
        self.manager.begin()
        queues = self.producer.root()[KEY] = Queues()
        queue = queues[''] = Queue()
        self.manager.commit()
        return queue

    def reopen(self):
        """Close all that was opened and open the database anew."""
        super().reopen()
        self._begin()

    def file_size(self):
        """Bytes of the database's file."""
        return os.path.getsize(self.path)

    def close(self):
        if self._opened:
            self.manager.abort()
            for db in self._opened:
                wakeup.hang_up(db)
        super().close()
        self.tally = None


def _counting(tally):
    """A class of connections that tell `tally` how their commits end."""

    class CountedConnection(Connection):
        def tpc_finish(self, transaction):
            super().tpc_finish(transaction)
            tally.committed()

        def tpc_abort(self, transaction):
            super().tpc_abort(transaction)
            tally.failed()

    return CountedConnection


@contextlib.contextmanager
def file_place():
    with tempfile.TemporaryDirectory(prefix='bench-') as folder:
        path = os.path.join(folder, 'Data.fs')
        with contextlib.closing(Place('file', f'file:{path}', several=False, path=path)) as place:
            yield place


@contextlib.contextmanager
def zeo_place():
    # The path of a socket may have a hundred characters only: not in a folder of the project.
    with tempfile.TemporaryDirectory(prefix='bench-') as folder, _zeo_server(folder) as socket:
        with contextlib.closing(Place('zeo', f'zeo://{socket}')) as place:
            yield place


@contextlib.contextmanager
def _zeo_server(folder):
    """A ZEO server process on a file in `folder`; gives the path of its socket."""
    socket = os.path.join(folder, 'zeo')
    path = os.path.join(folder, 'Data.fs')
    ours, theirs = os.pipe()  # the server ends with us, also if we are killed
    server = zeoserver.start(path, socket, subprocess.DEVNULL, ours, linger=1)
    os.close(ours)
    try:
        if not wait_until(lambda: shared_file.is_answered(socket), SERVER_SECONDS):
            raise RuntimeError(f'no ZEO server after {SERVER_SECONDS} seconds')
        yield socket
    finally:
        server.terminate()
        server.wait()
        os.close(theirs)


@contextlib.contextmanager
def postgres_place():
    with postgres_database() as found:
        found.close()  # our own client is the one that is measured
        with durable(found.server):
            with contextlib.closing(Place('postgres', found.uri)) as place:
                yield place


@contextlib.contextmanager
def durable(server):
    """Have a PostgreSQL server sync what it commits, for as long as the block lasts."""
    former = {name: server.execute(f'SHOW {name}')[0][0] for name in DURABLE}
    _set(server, dict.fromkeys(DURABLE, 'on'))
    try:
        yield
    finally:
        _set(server, former)


def _set(server, settings):
    for name, value in settings.items():
        server.execute(f'ALTER SYSTEM SET {name} = {value}')
    server.execute('SELECT pg_reload_conf()')


#: Name of a storage -> a context manager that gives a Place on it.
PLACES = {'file': file_place, 'zeo': zeo_place, 'postgres': postgres_place}
