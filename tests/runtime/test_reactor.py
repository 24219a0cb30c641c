"""What a test may expect of the virtual reactor and of the functions that wait.

The stand-ins here do what a dispatcher and its jobs do, with real threads and a
real database, and nothing more.
"""

import datetime
import io
import logging
import threading
import uuid

import pytest
import pytz
import transaction
import ZODB
from persistent import Persistent
from persistent.list import PersistentList
from twisted.internet import threads
from twisted.internet.defer import Deferred
from twisted.internet.error import (
    ReactorAlreadyRunning,
    ReactorNotRestartable,
    ReactorNotRunning,
)
from twisted.python.failure import Failure

from zodbjobs import clock
from zodbjobs.runtime.statistics import PollsLog
from zodbjobs.status import ACTIVE, COMPLETED, PENDING
from zodbjobs.testing import waiting
from zodbjobs.testing.reactor import (
    BEGINNING,
    BREATH_SECONDS,
    CALLS_AT_ONCE,
    TICK_SECONDS,
    Reactor,
    _Patience,
    current,
    set_now,
)

machine = clock.SystemTime()


def after(seconds):
    return BEGINNING + datetime.timedelta(seconds=seconds)


@pytest.fixture
def reactor():
    with Reactor() as reactor:
        yield reactor


@pytest.fixture
def root():
    db = ZODB.DB(None)
    connection = db.open()
    connection.root()['errands'] = PersistentList()
    transaction.commit()
    yield connection.root()
    transaction.abort()
    connection.close()
    db.close()


class Errand(Persistent):
    """As much of a job as the reactor and those who wait look at."""

    status = PENDING
    result = queue = None

    def __init__(self, call, begin_after=None):
        self.call = call
        self.begin_after = begin_after
        self.annotations = {}


class Record(Persistent):
    """As much of a dispatcher's stored record."""

    UUID = 'u'
    dead = False


class Crew:
    """As much of a dispatcher: polls, and runs each errand in a thread."""

    UUID = uuid.UUID(int=1)
    thread = None

    def __init__(self, reactor, root, poll_interval=5):
        self.reactor = reactor
        self.db = root._p_jar.db()
        self.poll_interval = poll_interval
        self.polls = PollsLog()
        self.queues = {}
        self.threads = []
        self.running = {}  # oid -> the call
        self.activated = False

    def activate(self):
        self.activated = clock.now()
        self.reactor.watch(self)
        self.reactor.addSystemEventTrigger('before', 'shutdown', self.stop)
        self.reactor.callWhenRunning(self.poll)

    def deactivate(self):
        self.activated = False

    def stop(self):
        self.activated = None
        stopped = Deferred()
        self.reactor.callLater(3, self.stopped, stopped)
        return stopped

    def stopped(self, deferred):
        self.activated = False
        deferred.callback(None)

    def is_quiet(self):
        return not self.running

    def getActiveJobIds(self):
        return [(int.from_bytes(oid, 'big'), 'unnamed') for oid in self.running]

    def getJobInfo(self, oid, database_name):
        return {'call': self.running[oid.to_bytes(8, 'big')]}

    def poll(self):
        if not self.activated:
            return
        self.polls.add(self.polls.begin())
        self.reactor.callLater(self.poll_interval, self.poll)
        claimed = {}
        with self.db.transaction() as connection:
            for errand in connection.root()['errands']:
                due = errand.begin_after is None or errand.begin_after <= clock.now()
                if errand.status == PENDING and due:
                    errand.status = ACTIVE
                    claimed[errand._p_oid] = errand.call
        self.running.update(claimed)
        for oid in claimed:
            self.threads.append(threading.Thread(target=self.run, args=(oid,), daemon=True))
            self.threads[-1].start()

    def run(self, oid):
        with self.db.transaction() as connection:
            errand = connection.get(oid)
            errand.result = errand.call()
            errand.status = COMPLETED
        self.reactor.callFromThread(self.reported, oid)

    def reported(self, oid):
        del self.running[oid]


