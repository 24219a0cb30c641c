"""What the installers make, and what they leave as it is."""

import contextlib
import gc
import logging
import threading
import uuid
import weakref

import pytest
import transaction
import ZODB
import zope.event
from ZODB.POSException import ConflictError

from zodbjobs import Agent, Dispatcher, Job, Queue, Queues, status, subscribers, testing
from zodbjobs.interfaces import KEY, DatabaseOpened, DispatcherActivated, ObjectAdded
from zodbjobs.runtime import dispatcher as dispatchers
from zodbjobs.runtime import wakeup
from zodbjobs.testing import Reactor

UUID = uuid.UUID('00000000-0000-0000-0000-0000000000aa')


@pytest.fixture
def databases():
    """A multi-database of `main` and `async`, in memory."""
    found = {}
    for name in ('main', 'async'):
        ZODB.DB(None, databases=found, database_name=name)
    yield found
    transaction.abort()
    for db in found.values():
        wakeup.hang_up(db)
        db.close()
    dispatchers.clear()
    testing.tearDown()


@pytest.fixture
def db(databases):
    return databases['main']


@pytest.fixture
def heard():
    """The events that were fired in the test."""
    found = []
    zope.event.subscribers.append(found.append)
    yield found
    zope.event.subscribers.remove(found.append)


@pytest.fixture
def reactor():
    with Reactor() as reactor:
        yield reactor


def names(db):
    """The queues of a database."""
    with db.transaction() as connection:
        mapping = connection.root().get(KEY)
        return None if mapping is None else sorted(mapping)


class Special(Queue):
    """A queue of an application's own."""


class TestQueueInstaller:
    def test_makes_what_is_missing(self, db, heard, caplog):
        """The mapping and the queue '', in one transaction of its own."""
        caplog.set_level(logging.INFO)
        subscribers.queue_installer(DatabaseOpened(db))
        assert names(db) == ['']
        added = [event for event in heard if isinstance(event, ObjectAdded)]
        assert [(type(event.object), event.name) for event in added] == [
            (Queues, KEY), (Queue, ''),
        ]  # fmt: skip
        assert 'mapping of queues was added' in caplog.text

    def test_leaves_what_is_there(self, db, heard):
        """A second time nothing is written or said."""
        installer = subscribers.QueueInstaller(['', 'mail'])
        subscribers.queue_installer(DatabaseOpened(db))
        installer(DatabaseOpened(db))
        assert names(db) == ['', 'mail']
        heard.clear()
        last = db.lastTransaction()
        installer(DatabaseOpened(db))
        assert db.lastTransaction() == last and heard == []

    def test_queues_and_factory(self, db):
        """One name or several; of the class that was wished for."""
        subscribers.QueueInstaller('mail', factory=Special)(DatabaseOpened(db))
        with db.transaction() as connection:
            assert type(connection.root()[KEY]['mail']) is Special

    def test_in_another_database(self, databases, db):
        """The queues live there, and are found from both roots."""
        subscribers.multidb_queue_installer(DatabaseOpened(db))
        assert names(db) == names(databases['async']) == ['']
        with db.transaction() as connection:
            mapping = connection.root()[KEY]
            assert mapping._p_jar.db() is databases['async']
            assert mapping['']._p_jar.db() is databases['async']

    def test_the_callers_transaction_is_left_alone(self, db):
        """What it has not committed stays uncommitted."""
        connection = db.open()
        connection.root()['open'] = 1
        subscribers.queue_installer(DatabaseOpened(db))
        transaction.abort()
        assert 'open' not in connection.root() and names(db) == ['']
        connection.close()

    def test_two_at_once(self, db):
        """Processes that start together do not fail by each other."""
        rest = [1, 2]

        def factory():
            if rest:
                rest.pop()
                with db.transaction() as connection:
                    connection.root()['other'] = len(rest)
            return Queue()

        installer = subscribers.QueueInstaller(factory=factory)
        installer(DatabaseOpened(db))
        assert names(db) == [''] and not rest

    def test_what_fails_for_good_is_told(self, db):
        """After so many conflicts, and at once for anything else."""
        calls = []

        def factory(error):
            def make():
                calls.append(error)
                raise error

            return make

        with pytest.raises(ConflictError):
            subscribers.QueueInstaller(factory=factory(ConflictError('x')))(DatabaseOpened(db))
        assert len(calls) == subscribers.ATTEMPTS
        calls.clear()
        with pytest.raises(ZeroDivisionError):
            subscribers.QueueInstaller(factory=factory(ZeroDivisionError()))(DatabaseOpened(db))
        assert len(calls) == 1 and names(db) is None


