"""Somebody to work on a database's jobs, for as long as a block lasts.

Either threads of this process, on a database that it alone has open, or worker
processes (``zodbjobs run``) on a ZEO server that is started for them.  However
the block ends, those who work are told to stop, given time to end what they
do, and waited for.  To be used in the main thread.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading

from zodbjobs import clock, configure, subscribers
from zodbjobs.cli.output import CommandError
from zodbjobs.interfaces import KEY
from zodbjobs.runtime import dispatcher as dispatchers
from zodbjobs.runtime.address import open_database

GRACE_SECONDS = 20  # for the jobs that run when it stops; files are read in less than a second
SERVER_SECONDS = 20  # until the server has its socket; it took 1 to 2
JOIN_SECONDS = 1  # for a thread without a job to close its connection
MARGIN_SECONDS = 10  # what a process may take for its end beside the grace period


def pause(seconds):
    """Let the workers work; the signals of `staffed` end it."""
    threading.Event().wait(seconds)


def staffed(path, threads, workers, cache_size, module):
    """A context manager: its `Staff` works on the jobs in the file at `path`.

    `threads` is how many jobs each process runs at a time; `workers` how many
    processes there are, None: this one.  `cache_size` counts the objects that
    each connection keeps; `module` is the name of the one that holds the jobs.
    SIGINT and SIGTERM raise KeyboardInterrupt in the block.
    Raises AddressError or CommandError if it does not get going.
    """
    if workers is None:
        return _threads(path, threads, cache_size)
    return _processes(path, threads, workers, cache_size, module)


class Staff:
    """Those who work; `db` is the database for whoever gives them work."""

    def __init__(self, db, server=None, workers=()):
        self.db = db
        self._server = server
        self._workers = workers

    def check(self):
        """Raise CommandError if nobody is left who could do the work."""
        if self._server is not None:
            self._server.check()
        if self._workers and not any(worker.is_alive() for worker in self._workers):
            for worker in self._workers:
                worker.check()


@contextlib.contextmanager
def _threads(path, threads, cache_size):
    db = open_database(f'file:{path}', cache_size=cache_size)
    dispatcher = None
    try:
        _resize_agents(db, threads)
        dispatcher = configure.start(db, agent_size=threads, grace=GRACE_SECONDS)
        subscribers.restore_signal_handlers(dispatcher)  # ours tell the user first
        with _interruptible():
            yield Staff(db)
    finally:
        if dispatcher is not None:
            subscribers.stop(dispatcher)
            dispatchers.pop(dispatcher.UUID)
        close_database(db, dispatcher)


def close_database(db, dispatcher=None):
    """Close `db`, also after a job of its `dispatcher`, which has stopped, would not end.

    Each worker thread closes its connection as it ends; ``db.close()`` may do
    so only from then on.  A thread that stays is left with a closed storage.
    """
    queues = {} if dispatcher is None else dispatcher.queues
    pools = [pool for of_queue in queues.values() for pool in of_queue.values()]
    workers = [thread for pool in pools for thread in pool.threads]
    for thread in workers:
        thread.join(JOIN_SECONDS)
    if any(thread.is_alive() for thread in workers):
        db.storage.close()
    else:
        db.close()


def _resize_agents(db, threads):
    """An agent of an earlier run may have had another number of threads; `start` leaves it."""
    with db.transaction() as connection:
        for record in connection.root()[KEY][''].dispatchers.values():
            for agent in record.values():
                agent.size = threads


@contextlib.contextmanager
def _processes(path, threads, workers, cache_size, module):
    folder = os.path.dirname(os.path.abspath(path))
    with contextlib.ExitStack() as stack:
        stack.enter_context(_interruptible())
        # Not beside the database: the path of a socket may have a hundred characters only.
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix='zodbjobs-'))
        socket = os.path.join(place, 'zeo')
        server = Child('ZEO server', os.path.join(folder, 'zeo.log'))
        stack.callback(server.stop, MARGIN_SECONDS)
        server.start('-m', 'ZEO.runzeo', '-f', path, '-a', socket)
        server.wait_for(socket)
        address = f'zeo://{socket}?connection_cache_size={cache_size}'
        logs = [os.path.join(folder, f'worker-{n}.log') for n in range(1, workers + 1)]
        running = [Child(f'worker {n}', log) for n, log in enumerate(logs, 1)]
        stack.callback(stop_all, running, GRACE_SECONDS + MARGIN_SECONDS)
        for child in running:
            options = ('--threads', str(threads), '--grace', str(GRACE_SECONDS))
            child.start('-m', 'zodbjobs', 'run', address, '--path', module, *options)
        db = stack.enter_context(contextlib.closing(open_database(address)))
        configure.base()
        yield Staff(db, server, running)


class Child:
    """A Python process of ours, with a log file."""

    def __init__(self, name, log):
        self.name, self.log = name, log
        self.process = None
        self.told = False

    def start(self, *arguments):
        """Run Python with `arguments`."""
        with open(self.log, 'wb') as log:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is for us; we stop them in good order
            )

    def is_alive(self):
        return self.process is not None and self.process.poll() is None

    def check(self):
        """Raise CommandError if it has ended."""
        if not self.is_alive():
            with open(self.log, errors='replace') as log:
                said = log.read().strip().splitlines()[-1:]
            raise CommandError(
                f'the {self.name} has ended with code {self.process.returncode};'
                f' {self.log} ends: {" ".join(said) or "(empty)"}'
            )

    def wait_for(self, path):
        """Wait until it has made the file `path`."""
        deadline = clock.monotonic() + SERVER_SECONDS
        while not os.path.exists(path):
            self.check()
            if clock.monotonic() > deadline:
                raise CommandError(f'the {self.name} does not get ready; see {self.log}')
            pause(0.02)

    def tell_to_stop(self):
        """Once only: a worker that is told again ends without finishing its jobs."""
        if self.is_alive() and not self.told:
            self.told = True
            self.process.terminate()

    def stop(self, seconds):
        """See that it has ended, gently within so many seconds, else by force."""
        self.tell_to_stop()
        if self.process is None:
            return
        try:
            self.process.wait(seconds)
        except BaseException as error:  # the time is over, or a second Ctrl-C: leave nobody behind
            self.process.kill()
            self.process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise


def stop_all(children, seconds):
    """Stop several together: they need their time at the same time."""
    for child in children:
        child.tell_to_stop()
    for child in children:
        child.stop(seconds)


SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def _interruptible():
    """Both signals raise KeyboardInterrupt in the main thread, so that `finally` is heard."""
    formers = {number: signal.signal(number, _interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, former in formers.items():
            signal.signal(number, former)


def _interrupt(number, frame):
    raise KeyboardInterrupt