@pytest.fixture
def crew(reactor, root):
    crew = Crew(reactor, root)
    crew.activate()
    return crew


def put(root, call, begin_after=None):
    errand = Errand(call, begin_after)
    root['errands'].append(errand)
    transaction.commit()
    return errand


def answer():
    return 42


def block_briefly():
    return threading.Event().wait(0.4)


gate = threading.Event()


def wait_at_the_gate():
    return gate.wait(20)


@pytest.fixture
def closed_gate():
    gate.clear()
    yield gate
    gate.set()


# Time --------------------------------------------------------------------------------------


def test_time_is_virtual_from_start_to_stop():
    former = clock.use()
    clock.use(former)
    reactor = Reactor()
    reactor.start()
    assert clock.now() == BEGINNING
    assert clock.now().isoformat() == '2006-08-10T15:44:22.000211+00:00'
    assert current() is reactor
    reactor.time_flies(5)
    assert (clock.now(), clock.monotonic()) == (after(5), 5)
    reactor.stop()
    assert current() is None
    assert clock.use() is former


def test_time_may_begin_at_another_instant():
    reactor = Reactor()
    reactor.start(datetime.datetime(2026, 1, 2, 3, 4))
    assert clock.now() == datetime.datetime(2026, 1, 2, 3, 4, tzinfo=pytz.UTC)
    reactor.stop()


def test_time_stands_still_by_itself(reactor):
    assert {clock.micros() for _ in range(1000)} == {clock.micros_of(BEGINNING)}


def test_calls_come_in_order_each_at_its_own_time(reactor):
    seen = []

    def call(name):
        seen.append((name, clock.now()))

    reactor.callLater(7, call, 'late')
    reactor.callLater(2, call, 'early')
    reactor.callLater(2, call, 'early too')
    reactor.callLater(3, lambda: reactor.callLater(1.5, call, 'between'))
    assert reactor.time_flies(5) == 4
    assert seen == [('early', after(2)), ('early too', after(2)), ('between', after(4.5))]
    assert clock.now() == after(5)
    assert reactor.time_flies(datetime.timedelta(seconds=1)) == 0
    assert reactor.time_flies(1) == 1
    assert seen[-1] == ('late', after(7))


def test_cancelled_and_postponed_calls(reactor):
    seen = []
    cancelled, postponed = (
        reactor.callLater(1, seen.append, 1),
        reactor.callLater(2, seen.append, 2),
    )
    cancelled.cancel()
    postponed.reset(10)
    assert reactor.time_flies(9) == 0
    assert reactor.time_flies(1) == 1
    assert seen == [2]


def test_time_passes_runs_only_what_is_due_now(reactor):
    seen = []
    reactor.callLater(0, lambda: reactor.callLater(0, seen.append, 'next step'))
    reactor.callLater(1, seen.append, 'later')
    reactor.callFromThread(seen.append, 'from a thread')
    assert reactor.time_passes() is True
    assert seen == ['from a thread']
    assert reactor.time_passes() is True
    assert seen == ['from a thread', 'next step']
    assert reactor.time_passes() is False
    assert clock.now() == BEGINNING


def test_time_never_flies_backwards(reactor):
    with pytest.raises(ValueError, match='backwards'):
        reactor.time_flies(-1)


def test_many_small_steps_lose_no_microsecond(reactor):
    for _ in range(1000):
        reactor.time_flies(0.1)
    assert clock.now() == after(100)


def test_errors_of_calls_are_the_tests_errors(reactor):
    seen = []
    reactor.callLater(1, lambda: 1 / 0)
    reactor.callLater(1, seen.append, 'next')
    with pytest.raises(ZeroDivisionError):
        reactor.time_flies(1)
    reactor.time_passes()
    assert seen == ['next']


def test_a_call_that_puts_itself_again_without_delay_is_found(reactor):
    def again():
        reactor.callLater(0, again)

    again()
    with pytest.raises(RuntimeError, match=str(CALLS_AT_ONCE)):
        reactor.time_flies(1)


