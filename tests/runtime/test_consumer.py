"""Consumers and claims: lent for a time, ended with the work, taken back in time."""

import threading

import pytest
import transaction
from ZODB.POSException import ConflictError

from tests.model import support
from tests.model.support import work
from zodbjobs import Job, Message, NeverRetry, Queue, Queues, RetryPolicy, clock
from zodbjobs.interfaces import (
    ACTIVE,
    COMPLETED,
    HELD,
    KEY,
    PENDING,
    AbortedError,
    BadStatusError,
    ClaimLost,
    DeadlineSoon,
    QueueFull,
)
from zodbjobs.model import intake
from zodbjobs.model.claim import claim_on
from zodbjobs.runtime import consumer as consumer_module


@pytest.fixture
def consumer(side):
    with side.queue.consumer('worker') as consumer:
        yield consumer


def put(side, *bodies, **wishes):
    jobs = [side.queue.put(Message(body), **wishes) for body in bodies]
    side.commit()
    return jobs


def other(house, name='other'):
    """(side, consumer) of another client."""
    side = house.side()
    side.begin()
    return side, side.queue.consumer(name)


# Claim and finish --------------------------------------------------------------------------


def test_a_claim_is_committed_before_it_is_returned(house, side, consumer):
    (job,) = put(side, b'hello')
    claim = consumer.claim(0)
    assert (claim.job, claim.body, claim.token) == (job, b'hello', 1)
    second = house.side()
    assert second.twin(job).status == ACTIVE
    assert second.twin(job).agent.name == 'worker'
    assert len(second.queue) == 0
    assert second.queue.stats()['claimed'] == 1


def test_finish_and_the_work_are_one_commit(house, side, consumer):
    put(side, b'hello')
    claim = consumer.claim(0)
    side.root['seen'] = claim.body
    claim.finish('done')
    second = house.side()
    assert second.twin(claim.job).status == ACTIVE
    side.commit()
    second.begin()
    assert second.root['seen'] == b'hello'
    assert (second.twin(claim.job).status, second.twin(claim.job).result) == (COMPLETED, 'done')


def test_after_an_abort_the_claim_is_still_held(side, consumer):
    put(side, b'hello')
    claim = consumer.claim(0)
    claim.finish()
    side.abort()
    assert consumer.claims == (claim,)
    claim.finish()
    side.commit()
    assert consumer.claims == ()
    assert claim.job.status == COMPLETED


def test_what_is_finished_goes_to_the_history_with_the_next_claim(side, consumer):
    first, second = put(side, b'1', b'2')
    consumer.claim(0).finish()
    side.commit()
    consumer.claim(0)
    assert list(side.queue.consumers['worker'].completed) == [first]
    assert len(side.queue.leases) == 1


def test_what_shall_not_be_kept_is_not_listed(side, consumer):
    put(side, b'1', b'2', result_ttl=0)
    consumer.claim(0).finish()
    side.commit()
    consumer.claim(0)
    assert list(side.queue.consumers['worker'].completed) == []


def test_there_is_nothing_to_claim(side, consumer):
    assert consumer.claim(0) is None


def test_a_paused_queue_gives_nothing(side, consumer, turned):
    side.queue.pause(10)
    put(side, b'1')
    assert consumer.claim(0) is None
    turned.advance(10)
    assert consumer.claim(0).body == b'1'


def test_jobs_of_later_and_blocked_ones_come_in_their_time(side, consumer, turned):
    (first,) = put(side, b'1', delay=5)
    put(side, b'2', depends_on=[first])
    assert consumer.claim(0) is None
    turned.advance(5)
    claim = consumer.claim(0)
    assert claim.body == b'1'
    claim.finish()
    side.commit()
    assert consumer.claim(0).body == b'2'


def test_priority_comes_first_then_the_order_of_filing(side, consumer, turned):
    for body, priority in ((b'1', 20), (b'2', 10), (b'3', 10)):
        put(side, body, priority=priority)
        turned.advance(1)
    assert [consumer.claim(0).body for _ in range(3)] == [b'2', b'3', b'1']


def test_several_queues_are_one_order(side, turned):
    side.queues['b'] = Queue()
    side.commit()
    for name, body, priority in (('', b'1', 5), ('b', b'2', 5), ('', b'3', 5), ('b', b'4', 1)):
        side.queues[name].put(Message(body), priority=priority)
        turned.advance(1)
    side.commit()
    with side.queues.consumer('worker', watch=['', 'b']) as consumer:
        assert [consumer.claim(0).body for _ in range(4)] == [b'4', b'1', b'2', b'3']


