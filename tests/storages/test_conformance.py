"""What every storage owes to whoever puts jobs: one suite, run on each of them.

The test is one client of the database; dispatchers belong to other clients,
with real threads, real time and a reactor of their own.  A dispatcher polls
every 30 seconds, so whatever happens within `SOON_SECONDS` was told to it by a
commit that rang.  A FileStorage has one client only, whose connections then
play the parts of the others.
"""

import contextlib
import datetime
import threading
import uuid

import pytest
import transaction
import zope.event
from BTrees.LOBTree import LOBTree
from persistent.mapping import PersistentMapping
from ZODB.POSException import ConflictError
from zope.component import globalregistry

from zodbjobs import Job, Queue, Queues, clock, configure, local, parallel, serial, subscribers
from zodbjobs.interfaces import (
    ACTIVE,
    COMPLETED,
    HELD,
    KEY,
    NEW,
    PENDING,
    CancelledError,
    DatabaseOpened,
    DependencyError,
    DuplicateJobError,
)
from zodbjobs.runtime import dispatcher as dispatchers
from zodbjobs.runtime import storages, wakeup
from zodbjobs.testing import tear_down_dispatcher, wait_for_result, wait_for_start
from zodbjobs.testing.waiting import wait_until

POLL_SECONDS = 30

#: Generous for a busy machine, and far from a poll.
SOON_SECONDS = 2

#: What takes longer than this will not happen any more.
PATIENCE_SECONDS = 10


class Client:
    """Somebody with a connection of his own; a ``with`` block is a transaction of his.

    The block gets the queue; an exception in it aborts.
    """

    def __init__(self, db):
        self.db = db
        self.manager = transaction.TransactionManager(explicit=True)
        self.connection = db.open(self.manager)

    @property
    def root(self):
        return self.connection.root()

    @property
    def queue(self):
        return self.root[KEY]['']

    def begin(self):
        """See what was committed until now."""
        self.abort()
        self.manager.begin()
        return self.queue

    def abort(self):
        with contextlib.suppress(transaction.interfaces.NoTransaction):
            self.manager.abort()

    def __enter__(self):
        return self.begin()

    def __exit__(self, kind, error, traceback):
        if kind is None:
            self.manager.commit()
        else:
            self.abort()

    def until(self, look, seconds=SOON_SECONDS):
        """Fail unless look() comes true soon; each time with fresh eyes."""

        def looked():
            self.begin()
            return look()

        assert wait_until(looked, seconds), f'not within {seconds} seconds'

    def close(self):
        self.abort()
        self.connection.close()


class Site:
    """The clients of one database, and the dispatchers that serve it."""

    def __init__(self, place):
        self.place = place
        self._closing = contextlib.ExitStack()
        with place.db.transaction() as connection:
            queues = connection.root()[KEY] = Queues()
            queues[''] = Queue()

    def client(self):
        """Another client (of a file: another connection)."""
        db = self.place.open()
        self._closing.callback(wakeup.hang_up, db)
        return self.connect(db)

    def connect(self, db):
        """Another connection of one client."""
        client = Client(db)
        self._closing.callback(client.close)
        return client

    def serve(self, size=3, grace=PATIENCE_SECONDS):
        """A dispatcher of another client, with an agent, that has polled and listens."""
        db = self.place.open()
        self._closing.callback(wakeup.hang_up, db)
        opened = DatabaseOpened(db)
        name = uuid.uuid4()
        with contextlib.closing(Client(db)) as client, client as queue:
            record = queue.dispatchers.register(name)
            subscribers.AgentInstaller(size=size)(RecordAdded(record))
        install = subscribers.ThreadedDispatcherInstaller(
            POLL_SECONDS, uuid=name, grace=grace, signals=False
        )
        dispatcher = install(opened)
        self._closing.callback(dispatchers.pop, name)
        self._closing.callback(tear_down, dispatcher)
        assert wait_until(lambda: listens(dispatcher), PATIENCE_SECONDS)
        return dispatcher

    def close(self):
        self._closing.close()


class RecordAdded:
    """What an AgentInstaller hears; before the activation here, so that the first poll sees it."""

    def __init__(self, record):
        self.object = record


