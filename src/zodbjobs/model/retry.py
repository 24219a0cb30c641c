"""What to do after an attempt went wrong: advice, as stored policies.

A policy *advises*, the attempt decides, the job records.  Its counts are kept
with the job, so they outlive a restart.  To wait, a policy answers with a date
or a timedelta; no thread sleeps for it.  The rules are those of zc.async's
policies of the same names, with the confirmed defects put right.

Runs in a worker's transaction.
"""

import datetime
import random

from zope.component import queryAdapter
from zope.interface import classImplements, implementer

from zodbjobs import clock
from zodbjobs.interfaces import IRetryPolicy

#: The kinds of trouble that the runtime tells apart, under this key of the cache.
KIND = 'kind'
CONFLICT = 'conflict'
DISCONNECTED = 'disconnected'

_DISCONNECTED = ('ZEO.Exceptions.ClientDisconnected',)
_CONFLICT = ('ZODB.POSException.ConflictError', 'transaction.interfaces.TransientError')


def kind_of(failure, data_cache):
    """CONFLICT, DISCONNECTED or None (anything else) for a failure."""
    if KIND in data_cache:
        return data_cache[KIND]
    if failure.check(*_DISCONNECTED):
        return DISCONNECTED
    return CONFLICT if failure.check(*_CONFLICT) else None


@implementer(IRetryPolicy)
class RetryCommonFourTimes:
    """The default: conflicts are tried five times, a lost connection is waited out.

    An error of the job's own is its result, at once.  Nine interruptions are
    borne, the tenth gives up.
    """

    #: Runs again after conflicts, in all; None: without end.
    max_conflicts: int | None = 4
    #: Interruptions that are borne; None: without end.
    max_interruptions: int | None = 9
    #: Seconds to wait for a lost connection: first, more each time, at most.
    initial_backoff = 5
    backoff_increment = 5
    max_backoff = 60

    def __init__(self, job):
        self.job = job
        self.data = {}

    def jobError(self, failure, data_cache):
        kind = kind_of(failure, data_cache)
        if kind == DISCONNECTED:
            return self._wait(self._count(data_cache, DISCONNECTED))
        if kind == CONFLICT:
            count = self._count(data_cache, CONFLICT)
            return self.max_conflicts is None or count <= self.max_conflicts
        return self.ownError(failure, data_cache)

    def is_used_up(self, data_cache):
        """Whether one more conflict is not answered by running again at once."""
        count = data_cache.get(CONFLICT, self.data.get(CONFLICT, 0))
        return self.max_conflicts is not None and count >= self.max_conflicts

    def ownError(self, failure, data_cache):
        """The call raised something that is no trouble of the storage."""
        return False

    def commitError(self, failure, data_cache):
        if kind_of(failure, data_cache) is None:
            return self.ownCommitError(failure, data_cache)
        return self.jobError(failure, data_cache)

    def ownCommitError(self, failure, data_cache):
        """The commit raised something that is no trouble of the storage."""
        return self.ownError(failure, data_cache)

    def interrupted(self):
        return self.max_interruptions is None or self.job.interruptions <= self.max_interruptions

    def updateData(self, data_cache):
        counts = {key: n for key, n in data_cache.items() if key != KIND}
        if counts and counts != self.data:
            self.data = counts
            self.job._policy = self

    def _count(self, data_cache, key):
        data_cache.setdefault(key, self.data.get(key, 0))
        data_cache[key] += 1
        return data_cache[key]

    def _wait(self, count):
        seconds = self.initial_backoff + self.backoff_increment * (count - 1)
        return datetime.timedelta(seconds=min(self.max_backoff, seconds))


class RetryCommonForever(RetryCommonFourTimes):
    """The default for callbacks: nothing but an error of their own ends them."""

    max_conflicts = None
    max_interruptions = None

    def ownCommitError(self, failure, data_cache):
        count = self._count(data_cache, 'commit')
        return datetime.timedelta(seconds=min(self.max_backoff, count - 1))


@implementer(IRetryPolicy)
class NeverRetry:
    """At most once: the first error, conflict or interruption is the end.

    For work that must not be repeated; what an interrupted job has done is not
    known, and it is parked as a failure that says so.
    """

    #: Such a job is claimed for a free thread only, never ahead.
    once = True

    def __init__(self, job):
        self.job = job

    def jobError(self, failure, data_cache):
        return False

    def commitError(self, failure, data_cache):
        return False

    def interrupted(self):
        return False

    def updateData(self, data_cache):
        pass


