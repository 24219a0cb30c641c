"""Plain values for jobs, queues, dispatchers and agents: what every view shows.

The names are the same in Python, in JSON and through the monitor's door, and
stay as they are.  Instants are ISO 8601 texts in UTC, spans are seconds.

Runs in the caller's transaction and writes nothing.
"""

import datetime
import itertools
import uuid

from ZODB.broken import Broken

from zodbjobs import clock, status
from zodbjobs.model import hosts
from zodbjobs.model.call import custom_repr
from zodbjobs.model.failure import is_failure
from zodbjobs.model.intake import size_of
from zodbjobs.monitor.alive import serves
from zodbjobs.monitor.reason import why
from zodbjobs.monitor.view import ended_count, oldest_due, unmet

#: Characters of a repr.
REPR_LENGTH = 1000

#: Entries of a tree that are counted at most; 100,000 take some 20 milliseconds.
COUNTED = 100_000

#: Callbacks and blockers of a job that are named.
NAMED = 20


def plain(value):
    """`value` as JSON can hold it."""
    if isinstance(value, datetime.datetime):
        return instant(clock.micros_of(value))
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(each) for each in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value) if isinstance(value, uuid.UUID) else short(value)


def instant(us):
    """'2026-11-21T14:05:09.123456Z' for microseconds; None stays None."""
    return None if us is None else f'{clock.datetime_of(us).replace(tzinfo=None).isoformat()}Z'


def short(value):
    """A repr that loads nothing, never raises and is not long."""
    try:
        text = custom_repr(value)
    except Exception as error:  # noqa: BLE001 - the repr is user code
        text = f'<a {type(value).__name__} whose repr raised {type(error).__name__}>'
    return text if len(text) <= REPR_LENGTH else text[: REPR_LENGTH - 3] + '...'


# Jobs.


def state_of(job):
    """Its status, and for a completed job what came of it: 'succeeded', 'failed', 'cancelled'."""
    now = job.status
    if now != status.COMPLETED:
        return now
    return {'success': 'succeeded', 'failure': 'failed'}.get(job.outcome, job.outcome)


def brief(job):
    """A job in a list: a dict of plain values."""
    if isinstance(job, Broken):
        cls = type(job)
        return {
            'oid': int.from_bytes(job._p_oid, 'big'), 'id': None, 'state': 'broken',
            'call': f'{cls.__module__}.{cls.__name__}', 'queue': None,
        }  # fmt: skip
    agent = job.agent
    queue = job.queue
    progress = job.progress
    started = started_at(job, agent)
    return {
        'oid': job.oid,
        'id': job.id,
        'state': state_of(job),
        'call': job.call_name,
        'queue': None if queue is None else queue.name,
        'channel': job.channel,
        'quota_names': list(job.quota_names),
        'priority': job.priority,
        'agent': None if agent is None else agent.name,
        'dispatcher': None if agent is None or agent.parent is None else str(agent.parent.UUID),
        'put': instant(job._put),
        'due': instant(job._due),
        'started': instant(started),
        'ended': instant(job._active_end),
        'wait_seconds': _wait(job, started),
        'run_seconds': _run(job, started),
        'attempts': job.attempts,
        'interruptions': job.interruptions,
        'conflicts': job.conflicts,
        'progress': plain(progress),
    }


def started_at(job, agent):
    """Microseconds when its latest attempt began; of one that runs, when it was claimed.

    A job's record is written when its attempt ends: until then nobody else can see more.
    """
    if job._status == status.PENDING and agent is not None:
        return agent.claimed_at(job)
    return job._active_start


def _wait(job, started):
    """Seconds it was due before it started, or is due already; None before it is due."""
    now = clock.micros()
    if job._due is None or (started is None and job._due > now):
        return None
    waits_again = job._status == status.PENDING and started == job._active_start
    end = now if started is None or waits_again else started
    return max(0, end - job._due) / clock.SECOND


def _run(job, started):
    if started is None:
        return None
    if job._active_end is not None and job._status in status.FINISHED:
        return (job._active_end - started) / clock.SECOND
    return (clock.micros() - started) / clock.SECOND if job.status == status.ACTIVE else None


