"""Delivering notices of feeds to handlers, and waiting for what comes to a feed.

Handlers of this process are called by a `Follower`, a thread for each mapping of
feeds, which reads the log after every commit that may have brought something and
knows up to which number each handler has heard.  So it does not matter whose
commit it was, nothing is delivered twice, and a handler that is slow or raises
harms no publisher.

Who waits for a message waits in his own thread, and begins a new transaction on
his connection each time somebody else's commit may have brought one.

Rings come from `wakeup`; where a storage does not push, a poll finds what other
processes commit.
"""

import contextlib
import logging
import threading
import weakref

import transaction
from transaction.interfaces import NoTransaction
from ZODB.POSException import POSKeyError

from zodbjobs import clock, local
from zodbjobs.interfaces import (
    ArrivalAwaited,
    HandlerRegistered,
    HandlerRemoved,
    ReassignedError,
)
from zodbjobs.runtime import trouble, wakeup

log = logging.getLogger('zodbjobs.feeds')

#: Looks without a ring: where other processes' commits ring, and where they do not.
PUSHED_POLL_SECONDS = 10
POLL_SECONDS = 1

#: How long `stop` waits for a thread whose handler may be at work.
STOP_SECONDS = 5

#: Real time also where a test turns the clock: threads wait in it.
_machine = clock.SystemTime()

#: db -> {oid of feeds: Follower}
_followers: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def attend(event):
    """Subscriber: do what feeds ask of the runtime."""
    if isinstance(event, ArrivalAwaited):
        wait(event)
    elif isinstance(event, HandlerRegistered):
        feeds = event.object
        since = feeds.last_number if event.since is None else event.since
        _follower_of(feeds).add(Subscriber(event.kind, event.handler, since, event.feed))
    elif isinstance(event, HandlerRemoved):
        feeds = event.object
        follower = _followers.get(feeds._p_jar.db(), {}).get(feeds._p_oid)
        if follower is None or not follower.remove(event.kind, event.handler):
            raise LookupError(f'{event.handler!r} is not registered for {event.kind}_notice')


# Handlers


class Subscriber:
    """A handler, what it wants to hear, and the number up to which it has heard.

    With the `kind` None it hears everything, and is called with the Notice.
    """

    #: Ends it; set by `follow`.
    close = None

    def __init__(self, kind, call, number, feed=None):
        self.kind = kind
        self.call = call
        self.number = number
        self.feed = feed

    def hear(self, notice):
        """Deliver `notice`, unless it was heard already."""
        if notice.number <= self.number:
            return
        self.number = notice.number
        if self.kind in (None, notice.kind) and self.feed in (None, notice.feed):
            try:
                self.call(*([notice] if self.kind is None else notice.arguments))
            except Exception:
                log.exception('a handler of %s_notice failed', notice.kind)


class Follower(threading.Thread):
    """Reads the notices of some feeds and calls handlers; a daemon, like all that only tell.

    Its connection is open only while it reads and calls, so a database may be
    closed at any other time, and then it ends.
    """

    def __init__(self, db, oid):
        super().__init__(name='zodbjobs feeds', daemon=True)
        self._db = db
        self._oid = oid
        self._ring = threading.Event()
        self._told = threading.Condition()
        self._subscribers = ()  # replaced as a whole: the thread walks it
        self._stopping = False
        self._silent = False
        self._rounds = 0
        self._listener = wakeup.listen(db, self._ring.set, wakeup.FEEDS)

    def add(self, subscriber):
        with self._told:
            self._subscribers += (subscriber,)
        self._ring.set()

    def remove(self, kind, call):
        """Forget a handler; whether it was there."""
        with self._told:
            kept = tuple(
                each for each in self._subscribers if each.kind != kind or each.call != call
            )
            found = len(kept) < len(self._subscribers)
            self._subscribers = kept
        return found

    def stop(self):
        """Call nobody any more; a call that is under way may still end."""
        self._stopping = True
        self._listener.close()
        self._ring.set()
        if threading.current_thread() is not self:
            self.join(STOP_SECONDS)

    def settle(self, seconds):
        """Wait until all that is committed by now was delivered; whether it was."""
        with self._told:
            wanted = self._rounds + 2  # the round under way may have begun before the commit
            self._ring.set()
            while self._rounds < wanted:
                if not self._told.wait(seconds):
                    return False
                self._ring.set()
        return True

    def run(self):
        while not self._stopping and hasattr(self._db, 'storage'):
            self._ring.clear()
            try:
                self._look()
                self._silent = False
            except Exception as error:
                self._complain(error)
            with self._told:
                self._rounds += 1
                self._told.notify_all()
            self._ring.wait(PUSHED_POLL_SECONDS if self._listener.pushes else POLL_SECONDS)
        self._listener.close()

    def _look(self):
        subscribers = self._subscribers
        if not subscribers:
            return
        manager = transaction.TransactionManager()
        with contextlib.closing(self._db.open(manager)) as connection:
            try:
                feeds = connection.get(self._oid)
                if self._listener.pushes:
                    self._listener.watch(feeds.oids())
                    manager.begin()  # what came before the watch is seen now
                for notice in feeds.follow(min(each.number for each in subscribers)):
                    for subscriber in subscribers:
                        subscriber.hear(notice)
            finally:
                manager.abort()

    def _complain(self, error):
        if isinstance(error, POSKeyError):
            return  # the feeds are not committed yet, or not there any more
        if not hasattr(self._db, 'storage') or trouble.is_conflict(error):
            self._ring.set()
        elif trouble.is_disconnected(error):
            if not self._silent:
                log.info('no notices, the database is out of reach: %s', trouble.in_short(error))
            self._silent = True
        else:
            log.exception('notices cannot be read')


