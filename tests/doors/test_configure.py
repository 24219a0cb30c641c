"""Serving a database by one call, in real time: a thread beside the program, or the global reactor.

No test here waits for a poll: the poll interval is a minute.
"""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid

import pytest
import transaction
import transaction.interfaces
import ZODB
import ZODB.interfaces
import zope.component
from persistent.mapping import PersistentMapping
from ZODB.FileStorage import FileStorage
from ZODB.POSException import ConflictError

from zodbjobs import Agent, Job, Queue, configure, local, status, subscribers, testing
from zodbjobs.interfaces import IUUID, KEY, IJob, IQueue
from zodbjobs.runtime import dispatcher as dispatchers
from zodbjobs.runtime import wakeup

#: Far more than anything here takes; a poll is no help.
POLL_SECONDS = 60
PATIENCE_SECONDS = 10

said = []
gate = threading.Event()


class Site:
    """A database on a file, and the dispatchers that a test starts for it."""

    def __init__(self, path):
        self.path = str(path / 'Data.fs')
        self.databases = {}
        self.db = ZODB.DB(FileStorage(self.path), databases=self.databases, database_name='main')
        self.started = []
        self.connection = None

    def start(self, **options):
        dispatcher = configure.start(self.db, **{'poll_interval': POLL_SECONDS} | options)
        self.started.append(dispatcher)
        if self.connection is None:
            self.connection = self.db.open()
        transaction.begin()
        return dispatcher

    @property
    def queue(self):
        return self.connection.root()[KEY]['']

    def put(self, call, *args, **wishes):
        transaction.begin()
        job = self.queue.put(Job(call, *args), **wishes)
        transaction.commit()
        return job

    def until(self, look, seconds=PATIENCE_SECONDS):
        """Wait in real time until look() is true, in a new transaction each time."""
        deadline = time.monotonic() + seconds
        while True:
            transaction.begin()
            try:
                if look():
                    return
            except (ConflictError, KeyError):  # not there yet
                pass
            assert time.monotonic() < deadline, 'it took too long'
            threading.Event().wait(0.002)

    def result_of(self, job, seconds=PATIENCE_SECONDS):
        self.until(lambda: job.status == status.COMPLETED, seconds)
        return job.result

    def wait_until_served(self, *names):
        self.until(
            lambda: all(
                any(record.activated and 'main' in record
                    for record in self.connection.root()[KEY][name].dispatchers.values())
                for name in names or ('',)
            )
        )  # fmt: skip

    def close(self):
        gate.set()
        for dispatcher in self.started:
            assert subscribers.stop(dispatcher, PATIENCE_SECONDS)
            subscribers.restore_signal_handlers(dispatcher)
        transaction.abort()
        if self.connection is not None:
            self.connection.close()
        for db in self.databases.values():
            wakeup.hang_up(db)
            db.close()
        dispatchers.clear()
        testing.tearDown()


@pytest.fixture
def site(tmp_path, monkeypatch):
    said.clear()
    gate.clear()
    monkeypatch.setattr(dispatchers, 'THREADS_END_SECONDS', 0.05)
    monkeypatch.delenv(configure.UUID_VARIABLE, raising=False)
    site = Site(tmp_path)
    yield site
    site.close()


def say(word='done'):
    said.append(word)
    return word


def wait(word='done'):
    said.append('begun')
    assert gate.wait(PATIENCE_SECONDS)
    root = local.getJob()._p_jar.root()
    root['count'] = root.get('count', 0) + 1
    return word


