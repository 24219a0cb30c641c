"""One look at a queue by one dispatcher: sort, pick, list with the agents.

A `Round` lives for one claim transaction.  New entries are read from the lanes
and, together with the sorted ones, handed out in claim order: priority, then
order of filing.  What is claimed leaves its lane or tree for the agent's
`running`; the job's own record is not written.  What is not claimed is sorted
into the trees, unless it is little.

Runs in a dispatcher's claim transaction; the runtime commits.
"""

import heapq
import itertools

from ZODB.broken import Broken

from zodbjobs import status
from zodbjobs.facts import Assignment
from zodbjobs.model import hosts
from zodbjobs.model.call import refuse_broken
from zodbjobs.model.intake import DEPENDS, LANES, URGENT, Entry
from zodbjobs.model.ready import (
    CHANNEL,
    IS_MESSAGE,
    KIND,
    PRIORITY,
    QUOTAS,
    RUNS_ONCE,
    SHARDS,
    shard_of,
)
from zodbjobs.model.tokens import order_key

#: Entries sorted in one round: 15-25 microseconds each, and a claim must stay short.
SORT_LIMIT = 1000

#: So few unclaimed entries stay in their lanes: moving them would cost more
#: than reading them again.
LEFT_IN_LANES = 16

#: How long an entry in a lane is left to the dispatcher whose lane it is.
COURTESY_MICROSECONDS = 50_000

#: So much later may a dispatcher take a job out of the shards of others than out of its own.
SHARD_MICROSECONDS = 2_000_000

#: Jobs that a filter may look at in one round.
FILTER_LIMIT = 1000

#: So many sorted groups behind full quotas are asked again in each round; more are shut.
FULL_LIMIT = 30

#: More of them are not looked at in one round, which must stay short.
FULL_LOOKED_AT = 500

#: Quotas with groups that are shut that one round, or a slow one, looks at in turn.
SOME_QUOTAS, LATE_QUOTAS = 5, 500

#: Jobs whose deadline has passed that are failed in one round.
EXPIRE_LIMIT = 100