def _follower_of(feeds):
    db, oid = feeds._p_jar.db(), feeds._p_oid
    with _lock:
        of_db = _followers.setdefault(db, {})
        follower = of_db.get(oid)
        if follower is None or not follower.is_alive():
            follower = of_db[oid] = Follower(db, oid)
            follower.start()
        return follower


def follow(feeds, call, since, feed=None):
    """Have ``call(notice)`` called for all that happens after `since`, in the follower's thread.

    Where notices are not kept any more there is one of the kind 'lost'.  Returns
    an object with ``close()``.
    """
    follower = _follower_of(feeds)
    subscriber = Subscriber(None, call, since, feed)
    subscriber.close = lambda: follower.remove(None, call)
    follower.add(subscriber)
    return subscriber


def settle(feeds, seconds=6):
    """Wait until handlers have heard of all that is committed; whether they have (for tests)."""
    follower = _followers.get(feeds._p_jar.db(), {}).get(feeds._p_oid)
    return follower is None or follower.settle(seconds)


def stop(db):
    """Call no handlers for feeds of `db` any more; do so before ``db.close()``."""
    with _lock:
        followers = _followers.pop(db, {})
    for follower in followers.values():
        follower.stop()


# Waiting


def wait(awaited):
    """Wait until a commit may have brought something; see `ArrivalAwaited`."""
    feed = awaited.object
    connection = feed._p_jar
    _refuse_changes(connection, feed)
    tokens = _tokens()
    if not awaited.ends:
        line = _Line(connection.db())
        awaited.ends.append(line.close)
        awaited.line = line
    else:
        line = awaited.line
        left = awaited.seconds
        started = _machine.monotonic()
        line.wait(left, awaited.sooner)
        if left is not None:
            awaited.seconds = max(0, left - (_machine.monotonic() - started))
    line.watch(feed)
    _begin(connection.transaction_manager)
    _check_owner(tokens)
    awaited.again = True


class _Line:
    """The listener of somebody who waits."""

    def __init__(self, db):
        self._ring = threading.Event()
        self._listener = wakeup.listen(db, self._ring.set, wakeup.FEEDS)
        self.close = self._listener.close

    def watch(self, feed):
        if self._listener.pushes:
            self._listener.watch(feed.oids())

    def wait(self, *limits):
        poll = PUSHED_POLL_SECONDS if self._listener.pushes else POLL_SECONDS
        self._ring.wait(min([poll, *(limit for limit in limits if limit is not None)]))
        self._ring.clear()


def _refuse_changes(connection, feed):
    """What was changed in this transaction would be lost: a new one has to begin."""
    if connection.transaction_manager.get()._resources:
        raise ValueError(
            f'there is nothing in {feed!r} now, and to wait for others a new transaction must'
            f' begin, but this one has changes: commit or abort first, or get(timeout=0)'
        )


def _tokens():
    """[(job, its token)] of the job that this thread runs, and of those it is a callback of."""
    found, job = [], local.getJob()
    while job is not None:
        found.append((job, getattr(job, '_token', None)))
        job = getattr(job, '_parent', None)
    return found


def _check_owner(tokens):
    """Raise ReassignedError if a running job went to another worker while it waited.

    Its commit would not conflict any more: it now sees what that one wrote.
    """
    for job, token in tokens:
        if getattr(job, '_token', None) != token:
            raise ReassignedError(f'{job!r} went to another worker while it waited')


def _begin(manager):
    if manager.explicit:  # such a one refuses to begin in the middle of a transaction
        with contextlib.suppress(NoTransaction):
            manager.abort()
    manager.begin()