def test_a_filter_chooses(side, consumer):
    put(side, b'1', b'2')
    assert consumer.claim(0, filter=lambda job: job.body == b'2').body == b'2'
    assert consumer.claim(0, filter=lambda job: False) is None


def test_a_quota_holds_for_claims(side, consumer):
    side.queue.quotas.create('disk', 1)
    put(side, b'1', b'2', quota_names=['disk'])
    claim = consumer.claim(0)
    assert consumer.claim(0) is None
    claim.finish()
    side.commit()
    assert consumer.claim(0).body == b'2'


def test_a_plain_job_is_claimed_too(side, consumer):
    side.queue.put(Job(work, 1))
    side.commit()
    claim = consumer.claim(0)
    assert claim.body is None
    claim.finish(claim.job.run())
    side.commit()
    assert claim.job.result == (1,)


def test_callbacks_of_a_finished_claim_are_left_to_an_agent(side, consumer):
    (job,) = put(side, b'1')
    job.addCallback(work)
    side.commit()
    consumer.claim(0).finish(7)
    side.commit()
    assert consumer.claim(0) is None
    (assignment,) = side.claim()
    assert assignment.oid == job._p_oid


def test_what_was_cancelled_meanwhile_is_lost(house, side, consumer):
    (job,) = put(side, b'1')
    claim = consumer.claim(0)
    second = house.side()
    second.twin(job).cancel()
    second.commit()
    side.begin()
    with pytest.raises(ClaimLost, match='is completed'):
        claim.finish()
    assert consumer.claim(0) is None
    side.begin()
    assert list(side.queue.consumers['worker'].completed) == [job]


# Release, hold, fail -----------------------------------------------------------------------


def test_a_released_job_has_its_old_place(side, consumer, turned):
    put(side, b'1')
    turned.advance(1)
    put(side, b'2')
    consumer.claim(0).release()
    side.commit()
    claim = consumer.claim(0)
    assert (claim.body, claim.token) == (b'1', 2)


def test_release_takes_a_delay_and_a_priority(side, consumer, turned):
    (job,) = put(side, b'1')
    consumer.claim(0).release(delay=10, priority=3)
    side.commit()
    assert (job.status, job.priority) == (PENDING, 3)
    assert consumer.claim(0) is None
    turned.advance(10)
    assert consumer.claim(0).job is job


def test_a_held_job_waits_for_resume(side, consumer):
    (job,) = put(side, b'1')
    consumer.claim(0).hold(priority=3)
    side.commit()
    assert (job.status, job.priority, job.hold_reason) == (HELD, 3, "held by consumer 'worker'")
    assert consumer.claim(0) is None
    side.begin()
    job.resume()
    side.commit()
    assert consumer.claim(0).job is job


def test_a_failure_is_the_result(side, consumer):
    (job,) = put(side, b'1')
    consumer.claim(0).fail(ValueError('no good'))
    side.commit()
    assert (job.outcome, job.result.type) == ('failure', ValueError)


def test_a_failure_is_tried_again_as_the_policy_advises(side, consumer, turned):
    policy = RetryPolicy(1, backoff=5, on_exhausted='hold')
    (job,) = put(side, b'1', retry_policy_factory=policy)
    consumer.claim(0).fail(ValueError('no good'))
    side.commit()
    assert consumer.claim(0) is None
    turned.advance(5)
    consumer.claim(0).fail(ValueError('no good'))
    side.commit()
    assert (job.status, job.hold_reason) == (HELD, 'retries used up: no good')


def test_wrong_arguments_leave_the_claim_alone(side, consumer):
    put(side, b'1')
    claim = consumer.claim(0)
    for wrong in (
        lambda: claim.release(delay=-1),
        lambda: claim.release(priority=-1),
        lambda: claim.hold(priority=2**32),
    ):
        with pytest.raises(ValueError):
            wrong()
    with pytest.raises(TypeError, match='cannot be stored'):
        claim.finish(threading.Lock())
    claim.finish()
    side.commit()


# Leases that end ---------------------------------------------------------------------------


def test_a_lease_that_ended_is_taken_back_by_the_next_claim(house, side, consumer, turned):
    (job,) = put(side, b'1')
    consumer.claim(0)
    _, second = other(house)
    turned.advance(119)
    assert second.claim(0) is None
    turned.advance(1)
    claim = second.claim(0)
    assert (claim.body, claim.token, claim.job.interruptions) == (b'1', 2, 1)
    second.close()


