"""Loops: the rules of their verbs one by one, and what happens when two connections meet.

The figures of the first part are those of doloop's own description.
"""

import datetime
import pickle

import pytest
import transaction
import ZODB
from ZODB.FileStorage import FileStorage
from ZODB.POSException import ConflictError
from zope.interface.verify import verifyObject

from tests.model import support
from zodbjobs import Batch, Loop, Loops, clock
from zodbjobs.interfaces import ILoop, ILoops

HOUR = 3600


@pytest.fixture
def loop(turned):
    """A loop of one shard, in no database: its order is exact."""
    return Loop(shards=1)


class Worker:
    """A connection of its own to the loop of a database."""

    def __init__(self, db):
        self.manager = transaction.TransactionManager()
        self.connection = db.open(self.manager)

    @property
    def loop(self):
        return self.connection.root()['loop']

    def commit(self):
        self.manager.commit()

    def begin(self):
        self.manager.begin()
        return self.loop

    def close(self):
        self.manager.abort()
        self.connection.close()


@pytest.fixture
def workers(tmp_path, turned):
    """Connections that start at different shards, to a loop of the ids 0 to 999."""
    db = ZODB.DB(FileStorage(str(tmp_path / 'Data.fs')))
    with db.transaction() as connection:
        loop = connection.root()['loop'] = Loop()
        loop.add(range(1000))
    found = [Worker(db) for _ in range(6)]
    yield found
    for worker in found:
        worker.close()
    db.close()


def other_start(workers):
    """Two workers that take their ids from different shards."""
    first, *others = workers
    taken = {id % 16 for id in first.begin().get(5, test=True)}
    for other in others:
        if taken.isdisjoint(id % 16 for id in other.begin().get(5, test=True)):
            return first, other
    pytest.skip('all connections start at the same shard')


# The verbs ---------------------------------------------------------------------------------


def test_adding_counts_what_is_new(loop):
    assert loop.add([1, 2, 3]) == 3
    assert loop.add([3, 4, 4]) == 1
    assert loop.add(5) == 1
    assert loop.add([]) == 0
    assert loop.remove([1, 99]) == 1
    assert sorted(loop) == [2, 3, 4, 5] and len(loop) == 4 and 2 in loop and 1 not in loop


@pytest.mark.parametrize('one', ['ab', b'ab', None, 7, 2.5])
def test_a_text_is_one_id_and_so_is_none(turned, one):
    loop = Loop()
    assert loop.add(one) == 1
    assert list(loop) == [one] and loop.get(5) == [one] and loop.did(one) == 1


@pytest.mark.parametrize(
    'ids',
    [
        range(40),
        [f'user {n}' for n in range(40)],
        [f'{n}'.encode() for n in range(40)],
        [(n % 3, f'{n}') for n in range(40)],
        [None, *range(39)],
        [datetime.date(2026, 1, 1) + datetime.timedelta(n) for n in range(40)],
        [n / 2 for n in range(40)],
    ],
    ids=['numbers', 'texts', 'bytes', 'tuples', 'none', 'dates', 'floats'],
)
def test_ids_are_whatever_can_be_ordered(turned, ids):
    loop = Loop()
    assert loop.add(ids) == 40 == len(loop)
    assert set(loop.get(100)) == set(ids)
    assert loop.did(ids) == 40 and set(loop.check(ids)) == set(ids)


def test_equal_ids_are_one_id(turned):
    loop = Loop()
    assert loop.add([1]) == 1
    assert loop.add([1.0, True]) == 0


def test_ids_that_cannot_be_ordered_are_refused_in_words(turned):
    loop = Loop()
    loop.add(range(100))
    with pytest.raises(TypeError, match="'x' cannot be .* id"):
        loop.add('x')
    with pytest.raises(TypeError):
        loop.add([object()])
    with pytest.raises(ValueError, match='not equal to itself'):
        loop.add(float('nan'))
    assert len(loop) == 100


def test_what_is_never_updated_comes_first_then_the_oldest(loop, turned):
    loop.add([1, 2], updated=True)
    turned.advance(10)
    loop.add([3], updated=True)
    turned.advance(10)
    loop.add([4])
    turned.advance(HOUR)
    assert loop.get(10) == [4, 1, 2, 3]


def test_get_leaves_alone_what_was_updated_within_the_hour(loop, turned):
    loop.add([1, 2])
    loop.did(1)
    assert loop.get(10) == [2]
    turned.advance(HOUR - 1)
    assert loop.get(10) == []
    turned.advance(1)
    assert loop.get(10) == [2, 1]  # 2 was locked for an hour, and nobody did it


