"""A simulated process: a database client, a clock, and perhaps a dispatcher.

The dispatcher, its pools and its attempts are the real ones.  Given to them are
a reactor and threads that take turns, and a witness that knows who has crashed.
A crash ends all threads of the process where they stand, without any commit;
siblings learn of it some time later.

Runs in the director's thread, or in that of the actor that has the turn.
"""

import collections
import heapq
import itertools
import math

from zodbjobs import clock
from zodbjobs.model.filings import Filings
from zodbjobs.runtime import dispatcher as dispatchers
from zodbjobs.runtime import trouble
from zodbjobs.runtime.byhand import Later
from zodbjobs.runtime.pool import AgentThreadPool, Worker
from zodbjobs.testing.simulation.storage import Client, Database, PlannedError

#: How a sibling's death is noticed: the first two prove it, after a while; the third by a lease.
PROOF, DOUBT, LEASE = 'proof', 'doubt', 'lease'


class World:
    """What the processes share: the stage, the server, the time, and who lives.

    It is a source of time for `zodbjobs.clock`: each process has a date of its
    own, so `micros` asks whose turn it is.
    """

    def __init__(self, stage, server, start_micros):
        self.stage = stage
        self.server = server
        self.now = start_micros
        self.start = start_micros
        self.latest_micros = start_micros  # the latest date on any clock
        self.processes = []  # that live
        self.living = {}  # UUID -> the last Process that had it, until it stopped
        self.surprises = []  # texts: what no engine should do
        self.has_met = set()  # kinds of trouble that processes met

    def micros(self):
        """The date, as the process that has the turn sees it."""
        actor = self.stage.current
        return self.now if actor is None else actor.process.micros()

    def monotonic(self):
        return (self.now - self.start) / clock.SECOND

    def next_timer(self):
        """The next virtual microsecond for which a process that is not paused waits, or None."""
        moments = (
            moment
            for process in self.processes
            if not process.is_paused
            for moment in process.timers()
        )
        return min((moment for moment in moments if moment > self.now), default=None)


class Process:
    """One process.  With a `uuid` it may have a dispatcher, see `serve`."""

    def __init__(self, world, name, uuid=None, skew_micros=0, lags=False):
        self.world = world
        self.stage = world.stage
        self.name = name
        self.uuid = uuid
        self.skew_micros = skew_micros
        self.filings = Filings()
        self.began_micros = 0  # the date when it last began a transaction
        self.is_paused = False
        self.is_alive = True
        self.is_stopping = False
        self.noticed_at = None  # virtual microseconds: when others know of its death
        self.dispatcher = None
        self.reactor = TurnReactor(self)
        world.processes.append(self)
        self.line = Client(world.server, self, lags=lags)
        self.db = Database(self)

    # the clock

    def micros(self):
        """The date on the clock of this process."""
        now = self.world.now + self.skew_micros
        self.world.latest_micros = max(self.world.latest_micros, now)
        return now

    def timers(self):
        """When something in this process wakes up (virtual microseconds)."""
        yield from self.reactor.timers()
        for actor in self.actors():
            if actor.wakes_at is not None:
                yield actor.wakes_at

    def sleep(self, seconds, ready=None, where='sleep'):
        """Let an actor of this process wait for so many virtual seconds, or for `ready()`."""
        actor, world = self.stage.current, self.world
        actor.wakes_at = until = world.now + round(seconds * clock.SECOND)
        try:
            self.stage.wait(lambda: world.now >= until or (ready is not None and ready()), where)
        finally:
            actor.wakes_at = None

    # threads

    def actors(self):
        """The actors of this process."""
        return [actor for actor in self.stage.actors if actor.process is self]

    def spawn(self, name, target):
        """A new thread of this process."""
        return self.stage.spawn(self, name, target)

    def turn(self, where):
        """Pass the turn."""
        self.stage.pass_turn(where)

    def has_begun(self):
        """A transaction has begun."""
        self.began_micros = self.micros()

    def met(self, kind):
        """This process met planned trouble."""
        self.world.has_met.add(kind)

    # life

    def serve(self, poll_interval=5, grace=30, witness=PROOF):
        """Start a dispatcher.  In the director's thread."""
        self.spawn('reactor', self.reactor.run)
        self.dispatcher = TurnDispatcher(
            self, self.db, self.reactor, poll_interval, self.uuid, grace, witness
        )
        self.line.ring = self.dispatcher._ring
        self.dispatcher.activate()

    def stop(self):
        """Stop the dispatcher cleanly; in a thread of its own, which takes its turns."""
        self.is_stopping = True
        self.spawn('stop', self.dispatcher.deactivate)

    def crash(self, notice_seconds=0.0):
        """End here and now; others can know so many virtual seconds later."""
        self.noticed_at = self.world.now + round(notice_seconds * clock.SECOND)
        self.is_alive = False
        self.is_paused = False
        self.stage.kill(self.actors())
        self.line.drop()
        self.world.processes.remove(self)
        if self.dispatcher is not None:
            dispatchers._dispatchers.pop(self.uuid, None)

    def __repr__(self):
        return f'<Process {self.name}>'


