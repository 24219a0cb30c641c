"""Races for jobs that wait: between those who put, claim, and change their mind."""

import pytest

from tests.races.world import Life, Pass, Wish
from zodbjobs import clock
from zodbjobs.interfaces import DuplicateJobError
from zodbjobs.model.handout import Round
from zodbjobs.model.intake import CHUNK_ENTRIES, GRACE_SECONDS, LINGER_SECONDS
from zodbjobs.status import COMPLETED, HELD, NEW, PENDING

PLACES = ['in a lane', 'sorted', 'become due']


def wait_in(world, place, *names, **options):
    """Put jobs of these names, and bring them to that place."""
    delay = 1000 if place == 'become due' else 0
    for name in names:
        world.put(name, delay=delay, **options)
    if place != 'in a lane':
        with world.side as side:
            look = Round(side.queue, world.clock.micros())
            look.sort()
            look.file_rest(leave=0)
    world.clock.skip(delay)


@pytest.fixture(params=PLACES)
def place(request):
    return request.param


def wish(world, name, verb, *args, **kw):
    """The application calls a method of the job of that name."""
    return Wish(world, lambda side: getattr(side.job(name), verb)(*args, **kw))


def change(world, name, attribute, value):
    """The application sets an attribute of the job of that name."""
    return Wish(world, lambda side: setattr(side.job(name), attribute, value))


def remove(world, name):
    return Wish(world, lambda side: side.queue.remove(side.job(name)))


def claim(world, number=0):
    return Pass(world.dispatchers[number])


class TestPut:
    @pytest.mark.parametrize('before', [0, CHUNK_ENTRIES], ids=['in a chunk', 'when it is full'])
    def test_two_producers_never_meet(self, world, run, before):
        one = world.another_side()
        other = world.neighbour(one)
        world.fill(one, before)
        acts = [
            Wish(world, lambda side: world.put_by(side, 'a'), one),
            Wish(world, lambda side: world.put_by(side, 'b'), other),
        ]
        run(*acts)
        assert [act.conflicts for act in acts] == [0, 0]
        world.staff(2)
        world.audit()

    @pytest.mark.parametrize('before', [1, CHUNK_ENTRIES], ids=['one', 'a chunk'])
    def test_a_producer_never_meets_a_claim(self, world, run, before):
        world.staff(2)
        one = world.another_side()
        world.fill(world.neighbour(one), before)
        put = Wish(world, lambda side: world.put_by(side, 'a'), one)
        taking = claim(world)
        run(put, taking)
        assert (put.conflicts, taking.conflicts) == (0, 0)
        world.audit()

    @pytest.mark.parametrize('seconds', [LINGER_SECONDS, GRACE_SECONDS])
    def test_a_chunk_that_goes_out_of_use_loses_nothing(self, world, run, seconds):
        """A plain put may meet a conflict when its transaction was open for minutes, not before."""
        world.staff(2)
        one = world.another_side()
        put = Wish(world, lambda side: world.put_by(side, 'a'), one)
        put.do()
        world.fill(world.neighbour(one), CHUNK_ENTRIES + 1)
        world.work()
        world.clock.skip(seconds + 1)
        closing = claim(world)
        closing.do()
        for each in (closing, put) if run.swapped else (put, closing):
            each.commit()
        closing.go()
        assert put.conflicts == (1 if run.swapped and seconds == GRACE_SECONDS else 0)
        assert put.conflicts + closing.conflicts <= 1
        world.audit()


class TestClaim:
    def test_of_one_job_by_two(self, world, run, place):
        world.staff(1, 1)
        wait_in(world, place, 'a')
        claims = [claim(world, 0), claim(world, 1)]
        run(*claims)
        assert sum(one.conflicts for one in claims) == 1
        world.audit()

    def test_of_a_head_by_two(self, world, run, place):
        world.staff(3, 3)
        wait_in(world, place, *'abcdefgh')
        run(claim(world, 0), claim(world, 1))
        world.audit()

    def test_of_a_quotas_last_place_by_two(self, world, run, place):
        world.staff(2, 2)
        with world.side as side:
            side.queue.quotas.create('one', 1)
        wait_in(world, place, 'a', 'b', quota_names=['one'])
        claims = [claim(world, 0), claim(world, 1)]
        run(*claims)
        assert sum(world.known(name).agent is not None for name in 'ab') == 1
        world.audit()

    def test_while_the_quota_is_made_larger(self, world, run, place):
        world.staff(2)
        with world.side as side:
            side.queue.quotas.create('some', 1)
        wait_in(world, place, 'a', 'b', quota_names=['some'])
        run(claim(world), Wish(world, lambda side: setattr(side.queue.quotas['some'], 'size', 2)))
        world.audit()

    def test_while_the_quota_is_removed(self, world, run, place):
        world.staff(2)
        with world.side as side:
            side.queue.quotas.create('some', 1)
        wait_in(world, place, 'a', 'b', quota_names=['some'])
        run(claim(world), Wish(world, lambda side: side.queue.quotas.remove('some')))
        world.audit()


