"""A queue in two connections against a plain model of it, with any order of deeds and commits.

Each side keeps a transaction open, in which it does what applications and
dispatchers do.  The model of what is committed is a dictionary of `Plan`s; a side's
view of it is a copy taken when its transaction began, changed by its own deeds.
A commit that succeeds merges what it changed into the model; one that conflicts
has done nothing.  After each deed the side must see its view, after each commit a third
connection must see the model.

A claim writes no job, so it may meet a change that made it stale: the model keeps
the number of a job's filings, and a claim counts while it is for the latest one.

``ZODBJOBS_MACHINE=examples,steps`` makes it search longer; ``file`` behind that
uses a FileStorage, the default is a DemoStorage.
"""

import copy
import dataclasses
import datetime
import itertools
import os

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from ZODB.DemoStorage import DemoStorage
from ZODB.FileStorage import FileStorage
from ZODB.POSException import ConflictError

from tests.model.support import SECOND, House, TurnedClock, work
from zodbjobs import Failure, Queue, clock, status
from zodbjobs.interfaces import DuplicateJobError
from zodbjobs.model.ready import PRIORITY, URGENT
from zodbjobs.model.tokens import is_counted
from zodbjobs.runtime import ended

EXAMPLES, STEPS, *STORAGE = os.environ.get('ZODBJOBS_MACHINE', '30,40').split(',')

QUOTAS = {'one': 1, 'two': 2}
CHANNELS = (None, 'mail')

#: Where a planned job is.
WAITING, HELD, ASSIGNED, DONE, OUT = 'waiting', 'held', 'assigned', 'done', 'out'
UNFINISHED = (WAITING, HELD, ASSIGNED)

#: A gate of a job that waits for others: in the lanes, not looked at yet.
IN_LANE = 'in lane'


@dataclasses.dataclass
class Plan:
    """What should be known of a job."""

    number: int
    due: int
    put: int  # a number that grows from filing to filing
    priority: int
    channel: str | None
    quotas: tuple
    id: str | None
    depends: tuple
    place: str = WAITING
    filing: int = 0
    gate: object = None  # None, IN_LANE, or the number of the job it waits for
    good: bool = True
    urgent: bool = False  # it has a result, and an entry so that a worker tells it

    @property
    def order(self):
        return self.priority, self.due, self.put


