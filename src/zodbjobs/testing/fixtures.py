"""Fixtures for pytest: ``pytest_plugins = ['zodbjobs.testing.fixtures']``.

`jobs` is a `zodbjobs.testing.Layer` with a database of its own, in which one job
runs at a time; `jobs_on` makes one on a database of yours.  Jobs run when the
test says ``jobs.run()`` or lets time pass, in a thread and a transaction of
their own, as in production.
"""

import pytest

from zodbjobs import testing


@pytest.fixture
def jobs():
    """A database with a queue ``jobs.queue``; ``jobs.run()`` runs what is due."""
    yield testing.setUp(size=1)
    testing.tearDown()


@pytest.fixture
def jobs_on():
    """``jobs_on(db)``: as `jobs`, on your ZODB.DB, which is left open."""
    yield lambda db, size=1: testing.setUp(db=db, size=size)
    testing.tearDown()