def test_min_loop_time_may_be_nothing_or_less(loop):
    loop.add([1], updated=True)
    assert loop.get(1, min_loop_time=1, test=True) == []
    assert loop.get(1, min_loop_time=0, test=True) == [1]
    assert loop.get(1, min_loop_time=-5) == [1]


@pytest.mark.parametrize('limit', [24.0, '1', None, True])
def test_a_limit_is_a_whole_number(loop, limit):
    with pytest.raises(TypeError, match='limit is a whole number'):
        loop.get(limit)


@pytest.mark.parametrize(
    'error, options',
    [
        (ValueError, {'limit': -1}),
        (ValueError, {'lock_for': 0}),
        (ValueError, {'lock_for': -1}),
        (TypeError, {'lock_for': '1'}),
        (TypeError, {'lock_for': None}),
        (TypeError, {'min_loop_time': 'x'}),
        (ValueError, {'lock_for': float('inf')}),
        (ValueError, {'lock_for': 1e12}),
        (ValueError, {'lock_for': (0, 5)}),
        (ValueError, {'lock_for': (6, 5)}),
        (TypeError, {'lock_for': (5,)}),
        (TypeError, {'lock_for': (5, None)}),
    ],
)
def test_what_get_does_not_take(loop, error, options):
    with pytest.raises(error):
        loop.get(**{'limit': 1, **options})
    assert loop.get(0) == []


@pytest.mark.parametrize('lock_for', [None, '1', True, (1, 'x'), (1, 2, 3)])
def test_a_bump_is_for_a_number_of_seconds(loop, lock_for):
    loop.add([1])
    with pytest.raises(TypeError, match='lock_for is a'):
        loop.bump(1, lock_for)
    with pytest.raises(ValueError, match='2 is more than 1'):
        loop.bump(1, (2, 1))
    assert loop.stats()['bumped'] == 0


def test_locks_may_end_at_random_in_a_range(loop, turned):
    loop.add(range(200))
    batch = loop.get(100, lock_for=(60, datetime.timedelta(hours=1)))
    left = [left for _, left in loop.check(batch).values()]
    assert 60 <= min(left) < 600 and 3000 < max(left) <= HOUR and len(set(left)) > 90
    assert batch.expires == clock.now() + datetime.timedelta(seconds=min(left))
    assert loop.bump(range(100, 200), (-10, 10)) == 100
    stats = loop.stats()
    assert 20 < stats['bumped'] < 80 and stats['locked'] == 200 - stats['bumped']
    assert 0 < stats['max_bump_time'] <= 10


def test_bumps_of_many_at_random_lie_apart(loop, turned):
    loop.bump(range(1000), (0, 100), auto_add=True)
    assert len(loop.get(1000, test=True)) < 30
    turned.advance(50)
    assert 350 < len(loop.get(1000, test=True)) < 650
    turned.advance(50)
    assert len(loop.get(1001)) == 1000 and loop.failures() == {}


def test_a_crashed_workers_ids_come_back_first(loop, turned):
    loop.add(range(5))
    assert loop.get(2, lock_for=60) == [0, 1]
    turned.advance(60)
    batch = loop.get(3)
    assert batch == [0, 1, 2]
    assert loop.failures() == {0: 1, 1: 1} and loop.stats()['failing'] == 2
    loop.did(batch)
    assert loop.failures() == {} and loop.failures(range(2)) == {0: 0, 1: 0}


def test_failures_of_an_id_add_up(loop, turned):
    loop.add([1, 2])
    for count in range(1, 4):
        loop.unlock(loop.get(2)[1:])
        turned.advance(HOUR)
        assert loop.failures(1) == {1: count}
    loop.unlock(1)
    assert loop.failures(1) == {1: 2}  # the last one was given back, if late
    assert loop.failures(['?']) == {}


def test_a_bump_pulls_forward_and_never_back(loop, turned):
    loop.add(range(4))
    assert loop.bump(3) == 1
    assert loop.bump([3, 2], lock_for=HOUR) == 1  # 3 stays where it is
    assert loop.get(9, test=True) == [3, 0, 1]
    turned.advance(HOUR)
    assert loop.get(9, test=True) == [3, 2, 0, 1]
    assert loop.bump(1, lock_for=-2 * HOUR) == 1
    assert loop.get(9, test=True) == [1, 3, 2, 0]
    assert loop.bump(1, lock_for=-HOUR) == 0


def test_a_bump_with_a_lock_waits_and_gathers_what_follows(loop, turned):
    loop.add([1], updated=True)
    for minutes in range(0, 60, 10):
        assert loop.bump(1, lock_for=HOUR) == (1 if minutes == 0 else 0)
        assert loop.get(1, min_loop_time=0) == []
        turned.advance(600)
    assert loop.get(1) == [1]


