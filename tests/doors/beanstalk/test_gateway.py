"""What the commands do, in virtual time and without sockets."""

import pytest
from ZEO.Exceptions import ClientDisconnected
from ZODB.POSException import ConflictError

from tests.doors.beanstalk import support
from zodbjobs import Job, Queue
from zodbjobs.beanstalk.protocol import (
    BURIED,
    DEADLINE_SOON,
    DELETED,
    DRAINING,
    EXPECTED_CRLF,
    INTERNAL_ERROR,
    KICKED,
    NOT_FOUND,
    NOT_IGNORED,
    OUT_OF_MEMORY,
    PAUSED,
    RELEASED,
    TIMED_OUT,
    TOUCHED,
    UNKNOWN_COMMAND,
)
from zodbjobs.model.intake import CHUNK_ENTRIES, TIDY_SECONDS, size_of


@pytest.fixture(params=['own', 'shared'])
def own(request):
    """Whether the database is the gateway's own."""
    return request.param == 'own'


@pytest.fixture
def desk(own):
    with support.desk(own=own) as desk:
        yield desk


@pytest.fixture
def talk(desk):
    return desk.client()


def reserved(number, body):
    return b'RESERVED %d %d\r\n%s\r\n' % (number, len(body), body)


def test_put_reserve_delete(talk):
    assert talk.put(b'hey!') == 1
    assert talk.say(b'reserve') == reserved(1, b'hey!')
    assert talk.say(b'delete 1') == DELETED
    assert talk.say(b'delete 1') == NOT_FOUND
    assert talk.say(b'reserve-with-timeout 0') == TIMED_OUT


def test_commands_in_one_packet_are_answered_in_order(talk):
    said = talk.say(
        b'put 0 0 1 1', b'a', b'nonsense', b'put 0 0 1 1', b'b', b'reserve', b'reserve',
        b'delete 2', b'release 1 5 0', b'peek-ready', b'quit', b'use later',
    )  # fmt: skip
    assert said == b''.join([
        b'INSERTED 1\r\n', UNKNOWN_COMMAND, b'INSERTED 2\r\n', reserved(1, b'a'),
        reserved(2, b'b'), DELETED, RELEASED, b'FOUND 1 1\r\na\r\n',
    ])  # fmt: skip
    assert talk.closed


def test_priority_then_number_across_tubes(talk):
    talk.put(b'1', priority=5)
    talk.say(b'use b')
    talk.put(b'2', priority=5)
    talk.put(b'3', priority=1)
    talk.say(b'use default')
    talk.put(b'4', priority=5)
    talk.say(b'watch b')
    assert [talk.say(b'reserve').split()[1] for _ in range(4)] == [b'3', b'1', b'2', b'4']


def test_many_priorities_come_in_order(talk):
    priorities = [70, 3, 3, 99, 0, 2**32 - 1, 50, 3]
    for priority in priorities:
        talk.put(b'%d' % priority, priority=priority)
    found = [int(talk.say(b'reserve').split()[3]) for _ in priorities]
    assert found == sorted(priorities)


def test_a_long_queue_is_in_order(talk):
    for number in range(120):
        talk.put(b'x', priority=number % 3)
    found = [int(talk.say(b'reserve').split()[1]) - 1 for _ in range(120)]
    assert found == sorted(range(120), key=lambda n: (n % 3, n))


def test_lanes_stay_short_though_no_dispatcher_looks_after_them(desk, talk):
    for turn in range(4):
        for number in range(3 * CHUNK_ENTRIES):
            talk.put(b'%d' % number)
        while (answer := talk.say(b'reserve-with-timeout 0')) != TIMED_OUT:
            talk.say(b'delete ' + answer.split()[1])
        desk.advance(TIDY_SECONDS)
        desk.store.begin()
        lanes = desk.store.queues['default'].intake.lanes
        assert sum(size_of(lane) for lane in lanes) <= len(lanes) + (3 if turn == 0 else 6)
        desk.store.abort()


def test_a_delayed_job_is_ready_in_time(desk, talk):
    talk.put(b'1', delay=2)
    talk.put(b'2', delay=1)
    assert talk.facts(b'stats-job 1')['state'] == 'delayed'
    assert talk.say(b'peek-delayed') == b'FOUND 2 1\r\n2\r\n'
    talk.send(b'reserve\r\n')
    assert talk.heard() == b''
    desk.advance(0.9)
    assert talk.heard() == b''
    desk.advance(0.2)
    assert talk.heard() == reserved(2, b'2')
    desk.advance(1)
    assert talk.say(b'reserve-with-timeout 0') == reserved(1, b'1')


