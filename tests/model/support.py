"""Parts for the tests of the model: a database with a queue, sides that use it, a turned clock.

No dispatcher runs here.  Where a test needs one, a `Side` does its claims with the model's own
`Round`, and its chores with the runtime's `Retirement`.
"""

import itertools
import uuid

import transaction
import ZODB
from persistent import Persistent
from ZODB.FileStorage import FileStorage

from zodbjobs import Agent, Queue, Queues, clock
from zodbjobs.facts import Assignment
from zodbjobs.interfaces import KEY
from zodbjobs.model.handout import Round
from zodbjobs.runtime import ended
from zodbjobs.runtime.retire import Retirement

SECOND = clock.SECOND
DAY = 86_400 * SECOND

#: 2026-07-01 12:00 UTC
START = 1_782_907_200 * SECOND

# Filings remember the latest time of their process, so no test may begin before another one ended.
_days = itertools.count()


class TurnedClock:
    """A source of time that moves when a test says so."""

    def __init__(self):
        self.now = START + next(_days) * 10 * DAY

    def micros(self):
        return self.now

    def monotonic(self):
        return self.now / SECOND

    def advance(self, seconds):
        """Let so many seconds pass."""
        self.now += round(seconds * SECOND)


class Thing(Persistent):
    """An application's persistent object: a counter that can be called."""

    value = 0

    def increase(self, by=1):
        self.value += by
        return self.value

    def __call__(self, *args):
        return self.increase(*args)


class Side:
    """A connection with its own transactions, as another process would have it.

    `agent` is made when it is first asked for, with a dispatcher's record of its own.
    """

    queue_name = ''

    def __init__(self, db):
        self.transaction_manager = transaction.TransactionManager()
        self.connection = db.open(self.transaction_manager)
        self.root = self.connection.root()
        self.uuid = uuid.uuid4()
        self.begin = self.transaction_manager.begin
        self.commit = self.transaction_manager.commit
        self.abort = self.transaction_manager.abort

    @property
    def queues(self):
        return self.root[KEY]

    @property
    def queue(self):
        return self.root[KEY][self.queue_name]

    @property
    def record(self):
        """This side's record among the dispatchers of the queue, activated."""
        found = self.queue.dispatchers.get(self.uuid)
        if found is None:
            found = self.queue.dispatchers.register(self.uuid)
            found.activate()
        return found

    @property
    def agent(self):
        record = self.record
        if 'main' not in record:
            record['main'] = Agent()
        return record['main']

    def twin(self, thing):
        """The object of this side's connection for one of another side's."""
        return self.connection.get(thing._p_oid)

    def look(self, complain=None):
        """A new `Round` at the queue."""
        return Round(self.queue, clock.micros(), complain=complain)

    def file_all(self):
        """Sort all that waits in the lanes into the trees; nothing is committed."""
        look = self.look()
        look.sort()
        look.file_rest(leave=0)

    def claim(self, room=1, ahead=0, agent=None, complain=None):
        """Claim as a dispatcher does; returns Assignments, nothing is committed."""
        look = self.look(complain)
        look.expire()
        look.sort()
        found = look.pick(self.agent if agent is None else agent, room, ahead)
        look.file_rest()
        return found

    def claimed_jobs(self, room=1, **kw):
        """The jobs of a claim."""
        return [self.connection.get(assignment.oid) for assignment in self.claim(room, **kw)]

    def work(self, assignment, result=None):
        """Finish a claimed job with `result`, as a worker would; returns its Report."""
        job = self.connection.get(assignment.oid)
        job.begun(clock.micros(), self.agent._p_oid)
        job.settled(result)
        if job.untold() is None:
            job.finished()
        failed = job.outcome != 'success'
        return ended.Report(assignment, ended.FINISHED, failed, job._result_ttl, job.id)

    def retire(self, *reports):
        """Write reports down, as a dispatcher does."""
        retirement = Retirement(self.queue, clock.micros())
        retirement.write(self.record, reports)
        for agent in self.record.values():
            retirement.sweep(agent)

    def run(self, job, result=None):
        """Carry a job that was just claimed to its end."""
        token, *_ = self.agent.running[job.oid]
        assignment = Assignment(job._p_oid, token, '', 'main', job.quota_names)
        self.retire(self.work(assignment, result))

    def run_report(self, job):
        """Write down that a claimed job had ended already: it was cancelled, or it expired."""
        token, *_ = self.agent.running[job.oid]
        assignment = Assignment(job._p_oid, token, '', 'main', ())
        failed = job.outcome != 'success'
        ttl = job._result_ttl
        self.retire(ended.Report(assignment, ended.FINISHED, failed, ttl, job.id))

    def close(self):
        self.abort()
        self.connection.close()


class House:
    """A database with a queue '', opened by any number of sides."""

    def __init__(self, storage):
        self.db = ZODB.DB(storage)
        self.sides = []
        first = self.side()
        first.root[KEY] = Queues()
        first.queues[''] = Queue()
        first.commit()
        self.first = first

    def side(self):
        """One more connection."""
        self.sides.append(Side(self.db))
        return self.sides[-1]

    def close(self):
        for side in self.sides:
            side.close()
        self.db.close()


def file_house(folder):
    """A House in a FileStorage, which merges concurrent changes of buckets."""
    return House(FileStorage(str(folder / 'Data.fs')))


def work(*args, **kwargs):
    """A job's call: gives its arguments back."""
    return (*args, kwargs) if kwargs else args


def other_work(*args):
    """Another one."""
    return ('other', *args)


def fails(*args):
    """A job's call that raises."""
    raise ValueError('it went wrong')