def test_a_lease_is_as_long_as_the_put_says_or_the_claim(side, consumer, turned):
    put(side, b'1', lease=10)
    put(side, b'2', lease=10)
    now = clock.micros()
    assert consumer.claim(0).until == now + 10 * clock.SECOND
    assert consumer.claim(0, lease=3).until == now + 3 * clock.SECOND


def test_a_dispatcher_takes_leases_back_by_its_timer(side, turned):
    from zodbjobs import testing

    layer = testing.setUp()
    try:
        job = layer.queue.put(Message(b'1'), lease=7)
        transaction.commit()
        with layer.queue.consumer('worker') as consumer:
            consumer.claim(0)
            layer.reactor.time_flies(6.9)
            transaction.begin()
            assert job.status == ACTIVE
            layer.reactor.time_flies(0.2)
            transaction.begin()
            assert (job.status, job.interruptions) == (PENDING, 1)
            assert len(layer.queue.leases) == 0
    finally:
        testing.tearDown()


def test_a_message_of_a_long_transaction_is_found(layer, monkeypatch):
    """A dispatcher that may not take it itself, as there is no handler, sorts it for others."""
    monkeypatch.setattr(intake, 'lane_number', lambda jar: 0)
    manager = transaction.TransactionManager()
    connection = layer.db.open(manager)
    connection.root()[KEY][''].put(Message(b'late'))
    for _ in range(2 * intake.CHUNK_ENTRIES):
        layer.queue.put(Message(b'early'))
        transaction.commit()
    with layer.queue.consumer('worker') as consumer:
        while (claim := consumer.claim(0)) is not None:
            claim.finish()
            transaction.commit()
        layer.reactor.time_flies(10)
        manager.commit()
        connection.close()
        layer.reactor.time_flies(10)
        assert consumer.claim(0).body == b'late'


def test_a_message_of_a_long_transaction_is_found_without_a_dispatcher(
    house, side, consumer, turned, monkeypatch
):
    """Consumers that are alone look after the lanes themselves."""
    monkeypatch.setattr(intake, 'lane_number', lambda jar: 0)
    slow = house.side()
    slow.queue.put(Message(b'late'))
    for _ in range(3 * intake.CHUNK_ENTRIES):
        put(side, b'early')
    (lane, *_) = side.queue.intake.lanes
    assert intake.size_of(lane) > 2
    while (claim := consumer.claim(0)) is not None:
        claim.finish()
        side.commit()
    turned.advance(intake.TIDY_SECONDS)
    assert consumer.claim(0) is None
    slow.commit()
    side.begin()
    assert intake.size_of(lane) == 1
    turned.advance(intake.TIDY_SECONDS)
    assert consumer.claim(0).body == b'late'


def test_a_late_finish_is_lost_once_somebody_else_has_the_job(house, side, consumer, turned):
    put(side, b'1')
    claim = consumer.claim(0)
    turned.advance(120)
    _, second = other(house)
    assert second.claim(0).token == 2
    side.begin()
    for verb in (claim.finish, claim.release, claim.hold, lambda: claim.fail(ValueError())):
        with pytest.raises(ClaimLost, match='by another'):
            verb()
    second.close()


def test_a_late_finish_conflicts_where_it_cannot_see_that(house, side, consumer, turned):
    put(side, b'1')
    claim = consumer.claim(0)
    turned.advance(120)
    _, second = other(house)
    assert second.claim(0).token == 2
    side.root['seen'] = True  # in the transaction that began before
    claim.finish()
    with pytest.raises(ConflictError):
        side.commit()
    side.begin()
    assert 'seen' not in side.root
    second.close()


def test_a_late_finish_holds_if_nobody_else_has_the_job(house, side, consumer, turned):
    (job,) = put(side, b'1')
    claim = consumer.claim(0)
    turned.advance(120)
    _, second = other(house)
    assert second.claim(0, filter=lambda job: False) is None  # it took the lease back
    side.begin()
    assert job.status == PENDING
    claim.finish('late')
    side.commit()
    assert job.result == 'late'
    assert second.claim(0) is None
    assert len(side.queue) == 0
    second.close()


def test_a_late_finish_is_lost_while_an_agent_has_the_job(house, side, consumer, turned):
    side.queue.handler = 'tests.model.support:work'
    (job,) = put(side, b'1')
    claim = consumer.claim(0)
    turned.advance(120)
    second, taker = other(house)
    assert taker.claim(0, filter=lambda job: False) is None
    second.begin()
    (assignment,) = second.claim()
    assert assignment.oid == job._p_oid
    second.commit()
    side.begin()
    with pytest.raises(ClaimLost):
        claim.finish()
    taker.close()