# set_now -----------------------------------------------------------------------------------


def test_setting_the_time_runs_nothing_by_itself(reactor):
    seen = []
    reactor.callLater(5, seen.append, 'due')
    set_now(datetime.datetime(2006, 8, 10, 15, 56))
    assert clock.now() == datetime.datetime(2006, 8, 10, 15, 56, tzinfo=pytz.UTC)
    assert seen == []
    assert reactor.time_passes() is True
    assert seen == ['due']
    assert reactor.time_passes() is False


def test_setting_the_time_back_runs_nothing_twice(reactor):
    seen = []
    reactor.callLater(5, seen.append, 'first')
    reactor.callLater(8, seen.append, 'second')
    reactor.time_flies(6)
    monotonic = clock.monotonic()
    reactor.set_now(BEGINNING)
    assert clock.now() == BEGINNING and clock.monotonic() == monotonic
    assert reactor.time_flies(1) == 0
    assert reactor.time_flies(1) == 1
    assert seen == ['first', 'second']
    assert clock.now() == after(2)


def test_setting_the_time_needs_a_started_reactor():
    with pytest.raises(ValueError, match='no virtual reactor'):
        set_now(BEGINNING)


# Starting and stopping ---------------------------------------------------------------------


def test_a_reactor_starts_once():
    reactor = Reactor()
    with pytest.raises(ReactorNotRunning):
        reactor.stop()
    reactor.start()
    with pytest.raises(ReactorAlreadyRunning):
        reactor.start()
    reactor.stop()
    with pytest.raises(ReactorNotRunning):
        reactor.crash()
    with pytest.raises(ReactorNotRestartable):
        reactor.start()


def test_reactors_may_be_stopped_in_any_order():
    former = clock.use()
    clock.use(former)
    first, second = Reactor(), Reactor()
    first.start()
    second.start(after(60))
    first.stop()
    assert clock.now() == after(60)
    second.stop()
    assert clock.use() is former


def test_startup_and_shutdown_come_in_their_phases():
    seen = []
    reactor = Reactor()
    for event in ('startup', 'shutdown'):
        for phase in ('after', 'during', 'before'):
            reactor.addSystemEventTrigger(phase, event, seen.append, f'{phase} {event}')
    reactor.callWhenRunning(seen.append, 'runs')
    removed = reactor.addSystemEventTrigger('before', 'shutdown', seen.append, 'never')
    reactor.removeSystemEventTrigger(removed)
    with pytest.raises(ValueError, match='phase'):
        reactor.addSystemEventTrigger('sometime', 'shutdown', seen.append)
    reactor.start()
    reactor.callWhenRunning(seen.append, 'runs already')
    assert reactor.time_flies(1) == 5
    reactor.stop()
    started = ['before startup', 'during startup', 'after startup', 'runs', 'runs already']
    assert seen == [*started, 'before shutdown', 'during shutdown', 'after shutdown']


def test_shutdown_waits_for_deferreds_in_virtual_and_in_real_time():
    reactor, seen = Reactor(), []
    reactor.start()
    virtual, real = Deferred(), Deferred()
    reactor.callLater(30, virtual.callback, None)
    reactor.addSystemEventTrigger('before', 'shutdown', lambda: virtual)
    reactor.addSystemEventTrigger('before', 'shutdown', lambda: real)
    reactor.addSystemEventTrigger('during', 'shutdown', lambda: seen.append((virtual, real)))
    released = threading.Event()

    def release():
        released.wait(20)
        reactor.callFromThread(real.callback, None)

    threading.Thread(target=release, daemon=True).start()
    reactor.callLater(20, released.set)
    reactor.stop()
    assert seen == [(virtual, real)] and virtual.called and real.called


