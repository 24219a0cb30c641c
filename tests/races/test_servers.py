"""The races that rest on what a storage does: merging, refusing, reading as current.

On servers, where conflicts are found and resolved by other code than in a file.
"""

import pytest

from tests.races import test_running, test_waiting
from tests.races.world import Wish

pytestmark = pytest.mark.parametrize('world', ['zeo', 'postgres'], indirect=True)


class TestMerging:
    def test_a_running_job_gets_a_callback(self, world, run):
        world.staff(1)
        world.put('a')
        world.start('a')
        test_running.TestOneJob().test_gets_a_callback(world, run)

    def test_two_producers_never_meet(self, world, run):
        test_waiting.TestPut().test_two_producers_never_meet(world, run, 1)

    def test_a_producer_never_meets_a_claim(self, world, run):
        test_waiting.TestPut().test_a_producer_never_meets_a_claim(world, run, 1)


class TestRefusing:
    def test_one_job_is_claimed_by_two(self, world, run):
        test_waiting.TestClaim().test_of_one_job_by_two(world, run, 'in a lane')

    def test_two_take_one_id(self, world, run):
        test_waiting.TestIds().test_two_take_one_id(world, run)

    def test_a_running_job_gets_two_callbacks(self, world, run):
        world.staff(1)
        world.put('a')
        world.start('a')
        acts = [
            Wish(world, lambda side, name=name: world.add_callback(side, 'a', name))
            for name in 'cd'
        ]
        run(*acts)
        assert sum(act.conflicts for act in acts) == 1
        world.audit()


class TestReadingAsCurrent:
    def test_the_last_two_parts_finish(self, world, run):
        test_running.TestParts().test_the_last_two_finish(world, run, (1, 1))

    def test_a_dependency_ends_as_its_dependent_is_sorted(self, world):
        dependents = test_running.TestDependents()
        dependents.test_the_dependency_ends_and_is_listed_as_its_dependent_is_sorted(world)