def full(job):
    """All that is known about one job."""
    facts = brief(job) | {'why': why(job)}
    if isinstance(job, Broken):
        return facts
    annotations = dict(job.annotations)
    return facts | {
        'args': [short(arg) for arg in job.args],
        'kwargs': {name: short(arg) for name, arg in job.kwargs.items()},
        'begin_by': plain(job.begin_by),
        'told': instant(job._told),
        'callbacks': [brief(callback) for callback in job.callbacks[:NAMED]],
        'depends_on': [_reference(other) for other in job.depends_on[:NAMED]],
        'after': [_reference(other) for other in job.after[:NAMED]],
        'retry_policy': None if job.retry_policy_factory is None else short(
            job.retry_policy_factory),
        'time_limit': plain(job.time_limit),
        'hold_reason': job.hold_reason,
        'result': _result(job),
        'annotations': {
            str(name): short(value)
            for name, value in annotations.items()
            if not str(name).startswith('zodbjobs.')
        },
        'log': [list(line) for line in annotations.get('zodbjobs.log', ())],
        'repr': repr(job)[:REPR_LENGTH],
    }  # fmt: skip


def _reference(job):
    if isinstance(job, Broken):
        return {'oid': None, 'state': 'broken'}
    return {'oid': None if job._p_oid is None else job.oid, 'id': job.id, 'state': state_of(job)}


def _result(job):
    if is_failure(job.result):
        return job.result.getErrorMessage() or type(job.result).__name__
    return None if job.result is None else short(job.result)


def traceback(job, detail='default'):
    """The text of the failure of a job, or None if it did not fail.

    `detail` is 'brief', 'default' or 'verbose'.
    """
    if isinstance(job, Broken) or not is_failure(job.result):
        return None
    return job.result.getTraceback(detail=detail)


# Queues, dispatchers, agents.


def queue_facts(queue):
    """How a queue stands."""
    now = clock.micros()
    agents = [agent for record in queue.dispatchers.values() for agent in record.values()]
    running = [job for agent in agents for job in agent]
    oldest = oldest_due(queue, now)
    return {
        'name': queue.name,
        'waiting': len(queue),
        'later': _size(queue.ready.later),
        'held': _size(queue.held),
        'running': sum(job.status == status.ACTIVE for job in running),
        'claimed': len(running),
        'finished': sum(ended_count(agent.history, status.COMPLETED) for agent in agents),
        'oldest_due_seconds': 0.0 if oldest is None else (now - oldest._due) / clock.SECOND,
        'dispatchers': sum(serves(record) for record in queue.dispatchers.values()),
        'threads': sum(
            agent.size
            for record in queue.dispatchers.values()
            if serves(record)
            for agent in record.values()
        ),
        'paused': queue.is_paused(now),
        'paused_until': None if queue.paused_until in (None, True) else plain(queue.paused_until),
        'needs': unmet_words(queue),
        'closed': queue.closed,
        'order': queue.order,
        'quotas': {q.name: {'size': q.size, 'taken': _taken(q)} for q in queue.quotas.values()},
    }


def unmet_words(queue):
    """What due jobs need and no dispatcher of the queue has: a sentence, or None."""
    needs = unmet(queue)
    if not needs:
        return None
    what, advice = hosts.in_words(needs)
    return f'jobs need {what}, and no dispatcher has it: {advice}'


def _size(tree):
    """How many entries a tree has; beyond COUNTED it is not counted on."""
    return sum(1 for _ in itertools.islice(tree.keys(), COUNTED))


def _taken(quota):
    return sum(not isinstance(job, Broken) and job.occupies(token) for token, job in quota.places)


def dispatcher_facts(record):
    """A dispatcher's record in one queue, with its agents."""
    return {
        'uuid': str(record.UUID),
        'queue': record.queue.name,
        'state': dispatcher_state(record),
        'activated': plain(record.activated),
        'stuck': plain(record.stuck),
        'ended': instant(getattr(record, 'ended', None)),
        'host': record.host,
        'pid': record.pid,
        'agents': {agent.name: agent_facts(agent) for agent in record.values()},
    }


def dispatcher_state(record):
    """'active', 'stuck' (it lives and does nothing), 'dead' or 'off'."""
    if serves(record):
        return 'stuck' if record.stuck else 'active'
    return 'dead' if record.dead or record.activated is not None else 'off'


def agent_facts(agent):
    """An agent's settings and counts."""
    jobs = list(agent)
    record = agent.parent
    return {
        'name': agent.name,
        'queue': agent.queue.name,
        'dispatcher': str(record.UUID),
        'serving': serves(record),
        'size': agent.size,
        'jobs': len(jobs),
        'active': sum(job.status == status.ACTIVE for job in jobs),
        'listed': size_of(agent.running),
        'channels': None if agent.channels is None else list(agent.channels),
        'filter': None if agent.filter is None else short(agent.filter),
        'chooser': None if agent.chooser is None else short(agent.chooser),
        'finished': ended_count(agent.history, status.COMPLETED),
    }
