"""The threads of an agent, and what a worker thread has at hand.

Threads are made when there is work and none is idle, up to the agent's size,
and end when the size shrinks.  Each keeps one connection for its life, so that
its cache stays warm, and uses the thread's own default transaction manager, so
that ``transaction.get()`` in a job is the job's transaction.

`AgentThreadPool` is used by the dispatcher, in its thread; `Worker` lives in
the thread it stands for.
"""

import asyncio
import logging
import queue
import threading

import transaction
from twisted.internet.defer import CancelledError as DeferredCancelledError
from twisted.internet.defer import Deferred

from zodbjobs import clock
from zodbjobs.model.failure import is_failure
from zodbjobs.runtime import joblog
from zodbjobs.runtime.attempt import Attempt, Raised
from zodbjobs.runtime.coalesce import Together
from zodbjobs.runtime.ended import DEFERRED, FINISHED
from zodbjobs.runtime.held import Held
from zodbjobs.runtime.scenes import make_task

log = logging.getLogger('zodbjobs.events')
trace = logging.getLogger('zodbjobs.trace')

_END = object()

#: What a Deferred or a coroutine raises that has stopped as it was asked to.
CANCELLED = (asyncio.CancelledError, DeferredCancelledError)

#: Seconds of work that may be claimed ahead of the free threads, for short jobs.
AHEAD_SECONDS = 0.1
#: Jobs longer than this are not claimed ahead.
AHEAD_JOB_SECONDS = 0.05
#: What is held ahead goes back to the queue when no thread came to any of it for so long.
AHEAD_PATIENCE_SECONDS = 0.3
#: Never more than this ahead, for one agent.
AHEAD_LIMIT = 64

#: Seconds between two looks whether the running job was cancelled, for a job that asks.
CANCEL_LOOK_SECONDS = 1


