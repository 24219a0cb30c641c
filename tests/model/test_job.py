"""What users may expect of a job: its states and moves, its callbacks, its stored form."""

import datetime
import logging

import pytest
import transaction

from tests.model.support import Thing, fails, other_work, work
from zodbjobs import Failure, Job, NeverRetry, RetryPolicy, clock, local, status
from zodbjobs.interfaces import (
    BadStatusError,
    CancelledError,
    DependencyError,
    DuplicateJobError,
    TimeoutError,
)
from zodbjobs.model.packed import NAMES, OF_SUBCLASS, STATE, unpacked

NEW, PENDING, ASSIGNED, ACTIVE = status.NEW, status.PENDING, status.ASSIGNED, status.ACTIVE
CALLBACKS, COMPLETED, HELD = status.CALLBACKS, status.COMPLETED, status.HELD


class Labelled(Job):
    """An application's kind of job, with an attribute of its own."""

    label = 'none'


def calls(job, *rest):
    """A job's call that calls a job, as no job may do with itself."""
    return job()


def exits():
    raise SystemExit('enough')


def again(*args):
    """Returns its last argument."""
    return args[-1]


def failed(job):
    """Whether a job's result is a Failure of this class, by name."""
    return None if not isinstance(job.result, Failure) else job.result.type


def at(side, queue, state):
    """A job of `queue` that is in `state`, as its other methods left it."""
    if state == NEW:
        return Job(work)
    job = queue.put(fails if state == COMPLETED else work)
    if state == HELD:
        job.hold('wait')
    elif state == ASSIGNED:
        assert queue.claim() is job
    elif state != PENDING:
        if state == CALLBACKS:
            job.addCallback(work)
        side.commit()
        (assignment,) = side.claim()
        if state in (CALLBACKS, COMPLETED):
            side.retire(side.work(assignment, Failure(ValueError('no'))))
    assert job.status == state
    return job


# Making and calling ------------------------------------------------------------------------


def test_a_job_needs_something_to_call():
    with pytest.raises(TypeError, match='Job\\(callable'):
        Job()
    with pytest.raises(TypeError, match='cannot be called'):
        Job(5)


def test_arguments_of_the_call_come_behind_and_keywords_override():
    job = Job(work, 1, a=1, b=2)
    assert job(2, b=3) == (1, 2, {'a': 1, 'b': 3})
    assert (job.status, job.result, job.outcome) == (COMPLETED, (1, 2, {'a': 1, 'b': 3}), 'success')


def test_bind_gives_the_call_the_job_itself():
    job = Job.bind(again, 1)
    assert job.args == [job, 1]
    assert Job.bind(again)() is not None


def test_what_a_call_raises_is_its_result():
    job = Job(fails)
    assert job() is job.result
    assert (job.result.type, job.outcome) == (ValueError, 'failure')


def test_a_job_may_not_call_itself():
    job = Job.bind(calls)
    assert job().type is BadStatusError
    assert (job.status, job.attempts) == (COMPLETED, 1)


def test_a_callback_may_not_call_the_job_it_follows():
    job = Job(work)
    callback = job.addCallback(Job(calls, job))
    job()
    assert (job.outcome, failed(callback)) == ('success', BadStatusError)


def test_what_is_no_exception_of_the_call_leaves_the_job_as_it_was():
    job = Job(exits)
    with pytest.raises(SystemExit):
        job()
    assert job.status == NEW


def test_a_claimed_job_may_be_called(queue):
    job = queue.put(Job(work, 1))
    assert queue.claim() is job
    assert job() == (1,)
    assert job.status == COMPLETED


@pytest.mark.parametrize('state', [PENDING, HELD, ACTIVE, CALLBACKS, COMPLETED])
def test_no_other_job_may_be_called(side, queue, state):
    job = at(side, queue, state)
    with pytest.raises(BadStatusError, match=state):
        job()