def listens(dispatcher):
    """Whether it has made its first poll, and hears other clients (where they ring)."""
    listener = dispatcher._listener
    if listener is None or not dispatcher.polls:
        return False
    return listener.pushes or storages.kind(dispatcher.db) == storages.EXCLUSIVE


def tear_down(dispatcher):
    """Stop it if that was not done, and wait for its workers, who close connections."""
    pools = [pool for agents in dispatcher.queues.values() for pool in agents.values()]
    if dispatcher.activated is not False:
        tear_down_dispatcher(dispatcher, PATIENCE_SECONDS)
    for gate in _gates.values():
        gate.set()
    for pool in pools:
        for thread in pool.threads:
            thread.join(PATIENCE_SECONDS)


@pytest.fixture
def site(storage):
    with contextlib.closing(Site(storage)) as site:
        yield site


@pytest.fixture(autouse=True)
def gates():
    """Events by name, on which jobs wait."""
    _gates.clear()


_gates = {}
_gates_guard = threading.Lock()


def gate(name):
    with _gates_guard:
        return _gates.setdefault(name, threading.Event())


# Work.


def double(number):
    return 2 * number


def fail():
    raise ZeroDivisionError('not by nothing')


def write(mapping, name, value):
    mapping[name] = value
    return name


def wait_at(name, value=None):
    """Say that we are here, and wait until the gate opens."""
    gate(f'at {name}').set()
    assert gate(name).wait(PATIENCE_SECONDS)
    return value


def results(*jobs):
    return [job.result for job in jobs]


def keep(mapping, name, result):
    mapping[name] = result.type.__name__ if hasattr(result, 'type') else result


def arrive(name):
    """A gate at which `wait_at(name)` says that it has come; wait for it."""
    assert gate(f'at {name}').wait(SOON_SECONDS)


# From a put to a result.


def test_a_job_of_another_client_starts_at_its_commit(site):
    site.serve()
    client = site.client()
    with client as queue:
        job = queue.put(Job(double, 21))
        put = clock.now()
    assert wait_for_result(job) == 42
    assert job.outcome == 'success'
    assert job.active_start - put < datetime.timedelta(seconds=SOON_SECONDS)


def test_a_dispatcher_started_by_configuration_hears_as_well(site):
    client = site.client()
    db = site.place.open()
    heard = list(zope.event.subscribers)
    try:
        dispatcher = configure.start(db, poll_interval=POLL_SECONDS, grace=PATIENCE_SECONDS)
        subscribers.restore_signal_handlers(dispatcher)
        assert wait_until(lambda: listens(dispatcher), PATIENCE_SECONDS)
        with client as queue:
            job = queue.put(Job(double, 21))
        assert wait_for_result(job, SOON_SECONDS) == 42
    finally:
        tear_down(dispatcher)
        dispatchers.pop(dispatcher.UUID)
        wakeup.hang_up(db)
        zope.event.subscribers[:] = heard
        globalregistry.base.__init__('base')


def test_an_aborted_put_never_was(site):
    site.serve()
    client = site.client()
    client.begin().put(Job(wait_at, 'ghost'))
    client.abort()
    with client as queue:
        fence = queue.put(Job(double, 21))
    assert wait_for_result(fence, SOON_SECONDS) == 42
    assert not gate('at ghost').is_set()


def test_the_work_and_its_result_are_one_commit(site):
    """Whoever sees the result sees the work, and the other way round."""
    site.serve()
    client = site.client()
    with client:
        mapping = client.root['work'] = PersistentMapping()
    with client as queue:
        job = queue.put(Job(write, mapping, 'stone', 7))
    seen = set()

    def look():
        seen.add((mapping.get('stone'), job.status == COMPLETED))
        return job.status == COMPLETED

    client.until(look)
    assert seen <= {(None, False), (7, True)} and (7, True) in seen
    assert job.result == 'stone'


def test_a_result_may_be_an_object_of_the_database(site):
    site.serve()
    client = site.client()
    with client as queue:
        job = queue.put(Job(PersistentMapping, {'stone': 7}))
    found = wait_for_result(job, SOON_SECONDS)
    assert found['stone'] == 7 and found._p_jar is client.connection


def test_a_failure_is_the_result(site):
    site.serve()
    client = site.client()
    with client as queue:
        job = queue.put(fail)
    failure = wait_for_result(job, SOON_SECONDS)
    assert job.outcome == 'failure'
    assert failure.check(ZeroDivisionError) and 'not by nothing' in failure.getErrorMessage()
    assert 'in fail' in failure.getTraceback()


