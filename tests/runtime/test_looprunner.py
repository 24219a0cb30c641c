"""Loop runners: agents that keep a loop fresh, in virtual time."""

import datetime
import logging

import pytest
import transaction
import zope.event
from persistent.mapping import PersistentMapping
from ZODB.utils import get_pickle_metadata

from zodbjobs import Loop, LoopRunner, clock, local
from zodbjobs.interfaces import LoopFresh, LoopLate

HOUR = 3600
seen = []
broken = set()


@pytest.fixture
def layer(layer):
    seen.clear()
    broken.clear()
    layer.dispatcher.poll_interval = 600  # hours go by here
    layer.root['done'] = PersistentMapping()
    layer.loop = layer.root['loop'] = Loop(shards=2)
    transaction.commit()
    return layer


def update(ids):
    """Count the updates of an id, or of a list of them, in the database."""
    done = local.getQueue()._p_jar.root()['done']
    some = ids if isinstance(ids, list) else [ids]
    seen.append(ids)
    for id in some:
        done[id] = done.get(id, 0) + 1
        if id in broken:
            raise ValueError(f'{id} cannot be updated')


async def update_later(id):
    pass


def started(layer, size=2, wishes=(), **options):
    runner = layer.root['runner'] = LoopRunner(layer.loop, update, **options)
    runner.start(layer.queue, size, **dict(wishes))
    transaction.commit()
    return runner


def settled(layer):
    assert layer.reactor.settle(30)
    transaction.begin()
    return dict(layer.root['done'])


def flown(layer, **span):
    layer.reactor.time_flies(datetime.timedelta(**span).total_seconds())
    return settled(layer)


def waiting(layer):
    return [job for job in layer.queue if job.begin_after > clock.now()]


def test_every_id_is_updated_once_an_hour(layer):
    layer.loop.add(range(10))
    runner = started(layer)
    assert settled(layer) == dict.fromkeys(range(10), 1)
    assert not runner.jobs and layer.loop.stats()['never_updated'] == 0
    assert flown(layer, minutes=59) == dict.fromkeys(range(10), 1)
    assert flown(layer, minutes=2) == dict.fromkeys(range(10), 2)


def test_a_batch_is_one_job(layer):
    layer.loop.add(range(10))
    started(layer, size=1, batch=4)
    assert settled(layer) == dict.fromkeys(range(10), 1)
    assert [len(ids) for ids in seen] == [4, 4, 2]


def test_work_and_did_are_one_commit(layer):
    broken.add(2)
    layer.loop.add(range(4))
    started(layer)
    assert settled(layer) == {0: 1, 1: 1, 3: 1}
    since, left = layer.loop.check(2)[2]
    assert since is None and left > 0


def test_a_bad_id_is_left_alone_for_the_time_of_its_lease_and_counted(layer):
    broken.add(2)
    layer.loop.add(range(4))
    started(layer, lock_for=600, min_loop_time=24 * HOUR)
    settled(layer)
    for count in range(1, 4):
        flown(layer, seconds=601)
        assert layer.loop.failures(2) == {2: count}
    assert seen.count(2) == 4
    broken.clear()
    assert flown(layer, seconds=601)[2] == 1
    assert layer.loop.failures(2) == {2: 0}


def test_a_bad_id_keeps_the_others_of_its_batch_back_once(layer):
    broken.add(2)
    layer.loop.add(range(8))
    started(layer, size=1, batch=8, lock_for=600)
    assert settled(layer) == {}
    assert flown(layer, seconds=601) == {id: 1 for id in range(8) if id != 2}
    assert [ids for ids in seen if 2 in ids][1:] == [[2]]


@pytest.mark.parametrize('verb', ['bump', 'add', 'unlock'])
def test_who_has_something_to_do_wakes_a_sleeping_runner(layer, verb):
    layer.loop.add([1])
    started(layer)
    settled(layer)
    flown(layer, minutes=5)
    getattr(layer.loop, verb)([7])
    transaction.commit()
    assert settled(layer) == {1: 1, 7: 1}