def test_errors_at_shutdown_are_told_after_all_is_done():
    reactor, seen = Reactor(), []
    reactor.addSystemEventTrigger('before', 'shutdown', lambda: 1 / 0)
    reactor.addSystemEventTrigger('before', 'shutdown', seen.append, 'before')
    reactor.addSystemEventTrigger('after', 'shutdown', seen.append, 'after')
    reactor.start()
    with pytest.raises(ZeroDivisionError):
        reactor.stop()
    assert seen == ['before', 'after']
    assert not reactor.running and current() is None


def test_failed_deferred_at_shutdown():
    reactor, failed = Reactor(), Deferred()
    reactor.addSystemEventTrigger('before', 'shutdown', lambda: failed)
    reactor.start()
    reactor.callLater(1, failed.errback, Failure(KeyError('k')))
    with pytest.raises(KeyError):
        reactor.stop()


def test_run_serves_threads_until_it_is_stopped():
    reactor, seen, served = Reactor(), [], threading.Event()
    thread = threading.Thread(target=reactor.run)
    reactor.callWhenRunning(served.set)
    thread.start()
    assert served.wait(10)
    reactor.callFromThread(seen.append, threading.get_ident())
    reactor.callFromThread(reactor.stop)
    thread.join(10)
    assert not thread.is_alive() and seen == [threading.get_ident()]


# Threads -----------------------------------------------------------------------------------


def test_calls_from_threads_run_in_the_driving_thread(reactor):
    seen = []

    def work():
        for number in range(100):
            reactor.callFromThread(lambda n=number: seen.append((n, threading.get_ident())))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == []
    reactor.time_flies(0)
    assert seen == [(number, threading.get_ident()) for number in range(100)]


def test_settle_waits_for_calls_in_threads(reactor):
    seen = []

    def work():
        block_briefly()
        reactor.callFromThread(seen.append, threading.get_ident())

    reactor.callInThread(work)
    assert not reactor.is_quiet()
    assert reactor.settle() is True
    assert len(seen) == 1 and seen[0] != threading.get_ident()
    assert reactor.is_quiet()
    assert clock.now() == BEGINNING


def test_settle_returns_at_once_when_all_is_quiet(reactor):
    began = machine.monotonic()
    assert reactor.settle(30) is True
    assert reactor.settle(30, until=lambda: False) is False
    assert machine.monotonic() - began < 1


def test_settle_gives_up_on_a_call_that_blocks(reactor, closed_gate):
    reactor.callInThread(wait_at_the_gate)
    assert reactor.settle(0.05) is False
    assert reactor.settle(30, until=lambda: True) is True


def test_the_reactors_own_work_takes_no_time_of_the_threads(reactor):
    """However long a call blocks here, what it has started is given its moment all the same."""
    done = []

    def block():
        threading.Event().wait(1.5 * BREATH_SECONDS)
        reactor.callInThread(lambda: (threading.Event().wait(0.01), done.append('thread')))

    reactor.callLater(1, block)
    reactor.time_flies(2)
    assert done == ['thread']


class BusyMachine:
    """Each wait takes a second, or none at all."""

    def __init__(self, seconds):
        self.seconds, self.now, self.waits = seconds, 0, []

    def monotonic(self):
        return self.now

    def wait(self, seconds):
        self.now += self.seconds
        self.waits.append(seconds)


@pytest.mark.parametrize(('seconds', 'waits'), [(1, 10), (0, 100)], ids=['slow', 'interrupted'])
def test_patience_counts_what_was_to_be_waited(monkeypatch, seconds, waits):
    """A busy machine leaves threads as many moments; threads that ask without end get no more."""
    machine = BusyMachine(seconds)
    monkeypatch.setattr('zodbjobs.testing.reactor._machine', machine)
    patience = _Patience(10 * TICK_SECONDS)
    while patience.wait(machine.wait):
        assert len(machine.waits) < 1000
    assert len(machine.waits) in (waits, waits + 1)  # a rest of rounding


def test_deferred_of_a_thread(reactor):
    seen = []
    reactor.suggestThreadPoolSize(3)
    deferred = threads.deferToThreadPool(reactor, reactor.getThreadPool(), answer)
    deferred.addCallback(seen.append)
    reactor.settle()
    assert seen == [42]


