"""A tube: a queue of messages that nobody but this process uses.

Who has a queue to itself need not write down whom it has lent a job, nor read
again what it has just filed.  So a tube keeps in memory what is lent and the
first of what is ready, files new jobs at once where dispatchers would sort them
to, and writes of a job that is done only that it is gone: its record, to which
nobody has a reference, is left to the next pack.

All this is so for *plain* jobs: those that clients put.  One with a retry policy,
callbacks or others that wait for it is left to whoever lends it in the usual
way (see `claim`), and so is every job of a queue with quotas.

What is here is not stored, and is thrown away when a transaction is aborted.
Runs in the transaction of its owner, on objects of one connection.
"""

import heapq
import typing

from zodbjobs import status
from zodbjobs.model.intake import URGENT
from zodbjobs.model.message import Message
from zodbjobs.model.queue import group_of, next_filing
from zodbjobs.model.ready import IS_MESSAGE, KIND, PRIORITY, QUOTAS, Due
from zodbjobs.model.tokens import TIE_BITS, first_token, next_token, order_key

#: Ready jobs that are looked up at once, and the most that are kept in mind.
FILL, MOST = 500, 20_000

#: A ready job with a smaller priority counts as urgent.
URGENT_BELOW = 1024

#: Before all places: then nothing is known of what is ready.
NOTHING_KNOWN = (-1, -1)


class Place(typing.NamedTuple):
    """Where the entry of a ready job lies; places sort in claim order."""

    priority: int
    token: int
    group: tuple
    slot: int
    job: object