@pytest.mark.parametrize('verb', ['did', 'unlock', 'bump'])
def test_ids_that_were_forgotten_are_added(loop, verb):
    assert getattr(loop, verb)([7], auto_add=False) == 0 and len(loop) == 0
    assert getattr(loop, verb)([7]) == 1 and list(loop) == [7]


def test_unlock_leaves_the_place(loop, turned):
    loop.add([1], updated=True)
    turned.advance(1)
    loop.add([2], updated=True)
    turned.advance(HOUR)
    assert loop.get(1) == [1]
    assert loop.unlock(1) == 1 and loop.unlock(1) == 0
    assert loop.get(2) == [1, 2]


def test_check(loop, turned):
    loop.add([1, 2, 3])
    loop.did(1)
    loop.bump(2, lock_for=-5)
    turned.advance(10)
    loop.get(1)
    assert loop.check([1, 2, 3, 4]) == {1: (10.0, None), 2: (None, 3600.0), 3: (None, None)}
    loop.bump(3, lock_for=20)
    assert loop.check(3) == {3: (None, 20.0)}


def test_stats_of_nothing(loop):
    stats = loop.stats()
    assert (stats.pop('min_id'), stats.pop('max_id')) == (None, None)
    assert set(stats.values()) == {0} and len(stats) == 11
    assert loop.stale(0) == 0 and loop.oldest() is None and loop.next_due() is None


def test_how_many_went_more_than_a_day(loop, turned):
    loop.add(range(10))
    loop.did(range(6))
    turned.advance(86_400 - HOUR)
    loop.did([0, 1])
    loop.get(3)
    turned.advance(HOUR)
    assert loop.stale(86_400) == 8  # those that were never done count from their addition
    assert loop.stale(HOUR) == 10 and loop.stale(HOUR + 1) == 8
    assert loop.stale(datetime.timedelta(days=7)) == 0
    assert loop.oldest() == pytest.approx(86_400)


def test_next_due(loop, turned):
    loop.add([1], updated=True)
    assert loop.next_due() == clock.now() + datetime.timedelta(hours=1)
    loop.bump(1, lock_for=60)
    assert loop.next_due() == clock.now() + datetime.timedelta(minutes=1)
    loop.get(1)
    turned.advance(60)
    assert loop.get(1) and loop.next_due() == clock.now() + datetime.timedelta(hours=1)


def test_next_due_is_that_of_what_was_said_last(loop, turned):
    """Also while nobody has sorted it in."""
    loop.add([1, 2], updated=True)
    turned.advance(HOUR)
    loop.did(loop.get(2, lock_for=60))
    for seconds in (0, 600, 1200):
        assert loop.get(9) == []
        due = loop.next_due().timestamp() - clock.now().timestamp()
        assert due == pytest.approx(HOUR - seconds, abs=1e-4)
        turned.advance(600)
    loop.did(2)
    loop.remove(1)
    assert loop.next_due() == clock.now() + datetime.timedelta(hours=1)
    loop.remove(2)
    assert loop.next_due() is None


def test_test_changes_nothing(loop):
    loop.add([1, 2])
    state = [pickle.dumps(loop.__getstate__()), loop.stats(), loop.check([1, 2, 3])]
    assert loop.add([2, 3], test=True) == 1
    assert loop.remove([2, 3], test=True) == 1
    assert loop.get(5, test=True) == [1, 2]
    assert loop.did([1, 3], test=True) == 2
    assert loop.bump([1, 3], test=True) == 2
    assert loop.unlock([3], test=True) == 1
    assert state == [pickle.dumps(loop.__getstate__()), loop.stats(), loop.check([1, 2, 3])]


# Batches -----------------------------------------------------------------------------------


def test_a_batch_knows_its_lease(loop, turned):
    loop.add(range(3))
    batch = loop.get(2, lock_for=60)
    assert batch.expires == clock.now() + datetime.timedelta(seconds=60)
    again = pickle.loads(pickle.dumps(batch))
    for other in (again, batch[:], batch[1:]):
        assert isinstance(other, Batch) and other.token == batch.token
    assert again == batch == [0, 1] and batch[0] == 0
    assert loop.held(again) == batch
    assert loop.did(again) == 2 and loop.held(batch) == []