class TestStart:
    def test_a_job_starts_at_the_commit(self, site):
        """Everything that was missing is made; the result is there long before a poll."""
        dispatcher = site.start()
        assert site.result_of(site.put(say)) == 'done'
        for _ in range(3):
            begun = time.monotonic()
            assert site.result_of(site.put(say)) == 'done'
            assert time.monotonic() - begun < 1
        assert dispatcher.activated and dispatcher.thread.daemon
        (record,) = site.queue.dispatchers.values()
        assert record.UUID == dispatcher.UUID == zope.component.getUtility(IUUID)
        assert list(record) == ['main'] and record['main'].size == 3

    def test_options(self, site):
        """Size, filter and grace of what is made."""
        dispatcher = site.start(agent_size=7, agent_filter=accept, grace=3)
        site.wait_until_served()
        agent = site.queue.dispatchers[dispatcher.UUID]['main']
        assert (agent.size, agent.filter, dispatcher.grace) == (7, accept, 3)
        assert dispatcher.poll_interval == POLL_SECONDS

    def test_an_address(self, site, tmp_path):
        """Instead of a database."""
        address = f'file:{tmp_path / "other.fs"}'
        dispatcher = configure.start(address, poll_interval=POLL_SECONDS)
        site.started.append(dispatcher)
        site.databases['other'] = dispatcher.db
        site.connection = dispatcher.db.open()
        assert site.result_of(site.put(say)) == 'done'

    def test_what_is_there_stays(self, site):
        """A queue with jobs, and an agent that was changed, over a restart."""
        dispatcher = site.start()
        site.wait_until_served()
        site.queue.dispatchers[dispatcher.UUID]['main'].size = 1
        site.queue.quotas.create('one')
        transaction.commit()
        assert subscribers.stop(dispatcher)
        job = site.put(say, quota_names=['one'])
        again = site.start(agent_size=9)
        assert again.UUID == dispatcher.UUID
        assert site.result_of(job) == 'done'
        assert site.queue.dispatchers[again.UUID]['main'].size == 1
        assert len(site.queue.dispatchers) == 1

    def test_twice(self, site):
        """A second dispatcher in the process has a name of its own, and shares the work."""
        first = site.start()
        site.wait_until_served()
        second = site.start()
        assert first.UUID != second.UUID
        site.until(lambda: len(site.queue.dispatchers) == 2)
        jobs = [site.put(wait) for _ in range(2)]
        gate.set()
        assert [site.result_of(job) for job in jobs] == ['done'] * 2

    def test_in_another_database(self, site):
        """db_name: the queues live in a database of their own; jobs start at the commit."""
        other = ZODB.DB(None, databases=site.databases, database_name='async')
        site.start(db_name='async')
        assert site.queue._p_jar.db() is other
        begun = time.monotonic()
        assert site.result_of(site.put(say)) == 'done'
        root = site.connection.root()
        root['thing'] = PersistentMapping()
        transaction.commit()
        assert site.result_of(site.put(keep, root['thing'])) == 'kept'
        assert root['thing'] == {'kept': True}
        assert time.monotonic() - begun < POLL_SECONDS / 10

    def test_a_queue_added_later(self, site):
        """Is served from the next poll on."""
        dispatcher = site.start(poll_interval=0.05)
        site.wait_until_served()
        second = site.connection.root()[KEY]['second'] = Queue()
        transaction.commit()
        site.wait_until_served('second')
        job = second.put(say)
        transaction.commit()
        assert site.result_of(job) == 'done' and job.agent.parent.UUID == dispatcher.UUID

    def test_a_size_changed_live(self, site):
        """From the next poll on."""
        dispatcher = site.start(poll_interval=0.05, agent_size=1)
        site.wait_until_served()
        jobs = [site.put(wait) for _ in range(3)]
        site.until(lambda: said == ['begun'])
        site.queue.dispatchers[dispatcher.UUID]['main'].size = 3
        transaction.commit()
        site.until(lambda: len(said) == 3)
        gate.set()
        assert [site.result_of(job) for job in jobs] == ['done'] * 3

    def test_bad_input(self, site, tmp_path):
        """Each is a clear error, and nothing is left running."""
        threads = threading.active_count()
        with pytest.raises(ValueError, match='both'):
            configure.start(site.db, agent_chooser=accept, agent_filter=accept)
        with pytest.raises(ValueError, match='nowhere'):
            configure.start('nowhere:/at all')
        with pytest.raises(Exception, match='open already'):
            configure.start(f'file:{site.path}')
        with pytest.raises(ValueError, match='no folder'):
            configure.start(f'file:{tmp_path}/no such folder/Data.fs')
        assert threading.active_count() == threads


