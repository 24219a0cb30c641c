"""A shard of a loop: a part of its ids, each with what is known of it, in the order to take them.

Two kinds of transactions meet here, and are kept apart.  The application's (add,
remove, did, unlock, bump) leave *slips* in a bucket that merges, and write
nothing else, so they conflict with nobody, however long they are open.  Those that
take ids (`Loop.get`) sort the slips into the trees, which they alone write.
Whoever only looks works out what the slips make of the ids it asks for.

Runs in the transaction of the loop's caller; the time is given.
"""

import heapq
import itertools
import random
import typing
from collections.abc import Iterable

from BTrees.LLBTree import LLBTree, LLTreeSet
from BTrees.LOBTree import LOBTree
from BTrees.OOBTree import OOBTree, OOTreeSet
from persistent import Persistent

from zodbjobs.model.intake import Intake, entries_of, length_of, new_bucket, size_of

#: Each slip writes its chunk anew.
CHUNK_ENTRIES = 12

#: The key of an id that was never updated is the time it was added less this: so those come
#: first, the longest known ahead.  About the year 148,000 in microseconds.
NEVER = 2**62

#: What was updated in the same 72 minutes is counted together, so that `Shard.stale` need not
#: walk through a million ids.
HOUR_BITS = 32

#: More ids than this do not lie in a slip, but in a record of their own beside it.
SLIP_IDS = 16

#: Slips are told apart by their microsecond and so many random bits.
SLIP_BITS = 8

#: The kinds of slips.  Numbers, because they are stored.
ADD, REMOVE, DID, UNLOCK, BUMP, TAKE_OVER, EACH = range(7)

#: Ranks of ids that may be taken: first those whose lock has ended, which were bumped or whose
#: worker never came back; then those that nobody has locked.
PROMPTED, FREE = range(2)


class State(typing.NamedTuple):
    """What is known of an id.  Stored as its key alone where the rest is the default."""

    key: int  # microseconds of the last update; below 0, see NEVER
    until: int | None = None  # microseconds when its lock ends, or ended
    lease: typing.Any = None  # the Lease under which it was taken
    failures: int = 0  # leases that ended by themselves since it was last done
    bump: int | None = None  # `until` of a bump that came while it was leased

    @property
    def updated(self):
        """Microseconds of the last update, or None."""
        return None if self.key < 0 else self.key

    @property
    def known_since(self):
        """Microseconds of the last update, or of its addition if there was none."""
        return self.key if self.key >= 0 else self.key + NEVER

    def failures_at(self, now):
        """Leases that ended by themselves, with the one that has just ended."""
        return self.failures + (self.lease is not None and self.until <= now)

    def stored(self):
        for length in range(len(self), 1, -1):
            if self[length - 1] != State._field_defaults[State._fields[length - 1]]:
                return tuple(self[:length])
        return self.key


def loaded(stored):
    """The State that was stored; None stays None."""
    if stored is None:
        return None
    return State(stored) if isinstance(stored, int) else State(*stored)


class Slip(typing.NamedTuple):
    """What the application said of some ids.  Stored as a plain tuple."""

    kind: int
    time: int  # microseconds
    ids: Iterable  # a tuple, or an `Ids`; EACH: of pairs (id, value)
    #: ADD: whether updated; BUMP, TAKE_OVER: until; DID, UNLOCK: a token, or None; EACH: the kind
    value: typing.Any = None
    adds: bool = True  # whether an id that is not there is added

    def parts(self, wanted=None):
        """Yield (id, what the slip says of it) for its ids, or those in the set `wanted`."""
        if self.kind == EACH:
            for id, value in self.ids:
                if wanted is None or id in wanted:
                    yield id, self._replace(kind=self.value, value=value)
        else:
            for id in self.ids if wanted is None else wanted.intersection(self.ids):
                yield id, self


class Ids(Persistent):
    """Many ids of one slip, so that the bucket of slips stays small."""

    def __init__(self, ids):
        self.ids = ids

    def __iter__(self):
        return iter(self.ids)


class Lease(Persistent):
    """Under which a `Batch` was taken.

    Who ends a lease for some ids, and who takes ids over from it, write this
    record, so of two that do it at the same time one conflicts.
    """

    changes = 0

    def __init__(self, token):
        self.token = token

    def changed(self):
        self.changes += 1


