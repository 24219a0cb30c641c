"""Claims: jobs lent for a time to workers that are not agents.

`lend` takes the next job of some queues for a consumer: its entry leaves the
queue, its record says that it runs, and a lease (see `lease`) says until when.
The `Claim` is what the worker holds.  Its verbs join the worker's transaction,
so the work and the end of the claim are one commit.  A lease that has ended is
taken back by whoever sees it first, in a commit that writes the job's record; a
worker that comes too late meets that record, as ClaimLost where it can see it,
else as a ConflictError at its commit.

`lend`, `take_back` and `retire` run in a transaction of their own: a consumer's,
or for `take_back` a dispatcher's.  Nothing here commits.
"""

import contextlib
import datetime
import typing

from persistent import Persistent
from ZODB.broken import Broken
from zope.event import notify
from zope.interface import implementer

from zodbjobs import clock, status
from zodbjobs.interfaces import (
    AbortedError,
    BadStatusError,
    ClaimLost,
    IClaim,
    JobCompleted,
    JobRescheduled,
)
from zodbjobs.model.call import check_storable, is_plain
from zodbjobs.model.failure import Failure, is_failure
from zodbjobs.model.history import History
from zodbjobs.model.intake import LANES
from zodbjobs.model.lease import slot_key
from zodbjobs.model.ready import PRIORITY
from zodbjobs.model.retry import due_of
from zodbjobs.model.wishes import checked_priority, checked_span

#: How long a job is lent unless its put or its claim says otherwise.
LEASE_SECONDS = 120

#: A lease that ends within so many seconds is about to end.
SOON_SECONDS = 1

#: Leases taken back in one transaction.
TAKE_BACK_LIMIT = 200

#: Jobs that may turn out not to be fit to run in one `lend`.
UNFIT_LIMIT = 100


class ConsumerRecord(Persistent):
    """What is stored of the consumers of one name in a queue: the jobs that they finished.

    This record itself is written once.
    """

    def __init__(self, name, queue):
        self.name = name
        self.queue = queue
        self.history = History()

    completed = property(lambda self: self.history)

    def __repr__(self):
        return f'<Consumer {self.name!r} of {self.queue!r}>'


class Lent(typing.NamedTuple):
    """A job that was lent: facts, no persistent object.

    `token` is its filing, `number` how often it was claimed; `until` and `span`
    are in microseconds, `key` is that of the slot of its lease.
    """

    oid: bytes
    queue_oid: bytes
    queue: str
    token: int
    number: int
    until: int
    span: int
    key: int


def lend(looks, name, lane, now, span=None, filter=None):
    """Lend the next due job of these `Round`s to consumer `name`; a Lent, or None.

    `span`: microseconds, or None for what the job or the default says.  `lane`
    is that of the consumer's connection.
    """
    for _ in range(UNFIT_LIMIT):
        look, item = _first_of(looks, filter)
        if item is None:
            return None
        look.take(item)
        look.touched = True
        job = item[-1]
        if is_fit(job, now):
            return lent(look.queue, job, name, lane, now, span)
    return None


def _first_of(looks, filter):
    """(round, item) of what comes first: the smallest priority, then the order of filing."""
    best, chosen = None, (None, None)
    for look in looks:
        item = look.first(filter)
        if item is not None:
            token, _, group, _ = item
            if best is None or (group[PRIORITY], token) < best:
                best, chosen = (group[PRIORITY], token), (look, item)
    return chosen


def is_fit(job, now):
    """Whether a job may begin; one that may not ends, is held, or waits for later."""
    error = job.due_error(now)
    if error is None and job._interrupted:
        advice = advice_of(job, 'interrupted')
        if advice is True:
            return True
        error = AbortedError(
            f'{job!r} was interrupted {job.interruptions} times and may not run again'
        )
        job._status = status.ACTIVE
        _follow(job, advice, Failure(error))
        return False
    if error is None:
        return True
    job._status = status.ACTIVE
    _end(job, Failure(error))
    return False