def accept(job):
    return True


def keep(thing):
    thing['kept'] = True
    return 'kept'


class TestStop:
    def test_running_jobs_end(self, site):
        """A stop waits for them; what waited is there for the next life."""
        dispatcher = site.start(agent_size=1)
        running = site.put(wait)
        site.until(lambda: said)
        waiting = site.put(say)
        stopping = threading.Thread(target=subscribers.stop, args=(dispatcher,))
        stopping.start()
        site.until(lambda: dispatcher.activated is None)
        gate.set()
        stopping.join(PATIENCE_SECONDS)
        assert not stopping.is_alive() and not dispatcher.thread.is_alive()
        transaction.begin()
        assert running.result == 'done' and waiting.status == status.PENDING
        assert dispatcher._flight == {}
        site.start()
        assert site.result_of(waiting) == 'done'

    def test_one_that_takes_longer_than_the_grace(self, site):
        """It goes back uncounted; the late worker leaves no trace; it runs once more."""
        dispatcher = site.start(grace=0.05)
        job = site.put(wait)
        site.until(lambda: said)
        pool = dispatcher.queues['']['main']
        begun = time.monotonic()
        assert subscribers.stop(dispatcher)
        assert time.monotonic() - begun < 5
        transaction.begin()
        assert job.status == status.PENDING
        assert (job.attempts, job.interruptions) == (0, 0)
        gate.set()
        pool.join(PATIENCE_SECONDS)
        transaction.begin()
        assert job.status == status.PENDING and 'count' not in site.connection.root()
        site.start()
        assert site.result_of(job) == 'done'
        assert site.connection.root()['count'] == 1
        assert (job.attempts, job.interruptions) == (1, 0)

    def test_again_and_again(self, site):
        """Each life serves; no thread and no connection is left behind."""
        others = set(threading.enumerate())  # of other tests, say
        for _ in range(3):
            dispatcher = site.start()
            assert site.result_of(site.put(say)) == 'done'
            assert subscribers.stop(dispatcher) and subscribers.stop(dispatcher)

        def left():
            ours = (t for t in threading.enumerate() if t.name.startswith('zodbjobs'))
            return [thread for thread in ours if thread not in others]

        site.until(lambda: not left())
        assert site.db.getPoolSize() == 7

    def test_the_same_object_again(self, site):
        """deactivate and activate, while its reactor runs on."""
        dispatcher = site.start()
        site.wait_until_served()
        dispatcher.deactivate()
        job = site.put(say)
        dispatcher.activate()
        assert site.result_of(job) == 'done'


class TestSignals:
    numbers = (signal.SIGINT, signal.SIGTERM)

    def handlers(self):
        return [signal.getsignal(number) for number in self.numbers]

    def test_taken_by_the_main_thread_and_given_back(self, site):
        """As long as it serves, and no longer."""
        before = self.handlers()
        dispatcher = site.start()
        assert all(a is not b for a, b in zip(self.handlers(), before, strict=True))
        assert subscribers.stop(dispatcher)
        assert self.handlers() == before

    def test_those_that_others_took_meanwhile_are_theirs(self, site):
        """Only our own are taken back."""
        before = signal.getsignal(signal.SIGTERM)
        dispatcher = site.start()
        signal.signal(signal.SIGTERM, theirs)
        try:
            assert subscribers.stop(dispatcher)
            assert signal.getsignal(signal.SIGTERM) is theirs
        finally:
            signal.signal(signal.SIGTERM, before)

    def test_left_alone_by_other_threads(self, site):
        """A dispatcher started beside a server takes no signal."""
        before = self.handlers()
        starting = threading.Thread(target=lambda: site.started.append(start_beside(site)))
        starting.start()
        starting.join(PATIENCE_SECONDS)
        assert self.handlers() == before and site.started[0].activated is not None


