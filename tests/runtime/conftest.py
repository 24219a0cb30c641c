"""Fixtures for the tests of the runtime; see `support`."""

import pytest
import zope.event

from tests.model.conftest import house, side, turned  # noqa: F401 - for consumers without a reactor
from tests.runtime.support import gate, said, waiting
from zodbjobs import testing
from zodbjobs.runtime import dispatcher as dispatchers


@pytest.fixture
def layer(monkeypatch):
    """A queue, a dispatcher and its agent, in virtual time; jobs may wait for `support.gate`."""
    said.clear()
    waiting.clear()
    gate.clear()
    monkeypatch.setattr(dispatchers, 'THREADS_END_SECONDS', 0.05)  # for blocked jobs
    layer = testing.setUp()
    yield layer
    gate.set()
    testing.tearDown()


@pytest.fixture
def listen():
    """A function: hear events of these classes, and do `deed` at each."""
    added = []

    def start(*classes, deed=None):
        heard = []

        def hear(event):
            if isinstance(event, classes):
                heard.append(event)
                if deed is not None:
                    deed(event)

        zope.event.subscribers.append(hear)
        added.append(hear)
        return heard

    yield start
    for hear in added:
        zope.event.subscribers.remove(hear)
