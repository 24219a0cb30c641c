"""The finished jobs of an agent, newest first, kept for a time.

Successes are kept 7 days and failures 30, or as long as a job's `result_ttl`
says, and never more than a bound.  One dispatcher writes: in the claim that
follows, so that a completion writes its own job only, or when it is idle.
"""

import heapq
import itertools

from BTrees.LOBTree import LOBTree
from persistent import Persistent

from zodbjobs import clock
from zodbjobs.model.ready import TIE_BITS, Sorted

DAY_SECONDS = 86_400

#: How long finished jobs stay, and failures.
KEEP_SECONDS = 7 * DAY_SECONDS
KEEP_FAILED_SECONDS = 30 * DAY_SECONDS

#: How many of each kind an agent keeps at most.
KEEP_COUNT = 1_000_000

#: How many are forgotten at once: a claim must stay short.
SWEEP_LIMIT = 100


class Finished(Sorted):
    """Finished jobs in order: it grows at its end, and each claim rewrites the last leaf."""

    max_leaf_size = 24


class History(Persistent):
    """Lists of finished jobs by the time at which they may be forgotten.

    This record itself is written once, and when its limits are set.
    """

    keep_seconds = KEEP_SECONDS
    keep_failed_seconds = KEEP_FAILED_SECONDS
    keep_count = KEEP_COUNT

    def __init__(self):
        self.done = Finished()  # {finished << 6: (token, job)}
        self.failed = Finished()
        self.expiring = LOBTree()  # {forget << 6: (finished key, failed)}; for own result_ttl

    def add(self, token, job, now, failed, ttl=None):
        """List `job`, finished under `token` at `now` (microseconds); `ttl` is in microseconds."""
        if ttl is not None and ttl <= 0:
            return
        tree = self.failed if failed else self.done
        key = tree.add(now << TIE_BITS, (token, job))
        if ttl is not None:
            forget = (now + ttl) << TIE_BITS
            while forget in self.expiring:
                forget += 1
            self.expiring[forget] = (key, failed)

    def sweep(self, now, limit=SWEEP_LIMIT):
        """Forget what has been kept long enough at `now`; returns the jobs."""
        gone = []
        for tree, keep in ((self.done, self.keep_seconds), (self.failed, self.keep_failed_seconds)):
            until = (now - round(keep * clock.SECOND)) << TIE_BITS
            while tree and len(gone) < limit and tree.minKey() <= until:
                gone.append(tree.pop(tree.minKey())[1])
        while self.expiring and len(gone) < limit:
            forget = self.expiring.minKey()
            if forget >> TIE_BITS > now:
                break
            key, failed = self.expiring.pop(forget)
            entry = (self.failed if failed else self.done).pop(key, None)
            if entry is not None:
                gone.append(entry[1])
        return gone

    def is_due(self, now):
        """Whether `sweep` would find something at `now`."""
        return (
            (self.expiring and self.expiring.minKey() >> TIE_BITS <= now)
            or _older(self.done, now - round(self.keep_seconds * clock.SECOND))
            or _older(self.failed, now - round(self.keep_failed_seconds * clock.SECOND))
        )

    def newest(self, limit=None):
        """Yield the finished jobs, newest first, at most `limit`."""
        walks = [_backwards(self.done), _backwards(self.failed)]
        walk = heapq.merge(*walks, key=lambda item: item[0], reverse=True)
        return itertools.islice(_still_finished(walk), limit)

    def newest_failed(self, limit=None):
        """Yield the failed jobs, newest first, at most `limit`."""
        return itertools.islice(_still_finished(_backwards(self.failed)), limit)

    def undone(self, before=None, limit=SWEEP_LIMIT):
        """Look at `limit` entries from the key `before` down (None: from the newest).

        Returns ([job whose completion was undone], the key to go on before, or
        None at the end).  Such a job stands in its record as it did when it was
        claimed, under the token that it finished with.
        """
        found, key = [], None
        entries = itertools.islice(_backwards(self.done, before), limit)
        for key, (token, job) in entries:  # noqa: B007 - the last key is where to go on
            if job._token == token and job.is_unfinished():
                found.append(job)
        return found, key

    def __iter__(self):
        return self.newest()


def _still_finished(entries):
    """Yield the jobs, without those that were made to run again: their new end is listed too."""
    for _, (token, job) in entries:
        if getattr(job, '_token', token) == token:  # a job whose class is gone has no token
            yield job


def _older(tree, moment):
    return bool(tree) and tree.minKey() >> TIE_BITS <= moment


def _backwards(tree, before=None):
    """Yield (key, value) from the largest key below `before` down."""
    top = None if before is None else before - 1
    while tree:
        try:
            last = tree.maxKey() if top is None else tree.maxKey(top)
        except ValueError:
            return
        yield last, tree[last]
        top = last - 1