def test_blocking_call_from_a_thread(reactor):
    seen = []
    reactor.callInThread(lambda: seen.append(threads.blockingCallFromThread(reactor, answer)))
    reactor.settle()
    assert seen == [42]


def test_errors_in_threads_do_not_stop_the_others(reactor):
    seen = []
    reactor.callInThread(lambda: 1 / 0)
    reactor.callInThread(seen.append, 1)
    assert reactor.settle() is True
    assert seen == [1]


# wait_for ----------------------------------------------------------------------------------


def test_wait_for_a_job(reactor, root, crew, capsys):
    errand = put(root, answer)
    assert reactor.wait_for(errand) is None
    assert errand.result == 42
    assert clock.now() == BEGINNING  # the first poll found it
    assert reactor.is_quiet()
    assert capsys.readouterr().out == ''


def test_wait_for_several_jobs(reactor, root, crew):
    reactor.time_passes()
    errands = [put(root, answer) for _ in range(5)]
    reactor.wait_for(*errands)
    assert {errand.result for errand in errands} == {42}
    assert clock.now() == after(5)


def test_wait_for_looks_so_many_times(reactor, root, crew, capsys):
    errand = put(root, answer, after(694))
    began = machine.monotonic()
    for time in (5, 10):
        reactor.wait_for(errand, attempts=2)
        assert capsys.readouterr().out == 'TIME OUT\n'
        assert clock.now() == after(time)
    set_now(after(694))
    reactor.wait_for(errand)
    assert capsys.readouterr().out == ''
    assert clock.now() >= errand.begin_after
    assert machine.monotonic() - began < 1


def test_a_job_that_takes_real_time_is_no_time_out(reactor, root, crew, capsys):
    errand = put(root, block_briefly)
    reactor.wait_for(errand, attempts=1)
    assert capsys.readouterr().out == ''
    assert errand.status == COMPLETED


def test_a_job_that_blocks_does_not_hold_up_others(reactor, root, crew, closed_gate, capsys):
    blocked = put(root, wait_at_the_gate)
    reactor.time_flies(0)
    quick = put(root, answer, after(3))
    reactor.wait_for(quick, attempts=2)
    assert quick.result == 42 and blocked.status == ACTIVE
    reactor.wait_for(blocked, attempts=1)
    assert capsys.readouterr().out == 'TIME OUT\n'
    closed_gate.set()
    reactor.wait_for(blocked, attempts=1)
    assert capsys.readouterr().out == ''


def test_retries_within_one_flight_come_at_their_own_times(reactor, root, crew):
    """Threads take no virtual time, as long as they are quick."""
    times = []

    def work():
        times.append(clock.now())
        if len(times) < 4:
            reactor.callFromThread(reactor.callLater, 5, reactor.callInThread, work)

    reactor.callInThread(work)
    reactor.time_flies(60)
    assert times == [after(seconds) for seconds in (0, 5, 10, 15)]


def test_after_a_flight_the_test_sees_what_was_committed(reactor, root, crew):
    errand = put(root, answer)
    assert errand.status == PENDING
    reactor.time_flies(1)
    assert errand.status == COMPLETED


def test_a_flight_loses_no_changes_of_the_test(reactor, root, crew):
    root['mine'] = 'changed'
    reactor.time_flies(10)
    while reactor.time_passes():
        pass
    transaction.commit()
    assert root['mine'] == 'changed'


def test_wait_for_wants_stored_jobs(reactor):
    with pytest.raises(ValueError, match='commit first'):
        reactor.wait_for(Errand(answer))


def test_wait_for_on_an_explicit_transaction_manager(reactor, root, crew):
    errand = put(root, answer)
    manager = transaction.TransactionManager(explicit=True)
    connection = root._p_jar.db().open(manager)
    with manager:
        seen = connection.get(errand._p_oid)
    for begin in (False, True):
        if begin:
            manager.begin()
        reactor.wait_for(seen)
        assert seen.result == 42
        manager.abort()
    connection.close()


