"""What callers may wish of a job, checked and in the form that is stored.

Each function returns what is kept, or raises TypeError or ValueError with what
to do instead; None, the absent wish, stays None.

Runs in the caller's transaction and touches no stored object.
"""

from zodbjobs import clock
from zodbjobs.interfaces import MultipleDelayError
from zodbjobs.model.call import check_storable

MAX_PRIORITY = 2**32 - 1

#: Seconds between asking a job to stop and giving up its thread, unless said otherwise.
KILL_AFTER_SECONDS = 10


def checked_priority(priority):
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise TypeError(f'priority is a whole number, not {priority!r}')
    if not 0 <= priority <= MAX_PRIORITY:
        raise ValueError(f'priority is 0 to {MAX_PRIORITY} (smaller first), not {priority}')
    return priority


def checked_capacity(capacity):
    if capacity is None:
        return None
    if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 0:
        raise ValueError(f'capacity is a whole number of waiting jobs, or None, not {capacity!r}')
    return capacity


def checked_channel(channel):
    if channel is not None and not isinstance(channel, str):
        raise TypeError(f'channel is a text or None, not {channel!r}')
    return channel or None


def checked_span(span, name):
    """Microseconds of a timedelta or seconds that must not be negative; None stays None."""
    if span is None:
        return None
    span = clock.micros_in(span)
    if span < 0:
        raise ValueError(f'{name} may not be negative')
    return span


def checked_limit(limit):
    """(soft, hard) microseconds of a time limit; None stays None."""
    if limit is None:
        return None
    if not isinstance(limit, (tuple, list)):
        soft = checked_span(limit, 'time_limit')
        limit = (soft, soft + KILL_AFTER_SECONDS * clock.SECOND)
    else:
        limit = tuple(checked_span(each, 'time_limit') for each in limit)
    if len(limit) != 2 or not 0 < limit[0] <= limit[1]:
        raise ValueError('time_limit is seconds, or (soft, hard) with 0 < soft <= hard')
    return limit


def checked_due(begin_after, delay, now):
    if delay is None:
        return None if begin_after is None else clock.micros_of(begin_after)
    if begin_after is not None:
        raise MultipleDelayError(
            f'begin_after={begin_after!r} and delay={delay!r} both say when to begin: give one'
        )
    return now + checked_span(delay, 'delay')


def checked_retries(retries, factory):
    if retries is None:
        return None
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise ValueError(f'retries is a whole number from 0 on, not {retries!r}')
    if factory is not None:
        raise ValueError('retries and retry_policy_factory were both given: give one')
    return retries


def check_factory(factory, jar=None):
    """Raise unless `factory` can be asked for a policy, and stored by `jar` where that is known."""
    if factory is None or isinstance(factory, str):
        return
    if not callable(factory):
        raise TypeError(
            f'retry_policy_factory is the name of an adapter or a callable, not {factory!r}'
        )
    if jar is not None:
        check_storable(factory, jar, 'retry_policy_factory')


def checked_level(level):
    if level is not None and (isinstance(level, bool) or not isinstance(level, int)):
        raise TypeError(f'failure_log_level is a number such as logging.ERROR, not {level!r}')
    return level


def checked_id(id):
    if id is not None and (not isinstance(id, str) or not id):
        raise TypeError(f'id is a text that is not empty, not {id!r}')
    return id
