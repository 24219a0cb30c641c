"""Where producers leave their jobs: lanes of small merging buckets.

A producer's transaction writes its own new job and one entry here, and nothing
else.  A stock BTrees bucket that stands alone merges concurrent inserts and
deletes of different keys, as long as its first key is never deleted and it
never becomes empty; so every bucket keeps a `SENTINEL` as its smallest key, and
an entry's key is made of its job's oid, which no two producers share (but see
`key_of_first`).  The merging is done by code of BTrees, also in a ZEO server that
lacks this package.

Of most jobs only the job is stored, as the key tells when it was filed:

    microseconds << 11 | end of the oid: job        no wishes, first filing
    oid: (token, job)                               no wishes
    oid: (token, due, group, job[, deadline])

Chunks that were emptied leave their lane, so that nobody walks them, but merge
what comes late for some time.  Clearing a chunk, sentinel and all, closes it: a
late entry from a transaction that still saw it open is a ConflictError for its
producer, never a lost job.

Runs in whoever's transaction: producers add, dispatchers drain.
"""

import itertools
import math
import random
import typing

from BTrees.LOBTree import LOBTree, LOBucket
from persistent import Persistent
from ZODB.utils import p64

from zodbjobs import clock
from zodbjobs.model.tokens import TIE_BITS, TIE_MASK, first_token

#: The smallest key of every bucket; it stays for as long as the bucket is open.
SENTINEL = -1

#: One lane would serialise producers on storages that lock rows (RelStorage).
LANES = 8

#: Each put writes its chunk anew, so chunks are small.
CHUNK_ENTRIES = 8

#: They are larger in a lane that has many, as each new one writes the lane anew; but
#: merging takes 0.5 ms at 64 entries, 1.7 ms at 256.
LARGE_CHUNK_ENTRIES = 64

#: A producer whose own lane has so many chunks more than another one's goes there.
SPARE_CHUNKS = 8

#: A chunk is closed only so long after its successor was opened: a producer's
#: transaction that is open longer than this may meet a ConflictError.
GRACE_SECONDS = 120

#: Microseconds over which the keys of chunks that are opened at one moment are spread.
KEY_SPREAD = 4096

#: An empty chunk stays in its lane so long after its successor was opened.  What a
#: transaction that is open longer leaves there is found by the next slow poll.
LINGER_SECONDS = 2

#: `count` opens no more chunks than about so many, spread evenly, and extrapolates.
COUNTED_CHUNKS = 400

#: Of a lane with more chunks only the newest is watched.
WATCHED_CHUNKS = 150

#: Seconds between two times that somebody who claims looks after the chunks, too.
TIDY_SECONDS = 10

#: Where many chunks have just gone out of use, so many of them are searched.
CLOSING_LOOKED_AT = 16

#: `due` of an entry whose job waits for other jobs: the sorter looks at the job.
DEPENDS = -1

#: The priority of jobs that name none.
DEFAULT_PRIORITY = 2**31

#: The priority of what only needs a thread to tell its callbacks: before all others.
#: Such a job has its result, so it is not counted among those that wait.
URGENT = -1

#: Of the key that tells a first filing so many bits are of the oid.
OID_BITS = 11
OID_MASK = (1 << OID_BITS) - 1

#: The microseconds that such keys can hold (1987 to 2112): no oid is so large as to look like one.
FIRST_MICROS, LAST_MICROS = 2**49, 2**52

_salt = random.getrandbits(62) | 1


class Entry(typing.NamedTuple):
    """What the queue must know of a waiting job, so that sorting loads no job."""

    token: int  # the filing: time << 6 | tie; also the order among equals
    due: int  # microseconds; the job does not start before it.  0: at once.  Or DEPENDS
    group: tuple  # (priority, channel or '', quota names, kind)
    job: object
    deadline: int = 0  # microseconds after which it must not start; 0: none


#: The group of jobs without wishes.
PLAIN_GROUP = (DEFAULT_PRIORITY, '', (), 0)


