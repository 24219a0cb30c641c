"""Queues: put, look, take out; and the places in which jobs wait.

The queue's own record is written when it is created and never again.  What
changes lies in objects of its own: the lanes (`intake`), which alone producers
write; the trees of dispatchers (`ready`); the jobs held, the unique ids, the
settings.

`put` and the other verbs run in the application's transaction; `conclude` and
`await_blockers` in a dispatcher's.
"""

import datetime
import functools
import heapq
import itertools
import random
import uuid

from BTrees.LOBTree import LOBTree
from BTrees.OOBTree import OOBTree
from persistent import Persistent
from ZODB.utils import p64
from zope.component import queryUtility
from zope.event import notify
from zope.interface import implementer

from zodbjobs import clock, local, status
from zodbjobs.interfaces import (
    IUUID,
    BadStatusError,
    DuplicateJobError,
    IQueue,
    IQueues,
    JobAdded,
    JobCompleted,
    JobFiled,
    QueueClosed,
    QueueFull,
)
from zodbjobs.model.announce import announce
from zodbjobs.model.call import check_storable
from zodbjobs.model.filings import DRIFT, Filings
from zodbjobs.model.handout import SORT_LIMIT, Round, is_current
from zodbjobs.model.ids import UniqueIds
from zodbjobs.model.intake import DEPENDS, LANES, URGENT, Entry, Intake
from zodbjobs.model.job import Job, as_job
from zodbjobs.model.lease import Leases
from zodbjobs.model.message import checked_handler
from zodbjobs.model.named import Named
from zodbjobs.model.notes import Notes
from zodbjobs.model.quota import Quotas
from zodbjobs.model.ready import IS_MESSAGE, RUNS_ONCE, Ready
from zodbjobs.model.registry import Dispatchers
from zodbjobs.model.tokens import TIE_BITS, TIE_MASK, bounded, first_token, next_token, order_key
from zodbjobs.model.wishes import (
    check_factory,
    checked_capacity,
    checked_channel,
    checked_due,
    checked_id,
    checked_level,
    checked_limit,
    checked_priority,
    checked_retries,
    checked_span,
)

ORDERS = ('due', 'put')
CONFLICTS = ('raise', 'keep', 'replace')

#: Attribute of a job -> what checks a wish for it, and gives what is kept.
CHECKS = {
    '_begin_by': functools.partial(checked_span, name='begin_by'),
    '_priority': checked_priority,
    '_channel': checked_channel,
    '_failure_log_level': checked_level,
    '_id': checked_id,
    '_lease': functools.partial(checked_span, name='lease'),
    '_result_ttl': functools.partial(checked_span, name='result_ttl'),
    '_time_limit': checked_limit,
}

#: Jobs that others wait for, looked at in one `wake_orphans`.
ORPHAN_LIMIT = 200

_filings = Filings()


def next_filing():
    """Microseconds of now, or a little more: a time for which this process has filed nothing."""
    return _filings.at_once(clock.micros())


class Settings(Persistent):
    """What operators set and producers read."""

    order = 'due'
    closed = False
    paused = None  # None, True, or microseconds until which
    handler = None
    capacity = None
    tube = False  # whether outsiders may use the queue through a port


