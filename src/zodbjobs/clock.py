"""The one door to time.

Whatever this package knows of the time it asks here, so a test may turn the
clock without patching anything.  Instants are kept as whole microseconds since
1970-01-01 UTC (an int: small in a pickle, exact, sortable) and shown to users
as aware datetimes in ``pytz.UTC``, the zone zc.async's users compare with.

Any thread may call these functions; a source must be safe to read from any
thread.  Nothing here sleeps.
"""

import datetime
import time

import pytz

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=pytz.UTC)
MICROSECOND = datetime.timedelta(microseconds=1)
SECOND = 1_000_000  # microseconds


class SystemTime:
    """The machine's own clock: the source used unless a test gives another."""

    def micros(self):
        """Microseconds since 1970-01-01 UTC, as an int."""
        return time.time_ns() // 1000

    #: Seconds of a clock that never steps back, as a float.
    monotonic = staticmethod(time.monotonic)


_source = SystemTime()


def use(source=None):
    """Take the time from `source`; None goes back to the machine's clock.

    `source` has ``micros()`` and ``monotonic()`` as `SystemTime` has.  The
    source that was in use is returned.
    """
    global _source
    former, _source = _source, SystemTime() if source is None else source
    return former


def micros():
    """Now, as microseconds since 1970-01-01 UTC (int)."""
    return _source.micros()


def monotonic():
    """Seconds (float) of a clock for measuring durations."""
    return _source.monotonic()


def now():
    """Now, as an aware datetime in UTC."""
    return datetime_of(micros())


def datetime_of(us):
    """The aware UTC datetime of `us` microseconds; None stays None."""
    if us is None:
        return None
    return EPOCH + datetime.timedelta(microseconds=us)


def micros_of(moment):
    """The microseconds of a datetime.

    A naive `moment` is UTC, another zone is converted.  Raises ValueError
    for a local time that is ambiguous or does not exist, and for a pytz zone
    that was passed as ``tzinfo=`` (which pytz answers with local mean time).
    """
    if not isinstance(moment, datetime.datetime):
        raise TypeError(
            f'a datetime is needed, not {moment!r}; for "in so many seconds" use delay='
        )
    zone = moment.tzinfo
    if zone is None:
        moment = moment.replace(tzinfo=pytz.UTC)
    elif zone is not pytz.UTC and zone is not datetime.timezone.utc:
        _refuse_unclear(moment, zone)
    return (moment - EPOCH) // MICROSECOND


def _refuse_unclear(moment, zone):
    if hasattr(zone, 'localize'):
        _refuse_mean_time(moment, zone)
    elif moment.replace(fold=0).utcoffset() != moment.replace(fold=1).utcoffset():
        raise ValueError(
            f'{moment.replace(tzinfo=None)} is ambiguous or does not exist in {zone}:'
            f' the clocks change then; pass the time in UTC'
        )


def _refuse_mean_time(moment, zone):
    # pytz keeps an object for each offset a zone ever had, so the instant of a datetime is never in
    # doubt, even after adding days across a change of the clocks.  But pytz.timezone() answers with
    # the object of the oldest offset; passed as tzinfo= that is wrong by some minutes or an hour.
    name = getattr(zone, 'zone', None)
    if name is None or zone is not pytz.timezone(name) or zone.normalize(moment).tzinfo is zone:
        return
    raise ValueError(
        f'{moment.replace(tzinfo=None)} in {name} was made with tzinfo=, which gives local mean'
        f' time; use pytz.timezone({name!r}).localize(...)'
    )


def micros_in(delay):
    """Microseconds in `delay`, which is seconds (a number) or a timedelta."""
    if isinstance(delay, datetime.timedelta):
        return delay // MICROSECOND
    if isinstance(delay, bool) or not isinstance(delay, (int, float)):
        raise TypeError(f'seconds or a timedelta are needed, not {delay!r}')
    return round(delay * SECOND)
