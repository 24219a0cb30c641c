"""What an operator may do to jobs, queues, quotas, agents and dispatchers.

Each deed takes the mapping of queues and plain values and returns plain values,
so it can be asked for through a socket.  It works in the caller's transaction,
which the caller commits.  A deed on jobs names them by numbers and ids, or by the filters of
`zodbjobs.monitor.wanted`; with `preview` nothing is done, and only counted.
"""

from ZODB.broken import Broken

from zodbjobs import clock, status
from zodbjobs.interfaces import BadStatusError
from zodbjobs.model.failure import is_failure
from zodbjobs.monitor import view
from zodbjobs.monitor.reason import name_of
from zodbjobs.monitor.wanted import FAILED, moment, wanted

#: Jobs that one deed changes in one transaction; whoever asks comes again for more.
BATCH = 500

#: Jobs that are named in an answer.
NAMED = 20

#: deed -> the states of jobs for which it is meant, if none are named.
MEANT_FOR = {
    'hold': (status.PENDING,),
    'resume': (status.HELD,),
    'cancel': (status.PENDING, status.HELD),
    'retry': (FAILED,),
    'remove': (status.PENDING, status.HELD),
}

#: deed -> the states in which it is possible.
POSSIBLE_FOR = {
    'hold': {status.PENDING},
    'resume': {status.HELD},
    'cancel': {status.PENDING, status.HELD, status.ASSIGNED, status.ACTIVE},
    'retry': {status.COMPLETED},
    'remove': {status.PENDING, status.HELD},
}


def act_on_jobs(queues, deed, names=(), states=(), preview=False, reason=None, **filters):
    """Do `deed` (a key of MEANT_FOR) to jobs.

    Returns 'count', of jobs done (or, with `preview`, that would be); 'more',
    whether there may be others; 'jobs', names of the first; and 'problems',
    a sentence for each job that could not be done.
    """
    if deed not in MEANT_FOR:
        raise ValueError(f'unknown deed {deed!r}; there are {", ".join(MEANT_FOR)}')
    problems = []
    if names:
        found = _named(queues, names, problems)
        more = False
    else:
        found = _chosen(queues, deed, states, filters)
        more = not found.is_all
    done = []
    for job in found:
        try:
            if preview:
                _check(deed, job)
            else:
                _do(deed, job, reason)
            done.append(name_of(job))
        except (BadStatusError, ValueError, LookupError) as error:
            problems.append(str(error))
    return {'count': len(done), 'more': more, 'jobs': done[:NAMED], 'problems': problems}


def _named(queues, names, problems):
    found = []
    for name in names:
        try:
            found.append(view.find(queues, name))
        except LookupError as error:
            problems.append(str(error.args[0]))
    return found


def _chosen(queues, deed, states, filters):
    found = view.jobs(
        queues, *(wanted(states).states if states else MEANT_FOR[deed]), limit=BATCH, **filters
    )
    if deed == 'retry':
        kept = [job for job in found if is_failure(job.result)]
        found[:] = kept
    return found


def _check(deed, job):
    if isinstance(job, Broken) or job.status not in POSSIBLE_FOR[deed]:
        raise ValueError(f'cannot {deed} {name_of(job)}')
    if deed == 'retry' and not is_failure(job.result):
        raise ValueError(f'cannot retry {name_of(job)}: it succeeded')


def _do(deed, job, reason):
    _check(deed, job)
    if deed == 'hold':
        job.hold(reason)
    elif deed == 'remove':
        job.queue.remove(job)
    else:
        getattr(job, deed)()


# Queues.


def _queue(queues, name):
    if name not in queues:
        raise LookupError(f'there is no queue {name!r}; there are {list(queues)}')
    return queues[name]


def pause(queues, queue='', until=None):
    """Let a queue hand out nothing, until unpaused or `until` (a time or an interval ahead)."""
    found = _queue(queues, queue)
    if until is None:
        found.pause()
    else:
        now = clock.micros()
        then = moment(until, now)
        found.pause(clock.datetime_of(2 * now - then if then < now else then))
    ends = found.paused_until
    told = str(ends) if ends is True else f'{ends:%Y-%m-%d %H:%M:%S} UTC'
    return {'queue': queue, 'paused': True, 'until': told}