def test_a_bump_with_a_lock_is_answered_when_that_has_ended(layer):
    layer.loop.add([1])
    started(layer)
    flown(layer, minutes=5)
    layer.loop.bump(1, lock_for=600)
    transaction.commit()
    assert flown(layer, seconds=590) == {1: 1}
    assert flown(layer, seconds=15) == {1: 2}


@pytest.mark.parametrize('take_over', [False, True])
def test_a_bump_at_random_wakes_for_the_first(layer, take_over):
    layer.loop.add(range(20), updated=True)
    started(layer, lock_for=(HOUR, 2 * HOUR))
    settled(layer)
    layer.loop.bump(range(20), lock_for=(100, 200), take_over=take_over)
    transaction.commit()
    assert flown(layer, seconds=98) == {}
    done = flown(layer, seconds=52)
    assert 0 < len(done) < 20 and set(done.values()) == {1}
    assert len(flown(layer, seconds=52)) == 20


def test_a_bump_that_was_open_while_the_runner_fell_asleep_is_found(layer):
    layer.loop.add([1])
    runner = started(layer)
    slow = transaction.TransactionManager()
    connection = layer.db.open(slow)
    slow.begin()
    connection.root()['loop'].bump(1)  # when the runner was not asleep
    settled(layer)
    slow.commit()
    connection.close()
    assert runner._asleep_until is not None
    assert flown(layer, seconds=61) == {1: 2}


def test_an_idle_runner_writes_nothing(layer):
    layer.loop.add(range(3))
    runner = started(layer, min_loop_time=24 * HOUR)
    assert settled(layer) == dict.fromkeys(range(3), 1)

    tomorrow = clock.micros() + 20 * HOUR * clock.SECOND

    def sleeps():
        transaction.begin()
        moments = [clock.micros_of(job.begin_after) for job in layer.queue]
        return moments == [runner._asleep_until] and moments[0] > tomorrow

    # Which looks there are before depends on how far the threads come while time flies.
    assert layer.reactor.wait_until(sleeps, 8 * HOUR, step=600)
    assert layer.reactor.settle(30)
    former = layer.db.lastTransaction()
    flown(layer, hours=8)
    written = {
        get_pickle_metadata(record.data)
        for stored in layer.db.storage.iterator()
        if stored.tid > former
        for record in stored
    }
    # The dispatcher may list what has ended, and tidy up.
    assert not [
        name for name in written if name[0].split('.')[-1] in ('job', 'loop', 'looprunner', 'shard')
    ]
    assert len(waiting(layer)) == 1


def test_what_is_bumped_during_the_work_comes_again(layer):
    layer.loop.add([1])
    started(layer)
    settled(layer)
    layer.root['bumper'] = LoopRunner(layer.loop, bump_once, min_loop_time=0)
    layer.root['runner'].stop()
    layer.root['bumper'].start(layer.queue)
    layer.loop.bump(1)
    transaction.commit()
    settled(layer)
    assert seen[:3] == [1, 'bumps', 'again']


def bump_once(id):
    """Somebody else bumps the id while it is worked on."""
    first = 'bumps' not in seen
    seen.append('bumps' if first else 'again')
    if not first:
        local.getQueue()._p_jar.root()['bumper'].stop()
        return
    manager = transaction.TransactionManager()
    connection = local.getDispatcher().db.open(manager)
    connection.root()['loop'].bump(id)
    manager.commit()
    connection.close()


def test_no_more_jobs_than_places(layer):
    layer.loop.add(range(50))
    layer.agent.size = 0
    runner = started(layer, size=3, batch=2)
    layer.reactor.settle()
    transaction.begin()
    runner.turn()
    assert len(runner.jobs) == 3
    runner.turn()
    runner.turn()
    assert len(runner.jobs) == 3 and layer.loop.stats()['locked'] == 6


def test_stop_and_start(layer):
    layer.loop.add(range(4))
    runner = started(layer)
    settled(layer)
    runner.stop()
    transaction.commit()
    assert not runner.running and layer.loop.runners == () and not waiting(layer)
    layer.loop.bump([1])
    transaction.commit()
    assert flown(layer, hours=3) == dict.fromkeys(range(4), 1)
    runner.start(layer.queue, 1)
    transaction.commit()
    assert settled(layer) == dict.fromkeys(range(4), 2)
    assert runner.running and layer.loop.runners == (runner,)