def stored(token, due, group, job, deadline):
    """The stored form of an entry, under the oid of its job."""
    if deadline:
        return token, due, group, job, deadline
    if due == 0 and group == PLAIN_GROUP:
        return token, job
    return token, due, group, job


def loaded(key, found):
    """The Entry of a key and what is stored there."""
    if type(found) is not tuple:
        return Entry(first_token(key >> OID_BITS), 0, PLAIN_GROUP, found)
    return Entry(found[0], 0, PLAIN_GROUP, found[1]) if len(found) == 2 else Entry(*found)


def key_of_first(token, oid):
    """The key of the first filing of a job without wishes; 0 if it cannot be told by a key.

    Two producers can get the same one, and one of them a ConflictError, if they file in the same
    microsecond and chunk and the ends of their oids agree.
    """
    us = token >> TIE_BITS
    if token & TIE_MASK == 1 and FIRST_MICROS <= us < LAST_MICROS:
        return us << OID_BITS | oid & OID_MASK
    return 0


def new_bucket():
    """An empty LOBucket that merges."""
    bucket = LOBucket()
    bucket[SENTINEL] = None
    return bucket


def entries_of(bucket):
    """[(key, value)] of a merging bucket, without the sentinel."""
    return [pair for pair in bucket.items() if pair[0] != SENTINEL]


def length_of(bucket):
    """``len(bucket)``, which would hide that its record could not be loaded.

    BTrees answers with a SystemError then, or whatever comes next fails, and
    nobody sees that it is the connection that was lost.
    """
    bucket._p_activate()
    return len(bucket)


def size_of(bucket):
    """How many entries a merging bucket has."""
    return max(0, length_of(bucket) - 1)


def chunk_room(chunks):
    """How many entries a new chunk takes in a lane of so many.

    With e entries to a chunk, a put writes e / 2 entries of that, and every e-th
    put one for each chunk of the lane, as large as those: the least comes about where
    e * e is 2 * chunks.
    """
    return max(CHUNK_ENTRIES, min(LARGE_CHUNK_ENTRIES, math.isqrt(2 * chunks)))


def _has_room(chunk, lane):
    length = length_of(chunk)
    return length <= CHUNK_ENTRIES or length <= chunk_room(size_of(lane))


def lane_number(jar):
    """The lane of a connection: always the same one, so that its cache is warm."""
    return (id(jar) * _salt >> 24) % LANES


