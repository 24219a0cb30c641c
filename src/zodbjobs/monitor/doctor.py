"""What is wrong: one look for probes, a longer one for people, one before a deployment.

Runs in the caller's transaction and writes nothing.
"""

import itertools

from ZODB.broken import Broken

from zodbjobs import clock, status
from zodbjobs.model import hosts
from zodbjobs.model.call import Vanished, resolved
from zodbjobs.model.history import KEEP_COUNT
from zodbjobs.monitor.alive import is_dead, serves
from zodbjobs.monitor.digest import waits_for_quotas
from zodbjobs.monitor.reason import length, name_of
from zodbjobs.monitor.shown import queue_facts, unmet_words
from zodbjobs.monitor.view import UNSORTED, ended_count, oldest_due

#: Seconds that a due job may wait before `health` and `examine` complain.
MAX_WAIT = 300

#: Jobs that `lint` looks at, unless told otherwise.
LINTED = 100_000

#: Seconds by which the clock of a process that writes may be ahead of ours.
SKEW_SECONDS = 5

#: Finished jobs of one agent beyond which `examine` speaks of growth.
MANY_FINISHED = KEEP_COUNT // 2

#: Failures of the last jobs of an agent that are looked at.
RECENT = 50

#: Waiting jobs of a queue whose code `examine` tries to import.
EXAMINED = 1000

#: Problems of one kind that are named.
NAMED = 10


def health(queues, max_wait=MAX_WAIT):
    """Whether the work is being done: 'healthy', 'problems' (sentences), 'queues'."""
    found = {name: _state(queue) for name, queue in queues.items()}
    problems = [
        f'queue {name!r}: {problem}'
        for name, state in found.items()
        for problem in itertools.chain(_stuck(state['stuck']), _problems(state, max_wait))
    ]
    return {'healthy': not problems, 'problems': problems, 'queues': found}


def _state(queue):
    now = clock.micros()
    oldest = oldest_due(queue, now)
    return {
        'waiting': len(queue),
        'oldest_due_seconds': 0.0 if oldest is None else (now - oldest._due) / clock.SECOND,
        'dispatchers': sum(serves(record) for record in queue.dispatchers.values()),
        'stuck': [str(each.UUID) for each in _stuck_ones(queue)],
        'orphans': sum(
            len(agent)
            for record in queue.dispatchers.values()
            if is_dead(record)
            for agent in record.values()
        ),
        'paused': queue.is_paused(now),
        'needs': unmet_words(queue),
    }


def _problems(state, max_wait):
    if state.get('orphans') and not state['dispatchers']:
        yield f'{state["orphans"]} jobs of a dispatcher that died wait for another one'
    if state['paused'] or not state['oldest_due_seconds']:
        return
    if not state['dispatchers']:
        yield 'jobs are due and no dispatcher serves it'
    elif state['needs']:
        yield state['needs']
    elif state['oldest_due_seconds'] > max_wait:
        yield f'a due job has waited {state["oldest_due_seconds"]:.0f} s'


def _stuck(uuids):
    return (f'dispatcher {uuid} lives and makes no passes' for uuid in uuids)


def _stuck_ones(queue):
    """The records of dispatchers that live and do nothing, as their siblings have found."""
    return [record for record in queue.dispatchers.values() if record.activated and record.stuck]


# The longer look.


def examine(queues, max_wait=MAX_WAIT):
    """What needs somebody's attention: 'findings', each with 'level', 'what' and 'advice'.

    'level' is 'error', 'warning' or 'note'; errors come first.
    """
    found = []
    for name, queue in queues.items():
        for level, what, advice in itertools.chain(
            _about_work(queue, max_wait),
            _about_dispatchers(queue),
            _about_quotas(queue),
            _about_code(queue),
            _about_growth(queue),
            _about_clocks(queue),
        ):
            found.append(
                {'level': level, 'queue': name, 'what': f'queue {name!r}: {what}', 'advice': advice}
            )
    order = ('error', 'warning', 'note')
    found.sort(key=lambda finding: order.index(finding['level']))
    return {'findings': found, 'healthy': not any(f['level'] == 'error' for f in found)}


def _about_work(queue, max_wait):
    facts = queue_facts(queue)
    for problem in _problems(facts, max_wait):
        yield 'error', problem, 'zodbjobs why JOB says what a job waits for'
    if facts['paused']:
        yield 'note', f'it is paused, and {facts["waiting"]} jobs wait', 'zodbjobs unpause'
    if facts['closed']:
        yield 'note', 'it is closed: put() raises QueueClosed', 'queue.closed = False opens it'
    if facts['held']:
        yield 'note', f'{facts["held"]} jobs are held', 'zodbjobs jobs held; resume or cancel them'


