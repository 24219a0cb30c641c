"""The log tells of a trouble when it begins and when it is over, and not in between."""

import errno
import logging

import pytest
from ZODB.POSException import ConflictError, ReadOnlyError

from zodbjobs import clock
from zodbjobs.runtime import trouble
from zodbjobs.runtime.complaint import Complaints, is_news


class ClientDisconnected(Exception):
    pass


ClientDisconnected.__module__ = 'ZEO.Exceptions'


class ServerException(Exception):
    pass


ServerException.__module__ = 'ZEO.Exceptions'

FULL = OSError(errno.ENOSPC, 'No space left on device')


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, 'zodbjobs')
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def complaints():
    return Complaints('the dispatcher', quiet_seconds=0)


def test_a_loss_and_a_return_are_a_line_each(complaints, said):
    for what in ('could not look for jobs', 'could not load job (1, "")'):
        complaints.hear(what, ClientDisconnected('gone\nfor now'))
    complaints.is_well(wrote=False)
    complaints.is_well(wrote=True)
    assert said() == ['the dispatcher lost the storage: gone', 'the dispatcher goes on']


def test_a_full_disk_is_over_when_something_was_written(complaints, said):
    complaints.hear('could not record job (1, "")', FULL)
    complaints.is_well(wrote=False)
    complaints.hear('could not record job (2, "")', FULL)
    complaints.is_well(wrote=True)
    assert said() == [
        'the dispatcher cannot write to the storage: [Errno 28] No space left on device',
        'the dispatcher goes on',
    ]


def test_two_troubles_at_once_end_together(complaints, said):
    complaints.hear('could not record job (1, "")', FULL)
    complaints.hear('could not load job (1, "")', ClientDisconnected('gone'))
    complaints.is_well(wrote=False)
    assert len(said()) == 2
    complaints.is_well(wrote=True)
    assert said()[2:] == ['the dispatcher goes on']


def test_what_is_read_from_a_cache_is_no_return(said):
    complaints = Complaints('the dispatcher', lambda: False, quiet_seconds=0)
    complaints.hear('could not look for jobs', ClientDisconnected('gone'))
    complaints.is_well(wrote=False)
    assert len(said()) == 1
    complaints.is_well(wrote=True)
    assert said()[1:] == ['the dispatcher goes on']


@pytest.fixture
def standing():
    """A clock that shows its `seconds`."""

    class Standing(clock.SystemTime):
        def monotonic(self):
            return self.seconds

    former = clock.use(source := Standing())
    yield source
    clock.use(former)


def test_what_comes_and_goes_is_one_trouble(said, standing):
    complaints = Complaints('the dispatcher', quiet_seconds=1)
    for seconds in (1, 1.5, 1.9):
        standing.seconds = seconds
        complaints.hear('could not look for jobs', ClientDisconnected('gone'))
        assert not complaints.is_well(wrote=True)
    standing.seconds = 2.8
    assert not complaints.is_well(wrote=False)
    standing.seconds = 2.9
    assert complaints.is_well(wrote=False)
    assert said() == ['the dispatcher lost the storage: gone', 'the dispatcher goes on']


def test_another_trouble_is_said_with_its_traceback(complaints, said, caplog):
    complaints.hear('could not load job (1, "")', ZeroDivisionError('not by nothing'))
    complaints.hear('could not load job (2, "")', ZeroDivisionError('not by nothing'))
    complaints.hear('could not finish job (2, "")', ZeroDivisionError('not by nothing'))
    assert len(said()) == 2
    assert all(record.exc_info for record in caplog.records)


def test_who_is_well_says_nothing(complaints, said):
    complaints.is_well(wrote=True)
    assert said() == []


# Which exceptions are refusals.


@pytest.mark.parametrize(
    'error',
    [
        FULL,
        OSError(errno.EDQUOT, 'Disk quota exceeded'),
        OSError(errno.EROFS, 'Read-only file system'),
        ReadOnlyError(),
        ServerException('builtins.OSError', (errno.ENOSPC, 'No space left on device')),
    ],
    ids=repr,
)
def test_refusals(error):
    assert trouble.is_refused(error)
    assert not trouble.is_conflict(error)
    assert not trouble.is_disconnected(error)


@pytest.mark.parametrize(
    'error',
    [
        OSError('odd'),
        FileNotFoundError(errno.ENOENT, 'No such file'),
        ConflictError(),
        ServerException('builtins.ValueError', ('x',)),
        ServerException(),
        ServerException('builtins.OSError', ()),
    ],
    ids=repr,
)
def test_no_refusals(error):
    assert not trouble.is_refused(error)


def test_a_jobs_own_full_disk_is_its_own():
    assert not trouble.is_refused(FULL, in_commit=False)
    assert trouble.is_refused(ReadOnlyError(), in_commit=False)


# What a handler lets through.


def record(name, error=None, level=logging.ERROR):
    exc_info = error and (type(error), error, None)
    return logging.LogRecord(name, level, __file__, 1, 'said', (), exc_info)


@pytest.mark.parametrize(
    'news',
    [
        record('zodbjobs.events', ClientDisconnected()),
        record('ZODB.Connection', KeyError('x')),
        record('ZODB.Connection'),
        record('application', ClientDisconnected()),
        record('relstorage.cache'),
        record('relstorage.adapters.connections', level=logging.INFO),
    ],
    ids=lambda news: f'{news.name}-{news.levelname}-{news.exc_info and news.exc_info[0].__name__}',
)
def test_news(news):
    assert is_news(news)


@pytest.mark.parametrize(
    'told',
    [
        record('ZODB.Connection', ClientDisconnected()),
        record('txn.140', FULL),
        record('ZEO.asyncio.base', ClientDisconnected()),
        record('relstorage.adapters.postgresql.connmanager', level=logging.WARNING),
    ],
    ids=lambda told: told.name,
)
def test_no_news(told):
    assert not is_news(told)
