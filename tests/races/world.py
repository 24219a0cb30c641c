"""Two transactions that overlap, and everything around them that makes it real.

A `World` is a database with two dispatchers whose time is virtual and whose
threads are real.  An *act* of a race has two moments: ``do`` begins its
transaction and does its work, ``commit`` ends it.  `race` lets two acts overlap
and commits them in the order given; who is sent back does it again.

`World.audit` then lets all the work be done and counts: nothing was lost,
nothing done twice, nothing left lying about.
"""

import collections
import contextlib
import threading
import time
import uuid

import transaction
import zope.event
from persistent.mapping import PersistentMapping
from transaction._transaction import Status
from ZODB.POSException import ConflictError

from zodbjobs import Agent, Dispatcher, Job, Queue, Queues, clock, local
from zodbjobs.interfaces import KEY, BadStatusError, DuplicateJobError, JobClaimed
from zodbjobs.model.intake import entries_of, lane_number
from zodbjobs.runtime import dispatcher as dispatchers
from zodbjobs.runtime import wakeup
from zodbjobs.status import COMPLETED, HELD, NEW
from zodbjobs.testing import Reactor

PATIENCE_SECONDS = 3

#: What an application may be told when it tries again after a conflict.
REFUSALS = (BadStatusError, DuplicateJobError, LookupError)

#: Seconds between polls: none comes unasked.
POLL_SECONDS = 86_400


class Tick:
    """A clock that goes on with every look, so that no two moments are one.

    What takes time seems to take long, so that nothing is claimed ahead of free threads.
    """

    def __init__(self):
        self._guard = threading.Lock()
        self._micros = 1_000_000_000_000_000
        self._seconds = 0.0

    def micros(self):
        with self._guard:
            self._micros += 1
            return self._micros

    def monotonic(self):
        with self._guard:
            self._seconds += 0.1
            return self._seconds

    def skip(self, seconds):
        with self._guard:
            self._micros += seconds * clock.SECOND
            self._seconds += seconds


class Side:
    """A connection of its own."""

    def __init__(self, world):
        self.world = world
        self.manager = transaction.TransactionManager(explicit=True)
        self.connection = world.db.open(self.manager)

    @property
    def root(self):
        return self.connection.root()

    @property
    def queue(self):
        return self.root[KEY]['']

    def job(self, name):
        """The job that `World.put` put under this name, in this connection."""
        return self.connection.get(self.world.oids[name])

    def begin(self):
        self.abort()
        self.manager.begin()

    def abort(self):
        with contextlib.suppress(transaction.interfaces.NoTransaction):
            self.manager.abort()

    def __enter__(self):
        self.begin()
        return self

    def __exit__(self, kind, error, traceback):
        if kind is None:
            self.manager.commit()
        else:
            self.abort()

    def close(self):
        self.abort()
        self.connection.close()


