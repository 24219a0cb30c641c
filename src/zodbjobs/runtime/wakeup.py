"""Waking whoever waits for jobs, at the moment of the commit that brings them.

A ring is a hint and carries nothing: a listener looks at the database itself,
and its slow poll finds what no ring told of.  So nothing here may cost the
application a commit, and a ring too many does no harm.

Commits of this process ring by an after-commit hook on the transaction that
did the work, in its thread.  Those of other processes ring

* over ZEO in the client's I/O thread, by the invalidations the server sends;
* on PostgreSQL in a thread of ours that LISTENs to what the hooks NOTIFY;
* not at all elsewhere.

Whoever listens is called in those threads and only passes it on.  Nothing here
begins, commits or reads a transaction, and no reactor is imported.
"""

import contextlib
import logging
import random
import selectors
import socket
import threading
import weakref

import zope.interface
from ZODB.interfaces import IStorageWrapper

from zodbjobs.runtime import storages, tracing, trouble
from zodbjobs.runtime.oids import give_ids_once

log = logging.getLogger('zodbjobs.wakeup')

#: Guards the tables of this module, never held while a listener is called.
_lock = threading.Lock()

#: Storage object -> its `_Exchange`.  The storage and not the database is the
#: key, as several databases may stand on one storage.
_exchanges = weakref.WeakKeyDictionary()

#: ZODB.DB -> its `_Exchange`, so that a put need not look through wrappers each time.
_of_db = weakref.WeakKeyDictionary()


#: What a commit can bring.  Within a process those who wait for the one are not woken
#: for the other.
JOBS, FEEDS = 'jobs', 'feeds'


def listen(db, call, topic=JOBS):
    """Have `call()` called when a commit to `db` may have brought jobs, or what `topic` says.

    `call` takes no argument, may be called in any thread, at any time, for
    nothing, and must return at once.  Returns a `Listener`.
    """
    return Listener(_exchange_of(db), db, call, topic)


class Listener:
    """Somebody who is called at commits, until `close`."""

    def __init__(self, exchange, db, call, topic=JOBS):
        self._exchange = exchange
        self._call = call
        self.topic = topic
        #: None: nothing was said yet, so that whatever changes may matter.
        self._watched = None
        exchange.add(self, db)

    @property
    def pushes(self):
        """Whether commits of other processes ring here, at this moment (bool)."""
        return self._exchange.pushes

    @property
    def chooses(self):
        """Whether it makes a difference what is watched."""
        return self._exchange.chooses

    def watch(self, oids):
        """Ring for changes of these objects only, a set of 8-byte oids, and of no former ones.

        That goes for other processes' commits over ZEO; the others are known
        to concern jobs.  Until the first `watch` every change rings.
        """
        self._watched = set(oids)

    def watch_also(self, oids):
        """Ring for changes of these objects, too."""
        if self._watched is not None:
            self._watched.update(oids)

    def close(self):
        """Never call again; a call that is under way in another thread may still end."""
        self._exchange.remove(self)

    def ring(self):
        """Call; whatever goes wrong there is the listener's own trouble."""
        try:
            self._call()
        except Exception:
            log.exception('a listener failed when it was woken')

    def concerns(self, oids):
        watched = self._watched
        return watched is None or not watched.isdisjoint(oids)


def ring_after_commit(connection, topic=JOBS):
    """When the transaction of `connection` (a ZODB connection) is committed, ring.

    As often as it is called in one transaction, it rings once for each topic; or a few times,
    if other threads put things at the same time.
    """
    exchange = _exchange_of(connection.db())
    transaction = connection.transaction_manager.get()
    latest = exchange.hooked.get(topic)
    if latest is None or latest() is not transaction:  # a ring too many does no harm
        exchange.hooked[topic] = weakref.ref(transaction)
        transaction.addAfterCommitHook(_committed, (exchange, topic))


def _committed(successful, exchange, topic):
    """The after-commit hook.  It may not touch a persistent object, nor raise."""
    if successful:
        exchange.rung_here(topic)


def job_added(event):
    """Ring for an event that says so by ``event.rings``, in ``event.connection``."""
    connection = event.connection
    if connection is None:
        return
    ring_after_commit(connection, FEEDS if event.rings == FEEDS else JOBS)
    job = getattr(event, 'object', None)
    if getattr(job, '_attempts', None) == 0:
        tracing.carry(job)