# Moves -------------------------------------------------------------------------------------


@pytest.mark.parametrize('old', status.STATES)
@pytest.mark.parametrize('new', status.STATES)
def test_a_job_moves_by_the_table(side, queue, old, new):
    job = at(side, queue, PENDING)
    job._status = old
    if new in status.MOVES[old]:
        job._move(new)
        assert job._status == new
    else:
        with pytest.raises(BadStatusError, match=f'is {old}; it can become .*, not {new}'):
            job._move(new)
        assert job._status == old


WAITS = dict.fromkeys((NEW, PENDING, HELD, ASSIGNED), COMPLETED)

#: What the application may do, to a job in which states, and what becomes of it.
DEEDS = [
    ('put', {NEW: PENDING}),
    ('remove', {PENDING: NEW, HELD: NEW}),
    ('putBack', {ASSIGNED: PENDING}),
    ('hold', {PENDING: HELD}),
    ('resume', {HELD: PENDING}),
    ('retry', {COMPLETED: PENDING}),
    ('cancel', {**WAITS, ACTIVE: ACTIVE}),
    ('fail', WAITS),
]


@pytest.mark.parametrize('state', status.STATES)
@pytest.mark.parametrize(('deed', 'outcomes'), DEEDS, ids=[deed for deed, _ in DEEDS])
def test_what_may_be_done_with_a_job(side, queue, deed, outcomes, state):
    job = at(side, queue, state)
    on_queue = deed in ('put', 'remove', 'putBack')
    do = (lambda: getattr(queue, deed)(job)) if on_queue else getattr(job, deed)
    if state in outcomes:
        do()
        assert job.status == outcomes[state]
    else:
        before = job.__getstate__()
        with pytest.raises((BadStatusError, LookupError)):
            do()
        assert job.__getstate__() == before
        assert job.status == state
    side.commit()


SETTINGS = {
    'priority': 5,
    'channel': 'mail',
    'begin_after': datetime.datetime(2100, 1, 1),
    'begin_by': 60,
    'quota_names': ['images'],
}


@pytest.mark.parametrize('state', status.STATES)
@pytest.mark.parametrize('name', [*SETTINGS, 'callable'])
def test_settings_may_be_changed_until_the_job_is_claimed(side, queue, name, state):
    queue.quotas.create('images')
    job = at(side, queue, state)
    value = SETTINGS.get(name, other_work)
    if state in (NEW, PENDING):
        setattr(job, name, value)
        assert job.__getstate__()
        if state == PENDING:
            assert (list(queue), len(queue)) == ([job], 1)
    else:
        with pytest.raises(BadStatusError, match=f'it is {state}'):
            setattr(job, name, value)


@pytest.mark.parametrize(
    ('name', 'value', 'error', 'word'),
    [
        ('priority', -1, ValueError, '4294967295'),
        ('priority', 2**32, ValueError, 'smaller first'),
        ('priority', 'high', TypeError, 'whole number'),
        ('priority', True, TypeError, 'whole number'),
        ('channel', 7, TypeError, 'text'),
        ('begin_after', 60, TypeError, 'delay='),
        ('begin_by', -1, ValueError, 'negative'),
        ('begin_by', 'soon', TypeError, 'timedelta'),
        ('quota_names', 'images', TypeError, r"\('images',\)"),
        ('quota_names', ['unheard'], ValueError, 'unheard'),
        ('time_limit', (5, 1), ValueError, 'soft <= hard'),
        ('failure_log_level', 'ERROR', TypeError, 'logging'),
        ('retry_policy_factory', 5, TypeError, 'callable'),
        ('retry_policy_factory', lambda job: None, TypeError, 'cannot be stored'),
        ('callable', lambda: None, TypeError, 'lambda'),
    ],
)
def test_a_bad_setting_is_refused_and_changes_nothing(side, queue, name, value, error, word):
    job = queue.put(work)
    before = job.__getstate__()
    with pytest.raises(error, match=word):
        setattr(job, name, value)
    assert job.__getstate__() == before
    side.commit()
    assert list(queue) == [job]


