"""The steps of a run: what may happen, how often, and how.

Each step has its own source of chance, made of the seed and the number of the
step; what it does to whom depends on that and on how things stand.

Runs in the director's thread; what it spawns runs in actors of the client.
"""

import random

from zodbjobs import clock
from zodbjobs.interfaces import KEY, BadStatusError, DuplicateJobError
from zodbjobs.testing.simulation import errands
from zodbjobs.testing.simulation.storage import KINDS

#: step -> (weight, the trait it needs or None)
WEIGHTS = {
    'run': (60, None),
    'put': (10, None),
    'time': (8, None),
    'deliver': (4, 'lags'),
    'crash': (2, 'crashes'),
    'start': (4, None),
    'pause': (2, 'pauses'),
    'unpause': (3, 'pauses'),
    'fault': (5, 'faults'),
    'cut': (1, 'cuts'),
    'mend': (2, 'cuts'),
    'bury': (1.5, 'burials'),
    'stop': (1.5, 'stops'),
    'touch': (4, 'operators'),
    'stall': (1, 'stalls'),
}


class Steps:
    """Makes the steps of `play`, which has its traits."""

    def __init__(self, play):
        self.play = play
        self.world = play.world
        self.weights = {
            step: weight
            for step, (weight, trait) in WEIGHTS.items()
            if trait is None or trait in play.traits
        }

    def make(self, number):
        """Make the step of that number."""
        chance = random.Random(f'{self.play.seed}/{number}')
        kind = chance.choices(list(self.weights), list(self.weights.values()))[0]
        self.play.tell_step(number, kind)
        getattr(self, f'_{kind}')(chance)

    def _describe(self, text):
        self.play.tell_more(text)

    def _pick(self, chance, things):
        """One of `things`, or None."""
        things = list(things)
        return chance.choice(things) if things else None

    # ordinary life

    def _run(self, chance):
        actor = self._pick(chance, self.play.stage.runnable())
        turns = chance.choice((1, 1, 2, 3, 5, 8))
        if actor is not None:
            self._describe(f'{turns} turns of {actor}, at {actor.where!r}')
            self.play.run_some(actor, turns)

    def _time(self, chance):
        seconds = chance.choice((0.001, 0.05, 1, 1, 5, 5, 20, 90))
        self._describe(f'{seconds} s')
        self.play.pass_time(seconds)

    def _put(self, chance):
        play = self.play
        fancy = errands.Fancy(chance, play.traits)
        wanted = [
            (f'p{play.step}{letter}', fancy.errand(), self._more(chance), chance.random() < 0.2)
            for letter in 'abcd'[: chance.choice((1, 1, 2, 4))]
        ]
        queue_name = chance.choice(play.queue_names)
        will_abort = chance.random() < 0.1
        self._describe(', '.join(f'{number} {errand}' for number, errand, _, _ in wanted))

        def produce(connection):
            queue = connection.root()[KEY][queue_name]
            for number, errand, more, pauses in wanted:
                errands.put(queue, number, errand, **self._found(connection, more))
                if pauses:
                    play.client.turn('pause')
            return not will_abort

        # Whoever names an id writes what others write too.
        names_id = any('id' in more for _, _, more, _ in wanted)
        play.spawn_client('producer', produce, merges=not names_id)

    def _more(self, chance):
        """Further arguments for put, that name other jobs."""
        more, traits = {}, self.play.traits
        if 'ids' in traits and chance.random() < 0.3:
            more = {'id': chance.choice(('x', 'y')), 'on_conflict': 'keep'}
        if 'dependents' in traits and chance.random() < 0.3:
            known = [
                number
                for number, mark in self.play.ledger.marks.items()
                if '.' not in number and mark.job._queue_oid is not None
            ]
            if known:
                chosen = {chance.choice(known) for _ in range(chance.choice((1, 1, 2)))}
                more[chance.choice(('depends_on', 'after'))] = sorted(chosen)
        return more

    def _found(self, connection, more):
        """`more` with the jobs that its numbers stand for, as `connection` has them."""
        found, marks = dict(more), self.play.ledger.marks
        for name in {'depends_on', 'after'} & set(more):
            jobs = [connection.get(marks[number].job._p_oid) for number in more[name]]
            found[name] = [job for job in jobs if job._queue_oid is not None]
        return found

    # processes

    def _start(self, chance):
        absent = [name for name in self.play.names if self.play.holder(name) is None]
        name = self._pick(chance, absent)
        skewed = 'skews' in self.play.traits
        skew = chance.choice((-30, -2, -0.001, 0.001, 2, 30)) if skewed else 0
        if name is not None:
            self._describe(f'{name}, whose clock is {skew} s ahead')
            self.play.start(name, skew)

    def _crash(self, chance):
        process = self._pick(chance, self.play.serving())
        seconds = chance.choice((0, 0, 2, 15))
        if process is not None:
            self._describe(f'{process.name}, noticed after {seconds} s')
            process.crash(seconds)

    def _stop(self, chance):
        process = self._pick(chance, [p for p in self.play.serving() if not p.is_stopping])
        if process is not None:
            self._describe(process.name)
            process.stop()

    def _pause(self, chance):
        process = self._pick(chance, [p for p in self.play.serving() if not p.is_paused])
        if process is not None:
            self._describe(process.name)
            process.is_paused = True

    def _unpause(self, chance):
        process = self._pick(chance, [p for p in self.world.processes if p.is_paused])
        if process is not None:
            self._describe(process.name)
            process.is_paused = False

    def _stall(self, chance):
        seconds = chance.choice((1, 10, 80, 200))
        self._describe(f'{seconds} s, and nobody does anything')
        self.world.now += round(seconds * clock.SECOND)

    def _bury(self, chance):
        name, queue_name = chance.choice(self.play.names), chance.choice(self.play.queue_names)
        self._describe(f'{name} in queue {queue_name!r}')
        self.play.bury(name, queue_name)

    # the line to the server

    def _deliver(self, chance):
        client = self._pick(chance, self.play.server.clients)
        self._describe(f'to {client.process.name}')
        client.deliver()

    def _fault(self, chance):
        process = self._pick(chance, [*self.play.serving(), self.play.client])
        fault = [chance.choice((1, 1, 2, 4)), chance.choice(KINDS)]
        self._describe(f'{fault[1]} at vote {fault[0]} of {process.name}')
        process.line.faults.append(fault)

    def _cut(self, chance):
        process = self._pick(chance, self.play.serving())
        if process is not None:
            self._describe(process.name)
            process.line.cut()

    def _mend(self, chance):
        client = self._pick(chance, [c for c in self.play.server.clients if c.is_cut])
        if client is not None:
            self._describe(client.process.name)
            client.mend()

    # the operator

    def _touch(self, chance):
        deed = chance.choice(list(DEEDS))
        known = [number for number in self.play.ledger.marks if '.c' not in number]
        if deed == 'remove':  # who waits for its result would wait for ever
            known = [number for number in known if '.' not in number]
        number = self._pick(chance, known)
        if number is None:
            return
        self._describe(f'{deed} {number}')
        oid = self.play.ledger.marks[number].job._p_oid
        self.play.ledger.touched.add(number)

        def touch(connection):
            try:
                DEEDS[deed](connection.get(oid))
            except (BadStatusError, DuplicateJobError, LookupError):
                return False
            return True

        self.play.spawn_client('operator', touch)


def _remove(job):
    if job.queue is None:
        raise LookupError(job)
    job.queue.remove(job)


def _later(job):
    job.begin_after = clock.datetime_of(clock.micros() + 20 * clock.SECOND)


def _sooner(job):
    job.priority = 1


#: What an operator may do to a job.
DEEDS = {
    'hold': lambda job: job.hold('the operator says so'),
    'resume': lambda job: job.resume(),
    'cancel': lambda job: job.cancel(),
    'remove': _remove,
    'retry': lambda job: job.retry(),
    'later': _later,
    'sooner': _sooner,
}