def theirs(number, frame):
    """A handler of somebody else."""


def start_beside(site):
    return configure.start(site.db, poll_interval=POLL_SECONDS)


class TestRegistrations:
    def test_minimal(self, site):
        """What a process needs that only puts; twice does no harm."""
        configure.minimal()
        configure.minimal()
        site.connection = site.db.open()
        manager = transaction.interfaces.ITransactionManager
        assert manager(site.connection.root()) is site.connection.transaction_manager
        assert manager(site.connection) is site.connection.transaction_manager
        for call in (say, site.put, len, [].__len__):
            assert isinstance(IJob(call), Job)
        assert isinstance(zope.component.getUtility(IUUID), uuid.UUID)
        with pytest.raises(TypeError):
            manager(PersistentMapping())

    def test_base(self, site):
        """And the connection of an object."""
        configure.base()
        site.connection = site.db.open()
        assert ZODB.interfaces.IConnection(site.connection.root()) is site.connection

    def test_the_default_queue(self, site):
        """Of an object, and of a connection."""
        site.start()
        assert IQueue(site.connection.root()) is site.queue
        assert IQueue(site.connection) is site.queue

    def test_the_file_of_the_identity(self, site, tmp_path, monkeypatch):
        """Named by the environment: made once, read from then on, and good for the dispatcher."""
        path = tmp_path / 'uuid.txt'
        monkeypatch.setenv(configure.UUID_VARIABLE, str(path))
        found = configure.process_uuid()
        assert path.read_text().splitlines()[0] == str(found)
        assert configure.process_uuid() == found
        dispatcher = site.start()
        assert found == dispatcher.UUID
        path.write_text('not a uuid\n')
        with pytest.raises(ValueError):
            configure.process_uuid()

    def test_an_import_writes_nothing(self, tmp_path):
        """No file, no thread, no reactor."""
        program = (
            'import sys, threading, os, zodbjobs, zodbjobs.configure\n'
            "assert 'twisted.internet.reactor' not in sys.modules\n"
            'assert threading.active_count() == 1 and os.listdir(".") == []\n'
        )
        run(program, cwd=tmp_path)


#: A program that serves on the global reactor, with its database work in the reactor's threads.
ON_GLOBAL_REACTOR = """
import sys, time, transaction, ZODB
from ZODB.FileStorage import FileStorage
from twisted.internet import reactor
from zodbjobs import Job, configure, status
from zodbjobs.interfaces import KEY

db = ZODB.DB(FileStorage(sys.argv[1]))
dispatcher = configure.start(db, poll_interval=60, twisted=True, grace=5)
connection = db.open()

def put():
    transaction.begin()
    jobs[:] = [connection.root()[KEY][''].put(Job(divmod, 7, n)) for n in (1, 2, 3)]
    transaction.commit()
    look()

def look():
    transaction.begin()
    if all(job.status == status.COMPLETED for job in jobs):
        print([job.result for job in jobs], dispatcher.getStatusInfo()['status'])
        transaction.abort()
        reactor.stop()
    else:
        reactor.callLater(0.005, look)

jobs = []
reactor.callWhenRunning(put)
reactor.callLater(20, reactor.stop)
reactor.run()
print(dispatcher.activated)
connection.close()
with db.transaction() as connection:
    record, = connection.root()[KEY][''].dispatchers.values()
    print(record.activated)
db.close()
"""