def unpause(queues, queue=''):
    """Let a queue hand out jobs again."""
    _queue(queues, queue).unpause()
    return {'queue': queue, 'paused': False}


def set_quota(queues, name, size=None, queue='', remove=False):
    """Make a quota, set its size, or remove it."""
    quotas = _queue(queues, queue).quotas
    if remove:
        if name not in quotas:
            raise LookupError(f'queue {queue!r} has no quota {name!r}; there are {list(quotas)}')
        quotas.remove(name)
        return {'queue': queue, 'quota': name, 'size': None}
    if name not in quotas:
        quotas.create(name, 1 if size is None else size)
    elif size is not None:
        quotas[name].size = size
    return {'queue': queue, 'quota': name, 'size': quotas[name].size}


def set_agent(queues, agent='main', size=None, channels=None, queue=None, dispatcher=None):
    """Set the size and the channels ([] for all) of the agents of that name; returns them."""
    search = wanted((), agent=agent, queue=queue, dispatcher=dispatcher)
    found = list(view.agents_of(queues, search))
    if not found:
        raise LookupError(f'there is no agent like {agent!r}')
    for *_, each in found:
        if size is not None:
            each.size = size
        if channels is not None:
            each.channels = channels or None
    return [
        {
            'queue': queue.name,
            'dispatcher': str(record.UUID),
            'agent': each.name,
            'size': each.size,
            'channels': None if each.channels is None else list(each.channels),
        }
        for queue, record, each in found
    ]


def set_retention(queues, days=None, failed_days=None, count=None, queue=None):
    """How long the agents of a queue (None: all) keep finished jobs and failures, and how many."""
    number = 0
    for *_, agent in view.agents_of(queues, wanted((), queue=queue)):
        history = agent.history
        if days is not None:
            history.keep_seconds = days * 86400
        if failed_days is not None:
            history.keep_failed_seconds = failed_days * 86400
        if count is not None:
            history.keep_count = count
        number += 1
    return {'agents': number}


def prune(queues, preview=False, stale_days=None, dispatcher=None):
    """Forget finished jobs kept long enough, and records of dispatchers that are no more.

    `stale_days`: also records of dispatchers that ended so long ago, with the
    finished jobs they kept; `dispatcher` is the UUID of one such record.
    Returns 'jobs', 'dispatchers' (UUIDs), and 'more', whether to come again.
    """
    now = clock.micros()
    count, more, gone = 0, False, set()
    for queue in queues.values():
        for record in list(queue.dispatchers.values()):
            if _is_stale(record, now, stale_days, dispatcher):
                gone.add(str(record.UUID))
                if not preview:
                    queue.dispatchers.unregister(record.UUID)
            elif dispatcher is None:
                for agent in record.values():
                    swept = _sweep(queue, agent, now, preview)
                    count += swept
                    more |= bool(swept) and not preview and agent.history.is_due(now)
    return {'jobs': count, 'dispatchers': sorted(gone), 'more': more}


def _sweep(queue, agent, now, preview):
    if not agent.history.is_due(now):
        return 0
    if preview:
        return agent.history.outdated(now)
    swept = agent.history.sweep(now)
    for job in swept:
        queue.notes.drop(int.from_bytes(job._p_oid, 'big'))
    return len(swept)


def _is_stale(record, now, stale_days, dispatcher):
    if record.activated is not None or any(len(agent) for agent in record.values()):
        return False
    if dispatcher is not None:
        return str(record.UUID) == str(dispatcher)
    if stale_days is None:
        return record.is_stale(now)
    ended = record.ended
    return ended is None or ended <= now - round(stale_days * 86400 * clock.SECOND)


def put(queues, call, args=(), kwargs=None, queue='', **options):
    """Put a job that calls the function of that dotted name; returns its number."""
    from zodbjobs.model.call import resolved

    found = _queue(queues, queue)
    function = resolved(call)
    job = found.put(
        view.Job(function, *args, **(kwargs or {})),
        **{name: value for name, value in options.items() if value is not None},
    )
    return {'oid': job.oid, 'id': job.id, 'queue': queue, 'call': job.call_name}
