"""The database side of the beanstalk door: what each command does to queues and jobs.

A tube is a queue of the same name that is open to outsiders (`queue.tube`), and
a job there is a Message.  ready, delayed, reserved and buried are waiting, later,
claimed and held.  Reservations are leases like those of a `Consumer`, so whoever
shares the database takes back what this process leaves behind.

Everything here runs between `begin` and `commit`, in the one thread and the one
connection of the gateway.  A whole batch of commands is one transaction.
"""

import heapq
import typing

import transaction
from ZODB.utils import u64

from zodbjobs import clock, status
from zodbjobs.interfaces import KEY, QueueClosed, QueueFull
from zodbjobs.model.claim import (
    Claim,
    is_fit,
    is_lent,
    lent,
    retire,
    take_back,
)
from zodbjobs.model.handout import Round
from zodbjobs.model.intake import DEPENDS, LANES, URGENT, lane_number
from zodbjobs.model.lease import slot_key
from zodbjobs.model.message import Message
from zodbjobs.model.number import Numbers
from zodbjobs.model.queue import Queue, Queues, group_of
from zodbjobs.model.ready import PRIORITY
from zodbjobs.model.tube import URGENT_BELOW

#: So many ready jobs of a tube are looked up at once.
LOOK_AHEAD = 50

#: Numbers looked at in one sweep.
SWEEP_LIMIT = 1000

#: Commits after which the connection's cache is brought to its size.
CLEAN_EVERY = 50

# Places in `job._deeds`.
RELEASES, BURIES, KICKS, DELAY, BURIED_AT = range(5)

STATES = ('ready', 'delayed', 'reserved', 'buried')


class Refused(Exception):
    """The queue does not take the job; `full`: because of its capacity."""

    def __init__(self, full=False):
        super().__init__(full)
        self.full = full


class Reservation(typing.NamedTuple):
    """A job that a client of ours holds."""

    number: int
    body: bytes
    lent: object  # a model.claim.Lent; without a key it is kept in memory only
    place: object = None  # a model.tube.Place, of what is kept in memory