def test_stop_ends_what_it_serves():
    reactor = Reactor()
    db = ZODB.DB(None)
    reactor.start()
    with db.transaction() as connection:
        connection.root()['errands'] = PersistentList()
    connection = db.open()
    crew = Crew(reactor, connection.root())
    crew.activate()
    reactor.time_flies(1)
    reactor.stop()
    waiting.wait_for_deactivation(crew)
    assert crew.activated is False
    connection.close()
    db.close()


@pytest.fixture
def impatient(monkeypatch):
    """Where a test waits in vain, it need not wait long for threads nobody told of."""
    monkeypatch.setattr('zodbjobs.testing.reactor.PATIENCE_SECONDS', 0.05)


# Those who wait, in virtual and in real time -----------------------------------------------


class RealReactor:
    """A reactor of real time, as little of it as is needed: it runs calls in a thread."""

    def __init__(self):
        self.inbox = []
        self.rings = threading.Condition()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while True:
            with self.rings:
                self.rings.wait_for(lambda: self.inbox)
                call, args = self.inbox.pop(0)
            if call is None:
                return
            call(*args)

    def callFromThread(self, call, *args):
        with self.rings:
            self.inbox.append((call, args))
            self.rings.notify()

    callWhenRunning = callFromThread

    def callLater(self, seconds, call, *args):
        timer = threading.Timer(seconds, self.callFromThread, (call, *args))
        timer.daemon = True
        timer.start()

    def watch(self, thing):
        self.watched = thing

    def addSystemEventTrigger(self, phase, event, call):
        self.call_at_shutdown = call

    def stop(self):
        self.watched.activated = False
        self.callFromThread(None)


@pytest.fixture(params=['virtual', 'real'])
def any_crew(request, root):
    """A Crew on a virtual reactor, and one that runs in a thread."""
    if request.param == 'virtual':
        with Reactor() as reactor:
            crew = Crew(reactor, root)
            crew.activate()
            yield crew
    else:
        reactor = RealReactor()
        crew = Crew(reactor, root, poll_interval=0.02)
        crew.thread = reactor.thread
        crew.activate()
        yield crew
        if reactor.thread.is_alive():
            waiting.tear_down_dispatcher(crew)


def test_waiting_for_a_result(root, any_crew):
    assert waiting.wait_for_result(put(root, answer)) == 42


def test_waiting_for_a_start(root, any_crew, closed_gate):
    errand = put(root, wait_at_the_gate)
    waiting.wait_for_start(errand)
    assert errand.status == ACTIVE
    closed_gate.set()
    waiting.wait_for_result(errand)
    waiting.wait_for_start(errand)  # it has


def test_waiting_for_an_annotation(root, any_crew):
    errand = put(root, answer)

    def annotate():
        with root._p_jar.db().transaction() as connection:
            found = connection.get(errand._p_oid)
            found.annotations = {'name': 'value'}

    any_crew.reactor.callLater(0.1, annotate)
    assert waiting.wait_for_annotation(errand, 'name') == 'value'


def test_waiting_in_vain_tells_how_things_stand(root, any_crew, impatient):
    errand = put(root, answer, datetime.datetime(2100, 1, 1, tzinfo=pytz.UTC))
    for wait in (
        waiting.wait_for_start,
        waiting.wait_for_result,
        lambda job, seconds: waiting.wait_for_annotation(job, 'name', seconds),
    ):
        with pytest.raises(AssertionError) as info:
            wait(errand, seconds=0.1)
        told = str(info.value)
        assert 'within 0.1 seconds: it is pending; it begins after 2100-01-01' in told
        assert told.endswith('it is in no queue')


