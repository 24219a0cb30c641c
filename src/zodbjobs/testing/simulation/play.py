"""One run of the simulation: its steps, and the end at which everything must be done.

What a step does follows from the seed, the number of the step and how things
stand; so any steps may be left out, and the rest still makes a run.  The traits
of a run (which trouble there is, what jobs may do) are drawn first: a run with
few of them searches deeper than one with all.

Runs in the director's thread.
"""

import contextlib
import logging
import os
import random
import tempfile
import uuid

import transaction

from zodbjobs import Agent, Queue, Queues, clock
from zodbjobs.interfaces import KEY
from zodbjobs.model import handout, intake
from zodbjobs.runtime import dispatcher as dispatchers
from zodbjobs.runtime import trouble
from zodbjobs.testing.simulation import errands
from zodbjobs.testing.simulation.ledger import Ledger, Violation
from zodbjobs.testing.simulation.process import DOUBT, LEASE, PROOF, Process, World
from zodbjobs.testing.simulation.stage import Stage
from zodbjobs.testing.simulation.steps import Steps
from zodbjobs.testing.simulation.storage import CONFLICT, MemoryStorage, PlannedError, Server

#: What agents take while it goes on, in a run with channels; in the end all take all.
AGENT_CHANNELS = {'A': ('', 'a'), 'B': ('', 'b'), 'C': ('a', 'b'), 'D': None}

#: 2026-07-01 12:00 UTC
START = 1_782_907_200 * clock.SECOND

#: What may go wrong in a run, and how likely a run has it.
TROUBLE = {
    'crashes': 0.6,
    'pauses': 0.4,
    'faults': 0.5,
    'cuts': 0.3,
    'burials': 0.3,
    'stops': 0.4,
    'lags': 0.3,
    'skews': 0.3,
    'operators': 0.3,
    'stalls': 0.2,
}

#: What jobs may have or do, and how likely a run has it.
VARIETY = {
    'composites': 0.5,
    'policies': 0.5,
    'limits': 0.3,
    'callbacks': 0.5,
    'hot': 0.5,
    'slow': 0.5,
    'errors': 0.4,
    'children': 0.4,
    'deferreds': 0.3,
    'quotas': 0.6,
    'delays': 0.5,
    'deadlines': 0.25,
    'priorities': 0.3,
    'channels': 0.2,
    'dependents': 0.4,
    'ids': 0.3,
    'fields': 0.3,  # a second queue
}

#: Virtual seconds in which everything must come to its end once all trouble is over.
LONGEST_END_SECONDS = 1800
#: Virtual seconds without anything to do, in which nothing may be written.
IDLE_SECONDS = 60
#: After so many more the dates of all begin_by have passed, which dispatchers forget then, and
#: chunks that nobody needs any more are closed.
LATE_SECONDS = intake.GRACE_SECONDS + 30
#: Turns without any time passing: more than any run needs.
MOST_TURNS = 2_000


