"""Which jobs are wanted: states, patterns and spans of time, checked once.

A `Wanted` is plain data, so it may come from Python, from a command line or
through a socket.  Nothing here reads a database, save the job it is shown.
"""

import dataclasses
import datetime
import fnmatch
import re
import uuid

from zodbjobs import clock, status

SUCCEEDED, FAILED, CANCELLED = 'succeeded', 'failed', 'cancelled'
DUE, LATER = 'due', 'later'

#: What may be asked for.  'due' and 'later' are pending ones, the last three completed ones.
STATES = (
    status.PENDING, DUE, LATER, status.HELD, status.ASSIGNED, status.ACTIVE, status.CALLBACKS,
    status.COMPLETED, SUCCEEDED, FAILED, CANCELLED,
)  # fmt: skip

WAITING = frozenset((status.PENDING, DUE, LATER))
WITH_AGENT = frozenset((status.ASSIGNED, status.ACTIVE, status.CALLBACKS))
ENDED = frozenset((status.COMPLETED, SUCCEEDED, FAILED, CANCELLED))

_OUTCOMES = {'success': SUCCEEDED, 'failure': FAILED, 'cancelled': CANCELLED}
_SPANS = ('requested', 'started', 'ended', 'told')
_INTERVAL = re.compile(
    r'(?:(\d+)W)?(?:(\d+)D)?(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?', re.IGNORECASE
)


def moment(text, now=None):
    """Microseconds of an instant.

    `text` is a datetime (naive is UTC), an ISO 8601 text, or an interval such
    as ``1H30M`` (W, D, H, M, S), which means that long ago.  Raises ValueError.
    """
    if isinstance(text, datetime.datetime):
        return clock.micros_of(text)
    if isinstance(text, datetime.timedelta):
        return (clock.micros() if now is None else now) - clock.micros_in(text)
    found = _INTERVAL.fullmatch(text.strip())
    if found is not None and text.strip():
        weeks, days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
        ago = datetime.timedelta(
            weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds
        )
        return (clock.micros() if now is None else now) - clock.micros_in(ago)
    try:
        return clock.micros_of(datetime.datetime.fromisoformat(text))
    except ValueError:
        raise ValueError(
            f'{text!r} is no time: say how long ago, such as 1H30M or 7D, or when, such as'
            f' 2026-11-21T14:05 (UTC)'
        ) from None


def span(text):
    """(since, before) in microseconds, each may be None, of ``since1H,before30M``.

    A bare time means since then.  A pair is taken as it is, each side a time
    as for `moment`, or None.
    """
    if not isinstance(text, str):
        since, before = text
        return tuple(None if side is None else moment(side) for side in (since, before))
    found = {'since': None, 'before': None}
    for part in text.split(','):
        part = part.strip()
        word = next((word for word in found if part.startswith(word)), None)
        found[word or 'since'] = moment(part.removeprefix(word or '').lstrip(':= '))
    return found['since'], found['before']


def _checked_states(states):
    if isinstance(states, str):
        states = states.replace(',', ' ').split()
    for state in states:
        if state not in STATES:
            raise ValueError(f'{state!r} is no state; there are {", ".join(STATES)}')
    return frozenset(states)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which jobs: made by `wanted`.

    `callable`, `queue`, `agent` and `id` are glob patterns (``?`` ``*``
    ``[seq]`` ``[!seq]``); a `callable` without a dot is matched with the
    function's own name, else with its dotted name.  `dispatcher` is a UUID or
    its first digits.  `requested` (begin_after), `started`, `ended` and `told`
    (callbacks completed) are pairs (since, before).
    """

    states: frozenset
    callable: str | None = None
    queue: str | None = None
    agent: str | None = None
    dispatcher: str | None = None
    channel: str | None = None
    quota: str | None = None
    id: str | None = None
    requested: tuple | None = None
    started: tuple | None = None
    ended: tuple | None = None
    told: tuple | None = None

    def has_queue(self, name):
        return self.queue is None or fnmatch.fnmatchcase(name, self.queue)

    def has_agent(self, record, agent):
        """Whether an agent (of that dispatcher's record) is one of those wanted."""
        return self.has_dispatcher(record) and (
            self.agent is None or fnmatch.fnmatchcase(agent.name, self.agent)
        )

    def has_dispatcher(self, record):
        return self.dispatcher is None or str(record.UUID).startswith(self.dispatcher)

    @property
    def names_agents(self):
        return self.agent is not None or self.dispatcher is not None

    @property
    def is_plain(self):
        """Whether only states and queues are named, which can be counted without a look."""
        return all(
            value is None for name, value in vars(self).items() if name not in ('states', 'queue')
        )

    def accepts(self, job):
        """Whether the job, which has one of the states already, is as wanted."""
        if self.channel is not None and (job.channel or '') != self.channel:
            return False
        if self.quota is not None and self.quota not in job.quota_names:
            return False
        if self.id is not None and not fnmatch.fnmatchcase(job.id or '', self.id):
            return False
        return self._is_called(job) and self._is_in_time(job)

    def _is_called(self, job):
        if self.callable is None:
            return True
        name = job.call_name
        if '.' not in self.callable:
            name = name.rpartition('.')[2]
        return fnmatch.fnmatchcase(name, self.callable)

    def _is_in_time(self, job):
        return all(
            _within(getattr(self, name), getattr(job, f'_{stored}'))
            for name, stored in zip(
                _SPANS, ('due', 'active_start', 'active_end', 'told'), strict=True
            )
        )

    def has_state(self, job, state, now):
        """Whether a job that stands in `state` (one of zodbjobs.status) is wanted by that."""
        if state in self.states:
            return True
        if state == status.PENDING:
            return (DUE if job._due <= now else LATER) in self.states
        return state == status.COMPLETED and _OUTCOMES[job.outcome] in self.states


def _within(pair, micros):
    if pair is None:
        return True
    since, before = pair
    if micros is None:
        return False
    return (since is None or micros >= since) and (before is None or micros < before)


def wanted(states=(), **filters):
    """A `Wanted`; no state means all of them.

    Raises ValueError for an unknown state or time, and for a span of time that
    jobs in one of the states cannot have; TypeError for an unknown filter.
    """
    states = _checked_states(states)
    known = {field.name for field in dataclasses.fields(Wanted)}
    unknown = set(filters) - known
    if unknown:
        raise TypeError(f'unknown filter {sorted(unknown)}; there are {sorted(known)}')
    given = {name: value for name, value in filters.items() if value is not None}
    for name in _SPANS:
        if name in given:
            given[name] = span(given[name])
    if 'dispatcher' in given:
        given['dispatcher'] = _uuid_text(given['dispatcher'])
    _refuse_timeless(states, given)
    return Wanted(states or _possible(given), **given)


def _uuid_text(value):
    return str(value) if isinstance(value, uuid.UUID) else str(value).lower()


def _timeless(given):
    """The states in which a job cannot have the times that are asked for."""
    found = set()
    if 'started' in given:
        found |= WAITING | {status.HELD}
    if 'ended' in given:
        found |= WAITING | {status.HELD, status.ASSIGNED, status.ACTIVE}
    if 'told' in given:
        found |= WAITING | {status.HELD} | WITH_AGENT
    return found


def _refuse_timeless(states, given):
    wrong = sorted(states & _timeless(given))
    if wrong:
        spans = ' and '.join(name for name in _SPANS[1:] if name in given)
        raise ValueError(f'jobs that are {" or ".join(wrong)} have no time for {spans}')


def _possible(given):
    every = {status.PENDING, status.HELD, *WITH_AGENT, status.COMPLETED}
    return frozenset(every - _timeless(given))