def test_callbacks_follow_at_once(site):
    site.serve()
    client = site.client()
    with client:
        told = client.root['told'] = PersistentMapping()
    with client as queue:
        good, bad = queue.put(Job(double, 21)), queue.put(fail)
        for name, job in (('good', good), ('bad', bad)):
            job.addCallback(Job(keep, told, name))
            job.addCallbacks(
                success=Job(keep, told, f'{name}: success'),
                failure=Job(keep, told, f'{name}: failure'),
            )
    wait_for_result(good, SOON_SECONDS)
    wait_for_result(bad, SOON_SECONDS)
    assert dict(told) == {
        'good': 42,
        'good: success': 42,
        'bad': 'ZeroDivisionError',
        'bad: failure': 'ZeroDivisionError',
    }


def test_a_callback_of_a_finished_job_starts_at_its_commit(site):
    site.serve()
    client = site.client()
    with client as queue:
        job = queue.put(Job(double, 21))
    wait_for_result(job, SOON_SECONDS)
    with client:
        callback = job.addCallback(double)
    assert wait_for_result(callback, SOON_SECONDS) == 84


# Jobs of jobs.


def test_parallel_parts_run_side_by_side(site):
    """They meet, so none of them waits for another's end."""
    site.serve(size=4)
    site.serve(size=4)
    client = site.client()
    with client as queue:
        parts = [Job(wait_at, f'part {n}', n) for n in range(4)]
        job = queue.put(parallel(*parts, postprocess=results))
    for n in range(4):
        arrive(f'part {n}')
    for n in range(4):
        gate(f'part {n}').set()
    # All end in one moment, so they conflict with each other; with locked rows that takes time.
    assert wait_for_result(job, PATIENCE_SECONDS) == [0, 1, 2, 3]


def test_serial_parts_run_one_after_the_other(site):
    site.serve()
    client = site.client()
    with client as queue:
        job = queue.put(serial(Job(double, 1), fail, Job(double, 3), postprocess=results))
    first, second, third = wait_for_result(job, SOON_SECONDS)
    assert (first, third) == (2, 6) and second.check(ZeroDivisionError)
    starts = [part.active_start for part in job.args]
    assert starts == sorted(starts)


def test_a_job_that_returns_a_job_has_its_result(site):
    site.serve(size=1)
    client = site.client()
    with client as queue:
        job = queue.put(Job(Job, double, 21))
    assert wait_for_result(job, SOON_SECONDS) == 42


def test_a_job_waits_for_those_that_it_depends_on(site):
    site.serve()
    client = site.client()
    with client as queue:
        first = queue.put(Job(wait_at, 'first', 1))
        second = queue.put(Job(double, 2), depends_on=[first])
        third = queue.put(Job(double, 3), after=[second])
    arrive('first')
    client.begin()
    assert (second.status, third.status) == (PENDING, PENDING)
    gate('first').set()
    assert wait_for_result(third, SOON_SECONDS) == 6
    assert first.active_end <= second.active_start and second.active_end <= third.active_start


def test_a_dependency_that_failed_takes_its_dependents_along(site):
    site.serve()
    client = site.client()
    with client as queue:
        first = queue.put(fail)
        second = queue.put(Job(double, 2), depends_on=[first])
        third = queue.put(Job(double, 3), depends_on=[second])
    assert wait_for_result(third, SOON_SECONDS).check(DependencyError)
    assert second.result.check(DependencyError)


def test_who_depends_on_a_job_of_jobs_starts_when_that_has_finished(site):
    site.serve()
    client = site.client()
    with client as queue:
        first = queue.put(parallel(Job(double, 1), Job(wait_at, 'last part', 2)))
        second = queue.put(Job(double, 2), depends_on=[first])
    arrive('last part')
    client.until(lambda: len(client.queue.waiters) == 1)
    gate('last part').set()
    assert wait_for_result(second, SOON_SECONDS) == 4


def test_who_depends_on_a_job_that_is_taken_out_is_told_at_once(site):
    site.serve()
    client = site.client()
    with client as queue:
        first = queue.put(Job(double, 1), delay=3600)
        second = queue.put(Job(double, 2), depends_on=[first])
    client.until(lambda: len(client.queue.waiters) == 1)
    with client as queue:
        queue.remove(first)
    assert wait_for_result(second, SOON_SECONDS).check(DependencyError)