class TestAgentInstaller:
    @pytest.fixture
    def record(self, db):
        """The record of a dispatcher, in a queue 'mail'."""
        subscribers.QueueInstaller('mail')(DatabaseOpened(db))
        connection = db.open()
        transaction.begin()
        yield connection.root()[KEY]['mail'].dispatchers.register(UUID)
        transaction.abort()
        connection.close()

    def test_adds_what_is_missing(self, record):
        """With the wishes it was given, and once."""
        installer = subscribers.AgentInstaller('images', size=7, filter=accept, channels=['a'])
        installer(DispatcherActivated(record))
        agent = record['images']
        assert (agent.size, agent.filter, agent.channels) == (7, accept, ('a',))
        subscribers.AgentInstaller('images', size=9)(DispatcherActivated(record))
        assert record['images'] is agent and agent.size == 7
        subscribers.agent_installer(DispatcherActivated(record))
        assert list(record) == ['images', 'main'] and record['main'].size == 3

    def test_in_the_queues_named_only(self, record):
        """None means all."""
        subscribers.AgentInstaller(queue_names=['other'])(DispatcherActivated(record))
        assert list(record) == []
        subscribers.AgentInstaller(queue_names=['mail'])(DispatcherActivated(record))
        assert list(record) == ['main']

    def test_bad_input(self, record):
        """Refused when it is made, or when the agent is."""
        with pytest.raises(ValueError, match='both'):
            subscribers.AgentInstaller(chooser=accept, filter=accept)
        with pytest.raises(ValueError, match='size'):
            subscribers.AgentInstaller(size='many')(DispatcherActivated(record))
        assert list(record) == []


def accept(job):
    return True


class TestAtActivation:
    """Configuration from Python: an installer for one database, as long as that is."""

    def serve(self, db, reactor, uuid=UUID):
        dispatcher = Dispatcher(db, reactor, uuid=uuid)
        dispatcher.activate()
        reactor.time_flies(1)
        testing.tear_down_dispatcher(dispatcher)
        with db.transaction() as connection:
            return [list(queue.dispatchers[uuid]) for queue in connection.root()[KEY].values()]

    def test_only_for_its_database(self, db, reactor):
        """Others of the process get their agents from elsewhere, or none."""
        other = ZODB.DB(None, database_name='main')  # of the same name
        try:
            for each in (db, other):
                subscribers.queue_installer(DatabaseOpened(each))
            subscribers.at_activation(db, subscribers.AgentInstaller('mine'))
            assert self.serve(db, reactor) == [['mine']]
            dispatchers.clear()
            assert self.serve(other, reactor) == [[]]
        finally:
            wakeup.hang_up(other)
            other.close()

    def test_for_queues_in_another_database(self, databases, db, reactor):
        """The database that was opened counts, not the one where the queue lies."""
        subscribers.multidb_queue_installer(DatabaseOpened(db))
        subscribers.at_activation(db, subscribers.AgentInstaller('mine'))
        assert self.serve(db, reactor) == [['mine']]

    def test_a_database_that_has_gone(self, db, reactor):
        """It is not kept alive, and takes nobody's agent with it."""
        gone = ZODB.DB(None)
        subscribers.at_activation(gone, subscribers.AgentInstaller('gone'))
        known = weakref.ref(gone)
        wakeup.hang_up(gone)
        gone.close()
        del gone
        gc.collect()
        assert known() is None
        subscribers.queue_installer(DatabaseOpened(db))
        subscribers.at_activation(db, subscribers.AgentInstaller('mine'))
        assert self.serve(db, reactor) == [['mine']]


