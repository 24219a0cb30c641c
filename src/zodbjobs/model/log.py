"""What happened to a feed: notices, numbered by their commits, and never more than a bound.

A number cannot be given out while several may publish at the same time, unless
they wait for each other.  So the storage gives it: each notice refers to a
record that was written with it and never again, and the serial of that record
is the transaction's id.  Those ids grow from commit to commit, and whoever
sees one has seen all smaller ones; so "all after this number" misses nothing.

Notices lie in `lanes`, so publishers do not meet.  Of a log that has become too
long whole chunks are dropped, by a publisher of the same lane when it opens
a new one, and the number is kept up to which something is missing.

Runs in whoever's transaction; what is not committed yet has no number.
"""

import itertools

from persistent import Persistent

from zodbjobs import clock
from zodbjobs.interfaces import NoticesGone
from zodbjobs.model.intake import LANES, entries_of, lane_number, new_bucket, size_of
from zodbjobs.model.lanes import NO_TID, Lanes, opening
from zodbjobs.model.moments import moment

#: How many notices of a feed are kept at least, unless its `notices` say otherwise.
KEEP_COUNT = 1000

#: However many there are, a notice stays so long: a browser that reconnects, or a
#: process that restarts, misses nothing.
KEEP_SECONDS = 60

#: So many chunks are dropped at once.  More than one for each that is opened, so that a log that
#: was too long gets shorter; a few, as the items in a chunk must be loaded for their numbers.
TRIM_CHUNKS = 4

#: What lies in a lane that nobody uses any more goes after so long, if it is too much.
IDLE_SECONDS = 3600

#: Bits of a number below the transaction's id: which notice of the transaction.
ORDINAL_BITS = 24
_ORDINALS = (1 << ORDINAL_BITS) - 1

#: Notices of one transaction in a chunk: it is written once, and who reads the log loads as many
#: fewer.  (Entries of the other lanes are removed one by one, and small chunks serve that.)
BULK_ENTRIES = 512


class Item(Persistent):
    """Something published: its id and what it is.  Written once, so its serial tells when.

    Also what else happened to an `id`; `value` is what the notice is about then.
    """

    def __init__(self, id, value=None):
        self.id = id
        self.value = value


class Log(Persistent):
    """The notices of a feed.  This record itself is written once."""

    def __init__(self):
        self.lanes = Lanes()
        self.marks = new_bucket()  # {lane: the number up to which it dropped notices}

    def add(self, jar, kind, item, extra=None, keep=KEEP_COUNT):
        """Note that `kind` happened to `item`, an Item that is new in this transaction.

        `extra` is a plain value that belongs to the notice and not to the item.
        """
        entry = (kind, _ordinal(jar), item, extra)
        _, opened = self.lanes.add(jar, moment(), entry, BULK_ENTRIES)
        if opened:
            self._trim(lane_number(jar), keep, clock.micros())

    def read(self, since=None):
        """[(number, kind, Item, extra)] in the order of the numbers: all, or those after `since`.

        Raises NoticesGone if some of those were dropped.
        """
        dropped = self.dropped()
        if since is None:
            since = dropped
        elif since < dropped:
            raise NoticesGone(
                f'the notices up to {dropped} are not kept any more, so what came after {since}'
                f' is not complete: read the feed anew, and go on from its last_number',
                dropped,
            )
        entries = []
        for _, chunk in self.lanes.chunks():
            if _last_of(chunk._p_serial) > since:
                entries += [entry for _, entry in entries_of(chunk)]
        return numbered(entries, since)

    def dropped(self):
        """The number up to which notices may be missing, 0 at first."""
        return max((number for _, number in entries_of(self.marks)), default=0)

    def last_number(self):
        """The number that stands for all that this connection can see now."""
        serials = [chunk._p_serial for _, chunk in self.lanes.chunks()]
        return max([self.dropped(), *map(_last_of, serials)])

    def close(self):
        """Let nothing be added any more; returns (dropped, the entries there were)."""
        found = self.dropped(), tuple(entry for _, _, entry in self.lanes.in_order())
        self.lanes.close_all()
        return found

    def _trim(self, lane, keep, now):
        """Drop chunks, the oldest first, that are old enough and too many; called in `lane`.

        A few at a time: whoever opens a chunk pays for no more than was added since.
        """
        old = (self._old_places(each, lane, now) for each in range(LANES))
        places = [place for found in old for place in itertools.islice(found, TRIM_CHUNKS)]
        if not places:
            return  # as a rule, without a look at all of them
        chunks = [(place, self.lanes.chunk(place)) for place in places]
        total = self._count_others(set(places), keep) + sum(size_of(each) for _, each in chunks)
        for place, chunk in sorted(chunks, key=lambda pair: pair[1]._p_serial)[:TRIM_CHUNKS]:
            total -= size_of(chunk)
            if total < keep:
                return
            newest = numbered([entry for _, entry in entries_of(chunk)], 0)[-1][0]
            self.marks[lane] = max(newest, self.marks.get(lane, 0))
            self.lanes.close(place)

    def _count_others(self, places, enough):
        """How many notices lie in chunks at other places; it is not counted beyond `enough`."""
        others = [place for place in self.lanes.places() if place not in places]
        count = 0
        for place in sorted(others, key=opening, reverse=True):
            if count >= enough:
                break
            count += size_of(self.lanes.chunk(place))
        return count

    def _old_places(self, lane, mine, now):
        """Yield the places at the beginning of a lane that may be dropped by who is in `mine`."""
        for place in self.lanes.places(lane):
            if lane == mine:
                old = self.lanes.is_superseded(place, now, KEEP_SECONDS)
            else:
                old = opening(place) + IDLE_SECONDS * clock.SECOND <= now
            if not old:
                return
            chunk = self.lanes.chunk(place)
            chunk._p_activate()
            if chunk._p_changed or chunk._p_serial == NO_TID:
                return  # something in it is not committed yet
            yield place


def numbered(entries, since):
    """[(number, kind, Item, extra)] of stored entries that are committed and after `since`."""
    found = []
    for kind, ordinal, item, extra in entries:
        item._p_activate()
        if item._p_serial != NO_TID:
            number = int.from_bytes(item._p_serial, 'big') << ORDINAL_BITS | ordinal
            if number > since:
                found.append((number, kind, item, extra))
    found.sort(key=lambda notice: notice[0])
    return found


def _last_of(serial):
    """The largest number that a notice of this transaction can have; 0 if there is none yet."""
    tid = int.from_bytes(serial, 'big')
    return tid << ORDINAL_BITS | _ORDINALS if tid else 0


#: Key of a transaction's data that counts its notices.
_COUNTED = object()


def _ordinal(jar):
    """The how-manieth notice of the connection's transaction this is."""
    transaction = jar.transaction_manager.get()
    try:
        count = transaction.data(_COUNTED)
    except KeyError:
        count = -1
    count += 1
    if count > _ORDINALS:
        raise OverflowError(f'more than {_ORDINALS} notices in one transaction: commit earlier')
    transaction.set_data(_COUNTED, count)
    return count
