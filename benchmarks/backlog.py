"""Backlog: whether the verbs cost more where many jobs wait, in every shape that a backlog has.

The waiting jobs are sorted, as a dispatcher leaves them.  No worker runs here:
the steps of a dispatcher's claim are taken by hand, each put and each claim in
a transaction of its own.  Every verb is compared with an empty queue, measured
just before in the same database.
"""

import dataclasses
import itertools
import statistics
import time
import uuid

import transaction

from benchmarks import work
from benchmarks.measure import COST, MEGABYTE, Figure, Stopwatch, resident_bytes
from zodbjobs import Agent, Queue, clock
from zodbjobs.interfaces import KEY
from zodbjobs.model.handout import Round
from zodbjobs.model.intake import LINGER_SECONDS
from zodbjobs.monitor import view

#: Jobs that one claim takes.
K = 8

#: Jobs put in one transaction when the queue is filled.
BATCH = 5_000

#: Jobs of a list that is asked for: so many are there in an empty queue, too.
LISTED = K

#: What `measure` times.  Lists are the first jobs of a state.
VERBS = ('put', f'claim({K})', 'peek', 'len', 'remove', 'hold', 'list due', 'list later', 'counts')

DAY_SECONDS = 86_400


@dataclasses.dataclass(frozen=True)
class Shape:
    """A kind of backlog: ``options(number)`` are those of the put of each job.

    `prepare` is called with the queues once.  The channel, if any, is the one
    in which jobs are put and claimed while the backlog lies in others.
    """

    title: str
    options: callable
    prepare: callable = lambda queues: None
    finish: callable = lambda queues: None
    channel: str | None = None
    queue_count: int = 1


def _quotas(count):
    def prepare(queues):
        for number in range(count):
            queues[''].quotas.create(f'q{number}')

    return prepare


def _fill_quotas(queues):
    """Let a waiting job have the only place of each quota, as far as the quota knows."""
    quotas = queues[''].quotas
    for job in queues['']:
        for name in job.quota_names:
            if not len(quotas[name]):
                quotas[name].take(job._token, job)
        if all(len(quota) for quota in quotas.values()):
            break


def _more_queues(count):
    def prepare(queues):
        for number in range(1, count):
            queues[f'queue {number}'] = Queue()

    return prepare


SHAPES = {
    'waiting': Shape('waiting', lambda number: {}),
    'scheduled': Shape(
        'scheduled for tomorrow', lambda number: {'delay': DAY_SECONDS + number % 1000}
    ),
    'blocked-10': Shape(
        'blocked behind 10 full quotas',
        lambda number: {'quota_names': (f'q{number % 10}',), 'priority': 0},
        _quotas(10),
        _fill_quotas,
    ),
    'blocked-10000': Shape(
        'blocked behind 10,000 full quotas',
        lambda number: {'quota_names': (f'q{number % 10_000}',), 'priority': 0},
        _quotas(10_000),
        _fill_quotas,
    ),
    'priorities': Shape(
        'waiting in 10,000 priorities', lambda number: {'priority': number % 10_000}
    ),
    'queues': Shape('waiting in 100 queues', lambda number: {}, _more_queues(100), queue_count=100),
    'channels': Shape(
        'waiting in 10,000 other channels',
        lambda number: {'channel': f'c{number % 10_000}'},
        channel='mine',
    ),
}


def measure(place, scale):
    for name, counts in scale.backlogs:
        share = 1 if place.kind == 'file' else scale.slow_share
        yield from _measure_shape(place, scale, SHAPES[name], [round(c * share) for c in counts])


def _measure_shape(place, scale, shape, counts):
    place.fresh()
    queues = place.producer.root()[KEY]
    place.manager.begin()
    shape.prepare(queues)
    place.manager.commit()
    claimer = Claimer(place, shape)
    verbs = Verbs(place, claimer, shape)
    verbs.times(2, scale.claim_seconds)  # caches are warm, and the lanes have their chunks
    empty = verbs.times(scale.claims, scale.claim_seconds)
    memory = resident_bytes()
    yield tuple(_figures(f'an empty queue, for {shape.title}', empty, empty))
    waiting = 0
    for wanted in counts:
        filling = Filling(place, shape, claimer, waiting)
        waiting += filling.fill(wanted - waiting, scale.fill_seconds)
        place.manager.begin()
        shape.finish(queues)
        place.manager.commit()
        verbs.pass_all()
        found = verbs.times(scale.claims, scale.claim_seconds)
        place.manager.begin()
        where = f'{waiting:,} {shape.title}'
        rest = [
            Figure(f'len says, {where}', sum(len(queue) for queue in queues.values()), 'jobs'),
            Figure(f'memory that the process has more, {where}',
                   (resident_bytes() - memory) / MEGABYTE, 'MB'),
        ]  # fmt: skip
        if waiting < wanted:
            note = f'{wanted:,} were not reached in {scale.fill_seconds:.0f} s'
            rest.append(Figure(f'the most {shape.title}', waiting, 'jobs', note=note))
        yield (*_figures(where, found, empty), *rest)
        if waiting < wanted:
            break
    claimer.close()


