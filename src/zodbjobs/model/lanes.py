"""What many add at the same time, in the order of the time: lanes of merging chunks.

As in `intake`, every bucket is a stock one that stands alone and merges
concurrent inserts and deletes of different keys, so who adds meets nobody.  Here
one directory holds the chunks of all lanes, and a lane begins when somebody
first adds there: a small collection costs two records.

An entry's key is a `moment`: when it was added, in microseconds, and some bits
that tell apart what is added at the same time.

A chunk that is empty and has had a successor for a while leaves the directory
and is cleared, which closes it: whoever kept a transaction open for so long,
and adds to that very chunk, gets a ConflictError and loses nothing.
"""

import heapq
import itertools
import random

from persistent import Persistent

from zodbjobs import clock
from zodbjobs.model.intake import (
    LANES,
    SENTINEL,
    entries_of,
    lane_number,
    new_bucket,
    size_of,
)

#: Bits of a moment that are not time.
TIE_BITS = 10
_TIES = (1 << TIE_BITS) - 1

#: Two calls of one process in the same microsecond are kept in order by moving the
#: later one on, at most so far: beyond that the clock was set back.
DRIFT = clock.SECOND

#: Bits of a chunk's place in the directory that are the time of its opening.
TIME_BITS = 59

#: Each addition writes its chunk, some tens of bytes an entry.
CHUNK_ENTRIES = 32

#: So long after its successor was opened an empty chunk may be closed.
LINGER_SECONDS = 10

#: Of more chunks than these only the newest of each lane are watched for sure.
WATCHED_CHUNKS = 128

#: A lane in which something was added so recently has somebody who looks after it.
BUSY_SECONDS = 1


class Moments:
    """The time as a growing number, never the same one twice."""

    def __init__(self):
        self._latest = 0
        self._ties = itertools.count(random.getrandbits(TIE_BITS))

    def __call__(self):
        now = clock.micros()
        if self._latest >= now > self._latest - DRIFT:
            now = self._latest + 1
        self._latest = now
        return now << TIE_BITS | next(self._ties) & _TIES


#: ``moment()``: now, as a key.  Ties of several threads are told apart by the low bits.
moment = Moments()


def micros_of(key):
    """The microseconds of a moment."""
    return key >> TIE_BITS


class Lanes(Persistent):
    """Entries {moment: value} in lanes.  This record itself is written once."""

    def __init__(self):
        #: {place: chunk}; the place is the lane and the time of opening in microseconds.
        #: Below zero stand the marks: {-1 - lane: number}.
        self.directory = new_bucket()

    # add and remove

    def add(self, jar, key, value):
        """Add `value` under `key`, a moment; returns (place, whether a chunk was opened)."""
        lane = lane_number(jar)
        place = self._newest(lane)
        opened = place is None or size_of(self.directory[place]) >= CHUNK_ENTRIES
        if opened:
            first = max(lane << TIME_BITS | micros_of(key), 0 if place is None else place + 1)
            self._tidy(lane)
            place = first
            self.directory[place] = new_bucket()
        self.directory[place][key] = value
        return place, opened

    def remove(self, place, key):
        """Remove the entry `key` of the chunk at `place`; returns its value.  KeyError."""
        chunk = self.directory[place]
        value = chunk.pop(key)
        if not size_of(chunk) and self.is_superseded(place, clock.micros()):
            self.close(place)
        return value

    def close(self, place):
        """Take a chunk out of use; who adds to it in a transaction under way conflicts."""
        self.directory.pop(place).clear()

    def close_all(self):
        """Take everything out of use: nothing can be added any more."""
        for place in self.places():
            self.directory[place].clear()
        self.directory.clear()

    def _tidy(self, lane):
        now = clock.micros()
        for place in self.places(lane):
            if not size_of(self.directory[place]) and self.is_superseded(place, now):
                self.close(place)

    # look

    def places(self, lane=None):
        """The places of all chunks, or of those of a lane, the oldest of a lane first."""
        low, high = (0, None) if lane is None else (lane << TIME_BITS, (lane + 1) << TIME_BITS)
        return list(self.directory.keys(low, high, excludemax=high is not None))

    def _newest(self, lane):
        places = self.directory.keys(lane << TIME_BITS, (lane + 1) << TIME_BITS, excludemax=True)
        return places[-1] if places else None

    def is_superseded(self, place, now, seconds=LINGER_SECONDS):
        """Whether the lane has had a newer chunk for so many seconds."""
        lane = place >> TIME_BITS
        for newer in self.directory.keys(place, (lane + 1) << TIME_BITS, True, True):
            return opening(newer) + seconds * clock.SECOND <= now
        return False

    def is_busy(self, lane, now):
        """Whether somebody added to this lane a moment ago."""
        place = self._newest(lane)
        if place is None or not size_of(self.directory[place]):
            return False
        newest = self.directory[place].maxKey()
        return micros_of(newest) > now - BUSY_SECONDS * clock.SECOND

    def chunks(self):
        """[(place, chunk)], each one loaded."""
        found = [(place, self.directory[place]) for place in self.places()]
        for _, chunk in found:
            chunk._p_activate()
        return found

    def entries(self):
        """[(key, place, value)] in no order."""
        return [
            (key, place, value)
            for place, chunk in self.chunks()
            for key, value in entries_of(chunk)
        ]

    def in_order(self):
        """[(key, place, value)], the oldest first."""
        return sorted(self.entries(), key=_key)

    def walk(self):
        """Yield (key, place, value), the oldest first, loading no more chunks than it must."""
        lanes = {place >> TIME_BITS for place in self.places()}
        return heapq.merge(*map(self._walk_lane, sorted(lanes)), key=_key)

    def _walk_lane(self, lane):
        """Yield the entries of a lane in order.

        A transaction that began before a chunk had its successor may add to it
        later, so what is younger than the successor waits for its turn.
        """
        waiting = []
        for place in self.places(lane):
            while waiting and micros_of(waiting[0][0]) < opening(place):
                yield heapq.heappop(waiting)
            for key, value in entries_of(self.directory[place]):
                heapq.heappush(waiting, (key, place, value))
        while waiting:
            yield heapq.heappop(waiting)

    def __len__(self):
        return sum(size_of(self.directory[place]) for place in self.places())

    def __bool__(self):
        return True

    # marks: a number that each lane may keep

    def mark(self, lane, number):
        self.directory[-1 - lane] = number

    def marks(self):
        return list(self.directory.values(-LANES, 0, excludemax=True))

    # watching

    def oids(self):
        """The 8-byte oids that change when something is added (for watching).

        Also of chunks that have a successor: a transaction that began before that
        still adds to them.
        """
        found = {self.directory._p_oid}
        found.update(self.directory[place]._p_oid for place in self.places()[-WATCHED_CHUNKS:])
        for lane in range(LANES):
            newest = self._newest(lane)
            if newest is not None:
                found.add(self.directory[newest]._p_oid)
        return found


def opening(place):
    """When the chunk at `place` was opened, in microseconds."""
    return place & (1 << TIME_BITS) - 1


def lane_of(place):
    """The number of the lane of the chunk at `place`."""
    return place >> TIME_BITS


def _key(entry):
    return entry[0]


assert SENTINEL < -LANES
