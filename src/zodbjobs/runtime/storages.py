"""Which kind of storage is underneath a database.

What can be promised depends on it: who may open the same data, whether the
storage tells about other processes' commits, how the death of a process shows.
Everybody else asks here and never looks at a storage's class.

Nothing is read from the database, nothing is written; any thread may ask.
Neither ZEO nor RelStorage is imported: a storage is known by the module its
class says it comes from, and whoever opened it has imported that already.
"""

import os
import socket

#: The answers of `kind`.
EXCLUSIVE = 'exclusive'  # one process only: FileStorage, MappingStorage, DemoStorage
ZEO = 'zeo'  # a client of a ZEO server, many hosts
POSTGRESQL = 'postgresql'  # RelStorage on PostgreSQL, many hosts
RELSTORAGE = 'relstorage'  # RelStorage on something else
UNKNOWN = 'unknown'  # a storage we know nothing of: assume the least

_EXCLUSIVE_MODULES = ('ZODB.FileStorage', 'ZODB.MappingStorage')
_POSTGRESQL_MODULE = 'relstorage.adapters.postgresql'

#: Where a wrapper keeps what it wraps: ZODB's BlobStorage, the wrappers that
#: compress or encrypt, ZODB's adapters.  BlobStorage comes first, as it answers
#: for every name of the storage within.
_INNER_NAMES = ('_BlobStorage__storage', 'base', '_storage')

#: Wrappers (compression, encryption, adapters) around wrappers: nobody stacks more.
_DEEPEST_WRAPPING = 10


def kind(db):
    """One of the words above for `db`, an open ZODB.DB, looking through wrappers."""
    storage = base(db)
    if _comes_from(storage, *_EXCLUSIVE_MODULES):
        return EXCLUSIVE
    if _comes_from(storage, 'ZEO.ClientStorage'):
        return ZEO
    if _comes_from(storage, 'relstorage'):
        return POSTGRESQL if _comes_from(storage._adapter, _POSTGRESQL_MODULE) else RELSTORAGE
    return UNKNOWN


def base(db):
    """The storage object that holds the data of `db`, without its wrappers.

    A DemoStorage writes to its `changes`, so that is where its data goes.
    """
    storage = db.storage
    for _ in range(_DEEPEST_WRAPPING):
        inner = _inside(storage)
        if inner is None:
            break
        storage = inner
    return storage


def is_connected(db):
    """Whether the storage of `db` has its server now; True where nobody can tell."""
    return getattr(base(db), 'is_connected', lambda: True)()


def adapter(db):
    """RelStorage's adapter of `db` (it knows how to connect), None for other storages."""
    return getattr(base(db), '_adapter', None)


def _inside(storage):
    """The storage that `storage` wraps, or None."""
    if _comes_from(storage, 'ZODB.DemoStorage'):
        return storage.changes
    for name in _INNER_NAMES:
        inner = getattr(storage, name, None)
        # ZEO's client has a ``_storage`` too: the name of the storage on the server.
        if hasattr(inner, 'tpc_begin'):
            return inner
    return None


def _comes_from(thing, *modules):
    """Whether the class of `thing`, or one it derives from, is defined in one of `modules`."""
    homes = [each.__module__ for each in type(thing).__mro__]
    return any(f'{home}.'.startswith(f'{module}.') for home in homes for module in modules)


# Connections of our own to a PostgreSQL server, beside RelStorage's.

#: A dead peer shows after 15 + 3 * 5 seconds, at both ends; the system's own
#: default is two hours, and firewalls forget silent connections sooner.
KEEPALIVE_IDLE_SECONDS = 15
KEEPALIVE_INTERVAL_SECONDS = 5
KEEPALIVE_COUNT = 3


def can_connect(db):
    """Whether `connect` works for `db`: PostgreSQL, through psycopg2 or psycopg2cffi.

    pg8000 has no way to wait for a notification in a thread of one's own.
    """
    return kind(db) == POSTGRESQL and hasattr(adapter(db).driver.driver_module, 'extensions')


def connect(adapter, purpose):
    """A new autocommitting psycopg2 connection to the server that `adapter` uses.

    It is made by RelStorage's own connection manager, so that every setting of
    the database (replicas, TLS, a search path) holds for it too.  `purpose` is
    a word shown in ``pg_stat_activity``.  Raises one of `errors`.
    """
    connection, cursor = adapter.connmanager.open(application_name=f'zodbjobs: {purpose}')
    connection.autocommit = True
    _keep_alive(connection.fileno())
    for name, value in (
        ('tcp_keepalives_idle', KEEPALIVE_IDLE_SECONDS),
        ('tcp_keepalives_interval', KEEPALIVE_INTERVAL_SECONDS),
        ('tcp_keepalives_count', KEEPALIVE_COUNT),
    ):
        cursor.execute(f'SET {name} = {value}')
    cursor.close()
    return connection


def errors(adapter):
    """The exceptions that say that a connection of `connect` does not work, as a tuple."""
    driver = adapter.driver
    return (driver.driver_module.Error, OSError, *driver.disconnected_exceptions)


def _keep_alive(descriptor):
    """Let the system ask every few seconds whether the other end of a TCP connection lives."""
    with socket.socket(fileno=os.dup(descriptor)) as line:
        if line.family not in (socket.AF_INET, socket.AF_INET6):
            return
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ('TCP_KEEPIDLE', KEEPALIVE_IDLE_SECONDS),
            ('TCP_KEEPINTVL', KEEPALIVE_INTERVAL_SECONDS),
            ('TCP_KEEPCNT', KEEPALIVE_COUNT),
        ):
            option = getattr(socket, name, None)  # the names differ between systems
            if option is not None:
                line.setsockopt(socket.IPPROTO_TCP, option, value)