class Play:
    """A run with `seed`; `keep` are the numbers of the steps to make (None: all of `steps`).

    `storage` is 'memory' or 'file'.  With `tell`, a list, it appends what happens as lines.
    `traits` are drawn by the seed unless they are given.
    """

    def __init__(self, seed, steps=150, storage='memory', keep=None, tell=None, traits=None):
        self.seed = seed
        self.numbers = list(range(steps)) if keep is None else list(keep)
        self.storage = storage
        self.wanted_traits = traits
        self.tell = tell
        self.is_told = tell is not None
        self.step = None  # the number of the present step
        self.commit_count = 0
        self._violation = None

    def run(self):
        """Make the steps and the end; returns the Violation that was found, or None."""
        with self.set_up():
            steps = Steps(self)
            try:
                for number in self.numbers:
                    self.step = number
                    steps.make(number)
                self.end()
            except Violation as violation:
                return violation
        return None

    # what others ask

    @property
    def process(self):
        """The process whose actor has the turn."""
        return self.stage.current.process

    def holder(self, name):
        """The process that has this name, until all its threads have ended; or None."""
        return next((p for p in self.world.processes if p.name == name), None)

    def name_of(self, uuid):
        """The name of the process with that UUID."""
        return next(name for name, each in self.uuids.items() if each == uuid)

    def tell_step(self, number, kind):
        """Tell that a step begins."""
        if self.is_told:
            self.tell.append(f'{number:4}  {kind}')

    def tell_more(self, text):
        """Tell more of the present step."""
        if self.is_told:
            self.tell[-1] += f': {text}'

    def say(self, line):
        """Tell what happens, if anybody listens."""
        if self.is_told:
            self.tell.append(f'      {line}')

    def violate(self, violation):
        """An actor has found a Violation: the director will raise it."""
        self._violation = self._violation or violation

    def serving(self):
        """The processes that have a dispatcher which has not stopped."""
        return [
            process
            for process in self.world.processes
            if process.dispatcher is not None and process.dispatcher.activated is not False
        ]

    # setting the scene

    @contextlib.contextmanager
    def set_up(self):
        """Make the scene, with the dispatchers of `names`, and take it down in the end."""
        with contextlib.ExitStack() as stack:
            stack.callback(logging.disable, logging.root.manager.disable)
            logging.disable(logging.CRITICAL)
            self.stage = Stage()
            self.server = Server(self._open_storage(stack))
            stack.callback(self.server.close)
            self.world = World(self.stage, self.server, START)
            stack.callback(clock.use, clock.use(self.world))
            stack.callback(self._strike)
            stack.callback(setattr, intake, 'lane_number', intake.lane_number)
            intake.lane_number = self._lane_number
            stack.callback(setattr, handout, 'FULL_LIMIT', handout.FULL_LIMIT)
            if self.seed % 2:  # a few groups stand for many
                handout.FULL_LIMIT = 0
            errands._playing.append(self)
            stack.callback(errands._playing.remove, self)
            self._draw_traits()
            self.ledger = Ledger(self)
            self.client = Process(self.world, 'client', lags='lags' in self.traits)
            self._fill()
            for name in self.names:
                self.start(name)
            yield

    def _open_storage(self, stack):
        if self.storage == 'memory':
            return MemoryStorage()
        from ZODB.FileStorage import FileStorage

        folder = stack.enter_context(tempfile.TemporaryDirectory())
        return FileStorage(os.path.join(folder, 'Data.fs'))

    def _lane_number(self, jar):
        # The engine's own choice goes by an address in memory, which no seed can tell.
        process = jar.db().process
        return (len(process.name) + ord(process.name[-1])) % intake.LANES

    def _draw_traits(self):
        chance = random.Random(f'{self.seed}')
        self.traits = {
            trait
            for trait, probability in {**TROUBLE, **VARIETY}.items()
            if chance.random() < probability
        }
        if self.wanted_traits is not None:
            self.traits = set(self.wanted_traits)
        self.witness = chance.choice((PROOF, PROOF, DOUBT, LEASE))
        self.poll_interval = chance.choice((5, 5, 20))
        self.names = ['A', 'B', 'C', 'D'][: chance.choice((2, 2, 3, 3, 4))]
        self.agent_size = chance.choice((1, 2, 3))
        self.uuids = {name: uuid.UUID(int=ord(name)) for name in self.names}
        self.queue_names = ['', 'far'] if 'fields' in self.traits else ['']

    def _fill(self):
        manager = transaction.TransactionManager()
        connection = self.client.db.open(manager)
        root = connection.root()
        root['hot'] = [errands.Hot() for _ in range(errands.HOT_COUNT)]
        queues = root[KEY] = Queues()
        for name in self.queue_names:
            queue = queues[name] = Queue()
            for quota, size in errands.QUOTAS.items():
                queue.quotas.create(quota, size)
            for each in self.names:
                agent = Agent(size=self.agent_size)
                if 'channels' in self.traits:  # then not all see the same jobs
                    agent.channels = AGENT_CHANNELS[each]
                queue.dispatchers.register(self.uuids[each])['main'] = agent
        manager.commit()
        connection.close()
        self._see_commits()

    def _strike(self):
        """Take everything down."""
        for process in list(self.world.processes):
            process.crash()
        dispatchers.clear()

    # turns

    def _turn(self, actor):
        """Give an actor one turn, and check what came of it."""
        self.stage.give_turn(actor)
        self._see_commits()
        if actor.error is not None:
            self.world.surprises.append(f'{actor} ended with {actor.error!r}')
        if self.world.surprises:
            raise Violation('no surprises', self.world.surprises[0]) from actor.error
        if self._violation is not None:
            raise self._violation

    def _see_commits(self):
        commits = self.server.commits
        while commits:
            self.commit_count += 1
            self.ledger.look(commits.pop(0))

    def run_some(self, actor, turns=MOST_TURNS):
        """Give an actor so many turns, as long as it can go on."""
        for _ in range(turns):
            if actor.has_ended or not actor.is_runnable():
                return
            self._turn(actor)

    def run_reactors(self):
        """Let every reactor do what is due now."""
        for _ in range(MOST_TURNS):
            due = [actor for actor in self.stage.runnable() if actor.name == 'reactor']
            if not due:
                return
            for actor in due:
                self.run_some(actor, 1)
        raise Violation('comes to rest', 'a dispatcher makes one pass after the other')

    def run_all(self, chance):
        """Let every actor go on until nobody can without that time passes."""
        for _ in range(MOST_TURNS):
            runnable = self.stage.runnable()
            if not runnable:
                return
            self.run_some(chance.choice(runnable), 3)
        raise Violation('comes to rest', f'busy without end: {[str(a) for a in runnable]}')

    def pass_time(self, seconds, all_run=None):
        """Let virtual time pass; whoever is not paused does in time what is due.

        `all_run`: a source of chance, to let all actors go on and not only the reactors.
        """
        end = self.world.now + round(seconds * clock.SECOND)
        while True:
            if all_run is None:
                self.run_reactors()
            else:
                self.run_all(all_run)
            if self.world.now >= end:
                return
            if seconds > 0.1:
                self._deliver()
            moment = self.world.next_timer()
            self.world.now = end if moment is None else min(end, moment)

    def _deliver(self):
        for client in self.server.clients:
            client.deliver()

    # what steps, and tests, have happen

    def start(self, name, skew=0):
        """Start a process with the dispatcher of that name; its clock is `skew` seconds ahead."""
        lags = 'lags' in self.traits
        skew_micros = round(skew * clock.SECOND)
        process = Process(self.world, name, self.uuids[name], skew_micros, lags)
        process.serve(self.poll_interval, grace=10, witness=self.witness)

    def put(self, number, errand, process=None):
        """Put the job of an errand in the queue '' (`process`: not from the client), and commit."""

        def produce(connection):
            errands.put(connection.root()[KEY][''], number, errand)
            return True

        self.run_some(self.spawn_client('producer', produce, process, merges=True))

    def bury(self, name, queue_name=''):
        """Declare a dispatcher dead, though it may live: that must do no harm.  An actor."""

        def declare(connection):
            record = connection.root()[KEY][queue_name].dispatchers[self.uuids[name]]
            if record.activated is None:
                return False
            record.died()
            return True

        return self.spawn_client('undertaker', declare)

    def spawn_client(self, name, work, process=None, merges=False):
        """An actor of the client, or of `process`, that does `work(connection)` in a transaction.

        It commits if `work` returns True.  `merges`: others cannot make it conflict.
        """

        process = self.client if process is None else process

        def act():
            manager = transaction.TransactionManager()
            connection = process.db.open(manager)
            try:
                manager.begin()
                if work(connection):
                    manager.commit()
                else:
                    manager.abort()
            except Exception as error:
                manager.abort()
                if not self._is_expected(error, merges):
                    raise
            finally:
                connection.close()

        return process.spawn(name, act)

    def _is_expected(self, error, merges):
        """Whether an actor of the client may meet this."""
        if trouble.is_conflict(error):
            return not merges or CONFLICT in self.world.has_met
        return trouble.is_disconnected(error) or isinstance(error, PlannedError)

    # the end

    def end(self):
        """All trouble ends; time goes on until everything is done, and then nothing happens."""
        self.step = None
        if self.is_told:
            self.tell.append(' end  all trouble is over, and time goes on')
        chance = random.Random(f'{self.seed}/end')
        self._calm_down()
        self._come_to_rest(chance)
        self.ledger.check_end()
        self._check_counters()
        self._check_idle(chance)

    def _come_to_rest(self, chance):
        end, seen = self.world.now + LONGEST_END_SECONDS * clock.SECOND, None
        while True:
            self._let_one_serve()
            self.run_all(chance)
            self._cancel_held()
            if self.commit_count != seen:
                seen, left = self.commit_count, self.ledger.unsettled()
                if not left:
                    return
            if self.world.now > end:
                raise Violation('nothing lost', '; '.join(left))
            self.pass_time(1, chance)

    def _cancel_held(self):
        """Cancel what is held, as others may wait for it."""
        if not any(queue.held for queue in self.ledger.queues.values()):
            return
        with self.client.db.transaction() as connection:
            for queue in connection.root()[KEY].values():
                for job in list(queue.held.values()):
                    self.ledger.touched.add(self.ledger.by_oid[job._p_oid])
                    job.cancel()
        self._see_commits()

    def _calm_down(self):
        for process in self.world.processes:
            process.is_paused = False
            process.line.faults.clear()
            process.line.lags = False
            if process.line.is_cut:
                process.line.mend()
            process.line.deliver()
        if 'channels' in self.traits:
            self._open_channels()

    def _open_channels(self):
        with self.client.db.transaction() as connection:
            for queue in connection.root()[KEY].values():
                for record in queue.dispatchers.values():
                    record['main'].channels = None
        self._see_commits()

    def _let_one_serve(self):
        if not self.serving():
            name = self.names[0]
            former = self.holder(name)
            if former is not None:  # it has stopped, and the process ends
                former.crash()
            self.start(name)

    def _check_counters(self):
        root = self.ledger.connection.root()
        for index, hot in enumerate(root['hot']):
            expected = sum(
                mark.effect_count() * mark.errand.get('script', ()).count(('hot', index))
                for mark in self.ledger.marks.values()
            )
            if hot.value != expected:
                raise Violation('counters', f'counter {index} is {hot.value}, not {expected}')

    def _check_idle(self, chance):
        self.pass_time(LATE_SECONDS, chance)
        before = self.commit_count
        self.pass_time(IDLE_SECONDS, chance)
        if self.commit_count != before:
            raise Violation('idle', f'{self.commit_count - before} commits with nothing to do')