def test_poison_ends_by_the_policy(house, side, consumer, turned):
    (job,) = put(side, b'1', lease=1)
    for token in range(1, 11):
        assert consumer.claim(0).token == token
        turned.advance(1)
    assert consumer.claim(0) is None
    side.begin()
    assert (job.outcome, job.interruptions) == ('failure', 10)
    assert job.result.check(AbortedError)


def test_what_must_run_once_ends_with_its_lease(side, consumer, turned):
    (job,) = put(side, b'1', retry_policy_factory=NeverRetry)
    consumer.claim(0)
    turned.advance(120)
    assert consumer.claim(0) is None
    side.begin()
    assert job.result.check(AbortedError)


# Touch, and the deadline that comes ----------------------------------------------------------


def test_touch_starts_the_lease_anew_and_disturbs_nobody(house, side, consumer, turned):
    put(side, b'1')
    claim = consumer.claim(0)
    side.root['seen'] = True
    for _ in range(5):
        turned.advance(100)
        claim.touch()
    assert claim.until == clock.micros() + 120 * clock.SECOND
    _, second = other(house)
    assert second.claim(0) is None
    claim.finish()
    side.commit()  # no conflict with all the touches
    assert side.root['seen']
    second.close()


def test_a_touched_lease_goes_on_to_the_slot_of_its_end(side, consumer, turned):
    (job,) = put(side, b'1', lease=10)
    claim = consumer.claim(0)
    for _ in range(7):
        turned.advance(9)
        claim.touch()
        assert consumer.claim(0) is None
    assert len(side.queue.leases) == 1
    turned.advance(10)
    assert consumer.claim(0).job is job
    with pytest.raises(ClaimLost):
        claim.touch()


def test_touch_after_the_end_is_lost(side, consumer):
    put(side, b'1')
    claim = consumer.claim(0)
    claim.finish()
    side.commit()
    assert consumer.claim(0) is None
    with pytest.raises(ClaimLost, match='its lease has ended'):
        claim.touch()


def test_the_deadline_is_announced_if_nothing_is_ready(side, consumer, turned):
    put(side, b'1', lease=10)
    claim = consumer.claim(0)
    assert not claim.deadline_soon
    turned.advance(9.2)
    put(side, b'2')
    assert consumer.claim(0).body == b'2'
    assert claim.deadline_soon
    with pytest.raises(DeadlineSoon, match='about to end') as caught:
        consumer.claim(0)
    assert caught.value.claim is claim
    claim.touch()
    assert consumer.claim(0) is None


# Many consumers ----------------------------------------------------------------------------


