"""Somebody to run the jobs: a dispatcher in a thread of this process, or a worker process.

Either lasts as long as a block.  Both poll every 30 seconds only, so whatever
starts sooner was woken by a commit.
"""

import contextlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import wait_until
from zodbjobs import configure, subscribers
from zodbjobs.runtime import dispatcher as dispatchers

POLL_SECONDS = 30

#: Seconds for a dispatcher to look for the first time, and for jobs to end at a stop.
START_SECONDS, GRACE_SECONDS = 10, 10

ROOT = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def dispatcher(db, threads):
    """A dispatcher of this process that serves `db` with so many threads."""
    found = configure.start(db, poll_interval=POLL_SECONDS, agent_size=threads, grace=GRACE_SECONDS)
    subscribers.restore_signal_handlers(found)  # a Ctrl-C is for the benchmarks as a whole
    try:
        if not wait_until(lambda: len(found.polls), START_SECONDS):
            raise RuntimeError(f'no poll after {START_SECONDS} seconds')
        yield found
    finally:
        subscribers.stop(found)
        dispatchers.pop(found.UUID)


class _Brief(logging.Formatter):
    """A line for each event, and one more for its exception: the tables shall stay legible."""

    def formatException(self, exc_info):
        return f'  {exc_info[0].__name__}: {exc_info[1]}'


def log_briefly():
    """Print what the engine finds alarming; its other news are not for the reader of a table."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Brief('%(message)s'))
    logging.basicConfig(level=logging.ERROR, handlers=[handler])


class Claims:
    """The claims that a dispatcher has made since this was made; `look` often, few are kept."""

    def __init__(self, found):
        self._dispatcher = found
        self._known = found.getPollInfo().key
        self.count = self.jobs = 0

    def look(self):
        for poll in self._dispatcher.iterPolls(since=self._known + 1):
            self._known = max(self._known, poll.key)
            jobs = sum(1 for _ in poll.new_jobs())
            if jobs:
                self.count += 1
                self.jobs += jobs

    @property
    def mean(self):
        """Jobs per claim."""
        return self.jobs / self.count if self.count else 0.0


class WorkerProcess:
    """Our end of a `benchmarks.worker` process."""

    def __init__(self, process):
        self._process = process

    @property
    def pid(self):
        return self._process.pid

    def kill(self):
        """End it with SIGKILL, and wait until the system has buried it."""
        self._process.kill()
        self._process.wait()

    def send(self, *words):
        """Have it do something, and go on: `ask` gives the answer."""
        self._process.stdin.write(' '.join(map(str, words)) + '\n')
        self._process.stdin.flush()

    def ask(self, *words):
        """Have it do something; returns the dict it answers with."""
        if words:
            self.send(*words)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError('a worker process has ended: see what it printed')
        return json.loads(answer)


@contextlib.contextmanager
def worker_processes(uri, count, threads):
    """So many of them, ready; gives the list."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(worker_process(uri, threads)) for _ in range(count)]
        for process in found:
            process.ask()
        yield found


@contextlib.contextmanager
def worker_process(uri, threads):
    """A process that serves the database at `uri` with so many threads."""
    paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    process = subprocess.Popen(
        [sys.executable, '-m', 'benchmarks.worker', uri, str(threads)],
        env=os.environ | {'PYTHONPATH': os.pathsep.join(paths)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield WorkerProcess(process)
    finally:
        with contextlib.suppress(BrokenPipeError):  # it was killed
            process.stdin.close()
        try:
            process.wait(2 * GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