def test_a_late_did_does_not_disturb_a_later_holder(loop, turned):
    loop.add([1])
    late = loop.get(1)
    turned.advance(HOUR)
    later = loop.get(1)
    assert later == [1] and loop.held(late) == []
    assert loop.did(late) == 0 and loop.unlock(late) == 0
    assert loop.check(1) == {1: (None, 3600.0)}
    assert loop.did(later) == 1
    assert loop.did(late) == 0


def test_a_lease_that_ended_can_be_finished_while_nobody_else_has_it(loop, turned):
    loop.add([1])
    batch = loop.get(1)
    turned.advance(2 * HOUR)
    assert loop.did(batch) == 1 and loop.failures(1) == {1: 0}


def test_a_bump_that_comes_meanwhile_is_kept(loop, turned):
    loop.add([1, 2])
    batch = loop.get(2)
    assert loop.bump(1) == 1
    assert loop.get(2) == []  # it is not handed out twice
    turned.advance(5)
    loop.did(batch)
    assert loop.get(2) == [1] and loop.check(1)[1][0] == pytest.approx(0, abs=1e-4)


def test_a_bump_that_comes_meanwhile_is_kept_for_plain_ids_too(loop):
    loop.add([1])
    ids = list(loop.get(1))
    loop.bump(1, lock_for=30)
    loop.did(ids)
    assert loop.check(1) == {1: (0.0, 30.0)}


def test_the_next_get_answers_a_bump(loop, turned):
    loop.add([1])
    loop.get(1, lock_for=60)
    loop.bump(1)
    turned.advance(60)
    loop.did(loop.get(1))  # began after the bump
    assert loop.check(1) == {1: (0.0, None)}


def test_a_bump_may_take_an_id_over(loop, turned):
    loop.add([1, 2])
    batch = loop.get(2)
    assert loop.bump(1, lock_for=2 * HOUR, take_over=True) == 1  # as any bump: not before its end
    assert loop.held(batch) == [1, 2]
    assert loop.bump(1, take_over=True, test=True) == 1 and loop.held(batch) == [1, 2]
    assert loop.bump(1, take_over=True) == 1
    assert loop.held(batch) == [2]
    later = loop.get(2)
    assert later == [1] and loop.failures() == {}
    assert loop.did(batch) == 1 and loop.held(later) == [1]
    assert loop.did(later) == 1


def test_of_two_bumps_the_earlier_one_is_answered(loop, turned):
    loop.add([1])
    loop.get(1)
    loop.bump(1)  # waits for the worker
    loop.bump(1, lock_for=60, take_over=True)
    assert loop.get(1) == [1]


def test_a_bump_that_waits_takes_over_then(loop, turned):
    loop.add([1])
    loop.get(1)
    loop.bump(1, lock_for=60, take_over=True)
    assert loop.get(1) == []
    turned.advance(60)
    assert loop.get(1) == [1]


def test_an_id_that_was_removed_meanwhile_stays_away(loop):
    loop.add([1, 2])
    batch = loop.get(2)
    loop.remove(1)
    assert loop.did(batch) == 1 and list(loop) == [2]


# Many ids ----------------------------------------------------------------------------------


def test_a_thousand_ids_of_one_moment_keep_their_order(loop, turned):
    loop.add(range(1000))
    for _ in range(3):
        batch = loop.get(1000)
        assert batch == list(range(1000))
        loop.did(batch)
        turned.advance(HOUR + 1)


def test_slips_of_thousands_are_sorted_in(turned):
    loop = Loop(shards=2)
    for number in range(600):
        loop.bump(number)
        turned.advance(0.001)
    assert loop.stats()['bumped'] == 600
    assert set(loop.get(600)) == set(range(600))
    assert [shard.slips.size() for shard in loop.shards] == [0, 0]


def test_counts_by_the_hour_are_right_at_their_edges(turned):
    loop = Loop(shards=3)
    start = turned.now
    for number in range(100):
        loop.add(number, updated=True)
        turned.advance(1000)
    loop.get(30)
    for seconds in range(0, 110_000, 997):
        moment = turned.now - seconds * support.SECOND
        expected = sum(start + n * 1000 * support.SECOND <= moment for n in range(100))
        assert loop.stale(seconds) == expected


# Two connections ---------------------------------------------------------------------------


def test_workers_take_different_ids_at_the_same_time(workers):
    first, second = other_start(workers)
    one, two = first.begin(), second.begin()
    taken = one.get(20), two.get(20)
    first.commit()
    second.commit()
    assert set(taken[0]).isdisjoint(taken[1])
    assert workers[2].begin().stats()['locked'] == 40


