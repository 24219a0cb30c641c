"""Every contract of zodbjobs: the key, the states, errors, events, interfaces.

This is the place of truth: code elsewhere answers "See IQueue.put", and tests
run ``verifyObject`` over what is written here.

Errors, as a tree::

    ZodbJobsError
    +-- AbortedError            a job was interrupted and may not run again
    |   `-- CancelledError      ... because somebody cancelled it
    +-- TimeoutError            begin_by passed before the job began
    +-- TimeLimitExceeded       the job ran longer than its time_limit allows
    +-- DependencyError         a job this one depends on did not succeed
    +-- BadStatusError          the call does not fit the job's state
    +-- DuplicateJobError       an unfinished job has this id (a ValueError)
    +-- MultipleDelayError      begin_after and delay were both given (a ValueError)
    +-- QueueClosed             the queue takes no new jobs
    +-- QueueFull               as many jobs wait as the queue's capacity allows
    +-- ReassignedError         the job went to another worker meanwhile
    +-- ClaimLost               the lease ended before the claim was used
    +-- DeadlineSoon            a held claim is about to end; carries the claim
    +-- FeedDeleted             the feed is gone
    +-- NoticesGone             notices were asked for that are not kept any more (a LookupError)
    `-- Empty                   nothing arrived in the time allowed
"""

from zope.interface import Attribute, Interface, implementer
from zope.interface.common.mapping import IEnumerableMapping

from zodbjobs.interfaces.events import (
    ArrivalAwaited,
    DatabaseOpened,
    DispatcherActivated,
    DispatcherDeactivated,
    DispatcherReactivated,
    DispatcherRegistered,
    DispatcherUnregistered,
    FeedChanged,
    HandlerRegistered,
    HandlerRemoved,
    IDatabaseOpenedEvent,
    JobAdded,
    JobClaimed,
    JobCompleted,
    JobFiled,
    JobInterrupted,
    JobRescheduled,
    JobStarted,
    LoopFresh,
    LoopLate,
    ObjectAdded,
    ObjectEvent,
)
from zodbjobs.interfaces.feeds import (
    FEEDS_KEY,
    IAnyFeed,
    IFeed,
    IFeeds,
    IJobFeed,
    IMessageQueue,
    ISortedFeed,
    IToldFeed,
)
from zodbjobs.interfaces.loop import LOOPS_KEY, ILoop, ILoopRunner, ILoops
from zodbjobs.status import ACTIVE, ASSIGNED, CALLBACKS, COMPLETED, HELD, NEW, PENDING

__all__ = [
    'ACTIVE',
    'ASSIGNED',
    'CALLBACKS',
    'COMPLETED',
    'FEEDS_KEY',
    'HELD',
    'IUUID',
    'KEY',
    'LOOPS_KEY',
    'NEW',
    'PENDING',
    'AbortedError',
    'ArrivalAwaited',
    'BadStatusError',
    'CancelledError',
    'ClaimLost',
    'DatabaseOpened',
    'DeadlineSoon',
    'DependencyError',
    'DispatcherActivated',
    'DispatcherDeactivated',
    'DispatcherReactivated',
    'DispatcherRegistered',
    'DispatcherUnregistered',
    'DuplicateJobError',
    'Empty',
    'FeedChanged',
    'FeedDeleted',
    'HandlerRegistered',
    'HandlerRemoved',
    'IAgent',
    'IAnyFeed',
    'IClaim',
    'IConsumer',
    'IDatabaseOpenedEvent',
    'IDispatcher',
    'IDispatcherAgents',
    'IDispatchers',
    'IFeed',
    'IFeeds',
    'IJob',
    'IJobFeed',
    'IMessageQueue',
    'ILoop',
    'ILoopRunner',
    'ILoops',
    'IQueue',
    'IQueues',
    'IQuota',
    'IQuotas',
    'IReactor',
    'IRetryPolicy',
    'ISortedFeed',
    'IToldFeed',
    'JobAdded',
    'JobClaimed',
    'JobCompleted',
    'JobFiled',
    'JobInterrupted',
    'JobRescheduled',
    'JobStarted',
    'LoopFresh',
    'LoopLate',
    'MultipleDelayError',
    'NoticesGone',
    'ObjectAdded',
    'QueueClosed',
    'QueueFull',
    'ReassignedError',
    'TimeLimitExceeded',
    'TimeoutError',
    'ZodbJobsError',
]

#: Where the mapping of queues is found in a database's root.
KEY = 'zodbjobs'


# Errors ------------------------------------------------------------------------------------


class ZodbJobsError(Exception):
    """The base of every error this package defines."""


