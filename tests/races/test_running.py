"""Races for jobs that run: between their ends, and with whoever wants something of them."""

import pytest

from tests.races.world import End, Finish, Pass, Wish, act, blunder, gather
from zodbjobs import Job, parallel, serial
from zodbjobs.interfaces import CancelledError, DependencyError
from zodbjobs.status import COMPLETED


@pytest.fixture(params=[(2,), (1, 1)], ids=['two threads', 'two dispatchers'])
def staff(request):
    """For two jobs at a time."""
    return request.param


class TestOneJob:
    @pytest.fixture(autouse=True)
    def started(self, world):
        world.staff(1)
        world.put('a')
        world.start('a')

    def test_gets_a_callback(self, world, run):
        adding = Wish(world, lambda side: world.add_callback(side, 'a', 'c'))
        end = End(world, 'a')
        run(end, adding)
        assert adding.conflicts + end.conflicts == 0 and not adding.refused
        world.audit()

    def test_is_cancelled(self, world, run):
        cancelling = Wish(world, lambda side: side.job('a').cancel())
        run(End(world, 'a'), cancelling)
        if cancelling.refused:
            world.audit()
            return
        world.audit(a=0)
        assert world.known('a').result.check(CancelledError)

    def test_is_annotated(self, world, run):
        noting = Wish(world, lambda side: side.job('a').annotations.update(stone=7))
        end = End(world, 'a')
        run(end, noting)
        assert noting.conflicts + end.conflicts == 0
        world.audit()
        assert world.known('a').annotations['stone'] == 7

    def test_is_annotated_by_two(self, world, run):
        acts = [
            Wish(world, lambda side, name=name: side.job('a').annotations.update({name: 7}))
            for name in ('stone', 'pebble')
        ]
        run(*acts)
        world.audit()
        assert dict(world.known('a').annotations) == {'stone': 7, 'pebble': 7}

    def test_loses_its_dispatcher(self, world, run):
        """Held for dead while it lives: what it does comes in time, or is done again."""
        dead = world.dispatchers[0].UUID
        burying = Wish(world, lambda side: side.queue.dispatchers[dead].died())
        run(End(world, 'a'), burying)
        world.audit()
        assert world.known('a').interruptions == (0 if run.swapped is False else 1)

    def test_loses_its_dispatcher_which_claims_meanwhile(self, world, run):
        """The living one goes on; no job is left with somebody who is held for dead."""
        world.fill(world.another_side(), 3)
        dead = world.dispatchers[0].UUID
        world.end('a')
        run(
            Pass(world.dispatchers[0]),
            Wish(world, lambda side: side.queue.dispatchers[dead].died()),
        )
        world.audit()

    def test_is_buried_by_two(self, world, run):
        dead = world.dispatchers[0].UUID
        buryings = [Wish(world, lambda side: side.queue.dispatchers[dead].died()) for _ in range(2)]
        run(*buryings)
        assert sum(each.conflicts for each in buryings) == 1
        world.audit()

    def test_is_listed_while_another_is_put(self, world, run):
        world.end('a')
        run(
            Pass(world.dispatchers[0]),
            Wish(world, lambda side: world.put_by(side, 'b')),
        )
        world.audit()


class TestBurial:
    def test_what_was_claimed_in_that_moment_is_found(self, world, run):
        """The claim was on its way to the server when its dispatcher died."""
        world.staff(1, 1)
        world.put('a')
        dying = world.dispatchers[0]
        claim = Pass(dying)
        burying = Wish(world, lambda side: side.queue.dispatchers[dying.UUID].died())
        for each in (claim, burying):
            each.do()
        for each in (burying, claim) if run.swapped else (claim, burying):
            each.commit()
        claim.crash()
        world.audit()


class TestRetry:
    def test_while_the_failure_is_listed(self, world, run):
        world.staff(1)
        world.put('a', Job(blunder, 'a'))
        world.start('a')
        world.end('a')
        retrying = Wish(world, lambda side: side.job('a').retry())
        run(Pass(world.dispatchers[0]), retrying)
        world.audit(a=0)
        assert world.known('a').attempts == 1
        assert world.known('a').result.check(ZeroDivisionError)


