"""A queue that is served in virtual time, with tasks on it, and a book to count in."""

import pytest
import transaction
from persistent.mapping import PersistentMapping

from zodbjobs import testing
from zodbjobs.tasks import Tasks


@pytest.fixture
def layer():
    layer = testing.setUp()
    layer.root['book'] = PersistentMapping()
    transaction.commit()
    layer.tasks = Tasks(layer.queue)
    yield layer
    testing.tearDown()
