"""The wake-ups of loop runners that could be lost, one interleaving after the other.

Each has the same shape: a transaction begins; a turn is made that does not see what it
says; and it is committed without a need, as far as it knows, to put another turn.
The agent runs nothing here: turns and work are made by hand, in the order that hurts.
"""

import pytest
import transaction

from zodbjobs import Loop, LoopRunner, clock, testing

HOUR = 3600


def update(id):
    """The work; the ids that were given out are what these tests look at."""


@pytest.fixture
def staged():
    layer = testing.setUp()
    layer.dispatcher.poll_interval = 600  # hours go by here
    layer.agent.size = 0
    layer.loop = layer.root['loop'] = Loop(shards=2)
    transaction.commit()
    layer.reactor.settle()
    yield layer
    testing.tearDown()


def started(layer, **options):
    """A runner whose first turn is still to be made."""
    runner = layer.root['runner'] = LoopRunner(layer.loop, update, **options)
    runner.start(layer.queue, 2)
    transaction.commit()
    transaction.begin()
    for job in list(layer.queue):
        layer.queue.remove(job)
    transaction.commit()
    return runner


class Other:
    """Another transaction on the layer's database; it sees what was committed when it began."""

    def __init__(self, layer):
        self.manager = transaction.TransactionManager()
        self.connection = layer.db.open(self.manager)
        self.manager.begin()
        self.loop = self.connection.root()['loop']
        assert [runner._asleep_until for runner in self.loop.runners]  # it reads the runner now

    def commit(self):
        self.manager.commit()
        self.connection.close()


def taken_out(queue):
    """The turns that are due, which nobody else will make now."""
    due = [job for job in queue if job.begin_after <= clock.now() and 'work' not in job.call_name]
    for job in due:
        queue.remove(job)
    return due


def made(runner):
    """Make a turn by hand, and commit it; the one that was put for it is not made again."""
    transaction.begin()
    taken_out(runner.queue)
    runner.turn()
    transaction.commit()


def due(layer):
    """Virtual seconds until the next turn that waits."""
    transaction.begin()
    moments = [job.begin_after for job in layer.queue if 'work' not in job.call_name]
    return (min(moments) - clock.now()).total_seconds()


def turned_at(layer, seconds):
    """Let time pass to a moment, and make the turns that were put for it."""
    layer.reactor.time_flies(seconds)
    transaction.begin()
    for job in taken_out(layer.queue):
        job.callable()
    transaction.commit()


def given(runner):
    """The batches that jobs have."""
    return [job.args[0] for job in runner.jobs]


@pytest.mark.parametrize('ids', [[1], [1, 2]], ids=['a place left', 'no place left'])
def test_a_bump_that_counted_on_a_turn_that_was_under_way_is_found(staged, ids):
    """The turn was overdue, on a busy machine: so nobody put another one."""
    staged.loop.add(ids, updated=True)
    runner = started(staged)
    made(runner)
    staged.reactor.time_flies(HOUR + 60)  # the turn for them is due, and late
    other = Other(staged)
    other.loop.bump(7)
    made(runner)
    assert sorted(given(runner)) == [[id] for id in ids]
    transaction.begin()
    for place, job in enumerate(runner.jobs):
        job.callable(*job.args)
        staged.queue.remove(job)
        runner.turn(place)
    transaction.commit()
    other.commit()
    assert due(staged) <= 2
    turned_at(staged, 2)
    assert given(runner) == [[7]]


@pytest.mark.parametrize('seconds, found', [(1, 2), (30, 60), (300, 600), (3000, 3600)])
def test_what_was_said_in_a_long_transaction_is_found(staged, seconds, found):
    """Longer than that is found when the next id is due: here, after a day."""
    staged.loop.add([1], updated=True)
    runner = started(staged, min_loop_time=24 * HOUR)
    for job in staged.queue:
        staged.queue.remove(job)
    other = Other(staged)
    other.loop.bump(7)
    made(runner)
    passed = 0
    while passed < seconds:
        wait = min(due(staged), seconds - passed)
        staged.reactor.time_flies(wait)
        passed += wait
        if due(staged) <= 0:
            turned_at(staged, 0)
    other.commit()
    assert due(staged) == pytest.approx(found - seconds, abs=0.01)
    turned_at(staged, found - seconds)
    assert given(runner) == [[7]]


def test_an_end_that_did_not_see_a_bump_is_followed_by_a_look(staged):
    """A worker that is no runner says `did` while somebody bumps: neither knows of the other."""
    staged.loop.add([1])
    batch = staged.loop.get(1)
    runner = started(staged)
    made(runner)
    worker, application = Other(staged), Other(staged)
    application.loop.bump(1)
    application.commit()
    assert due(staged) <= 0
    turned_at(staged, 0)  # the worker has it still
    assert not runner.jobs
    worker.loop.did(batch)
    worker.commit()
    assert due(staged) <= 2
    turned_at(staged, 2)
    assert given(runner) == [[1]]


def test_who_ends_an_id_that_was_bumped_meanwhile_wakes(staged):
    staged.loop.add([1])
    batch = staged.loop.get(1)
    staged.loop.bump(1)
    runner = started(staged, min_loop_time=24 * HOUR)
    made(runner)
    for _ in range(3):
        turned_at(staged, due(staged))  # looks before the end of the lease
    waiting = len(staged.queue)
    assert staged.loop.did(batch) == 1
    assert len(staged.queue) == waiting + 1
    transaction.commit()
    assert due(staged) <= 0


def test_what_was_just_updated_does_not_wake(staged):
    staged.loop.add([1], updated=True)
    runner = started(staged)
    made(runner)
    waiting = len(staged.queue)
    staged.reactor.time_flies(10)
    transaction.begin()
    staged.loop.did([1, 2])
    staged.loop.add([3], updated=True)
    assert len(staged.queue) == waiting


def test_a_loop_without_ids_is_looked_at_all_the_same(staged):
    made(started(staged))
    waits = []
    for _ in range(6):
        waits.append(round(due(staged)))
        turned_at(staged, due(staged))
    assert waits == [2, 58, 540, 3000, 3600, 3600]


def test_a_turn_that_fails_is_made_again(staged):
    """Here its quota is gone for a while: nobody else would make the next turn."""
    staged.queue.quotas.create('one')
    staged.loop.add([1])
    runner = started(staged)
    runner.start(staged.queue, 2, quota_names=('one',))
    transaction.commit()
    transaction.begin()
    staged.queue.quotas.remove('one')
    staged.agent.size = 1
    transaction.commit()
    assert staged.reactor.settle(10)
    transaction.begin()
    assert not runner.jobs and due(staged) > 0
    staged.queue.quotas.create('one')
    transaction.commit()
    assert staged.reactor.wait_until(lambda: checked(staged) is not None, 3 * HOUR, step=10)


def checked(layer):
    """Seconds since the id 1 was updated, or None."""
    transaction.begin()
    return layer.loop.check(1)[1][0]
