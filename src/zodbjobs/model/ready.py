"""Sorted jobs: what is due, by group, and what is due later.

Only dispatchers write here, so these may be trees.  A group is (priority,
channel, quota names, kind); groups sort by priority first, so a walk over the
groups is a walk in claim order, and a full quota or a channel that nobody
takes skips its whole group at no cost.  Inside a group the key is the filing
token: microseconds and six bits that tell filings of one instant apart.

A large group without quotas is spread over some trees, its shards, in runs of
filings.  Several dispatchers that each take from shards of their own first do
not fight over one first leaf; one alone merges them again.  A shard's number is
the fifth part of its group; the first has none.  With a quota the order is the
point, and there is one tree.

Runs in a dispatcher's claim transaction; `walk` also in readers'.
"""

import heapq
import itertools

from BTrees.Length import Length
from BTrees.LOBTree import LOBTree
from persistent import Persistent

from zodbjobs.model.groups import Groups
from zodbjobs.model.intake import URGENT
from zodbjobs.model.tokens import TIE_BITS, is_counted, order_key

#: Entries of the same instant, or nearly, among which one is looked for.
WITHDRAW_LIMIT = 1000

PRIORITY, CHANNEL, QUOTAS, KIND = range(4)

#: Bits of a group's kind: its jobs are never claimed ahead; they are messages.  Others: `hosts`.
RUNS_ONCE, IS_MESSAGE = 1, 2


#: The trees of a large group, and how many filings one after the other go to the same.
SHARDS = 4
SHARD_RUN = 256

#: The part of a group in a tree that tells its shard.
SHARD = 4


def shard_of(group):
    """The number of the shard that a group in the trees is."""
    return group[SHARD] if len(group) > SHARD else 0


class Sorted(LOBTree):
    """An ordered set of values by a key that may be taken already.

    The inner nodes are kept small: one is rewritten whenever a leaf goes.
    """

    max_leaf_size = 60
    max_internal_size = 64

    def add(self, key, value):
        """Store `value` at the first free key from `key` on; returns that key.

        A run of taken keys is measured by doubling and then halving, so ten
        thousand jobs for the same instant do not cost their square.
        """
        if key in self:
            step = 1
            while key + step in self:
                step *= 2
            low, high = key + step // 2, key + step
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if middle in self else (low, middle)
            key = high
        self[key] = value
        return key


class Due(Sorted):
    """The due jobs of a group: {token: job}, or {slot: (token, job)} where that key was taken."""

    def file(self, token, job):
        """Sort a job in; returns its slot."""
        return self.add(token, (token, job) if token in self else job)

    def filings(self, first=None):
        """Yield (slot, token, job) from the slot `first` on."""
        for slot, found in self.items(first):
            yield (slot, *found) if type(found) is tuple else (slot, slot, found)

    def slot_of(self, token):
        """The slot of a filing that is here, or None."""
        for slot, found, _ in itertools.islice(self.filings(token), WITHDRAW_LIMIT):
            if found == token:
                return slot
        return None


