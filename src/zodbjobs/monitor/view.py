"""The jobs of a database, seen from outside: lists, counts, the next and the last.

Every list is a walk along the structures in which jobs wait, run or are kept,
and ends at a limit: nothing reads all there is.  A walk also ends after `look`
jobs that were not as wanted, and `Found` says so.

Runs in the caller's transaction, on the caller's connection, and writes nothing.
"""

import heapq
import itertools

from ZODB.broken import Broken
from ZODB.utils import p64

from zodbjobs import clock, status
from zodbjobs.model import hosts
from zodbjobs.model.handout import is_current
from zodbjobs.model.intake import LANES, entries_of
from zodbjobs.model.job import Job
from zodbjobs.model.ready import KIND
from zodbjobs.monitor.alive import serves
from zodbjobs.monitor.wanted import (
    CANCELLED,
    ENDED,
    FAILED,
    SUCCEEDED,
    WAITING,
    WITH_AGENT,
    wanted,
)

#: Jobs that one walk looks at, unless told otherwise.
LOOK = 5_000

#: Jobs that are listed, unless told otherwise.
LIMIT = 50

#: A finished job is listed a moment after its end: the walk begins so much later.
LISTED_SECONDS = 3600

#: Of each lane of a queue so many entries are looked at that no dispatcher has sorted yet.
UNSORTED = 2000

#: Jobs at the front of a group that `oldest_due` looks at: some were withdrawn, or are claimed.
FIRST_LOOKS = 20

#: Groups (of priority, channel and quotas) that `oldest_due` looks at.
FIRST_GROUPS = 500

#: Entries at the front of a queue that are looked at for jobs that only have callbacks to tell.
URGENT_LOOK = 200


class Found(list):
    """Jobs that were found.  `looked_at` were looked at; `is_all`: there are no others."""

    looked_at = 0
    is_all = True


def jobs(queues, *states, limit=LIMIT, look=LOOK, **filters):
    """The jobs in these states, at most `limit`, as a `Found`.

    `queues` is the mapping at root[KEY].  States and filters are those of
    `zodbjobs.monitor.wanted.Wanted`; no state means all.  Running jobs come first, the
    oldest start first; then the waiting ones in the order in which they will be
    claimed; then the held; then those that ended, the latest first.
    """
    search = wanted(states, **filters)
    found = Found()
    for job in _walk(queues, search, look, found):
        if limit is not None and len(found) >= limit:
            found.is_all = False
            break
        found.append(job)
    return found


def count(queues, *states, look=LOOK, **filters):
    """(how many jobs there are like that, whether the number is exact).

    Without filters, other than for queues, the counts that the structures keep
    are given, which may be off by what is on its way between two of them.
    Else at most `look` jobs are looked at; a number that is not exact is then
    what was found among them.
    """
    search = wanted(states, **filters)
    kept = _kept_count(queues, search) if search.is_plain else None
    if kept is not None:
        return kept, True
    found = Found()
    number = sum(1 for _ in _walk(queues, search, look, found))
    return number, found.is_all


def next_pending(queues, **filters):
    """The due job that is claimed next, or None.  No times but `requested` may be asked for."""
    found = jobs(queues, 'due', limit=1, **filters) or jobs(queues, 'later', limit=1, **filters)
    return found[0] if found else None


def last_completed(queues, **filters):
    """The job that finished last, or None."""
    found = jobs(queues, 'completed', limit=1, **filters)
    return found[0] if found else None


def find(queues, name):
    """The job of that oid (an int, or its digits), or that has the id `name`.

    Raises LookupError, which says where was looked.
    """
    text = str(name)
    if text.isdigit():
        try:
            job = queues._p_jar.get(p64(int(text)))
        except KeyError:  # a POSKeyError
            job = None
        if isinstance(job, (Job, Broken)):
            return job
    for queue in queues.values():
        job = queue.ids.get(text)
        if job is not None:
            return job
    raise LookupError(
        f'there is no job {text!r}: neither a job of that number, nor an unfinished one of that id'
        f' in {len(queues)} queues'
    )