# An aborted put ----------------------------------------------------------------------------


def test_a_job_whose_put_was_aborted_is_new_and_may_be_put_again(side, queue):
    job = Job(work)
    queue.put(job, delay=60)
    side.abort()
    assert (job.status, job.queue, job.agent, job.parent) == (NEW, None, None, None)
    assert (job.begin_after, job.assignerUUID) == (None, None)
    assert list(queue) == []
    assert queue.put(job) is job
    side.commit()
    assert list(queue) == [job]


def test_a_job_whose_put_was_rolled_back_is_new(side, queue):
    savepoint = side.transaction_manager.savepoint()
    job = queue.put(Job(work))
    savepoint.rollback()
    assert job.status == NEW
    queue.put(job)
    side.commit()
    assert list(queue) == [job]


def test_an_aborted_put_does_not_keep_a_result(side, queue):
    job = queue.put(Job(work))
    job.cancel()
    side.abort()
    assert (job.status, job.result) == (NEW, None)


# Callbacks ---------------------------------------------------------------------------------


def test_callbacks_get_the_result_in_the_order_they_were_added():
    job = Job(work, 1)
    first, second = job.addCallback(Job(work, 'first')), job.addCallback(Job(work, 'second'))
    chained = first.addCallback(Job(work, 'chained'))
    job()
    assert first.result == ('first', (1,))
    assert second.result == ('second', (1,))
    assert chained.result == ('chained', ('first', (1,)))
    assert job.callbacks == (first, second)
    assert job.result == (1,)


@pytest.mark.parametrize('call', [work, fails])
def test_one_of_two_callbacks_is_called(call):
    success, failure = Job(work, 'good'), Job(work, 'bad')
    job = Job(call)
    choice = job.addCallbacks(success, failure)
    after = choice.addCallback(Job(work, 'after'))
    on_side = (success if call is work else failure).addCallback(Job(work, 'on the side'))
    job()
    chosen, other = (success, failure) if call is work else (failure, success)
    assert choice.result == chosen.result == ('good' if call is work else 'bad', job.result)
    assert (chosen.status, other.status) == (COMPLETED, NEW)
    assert after.result == ('after', choice.result)
    assert on_side.result == ('on the side', chosen.result)
    assert (choice.success, choice.failure) == (success, failure)


@pytest.mark.parametrize('call', [work, fails])
def test_a_result_passes_a_choice_without_its_side(call):
    job = Job(call)
    choice = job.addCallbacks(success=None, failure=None)
    after = choice.addCallback(again)
    job()
    assert choice.result is job.result
    assert after.result is job.result


def test_a_side_that_fails_is_the_failure_of_the_choice():
    job = Job(work)
    choice = job.addCallbacks(success=fails)
    job()
    assert failed(choice) is ValueError
    assert choice.success.result is choice.result


def test_a_callback_is_a_new_job_of_its_own(side, queue):
    job, other = queue.put(work), queue.put(work)
    callback = job.addCallback(work)
    for taken in (other, callback, job):
        with pytest.raises(BadStatusError, match='must be a new job'):
            job.addCallback(taken)
        with pytest.raises(BadStatusError, match='must be a new job'):
            job.addCallbacks(failure=taken)
    assert job.callbacks == (callback,)


def test_a_callback_that_waits_for_its_turn_cannot_be_put(queue):
    job = queue.put(work)
    callback = job.addCallback(work)
    with pytest.raises(BadStatusError, match='is a callback'):
        queue.put(callback)
    assert list(queue) == [job]


def test_a_callback_for_a_finished_job_is_put(side, queue):
    job = at(side, queue, COMPLETED)
    callback = job.addCallback(Job(work, 'late'))
    assert list(queue) == [callback]
    assert callback.parent is job
    assert callback.call_args() == (job.result,)
    assert job.callbacks == (callback,)