class World:
    """A database, two dispatchers that do nothing unasked, and gates at which jobs wait."""

    NAMES = 'abcdefghijklmnopqrstuvwxyz'

    def __init__(self, db):
        global world
        world = self
        self.oids = {}  # name -> oid of a job that was put
        self.callbacks, self.wholes = set(), set()  # names
        self.calls = collections.Counter()  # of each name, whether that was committed or not
        self._fillers = []
        self.gates = {}
        self.clock = Tick()
        self.reactor = Reactor()
        self.reactor.start()
        clock.use(self.clock)
        self.db = db
        self._closing = []
        self.side = self.another_side()
        with self.side:
            queues = self.side.root[KEY] = Queues()
            queues[''] = Queue()
            effects = self.side.root['effects'] = PersistentMapping()
            for name in self.NAMES:
                effects[name] = PersistentMapping()
        self.dispatchers = []
        zope.event.subscribers.append(hold_up)

    def another_side(self):
        side = Side(self)
        self._closing.append(side.close)
        return side

    def neighbour(self, side):
        """Another side whose jobs go to the same lane."""
        while lane_number((other := self.another_side()).connection) != lane_number(
            side.connection
        ):
            pass
        return other

    def staff(self, *sizes):
        """Start a dispatcher for each number of threads."""
        for size in sizes:
            name = uuid.uuid4()
            with self.side as side:
                side.queue.dispatchers.register(name)['main'] = Agent(size=size)
            dispatcher = Dispatcher(self.db, self.reactor, POLL_SECONDS, name, grace=0.05)
            dispatcher.activate()
            self.reactor.watch(dispatcher)
            self.dispatchers.append(dispatcher)
        self.reactor.time_passes()

    def put(self, name, job=None, **options):
        """Put a job that acts under `name`, in a transaction of its own."""
        with self.side as side:
            self.put_by(side, name, job, **options)

    def put_by(self, side, name, job=None, **options):
        job = side.queue.put(Job(act, name) if job is None else job, **options)
        self.oids[name] = job._p_oid
        return job

    def put_whole(self, name, whole):
        """Put a job made of parts, each of which acts under its first argument."""
        with self.side as side:
            side.queue.put(whole)
        self.wholes.add(name)
        self.oids[name] = whole._p_oid
        parts = [*whole.args, whole.postprocess] if whole.postprocess else whole.args
        self.oids.update((part.args[0], part._p_oid) for part in parts)

    def add_callback(self, side, name, callback):
        """Let what acts under the name `callback` follow the job `name`."""
        side.job(name).addCallback(Job(act, callback))
        self.callbacks.add(callback)

    def fill(self, side, count):
        """Put so many jobs that do nothing, in one transaction of `side`."""
        with side:
            self._fillers += [side.queue.put(nothing)._p_oid for _ in range(count)]

    def known(self, name):
        """The job of this name, as it is now."""
        self.side.begin()
        return self.side.job(name)

    def work(self):
        """Let the dispatchers do all that can be done now."""
        self.reactor.settle(PATIENCE_SECONDS, until=self._waits)

    def _waits(self):
        """Whether whoever is at work stands at a gate."""
        flying = sum(len(dispatcher._flight) for dispatcher in self.dispatchers)
        gates = [gate for gate in self.gates.values() if gate.is_occupied()]
        rung = any(dispatcher._rung for dispatcher in self.dispatchers)
        return flying == len(gates) and not rung and not self.reactor._asked

    def start(self, *names):
        """Have the jobs of these names started, up to their gates."""
        for name in names:
            self.gates[name] = Gate()
        self.work()
        for name in names:
            assert self.gates[name].arrived.wait(PATIENCE_SECONDS), name

    def end(self, *names):
        """Open the gates of these jobs, and wait for their ends; nothing is written down yet."""
        for name in names:
            self.gates[name].open.set()
        pause = threading.Event()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while any(map(self._flies, names)):
            assert time.monotonic() < deadline, names
            pause.wait(0.001)

    def _flies(self, name):
        oid = self.oids[name]
        return any(
            assignment.oid == oid
            for dispatcher in self.dispatchers
            for assignment in list(dispatcher._flight.values())
        )

    # in the end

    def audit(self, **counts):
        """Let everything be done; then each name must have acted so many times (default: 1).

        A name with 0 must have finished otherwise, be held, or be out of the queue.
        """
        for gate in self.gates.values():
            gate.open.set()
        for _ in range(3):
            self.clock.skip(POLL_SECONDS + 1)
            for dispatcher in self.dispatchers:
                dispatcher.poll()
            assert self.reactor.settle(PATIENCE_SECONDS)
        self.side.begin()
        effects = self.side.root['effects']
        names = dict.fromkeys([*self.oids.keys() - self.wholes, *self.callbacks], 1) | counts
        acted = {name: effects[name].get('count', 0) for name in names}
        assert acted == names
        self._audit_jobs()
        self._audit_places()

    def _audit_jobs(self):
        done = {name: self.side.job(name) for name in self.oids}
        done |= {oid: self.side.connection.get(oid) for oid in self._fillers}
        for name, job in done.items():
            assert job.status in (COMPLETED, HELD, NEW), (name, job.status)
        queue = self.side.queue
        held = {job.oid for job in done.values() if job.status == HELD}
        assert set(queue.held) == held
        listed = [job.oid for agent in self._agents() for job in agent.history]
        finished = [job.oid for job in done.values() if job.status == COMPLETED and job.queue]
        assert len(listed) == len(set(listed)), 'listed twice'
        assert set(finished) <= set(listed), 'not listed'

    def _audit_places(self):
        """Every place through which jobs go is empty, and the counts know it."""
        queue = self.side.queue
        assert list(queue) == [] and len(queue) == 0
        assert [entries_of(chunk) for chunk in queue.intake.chunks() if entries_of(chunk)] == []
        ready = queue.ready
        assert [list(tree) for tree in (ready.groups, ready.later, queue.waiters)] == [[], [], []]
        assert (ready.waiting(), ready.dropped()) == (0, 0)
        for agent in self._agents():
            assert entries_of(agent.running) == [] and entries_of(agent.waiting) == []
        assert {name: len(quota) for name, quota in queue.quotas.items() if len(quota)} == {}
        ids = [(id, job) for slot in queue.ids.slots for id, job in slot.items()]
        assert [(id, job) for id, job in ids if not job.is_unfinished()] == []

    def _agents(self):
        records = self.side.queue.dispatchers.values()
        return [agent for record in records for agent in record.values()]

    def close(self):
        zope.event.subscribers.remove(hold_up)
        for gate in self.gates.values():
            gate.open.set()
        try:
            self.reactor.stop()
        finally:
            for dispatcher in self.dispatchers:
                dispatchers.pop(dispatcher.UUID)
            wakeup.hang_up(self.db)
            while self._closing:
                self._closing.pop()()