#: A program that does something else, and is told to end.
TOLD_TO_END = """
import sys, time, ZODB, transaction
from ZODB.FileStorage import FileStorage
from zodbjobs import Job, configure
from zodbjobs.interfaces import KEY

db = ZODB.DB(FileStorage(sys.argv[1]))
dispatcher = configure.start(db, poll_interval=60)
with db.transaction() as connection:
    connection.root()[KEY][''].put(Job(time.sleep, 0.5))
while not dispatcher.getActiveJobIds():
    time.sleep(0.001)
try:
    print('ready', flush=True)
    time.sleep(30)
finally:
    with db.transaction() as connection:
        queue = connection.root()[KEY]['']
        record, = queue.dispatchers.values()
        job, = record['main'].history
        print(job.status, job.attempts, record.activated, dispatcher.activated, flush=True)
"""


#: A program that comes to its end, or is left by another thread's hand, while a job runs.
COMES_TO_ITS_END = """
import atexit, signal, sys, threading, time, ZODB
from ZODB.FileStorage import FileStorage
from zodbjobs import Job, NeverRetry, configure
from zodbjobs.interfaces import KEY

db = ZODB.DB(FileStorage(sys.argv[1]))

@atexit.register
def look():
    with db.transaction() as connection:
        queue = connection.root()[KEY]['']
        record, = queue.dispatchers.values()
        jobs = [connection.root()['job'], *queue]
        print([(j.status, j.attempts, j.interruptions) for j in jobs], record.activated)
    db.close()

def start():
    global dispatcher
    dispatcher = configure.start(db, poll_interval=60, agent_size=1)

if 'thread' in sys.argv[2:]:  # a server that starts its application there has no signals for us
    starting = threading.Thread(target=start)
    starting.start()
    starting.join()
else:
    start()
with db.transaction() as connection:
    queue = connection.root()[KEY]['']
    connection.root()['job'] = queue.put(Job(time.sleep, 0.5), retry_policy_factory=NeverRetry)
    queue.put(Job(len, 'abc'))
while not dispatcher.getActiveJobIds():
    time.sleep(0.001)
if 'exit' in sys.argv[2:]:
    sys.exit()
"""


def environment():
    return os.environ | {'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}


def run(program, *args, cwd=None):
    """Run a program of its own; returns what it printed, as lines."""
    done = subprocess.run(
        [sys.executable, '-W', 'error::ResourceWarning', '-c', program, *map(str, args)],
        cwd=cwd, env=environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.processes
def test_on_the_global_reactor(tmp_path):
    """Threaded polls; stopping the reactor drains it."""
    printed = run(ON_GLOBAL_REACTOR, tmp_path / 'Data.fs')
    assert printed == ['[(7, 0), (3, 1), (2, 1)] RUNNING', 'False', 'None']


@pytest.mark.processes
@pytest.mark.parametrize(
    ('number', 'code'), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, -signal.SIGINT)]
)
def test_told_to_end(tmp_path, number, code):
    """The running job ends first; then the program ends as it would have without us."""
    program = subprocess.Popen(
        [sys.executable, '-c', TOLD_TO_END, str(tmp_path / 'Data.fs')],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert program.stdout.readline() == 'ready\n'
        program.send_signal(number)
        out, err = program.communicate(timeout=30)
    finally:
        program.kill()
    assert out == 'completed 1 None False\n', err
    assert program.returncode == code


@pytest.mark.processes
@pytest.mark.parametrize('args', [[], ['exit'], ['thread']], ids=['end', 'exit', 'thread'])
def test_that_comes_to_its_end(tmp_path, args):
    """Without any signal: what runs may end, what was claimed is given back."""
    printed = run(COMES_TO_ITS_END, tmp_path / 'Data.fs', *args)
    assert printed == ["[('completed', 1, 0), ('pending', 0, 0)] None"]


def test_agents_by_hand(site):
    """What start() does not do, the application may: an agent of another name, while it runs."""
    dispatcher = site.start(poll_interval=0.05)
    site.wait_until_served()
    record = site.queue.dispatchers[dispatcher.UUID]
    record['main'].channels = [None]
    record['mail'] = Agent(size=1, channels=['mail'])
    transaction.commit()
    job = site.put(say, channel='mail')
    assert site.result_of(job) == 'done' and job.agent.name == 'mail'