# Limits.


def test_a_quota_holds_over_all_dispatchers(site):
    """Of six jobs with a quota of two, two meet, and a third one is never there."""
    site.serve()
    site.serve()
    client = site.client()
    with client as queue:
        queue.quotas.create('two', 2)
    present = _peak = Peak(2)
    _peaks['two'] = present
    with client as queue:
        jobs = [queue.put(Job(meet, 'two'), quota_names=['two']) for _ in range(6)]
    for job in jobs:
        assert wait_for_result(job, PATIENCE_SECONDS) is True
    assert _peak.most == 2


class Peak:
    """Counts who is in at a time; those who come leave in parties of `size`."""

    def __init__(self, size):
        self.most = self._count = 0
        self._guard = threading.Lock()
        self._party = threading.Barrier(size)

    def meet(self):
        with self._guard:
            self._count += 1
            self.most = max(self.most, self._count)
        try:
            self._party.wait(PATIENCE_SECONDS)
        finally:
            with self._guard:
                self._count -= 1


_peaks = {}


def meet(name):
    _peaks[name].meet()
    return True


def test_a_quota_of_one_keeps_the_order(site):
    site.serve()
    site.serve()
    client = site.client()
    with client as queue:
        queue.quotas.create('one', 1)
    with client as queue:
        jobs = [queue.put(Job(double, n), quota_names=['one']) for n in range(8)]
    for job in jobs:
        wait_for_result(job, PATIENCE_SECONDS)
    times = [moment for job in jobs for moment in (job.active_start, job.active_end)]
    assert times == sorted(times)


# Time.


def test_a_scheduled_job_starts_when_it_is_due(site):
    site.serve()
    client = site.client()
    with client as queue:
        job = queue.put(Job(double, 21), delay=0.2)
    assert wait_for_result(job, SOON_SECONDS) == 42
    late = job.active_start - job.begin_after
    assert datetime.timedelta(0) <= late < datetime.timedelta(seconds=SOON_SECONDS)


def test_an_earlier_date_takes_effect_at_once(site):
    site.serve()
    client = site.client()
    with client as queue:
        job = queue.put(Job(double, 21), delay=3600)
    client.until(lambda: client.queue.stats()['later'] == 1)
    with client:
        job.begin_after = clock.now()
    assert wait_for_result(job, SOON_SECONDS) == 42


# Wishes of the application.


def test_a_held_job_waits_until_it_is_resumed(site):
    client = site.client()
    with client as queue:
        job = queue.put(Job(wait_at, 'held', 7))
    with client:
        job.hold('not now')
    site.serve()
    with client as queue:
        fence = queue.put(Job(double, 21))
    assert wait_for_result(fence, SOON_SECONDS) == 42
    assert job.status == HELD and job.hold_reason == 'not now'
    assert not gate('at held').is_set()
    gate('held').set()
    with client:
        job.resume()
    assert wait_for_result(job, SOON_SECONDS) == 7


def test_a_cancelled_job_never_starts_and_tells_its_callbacks(site):
    site.serve()
    client = site.client()
    with client:
        told = client.root['told'] = PersistentMapping()
    with client as queue:
        job = queue.put(Job(wait_at, 'cancelled'), delay=3600)
        callback = job.addCallback(Job(keep, told, 'end'))
    client.until(lambda: client.queue.stats()['later'] == 1)
    with client:
        job.cancel()
    assert job.result.check(CancelledError)
    wait_for_result(callback, SOON_SECONDS)
    assert told['end'] == 'CancelledError'
    wait_for_result(job, SOON_SECONDS)
    assert job.outcome == 'cancelled' and not gate('at cancelled').is_set()


def test_a_running_job_that_is_cancelled_leaves_no_trace(site):
    site.serve()
    client = site.client()
    with client:
        mapping = client.root['work'] = PersistentMapping()
    with client as queue:
        job = queue.put(Job(write_slowly, mapping))
    arrive('slow')
    client.begin()
    assert job.status == ACTIVE
    with client:
        job.cancel()
    gate('slow').set()
    assert wait_for_result(job, SOON_SECONDS).check(CancelledError)
    assert job.outcome == 'cancelled' and not mapping