class Plans:
    """The model: jobs by number, and what the agents of the sides list."""

    def __init__(self):
        self.jobs = {}
        self.lists = [{}, {}]  # of each side: {number: (filing, urgent, ahead)}
        self.sizes = dict(QUOTAS)
        self.wishes = [CHANNELS, CHANNELS]  # of each side's agent
        self.told = set()  # numbers of the jobs in a history

    # looking

    def holder(self, plan):
        """(filing, urgent, ahead) of the claim that counts for a job, or None."""
        for claims in self.lists:
            claim = claims.get(plan.number)
            if claim is not None and claim[0] == plan.filing:
                return claim
        return None

    def waiting(self):
        return [
            plan
            for plan in self.jobs.values()
            if plan.place == WAITING and self.holder(plan) is None
        ]

    def due(self, now):
        found = [plan for plan in self.waiting() if plan.gate is None and plan.due <= now]
        return sorted(found, key=lambda plan: plan.order)

    def later(self, now):
        found = [plan for plan in self.waiting() if plan.gate is None and plan.due > now]
        return sorted(found, key=lambda plan: (plan.due, plan.priority, plan.put))

    def gated(self):
        return [plan for plan in self.waiting() if plan.gate is not None]

    def stale_claims(self):
        """Claims that count no more and are still listed; urgent ones never did count."""
        return [
            (side, number)
            for side, claims in enumerate(self.lists)
            for number, (filing, urgent, _) in claims.items()
            if filing != self.jobs[number].filing and not urgent
        ]

    def running(self, quota):
        """How many places of a quota are taken by jobs that run."""
        return sum(
            quota in plan.quotas
            and (
                plan.place == ASSIGNED or (plan.place == WAITING and self.holder(plan) is not None)
            )
            for plan in self.jobs.values()
        )

    def has_room(self, plan):
        return all(self.running(quota) < self.sizes[quota] for quota in plan.quotas)

    def status(self, plan):
        if plan.place == WAITING:
            claim = self.holder(plan)
            if claim is None:
                return status.PENDING
            return status.ASSIGNED if claim[2] else status.ACTIVE
        return {
            HELD: status.HELD,
            ASSIGNED: status.ASSIGNED,
            DONE: status.COMPLETED,
            OUT: status.NEW,
        }[plan.place]

    def named(self, id):
        """The unfinished job of that id, or None."""
        found = [plan for plan in self.jobs.values() if plan.id == id and plan.place in UNFINISHED]
        assert len(found) < 2, f'two unfinished jobs have the id {id!r}'
        return found[0] if found else None

    # deeds of a side, done to its view

    def blockers(self, plan):
        return [n for n in plan.depends if self.jobs[n].place in UNFINISHED]

    def refused(self, plan):
        """Whether a job it depends on has ended badly, so that it need not wait."""
        return any(
            self.jobs[n].place == OUT or (self.jobs[n].place == DONE and not self.jobs[n].good)
            for n in plan.depends
        )

    def file(self, number, **changes):
        """A job is filed (anew)."""
        plan = self.jobs[number]
        for name, value in changes.items():
            setattr(plan, name, value)
        plan.filing += 1
        plan.place = WAITING
        plan.gate = IN_LANE if self.blockers(plan) else None

    def look_again(self, number):
        """A dispatcher looks whether a job must wait for another."""
        plan = self.jobs[number]
        blockers = self.blockers(plan)
        plan.gate = blockers[0] if blockers and not self.refused(plan) else None

    def sort(self):
        for plan in self.waiting():
            if plan.gate == IN_LANE:
                self.look_again(plan.number)

    def release(self, number):
        for plan in self.waiting():
            if plan.gate == number and plan.gate != IN_LANE:
                self.look_again(plan.number)

    def wake(self):
        for plan in self.waiting():
            if plan.gate not in (None, IN_LANE) and self.jobs[plan.gate].place in (OUT, DONE):
                self.look_again(plan.number)

    def leave(self, number, place, good=True):
        """A job leaves its place in the queue: taken out, held or ended."""
        plan = self.jobs[number]
        plan.filing += 1
        plan.place, plan.good = place, good
        plan.gate = None
        if place == OUT:
            for other in self.waiting():
                if other.gate == number and other.gate != IN_LANE:
                    self.file(other.number)
        if place == DONE:
            plan.urgent = True

    def retire(self, side, number, kind):
        del self.lists[side][number]
        if kind == ended.FINISHED:
            self.told.add(number)
            self.release(number)

    def hand_back(self, side):
        """All that an agent lists goes back."""
        for number, (filing, _, _) in list(self.lists[side].items()):
            plan = self.jobs[number]
            del self.lists[side][number]
            if filing == plan.filing:
                if plan.place == DONE:
                    self.told.add(number)
                    self.release(number)
                else:
                    self.file(number)

    # the commit

    def merge(self, base, view):
        """Take over what a transaction changed, which began at `base` and ended as `view`."""
        for number, plan in view.jobs.items():
            self.merge_job(number, base.jobs.get(number), plan)
        claimed = set()
        for side, claims in enumerate(view.lists):
            former = base.lists[side]
            for number in former.keys() | claims.keys():
                if claims.get(number) == former.get(number):
                    continue
                if number in former:
                    self.lists[side].pop(number, None)
                if number not in claims:
                    continue
                assert number not in self.lists[side], f'job {number} is listed twice'
                filing, urgent, _ = claims[number]
                plan = self.jobs[number]
                if not urgent and filing == plan.filing:
                    assert self.holder(plan) is None, f'job {number} was handed out twice'
                    assert plan.place == WAITING, f'job {number} was handed out in vain'
                    claimed.update(plan.quotas)
                self.lists[side][number] = claims[number]
        limits = {quota: max(size, view.sizes[quota]) for quota, size in self.sizes.items()}
        for quota, size in view.sizes.items():
            if size != base.sizes[quota]:
                self.sizes[quota] = size
        self.told |= view.told
        for side, channels in enumerate(view.wishes):
            if channels != base.wishes[side]:
                self.wishes[side] = channels
        for plan in self.jobs.values():
            if plan.place == ASSIGNED and base.jobs.get(plan.number, plan).place != ASSIGNED:
                assert self.holder(plan) is None, f'job {plan.number} was claimed twice'
                claimed.update(plan.quotas)
        for quota in claimed:
            running, size = self.running(quota), limits[quota]
            assert running <= size, f'{running} jobs of quota {quota!r} run, {size} may'

    def merge_job(self, number, former, plan):
        if former is None:
            self.jobs[number] = copy.copy(plan)
            return
        mine = self.jobs[number]
        same_filing = mine.filing == former.filing
        for name, value in vars(plan).items():
            # Where an entry lies is not written in the job, and means nothing for another filing.
            if value != getattr(former, name) and (same_filing or name not in ('gate', 'urgent')):
                setattr(mine, name, value)


