"""Fixtures for the tests of the model; see `support`."""

import pytest

from tests.model import support
from zodbjobs import clock


@pytest.fixture
def turned():
    """A clock that stands still until the test turns it."""
    source = support.TurnedClock()
    clock.use(source)
    return source


@pytest.fixture
def house(tmp_path, turned):
    """A database with a queue, in virtual time."""
    house = support.file_house(tmp_path)
    yield house
    house.close()


@pytest.fixture
def side(house):
    """A connection to the house."""
    return house.first


@pytest.fixture
def queue(side):
    return side.queue
