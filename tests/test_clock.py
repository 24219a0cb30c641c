"""What users may expect when they give a time: one clear instant, or a refusal."""

import datetime
import zoneinfo

import pytest
import pytz
from hypothesis import given
from hypothesis import strategies as st

from zodbjobs import clock

SUMMER = datetime.datetime(2026, 7, 1, 12, 0)
WINTER = datetime.datetime(2026, 1, 1, 12, 0)
TWICE = datetime.datetime(2026, 10, 25, 2, 30)  # the clocks go back at 3:00
NEVER = datetime.datetime(2026, 3, 29, 2, 30)  # the clocks go forward at 2:00
ZURICH = zoneinfo.ZoneInfo('Europe/Zurich')
PYTZ_ZURICH = pytz.timezone('Europe/Zurich')


class Stopped:
    """A source of time that stands still."""

    def micros(self):
        return 1_155_224_662_000_211

    def monotonic(self):
        return 5.0


def utc(*args):
    return datetime.datetime(*args, tzinfo=pytz.UTC)


def shown(moment):
    """`moment` as it is shown to users after it was kept."""
    return clock.datetime_of(clock.micros_of(moment))


# Now ---------------------------------------------------------------------------------------


def test_now_is_the_machines_time_in_utc():
    before = datetime.datetime.now(pytz.UTC)
    assert before - clock.MICROSECOND <= clock.now() <= datetime.datetime.now(pytz.UTC)
    assert clock.now().tzinfo is pytz.UTC
    assert clock.monotonic() <= clock.monotonic()


def test_another_source_may_be_used_and_given_back():
    source = Stopped()
    former = clock.use(source)
    assert clock.now() == utc(2006, 8, 10, 15, 44, 22, 211)
    assert (clock.micros(), clock.monotonic()) == (1_155_224_662_000_211, 5.0)
    assert clock.use(former) is source
    assert clock.now().year > 2006


def test_use_without_a_source_is_the_machines_clock():
    clock.use(Stopped())
    clock.use()
    assert clock.now().year > 2006


# Instants ----------------------------------------------------------------------------------


@given(st.datetimes(datetime.datetime(1, 1, 2), datetime.datetime(9999, 12, 30)))
def test_no_microsecond_is_lost(naive):
    assert shown(naive) == naive.replace(tzinfo=pytz.UTC)


@given(st.datetimes(datetime.datetime(1900, 1, 1)), st.datetimes(datetime.datetime(1900, 1, 1)))
def test_instants_sort_as_their_datetimes(one, other):
    assert (clock.micros_of(one) < clock.micros_of(other)) == (one < other)


def test_none_is_no_instant():
    assert clock.datetime_of(None) is None


@pytest.mark.parametrize('value', [5, '2026-07-01', datetime.date(2026, 7, 1), SUMMER - WINTER])
def test_only_a_datetime_is_an_instant(value):
    with pytest.raises(TypeError, match='delay='):
        clock.micros_of(value)


# Zones -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'moment, hour',
    [
        (SUMMER, 12),
        (SUMMER.replace(tzinfo=pytz.UTC), 12),
        (SUMMER.replace(tzinfo=datetime.UTC), 12),
        (SUMMER.replace(tzinfo=zoneinfo.ZoneInfo('UTC')), 12),
        (SUMMER.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=5))), 7),
        (SUMMER.replace(tzinfo=pytz.FixedOffset(300)), 7),
        (SUMMER.replace(tzinfo=pytz.timezone('Etc/GMT-5')), 7),
        (SUMMER.replace(tzinfo=ZURICH), 10),
        (WINTER.replace(tzinfo=ZURICH), 11),
        (PYTZ_ZURICH.localize(SUMMER), 10),
        (PYTZ_ZURICH.localize(WINTER), 11),
        (PYTZ_ZURICH.localize(TWICE, is_dst=True), 0),
        (PYTZ_ZURICH.localize(TWICE, is_dst=False), 1),
        (pytz.timezone('EST5EDT').localize(WINTER), 17),
        (pytz.timezone('EST5EDT').localize(SUMMER), 16),
    ],
)
def test_zones_are_converted(moment, hour):
    assert shown(moment) == moment.replace(hour=hour, tzinfo=pytz.UTC)


@pytest.mark.parametrize('fold', [0, 1])
@pytest.mark.parametrize('moment', [TWICE, NEVER])
def test_a_time_that_comes_twice_or_never_is_refused(moment, fold):
    with pytest.raises(ValueError, match='ambiguous or does not exist in Europe/Zurich'):
        clock.micros_of(moment.replace(tzinfo=ZURICH, fold=fold))


@pytest.mark.parametrize('minutes', [-31, 30])
def test_the_minutes_around_a_change_are_clear(minutes):
    around = TWICE + datetime.timedelta(minutes=minutes)
    expected = around.replace(tzinfo=ZURICH).astimezone(pytz.UTC)
    assert shown(around.replace(tzinfo=ZURICH)) == expected


@pytest.mark.parametrize('moment', [SUMMER, WINTER, TWICE, NEVER])
def test_a_pytz_zone_given_as_tzinfo_is_refused(moment):
    with pytest.raises(ValueError, match=r"pytz\.timezone\('Europe/Zurich'\)\.localize"):
        clock.micros_of(moment.replace(tzinfo=PYTZ_ZURICH))


def test_days_may_be_added_across_a_change_of_the_clocks():
    """pytz leaves the offset as it was, so the instant is clear."""
    day_before = PYTZ_ZURICH.localize(datetime.datetime(2026, 3, 28, 12))
    assert shown(day_before + datetime.timedelta(days=1)) == utc(2026, 3, 29, 11)


def test_every_zone_of_pytz_can_be_used_as_pytz_wants():
    for zone in map(pytz.timezone, pytz.all_timezones):
        for moment in (SUMMER, WINTER):
            local = zone.localize(moment)
            assert shown(local) == local.astimezone(pytz.UTC)


# Delays ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'delay, micros',
    [
        (0, 0),
        (5, 5_000_000),
        (0.000001, 1),
        (0.1, 100_000),
        (-2.5, -2_500_000),
        (datetime.timedelta(days=1, microseconds=3), 86_400_000_003),
        (datetime.timedelta(seconds=-1), -1_000_000),
    ],
)
def test_delays_are_seconds_or_timedeltas(delay, micros):
    assert clock.micros_in(delay) == micros


@pytest.mark.parametrize('delay', [True, '5', None, SUMMER])
def test_other_delays_are_refused(delay):
    with pytest.raises(TypeError, match='seconds or a timedelta'):
        clock.micros_in(delay)