def hang_up(db):
    """Forget `db`: close its listeners and the connections kept for it.

    For a process that opens many databases after each other; call it before
    ``db.close()``.
    """
    with _lock:
        exchange = _exchanges.pop(storages.base(db), None)
        for each in [each for each, found in _of_db.items() if found is exchange]:
            del _of_db[each]
    if exchange is not None:
        exchange.close()


def _exchange_of(db):
    exchange = _of_db.get(db)
    if exchange is None:
        storage = storages.base(db)
        with _lock:
            exchange = _exchanges.get(storage)
            if exchange is None:
                exchange = _exchanges[storage] = _new_exchange(db)
                give_ids_once(db)
            _of_db[db] = exchange
    return exchange


def _new_exchange(db):
    if storages.kind(db) == storages.ZEO:
        return _ZEOExchange()
    if storages.can_connect(db):
        return _PostgreSQLExchange(storages.adapter(db))
    return _Exchange()


class _Exchange:
    """The listeners of one storage.  This one knows of commits in this process only."""

    pushes = chooses = False

    def __init__(self):
        self._guard = threading.RLock()
        #: {topic: a weak reference to the transaction that got the latest hook}
        self.hooked = {}
        self.listeners = ()  # replaced as a whole: other threads walk it

    def add(self, listener, db):
        with self._guard:
            self.listeners += (listener,)

    def remove(self, listener):
        with self._guard:
            self.listeners = tuple(each for each in self.listeners if each is not listener)

    def close(self):
        for listener in self.listeners:
            listener.close()

    def ring_all(self, topic=None):
        for listener in self.listeners:
            if topic in (None, listener.topic):
                listener.ring()

    def rung_here(self, topic):
        """A transaction of this process was committed."""
        self.ring_all(topic)


# ZEO


class _ZEOExchange(_Exchange):
    pushes = chooses = True

    def __init__(self):
        super().__init__()
        self._forwarded = weakref.WeakSet()

    def add(self, listener, db):
        with self._guard:
            super().add(listener, db)
            # The storage under a database has one place for a wrapper, where
            # its adapter is; ours goes there and hands everything on to it.
            # It stays when the last listener goes, and then does only that.
            if db not in self._forwarded:
                self._forwarded.add(db)
                db.storage.registerDB(_Forwarder(db._mvcc_storage, self))

    def changed(self, oids):
        for listener in self.listeners:
            if listener.concerns(oids):
                listener.ring()


@zope.interface.implementer(IStorageWrapper)
class _Forwarder:
    """Stands between a ZEO client and the database's adapter; called in the I/O thread of ZEO."""

    def __init__(self, adapter, exchange):
        self._adapter = adapter
        self._exchange = exchange
        self.references = adapter.references
        self.transform_record_data = adapter.transform_record_data
        self.untransform_record_data = adapter.untransform_record_data

    def invalidate(self, transaction_id, oids, version=''):
        oids = list(oids)  # an iterable by contract, and it is read twice
        self._adapter.invalidate(transaction_id, oids)
        self._exchange.changed(oids)

    def invalidateCache(self):
        """The client was connected (again): anything may have happened."""
        self._adapter.invalidateCache()
        self._exchange.ring_all()


# PostgreSQL


class _PostgreSQLExchange(_Exchange):
    def __init__(self, adapter):
        super().__init__()
        self._adapter = adapter
        self._bell = _Bell(adapter)
        self._ear = None

    @property
    def pushes(self):
        ear = self._ear
        return ear is not None and ear.hears

    def add(self, listener, db):
        with self._guard:
            super().add(listener, db)
            if self._ear is None:
                self._ear = _Ear(self._adapter, self._bell, self.ring_all)
                self._ear.start()

    def remove(self, listener):
        with self._guard:
            super().remove(listener)
            ear = None
            if not self.listeners:
                ear, self._ear = self._ear, None
        if ear is not None:
            ear.stop()

    def close(self):
        super().close()
        self._bell.close()

    def rung_here(self, topic):
        self.ring_all(topic)
        self._bell.ring()


#: PostgreSQL's channels are per database, and RelStorage has one home in each.
_CHANNEL = 'zodbjobs_commits'


