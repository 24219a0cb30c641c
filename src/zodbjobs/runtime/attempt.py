"""One attempt: the way of a claimed job through a worker.

The heart of the runtime.  Read `Attempt.make` first; its steps are::

    load -> admit -> begin -> set up -> call -> settle -> tell -> finish -> tear down -> report

The work, its result and the job's record are one commit (`settle`), or none: the
outcome of a call that wrote nothing rides in a commit of the dispatcher's (see
`ride`).  Without callbacks `settle` finishes the job as well; with them each
callback is an attempt of its own (`tell`), and `finish` is one commit more.  What goes wrong
becomes a Failure; the job's retry policy advises on it, `decide` turns the
advice into a Decision, and that is recorded in a transaction that is tried
until it holds.

Runs in a worker's thread, with that thread's connection and transaction.  This
is the only module that runs user code in transactions of ours.
"""

import contextlib
import datetime
import functools
import logging
from collections.abc import Coroutine

from twisted.internet.defer import Deferred
from ZODB.broken import Broken
from zope.event import notify

from zodbjobs import clock, local, status
from zodbjobs.facts import AGAIN, GIVE_UP, HOLD, LATER, Decision
from zodbjobs.interfaces import (
    AbortedError,
    JobCompleted,
    JobRescheduled,
    JobStarted,
    ReassignedError,
)
from zodbjobs.model import hosts, retry
from zodbjobs.model.call import check_storable, is_plain
from zodbjobs.model.failure import Failure, is_failure
from zodbjobs.model.job import WAITS_FOR_DEFERRED, WAITS_FOR_JOB, Job
from zodbjobs.runtime import ride, scenes, tracing, trouble
from zodbjobs.runtime.ended import (
    ABANDONED,
    DEFERRED,
    FINISHED,
    REASSIGNED,
    RELEASED,
    RETURNED,
    STALE,
    WAITING,
    Report,
)
from zodbjobs.runtime.ghosts import ghost_of
from zodbjobs.runtime.hook import hook_of, tell_undone
from zodbjobs.runtime.statistics import shown

log = logging.getLogger('zodbjobs.events')
trace = logging.getLogger('zodbjobs.trace')

#: Seconds between tries to record an outcome while the storage has trouble:
#: the first, and the most after doubling.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30

# What `admit` says.
RUN, TELL = 'run', 'tell'


class Raised:
    """The exception of a Deferred or a coroutine, on its way to the attempt that resumes."""

    def __init__(self, error):
        self.error = error


class _Unheard(Exception):
    """A subscriber raised at what cannot be changed: do it again without telling."""


class _Over(Exception):
    """The attempt has ended; carries the kind of its report."""

    @property
    def kind(self):
        return self.args[0]


