"""The supervisor in virtual time: its processes are played, and end when a test says so."""

import json
import os
import signal
import socket

import pytest

from zodbjobs import clock
from zodbjobs.cli import supervisor
from zodbjobs.cli.main import main
from zodbjobs.cli.supervisor import Limits, Supervisor


class Time:
    """A clock that a test turns."""

    seconds = 1000.0

    def monotonic(self):
        return self.seconds

    def micros(self):
        return int(self.seconds * 1e6)


class Played:
    """Stands for a process: it ends when it is told to, after its jobs."""

    pids = 100

    def __init__(self, number):
        Played.pids += 1
        self.number, self.pid = number, Played.pids
        self.facts, self.code, self.signals = {}, None, []
        self.memory = 50_000_000

    def ready(self, jobs=0):
        self.facts = {'jobs': jobs, 'active': 0, 'uuids': [str(self.number)]}

    def poll(self):
        return self.code

    def read(self):
        pass

    def fileno(self):
        return -1

    def terminate(self):
        self.signals.append('TERM')

    def kill(self):
        self.signals.append('KILL')
        self.code = -signal.SIGKILL

    def memory_bytes(self):
        return self.memory


class PlayedServer:
    """A ZEO server that answers when a test says so."""

    answers = True

    def __init__(self, spawn=lambda: None):
        self.post = supervisor.Post('ZEO server', spawn)

    def look(self, now):
        self.post.look(now)
        return 1.0

    def state(self, now):
        return {'answers': self.answers}


class Office:
    """A supervisor, the processes it has started, and the time."""

    def __init__(self, time, count=2, **options):
        self.time, self.all = time, []
        self.supervisor = Supervisor(self.spawn, count, **options)

    def spawn(self, number):
        self.all.append(Played(number))
        return self.all[-1]

    def look(self, seconds=0.0, ready=True):
        self.time.seconds += seconds
        wait = self.supervisor.look()
        for process in self.now if ready else ():
            process.facts or process.ready()
        return wait

    @property
    def now(self):
        return [post.process for post in self.supervisor.workers if post.process is not None]

    @property
    def told(self):
        return [process for process in self.now if process.signals]


@pytest.fixture
def time():
    source = Time()
    former = clock.use(source)
    yield source
    clock.use(former)


@pytest.fixture
def office(time):
    return lambda *args, **options: Office(time, *args, **options)


def test_all_are_started_and_have_numbers(office):
    found = office(3)
    assert found.look() > 0
    assert [process.number for process in found.now] == [1, 2, 3]


def test_who_dies_late_is_replaced_at_once(office):
    found = office()
    found.look()
    found.look(supervisor.SOON_SECONDS)
    found.now[0].code = -signal.SIGKILL
    found.look()
    assert [process.number for process in found.now] == [1, 2]
    assert len(found.all) == 3


def test_who_dies_soon_is_replaced_after_a_growing_pause(office):
    found = office(1)
    found.look()
    pauses = []
    for _ in range(9):
        found.now[0].code = 1
        found.look()
        pause = 0.0
        while not found.now:
            pause += 0.25
            found.look(0.25)
        pauses.append(pause)
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    found.look(supervisor.SOON_SECONDS)  # this one lives long
    found.now[0].code = 1
    found.look()
    assert found.now


def test_the_wait_ends_when_the_pause_does(office):
    found = office(1)
    found.look()
    found.now[0].code = 1
    assert 0 < found.look() <= supervisor.FIRST_PAUSE_SECONDS


def test_one_at_a_time_is_recycled_and_its_successor_is_waited_for(office):
    found = office(3, limits=Limits(jobs=10))
    found.look()
    for process in found.now:
        process.ready(jobs=10)
    for number in (1, 2, 3):
        found.look(1, ready=False)
        (told,) = found.told
        assert told.number == number
        found.look(5, ready=False)
        assert found.told == [told]  # it drains
        told.code = 0
        found.look(1, ready=False)  # its successor is started, and has told nothing yet
        assert len(found.now) == 3 and not found.told
        found.look(1, ready=False)
        assert not found.told
        found.now[number - 1].ready()
    found.look(1)
    assert not found.told and len(found.all) == 6


def test_one_that_never_gets_ready_keeps_nobody_from_being_recycled(office):
    found = office(2, limits=Limits(jobs=10))
    found.look()
    bad, good = found.now
    bad.code = 1
    good.ready(jobs=10)
    found.look(1, ready=False)
    assert found.told == [good]


@pytest.mark.parametrize(
    'limits', [Limits(jobs=5), Limits(memory_bytes=80_000_000), Limits(age_seconds=60)]
)
def test_limits(office, limits):
    found = office(1, limits=limits)
    found.look()
    (process,) = found.now
    process.ready(jobs=4)
    process.memory = 79_000_000
    found.look(59)
    assert not process.signals
    process.ready(jobs=5)
    process.memory = 80_000_000
    found.look(1)
    assert process.signals == ['TERM']