class TestChangeOfMind:
    def test_hold(self, world, run, place):
        world.staff(1)
        wait_in(world, place, 'a', 'b')
        holding = wish(world, 'a', 'hold', 'wait')
        run(claim(world), holding)
        if holding.refused:
            world.audit()
            return
        world.audit(a=0)
        with world.side as side:
            assert side.job('a').status == HELD
            side.job('a').resume()
        world.audit()

    def test_remove(self, world, run, place):
        world.staff(1)
        wait_in(world, place, 'a', 'b')
        removing = remove(world, 'a')
        run(claim(world), removing)
        world.audit(a=1 if removing.refused else 0)
        assert world.known('a').status == (COMPLETED if removing.refused else NEW)

    def test_removed_and_put_again(self, world, run, place):
        world.staff(1)
        wait_in(world, place, 'a', 'b')
        removing = remove(world, 'a')
        run(claim(world), removing)
        if not removing.refused:
            with world.side as side:
                side.queue.put(side.job('a'))
        world.audit()

    def test_pull(self, world, run, place):
        world.staff(1)
        wait_in(world, place, 'a', 'b')
        pulled = []
        pulling = Wish(world, lambda side: pulled.append(side.queue.pull()._p_oid))
        run(claim(world), pulling)
        gone = {name: 0 for name, oid in world.oids.items() if oid == pulled[-1]}
        world.audit(**({} if pulling.refused else gone))

    def test_cancel(self, world, run, place):
        """With or without success, the callback is called once."""
        world.staff(1)
        wait_in(world, place, 'a', 'b')
        with world.side as side:
            world.add_callback(side, 'a', 'c')
        cancelling = wish(world, 'a', 'cancel')
        run(claim(world), cancelling)
        world.work()
        outcome = world.known('a').outcome
        assert outcome == ('success' if cancelling.refused else 'cancelled')
        world.audit(a=1 if outcome == 'success' else 0)

    @pytest.mark.parametrize(
        'attribute, value',
        [('priority', 1), ('channel', 'slow'), ('begin_after', None), ('quota_names', ['some'])],
    )
    def test_change(self, world, run, place, attribute, value):
        world.staff(1)
        with world.side as side:
            side.queue.quotas.create('some', 1)
        wait_in(world, place, 'a', 'b')
        run(claim(world), change(world, 'a', attribute, value))
        world.audit()

    def test_put_off(self, world, run, place):
        """Whoever was told that it waits until then can rely on it."""
        world.staff(1)
        wait_in(world, place, 'a', 'b')
        then = clock.datetime_of(world.clock.micros() + 50_000 * clock.SECOND)
        putting_off = change(world, 'a', 'begin_after', then)
        run(claim(world), putting_off)
        world.work()
        assert world.calls['a'] == (1 if putting_off.refused else 0)
        world.audit()

    def test_an_addition_to_the_arguments(self, world, run, place):
        world.staff(1)
        wait_in(world, place, 'a', 'b')
        run(claim(world), Wish(world, lambda side: side.job('a').args.append('more')))
        world.audit()

    def test_clear(self, world, run, place):
        world.staff(1)
        wait_in(world, place, 'a', 'b', 'c')
        run(claim(world), Wish(world, lambda side: side.queue.clear()))
        names = {name: world.known(name).status for name in 'abc'}
        world.audit(**{name: 0 for name, status in names.items() if status == NEW})

    def test_reorder(self, world, run, place):
        world.staff(1)
        wait_in(world, place, 'a', 'b', 'c')
        run(claim(world), Wish(world, lambda side: setattr(side.queue, 'order', 'put')))
        world.audit()


