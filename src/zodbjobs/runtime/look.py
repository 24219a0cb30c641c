"""One pass's look at one queue: what ended is written, what is due is claimed.

Runs in the dispatcher's pass, in its transaction; the dispatcher commits.
"""

import datetime
import logging

from zope.event import notify

from zodbjobs import clock
from zodbjobs.interfaces import JobCompleted
from zodbjobs.model import hosts
from zodbjobs.model.claim import take_back
from zodbjobs.model.handout import Round
from zodbjobs.runtime.idle import Idle
from zodbjobs.runtime.retire import Retirement

log = logging.getLogger('zodbjobs.events')


#: While all that may be claimed ahead is, one looks only so often for what may overtake it.
OVERTAKE_MICROSECONDS = 10_000


class Look:
    """One pass's look at one queue: what ended, a `Round`, and what came of it."""

    def __init__(self, dispatcher, queue, reports, slow=False):
        self.dispatcher = dispatcher
        self.queue = queue
        self.record = queue.dispatchers.get(dispatcher.UUID)
        self.reports = [report for report in reports if report.assignment.queue == queue.name]
        self.seen = dispatcher.seen.setdefault(queue.name, {})
        self.slow = slow  # a poll, which has the time for chores
        self.retirement = Retirement(queue, clock.micros())
        self.wake_at = None
        self.is_worth_a_commit = False
        self.kept = []  # Reports that are left to the next pass
        self.idle = None  # an Idle, when there is nothing to do
        self.sizes = None  # {agent name: size}, if the queue is served
        self._hindered = False

    @property
    def released(self):
        """Whether jobs may start now that could not be claimed by this look."""
        return self.retirement.released or self._hindered

    def make(self):
        """Claim for every agent that has room; returns the Assignments."""
        if self.record is None or self.record.activated is None:
            return []
        self.sizes = {agent.name: agent.size for agent in self.record.values()}
        self.dispatcher.fit_pools(self.queue.name, self.queue, self.record)
        queue, now = self.queue, clock.micros()
        agents = self.record.values()
        rooms = [(agent, *self.dispatcher.rooms(agent, queue.name)) for agent in agents]
        look, found = None, []
        if not queue.is_paused(now) and self._may_overtake(rooms, now):
            look, found = self._pick_urgent(now, rooms)
        if found:  # for these nobody shall wait until the others are written
            self.kept, self.reports = self.reports, []
        else:
            self._retire_if_pressing()
            look = self._round(now)
            self._announce(look.expire())
            self.is_worth_a_commit |= take_back(queue, now)
            found = self._pick(look, rooms)
        self.is_worth_a_commit |= look.touched | bool(queue.intake.prune(now))
        # What is due already and has no room is looked at again when a worker is done.
        ahead = (queue.ready.next_due(), queue.ready.next_deadline(), queue.leases.next_end())
        self.wake_at = earliest(
            self.wake_at,
            look.left_until,
            *(moment for moment in ahead if moment is not None and moment > now),
        )
        if not found and self._has_nothing(look):
            self.idle = Idle(queue, self.record, self.wake_at, self.sizes)
        database = queue._p_jar.db().database_name
        return [assignment._replace(database=database) for assignment in found]

    def _has_nothing(self, look):
        """Whether nothing is due here, whoever has room for it, and nothing is to be done."""
        return (
            look.is_sorted
            and not (self.is_worth_a_commit or self._hindered or self.reports)
            and not (look.fresh or look.left_until or self.queue.ready.groups)
            and all(agent.chooser is None for agent in self.record.values())
        )

    def _round(self, now):
        rank, count = self._rank()
        return Round(self.queue, now, rank, self._complain, bool(self.reports), count, self.seen)

    def _retire_if_pressing(self):
        if self.retirement.presses(self.reports):
            self.is_worth_a_commit = True
            self.retire()

    def retire(self):
        """Write what ended; once."""
        reports, self.reports = self.reports, []
        self.retirement.write(self.record, reports)

    def _pick(self, look, rooms):
        """Claim for the threads that are free, and ahead."""
        if self.queue.is_paused(look.now):
            paused = self.queue.settings.paused
            self.wake_at = None if paused is True else paused
            rooms = []
        if not any(room or ahead for _, room, ahead, _ in rooms):
            self._tidy(look)
            return []
        look.sort(self.slow)
        found = []
        for agent, *room in rooms:
            found += look.pick(agent, *room)
        look.file_rest()
        if look.left:
            self._tell_left(look.left)
        if look.hindered:
            self._hindered = self.is_worth_a_commit = True
            self.retire()
        return found

    def _pick_urgent(self, now, rooms):
        """While no thread is free: claim what comes before the jobs that are held, if anything.

        Returns (Round, Assignments).
        """
        look = self._round(now)
        look.sort(self.slow)
        found = []
        for agent, *_, overtaking in rooms:
            found += look.pick(agent, 0, 0, overtaking)
        look.file_rest()
        self.is_worth_a_commit |= look.touched
        self._hindered |= bool(found) and look.hindered
        return look, found

    def _may_overtake(self, rooms, now):
        """Whether to look for what comes before jobs that are held: soon, and not at each ring."""
        if any(room for _, room, *_ in rooms) or not any(count for *_, (_, count) in rooms):
            return False
        former = self.dispatcher.overtakes.get(self.queue.name, 0)
        if former <= now < former + OVERTAKE_MICROSECONDS:
            self.wake_at = former + OVERTAKE_MICROSECONDS
            return False
        self.dispatcher.overtakes[self.queue.name] = now
        return True

    def _tell_left(self, needs):
        """Say, once, that there are jobs here that this process cannot run."""
        name, told = self.queue.name, self.dispatcher.left
        if not hosts.missing(needs, told.get(name, 0)):
            return
        told[name] = told.get(name, 0) | needs
        others = [each for each in self.record.parent.values() if each.activated]
        is_met = any(not hosts.missing(needs, each.hosts) for each in others)
        what, advice = hosts.in_words(needs)
        log.log(
            logging.INFO if is_met else logging.WARNING,
            'queue %r: jobs there need %s, which this process has not: they are left to others%s',
            name, what, '' if is_met else f', of whom there are none; {advice}',
        )  # fmt: skip

    def _tidy(self, look):
        """Sort although nobody takes anything now: deadlines must be seen."""
        if self.slow:
            look.sort(self.slow)
            look.file_rest()

    def _announce(self, ended):
        """Say that these jobs have their result; what a subscriber raises changes nothing."""
        for job in ended:
            try:
                notify(JobCompleted(job))
            except Exception as error:
                self._complain(f'a subscriber to the end of {job!r} failed', error)

    def _rank(self):
        """(our number among the dispatchers that have agents here, how many those are)."""
        working = sorted(
            str(record.UUID)
            for record in self.record.parent.values()
            if record.activated and any(agent.size for agent in record.values())
        )
        mine = str(self.dispatcher.UUID)
        return (working.index(mine), len(working)) if mine in working else (0, 1)

    def _complain(self, what, error):
        log.error('queue %r: %s', self.queue.name, what, exc_info=error)


