"""What users may expect of a queue: its order, its counts, its refusals."""

import datetime
import zoneinfo

import pytest
import pytz
from BTrees.LOBTree import LOBTree
from ZODB.POSException import ConflictError

from tests.model.support import Thing, other_work, work
from zodbjobs import Failure, Job, NeverRetry, Queue, RetryPolicy, clock, status
from zodbjobs.interfaces import BadStatusError, DuplicateJobError, QueueClosed
from zodbjobs.model.handout import Round
from zodbjobs.runtime import ended, ride
from zodbjobs.runtime.ride import may_ride

#: The clocks of Zurich go back at 3:00 that day.
AMBIGUOUS = datetime.datetime(2026, 10, 25, 2, 30, tzinfo=zoneinfo.ZoneInfo('Europe/Zurich'))


def sort_all(side):
    """Have a dispatcher sort everything that waits in the lanes, and commit."""
    side.file_all()
    side.commit()


def hence(seconds):
    """The datetime in so many seconds."""
    return clock.now() + datetime.timedelta(seconds=seconds)


# Order -------------------------------------------------------------------------------------


def test_first_come_first_served(side, queue):
    jobs = [queue.put(work) for _ in range(5)]
    assert list(queue) == jobs
    assert queue.peek() is jobs[0]
    side.commit()
    assert side.claimed_jobs(5) == jobs


def test_a_job_that_is_put_again_is_the_last(side, queue):
    first, second = queue.put(work), queue.put(work)
    queue.remove(first)
    queue.put(first)
    assert list(queue) == [second, first]
    side.commit()
    assert side.claimed_jobs(2) == [second, first]


@pytest.mark.parametrize('is_sorted', [False, True])
def test_jobs_for_one_date_keep_the_order_of_their_puts(side, queue, turned, is_sorted):
    date = hence(60)
    jobs = [queue.put(work, date) for _ in range(4)]
    queue.remove(jobs[0])
    queue.put(jobs[0], date)
    side.commit()
    if is_sorted:
        sort_all(side)
    expected = [*jobs[1:], jobs[0]]
    assert list(queue) == expected
    turned.advance(61)
    assert list(queue) == expected
    assert side.claimed_jobs(4) == expected


@pytest.mark.parametrize('is_sorted', [False, True])
def test_the_smaller_priority_goes_first(side, queue, is_sorted):
    low, high, usual = queue.put(work, priority=7), queue.put(work, priority=3), queue.put(work)
    side.commit()
    if is_sorted:
        sort_all(side)
    usual.priority = 5
    assert list(queue) == [high, usual, low]
    side.commit()
    assert side.claimed_jobs(3) == [high, usual, low]


def test_a_date_that_has_passed_is_as_good_as_none(side, queue):
    first = queue.put(work)
    past = queue.put(work, hence(-3600))
    assert past.begin_after == clock.now()
    assert list(queue) == [first, past]


def test_order_put_forgets_the_dates_of_what_is_due(side, queue, turned):
    queue.order = 'put'
    late = queue.put(work, delay=60)
    turned.advance(1)
    soon = queue.put(work, delay=30)
    side.commit()
    sort_all(side)
    turned.advance(61)
    assert list(queue) == [late, soon]
    assert side.claimed_jobs(2) == [late, soon]


@pytest.mark.parametrize('is_sorted', [False, True])
def test_the_order_may_be_changed_while_jobs_wait(side, queue, turned, is_sorted):
    late = queue.put(work, delay=60)
    turned.advance(1)
    soon = queue.put(work, delay=30)
    side.commit()
    if is_sorted:
        sort_all(side)
    turned.advance(61)
    assert list(queue) == [soon, late]
    queue.order = 'put'
    assert list(queue) == [late, soon]
    queue.order = 'due'
    assert list(queue) == [soon, late]
    assert len(queue) == 2
    with pytest.raises(ValueError, match="'put'"):
        queue.order = 'random'


