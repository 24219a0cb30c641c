"""Whoever is told of an activation, for which databases, and in spite of whom."""

import contextlib
import gc
import uuid

import pytest
import transaction
import ZODB
import zope.event

from zodbjobs import Queue, Queues, subscribers
from zodbjobs.interfaces import KEY


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