def poll_results(dispatcher, sizes, found):
    """What a pass found, for the statistics: {queue name: {agent name: facts}}.

    `sizes` is {queue name: {agent name: size}} of the queues where there is something to tell.
    """
    new, active = {}, dispatcher.statistics.jobs.active()
    for assignment in found:
        new.setdefault((assignment.queue, assignment.agent), []).append(assignment.job_id)
    return {
        name: {
            agent: {
                'size': size,
                'len': dispatcher.flight_count(name, agent),
                'error': None,
                'new jobs': new.get((name, agent), []),
                'active jobs': active.get((name, agent), []),
            }
            for agent, size in agents.items()
        }
        for name, agents in sizes.items()
    }


def status_info(dispatcher, last_poll):
    """See IDispatcher.getStatusInfo; `last_poll` is in monotonic seconds, or None."""
    age = None if last_poll is None else clock.monotonic() - last_poll
    if not dispatcher.activated:
        state = 'STOPPED' if dispatcher.activated is False else 'STOPPING'
    elif age is None:
        state = 'STARTING'
    else:
        state = 'STUCK' if is_late(dispatcher, age) else 'RUNNING'
    uptime = clock.monotonic() - dispatcher.started if dispatcher.activated else None
    return {
        'status': state,
        'poll interval': _span(dispatcher.poll_interval),
        'time since last poll': _span(age),
        'uptime': _span(uptime),
        'uuid': dispatcher.UUID,
    }


def is_late(dispatcher, age):
    """Whether a pass is overdue when the last one was `age` seconds ago."""
    return age > 2 * dispatcher.poll_interval + 1


def _span(seconds):
    return None if seconds is None else datetime.timedelta(seconds=seconds)


def still_held(uuid, queues, assignments):
    """Those of the Assignments that the dispatcher of that UUID holds, as its agents' lists say."""
    found = []
    for assignment in assignments:
        queue = queues.get(assignment.queue)
        record = None if queue is None else queue.dispatchers.get(uuid)
        agent = None if record is None else record.get(assignment.agent)
        oid = int.from_bytes(assignment.oid, 'big')
        if agent is not None and agent.holds(oid, assignment.token) is not None:
            found.append(assignment)
    return found


def earliest(*moments):
    """The smallest of these moments that is not None, or None."""
    return min((moment for moment in moments if moment is not None), default=None)