class Tube:
    """What this process knows of `queue` in its connection."""

    def __init__(self, queue):
        self.queue = queue
        self.ready = queue.ready
        self.lent = {}  # oid of a job -> its Place; it stays in its tree
        self._heap = []  # places, the first one first; some are outdated
        self._live = {}  # oid -> the Place in the heap that counts
        self._end = NOTHING_KNOWN  # (priority, token) up to which the heap knows all; None: all
        self._counts = None  # [due, of them urgent, later]: entries, once they were counted

    @staticmethod
    def suits(queue):
        """Whether a queue can be served so."""
        groups = queue.ready.groups
        limited = any(group[QUOTAS] and group[KIND] & IS_MESSAGE for group in groups)
        return not limited and queue.settings.order == 'put'

    def is_plain(self, job):
        """Whether nothing but its work hangs on a job."""
        queue = self.queue
        return (
            job._result_ttl == 0
            and job._retries is None
            and job._retry_policy_factory is None
            and job._begin_by is None
            and job._id is None
            and not job._callbacks
            and not job._outers
            and not (queue.waiters and job.oid in queue.waiters)
            and not (queue.watched and job.oid in queue.watched)
            and not queue.notes.late_callbacks(job.oid)
        )

    def is_empty(self):
        """Whether there is no job in any state."""
        ready, queue = self.ready, self.queue
        return not (ready.groups or ready.later or queue.held or len(queue.leases))

    # file

    def put(self, body, priority, delay, span):
        """Put a message, due after `delay` microseconds and lent for `span`; returns it.

        Raises QueueClosed and QueueFull.
        """
        queue = self.queue
        queue.refuse_if_shut()
        job = Message(body)
        put = next_filing()
        job._priority = priority
        job._lease = span
        job._result_ttl = 0
        job._queue_oid = queue._p_oid
        job._put = put
        job._due = put + delay
        job._token = first_token(put)
        job._status = status.PENDING
        queue._p_jar.add(job)
        self._file(job, delay)
        return job

    def refile(self, job, due=None):
        """File a job that has no entry (any more), at its old place or for `due` (microseconds)."""
        job._status = status.PENDING
        job._hold_reason = None
        job._due = job._put if due is None else due
        job._token = next_token(job._token, urgent=False)
        self._file(job, due is not None)

    def _file(self, job, later):
        group = group_of(job)
        if later:
            self.ready.later.add(order_key(job._due), (job._token, group, job))
            self._count(later=1)
        else:
            self._file_due(group, job._token, job)
        self.ready.waiting.change(1)

    def _file_due(self, group, token, job):
        slot = self.ready.groups.add(group, token, job, Due)
        self._count(1, group[PRIORITY])
        self._note(Place(group[PRIORITY], token, group, slot, job))

    def mature(self, now):
        """Sort in some of what has become due at `now`; whether there was any."""
        later, count = self.ready.later, 0
        while count < FILL and later and later.minKey() >> TIE_BITS <= now:
            token, group, job = later.pop(later.minKey())
            self._count(later=-1)
            self._file_due(group, token, job)
            count += 1
        return count > 0

    # what is ready

    def first(self):
        """The Place of the first ready job that is not lent, or None."""
        while True:
            heap, live = self._heap, self._live
            while heap:
                if live.get(heap[0].job._p_oid) is heap[0]:
                    return heap[0]
                heapq.heappop(heap)
            if self._end is None:
                return None
            self._look()

    def forget(self):
        """Know nothing of what is ready: somebody else has filed or taken."""
        self._heap, self._live, self._end = [], {}, NOTHING_KNOWN
        self._counts = None

    def _look(self):
        """Look up what is ready."""
        self._heap, self._live, self._end = [], {}, None
        walk = self.ready.groups.walk(lambda group: group[KIND] & IS_MESSAGE)
        for (priority, _), (token, slot, group, job) in walk:
            if job._p_oid in self.lent:
                continue
            place = Place(priority, token, group, slot, job)
            self._heap.append(place)
            self._live[job._p_oid] = place
            if len(self._heap) == FILL:
                self._end = priority, token
                return

    def _note(self, place):
        """There is one more."""
        if self._end is not None and place[:2] > self._end:
            return  # it is found in its turn
        self._live[place.job._p_oid] = place
        heapq.heappush(self._heap, place)
        if len(self._heap) > MOST:
            self._heap, self._live, self._end = [], {}, NOTHING_KNOWN

    # lend, and take

    def lend(self, place):
        """Lend the job of a place; its entry stays, so it is ready if this process ends."""
        oid = place.job._p_oid
        self.lent[oid] = place
        self._live.pop(oid, None)

    def give_back(self, place):
        """The job that was lent is ready again."""
        del self.lent[place.job._p_oid]
        self._note(place)

    def take(self, place):
        """Take the entry of a job off, lent or not."""
        oid = place.job._p_oid
        self.lent.pop(oid, None)
        self._live.pop(oid, None)
        self.ready.take(place.group, place.slot)
        self._count(-1, place.priority)
        self.ready.waiting.change(-1)

    def withdraw(self, job):
        """Take the entry of a job off that is not lent, ready or later; False if it has none."""
        group = group_of(job)
        found = self.ready.find(group, job._token)
        if found is not None:
            self.ready.take(*found)
            self._count(-1, group[PRIORITY])
        elif self.ready.withdraw(group, job._due, job._token):
            self._count(later=-1)
        else:
            return False
        self._live.pop(job._p_oid, None)
        self.ready.waiting.change(-1)
        return True

    def place_of(self, job):
        """The Place of a ready job that is not lent."""
        place = self._live.get(job._p_oid)
        if place is None:
            group, slot = self.ready.find(group_of(job), job._token)
            place = Place(group[PRIORITY], job._token, group, slot, job)
        return place

    # count

    def _count(self, due=0, priority=0, later=0):
        """There are so many entries more."""
        if self._counts is not None:
            self._counts[0] += due
            self._counts[1] += due if priority < URGENT_BELOW else 0
            self._counts[2] += later

    def counts(self):
        """(how many are ready, how many of these are urgent, how many are due later).

        They are counted once, and kept up to date from then on.
        """
        if self._counts is None:
            groups = self.ready.groups
            trees = [
                (group[PRIORITY], len(tree))
                for group, tree in zip(groups, groups.values(), strict=True)
                if group[PRIORITY] != URGENT
            ]
            urgent = sum(count for priority, count in trees if priority < URGENT_BELOW)
            due = sum(count for _, count in trees)
            self._counts = [due, urgent, len(self.ready.later)]
        lent = self.lent.values()
        due, urgent, later = self._counts
        urgent -= sum(place.priority < URGENT_BELOW for place in lent)
        return due - len(lent), urgent, later
