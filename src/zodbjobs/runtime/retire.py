"""Writing down what became of attempts: entries leave the agents' lists.

A completion writes its own job only.  What is left to do, namely to take the
entry off the agent's `running`, list the job in the history, free its quota
places and its id, and let the jobs go on that waited for it, is done here,
together for all that have ended since.

Runs in the dispatcher's transaction.
"""

from ZODB.broken import Broken

from zodbjobs import clock, status
from zodbjobs.interfaces import JobFiled
from zodbjobs.model.announce import announce
from zodbjobs.model.intake import entries_of
from zodbjobs.model.job import WAITS_FOR_JOB
from zodbjobs.runtime import ended, ride

#: Parents that wait for a returned job, looked at in one sweep.
SWEEP_LIMIT = 1000


#: Kinds of attempts after which a job goes on where it stands.
_GIVEN_BACK = ended.OVERRAN, ended.LOST, ended.RETURNED

#: Kinds of attempts that used their filing up, in a commit of their own.
_ENDED = ended.FINISHED, ended.RELEASED, ended.WAITING


def _has_ended(report):
    """Whether the filing of the claim was current until the attempt itself ended it."""
    return report.kind in _ENDED and report.outcome is None


class Retirement:
    """Retires attempts of `queue` at `now` (microseconds)."""

    def __init__(self, queue, now):
        self.queue = queue
        self.now = now
        self.released = False  # jobs that waited for others were filed

    def presses(self, reports):
        """Whether somebody may be waiting for these Reports to be written."""
        return any(
            report.kind not in (ended.FINISHED, ended.REASSIGNED)
            or report.outcome is not None
            or report.assignment.quota_names
            or report.job_id is not None
            or self.queue.is_awaited(int.from_bytes(report.assignment.oid, 'big'))
            for report in reports
        )

    def write(self, record, reports):
        """Write these Reports."""
        free = {}  # quota name -> filings whose places are free again
        for report in reports:
            agent = record.get(report.assignment.agent)
            if agent is None:
                self._retire_without(report)
            elif not self._retire(agent, report):
                continue
            for name in report.assignment.quota_names:
                filing = report.assignment.token, report.assignment.oid
                free.setdefault(name, set()).add(filing)
        for name, filings in free.items():
            quota = self.queue.quotas.get(name)
            if quota is not None:
                self._free(quota, filings)

    def _free(self, quota, filings):
        """Take back these places; a sibling may have waited for one."""
        was_filled = quota.filled
        quota.free(filings)
        if quota.room() > 0:
            self.queue.ready.groups.open(quota.name)
        siblings = sum(r.activated is not None for r in self.queue.dispatchers.values()) > 1
        if was_filled and siblings:
            announce(JobFiled(None, self.queue))

    def _retire_without(self, report):
        """The agent was removed as soon as its last job had ended: let others go on."""
        if report.kind == ended.FINISHED:
            oid = report.assignment.oid
            job = self.queue._p_jar.get(oid)
            self._let_go(int.from_bytes(oid, 'big'), job, report.job_id)

    def _retire(self, agent, report):
        """Take one entry off; False if it went already."""
        assignment = report.assignment
        oid = int.from_bytes(assignment.oid, 'big')
        entry = agent.running.get(oid)
        if entry is None or not agent.retired(oid, assignment.token):
            if _has_ended(report) and agent.has_replaced(oid, assignment.token):
                # It was claimed once more before we heard that it had ended, and that claim
                # took the filing that it replaced for one that was withdrawn.
                self.queue.ready.dropped.change(1)
            return False
        job = entry[1]
        if report.outcome is not None:
            self._settle(agent, oid, job, report)
        elif report.kind == ended.FINISHED:
            self.queue.keep(
                agent, assignment.token, job, self.now, report.failed, report.result_ttl
            )
            self._let_go(oid, job, report.job_id)
        elif report.kind == ended.WAITING:
            agent.waiting[oid] = job
        elif report.kind in (ended.STALE, ended.REASSIGNED):  # its filing was withdrawn
            self.queue.ready.forget_stale(assignment.token)
        elif report.kind == ended.RETURNED and isinstance(job, Broken):
            self.queue.keep(agent, assignment.token, job, self.now, failed=True, ttl=None)
        elif report.kind == ended.RETURNED and job._token != assignment.token:
            self.queue.ready.forget_stale(assignment.token)
        elif report.kind in _GIVEN_BACK and job._token == assignment.token:
            self._give_back(agent, oid, job, report.kind)
        return True

    def _settle(self, agent, oid, job, report):
        """Write the outcome that its worker left to us."""
        if not ride.settle(job, report.assignment.token, agent._p_oid, report.outcome):
            self.queue.ready.forget_stale(report.assignment.token)  # its filing was withdrawn
            return
        self.released |= self.queue.is_awaited(oid)
        self.queue.conclude(agent, job)

    def _give_back(self, agent, oid, job, kind):
        """The attempt did not come to its end: go on with the job where it stands."""
        if not job.is_unfinished():
            self.queue.conclude(agent, job)
        elif job.waits == WAITS_FOR_JOB:
            agent.waiting[oid] = job
        elif kind == ended.OVERRAN:
            job.overran()
        elif kind == ended.RETURNED:
            job.handed_back()
        else:
            job.was_interrupted()

    def _let_go(self, oid, job, job_id):
        if job_id is not None:
            self.queue.ids.ended(job_id, job)
        if self.queue.is_awaited(oid):
            self.queue.release(oid)
            self.released = True

    def hold_undone(self, agent, before=None):
        """Hold finished jobs that an undo made unfinished: they must not run again unseen.

        Looks at the newest of the agent's history and, from the key `before`,
        at older ones; returns (whether anything was changed, where to go on).
        """
        newest, _ = agent.history.undone()
        older, key = agent.history.undone(before)
        for job in {*newest, *older}:
            job.set_aside('a transaction that ran this job was undone: resume or cancel it')
        return bool(newest or older), key

    def drop_stale(self, record):
        """Forget the record of a dispatcher that ended long ago, with nothing left of it."""
        if not record.is_stale(self.now):
            return False
        self.queue.dispatchers.unregister(record.UUID)
        return True

    def sweep(self, agent, ended=None):
        """Take parents that are done off the list, and forget what was kept long enough.

        The parents themselves are retired like other jobs (see `Job.finished`).
        `ended` is called with each of them.  True if anything was changed.
        """
        changed = False
        for oid, job in entries_of(agent.waiting)[:SWEEP_LIMIT]:
            if job._status == status.COMPLETED or job._status == status.NEW:
                del agent.waiting[oid]
                if job._status == status.COMPLETED and ended is not None:
                    ended(job)
                changed = True
        if agent.history.is_due(self.now):
            for job in agent.history.sweep(self.now):
                self.queue.notes.drop(int.from_bytes(job._p_oid, 'big'))
            changed = True
        return changed


def settle_orphans(connection, reports):
    """Write the outcomes of jobs whose queue was removed while they ran."""
    for report in reports:
        assignment = report.assignment
        if report.outcome is not None:
            job = connection.get_connection(assignment.database).get(assignment.oid)
            ride.settle(job, assignment.token, None, report.outcome)


def close_records(uuid, queues, reports, flying):
    """A dispatcher stops: write the last Reports, and hand back what its agents still run.

    `queues` are those that it serves, `flying` the Assignments of jobs that
    were still running.
    """
    begun = {int.from_bytes(assignment.oid, 'big') for assignment in flying}
    for queue in queues:
        record = queue.dispatchers.get(uuid)
        if record is None or record.activated is None:
            continue
        retirement = Retirement(queue, clock.micros())
        retirement.write(record, [r for r in reports if r.assignment.queue == queue.name])
        for agent in record.values():
            retirement.sweep(agent)
        record.deactivate(begun)
