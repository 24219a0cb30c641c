"""What many add at the same time, in the order of the time: lanes of merging chunks.

As in `intake`, every bucket is a stock one that stands alone and merges
concurrent inserts and deletes of different keys, so who adds meets nobody.  Here
one directory holds the chunks of all lanes, however many there come to be, and a
lane begins when somebody first adds there: a small collection costs few records.

An entry's key is a `moment`: when it was added, in microseconds, and some bits
that tell apart what is added at the same time.

A chunk that is empty and has had a successor for a while leaves the directory
and is cleared, which closes it: whoever kept a transaction open for so long,
and adds to that very chunk, gets a ConflictError and loses nothing.
"""

import heapq

from persistent import Persistent

from zodbjobs import clock
from zodbjobs.model.intake import LANES, entries_of, lane_number, new_bucket, size_of
from zodbjobs.model.merging import LOW, MergingTree
from zodbjobs.model.moments import micros_of

#: Bits of a chunk's place in the directory that are the time of its opening.
TIME_BITS = 59

#: Each addition writes its chunk, some tens of bytes an entry.
CHUNK_ENTRIES = 32

#: The serial of what is not committed yet.
NO_TID = b'\0' * 8

#: So long after its successor was opened an empty chunk may be closed.
LINGER_SECONDS = 10

#: So many chunks of each lane are watched, the newest ones.
WATCHED_CHUNKS = 16

#: A lane in which something was added so recently has somebody who looks after it.
BUSY_SECONDS = 1


class Lanes(Persistent):
    """Entries {moment: value} in lanes.  This record itself is written once."""

    def __init__(self):
        #: {place: chunk}; the place is the lane and the time of opening in microseconds.
        self.directory = MergingTree()

    # add and remove

    def add(self, jar, key, value, bulk=CHUNK_ENTRIES):
        """Add `value` under `key`, a moment; returns (place, whether a chunk was opened).

        A chunk that is new in this transaction may have up to `bulk` entries.
        """
        lane = lane_number(jar)
        place = self._newest(lane)
        chunk = None if place is None else self.chunk(place)
        opened = chunk is None or self._is_full(chunk, bulk)
        if opened:
            self._tidy(lane)
            place = max(lane << TIME_BITS | micros_of(key), 0 if place is None else place + 1)
            chunk = self.directory[_name_of(place)] = new_bucket()
        chunk[key] = value
        return place, opened

    @staticmethod
    def _is_full(chunk, bulk):
        size = size_of(chunk)  # loads it: before that nobody knows its serial
        return size >= (bulk if chunk._p_serial == NO_TID else CHUNK_ENTRIES)

    def remove(self, place, key):
        """Remove the entry `key` of the chunk at `place`; returns its value.  KeyError."""
        chunk = self.chunk(place)
        value = chunk.pop(key)
        if not size_of(chunk) and self.is_superseded(place, clock.micros()):
            self.close(place)
        return value

    def close(self, place):
        """Take a chunk out of use; who adds to it in a transaction under way conflicts."""
        self.directory.pop(_name_of(place)).clear()

    def close_all(self):
        """Take everything out of use: nothing can be added any more."""
        for chunk in self.directory.values():
            chunk.clear()
        self.directory.close()

    def _tidy(self, lane):
        """Close the empty chunks at the beginning of a lane."""
        now = clock.micros()
        for place in self.places(lane):
            if size_of(self.chunk(place)) or not self.is_superseded(place, now):
                return
            self.close(place)

    # look

    def chunk(self, place):
        return self.directory[_name_of(place)]

    def places(self, lane=None):
        """Yield the places of all chunks, or of those of a lane, the oldest of a lane first."""
        if lane is None:
            yield from (int(name, 16) for name in self.directory)
            return
        name = _name_of((lane << TIME_BITS) - 1) if lane else LOW
        while (name := self.directory.next_key(name)) is not None:
            place = int(name, 16)
            if lane_of(place) != lane:
                return
            yield place

    def _newest(self, lane):
        name = self.directory.previous_key(_name_of((lane + 1) << TIME_BITS))
        if name is None or lane_of(int(name, 16)) != lane:
            return None
        return int(name, 16)

    def is_superseded(self, place, now, seconds=LINGER_SECONDS):
        """Whether the lane has had a newer chunk for so many seconds."""
        name = self.directory.next_key(_name_of(place))
        if name is None or lane_of(int(name, 16)) != lane_of(place):
            return False
        return opening(int(name, 16)) + seconds * clock.SECOND <= now

    def is_busy(self, lane, now):
        """Whether somebody added to this lane a moment ago."""
        place = self._newest(lane)
        if place is None or not size_of(self.chunk(place)):
            return False
        return micros_of(self.chunk(place).maxKey()) > now - BUSY_SECONDS * clock.SECOND

    def chunks(self):
        """[(place, chunk)], each one loaded."""
        found = [(int(name, 16), chunk) for name, chunk in self.directory.items()]
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
        lanes = [lane for lane in range(LANES) if self._newest(lane) is not None]
        return heapq.merge(*map(self._walk_lane, lanes), key=_key)

    def _walk_lane(self, lane):
        """Yield the entries of a lane in order.

        A transaction that began before a chunk had its successor may add to it
        later, so what is younger than the successor waits for its turn.
        """
        waiting = []
        for place in self.places(lane):
            while waiting and micros_of(waiting[0][0]) < opening(place):
                yield heapq.heappop(waiting)
            for key, value in entries_of(self.chunk(place)):
                heapq.heappush(waiting, (key, place, value))
        while waiting:
            yield heapq.heappop(waiting)

    def __len__(self):
        return sum(size_of(chunk) for chunk in self.directory.values())

    def __bool__(self):
        return True

    # watching

    def oids(self):
        """The 8-byte oids that change when something is added (for watching).

        Also of chunks that have a successor: a transaction that began before that
        still adds to them.
        """
        found = {self._p_oid, self.directory._p_oid}
        for lane in range(LANES):
            end = _name_of((lane + 1) << TIME_BITS)
            found.update(node._p_oid for node in self.directory.nodes(end))
            place = self._newest(lane)
            for _ in range(WATCHED_CHUNKS):
                if place is None:
                    break
                found.add(self.chunk(place)._p_oid)
                place = self._before(place)
        return found

    def _before(self, place):
        """The place before it in its lane, or None."""
        name = self.directory.previous_key(_name_of(place))
        if name is None or lane_of(int(name, 16)) != lane_of(place):
            return None
        return int(name, 16)


def opening(place):
    """When the chunk at `place` was opened, in microseconds."""
    return place & (1 << TIME_BITS) - 1


def lane_of(place):
    """The number of the lane of the chunk at `place`."""
    return place >> TIME_BITS


def _name_of(place):
    """The key of a place in the directory."""
    return f'{place:016x}'


def _key(entry):
    return entry[0]
