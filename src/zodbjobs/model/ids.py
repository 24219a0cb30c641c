"""The unique ids of a queue's unfinished jobs.

Shared and written by producers, so only a put that names an id comes here, and
the index is split by hash: as a rule only equal ids collide.  A job that ends
does not write it; the entry of a finished job counts as free and is dropped by
the next claim.
"""

import zlib

from BTrees.OOBTree import OOBTree
from persistent import Persistent
from ZODB.broken import Broken

SLOTS = 64


class UniqueIds(Persistent):
    """{id: job} in `SLOTS` trees.  This record itself is written once."""

    def __init__(self):
        # {id: job, or (job, its token when it was to run again)}
        self.slots = tuple(OOBTree() for _ in range(SLOTS))

    def _slot(self, id):
        return self.slots[zlib.crc32(id.encode('utf-8', 'surrogatepass')) % SLOTS]

    def get(self, id):
        """The unfinished job that has this id, or None."""
        job = _job(self._slot(id).get(id))
        return job if job is not None and job.id == id and job.is_unfinished() else None

    def add(self, id, job):
        self._slot(id)[id] = job

    def add_again(self, id, job):
        """The job had finished, and is to run once more.

        That its end is heard of late may be under way, and must conflict: so what
        is stored is not what was there.
        """
        self._slot(id)[id] = (job, job._token)

    def discard(self, id, job):
        """Forget the id if it is (still) this job's."""
        slot = self._slot(id)
        if _job(slot.get(id)) is job:
            del slot[id]

    def ended(self, id, job):
        """Forget the id of a job that has finished; not if it runs again since."""
        if not isinstance(self._slot(id).get(id), tuple) or not _runs(job):
            self.discard(id, job)


def _job(entry):
    """The job of what a slot has: a job, or (job, its token when it was to run again)."""
    return entry[0] if isinstance(entry, tuple) else entry


def _runs(job):
    return not isinstance(job, Broken) and job.is_unfinished()