def test_a_callback_for_a_job_that_was_called_here_is_called_here():
    job = Job(work, 1)
    job()
    assert job.addCallback(Job(work, 2)).result == (2, (1,))


@pytest.mark.parametrize('state', [PENDING, COMPLETED])
def test_a_callback_that_cannot_be_stored_is_refused(side, queue, state):
    job = at(side, queue, state)
    callback = Job(work, lambda: None)
    with pytest.raises(TypeError, match='an argument of'):
        job.addCallback(callback)
    assert job.callbacks == ()
    side.commit()
    callback.args[0] = 'good'
    job.addCallback(callback)
    side.commit()


def test_a_closed_queue_takes_no_callback_of_a_finished_job(side, queue):
    job = at(side, queue, COMPLETED)
    queue.closed = True
    callback = Job(work)
    with pytest.raises(Exception, match='closed'):
        job.addCallback(callback)
    queue.closed = False
    assert job.addCallback(callback).parent is job


def test_callbacks_of_a_new_job_are_tried_when_it_is_put(side, queue):
    job = Job(work)
    job.addCallbacks(failure=Job(work, lambda: None))
    with pytest.raises(TypeError, match='cannot be stored'):
        queue.put(job)
    assert job.status == NEW
    side.commit()


@pytest.mark.parametrize(
    'wish', [{'failure_log_level': 'CRITICAL'}, {'retry_policy_factory': 5}], ids=lambda w: [*w][0]
)
def test_bad_wishes_for_a_callback_are_refused(queue, wish):
    job = queue.put(work)
    with pytest.raises(TypeError, match=next(iter(wish))):
        job.addCallback(work, **wish)
    assert job.callbacks == ()


def test_wishes_for_a_callback_are_kept(queue):
    callback = queue.put(work).addCallbacks(
        work, failure_log_level=logging.INFO, retry_policy_factory=NeverRetry
    )
    assert callback.failure_log_level == logging.INFO
    assert callback.retry_policy_factory is NeverRetry


@pytest.mark.parametrize('first', ['callback', 'end'])
def test_a_callback_added_by_another_client_meets_no_completion(house, side, queue, first):
    """It is put beside the running job, and follows it in either order of commits."""
    job = queue.put(work)
    side.commit()
    side.claim()
    side.commit()
    other = house.side()
    other.begin()
    callback = other.twin(job).addCallback(work)
    side.run(job, 'done')
    for each in (other, side) if first == 'callback' else (side, other):
        each.commit()
    side.begin()
    assert job.callbacks == (side.twin(callback),)
    assert side.claimed_jobs() == [side.twin(callback)]
    assert side.twin(callback).call_args() == ('done',)


def test_who_changes_a_waiting_job_meets_its_claim_if_it_may_run_but_once(house, side, queue):
    """Else it could begin, be changed, and begin again."""
    job = queue.put(work, retry_policy_factory=NeverRetry)
    side.file_all()
    side.commit()
    other = house.side()
    other.begin()
    other.twin(job).hold()
    side.claim()
    side.commit()
    with pytest.raises(transaction.interfaces.TransientError):
        other.commit()


# Hold, cancel, fail, retry -----------------------------------------------------------------


@pytest.mark.parametrize('is_sorted', [False, True])
def test_a_job_may_be_held_any_number_of_times(side, queue, turned, is_sorted):
    job = queue.put(work)
    turned.advance(0.001)
    other = queue.put(work)
    for count in range(70):
        side.commit()
        if is_sorted:
            side.file_all()
        job.hold(f'time {count}')
        assert (list(queue), len(queue), list(queue.held.values())) == ([other], 1, [job])
        assert job.hold_reason == f'time {count}'
        job.resume()
        assert (list(queue), len(queue), list(queue.held.values())) == ([job, other], 2, [])
        assert job.hold_reason is None
    side.commit()
    assert [one for one in side.claimed_jobs(200) if one is job] == [job]


