"""How jobs are named that somebody wants to see: states, times, patterns."""

import datetime

import pytest

from zodbjobs import clock
from zodbjobs.monitor.wanted import moment, span, wanted

NOON = clock.micros_of(datetime.datetime(2026, 11, 21, 12))
HOUR = 3600 * clock.SECOND


@pytest.mark.parametrize(
    'text, ago',
    [
        ('1H', HOUR),
        ('1h30m', HOUR * 3 // 2),
        ('2D', 48 * HOUR),
        ('1W', 7 * 24 * HOUR),
        ('0.5S', clock.SECOND // 2),
    ],
)
def test_an_interval_is_that_long_ago(text, ago):
    assert moment(text, NOON) == NOON - ago


@pytest.mark.parametrize(
    'text', ['2026-11-21T12:00', '2026-11-21 12:00:00+00:00', '2026-11-21T13:00+01:00']
)
def test_an_instant_without_a_zone_is_in_utc(text):
    assert moment(text) == NOON


@pytest.mark.parametrize('text', ['', 'soon', '1X', '12', '2026-13-01'])
def test_what_is_no_time_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match='1H30M'):
        moment(text)


def test_spans():
    """One side or both, in the words of the command line or as a pair."""
    since, before = span('since2026-11-21T11:00,before2026-11-21T12:00')
    assert (since, before) == (NOON - HOUR, NOON)
    assert span('before=2026-11-21T12:00') == (None, NOON)
    assert span('2026-11-21T12:00') == (NOON, None)
    assert span((None, clock.datetime_of(NOON))) == (None, NOON)


def test_an_unknown_state_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="'waiting' is no state; there are pending, due"):
        wanted(('pending', 'waiting'))
    with pytest.raises(TypeError, match='unknown filter'):
        wanted(('pending',), colour='red')


def test_a_time_that_such_jobs_cannot_have_is_refused():
    with pytest.raises(ValueError, match='jobs that are pending have no time for started'):
        wanted(('pending', 'completed'), started='1H')
    with pytest.raises(ValueError, match='active'):
        wanted(('active',), ended='1H')
    assert wanted((), ended='1H').states == {'completed', 'callbacks'}
    assert 'pending' not in wanted((), started='1H').states
