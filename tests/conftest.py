"""What every test may rely on: the clock it finds, and reproducible examples.

Fixtures for databases and servers stand beside the tests that use them.
"""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from zodbjobs import clock

PROCESSES = Path(__file__).parent / 'processes'

# Deadlines would fail on a busy machine for no fault of the code; the blob reruns a failed example
# elsewhere.  CI sees the same examples every time: a red run there is the fault of the change.
settings.register_profile(
    'zodbjobs', deadline=None, print_blob=True, derandomize='CI' in os.environ
)
settings.load_profile('zodbjobs')


def pytest_collection_modifyitems(items):
    """What stands in tests/processes starts processes; say so with its marker."""
    for item in items:
        if PROCESSES in item.path.parents:
            item.add_marker('processes')


@pytest.fixture(autouse=True)
def same_clock_afterwards():
    """A test that turned the clock cannot harm the next one."""
    source = clock.use()
    clock.use(source)
    yield
    clock.use(source)