def test_waiting_for_polls(any_crew, impatient):
    if isinstance(any_crew.reactor, Reactor):
        first = waiting.get_poll(any_crew)
        assert waiting.get_poll(any_crew).key > first.key
        assert clock.now() == after(5)
    poll = waiting.get_poll(any_crew, count=3, seconds=20)
    assert len(any_crew.polls) == 4 and poll is any_crew.polls.first()
    any_crew.deactivate()
    with pytest.raises(AssertionError, match='no poll! activated is False'):
        waiting.get_poll(any_crew, count=100, seconds=0.1)


def test_waiting_for_a_death(root, any_crew, impatient):
    root['record'] = record = Record()
    transaction.commit()
    with pytest.raises(AssertionError, match='dispatcher u was not found dead within 0.1'):
        waiting.wait_for_death(record, seconds=0.1)

    def bury():
        with root._p_jar.db().transaction() as connection:
            connection.root()['record'].dead = True

    any_crew.reactor.callLater(0.1, bury)
    waiting.wait_for_death(record)
    assert record.dead


def test_tearing_down(root, any_crew):
    waiting.wait_for_result(put(root, answer))
    waiting.tear_down_dispatcher(any_crew)
    assert any_crew.activated is False
    waiting.tear_down_dispatcher(any_crew)  # it is down


def test_tearing_down_gives_threads_time_to_end(any_crew):
    """Also those that run no job, and so are not waited for otherwise."""

    class Pool:
        threads = [threading.Thread(target=block_briefly, daemon=True)]

    Pool.threads[0].start()
    any_crew.queues = {'': {'main': Pool}}
    waiting.tear_down_dispatcher(any_crew)
    assert not Pool.threads[0].is_alive()


def test_tearing_down_names_the_job_that_will_not_stop(root, any_crew, closed_gate):
    errand = put(root, wait_at_the_gate)
    waiting.wait_for_start(errand)

    class Pool:
        threads = any_crew.threads

    any_crew.queues = {'': {'main': Pool}}
    with pytest.raises(waiting.TearDownDispatcherError, match='wait_at_the_gate'):
        waiting.tear_down_dispatcher(any_crew, seconds=0.1)
    closed_gate.set()
    waiting.tear_down_dispatcher(any_crew)


def test_dispatcher_that_does_not_stop(crew, impatient):
    crew.activated = None
    with pytest.raises(AssertionError, match='did not stop within 0.1 seconds: activated is None'):
        waiting.wait_for_deactivation(crew, seconds=0.1)


class Agents(dict):
    dead = False
    activated = None
    size = 3


class Queue(dict):
    name = 'images'

    def __len__(self):
        return 7


@pytest.mark.parametrize(
    'activated, dead, told',
    [
        (None, False, '(not activated)'),
        (None, True, '(dead)'),
        (BEGINNING, False, f'(since {BEGINNING})'),
    ],
)
def test_how_a_job_stands(activated, dead, told):
    agents, queue, errand = Agents(main=Agents(a=1, b=2)), Queue(), Errand(answer)
    agents.activated, agents.dead = activated, dead
    queue.dispatchers = {'u': agents}
    errand.queue = queue
    assert waiting.standing(errand) == (
        "it is pending; 7 jobs wait in queue 'images'; "
        f"dispatcher u {told}, agent 'main' has 2 of 3"
    )
    queue.dispatchers = {}
    assert waiting.standing(errand).endswith('no dispatcher is registered for it')
    del queue.dispatchers
    assert "AttributeError: 'Queue' object" in waiting.standing(errand)


# Logs --------------------------------------------------------------------------------------


def test_logs_are_printed(capsys):
    logger = logging.getLogger('zodbjobs.events')
    file = io.StringIO()
    try:
        waiting.print_logs()
        logger.error('not so bad')
        logger.critical('bad')
        assert capsys.readouterr().out == 'bad\n'
        waiting.print_logs(file, logging.INFO)
        logger.info('well')
        logger.debug('who cares')
        assert (file.getvalue(), capsys.readouterr().out) == ('well\n', '')
    finally:
        waiting.stop_printing_logs()
    logger.critical('unheard')
    assert file.getvalue() == 'well\n'
    assert logging.getLogger('zodbjobs').level == logging.NOTSET