# Dates -------------------------------------------------------------------------------------


def test_begin_by_without_begin_after_counts_from_the_put(side, queue, turned):
    job = queue.put(work, begin_by=60)
    assert job.begin_by == datetime.timedelta(seconds=60)
    side.commit()
    sort_all(side)
    turned.advance(61)
    side.claim()
    assert job.result.type.__name__ == 'TimeoutError'


@pytest.mark.parametrize(
    'wish',
    [
        {'begin_after': datetime.datetime.max},
        {'begin_by': datetime.timedelta.max},
        {'begin_after': datetime.datetime.max, 'begin_by': datetime.timedelta.max},
        {'begin_after': datetime.datetime.min, 'begin_by': 60},
    ],
)
def test_dates_at_the_ends_of_time_stop_nobody(side, queue, wish):
    """Sorting keys have 63 bits; a key too large would fail every pass of every dispatcher."""
    far, job = queue.put(work, **wish), queue.put(work)
    side.commit()
    sort_all(side)
    assert job in side.claimed_jobs(2)
    assert list(queue) in ([], [far])
    if wish.get('begin_after') == datetime.datetime.max:
        assert far.begin_after.replace(tzinfo=None) == datetime.datetime.max


# Waiting for other jobs --------------------------------------------------------------------


def sorted_without_claim(side):
    """Have a dispatcher sort all that waits and note who waits for whom; nothing is committed."""
    assert side.claim(room=0) == []


def test_a_job_that_waits_for_another_may_be_taken_out(side, queue):
    first = queue.put(work)
    waits = queue.put(work, after=[first])
    side.commit()
    sorted_without_claim(side)
    queue.remove(waits)
    assert (list(queue), len(queue)) == ([first], 1)
    queue.release(first.oid)
    assert (list(queue), len(queue)) == ([first], 1)
    queue.put(waits)
    assert (list(queue), len(queue)) == ([first, waits], 2)


def test_both_may_be_taken_out(side, queue):
    first = queue.put(work)
    waits = queue.put(work, after=[first])
    side.commit()
    sorted_without_claim(side)
    queue.remove(waits)
    queue.remove(first)
    assert (list(queue), len(queue)) == ([], 0)


def test_who_was_sorted_while_the_other_job_was_taken_out_is_not_forgotten(house, side, queue):
    """Either transaction may conflict, but nobody may wait for what is not there."""
    first, early, late = queue.put(work), queue.put(work), queue.put(work)
    side.commit()
    early._after = late._after = (first,)
    queue.refile(early)
    side.commit()
    sorted_without_claim(side)
    side.commit()
    queue.refile(late)
    side.commit()
    app, dispatcher = house.side(), house.side()
    for each in (app, dispatcher):
        each.begin()
        assert each.agent is not None
        each.commit()
        each.begin()
    app.queue.remove(app.twin(first))
    sorted_without_claim(dispatcher)
    dispatcher.commit()
    with pytest.raises(ConflictError):
        app.commit()
    app.abort()
    app.queue.remove(app.twin(first))
    app.commit()
    side.begin()
    assert list(queue) == [early, late]
    assert side.claimed_jobs(3) == [early, late]


@pytest.mark.parametrize('is_first', [True, False])
def test_who_was_sorted_while_the_other_job_ended_is_not_forgotten(house, side, queue, is_first):
    """The dispatcher that makes a job wait has read the other one as current."""
    first = queue.put(work)
    if is_first:
        queue.put(work, after=[first])
    side.commit()
    side.claim(1)
    waits = queue.put(work, after=[first])
    side.commit()
    dispatcher = house.side()
    assert dispatcher.agent is not None
    dispatcher.commit()
    dispatcher.begin()
    sorted_without_claim(dispatcher)
    side.begin()
    side.run(first)
    side.commit()
    with pytest.raises(ConflictError):
        dispatcher.commit()
    dispatcher.abort()
    assert waits._p_oid in [assignment.oid for assignment in dispatcher.claim(2)]