class TestParts:
    def test_the_last_two_end(self, world, run, staff):
        """One of them ends the whole, and the last word is spoken once."""
        world.staff(*staff)
        whole = parallel(Job(act, 'a'), Job(act, 'b'), postprocess=Job(gather, 'p'))
        world.put_whole('w', whole)
        world.start('a', 'b')
        run(End(world, 'a'), End(world, 'b'))
        assert world.calls['a'] == world.calls['b'] == 1, 'work is not repeated for that'
        world.audit()
        assert world.known('w').result == ['a', 'b']

    def test_the_last_two_finish(self, world, run, staff):
        """The finish is a commit of its own, after that of the work; there they overlap too."""
        world.staff(*staff)
        whole = parallel(Job(act, 'a'), Job(act, 'b'), postprocess=Job(gather, 'p'))
        world.put_whole('w', whole)
        world.start('a', 'b')
        finishes = [Finish(world, 'a'), Finish(world, 'b')]
        for finish in finishes:
            finish.settle()
        run(*finishes)
        assert sum(finish.conflicts for finish in finishes) == 1
        world.audit()
        assert world.known('w').result == ['a', 'b']

    def test_two_end_and_one_goes_on(self, world, run):
        world.staff(3)
        world.put_whole('w', parallel(Job(act, 'a'), Job(act, 'b'), Job(act, 'c')))
        world.start('a', 'b', 'c')
        run(End(world, 'a'), End(world, 'b'))
        assert world.known('w').status != COMPLETED
        world.end('c')
        world.audit()

    def test_the_last_two_end_with_callbacks(self, world, run, staff):
        """Then the finish is a commit of its own, and that is where they meet."""
        world.staff(*staff)
        whole = parallel(Job(act, 'a'), Job(act, 'b'), postprocess=Job(gather, 'p'))
        for part, callback in zip(whole.args, 'xy', strict=True):
            part.addCallback(Job(act, callback))
            world.callbacks.add(callback)
        world.put_whole('w', whole)
        world.start('a', 'b')
        run(End(world, 'a'), End(world, 'b'))
        world.audit()
        assert world.known('w').result == ['a', 'b']

    def test_the_last_one_ends_as_another_is_added(self, world, run):
        world.staff(2)
        world.put_whole('w', parallel(Job(act, 'a'), Job(act, 'b')))
        world.start('a', 'b')
        world.end('a')

        def add(side):
            side.job('w').args.append(Job(act, 'c'))

        adding = Wish(world, add)
        run(End(world, 'b'), adding)
        added = world.known('w').status != COMPLETED
        world.audit(**({'c': 1} if added else {'c': 0}))

    def test_the_whole_gets_a_callback_as_the_last_part_ends(self, world, run):
        world.staff(2)
        world.put_whole('w', parallel(Job(act, 'a')))
        world.start('a')
        run(End(world, 'a'), Wish(world, lambda side: world.add_callback(side, 'w', 'c')))
        world.audit()

    def test_the_whole_is_cancelled_as_the_last_part_ends(self, world, run):
        world.staff(2)
        world.put_whole('w', parallel(Job(act, 'a')))
        world.start('a')
        cancelling = Wish(world, lambda side: side.job('w').cancel())
        run(End(world, 'a'), cancelling)
        world.audit()
        assert world.known('w').outcome == ('success' if cancelling.refused else 'cancelled')

    def test_the_next_of_a_series_is_put_once(self, world, run):
        world.staff(2)
        world.put_whole('w', serial(Job(act, 'a'), Job(act, 'b')))
        world.start('a')
        run(End(world, 'a'), Wish(world, lambda side: world.add_callback(side, 'w', 'c')))
        world.audit()