def test_it_goes_on_when_a_jobs_callback_cannot_call(layer):
    """Somebody takes the job out of the queue: the ids come back when the lease ends."""
    layer.loop.add([1, 2])
    layer.agent.size = 0
    transaction.commit()
    layer.reactor.settle()
    runner = started(layer, size=1)
    runner.turn()
    transaction.commit()
    (job,) = runner.jobs
    layer.queue.remove(job)
    layer.agent.size = 3
    transaction.commit()
    done = flown(layer, seconds=HOUR + 2)
    assert set(done) == {1, 2}


def test_jobs_have_the_wishes_of_the_start(layer):
    layer.queue.quotas.create('one')
    layer.loop.add([1])
    layer.agent.size = 0
    runner = started(layer, wishes={'quota_names': ('one',), 'priority': 7, 'retries': 2})
    runner.turn()
    (job,) = runner.jobs
    assert (job.quota_names, job.priority, job._retries) == (('one',), 7, 2)
    with pytest.raises(TypeError, match=r"\['begin_after'\]: a runner may wish"):
        runner.start(layer.queue, begin_after=None)
    with pytest.raises(ValueError, match='size'):
        runner.start(layer.queue, 0)


def test_a_job_that_comes_too_late_does_nothing(layer):
    layer.loop.add([1])
    batch = layer.loop.get(1, lock_for=60)
    transaction.commit()
    layer.reactor.time_flies(61)
    transaction.begin()
    runner = LoopRunner(layer.loop, update)
    layer.loop.did(layer.loop.get(1))
    assert runner.work(batch) is None and not seen


def test_what_is_called_must_be_done_when_it_returns(layer):
    runner = LoopRunner(layer.loop, update_later)
    layer.loop.add([1])
    with pytest.raises(TypeError, match='must have done its work when it returns'):
        runner.work(layer.loop.get(1))
    assert layer.loop.check(1)[1][0] is None


@pytest.mark.parametrize(
    'error, options',
    [
        (TypeError, {'loop': []}),
        (TypeError, {'call': lambda id: None}),
        (ValueError, {'batch': 0}),
        (ValueError, {'batch': 1.5}),
        (ValueError, {'lock_for': 0}),
        (TypeError, {'min_loop_time': 'x'}),
        (ValueError, {'fresh': 0}),
    ],
    ids=lambda value: str(list(value)) if isinstance(value, dict) else value.__name__,
)
def test_what_a_runner_does_not_take(error, options):
    with pytest.raises(error):
        LoopRunner(**{'loop': Loop(), 'call': update, **options})


def test_an_alarm_when_the_promise_is_broken(layer, caplog):
    caplog.set_level(logging.INFO, 'zodbjobs.events')
    events = []
    zope.event.subscribers.append(events.append)
    try:
        broken.add(1)
        layer.loop.add([1, 2])
        runner = started(layer, lock_for=600, fresh=2 * HOUR)
        flown(layer, hours=1, minutes=59)
        assert runner.late is None and not runner.told_late
        flown(layer, minutes=2)
        assert 0 < runner.late < 120 and runner.told_late
        flown(layer, hours=2)
        assert runner.late > HOUR
        broken.clear()
        flown(layer, minutes=11)
        assert runner.late is None and not runner.told_late
    finally:
        zope.event.subscribers.remove(events.append)
    told = [type(each) for each in events if isinstance(each, (LoopLate, LoopFresh))]
    assert told == [LoopLate, LoopFresh]  # each in a job that is alone, and so meets no conflict
    texts = [record.getMessage() for record in caplog.records]
    assert sum('seconds, and 7200 are promised' in text for text in texts) == 1
    assert sum('again as fresh as promised' in text for text in texts) == 1


def test_a_runner_outlives_its_dispatcher(layer):
    layer.loop.add(range(3))
    started(layer)
    settled(layer)
    layer.dispatcher.deactivate()
    transaction.begin()
    layer.loop.bump([0])
    transaction.commit()
    layer.dispatcher.activate()
    assert flown(layer, minutes=1) == {0: 2, 1: 1, 2: 1}
    assert flown(layer, hours=1) == {0: 3, 1: 2, 2: 2}
