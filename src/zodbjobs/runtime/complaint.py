"""Saying that the storage has trouble: once when it begins, and once when it is over.

A dispatcher and all its workers meet the same trouble many times, in many
guises.  They bring it to one `Complaints`, which logs a line when the state of
things changes.  `is_news` keeps the storages' own libraries from telling the
same, with a traceback for each try.

Used in any thread; touches no database.
"""

import logging
import threading

from zodbjobs import clock
from zodbjobs.runtime import trouble

log = logging.getLogger('zodbjobs.events')

#: The kinds of trouble that have a name.
LOST, REFUSED = 'lost', 'refused'

#: Who has waited for a server may learn of the loss when it is back: all is well when nobody has
#: complained for so long since then.
QUIET_SECONDS = 1


class Complaints:
    """What `who` (a text, for the log) has met and not yet seen the end of.

    `is_connected()` tells whether the storage has its server, or needs none.
    """

    def __init__(self, who, is_connected=lambda: True, quiet_seconds=QUIET_SECONDS):
        self.who = who
        self.is_connected = is_connected
        self.quiet_seconds = quiet_seconds
        self._guard = threading.Lock()
        self._told = set()
        self._ended = set()  # those of them that seem to be over
        self._over_since = None  # monotonic seconds: when all of them seemed to be over

    def hear(self, what, error):
        """Say that `what` could not be done because of `error`, unless its like was said."""
        kind = _kind(error) or (what.split(' job ')[0], type(error))
        with self._guard:
            self._over_since = None
            self._ended.discard(kind)
            if kind in self._told:
                return
            self._told.add(kind)
        if kind == LOST:
            log.error('%s lost the storage: %s', self.who, trouble.in_short(error))
        elif kind == REFUSED:
            log.error('%s cannot write to the storage: %s', self.who, trouble.in_short(error))
        else:
            log.critical('%s %s', self.who, what, exc_info=error)

    def is_well(self, wrote):
        """The storage was read, and if `wrote` is true written; returns whether all is well.

        Says so if there was trouble.  It may take a moment: ask again.
        """
        if not self._told:
            return True  # as nearly always
        # What was read may come from a cache; only a write shows whether one can write.
        lasting = {REFUSED} if self.is_connected() else {REFUSED, LOST}
        with self._guard:
            self._ended |= self._told if wrote else self._told - lasting
            if self._ended != self._told:
                return False
            now = clock.monotonic()
            self._over_since = now if self._over_since is None else self._over_since
            if now - self._over_since < self.quiet_seconds:
                return False
            self._told, self._ended = set(), set()
        log.info('%s goes on', self.who)
        return True


def _kind(error):
    if trouble.is_disconnected(error):
        return LOST
    return REFUSED if trouble.is_refused(error) else None


#: Where the libraries log: ZODB and ZEO, RelStorage, the transaction package ("txn.<thread>").
_LIBRARIES = ('ZODB', 'ZEO', 'relstorage', 'txn')

#: What this one warns of is told by the exceptions that it raises.
_CONNECTIONS = 'relstorage.adapters.'


def is_news(record):
    """A filter for a log handler: whether a LogRecord tells more than that the storage is lost."""
    library = record.name.partition('.')[0]
    if library not in _LIBRARIES or record.levelno < logging.WARNING:
        return True
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        return _kind(error) is None
    return not record.name.startswith(_CONNECTIONS)