def _about_dispatchers(queue):
    now = clock.micros()
    records = list(queue.dispatchers.values())
    if not any(serves(record) for record in records):
        yield 'warning', 'no dispatcher serves it', 'zodbjobs run URI'
    dead = [record for record in records if record.dead or is_dead(record)]
    if dead:
        names = ', '.join(str(record.UUID)[:8] for record in dead[:NAMED])
        yield (
            'warning',
            f'{len(dead)} dispatchers ended without saying so: {names}',
            ('look why they were killed; their jobs went to others'),
        )
    for record in _stuck_ones(queue):
        place = f'{record.host}, process {record.pid}'
        for what in _stuck([record.UUID]):
            yield 'error', f'{what} ({place})', 'look what blocks that process, or end it'
    for record in records:
        for agent in record.values():
            if record.activated and agent.size == 0:
                yield 'note', f'agent {agent.name!r} has the size 0', 'zodbjobs agent sets it'
    stale = sum(record.is_stale(now) for record in records)
    if stale:
        yield 'note', f'{stale} records of dispatchers are stale', 'zodbjobs prune drops them'


def _about_quotas(queue):
    for row in waits_for_quotas({queue.name: queue}):
        first = queue.peek()
        waits = first is not None and row['quota'] in first.quota_names
        held = ', '.join(row['held_by'][:NAMED]) or 'nobody: its size is 0'
        if row['size'] == 0 or waits:
            yield 'note', f'quota {row["quota"]!r} is full: held by {held}', 'zodbjobs quota'


def _about_code(queue):
    broken = list(itertools.islice(_unloadable(queue), NAMED))
    for row in broken:
        yield (
            'error',
            f'{row["job"]} cannot be run: {row["problem"]}',
            ('install the code, or cancel the job'),
        )


def _about_growth(queue):
    for record in queue.dispatchers.values():
        for agent in record.values():
            number = ended_count(agent.history, status.COMPLETED)
            if number > MANY_FINISHED:
                yield (
                    'warning',
                    f'agent {agent.name!r} keeps {number} finished jobs',
                    ('zodbjobs prune --keep-days N keeps them for a shorter time'),
                )
            recent = list(itertools.islice(agent.history.walk(), RECENT))
            failed = sum(getattr(job, 'outcome', 'failure') == 'failure' for _, job in recent)
            if failed * 2 > RECENT:
                yield (
                    'warning',
                    f'{failed} of the last {len(recent)} jobs of agent'
                    + (f' {agent.name!r} failed'),
                    'zodbjobs jobs failed; zodbjobs traceback JOB',
                )


def _about_clocks(queue):
    """Jobs that finished, or dispatchers that began, in what is our future."""
    now = clock.micros()
    latest = 0
    for record in queue.dispatchers.values():
        if record.activated is not None:
            latest = max(latest, clock.micros_of(record.activated))
        for agent in record.values():
            for finished, _ in itertools.islice(agent.history.walk(), 1):
                latest = max(latest, finished)
    if latest > now + SKEW_SECONDS * clock.SECOND:
        yield (
            'error',
            f'the clock of a worker is {length(latest - now)} ahead of the one here',
            ('synchronise the clocks of the hosts'),
        )


# Before a deployment.


def lint(queues, look=LINTED):
    """Which waiting and held jobs this process could not load or call.

    'problems': [{'job', 'oid', 'problem'}], 'looked_at', 'is_all'.
    """
    problems, looked_at, is_all = [], 0, True
    for queue in queues.values():
        for job in itertools.chain(queue.waiting(look), queue.held.values()):
            if looked_at >= look:
                is_all = False
                break
            looked_at += 1
            problem = trouble_with(job)
            if problem is not None:
                problems.append({'job': name_of(job), 'oid': _oid(job), 'problem': problem})
    return {'problems': problems, 'looked_at': looked_at, 'is_all': is_all}


def _oid(job):
    return int.from_bytes(job._p_oid, 'big')


def _unloadable(queue):
    for job in itertools.islice(queue.waiting(UNSORTED), EXAMINED):
        problem = trouble_with(job)
        if problem is not None:
            yield {'job': name_of(job), 'problem': problem}


def trouble_with(job):
    """Why this process could not run the job, or None; also None if it may not run it at all."""
    if isinstance(job, Broken):
        return f'its class {type(job).__module__}.{type(job).__name__} cannot be imported'
    if hosts.missing(job.needs, hosts.here()):
        return None  # only a process that has it could tell; see `unmet`
    try:
        call = resolved(job.bare_call())
    except Vanished as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - importing runs anything
        return f'{job.call_name} cannot be imported: {type(error).__name__}: {error}'
    if not callable(call):
        return f'{job.call_name} cannot be called: it is {call!r}'
    for what, value in [
        *((f'argument {number}', arg) for number, arg in enumerate(job.args, 1)),
        *((f'argument {name}', arg) for name, arg in job.kwargs.items()),
        *(('a callback', callback) for callback in job.callbacks),
    ]:
        found = _trouble_with_value(value)
        if found is not None:
            return f'{what}: {found}'
    return None


def _trouble_with_value(value):
    if isinstance(value, Broken):
        return f'its class {type(value).__module__}.{type(value).__name__} cannot be imported'
    if hasattr(value, '_call') and hasattr(value, '_status'):
        return trouble_with(value)
    return None