def test_a_delayed_job_keeps_its_number_as_place(desk, talk):
    talk.put(b'1', delay=1)
    talk.put(b'2')
    desk.advance(1)
    assert talk.say(b'reserve').startswith(b'RESERVED 1 ')


def test_reserve_with_timeout_waits_so_long(desk, talk):
    talk.send(b'reserve-with-timeout 2\r\n')
    desk.advance(1.9)
    assert talk.heard() == b''
    desk.advance(0.2)
    assert talk.heard() == TIMED_OUT


def test_who_waits_longest_is_served_first(desk):
    first, second, producer = desk.client(), desk.client(), desk.client()
    first.send(b'reserve\r\n')
    desk.settle()
    second.send(b'reserve\r\n')
    desk.settle()
    producer.put(b'1')
    assert first.heard() == reserved(1, b'1')
    assert second.heard() == b''
    producer.put(b'2')
    assert second.heard() == reserved(2, b'2')


def test_a_lease_that_ends_gives_the_job_to_another(desk, talk):
    other = desk.client()
    talk.put(b'1', ttr=2)
    assert talk.say(b'reserve') == reserved(1, b'1')
    other.send(b'reserve\r\n')
    desk.advance(1.9)
    assert other.heard() == b''
    desk.advance(0.2)
    assert other.heard() == reserved(1, b'1')
    facts = other.facts(b'stats-job 1')
    assert (facts['timeouts'], facts['reserves']) == ('1', '2')
    assert other.facts(b'stats')['job-timeouts'] == '1'
    assert talk.say(b'delete 1') == NOT_FOUND
    assert talk.say(b'touch 1') == NOT_FOUND


def test_a_lease_that_ended_is_noticed_without_anybody_waiting(desk, talk):
    talk.put(b'1', ttr=1)
    talk.say(b'reserve')
    desk.advance(1.1)
    assert talk.facts(b'stats-job 1')['state'] == 'ready'
    assert talk.say(b'delete 1') == DELETED


def test_touch_gives_the_full_time_again(desk, talk):
    talk.put(b'1', ttr=2)
    talk.say(b'reserve')
    for _ in range(5):
        desk.advance(1.5)
        assert talk.say(b'touch 1') == TOUCHED
    facts = talk.facts(b'stats-job 1')
    assert (facts['state'], facts['time-left'], facts['timeouts']) == ('reserved', '2', '0')
    desk.advance(2.1)
    assert talk.facts(b'stats-job 1')['state'] == 'ready'


def test_the_deadline_is_announced(desk, talk):
    talk.put(b'1', ttr=3)
    talk.say(b'reserve')
    talk.send(b'reserve\r\n')
    desk.advance(1.9)
    assert talk.heard() == b''
    desk.advance(0.2)
    assert talk.heard() == DEADLINE_SOON
    assert talk.say(b'reserve-with-timeout 0') == DEADLINE_SOON
    talk.put(b'2')
    assert talk.say(b'reserve') == reserved(2, b'2')  # rather than the warning


def test_ttr_zero_is_one_second(talk):
    talk.put(b'1', ttr=0)
    assert talk.facts(b'stats-job 1')['ttr'] == '1'


def test_release_keeps_the_place_and_takes_priority_and_delay(desk, talk):
    talk.put(b'1')
    talk.put(b'2')
    talk.say(b'reserve')
    assert talk.say(b'release 1 100 0') == RELEASED
    assert talk.say(b'release 1 100 0') == NOT_FOUND
    assert talk.say(b'reserve') == reserved(1, b'1')
    talk.say(b'release 1 7 3')
    facts = talk.facts(b'stats-job 1')
    assert (facts['state'], facts['pri'], facts['delay'], facts['releases']) == (
        'delayed', '7', '3', '2',
    )  # fmt: skip
    desk.advance(3.1)
    assert talk.facts(b'stats-job 1')['state'] == 'ready'
    assert talk.say(b'reserve') == reserved(1, b'1')


