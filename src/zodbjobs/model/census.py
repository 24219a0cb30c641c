"""What can be said of all ids of a shard: how many, how old, between which ends.

Nothing here walks through the ids: it takes the ends of trees, the lengths of
ranges and the counts by hour, and puts right what slips have changed since.  It
only reads, in the transaction of whoever asks.
"""

import itertools

from zodbjobs.model.shard import HOUR_BITS, NEVER, loaded


class Census:
    """The counts and ends of a shard at `now` (microseconds)."""

    def __init__(self, shard, now):
        self.shard = shard
        self.now = now
        self.pending = shard.pending()
        #: (former State or None, present State or None) of the ids of which there are slips.
        self.moves = [(loaded(shard.states.get(id)), state) for id, state in self.pending.items()]

    def _put_right(self, count, is_counted):
        """`count` as the slips have changed it; `is_counted(state)` says who counts."""
        for former, state in self.moves:
            count -= former is not None and is_counted(former)
            count += state is not None and is_counted(state)
        return count

    def total(self):
        return self._put_right(sum(self.shard.hours.values()), lambda state: True)

    def never_updated(self):
        count = sum(self.shard.hours.values(max=-1))
        return self._put_right(count, lambda state: state.key < 0)

    def locked(self):
        count = len(self.shard.locked.keys(self.now + 1))
        return self._put_right(count, self._is_locked)

    def _is_locked(self, state):
        return state.until is not None and state.until > self.now

    def bumped(self):
        count = len(self.shard.locked.keys(max=self.now))
        return self._put_right(
            count, lambda state: state.until is not None and not self._is_locked(state)
        )

    def stale(self, moment):
        """How many were last updated (or else added) at `moment` (microseconds) or before."""
        count = self._up_to(-NEVER, moment - NEVER) + self._up_to(0, moment)
        return self._put_right(count, lambda state: state.known_since <= moment)

    def _up_to(self, first, last):
        """How many keys lie from `first`, where an hour begins, to `last`."""
        if last < first:
            return 0
        hour = last >> HOUR_BITS
        whole = self.shard.hours.values(first >> HOUR_BITS, hour, excludemax=True)
        rest = [
            len(tree.keys(hour << HOUR_BITS, last)) for tree in (self.shard.free, self.shard.busy)
        ]
        return sum(whole) + sum(rest)

    def failing(self):
        """{id: failures} of the ids whose latest leases ended by themselves."""
        suspects = {*self.shard.failing, *self.shard.locked.values(max=self.now), *self.pending}
        found = ((id, self.shard.state(id, self.pending)) for id in suspects)
        counts = {id: 0 if state is None else state.failures_at(self.now) for id, state in found}
        return {id: count for id, count in counts.items() if count}

    # ends: lists of the first and the last, empty where there is none

    def ids(self):
        states = self.shard.states
        here = (id for id in states if self.pending.get(id, states) is not None)
        ends = list(itertools.islice(here, 1))
        if ends:
            last = states.maxKey()
            while self.pending.get(last, states) is None:  # a slip takes it away
                last = states.keys(max=last, excludemax=True)[-1]
            ends.append(last)
        return ends + [id for id, state in self.pending.items() if state is not None]

    def untils(self, low=None, high=None):
        """Of the moments at which locks end, or ended, from `low` to `high`."""
        return self._ends((self.shard.locked,), low, high, lambda state: state.until)

    def updates(self):
        return self._ends((self.shard.free, self.shard.busy), 0, None, lambda state: state.updated)

    def oldest(self):
        """Of the moments since when nothing was done to an id."""
        trees = self.shard.free, self.shard.busy
        never = self._ends(trees, None, -1, lambda state: state.key if state.key < 0 else None)
        return self.updates() + [key + NEVER for key in never]

    def _ends(self, trees, low, high, moment):
        moved = {moment(former) for former, _ in self.moves if former is not None}
        found = [moment(state) for _, state in self.moves if state is not None]
        found = [
            one for one in found
            if one is not None and (low is None or one >= low) and (high is None or one <= high)
        ]  # fmt: skip
        for tree in trees:
            here = (key for key in tree.keys(low, high) if key not in moved)
            for first in itertools.islice(here, 1):
                found += [first, _last(tree, high, moved)]
        return found


def _last(tree, high, moved):
    """The last key up to `high` that is not among `moved`; there is one."""
    last = tree.maxKey() if high is None else tree.maxKey(high)
    while last in moved:
        last = tree.maxKey(last - 1)
    return last