def after(state, slip):
    """The State that an id has after what a slip says of it; None: it is not there."""
    if slip.kind == REMOVE:
        return None
    if state is None:
        if not slip.adds:
            return None
        state = State(slip.time if slip.kind == ADD and slip.value else slip.time - NEVER)
    if slip.kind == ADD:
        return state
    if slip.kind == BUMP or (slip.kind == TAKE_OVER and not is_taken_over(state, slip)):
        return _bumped(state, slip.time, slip.value)
    if slip.kind == TAKE_OVER:
        until = slip.value if state.bump is None else min(slip.value, state.bump)
        return State(state.key, until, failures=state.failures)
    if slip.value is not None and not is_held(state, slip.value):
        return state  # it has a later holder, or none any more
    key = max(slip.time, state.key) if slip.kind == DID else state.key
    failures = 0 if slip.kind == DID else state.failures
    return State(key, state.bump if state.lease is not None else None, failures=failures)


def is_taken_over(state, slip):
    """Whether a bump takes an id away from the worker that has it."""
    if slip.kind != TAKE_OVER or state is None or state.lease is None:
        return False
    return slip.time < state.until and slip.value < state.until


def is_held(state, token):
    """Whether an id is leased under that token."""
    return state is not None and state.lease is not None and state.lease.token == token


def _bumped(state, now, until):
    if state.lease is not None:
        if state.bump is None or until < state.bump:
            state = state._replace(bump=until)
        if state.until > now:
            return state  # a holder works on it: not before that has ended
    sooner = state.until is None or until < state.until
    return state._replace(until=until) if sooner else state


class Slips(Intake):
    """The slips of a shard: one lane of chunks that merge; see `intake`."""

    def __init__(self, now):
        lane = new_bucket()
        lane[now] = new_bucket()
        self.lanes = (lane,)
        self.closing = LOBTree()

    def leave(self, slip):
        """Leave a slip for whoever takes ids next."""
        (lane,) = self.lanes
        newest = lane.maxKey()
        chunk = lane[newest]
        # behind all that is here, whatever the clocks of hosts say; by chance not where others put
        # theirs at the same time
        first = max(slip.time << SLIP_BITS, chunk.maxKey() + 1)
        if length_of(chunk) > CHUNK_ENTRIES:
            chunk = new_bucket()
            lane[max(slip.time, newest + 1)] = chunk
        ids = tuple(slip.ids)
        slip = slip._replace(ids=ids if len(ids) <= SLIP_IDS else Ids(ids))
        chunk[first + random.getrandbits(SLIP_BITS)] = tuple(slip)

    def size(self):
        """How many slips there are."""
        return sum(size_of(chunk) for chunk in self.chunks((0,)))

    def found(self):
        """[(key, chunk, Slip)] of all slips, the earliest first."""
        slips = []
        for chunk in itertools.chain(self.chunks((0,)), self.closing.values()):
            if length_of(chunk) > 1:
                slips += [(key, chunk, Slip(*slip)) for key, slip in entries_of(chunk)]
        slips.sort(key=lambda found: found[0])
        return slips