# The walks.  Each yields jobs that have a wanted state.


def _walk(queues, search, look, found):
    now = clock.micros()
    streams = []
    for name, queue in queues.items():
        if search.has_queue(name):
            streams.append((queue, now, search, found))
    walks = [
        itertools.chain.from_iterable(itertools.starmap(_running, streams)),
        _merged(itertools.starmap(_waiting, streams)),
        itertools.chain.from_iterable(itertools.starmap(_held, streams)),
        _ended(queues, search),
    ]
    for job in itertools.chain.from_iterable(walks):
        if found.looked_at >= look:
            found.is_all = False
            return
        found.looked_at += 1
        if job is not None and not isinstance(job, Broken) and search.accepts(job):
            yield job


def agents_of(queues, search):
    """Yield (queue, record of a dispatcher, agent) of those that `search` names."""
    for name, queue in queues.items():
        if search.has_queue(name):
            for record in queue.dispatchers.values():
                for agent in record.values():
                    if search.has_agent(record, agent):
                        yield queue, record, agent


def _running(queue, now, search, found):
    if not search.states & WITH_AGENT:
        return
    entries = []
    for _, _, agent in agents_of({queue.name: queue}, search):
        entries += [(claimed, job, token) for _, token, job, _, claimed in agent.entries()]
        entries += [
            (getattr(job, '_active_start', None) or now, job, getattr(job, '_token', None))
            for _, job in entries_of(agent.waiting)
        ]
    for _, job, token in sorted(entries, key=lambda entry: entry[0]):
        if getattr(job, '_token', None) == token:
            state = job.status
            if state in WITH_AGENT and state in search.states:
                yield job
    if status.CALLBACKS in search.states and not search.names_agents:
        yield from _urgent(queue)


def _urgent(queue):
    """Jobs that wait for a thread, to tell their callbacks: they stand before all others."""
    waiting = queue.waiting(UNSORTED, (status.CALLBACKS, status.PENDING))
    front = itertools.islice(waiting, URGENT_LOOK)
    yield from itertools.takewhile(lambda job: job._status == status.CALLBACKS, front)


def _waiting(queue, now, search, found):
    if not search.states & WAITING:
        return
    takers = None
    if search.names_agents:
        takers = [agent for *_, agent in agents_of({queue.name: queue}, search)]
    if queue.intake.count() > UNSORTED:
        found.is_all = False
    with_due = bool(search.states & WAITING - {'later'})
    for job in queue.waiting(UNSORTED, with_due=with_due):
        state = job.status
        if state != status.PENDING:
            yield None  # claimed a moment ago
        elif state in search.states or search.has_state(job, state, now):
            if takers is None or any(takes(agent, job) for agent in takers):
                yield job
        elif job._due > now and 'later' not in search.states:
            return  # those that come now are due later still
        else:
            yield None


def _held(queue, now, search, found):
    if status.HELD in search.states and not search.names_agents:
        yield from (job for job in queue.held.values() if job._status == status.HELD)


def _ended(queues, search):
    if not search.states & ENDED:
        return
    failed = None
    if status.COMPLETED not in search.states:
        kinds = search.states & {SUCCEEDED, FAILED, CANCELLED}
        failed = {frozenset((SUCCEEDED,)): False}.get(kinds, None if SUCCEEDED in kinds else True)
    since, before = search.told or search.ended or (None, None)
    if before is not None:
        before += LISTED_SECONDS * clock.SECOND
    agents = [agent for *_, agent in agents_of(queues, search)]
    walks = [agent.history.walk(failed, since, before) for agent in agents]
    walks += [_just_ended(agent) for agent in agents]
    now = clock.micros()
    for _, job in heapq.merge(*walks, key=lambda item: item[0], reverse=True):
        if isinstance(job, Broken) or search.has_state(job, job.status, now):
            yield job
        else:
            yield None


