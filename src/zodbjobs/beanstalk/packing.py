"""Keeping a database of our own small: deleted jobs leave it when it has grown.

A file is packed when it has doubled since it was packed last, and by at least so
many bytes; a database in memory after so many commits.  A pack reads the live
objects, once, in a thread of the reactor's pool, while the gateway goes on.
"""

import logging
import os

from zodbjobs.runtime import storages

log = logging.getLogger('zodbjobs.beanstalk')

#: Seconds between looks at the size.
LOOK_SECONDS = 5

#: A database in memory keeps every revision: so many bytes of them are let be.
MEMORY_REVISIONS = 20_000


class Packing:
    """Packs `db`, whose file is at `path` (None: it is in memory), in threads of `reactor`.

    `growth`: bytes by which a file must have grown.
    """

    def __init__(self, db, path, growth, reactor):
        self.db = db
        self.path = path
        self.growth = growth
        self.reactor = reactor
        self._packed = self._size()
        self._at_work = False

    def start(self):
        self.reactor.callLater(LOOK_SECONDS, self._look)

    def _size(self):
        """Bytes of the file, or revisions in memory."""
        if self.path is not None:
            return os.path.getsize(self.path)
        return len(getattr(storages.base(self.db), '_transactions', ()))

    def is_due(self):
        growth = self._size() - self._packed
        if self.path is None:
            return growth >= MEMORY_REVISIONS
        return growth >= max(self.growth, self._packed)

    def _look(self):
        if not self._at_work and self.is_due():
            self._at_work = True
            self.reactor.callInThread(self._pack)
        self.reactor.callLater(LOOK_SECONDS, self._look)

    def _pack(self):
        try:
            self.db.pack()
        except Exception:
            log.exception('cannot pack')
        finally:
            self._packed = self._size()
            self._at_work = False