class AbortedError(ZodbJobsError):
    """The job was interrupted and its retry policy lets it run no more."""


class CancelledError(AbortedError):
    """The job was cancelled before it finished."""


class TimeoutError(ZodbJobsError):
    """The job did not begin before its begin_by had passed."""


class TimeLimitExceeded(ZodbJobsError):
    """The job ran longer than its time_limit allows, and was given up or stopped."""


class DependencyError(ZodbJobsError):
    """A job that this one depends on did not succeed."""


class BadStatusError(ZodbJobsError):
    """What was asked does not fit the state the job is in."""


class DuplicateJobError(ZodbJobsError, ValueError):
    """An unfinished job of this queue has the same id."""


class MultipleDelayError(ZodbJobsError, ValueError):
    """Both an instant and a delay were given; one is enough."""


class QueueClosed(ZodbJobsError):
    """The queue was closed: it takes no new jobs."""


class QueueFull(ZodbJobsError):
    """As many jobs wait as the capacity of the queue allows."""


class ReassignedError(ZodbJobsError):
    """The job now belongs to another worker; this one must leave no trace."""


class ClaimLost(ZodbJobsError):
    """The lease of the claim has ended and the job is no longer yours."""


class DeadlineSoon(ZodbJobsError):
    """A claim held by this consumer is about to end (attribute `claim`)."""

    def __init__(self, claim=None):
        super().__init__(f'the lease of {claim!r} is about to end: touch, finish or release it')
        self.claim = claim


class FeedDeleted(ZodbJobsError):
    """The feed was deleted while it was in use."""


class NoticesGone(ZodbJobsError, LookupError):
    """Some of the notices that were asked for are not kept any more.

    `number` is the one up to which they are missing: what came after it is there.
    """

    def __init__(self, text, number=0):
        super().__init__(text, number)
        self.number = number

    def __str__(self):
        return self.args[0]


class Empty(ZodbJobsError):
    """Nothing arrived in the time allowed."""


# Stored things -----------------------------------------------------------------------------


class IJob(Interface):
    """A call, with its arguments, that will be run once, and what became of it."""

    callable = Attribute('what is called; settable while the job is new or pending')
    args = Attribute('positional arguments, a list; mutable until the job starts')
    kwargs = Attribute('keyword arguments, a dict; mutable until the job starts')
    annotations = Attribute(
        'a mapping for the application; writing it never conflicts with the running job'
    )
    callbacks = Attribute('the callback jobs, in the order they were added (a tuple)')
    status = Attribute('one of the strings in zodbjobs.status')
    result = Attribute(
        'None until there is one; a Failure if the call raised; while the job waits for a'
        ' job that it returned, that job'
    )
    outcome = Attribute("None, 'success', 'failure' or 'cancelled'")
    begin_after = Attribute('aware UTC datetime before which the job does not start, or None')
    begin_by = Attribute('timedelta after begin_after by which it must have begun, or None')
    quota_names = Attribute('a tuple of names of quotas of the queue')
    priority = Attribute('unsigned 32-bit integer, smaller first')
    channel = Attribute('a name by which agents may choose, or None')
    id = Attribute('a name that is unique among the unfinished jobs of the queue, or None')
    idempotency_key = Attribute('a text that is the same on every attempt, for outside services')
    depends_on = Attribute('jobs that must have succeeded before this one starts (a tuple)')
    after = Attribute('jobs that must have finished before this one starts (a tuple)')
    queue = Attribute('the queue the job is or was in, or None')
    agent = Attribute('the agent that runs or ran it, or None')
    parent = Attribute('the queue, or for a callback the job it follows, or None')
    active_start = Attribute('aware UTC datetime at which the latest attempt began, or None')
    active_end = Attribute('aware UTC datetime at which the call ended, or None')
    attempts = Attribute('how many claims began')
    interruptions = Attribute('how many attempts ended with their worker')
    conflicts = Attribute('how often the body was run again inside one attempt')
    progress = Attribute('None, or what local.progress() reported last')
    time_limit = Attribute(
        'None, or (soft, hard) timedeltas: when the running job is asked to stop, and when its'
        ' thread is given up; settable as a pair or as the soft one, in seconds or timedeltas'
    )
    stop_requested = Attribute(
        'for the running job: whether it shall come to an end (time limit, cancel, shutdown)'
    )
    hold_reason = Attribute('the text given to hold(), or None')
    assignerUUID = Attribute('the IUUID utility of the process that put it, or None')
    failure_log_level = Attribute('logging level for a failure; None is ERROR')
    retry_policy_factory = Attribute('None, the name of an adapter, or a callable taking the job')

    def __call__(*args, **kwargs):
        """Run a NEW job here and now, in the caller's transaction.

        Arguments are added behind the job's own; keywords override.  The
        result (or the Failure) is stored and returned, callbacks are run,
        nothing is committed.  Raises BadStatusError unless the job is new.
        """

    def addCallback(callback, failure_log_level=None, retry_policy_factory=None):
        """Call `callback` with the result, whatever it is; returns its job.

        On a finished job, or on one that runs, the callback becomes a job of the
        queue in the caller's transaction; that does not disturb the running job.
        It starts when that is completed, of its priority and in its channel.
        """

    def addCallbacks(success=None, failure=None, failure_log_level=None, retry_policy_factory=None):
        """Call one of two with the result; returns a job.

        The returned job's result is that of the side that was called; with
        that side missing the result passes through unchanged, and callbacks
        added to the returned job get it either way.
        """

    def hold(reason=None):
        """Set a pending job aside until resume().  Raises BadStatusError."""

    def resume():
        """Let a held job wait for its turn again.  Raises BadStatusError."""

    def cancel():
        """Complete the job with a CancelledError; its callbacks run.

        A job that is running is asked to stop (its result is not kept).
        Raises BadStatusError once the job has finished.
        """

    def retry():
        """Run a finished failure again, as if it was put now.

        Of a `serial` or `parallel` job only those parts that failed are run
        again, and then its postprocess.  Raises BadStatusError.
        """

    def fail(error=None):
        """Complete a job that has not begun with `error` (default TimeoutError)."""

    def getRetryPolicy():
        """The IRetryPolicy of this job; made once and then kept with it."""

    def setUp():
        """Hook before each attempt; what it returns is handed to tearDown."""

    def tearDown(setup_info):
        """Hook after the commit or abort of each attempt."""

    def undone(error, kind, counts):
        """Hook after an attempt that failed was undone, in a transaction that is committed.

        `error` is what was raised, by the call or by the commit; `kind` is
        'conflict' or 'disconnected' where that is trouble of the storage, after
        which the attempt may only be made again; `counts` are those of the retry
        policy, which is asked afterwards.
        """

    def stats():
        """A dict of what is known about the job, plain values only."""