class Ready(Persistent):
    """The sorted jobs of a queue.  This record itself is written once."""

    def __init__(self):
        self.groups = Groups()  # {group: Due}
        self.later = Sorted()  # {due << 6: (token, group, job)}
        self.deadlines = Sorted()  # {deadline << 6: (token, job)}
        self.waiting = Length()  # entries in groups and later
        self.dropped = Length()  # those of them whose job is there no more

    def file(self, entry, now):
        """Sort an Entry in: among the due ones, or among those due later."""
        if entry.due > now:
            self.later.add(order_key(entry.due), (entry.token, entry.group, entry.job))
        else:
            self._file_due(entry.group, entry.token, entry.job)

    def _file_due(self, group, token, job):
        group = group[:SHARD]
        shard = 0 if group[QUOTAS] else self._next_shard()
        if shard:
            group = (*group, shard)
        self.groups.add(group, token, job, Due)

    def _next_shard(self):
        count = self.__dict__.get('_v_filed')
        if count is None:
            count = self.waiting()
        self._v_filed = count + 1
        return count // SHARD_RUN % SHARDS

    def mature(self, now, limit):
        """Move what has become due at `now` to its group; returns how many."""
        count = 0
        while count < limit and self.later:
            key = self.later.minKey()
            if key >> TIE_BITS > now:
                break
            token, group, job = self.later.pop(key)
            self._file_due(group, token, job)
            count += 1
        return count

    @property
    def looked_at(self):
        """The quota up to which this connection has looked for those with room again."""
        return self.__dict__.get('_v_looked_at', '')

    def next_due(self):
        """Microseconds at which the first later job becomes due, or None."""
        return self.later.minKey() >> TIE_BITS if self.later else None

    def expire(self, now, limit):
        """Take the (token, job) whose deadline has passed off the list of deadlines."""
        found = []
        while len(found) < limit and self.deadlines:
            key = self.deadlines.minKey()
            if key >> TIE_BITS > now:
                break
            found.append(self.deadlines.pop(key))
        return found

    def next_deadline(self):
        """Microseconds of the first deadline, or None."""
        return self.deadlines.minKey() >> TIE_BITS if self.deadlines else None

    def runs(self, channels=None):
        """Yield lists of the groups of one priority, smallest priority first.

        With `channels` (an iterable of names) only groups of those.
        """
        if channels is None:
            for _, run in itertools.groupby(self.groups, key=lambda g: g[PRIORITY]):
                yield list(run)
            return
        names = sorted(channels)
        priority = URGENT - 1
        while True:
            later = list(itertools.islice(self.groups.keys((priority + 1,)), 1))
            if not later:
                return
            priority = later[0][PRIORITY]
            run = [group for name in names for group in self._of_channel(priority, name)]
            if run:
                yield run

    def _of_channel(self, priority, name):
        return self.groups.keys((priority, name), (priority, name + '\0'), excludemax=True)

    def stream(self, group, wanted=None):
        """Yield (token, slot, group, job) of one group in order.

        `wanted` (called with the group) is asked before each, so a stream ends
        as soon as its quota is full.
        """
        for slot, token, job in self.groups[group].filings():
            if wanted is not None and not wanted(group):
                return
            yield token, slot, group, job

    def walk(self, now):
        """Yield (priority, token, job) of the jobs due at `now` in claim order."""
        rest = [
            (group[PRIORITY], token, job)
            for token, group, job in self.later.values(max=order_key(now + 1), excludemax=True)
        ]
        rest.sort(key=_place)
        groups = ((*place, item[-1]) for place, item in self.groups.walk(shut=True))
        return heapq.merge(rest, groups, key=_place)

    def candidates(self, channels, wanted, penalty):
        """Yield ((priority, token), (token, slot, group, job)) of due jobs in that order.

        Of those channels, if any are named; of groups that `wanted` accepts, which
        is asked before each job.  `penalty(group)` is added to tokens in the order.
        """
        if channels is None:
            return self.groups.walk(wanted, penalty)
        return self._of_channels(channels, wanted, penalty)

    def _of_channels(self, channels, wanted, penalty):
        for run in self.runs(channels):
            groups = [group for group in run if not self.groups.is_shut(group) and wanted(group)]
            penalties = [penalty(group) for group in groups]
            streams = [self.stream(group, wanted) for group in groups]
            for late, item in merged(streams, penalties):
                yield (item[2][PRIORITY], late), item

    def walk_later(self, now):
        """Yield (due, priority, token, job) of the jobs due after `now`, the first due first."""
        entries = self.later.items(min=order_key(now + 1))
        for due, run in itertools.groupby(entries, key=lambda entry: entry[0] >> TIE_BITS):
            places = [(group[PRIORITY], token, job) for _, (token, group, job) in run]
            for place in sorted(places, key=_place):
                yield due, *place

    def take(self, group, slot):
        """Remove one due job."""
        self.groups.take(group, slot)

    def forget_stale(self, token):
        """The filing `token`, which was withdrawn, is neither sorted nor listed any more."""
        if is_counted(token):
            self.dropped.change(-1)

    def withdraw(self, group, due, token):
        """Take the entry of a waiting job off, wherever it is sorted; False if it is not here.

        For whoever is the only writer here, or minds no conflict; others leave a
        stale entry (see `Queue.unfile`).
        """
        found = self.find(group, token)
        if found is not None:
            self.take(*found)
            return True
        later = self.later.items(order_key(due))
        for slot, entry in itertools.islice(later, WITHDRAW_LIMIT):
            if entry[0] == token:
                del self.later[slot]
                return True
        return False

    def find(self, group, token):
        """(group with its shard, slot) of the due job with that filing, or None."""
        for place in (group, *((*group, shard) for shard in range(1, SHARDS))):
            tree = self.groups.get(place)
            slot = None if tree is None else tree.slot_of(token)
            if slot is not None:
                return place, slot
        return None

    def clear(self):
        """Forget everything."""
        self.groups.clear()
        self.later.clear()
        self.deadlines.clear()
        self.waiting.set(0)
        self.dropped.set(0)


def _place(item):
    """(priority, token) of (priority, token, job): a job does not compare."""
    return item[:2]


def merged(streams, penalties):
    """Merge streams of (token, ...), each with its penalty added to its tokens.

    Yields (token with the penalty, item); what follows the token is not compared.
    """
    return heapq.merge(*map(_later, streams, penalties), key=_token)


def _later(stream, penalty):
    for item in stream:
        yield item[0] + penalty, item


def _token(item):
    return item[0]