class Partner:
    """One side: its connection, its view, and what it did since its transaction began."""

    def __init__(self, side, number):
        self.side = side
        self.number = number
        self.assignments = []  # (number, urgent, Assignment) of committed claims, for workers
        self.reports = []  # of attempts that were committed, not yet written down

    def begin(self, plans, serial):
        self.side.begin()
        self.base, self.view = copy.deepcopy(plans), copy.deepcopy(plans)
        self.writes = set()  # numbers of the jobs whose records were written
        self.puts_only = True
        self.serial = serial
        # of this transaction:
        self.fresh_assignments = []
        self.begun = []  # assignments that a worker took
        self.fresh_reports = []
        self.retired = 0  # so many of the reports were written down

    def committed(self):
        self.assignments += self.fresh_assignments
        self.reports = self.reports[self.retired :] + self.fresh_reports

    def aborted(self):
        self.assignments += self.begun

    def do(self, name, *args, writes=(), **kwargs):
        """Do a deed of `Plans`, which writes the records of the jobs `writes`."""
        getattr(self.view, name)(*args, **kwargs)
        self.writes |= set(writes)


#: What follows a deed: most often its commit, or the other side's turn.
THEN = st.sampled_from(['commit', 'commit', 'commit', 'stay', 'stay', 'abort'])


#: name of a deed -> what is drawn for it, and when it can do something in a side's view.
DEEDS = {}


def deed(able=None, weight=1, **strategies):
    """Note a deed of a side among the `DEEDS`; it comes `weight` times as often as others."""

    def make(do):
        DEEDS[do.__name__] = (able or (lambda partner: True), weight, strategies)
        return do

    return make


def some(*places):
    """For a deed that needs a job in one of these places."""
    return lambda partner: any(plan.place in places for plan in partner.view.jobs.values())


def waits(partner):
    return bool(partner.view.waiting())


def has_work(partner):
    return bool(partner.assignments)


#: What is drawn for a put.
PUTS = {
    'priority': st.sampled_from([None, None, 1, 2**31, 2**32 - 1]),
    'when': st.sampled_from([None, None, -60, 2.5, 2.5]),
    'channel': st.sampled_from(CHANNELS),
    'quotas': st.sampled_from([(), (), ('one',), ('two',), ('one', 'two')]),
    'depends': st.sampled_from([0, 0, 0, 1, 2]),
    'choice': st.integers(0, 1000),
}


