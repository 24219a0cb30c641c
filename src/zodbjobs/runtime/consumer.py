"""Consumers: workers that are not agents, and claim their jobs themselves.

A consumer belongs to one thread and to the connection of its queues, in which
the worker does its work.  What must stand before the work begins, the lease, it
commits in a connection of its own; so does `touch`, which may be called from any
thread.  Waiting is for a commit that rings, or for the moment at which something
becomes due: the first job of later, the end of a lease, the end of a pause.

Consumers of one process take turns, so that they do not collide at the head of a
queue; those of several processes step back for a random while when they do.
"""

import random
import threading
import time
import weakref

import transaction
from transaction.interfaces import NoTransaction
from ZODB.utils import u64
from zope.event import notify
from zope.interface import implementer

from zodbjobs import clock
from zodbjobs.facts import Assignment
from zodbjobs.interfaces import ClaimLost, DeadlineSoon, IConsumer, JobClaimed, JobCompleted
from zodbjobs.model import hosts
from zodbjobs.model.claim import (
    SOON_SECONDS,
    Claim,
    conclude_urgent,
    is_lent,
    lend,
    retire,
    take_back,
)
from zodbjobs.model.handout import Round
from zodbjobs.model.intake import lane_number
from zodbjobs.model.wishes import checked_span
from zodbjobs.runtime import trouble, wakeup

#: A commit that conflicts is tried again so often before it waits for the next ring.
ATTEMPTS = 12

#: After the n-th conflict it waits up to 2 ms * 2**n, at most 50 ms.
FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 0.002, 0.05

#: Seconds until the next look after all attempts conflicted.
CROWDED_SECONDS = 0.1

#: Seconds between looks when nothing rings: the net under the wake-ups.
POLL_SECONDS = 5

#: ZODB.DB -> the lock under which consumers of this process claim there.
_turns = weakref.WeakKeyDictionary()
_turns_guard = threading.Lock()


def _turn(db):
    with _turns_guard:
        return _turns.setdefault(db, threading.Lock())