def test_buried_jobs_come_back_in_the_order_of_burial(desk, talk):
    for body in (b'1', b'2', b'3'):
        talk.put(body)
        talk.say(b'reserve')
    for number in (2, 3, 1):
        desk.advance(0.1)
        assert talk.say(b'bury %d 9' % number) == BURIED
    assert talk.say(b'peek-buried') == b'FOUND 2 1\r\n2\r\n'
    assert talk.say(b'kick 2') == b'KICKED 2\r\n'
    assert talk.say(b'peek-buried') == b'FOUND 1 1\r\n1\r\n'
    assert talk.say(b'peek-ready') == b'FOUND 2 1\r\n2\r\n'
    facts = talk.facts(b'stats-job 2')
    assert (facts['buries'], facts['kicks'], facts['pri']) == ('1', '1', '9')


def test_kick_takes_delayed_jobs_only_without_buried_ones(talk):
    talk.put(b'1', delay=30)
    talk.put(b'2', delay=10)
    talk.put(b'3')
    talk.say(b'reserve')
    talk.say(b'bury 3 1')
    assert talk.say(b'kick 10') == b'KICKED 1\r\n'
    assert talk.say(b'kick 1') == b'KICKED 1\r\n'
    assert talk.facts(b'stats-job 2')['state'] == 'ready'
    assert talk.say(b'kick-job 1') == KICKED
    assert talk.say(b'kick-job 1') == NOT_FOUND
    assert talk.say(b'kick 10') == b'KICKED 0\r\n'
    assert talk.say(b'peek-ready') == b'FOUND 3 1\r\n3\r\n'


def test_reserve_job_takes_it_in_any_state(desk, talk):
    other = desk.client()
    talk.put(b'1')
    talk.put(b'2', delay=60)
    talk.put(b'3')
    talk.say(b'reserve-job 3')
    talk.say(b'bury 3 1')
    talk.say(b'pause-tube default 60')
    for number in (1, 2, 3):
        assert talk.say(b'reserve-job %d' % number) == reserved(number, b'%d' % number)
        assert other.say(b'reserve-job %d' % number) == NOT_FOUND
        assert talk.say(b'release %d 1 0' % number) == RELEASED
        assert talk.facts(b'stats-job %d' % number)['state'] == 'ready'
    assert talk.say(b'reserve-job 9') == NOT_FOUND
    counts = talk.facts(b'stats-tube default')
    assert (counts['current-jobs-ready'], counts['current-jobs-delayed']) == ('3', '0')


def test_delete_takes_jobs_in_any_state_but_reserved_by_another(desk, talk):
    other = desk.client()
    for delay in (0, 50, 0, 0):
        talk.put(b'x', delay=delay)
    talk.say(b'reserve')
    talk.say(b'bury 1 0')
    talk.say(b'reserve')  # 3
    assert other.say(b'delete 3') == NOT_FOUND
    for number in (1, 2, 4):
        assert other.say(b'delete %d' % number) == DELETED
    assert talk.say(b'delete 3') == DELETED
    counts = talk.facts(b'stats-tube default')
    assert {counts[f'current-jobs-{state}'] for state in ('ready', 'reserved', 'delayed', 'buried')}
    assert all(counts[f'current-jobs-{state}'] == '0' for state in ('ready', 'delayed', 'buried'))


def test_deleted_jobs_are_not_counted_however_they_were_sorted(talk):
    numbers = [talk.put(b'x', delay=number % 2 * 60) for number in range(80)]
    for number in numbers[:60]:
        assert talk.say(b'delete %d' % number) == DELETED
    counts = talk.facts(b'stats-tube default')
    assert (counts['current-jobs-ready'], counts['current-jobs-delayed']) == ('10', '10')
    assert talk.say(b'reserve').startswith(b'RESERVED 61 ')


def test_who_leaves_gives_its_jobs_back_at_once(desk, talk):
    other = desk.client()
    talk.put(b'1')
    talk.put(b'2')
    talk.say(b'reserve', b'reserve')
    other.send(b'reserve\r\nreserve\r\n')
    desk.settle()
    talk.leave()
    assert other.heard() == reserved(1, b'1') + reserved(2, b'2')
    facts = other.facts(b'stats-job 1')
    assert (facts['releases'], facts['timeouts'], facts['reserves']) == ('0', '0', '2')
    assert other.facts(b'stats')['current-connections'] == '1'


def test_what_was_sent_before_leaving_is_done(desk, talk):
    talk.send(b'put 0 0 1 1\r\na\r\n')
    talk.leave()
    assert desk.client().say(b'peek-ready') == b'FOUND 1 1\r\na\r\n'