@implementer(IQueue)
class Queue(Persistent):
    """See IQueue."""

    name = None
    parent = None

    def __init__(self):
        self.intake = Intake()
        self.ready = Ready()
        self.held = LOBTree()  # {oid: job}
        self.waiters = LOBTree()  # {oid of a job: {oid: (token, job that waits, its queue)}}
        self.watched = LOBTree()  # {oid of a job: jobs that have returned it since it was put}
        self.ids = UniqueIds()
        self.notes = Notes()
        self.quotas = Quotas()
        self.dispatchers = Dispatchers(self)
        self.leases = Leases()
        self.consumers = OOBTree()  # {name: ConsumerRecord}
        self.settings = Settings()

    # put

    def put(
        self,
        item,
        begin_after=None,
        begin_by=None,
        *,
        delay=None,
        priority=None,
        channel=None,
        quota_names=None,
        retries=None,
        failure_log_level=None,
        retry_policy_factory=None,
        id=None,
        on_conflict='raise',
        depends_on=(),
        after=(),
        lease=None,
        result_ttl=None,
        time_limit=None,
    ):
        self._refuse_if_closed()
        job = as_job(item)
        _refuse_unless_new(job)
        if on_conflict not in CONFLICTS:
            raise ValueError(f'on_conflict is one of {CONFLICTS}, not {on_conflict!r}')
        asked = {
            '_begin_by': begin_by,
            '_priority': priority,
            '_channel': channel,
            '_failure_log_level': failure_log_level,
            '_id': id,
            '_lease': lease,
            '_result_ttl': result_ttl,
            '_time_limit': time_limit,
        }
        wishes = {n: CHECKS[n](value) for n, value in asked.items() if value is not None}
        if begin_after is not None or delay is not None:
            wishes['_due'] = checked_due(begin_after, delay, clock.micros())
        if retries is not None or retry_policy_factory is not None:
            wishes['_retries'] = checked_retries(retries, retry_policy_factory)
            wishes['_retry_policy_factory'] = retry_policy_factory
        if depends_on != ():
            wishes['_depends_on'] = _checked_jobs(depends_on, 'depends_on', self._jar()) or None
        if after != ():
            wishes['_after'] = _checked_jobs(after, 'after', self._jar()) or None
        quota_names = job._quota_names if quota_names is None else quota_names
        if quota_names != job._quota_names or quota_names:
            wishes['_quota_names'] = self.quotas.check(quota_names)
        if self.settings.capacity is not None and (id is None or self.ids.get(id) is None):
            self._refuse_if_full()
        return self._put(job, wishes, id, on_conflict)

    def _put(self, job, wishes, id=None, on_conflict='raise'):
        """Put a job with wishes that have been checked: {attribute: value or, unwished, None}."""
        jar = self._jar()
        job.check_args(jar)
        if '_retry_policy_factory' in wishes:
            check_factory(wishes['_retry_policy_factory'], jar)
        if job._p_jar is not None and job._p_jar is not jar:
            raise ValueError(f'{job!r} belongs to another connection than the queue')
        if id is not None:
            other = self._resolve_conflict(id, on_conflict)
            if other is not None:
                return other
        for name, value in wishes.items():
            if value is not None:
                setattr(job, name, value)
        if job._p_jar is None:
            jar.add(job)
        utility = queryUtility(IUUID)
        job.enqueued(self._p_oid, clock.micros(), None if utility is None else utility.bytes)
        self._file(job, keep=False)
        if id is not None:
            self.ids.add(id, job)
        notify(JobAdded(job, self))  # wakes the dispatchers
        return job

    def put_part(self, job, wishes=()):
        """Put a job that belongs to one under way: also while the queue is closed."""
        _refuse_unless_new(job)
        self._put(job, {'_quota_names': self.quotas.check(job._quota_names), **dict(wishes)})

    def _refuse_if_full(self):
        """Raise QueueFull if as many jobs wait as may."""
        capacity = self.settings.capacity
        if capacity is not None and len(self) >= capacity:
            raise QueueFull(
                f'queue {self.name!r} is full: {len(self)} jobs wait, and its capacity is'
                f' {capacity}; try again when some have been taken, or raise queue.capacity'
            )

    def put_callback(self, job, parent):
        """Put `job`, a callback for `parent`, which has finished or is under way."""
        wishes = {'_quota_names': self.quotas.check(job._quota_names), **job.place_beside(parent)}
        if parent._status == status.COMPLETED:
            self._refuse_if_closed()
        else:
            wishes['_after'] = (parent,)
        job._parent = parent
        try:
            self._put(job, wishes)
        except Exception:
            job._parent = None
            raise

    def refuse_if_shut(self):
        """Raise QueueClosed or QueueFull if nothing can be put."""
        self._refuse_if_closed()
        self._refuse_if_full()

    def _refuse_if_closed(self):
        if self.settings.closed:
            raise QueueClosed(f'queue {self.name!r} is closed; set queue.closed = False to open it')

    def _jar(self):
        if self._p_jar is None:
            raise ValueError(
                'this queue is in no database yet, so a job put here could be lost: first'
                ' queues[name] = queue, with the queues at root[KEY], and commit'
            )
        return self._p_jar

    def name_again(self, job):
        """A finished job that has an id is to run again."""
        self._resolve_conflict(job._id, 'raise')
        self.ids.add_again(job._id, job)

    def _resolve_conflict(self, id, on_conflict):
        """The job to keep instead, or None if the way is free."""
        other = self.ids.get(id)
        if other is None:
            return None
        now = other.status
        if on_conflict == 'keep':
            return other
        if on_conflict == 'replace' and now in (status.PENDING, status.HELD):
            self.remove(other)
            return None
        raise DuplicateJobError(
            f'queue {self.name!r} has an unfinished job with id {id!r} ({now} since'
            f' {clock.datetime_of(other._put)}); '
            + (
                'it is running and cannot be replaced'
                if on_conflict == 'replace'
                else "pass on_conflict='keep' or 'replace'"
            )
        )

    # filing: the entry of a job, in a lane

    def file(self, job, keep=True, was_due=False):
        """Leave the entry of a pending job in a lane, under a new token.

        `keep`: it keeps its place among the jobs of its date.  `was_due`: it was
        claimed, so its date had come, whatever the clock of this host says.
        """
        self._file(job, keep, was_due)
        announce(JobFiled(job, self))  # wakes the dispatchers

    def _file(self, job, keep, was_due=False):
        base = job._due if self.settings.order == 'due' else job._put
        us = job._token >> TIE_BITS
        if not (keep and job._token and 0 <= us - base <= DRIFT):
            us = _filings.at_once(base) if base == job._put else _filings.on(base)
        group = group_of(job)
        blocked = (job._depends_on or job._after) and job.blockers()
        deadline = 0 if job._begin_by is None or job._attempts else job._due + job._begin_by
        is_due = was_due or job._due == job._put or job._due <= clock.micros()
        due = 0 if is_due else job._due
        self._leave(job, us, DEPENDS if blocked else due, group, deadline)

    def file_urgently(self, job, due=0, needs=0):
        """Leave an entry for a job that has its result, so that a worker concludes it.

        Not before `due` (microseconds).  `needs`: of the callback that is next (see `hosts`).
        """
        group = (URGENT, job._channel or '', (), needs)
        now = clock.micros()
        self._leave(job, max(now, due), due if due > now else 0, group)
        announce(JobFiled(job, self))

    def _leave(self, job, us, due, group, deadline=0):
        us = bounded(us)
        if job._token == 0 and group[0] != URGENT:
            token = first_token(us)
        else:  # an older entry must never look like this one
            token = next_token(job._token, urgent=group[0] == URGENT)
            if job._token >> TIE_BITS != us:
                token = us << TIE_BITS | token & TIE_MASK
        job._token = token
        self.intake.add(token, due, group, job, deadline)

    def unfile(self, job):
        """Take the entry of a waiting job away, or make it stale where it is sorted."""
        if not self.intake.remove(job.oid, job._token):
            self.ready.dropped.change(1)
        job.outdated()

    def refile(self, job, keep=True):
        """File a waiting job anew, after what decides its place was changed."""
        self.unfile(job)
        self.file(job, keep)

    # look

    def _waiting(self, look=None, with_due=True):
        """Yield (token, job) of waiting jobs in claim order; arguments as for `waiting`."""
        now = clock.micros()
        due, later, blocked = [], [], []
        lanes = (self.intake.entries(look, (lane,)) for lane in range(LANES))
        for _, _, entry in itertools.chain.from_iterable(lanes):
            if entry.due == DEPENDS:
                blocked.append((entry.token, entry.job))
            elif entry.due > now:
                later.append((entry.due, entry.group[0], entry.token, entry.job))
            else:
                due.append((entry.group[0], entry.token, entry.job))
        if with_due:
            for *_, token, job in _merged(due, self.ready.walk(now)):
                yield token, job
        for *_, token, job in _merged(later, self.ready.walk_later(now)):
            yield token, job
        yield from blocked
        queues = (self,) if self.parent is None else self.parent.values()
        for waiting in itertools.chain.from_iterable(queue.waiters.values() for queue in queues):
            for token, job, home in waiting.values():
                if home is self:
                    yield token, job

    def __iter__(self):
        return self.waiting()

    def waiting(self, look=None, states=(status.PENDING,), with_due=True):
        """Yield the waiting jobs in claim order; for monitors, also those in other `states`.

        `with_due`: not only those that are due later, or wait for other jobs.

        `look`: of what no dispatcher has sorted yet, look at so many entries of
        each lane only, the oldest.  A queue that nobody serves may have a
        million of them, and only reading all would tell their order.
        """
        for token, job in self._waiting(look, with_due):
            if is_current(job, token) and job._status in states:
                yield job

    def __len__(self):
        ready = self.ready
        return max(0, self.intake.count() + ready.waiting() - ready.dropped())

    def __bool__(self):
        return True

    def __getitem__(self, index):
        if index < 0:
            return list(self)[index]
        for job in itertools.islice(self, index, None):
            return job
        raise IndexError(f'queue {self.name!r} has {len(self)} waiting jobs')

    def __contains__(self, job):
        return isinstance(job, Job) and job.status == status.PENDING and job.queue is self

    def peek(self):
        return next(iter(self), None)

    # take out

    def pull(self, index=0):
        job = self[index]
        self._take_out(job)
        return job

    def remove(self, job):
        here = isinstance(job, Job) and job._queue_oid is not None and job.queue is self
        if not here or job.status not in (status.PENDING, status.HELD):
            raise LookupError('item not in queue', job)
        self._take_out(job)

    def _take_out(self, job):
        if job._status == status.HELD:
            self.held.pop(job.oid, None)
        else:
            self.unfile(job)
        if job._id is not None:
            self.ids.discard(job._id, job)
        oid = job.oid
        for callback in self.notes.take_late_callbacks(oid):
            if callback.status in (status.PENDING, status.HELD):
                self._take_out(callback)
                job.takes_back(callback)
        if job._outers:
            self.watch(job, job._outers)  # unless it is put again soon, they will fail
        job.taken_out(self.notes.take(oid))
        self._call_back(oid)

    def _call_back(self, oid):
        """The job of that oid will not finish: file those that waited for it.

        In the lanes, where dispatchers of all clients see that something has changed.
        """
        if oid not in self.waiters:
            return
        for token, job, home in self._waiting_for(oid):
            home.ready.waiting.change(-1)
            if is_current(job, token):
                home.file(job)
            else:
                home.ready.dropped.change(-1)

    def clear(self):
        count = 0
        for job in list(self):
            self._take_out(job)
            count += 1
        return count

    def claim(self, filter=None, default=None):
        now = clock.micros()
        if self.is_paused(now):
            return default
        look = Round(self, now)
        untidy = self.intake.is_untidy(now)
        look.sort(late=untidy)
        try:
            job = look.take_first(filter)
        finally:
            if untidy:
                look.file_rest(leave=SORT_LIMIT)  # what came late is found but now
                self.intake.prune(now)
            look.write_count()
        if job is None:
            return default
        job._move(status.ASSIGNED)
        return job

    def consumer(self, name):
        return local.make_consumer(name, [self])

    def putBack(self, job):
        if job._status != status.ASSIGNED or job.queue is not self:
            raise BadStatusError(f'{job!r} is {job.status}: only a claimed job can be put back')
        job.handed_back()

    # settings

    @property
    def closed(self):
        return self.settings.closed

    @closed.setter
    def closed(self, closed):
        self.settings.closed = bool(closed)

    @property
    def order(self):
        return self.settings.order

    @order.setter
    def order(self, order):
        if order not in ORDERS:
            raise ValueError(f'order is one of {ORDERS}, not {order!r}')
        if order != self.settings.order:
            self.settings.order = order
            # Jobs of one microsecond are told apart by the order in which they are filed.
            for job in sorted(self, key=lambda job: job._due if order == 'due' else job._put):
                self.refile(job, keep=False)

    @property
    def handler(self):
        return self.settings.handler

    @handler.setter
    def handler(self, handler):
        self.settings.handler = checked_handler(handler)
        notify(JobFiled(None, self))  # messages that were left to consumers may run now

    @property
    def tube(self):
        return self.settings.tube

    @tube.setter
    def tube(self, tube):
        self.settings.tube = bool(tube)

    @property
    def capacity(self):
        return self.settings.capacity

    @capacity.setter
    def capacity(self, capacity):
        self.settings.capacity = checked_capacity(capacity)

    def pause(self, until=None):
        if until is None:
            self.settings.paused = True
        elif isinstance(until, (int, float, datetime.timedelta)):
            self.settings.paused = clock.micros() + checked_span(until, 'until')
        else:
            self.settings.paused = clock.micros_of(until)

    def unpause(self):
        self.settings.paused = None
        announce(JobFiled(None, self))

    @property
    def paused_until(self):
        paused = self.settings.paused
        return paused if paused in (None, True) else clock.datetime_of(paused)

    def is_paused(self, now):
        """Whether nothing is handed out at `now` (microseconds)."""
        paused = self.settings.paused
        return paused is True or (paused is not None and paused > now)

    # what dispatchers do here

    def await_blockers(self, token, job):
        """Let a job wait for the first unfinished job that it depends on, or sort it in.

        The blocker's record is read as current: if it finishes in a transaction
        that overlaps, this one conflicts and looks again.
        """
        if not is_current(job, token):
            self.ready.dropped.change(-1)
            self.ready.waiting.change(-1)
            return
        if job._begin_by is not None:  # once more at each blocker, which does no harm
            deadline = order_key(job._due + job._begin_by)
            self.ready.deadlines.add(deadline, (token, job))
        blockers = job.blockers()
        if blockers and job.failed_dependency() is None:
            first = blockers[0]
            first._p_jar.readCurrent(first)
            queue = first.queue or self
            waiting = queue.waiters.get(first.oid)
            if waiting is None:
                waiting = queue.waiters[first.oid] = LOBTree()
            former = waiting.get(job.oid)
            if former is not None:  # a withdrawn filing
                former[-1].ready.waiting.change(-1)
                former[-1].ready.dropped.change(-1)
            waiting[job.oid] = (token, job, self)
            return
        group = group_of(job)
        due = 0 if job._due == job._put else job._due  # without a date there is no clock to ask
        self.ready.file(Entry(token, due, group, job), clock.micros())

    def settle_count(self):
        """Forget withdrawn filings that a crash left in the count, when there can be none."""
        ready = self.ready
        if ready.dropped() and not ready.waiting():
            agents = [agent for record in self.dispatchers.values() for agent in record.values()]
            if not any(agent.held_count() for agent in agents):
                ready.dropped.set(0)

    def conclude(self, agent, job):
        """A job that an agent ran has its result: list it, and let others go on.

        A job whose callbacks are not all done is filed for another worker.
        """
        if job._status == status.CALLBACKS:
            self.file_urgently(job)
            return
        failed = job.outcome not in (None, 'success')
        self.keep(agent, job._token, job, clock.micros(), failed, job._result_ttl)
        self.release(job.oid)
        if job._id is not None:
            self.ids.discard(job._id, job)

    def keep(self, agent, token, job, now, failed, ttl):
        """List a finished job in the history of its agent, as long as that is wished."""
        if not agent.history.add(token, job, now, failed, ttl):
            self.notes.drop(int.from_bytes(job._p_oid, 'big'))

    def _waiting_for(self, oid):
        """[(token, job, its queue)] of those that waited for that job, and do no more."""
        waiting = self.waiters.pop(oid)
        found = list(waiting.values())
        waiting.clear()  # so that it conflicts if another dispatcher just adds one
        return found

    def release(self, oid):
        """The job of that oid has finished: jobs that waited for it look again."""
        self._tell_outers(oid)
        if oid not in self.waiters:
            return
        for token, job, home in self._waiting_for(oid):
            home.await_blockers(token, job)
            announce(JobFiled(job, home))

    def is_awaited(self, oid):
        """Whether `release` has something to do for the job of that oid."""
        return oid in self.waiters or oid in self.watched

    def watch(self, job, outers):
        """Jobs that wait for `job`, as they have returned it, are to be told when it is done.

        Not by its worker: its record, which others may be writing now, is not
        written for this.
        """
        known = self.watched.get(job.oid, ())
        self.watched[job.oid] = (*known, *(outer for outer in outers if outer not in known))

    def _tell_outers(self, oid):
        """The job of that oid has finished or was taken out: those end that have returned it.

        Unless it runs again already: then they wait on.
        """
        if oid in self.watched and self._stands(oid) in (status.NEW, status.COMPLETED):
            for ended in self._p_jar.get(p64(oid)).tell(self.watched.pop(oid)):
                announce(JobCompleted(ended))

    def wake_orphans(self):
        """Let go who waits for a job that was taken out, or has ended; whether there were any.

        `_call_back` and `release` do that, but they cannot see who began to wait in the moment
        in which they were committed.
        """
        return self._wake_outers() | self._wake_dependents()

    def _wake_outers(self):
        """Tell those that have returned a job that was taken out, or done unseen."""
        oids = itertools.islice(self.watched.keys(), ORPHAN_LIMIT)
        gone = [oid for oid in oids if self._stands(oid) in (status.NEW, status.COMPLETED)]
        for oid in gone:
            self._tell_outers(oid)
        return bool(gone)

    def _wake_dependents(self):
        oids = list(itertools.islice(self.waiters.keys(), ORPHAN_LIMIT + 1))
        if len(oids) > ORPHAN_LIMIT:  # not always the same ones
            first = random.randint(oids[0], self.waiters.maxKey())
            oids = list(itertools.islice(self.waiters.keys(first), ORPHAN_LIMIT))
        gone = [oid for oid in oids if self._stands(oid) in (status.NEW, status.COMPLETED)]
        for oid in gone:
            self.release(oid)
        return bool(gone)

    def _stands(self, oid):
        """The state in the record of the job of that oid; NEW if it cannot finish any more."""
        try:
            return self._p_jar.get(p64(oid))._status
        except (AttributeError, KeyError):  # its class is gone, or, with a POSKeyError, its record
            return status.NEW

    def stats(self):
        now = clock.micros()
        agents = [agent for record in self.dispatchers.values() for agent in record.values()]
        return {
            'name': self.name,
            'waiting': len(self),
            'later': len(self.ready.later),
            'held': len(self.held),
            'running': sum(len(agent) for agent in agents),
            'claimed': len(self.leases),
            'quotas': {q.name: {'size': q.size, 'len': len(q)} for q in self.quotas.values()},
            'dispatchers': len([r for r in self.dispatchers.values() if r.activated]),
            'agents': len(agents),
            'closed': self.closed,
            'capacity': self.capacity,
            'paused': self.is_paused(now),
            'paused until': self.paused_until,
            'order': self.order,
        }

    def __repr__(self):
        return f'<Queue {self.name!r}>'