#: The one that is there; jobs are functions and find it here.
world = None


class Gate:
    """Where a job stands until it is opened."""

    finish = None  # a `Finish` for which its worker waits, later

    def __init__(self):
        self.arrived, self.open = threading.Event(), threading.Event()

    def is_occupied(self):
        return self.arrived.is_set() and not self.open.is_set()

    def stand(self):
        self.arrived.set()
        assert self.open.wait(PATIENCE_SECONDS)


# What jobs do.


def act(name, *results):
    """Count, in the database, that this was done; then wait at the gate, if there is one."""
    world.calls[name] += 1
    effect = local.getJob()._p_jar.root()['effects'][name]
    effect['count'] = effect.get('count', 0) + 1
    gate = world.gates.get(name)
    if gate is not None:
        gate.stand()
        if gate.finish is not None:
            gate.finish.watch(local.getJob())
    return name


def gather(name, *parts):
    """A postprocess: the results of the parts."""
    act(name)
    return [part.result for part in parts]


def nothing():
    pass


def blunder(name):
    act(name)
    raise ZeroDivisionError(name)


# The acts of a race.


class Wish:
    """An application's transaction: `deed(side)` is done in it.

    `refused` is what it was told when it tried again.
    """

    def __init__(self, world, deed, side=None):
        self.deed = deed
        self.side = side or world.another_side()
        self.conflicts = 0
        self.refused = None

    def do(self):
        self.side.begin()
        self.deed(self.side)

    def commit(self):
        try:
            self.side.manager.commit()
        except ConflictError:
            self.conflicts += 1
            self.again()

    def again(self):
        self.side.begin()
        try:
            self.deed(self.side)
        except REFUSALS as error:
            self.refused = error
            self.side.abort()
        else:
            self.side.manager.commit()