def test_a_half_closed_client_waits_no_longer(desk, talk):
    talk.send(b'reserve\r\n')
    desk.settle()
    talk.client.ends = True
    desk.gateway.wake(talk.client)
    assert talk.heard() == TIMED_OUT
    assert talk.closed


def test_a_paused_tube_gives_nothing_for_a_while(desk, talk):
    talk.put(b'1')
    assert talk.say(b'pause-tube default 2') == PAUSED
    assert talk.say(b'pause-tube nothing 2') == NOT_FOUND
    assert talk.say(b'reserve-with-timeout 0') == TIMED_OUT
    facts = talk.facts(b'stats-tube default')
    assert (facts['pause'], facts['pause-time-left'], facts['cmd-pause-tube']) == ('2', '2', '1')
    assert talk.say(b'peek-ready') == b'FOUND 1 1\r\n1\r\n'
    talk.send(b'reserve\r\n')
    desk.advance(1.9)
    assert talk.heard() == b''
    desk.advance(0.2)
    assert talk.heard() == reserved(1, b'1')


def test_ending_a_pause_wakes_who_waits(desk, talk):
    other = desk.client()
    talk.put(b'1')
    talk.say(b'pause-tube default 60')
    other.send(b'reserve\r\n')
    desk.settle()
    talk.say(b'pause-tube default 0')
    assert other.heard() == reserved(1, b'1')
    assert talk.facts(b'stats-tube default')['pause'] == '0'


def test_tubes_appear_and_vanish(desk, talk):
    other = desk.client()
    assert talk.say(b'list-tubes') == b'OK 14\r\n---\n- default\n\r\n'
    assert talk.say(b'use foo') == b'USING foo\r\n'
    assert talk.say(b'list-tube-used') == b'USING foo\r\n'
    assert talk.say(b'watch bar') == b'WATCHING 2\r\n'
    assert other.say(b'list-tubes') == b'OK 26\r\n---\n- default\n- foo\n- bar\n\r\n'
    assert talk.say(b'list-tubes-watched') == b'OK 20\r\n---\n- default\n- bar\n\r\n'
    assert talk.say(b'ignore default') == b'WATCHING 1\r\n'
    assert talk.say(b'ignore bar') == NOT_IGNORED
    assert talk.say(b'ignore nothing') == b'WATCHING 1\r\n'
    talk.put(b'1')
    talk.leave()
    assert other.say(b'list-tubes') == b'OK 20\r\n---\n- default\n- foo\n\r\n'
    assert other.facts(b'stats-tube foo')['total-jobs'] == '1'
    assert other.say(b'stats-tube bar') == NOT_FOUND
    other.say(b'delete 1')
    assert other.say(b'stats-tube foo') == NOT_FOUND


def test_drain_refuses_puts_only(desk, talk):
    talk.put(b'1')
    desk.gateway.drain()
    assert talk.say(b'put 0 0 1 1', b'a') == DRAINING
    assert talk.facts(b'stats')['draining'] == 'true'
    assert talk.say(b'reserve') == reserved(1, b'1')


def test_a_refused_body_uses_up_a_number(talk):
    assert talk.say(b'put 0 0 1 1', b'') == b''
    assert talk.say(b'x') == EXPECTED_CRLF + UNKNOWN_COMMAND
    assert talk.put(b'1') == 2


def test_the_figures_of_the_server(desk, talk):
    other = desk.client()
    talk.put(b'1', priority=1)
    talk.put(b'2', delay=9)
    talk.put(b'3')
    other.say(b'reserve')
    other.say(b'bury 1 1')
    other.send(b'reserve\r\nreserve\r\n')
    desk.settle()
    facts = talk.facts(b'stats')
    wanted = {
        'current-jobs-urgent': '0', 'current-jobs-ready': '0', 'current-jobs-reserved': '1',
        'current-jobs-delayed': '1', 'current-jobs-buried': '1', 'cmd-put': '3', 'total-jobs': '3',
        'cmd-reserve': '3', 'cmd-bury': '1', 'cmd-stats': '1', 'current-tubes': '1',
        'current-connections': '2', 'current-producers': '1', 'current-workers': '1',
        'current-waiting': '1', 'total-connections': '2', 'max-job-size': '65535',
        'draining': 'false',
    }  # fmt: skip
    assert {key: facts[key] for key in wanted} == wanted
    assert len(facts) == 51