class Intake(Persistent):
    """The lanes of a queue.  This record itself is written once."""

    def __init__(self):
        self.lanes = tuple(new_bucket() for _ in range(LANES))
        for lane in self.lanes:
            lane[clock.micros()] = new_bucket()
        self.closing = LOBTree()  # {when its successor was opened: chunk}; dispatchers only

    def add(self, token, due, group, job, deadline=0):
        """Leave an entry (see Entry) for a job that has an oid."""
        oid = job.oid
        chunk = self._chunk(job._p_jar, oid)
        if due == deadline == 0 and group == PLAIN_GROUP:
            key = key_of_first(token, oid)
            if key and key not in chunk:
                chunk[key] = job
                return
        chunk[oid] = stored(token, due, group, job, deadline)

    def _chunk(self, jar, oid):
        """A chunk that has room for the job of `oid` (int)."""
        lane = self.lanes[lane_number(jar)]
        newest = lane.maxKey()  # loads it, or says why not
        length = len(lane)
        if length > SPARE_CHUNKS:
            lane = self.__dict__.get('_v_spare', lane)
            newest = lane.maxKey()
        chunk = lane[newest]
        if _has_room(chunk, lane):
            return chunk
        if length > SPARE_CHUNKS:
            lane = self._v_spare = self._spare(lane)
        newest = lane.maxKey()
        chunk = lane[newest]
        if not _has_room(chunk, lane):
            chunk = new_bucket()
            # Two producers may do this in one microsecond: their jobs tell them apart.
            lane[max(clock.micros(), newest + 1) + oid % KEY_SPREAD] = chunk
        return chunk

    def _spare(self, lane):
        """`lane`, or one that is shorter by much."""
        shortest = min(self.lanes, key=length_of)
        return shortest if length_of(lane) - length_of(shortest) > SPARE_CHUNKS else lane

    def chunks(self, lanes=range(LANES)):
        """Every open chunk of the lanes with these numbers."""
        for number in lanes:
            for key, chunk in self.lanes[number].items():
                if key != SENTINEL:
                    yield chunk

    def entries(self, limit=None, lanes=range(LANES), late=False):
        """Yield (chunk, key, Entry) of these lanes, at most `limit` of them.

        With `late` also what came to chunks that are out of use.
        """
        count = 0
        chunks = self.chunks(lanes)
        for chunk in itertools.chain(chunks, self.closing.values()) if late else chunks:
            if length_of(chunk) < 2:
                continue
            for key, found in entries_of(chunk):
                yield chunk, key, loaded(key, found)
                count += 1
                if count == limit:
                    return

    def remove(self, oid, token):
        """Take the entry of a job's filing away; False if it is not here (any more).

        In other chunks there may be an older one, of an end that nobody has
        listed.  One that came late to a chunk out of use may be overlooked: then it
        is a stale one, like those in the trees.
        """
        out_of_use = itertools.islice(self.closing.values(), CLOSING_LOOKED_AT)
        first = key_of_first(token, oid)
        for chunk in itertools.chain(self.chunks(), out_of_use):
            if first in chunk and chunk[first]._p_oid == p64(oid):
                del chunk[first]
                return True
            if oid in chunk and chunk[oid][0] == token:
                del chunk[oid]
                return True
        return False

    def count(self):
        """How many jobs wait here; extrapolated where there are very many chunks."""
        chunks = list(self.chunks())
        stride = -(-len(chunks) // COUNTED_CHUNKS)  # the oldest are the smallest
        counted = [
            sum(loaded(key, entry).group[0] != URGENT for key, entry in entries_of(chunk))
            for chunk in chunks[::stride]
        ]
        return sum(counted) * len(chunks) // len(counted)

    def oids(self):
        """The 8-byte oids that change when something is added (for watching).

        Also of chunks that have a successor: a producer whose transaction began
        before that still commits to them.
        """
        found = {lane._p_oid for lane in self.lanes}
        for lane in self.lanes:
            chunks = lane.values(SENTINEL + 1) if length_of(lane) <= WATCHED_CHUNKS else ()
            found.update(chunk._p_oid for chunk in chunks)
            found.add(lane[lane.maxKey()]._p_oid)
        return found

    def is_untidy(self, now):
        """Whether it is time to `prune`, and to sort what came late; asked by who claims alone.

        Without a dispatcher, that has its slow polls, nobody else would.  Now and then is
        enough, and several who do it at the same time would conflict.
        """
        since = now - self.__dict__.get('_v_tidied', 0)
        if 0 <= since < TIDY_SECONDS * clock.SECOND:
            return False
        self._v_tidied = now
        return True

    def prune(self, now):
        """Take chunks out of use that are empty and have a successor; returns how many moved.

        First they leave their lane, so that nobody walks them, and after a
        grace they are closed.
        """
        moved = 0
        for lane in self.lanes:
            keys = lane.keys(SENTINEL + 1) if length_of(lane) > 2 else ()
            for key, successor in itertools.pairwise(list(keys)):
                if successor + LINGER_SECONDS * clock.SECOND < now and not size_of(lane[key]):
                    self._put_by(lane.pop(key), successor)
                    moved += 1
        while self.closing and self.closing.minKey() + GRACE_SECONDS * clock.SECOND < now:
            key = self.closing.minKey()
            if size_of(self.closing[key]):
                break  # what came late goes first
            self.closing.pop(key).clear()
            moved += 1
        return moved

    def _put_by(self, chunk, key):
        while key in self.closing:
            key += 1
        self.closing[key] = chunk