class QueueMachine(RuleBasedStateMachine):
    """See the module."""

    house = None  # one for all examples; each has a queue of its own

    def __init__(self):
        super().__init__()
        self.numbers = itertools.count()
        self.puts = itertools.count()

    @initialize(
        first=st.lists(st.fixed_dictionaries(PUTS), min_size=2, max_size=4),
        second=st.lists(st.fixed_dictionaries(PUTS), min_size=1, max_size=4),
    )
    def open(self, first, second):
        self.make_queue()
        for partner, puts in zip(self.partners, (first, second), strict=True):
            for drawn in puts:
                self.put(partner, **drawn)
            assert self.try_commit(partner)

    def make_queue(self):
        name = f'queue {len(self.house.first.queues)}'
        self.house.first.begin()
        queue = self.house.first.queues[name] = Queue()
        for quota, size in QUOTAS.items():
            queue.quotas.create(quota, size)
        self.plans = Plans()
        self.jobs = {}  # number -> oid
        self.names = {}  # oid -> number
        self.commits = []  # of each: the numbers of the jobs it wrote
        self.watcher = self.house.sides[3]
        self.partners = [Partner(self.house.sides[i + 1], i) for i in range(2)]
        for each in (self.house.first, self.watcher, *(p.side for p in self.partners)):
            each.queue_name = name
        self.house.first.commit()
        for partner in self.partners:
            partner.side.begin()
            assert partner.side.agent is not None
            partner.side.commit()
        for partner in self.partners:
            partner.begin(self.plans, 0)

    # helpers

    def job(self, partner, number):
        return partner.side.connection.get(self.jobs[number])

    def pick(self, plans, choice):
        """One of the plans, by a drawn number; None if there is none."""
        return plans[choice % len(plans)] if plans else None

    def numbers_of(self, jobs):
        return [self.names[job._p_oid] for job in jobs]

    def check(self, side, plans):
        """Whether `side` sees `plans`."""
        queue, now = side.queue, clock.micros()
        expected = [plan.number for plan in (*plans.due(now), *plans.later(now))]
        found = self.numbers_of(queue)
        assert found[: len(expected)] == expected, 'the order is wrong'
        gated = [plan.number for plan in plans.gated()]
        assert sorted(found[len(expected) :]) == sorted(gated)
        assert len(queue) == max(0, len(found) - len(plans.stale_claims()))
        self.check_count(queue)
        peeked = queue.peek()
        assert (peeked and self.names[peeked._p_oid]) == (found[0] if found else None)
        held = [plan.number for plan in plans.jobs.values() if plan.place == HELD]
        assert sorted(self.numbers_of(queue.held.values())) == sorted(held)
        for plan in plans.jobs.values():
            job = side.connection.get(self.jobs[plan.number])
            assert job.status == plans.status(plan), f'job {plan.number}'
            assert (job in queue) == (job.status == status.PENDING)
        for partner in self.partners:
            agent = queue.dispatchers[partner.side.uuid]['main']
            listed = {oid: token for oid, token, *_ in agent.entries()}
            claims = plans.lists[partner.number]
            assert {self.names[oid.to_bytes(8, 'big')] for oid in listed} == set(claims)
            for number, (filing, _, _) in claims.items():
                job = side.connection.get(self.jobs[number])
                current = listed[job.oid] == job._token
                assert current == (filing == plans.jobs[number].filing), f'claim of {number}'

    def check_count(self, queue):
        """Whether each filing that was withdrawn is counted as long as it stands or is listed."""
        ready = queue.ready
        standing = [
            (token, job)
            for group in ready.groups
            for token, _, _, job in ready.stream(group)
            if group[PRIORITY] != URGENT
        ]
        later = ready.later.values()
        standing += [(token, job) for token, group, job in later if group[PRIORITY] != URGENT]
        for waiting in queue.waiters.values():
            standing += [(token, job) for token, job, _ in waiting.values()]
        agents = [queue.dispatchers[partner.side.uuid]['main'] for partner in self.partners]
        listed = [entry[1:3] for agent in agents for entry in agent.entries()]
        listed = [(token, job) for token, job in listed if is_counted(token)]
        stale = [job for token, job in standing + listed if job._token != token]
        assert (ready.waiting(), ready.dropped()) == (len(standing), len(stale))

    def after(self, partner):
        self.check(partner.side, partner.view)

    # putting

    @deed()
    def nothing(self, partner):
        """So that what stayed is committed, or aborted."""

    @deed(lambda partner: len(partner.view.waiting()) < 12, weight=3, **PUTS)
    def put(self, partner, priority, when, channel, quotas, depends, choice):
        others = [plan for plan in partner.view.jobs.values() if plan.place != OUT]
        blockers = tuple(
            {self.pick(others, choice + n).number: None for n in range(depends) if others}
        )
        self.put_job(
            partner, when, priority=priority, channel=channel, quota_names=quotas,
            depends_on=[self.job(partner, number) for number in blockers],
        )  # fmt: skip

    def put_job(self, partner, when, **wishes):
        now = clock.micros()
        due = now if when is None or when < 0 else now + round(when * SECOND)
        if when is not None:
            wishes['begin_after'] = clock.now() + datetime.timedelta(seconds=when)
        job = partner.side.queue.put(work, **wishes)
        number = next(self.numbers)
        self.jobs[number], self.names[job._p_oid] = job._p_oid, number
        plan = Plan(
            number=number, due=due, put=next(self.puts),
            priority=2**31 if wishes.get('priority') is None else wishes['priority'],
            channel=wishes.get('channel'), quotas=tuple(wishes.get('quota_names', ())),
            id=wishes.get('id'),
            depends=tuple(self.names[each._p_oid] for each in wishes.get('depends_on', ())),
        )  # fmt: skip
        note(f'side {partner.number} puts {plan}')
        partner.view.jobs[number] = plan
        plan.gate = IN_LANE if partner.view.blockers(plan) else None
        if plan.id is not None:
            partner.puts_only = False
        self.after(partner)

    @deed(
        weight=3,
        id=st.sampled_from('ab'),
        on_conflict=st.sampled_from(['raise', 'keep', 'replace', 'replace']),
    )
    def put_with_id(self, partner, id, on_conflict):
        other = partner.view.named(id)
        partner.puts_only = False
        if other is not None:
            waits = partner.view.status(other) in (status.PENDING, status.HELD)
            if on_conflict == 'keep':
                kept = partner.side.queue.put(work, id=id, on_conflict='keep')
                assert kept._p_oid == self.jobs[other.number]
                return
            if on_conflict == 'raise' or not waits:
                with pytest.raises(DuplicateJobError):
                    partner.side.queue.put(work, id=id, on_conflict=on_conflict)
                self.after(partner)
                return
            partner.do('leave', other.number, OUT, writes=self.touched(partner, other))
        self.put_job(partner, None, id=id, on_conflict=on_conflict)

    def touched(self, partner, plan):
        """The jobs whose records a removal of `plan` writes: those that wait for it are filed."""
        waits = [other.number for other in partner.view.waiting() if other.gate == plan.number]
        return {plan.number, *waits}

    # taking out, setting aside

    @deed(waits, weight=2, choice=st.integers(0, 1000), deed=st.sampled_from(['pull', 'remove']))
    def take_out(self, partner, choice, deed):
        queue, view = partner.side.queue, partner.view
        found = self.numbers_of(queue)
        if deed == 'remove':
            found += [plan.number for plan in view.jobs.values() if plan.place == HELD]
        if not found:
            with pytest.raises(IndexError):
                queue.pull()
            return
        index = choice % len(found)
        plan = view.jobs[found[index]]
        if deed == 'pull':
            assert self.names[queue.pull(index - len(found) * (choice % 2))._p_oid] == plan.number
        else:
            queue.remove(self.job(partner, plan.number))
        note(f'side {partner.number} takes {plan.number} out')
        partner.puts_only = False
        partner.do('leave', plan.number, OUT, writes=self.touched(partner, plan))
        self.after(partner)

    @deed(some(OUT), choice=st.integers(0, 1000))
    def put_again(self, partner, choice):
        out = [p for p in partner.view.jobs.values() if p.place == OUT and p.id is None]
        plan = self.pick(out, choice)
        if plan is not None:
            partner.side.queue.put(self.job(partner, plan.number))
            note(f'side {partner.number} puts {plan.number} again')
            partner.puts_only = False
            partner.do(
                'file', plan.number, due=clock.micros(), put=next(self.puts), writes=[plan.number]
            )
            self.after(partner)

    @deed(
        waits,
        weight=3,
        choice=st.integers(0, 1000),
        change=st.sampled_from(
            [
                {'priority': 1},
                {'priority': 2**31},
                {'channel': 'mail'},
                {'channel': None},
                {'quota_names': ()},
                {'quota_names': ('one',)},
                {'quota_names': ('two',)},
                {'begin_after': 4.5},
                {'begin_after': 0},
            ]
        ),
    )
    def change(self, partner, choice, change):
        plan = self.pick(partner.view.waiting(), choice)
        if plan is None:
            return
        ((name, value),) = change.items()
        job = self.job(partner, plan.number)
        note(f'side {partner.number} changes {name} of {plan.number} to {value}')
        if name == 'begin_after':
            # half a second off, so that no put is for the same instant
            moment = clock.micros() + round((value or -0.5) * SECOND)
            job.begin_after = clock.datetime_of(moment)
            changes = {'due': moment, 'put': next(self.puts)}
        else:
            setattr(job, name, value)
            changes = {'quotas' if name == 'quota_names' else name: value}
        partner.puts_only = False
        partner.do('file', plan.number, writes=[plan.number], **changes)
        self.after(partner)

    @deed(waits, weight=2, choice=st.integers(0, 1000))
    def hold(self, partner, choice):
        plan = self.pick(partner.view.waiting(), choice)
        if plan is not None:
            note(f'side {partner.number} holds {plan.number}')
            self.job(partner, plan.number).hold()
            partner.puts_only = False
            partner.do('leave', plan.number, HELD, writes=[plan.number])
            self.after(partner)

    @deed(some(HELD), weight=2, choice=st.integers(0, 1000))
    def resume(self, partner, choice):
        plan = self.pick([p for p in partner.view.jobs.values() if p.place == HELD], choice)
        if plan is not None:
            note(f'side {partner.number} resumes {plan.number}')
            self.job(partner, plan.number).resume()
            partner.puts_only = False
            partner.do('file', plan.number, writes=[plan.number])
            self.after(partner)

    @deed(some(WAITING, HELD, ASSIGNED), choice=st.integers(0, 1000))
    def cancel(self, partner, choice):
        view = partner.view
        able = [
            plan
            for plan in view.jobs.values()
            if plan.place in UNFINISHED and view.holder(plan) is None
        ]
        plan = self.pick(able, choice)
        if plan is not None:
            note(f'side {partner.number} cancels {plan.number}')
            self.job(partner, plan.number).cancel()
            partner.puts_only = False
            partner.do('leave', plan.number, DONE, good=False, writes=[plan.number])
            self.after(partner)

    @deed(some(DONE), choice=st.integers(0, 1000))
    def retry(self, partner, choice):
        """A job that has failed is to run again, perhaps before anybody has listed it."""
        view = partner.view
        able = [
            plan
            for plan in view.jobs.values()
            if plan.place == DONE
            and not plan.good
            and (view.holder(plan) is None or view.holder(plan)[1])  # told by another worker
            and not self.is_at_work(plan.number)
            and (plan.id is None or view.named(plan.id) is None)
        ]
        plan = self.pick(able, choice)
        if plan is not None:
            note(f'side {partner.number} retries {plan.number}')
            self.job(partner, plan.number).retry()
            partner.puts_only = False
            now = clock.micros()
            partner.do(
                'file', plan.number, due=now, put=next(self.puts), urgent=False,
                writes=[plan.number],
            )  # fmt: skip
            self.after(partner)

    def is_at_work(self, number):
        """Whether an attempt of a job has not been written down yet.

        While it is so, and the job runs again, the count is not exact.
        """
        assignments = [
            assignment
            for partner in self.partners
            for assignment in (
                *(mine[-1] for mine in partner.assignments + partner.begun),
                *(mine[-1] for mine in partner.fresh_assignments),
                *(report.assignment for report in partner.reports + partner.fresh_reports),
            )
        ]
        return any(
            assignment.oid == self.jobs[number] and is_counted(assignment.token)
            for assignment in assignments
        )

    @deed(quota=st.sampled_from([*QUOTAS]), size=st.integers(0, 3))
    def resize(self, partner, quota, size):
        partner.side.queue.quotas[quota].size = size
        partner.puts_only = False
        partner.view.sizes[quota] = size

    @deed(channels=st.sampled_from([CHANNELS, [None], ['mail']]))
    def specialise(self, partner, channels):
        """The side's agent is to take jobs of these channels only."""
        partner.side.agent.channels = None if channels is CHANNELS else channels
        partner.puts_only = False
        partner.view.wishes[partner.number] = channels

    # claiming without an agent

    @deed(waits, only=st.sampled_from([None, 1]))
    def claim(self, partner, only):
        partner.puts_only = False
        partner.do('sort')
        view = partner.view
        able = [
            plan
            for plan in view.due(clock.micros())
            if view.has_room(plan) and (only is None or plan.priority == only)
        ]
        nothing = object()
        filter = None if only is None else lambda job: job.priority == only
        job = partner.side.queue.claim(filter, nothing)
        if not able:
            assert job is nothing
        else:
            note(f'side {partner.number} claims {able[0].number}')
            assert job is not nothing, f'job {able[0].number} was not claimed'
            assert self.names[job._p_oid] == able[0].number
            able[0].place = ASSIGNED
            partner.writes.add(able[0].number)
        self.after(partner)

    @deed(some(ASSIGNED), choice=st.integers(0, 1000))
    def put_back(self, partner, choice):
        plan = self.pick([p for p in partner.view.jobs.values() if p.place == ASSIGNED], choice)
        if plan is not None:
            note(f'side {partner.number} puts {plan.number} back')
            partner.side.queue.putBack(self.job(partner, plan.number))
            partner.puts_only = False
            partner.do('file', plan.number, writes=[plan.number])
            self.after(partner)

    # what dispatchers do

    @deed(
        weight=8,
        room=st.sampled_from([1, 2, 9, 0]),
        ahead=st.sampled_from([0, 0, 2]),
        leave=st.sampled_from([0, 0, 16]),
    )
    def hand_out(self, partner, room, ahead, leave):
        """Retire what ended, sort, and claim for the agent."""
        partner.puts_only = False
        side, view = partner.side, partner.view
        self.write_reports(partner)
        side.queue.wake_orphans()
        partner.do('wake')
        partner.do('sort')
        look = side.look()
        look.expire()
        look.sort()
        found = look.pick(side.agent, room, ahead)
        look.file_rest(leave)
        self.check_claims(partner, view, room, ahead, found)
        self.after(partner)

    def write_reports(self, partner):
        reports = partner.reports[partner.retired :]
        partner.retired = len(partner.reports)
        running = partner.side.agent.running
        for report in reports:
            number = self.names[report.assignment.oid]
            entry = running.get(int.from_bytes(report.assignment.oid, 'big'))
            if entry is not None and entry[0] == report.assignment.token:
                partner.do('retire', partner.number, number, report.kind)
        partner.side.retire(*reports)

    def check_claims(self, partner, view, threads, ahead, found):
        """Whether the Assignments `found` are the right ones, and list them."""
        room = threads + ahead
        assert len(found) <= room
        mine = view.lists[partner.number]
        stale, claimed = [], []
        for assignment in found:
            job = partner.side.connection.get(assignment.oid)
            (claimed if job._token == assignment.token else stale).append((job, assignment))
        order = [plan for plan in view.jobs.values() if plan.urgent]
        urgent = {plan.number for plan in order}
        order += view.due(clock.micros())
        order = [plan for plan in order if plan.channel in view.wishes[partner.number]]
        note(f'side {partner.number} is handed {self.numbers_of(job for job, _ in claimed)}')
        taken = {self.names[job._p_oid]: assignment for job, assignment in claimed}
        rooms = {quota: size - view.running(quota) for quota, size in view.sizes.items()}
        for _, assignment in stale:
            for quota in assignment.quota_names:
                rooms[quota] -= 1
        stale_numbers = {self.names[job._p_oid] for job, _ in stale}
        expected = []
        for plan in order:
            quotas = () if plan.number in urgent else plan.quotas
            if plan.number in taken:
                expected.append(plan.number)
                for quota in quotas:
                    rooms[quota] -= 1
                continue
            # it was passed over: because of a quota, or an entry of its own that went first,
            # or it was interrupted, and there was no thread for it
            full = any(rooms[quota] < 1 for quota in quotas)
            full |= self.job(partner, plan.number)._interrupted and len(found) >= threads
            if not full and plan.number not in stale_numbers:
                assert len(found) == room, f'job {plan.number} was passed over'
        assert set(taken) == set(expected), 'what was claimed was not to be had'
        due = [number for number in taken if number not in urgent]
        assert due == [number for number in expected if number not in urgent], 'wrong order'
        for assignment in found:
            number = self.names[assignment.oid]
            if assignment.ahead and number not in urgent and number in taken:
                assert not self.job(partner, number)._interrupted
            filing = view.jobs[number].filing if number in taken else None
            is_urgent = not is_counted(assignment.token)
            mine[number] = (filing, is_urgent, assignment.ahead)
            partner.fresh_assignments.append((number, is_urgent, assignment))
            if number in taken and is_urgent:
                view.jobs[number].urgent = False

    @deed(has_work, weight=8, choice=st.integers(0, 1000), good=st.booleans())
    def finish(self, partner, choice, good):
        """A worker does a job that was claimed, or finds that it is not to be done."""
        partner.puts_only = False
        side, view = partner.side, partner.view
        mine = self.pick(partner.assignments, choice)
        if mine is None:
            return
        partner.assignments.remove(mine)
        partner.begun.append(mine)
        number, urgent, assignment = mine
        job, token = self.job(partner, number), assignment.token
        if job._token != token:
            report = ended.Report(assignment, ended.STALE)
            note(f'side {partner.number} finds the claim of {number} stale')
        elif urgent or job._status == status.COMPLETED:
            report = ended.Report(assignment, ended.FINISHED, job.outcome != 'success')
        else:
            note(f'side {partner.number} finishes {number}')
            report = side.work(assignment, None if good else Failure(ValueError('no')))
            plan = view.jobs[number]
            plan.place, plan.good = DONE, good
            partner.writes.add(number)
        partner.fresh_reports.append(report)
        self.after(partner)

    @deed()
    def stop(self, partner):
        """A dispatcher stops, gives back what it holds, and starts again."""
        self.write_reports(partner)
        partner.begun += partner.assignments  # its workers are withdrawn, unless this aborts
        partner.assignments = []
        partner.fresh_assignments = []
        self.give_back(partner, partner, 'deactivate')

    @deed()
    def bury(self, partner):
        """A dispatcher finds the other one dead, and gives back what that held."""
        other = self.partners[1 - partner.number]
        # What of it was withdrawn cannot be told from what it had filed again itself.
        if not any(side == other.number for side, _ in partner.view.stale_claims()):
            self.give_back(partner, other, 'died')

    def give_back(self, partner, other, how):
        note(f'{how} of side {other.number}, seen by side {partner.number}')
        view = partner.view
        partner.puts_only = False
        record = partner.side.queue.dispatchers[other.side.uuid]
        writes = {
            number
            for number, (filing, _, _) in view.lists[other.number].items()
            if view.jobs[number].filing == filing and view.jobs[number].place != DONE
        }
        getattr(record, how)()
        record.activate()
        partner.do('hand_back', other.number, writes=writes)
        self.after(partner)

    # time and transactions

    @deed(weight=2, seconds=st.sampled_from([1, 2, 2, 3, 200]))
    def time_passes(self, partner, seconds):
        self.clock.advance(seconds)
        for each in self.partners:
            self.after(each)

    @rule(data=st.data(), who=st.integers(0, 1), then=THEN)
    def act(self, data, who, then):
        """A side does something that it can do, and may commit."""
        partner = self.partners[who]
        able = [
            name for name, (can, weight, _) in DEEDS.items() for _ in range(weight) if can(partner)
        ]
        name = data.draw(st.sampled_from(able))
        drawn = {arg: data.draw(strategy) for arg, strategy in DEEDS[name][2].items()}
        note(f'side {who}: {name} {drawn}, then {then}')
        getattr(self, name)(partner, **drawn)
        if then == 'commit':
            self.try_commit(partner)
        elif then == 'abort':
            self.drop(partner)

    def drop(self, partner):
        partner.side.abort()
        partner.aborted()
        self.forget_new(partner)
        partner.begin(self.plans, len(self.commits))

    def try_commit(self, partner):
        """Commit, or begin anew after a conflict; whether it was committed."""
        overlapping = set().union(*self.commits[partner.serial :])
        try:
            partner.side.commit()
        except ConflictError as error:
            note(f'side {partner.number} conflicts: {error}')
            assert not partner.puts_only, 'a producer met a conflict'
            assert len(self.commits) > partner.serial, 'a conflict with nobody'
            self.drop(partner)
            return False
        note(f'side {partner.number} commits')
        lost = overlapping & partner.writes
        assert not lost, f'two transactions changed the jobs {lost}'
        self.plans.merge(partner.base, partner.view)
        self.commits.append(partner.writes)
        partner.committed()
        partner.begin(self.plans, len(self.commits))
        self.watcher.begin()
        self.check(self.watcher, self.plans)
        return True

    def forget_new(self, partner):
        """Jobs that were never committed have no place."""
        for number in set(partner.view.jobs) - set(self.plans.jobs):
            del self.names[self.jobs.pop(number)]

    def teardown(self):
        """Whatever happened, in the end every job is done once, and nothing is left."""
        if hasattr(self, 'plans'):
            for partner in self.partners:
                self.drop(partner)
            self.drain()

    def drain(self):
        self.clock.advance(1000)
        self.release_all(self.partners[0])
        # Each turn ends one job at least, or finds a claim that is stale.
        for _ in range(6 * len(self.plans.jobs) + 6):
            if self.is_over():
                break
            for partner in self.partners:
                self.hand_out(partner, room=99, ahead=0, leave=0)
                assert self.try_commit(partner)
                while partner.assignments:
                    self.finish(partner, choice=0, good=True)
                assert self.try_commit(partner)
                self.drop(self.partners[1 - partner.number])
        self.check_end()

    def is_over(self):
        plans = self.plans.jobs.values()
        busy = any(plan.place in UNFINISHED or plan.urgent for plan in plans)
        busy |= any(self.plans.lists) or any(partner.reports for partner in self.partners)
        # What was withdrawn after it was sorted is still there, for somebody to find.
        queue = self.watcher.queue
        return not (
            busy or queue.ready.groups or queue.ready.waiting() or [*queue.intake.entries()]
        )

    def release_all(self, partner):
        for each in self.partners:
            self.specialise(each, CHANNELS)
            assert self.try_commit(each)
        self.drop(partner)
        for quota in QUOTAS:
            self.resize(partner, quota=quota, size=3)
        for plan in list(partner.view.jobs.values()):
            job = self.job(partner, plan.number)
            if plan.place in (HELD, ASSIGNED):
                job.resume() if plan.place == HELD else partner.side.queue.putBack(job)
                partner.do('file', plan.number, writes=[plan.number])
        assert self.try_commit(partner)
        self.drop(self.partners[1])

    def check_end(self):
        plans, queue = self.plans, self.watcher.queue
        unfinished = [plan for plan in plans.jobs.values() if plan.place in UNFINISHED]
        assert not unfinished, f'these were never done: {unfinished}'
        self.watcher.begin()
        assert (list(queue), len(queue), queue.peek()) == ([], 0, None)
        ready = queue.ready
        assert (ready.waiting(), ready.dropped()) == (0, 0), 'the count is not right'
        assert not ready.groups and not ready.later and not queue.waiters and not queue.held
        agents = [record['main'] for record in queue.dispatchers.values()]
        assert not any(agent.held_count() for agent in agents)
        listed = sorted(self.names[job._p_oid] for agent in agents for job in agent.history)
        done = {n for n, plan in plans.jobs.items() if plan.place == DONE}
        assert listed == sorted(done & plans.told), 'the histories are not right'
        assert done <= plans.told


@pytest.fixture(scope='module')
def _storage(tmp_path_factory):
    if 'file' in STORAGE:
        return FileStorage(str(tmp_path_factory.mktemp('machine') / 'Data.fs'))
    return DemoStorage()


def test_a_queue_in_two_connections(_storage):
    """See the module."""
    house = House(_storage)
    for _ in range(3):
        house.side()
    turned = TurnedClock()
    former = clock.use(turned)
    try:
        run_state_machine_as_test(
            type('Machine', (QueueMachine,), {'house': house, 'clock': turned}),
            settings=settings(
                max_examples=int(EXAMPLES),
                stateful_step_count=int(STEPS),
                suppress_health_check=list(HealthCheck),
                report_multiple_bugs=False,
            ),
        )
    finally:
        clock.use(former)
        house.close()