def test_who_waits_for_a_job_that_is_gone_is_woken(house, side, queue):
    first, waits = queue.put(work), queue.put(work)
    side.commit()
    waits._after = (first,)
    queue.refile(waits)
    side.commit()
    app, dispatcher = house.side(), house.side()
    app.queue.remove(app.twin(first))
    sorted_without_claim(dispatcher)
    dispatcher.commit()
    app.commit()
    side.begin()
    assert side.claimed_jobs(1) == []
    assert queue.wake_orphans()
    assert not queue.wake_orphans()
    assert side.claimed_jobs(1) == [waits]


def test_who_began_to_wait_as_the_end_was_written_down_is_let_go(house, side, queue):
    """By another dispatcher: neither transaction has seen the other, and they do not conflict."""
    job = queue.put(work)
    side.commit()
    other = house.side()
    other.begin()
    (assignment,) = other.claim()
    other.commit()
    report = other.work(assignment)
    other.commit()
    other.begin()
    other.twin(queue).is_awaited(job.oid)  # a snapshot in which nobody waits for it
    side.begin()
    waits = queue.put(work, after=[job])
    queue.intake.remove(waits.oid, waits._token)
    queue.waiters[job.oid] = LOBTree({waits.oid: (waits._token, waits, queue)})
    queue.ready.waiting.change(1)
    side.commit()
    other.retire(report)
    other.commit()
    side.begin()
    assert side.claimed_jobs() == []
    assert queue.wake_orphans()
    assert side.claimed_jobs() == [waits] and not queue.wake_orphans()


def test_a_job_may_wait_for_one_of_another_queue(side, queue):
    other = side.queues['other'] = Queue()
    side.commit()
    first = queue.put(work)
    waits = other.put(work, depends_on=[first])
    side.commit()
    look = Round(other, clock.micros())
    look.sort()
    look.file_rest()
    side.commit()
    assert (list(queue), len(queue), list(other), len(other)) == ([first], 1, [waits], 1)
    assert queue.clear() == 1
    assert (list(queue), list(other), len(other)) == ([], [waits], 1)
    assert waits.failed_dependency() is first


def test_it_expires_also_while_it_waits_for_another(side, queue, turned):
    first = queue.put(work)
    waits = queue.put(work, after=[first], begin_by=60)
    side.commit()
    sorted_without_claim(side)
    side.commit()
    turned.advance(61)
    assert side.claimed_jobs(3) == [waits, first]
    assert waits.outcome == 'failure'


# Claims without an agent -------------------------------------------------------------------


def test_a_claim_takes_the_first_that_the_filter_accepts(side, queue):
    jobs = [queue.put(work, priority=n) for n in (1, 2, 3)]
    nothing = object()
    assert queue.claim(lambda job: job.priority > 1) is jobs[1]
    assert queue.claim(lambda job: job.priority == 2, nothing) is nothing
    assert (list(queue), len(queue), jobs[1].status) == ([jobs[0], jobs[2]], 2, status.ASSIGNED)
    queue.putBack(jobs[1])
    assert list(queue) == jobs
    with pytest.raises(BadStatusError):
        queue.putBack(jobs[1])


def test_a_filter_that_raises_leaves_the_queue_as_it_was(side, queue, turned):
    jobs = [queue.put(work), queue.put(work, delay=5)]
    side.commit()
    with pytest.raises(ZeroDivisionError):
        queue.claim(lambda job: 1 / 0)
    assert (list(queue), len(queue)) == (jobs, 2)
    side.commit()
    assert queue.claim() is jobs[0]


def test_a_paused_queue_gives_nothing(side, queue, turned):
    job = queue.put(work)
    queue.pause(60)
    assert queue.paused_until == hence(60)
    assert queue.claim(default='none') == 'none'
    turned.advance(61)
    assert queue.claim() is job
    queue.putBack(job)
    queue.pause()
    assert (queue.paused_until, queue.claim()) == (True, None)
    queue.unpause()
    assert (queue.paused_until, queue.claim()) == (None, job)


