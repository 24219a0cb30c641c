"""Trees of due jobs by group, and where to find the next job among very many of them.

Each group has a tree.  Beside the trees stands an index of their heads, ordered
by priority and token, so that a walk in claim order opens a tree when it comes
to its first job and not before: ten thousand channels cost no more than one.
An entry of the index is a lower bound.  It is written when a group comes, goes,
or gets an earlier job; that jobs were taken from its head only makes a walk
look there too soon.

Groups whose quota is full may be *shut*: then they are in another index, where
no claim comes by, until their quota has room again.

Only dispatchers write here.  Runs in their claim transactions; `walk` also in
readers'.
"""

import heapq
import itertools

from BTrees.OOBTree import OOBTree, OOTreeSet
from persistent import Persistent

#: Groups opened at once for a quota that has room again; the first by priority.
OPEN_LIMIT = 20

PRIORITY = 0


class Groups(Persistent):
    """{group: tree}; `make_tree` makes an empty one.  This record itself is written once."""

    def __init__(self):
        self._trees = OOBTree()  # {group: (lower bound of its first key, shutting quota, tree)}
        self._heads = OOTreeSet()  # {(priority, bound, group)} of those that are open
        self._shut = OOTreeSet()  # the same, of those that are shut
        self._quotas = OOTreeSet()  # {(name of the quota, group)} of those that are shut

    # look

    def parts(self):
        """The objects of which one changes when a group comes."""
        return (self._trees, self._heads)

    def get(self, group):
        """The tree of a group, or None."""
        found = self._trees.get(group)
        return None if found is None else found[-1]

    def __getitem__(self, group):
        return self._trees[group][-1]

    def __iter__(self):
        return iter(self._trees.keys())

    def __len__(self):
        return len(self._trees)

    def __bool__(self):
        return bool(self._trees)

    def keys(self, *args, **kw):
        """The groups, in order; arguments as for a BTree."""
        return self._trees.keys(*args, **kw)

    def values(self):
        """Yield the trees."""
        for *_, tree in self._trees.values():
            yield tree

    def is_shut(self, group):
        """Whether claims do not come by at that group."""
        found = self._trees.get(group)
        return found is not None and found[1] is not None

    def has_shut(self, quota):
        """Whether groups are shut as the quota of that name was full."""
        return next(iter(self._of_quota(quota)), None) is not None

    def _of_quota(self, quota):
        return self._quotas.keys((quota,), (quota + '\0',), excludemax=True)

    def shut_quotas(self, after='', limit=1):
        """The names of the first `limit` quotas behind `after` that have groups which are shut."""
        names = []
        while len(names) < limit:
            found = next(iter(self._quotas.keys((after + '\0',))), None)
            if found is None:
                break
            after = found[0]
            names.append(after)
        return names

    def walk(self, wanted=None, penalty=None, shut=False):
        """Yield ((priority, token), (token, slot, group, job)) in that order.

        `wanted(group)` is asked when a group is opened and before each of its
        jobs.  `penalty(group)` is added to its tokens in the order.  With `shut`
        those that are shut are walked too.
        """
        heads = iter(self._heads.keys())
        if shut:
            heads = heapq.merge(heads, self._shut.keys())
        head = next(heads, None)
        streams, number = [], itertools.count()
        while streams or head is not None:
            while head is not None and (not streams or head[:2] <= streams[0][0]):
                group = head[2]
                if wanted is None or wanted(group):
                    late = 0 if penalty is None else penalty(group)
                    _push(streams, next(number), self._stream(group, wanted, late))
                head = next(heads, None)
            if streams:
                place, _, item, stream = streams[0]
                yield place, item
                heapq.heappop(streams)
                _push(streams, next(number), stream)

    def _stream(self, group, wanted, late):
        priority = group[PRIORITY]
        for slot, token, job in self[group].filings():
            if wanted is not None and not wanted(group):
                return
            yield (priority, token + late), (token, slot, group, job)

    # change

    def add(self, group, token, job, make_tree):
        """File a job in the tree of `group`, one that `make_tree` makes; returns its slot."""
        found = self._trees.get(group)
        if found is None:
            found = self._trees[group] = (token, None, make_tree())
            self._heads.insert((group[PRIORITY], token, group))
        bound, quota, tree = found
        if token < bound:
            heads = self._heads if quota is None else self._shut
            heads.remove((group[PRIORITY], bound, group))
            heads.insert((group[PRIORITY], token, group))
            self._trees[group] = (token, quota, tree)
        return tree.file(token, job)

    def take(self, group, slot):
        """Remove one job, and the group with its last one."""
        bound, quota, tree = self._trees[group]
        del tree[slot]
        if tree:
            return
        del self._trees[group]
        if quota is None:
            self._heads.remove((group[PRIORITY], bound, group))
        else:
            self._shut.remove((group[PRIORITY], bound, group))
            self._quotas.remove((quota, group))

    def shut(self, group, quota):
        """The quota of that name is full: no claim needs to come by here.  Whether one did."""
        found = self._trees.get(group)
        if found is None or found[1] is not None:
            return False
        bound, _, tree = found
        self._trees[group] = (bound, quota, tree)
        self._heads.remove((group[PRIORITY], bound, group))
        self._shut.insert((group[PRIORITY], bound, group))
        self._quotas.insert((quota, group))
        return True

    def open(self, quota, limit=OPEN_LIMIT):
        """The quota of that name has room: claims come by again.  Returns how many were opened."""
        groups = [group for _, group in itertools.islice(self._of_quota(quota), limit)]
        for group in groups:
            bound, _, tree = self._trees[group]
            self._trees[group] = (bound, None, tree)
            self._shut.remove((group[PRIORITY], bound, group))
            self._heads.insert((group[PRIORITY], bound, group))
            self._quotas.remove((quota, group))
        return len(groups)

    def clear(self):
        """Forget everything."""
        for each in (self._trees, self._heads, self._shut, self._quotas):
            each.clear()


def _push(streams, number, stream):
    """Put a stream on the heap by its next item; one that has ended is gone."""
    found = next(stream, None)
    if found is not None:
        place, item = found
        heapq.heappush(streams, (place, number, item, stream))
