"""Why a job does not run: one sentence, for every job.

The reasons are asked in the order in which they would have to go: what the job
itself waits for, then what holds its queue, then who could take it, then what
room there is.

Runs in the caller's transaction and writes nothing; filters of agents, which
are user code, are called.
"""

from ZODB.broken import Broken

from zodbjobs import clock, status
from zodbjobs.model import hosts
from zodbjobs.model.job import WAITS_FOR_JOB
from zodbjobs.monitor.alive import is_dead, serves
from zodbjobs.monitor.view import has_channel, takes, unmet

#: Holders of a quota, or jobs waited for, that a sentence names.
NAMED = 3


def why(job):
    """One sentence that says why `job` does not run, or how it stands if it does."""
    if isinstance(job, Broken):
        return 'its class cannot be imported here: a worker fails it when its turn comes'
    now = job.status
    if now == status.PENDING:
        reasons = (ask(job) for ask in _QUESTIONS)
        return next(reason for reason in reasons if reason is not None)
    return _OTHERS[now](job)


# Jobs that do not wait for their turn.


def _is_new(job):
    if job._parent is not None:
        return f'it is a callback: it runs when {name_of(job._parent)} has its result'
    return 'it is in no queue: put it'


def _is_held(job):
    reason = f': {job.hold_reason}' if job.hold_reason else ''
    return f'it is held{reason}; it waits until somebody resumes or cancels it'


def _is_assigned(job):
    return f'{_holder(job)} has claimed it, and it waits there for a free thread'


def _is_active(job):
    holder = _holder(job)
    if job.waits == WAITS_FOR_JOB:
        blockers = [other for other in job.awaited() if other._status != status.COMPLETED]
        parts = blockers or [
            part for part in job.args if getattr(part, '_status', None) in status.MOVES
            and part._status != status.COMPLETED
        ]  # fmt: skip
        return f'it has run, and waits for {_named(parts) or "a job that it returned"}'
    if job.waits is not None:
        return f'it has run in {holder}, and waits for what it returned to have a value'
    agent = job.agent
    if agent is not None and agent.parent is not None and not serves(agent.parent):
        name = str(agent.parent.UUID)[:8]
        return f'dispatcher {name}, which ran it, has ended: it goes to others when one looks'
    since = None if agent is None else agent.claimed_at(job)
    asked = '; it was cancelled, and ends when it looks for that, or with its work'
    claimed = f'it runs: {holder} claimed it' + ('' if since is None else f' {_ago(since)}')
    return claimed + asked * bool(job._cancelled)


def _is_telling(job):
    callback = job.untold()
    if callback is None:
        return 'it has its result, and is about to be finished'
    held = None if job.queue is None else job.queue.dispatchers.agent_of(job)
    where = 'tells it' if held else 'waits for a thread to tell it'
    missing = 0 if held or job.queue is None else unmet(job.queue, callback.needs)
    if missing:
        return f'it has its result; {name_of(callback)} is next: ' + _need(
            missing, f'queue {job.queue.name!r}'
        )
    return f'it has its result, and {where} to {name_of(callback)}'


def _is_completed(job):
    words = {'success': 'succeeded', 'cancelled': 'was cancelled'}.get(job.outcome, 'failed')
    end = '' if job._active_end is None else f' {_ago(job._active_end)}'
    return f'it has finished: it {words}{end}'


_OTHERS = {
    status.NEW: _is_new,
    status.HELD: _is_held,
    status.ASSIGNED: _is_assigned,
    status.ACTIVE: _is_active,
    status.CALLBACKS: _is_telling,
    status.COMPLETED: _is_completed,
}


# Jobs that wait for their turn.  Each answers with a sentence, or None.


def _is_blocked(job):
    blockers = job.blockers()
    if not blockers:
        return None
    return f'it waits for {_named(blockers)} to finish'


def _is_not_due(job):
    if job._due <= clock.micros():
        return None
    again = f' (try {job.attempts + 1} of it)' if job.attempts else ''
    return f'it is not due until {_date(job._due)}, {_ahead(job._due)}{again}'


def _is_too_late(job):
    now = clock.micros()
    if not job.is_late(now) or job.attempts:
        return None
    return f'its begin_by passed {_ago(job._due + job._begin_by)}: a dispatcher will fail it'


def _is_paused(job):
    queue = job.queue
    if not queue.is_paused(clock.micros()):
        return None
    until = queue.paused_until
    end = 'somebody unpauses it' if until is True else _date(clock.micros_of(until))
    return f'queue {queue.name!r} is paused until {end}'


def _serving(queue):
    return [record for record in queue.dispatchers.values() if serves(record)]


def _has_no_dispatcher(job):
    queue = job.queue
    serving = _serving(queue)
    if serving and all(record.stuck for record in serving):
        name = str(serving[0].UUID)[:8]
        return f'dispatcher {name} of queue {queue.name!r} lives and does nothing: restart it'
    if serving:
        return None
    dead = [str(record.UUID)[:8] for record in queue.dispatchers.values() if is_dead(record)]
    if dead:
        return f'dispatcher {dead[0]} of queue {queue.name!r} has died: start a worker'
    deployment = getattr(queue.parent, 'deployment', None)
    if deployment is not None:
        return (
            f'no dispatcher serves queue {queue.name!r}; the database belongs to the deployment'
            f' {deployment!r}, and a worker must name it to claim anything'
        )
    return f'no dispatcher serves queue {queue.name!r}: start a worker'