class TestDispatcherInstallers:
    def test_threaded(self, db):
        """A reactor of its own in a thread of its own; stop() ends both."""
        subscribers.queue_installer(DatabaseOpened(db))
        made = []

        def factory():
            made.append(subscribers.private_reactor())
            return made[-1]

        installer = subscribers.ThreadedDispatcherInstaller(
            60, reactor_factory=factory, uuid=UUID, grace=1, signals=False
        )
        dispatcher = installer(DatabaseOpened(db))
        try:
            assert (dispatcher.UUID, dispatcher.poll_interval, dispatcher.grace) == (UUID, 60, 1)
            assert dispatcher.reactor is made[0] and dispatcher.thread.is_alive()
            assert subscribers.signal_handlers == {}
            add_agent(db)
            job = put(db, len, 'abc')
            wait_for(db, job)
        finally:
            assert subscribers.stop(dispatcher, 10)
        assert not dispatcher.thread.is_alive() and dispatcher.activated is False
        assert subscribers.stop(dispatcher)  # once more does no harm

    def test_a_global_reactor_is_not_installed(self, db):
        """Other programs in the process may still choose theirs."""
        import sys

        before = 'twisted.internet.reactor' in sys.modules
        subscribers.private_reactor()
        assert ('twisted.internet.reactor' in sys.modules) == before

    def test_stop_of_one_that_was_never_in_a_thread(self, db, reactor):
        """Nothing to do."""
        assert subscribers.stop(Dispatcher(db, reactor, uuid=UUID))


def add_agent(db):
    """Give the dispatcher of that test an agent, as soon as it is registered."""
    ready = threading.Event()
    for _ in range(2000):
        with db.transaction() as connection:
            record = connection.root()[KEY][''].dispatchers.get(UUID)
            if record is not None:
                record['main'] = Agent()
                connection.root()[KEY][''].unpause()  # which rings
                return
        ready.wait(0.005)
    raise AssertionError('it was never registered')


def put(db, *call):
    with db.transaction() as connection:
        return connection.root()[KEY][''].put(Job(*call))._p_oid


def wait_for(db, oid):
    """Wait in real time for a job's end."""
    ready = threading.Event()
    for _ in range(2000):
        with db.transaction() as connection:
            if connection.get(oid).status == status.COMPLETED:
                return
        ready.wait(0.005)
    raise AssertionError('it took too long')


# Which database hears of whose activation.


@pytest.fixture(autouse=True)
def same_subscribers_afterwards():
    kept = list(zope.event.subscribers)
    yield
    zope.event.subscribers[:] = kept


@contextlib.contextmanager
def database(**options):
    """A fresh database with the queue ''."""
    with contextlib.closing(ZODB.DB(None, **options)) as db:
        with db.transaction() as connection:
            connection.root()[KEY] = Queues()
            connection.root()[KEY][''] = Queue()
        yield db


def agents_of_a_new_dispatcher(db):
    """The names of the agents that a dispatcher finds when it was activated in `db`."""
    manager = transaction.TransactionManager()
    connection = db.open(manager)
    try:
        record = connection.root()[KEY][''].dispatchers.register(uuid.uuid4())
        record.activate()
        manager.commit()
        return list(record)
    finally:
        connection.close()


def test_an_installer_hears_of_activations_in_its_database():
    with database() as db:
        subscribers.at_activation(db, subscribers.AgentInstaller('main'))
        assert agents_of_a_new_dispatcher(db) == ['main']


def test_a_database_that_has_gone_hides_nobody_else():
    for _ in range(2):
        with database() as gone:
            subscribers.at_activation(gone, subscribers.AgentInstaller('gone'))
        del gone
    gc.collect()
    with database() as db:
        subscribers.at_activation(db, subscribers.AgentInstaller('main'))
        assert agents_of_a_new_dispatcher(db) == ['main']


def test_a_database_of_the_same_name_is_another_one():
    with database() as one, database() as other:
        assert one.database_name == other.database_name
        subscribers.at_activation(one, subscribers.AgentInstaller('of one'))
        subscribers.at_activation(other, subscribers.AgentInstaller('of the other'))
        assert agents_of_a_new_dispatcher(one) == ['of one']
        assert agents_of_a_new_dispatcher(other) == ['of the other']


def test_a_database_hears_of_queues_that_live_in_another_one_of_its_family():
    family = {}
    with database(databases=family, database_name='application') as application:
        with database(databases=family, database_name='jobs') as jobs:
            subscribers.at_activation(application, subscribers.AgentInstaller('main'))
            assert agents_of_a_new_dispatcher(jobs) == ['main']