def write_slowly(mapping):
    mapping['stone'] = 7
    wait_at('slow')


def test_a_failure_is_run_again_when_that_is_asked(site):
    site.serve()
    client = site.client()
    with client:
        mapping = client.root['work'] = PersistentMapping()
    with client as queue:
        job = queue.put(Job(read, mapping, 'stone'))
    assert wait_for_result(job, SOON_SECONDS).check(KeyError)
    with client:
        mapping['stone'] = 7
        job.retry()
    assert wait_for_result(job, SOON_SECONDS) == 7


def read(mapping, name):
    return mapping[name]


def test_a_job_that_was_taken_out_never_starts(site):
    client = site.client()
    with client as queue:
        jobs = [queue.put(Job(wait_at, f'out {n}')) for n in range(2)]
    with client as queue:
        queue.remove(jobs[0])
        assert queue.pull() is jobs[1]
    site.serve()
    with client as queue:
        fence = queue.put(Job(double, 21))
    assert wait_for_result(fence, SOON_SECONDS) == 42
    assert [job.status for job in jobs] == [NEW, NEW]
    assert not any(gate(f'at out {n}').is_set() for n in range(2))


def test_a_pause_ends_at_once(site):
    site.serve()
    client = site.client()
    with client as queue:
        queue.pause()
        job = queue.put(Job(double, 21))
    client.begin()
    assert job.status == PENDING
    with client as queue:
        queue.unpause()
    assert wait_for_result(job, SOON_SECONDS) == 42


def test_an_id_is_taken_while_its_job_is_unfinished(site):
    """Of two clients that take it in the same moment, one is sent back, and then told."""
    one, other = site.client(), site.client()
    first, second = one.begin(), other.begin()
    job = first.put(Job(double, 1), id='stone')
    second.put(Job(double, 2), id='stone')
    one.manager.commit()
    with pytest.raises(ConflictError):
        other.manager.commit()
    queue = other.begin()
    with pytest.raises(DuplicateJobError):
        queue.put(Job(double, 2), id='stone')
    kept = queue.put(Job(double, 2), id='stone', on_conflict='keep')
    assert kept.oid == job.oid
    other.abort()
    site.serve()
    wait_for_result(job, PATIENCE_SECONDS)
    again = retried(other, put_stone)
    assert wait_for_result(again, SOON_SECONDS) == 6


def put_stone(queue):
    return queue.put(Job(double, 3), id='stone')


def retried(client, deed):
    """Do `deed` (called with the queue) as an application does: after a conflict, again.

    Who names an id may meet the dispatcher that frees it.
    """
    for _ in range(3):
        try:
            with client as queue:
                return deed(queue)
        except ConflictError as error:
            last = error
    raise last


# Seen from elsewhere, while it runs.


def test_live_annotations_cross_clients(site):
    site.serve()
    client = site.client()
    with client as queue:
        job = queue.put(converse)
    client.until(lambda: job.annotations.get('question') == 'how many?')
    assert job.status == ACTIVE
    client.until(lambda: job.progress is not None)
    assert job.progress == {'done': 1, 'total': 3, 'message': 'asking'}
    with client:
        job.annotations['answer'] = 42
    assert wait_for_result(job, SOON_SECONDS) == 42
    assert job.conflicts == 0


def converse():
    local.progress(1, 3, 'asking')
    local.setLiveAnnotation('question', 'how many?')
    return local.getLiveAnnotation('answer', timeout=PATIENCE_SECONDS, poll=0.05)


# Several dispatchers.


def test_two_dispatchers_share_the_work(site):
    """200 jobs, each done once: in its own counter, and in a list of who ran."""
    count = 200
    client = site.client()
    with client:
        client.root['counts'] = PersistentMapping()
        for n in range(count):
            client.root['counts'][n] = LOBTree()
    _ran.clear()
    names = {site.serve(size=1).UUID for _ in range(2)}
    with client as queue:
        counts = client.root['counts']
        jobs = [queue.put(Job(count_up, counts[n], n)) for n in range(count)]
    client.until(lambda: all(job.status == COMPLETED for job in jobs), PATIENCE_SECONDS)
    assert [job.result for job in jobs] == list(range(count))
    assert [dict(counts[n]) for n in range(count)] == [{n: 1} for n in range(count)]
    assert {name for _, name in _ran} == names
    assert sorted(n for n, _ in _ran) == list(range(count))