class IQuota(Interface):
    """How many jobs that name it may run at once, over all workers."""

    name = Attribute('its name in queue.quotas')
    size = Attribute('the limit; may be set at any time and never stops a running job')
    filled = Attribute('whether it has no room')

    def __len__():
        """How many places are taken."""

    def clean():
        """Forget jobs that no longer run; returns how many were forgotten."""


class IQuotas(IEnumerableMapping):
    """The quotas of a queue by name."""

    def create(name, size=1):
        """Make a quota.  Raises ValueError if there is one of that name."""

    def remove(name):
        """Remove it; jobs that name it run without.  Raises KeyError."""


class IQueue(Interface):
    """Jobs on their way to the agents."""

    name = Attribute('its key in the mapping of queues')
    parent = Attribute('the mapping of queues')
    quotas = Attribute('IQuotas')
    dispatchers = Attribute('IDispatchers')
    closed = Attribute(
        'True: put raises QueueClosed, and only work under way gets its further parts; may be set'
    )
    paused_until = Attribute('None, or the datetime until which nothing is handed out')
    capacity = Attribute(
        'None, or how many jobs may wait before put raises QueueFull; jobs of transactions that'
        ' are open at the same time are not counted, so it may be exceeded by those'
    )
    tube = Attribute(
        'True: outsiders may put, claim and see the messages of the queue through a port that'
        ' speaks the protocol of beanstalkd; may be set'
    )
    handler = Attribute(
        "None, or 'package.module:function' that agents call with the body of each message"
    )
    order = Attribute("'due': priority, begin_after, put; 'put': priority, put; may be set")

    def put(
        item,
        begin_after=None,
        begin_by=None,
        *,
        delay=None,
        priority=None,
        channel=None,
        quota_names=None,
        retries=None,
        failure_log_level=None,
        retry_policy_factory=None,
        id=None,
        on_conflict='raise',
        depends_on=(),
        after=(),
        lease=None,
        result_ttl=None,
        time_limit=None,
    ):
        """Put a job, in the caller's transaction, and return it.

        `item` is an IJob or anything that can be stored and called: a module's
        function, a callable persistent object, a method of a persistent object.

        `begin_after` is a datetime (naive is UTC), `delay` seconds or a
        timedelta from now; `begin_by` a timedelta after begin_after.
        `priority` is 0 to 2**32 - 1, smaller first, default 2**31.
        `retries` is how often an attempt that raised is made again.
        `id` is unique among unfinished jobs; on_conflict: 'raise' a
        DuplicateJobError, 'keep' (the waiting job is returned) or 'replace'.
        `depends_on` jobs must succeed first, `after` jobs must have finished.
        `result_ttl` is seconds or a timedelta that the finished job is kept.
        `time_limit` is seconds or a timedelta after which the running job is
        asked to stop, or a pair: the second is when its thread is given up.  A
        Deferred or a coroutine is cancelled, then waited for no more.

        Raises ValueError or TypeError for what could not be run or stored
        later, with what to do instead, QueueClosed and QueueFull; the transaction stays
        usable and nothing has changed.
        """

    def pull(index=0):
        """Take out and return the job at `index`; IndexError if there is none."""

    def remove(job):
        """Take this job out; it is NEW again.  LookupError if it does not wait here."""

    def claim(filter=None, default=None):
        """Take the first due job that `filter` and its quotas accept.

        For agents with a chooser.  Returns `default` if there is none.
        """

    def putBack(job):
        """Give a claimed job back to its place in the order."""

    def consumer(name):
        """An IConsumer of this queue, for a worker that is not an agent.

        `name` says what kind of worker it is; many may have the same one.
        """

    def peek():
        """The job that is next, or None."""

    def clear():
        """Take out all waiting jobs; returns how many."""

    def pause(until=None):
        """Hand out nothing until unpause(), or until a datetime or so many seconds."""

    def unpause():
        """Hand out jobs again."""

    def stats():
        """A dict of counts by state and settings, plain values only."""

    def __len__():
        """How many jobs wait (held ones do not count)."""

    def __iter__():
        """The waiting jobs in the order they would be claimed."""

    def __getitem__(index):
        """The waiting job at `index`, which may be negative."""


