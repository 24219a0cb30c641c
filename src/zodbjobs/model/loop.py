"""Loops: ids that must stay fresh, worked by many, the stalest first.

A loop remembers of each id when it was last updated and until when somebody has
it locked.  Workers `get` the ids that have waited longest, update what they
stand for, and say `did`; whatever else happens, every id comes round.  The verbs
and their rules are doloop's, with its holes closed: a batch remembers its lease,
a bump that comes meanwhile is kept, nothing is committed or rolled back.

The ids are spread over shards (`shard`), so that workers who take ids at the
same time take them from different ones.  Runs in the caller's transaction, on
objects of the caller's connection.
"""

import datetime
import heapq
import itertools
import math
import operator
import random
from collections.abc import Iterable
from zlib import crc32

from persistent import Persistent
from zope.interface import implementer

from zodbjobs import clock
from zodbjobs.interfaces import ILoop, ILoops
from zodbjobs.model.census import Census
from zodbjobs.model.intake import LANES, lane_number
from zodbjobs.model.named import Named
from zodbjobs.model.shard import (
    ADD,
    BUMP,
    DID,
    EACH,
    FREE,
    REMOVE,
    TAKE_OVER,
    UNLOCK,
    Lease,
    Shard,
    Slip,
    after,
    is_held,
    is_taken_over,
)

#: Enough for as many workers; a loop costs about 8 kB by this.
SHARDS = 16

#: Ids added at once to one shard are sorted in at once: a first load of a million must not lie
#: in slips until somebody takes some.
ADD_AT_ONCE = 64

#: A shard with more slips is sorted by whoever takes ids, from wherever.
LEFT_UNSORTED = 16

#: What has waited less than this much longer counts as equally long, and so does all that has
#: waited no longer than these microseconds: workers take it from different shards.
NEARLY, BRIEFLY = 1.1, 10 * clock.SECOND

#: Locks and ages are not longer than a thousand years.
LONGEST_SPAN = 1000 * 366 * 86_400 * clock.SECOND


class Batch(list):
    """The ids that a `get` has taken, in the order in which they are due.

    `token` is the number of the lease, `expires` the aware UTC datetime when it
    ends (for the first of them, where `lock_for` was a range).  A slice is a batch
    of the same lease.  It holds plain values, so it can be given to a job, another
    connection or another process.
    """

    def __init__(self, ids=(), token=None, expires=None):
        super().__init__(ids)
        self.token = token
        self.expires = expires

    def __getitem__(self, index):
        found = super().__getitem__(index)
        return Batch(found, self.token, self.expires) if isinstance(index, slice) else found


