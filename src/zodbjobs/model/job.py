"""The job: a call, with its arguments, and what became of it.

A job is moved by its past-tense methods, each one move of `status.MOVES`.  What
the claim does is not written here: while a job is PENDING in its record, the
place where its entry lies tells whether an agent has it (see `Job.status`).

`_token` is the number of the latest filing.  Whoever acts on an entry compares
it with the job's own: an entry with an older token is stale and is dropped.

Runs in any thread, on objects of that thread's connection, in the caller's
transaction; nothing here commits.
"""

import contextlib
import functools

from BTrees.OOBTree import OOBTree
from ZODB.broken import Broken
from zope.event import notify
from zope.interface import implementer

from zodbjobs import clock, local, status
from zodbjobs.interfaces import (
    BadStatusError,
    CancelledError,
    DependencyError,
    IJob,
    JobCompleted,
    JobInterrupted,
    TimeLimitExceeded,
    TimeoutError,
)
from zodbjobs.model import retry
from zodbjobs.model.announce import announce
from zodbjobs.model.call import (
    call_name,
    check_storable,
    custom_repr,
    is_plain,
    refuse_broken,
    resolved,
    stored_form,
)
from zodbjobs.model.failure import Failure, is_failure
from zodbjobs.model.notes import Annotations
from zodbjobs.model.tokens import TIE_MASK
from zodbjobs.model.wished import WishedJob
from zodbjobs.model.wishes import check_factory

#: The serial of an object that was not committed yet.
NEVER_STORED = b'\0' * 8

#: What an ACTIVE job without a thread waits for.
WAITS_FOR_JOB = 'job'
WAITS_FOR_DEFERRED = 'deferred'


