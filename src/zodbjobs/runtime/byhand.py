"""A dispatcher for one queue that runs jobs in the thread of who asks it to.

Everything else is the real one: it registers, claims one job in a commit of its
own when it is asked for one, is proved dead when it dies, and is fenced off if
others took its job over.  For workers that are a loop in a program, and not
threads behind one.

All of it runs in the caller's thread, but for `HandReactor.callFromThread`,
which any thread may call.
"""

import collections
import contextlib
import heapq
import itertools
import queue
import threading

import transaction

from zodbjobs import clock
from zodbjobs.interfaces import KEY
from zodbjobs.model.agent import Agent
from zodbjobs.runtime import ended
from zodbjobs.runtime.dispatcher import Dispatcher, pop
from zodbjobs.runtime.pool import AgentThreadPool

#: The name of its agent in the queue.
AGENT = 'by hand'

#: To make the agent: others may make things at the same moment.
TRIES = 10

#: While a job waits for what it returned, look so often (seconds) at the least.
WAIT_SECONDS = 1


class HandReactor:
    """The part of a reactor that a dispatcher needs; it turns when it is told to."""

    def __init__(self):
        self._asked = collections.deque()
        self._later = []  # heap of (monotonic seconds, number, Later)
        self._numbers = itertools.count()
        self._rung = threading.Event()

    def callFromThread(self, call, *args, **kw):
        self._asked.append((call, args, kw))
        self._rung.set()

    callWhenRunning = callInThread = callFromThread

    def callLater(self, seconds, call, *args, **kw):
        later = Later(call, args, kw)
        moment = clock.monotonic() + seconds
        heapq.heappush(self._later, (moment, next(self._numbers), later))
        return later

    def addSystemEventTrigger(self, phase, event, call, *args, **kw):
        return None

    def removeSystemEventTrigger(self, trigger):
        pass

    def turn(self):
        """Call what is due."""
        self._rung.clear()
        now = clock.monotonic()
        while self._later and self._later[0][0] <= now:
            later = heapq.heappop(self._later)[2]
            if later.active():
                later.cancel()
                self._asked.append((later.call, later.args, later.kw))
        for _ in range(len(self._asked)):
            call, args, kw = self._asked.popleft()
            call(*args, **kw)

    def wait(self, seconds):
        """Wait until something is asked for, a call is due, or so many seconds are over."""
        if self._later:
            seconds = min(seconds, max(0, self._later[0][0] - clock.monotonic()))
        if not self._asked:
            self._rung.wait(seconds)


class Later:
    """A call of later."""

    def __init__(self, call, args, kw):
        self.call, self.args, self.kw = call, args, kw
        self._is_active = True

    def active(self):
        return self._is_active

    def cancel(self):
        self._is_active = False


class HandPool(AgentThreadPool):
    """A pool without threads: the caller's is the one."""

    def __init__(self, *args):
        super().__init__(*args)
        self._worker = None

    def _start_thread(self):
        pass

    def work(self):
        """Do a piece of the work that was submitted; whether there was any."""
        try:
            item = self._inbox.get_nowait()
        except queue.Empty:
            return False
        if not isinstance(item, tuple):
            return False  # a thread that is not there shall end
        if self._worker is None:
            self._worker = self.worker_class(self)
        keeps_slot = False
        try:
            keeps_slot = self._worker.do(*item)
        finally:
            with self._guard:
                self._done(keeps_slot)
        return True

    def close(self):
        if self._worker is not None:
            self._worker.close()


class HandDispatcher(Dispatcher):
    """Runs jobs of the queue of that name one at a time, each when `run_next` is called."""

    pool_class = HandPool

    def __init__(self, db, queue_name=''):
        self.queue_name = queue_name
        self._wants_job = False
        self.report = None  # of the attempt that ended last
        super().__init__(db, HandReactor())

    def open(self):
        """Begin to serve."""
        self._in_transaction(self._install)
        self.activate()
        self._look()
        return self

    def close(self):
        """Stop, and hand back what was claimed."""
        if self.activated:
            self.deactivate()
            self._in_transaction(self._retire_agent)
        for pool in self.queues.get(self.queue_name, {}).values():
            pool.close()
        with contextlib.suppress(KeyError):
            pop(self.UUID)

    def run_next(self):
        """Run the next job that is due, to the end of an attempt; returns a Report, or None.

        A job that waits for a coroutine is waited for.
        """
        self.report = None
        self._wants_job = True
        try:
            self._look()
        finally:
            self._wants_job = False
        while self._flight:
            if not self._work():
                self.reactor.wait(WAIT_SECONDS)
            self.reactor.turn()
        if self.report is not None and self.report.outcome is not None:
            self._make_pass()  # it wrote nothing, and left its end to us
        return self.report

    def rest(self, seconds):
        """Wait until there may be something to do, so many seconds at most."""
        self.reactor.wait(seconds)
        self.reactor.turn()

    def _look(self):
        self.reactor.turn()
        self._make_pass()

    def _work(self):
        pools = self.queues.get(self.queue_name, {}).values()
        return any(pool.work() for pool in pools)

    def rooms(self, agent, queue_name):
        mine = agent.name == AGENT and queue_name == self.queue_name
        return (1 if mine and self._wants_job and not self._flight else 0), 0, (0, 0)

    def reported(self, report):
        self.report = report
        super().reported(report)

    def _wants_more(self, pool):
        return False  # the next pass is made when somebody asks

    def _install(self, root):
        dispatchers = root[KEY][self.queue_name].dispatchers
        if self.UUID not in dispatchers:
            dispatchers.register(self.UUID)
        if AGENT not in dispatchers[self.UUID]:
            dispatchers[self.UUID][AGENT] = Agent()
        dispatchers[self.UUID][AGENT].size = 1

    def _retire_agent(self, root):
        """What it ran stays listed there; another dispatcher of this name shall not use it."""
        record = root[KEY][self.queue_name].dispatchers.get(self.UUID, {})
        if AGENT in record:
            record[AGENT].size = 0

    def _in_transaction(self, change):
        manager = transaction.TransactionManager()
        with contextlib.closing(self.db.open(manager)) as connection:
            manager.run(lambda: change(connection.root()), TRIES)


def is_success(report):
    """Whether a job has finished, and well."""
    return report is not None and report.kind == ended.FINISHED and not report.failed