def test_every_job_is_claimed_once_by_threads(tmp_path):
    house = support.file_house(tmp_path)
    side = house.first
    jobs = put(side, *[b'%d' % number for number in range(60)])
    done, errors = [], []

    def consume():
        mine = transaction.TransactionManager()
        connection = house.db.open(mine)
        try:
            with connection.root()[KEY][''].consumer('worker') as consumer:
                while (claim := consumer.claim(0)) is not None:
                    done.append(claim.body)
                    claim.finish()
                    mine.commit()
        except Exception as error:  # noqa: BLE001 - told by the test
            errors.append(error)
        finally:
            mine.abort()
            connection.close()

    threads = [threading.Thread(target=consume) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    side.begin()
    assert errors == []
    assert sorted(done) == sorted(job.body for job in jobs)
    assert all(job.status == COMPLETED for job in jobs)
    house.close()


def test_a_waiting_consumer_is_woken_by_a_commit(tmp_path):
    house = support.file_house(tmp_path)
    second, consumer = other(house)
    found = []
    thread = threading.Thread(target=lambda: found.append(consumer.claim(60).body))
    thread.start()
    put(house.first, b'1')
    thread.join(10)
    assert found == [b'1']
    consumer.close()
    house.close()


def test_conflicts_are_borne(side, consumer, monkeypatch):
    put(side, b'1')
    tries = []
    look = consumer._look

    def conflicting(*args):
        tries.append(args)
        if len(tries) < 4:
            raise ConflictError
        return look(*args)

    monkeypatch.setattr(consumer, '_look', conflicting)
    assert consumer.claim(0).body == b'1'
    assert len(tries) == 4


def test_a_crowd_is_no_error(side, consumer, monkeypatch):
    def crowded(*args):
        raise ConflictError

    monkeypatch.setattr(consumer, '_look', crowded)
    monkeypatch.setattr(consumer_module, 'ATTEMPTS', 2)
    assert consumer.claim(0) is None


# Manners -----------------------------------------------------------------------------------


def test_a_claim_is_refused_while_there_are_changes(side, consumer):
    put(side, b'1')
    side.root['mine'] = True
    with pytest.raises(ValueError, match='commit or abort it first'):
        consumer.claim(0)
    side.commit()
    assert side.root['mine']
    assert consumer.claim(0).body == b'1'


def test_close_gives_back_what_is_held(house, side):
    (job,) = put(side, b'1')
    with side.queue.consumer('worker') as consumer:
        consumer.claim(0)
    side.begin()
    assert (job.status, job.interruptions, len(side.queue.leases)) == (PENDING, 0, 0)
    with pytest.raises(ValueError, match='is closed'):
        consumer.claim(0)
    consumer.close()


def test_whoever_knows_a_job_may_use_its_claim(house, side, consumer):
    (job,) = put(side, b'1')
    with pytest.raises(ClaimLost, match='nobody has a claim'):
        claim_on(job)
    consumer.claim(0)
    second = house.side()
    claim = claim_on(second.twin(job))
    with pytest.raises(BadStatusError):
        claim.touch()
    claim.finish('by another hand')
    second.commit()
    side.begin()
    assert job.result == 'by another hand'


def test_consumers_are_made_for_stored_queues(side):
    with pytest.raises(ValueError, match='stored in one database'):
        Queue().consumer('worker')
    with pytest.raises(TypeError, match='has a name'):
        side.queue.consumer('')
    with pytest.raises(TypeError, match='sequence of names'):
        side.queues.consumer('worker', watch='b')
    with pytest.raises(KeyError, match='there is no queue'):
        side.queues.consumer('worker', watch=['b'])


# Messages, handlers, capacity --------------------------------------------------------------


def test_agents_leave_messages_alone_where_nobody_handles_them(side, queue_with_agent):
    put(side, b'1', b'2')
    assert side.claim(9) == []
    side.look().sort()
    side.queue.put(work)
    assert len(side.claim(9)) == 1
    side.queue.handler = work
    assert side.queue.handler == 'tests.model.support:work'
    assert len(side.claim(9)) == 2


@pytest.fixture
def queue_with_agent(side):
    assert side.agent is not None
    side.commit()


def test_a_handler_is_called_with_the_body(side):
    side.queue.handler = 'tests.model.support:other_work'
    (job,) = put(side, b'1')
    assert job.callable is support.other_work
    assert job.run() == ('other', b'1')
    assert repr(job).endswith("``message(b'1')``>")


def test_a_message_without_a_handler_says_so(side):
    (job,) = put(side, b'1')
    with pytest.raises(LookupError, match='has no handler'):
        job.run()


@pytest.mark.parametrize('handler', ['module', 'a:b:c', ':f', 7, lambda body: body])
def test_handlers_are_named_by_text_or_function(side, handler):
    with pytest.raises(TypeError):
        side.queue.handler = handler
    assert side.queue.handler is None


def test_the_body_is_bytes(side):
    with pytest.raises(TypeError, match='is bytes, not str'):
        Message('text')
    message = Message(bytearray(b'1'))
    assert message.body == b'1'
    with pytest.raises(AttributeError, match='no callable of its own'):
        message.callable = work


def test_a_full_queue_refuses(side, consumer):
    side.queue.capacity = 2
    first, _ = put(side, b'1', b'2')
    with pytest.raises(QueueFull, match='its capacity is 2'):
        side.queue.put(Message(b'3'))
    first.addCallback(work)
    side.commit()
    assert len(side.queue) == 2
    consumer.claim(0)
    put(side, b'3')
    side.queue.capacity = None
    put(side, b'4')


def test_what_replaces_a_waiting_job_needs_no_room(side):
    side.queue.capacity = 1
    put(side, b'1', id='one')
    side.queue.put(Message(b'2'), id='one', on_conflict='replace')
    assert side.queue.put(Message(b'3'), id='one', on_conflict='keep').body == b'2'
    with pytest.raises(ValueError, match='whole number'):
        side.queue.capacity = -1
    assert side.queue.stats()['capacity'] == 1


def test_queues_of_a_new_database_have_all_that_claims_need():
    queues = Queues()
    queues[''] = Queue()
    assert (len(queues[''].leases), len(queues[''].consumers)) == (0, 0)