@implementer(IJob)
class Job(WishedJob):
    """See IJob.

    ``Job(callable, *args, **kwargs)``; arguments given when it is called come
    behind these, keywords override.
    """

    #: Where it is public: stored in each record of a job, and in each that refers to jobs.
    __module__ = 'zodbjobs'

    def __init__(self, *args, **kwargs):
        if not args:
            raise TypeError('Job() needs what is to be called: Job(callable, *args, **kwargs)')
        call, args = args[0], args[1:]
        while isinstance(call, functools.partial):
            args, kwargs = call.args + args, {**call.keywords, **kwargs}
            call = call.func
        self._call = stored_form(call)
        if args:
            self._args = args
        if kwargs:
            self._kwargs = kwargs

    @classmethod
    def bind(cls, *args, **kwargs):
        """A job whose call gets the job itself as first argument."""
        job = cls(*args, **kwargs)
        job.args.insert(0, job)
        return job

    # what it is

    @property
    def callable(self):
        return resolved(self._call)

    @callable.setter
    def callable(self, call):
        self._must_be('change the callable of', status.NEW, status.PENDING)
        self._call = stored_form(call)

    @property
    def call_name(self):
        """The dotted name of what is called; never raises."""
        return call_name(self._call)

    @property
    def annotations(self):
        return Annotations(self._read_notes, self._make_notes)

    def _read_notes(self):
        if self._annotations is not None:
            return self._annotations
        queue = self.queue
        return None if queue is None or self._p_oid is None else queue.notes.get(self.oid)

    def _make_notes(self):
        if self._annotations is None:
            queue = self.queue
            if queue is not None:
                return queue.notes.make(self.oid)
            self._annotations = OOBTree()
        return self._annotations

    @property
    def parent(self):
        return self._parent if self._parent is not None else self.queue

    @property
    def queue(self):
        if self._queue_oid is None:
            return None if self._parent is None else self._parent.queue
        return self._stored(self._queue_oid)

    @property
    def agent(self):
        queue = self.queue
        if queue is None:
            return None
        if self._status == status.PENDING:
            found = queue.dispatchers.agent_of(self)
            return found[0] if found else None
        return None if self._agent_oid is None else self._stored(self._agent_oid)

    def _stored(self, oid):
        try:
            return None if self._p_jar is None else self._p_jar.get(oid)
        except KeyError:  # a POSKeyError: the queue or the agent was removed
            return None

    @property
    def stop_requested(self):
        return local.is_asked_to_stop(self)

    def getRetryPolicy(self):
        if self._policy is None:
            self._policy = retry.policy_for(self)
        return self._policy

    @property
    def runs_once(self):
        """Whether its policy forbids a second try, so that it is never claimed ahead."""
        factory = self._retry_policy_factory
        return bool(getattr(factory, 'once', False))

    # how it stands

    @property
    def status(self):
        if self._queue_oid is not None and self._p_jar is None:
            self._was_never_put()
        if self._status != status.PENDING:
            running_callback = self._status == status.NEW and local.getJob() is self
            return status.ACTIVE if running_callback else self._status
        queue = self.queue
        found = None if queue is None else queue.dispatchers.agent_of(self)
        if not found:
            return status.PENDING
        return status.ASSIGNED if found[1] and local.getJob() is not self else status.ACTIVE

    @property
    def result(self):
        return self._result

    @property
    def outcome(self):
        if self._status not in status.FINISHED:
            return None
        if not is_failure(self._result):
            return 'success'
        return 'cancelled' if self._result.check(CancelledError) else 'failure'

    @property
    def initial_callbacks_end(self):
        told = self._active_end if self._told is None else self._told
        return clock.datetime_of(told) if self._status == status.COMPLETED else None

    def occupies(self, token):
        """Whether the filing `token` of this job (still) takes a place in its quotas."""
        return (
            self._token == token
            and self._status in (status.PENDING, status.ASSIGNED, status.ACTIVE)
            and self._waits != WAITS_FOR_JOB
        )

    def is_late(self, now):
        """Whether begin_by has passed at `now` (microseconds)."""
        start = self._due
        if start is None and self._parent is not None:
            start = self._parent._active_end  # a callback may begin when there is a result
        return self._begin_by is not None and start is not None and now > start + self._begin_by

    def blockers(self):
        """The jobs it waits for that have not finished; a tuple.

        One that was taken out of its queue will not finish: it counts as done,
        and as failed where success is needed.
        """
        return tuple(
            other
            for other in (*self._depends_on, *self._after)
            if _standing(other)[0] not in (status.COMPLETED, status.NEW)
        )

    def failed_dependency(self):
        """The first job of depends_on that ended without success, or None."""
        for other in self._depends_on:
            stands, outcome = _standing(other)
            if stands == status.NEW or outcome not in (None, 'success'):
                return other
        return None

    def _move(self, new):
        if not status.may_move(self._status, new):
            raise BadStatusError(
                f'{self!r} is {self._status}; it can become'
                f' {sorted(status.MOVES[self._status])}, not {new}'
            )
        self._status = new

    # callbacks

    def addCallback(self, callback, failure_log_level=None, retry_policy_factory=None):
        job = as_job(callback)
        return self._add_callback(job, failure_log_level, retry_policy_factory)

    def addCallbacks(
        self, success=None, failure=None, failure_log_level=None, retry_policy_factory=None
    ):
        # Choice is a kind of job, and stands below in this module
        job = Choice(success, failure)
        return self._add_callback(job, failure_log_level, retry_policy_factory)

    def _add_callback(self, job, failure_log_level, retry_policy_factory):
        _check_new(job)
        if failure_log_level is not None:
            job.failure_log_level = failure_log_level
        if retry_policy_factory is not None:
            job.retry_policy_factory = retry_policy_factory
        jar = self._p_jar
        if jar is not None:
            job.check_args(jar)
        if self._is_under_way():
            self.queue.put_callback(job, self)
            self.queue.notes.add_late_callback(self.oid, job)
            return job
        if self._status == status.COMPLETED and self.queue is not None:
            self.queue.put_callback(job, self)
        else:
            job._parent = self
            if self._status == status.COMPLETED:
                job(*job.call_args())
            elif jar is not None:
                jar.add(job)
        self._callbacks += (job,)
        return job

    def _is_under_way(self):
        """Whether somebody else is about to write this record, and must not meet a conflict."""
        if self._queue_oid is None or self._status == status.ASSIGNED or self._p_changed:
            return False
        current = local.getJob()
        if current is self or getattr(current, '_parent', None) is self:
            return False  # that is us
        return self.status in (status.ASSIGNED, status.ACTIVE, status.CALLBACKS)

    @property
    def callbacks(self):
        queue = None if self._queue_oid is None else self.queue
        return self._callbacks + (() if queue is None else queue.notes.late_callbacks(self.oid))

    def untold(self):
        """The first callback that has not finished and is ours to run, or None."""
        for callback in self._callbacks:
            if isinstance(callback, Broken):
                continue  # its class is gone, and nobody can run it
            ours = callback._waits is None and callback._queue_oid is None
            if ours and callback._status != status.COMPLETED:
                return callback
        return None

    # wishes of the application

    def __call__(self, *args, **kwargs):
        self._must_be('call', status.NEW, status.ASSIGNED)
        former = self._status
        self.begun(clock.micros(), None)
        self._status = status.ACTIVE
        try:
            value = self.run(args, kwargs)
        except Exception as error:
            value = Failure(error)
        except BaseException:
            self._status = former
            raise
        self.settled(value)
        self._conclude()
        return self._result

    def _conclude(self):
        """Run the callbacks here and now, and finish."""
        while (callback := self.untold()) is not None:
            callback(self._result)
        self.finished()

    def hold(self, reason=None):
        if self._status == status.NEW:
            raise BadStatusError(f'{self!r} is new: put it, then hold it')
        self._must_be('hold', status.PENDING)
        self.queue.unfile(self)
        self.set_aside(reason)

    def resume(self):
        self._must_be('resume', status.HELD)
        queue = self.queue
        queue.held.pop(self.oid, None)
        self._hold_reason = None
        self._status = status.PENDING
        if self._put is None:  # a callback, which was never put
            self._put = self._due = clock.micros()
        queue.file(self)

    def cancel(self):
        if self._status in status.FINISHED:
            raise BadStatusError(f'cannot cancel {self!r}: it is {self._status}')
        if self._status == status.PENDING and self.status != status.PENDING:
            self._cancelled = True  # its worker meets this at its commit
        else:
            _announce(self._ended_with(CancelledError(f'{self!r} was cancelled')))

    def fail(self, error=None):
        self._must_be('fail', status.NEW, status.PENDING, status.HELD, status.ASSIGNED)
        _announce(self._ended_with(TimeoutError() if error is None else error))

    def expired(self):
        """Its begin_by has passed while it waited; returns the jobs that ended by that."""
        return self._ended_with(TimeoutError())

    def _ended_with(self, error):
        queue = self.queue if self._status != status.NEW else None
        if self._status == status.PENDING:
            queue.unfile(self)
        elif self._status == status.HELD:
            queue.held.pop(self.oid, None)
        elif self._waits == WAITS_FOR_DEFERRED:  # an agent lists it, in vain now
            queue.ready.dropped.change(1)
        self.settled(error if is_failure(error) else Failure(error))
        if queue is None:
            self._conclude()
            return [self]
        others = self.finished() if self.untold() is None else []
        queue.file_urgently(self)  # a worker runs the callbacks; its agent keeps it in history
        return [self, *others]

    def retry(self):
        self._must_be('retry', status.COMPLETED)
        if not is_failure(self._result):
            raise BadStatusError(f'cannot retry {self!r}: it succeeded')
        if self.queue is None:
            raise BadStatusError(f'cannot retry {self!r}: it was not run by a queue')
        self.run_again()

    def run_again(self):
        """It has finished, and shall run as if it was put now."""
        queue = self.queue
        if self._id is not None:
            queue.name_again(self)
        self._move(status.PENDING)
        self._result = self._active_start = self._active_end = self._told = None
        self._policy = None
        self._cancelled = self._interrupted = self._overran = False
        self._attempts = self._interruptions = self._conflicts = 0
        self._put = self._due = clock.micros()
        queue.file(self, keep=False)

    # what happened to it, told by the queue and the runtime

    def enqueued(self, queue_oid, now, assigner=None):
        """It was put in the queue of that oid at `now` (microseconds)."""
        self._move(status.PENDING)
        self._queue_oid = queue_oid
        self._put = now
        if self._due is None or (self._due < now and not self.is_late(now)):
            self._due = now
        if assigner is not None:
            self._assigner = assigner

    def taken_out(self, notes=None):
        """It left its queue before it began: it is new again, and keeps its annotations."""
        self._move(status.NEW)
        self._after = tuple(job for job in self._after if job is not self._parent)
        if notes is not None:
            self._annotations = notes
        self._hold_reason = None
        self._queue_oid = self._put = self._due = None
        self._token &= TIE_MASK  # its place is gone; entries of it may be left
        self._assigner = None

    def _was_never_put(self):
        """The transaction that put it was aborted, which leaves an object that is new as it was."""
        self._status = status.NEW
        self._queue_oid = self._put = self._due = self._assigner = self._result = None

    def begun(self, now, agent_oid):
        """An attempt begins at `now` for the agent of that oid."""
        for name, value in self.marks_of_attempt(now, agent_oid).items():
            setattr(self, name, value)

    def marks_of_attempt(self, now, agent_oid):
        """{attribute: value} of a job whose attempt begins at `now` (microseconds)."""
        return {
            '_attempts': self._attempts + 1,
            '_interrupted': False,
            '_overran': False,
            '_active_start': now,
            '_active_end': None,
            '_agent_oid': agent_oid,
        }

    def run(self, args=(), kwargs=None):
        """Call the callable, with these arguments behind and over its own.

        Runs user code; the result is whatever that returns or raises.
        """
        call = resolved(self._call)
        own_args, own_kwargs = self.given()
        refuse_broken(*own_args, *own_kwargs.values(), self._retry_policy_factory)
        return call(*own_args, *args, **{**own_kwargs, **(kwargs or {})})

    def call_args(self):
        """What the runtime passes: a callback gets the result it follows."""
        return () if self._parent is None else (self._parent._result,)

    def settled(self, result, ended=None):
        """The call has its result (a Failure if it raised); `ended`: microseconds, None for now."""
        self._result = result
        self._waits = None
        self._active_end = clock.micros() if ended is None else ended
        self._status = status.CALLBACKS

    def waits_for_job(self, inner):
        """The call returned `inner`: its result will be this one's."""
        self._result = inner
        self._waits = WAITS_FOR_JOB
        self._status = status.ACTIVE
        inner.add_outer(self)

    def waits_for_deferred(self):
        """The call returned something that will have a result later."""
        self._result = None
        self._waits = WAITS_FOR_DEFERRED
        self._status = status.ACTIVE

    def awaited(self):
        """The jobs that must finish before this one can, as far as that is known; a list."""
        if self._waits == WAITS_FOR_JOB:
            return [] if self._result is None else [self._result]
        return [*self._depends_on, *self._after] if self._status not in status.FINISHED else []

    def add_outer(self, outer):
        """`outer` is to be told when this job has finished."""
        queue = self.queue
        if queue is None or self._p_changed or self._p_serial in (None, NEVER_STORED):
            if outer not in self._outers:
                self._outers += (outer,)
            return
        # It may be running and must not be disturbed; nor may it end just now, or return `outer`.
        self._p_jar.readCurrent(self)
        if outer not in self._outers:
            queue.watch(self, [outer])

    def inner_finished(self, inner):
        """The job that this one returned has finished; whether this one has a result by that."""
        if self._waits != WAITS_FOR_JOB or self._result is not inner:
            return False
        self.settled(inner._result)
        return True

    def inner_taken_out(self, inner):
        """A job that it waits for was taken out; whether this one has a result by that."""
        if self._waits != WAITS_FOR_JOB or all(inner is not job for job in self.awaited()):
            return False
        self.settled(Failure(DependencyError(
            f'{self!r} waits for {inner!r}, which was taken out of its queue'
        )))  # fmt: skip
        return True

    def finished(self):
        """All callbacks are done.  Jobs that wait for this one are told.

        One that has callbacks of its own goes on in a worker; others finish
        here, in the same transaction.  Both are filed, as nobody has a thread
        for them: a dispatcher shall list them, and let go who depends on them.
        Returns those that got their result by this.
        """
        done, ended = [self], []
        while done:
            job = done.pop()
            job._status = status.COMPLETED
            if job._callbacks or job._outers:
                job._told = clock.micros()
            done += job._ends_with()
            for outer in job._settle(job._outers) if job._outers else ():
                ended.append(outer)
                done += outer._goes_on()
        return ended

    def tell(self, outers):
        """Tell jobs that wait for this one: it is over.  Returns those that ended by that."""
        ended = list(self._settle(outers))
        for outer in tuple(ended):
            for done in outer._goes_on():
                ended += done.finished()
        return ended

    def _settle(self, outers):
        """Yield those of the jobs waiting for this one that have their result now."""
        gone = self._status == status.NEW
        for outer in outers:
            if not isinstance(outer, Broken) and (
                outer.inner_taken_out(self) if gone else outer.inner_finished(self)
            ):
                yield outer

    def _ends_with(self):
        """Jobs that finish when this one does."""
        return ()

    def _goes_on(self):
        """It has the result of a job that it returned; [self] if that finishes it."""
        queue = self.queue
        ends = self.untold() is None or queue is None
        # A callback is listed with the job that it follows.
        if self._queue_oid is not None or not ends:
            queue.file_urgently(self)
        return [self] if ends else []

    def takes_back(self, callback):
        """A callback that was put beside it, while it was under way, comes back to it."""
        self._callbacks += (callback,)

    def claimed_once(self):
        """It must not begin twice: who just changes it shall conflict with its claim."""
        self._p_changed = True

    def chosen(self):
        """An agent's chooser claimed it, and the agent lists it now."""
        self._move(status.PENDING)

    def outdated(self):
        """What entries there are of it count no more; no later one will be like them."""
        self._token += 1

    def set_aside(self, reason):
        """It is held: no entry of it counts any more."""
        self._move(status.HELD)
        self.outdated()
        self._hold_reason = reason
        self.queue.held[self.oid] = self

    def handed_back(self, begun=False):
        """Its worker gave it back: it waits at its old place, and no attempt is counted.

        `begun`: it had begun, so its policy is asked whether it may do so again.
        """
        if begun:
            self._interrupted = True
        if self._waits == WAITS_FOR_DEFERRED:
            self._attempts -= 1  # it was counted when it began to wait
        self._wait_again()

    def _wait_again(self):
        self._status = status.PENDING
        self._waits = self._result = None
        self.queue.file(self, was_due=True)

    def was_interrupted(self):
        """Its worker ended before it did; the policy is asked when it is claimed again."""
        self._interruptions += 1
        self._interrupted = True
        self._count_lost_attempt()
        self._wait_again()
        with contextlib.suppress(Exception):  # the others must be recovered, whatever is raised
            announce(JobInterrupted(self))

    def telling_was_interrupted(self, counted):
        """Its worker ended while it told the callbacks; the first one left may have begun."""
        self._interruptions += counted
        callback = self.untold()
        if callback is None:
            return
        if callback._status == status.CALLBACKS:
            callback.telling_was_interrupted(counted)
        else:
            callback._interruptions += counted
            callback._interrupted = True

    def _count_lost_attempt(self):
        """Count an attempt that could not be recorded by its own worker."""
        if self._waits is None:
            self._attempts += 1

    def overran(self):
        """It was given up; its policy is asked when it is claimed again."""
        self._overran = True
        self._count_lost_attempt()
        self._wait_again()

    def overrun_error(self):
        """The error for a job that ran too long."""
        hard = self.time_limit[1] if self._time_limit else 'it may'
        return TimeLimitExceeded(f'{self!r} ran longer than {hard}, and was given up')

    def rescheduled(self, due):
        """It shall run again at `due` (microseconds); 0: now, at its old place."""
        self._status = status.PENDING
        self._waits = self._result = None
        self._interrupted = False
        if due:
            if self._begin_by is not None:  # the instant by which it must begin stays
                self._begin_by = max(0, self._due + self._begin_by - due)
            self._due = due
        self.queue.file(self)

    def due_error(self, now):
        """The error with which the job must end without running at `now`, or None."""
        if self._cancelled:
            return CancelledError(f'{self!r} was cancelled')
        failed = self.failed_dependency() if self._depends_on else None
        if failed is not None:
            return DependencyError(f'{self!r} depends on {failed!r}, which did not succeed')
        has_ended = self._begin_by is not None and not self._attempts and self.is_late(now)
        return TimeoutError() if has_ended else None

    # hooks and views

    @property
    def hooked(self):
        """The job whose setUp and tearDown count."""
        return self

    def setUp(self):
        return None

    def tearDown(self, setup_info):
        return None

    def undone(self, error, kind, counts):
        return None

    def check_args(self, jar):
        """Raise unless the call and its arguments can be stored by `jar`."""
        if not isinstance(self._call, str):
            check_storable(self._call, jar, f'the callable of {self!r}')
        args, kwargs = self.given()
        if args and not is_plain(args):
            check_storable(args, jar, f'an argument of {self!r}')
        if kwargs and not is_plain(kwargs):
            check_storable(kwargs, jar, f'a keyword argument of {self!r}')
        if self._retry_policy_factory is not None:
            check_factory(self._retry_policy_factory, jar)
        for callback in self._callbacks:
            callback.check_args(jar)

    def __repr__(self):
        cls = type(self)
        try:
            where = ''
            if self._p_oid is not None:
                where = f' (oid {self.oid}, db {self._p_jar.db().database_name!r})'
            args, kwargs = self.given()
            shown = [custom_repr(arg) for arg in args]
            shown += [f'{name}={custom_repr(arg)}' for name, arg in kwargs.items()]
            call = f'{self.call_name}({", ".join(shown)})'
        except Exception:  # noqa: BLE001 - a repr is for logs and must not raise
            where, call = '', 'not loadable'
        return f'<{cls.__module__}.{cls.__qualname__}{where} ``{call}``>'


