"""Several small jobs in one commit, for agents that ask for it with ``coalesce=seconds``.

A worker of such an agent goes on with jobs that were claimed ahead, in the same
transaction, until its time is over; then one commit makes all of them final.
Before each there is a savepoint.  A job that raises, or returns something for
later, is rolled back to it and then run alone, as an `Attempt`; so is whatever
has callbacks, a time limit, hooks, or must run at most once.  When the commit fails, all are run
alone: nothing of them has happened.

So a body may run twice where something goes wrong, and only its effects on the
database (and on other data managers with savepoints) are undone in between.
That is why it is a wish of the agent, and not the rule.

Runs in the worker's thread.
"""

import logging

from zope.event import notify

from zodbjobs import clock, local, status
from zodbjobs.interfaces import JobCompleted, JobStarted
from zodbjobs.model.call import check_storable
from zodbjobs.model.job import Job
from zodbjobs.runtime import joblog, ride, tracing
from zodbjobs.runtime.attempt import Attempt, shown
from zodbjobs.runtime.ended import FINISHED, Report

trace = logging.getLogger('zodbjobs.trace')


class Together:
    """Jobs run by `worker`, the first of which is that of `assignment`; see `make`.

    `more()` gives the next Assignment, or None; `seconds` is for how long others
    may be begun.
    """

    def __init__(self, worker, assignment, more, seconds):
        self.worker = worker
        self.tm = worker.transaction_manager
        self.next = assignment
        self.more = more
        self.until = clock.monotonic() + seconds
        self.alone = []  # Assignments that cannot be done so
        self.done = []  # (Assignment, text of the result, facts) of those that can
        self.lines = {}  # Assignment -> what its job has logged that is worth keeping

    def make(self):
        """Do them; returns (Reports, Assignments that are to be run alone).  Never raises."""
        try:
            self._do_all()
        except Exception as error:  # noqa: BLE001 - whatever it is, each alone will meet it
            trace.info('%d jobs are run again, each alone: %s', len(self.done), error)
            self.alone = [assignment for assignment, *_ in self.done] + self.alone
            self.done = []
        if self.next is not None:
            self.alone.append(self.next)
        try:
            self.tm.abort()
        except Exception:
            trace.exception('abort failed')
        for assignment, text, _ in self.done:
            self.worker.statistics.finished(assignment.job_id, failed=False, result=text)
        return [Report(each, FINISHED, **facts) for each, _, facts in self.done], self.alone

    def _do_all(self):
        self.tm.begin()
        present = self.tm.get()
        while self.next is not None:
            facts = self._do(self.next)
            if facts is None:
                self.alone.append(self.next)
            else:
                self.done.append((self.next, *facts))
            self.next = None
            if self.tm.get() is not present:
                raise RuntimeError('a job has ended the transaction itself')
            self.next = self.more() if clock.monotonic() < self.until else None
        if self.done:
            self.tm.commit()

    def _do(self, assignment):
        """Do one job; returns (text of its result, facts for its Report), or None if it cannot."""
        job = self.worker.connection_of(assignment.database).get(assignment.oid)
        job._p_activate()
        if not may_coalesce(job, assignment.token):
            return None
        self.worker.has_begun(assignment, job)
        start = self.tm.savepoint()
        job.begun(clock.micros(), self.worker.agent_oid)
        former = local.enter(job, self.worker.surroundings, lambda: False)
        try:
            notify(JobStarted(job))
            with tracing.span(job):
                value = job.run(job.call_args())
            if isinstance(value, Job) or Attempt._is_later(value):
                raise TypeError('it returned something for later')
            check_storable(value, job._p_jar, 'the result', homes=False)
            job.settled(value)
            notify(JobCompleted(job))
            if job.untold() is None:
                job.finished()
        except Exception as error:  # noqa: BLE001 - alone it will raise again, and be heard
            trace.info('%r is run again, alone: %s', job, error)
            start.rollback()
            return None
        finally:
            local.leave(former)
        if job._status != status.COMPLETED:  # it was given a callback
            start.rollback()
            return None
        lines = joblog.end().kept(succeeded=True)
        if lines:
            self.lines[assignment] = lines
        return shown(value), {'result_ttl': job._result_ttl, 'job_id': job._id}


def may_coalesce(job, token):
    """Whether nothing is special about a job that was claimed under `token`."""
    return (
        job._token == token
        and ride.may_ride(job)
        and job._time_limit is None
        and not (job._interrupted or job._overran)
        and job.due_error(clock.micros()) is None
    )