class Store:
    """Tubes and jobs in `db` (a ZODB.DB), for the gateway called `name`.

    `exclusive`: no other process has the database open.
    """

    def __init__(self, db, name, exclusive):
        self.db = db
        self.name = name
        self.exclusive = exclusive
        self.manager = transaction.TransactionManager()
        self.connection = db.open(self.manager)
        self._lane = lane_number(self.connection)
        self._block = None  # where our block of numbers starts
        self._mark = None  # (that, its number of commits) of the last commit
        self._looks = {}  # name of a tube -> the Round of this transaction
        self._ahead = {}  # name of a tube -> what its Round has first, the last one first
        self._filed = set()  # names of tubes to which this transaction brought entries
        self._buried = {}  # name of a tube -> {oid: (serial, (when buried, token))}
        self._commits = 0
        self._swept = 0  # the number down to which was swept
        self.now = 0

    # transactions

    def begin(self):
        self.manager.begin()
        self._looks = {}
        self._ahead = {}
        self._filed = set()
        self.now = clock.micros()

    def commit(self):
        """Sort what came, and commit; whether there was anything to write."""
        for name in list(self._filed):
            self._look(name)
        for name in list(self._looks):
            self._close_look(name)
        writes = bool(getattr(self.manager.get(), '_resources', None))
        if writes and not self.exclusive:
            self._number_commit()
        self.manager.commit()
        self._commits += 1
        if self._commits % CLEAN_EVERY == 0:
            self.connection.cacheGC()
        return writes

    def _number_commit(self):
        """Leave a mark by which `was_committed` knows this transaction."""
        block = self._open_block()
        block.commits += 1
        self._mark = block.first, block.commits

    def was_committed(self):
        """Whether the last transaction, whose commit was cut off, holds after all."""
        self.manager.abort()
        self.manager.begin()
        first, commits = self._mark
        block = self.queues.numbers.blocks.get(first)
        return block is not None and block.commits == commits

    def abort(self):
        self.manager.abort()

    def recall(self, reservations):
        """After an abort: these are what clients hold.  All of them are stored."""

    def close(self):
        self.manager.abort()
        self.connection.close()

    def prepare(self):
        """Make what is missing, and give back what a former life of an exclusive database held."""
        self.begin()
        root = self.connection.root()
        if KEY not in root:
            root[KEY] = Queues()
        queues = root[KEY]
        if queues.numbers is None:
            queues.numbers = Numbers()
        if self.exclusive:
            for queue in queues.values():
                if queue.tube:
                    self._release_all(queue)
        self._block = queues.numbers.open_block(self.exclusive or None).first
        self.commit()

    def _release_all(self, queue):
        for _, token, job, _name in list(queue.leases.entries()):
            if is_lent(job, token):
                job.rescheduled(0)
        queue.leases.clear()

    # tubes

    @property
    def queues(self):
        return self.connection.root()[KEY]

    def tube(self, name, make=False):
        """The queue of a tube, or None if there is none, or none for outsiders."""
        queue = self.queues.get(name)
        if queue is None and make:
            queue = self.queues[name] = Queue()
            self.connection.add(queue)
            queue.order = 'put'
            queue.tube = True
        return queue if queue is not None and queue.tube else None

    def is_foreign(self, name):
        """Whether there is a queue of that name that is not for outsiders."""
        queue = self.queues.get(name)
        return queue is not None and not queue.tube

    def tube_names(self):
        """The names of the tubes in the database."""
        return [name for name, queue in self.queues.items() if queue.tube]

    def vanished(self, name):
        """A tube is no more for clients.  Its queue stays as it is: others may know it."""

    def is_empty(self, queue):
        """Whether a tube has no job in any state."""
        counts = self.counts(queue)
        return not any(counts.values())

    def pause(self, name, seconds):
        queue = self.tube(name, make=True)
        if seconds:
            queue.pause(seconds)
        else:
            queue.unpause()

    def paused_until(self, queue, now):
        """Microseconds until which the tube gives nothing, True for ever, or None."""
        return queue.settings.paused if queue.is_paused(now) else None

    # put, and the numbers

    def put(self, name, priority, delay, ttr, body):
        """Put a job; returns its number.  Raises Refused, having used up a number."""
        if self.is_foreign(name):
            self.use_number()
            raise Refused
        queue = self.tube(name, make=True)
        job = Message(body)
        try:
            queue.put(job, delay=delay or None, priority=priority, lease=max(1, ttr), result_ttl=0)
        except (QueueClosed, QueueFull) as error:
            self._refuse(error)
        if delay:
            self._deed(job, DELAY, delay)
        self._has_filed(queue)
        return self.number(job)

    def _refuse(self, error):
        self.use_number()
        raise Refused(isinstance(error, QueueFull)) from error

    def number(self, job):
        """The number of a job, which it is given if it has none: another door put it."""
        if job._number is None:
            self.queues.numbers.give(self._open_block(), job)
        return job._number

    def _open_block(self):
        """Our block of numbers."""
        block = self.queues.numbers.open_block(self._block)
        self._block = block.first
        return block

    def use_number(self):
        """A put was refused that had arrived: its number is not given again."""
        self.queues.numbers.give(self._open_block())

    def sweep(self, used):
        """Forget numbers of jobs that ended elsewhere; some at a time, in turn.

        `used`: names of tubes, which stay here whether used or not: others may know the queue.
        """
        numbers = self.queues.numbers
        found, self._swept = numbers.ended(self._swept, SWEEP_LIMIT)
        for number in found:
            numbers.forget(number)

    def find(self, number):
        """The job of a number, if it is there and not done; else None."""
        job = self.queues.numbers.get(number)
        if job is None or not job.is_unfinished():
            return None
        queue = job.queue
        return job if queue is not None and queue.tube else None

    def state(self, job):
        """One of `STATES`."""
        if job._status == status.HELD:
            return 'buried'
        if job._status != status.PENDING or job.status != status.PENDING:
            return 'reserved'
        return 'delayed' if job._due > self.now and job._due != job._put else 'ready'

    # looking at what waits

    def _look(self, name):
        """The Round of a tube in this transaction, which knows all that was filed until now."""
        if name in self._filed:
            self._filed.discard(name)
            self._close_look(name)
        look = self._looks.get(name)
        if look is None:
            look = self._looks[name] = Round(self.tube(name), self.now)
            look.takes_messages = look.only_messages = True
            untidy = look.queue.intake.is_untidy(self.now)
            look.sort(late=untidy)
            if untidy:
                look.queue.intake.prune(self.now)
        return look

    def _close_look(self, name):
        look = self._looks.pop(name, None)
        self._ahead.pop(name, None)
        if look is not None:
            look.file_rest()

    def _has_filed(self, queue):
        self._filed.add(queue.name)

    def _withdraw(self, queue, job):
        """Take the entry of a waiting job away, without leaving a stale one."""
        self._close_look(queue.name)
        if not self._take_off(queue, job):
            queue.ready.dropped.change(1)
        job.outdated()

    def _take_off(self, queue, job):
        """Remove the entry of a waiting job from its lane or tree, if it is there."""
        if queue.intake.remove(job.oid, job._token):
            return True
        if not queue.ready.withdraw(group_of(job), job._due, job._token):
            return False
        queue.ready.waiting.change(-1)
        return True

    def head(self, name):
        """(priority, order, item) of the next ready job of a tube, or None."""
        queue = self.tube(name)
        if queue is None or queue.is_paused(self.now):
            return None
        return self._first(name)

    def _first(self, name):
        look = self._look(name)
        ahead = self._ahead.get(name)
        if not ahead:
            ahead = self._ahead[name] = look.some(LOOK_AHEAD)[::-1]
        if not ahead:
            return None
        item = ahead[-1]
        return item[2][PRIORITY], item[0], item

    def next_event(self, name):
        """Microseconds at which a tube may give more without a command, or None."""
        queue = self.tube(name)
        if queue is None:
            return None
        paused = self.paused_until(queue, self.now)
        moments = [queue.ready.next_due(), queue.leases.next_end()]
        moments += [entry.due for _, _, entry in queue.intake.entries() if entry.due > self.now]
        if paused is not None and paused is not True:
            moments.append(paused)
        return min((moment for moment in moments if moment is not None), default=None)

    # reservations

    def reserve(self, name, item):
        """Reserve what `head` found; a Reservation, or None if it may not be run."""
        look = self._look(name)
        look.take(item)
        if self._ahead[name].pop() is not item:
            raise AssertionError(f'{item} is not the head of tube {name!r}')
        job = item[-1]
        if (job._retries is not None or job._retry_policy_factory is not None) and not is_fit(
            job, self.now
        ):
            self._has_filed(look.queue)
            return None
        return self._lend(look.queue, job)

    def reserve_job(self, job):
        """Reserve this job, which is not reserved; a Reservation."""
        queue = job.queue
        if job._status == status.HELD:
            queue.held.pop(job.oid, None)
            job._hold_reason = None
            job._status = status.PENDING
        else:
            self._withdraw(queue, job)
        job._due = job._put
        return self._lend(queue, job)

    def _lend(self, queue, job):
        held = lent(queue, job, self.name, self._lane, self.now)
        return Reservation(self.number(job), job.body, held)

    def own(self, reservation):
        """The job that is reserved so, or None if it was taken back."""
        job = self.connection.get(reservation.lent.oid)
        return job if is_lent(job, reservation.lent.token) else None

    def _retire(self, reservation, job, keys):
        queue = self.connection.get(reservation.lent.queue_oid)
        retire(queue, keys, job, reservation.lent.token, self.name)

    def touch(self, reservation, keys):
        """(until, keys of the slots) of the new lease, or None if it has ended."""
        held = reservation.lent
        until = self.now + held.span
        leases = self.connection.get(held.queue_oid).leases
        key = leases.extend(keys, u64(held.oid), held.token, until)
        return None if key is None else (until, (key, slot_key(until, key % LANES)))

    def finish(self, reservation, keys):
        """Delete a job that is reserved so; False if it was taken back."""
        job = self.own(reservation)
        if job is None:
            return False
        Claim(job, reservation.lent).finish()
        self._retire(reservation, job, keys)
        self.queues.numbers.forget(reservation.number)
        return True

    def release(self, reservation, keys, priority, delay):
        job = self.own(reservation)
        if job is None:
            return False
        self._deed(job, RELEASES)
        self._deed(job, DELAY, delay)
        if not delay:
            job._due = job._put
        Claim(job, reservation.lent).release(delay, priority)
        self._retire(reservation, job, keys)
        self._has_filed(job.queue)
        return True

    def give_back(self, reservation, keys):
        """Its client is gone: the job is ready at once."""
        job = self.own(reservation)
        if job is not None:
            job._due = job._put
            Claim(job, reservation.lent).release()
            self._has_filed(job.queue)
        self._retire(reservation, job or self.connection.get(reservation.lent.oid), keys)

    def bury(self, reservation, keys, priority):
        job = self.own(reservation)
        if job is None:
            return False
        self._deed(job, BURIES)
        self._deed(job, BURIED_AT, clock.micros())
        Claim(job, reservation.lent).hold(priority)
        self._retire(reservation, job, keys)
        return True

    def end(self, reservation, keys):
        """The lease of a reservation has ended; whether the job goes back to its tube by that."""
        job = self.own(reservation)
        if job is not None:
            job._due = job._put
            self._has_filed(job.queue)
        self._retire(reservation, job or self.connection.get(reservation.lent.oid), keys)
        return job is not None

    def take_back(self, name):
        """Take back what others, or former lives, have reserved and lost."""
        queue = self.tube(name)
        if queue is not None and (queue.leases.next_end() or self.now + 1) <= self.now:
            take_back(queue, self.now)
            self._has_filed(queue)

    # other commands

    def delete(self, job):
        """Delete a job that nobody has reserved; False if somebody has."""
        state = self.state(job)
        if state == 'reserved':
            return False
        queue = job.queue
        self._close_look(queue.name)
        number = job._number
        if state != 'buried' and self._take_off(queue, job):
            queue.ready.dropped.change(-1)  # which `remove` counts, as it finds no entry
        queue.remove(job)
        self.queues.numbers.forget(number)
        return True

    def kick_job(self, job):
        state = self.state(job)
        if state == 'buried':
            self._deed(job, KICKS)
            job._due = job._put
            job.resume()
        elif state == 'delayed':
            self._deed(job, KICKS)
            self._withdraw(job.queue, job)
            job._due = job._put
            job.queue.file(job)
        else:
            return False
        self._has_filed(job.queue)
        return True

    def kick(self, name, bound):
        """Kick buried jobs, or if there are none delayed ones; returns how many."""
        queue = self.tube(name)
        if queue is None:
            return 0
        jobs = self.buried(queue, bound) or self.delayed(queue, bound)
        return sum(self.kick_job(job) for job in jobs)

    def buried(self, queue, limit=1):
        """The first buried messages of a tube, the one buried first first."""
        known, found = self._buried.get(queue.name, {}), {}
        for oid, job in queue.held.items():
            if type(job).is_message:
                place = known.get(oid)
                if place is None or job._p_changed is not False or place[0] != job._p_serial:
                    moment = _deed_of(job, BURIED_AT), job._token
                    place = job._p_serial, moment
                found[oid] = place
        self._buried[queue.name] = found
        first = heapq.nsmallest(limit, found, key=lambda oid: found[oid][1])
        return [queue.held[oid] for oid in first]

    def delayed(self, queue, limit=1):
        """The first delayed messages of a tube, the one due first first."""
        self._sort(queue)
        found = []
        for _, job in _later(queue):
            if len(found) == limit:
                break
            if job._due > self.now and job.is_message:
                found.append(job)
        return found

    def ready(self, queue):
        """The next ready job of a tube, whether it is paused or not, or None."""
        first = self._first(queue.name)
        return None if first is None else first[-1][-1]

    def _sort(self, queue):
        """Have all delayed jobs sorted."""
        self._look(queue.name)

    def _deed(self, job, place, value=None):
        """Count a deed of that kind, or note a figure."""
        deeds = [*job._deeds, *[0] * (5 - len(job._deeds))]
        deeds[place] = deeds[place] + 1 if value is None else value
        job._deeds = tuple(deeds)

    # figures

    def counts(self, queue):
        """{'urgent': n, 'ready': n, 'reserved': n, 'delayed': n, 'buried': n} of a tube."""
        self._sort(queue)
        ready = urgent = 0
        groups = queue.ready.groups
        for group, tree in zip(groups, groups.values(), strict=True):
            if group[PRIORITY] != URGENT:
                ready += len(tree)
                urgent += len(tree) if group[PRIORITY] < URGENT_BELOW else 0
        for _, _, entry in queue.intake.entries():
            if entry.due != DEPENDS and entry.group[PRIORITY] != URGENT and entry.due <= self.now:
                ready += 1
                urgent += entry.group[PRIORITY] < URGENT_BELOW
        return {
            'urgent': urgent,
            'ready': ready,
            'reserved': sum(is_lent(job, token) for _, token, job, _ in queue.leases.entries()),
            'delayed': len(queue.ready.later),
            'buried': len(queue.held),
        }

    def job_facts(self, job, until=None):
        """The figures of a job by the names of stats-job; `until`: when our lease ends."""
        state = self.state(job)
        end = until if state == 'reserved' else job._due if state == 'delayed' else None
        if state == 'reserved' and end is None:
            end = next(
                (entry[0] for entry in job.queue.leases.entries() if entry[2] is job), self.now
            )
        return {
            'id': self.number(job),
            'tube': job.queue.name,
            'state': state,
            'pri': job._priority,
            'age': max(0, _seconds(self.now - job._put)),  # it may be of this batch
            'delay': _deed_of(job, DELAY),
            'ttr': _seconds(120 * clock.SECOND if job._lease is None else job._lease),
            'time-left': 0 if end is None else max(0, _seconds(end - self.now)),
            'file': 0,
            'reserves': job.attempts,
            'timeouts': job.interruptions,
            'releases': _deed_of(job, RELEASES),
            'buries': _deed_of(job, BURIES),
            'kicks': _deed_of(job, KICKS),
        }


def _deed_of(job, place):
    return job._deeds[place] if job._deeds else 0


def _later(queue):
    for _, (token, _, job) in queue.ready.later.items():
        if getattr(job, '_token', None) == token:
            yield token, job


def _seconds(us):
    return us // clock.SECOND