def test_long_bodies_and_empty_ones(talk):
    for body in (b'', b'x' * 65535, b'\r\n' * 10, bytes(range(256))):
        number = talk.put(body)
        assert talk.say(b'reserve') == reserved(number, body)
        assert talk.say(b'delete %d' % number) == DELETED


def test_moments_that_are_over_are_not_kept(desk, talk, monkeypatch):
    """Jobs with hours to run are deleted at once, and waits are served at once, all the time."""
    monkeypatch.setattr('zodbjobs.beanstalk.gateway.OUTDATED', 10)
    desk.gateway._ends_limit = 10
    keeper, waiter = desk.client(), desk.client()
    talk.put(b'kept', ttr=5)
    assert keeper.say(b'reserve').startswith(b'RESERVED 1 ')
    for _ in range(50):
        waiter.send(b'reserve-with-timeout 3600\r\n')
        desk.settle()
        number = talk.put(b'x', ttr=3600)
        assert waiter.heard() == reserved(number, b'x')
        assert waiter.say(b'delete %d' % number) == DELETED
    assert len(desk.gateway._ends) < 20
    assert len(desk.gateway._patience) < 20
    waiter.send(b'reserve-with-timeout 8\r\n')
    desk.advance(5.1)
    assert waiter.heard() == reserved(1, b'kept')
    keeper.send(b'reserve-with-timeout 2\r\n')
    desk.advance(2.3)
    assert keeper.heard() == TIMED_OUT


# Sharing the database ----------------------------------------------------------------------


def test_a_batch_that_conflicts_is_applied_again_as_it_was(desk, talk, monkeypatch):
    other = desk.client()
    tries = []
    commit = desk.store.commit

    def conflicting():
        tries.append(None)
        if len(tries) in (1, 2):
            raise ConflictError
        return commit()

    monkeypatch.setattr(desk.store, 'commit', conflicting)
    other.send(b'reserve\r\n')
    talk.send(b'use b\r\nput 0 0 1 1\r\na\r\nuse default\r\nput 0 0 1 1\r\nb\r\nstats-tube b\r\n')
    answer = talk.heard()
    assert len(tries) == 3
    assert answer.startswith(b'USING b\r\nINSERTED 1\r\nUSING default\r\nINSERTED 2\r\n')
    assert b'total-jobs: 1\n' in answer
    assert other.heard() == reserved(2, b'b')
    assert other.client.waits is False
    assert talk.facts(b'stats')['cmd-put'] == '2'


@pytest.mark.parametrize('made', [True, False], ids=['made', 'not made'])
def test_a_commit_that_was_cut_off_counts_once(made, monkeypatch):
    """Whether it was made is found out before it is answered, or applied again."""
    with support.desk(exclusive=False) as desk:
        talk, other, third = (desk.client() for _ in range(3))
        other.send(b'reserve\r\n')
        desk.settle()
        commit = desk.store.manager.commit
        cuts = iter([True])

        def cut():
            if not next(cuts, False):
                return commit()
            if made:
                commit()
            raise ClientDisconnected('a cable was pulled')

        monkeypatch.setattr(desk.store.manager, 'commit', cut)
        talk.send(b'put 0 0 9 1\r\na\r\nput 0 0 9 1\r\nb\r\n')
        desk.reactor.advance(0)
        assert (talk.got, other.got) == (b'', b'')
        talk.send(b'stats-tube default\r\n')  # what comes meanwhile waits
        third.send(b'put 0 0 9 1\r\nc\r\n')
        desk.gateway.disconnected(third.client)
        desk.advance(1)
        answer = talk.heard()
        assert answer.startswith(b'INSERTED 1\r\nINSERTED 2\r\nOK ')
        assert other.heard() == reserved(1, b'a')
        assert talk.facts(b'stats-tube default')['total-jobs'] == '3'
        assert talk.facts(b'stats')['current-connections'] == '2'
        assert other.say(b'delete 1') == DELETED
        assert [talk.say(b'reserve')[-3:] for _ in range(2)] == [b'b\r\n', b'c\r\n']
        assert talk.say(b'reserve-with-timeout 0') == TIMED_OUT