def _just_ended(agent):
    """[(microseconds, job)] of what has finished, and stands in no history yet; newest first."""
    found = [
        (job._told or job._active_end or claimed, job)
        for _, token, job, _, claimed in agent.entries()
        if getattr(job, '_token', None) == token and job._status == status.COMPLETED
    ]
    return sorted(found, key=lambda item: item[0], reverse=True)


def _merged(streams):
    """Merge the waiting jobs of several queues by priority and date."""
    return heapq.merge(*streams, key=_place)


def _place(job):
    return (-1, 0) if job is None else (job._priority, job._due)


def oldest_due(queue, now):
    """The waiting job that has been due for longest at `now` (microseconds), or None.

    One that waits for other jobs is not due.  Of what no dispatcher has sorted
    yet, and of very many groups, the first ones are looked at.
    """
    found = []
    for lane in range(LANES):
        for _, _, entry in queue.intake.entries(UNSORTED, (lane,)):
            if 0 <= entry.due <= now:
                found.append((entry.token, entry.job))
    groups = itertools.chain.from_iterable(queue.ready.runs())
    for group in itertools.islice(groups, FIRST_GROUPS):
        streams = itertools.islice(queue.ready.stream(group), FIRST_LOOKS)
        found += [(token, job) for token, _, _, job in streams]
    for token, job in sorted(found, key=lambda item: item[0]):
        if is_current(job, token) and job._status == status.PENDING and job._due <= now:
            return job
    return None


# Who takes what.


def unmet(queue, needs=None):
    """The bits of what due jobs need (see `zodbjobs.model.hosts`) and no dispatcher has.

    Of what no dispatcher has sorted yet the first entries are looked at.  With
    `needs` it is asked for those bits only.
    """
    if needs is None:
        needs, kinds = 0, [entry.group[KIND] for _, _, entry in queue.intake.entries(UNSORTED)]
        kinds += [group[KIND] for group in itertools.islice(queue.ready.groups, FIRST_GROUPS)]
        for kind in kinds:
            needs |= kind
    for record in queue.dispatchers.values():
        if hosts.missing(needs, 0) and serves(record):
            needs = hosts.missing(needs, record.hosts)
    return hosts.missing(needs, 0)


def takes(agent, job):
    """Whether the agent would take the job, by what it needs, its channels and its filter.

    An agent with a chooser does as it likes, and is said to take everything.
    A filter that raises refuses.
    """
    if agent.size < 1 or not has_channel(agent, job):
        return False
    if agent.parent is not None and hosts.missing(job.needs, agent.parent.hosts):
        return False
    if agent.filter is None:
        return True
    try:
        return bool(agent.filter(job))
    except Exception:  # noqa: BLE001 - user code
        return False


def has_channel(agent, job):
    return agent.channels is None or (job.channel or '') in agent.channels


# Counts that are kept.


def _kept_count(queues, search):
    """The sum of the counts of the structures, or None where some state has none of its own."""
    now = clock.micros()
    total = 0
    chosen = [queue for name, queue in queues.items() if search.has_queue(name)]
    for state in search.states:
        if state == status.PENDING:
            total += sum(len(queue) for queue in chosen)
        elif state == status.HELD:
            total += sum(len(queue.held) for queue in chosen)
        elif state in WITH_AGENT:
            for queue in chosen:
                only = wanted((state,))
                total += sum(job is not None for job in _running(queue, now, only, None))
        elif state in (status.COMPLETED, SUCCEEDED, FAILED):
            for *_, agent in agents_of(queues, search):
                number = ended_count(agent.history, state)
                just = [job for _, job in _just_ended(agent)]
                if number is None or (just and state != status.COMPLETED):
                    return None
                total += number + len(just)
        else:
            return None
    return total


def ended_count(history, state):
    """How many jobs a history has, or None if it cannot tell for `state`."""
    counts = history.counts()
    if state == status.COMPLETED:
        return sum(counts.values())
    if counts['kept'] or state == CANCELLED:
        return None
    return counts['done'] if state == SUCCEEDED else None if counts['failed'] else 0
