"""Commits that fail where a test says so.

A `Fault` is planted in a dispatcher: it wraps the transaction managers of its
workers, or of itself, so that commits number n, n+1 ... raise, either before
anything was stored or after all of it was (an answer that was lost).
"""

import threading

import pytest
import transaction
from ZEO.Exceptions import ClientDisconnected
from ZODB.POSException import ConflictError

from zodbjobs import testing
from zodbjobs.runtime import attempt, pool
from zodbjobs.runtime import dispatcher as dispatchers

ERRORS = {
    'conflict': ConflictError,
    'disconnected': ClientDisconnected,
    'arbitrary': ZeroDivisionError,
}


class Fault:
    """Commits number `first` to `last`, counted over all its managers, raise `error`.

    With `after` they are made first: only their answer is lost.
    """

    def __init__(self, error, first, last, after=False):
        self.error = error
        self.first = first
        self.last = last
        self.after = after
        self.count = 0
        self._guard = threading.Lock()

    def commit(self, commit):
        """Commit, or not."""
        with self._guard:
            self.count += 1
            strikes = self.first <= self.count <= self.last
        if not strikes:
            return commit()
        if self.after:
            commit()
        raise self.error('planted')

    @property
    def struck(self):
        """Whether it came to a commit that raised."""
        return self.count >= self.first


class Manager:
    """A transaction manager whose commits go through a Fault."""

    def __init__(self, real, fault):
        self._real = real
        self._fault = fault

    def __getattr__(self, name):
        return getattr(self._real, name)

    def commit(self):
        if self.get().isDoomed() or not self._is_worth_it():
            return self._real.commit()
        return self._fault.commit(self._commit)

    def _commit(self):
        self._real.commit()

    def _is_worth_it(self):
        """Whether anything is to be stored: a commit of nothing cannot fail."""
        return any(
            getattr(resource, '_registered_objects', None) or getattr(resource, '_added', None)
            for resource in self.get()._resources
        )


@pytest.fixture
def layer(monkeypatch):
    monkeypatch.setattr(attempt, 'FIRST_PAUSE_SECONDS', 0.001)
    monkeypatch.setattr(attempt, 'LONGEST_PAUSE_SECONDS', 0.01)
    monkeypatch.setattr(dispatchers, 'LONGEST_BACKOFF_SECONDS', 0.001)
    monkeypatch.setattr(dispatchers, 'THREADS_END_SECONDS', 0.05)
    layer = testing.setUp()
    layer.root['count'] = 0
    transaction.commit()
    yield layer
    testing.tearDown()


@pytest.fixture
def plant_in_workers(monkeypatch):
    """A function: let commits of worker threads go through the Fault."""

    def plant(fault):
        make = pool.Worker.__init__

        def made(self, *args):
            make(self, *args)
            self.transaction_manager = Manager(self.transaction_manager, fault)

        monkeypatch.setattr(pool.Worker, '__init__', made)
        return fault

    return plant


@pytest.fixture
def plant_in_passes():
    """A function: let commits of a dispatcher's passes go through the Fault."""

    def plant(fault, dispatcher):
        dispatcher._manager = Manager(dispatcher._manager, fault)
        return fault

    return plant