@implementer(ILoop)
class Loop(Persistent):
    """See ILoop.

    `shards` is how many parts the ids are spread over.  With one, ids are taken
    in the exact order of their waiting, by one worker at a time.
    """

    runners = ()

    def __init__(self, shards=SHARDS):
        if isinstance(shards, bool) or not isinstance(shards, int) or shards < 1:
            raise ValueError(f'shards is a whole number from 1 on, not {shards!r}')
        now = clock.micros()
        self.shards = tuple(Shard(now) for _ in range(shards))

    # the application's verbs

    def add(self, ids, updated=False, test=False):
        slip = Slip(ADD, clock.micros(), (), bool(updated))
        return self._say(slip, ids, test)

    def remove(self, ids, test=False):
        return self._say(Slip(REMOVE, clock.micros(), ()), ids, test)

    def did(self, ids, auto_add=True, test=False):
        return self._end(DID, ids, auto_add, test)

    def unlock(self, ids, auto_add=True, test=False):
        return self._end(UNLOCK, ids, auto_add, test)

    def bump(self, ids, lock_for=0, auto_add=True, test=False, take_over=False):
        now = clock.micros()
        low, high = _range(lock_for, 'lock_for')
        kind = TAKE_OVER if take_over else BUMP
        if low == high:
            return self._say(Slip(kind, now, (), now + low, bool(auto_add)), ids, test)
        pairs = [(id, now + random.randint(low, high)) for id in _listed(ids)]
        return self._say(Slip(EACH, now, pairs, kind, bool(auto_add)), None, test)

    def _end(self, kind, ids, auto_add, test):
        token = getattr(ids, 'token', None)
        adds = bool(auto_add) and token is None  # an id of a batch that is gone was removed
        return self._say(Slip(kind, clock.micros(), (), token, adds), ids, test)

    def _say(self, slip, ids, test):
        """Leave `slip` for those of `ids` that it changes; returns how many it changes.

        A slip of the kind EACH has its ids, each with its value.
        """
        slip = slip if slip.kind == EACH else slip._replace(ids=_listed(ids))
        parts = dict(slip.parts())
        self._check_order(parts)
        changes = []
        for number, some in self._by_shard(parts).items():
            shard = self.shards[number]
            changed, leases = self._changed(shard, {id: parts[id] for id in some})
            changes += ((parts[id], state) for id, state in changed.items())
            if changed and not test:
                pairs = slip.kind == EACH
                ids = [(id, parts[id].value) for id in changed] if pairs else list(changed)
                self._leave(shard, slip._replace(ids=ids))
                for lease in leases:
                    lease.changed()
        if not test:
            self._wake(changes)
        return len(changes)

    def _changed(self, shard, parts):
        """({id: new State}, {leases}): what is said to one shard changes, and which leases it ends.

        `parts` is {id: the Slip as it concerns that id}.
        """
        pending = shard.pending(set(parts))
        changed, leases = {}, set()
        for id, part in parts.items():
            state = self._state(shard, id, pending)
            if part.kind in (DID, UNLOCK) and part.value is not None:
                if not is_held(state, part.value):
                    continue
                leases.add(state.lease)
            elif is_taken_over(state, part):
                leases.add(state.lease)
            changed_state = after(state, part)
            if changed_state != state or (part.kind == DID and state is not None):
                changed[id] = changed_state
        return changed, leases

    def _leave(self, shard, slip):
        shard.slips.leave(slip)
        if slip.kind == ADD and len(slip.ids) > ADD_AT_ONCE:
            shard.sort(slip.time)

    @staticmethod
    def _state(shard, id, pending):
        try:
            return shard.state(id, pending)
        except TypeError:  # it cannot be ordered with those that are here
            return None

    def _check_order(self, ids):
        """Raise TypeError or ValueError unless ids can be ordered with one that is here."""
        walks = (shard.some_ids() for shard in self.shards)
        known = (id for walk in walks for id in walk if id is not None)
        sample = next(itertools.chain(known, (id for id in ids if id is not None)), None)
        for id in ids:
            if id != id:
                raise ValueError(f'{id!r} cannot be an id: it is not equal to itself')
            try:
                if id is not None:
                    operator.lt(id, sample)
            except TypeError:
                raise TypeError(
                    f'{id!r} cannot be an id here: it cannot be ordered with ids such as'
                    f' {sample!r}; keep a loop for each kind of thing'
                ) from None

    def _by_shard(self, ids):
        found = {}
        for id in ids:
            found.setdefault(_hash(id) % len(self.shards), []).append(id)
        return found

    def _wake(self, changes):
        """Tell the runners that wait longer when there may be something to take.

        `changes` are pairs: what was said, and the new State of an id.
        """
        for runner in self.runners:
            span = _span(runner.min_loop_time, 'min_loop_time')
            moments = [_due(*change, span) for change in changes if change[1] is not None]
            if moments:
                runner.wake(min(moments))

    # taking

    def get(self, limit, lock_for=3600, min_loop_time=3600, test=False):
        if isinstance(limit, bool) or not isinstance(limit, int):
            raise TypeError(f'limit is a whole number, not {limit!r}')
        low, high = _range(lock_for, 'lock_for')
        min_loop_time = _span(min_loop_time, 'min_loop_time')
        if limit < 0:
            raise ValueError(f'limit is 0 or more, not {limit}')
        if low <= 0:
            raise ValueError('lock_for is more than 0 seconds, so that nobody else takes the ids')
        now = clock.micros()
        taken = self._first(limit, now, now - min_loop_time)
        lease = Lease(now << 10 | random.getrandbits(10))
        ends = [now + random.randint(low, high) for _ in taken]
        end = min(ends, default=now + low)
        batch = Batch([id for _, id in taken], lease.token, clock.datetime_of(end))
        if taken and not test:
            self._sort({shard for shard, _ in taken}, now)
            for (shard, id), until in zip(reversed(taken), ends, strict=True):  # see `Shard._own`
                shard.take(id, until, lease)
        return batch

    def _first(self, limit, now, updated_before):
        """[(shard, id)] of the first `limit` ids that may be taken."""
        count = len(self.shards)
        start = 0 if self._p_jar is None else lane_number(self._p_jar) * count // LANES
        walks = (
            self._walk(self.shards[(start + turn) % count], turn, now, updated_before)
            for turn in range(count)
        )
        found = []
        if limit:
            for *_, shard, id in heapq.merge(*walks, key=lambda one: one[:3]):
                found.append((shard, id))
                if len(found) == limit:
                    break
        return found

    @staticmethod
    def _walk(shard, turn, now, updated_before):
        for rank, moment, id in shard.due(now, updated_before):
            yield rank, -_age_class(rank, moment, now), turn, shard, id

    def _sort(self, shards, now):
        """Sort the slips of these shards in, and of those where there are many."""
        for shard in self.shards:
            if shard in shards or shard.slips.size() > LEFT_UNSORTED:
                shard.sort(now)

    # looking

    def check(self, ids):
        now = clock.micros()
        found = {}
        for id, state in self._states(ids).items():
            if state is not None:
                locked = None if state.until is None else (state.until - now) / clock.SECOND
                found[id] = _seconds(state.updated, now), locked
        return found

    def held(self, batch):
        """See ILoop.held."""
        token, states = batch.token, self._states(batch)
        return Batch((id for id in batch if is_held(states[id], token)), token, batch.expires)

    def _states(self, ids):
        """{id: State or None} in the order of `ids`."""
        ids = _listed(ids)
        found = dict.fromkeys(ids)
        for number, some in self._by_shard(ids).items():
            pending = self.shards[number].pending(set(some))
            for id in some:
                found[id] = self._state(self.shards[number], id, pending)
        return found

    def failures(self, ids=None):
        now = clock.micros()
        if ids is None:
            found = {}
            for shard in self.shards:
                found.update(Census(shard, now).failing())
            return found
        states = self._states(ids).items()
        return {id: state.failures_at(now) for id, state in states if state is not None}

    def stats(self):
        now = clock.micros()
        shards = [Census(shard, now) for shard in self.shards]
        ids = _ends(id for shard in shards for id in shard.ids())
        ends = {
            'lock': (moment - now for shard in shards for moment in shard.untils(now + 1)),
            'bump': (now - moment for shard in shards for moment in shard.untils(high=now)),
            'update': (now - moment for shard in shards for moment in shard.updates()),
        }
        found = {
            'total': sum(shard.total() for shard in shards),
            'never_updated': sum(shard.never_updated() for shard in shards),
            'locked': sum(shard.locked() for shard in shards),
            'bumped': sum(shard.bumped() for shard in shards),
            'failing': sum(len(shard.failing()) for shard in shards),
            'min_id': ids[0],
            'max_id': ids[1],
        }
        for name, spans in ends.items():
            least, most = _ends(spans)
            found[f'min_{name}_time'] = (least or 0) / clock.SECOND
            found[f'max_{name}_time'] = (most or 0) / clock.SECOND
        return found

    def stale(self, seconds):
        now = clock.micros()
        moment = now - _span(seconds, 'seconds')
        return sum(Census(shard, now).stale(moment) for shard in self.shards)

    def oldest(self):
        now = clock.micros()
        moments = (m for shard in self.shards for m in Census(shard, now).oldest())
        return _seconds(min(moments, default=None), now)

    def next_due(self, min_loop_time=3600):
        span = _span(min_loop_time, 'min_loop_time')
        moments = (shard.next_due(span) for shard in self.shards)
        found = min((moment for moment in moments if moment is not None), default=None)
        return None if found is None else clock.datetime_of(max(0, found))

    def __len__(self):
        now = clock.micros()
        return sum(Census(shard, now).total() for shard in self.shards)

    def __bool__(self):
        return True

    def __contains__(self, id):
        return self._states([id])[id] is not None

    def __iter__(self):
        """Every id, in no order."""
        return (id for shard in self.shards for id, _ in shard.walk())


