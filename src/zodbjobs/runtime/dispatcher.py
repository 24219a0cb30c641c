"""The dispatcher: claims jobs for the agents of this process and has them run.

One pass does everything that touches the database here: it looks at every
queue, retires what has finished, and claims for the free threads, in one
transaction.  A pass is made when a commit rings, when a worker is done, when
the next job becomes due, and every `poll_interval` seconds in any case; never
two at a time.

Passes run in the reactor's thread, or with ``activate(threaded=True)`` in a
thread of its pool.  Reports come from the workers' threads, rings from any.
`deactivate` waits in a thread of its own, so it needs no reactor to end.
"""

import contextlib
import functools
import importlib
import logging
import random
import threading
import time
import uuid as uuid_module

import transaction
from transaction.interfaces import NoTransaction
from twisted.internet.defer import Deferred
from zope.component import provideUtility, queryUtility
from zope.event import notify
from zope.interface import implementer

from zodbjobs import clock
from zodbjobs.facts import PassingUUID
from zodbjobs.interfaces import IUUID, KEY, IDispatcher, JobClaimed
from zodbjobs.runtime import ended, fence, storages, trouble, witness
from zodbjobs.runtime.annotations import Notebook, Surroundings
from zodbjobs.runtime.chores import Chores
from zodbjobs.runtime.complaint import Complaints
from zodbjobs.runtime.flight import Flight, Threadless
from zodbjobs.runtime.hearing import Hearing
from zodbjobs.runtime.idle import make_room, still_idle
from zodbjobs.runtime.liveness import LOOK_SECONDS, Liveness
from zodbjobs.runtime.look import Look, earliest, is_late, poll_results, status_info, still_held
from zodbjobs.runtime.pool import (
    AHEAD_PATIENCE_SECONDS,
    AgentThreadPool,
    LoopThread,
    await_value,
)
from zodbjobs.runtime.retire import close_records, settle_orphans
from zodbjobs.runtime.statistics import Statistics

log = logging.getLogger('zodbjobs.events')
trace = logging.getLogger('zodbjobs.trace')

#: A pass that conflicts is made again so often before it waits for the next ring.
PASS_ATTEMPTS = 8

#: After the n-th conflict a pass waits up to 2 ms * 2**n, at most 50 ms.
FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 0.002, 0.05

#: Microseconds until the next pass when all attempts at one conflicted.
CROWDED_PAUSE = 100_000

#: Microseconds until the next pass while there is trouble: nobody may ring when it is over.
TROUBLE_PAUSE = 1_000_000

#: Seconds for all threads that run no job to end, which takes them an instant.
THREADS_END_SECONDS = 2

#: {uuid: Dispatcher} of this process.
_dispatchers = {}


def get(uuid=None, default=None):
    """The dispatcher of this process that has this UUID (None: the IUUID utility's)."""
    if uuid is None:
        uuid = queryUtility(IUUID)
        if uuid not in _dispatchers and len(_dispatchers) == 1:
            return next(iter(_dispatchers.values()))
    return _dispatchers.get(uuid, default)


def pop(uuid=None):
    """Forget and return the dispatcher of this UUID.  KeyError if there is none."""
    return _dispatchers.pop(queryUtility(IUUID) if uuid is None else uuid)


def clear():
    """Forget all dispatchers of this process (for the end of tests)."""
    _dispatchers.clear()


with contextlib.suppress(ImportError):  # where tests are cleaned up by zope.testing
    importlib.import_module('zope.testing.cleanup').addCleanUp(clear)


class _Transactions(transaction.TransactionManager):
    """Explicit ones: else each commit and abort would look at the database anew, for nobody."""

    def __init__(self):
        super().__init__(explicit=True)

    def abort(self):
        """No error if there is none: whoever closes the database aborts what is open there."""
        with contextlib.suppress(NoTransaction):
            super().abort()