def _figures(where, found, empty):
    for verb in VERBS:
        times = found[verb] / empty[verb]
        note = '' if found is empty else f'{times:.2f} x empty'
        yield Figure(f'{verb}, {where}', found[verb], 's', COST, note, {'to_empty': times})


class Filling:
    """Puts jobs of a shape, and has them sorted."""

    def __init__(self, place, shape, claimer, first):
        self._place, self._shape, self._claimer = place, shape, claimer
        self._numbers = itertools.count(first)
        queues = place.producer.root()[KEY]
        names = ['', *[f'queue {number}' for number in range(1, shape.queue_count)]]
        self._queues = [queues[name] for name in names]

    def fill(self, count, seconds):
        """Put `count` jobs, for so many seconds at most; returns how many were put."""
        started = clock.monotonic()
        reached = 0
        while reached < count and clock.monotonic() - started < seconds:
            batch = min(BATCH, count - reached)
            self._place.manager.begin()
            for number in itertools.islice(self._numbers, batch):
                queue = self._queues[number % len(self._queues)]
                queue.put(work.nothing, **self._shape.options(number))
            self._place.manager.commit()
            self._claimer.sort()
            reached += batch
        self._place.manager.begin()
        return reached


class Claimer:
    """A dispatcher's hands: a connection of its own, and an agent in each queue."""

    def __init__(self, place, shape):
        self.manager = transaction.TransactionManager()
        self.connection = place.db.open(self.manager)
        self.manager.begin()
        self.queues = self.connection.root()[KEY]
        self.agents = {name: self._agent(queue, shape) for name, queue in self.queues.items()}
        self.manager.commit()
        self._held = []

    @staticmethod
    def _agent(queue, shape):
        record = queue.dispatchers.register(uuid.uuid4())
        record.activate()
        channels = None if shape.channel is None else [shape.channel]
        agent = record['main'] = Agent(size=K, channels=channels)
        return agent

    def claim(self):
        """Claim K jobs of the queue '' and take the former ones off the agent's list.

        One transaction, as a dispatcher's pass: it reads no lanes of queues whose agents
        have no room, and takes chunks out of use.
        """
        self.manager.begin()
        agent = self.agents['']
        for oid, token in self._held:
            agent.retired(oid, token)
        found, self.hindered = [], False
        for name, queue in self.queues.items():
            if not name:
                look = Round(queue, clock.micros())
                look.sort()
                found += look.pick(self.agents[name], K)
                look.file_rest()
                self.hindered |= look.hindered
            queue.intake.prune(clock.micros())
        self.manager.commit()
        self._held = [(int.from_bytes(one.oid, 'big'), one.token) for one in found]
        return len(found)

    def sort(self):
        """Sort what lies in the lanes."""
        for queue in self.queues.values():
            moved = True
            while moved:
                self.manager.begin()
                look = Round(queue, clock.micros())
                look.sort()
                look.file_rest(leave=0)
                moved = look.touched
                self.manager.commit()

    def close(self):
        self.manager.abort()
        self.connection.close()


class Verbs:
    """The verbs, each timed; lists and counts are those of `zodbjobs.monitor`."""

    def __init__(self, place, claimer, shape):
        self._place, self._claimer = place, claimer
        self._options = {} if shape.channel is None else {'channel': shape.channel}
        self._queue = place.producer.root()[KEY]['']

    def pass_all(self):
        """Claim until all that is behind full quotas is shut: some hundred groups at a time."""
        time.sleep(LINGER_SECONDS)  # what is empty by then goes out of use
        for _ in range(K):
            self._put(Stopwatch())
        while self._claimer.claim() < K or self._claimer.hindered:
            pass

    def times(self, claims, seconds):
        """{verb: median seconds}; whatever reads meets K jobs more than the backlog."""
        watches = {verb: Stopwatch() for verb in VERBS}
        put, claim, *rest = watches.values()
        deadline = clock.monotonic() + seconds
        while not claim.laps or (len(claim.laps) < claims and clock.monotonic() < deadline):
            jobs = [self._put(put) for _ in range(K)]
            self._read(*rest[:2], *rest[4:])
            for watch, deed in zip(rest[2:4], (self._queue.remove, self._hold), strict=True):
                extra = self._put(Stopwatch())
                self._claimer.sort()
                with watch:
                    self._place.manager.begin()
                    deed(extra)
                    self._place.manager.commit()
            with claim:
                taken = self._claimer.claim()
            if taken != len(jobs):
                raise RuntimeError(f'a claim took {taken} of {len(jobs)} jobs')
        return {verb: statistics.median(watch.laps) for verb, watch in watches.items()}

    def _put(self, watch):
        self._place.manager.begin()
        with watch:
            job = self._queue.put(work.nothing, **self._options)
            self._place.manager.commit()
        return job

    @staticmethod
    def _hold(job):
        job.hold()

    def _read(self, peek, length, due, later, counts):
        claimer = self._claimer
        claimer.manager.begin()
        queue, queues = claimer.queues[''], claimer.queues
        with peek:
            queue.peek()
        with length:
            len(queue)
        for watch, state in ((due, 'due'), (later, 'later')):
            with watch:
                view.jobs(queues, state, limit=LISTED)
        with counts:
            view.count(queues, 'pending')
            view.count(queues, 'held')
            view.count(queues, 'completed')