def test_what_has_a_result_is_not_claimed(side, queue):
    cancelled, job = queue.put(work), queue.put(work)
    cancelled.addCallback(work)
    cancelled.cancel()
    assert queue.claim() is job
    assert queue.claim() is None


# Ids ---------------------------------------------------------------------------------------


def test_an_id_is_unique_among_the_unfinished(side, queue):
    job = queue.put(work, id='only')
    with pytest.raises(DuplicateJobError, match="id 'only' .pending since .*on_conflict='keep'"):
        queue.put(other_work, id='only')
    assert queue.put(other_work, id='only', on_conflict='keep') is job
    assert list(queue) == [job]
    other = queue.put(other_work, id='only', on_conflict='replace')
    assert (job.status, list(queue), len(queue)) == (status.NEW, [other], 1)
    assert queue.put(work, id='another').id == 'another'
    side.commit()
    other.cancel()
    assert queue.put(work, id='only').id == 'only'


@pytest.mark.parametrize('on_conflict', ['raise', 'replace'])
def test_a_running_job_keeps_its_id(side, queue, on_conflict):
    job = queue.put(work, id='only')
    side.commit()
    side.claim()
    with pytest.raises(DuplicateJobError, match='active since'):
        queue.put(work, id='only', on_conflict=on_conflict)
    side.run(job)
    assert queue.put(work, id='only', on_conflict=on_conflict) is not job


def test_two_clients_cannot_take_one_id(house, side, queue):
    other = house.side()
    queue.put(work, id='only')
    other.queue.put(work, id='only')
    side.commit()
    with pytest.raises(ConflictError):
        other.commit()
    other.abort()
    with pytest.raises(DuplicateJobError):
        other.queue.put(work, id='only')


# Refusals ----------------------------------------------------------------------------------


def nested():
    def inner():
        return None

    return inner


class Locked:
    """An argument that cannot be stored."""

    def __reduce__(self):
        raise TypeError('it holds a lock')


@pytest.mark.parametrize(
    ('call', 'error', 'words'),
    [
        (lambda: None, TypeError, 'a lambda, .* define it at the top of a module'),
        (nested(), TypeError, 'a function made inside another'),
        (5, TypeError, 'cannot be called'),
        (Job(work, Locked()), TypeError, 'argument of .*cannot be stored .*it holds a lock'),
        (Job(work, key=[lambda: 1]), TypeError, 'keyword argument of .*cannot be stored'),
        (Job(Thing().increase, Locked()), TypeError, 'it holds a lock'),
    ],
    ids=['lambda', 'nested', 'number', 'argument', 'keyword', 'method'],
)
def test_what_cannot_be_run_later_is_refused(side, queue, call, error, words):
    job = queue.put(work)
    with pytest.raises(error, match=words):
        queue.put(call)
    side.commit()
    assert list(queue) == [job]