class Choice(Job):
    """A callback that calls one job for success and another for failure.

    Its result is that of the job it called; with that side missing, the result
    that it was given.
    """

    def __init__(self, success=None, failure=None):
        sides = [None if side is None else as_job(side) for side in (success, failure)]
        for side in sides:
            if side is not None:
                _check_new(side)
        super().__init__(_pass_on, *sides)

    success = property(lambda self: self.args[0])
    failure = property(lambda self: self.args[1])

    def job(self):
        """The side that fits the parent's result, or None if it is missing or unknown."""
        parent = self._parent
        if parent is None or parent._status not in status.FINISHED:
            return None
        side = self.failure if is_failure(parent._result) else self.success
        return None if isinstance(side, Broken) else side

    def run(self, args=(), kwargs=None):
        (result,) = args
        chosen = self.failure if is_failure(result) else self.success
        refuse_broken(chosen)
        return result if chosen is None else chosen.run((result,), kwargs)

    def settled(self, result, ended=None):
        chosen = self.job()
        if chosen is not None:
            chosen._parent = self._parent
            chosen._active_start = self._active_start
            chosen.settled(result, ended)
        super().settled(result, ended)

    def untold(self):
        chosen = self.job()
        return (None if chosen is None else chosen.untold()) or super().untold()

    def _ends_with(self):
        chosen = self.job()
        return () if chosen is None else (chosen,)

    @property
    def hooked(self):
        return self.job() or self

    def getRetryPolicy(self):
        chosen = self.job()
        if chosen is not None and self._retry_policy_factory is None:
            return chosen.getRetryPolicy()
        return super().getRetryPolicy()


def _announce(jobs):
    for job in jobs:
        notify(JobCompleted(job))


def _pass_on(result):
    return result


def _standing(job):
    """(status, outcome) of another job; one that cannot be loaded any more has failed."""
    try:
        return job._status, job.outcome
    except (AttributeError, KeyError):  # its class is gone, or, with a POSKeyError, its record
        return status.COMPLETED, 'failure'


def _check_new(job):
    if job.status != status.NEW or job._parent is not None:
        raise BadStatusError(f'{job!r} is {job.status}: a callback must be a new job')


def as_job(call):
    """`call` if it is a job; else what adapts it to one, else a plain Job of it."""
    if isinstance(call, Job):
        return call
    adapted = IJob(call, None)
    return Job(call) if adapted is None else adapted