def test_a_command_that_fails_harms_its_client_only(desk, talk, monkeypatch):
    desk.may_fail = True
    other = desk.client()
    put = desk.store.put

    def failing(name, *args):
        if name == 'bad':
            raise RuntimeError('a bug')
        return put(name, *args)

    monkeypatch.setattr(desk.store, 'put', failing)
    talk.send(b'put 0 0 1 1\r\na\r\nuse bad\r\nput 0 0 1 1\r\nb\r\nuse good\r\n')
    other.send(b'put 0 0 1 1\r\nc\r\n')
    assert talk.heard() == b'INSERTED 1\r\nUSING bad\r\n' + INTERNAL_ERROR + b'USING good\r\n'
    assert other.heard() == b'INSERTED 2\r\n'


def test_queues_of_others_are_not_shown(desk, talk):
    desk.store.begin()
    desk.store.queues['private'] = Queue()
    desk.store.manager.commit()
    assert talk.say(b'stats-tube private') == NOT_FOUND
    talk.say(b'use private')
    assert talk.say(b'put 0 0 1 1', b'a') == DRAINING
    desk.store.begin()
    desk.store.queues['private'].tube = True
    desk.store.queues['private'].put(Job(print))
    desk.store.manager.commit()
    talk.say(b'watch private')
    assert talk.say(b'reserve-with-timeout 0') == TIMED_OUT  # that is no message
    assert talk.put(b'a') > 0
    assert talk.say(b'reserve-with-timeout 0').endswith(b'a\r\n')


def test_a_full_or_closed_queue_refuses(desk, talk):
    talk.put(b'1')
    desk.store.begin()
    desk.store.queues['default'].capacity = 1
    desk.store.manager.commit()
    assert talk.say(b'put 0 0 1 1', b'a') == OUT_OF_MEMORY
    desk.store.begin()
    desk.store.queues['default'].closed = True
    desk.store.manager.commit()
    assert talk.say(b'put 0 0 1 1', b'a') == DRAINING


def test_numbers_go_on_and_reservations_come_back_after_a_restart(own):
    with support.desk(own=own) as first:
        talk = first.client()
        talk.put(b'1')
        talk.put(b'2', delay=60)
        talk.put(b'3')
        talk.say(b'reserve')
        talk.say(b'reserve')
        talk.say(b'bury 3 1')
        first.store.close()
        second = support.Desk(first.db, source=first.time, own=own)
        again = second.client()
        states = [again.facts(b'stats-job %d' % number)['state'] for number in (1, 2, 3)]
        assert states == ['ready', 'delayed', 'buried']
        assert again.put(b'4') == 4
        second.store.close()


def test_gateways_that_share_give_numbers_of_their_own():
    with support.desk(exclusive=False) as first:
        second = support.Desk(first.db, exclusive=False, source=first.time)
        a, b = first.client(), second.client()
        assert (a.put(b'1'), b.put(b'2'), a.put(b'3')) == (1, 1001, 2)
        assert b.say(b'peek 1') == b'FOUND 1 1\r\n1\r\n'
        assert b.say(b'reserve').startswith(b'RESERVED 1 ')
        assert a.say(b'delete 1') == NOT_FOUND
        second.store.close()


def test_jobs_of_a_very_long_queue_can_be_deleted_and_come_in_order(talk):
    count = 1100  # more than fit one shard
    talk.send(b''.join(b'put 5 0 60 1\r\nx\r\n' for _ in range(count)))
    talk.heard()
    for number in (1, 300, 600, 900, 1100):
        assert talk.say(b'delete %d' % number) == DELETED
    talk.client.commands.clear()
    assert talk.facts(b'stats-tube default')['current-jobs-ready'] == str(count - 5)
    found = [int(talk.say(b'reserve').split()[1]) for _ in range(605)]
    assert found == [n for n in range(1, 610) if n not in (1, 300, 600, 900)][:605]


def test_numbers_of_jobs_that_ended_elsewhere_are_forgotten():
    with support.desk(exclusive=False) as desk:
        talk = desk.client()
        for _ in range(3):
            talk.put(b'x')
        manager = desk.store.manager
        desk.store.begin()
        queue = desk.store.queues['default']
        with queue.consumer('python') as consumer:
            consumer.claim(0).finish()
            manager.commit()
        numbers = desk.store.queues.numbers
        assert list(numbers.blocks[1].jobs) == [1, 2, 3]
        desk.gateway.sweep()
        desk.settle()
        assert list(numbers.blocks[1].jobs) == [2, 3]
        assert numbers.ended(0, 1) == ([], 2)
        assert numbers.ended(2, 1) == ([], 0)