class TestDependents:
    @pytest.mark.parametrize('work', [act, blunder], ids=['success', 'failure'])
    def test_the_dependency_ends_as_its_dependent_is_sorted(self, world, run, work):
        world.staff(1, 1)
        world.put('a', Job(work, 'a'))
        world.start('a')
        world.put('b', depends_on=[world.known('a')])
        sorting = next(one for one in world.dispatchers if not one._flight)
        run(Pass(sorting), End(world, 'a'))
        world.audit(**({} if work is act else {'a': 0, 'b': 0}))
        if work is blunder:
            assert world.known('b').result.check(DependencyError)

    def test_the_dependency_ends_and_is_listed_as_its_dependent_is_sorted(self, world):
        """Nobody looks for its dependents any more when this one begins to wait for it."""
        world.staff(2)
        (busy,) = world.dispatchers
        world.put('a', id='stone')  # an id is freed at once, so its end is written down at once
        world.put('c')
        world.start('a', 'c')
        with world.side as side:
            side.queue.dispatchers[busy.UUID]['main'].size = 1  # it will have no room, nor sort
        world.staff(1)
        world.put('b', depends_on=[world.known('a')])
        sorting = Pass(world.dispatchers[1])
        sorting.do()
        world.end('a')
        busy.poll()
        assert 'stone' not in world.known('c').queue.ids._slot('stone'), 'it is written down'
        sorting.commit()
        sorting.go()
        assert sorting.conflicts == 1
        world.audit()

    def test_the_dependency_ends_as_its_dependent_is_put(self, world, run):
        world.staff(1)
        world.put('a')
        world.start('a')
        run(
            Wish(world, lambda side: world.put_by(side, 'b', depends_on=[side.job('a')])),
            End(world, 'a'),
        )
        world.audit()

    @pytest.mark.parametrize('verb', ['remove', 'cancel', 'hold'])
    def test_the_dependency_is_changed_as_its_dependent_is_sorted(self, world, run, verb):
        """It will not end by itself then; who waits for it must not wait for ever."""
        world.staff(1)
        world.put('a', delay=100_000)
        world.work()
        world.put('b', depends_on=[world.known('a')])
        if verb == 'remove':
            changing = Wish(world, lambda side: side.queue.remove(side.job('a')))
        else:
            changing = Wish(world, lambda side: getattr(side.job('a'), verb)())
        run(Pass(world.dispatchers[0]), changing)
        if verb == 'hold':
            with world.side as side:
                side.job('a').resume()
                side.job('a').cancel()
        world.audit(a=0, b=0)
        assert world.known('b').result.check(DependencyError)

    @pytest.mark.parametrize('verb', ['remove', 'cancel', 'hold'])
    def test_the_dependent_is_changed_as_it_is_let_go(self, world, run, verb):
        world.staff(1)
        world.put('a')
        world.start('a')
        world.put('b', depends_on=[world.known('a')])
        world.dispatchers[0].poll()
        world.end('a')
        if verb == 'remove':
            changing = Wish(world, lambda side: side.queue.remove(side.job('b')))
        else:
            changing = Wish(world, lambda side: getattr(side.job('b'), verb)())
        run(Pass(world.dispatchers[0]), changing)
        world.audit(b=1 if changing.refused else 0)

    def test_two_dependents_of_one_are_sorted(self, world, run):
        world.staff(1, 1)
        world.put('a')
        world.start('a')
        busy, idle = sorted(world.dispatchers, key=lambda one: not one._flight)
        world.put('b', depends_on=[world.known('a')])
        run(Pass(idle), Wish(world, lambda side: world.put_by(side, 'c', after=[side.job('a')])))
        world.audit()


class TestQuota:
    def test_a_place_is_freed_and_taken_by_two(self, world, run):
        world.staff(1, 1)
        with world.side as side:
            side.queue.quotas.create('one', 1)
        for name in 'abc':
            world.put(name, quota_names=['one'])
        world.start('a')
        world.end('a')
        run(Pass(world.dispatchers[0]), Pass(world.dispatchers[1]))
        assert sum(world.known(name).agent is not None for name in 'bc') == 1
        world.audit()

    def test_its_holder_ends_as_the_place_is_looked_for(self, world, run):
        world.staff(1, 1)
        with world.side as side:
            side.queue.quotas.create('one', 1)
        for name in 'ab':
            world.put(name, quota_names=['one'])
        world.start('a')
        looking = next(one for one in world.dispatchers if not one._flight)
        run(End(world, 'a'), Pass(looking))
        world.audit()