class Round:
    """Sort and hand out jobs of `queue` at `now` (microseconds).

    `rank` and `count` spread dispatchers over the lanes: of `count` this is number
    `rank`.  It takes from lanes of others only what they have left there for a
    while, so that they do not fight over every new job; `seen` is a dict that the
    caller keeps from round to round for that.  `complain(what, exception)` is
    called when a filter or a chooser raises.
    """

    def __init__(self, queue, now, rank=0, complain=None, reports_wait=False, count=1, seen=None):
        self.queue = queue
        self.ready = queue.ready
        self.now = now
        self.lanes = [i for i in range(LANES) if i % count == rank % count]
        self.count = min(count, SHARDS)
        self.rank = rank % self.count
        self.seen_before = {} if seen is None else dict(seen)
        self.seen_now = {} if seen is None else seen  # token -> when it was first seen
        self.seen_now.clear()
        self.left_until = None  # when entries in lanes of others may be taken (microseconds)
        self.complain = complain
        self.reports_wait = reports_wait  # of attempts that ended, to be written down
        self.fresh = {}  # group -> [(token, (chunk, key), group, job)], sorted; still in the lanes
        self.rooms = {}  # quota name -> free places
        self.full = {}  # sorted group -> the name of the quota that is full
        self.cleaned = set()  # names of quotas that forgot what runs no more
        self.out_of_use = set()  # oids of chunks in which only a late round finds anything
        self.sorted_count = 0  # entries that came to the trees, less those that left
        self.deadlines = {}  # oid of a job -> Entry, of fresh entries that have a deadline
        self.touched = False  # anything was moved
        self.is_sorted = False  # the lanes were read
        self.hindered = False  # a job was left because its agent still lists it
        #: Without a handler nobody but consumers can do anything with a message.
        self.takes_messages = queue.settings.handler is not None
        self.only_messages = False
        self.hosts = hosts.here()
        self.left = 0  # bits of what jobs need that were left for it

    # sort

    def sort(self, late=False):
        """Read the lanes, with `late` also what came late to them, and move what is due."""
        self.is_sorted = True
        self._open_free(late)
        self.touched |= bool(self.ready.mature(self.now, SORT_LIMIT))
        intake = self.queue.intake
        entries = list(intake.entries(SORT_LIMIT, self.lanes, late))
        self.out_of_use = {chunk._p_oid for chunk in intake.closing.values()} if late else set()
        others = [i for i in range(LANES) if i not in self.lanes]
        if others and len(entries) < SORT_LIMIT:
            foreign = intake.entries(SORT_LIMIT, others)
            entries += foreign if late else filter(self._was_left, foreign)
        for chunk, key, entry in entries:
            if entry.due == DEPENDS:
                del chunk[key]
                self._await(entry)
            elif entry.due > self.now:
                del chunk[key]
                self._file(entry)
            else:
                self.fresh.setdefault(entry.group, []).append(
                    (entry.token, (chunk, key), entry.group, entry.job)
                )
                if entry.deadline:
                    self.deadlines[entry.job._p_oid] = entry
        for group, stream in self.fresh.items():
            stream.sort(key=lambda item: item[0])
            self._open_before(group)

    def _was_left(self, found):
        """Whether an entry lies in a lane of others for longer than courtesy asks."""
        entry = found[2]
        if entry.group[QUOTAS]:  # who waits longest for a place gets it
            return True
        token = entry.token
        since = self.seen_now[token] = self.seen_before.get(token, self.now)
        until = since + COURTESY_MICROSECONDS
        if until <= self.now:
            return True
        self.left_until = min(until, self.left_until or until)
        return False

    def _file(self, entry):
        self.touched = True
        self.ready.file(entry, self.now)
        if entry.deadline:
            self.ready.deadlines.add(order_key(entry.deadline), (entry.token, entry.job))
        self._count(entry.group, 1)

    def _count(self, group, change):
        if group[PRIORITY] != URGENT:
            self.sorted_count += change

    def _await(self, entry):
        self.touched = True
        self.sorted_count += 1
        self.queue.await_blockers(entry.token, entry.job)

    def expire(self):
        """Fail the waiting jobs whose begin_by has passed; returns all jobs that ended by that."""
        ended = []
        for token, job in self.ready.expire(self.now, EXPIRE_LIMIT):
            self.touched = True
            if is_current(job, token) and job.status == status.PENDING:
                ended += job.expired()
        return ended

    # pick

    def pick(self, agent, room, ahead=0, overtaking=(0, 0)):
        """Claim up to `room` jobs for the free threads of `agent`, and `ahead` more.

        And then, of `overtaking`, (priority, how many), so many whose priority is a
        smaller number.  Returns the Assignments.  A job that must run at most once
        is claimed for a free thread only.
        """
        if agent.chooser is None:
            return self._pick(agent, room, ahead, overtaking)
        # What only has its callbacks to tell is nothing to choose.
        found = self._pick(agent, room, 0, last_priority=URGENT)
        return found + self._choose(agent, room - len(found))

    def _pick(self, agent, room, ahead, overtaking=(0, 0), last_priority=1 << 40):
        taken, stale, oids = [], [], set()
        before, most = overtaking[0], room + ahead + overtaking[1]
        looked = 0
        for token, place, group, job in self._candidates(agent):
            if group[PRIORITY] > last_priority:
                break
            if len(taken) >= room + ahead and (len(taken) >= most or group[PRIORITY] >= before):
                break
            if len(taken) >= room and group[KIND] & RUNS_ONCE:
                continue
            if job._p_oid in oids or self._is_hindered(agent, token, job):
                continue
            if not self._has_room(group):
                continue
            if agent.filter is not None:
                looked += 1
                if looked > FILTER_LIMIT:
                    break
                if was_withdrawn(job, token):
                    stale.append((token, place, group, job))
                    continue
                if not self._accepts(agent.filter, job):
                    continue
            taken.append((token, place, group, job))
            oids.add(job._p_oid)
            self._occupy(group, token, job)
        for item in stale:
            self._discard(*item)
        return [self._hand_out(agent, item, i >= room) for i, item in enumerate(taken)]

    def _discard(self, token, place, group, job):
        """Take a filing that was withdrawn away: a filter need not look at it again."""
        if isinstance(place, int):  # in a lane there is none
            self.ready.take(group, place)
            self._count(group, -1)
            self.ready.forget_stale(token)
            self.touched = True

    def _is_hindered(self, agent, token, job):
        """Whether the agent lists another filing of the job: one of the two is stale.

        What ended must be written down before the job is listed anew (see
        `Look`).  Then a filing that is current takes the place of the other.
        """
        if int.from_bytes(job._p_oid, 'big') not in agent.running:
            return False
        self.hindered |= self.reports_wait
        return self.reports_wait or not is_current(job, token)

    def _candidates(self, agent):
        """Yield (token, place, group, job) in claim order from lanes and trees.

        `place` is (chunk, key), or the slot in the group's tree.
        """
        channels = agent.channels
        fresh = [
            ((group[PRIORITY], item[0]), item)
            for group, items in self.fresh.items()
            if (channels is None or group[CHANNEL] in channels) and self._is_for_us(group)
            for item in items
        ]
        fresh.sort(key=_place)
        known = self.ready.candidates(channels, self._may_be_taken, self._penalty)
        for _, item in heapq.merge(fresh, known, key=_place):
            yield item

    def _may_be_taken(self, group):
        """Whether a sorted group is for us and has room; notes a quota that is full."""
        if not self._is_for_us(group):
            return False
        if len(self.full) >= FULL_LOOKED_AT:  # those are shut now, and the next round goes on
            self.hindered = True
            return False
        for name in group[QUOTAS]:
            if self._room(name) < 1:
                self.full[group] = name
                return False
        return True

    def _penalty(self, group):
        """How much later than it was a filing in that tree counts, as others come here first."""
        ours = self.count == 1 or group[QUOTAS] or shard_of(group) % self.count == self.rank
        return 0 if ours else order_key(SHARD_MICROSECONDS)

    def _is_for_us(self, group):
        kind = group[KIND]
        if not kind:
            return not self.only_messages
        missing = hosts.missing(kind, self.hosts)
        if missing:
            self.left |= missing
            return False
        return self.takes_messages if kind & IS_MESSAGE else not self.only_messages

    def _has_room(self, group):
        return all(self._room(name) > 0 for name in group[QUOTAS])

    def _room(self, name, clean=True):
        """How many places a quota has; with `clean` also those of jobs that nobody has retired."""
        quota = self.queue.quotas.get(name)
        if quota is None:
            return 1
        if name not in self.rooms:
            self.rooms[name] = quota.room()
        if clean and self.rooms[name] < 1 and name not in self.cleaned:
            self.cleaned.add(name)
            self.rooms[name] += quota.clean()
        return self.rooms[name]

    def _occupy(self, group, token, job):
        for name in group[QUOTAS]:
            self.rooms[name] = self.rooms.get(name, 0) - 1
            quota = self.queue.quotas.get(name)
            if quota is not None:
                quota.take(token, job)

    def _accepts(self, filter, job):
        try:
            refuse_broken(filter)  # calling what stands for it would accept everything
            return bool(filter(job))
        except Exception as error:  # noqa: BLE001 - user code; the job stays for others
            self._report(f'filter {filter!r} raised for {job!r}', error)
            return False

    def _hand_out(self, agent, item, ahead):
        token, _, group, job = item
        oid = self._take_off(item)
        return self._list(agent, oid, token, job, group[QUOTAS], ahead, group[PRIORITY])

    def _take_off(self, item):
        """Remove an entry from its lane or tree; returns the oid of its job."""
        _, place, group, job = item
        if group[KIND] & RUNS_ONCE and not isinstance(job, Broken):
            job.claimed_once()
        if isinstance(place, int):
            self.ready.take(group, place)
            self._count(group, -1)
        else:
            chunk, key = place
            del chunk[key]
            self.fresh[group].remove(item)
            self.deadlines.pop(job._p_oid, None)
        return int.from_bytes(job._p_oid, 'big')

    def _list(self, agent, oid, token, job, quota_names, ahead, priority):
        if agent.claimed(oid, token, job, ahead, self.now):
            self.ready.dropped.change(-1)
        return Assignment(
            job._p_oid,
            token,
            self.queue.name,
            agent.name,
            quota_names,
            ahead,
            job_class=type(job),
            priority=priority,
        )

    def _choose(self, agent, room):
        """Let the agent's own chooser take jobs from the queue."""
        self.file_rest(leave=0)
        found = []
        while len(found) < room and (job := self._chosen(agent)) is not None:
            job.chosen()
            facts = job.quota_names, False, job.priority
            found.append(self._list(agent, job.oid, job._token, job, *facts))
        self.rooms.clear()  # the chooser's claims took places in quotas
        return found

    def _chosen(self, agent):
        """The job that the chooser claimed and returned, or None; others go back."""
        claims = self.queue._v_claims = []  # filled by `take_first`
        job = None
        try:
            refuse_broken(agent.chooser)
            job = agent.chooser(agent)
            if job is not None and all(job is not claim[-1] for claim in claims):
                raise ValueError(f'{job!r} was returned, and not taken with queue.claim()')
        except Exception as error:  # noqa: BLE001 - user code; the queue goes on
            self._report(f'chooser {agent.chooser!r} of {agent!r} failed', error)
            if getattr(job, '_status', None) == status.NEW:
                self.queue.put(job)  # it was pulled, and would be lost
            job = None
        finally:
            self.queue._v_claims = None
        for claim in claims:
            if claim[-1] is not job and claim[-1]._status == status.ASSIGNED:
                self._unclaim(*claim)
        return job

    def _unclaim(self, token, group, job):
        """Put what a chooser claimed in vain back to its place."""
        job.chosen()
        self.ready.file(Entry(token, 0, group, job), self.now)
        self.sorted_count += 1
        for name in group[QUOTAS]:
            quota = self.queue.quotas.get(name)
            if quota is not None:
                quota.free({(token, job._p_oid)})

    def _report(self, what, error):
        if self.complain is not None:
            self.complain(what, error)

    # after the picks

    def take_first(self, filter=None):
        """Take the first due job off the queue, for IQueue.claim; None if there is none.

        What is urgent is not for choosers, which claim so (see `pick`).
        """
        item = self.first(filter)
        if item is None:
            return None
        self.take(item)
        token, _, group, job = item
        claims = getattr(self.queue, '_v_claims', None)
        if claims is not None:
            claims.append((token, group, job))
        return job

    def first(self, filter=None):
        """The first due (token, place, group, job) that its quotas and `filter` accept, or None."""
        return next(iter(self.some(1, filter)), None)

    def some(self, count, filter=None):
        """The first due (token, place, group, job) as `first` has them, at most `count`.

        Behind one with quotas there is none, as taking it may leave no room.
        Filings that were withdrawn are taken away.
        """
        found, stale = [], []
        candidates = self._candidates(_Anybody)
        for item in itertools.islice(candidates, FILTER_LIMIT):
            token, _, group, job = item
            if group[PRIORITY] == URGENT:
                continue
            if was_withdrawn(job, token):
                stale.append(item)
            elif (
                is_current(job, token) and self._has_room(group) and (filter is None or filter(job))
            ):
                found.append(item)
                if len(found) == count or group[QUOTAS]:
                    break
        for item in stale:
            self._discard(*item)
        return found

    def urgent(self):
        """[(token, place, group, job)] of what has its result already and waits for a worker."""
        candidates = itertools.takewhile(
            lambda item: item[2][PRIORITY] == URGENT, self._candidates(_Anybody)
        )
        return [item for item in candidates if is_current(item[-1], item[0])]

    def take(self, item):
        """Take what `first` found off its lane or tree, and its places in quotas."""
        token, place, group, job = item
        self._occupy(group, token, job)
        self._take_off(item)

    def file_rest(self, leave=LEFT_IN_LANES):
        """Sort what was not claimed, and bring the count of sorted jobs up to date."""
        rest = [item for stream in self.fresh.values() for item in stream]
        came_late = any(chunk._p_oid in self.out_of_use for _, (chunk, _), *_ in rest)
        if len(rest) > leave or self.deadlines or came_late:
            for token, (chunk, key), group, job in rest:
                del chunk[key]
                self._file(self.deadlines.get(job._p_oid) or Entry(token, 0, group, job))
            self.fresh = {}
            self.deadlines = {}
        self._shut_full()
        self.write_count()
        self.queue.settle_count()

    def _shut_full(self):
        """Let claims not come by at groups behind full quotas, where there are many of them."""
        if len(self.full) > FULL_LIMIT:
            for group, name in self.full.items():
                if self._room(name) < 1:
                    self.touched |= self.ready.groups.shut(group, name)
        self.full = {}

    def _open_free(self, late):
        """Let claims come by again where a quota that shut groups has room."""
        ready = self.ready
        names = ready.groups.shut_quotas(ready.looked_at, LATE_QUOTAS if late else SOME_QUOTAS)
        for name in names:
            if self._room(name, clean=False) > 0:
                self.touched |= bool(ready.groups.open(name))
        ready._v_looked_at = names[-1] if names else ''

    def _open_before(self, group):
        """Who waits at a group that was shut gets a place before one that came later."""
        groups = self.ready.groups
        for name in group[QUOTAS]:
            if groups.has_shut(name) and self._room(name) > 0:
                self.touched |= bool(groups.open(name))

    def write_count(self):
        """Bring the queue's count of sorted jobs up to date."""
        if self.sorted_count:
            self.ready.waiting.change(self.sorted_count)
            self.sorted_count = 0


def is_current(job, token):
    """Whether `token` is that of the job's latest filing; not for a job whose class is gone."""
    return getattr(job, '_token', None) == token


def was_withdrawn(job, token):
    """Whether a filing counts no more; not for a job whose class is gone: a worker says so."""
    return getattr(job, '_token', token) != token


class _Anybody:
    """An agent without wishes."""

    channels = None


def _place(item):
    return item[0]
