"""A world for each race, and both orders of commit."""

import contextlib

import pytest

pytest.register_assert_rewrite('tests.races.world')

from tests.races.world import World, race  # noqa: E402


@pytest.fixture
def world(tmp_path):
    with contextlib.closing(World(tmp_path)) as world:
        yield world


@pytest.fixture(params=['one first', 'other first'])
def run(request):
    """run(one, other): both do, then commit in one order, and in the other in the next test."""

    def run(one, other):
        race(*((one, other) if request.param == 'one first' else (other, one)))

    run.swapped = request.param == 'other first'
    return run