class IQueues(IEnumerableMapping):
    """The queues of a database by name, at root[KEY]."""

    identity = Attribute('a text that is unique to this mapping, and to its copies')
    deployment = Attribute('the name of the deployment that may serve them, or None for any')

    def consumer(name, watch=('',)):
        """An IConsumer of the queues whose names are in `watch`; KeyError for an unknown one."""


class IConsumer(Interface):
    """A worker that claims jobs itself.  For one thread, and the connection of its queues."""

    name = Attribute('what was given when it was made')
    claims = Attribute('the IClaims that it holds, a tuple')
    closed = Attribute('whether close() was called')

    def claim(timeout=None, lease=None, filter=None):
        """Take the next due job of the queues for some time; an IClaim.

        The lease is a commit of its own, in another connection, and then a new
        transaction begins here; ValueError if the present one has changes.  With
        nothing to claim it waits `timeout` seconds (None: for ever) and returns
        None.  `lease` is seconds or a timedelta; without it the put's `lease`
        counts, or 120 seconds.  `filter` is called with each job that is next,
        and says whether to take it.

        Raises DeadlineSoon, which carries the claim, if nothing can be claimed and
        the lease of a held claim ends within a second.
        """

    def close():
        """Give back what is still held.  A consumer is a context manager that does this."""


class IClaim(Interface):
    """A job that is lent to a consumer for a time.

    `finish`, `release`, `hold` and `fail` join the transaction of the caller: what
    the worker has written and the end of the claim are one commit.  They raise
    ClaimLost where it can be seen that the lease has ended and the job went on
    without this worker; where it cannot be seen yet, the commit conflicts.  A lease
    that has ended may still be used as long as nobody else has claimed the job.
    """

    job = Attribute('the IJob, in the connection of the queue of the consumer')
    body = Attribute('the bytes of a Message, None for another job')
    token = Attribute('how often the job was claimed, an int that grows with every claim')
    expires = Attribute('aware UTC datetime at which the lease ends')
    deadline_soon = Attribute('whether the lease ends within a second, or has ended')

    def touch():
        """Let the lease run its full time again, in a commit of its own.  From any thread."""

    def finish(result=None):
        """Complete the job with this result."""

    def release(delay=0, priority=None):
        """Give the job back: to its old place, or for `delay` seconds later."""

    def hold(priority=None):
        """Set the job aside until job.resume()."""

    def fail(exc):
        """The work raised `exc`: the retry policy of the job says what follows."""


class IDispatchers(IEnumerableMapping):
    """The records of the dispatchers that serve a queue, by UUID."""

    def register(uuid):
        """Make a record for a dispatcher; ValueError if there is one."""

    def unregister(uuid):
        """Remove the record; ValueError if it is activated or holds jobs."""