class Pass:
    """A pass of a dispatcher; what it claims is not started before `go`."""

    def __init__(self, dispatcher):
        self.dispatcher = dispatcher
        self.thread = threading.Thread(target=self._poll)
        self.thread.race = self
        self._ends = 0  # of transactions
        self._is_dead = False
        self._done, self._may_commit = threading.Event(), threading.Event()
        self._claimed, self._may_start = threading.Event(), threading.Event()

    @property
    def conflicts(self):
        # a commit that failed, and the abort after it, come before the one that holds
        return (self._ends - 1) // 2

    def _poll(self):
        with contextlib.suppress(SystemExit):  # see `crash`
            self.dispatcher.poll()

    def do(self):
        self.dispatcher._manager.registerSynch(self)
        self.thread.start()
        assert self._done.wait(PATIENCE_SECONDS)

    def beforeCompletion(self, transaction):
        if threading.current_thread() is self.thread:
            self._ends += 1
            self._done.set()
            assert self._may_commit.wait(PATIENCE_SECONDS)

    def afterCompletion(self, transaction):
        pass

    def newTransaction(self, transaction):
        pass

    def claimed(self):
        self._claimed.set()
        assert self._may_start.wait(PATIENCE_SECONDS)
        if self._is_dead:
            raise SystemExit  # of this thread

    def commit(self):
        self._may_commit.set()
        while self.thread.is_alive() and not self._claimed.is_set():
            self.thread.join(0.001)

    def go(self):
        """Let what was claimed start."""
        self._may_start.set()
        self.thread.join(PATIENCE_SECONDS)
        self.dispatcher._manager.unregisterSynch(self)

    def crash(self):
        """Its dispatcher is no more: the witness says so, and nothing of it goes on."""
        self._is_dead = True
        self.dispatcher.activated = None
        self.go()
        self.dispatcher._witness.release()
        self.dispatcher.reactor.unwatch(self.dispatcher)


def hold_up(event):
    """Subscriber: a pass of a race has committed its claims, and waits before it hands them out."""
    if isinstance(event, JobClaimed):
        race = getattr(threading.current_thread(), 'race', None)
        if race is not None:
            race.claimed()


class End:
    """The end of a job that stands at its gate: its work, its result and its completion."""

    def __init__(self, world, name):
        self.world = world
        self.name = name

    @property
    def conflicts(self):
        return self.world.known(self.name).conflicts

    def do(self):
        assert self.world.gates[self.name].is_occupied()

    def commit(self):
        self.world.end(self.name)


class Finish:
    """The completion of a job that others wait for: a transaction after that of its work.

    First `settle` lets it commit its work.
    """

    def __init__(self, world, name):
        self.world = world
        self.name = name
        self.conflicts = 0
        self._settled, self._finishes = Gate(), Gate()
        world.gates[name].finish = self

    def settle(self):
        self.world.gates[self.name].open.set()
        assert self._settled.arrived.wait(PATIENCE_SECONDS)

    def do(self):
        self._settled.open.set()
        assert self._finishes.arrived.wait(PATIENCE_SECONDS)

    def commit(self):
        self._finishes.open.set()
        self.world.end(self.name)

    # in the thread of the worker

    def watch(self, job):
        self._job = job
        self._ends = 0
        job._p_jar.transaction_manager.registerSynch(self)

    def beforeCompletion(self, transaction):
        self._ends += 1
        if self._job._status == COMPLETED:
            self._finishes.stand()
        elif self._ends == 2:  # the first is the commit of the work
            self._settled.stand()

    def afterCompletion(self, transaction):
        if transaction.status == Status.COMMITFAILED:
            self.conflicts += 1

    def newTransaction(self, transaction):
        pass


class Life:
    """All that happens to the waiting jobs, from the claim to the end."""

    conflicts = 0

    def __init__(self, world):
        self.world = world

    def do(self):
        pass

    def commit(self):
        self.world.work()


def race(first, second):
    """Let two acts overlap, and commit them in this order: at most the second is sent back."""
    for one in (first, second):
        one.do()
    for one in (first, second):
        one.commit()
    for one in (first, second):
        if isinstance(one, Pass):
            one.go()
    assert first.conflicts == 0
    assert second.conflicts <= 1
