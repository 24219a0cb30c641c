"""The finished jobs of an agent, newest first, kept for a time.

Successes are kept 7 days and failures 30, or as long as a job's `result_ttl`
says, and never more than a bound.  One dispatcher writes: in the claim that
follows, so that a completion writes its own job only, or when it is idle.
"""

import heapq
import itertools

from BTrees.Length import Length
from persistent import Persistent

from zodbjobs import clock
from zodbjobs.model.journal import Journal
from zodbjobs.model.ready import Sorted
from zodbjobs.model.tokens import TIE_BITS, order_key

DAY_SECONDS = 86_400

#: How long finished jobs stay, and failures.
KEEP_SECONDS = 7 * DAY_SECONDS
KEEP_FAILED_SECONDS = 30 * DAY_SECONDS

#: How many of each kind an agent keeps at most.
KEEP_COUNT = 1_000_000

#: How many are looked at in search of undone ones.
LOOK_LIMIT = 100

#: How many are forgotten at once: more than a busy agent finishes between two
#: sweeps, and few enough for a short transaction.
SWEEP_LIMIT = 5000


class History(Persistent):
    """Lists of finished jobs by the time at which they may be forgotten.

    This record itself is written once, and when its limits are set.
    """

    keep_seconds = KEEP_SECONDS
    keep_failed_seconds = KEEP_FAILED_SECONDS
    keep_count = KEEP_COUNT

    def __init__(self):
        self.done = Journal()  # {finished << 6: (token, job)}
        self.failed = Journal()
        self.kept = Sorted()  # {finished << 6: (token, job, failed)}; they have a result_ttl
        self.kept_count = Length()
        self.expiring = Sorted()  # {forget << 6: key in kept}

    def add(self, token, job, now, failed, ttl=None):
        """List `job`, finished under `token` at `now` (microseconds); `ttl` is in microseconds.

        False if it is to be forgotten at once.
        """
        if ttl is not None and ttl <= 0:
            return False
        if ttl is None:
            journal = self.failed if failed else self.done
            journal.append(order_key(now), token, job)
        else:
            key = self.kept.add(order_key(now), (token, job, failed))
            self.kept_count.change(1)
            self.expiring.add(order_key(now + ttl), key)
        return True

    def counts(self):
        """{kind: how many are listed}, without loading them; kinds: done, failed, kept."""
        return {'done': len(self.done), 'failed': len(self.failed), 'kept': self.kept_count()}

    def sweep(self, now, limit=SWEEP_LIMIT):
        """Forget what has been kept long enough at `now`, or is too much; returns the jobs."""
        gone = []
        for journal, until in self._ends(now):
            too_many = len(journal) - self.keep_count
            while journal and len(gone) < limit:
                if too_many <= 0 and journal.first_key() > until:
                    break
                gone.append(journal.pop_first()[1])
                too_many -= 1
        too_many = self.kept_count() - self.keep_count
        while self.kept and too_many > 0 and len(gone) < limit:
            gone.append(self._drop_kept(self.kept.minKey())[1])
            too_many -= 1
        while self.expiring and len(gone) < limit and self.expiring.minKey() <= order_key(now):
            key = self.expiring.pop(self.expiring.minKey())
            if key in self.kept:
                gone.append(self._drop_kept(key)[1])
        return gone

    def _drop_kept(self, key):
        self.kept_count.change(-1)
        return self.kept.pop(key)

    def outdated(self, now, limit=SWEEP_LIMIT):
        """How many `sweep` would forget at `now`; `limit` of each kind are counted at most."""
        found = 0
        for journal, until in self._ends(now):
            old = itertools.takewhile(until.__ge__, journal)
            too_many = min(limit, len(journal) - self.keep_count)
            found += max(sum(1 for _ in itertools.islice(old, limit)), too_many)
        found += max(0, min(limit, self.kept_count() - self.keep_count))
        return found + sum(
            1 for _ in itertools.islice(self.expiring.keys(max=order_key(now)), limit)
        )

    def __bool__(self):
        return bool(self.done or self.failed or self.kept)

    def is_due(self, now):
        """Whether `sweep` would find something at `now`."""
        if self.expiring and self.expiring.minKey() <= order_key(now):
            return True
        return self.kept_count() > self.keep_count or any(
            journal and (len(journal) > self.keep_count or journal.first_key() <= until)
            for journal, until in self._ends(now)
        )

    def _ends(self, now):
        """(journal, the last key that is old enough to be forgotten)."""
        return (
            (self.done, order_key(now - round(self.keep_seconds * clock.SECOND))),
            (self.failed, order_key(now - round(self.keep_failed_seconds * clock.SECOND))),
        )

    def newest(self, limit=None):
        """Yield the finished jobs, newest first, at most `limit`."""
        walk = _merged(self.done, self.failed, self.kept)
        return itertools.islice(_still_finished(walk), limit)

    def newest_failed(self, limit=None):
        """Yield the failed jobs, newest first, at most `limit`."""
        walk = _merged(self.failed, self.kept)
        failed = ((key, entry) for key, entry in walk if entry[2:] != (False,))
        return itertools.islice(_still_finished(failed), limit)

    def walk(self, failed=None, since=None, before=None):
        """Yield (microseconds at which it was listed, job), newest first.

        `failed`: only failures (True), only others (False).  `since` and `before`
        are microseconds, for the moment it was listed: soon after it finished.
        """
        trees = {None: (self.done, self.failed), True: (self.failed,), False: (self.done,)}[failed]
        end = None if before is None else order_key(before)
        for key, (token, job, *was) in _merged(*trees, self.kept, before=end):
            if since is not None and key < order_key(since):
                return
            if getattr(job, '_token', token) == token and (failed is None or was in ([], [failed])):
                yield key >> TIE_BITS, job

    def undone(self, before=None, limit=LOOK_LIMIT):
        """Look at `limit` entries from the key `before` down (None: from the newest).

        Returns ([job whose completion was undone], the key to go on before, or
        None at the end).  Such a job stands in its record as it did when it was
        claimed, under the token that it finished with.
        """
        found, key = [], None
        entries = itertools.islice(_merged(self.done, self.kept, before=before), limit)
        for key, (token, job, *_) in entries:  # noqa: B007 - the last key is where to go on
            if getattr(job, '_token', None) == token and job.is_unfinished():
                found.append(job)
        return found, key

    def __iter__(self):
        return self.newest()


def _still_finished(entries):
    """Yield the jobs, without those that were made to run again: their new end is listed too."""
    for _, (token, job, *_) in entries:
        if getattr(job, '_token', token) == token:  # a job whose class is gone has no token
            yield job


def _merged(*lists, before=None):
    """Merge the entries of journals, and of a tree, from the largest key below `before` down."""
    walks = [
        each.backwards(before) if isinstance(each, Journal) else _backwards(each, before)
        for each in lists
    ]
    return heapq.merge(*walks, key=lambda item: item[0], reverse=True)


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
