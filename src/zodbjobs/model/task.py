"""Tasks: jobs with hooks round their call, and retries that wait.

``on_start(task)`` and ``on_success(task, result)`` run inside the attempt: they
stand or fall with the work, in one commit.  ``on_error(task, error)`` runs after
a failed attempt was undone, whatever it failed of, in a transaction of its own, so
what it writes stays whatever comes next; it may set how many retries are left.

Runs in the transactions of an attempt, or in the caller's (`run_here`).
"""

import datetime
import inspect

from zope.event import notify

from zodbjobs import clock, local, status
from zodbjobs.interfaces import DependencyError, JobCompleted
from zodbjobs.model import retry
from zodbjobs.model.call import check_storable, resolved, stored_form
from zodbjobs.model.failure import Failure
from zodbjobs.model.job import Job

HOOKS = ('on_start', 'on_success', 'on_error')


class Task(Job):
    """A job that was made by `zodbjobs.tasks.Tasks`.

    ``hook(name, call)`` sets one of its hooks before it is put; `backoff` is a
    `RetryPolicy` of which only the waiting counts.
    """

    _hooks = ()  # pairs: name, stored form of the callable
    backoff = None

    @property
    def task_id(self):
        """The id it was given, or one that was made up; with it `Tasks` finds it again."""
        return self._id if self._id is not None or self._p_oid is None else f'#{self.oid:x}'

    @property
    def retries(self):
        """How many more attempts may follow this one if it fails; may be set, also by a hook."""
        return max(0, (self._retries or 0) - self._errors)

    @retries.setter
    def retries(self, left):
        if isinstance(left, bool) or not isinstance(left, int) or left < 0:
            raise ValueError(f'retries is a whole number from 0 on, not {left!r}')
        self._retries = self._errors + left

    @property
    def _errors(self):
        return getattr(self._policy, 'data', {}).get(TaskRetries.ERRORS, 0)

    def getRetryPolicy(self):
        if self._policy is None and self._retry_policy_factory is None:
            self._policy = TaskRetries(self)
        return super().getRetryPolicy()

    def hook(self, name, call):
        """Call `call` where the hook `name` says; see HOOKS."""
        if name not in HOOKS:
            raise ValueError(f'{name!r} is no hook; there are {", ".join(HOOKS)}')
        self._hooks = (
            *(pair for pair in self._hooks if pair[0] != name),
            (name, stored_form(call)),
        )

    def check_args(self, jar):
        super().check_args(jar)
        for name, call in self._hooks:
            check_storable(call, jar, f'{name} of {self!r}')

    def _tell(self, name, *args):
        call = dict(self._hooks).get(name)
        return None if call is None else resolved(call)(self, *args)

    # the attempt

    def run(self, args=(), kwargs=None):
        self._tell('on_start')
        result = super().run(args, kwargs)
        if 'on_success' in dict(self._hooks):
            _refuse_later(result, 'on_success is called with the result in the same commit')
            self._tell('on_success', result)
        return result

    def undone(self, error, kind, counts):
        """See IJob.undone: on_error is called, unless the attempt is only made again."""
        if 'on_error' not in dict(self._hooks):
            return
        if kind == retry.CONFLICT:
            policy = self.getRetryPolicy()
            if not hasattr(policy, 'is_used_up') or not policy.is_used_up(counts):
                return
        elif kind is not None:
            return
        self._tell('on_error', error)


class TaskRetries(retry.RetryCommonFourTimes):
    """As many retries as the task has left, waiting as it says.

    Conflicts are no errors, as the attempt is made again at once; but after so
    many of them the attempt has failed like any other.
    """

    ERRORS = 'errors'

    def jobError(self, failure, data_cache):
        kind = retry.kind_of(failure, data_cache)
        if kind != retry.CONFLICT or not self.is_used_up(data_cache):
            return super().jobError(failure, data_cache)
        data_cache[retry.CONFLICT] = 0
        return self.ownError(failure, data_cache)

    def ownError(self, failure, data_cache):
        if not self.job.retries:
            return False
        count = self._count(data_cache, self.ERRORS)
        backoff = self.job.backoff
        return datetime.timedelta(seconds=0 if backoff is None else backoff.seconds(count))


def run_now(task, savepoint):
    """Run a new task here and now, retries and hooks included, and return it.

    Each attempt that fails is rolled back to where it began: `savepoint()` makes
    an object with ``rollback()``.  Raises what the last attempt raised.  No
    waiting: there is no date to wait for in the caller's transaction.
    """
    _check_dependencies(task)
    while (error := _attempt(task, savepoint())) is not None:
        kept = dict(task.getRetryPolicy().data)
        if task.getRetryPolicy().jobError(Failure(error), kept) is False:
            raise error
        task.getRetryPolicy().data = kept
    task._conclude()
    return task


def run_here(job, savepoint):
    """Run a job that was claimed, in the caller's transaction; returns it.

    What fails is rolled back to where it began; then the job has its Failure, or
    waits for its next attempt.
    """
    queue = job.queue
    error = job.due_error(clock.micros())
    if error is None:
        error = _attempt(job, savepoint())
        if error is not None:
            advice = _advice(job, error)
            if advice is not False:
                job.rescheduled(_due_of(advice))
                return job
    if error is not None:
        job.settled(Failure(error))
    notify(JobCompleted(job))
    job._conclude()
    queue.release(job.oid)
    if job.id is not None:
        queue.ids.discard(job.id, job)
    return job


def _attempt(job, savepoint):
    """Run the call and settle the job; returns the error that was raised, or None."""
    job.begun(clock.micros(), None)
    former, before = local.enter(job, None), job._status
    job._status = status.ACTIVE
    try:
        value = job.run()
        _refuse_later(value, 'a job that is run here ends in this transaction')
        if job._p_jar is not None:
            check_storable(value, job._p_jar, f'the result of {job!r}', homes=False)
        job.settled(value)
        return None
    except Exception as error:
        savepoint.rollback()
        if job._p_jar is None:
            job._status = before
        else:
            job.begun(clock.micros(), None)
        job.undone(error, retry.kind_of(Failure(error), {}), {})
        return error
    finally:
        local.leave(former)


def _advice(job, error):
    cache = {}
    policy = job.getRetryPolicy()
    advice = policy.jobError(Failure(error), cache)
    policy.updateData(cache)
    return advice


def _due_of(advice):
    """Microseconds; 0 for at once."""
    if isinstance(advice, datetime.datetime):
        return clock.micros_of(advice)
    wait = 0 if advice is True else max(0, clock.micros_in(advice))
    return clock.micros() + wait if wait else 0


def _check_dependencies(task):
    failed = task.failed_dependency()
    if failed is not None or task.blockers():
        raise DependencyError(
            f'{task!r} is to run now, and {failed or task.blockers()[0]!r} has not succeeded'
        )


def _refuse_later(value, why):
    if inspect.iscoroutine(value):
        value.close()
    elif not hasattr(value, 'addCallback'):
        return
    raise TypeError(f'{value!r} will have its result later, but {why}')