class Attempt:
    """An attempt for `assignment` by `worker`.

    `worker` is a `pool.Worker`: the connection and the transaction manager of
    this thread, and what else the process has for its jobs.
    """

    failure_level = logging.ERROR
    noted = ()  # for the report: whether it failed, result_ttl, id
    shown = ''
    deferred = None

    def __init__(self, worker, assignment):
        self.worker = worker
        self.assignment = assignment
        self.tm = worker.transaction_manager
        self.oid = assignment.oid
        self.job_class = assignment.job_class
        self.started = clock.micros()
        self.conflicts = 0
        self.data_cache = {}
        self.value = None
        self.unheard = False  # a subscriber raised, and is not asked again
        self.rides = False  # the job's record does not count as changed yet
        self.announced = False  # its end was, although it is not committed
        self.outcome = None

    @property
    def connection(self):
        """This thread's connection to the job's database."""
        return self.worker.connection_of(self.assignment.database)

    # the recipe

    def make(self):
        """Carry the job as far as it goes now; returns a Report.  Never raises."""
        return self._reported(self._make)

    def _make(self):
        kind = None
        if self._until_it_holds('begin', self._begin) == RUN:
            kind = self.perform(self.call)
        return kind or self._conclude()

    def _conclude(self):
        self.tell()
        return self.finish()

    def resume_with(self, value):
        """Go on with a job whose Deferred has fired with `value`; returns a Report."""
        return self._reported(functools.partial(self._resume, value))

    def _resume(self, value):
        job = self.load()
        self._still_ours(job)
        kind = None
        if job.waits == WAITS_FOR_DEFERRED:
            kind = self.perform(functools.partial(self.take_value, value), begin=False)
        return kind or self._conclude()

    def _reported(self, way):
        try:
            kind = way()
        except _Over as over:
            kind = over.kind
        except ReassignedError as error:
            log.error('%s; this worker leaves no trace and goes on', error)
            kind = REASSIGNED
        finally:
            self._abort()
        return self.report(kind)

    # steps

    def _begin(self):
        return self.admit(self._loaded())

    def load(self):
        """Begin a transaction and get the job in it, waiting out a lost storage."""
        return self._until_it_holds('load', self._loaded)

    def _loaded(self):
        self.tm.begin()
        try:
            job = ghost_of(self.connection, self.oid, self.job_class)
            if isinstance(job, Broken):
                log.error('%r cannot be loaded: its class is gone', self)
                self.noted = (True,)
                raise _Over(FINISHED)
            job._p_activate()
        except KeyError:  # a POSKeyError: the job was removed and packed away
            raise _Over(STALE) from None
        return job

    def admit(self, job):
        """Say RUN, or TELL for a job that has its result; else end the attempt.

        A stale entry, a job that must not begin (cancelled, late, a dependency
        failed) and an interrupted one that its policy gives up end here.
        """
        if job._token != self.assignment.token:
            raise _Over(STALE)
        if job._status in status.FINISHED:
            if job._status == status.COMPLETED:
                self._note(job)
                raise _Over(FINISHED)
            return TELL
        if job._status != status.PENDING:
            raise _Over(STALE)
        if job.needs and hosts.missing(job.needs, hosts.here()):
            raise _Over(RETURNED)
        error = job.due_error(clock.micros())
        if error is None and job._interrupted:
            error = self._after_interruption(job)
        if error is None and job._overran:
            error = self._after_overrun(job)
        self.worker.has_begun(self.assignment, job)
        if error is not None:
            self.record(Failure(error), begin=False)
            return TELL
        if job._time_limit is not None:
            self.worker.limit(self.assignment, job._time_limit)
        return RUN

    def _after_interruption(self, job):
        """None to go on, or the error with which an interrupted job ends."""
        advice = self._advice(job, 'interrupted')
        trace.info('%r was interrupted; its policy says %r', job, advice)
        if job.is_late(clock.micros()):
            advice = False
        if advice is True:
            return None
        if advice is False:
            return AbortedError(
                f'{job!r} was interrupted ({job.interruptions} times counted) and may not run'
                f' again; whether its work was done outside the database is not known'
            )
        self.reschedule(retry.due_of(advice), begin=False)
        return None

    def _after_overrun(self, job):
        """None to go on, or the error with which a job ends that ran too long."""
        error = job.overrun_error()
        advice = self._advice(job, 'jobError', Failure(error), self.data_cache)
        if advice is True:
            return None
        if advice is False:
            return error
        self.reschedule(retry.due_of(advice), begin=False)
        return None

    def _shall_stop(self):
        """Whether the job that runs here is asked to come to an end."""
        return self.worker.shall_stop(self.assignment)

    def perform(self, work, begin=True):
        """Run `work` (called with the job) and settle; again as the policy advises.

        Returns FINISHED, or None when the job has callbacks to tell.
        """
        while True:
            try:
                return self._try(work, begin)
            except (_Over, ReassignedError):
                raise
            except BaseException as raised:  # noqa: BLE001 - a job may raise anything
                error = raised
                failure = Failure(error)
                self._abort()
            if self._until_it_holds('look after', functools.partial(self._has_held, error)):
                return None
            self._until_it_holds('look after', functools.partial(self._tell_undone, error))
            decide = functools.partial(self.decide, error, failure)
            decision, failure = self._until_it_holds('decide on', decide)
            if decision.kind == AGAIN:
                self.conflicts += 1
                self.worker.statistics.conflicted(self.assignment.job_id)
                self.tm.begin()
            elif decision.kind == LATER:
                self.reschedule(decision.due, begin)
            else:
                return self.record(failure, begin, hold=decision.kind == HOLD)

    def _try(self, work, begin):
        self.begin = begin
        job = self._current(begin, rides=begin)
        self.before = job._status, job._waits
        notify(JobStarted(job))
        former = local.enter(job, self.worker.surroundings, self._shall_stop)
        hook = hook_of(job)
        try:
            hook.set_up()
            with tracing.span(job, resumed=not begin):
                value = scenes.carried(work(job))
            return self.settle(job, value)
        except _Over:
            raise
        except BaseException:
            self._abort()  # what settle has not committed must not stay
            raise
        finally:
            if self.rides:
                self._get_off(job)
            hook.tear_down(self.tm)
            local.leave(former)

    def _current(self, begin, rides=False):
        """The job in the present transaction, marked as begun."""
        job = self.connection.get(self.oid)
        self._still_ours(job)
        if begin:
            self.rides = rides and self._may_ride(job)
            mark = ride.begin if self.rides else Job.begun
            mark(job, self.started, self.worker.agent_oid)
        return job

    def _may_ride(self, job):
        """Whether the dispatcher may write the outcome, if the call writes nothing."""
        return not (self.conflicts or self.data_cache) and ride.may_ride(job)

    def _get_off(self, job):
        """Forget what was marked in the job object only, and was not handed on."""
        self.rides = False
        job._p_invalidate()

    def call(self, job):
        """Run the job's callable: user code."""
        return scenes.run(job, self.worker, self.assignment.database)

    def take_value(self, value, job):
        """Stand in for the call when a Deferred has fired: its value, or its error."""
        if isinstance(value, Raised):
            raise value.error
        return value

    def settle(self, job, value):
        """Commit the work together with its result; returns FINISHED if that is all."""
        if self.rides and self._ride(job, value):
            return FINISHED
        if self.begin and job._active_start != self.started:
            self._current(begin=True)  # the call has undone that by transaction.abort()
        job._conflicts += self.conflicts
        later = self._is_later(value)
        if later:
            job.waits_for_deferred()
        elif isinstance(value, Job):
            self._wait_for(job, value)
        else:
            if not is_plain(value):
                check_storable(value, self.connection, f'the result of {job!r}', homes=False)
            self._store(job, value)
        policy = job._policy
        if policy is not None and self.data_cache:
            policy.updateData(self.data_cache)
        begun = clock.monotonic()
        try:
            self.tm.commit()
        except BaseException as error:
            self.value = value
            error._zodbjobs_commit = True
            raise
        return self._settled(job, value, later, clock.monotonic() - begun)

    def _ride(self, job, value):
        """Leave the commit to the dispatcher; False if it must be ours after all."""
        if job._active_start != self.started:  # the call has emptied the connection's cache
            self.rides = False
            return False
        if job._p_jar.opened and ride.is_portable(value) and ride.wrote_nothing(self.tm):
            ride.end(job, value)
            notify(JobCompleted(job))
            self.announced = True
            if ride.wrote_nothing(self.tm):
                self._note(job)
                self.outcome = ride.outcome(job, self.shown)
                return True
        self.rides = False
        job._p_changed = True
        return False

    def _store(self, job, result, announce=notify):
        """Write the result into the record, and finish the job if nobody is to be told."""
        job.settled(result)
        if not self.announced:
            announce(JobCompleted(job))
        if job.untold() is None and not job._outers:
            job.finished()

    def _has_held(self, error):
        """Whether a commit that raised was made all the same; then the attempt goes on behind it.

        So it is when the connection was lost before the answer came, or when
        another data manager failed after the database had committed.
        """
        if not getattr(error, '_zodbjobs_commit', False):
            return False
        job = self._load_ours()
        if (job._status, job._waits) == self.before:
            _close(self.value)
            return False
        log.warning('%r: the commit was made although it raised %r', job, error)
        if self._settled(job, self.value, self._is_later(self.value)):
            raise _Over(FINISHED)
        return True

    def _tell_undone(self, error):
        kind = trouble_kind(error, getattr(error, '_zodbjobs_commit', False))
        place = self.worker.surroundings, self._shall_stop
        tell_undone(self._load_ours, self.tm, place, error, kind, self.data_cache)

    def _settled(self, job, value, later, seconds=None):
        """The work is committed, in so many seconds: say so, and leave if the job waits."""
        self._note(job)
        waits = later or job._waits == WAITS_FOR_JOB
        if waits and seconds is not None:
            self.worker.statistics.committed(self.assignment.job_id, seconds)
        if later:
            trace.info('%r waits for %r', self, type(value).__name__)
            self.deferred = value
            raise _Over(DEFERRED)
        if waits:
            raise _Over(WAITING)
        self._log_outcome(job, seconds)
        return FINISHED if job._status == status.COMPLETED else None

    def _wait_for(self, job, inner):
        """The call returned a job: its result will be this one's."""
        if inner is job:
            if job._waits != WAITS_FOR_JOB:
                raise ValueError(f'{job!r} returned itself, and would wait for itself for ever')
            job._status = status.ACTIVE  # a composite: its parts will tell it
            return
        if _waits_for(inner, job):
            raise ValueError(f'{job!r} returned {inner!r}, which waits for it')
        if inner._status == status.NEW and inner.parent is None and not self._is_known(inner):
            job.queue.put_part(inner)
        if inner._status == status.COMPLETED:
            self._store(job, inner._result)
        else:
            job.waits_for_job(inner)

    def _is_known(self, new_job):
        """Whether anything that this transaction stores refers to the job, and may put it later."""
        if new_job._p_jar is None:
            self.tm.savepoint(optimistic=True)  # gives a home to all that is reached
        return new_job._p_jar is not None

    @staticmethod
    def _is_later(value):
        return not ride.is_frozen(value) and isinstance(value, (Deferred, Coroutine))

    def tell(self):
        """Run the callbacks, one after the other, each in transactions of its own."""
        while True:
            callback = self._until_it_holds('tell of', lambda: self.load().untold())
            if callback is None:
                self._abort()
                return
            CallbackAttempt(self.worker, self.assignment, callback._p_oid).make()

    def finish(self):
        """Complete a job whose callbacks are all done, and let those go on that wait for it."""

        def complete():
            job = self.load_now()
            self._still_ours(job)
            if job._status == status.CALLBACKS:
                if job.untold() is not None:
                    return False  # it was added after we had told the others
                for ended in job.finished():
                    self._announce(JobCompleted(ended))
            self._note(job)
            self.tm.commit()
            return True

        while not self._until_it_holds('finish', complete):
            self.tell()
        return FINISHED

    def _announce(self, event):
        """Notify, where the outcome stands already and no subscriber can change it."""
        if self.unheard:
            return
        try:
            notify(event)
        except Exception as error:
            if trouble_kind(error) is not None:
                raise
            log.critical('a subscriber to %s failed', type(event).__name__, exc_info=True)
            self.unheard = True
            raise _Unheard from error

    def report(self, kind):
        """The facts about this attempt for the dispatcher."""
        return Report(
            self.assignment, kind, *self.noted, deferred=self.deferred, outcome=self.outcome
        )

    # when something went wrong

    def decide(self, error, failure):
        """The Decision on an error, by the advice of the job's retry policy, and the failure."""
        in_commit = getattr(error, '_zodbjobs_commit', False)
        kind = trouble_kind(error, in_commit)
        job = self._load_ours()
        if job._cancelled:
            return Decision(GIVE_UP), Failure(job.due_error(clock.micros()))
        if in_commit and kind is None:
            log.info('%r: lost the outcome %s to an error in the commit', job, shown(self.value))
        if job.is_late(clock.micros()) and kind != retry.DISCONNECTED:
            return Decision(GIVE_UP), failure
        self.data_cache[retry.KIND] = kind
        try:
            advice = self._advice(
                job, 'commitError' if in_commit else 'jobError', failure, self.data_cache
            )
        finally:
            self.data_cache.pop(retry.KIND, None)
            self._abort()
        level = logging.INFO if kind is None and advice is False else logging.WARNING
        trace.log(level, '%r: %s; its policy says %r', job, failure.getErrorMessage(), advice)
        if advice is False:
            return Decision(HOLD if self._shall_be_held() else GIVE_UP), failure
        if advice is True and kind == retry.CONFLICT:
            return Decision(AGAIN), failure
        due = 0 if advice is True else retry.due_of(advice)
        if self._is_too_late(due) and kind != retry.DISCONNECTED:
            return Decision(GIVE_UP), failure
        return Decision(LATER, due), failure

    def _is_too_late(self, due):
        """Whether the job must have begun before `due` (microseconds)."""
        try:
            return self.load().is_late(due)
        finally:
            self._abort()

    def _advice(self, job, method, *args):
        """Ask the policy; one that fails, or answers nonsense, means no more tries."""
        try:
            ask = getattr(job.getRetryPolicy(), method)
            advice = ask(*args)
        except BaseException:  # noqa: BLE001 - user code
            log.exception('the retry policy of %r failed in %s(); no retry', job, method)
            return False
        if isinstance(advice, (bool, datetime.datetime, datetime.timedelta)):
            return advice
        log.error(
            'the retry policy of %r answered %s() with %r; it may answer True, False, a datetime'
            ' or a timedelta; no retry', job, method, advice,
        )  # fmt: skip
        return False

    def record(self, failure, begin, hold=False):
        """Make `failure` the job's result, and try until that is committed.

        With `hold` the job is set aside instead.
        """

        def store():
            job = self.load_now()
            self._still_ours(job)
            if job._status not in status.FINISHED:  # else a commit that raised was made
                if begin:
                    self._current(begin)
                job._conflicts += self.conflicts
                if self.data_cache:
                    self._advice_data(job)
                if hold:
                    job.set_aside(f'retries used up: {failure.getErrorMessage()}')
                    self.tm.commit()
                    raise _Over(RELEASED)
                self._store(job, failure, self._announce)
                self.tm.commit()
            self._note(job)
            self._log_outcome(job)
            return job._status == status.COMPLETED

        if self._until_it_holds('record the failure of', store):
            raise _Over(FINISHED)

    def _shall_be_held(self):
        try:
            policy = self.connection.get(self.oid).getRetryPolicy()
            return getattr(policy, 'on_exhausted', 'fail') == 'hold'
        except Exception:  # noqa: BLE001 - user code; logged where its advice was asked
            return False
        finally:
            self._abort()

    def _advice_data(self, job):
        with contextlib.suppress(Exception):  # a policy's own data must not lose the outcome
            job.getRetryPolicy().updateData(self.data_cache)

    def reschedule(self, due, begin=True):
        """File the job again, to begin at `due` (microseconds; 0: at its old place)."""

        def store():
            self.tm.begin()
            job = self._current(begin)
            self._still_ours(job)
            job._conflicts += self.conflicts
            self._advice_data(job)
            job.rescheduled(due)
            self._announce(JobRescheduled(job))
            self.tm.commit()
            trace.info('%r runs again at %s', job, job.begin_after)

        self._until_it_holds('reschedule', store)
        raise _Over(RELEASED)

    # helpers

    def load_now(self):
        """Begin a transaction and get the job; raises what the storage raises."""
        self.tm.begin()
        return self.connection.get(self.oid)

    def _load_ours(self):
        job = self.load()
        self._still_ours(job)
        return job

    def _still_ours(self, job):
        """Raise ReassignedError if the job was given to somebody else meanwhile."""
        if job._token != self.assignment.token or job._status in (status.NEW, status.HELD):
            raise ReassignedError(f'{job!r} went to another worker')

    def _abort(self):
        if ride.is_between(self.tm):
            return
        try:
            self.tm.abort()
        except Exception as error:  # noqa: BLE001 - a data manager's abort; ours must go on
            if trouble_kind(error) is None:
                log.exception('abort failed')

    def _until_it_holds(self, what, deed):
        """Do `deed` until the storage lets it be done.

        A conflict is tried again at once; other trouble after a pause, for as
        long as the worker may wait.
        """
        pause, met = FIRST_PAUSE_SECONDS, None
        while True:
            try:
                found = deed()
                if met is not None:
                    self._is_well_after(met)
                return found
            except (_Over, ReassignedError):
                self._is_well_after(met)
                raise
            except _Unheard:
                self._abort()
            except Exception as error:  # noqa: BLE001 - whatever it is, the job must not be lost
                self._abort()
                if trouble.is_conflict(error):
                    continue
                if met is not None or not trouble.is_disconnected(error):
                    # At first it may be that a restart had cut this thread's own connection.
                    self.worker.has_trouble(what, self.assignment, error)
                met = error
                if not self.worker.pause(pause):
                    raise _Over(ABANDONED) from error
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _is_well_after(self, error):
        if error is not None:
            self.worker.is_well(wrote=trouble.is_refused(error))

    def _note(self, job):
        failed = is_failure(job._result) and job._status in status.FINISHED
        self.noted = failed, job._result_ttl, job._id
        self.shown = shown(job._result)

    def _log_outcome(self, job, seconds=None):
        failed = self.noted[0]
        self.worker.statistics.finished(self.assignment.job_id, failed, self.shown, seconds)
        if failed:
            self._log_failure(job, '%r failed: %s\n%s')
        else:
            trace.info('%r succeeded: %s', job, self.shown)

    def _log_failure(self, job, text):
        level = self.failure_level if job._failure_log_level is None else job._failure_log_level
        result = job._result
        log.log(level, text, job, result.getErrorMessage(), result.getTraceback(detail='verbose'))

    def __repr__(self):
        oid = int.from_bytes(self.oid, 'big')
        return f'<{type(self).__name__} of job {oid} in queue {self.assignment.queue!r}>'


