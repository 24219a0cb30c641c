"""One storage for all processes of a simulation, and what each of them sees of it.

`Server` holds the data.  Each process has a `Client` of it, as with ZEO: it
hears of the others' commits in their order, but perhaps late, and its line may
be cut.  A `Database` on a client gives connections that pass the turn where a
transaction begins, commits and has been committed, and that raise at a vote,
or after it, what the simulation has planned.

Runs in the thread of whichever actor has the turn.
"""

import collections

import ZODB
import ZODB.Connection
from transaction._transaction import Status
from ZEO.Exceptions import ClientDisconnected
from ZODB.ConflictResolution import ConflictResolvingStorage
from ZODB.MappingStorage import MappingStorage
from ZODB.POSException import ConflictError
from ZODB.utils import p64, u64
from zope.interface import directlyProvides, providedBy

#: What can go wrong in a commit.
CONFLICT = 'conflict'  # a ConflictError at the vote
DISCONNECTED = 'disconnected'  # the line is cut before the commit
UNKNOWN = 'unknown'  # the line is cut after the commit: nobody can tell
ERROR = 'error'  # the storage, or another data manager, raises something of its own

KINDS = (CONFLICT, DISCONNECTED, UNKNOWN, ERROR)


class PlannedError(Exception):
    """An error in a commit that the simulation has planned."""


class Commit(
    collections.namedtuple('Commit', 'tid oids process snapshot clock actor')  # noqa: PYI024
):
    """A commit: its tid, the oids it wrote, who did it, what he saw, his clock, his thread."""


class MemoryStorage(ConflictResolvingStorage, MappingStorage):
    """All revisions of all objects in memory; what can be merged is merged."""

    def __init__(self):
        super().__init__('simulation')
        self._resolved = []

    def tpc_begin(self, transaction, tid=None):
        self._resolved = []
        super().tpc_begin(transaction, p64(u64(self._ltid) + 16))

    def store(self, oid, serial, data, version, transaction):
        revisions = self._data.get(oid)
        if revisions and serial != revisions.maxKey():
            newest = revisions.maxKey()
            data = self.tryToResolveConflict(oid, newest, serial, data)
            serial = newest
            self._resolved.append(oid)
        super().store(oid, serial, data, version, transaction)

    def tpc_vote(self, transaction):
        return self._resolved


class Server:
    """The storage, its clients, and the log of commits, which the director reads."""

    def __init__(self, storage):
        self.storage = storage
        self.clients = []
        self.commits = []

    def committed(self, client, commit):
        """Tell the other clients, and the director."""
        self.commits.append(commit)
        for other in self.clients:
            if other is not client:
                other.told(commit.tid, commit.oids)

    def close(self):
        self.clients.clear()
        self.storage.close()


class Client:
    """The storage as a process sees it.

    `lags`: what others commit is seen when `deliver` is called, not at once.
    `ring()` is called then.
    """

    def __init__(self, server, process, ring=None, lags=False):
        self.server = server
        self.process = process
        self.ring = ring
        self.lags = lags
        self.is_cut = False
        self.snapshot = None  # of the transaction that is committed now
        self.faults = []  # [votes to go, kind]: planned for this process
        self._adapter = None
        self._undelivered = []
        self._written = []
        self._last = server.storage.lastTransaction()
        directlyProvides(self, *providedBy(server.storage))
        server.clients.append(self)

    def __getattr__(self, name):
        return getattr(self.server.storage, name)

    # what others did

    def told(self, tid, oids):
        """Somebody committed these oids."""
        self._undelivered.append((tid, oids))
        if not self.lags and not self.is_cut:
            self.deliver()

    def deliver(self):
        """See what others have committed so far; whether that was anything."""
        if not self._undelivered or self.is_cut:
            return False
        for tid, oids in self._undelivered:
            self._last = tid
            if self._adapter is not None:
                self._adapter.invalidate(tid, oids)
        self._undelivered = []
        if self.ring is not None:
            self.ring()
        return True

    def cut(self):
        """The line to the server breaks: reading and writing raise from now on."""
        self.is_cut = True
        self.process.met(DISCONNECTED)

    def mend(self):
        """The line is there again; what is in the caches is not trusted."""
        self.is_cut = False
        self.deliver()
        self._adapter.invalidateCache()

    def drop(self):
        """The process is gone."""
        self.server.clients.remove(self)

    def _reach(self):
        if self.is_cut:
            raise ClientDisconnected('the line of this process is cut')

    # the storage's interface, as far as it is not handed through

    def registerDB(self, adapter):
        self._adapter = adapter

    def lastTransaction(self):
        return self._last

    def loadBefore(self, oid, tid):
        self._reach()
        return self.server.storage.loadBefore(oid, tid)

    def new_oid(self):
        self._reach()
        return self.server.storage.new_oid()

    def tpc_begin(self, transaction):
        self._reach()
        self._written = []
        self.server.storage.tpc_begin(transaction)

    def store(self, oid, serial, data, version, transaction):
        self._written.append(oid)
        return self.server.storage.store(oid, serial, data, version, transaction)

    def tpc_vote(self, transaction):
        resolved = self.server.storage.tpc_vote(transaction)
        self._fail(CONFLICT, DISCONNECTED, ERROR)
        return resolved

    def tpc_finish(self, transaction, func=lambda tid: None):
        self.deliver()  # a server tells of what came before in its answer

        def finished(tid):
            self._last = tid
            func(tid)

        tid = self.server.storage.tpc_finish(transaction, finished)
        process = self.process
        self.server.committed(
            self,
            Commit(
                tid, self._written, process, self.snapshot, process.began_micros,
                process.stage.current,
            ),
        )  # fmt: skip
        self._fail(UNKNOWN)
        return tid

    def _fail(self, *kinds):
        """Raise what is planned for this vote, if it is of one of these kinds."""
        if not self.faults or self.process.stage.current is None:
            return
        votes, kind = self.faults[0]
        if kind not in kinds:
            if UNKNOWN not in kinds and votes > 1:
                self.faults[0][0] -= 1
            return
        if votes > 1:
            self.faults[0][0] -= 1
            return
        self.faults.pop(0)
        self.process.met(kind)
        if kind == CONFLICT:
            raise ConflictError('planned by the simulation')
        if kind == ERROR:
            raise PlannedError('planned by the simulation')
        if kind == UNKNOWN:
            self._adapter.invalidateCache()  # as a client does that was connected again
        raise ClientDisconnected('planned by the simulation')


class Connection(ZODB.Connection.Connection):
    """A connection that passes the turn at the points where others can come between."""

    def newTransaction(self, transaction, sync=True):
        if not sync:
            super().newTransaction(transaction, sync)
            return
        process = self.db().process
        process.turn('begin')
        super().newTransaction(transaction, sync)
        process.has_begun()

    def tpc_begin(self, transaction):
        process = self.db().process
        process.turn('commit')
        process.line.snapshot = self._normal_storage._start
        super().tpc_begin(transaction)

    def afterCompletion(self, transaction):
        super().afterCompletion(transaction)
        if transaction.status is Status.COMMITTED:
            self.db().process.turn('committed')


class Database(ZODB.DB):
    """The database of one simulated process."""

    klass = Connection

    def __init__(self, process):
        self.process = process
        super().__init__(process.line)
