"""A database of the gateway's own: the answers of one that is shared, and less is written."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ZODB.POSException import ConflictError

from tests.doors.beanstalk import support
from zodbjobs import Message, RetryPolicy
from zodbjobs.beanstalk.protocol import BURIED, DELETED, RELEASED

NUMBERS = st.integers(1, 8)
PRIORITIES = st.sampled_from([0, 5, 1023, 1024, 2**32 - 1])
DELAYS = st.sampled_from([0, 0, 0, 1, 3])

COMMANDS = st.one_of(
    st.tuples(st.just('put'), PRIORITIES, DELAYS, st.integers(0, 3)),
    st.just('reserve-with-timeout 0'),
    st.just('reserve-with-timeout 0'),
    st.just('reserve-with-timeout 1'),
    st.builds('delete {}'.format, NUMBERS),
    st.builds('release {} {} {}'.format, NUMBERS, PRIORITIES, DELAYS),
    st.builds('bury {} {}'.format, NUMBERS, PRIORITIES),
    st.builds('touch {}'.format, NUMBERS),
    st.builds('kick {}'.format, st.integers(0, 3)),
    st.builds('kick-job {}'.format, NUMBERS),
    st.builds('reserve-job {}'.format, NUMBERS),
    st.builds('peek {}'.format, NUMBERS),
    st.builds('stats-job {}'.format, NUMBERS),
    st.sampled_from([
        'peek-ready', 'peek-delayed', 'peek-buried', 'stats-tube default', 'list-tubes', 'use a',
        'watch a', 'ignore a', 'use default', 'pause-tube default 2', 'pause-tube default 0',
    ]),
)  # fmt: skip

STEPS = st.one_of(
    st.tuples(st.integers(0, 2), COMMANDS),
    st.tuples(st.just('pass'), st.sampled_from([0.3, 1, 2.5])),
    st.tuples(st.just('leave'), st.integers(0, 2)),
)


def said(command):
    """The lines of a command."""
    if isinstance(command, tuple):
        _, priority, delay, ttr = command
        return b'put %d %d %d 1' % (priority, delay, ttr), b'x'
    return (command.encode(),)


def trip(desk, every):
    """Let every n-th commit of a desk fail at first."""
    commit, count = desk.store.commit, iter(range(10**9))

    def tripping():
        if next(count) % every == every - 1:
            raise ConflictError
        return commit()

    desk.store.commit = tripping


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=40), st.sampled_from([None, 2, 3]))
def test_it_answers_like_a_shared_one(steps, every):
    with support.desk(own=True) as own, support.desk(source=own.time) as shared:
        if every:
            trip(own, every)
        desks = own, shared
        talks = [[desk.client() for _ in range(3)] for desk in desks]
        for who, what in steps:
            if who == 'pass':
                for _ in range(round(what * 10)):
                    own.time.advance(0.1)
                    for desk in desks:
                        desk.reactor.advance(0.1)
                        desk.settle()
            elif who == 'leave':
                for desk, mine in zip(desks, talks, strict=True):
                    mine[what].leave()
                    mine[what] = desk.client()
            else:
                lines = said(what)
                answers = [mine[who].say(*lines) for mine in talks]
                assert answers[0] == answers[1], what
            heard = [[talk.heard() for talk in mine] for mine in talks]
            assert heard[0] == heard[1]


@pytest.fixture
def desk():
    with support.desk(own=True) as desk:
        yield desk


@pytest.fixture
def talk(desk):
    return desk.client()


def test_a_reserve_and_what_ends_it_unchanged_write_nothing(desk, talk):
    talk.put(b'1')
    talk.put(b'2')
    before = desk.db.lastTransaction()
    assert talk.say(b'reserve').startswith(b'RESERVED 1')
    assert talk.say(b'touch 1') == b'TOUCHED\r\n'
    assert talk.say(b'reserve-with-timeout 0').startswith(b'RESERVED 2')
    assert desk.db.lastTransaction() == before


def test_the_record_of_a_job_that_is_deleted_is_not_written(desk, talk):
    numbers = [talk.put(b'x') for _ in range(5)]
    talk.say(b'reserve')
    job = desk.store.find(1)
    serial = job._p_serial
    assert talk.say(b'delete 1') == DELETED
    assert talk.say(b'delete 2') == DELETED
    job._p_deactivate()
    assert job._status == 'pending'
    assert job._p_serial == serial
    assert [talk.say(b'peek %d' % number)[:3] for number in numbers] == [b'NOT'] * 2 + [b'FOU'] * 3


def test_more_jobs_than_are_kept_in_mind_come_in_order(desk, talk, monkeypatch):
    monkeypatch.setattr('zodbjobs.model.tube.FILL', 7)
    monkeypatch.setattr('zodbjobs.model.tube.MOST', 20)
    for number in range(60):
        talk.put(b'x', priority=number % 3)
    held = [int(talk.say(b'reserve').split()[1]) for _ in range(30)]
    for number in held[3::4]:
        talk.say(b'release %d %d 0' % (number, (number - 1) % 3))
    for number in held[::3]:
        talk.say(b'delete %d' % number)
    wanted = set(range(1, 61)) - (set(held) - set(held[3::4])) - set(held[::3])
    found = []
    while (answer := talk.say(b'reserve-with-timeout 0')) != b'TIMED_OUT\r\n':
        found.append(int(answer.split()[1]))
    assert found == sorted(wanted, key=lambda number: ((number - 1) % 3, number))


def test_jobs_of_python_are_lent_as_everywhere(desk, talk):
    """They were put while no gateway had the file: their policy is asked, and results are kept."""
    talk.put(b'0')
    desk.store.begin()
    queue = desk.store.queues['default']
    job = queue.put(Message(b'python'), retry_policy_factory=RetryPolicy(1, on_exhausted='hold'))
    other = queue.put(Message(b'waits'), depends_on=job)
    desk.store.manager.commit()
    desk.store.close()
    second = support.Desk(desk.db, source=desk.time, own=True)
    talk = second.client()
    assert talk.say(b'reserve').endswith(b'0\r\n')
    number = int(talk.say(b'reserve').split()[1])
    assert b'state: reserved\n' in talk.say(b'stats-job %d' % number)
    assert talk.say(b'reserve-with-timeout 0') == b'TIMED_OUT\r\n'
    assert talk.say(b'bury %d 3' % number) == BURIED
    assert talk.say(b'kick 1') == b'KICKED 1\r\n'
    assert talk.say(b'reserve').endswith(b'python\r\n')
    assert talk.say(b'release %d 3 0' % number) == RELEASED
    assert talk.say(b'reserve').endswith(b'python\r\n')
    assert talk.say(b'delete %d' % number) == DELETED
    assert talk.say(b'reserve').endswith(b'waits\r\n')
    second.store.begin()
    found = second.store.connection.get(job._p_oid)
    assert (found.status, found.outcome) == ('completed', 'success')
    assert second.store.connection.get(other._p_oid).status == 'active'
    second.check()
    second.store.close()


def test_jobs_of_python_are_taken_by_their_numbers(desk, talk):
    desk.store.begin()
    queue = desk.store.tube('default', make=True)
    for body in (b'a', b'b', b'c', b'd'):
        queue.put(Message(body))
    desk.store.manager.commit()
    desk.store.close()
    second = support.Desk(desk.db, source=desk.time, own=True)
    talk = second.client()
    number = int(talk.say(b'reserve').split()[1])
    assert talk.say(b'release %d 0 0' % number) == RELEASED
    found = []
    for _ in range(3):
        found.append(int(talk.say(b'peek-ready').split()[1]))
        assert talk.say(b'reserve-job %d' % found[-1]).startswith(b'RESERVED')
    assert talk.say(b'reserve').endswith(b'd\r\n')
    assert talk.say(b'reserve-with-timeout 0') == b'TIMED_OUT\r\n'
    facts = talk.facts(b'stats-tube default')
    assert (facts['current-jobs-ready'], facts['current-jobs-reserved']) == ('0', '4')
    assert talk.say(b'delete %d' % found[1]) == DELETED
    assert talk.say(b'bury %d 0' % found[2]) == BURIED
    facts = talk.facts(b'stats-tube default')
    assert (facts['current-jobs-buried'], facts['current-jobs-reserved']) == ('1', '2')
    second.check()
    second.store.close()


def test_a_queue_with_quotas_is_served_as_everywhere(desk, talk):
    desk.store.begin()
    queue = desk.store.tube('default', make=True)
    queue.quotas.create('one')
    for body in (b'1', b'2'):
        queue.put(Message(body), quota_names=('one',))
    desk.store.manager.commit()
    desk.store.close()
    second = support.Desk(desk.db, source=desk.time, own=True)
    talk = second.client()
    first = talk.say(b'reserve')
    assert first.endswith(b'1\r\n')
    assert talk.say(b'reserve-with-timeout 0') == b'TIMED_OUT\r\n'
    assert talk.say(b'delete ' + first.split()[1]) == DELETED
    assert talk.say(b'reserve-with-timeout 0').endswith(b'2\r\n')
    second.check()
    second.store.close()


def test_tubes_that_hold_nothing_and_nobody_uses_leave_the_database(desk, talk):
    other = desk.client()
    for name in (b'a', b'b', b'c', b'd'):
        talk.say(b'use ' + name)
        talk.put(b'x')
    other.say(b'watch c')
    talk.say(b'pause-tube d 100')
    talk.say(b'use default')
    for number in (1, 3, 4):
        assert talk.say(b'delete %d' % number) == DELETED
    desk.gateway.sweep()
    desk.settle()
    assert desk.store.tube_names() == ['b', 'c']  # one has a job, one is watched
    talk.say(b'use a')
    assert talk.put(b'again') == 5
    assert talk.say(b'list-tubes').split(b'\n')[2:-2] == [b'- default', b'- c', b'- b', b'- a']
    assert other.say(b'delete 2', b'delete 5') == DELETED * 2
    desk.gateway.sweep()
    desk.settle()
    assert desk.store.tube_names() == ['a', 'c']


def test_a_tube_that_was_set_up_stays(desk, talk):
    for name in ('a', 'b'):
        talk.say(b'use %s' % name.encode())
        talk.say(b'delete %d' % talk.put(b'x'))
    talk.say(b'use default')
    desk.store.begin()
    desk.store.queues['a'].capacity = 5
    desk.store.manager.commit()
    desk.gateway.sweep()
    desk.settle()
    assert desk.store.tube_names() == ['a']