def _agents(job):
    return [agent for record in _serving(job.queue) for agent in record.values()]


def _has_no_agent(job):
    agents = _agents(job)
    where = f'queue {job.queue.name!r}'
    if not agents:
        return f'the dispatchers of {where} have no agent there'
    if not any(agent.size for agent in agents):
        return f'every agent of {where} has the size 0'
    missing = unmet(job.queue, job.needs)
    if missing:
        return _need(missing, where)
    agents = [agent for agent in agents if agent.size and has_channel(agent, job)]
    if not agents:
        what = f'the channel {job.channel!r}' if job.channel else 'jobs without a channel'
        return f'no agent of {where} takes {what}'
    agents = [agent for agent in agents if not hosts.missing(job.needs, agent.parent.hosts)]
    if not any(takes(agent, job) for agent in agents):
        count = len(agents)
        return f'the filter of {"the only agent" if count == 1 else f"each of {count} agents"}' + (
            f' of {where} refuses it'
        )
    return None


def _need(missing, where):
    what, advice = hosts.in_words(missing)
    return f'it needs {what}, and no dispatcher of {where} has it: {advice}'


def _has_full_quota(job):
    for name in job.quota_names:
        quota = job.queue.quotas.get(name)
        if quota is None:
            continue
        holders = [
            holder
            for token, holder in quota.places
            if not isinstance(holder, Broken) and holder.occupies(token) and holder is not job
        ]
        if quota.size == 0:
            return f'quota {name!r} has the size 0'
        if len(holders) >= quota.size:
            return f'quota {name!r} is full ({len(holders)} of {quota.size}): held by ' + _named(
                holders
            )
    return None


def _has_no_thread(job):
    agents = [agent for agent in _agents(job) if takes(agent, job)]
    threads = sum(agent.size for agent in agents)
    if any(_busy(agent) < agent.size for agent in agents):
        return None
    first = job.queue.peek()
    behind = '' if first is job or first is None else f'; {name_of(first)} is next'
    return (
        f'it is due, and waits for a thread: all {threads} of the {_plural(len(agents), "agent")}'
        f' that may take it are busy{behind}'
    )


def _busy(agent):
    """How many jobs of an agent want a thread."""
    return sum(
        getattr(job, '_token', token) == token and getattr(job, '_status', None) != status.COMPLETED
        for _, token, job, *_ in agent.entries()
    )


def _has_to_wait_a_moment(job):
    choosers = [agent for agent in _agents(job) if agent.chooser is not None]
    if choosers and len(choosers) == len(_agents(job)):
        return f'it is due; {choosers[0]!r} chooses by itself, and has not chosen it'
    return 'nothing hinders it: it is due, and should start at any moment'


_QUESTIONS = (
    _is_blocked, _is_not_due, _is_too_late, _is_paused, _has_no_dispatcher, _has_no_agent,
    _has_full_quota, _has_no_thread, _has_to_wait_a_moment,
)  # fmt: skip


# Words.


def name_of(job):
    """How a sentence names a job: its number, its id if it has one, its function."""
    if isinstance(job, Broken) or getattr(job, '_p_oid', None) is None:
        return 'a job that cannot be loaded' if isinstance(job, Broken) else f'a {job.status} job'
    named = f' {job.id!r}' if job.id else ''
    return f'job {job.oid}{named} ({job.call_name}, {job.status})'


def _named(jobs):
    shown = ', '.join(name_of(job) for job in jobs[:NAMED])
    rest = len(jobs) - NAMED
    return shown + (f' and {_plural(rest, "other")}' if rest > 0 else '')


def _holder(job):
    agent = job.agent
    if agent is None or agent.parent is None:
        return 'an agent that is gone'
    record = agent.parent
    where = f'agent {agent.name!r} of dispatcher {str(record.UUID)[:8]}'
    if not serves(record):
        where += ' (which has ended)'
    return where


def _plural(count, noun):
    return f'{count} {noun}' + ('' if count == 1 else 's')


def _date(us):
    return f'{clock.datetime_of(us):%Y-%m-%d %H:%M:%S} UTC'


def _ago(us):
    return f'{length(clock.micros() - us)} ago'


def _ahead(us):
    return f'in {length(us - clock.micros())}'


def length(us):
    """'3 d 4 h', '5 min 20 s', '3.2 s' for microseconds."""
    seconds = abs(us) / clock.SECOND
    for unit, size, small, part in (
        ('d', 86400, 'h', 3600),
        ('h', 3600, 'min', 60),
        ('min', 60, 's', 1),
    ):
        if seconds >= size:
            rest = int(seconds % size // part)
            return f'{int(seconds // size)} {unit}' + (f' {rest} {small}' if rest else '')
    return f'{seconds:.1f} s'