class Worker:
    """One thread of a pool, and what an attempt needs of it.  Used in that thread only."""

    def __init__(self, pool):
        self.pool = pool
        self.dispatcher = pool.dispatcher
        self.surroundings = pool.surroundings
        self.agent_oid = pool.agent_oid
        self.statistics = pool.dispatcher.statistics
        self.thread = threading.current_thread()
        joblog.install()
        self.transaction_manager = transaction.manager.manager  # that of this thread
        self._connection = None
        self.assignment = None  # what it works on
        self.abandoned = False  # the job ran too long, and another thread took its place
        self._soft_at = None  # monotonic seconds: when the job shall come to an end
        self._looked_at = 0.0  # when it was last looked whether the job was cancelled
        self._is_cancelled = False

    def connection_of(self, database):
        """This thread's connection to the database of that name."""
        connection = self._connection
        if connection is None or connection.opened is None:  # user code may have closed it
            connection = self._connection = self.dispatcher.db.open(self.transaction_manager)
        return connection.get_connection(database) if database else connection

    def do(self, assignment, resume=None):
        """Make an attempt, or resume one with the value that `resume` holds.

        Returns whether the job keeps its slot, as it waits for a Deferred.
        """
        self.assignment = assignment
        self._soft_at, self._is_cancelled = None, False
        self._looked_at = started = clock.monotonic()
        if resume is None and self.pool.coalesce and self.pool.may_coalesce(assignment):
            self._do_together(assignment)
            return False
        if resume is None:
            report = Attempt(self, assignment).make()
            self.pool.measured(clock.monotonic() - started)
        else:
            report = Attempt(self, assignment).resume_with(resume[0])
        self.assignment = None
        self._keep_log(report)
        self.dispatcher.reported(report)
        if report.kind == DEFERRED and self._soft_at is not None:
            seconds = max(0, self._soft_at - clock.monotonic())
            self.dispatcher.call_later(seconds, self.dispatcher.ask_to_stop, assignment)
        return report.kind == DEFERRED

    def _keep_log(self, report):
        """Keep what the job's code has logged beside the job, if that may be of use."""
        about = joblog.end()
        if about.lines:
            self._keep_lines(report, about.kept(report.kind == FINISHED and not report.failed))

    def _keep_lines(self, report, lines):
        if lines and report.result_ttl != 0:
            address = report.assignment.oid, report.assignment.database
            self.dispatcher.notebook.add_to(address, joblog.ANNOTATION, lines)

    def _do_together(self, assignment):
        """Do this job and further ones in one transaction; those that cannot be done so wait."""
        started, pool = clock.monotonic(), self.pool
        together = Together(self, assignment, pool.take_ahead, pool.coalesce)
        reports, alone = together.make()
        pool.measured((clock.monotonic() - started) / (len(reports) + len(alone)))
        self.assignment = None
        joblog.end()
        pool.begin_alone(alone)
        for report in reports:
            self._keep_lines(report, together.lines.get(report.assignment, ()))
            self.dispatcher.reported(report)

    def has_begun(self, assignment, job):
        """Tell the statistics, and the log, that a job runs in this thread."""
        about = joblog.begin(assignment, job._attempts + 1)
        trace.info('%s begins: %r', about, job)
        self.statistics.started(
            assignment.job_id, repr(job), threading.get_ident(), job._due, job._interrupted
        )

    def limit(self, assignment, limits):
        """The job begins; `limits` are (soft, hard) microseconds."""
        soft, hard = (limit / clock.SECOND for limit in limits)
        self._soft_at = clock.monotonic() + soft
        self.dispatcher.call_later(hard, self.pool.give_up, self, assignment)

    def shall_stop(self, assignment):
        """Whether the running job shall end: its time is up, it was cancelled, or we stop."""
        now = clock.monotonic()
        if self.dispatcher.activated is None or (self._soft_at or now + 1) <= now:
            return True
        if now - self._looked_at >= CANCEL_LOOK_SECONDS:
            self._looked_at = now
            self._is_cancelled = self.dispatcher.notebook.is_cancelled(assignment)
        return self._is_cancelled

    def pause(self, seconds):
        """Wait in real time, for a storage that is away; False once the pool is stopping."""
        return not self.pool.stopping.wait(seconds)

    def has_trouble(self, what, assignment, error):
        self.dispatcher.has_trouble(f'could not {what} job {assignment.job_id}', error)

    def is_well(self, wrote):
        self.dispatcher.is_well(wrote)

    def wait_for(self, value):
        """Block until a Deferred or a coroutine (of a callback) has its value; returns it."""
        done = threading.Event()
        found = []

        def fired(result):
            found.append(result)
            done.set()

        self.dispatcher.await_value(value, fired)
        done.wait()
        return found[0]

    def close(self):
        connection, self._connection = self._connection, None
        if connection is not None and connection.opened is not None:
            self.transaction_manager.abort()
            connection.close()


