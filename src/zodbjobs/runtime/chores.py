"""The chores of a slow poll: be registered and alive, and take over from the dead.

Once every poll interval a dispatcher looks whether it may serve the database
at all, enters itself in the queues that are new to it, gives back the jobs of
dispatchers that are proved dead, lets go who waits for a job that is gone, and
sweeps the histories.  It commits only what it has changed, so an idle system
writes nothing.

Runs in the dispatcher's pass, in a transaction before the one that claims.
"""

import logging
import os

from zodbjobs import clock
from zodbjobs.model import hosts
from zodbjobs.runtime import attempt, fence
from zodbjobs.runtime.retire import Retirement

log = logging.getLogger('zodbjobs.events')


class Chores:
    """The chores of `dispatcher`, which is witnessed by `witness` and watched by `liveness`."""

    def __init__(self, dispatcher, witness, liveness):
        self.dispatcher = dispatcher
        self.witness = witness
        self.liveness = liveness
        self.objection = None  # why this database may not be served, if so: a text
        self.is_barred = False  # by that, or by another process that has this UUID
        self.served = set()  # names of the queues where the dispatcher is activated
        self._checked = {}  # oid of an agent: the key down to which its history was checked
        self._news = []  # (level, text, its arguments): logged once it is committed

    def do(self, queues, commit):
        """Look after `queues`; `commit` commits the transaction that they were read in."""
        dispatcher = self.dispatcher
        self._news = []
        self.is_barred = self.witness.acquire() is False
        if self.is_barred:
            log.error('another process has dispatcher %s: this one claims nothing', dispatcher.UUID)
            return
        if self._is_fenced(queues):
            return
        changed = bool(queues) and fence.mark(queues, dispatcher.deployment)
        shown = False
        for queue in queues.values():
            changed |= self._register(queue)
            changed |= self._bury_dead(queue)
            changed |= queue.wake_orphans()
            shows = self._show_life(queue)
            changed |= shows
            shown |= shows
            retirement = Retirement(queue, clock.micros())
            for record in list(queue.dispatchers.values()):
                changed |= self._sweep(record, retirement)
        served = set(queues)  # now: the commit shows us queues that were added meanwhile
        if changed:
            commit()
        for level, text, args in self._news:
            log.log(level, text, *args)
        if shown:
            self.liveness.showed()
        self.served = served
        self.liveness.remember(queues, dispatcher.UUID)

    def _is_fenced(self, queues):
        """Whether the database belongs to another deployment; says so when that changes."""
        objection = fence.objection(queues, self.dispatcher.deployment)
        if objection != self.objection:
            text = objection or 'the fence is open'
            log.error('dispatcher %s: %s', self.dispatcher.UUID, text)
            self.objection = objection
        self.is_barred |= objection is not None
        return self.is_barred

    def _show_life(self, queue):
        """Write a sign of life, where others need one and we hold jobs."""
        holds = self.dispatcher.holds_jobs_of(queue.name)
        if not holds or not self.liveness.must_show():
            return False
        queue.dispatchers[self.dispatcher.UUID].beat.again()
        return True

    def _sweep(self, record, retirement):
        """Bring the lists of our agents up to date, and those that nobody has left behind."""
        ours = record.UUID == self.dispatcher.UUID
        if not ours and record.activated is not None:
            return False
        ended = self._parent_ended if ours else None
        changed = False
        for agent in record.values():
            changed |= retirement.sweep(agent, ended)
            held, self._checked[agent._p_oid] = retirement.hold_undone(
                agent, self._checked.get(agent._p_oid)
            )
            changed |= held
        return retirement.drop_stale(record) or changed

    def _parent_ended(self, job):
        """A job that waited for another one, which it had returned, has its result."""
        job_id = (job.oid, job._p_jar.db().database_name)
        failed = job.outcome != 'success'
        self.dispatcher.statistics.finished(job_id, failed, attempt.shown(job.result))

    def _register(self, queue):
        """Make the dispatcher's record in a queue say that it serves it."""
        uuid = self.dispatcher.UUID
        record = queue.dispatchers.get(uuid)
        serving = queue.name in self.served
        if record is not None and record.activated is not None and serving:
            changed = record.found_hosts(hosts.here())
            if record.stuck is not None:
                record.found_stuck(False)  # here we are
                changed = True
            return changed
        if record is None:
            record = queue.dispatchers.register(uuid)
        if record.activated is not None:
            self._tell(logging.INFO, 'queue %r: recovering the jobs of an earlier life', queue.name)
            record.died()
        if serving:
            self._tell(
                logging.CRITICAL, 'queue %r: dispatcher %s was held for dead', queue.name, uuid
            )
            record.reactivate()
        else:
            record.activate(self.witness.place, os.getpid(), hosts.here())
        return True

    def _bury_dead(self, queue):
        """Give back the jobs of dispatchers that are proved dead."""
        changed = False
        for record in queue.dispatchers.values():
            if record.UUID == self.dispatcher.UUID:
                continue
            if record.activated is None:
                changed |= record.emptied()
            elif self.liveness.is_dead(record):
                self._tell(
                    logging.ERROR, 'queue %r: dispatcher %s is dead; its jobs go to others',
                    queue.name, record.UUID,
                )  # fmt: skip
                record.died()
                changed = True
            else:
                changed |= self._watch(record)
        return changed

    def _watch(self, record):
        """Say when a living sibling does nothing any more, and when it does again."""
        is_stuck = self.liveness.is_stuck(record)
        if is_stuck is None or is_stuck == (record.stuck is not None):
            return False
        name = record.queue.name, record.UUID, record.host, record.pid
        if is_stuck:
            self._tell(
                logging.ERROR,
                'queue %r: dispatcher %s (%s, process %s) lives, and makes no passes any more:'
                ' what it has claimed may wait; look what blocks it, or end it', *name,
            )  # fmt: skip
        else:
            text = 'queue %r: dispatcher %s (%s, process %s) makes passes again'
            self._tell(logging.INFO, text, *name)
        record.found_stuck(is_stuck)
        return True

    def _tell(self, level, text, *args):
        """Log that once it is committed: until then it has not happened."""
        self._news.append((level, text, args))