def test_a_held_callback_may_be_resumed(side, queue):
    job = queue.put(work)
    callback = job.addCallback(Job(work, 1))
    side.commit()
    callback.set_aside('retries used up')
    callback.resume()
    side.commit()
    assert callback in side.claimed_jobs(2)


def test_cancelling_runs_the_callbacks(side, queue):
    job = queue.put(work)
    callback = job.addCallback(work)
    job.cancel()
    assert (failed(job), job.outcome, job.status) == (CancelledError, 'cancelled', CALLBACKS)
    assert (list(queue), len(queue)) == ([], 0)
    side.commit()
    assert side.claimed_jobs() == [job]
    assert job.untold() is callback


def test_a_new_job_that_is_cancelled_tells_its_callbacks_at_once():
    job = Job(work)
    callback = job.addCallback(work)
    job.cancel()
    assert callback.result == (job.result,)


def test_a_running_job_that_is_cancelled_is_told(side, queue):
    job = at(side, queue, ACTIVE)
    side.commit()
    job.cancel()
    assert job.status == ACTIVE
    assert isinstance(job.due_error(clock.micros()), CancelledError)


def test_fail_takes_an_exception_or_a_failure(queue):
    first, second, third = queue.put(work), queue.put(work), queue.put(work)
    first.fail()
    second.fail(KeyError('k'))
    failure = Failure(OSError('f'))
    third.fail(failure)
    assert [failed(first), failed(second)] == [TimeoutError, KeyError]
    assert third.result is failure
    assert len(queue) == 0


def test_retry_is_for_failures_that_a_queue_ran(side, queue, turned):
    alone = Job(fails)
    alone()
    with pytest.raises(BadStatusError, match='not run by a queue'):
        alone.retry()
    good = queue.put(work)
    side.commit()
    side.claim()
    side.run(good)
    with pytest.raises(BadStatusError, match='succeeded'):
        good.retry()
    bad = at(side, queue, COMPLETED)
    other = queue.put(work)
    turned.advance(60)
    bad.retry()
    assert (bad.attempts, bad.result, bad.active_start) == (0, None, None)
    assert bad.begin_after == clock.now()
    assert list(queue) == [other, bad]


def test_a_job_that_is_run_again_has_its_id_again(side, queue):
    job = queue.put(fails, id='only')
    side.commit()
    side.claim()
    side.run(job, Failure(ValueError()))
    side.commit()
    job.retry()
    with pytest.raises(DuplicateJobError):
        queue.put(work, id='only')
    job.cancel()
    other = queue.put(work, id='only')
    with pytest.raises(DuplicateJobError):
        job.retry()
    assert (job.status, list(queue)) == (COMPLETED, [other])


# What must have happened before ------------------------------------------------------------


@pytest.mark.parametrize(
    ('result', 'error'), [(1, None), (Failure(ValueError()), DependencyError)], ids=['good', 'bad']
)
def test_a_dependency_must_succeed(side, queue, result, error):
    first = queue.put(work)
    depends, after = queue.put(work, depends_on=first), queue.put(work, after=[first])
    side.commit()
    assert side.claimed_jobs(3) == [first]
    side.run(first, result)
    side.commit()
    assert side.claimed_jobs(3) == [depends, after]
    now = clock.micros()
    assert after.due_error(now) is None
    assert type(depends.due_error(now)) is (error or type(None))


def test_a_dependency_that_is_taken_out_counts_as_failed(side, queue):
    first = queue.put(work)
    depends = queue.put(work, depends_on=[first])
    side.commit()
    side.claim(0)
    side.commit()
    queue.remove(first)
    side.commit()
    assert side.claimed_jobs(2) == [depends]
    assert isinstance(depends.due_error(clock.micros()), DependencyError)


# Being late --------------------------------------------------------------------------------