class AgentThreadPool:
    """The threads of one agent, and its slots.

    A job takes a slot from its begin to its end.  One that waits for a Deferred
    keeps it without a thread; what was claimed ahead is held until a slot is free.
    """

    worker_class = Worker

    def __init__(self, dispatcher, surroundings, agent_oid, size):
        self.dispatcher = dispatcher
        self.surroundings = surroundings
        self.name = surroundings.agent_name
        self.queue_name = surroundings.queue_name
        self.agent_oid = agent_oid
        self.threads = []
        self._given_up = []  # threads whose jobs ran too long, and may still run
        self.stopping = threading.Event()
        self.coalesce = 0  # seconds, as the agent wishes
        self.mean_seconds = None  # of the latest jobs, weighted
        self._size = size
        self._slots = size  # as `_size`, but `stop` leaves it
        self._inbox = queue.SimpleQueue()  # for the threads: work that has a slot, and _END
        self._held = Held()  # assignments that have no slot yet
        self._last_begun = clock.monotonic()  # when one of them got a slot
        self._alone = set()  # filings of those that are not to be coalesced
        self._guard = threading.Lock()
        self._taken = 0  # slots
        self._busy = 0  # work in the inbox, or in a thread

    def getSize(self):
        """How many threads the pool may have."""
        return self._size

    def setSize(self, size=None):
        """Let the pool have `size` threads (None: as before); returns the change."""
        with self._guard:
            if size is None:
                size = self._size
            change, self._size = size - self._size, size
            self._slots = size
            self._begin_held()
            for _ in range(len(self.threads) - size):
                self._inbox.put(_END)
        return change

    def submit(self, assignment, resume=None):
        """Have a thread make an attempt, as soon as there is a slot, or resume one."""
        with self._guard:
            if resume is None:
                self._held.append(assignment)
                self._begin_held()
            else:
                self._give((assignment, resume))

    def take_ahead(self):
        """The next Assignment that was claimed ahead, for a worker that goes on; None if none."""
        with self._guard:
            if self.stopping.is_set() or self.dispatcher.activated is None:
                return None
            return self._held.pop() if self._held else None

    def overdue(self):
        """Take back what was claimed ahead, if no thread was free for any of it for a while.

        Returns the Assignments; empty as long as threads come to it.
        """
        with self._guard:
            waited = clock.monotonic() - self._last_begun
            if not self._held or waited < AHEAD_PATIENCE_SECONDS:
                return []
            # Whatever the average says: until one has ended, nobody knows how long they take.
            self.mean_seconds = max(waited, self.mean_seconds or 0)
            self._alone.clear()
            return self._held.take_all()

    def may_coalesce(self, assignment):
        """Whether the job may be run in one transaction with others."""
        with self._guard:
            if assignment.filing in self._alone:
                self._alone.remove(assignment.filing)
                return False
            return bool(self.coalesce)

    def begin_alone(self, assignments):
        """These are next, each in a transaction of its own."""
        with self._guard:
            self._alone.update(assignment.filing for assignment in assignments)
            self._held.put_back(assignments)

    def free_slot(self):
        """A job that waited for a Deferred has lost its slot."""
        with self._guard:
            self._taken -= 1
            self._begin_held()

    def _begin_held(self):
        while self._held and self._taken < self._slots:
            self._taken += 1
            assignment = self._held.pop()
            if not self._held.is_overtaken_by(assignment):
                self._last_begun = clock.monotonic()
            self._give((assignment, None))

    def _give(self, item):
        self._inbox.put(item)
        self._busy += 1
        if len(self.threads) < self._busy and len(self.threads) < max(1, self._slots):
            self._start_thread()

    def withdraw(self):
        """Take back the work that no thread has begun; returns the assignments."""
        with self._guard:
            found, rest = self._held.take_all(), []
            self._alone.clear()
            while True:
                try:
                    item = self._inbox.get_nowait()
                except queue.Empty:
                    break
                if item is _END or item[1] is not None:
                    rest.append(item)
                else:
                    found.append(item[0])
                    self._taken -= 1
                    self._busy -= 1
            for item in rest:
                self._inbox.put(item)
        return found

    def waiting_count(self):
        """How much submitted work no thread has begun."""
        return len(self._held) + self._inbox.qsize()

    def held_count(self):
        """How much submitted work has no slot yet."""
        return len(self._held)

    def overtaking(self):
        """(priority, how many): of smaller numbers so many may come before what is held."""
        with self._guard:
            return self._held.overtaking()

    def measured(self, seconds):
        """An attempt took so long."""
        mean = self.mean_seconds
        self.mean_seconds = seconds if mean is None else 0.8 * mean + 0.2 * seconds

    def ahead_count(self):
        """How many jobs may be claimed ahead of the free threads, as jobs are short here."""
        mean = self.mean_seconds
        if mean is None or mean >= AHEAD_JOB_SECONDS:
            return 0
        return min(AHEAD_LIMIT, int(self._size * AHEAD_SECONDS / max(mean, 1e-6)))

    def give_up(self, worker, assignment):
        """The job of `worker` has used up its time: go on without that thread."""
        with self._guard:
            has_thread = worker.assignment is assignment and not worker.abandoned
            if has_thread:
                worker.abandoned = True
                self._given_up = [t for t in self._given_up if t.is_alive()] + [worker.thread]
                self.threads = [t for t in self.threads if t is not worker.thread]
                self._done()
        if has_thread:
            self.dispatcher.overran(assignment)
        elif worker.assignment is not assignment:
            self.dispatcher.give_up_waiting(assignment)

    def _done(self, keeps_slot=False):
        """A thread has done a piece of work."""
        self._busy -= 1
        if not keeps_slot:
            self._taken -= 1
            self._begin_held()

    def stop(self):
        """Let every thread end after what it is doing."""
        self.stopping.set()
        with self._guard:
            self._size = 0
            for _ in self.threads:
                self._inbox.put(_END)

    def join(self, seconds):
        """Wait, `seconds` at most, for the end of the threads; to be called after `stop`."""
        threads = [*self.threads, *self._given_up]
        threads = [thread for thread in threads if thread is not threading.current_thread()]
        for thread in threads:
            thread.join(seconds / len(threads))

    def _start_thread(self):
        thread = threading.Thread(
            target=self._work, name=f'zodbjobs {self.queue_name!r} {self.name}', daemon=True
        )
        self.threads.append(thread)
        thread.start()

    def _work(self):
        worker = self.worker_class(self)
        try:
            while not worker.abandoned:
                item = self._inbox.get()
                if item is _END:
                    if self._may_end(worker):
                        break
                    continue
                keeps_slot = False
                try:
                    keeps_slot = worker.do(*item)
                except BaseException:  # noqa: BLE001 - an attempt never raises; a thread never dies
                    log.critical('a worker thread met an unexpected error', exc_info=True)
                    self.dispatcher.lost(item[0])
                finally:
                    with self._guard:
                        if not worker.abandoned:
                            self._done(keeps_slot)
        finally:
            worker.close()

    def _may_end(self, worker):
        """Whether there still is a thread too many; the pool may have grown again meanwhile."""
        with self._guard:
            if len(self.threads) <= self._size:
                return False
            if not self.stopping.is_set():  # `join` waits for those that end at a stop
                self.threads = [t for t in self.threads if t is not worker.thread]
            return True