@pytest.mark.parametrize(
    ('wish', 'error', 'words'),
    [
        ({'quota_names': ['unheard']}, ValueError, "'unknown quota name', 'unheard'"),
        ({'quota_names': 'images'}, TypeError, r"use \('images',\)"),
        ({'begin_after': 60}, TypeError, 'use delay='),
        ({'begin_after': AMBIGUOUS}, ValueError, 'ambiguous'),
        ({'begin_after': AMBIGUOUS, 'delay': 1}, ValueError, 'give one'),
        ({'begin_by': -1}, ValueError, 'begin_by may not be negative'),
        ({'begin_by': datetime.timedelta(-1)}, ValueError, 'begin_by may not be negative'),
        ({'delay': -1}, ValueError, 'delay may not be negative'),
        ({'delay': 'soon'}, TypeError, 'seconds or a timedelta'),
        ({'priority': 2**32}, ValueError, 'smaller first'),
        ({'channel': 5}, TypeError, 'text'),
        ({'retries': -1}, ValueError, 'whole number'),
        ({'retries': 1, 'retry_policy_factory': NeverRetry}, ValueError, 'give one'),
        ({'retry_policy_factory': 5}, TypeError, 'callable'),
        ({'retry_policy_factory': lambda job: None}, TypeError, 'cannot be stored'),
        ({'retry_policy_factory': RetryPolicy(1, lambda n: n)}, TypeError, 'cannot be stored'),
        ({'failure_log_level': 'INFO'}, TypeError, 'logging'),
        ({'id': 5}, TypeError, 'text'),
        ({'id': ''}, TypeError, 'empty'),
        ({'on_conflict': 'ignore'}, ValueError, "'raise', 'keep', 'replace'"),
        ({'depends_on': [work]}, TypeError, 'holds jobs'),
        ({'depends_on': [Job(work)]}, ValueError, 'put it first'),
        ({'after': Job(work)}, ValueError, 'put it first'),
        ({'result_ttl': -1}, ValueError, 'negative'),
        ({'lease': -1}, ValueError, 'negative'),
        ({'time_limit': 0}, ValueError, 'soft'),
        ({'time_limit': (1, 2, 3)}, ValueError, 'soft'),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, dict) else None,
)
def test_a_bad_wish_is_refused_and_changes_nothing(side, queue, wish, error, words):
    job = Job(work)
    before = job.__getstate__()
    with pytest.raises(error, match=words):
        queue.put(job, **wish)
    assert (job.__getstate__(), job.status, job._p_jar) == (before, status.NEW, None)
    assert (list(queue), len(queue)) == ([], 0)
    assert queue.put(job) is job
    side.commit()


def test_a_date_without_a_zone_is_utc(queue):
    job = queue.put(work, datetime.datetime(2999, 1, 1))
    assert job.begin_after == datetime.datetime(2999, 1, 1, tzinfo=pytz.UTC)


def test_a_job_is_put_once(side, queue):
    job = queue.put(work)
    with pytest.raises(BadStatusError, match='is pending: a job is put once'):
        queue.put(job)
    assert (list(queue), len(queue)) == ([job], 1)


def test_a_queue_without_a_database_takes_nothing():
    with pytest.raises(ValueError, match=r'first queues\[name\] = queue.* and commit'):
        Queue().put(work)


def test_a_closed_queue_takes_nothing(side, queue):
    job = queue.put(work)
    queue.closed = True
    with pytest.raises(QueueClosed, match='queue.closed = False'):
        queue.put(work)
    assert side.claimed_jobs(2) == [job]
    queue.closed = False
    assert queue.put(work).status == status.PENDING


@pytest.mark.parametrize('index', [1, -2])
def test_there_is_no_such_place(queue, index):
    queue.put(work)
    with pytest.raises(IndexError):
        queue[index]
    with pytest.raises(IndexError):
        queue.pull(index)
    assert len(queue) == 1


def test_only_what_waits_here_can_be_removed(side, queue):
    other = side.queues['other'] = Queue()
    side.commit()
    job = other.put(work)
    for stranger in (job, Job(work), work, None):
        with pytest.raises(LookupError, match='item not in queue'):
            queue.remove(stranger)
        assert stranger not in queue
    assert job in other


def test_explicit_quotas_win_over_those_of_the_job(queue):
    queue.quotas.create('images')
    job = Job(work)
    job.quota_names = ['images']
    assert queue.put(job, quota_names=()).quota_names == ()


# Annotations -------------------------------------------------------------------------------


def test_annotations_go_with_a_job_that_is_taken_out(side, queue):
    job = queue.put(work)
    job.annotations['seen'] = 1
    queue.pull()
    assert dict(job.annotations) == {'seen': 1}
    queue.put(job)
    job.annotations['again'] = 2
    side.commit()
    assert dict(job.annotations) == {'seen': 1, 'again': 2}
    assert len(queue.notes.trees) == 0