def lent(queue, job, name, lane, now, span=None):
    """A job that was taken off its queue is lent to consumer `name`; returns the Lent."""
    record = queue.consumers.get(name)
    if record is None:
        record = queue.consumers[name] = ConsumerRecord(name, queue)
        queue._p_jar.add(record)
    job.begun(now, record._p_oid)
    job._move(status.ACTIVE)
    if span is None:
        span = job._lease
    if span is None:
        span = LEASE_SECONDS * clock.SECOND
    until = now + span
    key = queue.leases.add(lane, job.oid, until, job._token, job, name)
    return Lent(job._p_oid, queue._p_oid, queue.name, job._token, job._attempts, until, span, key)


def take_back(queue, now, limit=TAKE_BACK_LIMIT):
    """Give back the jobs whose lease has ended at `now`; whether anything was written."""
    found, wrote = queue.leases.ended(now, limit)
    for token, job, name in found:
        _write_off(queue, token, job, name)
    return wrote


def retire(queue, keys, job, token, name):
    """A claim of `job` has ended, by a commit of its worker: take its lease off, and list it."""
    if queue.leases.remove(keys, job.oid, token):
        _write_off(queue, token, job, name)


def _write_off(queue, token, job, name):
    """The lease is off the list: do with the job as it stands."""
    if isinstance(job, Broken) or job._token != token:
        return  # released, held or cancelled: its entry is elsewhere
    if job._status == status.ACTIVE:
        job._attempts -= 1  # it was counted when the job was lent, and is counted as lost now
        job.was_interrupted()
    elif job._status == status.COMPLETED:
        record = queue.consumers[name]
        queue.conclude(record, job)
        now = clock.micros()
        if record.history.is_due(now):
            for old in record.history.sweep(now):
                queue.notes.drop(int.from_bytes(old._p_oid, 'big'))


def conclude_urgent(look, name):
    """List jobs that ended while they waited or were lent, where no agent would do so.

    Those that have callbacks to run wait for an agent.
    """
    queue = look.queue
    if any(len(record) for record in queue.dispatchers.values() if record.activated):
        return
    for item in look.urgent():
        _, _, _, job = item
        if job._status == status.COMPLETED:
            look.take(item)
            look.touched = True
            if name not in queue.consumers:
                queue.consumers[name] = ConsumerRecord(name, queue)
            queue.conclude(queue.consumers[name], job)


def advice_of(job, question, *args):
    """What the retry policy of a job answers; False if it fails."""
    try:
        advice = getattr(job.getRetryPolicy(), question)(*args)
    except Exception:  # noqa: BLE001 - user code: no more tries
        return False
    return advice if isinstance(advice, (bool, datetime.datetime, datetime.timedelta)) else False


def _follow(job, advice, failure):
    """Do with a job that went wrong as its policy advises."""
    due = 0 if isinstance(advice, bool) else due_of(advice)
    if advice is not False and not job.is_late(due):
        job.rescheduled(due)
        notify(JobRescheduled(job))
    elif getattr(job._policy, 'on_exhausted', 'fail') == 'hold':
        job.set_aside(f'retries used up: {failure.getErrorMessage()}')
    else:
        _end(job, failure)


def _end(job, result):
    """The job has its result: tell who waits for it, or leave that to a worker."""
    queue = job.queue
    job.settled(result)
    notify(JobCompleted(job))
    if job.untold() is not None:
        queue.file_urgently(job)
        return
    for other in job.finished():
        notify(JobCompleted(other))
    if job.oid in queue.waiters:
        queue.release(job.oid)