class TestTwoMinds:
    """Two clients wish something of the same waiting job."""

    @pytest.mark.parametrize('one', ['hold', 'cancel', 'remove'])
    @pytest.mark.parametrize('other', ['hold', 'cancel', 'remove'])
    def test_of_a_waiting_job(self, world, run, place, one, other):
        wait_in(world, place, 'a')
        wishes = [
            remove(world, 'a') if verb == 'remove' else wish(world, 'a', verb)
            for verb in (one, other)
        ]
        run(*wishes)
        assert sum(each.conflicts for each in wishes) == 1
        world.staff(1)
        world.audit(a=0)

    @pytest.mark.parametrize('other', ['resume', 'cancel', 'remove'])
    def test_of_a_held_job(self, world, run, place, other):
        wait_in(world, place, 'a')
        with world.side as side:
            side.job('a').hold()
        second = remove(world, 'a') if other == 'remove' else wish(world, 'a', other)
        run(wish(world, 'a', 'resume'), second)
        resumed = world.known('a').status == PENDING
        world.staff(1)
        world.audit(a=1 if resumed else 0)


class TestTooLate:
    """While an application thinks it over, the whole life of the job goes by."""

    @pytest.mark.parametrize('verb', ['hold', 'cancel', 'remove'])
    def test_a_wish(self, world, place, verb):
        world.staff(1)
        wait_in(world, place, 'a')
        late = remove(world, 'a') if verb == 'remove' else wish(world, 'a', verb)
        late.do()
        Life(world).commit()
        late.commit()
        assert late.conflicts == 1 and late.refused
        world.audit()

    def test_a_change(self, world, place):
        world.staff(1)
        wait_in(world, place, 'a')
        late = change(world, 'a', 'priority', 1)
        late.do()
        Life(world).commit()
        late.commit()
        assert late.conflicts == 1 and late.refused
        world.audit()

    def test_a_callback(self, world, place):
        """It comes too late to be one of the job's, and is run on its own."""
        world.staff(1)
        wait_in(world, place, 'a')
        late = Wish(world, lambda side: world.add_callback(side, 'a', 'c'))
        late.do()
        Life(world).commit()
        late.commit()
        assert late.conflicts == 1 and not late.refused
        world.audit()


class TestIds:
    def test_two_take_one_id(self, world, run):
        world.staff(1)
        takes = [
            Wish(world, lambda side: world.put_by(side, 'a', id='stone')),
            Wish(world, lambda side: world.put_by(side, 'b', id='stone')),
        ]
        run(*takes)
        assert sum(take.conflicts for take in takes) == 1
        (refused,) = [take for take in takes if take.refused]
        assert isinstance(refused.refused, DuplicateJobError)
        world.oids.pop('a' if refused is takes[0] else 'b')
        world.audit()

    def test_two_keep_what_is_there(self, world, run):
        world.staff(1)
        options = {'id': 'stone', 'on_conflict': 'keep'}
        takes = [Wish(world, lambda side: world.put_by(side, 'a', **options)) for _ in range(2)]
        run(*takes)
        assert sum(take.conflicts for take in takes) == 1
        world.audit()

    def test_two_ids(self, world, run):
        takes = [
            Wish(world, lambda side: world.put_by(side, 'a', id='stone')),
            Wish(world, lambda side: world.put_by(side, 'b', id='pebble')),
        ]
        run(*takes)
        assert sum(take.conflicts for take in takes) == 0
        world.staff(1)
        world.audit()

    def test_replaced_while_it_is_claimed(self, world, run, place):
        world.staff(1)
        wait_in(world, place, 'a', id='stone')
        replacing = Wish(
            world, lambda side: world.put_by(side, 'b', id='stone', on_conflict='replace')
        )
        run(claim(world), replacing)
        if replacing.refused:
            del world.oids['b']
            world.audit()
        else:
            world.audit(a=0)

    def test_taken_again_while_it_is_freed(self, world, run):
        """The job has finished; its dispatcher writes that down as the id is taken again."""
        world.staff(1)
        world.put('a', id='stone')
        world.start('a')
        world.end('a')
        taking = Wish(world, lambda side: world.put_by(side, 'b', id='stone'))
        run(claim(world), taking)
        assert not taking.refused
        world.audit()
        assert world.known('b').outcome == 'success'