class Shard(Persistent):
    """Some ids of a loop.  This record itself is written once."""

    def __init__(self, now):
        self.slips = Slips(now)
        self.states = OOBTree()  # {id: stored State}
        self.free = LOBTree()  # {key: id} of those without a lock
        self.busy = LLTreeSet()  # the keys of the others
        self.locked = LOBTree()  # {until: id}
        self.failing = OOTreeSet()  # ids with failures
        self.hours = LLBTree()  # {key >> HOUR_BITS: how many have such keys}

    # look

    def pending(self, wanted=None):
        """{id: State or None}: the ids of which there are slips, and what these make of them.

        Of those in the set `wanted`, if one is given.
        """
        found = {}
        for _, _, slip in self.slips.found():
            for id, part in slip.parts(wanted):
                state = found[id] if id in found else loaded(self.states.get(id))
                found[id] = after(state, part)
        return found

    def some_ids(self):
        """Yield ids that are or were here, without looking at all."""
        yield from self.states.keys()
        for _, _, slip in self.slips.found():
            yield from (id for id, _ in slip.parts())

    def state(self, id, pending):
        """The State of an id, or None."""
        return pending[id] if id in pending else loaded(self.states.get(id))

    def due(self, now, updated_before):
        """Yield (rank, microseconds, id) of the ids that may be taken now, first come first.

        Free ones only if they were last updated at `updated_before` or earlier.
        """
        pending = self.pending()
        fresh = []
        for id, state in pending.items():
            if state is not None and state.until is not None and state.until <= now:
                fresh.append((PROMPTED, state.until, id))
            elif state is not None and state.until is None and state.key <= updated_before:
                fresh.append((FREE, state.key, id))
        fresh.sort(key=lambda one: one[:2])
        walks = (PROMPTED, self.locked.items(max=now)), (FREE, self.free.items(max=updated_before))
        sorted_in = (
            (rank, moment, id) for rank, walk in walks for moment, id in walk if id not in pending
        )
        return heapq.merge(sorted_in, fresh, key=lambda one: one[:2])

    def next_due(self, min_loop_time):
        """Microseconds when an id may be taken for which that is free, or None."""
        pending = self.pending()
        states = [state for state in pending.values() if state is not None]
        untils = [state.until for state in states if state.until is not None]
        keys = [state.key for state in states if state.until is None]
        # Of an id with a slip the trees tell what is over: a lock that was ended, say.
        for found, tree in ((untils, self.locked), (keys, self.free)):
            here = (moment for moment, id in tree.items() if id not in pending)
            found += itertools.islice(here, 1)
        moments = untils + [key if key < 0 else key + min_loop_time for key in keys]
        return min(moments, default=None)

    def walk(self):
        """Yield (id, State) of all, in the order of ids as far as they are sorted in."""
        pending = self.pending()
        for id, stored in self.states.items():
            if id not in pending:
                yield id, loaded(stored)
        for id, state in pending.items():
            if state is not None:
                yield id, state

    # write; only those that take ids

    def sort(self, now):
        """Take the slips away and do what they say."""
        for key, chunk, slip in self.slips.found():
            for id, part in reversed(tuple(slip.parts())):  # see `_own`
                former = loaded(self.states.get(id))
                self.put(id, former, after(former, part))
            del chunk[key]
        self.slips.prune(now)

    def take(self, id, until, lease):
        """Lease an id to `until` (microseconds)."""
        former = loaded(self.states.get(id))
        failures = former.failures
        if former.lease is not None:  # nobody has ended that lease
            former.lease.changed()
            failures += 1
        self.put(id, former, State(former.key, until, lease, failures))

    def put(self, id, former, state):
        """Give an id a new State; `former` is the one that the trees know, or None."""
        if state == former:
            return
        if former is not None:
            self._take_out(id, former)
        if state is None:
            del self.states[id]
            return
        state = state._replace(key=self._own_key(state.key))
        if state.until is None:
            self.free[state.key] = id
        else:
            state = state._replace(until=self._own_moment(state.until))
            self.busy.add(state.key)
            self.locked[state.until] = id
        hour = state.key >> HOUR_BITS
        self.hours[hour] = self.hours.get(hour, 0) + 1
        if state.failures:
            self.failing.add(id)
        self.states[id] = state.stored()

    def _take_out(self, id, state):
        if state.until is None:
            del self.free[state.key]
        else:
            del self.locked[state.until]
            self.busy.remove(state.key)
        hour = state.key >> HOUR_BITS
        if self.hours[hour] == 1:
            del self.hours[hour]
        else:
            self.hours[hour] -= 1
        if state.failures:
            self.failing.remove(id)

    def _own_key(self, key):
        return self._own('_v_key', key, self.free, self.busy)

    def _own_moment(self, until):
        return self._own('_v_moment', until, self.locked)

    def _own(self, name, wanted, *trees):
        """The moment that is `wanted`, or the last one before it that no other id has.

        Before, so that what was due at `wanted` is due then; who has many ids
        for one moment gives the last one first, and they keep their order.
        """
        own = wanted
        if any(own in tree for tree in trees):
            former, free = getattr(self, name, (None, None))
            own = free if former == wanted else own - 1  # a thousand ids of one moment
            while any(own in tree for tree in trees):
                own -= 1
            setattr(self, name, (wanted, own - 1))
        return own
