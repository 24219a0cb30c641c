"""Real servers for the tests of the beanstalk door."""

import pytest

from tests.doors.beanstalk.support import Server


@pytest.fixture(scope='module')
def served():
    """Our server, in memory, for all tests of a module."""
    with Server() as server:
        yield server


@pytest.fixture
def line(served):
    with served.connect() as line:
        yield line