def test_without_limits_nobody_is_recycled(office):
    found = office(1)
    found.look()
    found.now[0].ready(jobs=10**9)
    found.now[0].memory = 10**12
    found.look(10**6)
    assert not found.told


def test_what_drains_for_too_long_is_killed(office):
    found = office(1, grace=30, limits=Limits(jobs=1))
    found.look()
    (process,) = found.now
    process.ready(jobs=1)
    found.look(1)
    found.look(30 + supervisor.MARGIN_SECONDS - 1)
    assert process.signals == ['TERM']
    found.look(1)
    assert process.signals == ['TERM', 'KILL']


def test_recycle_all_replaces_each_once(office):
    found = office(2)
    found.look()
    former = found.now
    found.supervisor.recycle_all()
    for _ in range(6):
        found.look(1)
        for process in found.told:
            process.code = 0
    found.look(1)
    assert not set(found.now) & set(former)
    assert len(found.all) == 4 and not found.told


def test_a_stop_waits_for_all_and_ends_the_server_last(office):
    server = PlayedServer(lambda: Played(0))
    server.post.start(0)
    found = office(2, servers=[server])
    found.look()
    found.supervisor.stop()
    assert found.look() is not None
    assert len(found.told) == 2
    serving = server.post.process
    for process in found.now:
        assert not serving.signals
        process.code = 0
        found.look(1)
    assert serving.signals == ['TERM']
    assert found.look(1) is not None
    serving.code = 0
    assert found.look(1) is None
    assert len(found.all) == 2  # nobody was started anew


def test_a_second_signal_hurries_once(office):
    found = office(1)
    found.look()
    found.supervisor.stop()
    found.supervisor.hurry()
    found.supervisor.hurry()
    assert found.now[0].signals == ['TERM', 'TERM']


def test_workers_wait_for_the_server(office):
    server = PlayedServer()
    server.answers = False
    found = office(2, servers=[server])
    found.look()
    assert not found.now
    server.answers = True
    found.look(1)
    assert len(found.now) == 2


def test_who_says_at_once_that_the_command_is_wrong_breaks_it_all(office):
    found = office(1)
    found.look(ready=False)
    found.now[0].code = 2
    found.look(ready=False)
    assert found.supervisor.broken == 2


def test_who_says_so_later_is_started_again(office):
    """A database that cannot be reached for a while ends workers in the same way."""
    found = office(1)
    found.look()
    found.look(1)
    found.now[0].code = 2
    found.look(1)
    assert found.supervisor.broken is None


def test_the_state_is_plain_and_tells_what_workers_told(office):
    found = office(2, limits=Limits(jobs=10), title='Data.fs', servers=[PlayedServer()])
    found.look()
    found.now[0].ready(jobs=7)
    found.now[1].code = 1
    found.look(1)
    state = json.loads(json.dumps(found.supervisor.state()))
    assert state['database'] == 'Data.fs' and state['pid'] == os.getpid()
    one, two = state['workers']
    assert one['state'] == 'running' and one['jobs'] == 7 and one['uuids'] == ['1']
    assert two['state'] == 'waiting' and two['exit code'] == 1 and 'pid' not in two
    assert state['limits']['jobs'] == 10 and state['servers'] == [{'answers': True}]


# the line between a worker and its supervisor


def test_facts_come_over_the_line_whole_or_not_at_all():
    kept = []

    class Popen:
        pid = 1

        def poll(self):
            return None

    def start(line):
        kept.append(socket.socket(fileno=os.dup(line.fileno())))
        return Popen()

    process = supervisor.Process(start)
    (worker,) = kept
    worker.send(b'{"jobs": 1}\n{"jobs": 2, "act')
    process.read()
    assert process.facts == {'jobs': 1}
    worker.send(b'ive": 3}\nnonsense\n')
    process.read()
    assert process.facts == {'jobs': 2, 'active': 3}
    worker.close()
    process.read()
    assert process.facts == {'jobs': 2, 'active': 3}


# the command


@pytest.mark.parametrize(
    'words, reason',
    [
        (['file:x', '--max-jobs', '5'], '-n 1 will do'),
        (['memory:', '-n', '2'], 'one process'),
        (['file:x', '-n', '2', '--name', '9fbb6df7-985f-59c4-8d73-15808e79f1f7'], '--name'),
        (['a', 'b', '--name', '9fbb6df7-985f-59c4-8d73-15808e79f1f7'], '--name'),
    ],
)
def test_what_cannot_be_meant_is_refused(words, reason, capsys):
    assert main(['run', *words]) == 2
    assert reason in capsys.readouterr().err


def test_a_state_of_a_dead_supervisor_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv('ZODBJOBS_LOCK_DIR', str(tmp_path))
    (tmp_path / 'supervisor-1.json').write_text(json.dumps({'pid': os.getpid()}))
    (tmp_path / 'supervisor-2.json').write_text(json.dumps({'pid': 2**22 + 1}))
    (tmp_path / 'supervisor-3.json').write_text('{"pid"')
    assert [state['pid'] for state in supervisor.states()] == [os.getpid()]