@implementer(IDispatcher)
class Dispatcher:
    """See IDispatcher.

    `db` is a ZODB.DB, `reactor` a Twisted reactor (None: the global one),
    `uuid` a stable uuid.UUID (None: the IUUID utility, else one that a process
    started again on this host gets again).  `jobs_size` and `polls_size` bound
    what is remembered for statistics.  `grace` is how many seconds running jobs
    may take to end at a stop.  `deployment` is the name of the deployment this
    worker belongs to (None: ZODBJOBS_DEPLOYMENT in the environment, or none).
    """

    thread = None  # the thread its private reactor runs in, if any

    #: Makes the pool of an agent; a simulator gives its threads turns.
    pool_class = AgentThreadPool

    def __init__(
        self,
        db,
        reactor=None,
        poll_interval=5,
        uuid=None,
        jobs_size=200,
        polls_size=400,
        grace=30,
        deployment=None,
    ):
        if reactor is None:
            from twisted.internet import reactor  # installs the global one
        self.db = db
        self.reactor = reactor
        self.poll_interval = poll_interval
        self.grace = grace
        self.deployment = fence.configured(deployment)
        self.activated = False
        self.queues = {}
        self.statistics = Statistics(jobs_size, polls_size)
        self.notebook = Notebook(self)
        self.loop_thread = LoopThread()
        self._witness, self.UUID = self._identity(uuid)
        self._liveness = Liveness(self._witness)
        self._chores = Chores(self, self._witness, self._liveness)
        if self.UUID in _dispatchers and not _dispatchers[self.UUID]._is_gone():
            raise ValueError(f'this process has a dispatcher {self.UUID} already')
        _dispatchers[self.UUID] = self
        self._guard = threading.RLock()
        self._landed = threading.Condition(self._guard)  # the last job has ended
        self._pass_lock = threading.Lock()
        self._idle = {}  # queue name -> Idle, where there was nothing to do
        self._flight = Flight()  # what takes a slot, from claim to report
        self._threadless = Threadless(self._guard, self.await_value)
        self._reports = []  # Reports not yet written to the database
        self._unsure = []  # claimed by a commit whose answer was lost: made, or not
        self._rung = False
        self._again = False
        self._timer = None
        self._listener = None
        self._conn = None
        self._threaded = False
        connected = functools.partial(storages.is_connected, db)
        self._complaints = Complaints(f'dispatcher {self.UUID}', connected)
        self._wrote = False  # the pass that is being made
        self._last_poll = None
        self._slow_due = 0.0  # monotonic seconds
        self._trigger = None
        self.seen = {}  # queue name -> {token: since when it lies in a lane of others}
        self.overtakes = {}  # queue name -> when one looked for what overtakes held jobs
        self.left = {}  # queue name -> bits of what jobs there need and we have not, as was told
        self.overrun_count = 0  # threads given up because their jobs ran too long
        self.started = None

    def _identity(self, uuid):
        """The Witness, and the UUID: the one given, the utility's if that lasts, or one found."""
        standing = queryUtility(IUUID)
        passing = isinstance(standing, PassingUUID)
        if uuid is None and not passing and standing not in _dispatchers:
            uuid = standing
        if uuid is not None:
            if type(uuid) is not uuid_module.UUID:
                uuid = uuid_module.UUID(str(uuid))
            return witness.witness_for(self.db, uuid), uuid
        uuid, found = witness.claim_identity(self.db, _database_identity(self.db))
        if passing:  # now there is a better one for this process
            provideUtility(uuid, IUUID)
        return found, uuid

    def _is_gone(self):
        """Whether it has served, and has stopped."""
        return self.started is not None and self.activated is False

    # start

    def activate(self, threaded=False):
        if self.activated is not False:
            raise ValueError(f'dispatcher {self.UUID} is activated already')
        log.info('dispatcher %s begins to serve %s', self.UUID, self.db.storage.getName())
        _dispatchers.setdefault(self.UUID, self)
        self.activated = clock.now()
        self.started = clock.monotonic()
        self._threaded = threaded
        self._forget_former_life()
        self.statistics.clear()
        self._manager = _Transactions()
        self.db.setPoolSize(self.db.getPoolSize() + 2)
        self._listener = Hearing(self.db, self._ring)
        watch = getattr(self.reactor, 'watch', None)
        if watch is not None:  # a reactor for tests: it waits until the dispatcher is quiet
            watch(self)
        self._trigger = self.reactor.addSystemEventTrigger('before', 'shutdown', self.shut_down)
        self.reactor.callWhenRunning(self._pass_soon)
        if self._liveness.needs_looks:
            self.reactor.callWhenRunning(self._look_at_siblings)

    def _forget_former_life(self):
        """What still runs from before the latest stop was handed back, and concerns us no more."""
        with self._guard:
            self.queues, self._idle = {}, {}
            self._flight.clear()
            self._threadless.clear()
            self._chores.served = set()
            self._slow_due = 0.0

    # rings and timers

    def _ring(self):
        """Something was committed: look soon.  Called in any thread."""
        self.notebook.look_again()
        with self._guard:
            if self._rung or not self.activated:
                return
            self._rung = True
        self.reactor.callFromThread(self._pass_soon)

    def _pass_soon(self):
        """Make a pass: here, or in a thread of the reactor's pool."""
        if not self.activated:
            return
        if self._threaded:
            self.reactor.callInThread(self._pass_in_thread)
        else:
            self._make_pass()

    def _pass_in_thread(self):
        with self._guard:
            if self._pass_lock.locked():
                self._again = True
                return
        wanted = True
        while wanted:
            self._make_pass()
            with self._guard:  # whoever finds the lock taken says so before this
                wanted, self._again = self._again, False

    def _make_pass(self):
        with self._pass_lock:
            if not self.activated:
                return
            self._rung = False
            wake_at = self._guarded_pass()
        if self._threaded:
            self.reactor.callFromThread(self._set_timer, wake_at)
        else:
            self._set_timer(wake_at)

    def _look_at_siblings(self):
        """Once a second: bury the dead soon, and show in time that we live."""
        if not self.activated:
            return
        if not self._is_late():
            self._liveness.work()
            if self._liveness.somebody_died() or (self._flight and self._liveness.must_show()):
                self._slow_due = 0.0
                self._pass_soon()
        self.reactor.callLater(LOOK_SECONDS, self._look_at_siblings)

    def _is_late(self):
        """Whether passes do not come as they should: then our siblings shall notice."""
        last = self.started if self._last_poll is None else self._last_poll
        return is_late(self, clock.monotonic() - last)

    def _set_timer(self, wake_at):
        """Look again at `wake_at` (microseconds, or None), and not later than a poll."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if not self.activated:
            return
        seconds = max(0, self._slow_due - clock.monotonic())
        if wake_at is not None:
            seconds = min(seconds, max(0, (wake_at - clock.micros()) / clock.SECOND))
        self._timer = self.reactor.callLater(seconds, self._pass_soon)

    def poll(self):
        """Make one pass here and now."""
        self._make_pass()

    # a pass

    def _guarded_pass(self):
        """One pass; returns when to look again.  Never raises."""
        slow = clock.monotonic() >= self._slow_due
        self._wrote = False
        try:
            wake_at = self._repeated_pass(slow)
        except Exception as error:  # noqa: BLE001 - polling must go on
            if trouble.is_conflict(error):  # others are busy here: let them, for a moment
                trace.info('dispatcher %s looks again later: %s', self.UUID, error)
                if slow:
                    self._slow_due = clock.monotonic() + CROWDED_PAUSE / clock.SECOND
                return clock.micros() + CROWDED_PAUSE
            self.has_trouble('could not look for jobs', error)
            wake_at = clock.micros() + TROUBLE_PAUSE
        else:
            if not self.is_well(self._wrote):
                wake_at = earliest(wake_at, clock.micros() + TROUBLE_PAUSE)
        if slow:
            self._slow_due = clock.monotonic() + self.poll_interval
        self._last_poll = clock.monotonic()
        return wake_at

    def _repeated_pass(self, slow):
        for number in range(PASS_ATTEMPTS):
            try:
                if slow:
                    queues = self._begin()
                    self._give_up_overtaken()
                    self._chores.do(queues, self._commit_chores)
                return self._pass(slow)
            except Exception as error:
                self._manager.abort()
                if not trouble.is_conflict(error) or number == PASS_ATTEMPTS - 1:
                    raise
                self._back_off(number)
        return None

    def _commit_chores(self):
        self._manager.commit()
        self._wrote = True
        self._manager.begin()

    def _back_off(self, number):
        """Wait after the conflict of that number, so that two do not collide again."""
        backoff = FIRST_BACKOFF_SECONDS * 2**number
        time.sleep(random.uniform(0, min(LONGEST_BACKOFF_SECONDS, backoff)))

    def _begin(self):
        """Begin a transaction on the kept connection; returns the queues, or {}."""
        self._manager.abort()
        if self._conn is None or self._conn.opened is None:
            self._conn = self.db.open(self._manager)
        self._manager.begin()
        return self._conn.root().get(KEY) or {}

    def _pass(self, slow):
        """Retire, sort and claim in one transaction; returns when to look again."""
        with self._guard:  # before the snapshot is taken, which must show what they tell of
            reports, self._reports = self._reports, []
        poll = self.statistics.begin_poll()
        try:
            queues = self._begin()
            queues = {} if self._chores.is_barred else dict(queues.items())
            if slow:
                make_room(self._conn, len(queues))
            if queues and self._unsure:
                claimed, self._unsure = still_held(self.UUID, queues, self._unsure), []
                self._send_out(claimed, poll)
            idle = {} if slow else still_idle(self._idle, queues, reports)
            looks = [
                Look(self, queue, reports, slow)
                for name, queue in queues.items()
                if name in self._chores.served and name not in idle
            ]
            found = [assignment for look in looks for assignment in look.make()]
            orphans = [report for report in reports if report.assignment.queue not in queues]
            idle |= {look.queue.name: look.idle for look in looks if look.idle}
            writes = bool(found or orphans) or any(look.is_worth_a_commit for look in looks)
            if writes or slow:
                for look in looks:
                    look.retire()
                settle_orphans(self._conn, orphans)
                self._unsure = found
                self._manager.commit()
                kept = [report for look in looks for report in look.kept]
                self._tell_statistics(reports, set(map(id, kept)))
                self._wrote |= writes or bool(reports)
                reports, self._unsure = kept, []
                if found:
                    self._liveness.showed()
            else:
                self._manager.abort()
        finally:
            if reports:  # not written yet: next time
                with self._guard:
                    self._reports = reports + self._reports
        self._send_out(found, poll)
        if any(assignment.ahead for assignment in found):
            self.call_later(AHEAD_PATIENCE_SECONDS, self._return_overdue)
        self._idle = idle
        if slow or found:
            self.statistics.polled(self._found(queues, looks, found), poll)
        if slow:
            self._end_orphans(queues)
        is_new = self._listener.attend([look.queue for look in looks], self.UUID, slow)
        if is_new or any(look.released or look.kept for look in looks):
            self._ring()
        return earliest(*(look.wake_at for look in (*looks, *idle.values())))

    def _found(self, names, looks, found):
        """What a pass found, for the statistics."""
        results = dict.fromkeys(names)
        results.update((name, idle.found) for name, idle in self._idle.items())
        sizes = {look.queue.name: look.sizes for look in looks if look.sizes is not None}
        sizes |= {name: self._idle[name].sizes for name in self._flight.queues() & set(self._idle)}
        return results | poll_results(self, sizes, found)

    def _tell_statistics(self, reports, kept):
        """Outcomes that were left to us are written now, but those in `kept`, a set of ids."""
        for report in reports:
            if report.outcome is not None and id(report) not in kept:
                self.statistics.finished(
                    report.assignment.job_id, report.failed, report.outcome.shown
                )

    def _end_orphans(self, names):
        """End the pools of queues that were removed; `names` are those that are left."""
        for name in set(self.queues) - set(names):
            self._close_pools(self.queues.pop(name).values())

    def fit_pools(self, name, queue, record):
        """Give each agent a pool of its size, and end the pools of agents that went."""
        pools = self.queues.setdefault(name, {})
        for agent_name, agent in record.items():
            pool = pools.get(agent_name)
            if pool is None or pool.agent_oid != agent._p_oid:
                if pool is not None:
                    self._close_pools([pool])
                surroundings = Surroundings(self, name, agent_name)
                pool = self.pool_class(self, surroundings, agent._p_oid, agent.size)
                pools[agent_name] = pool
                self.db.setPoolSize(self.db.getPoolSize() + agent.size)
            elif pool.getSize() != agent.size:
                change = pool.setSize(agent.size)
                self.db.setPoolSize(max(1, self.db.getPoolSize() + change))
            pools[agent_name].coalesce = agent.coalesce
        for gone in set(pools) - set(record.keys()):
            self._close_pools([pools.pop(gone)])

    def _close_pools(self, pools):
        for pool in pools:
            self.db.setPoolSize(max(1, self.db.getPoolSize() - pool.getSize()))
            self._withdraw(pool)
            pool.stop()

    def _send_out(self, found, poll):
        """Hand claimed jobs to the threads of their agents."""
        for assignment in found:
            with self._guard:
                self._flight.begin(assignment)
            self.statistics.claimed(
                assignment.job_id, assignment.queue, assignment.agent, poll.key,
                assignment.quota_names,
            )  # fmt: skip
            self._announce(assignment)
            self._pool_of(assignment).submit(assignment)

    def _pool_of(self, assignment):
        return self.queues[assignment.queue][assignment.agent]

    def _announce(self, assignment):
        try:
            notify(JobClaimed(assignment))
        except Exception:
            log.exception('a subscriber to JobClaimed failed')

    def holds_jobs_of(self, queue):
        """Whether a job of the queue of that name takes a slot here."""
        return queue in self._flight.queues()

    def flight_count(self, queue, agent):
        """How many jobs of an agent take a slot now."""
        return self._flight.count(queue, agent)

    def rooms(self, agent, queue_name):
        """(free threads, jobs to claim ahead, `Held.overtaking`) of an agent."""
        pool = self.queues[queue_name][agent.name]
        taken = self.flight_count(queue_name, agent.name)
        ahead = 0 if self._threadless.has_of(queue_name, agent.name) else pool.ahead_count()
        overtaking = pool.overtaking() if ahead else (0, 0)
        free = max(0, agent.size - taken)
        return free, max(0, agent.size + ahead - max(taken, agent.size)), overtaking

    def _give_up_overtaken(self):
        """Free the slots of jobs that were cancelled while they waited for a Deferred."""
        for assignment in self._threadless.assignments():
            home = self._conn
            if assignment.database:
                home = home.get_connection(assignment.database)
            if getattr(home.get(assignment.oid), '_token', None) == assignment.token:
                continue
            if self._wait_no_more(assignment):
                self.statistics.reassigned(assignment.job_id)
                self._land(ended.Report(assignment, ended.REASSIGNED))

    def _wait_no_more(self, assignment):
        """Whether a job did still wait for a Deferred: that is told so, and its slot is free."""
        if not self._threadless.end(assignment):
            return False
        pool = self.queues.get(assignment.queue, {}).get(assignment.agent)
        if pool is not None:
            pool.free_slot()
        return True

    # what workers tell

    def reported(self, report):
        """An attempt ended.  Called in a worker's thread."""
        assignment = report.assignment
        if self._flight.get(assignment.filing) is not assignment:
            return  # its thread had been given up; whatever it did was fenced off
        if report.kind == ended.FINISHED:
            self._land(report)
            return
        if report.kind == ended.DEFERRED:
            self.statistics.waits(assignment.job_id)
            self._threadless.begin(assignment, report.deferred, self._fired)
            return
        if report.kind == ended.WAITING:
            self.statistics.waits(assignment.job_id)
        elif report.kind == ended.REASSIGNED:
            self.statistics.reassigned(assignment.job_id)
        else:
            self.statistics.rescheduled(assignment.job_id)
        self._land(report)

    def _land(self, report):
        """The job takes no slot any more; what became of it waits to be written."""
        assignment = report.assignment
        pool = self.queues.get(assignment.queue, {}).get(assignment.agent)
        with self._guard:
            self._flight.end(assignment)
            if not self.activated:  # only a stop waits for that
                self._landed.notify_all()
            if report.kind != ended.ABANDONED:
                self._reports.append(report)
            # under the same guard: `is_quiet` must not see the job gone and no ring due
            if pool is None or self._wants_more(pool):
                self._ring()

    def _return_overdue(self):
        """Give back what was claimed ahead of a job that takes long: other threads may be free."""
        again = False
        for pools in list(self.queues.values()):
            for pool in list(pools.values()):
                for assignment in pool.overdue():
                    self.statistics.rescheduled(assignment.job_id)
                    self._land(ended.Report(assignment, ended.RETURNED))
                again |= bool(pool.held_count())
        if again and self.activated:
            self.call_later(AHEAD_PATIENCE_SECONDS, self._return_overdue)

    def overran(self, assignment):
        """A job used up its time limit, and its thread was given up."""
        log.error('job %s ran too long: its thread is given up', assignment.job_id)
        self.overrun_count += 1
        self.statistics.rescheduled(assignment.job_id)
        self._land(ended.Report(assignment, ended.OVERRAN))

    def ask_to_stop(self, assignment):
        """The time of a job is up: what it waits for is cancelled, as Twisted and asyncio do."""
        self._threadless.ask(assignment)

    def give_up_waiting(self, assignment):
        """A job used up its time limit while it waited for a Deferred: wait no more."""
        if self._wait_no_more(assignment):
            log.error('job %s ran too long: it is waited for no more', assignment.job_id)
            self.statistics.rescheduled(assignment.job_id)
            self._land(ended.Report(assignment, ended.OVERRAN))

    def call_later(self, seconds, call, *args):
        """Have the reactor call something later.  From any thread."""
        self.reactor.callFromThread(self.reactor.callLater, seconds, call, *args)

    def _wants_more(self, pool):
        """Whether a pass should be made now that a thread of `pool` is free.

        With enough claimed ahead it can wait for more reports.
        """
        waiting = pool.waiting_count()
        return waiting * 2 <= pool.getSize() or waiting < 2

    def _fired(self, assignment, value):
        """The Deferred of a job has its value: a thread of its agent goes on with it."""
        pool = self.queues.get(assignment.queue, {}).get(assignment.agent)
        if pool is not None:
            pool.submit(assignment, resume=(value,))

    def await_value(self, value, fired):
        """Call `fired` once with what a Deferred or a coroutine gives; returns what cancels it."""
        return await_value(value, fired, self.reactor, self.loop_thread)

    def lost(self, assignment):
        """A worker failed in a way that should not be: the job counts as interrupted."""
        self.reported(ended.Report(assignment, ended.LOST))

    def has_trouble(self, what, error):
        """Something could not be done.  See `complaint.Complaints`."""
        self._complaints.hear(what, error)

    def is_well(self, wrote):
        """Something was done, and if `wrote` is true, committed; returns whether all is well."""
        return self._complaints.is_well(wrote)

    @property
    def awaits_deferred(self):
        """Whether a job waits for a Deferred: for the reactor's time, or for anything else."""
        return self._threadless.deferred_count() > 0

    def is_quiet(self):
        """Whether no job runs here, save those that wait for time to pass, and no ring is due."""
        with self._guard:
            deferred = self._threadless.deferred_count()
            busy = len(self._flight) - deferred - self.notebook.waiting_count
        return busy <= 0 and not self._rung and self.notebook.is_quiet()

    # stop

    def deactivate(self):
        """See IDispatcher.deactivate; returns when everything is handed back."""
        self._begin_stop()
        self._drain()

    def hurry(self):
        """Wait no longer for running jobs, while stopping."""
        self.grace = 0
        with self._landed:
            self._landed.notify_all()

    def shut_down(self):
        """Stop beside a running reactor; returns a Deferred that fires when it is done."""
        done = Deferred()
        self._trigger = None
        if not self.activated:
            done.callback(None)
            return done
        self._begin_stop()

        def drain():
            try:
                self._drain()
            finally:
                self.reactor.callFromThread(done.callback, None)

        try:
            threading.Thread(target=drain, name='zodbjobs stop', daemon=True).start()
        except RuntimeError:  # the interpreter is ending, and starts no threads any more
            drain()
        return done

    def _begin_stop(self):
        with self._guard:
            if not self.activated:
                raise ValueError(f'dispatcher {self.UUID} is not activated')
            self.activated = None
        log.info('dispatcher %s stops: no new claims', self.UUID)
        self._listener.close()

    def _withdraw(self, pool):
        """Take back what no thread has begun."""
        for assignment in pool.withdraw():
            with self._guard:
                self._flight.end(assignment)

    def _drain(self):
        """Wait for what runs, hand back the rest, and be off."""
        with self._pass_lock:  # a pass that is under way may be claiming
            for pools in self.queues.values():
                for pool in pools.values():
                    self._withdraw(pool)
        self._await_landing()
        with self._pass_lock:
            self._hand_back_all()
            for pools in self.queues.values():
                self._close_pools(pools.values())
            self.notebook.end_waiting()
            self._await_threads()
            self.notebook.stop()
            self.loop_thread.stop()
            if self._conn is not None:
                self._manager.abort()
                self._conn.close()
                self._conn = None
            self.db.setPoolSize(max(1, self.db.getPoolSize() - 2))
        self._witness.release()
        if self._flight:
            log.warning(
                'dispatcher %s: %d jobs did not end in %s seconds and were handed back',
                self.UUID, len(self._flight), self.grace,
            )  # fmt: skip
        self.activated = False
        log.info('dispatcher %s has stopped', self.UUID)

    def _await_landing(self):
        """Let running jobs end, `grace` seconds at most."""
        with self._landed:
            self._landed.wait_for(lambda: not (self._flight and self.grace), self.grace)

    def _await_threads(self):
        """Let threads close their connections, so that the database can be closed after this."""
        pools = [pool for pools in self.queues.values() for pool in pools.values()]
        for pool in pools:
            pool.join(THREADS_END_SECONDS / len(pools))

    def _hand_back_all(self):
        """Write the last reports, and give back what is left, in a connection of its own."""
        for number in range(PASS_ATTEMPTS):
            manager = transaction.TransactionManager()
            connection = None
            try:
                connection = self.db.open(manager)
                manager.begin()
                queues = connection.root().get(KEY) or {}
                with self._guard:
                    reports, flying = list(self._reports), list(self._flight.values())
                served = [queue for name, queue in queues.items() if name in self._chores.served]
                close_records(self.UUID, served, reports, flying)
                manager.commit()
                return
            except Exception as error:  # noqa: BLE001 - the next life recovers what is left
                manager.abort()
                if not trouble.is_conflict(error) or number == PASS_ATTEMPTS - 1:
                    log.exception('dispatcher %s could not hand back its jobs', self.UUID)
                    return
            finally:
                if connection is not None:
                    connection.close()

    # look

    @property
    def objection(self):
        """Why this database may not be served, if so: a text."""
        return self._chores.objection

    @property
    def polls(self):
        return self.statistics.polls

    @property
    def jobs(self):
        return self.statistics.jobs

    def getStatusInfo(self):
        return status_info(self, self._last_poll)

    def getStatistics(self, at=None, before=None, since=None, queue=None, agent=None):
        return self.statistics.getStatistics(at, before, since, queue, agent)

    def getActiveJobIds(self, queue=None, agent=None):
        return self.statistics.getActiveJobIds(queue, agent)

    def getJobInfo(self, oid, database_name=None):
        return self.statistics.getJobInfo(oid, database_name)

    def getPollInfo(self, at=None, before=None):
        return self.statistics.getPollInfo(at, before)

    def iterPolls(self, at=None, before=None, since=None, count=None):
        return self.statistics.iterPolls(at, before, since, count)

    def __repr__(self):
        return f'<Dispatcher {self.UUID}>'


def _database_identity(db):
    """The text that stands for the queues of a database, or for its storage without any."""
    connection = db.open(transaction.TransactionManager())
    try:
        queues = connection.root().get(KEY)
        return db.storage.getName() if queues is None else queues.identity
    finally:
        connection.close()