@implementer(ILoops)
class Loops(Named):
    """See ILoops."""

    kind = 'loop'
    contract = ILoop


def _due(slip, state, min_loop_time):
    """Microseconds when an id may be taken, after what was said of it."""
    if slip.kind in (BUMP, TAKE_OVER):
        return slip.value  # also if somebody has it: he may be done by then
    if state.until is not None:
        return state.until
    return slip.time if state.key < 0 else max(slip.time, state.key + min_loop_time)


def _listed(ids):
    """The ids in the argument of a verb, each once: a text is one id, and so is None."""
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        return [ids]
    return list(dict.fromkeys(ids))


def _hash(id):
    """A number for an id, the same in all processes, and for all ids that are equal to it."""
    if isinstance(id, str):
        return crc32(id.encode('utf-8', 'surrogatepass'))
    if isinstance(id, (bytes, bytearray)):
        return crc32(id)
    if isinstance(id, (int, float)):
        return hash(id)  # as Python's language reference defines it, not random as that of texts
    if isinstance(id, tuple):
        found = 0
        for part in id:
            found = (found * 1_000_003 + _hash(part)) & 0xFFFFFFFF
        return found
    return 0  # whatever it is: all in one shard


def _span(span, name):
    """Microseconds of `span`: seconds, or a timedelta."""
    if not isinstance(span, (int, float, datetime.timedelta)) or isinstance(span, bool):
        raise TypeError(f'{name} is a number of seconds or a timedelta, not {span!r}')
    if isinstance(span, float) and not math.isfinite(span):
        raise ValueError(f'{name} is a number of seconds, not {span!r}')
    found = clock.micros_in(span)
    if abs(found) > LONGEST_SPAN:
        raise ValueError(f'{name} is no more than a thousand years, not {span!r}')
    return found


def _range(span, name):
    """(least, most) microseconds of `span`: a span, or two of them to draw between."""
    if not isinstance(span, (tuple, list)):
        found = _span(span, name)
        return found, found
    if len(span) != 2:
        raise TypeError(f'{name} is a span, or two of them (least, most), not {span!r}')
    low, high = (_span(one, name) for one in span)
    if low > high:
        raise ValueError(f'{name} is (least, most), and {span[0]!r} is more than {span[1]!r}')
    return low, high


def longest(span):
    """Microseconds of a span, or of the longer one of two."""
    return _range(span, 'the span')[1]


def _age_class(rank, moment, now):
    """Larger for what has waited clearly longer."""
    if rank == FREE and moment < 0:
        return math.inf  # never updated
    return int(math.log(max(BRIEFLY, now - moment), NEARLY))


def _seconds(moment, now):
    return None if moment is None else (now - moment) / clock.SECOND


def _ends(values):
    values = sorted(values, key=lambda value: (value is not None, value))
    return (values[0], values[-1]) if values else (None, None)
