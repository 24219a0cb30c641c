"""``zodbjobs worker`` as a process: it drains on SIGTERM, and nothing is lost when it is killed."""

import contextlib
import signal
import subprocess
import sys
import textwrap

import pytest
import transaction

from zodbjobs import status
from zodbjobs.runtime.address import open_database
from zodbjobs.tasks import Tasks
from zodbjobs.testing.waiting import wait_until

WORK = """
    import pathlib, threading

    def touch_and_wait(path, gate=None):
        pathlib.Path(path).touch()
        while gate and not pathlib.Path(gate).exists():
            threading.Event().wait(0.01)
        return path
"""

PATIENCE_SECONDS = 30


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / 'work_of_a_worker.py').write_text(textwrap.dedent(WORK))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop('work_of_a_worker', None)


@contextlib.contextmanager
def opened(place):
    """Tasks of the file, while no worker has it open."""
    db = open_database(str(place / 'Data.fs'))
    tasks = Tasks(db)
    try:
        yield tasks
        transaction.commit()
    finally:
        tasks.close()
        db.close()


@contextlib.contextmanager
def started(place, *options):
    words = [sys.executable, '-m', 'zodbjobs', 'worker', place / 'Data.fs', '--path', place]
    process = subprocess.Popen([*words, *options], stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def put(place, count, gate=None):
    from work_of_a_worker import touch_and_wait

    with opened(place) as tasks:
        for number in range(count):
            with tasks.options(task_id=f't{number}'):
                tasks.task(touch_and_wait, str(place / f'ran {number}'), gate and str(gate))


def ran(place):
    return sorted(path.name for path in place.glob('ran *'))


def test_a_worker_ends_after_max_tasks(place):
    put(place, 3)
    with started(place, '--max-tasks', '2') as process:
        assert process.wait(PATIENCE_SECONDS) == 0
    assert ran(place) == ['ran 0', 'ran 1']
    with opened(place) as tasks:
        assert tasks.len() == 1


def test_a_worker_drains_on_sigterm(place):
    put(place, 2, place / 'gate')
    with started(place) as process:
        assert wait_until(lambda: ran(place) == ['ran 0'], PATIENCE_SECONDS)
        process.send_signal(signal.SIGTERM)
        (place / 'gate').touch()
        _, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert 'SIGTERM: ending after the task that runs' in said and 'after 1 tasks' in said
    with opened(place) as tasks:
        assert tasks.len() == 1 and tasks._find('t0') is None
        assert tasks.queue.peek().attempts == 0


def test_nothing_is_lost_when_a_worker_is_killed(place):
    put(place, 2, place / 'gate')
    with started(place) as process:
        assert wait_until(lambda: ran(place), PATIENCE_SECONDS)
        process.kill()
        process.wait(PATIENCE_SECONDS)
    with opened(place) as tasks:
        assert tasks._find('t0').status in (status.ACTIVE, status.PENDING)
    (place / 'gate').touch()
    with started(place, '--max-tasks', '2') as process:
        assert process.wait(PATIENCE_SECONDS) == 0
    assert ran(place) == ['ran 0', 'ran 1']
    with opened(place) as tasks:
        assert tasks.len() == 0 and tasks._find('t0') is None


def test_an_idle_worker_writes_nothing(place):
    put(place, 0)
    with started(place, '--nap-time', '0.01') as process:
        assert 'begins' in process.stderr.readline() + process.stderr.readline()
        size = (place / 'Data.fs').stat().st_size
        assert not wait_until(lambda: (place / 'Data.fs').stat().st_size != size, 1)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_SECONDS) == 0