class IDispatcherAgents(IEnumerableMapping):
    """The agents of one dispatcher in one queue, by name."""

    UUID = Attribute('the UUID of the dispatcher')
    activated = Attribute('aware UTC datetime since when it serves the queue, or None')
    dead = Attribute('True once it was found to have ended without saying so')
    stuck = Attribute('aware UTC datetime since when it makes no passes though it lives, or None')
    host = Attribute('the host it runs on')
    pid = Attribute('its process there')
    hosts = Attribute('what its process has for jobs that need it: bits of zodbjobs.model.hosts')

    def activate(host=None, pid=None, hosts=0):
        """Say that the dispatcher serves the queue.  ValueError if it does already."""

    def deactivate(begun=()):
        """Say that it stopped; its jobs go back.  ValueError if it is not active.

        `begun`: oids (int) of the jobs that were still running.
        """

    def reactivate():
        """Say that it serves on after it was wrongly held for dead."""

    def found_stuck(is_stuck):
        """Note that it does not make its passes any more though it lives, or that it does again."""


class IAgent(Interface):
    """Takes jobs of a queue for one dispatcher, up to `size` at a time."""

    name = Attribute('its key in IDispatcherAgents')
    parent = Attribute('its IDispatcherAgents')
    queue = Attribute('its queue')
    size = Attribute('how many jobs may run at once; may be set at any time')
    filter = Attribute('None, or a callable that says of a job whether to take it')
    chooser = Attribute('None, or a callable that takes a job from agent.queue itself')
    channels = Attribute('None for all, or the names of the channels to take jobs of')
    coalesce = Attribute(
        'seconds, at most 1, for which a worker goes on with further jobs in the same transaction,'
        ' which one commit makes final; 0: each job has its own.  For tiny jobs whose effects are'
        ' all transactional: where one fails, it is run again, alone.'
    )

    def __len__():
        """How many unfinished jobs it has, with those that wait for a returned job."""

    def __iter__():
        """Those jobs, the longest held first."""


class IRetryPolicy(Interface):
    """Advises what to do after an attempt went wrong.

    Each answer is True (again at once), False (no more), a datetime, or a
    timedelta (0 or less: at once, ahead of others of its priority).
    """

    def jobError(failure, data_cache):
        """The call, or the job's setUp, raised.  `data_cache` is a dict of this run."""

    def commitError(failure, data_cache):
        """The commit of the work failed."""

    def interrupted():
        """The worker ended before the job did."""

    def updateData(data_cache):
        """Store what must outlive this run; called just before each commit."""


# What lives in a process -------------------------------------------------------------------


class IReactor(Interface):
    """What a dispatcher needs of a Twisted reactor; it need not declare this."""

    def callFromThread(callable, *args, **kw):
        """Run it in the reactor's thread, soon."""

    def callInThread(callable, *args, **kw):
        """Run it in a thread of the reactor's pool."""

    def callLater(seconds, callable, *args, **kw):
        """Run it later; returns an object with cancel() and active()."""

    def addSystemEventTrigger(phase, event, callable, *args, **kw):
        """Only 'before' 'shutdown' is used."""

    def callWhenRunning(callable, *args, **kw):
        """Run it once the reactor runs."""


class IDispatcher(Interface):
    """Serves the queues of a database with the threads of this process."""

    UUID = Attribute('its stable identity, a uuid.UUID')
    activated = Attribute('aware UTC datetime; None while it stops; False when it is off')
    queues = Attribute('{queue name: {agent name: thread pool}}')
    reactor = Attribute('IReactor')
    poll_interval = Attribute('seconds between polls when nothing wakes it')

    def activate(threaded=False):
        """Begin to serve.  threaded: database work off the reactor's thread."""

    def deactivate():
        """Stop claiming, let running jobs end (up to `grace` seconds), hand back the rest."""

    def getStatusInfo():
        """A dict: status, poll interval, time since last poll, uptime, uuid."""

    def getStatistics(at=None, before=None, since=None, queue=None, agent=None):
        """Counts of jobs, and the longest and shortest of each kind."""

    def getActiveJobIds(queue=None, agent=None):
        """[(oid, database name)] of the jobs that run in this process now."""

    def getJobInfo(oid, database_name=None):
        """A dict about a job that ran in this process.  ValueError if unknown."""

    def getPollInfo(at=None, before=None):
        """What a poll found."""

    def iterPolls(at=None, before=None, since=None, count=None):
        """Polls, newest first."""


class IUUID(Interface):
    """A utility: the uuid.UUID that stands for this process."""