class _Limited(RetryCommonFourTimes):
    """A job's own copy of a `RetryPolicy`."""

    def __init__(self, job, plan):
        super().__init__(job)
        self.plan = plan

    @property
    def on_exhausted(self):
        return self.plan.on_exhausted

    def ownError(self, failure, data_cache):
        count = self._count(data_cache, 'errors')
        if count > self.plan.retries:
            return False
        return datetime.timedelta(seconds=self.plan.seconds(count, self._chance(count)))

    def _chance(self, count):
        """A number from 0 to 1 that is another one for each job, and again in each life."""
        return random.Random(f'{self.job.oid}.{count}').random() if self.plan.jitter else 0.0


class RetryPolicy:
    """A plan: `retries` more attempts after the first, with a backoff.

    `backoff` is seconds, a sequence of seconds (the last one counts on), or a
    callable of the number of the failed attempt (1, 2, ...) that answers
    seconds.  `on_exhausted` is 'fail', or 'hold' to set the job aside instead.
    `jitter` is a fraction: each wait is longer by up to so much of it, and by another
    part for each job, so that jobs that failed together do not come back
    together.  Give it as ``retry_policy_factory``.
    """

    jitter = 0

    def __init__(self, retries, backoff=0, on_exhausted='fail', jitter=0):
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise ValueError(f'retries is a whole number from 0 on, not {retries!r}')
        if on_exhausted not in ('fail', 'hold'):
            raise ValueError(f"on_exhausted is 'fail' or 'hold', not {on_exhausted!r}")
        if not callable(backoff) and not isinstance(backoff, (int, float)):
            backoff = tuple(backoff)
            if not backoff:
                raise ValueError('backoff has no seconds: give 0 to run again at once')
            for seconds in backoff:
                if not isinstance(seconds, (int, float)):
                    raise TypeError(f'backoff is made of seconds, not {seconds!r}')
        if isinstance(jitter, bool) or not isinstance(jitter, (int, float)):
            raise TypeError(f'jitter is a fraction of the backoff, such as 0.2, not {jitter!r}')
        if not 0 <= jitter <= 1:
            raise ValueError(f'jitter is a fraction from 0 to 1, not {jitter!r}')
        if jitter:
            self.jitter = jitter
        self.retries = retries
        self.backoff = backoff
        self.on_exhausted = on_exhausted

    def seconds(self, count, chance=0.0):
        """How long to wait after the `count`-th failed attempt; `chance` is from 0 to 1."""
        return max(0, self._backoff(count)) * (1 + self.jitter * chance)

    def _backoff(self, count):
        if callable(self.backoff):
            return self.backoff(count)
        if isinstance(self.backoff, tuple):
            return self.backoff[min(count, len(self.backoff)) - 1]
        return self.backoff

    def __call__(self, job):
        return _Limited(job, self)

    def __repr__(self):
        jitter = f', jitter={self.jitter}' if self.jitter else ''
        return f'RetryPolicy({self.retries}, {self.backoff!r}, {self.on_exhausted!r}{jitter})'


classImplements(_Limited, IRetryPolicy)


def policy_for(job):
    """A new policy for `job`, by its own wish or the process's default.

    Raises LookupError for the name of an adapter that is not registered.
    """
    factory = job.retry_policy_factory
    if isinstance(factory, str):
        policy = queryAdapter(job, IRetryPolicy, name=factory)
        if policy is None:
            raise LookupError(
                f'{job!r} asks for the retry policy {factory!r}, and no adapter to'
                f' IRetryPolicy of that name is registered in this process'
            )
        return policy
    if factory is not None:
        return factory(job)
    if job._retries is not None:
        return RetryPolicy(job._retries)(job)
    if job._parent is not None:
        named = queryAdapter(job, IRetryPolicy, name='callback')
        return RetryCommonForever(job) if named is None else named
    default = queryAdapter(job, IRetryPolicy)
    return RetryCommonFourTimes(job) if default is None else default


def due_of(advice):
    """Microseconds of a policy's datetime or timedelta; 0 for now or earlier."""
    now = clock.micros()
    if isinstance(advice, datetime.timedelta):
        wait = clock.micros_in(advice)
        return now + wait if wait > 0 else 0
    due = clock.micros_of(advice)
    return due if due > now else 0
