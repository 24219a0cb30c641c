"""One dispatcher for queues in several databases: claims, wake-ups, conflicts and deaths."""

import contextlib

import pytest
import transaction
from persistent.mapping import PersistentMapping

from tests.storages.conftest import open_place
from zodbjobs import Job, Queue, configure, local, subscribers
from zodbjobs.interfaces import COMPLETED, KEY, DatabaseOpened
from zodbjobs.runtime import dispatcher as dispatchers
from zodbjobs.runtime import wakeup
from zodbjobs.runtime.address import open_database
from zodbjobs.testing.waiting import wait_until

#: Nothing here waits for a poll: whatever is done was rung for.
POLL_SECONDS = 300
SECONDS = 20

KINDS = ['file', 'zeo', 'postgres']


def where():
    """The name of the queue, and of the database of the job."""
    return local.getQueue().name, local.getJob()._p_jar.db().database_name


def count(here, there):
    """Work in two databases at once."""
    here['count'] = here.get('count', 0) + 1
    there['count'] = there.get('count', 0) + 1


def stored(connection):
    """A new mapping in the database of `connection`."""
    found = PersistentMapping()
    connection.add(found)
    connection.root()[f'mapping {found._p_oid!r}'] = found
    return found


class Family:
    """A main database and one called 'other', on storages of their own, opened together."""

    def __init__(self, main, other):
        self.places = main, other
        for place in self.places:
            place.close()
        self.db = self.open()

    def open(self):
        databases = {}
        open_database(self.places[1].uri, databases=databases, database_name='other')
        return open_database(self.places[0].uri, databases=databases)

    def close(self, db):
        for each in db.databases.values():
            wakeup.hang_up(each)
            each.close()


@pytest.fixture
def family(request, tmp_path):
    kind = request.param
    with contextlib.ExitStack() as stack:
        folders = [tmp_path / name for name in ('main', 'other')]
        for folder in folders:
            folder.mkdir()
        found = Family(*[stack.enter_context(open_place(kind, folder)) for folder in folders])
        subscribers.QueueInstaller(['', 'near'])(DatabaseOpened(found.db))
        subscribers.QueueInstaller(['far'], queue_db_name='other')(DatabaseOpened(found.db))
        yield found
        found.close(found.db)


@contextlib.contextmanager
def serving(db):
    dispatcher = configure.start(db, poll_interval=POLL_SECONDS)
    try:
        assert wait_until(lambda: len(dispatcher.polls), SECONDS)
        yield dispatcher
    finally:
        subscribers.stop(dispatcher)
        dispatchers.pop(dispatcher.UUID)


@contextlib.contextmanager
def client(db):
    manager = transaction.TransactionManager()
    with contextlib.closing(db.open(manager)) as connection:
        yield connection
        manager.abort()


def until_done(connection, *jobs):
    def done():
        connection.transaction_manager.begin()
        return all(job.status == COMPLETED for job in jobs)

    assert wait_until(done, SECONDS), [job.status for job in jobs]


@pytest.mark.parametrize('family', KINDS, indirect=True)
def test_jobs_of_both_are_done_where_they_are(family):
    with serving(family.db), client(family.db) as connection:
        queues = connection.root()[KEY]
        jobs = {name: queues[name].put(where) for name in ('near', 'far')}
        connection.transaction_manager.commit()
        until_done(connection, *jobs.values())
        assert jobs['near'].result == ('near', connection.db().database_name)
        assert jobs['far'].result == ('far', 'other')
        assert jobs['far']._p_jar.db().database_name == 'other'


@pytest.mark.parametrize('family', KINDS[1:], indirect=True)
def test_commits_of_others_wake_in_both(family):
    other = family.open()
    try:
        with serving(family.db), client(other) as connection:
            for name in ('near', 'far', 'far', 'near'):
                job = connection.root()[KEY][name].put(where)
                connection.transaction_manager.commit()
                until_done(connection, job)
    finally:
        family.close(other)


@pytest.mark.parametrize('family', KINDS, indirect=True)
def test_a_job_works_in_both_databases_in_one_commit(family):
    with serving(family.db), client(family.db) as connection:
        other = connection.get_connection('other')
        pairs = [(stored(connection), stored(other)) for _ in range(10)]
        jobs = [
            connection.root()[KEY][name].put(Job(count, *pair))
            for pair, name in zip(pairs, ('near', 'far') * 5, strict=True)
        ]
        connection.transaction_manager.commit()
        until_done(connection, *jobs)
        assert [job.outcome for job in jobs] == ['success'] * 10

        def counts():
            # Two databases are two snapshots: one may show a commit a moment before the other.
            connection.transaction_manager.begin()
            return {(here.get('count'), there.get('count')) for here, there in pairs}

        assert wait_until(lambda: counts() == {(1, 1)}, SECONDS), counts()


@pytest.mark.parametrize('family', KINDS, indirect=True)
def test_an_application_transaction_that_aborts_puts_nowhere(family):
    with client(family.db) as connection:
        for name in ('near', 'far'):
            connection.root()[KEY][name].put(where)
        connection.transaction_manager.abort()
        assert [len(connection.root()[KEY][name]) for name in ('near', 'far')] == [0, 0]


@pytest.mark.parametrize('family', KINDS, indirect=True)
def test_a_stop_and_a_new_start_leave_both_in_order(family):
    for _ in range(2):
        with serving(family.db), client(family.db) as connection:
            jobs = [connection.root()[KEY][name].put(where) for name in ('near', 'far')]
            connection.transaction_manager.commit()
            until_done(connection, *jobs)
    with client(family.db) as connection:
        for name in ('near', 'far'):
            (record,) = connection.root()[KEY][name].dispatchers.values()
            assert record.activated is None
            assert len(record['main']) == 0


def test_a_queue_is_made_where_it_was_asked_for(tmp_path):
    databases = {}
    open_database('memory:', databases=databases, database_name='other')
    db = open_database('memory:', databases=databases)
    subscribers.QueueInstaller(['a'], Queue, queue_db_name='other')(DatabaseOpened(db))
    with client(db) as connection:
        assert connection.root()[KEY]._p_jar is connection
        assert connection.root()[KEY]['a']._p_jar.db().database_name == 'other'