def test_begin_by_is_for_the_first_attempt(queue, turned):
    job = queue.put(work, delay=10, begin_by=60)
    turned.advance(70)
    assert job.due_error(clock.micros()) is None
    turned.advance(0.000001)
    assert isinstance(job.due_error(clock.micros()), TimeoutError)
    job.begun(clock.micros(), None)
    assert job.due_error(clock.micros()) is None


# Annotations and other views ---------------------------------------------------------------


def test_the_key_for_outside_services_stays_the_same(side, queue, turned):
    job = Job(work)
    with pytest.raises(BadStatusError, match='put it'):
        job.idempotency_key  # noqa: B018
    queue.put(job)
    key = job.idempotency_key
    side.commit()
    turned.advance(5)
    job.hold()
    job.resume()
    job.rescheduled(clock.micros() + 1)
    assert job.idempotency_key == key
    assert queue.put(work).idempotency_key != key


def test_the_stats_of_a_job_are_plain_values(side, queue):
    job = queue.put(Job(work, Thing()), id='x', priority=3, channel='c', delay=5, begin_by=10)
    stats = job.stats()
    assert stats['begin after'] == job.begin_after
    assert (stats['id'], stats['priority'], stats['channel'], stats['status']) == (
        'x', 3, 'c', PENDING,
    )  # fmt: skip
    side.commit()
    side.connection.cacheMinimize()
    assert side.twin(job).stats() == stats


class Unshowable:
    def __repr__(self):
        raise RuntimeError('no')


def test_a_repr_never_raises(side, queue):
    job = queue.put(Job(work, Thing(), work, 'text', key=[1]))
    assert repr(job) == (
        f"<zodbjobs.Job (oid {job.oid}, db 'unnamed')"
        " ``tests.model.support.work(tests.model.support.Thing, tests.model.support.work, 'text',"
        ' key=[1])``>'
    )
    assert 'not loadable' in repr(Job(work, Unshowable()))
    assert 'work' in repr(Job(work))
    side.abort()
    assert 'work' in repr(job)


def test_a_repr_of_what_is_gone_from_the_storage(side, queue):
    job = queue.put(work)
    ghost = side.connection.get
    side.commit()
    lost = Job.__new__(Job)
    lost._p_oid, lost._p_jar = b'\0' * 6 + b'zz', side.connection
    lost._p_changed = None
    assert 'not loadable' in repr(lost)
    assert ghost(job._p_oid) is job


def test_a_callback_that_runs_is_active():
    job = Job(work)
    callback = job.addCallback(work)
    former = local.enter(callback, None)
    try:
        assert callback.status == ACTIVE
    finally:
        local.leave(former)
    assert callback.status == NEW


# What is stored ----------------------------------------------------------------------------


def stored_names(job):
    """The attributes that a job's stored form has."""
    return {NAMES[number] for number in unpacked(job.__getstate__())}


def test_a_plain_job_stores_no_default(side, queue):
    """Each number costs every job of a queue its bytes, twice."""
    job = queue.put(work)
    repr(job), job.args, job.kwargs, job.stats()
    # those of its date and of its first filing are told by when it was put
    stored = {'_status', '_call', '_queue_oid', '_put', '_due', '_token'}
    assert stored_names(job) == stored
    assert type(job.__getstate__()) is bytes and len(job.__getstate__()) < 13 + len(job._call)
    side.agent.size = 1
    side.commit()
    side.claim()
    side.run(job, 'done')
    stored |= {'_agent_oid', '_result', '_active_start', '_active_end', '_attempts'}
    assert stored_names(job) == stored
    assert set(job.__getstate__()[1]) == {STATE['_result']}