_ran = []


def count_up(counter, n):
    """The first job of one dispatcher waits for the first one of the other."""
    name = local.getDispatcher().UUID
    _ran.append((n, name))
    if len({name for _, name in _ran}) == 2:
        gate('both').set()
    assert gate('both').wait(PATIENCE_SECONDS)
    counter[n] = counter.get(n, 0) + 1
    return n


@pytest.mark.parametrize('storage', ['file'], indirect=True)
def test_what_was_claimed_ahead_of_a_long_job_goes_elsewhere(site):
    """Short jobs are claimed ahead; when one of them turns out long, idle dispatchers help."""
    site.serve(size=1)
    client = site.client()
    with client as queue:
        short = [queue.put(Job(double, n)) for n in range(5)]
    for job in short:
        wait_for_result(job, PATIENCE_SECONDS)
    with client as queue:
        jobs = [queue.put(Job(wait_at, f'long {n}')) for n in range(3)]
    arrive('long 0')
    site.serve(size=2)
    arrive('long 1')
    arrive('long 2')
    for n in range(3):
        gate(f'long {n}').set()
    for job in jobs:
        wait_for_result(job, SOON_SECONDS)


@pytest.fixture
def hurry(monkeypatch):
    """Who stops does not wait long for threads that will not end."""
    monkeypatch.setattr(dispatchers, 'THREADS_END_SECONDS', 0.05)


def test_a_stop_hands_back_what_will_not_end(site, hurry):
    """The job that is given back runs elsewhere, and he who held it can write no more."""
    stopping = site.serve(size=1, grace=0.05)
    client = site.client()
    with client:
        mapping = client.root['work'] = PersistentMapping()
    with client as queue:
        job = queue.put(Job(sign, mapping))
        waiting = queue.put(Job(double, 21))
    arrive('sign')
    client.begin()
    assert job.status == ACTIVE
    assert subscribers.stop(stopping)
    client.begin()
    assert (job.status, job.attempts, job.interruptions) == (PENDING, 0, 0)
    assert waiting.status == PENDING
    staying = site.serve(size=2)
    assert wait_until(staying.getActiveJobIds, SOON_SECONDS)
    gate('sign').set()
    assert wait_for_result(waiting, SOON_SECONDS) == 42
    assert wait_for_result(job, SOON_SECONDS) == str(staying.UUID)
    assert dict(mapping) == {str(staying.UUID): 1}


def sign(mapping):
    name = str(local.getDispatcher().UUID)
    mapping[name] = mapping.get(name, 0) + 1
    wait_at('sign')
    return name


def test_what_a_stop_hands_back_starts_elsewhere_at_once(site, hurry):
    """The other dispatcher is idle, and does not wait for its poll."""
    stopping = site.serve(size=1, grace=0.05)
    client = site.client()
    with client as queue:
        job = queue.put(Job(wait_at, 'stop', 7))
    arrive('stop')
    staying = site.serve()
    subscribers.stop(stopping)
    assert wait_until(staying.getActiveJobIds, SOON_SECONDS)
    gate('stop').set()
    assert wait_for_result(job, SOON_SECONDS) == 7


def test_a_stop_waits_for_what_runs(site):
    stopping = site.serve()
    client = site.client()
    with client as queue:
        job = queue.put(Job(wait_at, 'end', 7))
    arrive('end')
    ending = threading.Thread(target=subscribers.stop, args=(stopping,))
    ending.start()
    assert wait_until(lambda: stopping.activated is None, SOON_SECONDS)
    with client as queue:
        late = queue.put(Job(double, 21))
    gate('end').set()
    ending.join(PATIENCE_SECONDS)
    assert stopping.activated is False
    client.begin()
    assert (job.status, job.result) == (COMPLETED, 7)
    assert late.status == PENDING
    site.serve()
    assert wait_for_result(late, SOON_SECONDS) == 42


def test_started_is_seen_by_another_client(site):
    site.serve()
    client = site.client()
    with client as queue:
        job = queue.put(Job(wait_at, 'seen'))
    wait_for_start(job, SOON_SECONDS)
    assert job.agent.name == 'main' and job in list(job.agent)
    gate('seen').set()
    wait_for_result(job, SOON_SECONDS)
