"""Packing on a schedule, by one of the processes that share a database.

When the last pack was begun stands in the mapping of queues: whoever writes it
first packs, and the others see that and leave it.

Runs in a thread of the reactor's pool, in a transaction of its own.
"""

import contextlib
import logging

import transaction
from ZODB.POSException import ConflictError

from zodbjobs import clock
from zodbjobs.interfaces import KEY

log = logging.getLogger('zodbjobs.events')

#: What is kept: states of the last day can be looked at, and undone.
KEEP_DAYS = 1

#: Between two looks whether it is time, at most.
LOOK_SECONDS = 600


def pack_if_due(db, every, keep_days=KEEP_DAYS):
    """Pack `db` unless that was begun in the last `every` seconds; whether it was done now."""
    if not _is_ours(db, every):
        return False
    before = db.getSize()
    db.pack(days=keep_days)
    log.info('packed %s: %s bytes before, %s now', db.storage.getName(), before, db.getSize())
    return True


def _is_ours(db, every):
    """Whether a pack is due, and nobody else has just begun it."""
    manager = transaction.TransactionManager()
    with contextlib.closing(db.open(manager)) as connection:
        queues = connection.root().get(KEY)
        now = clock.micros()
        packed = None if queues is None else queues.packed
        if queues is None or (packed is not None and packed + every * clock.SECOND > now):
            manager.abort()
            return False
        queues.packed = now
        try:
            manager.commit()
        except ConflictError:
            manager.abort()
            return False
    return packed is not None  # the first time only the day begins from which is counted


def pack_every(dispatcher, every, keep_days=KEEP_DAYS):
    """Have the process of `dispatcher` pack its database every so many seconds."""
    reactor = dispatcher.reactor

    def look():
        if dispatcher.activated:
            reactor.callInThread(pack)
        reactor.callLater(min(every, LOOK_SECONDS), look)

    def pack():
        try:
            pack_if_due(dispatcher.db, every, keep_days)
        except Exception:
            log.exception('%s could not be packed', dispatcher.db.storage.getName())

    reactor.callWhenRunning(look)