# The mapping of queues ---------------------------------------------------------------------


def test_queues_name_what_there_is(side):
    side.queues['mail'] = Queue()
    with pytest.raises(KeyError, match=r"no queue 'post'; there are \['', 'mail'\]"):
        side.queues['post']
    assert side.queues.get('post') is None
    assert (list(side.queues), len(side.queues)) == (['', 'mail'], 2)
    assert side.queues.keys() == ['', 'mail']


def test_a_queue_has_one_place(side, queue):
    with pytest.raises(ValueError, match='has a place already'):
        side.queues['again'] = queue
    with pytest.raises(ValueError, match='only a queue'):
        side.queues['not'] = {}
    with pytest.raises(TypeError, match='text'):
        side.queues[5] = Queue()
    side.queues[''] = queue  # its own place
    del side.queues['']
    assert (queue.name, queue.parent, len(side.queues)) == (None, None, 0)
    side.queues['moved'] = queue
    assert (queue.name, queue.parent) == ('moved', side.queues)


def test_stats_are_plain_values(side, queue):
    queue.quotas.create('images', 2)
    queue.put(work, delay=5)
    queue.put(work).hold()
    side.commit()
    sorted_without_claim(side)
    stats = queue.stats()
    assert (stats['waiting'], stats['later'], stats['held'], stats['running']) == (1, 1, 1, 0)
    assert stats['quotas'] == {'images': {'size': 2, 'len': 0}}
    assert (stats['dispatchers'], stats['agents'], stats['closed']) == (1, 1, False)


# Clocks ------------------------------------------------------------------------------------

HOUR = 3600


def test_a_host_whose_clock_is_behind_takes_what_has_no_date(side, queue, turned):
    job = queue.put(work)
    side.commit()
    turned.advance(-HOUR)
    assert side.claimed_jobs() == [job]


@pytest.mark.parametrize('way', ['died', 'deactivate'])
@pytest.mark.parametrize('delay', [None, 10])
def test_what_such_a_host_takes_over_may_begin_at_once(side, queue, turned, way, delay):
    """It was claimed, so its date had come by somebody's clock."""
    job = queue.put(work, delay=delay)
    side.commit()
    turned.advance(10)
    assert side.claimed_jobs() == [job]
    side.commit()
    turned.advance(-HOUR)
    getattr(side.record, way)()
    side.commit()
    side.record.activate()
    assert side.claimed_jobs() == [job]


def test_such_a_host_lets_go_who_waited(side, queue, turned):
    first = queue.put(work)
    second = queue.put(work, depends_on=first)
    side.commit()
    assert side.claimed_jobs(2) == [first]
    side.commit()
    turned.advance(-HOUR)
    first.begun(clock.micros(), side.agent._p_oid)
    first.settled(1)
    first.finished()
    queue.release(first.oid)
    side.commit()
    assert side.claimed_jobs(2) == [second]


def test_one_that_runs_again_before_its_end_was_heard_of_is_counted_once(side, queue):
    job = queue.put(work)
    side.commit()
    (assignment,) = side.claim()
    report = side.work(assignment, Failure(ValueError()))
    job.retry()
    assert side.claimed_jobs() == [job]
    side.retire(report)
    assert (len(queue), queue.ready.dropped()) == (0, 0)
    side.run(job)
    assert (len(queue), queue.ready.dropped(), len(side.agent)) == (0, 0, 0)


def test_one_that_is_tried_again_before_that_was_heard_of_is_counted_once(side, queue):
    job = queue.put(work)
    side.commit()
    (assignment,) = side.claim()
    job.begun(clock.micros(), side.agent._p_oid)
    job.rescheduled(0)
    assert side.claimed_jobs() == [job]
    side.retire(ended.Report(assignment, ended.RELEASED))
    assert (len(queue), queue.ready.dropped()) == (0, 0)
    side.run(job)
    assert (len(queue), queue.ready.dropped(), len(side.agent)) == (0, 0, 0)