@pytest.mark.parametrize('wishes', [{}, {'delay': 60}, {'begin_after': None, 'begin_by': 5}])
def test_what_is_stored_shorter_is_loaded_as_it_was(side, queue, wishes):
    job = queue.put(work, **wishes)
    side.commit()
    steps = [lambda: None, lambda: job.begun(job._put + 5, b'\0' * 7 + b'\7')]
    steps += [lambda: job.settled('done', job._put + 9), job.finished]
    steps += [lambda: setattr(job, '_token', job._token + 1), lambda: setattr(job, '_due', 3)]
    for step in steps:
        step()
        before = {name: each for name, each in job.__dict__.items() if name[:3] != '_v_'}
        twin = Job(work)
        twin.__setstate__(job.__getstate__())
        for name, value in before.items():
            assert getattr(twin, name) == value, name


def test_arguments_that_went_are_not_stored():
    job = Job(work, 1, a=2)
    job.args.clear()
    job.kwargs.clear()
    assert stored_names(job) == {'_status', '_call'}


def test_no_two_attributes_have_one_number():
    assert len(set(STATE.values())) == len(STATE)
    assert 0 not in STATE.values()


def test_every_attribute_comes_back(house, side, queue):
    queue.quotas.create('q')
    other = queue.put(work)
    job = queue.put(
        Job(work, 1, k=2), hence_60(), 60, priority=1, channel='c', quota_names=['q'],
        failure_log_level=logging.INFO, retry_policy_factory=NeverRetry, id='i', after=[other],
        lease=5, result_ttl=60, time_limit=7,
    )  # fmt: skip
    job.addCallback(work)
    job.annotations['a'] = 1
    state = stored_names(job)
    seen = {name: getattr(job, name) for name in ('begin_after', 'begin_by', 'time_limit')}
    side.commit()
    there = house.side().twin(job)
    assert stored_names(there) == state
    assert there.args == [1] and there.kwargs == {'k': 2}
    assert {name: getattr(there, name) for name in seen} == seen
    assert there.stats() == job.stats()
    assert dict(there.annotations) == {'a': 1}


def hence_60():
    return clock.now() + datetime.timedelta(seconds=60)


def test_attributes_of_a_subclass_survive(house, side, queue):
    job = Labelled(work)
    job.label = 'mine'
    job._v_dropped = 1
    queue.put(job)
    plain = queue.put(Labelled(work))
    side.commit()
    there = house.side()
    assert type(there.twin(job)) is Labelled
    assert there.twin(job).label == 'mine'
    assert not hasattr(there.twin(job), '_v_dropped')
    assert there.twin(plain).label == 'none'
    assert OF_SUBCLASS not in unpacked(plain.__getstate__())


def test_a_value_that_compares_badly_is_stored(side, queue):
    """A result whose __eq__ answers anything is no default."""
    job = queue.put(work)
    side.commit()
    side.claim()
    job.settled(EqualToAll())
    assert '_result' in stored_names(job)


class EqualToAll:
    def __eq__(self, other):
        return True

    __hash__ = None


def test_policies_keep_their_place_over_transactions(side, queue):
    job = queue.put(work, retry_policy_factory=RetryPolicy(2, [1, 2]))
    policy = job.getRetryPolicy()
    side.commit()
    side.connection.cacheMinimize()
    assert job.getRetryPolicy() is job.getRetryPolicy()
    assert job.getRetryPolicy().plan.backoff == policy.plan.backoff


def test_when_its_first_callbacks_had_ended(side, queue, turned):
    """As zc.async has it: None before, and its own end where there were none to tell."""
    alone, followed = queue.put(work), queue.put(work)
    callback = followed.addCallback(work)
    side.commit()
    assert side.claimed_jobs(2) == [alone, followed]
    side.run(alone)
    assert alone.initial_callbacks_end == alone.active_end
    followed.begun(clock.micros(), None)
    followed.settled('result')
    turned.advance(5)
    assert followed.initial_callbacks_end is None
    callback.settled('told')
    callback.finished()
    followed.finished()
    assert (followed.initial_callbacks_end - followed.active_end).total_seconds() == 5
