"""Outcomes that need no commit of their own.

A job whose call changed nothing in the database has nothing that must be in one
commit with its result.  So its worker commits nothing: it hands the outcome to
the dispatcher, whose next pass writes all outcomes that are ready, together with
the claim of the next jobs.  That pass comes at once when the dispatcher is idle;
batches form only under load.  A crash before it runs the job again, which is
what a crash before the worker's own commit would have meant.

The worker keeps the marks of the attempt (begun, when, by whom) in the job
object without telling the connection, so that whatever the call changes, the
job's own record included, shows as a transaction that has something to commit.
Then, and whenever anybody is to be told of the result, the worker commits
itself, as ever.

`Ride` runs in the worker's thread; `settle` in the dispatcher's transaction.
"""

import copy
import typing

from zodbjobs import clock, status
from zodbjobs.model.call import is_plain
from zodbjobs.model.failure import Failure
from zodbjobs.model.job import Job

#: Results of these types are shared with nobody who could change them.
_FROZEN = frozenset((type(None), bool, int, float, complex, str, bytes))


class Outcome(typing.NamedTuple):
    """What the dispatcher writes of a job that rides: plain values only."""

    begun: int  # microseconds
    ended: int
    result: object
    shown: str  # a short text of the result


def may_ride(job):
    """Whether the outcome of `job` could be written by somebody else, if its call writes nothing.

    Not where the commit itself is the promise (a job that runs at most once),
    where others are told in the worker, or where a subclass has hooks.
    """
    cls = type(job)
    return (
        job._status == status.PENDING
        and not job._callbacks
        and not job._outers
        and not job.runs_once
        and cls.tearDown is Job.tearDown
        and cls.setUp is Job.setUp
        and not getattr(job, '_hooks', ())  # of a Task
    )


def begin(job, now, agent_oid):
    """Mark the attempt in the job object, and not in what the connection has to commit."""
    job.__dict__.update(job.marks_of_attempt(now, agent_oid))


def end(job, result):
    """Mark the result in the job object only."""
    job.__dict__.update(_result=result, _active_end=clock.micros(), _status=status.CALLBACKS)


def outcome(job, shown):
    """The Outcome of a job that is marked so; `shown` is a short text of its result."""
    result = job._result if is_frozen(job._result) else copy.deepcopy(job._result)
    return Outcome(job._active_start, job._active_end, result, shown)


def wrote_nothing(manager):
    """Whether the transaction has nothing to commit, and nobody waits for its commit."""
    present = manager.get()
    hooks = (
        present.getBeforeCommitHooks,
        present.getAfterCommitHooks,
        present.getBeforeAbortHooks,
        present.getAfterAbortHooks,
    )
    # There is no public way to ask whether anything has joined.
    joined = getattr(present, '_resources', True)
    return not joined and not present.isDoomed() and not any(any(get()) for get in hooks)


def is_between(manager):
    """Whether no transaction is under way: right after a commit, of most jobs.

    There is no public way to ask that does not begin one.
    """
    return getattr(getattr(manager, 'manager', manager), '_txn', manager) is None


def is_frozen(value):
    """Whether a result is a plain value that nobody can change."""
    return type(value) in _FROZEN


def is_portable(value):
    """Whether a result can be written through another connection."""
    return is_frozen(value) or is_plain(value)


def settle(job, token, agent_oid, outcome):
    """Write the outcome of a job that an agent ran; False if it went to another one meanwhile."""
    if job._token != token or job._status != status.PENDING:
        return False
    job.begun(outcome.begun, agent_oid)
    result = Failure(job.due_error(clock.micros())) if job._cancelled else outcome.result
    job.settled(result, outcome.ended)
    if job.untold() is None:
        job.finished()
    return True