class TurnReactor:
    """The part of a reactor that a dispatcher needs; its thread is an actor."""

    def __init__(self, process):
        self.process = process
        self._asked = collections.deque()
        self._later = []  # heap of (virtual microseconds, number, Later)
        self._numbers = itertools.count()

    def callFromThread(self, call, *args, **kw):
        self._asked.append((call, args, kw))

    callWhenRunning = callFromThread

    def callInThread(self, call, *args, **kw):
        self.process.spawn('pass', lambda: call(*args, **kw))

    def callLater(self, seconds, call, *args, **kw):
        # Never a little too soon, or who asks for the rest of a second asks without end.
        moment = self.process.world.now + math.ceil(seconds * clock.SECOND)
        later = Later(call, args, kw)
        heapq.heappush(self._later, (moment, next(self._numbers), later))
        return later

    def addSystemEventTrigger(self, phase, event, call, *args, **kw):
        return None

    def removeSystemEventTrigger(self, trigger):
        pass

    def timers(self):
        """When the next delayed call is due."""
        while self._later and not self._later[0][2].active():
            heapq.heappop(self._later)
        return [self._later[0][0]] if self._later else []

    def is_due(self):
        """Whether there is anything to call now."""
        if self._asked:
            return True
        timers = self.timers()
        return bool(timers) and timers[0] <= self.process.world.now

    def run(self):
        """Call what is due, for ever."""
        while True:
            self.process.stage.wait(self.is_due, 'idle')
            if self._asked:
                call, args, kw = self._asked.popleft()
            else:
                later = heapq.heappop(self._later)[2]
                call, args, kw = later.call, later.args, later.kw
                later.cancel()
            call(*args, **kw)


class TurnWitness:
    """Tells who lives, as locks or, with LEASE, nothing at all would."""

    exclusive = False

    def __init__(self, process, kind):
        self.process = process
        self.kind = kind
        self.place = process.name
        self.needs_lease = kind == LEASE
        self.show()

    def show(self):
        self.process.shown = clock.monotonic()

    def silence(self, uuid, place):
        holder = None if self.kind == LEASE else self.process.world.living.get(uuid)
        return None if holder is None else clock.monotonic() - holder.shown

    def acquire(self):
        living, mine = self.process.world.living, self.process
        holder = living.get(mine.uuid)
        if holder is not None and holder is not mine and holder.is_alive:
            return False
        living[mine.uuid] = mine
        return True

    def release(self):
        if self.process.world.living.get(self.process.uuid) is self.process:
            del self.process.world.living[self.process.uuid]

    def sees_alive(self, uuid, place):
        if self.kind == LEASE:
            return None
        world = self.process.world
        holder = world.living.get(uuid)
        if holder is None:
            return False
        if holder.is_alive:
            return True
        if holder.noticed_at <= world.now:
            return False
        return None if self.kind == DOUBT else True


class TurnDispatcher(dispatchers.Dispatcher):
    """The dispatcher of a simulated process."""

    def __init__(self, process, db, reactor, poll_interval, uuid, grace, witness):
        self.process = process
        self._kind_of_witness = witness
        self.pool_class = TurnPool
        self.is_passing = False
        super().__init__(db, reactor, poll_interval, uuid, grace=grace)

    def _identity(self, uuid):
        return TurnWitness(self.process, self._kind_of_witness), uuid

    def _back_off(self, number):
        self.process.turn('back off')
        self.process.line.deliver()  # what it collided with has come by then

    def _await_landing(self):
        if self._flight and self.grace:
            self.process.sleep(self.grace, lambda: not (self._flight and self.grace), 'drain')

    def _make_pass(self):
        # The stop waits for a pass that is under way, as it would for its lock.
        self.is_passing = True
        try:
            super()._make_pass()
        finally:
            self.is_passing = False

    def _drain(self):
        self.process.stage.wait(lambda: not self.is_passing, 'pass to end')
        super()._drain()

    def has_trouble(self, what, error):
        known = trouble.is_conflict(error) or trouble.is_disconnected(error)
        if not known and not isinstance(error, PlannedError):
            self.process.world.surprises.append(f'could not {what}: {error!r}')
        super().has_trouble(what, error)

    def lost(self, assignment):
        if not self.process.is_alive:
            return
        self.process.world.surprises.append(f'a worker thread failed with {assignment}')
        super().lost(assignment)


class TurnWorker(Worker):
    """A worker whose waiting is virtual."""

    def __init__(self, pool):
        super().__init__(pool)
        self.process = pool.dispatcher.process
        self.thread = self.process.stage.current
        self.thread.worker = self

    def pause(self, seconds):
        self.process.sleep(seconds, self.pool.stopping.is_set, 'pause')
        return not self.pool.stopping.is_set()

    def wait_for(self, value):
        found = []
        self.dispatcher.await_value(value, found.append)
        self.process.stage.wait(lambda: found, 'value')
        return found[0]


class TurnPool(AgentThreadPool):
    """The threads of an agent, as actors."""

    worker_class = TurnWorker

    def __init__(self, dispatcher, surroundings, agent_oid, size):
        super().__init__(dispatcher, surroundings, agent_oid, size)
        self._inbox = TurnInbox(dispatcher.process)
        self._numbers = itertools.count(1)

    def _start_thread(self):
        name = f'{self.queue_name}.{self.name}.{next(self._numbers)}'
        self.threads.append(self.dispatcher.process.spawn(name, self._work))

    def join(self, seconds):
        for actor in list(self.threads):
            actor.join(seconds / len(self.threads))


class TurnInbox(collections.deque):
    """A queue whose readers are actors."""

    def __init__(self, process):
        super().__init__()
        self._process = process

    put = collections.deque.append
    qsize = collections.deque.__len__

    def get(self):
        self._process.stage.wait(lambda: bool(self), 'work')
        return self.popleft()

    def get_nowait(self):
        from queue import Empty

        if not self:
            raise Empty
        return self.popleft()