def test_what_was_withdrawn_while_it_rode_is_counted_out_once(house, side, queue):
    job, _ = queue.put(work), queue.put(work)
    side.commit()
    side.file_all()
    side.commit()
    other = house.side()
    other.begin()
    other.twin(job).priority = 1
    (assignment,) = side.claim()
    side.commit()
    other.commit()
    side.begin()
    assert side.claimed_jobs() == [job]
    now = clock.micros()
    outcome = ride.Outcome(begun=now, ended=now, result='late', shown="'late'")
    side.retire(ended.Report(assignment, ended.FINISHED, outcome=outcome))
    assert (job.result, len(queue), queue.ready.dropped()) == (None, 1, 0)


def test_one_that_was_told_of_and_then_found_withdrawn_is_counted_out_once(side, queue):
    """The report of an attempt comes when its dispatcher has been buried, and is back."""
    job, other = queue.put(work), queue.put(work)
    side.commit()
    side.file_all()
    job.cancel()
    told, _ = side.claim(2)
    side.record.died()
    side.record.activate()
    assert list(queue) == [other]
    stale, again = side.claim(2)
    assert (stale.oid, again.oid) == (job._p_oid, other._p_oid)
    waits = queue.put(work)
    side.retire(
        ended.Report(told, ended.FINISHED, failed=True),
        ended.Report(stale, ended.STALE),
    )
    assert list(side.agent.history) == [job]
    assert (list(queue), len(queue), queue.ready.dropped()) == ([waits], 1, 0)


@pytest.mark.parametrize('where', ['in a lane', 'in a tree', 'listed'])
@pytest.mark.parametrize('way', ['claim', 'filter', 'stop'])
def test_an_end_that_nobody_has_listed_is_not_counted_out(house, side, queue, where, way):
    """What waits for a worker with its result is not counted; so neither when it counts no more."""
    job, _ = queue.put(work), queue.put(work, delay=HOUR)
    side.commit()
    side.file_all()
    job.cancel()
    side.agent.filter = bool if way == 'filter' else None
    side.commit()
    reports = []
    if where == 'in a tree':
        sort_all(side)
    elif where == 'listed':
        reports = [ended.Report(each, ended.STALE) for each in side.claim()]
        side.commit()
    there = house.side()
    there.begin()
    there.twin(job).retry()
    there.commit()
    side.begin()
    for _ in range(3):
        if way == 'stop':
            side.record.deactivate()
            side.record.activate()
        else:
            side.retire(*reports)
        reports = [
            side.work(each) if job._token == each.token else ended.Report(each, ended.STALE)
            for each in side.claim(3)
        ]
    side.retire(*reports)
    assert (job.outcome, len(list(queue)), len(queue)) == ('success', 1, 1)
    assert (queue.ready.waiting(), queue.ready.dropped()) == (1, 0)


def test_one_that_has_returned_a_job_waits_for_it_also_when_it_runs_again(side, queue):
    inner, outer = queue.put(work), queue.put(work)
    side.commit()
    first, second = side.claim(2)
    side.commit()
    outer.begun(clock.micros(), side.agent._p_oid)
    outer.waits_for_job(inner)
    side.retire(ended.Report(second, ended.WAITING))
    side.commit()
    report = side.work(first, Failure(ValueError()))
    inner.retry()
    side.retire(report)
    assert (outer.status, outer.outcome) == (status.ACTIVE, None)
    side.claim()
    side.run(inner, 5)
    assert (outer.status, outer.result) == (status.COMPLETED, 5)


class Once(Job):
    """An application's job that says by itself that it must run at most once."""

    runs_once = True


def test_a_subclass_may_say_that_it_runs_once(side, queue):
    """It is never claimed ahead, and its outcome never waits for another commit."""
    once, plain = queue.put(Once(work)), queue.put(work)
    side.commit()
    assert side.claimed_jobs(0, ahead=5) == [plain]
    assert once.status == status.PENDING and not may_ride(once)