@implementer(IConsumer)
class Consumer:
    """See IConsumer."""

    def __init__(self, name, queues):
        if not isinstance(name, str) or not name:
            raise TypeError(f'a consumer has a name, a text that is not empty, not {name!r}')
        jars = {id(queue._p_jar): queue._p_jar for queue in queues}
        if len(jars) != 1 or None in jars.values():
            raise ValueError(
                'the queues of a consumer are stored in one database, and come from one'
                ' connection; commit new ones first'
            )
        self.name = name
        (self._home,) = jars.values()
        self._db = self._home.db()
        self._oids = [queue._p_oid for queue in queues]
        self._tm = transaction.TransactionManager()
        self._connection = None
        self._guard = threading.Lock()  # of the connection of our own
        self._bell = threading.Event()
        self._listener = None
        self._held = {}  # (oid, filing) -> Claim
        self._done = []  # claims that a commit has ended, whose lease is still listed
        self.closed = False

    # claim

    def claim(self, timeout=None, lease=None, filter=None):
        span = checked_span(lease, 'lease')
        if self.closed:
            raise ValueError(f'consumer {self.name!r} is closed')
        self._refuse_unsaved()
        end = None if timeout is None else clock.monotonic() + clock.micros_in(timeout) / 1e6
        self._listen()
        while True:
            self._bell.clear()
            lent, wake_at = self._take(span, filter)
            if lent is not None:
                return self._claimed(lent)
            self._warn()
            seconds = self._seconds_until(wake_at)
            if end is not None:
                left = end - clock.monotonic()
                if left <= 0:
                    return None
                seconds = min(seconds, left)
            self._bell.wait(seconds)

    def _refuse_unsaved(self):
        """A claim begins a new transaction: what the present one has changed must not be lost."""
        try:
            current = self._home.transaction_manager.get()
        except NoTransaction:
            return
        if getattr(current, '_resources', None):
            raise ValueError(
                'claim() begins a new transaction, and the present one has changes: commit or'
                ' abort it first'
            )

    def _claimed(self, lent):
        manager = self._home.transaction_manager
        if manager.explicit:
            manager.abort()
        manager.begin()  # so that the caller sees the job as it is now
        claim = Claim(self._home.get(lent.oid), lent, self)
        self._held[lent.oid, lent.token] = claim
        return claim

    def _warn(self):
        """Raise DeadlineSoon for a lease that is about to end; what has ended is held no more."""
        for place, claim in list(self._held.items()):
            if claim.until <= clock.micros():
                del self._held[place]
            elif claim.deadline_soon:
                raise DeadlineSoon(claim)

    def _seconds_until(self, wake_at):
        """How long to wait for the next look, if nothing rings before."""
        moments = [claim.until - SOON_SECONDS * clock.SECOND for claim in self._held.values()]
        if wake_at is not None:
            moments.append(wake_at)
        now = clock.micros()
        return min(POLL_SECONDS, *(max(0, m - now) / clock.SECOND for m in [*moments, now + 60e6]))

    def _listen(self):
        if self._listener is None:
            self._listener = wakeup.listen(self._db, self._bell.set)

    # commits of our own

    def _commit(self, deed):
        """Do `deed` and commit, again after conflicts; None if they did not end.

        `deed` returns (its answer, whether there is anything to commit).
        """
        with self._guard:
            for number in range(ATTEMPTS):
                try:
                    with _turn(self._db):
                        return self._try(deed)
                except Exception as error:
                    self._tm.abort()
                    if not trouble.is_conflict(error):
                        raise
                wait = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2**number)
                time.sleep(random.uniform(0, wait))
        return None

    def _try(self, deed):
        if self._connection is None:
            self._connection = self._db.open(self._tm)
        self._tm.begin()
        answer, wrote = deed()
        if wrote:
            self._tm.commit()
        else:
            self._tm.abort()
        return answer

    def _twin(self, claim):
        """The job of a claim in the connection of our own."""
        return self._connection.get(claim.lent.oid)

    def _queues(self):
        return [self._connection.get(oid) for oid in self._oids]

    def _take(self, span, filter):
        """(Lent or None, when to look again in microseconds or None)."""
        done = list(self._done)
        answer = self._commit(lambda: self._look(done, span, filter))
        if answer is None:
            return None, clock.micros() + round(CROWDED_SECONDS * clock.SECOND)
        del self._done[: len(done)]
        lent, wake_at = answer
        if lent is not None:
            notify(JobClaimed(Assignment(lent.oid, lent.token, lent.queue, self.name)))
        return lent, wake_at

    def _look(self, done, span, filter):
        now = clock.micros()
        wrote = self._retire(done)
        looks, moments, watched = [], [], set()
        for queue in self._queues():
            wrote |= take_back(queue, now)
            moments.append(queue.leases.next_end())
            watched |= queue.intake.oids() | {queue.settings._p_oid}
            if queue.is_paused(now):
                moments.append(None if queue.settings.paused is True else queue.settings.paused)
                continue
            look = Round(queue, now)
            look.takes_messages, look.hosts = True, hosts.ALL
            for job in look.expire():
                notify(JobCompleted(job))
            untidy = queue.intake.is_untidy(now)
            look.sort(late=untidy)
            wrote |= untidy and bool(queue.intake.prune(now))
            conclude_urgent(look, self.name)
            looks.append(look)
        lent = lend(looks, self.name, lane_number(self._connection), now, span, filter)
        for look in looks:
            look.file_rest()
            wrote |= look.touched
            moments += [look.ready.next_due(), look.ready.next_deadline()]
        self._listener.watch(watched)
        wake_at = min((moment for moment in moments if moment is not None), default=None)
        return (lent, wake_at), wrote

    def _retire(self, done):
        """Take the leases of claims that have ended off the lists."""
        for claim in done:
            queue, job = self._connection.get(claim.lent.queue_oid), self._twin(claim)
            retire(queue, claim.keys, job, claim.lent.token, self.name)
        return bool(done)

    # what claims ask for

    def touch(self, claim):
        """Let the lease of `claim` run its full time again.  Raises ClaimLost."""
        lent = claim.lent

        def extend():
            until = clock.micros() + lent.span
            leases = self._connection.get(lent.queue_oid).leases
            key = None
            if is_lent(self._twin(claim), lent.token):
                key = leases.extend(claim.keys, u64(lent.oid), lent.token, until)
            return (until, key), key is not None

        answer = self._commit(extend)
        until, key = (None, None) if answer is None else answer
        if key is None:
            raise ClaimLost(f'cannot touch {claim!r}: its lease has ended')
        claim.extended(until, key)

    def settles(self, claim):
        """A verb of `claim` was used: it is held no more once the transaction is committed."""
        current = self._home.transaction_manager.get()
        current.addAfterCommitHook(self._settled, (claim,))

    def _settled(self, successful, claim):
        if successful and self._held.pop((claim.lent.oid, claim.lent.token), None) is not None:
            self._done.append(claim)

    @property
    def claims(self):
        return tuple(self._held.values())

    # the end

    def close(self):
        if self.closed:
            return
        self.closed = True
        if self._listener is not None:
            self._listener.close()
        try:
            self._commit(self._give_back)
        finally:
            if self._connection is not None:
                self._tm.abort()
                self._connection.close()
                self._connection = None

    def _give_back(self):
        """Release what is still held, and take the leases off."""
        held = list(self._held.values())
        if not held and not self._done:
            return None, False
        for claim in held:
            try:
                Claim(self._twin(claim), claim.lent).release()
            except ClaimLost:
                continue
        self._retire([*self._done, *held])
        return None, True

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __repr__(self):
        return f'<Consumer {self.name!r}>'