class LoopThread:
    """An asyncio loop in a thread of its own, started when the first coroutine comes."""

    def __init__(self):
        self._loop = None
        self._guard = threading.Lock()

    def start(self, coroutine, fired):
        """Run `coroutine`; call `fired` with its value, or with the exception it raised.

        Returns a function that cancels it, for any thread.
        """
        with self._guard:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._loop.set_task_factory(make_task)
                threading.Thread(
                    target=self._loop.run_forever, name='zodbjobs asyncio', daemon=True
                ).start()
            loop = self._loop
        tasks = []

        def begin():
            tasks.append(loop.create_task(coroutine))
            tasks[0].add_done_callback(lambda task: fired(_outcome_of(task)))

        def cancel():
            tasks[0].cancel()

        loop.call_soon_threadsafe(begin)
        return lambda: loop.call_soon_threadsafe(cancel)

    def stop(self):
        with self._guard:
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)


def _outcome_of(task):
    if task.cancelled():
        return Raised(asyncio.CancelledError('it was asked to stop'))
    error = task.exception()
    return task.result() if error is None else Raised(error)


def in_time(value, error):
    """What is said of a Deferred or a coroutine that was asked to stop: its value, or `error`."""
    stopped = isinstance(value, Raised) and isinstance(value.error, CANCELLED)
    return Raised(error) if stopped else value


def await_value(value, fired, reactor, loop_thread):
    """Call `fired` once with what a Deferred or a coroutine gives, in some other thread.

    Returns a function that asks it to stop by the cancellation of Twisted or asyncio.
    """
    if isinstance(value, Deferred):

        def pass_on(result):
            fired(Raised(result.value) if is_failure(result) else result)

        reactor.callFromThread(value.addBoth, pass_on)
        return lambda: reactor.callFromThread(value.cancel)
    return loop_thread.start(value, fired)
