"""The database side of the beanstalk door, where the database is the gateway's own.

With ``-b`` or in memory nobody else reads or writes.  So reservations are kept in
memory, as beanstalkd keeps them: when the process ends, they are over.  A reserve
writes nothing, and a put or a delete little more than one record (see `tube`).

Everything here runs as in `store`.
"""

from zodbjobs import clock, status
from zodbjobs.beanstalk.store import (
    BURIED_AT,
    BURIES,
    DELAY,
    KICKS,
    RELEASES,
    Reservation,
    Store,
)
from zodbjobs.interfaces import QueueClosed, QueueFull
from zodbjobs.model.claim import LEASE_SECONDS, Lent, is_fit
from zodbjobs.model.handout import Round
from zodbjobs.model.queue import Settings
from zodbjobs.model.tube import Tube

#: Tubes that go in one sweep.
DROP_LIMIT = 200


class OwnStore(Store):
    """See Store; nobody but this one uses the database."""

    def __init__(self, db, name):
        super().__init__(db, name, exclusive=True)
        self._tubes = {}  # name -> Tube, or None for a queue that does not suit
        self._matured = set()  # names of tubes that were looked at for what has become due

    # transactions

    def prepare(self):
        super().prepare()
        for name in self.tube_names():
            while self.queues[name].intake.count():
                self.begin()
                self._sort_lanes(self.queues[name])
                self.commit()

    def _sort_lanes(self, queue):
        look = Round(queue, self.now)
        look.takes_messages = True
        look.sort()
        look.file_rest(leave=0)

    def begin(self):
        super().begin()
        self._matured = set()

    def abort(self):
        super().abort()
        self._tubes = {}

    def recall(self, reservations):
        """After an abort: these are what clients hold."""
        for reservation in reservations:
            if reservation.place is not None:
                tube = self._tube(reservation.lent.queue)
                tube.lent[reservation.lent.oid] = reservation.place

    # tubes

    def _tube(self, name):
        """The Tube of that name; None if there is none, or it is served as everywhere."""
        if name in self._tubes:
            return self._tubes[name]
        queue = self.tube(name)
        if queue is None:
            return None
        tube = self._tubes[name] = Tube(queue) if Tube.suits(queue) else None
        return tube

    def _tube_of(self, job):
        """The Tube of a job that is plain; else None."""
        tube = self._tube(job.queue.name)
        return tube if tube is not None and tube.is_plain(job) else None

    def is_empty(self, queue):
        tube = self._tube(queue.name)
        return super().is_empty(queue) if tube is None else tube.is_empty()

    def vanished(self, name):
        """A tube is no more for clients, nor is its pause.  A sweep takes the queue away."""
        queue = self.tube(name)
        if queue is not None and queue.settings.paused is not None:
            queue.unpause()

    def sweep(self, used):
        """Let tubes go that nobody uses and that hold nothing."""
        names = [
            name
            for name, queue in self.queues.items()
            if name not in used and name != 'default' and self._holds_nothing(queue)
        ]
        for name in names[:DROP_LIMIT]:
            del self.queues[name]
            self._tubes.pop(name, None)
            self._buried.pop(name, None)

    def _holds_nothing(self, queue):
        """Whether a tube is as a put would make it anew."""
        settings = queue.settings.__getstate__()
        return (
            all(
                value == {'order': 'put', 'tube': True}.get(key, getattr(Settings, key))
                for key, value in settings.items()
            )
            and queue.tube
            and self.is_empty(queue)
            and not (queue.waiters or queue.watched or queue.consumers)
            and not (len(queue.quotas) or len(queue.dispatchers) or len(queue))
        )

    def _has_filed(self, queue):
        """Something was done in the usual way, which leaves entries in lanes and trees."""
        if self._tube(queue.name) is None:
            super()._has_filed(queue)
            return
        self._sort_lanes(queue)
        for tube in self._tubes.values():
            if tube is not None:
                tube.forget()

    # put, and what waits

    def put(self, name, priority, delay, ttr, body):
        if name not in self._tubes and not self.is_foreign(name):
            self.tube(name, make=True)
        tube = self._tube(name)
        if tube is None:
            return super().put(name, priority, delay, ttr, body)
        span = (ttr or 1) * clock.SECOND
        try:
            job = tube.put(body, priority, delay * clock.SECOND, span)
        except (QueueClosed, QueueFull) as error:
            self._refuse(error)
        if delay:
            self._deed(job, DELAY, delay)
        return self.number(job)

    def state(self, job):
        tube = self._tube(job.queue.name)
        return 'reserved' if tube is not None and job._p_oid in tube.lent else super().state(job)

    def _first_place(self, tube):
        """The Place of the first ready job, or None; entries that count no more are taken off."""
        name = tube.queue.name
        if name not in self._matured:
            self._matured.add(name)
            tube.mature(self.now)
        while (place := tube.first()) is not None:
            if place.job._token == place.token:
                return place
            tube.take(place)
            tube.ready.dropped.change(-1)
        return None

    def head(self, name):
        tube = self._tube(name)
        if tube is None:
            return super().head(name)
        place = None if tube.queue.is_paused(self.now) else self._first_place(tube)
        return None if place is None else (place.priority, place.token, place)

    def ready(self, queue):
        tube = self._tube(queue.name)
        if tube is None:
            return super().ready(queue)
        place = self._first_place(tube)
        return None if place is None else place.job

    def next_event(self, name):
        tube = self._tube(name)
        if tube is None:
            return super().next_event(name)
        queue = tube.queue
        paused = self.paused_until(queue, self.now)
        moments = [queue.ready.next_due(), queue.leases.next_end()]
        moments.append(None if paused is True else paused)
        return min((moment for moment in moments if moment is not None), default=None)

    def _sort(self, queue):
        tube = self._tube(queue.name)
        if tube is None:
            super()._sort(queue)
        else:
            self._first_place(tube)

    # reservations: what is kept in memory has a place

    def reserve(self, name, item):
        tube = self._tube(name)
        if tube is None:
            return super().reserve(name, item)
        job = item.job
        if tube.is_plain(job):
            return self._keep(tube, item)
        tube.take(item)
        asks = job._retries is not None or job._retry_policy_factory is not None
        if asks and not is_fit(job, self.now):
            self._has_filed(tube.queue)
            return None
        return self._lend(tube.queue, job)

    def _keep(self, tube, place):
        """Reserve the job of a place, in memory."""
        job = place.job
        number = self.number(job)
        tube.lend(place)
        span = LEASE_SECONDS * clock.SECOND if job._lease is None else job._lease
        queue = tube.queue
        lent = Lent(
            job._p_oid, queue._p_oid, queue.name, place.token, job._attempts + 1, self.now + span,
            span, None,
        )  # fmt: skip
        return Reservation(number, job.body, lent, place)

    def reserve_job(self, job):
        tube = self._tube_of(job)
        if tube is None:
            reservation = super().reserve_job(job)
            self._has_filed(job.queue)
            return reservation
        if job._status == status.HELD:
            tube.queue.held.pop(job.oid, None)
            tube.refile(job)
        elif self.state(job) == 'delayed':
            tube.withdraw(job)
            tube.refile(job)
        return self._keep(tube, tube.place_of(job))

    def touch(self, reservation, keys):
        if reservation.place is None:
            return super().touch(reservation, keys)
        return self.now + reservation.lent.span, keys

    def finish(self, reservation, keys):
        if reservation.place is None:
            return self._as_usual(super().finish, reservation, keys)
        self._tube(reservation.lent.queue).take(reservation.place)
        self.queues.numbers.forget(reservation.number)
        return True

    def _as_usual(self, deed, reservation, *args):
        done = deed(reservation, *args)
        self._has_filed(self.queues[reservation.lent.queue])
        return done

    def _take(self, reservation):
        """(tube, job) of a reservation that ends, and whose entry is to be changed."""
        tube = self._tube(reservation.lent.queue)
        tube.take(reservation.place)
        job = reservation.place.job
        job._attempts += 1
        return tube, job

    def release(self, reservation, keys, priority, delay):
        if reservation.place is None:
            return self._as_usual(super().release, reservation, keys, priority, delay)
        tube, job = self._take(reservation)
        self._deed(job, RELEASES)
        self._deed(job, DELAY, delay)
        job._priority = priority
        tube.refile(job, self.now + delay * clock.SECOND if delay else None)
        return True

    def bury(self, reservation, keys, priority):
        if reservation.place is None:
            return self._as_usual(super().bury, reservation, keys, priority)
        _, job = self._take(reservation)
        self._deed(job, BURIES)
        self._deed(job, BURIED_AT, clock.micros())
        job._priority = priority
        job.set_aside(f'held by consumer {self.name!r}')
        return True

    def give_back(self, reservation, keys):
        if reservation.place is None:
            self._as_usual(super().give_back, reservation, keys)
            return
        reservation.place.job._attempts += 1
        self._tube(reservation.lent.queue).give_back(reservation.place)

    def end(self, reservation, keys):
        if reservation.place is None:
            return self._as_usual(super().end, reservation, keys)
        reservation.place.job._interruptions += 1
        self.give_back(reservation, keys)
        return True

    # other commands

    def delete(self, job):
        tube = self._tube_of(job)
        state = self.state(job)
        if tube is None or state == 'reserved':
            queue = job.queue
            done = state != 'reserved' and super().delete(job)
            if done:
                self._has_filed(queue)
            return done
        if state == 'buried':
            tube.queue.held.pop(job.oid)
        else:
            tube.withdraw(job)
        self.queues.numbers.forget(job._number)
        return True

    def kick_job(self, job):
        tube = self._tube_of(job)
        if tube is None:
            return super().kick_job(job)
        state = self.state(job)
        if state not in ('buried', 'delayed'):
            return False
        self._deed(job, KICKS)
        if state == 'buried':
            tube.queue.held.pop(job.oid)
        else:
            tube.withdraw(job)
        tube.refile(job)
        return True

    # figures

    def counts(self, queue):
        tube = self._tube(queue.name)
        if tube is None:
            return super().counts(queue)
        self._sort(queue)
        ready, urgent, later = tube.counts()
        return {
            'urgent': urgent,
            'ready': ready,
            'reserved': len(tube.lent) + len(queue.leases),
            'delayed': later,
            'buried': len(queue.held),
        }

    def job_facts(self, job, until=None):
        facts = super().job_facts(job, until)
        tube = self._tube(job.queue.name)
        if tube is not None and job._p_oid in tube.lent:
            facts['reserves'] += 1
        return facts
