"""Object ids that are given out once, also when a ZEO server was killed.

A ZEO client fetches object ids in advance, and keeps them over a restart of its
server.  A server that was killed knows only the ids that were committed, so it
gives others out a second time.  Between two clients that is a ConflictError for
one of them, and its next try takes other ids.  Within one client nobody would
notice: a transaction that is open over the restart gets the same id for two new
objects, and one of them, a job like any other, is silently not stored.

So the list that the client keeps its ids in is replaced by one that forgets
them when the client was connected again, and lets only those in that are above
all that were given before.  Works in any thread that asks for an id; commits
nothing and knows nothing of jobs.
"""

import logging
import threading
import weakref

from ZODB.utils import u64

from zodbjobs.runtime import storages

log = logging.getLogger('zodbjobs.oids')

#: How often the server is asked, after a restart, for ids above all former ones; it gives 100
#: at a time.  Where more are missing it serves another file, and former ids mean nothing there.
MOST_ROUNDS = 2000


def give_ids_once(db):
    """Let ZEO clients under `db` (a ZODB.DB), and under its sisters, give no object id twice.

    Once per client is enough, and more do no harm; other storages are left alone.
    """
    for each in (db, *db.databases.values()):
        if storages.kind(each) == storages.ZEO:
            _protect(storages.base(each))


def _protect(storage):
    with _guard:
        # A plain list is what ZEO's client works on; anything else would be its own answer.
        if type(getattr(storage, '_oids', None)) is list:
            storage._oids = FreshIds(storage)


_guard = threading.Lock()


class FreshIds:
    """Stands for the list of ids fetched in advance by `storage`, a ZEO.ClientStorage.

    The client takes ids from it with `pop`.  When that raises IndexError it asks
    the server, inserts the answer, and tries again until there is an id.
    """

    def __init__(self, storage):
        self._storage = weakref.ref(storage)
        self._guard = threading.Lock()
        self._asking = threading.local()  # .life: in which this thread found no id
        self._ids = list(storage._oids)
        self._life = self._connected_life()
        #: No higher id was fetched, so none was given.
        self._highest = max(map(u64, self._ids), default=0)
        #: The highest id fetched in former lives of the server.
        self._floor = 0
        self._rounds = 0

    def pop(self):
        with self._guard:
            self._notice_restart()
            if not self._ids:
                self._asking.life = self._life
                raise IndexError('no object ids are left')
            return self._ids.pop()

    def __setitem__(self, where, oids):
        """Take what the server gave, if it is still the server that was asked."""
        with self._guard:
            self._notice_restart()
            if getattr(self._asking, 'life', None) != self._life:
                return  # nobody knows which of the two servers has answered: ask again
            oids = list(oids)
            fresh = [oid for oid in oids if u64(oid) > self._floor]
            self._highest = max(self._highest, *map(u64, oids))
            self._ids[where] = fresh
            if not fresh:
                self._count_round()

    def __len__(self):
        return len(self._ids)

    def _notice_restart(self):
        life = self._connected_life()
        if life != self._life:
            self._life = life
            self._ids.clear()
            self._floor = self._highest
            self._rounds = 0

    def _count_round(self):
        self._rounds += 1
        if self._rounds >= MOST_ROUNDS:
            log.warning('the ZEO server gives much lower object ids than before: taking them')
            self._floor = self._highest = 0

    def _connected_life(self):
        """Changes whenever the client was connected to a server (again)."""
        return self._storage()._connection_generation
