"""One ``zodbjobs run`` for several databases: strangers to each other, or opened together."""

import contextlib

import pytest
from persistent.mapping import PersistentMapping

from tests.processes.conftest import PATIENCE_SECONDS, Worker
from tests.processes.work import tell
from zodbjobs import Job, subscribers
from zodbjobs.interfaces import COMPLETED, KEY, DatabaseOpened
from zodbjobs.runtime.address import open_database
from zodbjobs.testing.waiting import wait_until


@pytest.fixture
def paths(tmp_path, monkeypatch):
    monkeypatch.setenv('ZODBJOBS_LOCK_DIR', str(tmp_path / 'locks'))
    return [tmp_path / 'one.fs', tmp_path / 'two.fs']


@pytest.fixture
def run(tmp_path):
    """run(words...) -> a Worker that ends with the test."""
    with contextlib.ExitStack() as stack:

        def start(uri, *options):
            worker = Worker(str(uri), tmp_path / 'worker.log', *map(str, options))
            return stack.enter_context(contextlib.closing(worker))

        yield start


def put(db, queue, told):
    """Put a job that makes the file `told`."""
    with db.transaction() as connection:
        counter = connection.root()['counter'] = PersistentMapping()
        connection.add(counter)
        connection.root()[KEY][queue].put(Job(tell, counter, 1, str(told)))
        connection.root()['job'] = next(iter(connection.root()[KEY][queue]))


def test_each_of_two_that_know_nothing_of_each_other_is_served(paths, run, tmp_path):
    for path in paths:
        with contextlib.closing(open_database(path)) as db:
            subscribers.QueueInstaller()(DatabaseOpened(db))
            put(db, '', f'{path}.told')
    worker = run(paths[0], paths[1])
    for path in paths:
        assert wait_until((tmp_path / f'{path.name}.told').exists, PATIENCE_SECONDS), (
            worker.log.read_text()
        )
    worker.tell_to_stop()
    assert worker.wait() == 0
    for path in paths:
        with contextlib.closing(open_database(path)) as db, db.transaction() as connection:
            assert connection.root()['job'].status == COMPLETED


@pytest.mark.parametrize('options', [(), ('-n', '2')])
def test_a_queue_in_a_second_database_is_made_and_served(paths, run, tmp_path, options):
    """Under a supervisor there is a ZEO server for each of the two files."""
    zodb = f'other={paths[1]}'
    worker = run(paths[0], '--zodb', zodb, '--queue', 'far@other', '--threads', '1', *options)
    if not options:  # a single process has the files alone: make the queue, and come again
        assert wait_until(lambda: 'begins to serve' in worker.log.read_text(), PATIENCE_SECONDS)
        worker.tell_to_stop()
        assert worker.wait() == 0, worker.log.read_text()
    else:
        assert wait_until(lambda: 'begins to serve' in worker.log.read_text(), PATIENCE_SECONDS)
    family = {}
    open_database(paths[1], databases=family, database_name='other')
    db = open_database(paths[0], databases=family)
    put(db, 'far', tmp_path / 'told')
    with db.transaction() as connection:
        assert connection.root()['job']._p_jar.db().database_name == 'other'
    for each in family.values():
        each.close()
    if not options:
        worker = run(paths[0], '--zodb', zodb, '--queue', 'far@other')
    assert wait_until((tmp_path / 'told').exists, PATIENCE_SECONDS), worker.log.read_text()
    worker.tell_to_stop()
    assert worker.wait() == 0, worker.log.read_text()
