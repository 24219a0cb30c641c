"""What an exception from the database means: try again, or the database is out of reach.

A *conflict* is answered by doing the transaction again, a *lost connection* by
waiting for the server, and a database that *refuses* writes (read-only, or its
disk is full) by waiting for whoever looks after it.  None is the fault of a job.
What was found by cutting real connections at every step of a transaction:

* ZEO raises ClientDisconnected everywhere, and calls it transient.
* RelStorage lets the driver's exception through, and psycopg2 does not always
  use OperationalError: a server that was shut down at once gives the bare
  DatabaseError.  A lost connection met while taking a lock is dressed as a
  ConflictError, with the driver's exception as its ``__cause__``.
* A lost connection in ``commit()`` does not tell whether the transaction was
  committed; look at what it wrote.  ``abort()`` and the next ``begin()`` may
  raise once more.

* A full disk is an OSError from a FileStorage, and over ZEO a ServerException
  that names it; the next calls of that client may find themselves disconnected.

Neither ZEO, RelStorage nor a driver is imported: classes are known by name.
"""

import errno

from transaction.interfaces import TransientError
from ZODB.POSException import POSError

_LOST = frozenset((
    'ZEO.Exceptions.ClientDisconnected',
    'relstorage.adapters.interfaces.ReplicaClosedException',
    'relstorage.storage.interfaces.StorageDisconnectedDuringCommit',
))  # fmt: skip

#: Transient although its class does not say so: "Retrying the transaction may succeed."
_LOCKED = 'relstorage.adapters.interfaces.UnableToAcquireCommitLockError'

#: The server gave up the commit lock between the votes that client-side
#: conflict resolution takes, and somebody else committed meanwhile.
_SERVER_EXCEPTION = 'ZEO.Exceptions.ServerException'
_REUSED_OID = 'A different object already has the same oid'
_LOST_COMMIT_LOCK = 'finished called wo lock'

#: RelStorage wraps once; the limit is for an exception that names itself its cause.
_DEEPEST_CAUSE = 4

_DRIVERS = ('psycopg2', 'psycopg2cffi')

#: SQLSTATE of an ended session: shutdown, crash, starting up, idle too long
#: (outside and inside a transaction), no free session.  Class 08 is lost connections.
_ENDED_SESSION = frozenset(('57P01', '57P02', '57P03', '57P05', '25P03', '53300'))
_CONNECTION_CLASS = '08'

#: SQLSTATE: class 40 is serialization failures and deadlocks, 55P03 a lock not had in time.
#: SQLSTATE: a disk is full; a session that may only read, as on a standby.
_REFUSALS = frozenset(('53100', '25006'))

#: The quota of an address (``file:Data.fs?quota=1GB``) is one more way to be full.
_REFUSED = frozenset((
    'ZODB.POSException.ReadOnlyError',
    'ZODB.FileStorage.FileStorage.FileStorageQuotaError',
))  # fmt: skip

#: What the system says of a disk that takes no more: full, a user's share of it is, the
#: largest size of a file, mounted for reading only.
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS))

_ROLLBACK_CLASS = '40'
_LOCK_NOT_AVAILABLE = '55P03'


def is_disconnected(exc):
    """Whether `exc` says that the database cannot be reached (now)."""
    return any(_is_lost(each) for each in _told_by_storage(exc))


def is_conflict(exc):
    """Whether `exc` is transient: the same transaction, done again at once, may succeed."""
    if is_disconnected(exc):
        return False
    if isinstance(exc, TransientError) or _is_reused_oid(exc):
        return True
    names = _names(exc)
    if _SERVER_EXCEPTION in names:
        return _LOST_COMMIT_LOCK in str(exc)
    code = _sqlstate(exc, names)
    return _LOCKED in names or code[:2] == _ROLLBACK_CLASS or code == _LOCK_NOT_AVAILABLE


def is_refused(exc, in_commit=True):
    """Whether `exc` says that the database takes no writes (now), as it is full or read-only.

    An OSError may come from the database's files in a commit; anywhere else
    (`in_commit` False) it is of somebody's own files.
    """
    for each in _told_by_storage(exc):
        names = _names(each)
        if not _REFUSED.isdisjoint(names) or _sqlstate(each, names) in _REFUSALS:
            return True
        if _SERVER_EXCEPTION in names and _errno_at_server(each) in _FULL:
            return True
        if in_commit and isinstance(each, OSError) and each.errno in _FULL:
            return True
    return False


def _errno_at_server(exc):
    """The number of the OSError that a ServerException stands for, or None."""
    # Its arguments are ('builtins.OSError', (28, 'No space left on device')).
    name, details = (*exc.args, None, None)[:2]
    return details[0] if name == 'builtins.OSError' and details else None


def _is_reused_oid(exc):
    """Whether ZODB met an oid twice.

    A ZEO server that was killed gives oids out again (see `zodbjobs.runtime.oids`),
    also one that another client has for a new object and we have in our cache
    since it was stored.  The next try takes others.
    """
    return type(exc) is ValueError and exc.args == (_REUSED_OID,)


def in_short(exc):
    """What `exc` says, in one line: a server's messages go on with advice."""
    lines = str(exc).strip().splitlines()
    return lines[0] if lines else type(exc).__name__


def _is_lost(exc):
    names = _names(exc)
    if not _LOST.isdisjoint(names):
        return True
    if _is_driver(names, 'InterfaceError'):
        return True  # the connection or its cursor is closed already
    code = _sqlstate(exc, names)
    if code:
        return code in _ENDED_SESSION or code[:2] == _CONNECTION_CLASS
    # Without a code it comes from the client's side; programming errors, which
    # are DatabaseErrors too, have classes of their own.
    return _is_driver(names, 'OperationalError') or _is_driver(names[:1], 'DatabaseError')


def _told_by_storage(exc):
    """`exc` and, as long as it is a storage's exception, what the storage says caused it.

    Not the causes of others: an application that lost its own, other server
    has lost nothing of ours.
    """
    yield exc
    for _ in range(_DEEPEST_CAUSE):
        if not isinstance(exc, POSError) or exc.__cause__ is None:
            return
        exc = exc.__cause__
        yield exc


def _names(exc):
    """Dotted names of the class of `exc` and of those it derives from, as a list."""
    return [f'{each.__module__}.{each.__qualname__}' for each in type(exc).__mro__]


def _is_driver(names, name):
    return any(f'{driver}.{name}' in names for driver in _DRIVERS)


def _sqlstate(exc, names):
    """The five characters PostgreSQL gives an error, '' for anything else."""
    if not _is_driver(names, 'Error'):
        return ''
    return getattr(exc, 'pgcode', None) or ''