@implementer(IClaim)
class Claim:
    """A job that was lent to this worker, until `expires`.

    Made by a consumer; `job` is in the connection of the consumer's queue, so the
    verbs join the transaction in which the worker does its work.  `consumer`
    is told of their use, and does what needs a commit of its own.
    """

    def __init__(self, job, lent, consumer=None):
        self.job = job
        self.lent = lent
        self.token = lent.number
        self.until = lent.until
        self.keys = [lent.key]
        self.name = getattr(consumer, 'name', None)
        self._consumer = consumer

    @property
    def body(self):
        """The bytes of a Message; None for another job."""
        return getattr(self.job, 'body', None)

    @property
    def expires(self):
        """Aware UTC datetime at which the lease ends, as far as this process has touched it."""
        return clock.datetime_of(self.until)

    @property
    def deadline_soon(self):
        """Whether the lease ends within a second, or has ended."""
        return clock.micros() >= self.until - SOON_SECONDS * clock.SECOND

    def touch(self):
        """Let the lease run its full time again from now, in a commit of its own.

        The transaction of the caller is not touched.  Raises ClaimLost.
        """
        if self._consumer is None:
            raise BadStatusError(f'{self!r} was not made by a consumer, which could touch it')
        self._consumer.touch(self)

    def extended(self, until, key):
        """It was touched: the lease ends at `until`, and was found in the slot `key`."""
        self.until = until
        self.keys = [key, slot_key(until, key % LANES)]

    def finish(self, result=None):
        """Complete the job with `result`, when the caller's transaction is committed.

        Raises ClaimLost; TypeError or ValueError for a result that cannot be stored.
        """
        job = self._own('finish')
        if not is_plain(result):
            check_storable(result, job._p_jar, f'the result of {job!r}', homes=False)
        _end(job, result)
        self._ended()

    def release(self, delay=0, priority=None):
        """Give the job back, to wait at its old place or, with `delay` (seconds), for later.

        In the caller's transaction.  `priority` is its new one.  Raises ClaimLost.
        """
        span = checked_span(delay, 'delay')
        priority = None if priority is None else checked_priority(priority)
        job = self._own('release')
        if priority is not None:
            job._priority = priority
        job.rescheduled(clock.micros() + span if span else 0)
        notify(JobRescheduled(job))
        self._ended()

    def hold(self, priority=None):
        """Set the job aside until ``job.resume()``, in the caller's transaction.

        Raises ClaimLost.
        """
        priority = None if priority is None else checked_priority(priority)
        job = self._own('hold')
        if priority is not None:
            job._priority = priority
        job.set_aside(f'held by consumer {self.name!r}')
        self._ended()

    def fail(self, exc):
        """The work raised `exc`: the job's retry policy says what follows.

        In the caller's transaction; abort what the work has written first.  The
        job waits for another try, is held, or completes with the Failure.
        Raises ClaimLost.
        """
        failure = exc if is_failure(exc) else Failure(exc)
        job = self._own('fail')
        cache = {}
        advice = advice_of(job, 'jobError', failure, cache)
        with contextlib.suppress(Exception):  # user code; the outcome must not be lost
            job.getRetryPolicy().updateData(cache)
        _follow(job, advice, failure)
        self._ended()

    def _own(self, verb):
        """The job, if it is still lent to us; one that nobody claimed since is taken again."""
        job = self.job
        if is_lent(job, self.lent.token):
            return job
        waits = job._status == status.PENDING and job._attempts == self.token
        if waits and job.status == status.PENDING:
            job.queue.unfile(job)
            job._status = status.ACTIVE
            return job
        raise ClaimLost(
            f'cannot {verb} {job!r}: this claim (number {self.token}) of it has ended, and the job'
            f' is {job.status}; abort the transaction, the work was or will be done by another'
        )

    def _ended(self):
        if self._consumer is not None:
            self._consumer.settles(self)

    def __repr__(self):
        return f'<Claim {self.token} of {self.job!r}>'


def is_lent(job, token):
    """Whether a job is lent under that filing, as far as its record says."""
    return job._token == token and job._status == status.ACTIVE


def claim_on(job):
    """The claim on a job that is lent, for whoever knows the job: a Claim, without touch.

    Raises ClaimLost if it is not lent.
    """
    queue = job.queue
    record = None if job._agent_oid is None else job.agent
    if queue is not None and job._status == status.ACTIVE and isinstance(record, ConsumerRecord):
        place = job._p_oid, queue._p_oid, queue.name
        return Claim(job, Lent(*place, job._token, job._attempts, until=0, span=0, key=0))
    raise ClaimLost(f'{job!r} is {job.status}: nobody has a claim on it')