@implementer(IQueues)
class Queues(Named):
    """See IQueues."""

    kind = 'queue'
    contract = IQueue

    #: The name of the deployment that may serve these queues, or None for any.
    deployment = None

    #: The `Numbers` by which outsiders know jobs, once there are any.
    numbers = None

    #: Microseconds when the latest pack on a schedule was begun, or None.
    packed = None

    def __init__(self):
        super().__init__()
        self.identity = str(uuid.uuid4())

    def __setitem__(self, name, queue):
        parent = getattr(queue, 'parent', None)
        if parent is not None and (parent is not self or queue.name != name):
            raise ValueError(f'{queue!r} has a place already')
        super().__setitem__(name, queue)
        queue.name, queue.parent = name, self

    def __delitem__(self, name):
        queue = self[name]
        super().__delitem__(name)
        queue.name = queue.parent = None

    def consumer(self, name, watch=('',)):
        if isinstance(watch, str):
            raise TypeError(f'watch is a sequence of names of queues: use [{watch!r}]')
        return local.make_consumer(name, [self[each] for each in dict.fromkeys(watch)])


def _refuse_unless_new(job):
    was_put = job._status != status.NEW or job._queue_oid is not None
    if was_put and job.status != status.NEW:
        raise BadStatusError(f'{job!r} is {job.status}: a job is put once; put a new one')
    if job._parent is not None and job._parent._status != status.COMPLETED:
        raise BadStatusError(f'{job!r} is a callback: it runs when {job._parent!r} is done')


def _merged(new, known):
    """Merge a list and a sorted iterable of (..., job) without comparing jobs."""
    new.sort(key=lambda item: item[:-1])
    return heapq.merge(new, known, key=lambda item: item[:-1])


def group_of(job):
    """The group in which a job is sorted (see `ready`).

    What may have ended its worker runs like what runs at most once: never claimed ahead.
    """
    alone = job.runs_once or (job._interrupted and not job.is_message)
    kind = RUNS_ONCE * bool(alone) | IS_MESSAGE * job.is_message | job.needs
    return job._priority, job._channel or '', job._quota_names, kind


def _checked_jobs(jobs, name, jar):
    jobs = (jobs,) if isinstance(jobs, Job) else tuple(jobs)
    for job in jobs:
        if not isinstance(job, Job):
            raise TypeError(f'{name} holds jobs, not {job!r}')
        if job.status == status.NEW or job.queue is None:
            raise ValueError(f'{name}: {job!r} is new and would never finish: put it first')
    check_storable(jobs, jar, name)
    return jobs
