"""Where producers leave their jobs: lanes of small merging buckets.

A producer's transaction writes its own new job and one entry here, and nothing
else.  A stock BTrees bucket that stands alone merges concurrent inserts and
deletes of different keys, as long as its first key is never deleted and it
never becomes empty; so every bucket keeps a `SENTINEL` as its smallest key, and
entries are keyed by the oid of their job, which no two producers share.  The
merging is done by code of BTrees, also in a ZEO server that lacks this package.

Clearing a chunk, sentinel and all, closes it: a late entry from a transaction
that still saw it open is a ConflictError for its producer, never a lost job.

Runs in whoever's transaction: producers add, dispatchers drain.
"""

import random
import typing

from BTrees.LOBTree import LOBucket
from persistent import Persistent

from zodbjobs import clock

#: The smallest key of every bucket; it stays for as long as the bucket is open.
SENTINEL = -(2**63)

#: One lane would serialise producers on storages that lock rows (RelStorage).
LANES = 8

#: Merging a chunk costs 0.5 ms at 64 entries, 1.7 ms at 256.
CHUNK_ENTRIES = 64

#: A chunk is unlinked only so long after its successor was opened: a producer's
#: transaction that is open longer than this may meet a ConflictError.
GRACE_SECONDS = 120

#: Beyond so many chunks `count` does not open each one, but estimates.
COUNTED_CHUNKS = 200

#: `due` of an entry whose job waits for other jobs: the sorter looks at the job.
DEPENDS = -1

#: The priority of what only needs a thread to tell its callbacks: before all others.
#: Such a job has its result, so it is not counted among those that wait.
URGENT = -1

_salt = random.getrandbits(62) | 1


class Entry(typing.NamedTuple):
    """What the queue must know of a waiting job, so that sorting loads no job.

    It is stored as a plain tuple.
    """

    token: int  # the filing: time << 6 | tie; also the order among equals
    due: int  # microseconds; the job does not start before it.  0: at once.  Or DEPENDS
    group: tuple  # (priority, channel or '', quota names, once)
    job: object
    deadline: int = 0  # microseconds after which it must not start; 0: none


def new_bucket():
    """An empty LOBucket that merges."""
    bucket = LOBucket()
    bucket[SENTINEL] = None
    return bucket


def entries_of(bucket):
    """[(key, value)] of a merging bucket, without the sentinel."""
    return [pair for pair in bucket.items() if pair[0] != SENTINEL]


def size_of(bucket):
    """How many entries a merging bucket has."""
    return max(0, len(bucket) - 1)


def lane_number(jar):
    """The lane of a connection: always the same one, so that its cache is warm."""
    return (id(jar) * _salt >> 24) % LANES


class Intake(Persistent):
    """The lanes of a queue.  This record itself is written once."""

    def __init__(self):
        self.lanes = tuple(new_bucket() for _ in range(LANES))
        for lane in self.lanes:
            lane[clock.micros()] = new_bucket()

    def add(self, jar, oid, entry):
        """Leave `entry` (an Entry) for the job of `oid` (int)."""
        lane = self.lanes[lane_number(jar)]
        newest = lane.maxKey()
        chunk = lane[newest]
        if len(chunk) > CHUNK_ENTRIES:
            chunk = new_bucket()
            lane[max(clock.micros(), newest + 1)] = chunk
        chunk[oid] = tuple(entry) if entry.deadline else tuple(entry[:4])

    def chunks(self, first_lane=0):
        """Every open chunk, the lanes beginning with `first_lane`."""
        for i in range(LANES):
            lane = self.lanes[(first_lane + i) % LANES]
            for key, chunk in lane.items():
                if key != SENTINEL:
                    yield chunk

    def entries(self, limit=None, first_lane=0):
        """Yield (chunk, oid, Entry), at most `limit` of them."""
        found = 0
        for chunk in self.chunks(first_lane):
            if len(chunk) < 2:
                continue
            for oid, entry in entries_of(chunk):
                yield chunk, oid, Entry(*entry)
                found += 1
                if found == limit:
                    return

    def remove(self, oid):
        """Take the entry of a job away; False if it is not here (any more)."""
        for chunk in self.chunks():
            if oid in chunk:
                del chunk[oid]
                return True
        return False

    def count(self):
        """How many jobs wait here; an estimate where there are very many."""
        chunks = sum(len(lane) - 1 for lane in self.lanes)
        if chunks > COUNTED_CHUNKS:
            return chunks * CHUNK_ENTRIES
        return sum(
            entry[2][0] != URGENT for chunk in self.chunks() for _, entry in entries_of(chunk)
        )

    def oids(self):
        """The 8-byte oids that change when something is added (for watching).

        Also of chunks that have a successor: until they are unlinked, a
        producer whose transaction began before that still commits to them.
        """
        since = clock.micros() - GRACE_SECONDS * clock.SECOND
        found = {lane._p_oid for lane in self.lanes}
        for lane in self.lanes:
            newest_then = lane.maxKey(max(since, lane.minKey(SENTINEL + 1)))
            found.update(chunk._p_oid for chunk in lane.values(newest_then))
        return found

    def prune(self, now):
        """Unlink chunks that are empty and out of use at `now` (microseconds)."""
        pruned = 0
        for lane in self.lanes:
            if len(lane) < 3:
                continue
            keys = [key for key in lane if key != SENTINEL]
            for key, successor in zip(keys, keys[1:], strict=False):
                old = successor + GRACE_SECONDS * clock.SECOND < now
                if old and not size_of(lane[key]):
                    lane[key].clear()
                    del lane[key]
                    pruned += 1
        return pruned
