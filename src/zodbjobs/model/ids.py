"""The unique ids of a queue's unfinished jobs.

Shared and written by producers, so only a put that names an id comes here, and
the index is split by hash: as a rule only equal ids collide.  A job that ends
does not write it; the entry of a finished job counts as free and is dropped by
the next claim.
"""

import zlib

from BTrees.OOBTree import OOBTree
from persistent import Persistent

SLOTS = 64


class UniqueIds(Persistent):
    """{id: job} in `SLOTS` trees.  This record itself is written once."""

    def __init__(self):
        self.slots = tuple(OOBTree() for _ in range(SLOTS))

    def _slot(self, id):
        return self.slots[zlib.crc32(id.encode('utf-8', 'surrogatepass')) % SLOTS]

    def get(self, id):
        """The unfinished job that has this id, or None."""
        job = self._slot(id).get(id)
        return job if job is not None and job.id == id and job.is_unfinished() else None

    def add(self, id, job):
        self._slot(id)[id] = job

    def discard(self, id, job):
        """Forget the id if it is (still) this job's."""
        slot = self._slot(id)
        if slot.get(id) is job:
            del slot[id]