def test_of_two_that_take_the_same_ids_one_conflicts(workers):
    first, second = workers[:2]
    one, two = first.begin(), second.begin()
    one.get(1000)
    two.get(1000)
    first.commit()
    with pytest.raises(ConflictError):
        second.commit()
    second.manager.abort()
    assert second.loop.get(10) == []


@pytest.mark.parametrize('other', ['bump', 'unlock', 'did', 'add', 'remove', 'get'])
@pytest.mark.parametrize('verb', ['bump', 'unlock', 'did', 'add', 'remove'])
def test_an_application_conflicts_with_nobody(workers, turned, verb, other):
    """Its transaction is the longest one, and of the very same ids."""
    application, colleague = workers[:2]
    application.begin()
    ids = [5, 6, 5000]
    getattr(application.loop, verb)(ids)
    for _ in range(3):
        turned.advance(0.001)  # within a microsecond only chance keeps them apart
        loop = colleague.begin()
        loop.get(1000, min_loop_time=0) if other == 'get' else getattr(loop, other)(ids)
        colleague.commit()
    application.commit()
    application.begin()
    colleague.begin()
    assert application.loop.check(ids) == colleague.loop.check(ids)


def test_long_work_ends_in_one_commit_whatever_others_do(workers, turned):
    worker, *others = workers
    batch = worker.begin().get(100)
    worker.commit()
    worker.begin()
    worker.loop.check(batch)
    for other in others:
        other.begin().bump(batch[:50])
        other.loop.add(range(1000, 1100))
        other.commit()
        other.begin()
        other.loop.did(other.loop.get(50))
        other.commit()
    assert worker.loop.did(batch) == 100
    worker.commit()
    worker.begin()
    assert worker.loop.check(batch[0])[batch[0]] == (0.0, 0.0)  # bumped, and not lost


def test_who_is_too_late_cannot_commit(workers, turned):
    late, later = workers[:2]
    batch = late.begin().get(10, lock_for=60)
    late.commit()
    turned.advance(60)
    late.begin()
    late.loop.did(batch)
    taken = later.begin().get(10)
    assert set(taken) == set(batch)
    later.commit()
    with pytest.raises(ConflictError):
        late.commit()


def test_who_wants_to_take_over_too_late_cannot_commit(workers, turned):
    late, later = workers[:2]
    batch = late.begin().get(10, lock_for=60)
    late.commit()
    turned.advance(60)
    later.begin().get(10)
    late.begin().did(batch)
    late.commit()
    with pytest.raises(ConflictError):
        later.commit()


def test_who_lost_an_id_to_a_bump_cannot_commit_its_end(workers, turned):
    worker, application = workers[:2]
    batch = worker.begin().get(10)
    worker.commit()
    worker.begin().did(batch)
    application.begin().bump(batch[0], take_over=True)
    application.commit()
    with pytest.raises(ConflictError):
        worker.commit()
    worker.manager.abort()
    assert worker.begin().did(batch) == 9


def test_an_abort_leaves_nothing(workers):
    worker = workers[0]
    worker.begin().add(range(2000, 2200))
    worker.loop.get(100)
    worker.loop.did([5])
    worker.manager.abort()
    assert len(worker.loop) == 1000 and worker.loop.stats()['locked'] == 0


def test_looking_writes_nothing(workers):
    worker = workers[0]
    worker.begin().bump(5)
    worker.loop.get(5)
    worker.commit()
    loop = worker.begin()
    loop.stats(), loop.check(range(9)), loop.stale(5), loop.oldest(), loop.next_due()
    loop.failures(), len(loop), list(loop), loop.held(Batch([1], 5))
    assert loop.get(9, test=True) and loop.get(0) == [] and loop.bump([], 5) == 0
    assert loop.remove([10**9]) == 0
    assert worker.connection._registered_objects == []


# Loops -------------------------------------------------------------------------------------


def test_contracts(turned):
    assert verifyObject(ILoop, Loop())
    assert verifyObject(ILoops, Loops())


def test_loops_by_name(turned):
    loops = Loops()
    loops['users'] = loop = Loop()
    assert loops['users'] is loop and list(loops) == ['users'] and len(loops) == 1 and loops
    with pytest.raises(ValueError, match='only a loop'):
        loops['x'] = []
    with pytest.raises(TypeError, match='text'):
        loops[1] = loop
    with pytest.raises(KeyError, match=r"no loop 'x'; there are \['users'\]"):
        loops['x']
    with pytest.raises(KeyError):
        del loops['x']
    del loops['users']
    assert not list(loops)


@pytest.mark.parametrize('shards', [0, -1, 1.0, True, None])
def test_shards_are_a_whole_number(turned, shards):
    with pytest.raises(ValueError, match='shards'):
        Loop(shards)