class CallbackAttempt(Attempt):
    """An attempt of a callback: its own transactions, its own policy, no entry of its own."""

    failure_level = logging.CRITICAL

    def __init__(self, worker, assignment, oid):
        super().__init__(worker, assignment)
        self.main_oid = assignment.oid
        self.oid = oid
        self.job_class = None

    def admit(self, job):
        self._still_ours(job)
        if job._status == status.COMPLETED:
            raise _Over(FINISHED)
        if job._status == status.CALLBACKS:
            return TELL
        if job.needs and hosts.missing(job.needs, hosts.here()):
            self._file_main(0, job.needs)
            raise _Over(RELEASED)
        error = job.due_error(clock.micros()) if job._begin_by is not None else None
        if error is None and job._interrupted:
            error = self._after_interruption(job)
        if error is not None:
            self.record(Failure(error), begin=False)
            return TELL
        return RUN

    def call(self, job):
        value = scenes.carried(super().call(job))
        if self._is_later(value):
            value = self.take_value(self.worker.wait_for(value), job)
        return value

    def reschedule(self, due, begin=True):
        """A callback has no place of its own: the job that it follows is filed for then."""

        def store():
            self.tm.begin()
            job = self._current(begin)
            self._advice_data(job)
            self._file_main(due, job.needs)

        self._until_it_holds('reschedule', store)
        raise _Over(RELEASED)

    def _file_main(self, due, needs):
        main = self.connection.get(self.main_oid)
        main.queue.file_urgently(main, due, needs)
        self.tm.commit()

    def make(self):
        """Carry the callback as far as it goes now; raises what ends the main attempt too."""
        try:
            self._make()
        except _Over as over:
            if over.kind in (RELEASED, ABANDONED):
                raise
        finally:
            self._abort()

    def _shall_be_held(self):
        return False  # the job that it follows could not end

    def _current(self, begin, rides=False):
        # Whoever takes the job over writes its record and not the callback's: so this commit
        # must find that record as it is now.
        main = self.connection.get(self.main_oid)
        self._still_ours(main)
        self.connection.readCurrent(main)
        return super()._current(begin)

    def _still_ours(self, job):
        main = self.connection.get(self.main_oid)
        if main._token != self.assignment.token:
            raise ReassignedError(f'{main!r} went to another worker')

    def _log_outcome(self, job, seconds=None):
        if is_failure(job._result):
            self._log_failure(job, 'callback %r failed: %s\n%s')


def trouble_kind(error, in_commit=True):
    """The kind of trouble an exception is, in the words of `model.retry`."""
    if trouble.is_disconnected(error) or trouble.is_refused(error, in_commit):
        return retry.DISCONNECTED  # nothing to do but wait, in either case
    return retry.CONFLICT if trouble.is_conflict(error) else None


def _waits_for(inner, job):
    """Whether `inner` waits, over any number of jobs, for `job`."""
    seen, rest = set(), [inner]
    while rest:
        each = rest.pop()
        if each is job:
            return True
        if id(each) not in seen:
            seen.add(id(each))
            rest += each.awaited()
    return False


def _close(value):
    if isinstance(value, Coroutine):
        value.close()