class _Bell:
    """Notifies other processes, through one connection kept open.  Any thread may ring."""

    def __init__(self, adapter):
        self._adapter = adapter
        self._errors = storages.errors(adapter)
        self._guard = threading.Lock()
        self._wanted = self._ringing = self._silent = self._closed = False
        self._connection = None
        #: The server's process for our connection: it signs the notifications.
        self.backend = None

    def ring(self):
        """Notify; what fails is logged, once, and otherwise left to the others' polls."""
        with self._guard:
            self._wanted = True
            if self._ringing or self._closed:
                return  # the thread that is at it notifies for us too, after our commit
            self._ringing = True
        # It ends soon: a thread that asks meanwhile has just spent several
        # round trips on a commit, and this is one.
        while self._take_wish():
            self._notify()

    def close(self):
        with self._guard:
            self._closed = True
            self._disconnect()

    def _take_wish(self):
        with self._guard:
            wanted, self._wanted = self._wanted, False
            self._ringing = wanted
            return wanted

    def _notify(self):
        kept = self._connection is not None
        try:
            try:
                self._send()
            except self._errors:
                self._disconnect()
                if not kept:
                    raise
                self._send()  # the kept connection may have been cut long ago: try a new one
            self._silent = False
        except self._errors as exc:
            self._disconnect()
            if not self._silent:
                log.info(
                    'cannot notify other processes of new jobs, they will poll: %s',
                    trouble.in_short(exc),
                )
            self._silent = True

    def _send(self):
        if self._connection is None:
            self._connection = storages.connect(self._adapter, 'notify')
            self.backend = self._connection.get_backend_pid()
        with self._connection.cursor() as cursor:
            cursor.execute(f'NOTIFY {_CHANNEL}')

    def _disconnect(self):
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class _Ear(threading.Thread):
    """Waits for notifications and rings; daemon, so that it never keeps a process alive."""

    #: After a failure the next try waits this long, then twice as long, up to
    #: the limit, each less a random part, so that not all clients come at once.
    FIRST_RETRY_SECONDS = 0.25
    LONGEST_RETRY_SECONDS = 30

    #: How long `stop` waits for the thread.  It may hang in an attempt to
    #: connect, which nobody can interrupt.
    STOP_SECONDS = 5

    def __init__(self, adapter, bell, ring):
        super().__init__(name='zodbjobs listen', daemon=True)
        self._adapter = adapter
        self._errors = storages.errors(adapter)
        self._bell = bell
        self._ring = ring
        self._stopping = False
        self._stop_here, self._stop_there = socket.socketpair()
        self.hears = False

    def stop(self):
        self._stopping = True
        self._stop_there.close()
        if threading.current_thread() is not self:
            self.join(self.STOP_SECONDS)

    def run(self):
        failures = 0
        with self._stop_here:
            while not self._stopping:
                try:
                    with contextlib.closing(storages.connect(self._adapter, 'listen')) as line:
                        self._subscribe(line)
                        if failures:
                            log.info('hearing of new jobs again')
                        failures = 0
                        self._attend(line)
                except self._errors as exc:
                    if not failures and not self._stopping:
                        log.info(
                            'cannot hear of new jobs, polling instead: %s', trouble.in_short(exc)
                        )
                    failures += 1
                finally:
                    self.hears = False
                if failures:
                    self._wait(self._retry_seconds(failures))

    def _subscribe(self, connection):
        with connection.cursor() as cursor:
            cursor.execute(f'LISTEN {_CHANNEL}')
        self.hears = True
        self._ring()  # for what was committed while nobody listened

    def _attend(self, connection):
        while self._wait(None, connection):
            connection.poll()  # raises when the line is cut
            strangers = [each for each in connection.notifies if each.pid != self._bell.backend]
            connection.notifies.clear()
            if strangers:  # our own process was rung already
                self._ring()

    def _wait(self, timeout, *others):
        """Whether one of `others` has something to read; False: the time is up, or we stop."""
        with selectors.DefaultSelector() as selector:
            for each in (self._stop_here, *others):
                selector.register(each, selectors.EVENT_READ)
            ready = [key.fileobj for key, _ in selector.select(timeout)]
        return bool(ready) and self._stop_here not in ready

    def _retry_seconds(self, failures):
        longest = self.FIRST_RETRY_SECONDS * 2 ** min(failures - 1, 20)
        return min(longest, self.LONGEST_RETRY_SECONDS) * random.uniform(0.5, 1)
