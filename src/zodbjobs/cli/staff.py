"""Somebody to work on a database's jobs, for as long as a block lasts.

Either threads of this process, on a database that it alone has open, or worker
processes under a supervisor, on the ZEO server that it starts for them.  However
the block ends, those who work are told to stop, given time to end what they
do, and waited for.  To be used in the main thread.
"""

import contextlib
import os
import signal
import threading

from zodbjobs import configure, subscribers
from zodbjobs.cli import supervisor
from zodbjobs.cli.output import CommandError
from zodbjobs.interfaces import KEY
from zodbjobs.runtime import dispatcher as dispatchers
from zodbjobs.runtime.address import open_database

GRACE_SECONDS = 20  # for the jobs that run when it stops; files are read in less than a second
STOP_LOOK_SECONDS = 0.05  # between two looks whether they have ended
ENOUGH_ENDS = 4  # in turn, each soon after its start: there is no sense in going on
JOIN_SECONDS = 1  # for a thread without a job to close its connection


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

    def __init__(self, db, office=None, logs=()):
        self.db = db
        self._office = office
        self._logs = logs

    def check(self):
        """See to the processes; to be called often.  Raises CommandError if none of them lasts."""
        if self._office is not None:
            self._office.look()
            check(self._office, self._logs)


def check(office, logs):
    """Raise CommandError if no process of a Supervisor lasts; `logs` are paths of what they say."""
    posts = [server.post for server in office.servers], office.workers
    if not any(all(post.soon >= ENOUGH_ENDS for post in group) for group in posts):
        return
    last = [line for log in logs if os.path.exists(log) for line in last_line(log)]
    raise CommandError(f'the processes end as soon as they are started: {"; ".join(last)}')


def last_line(path):
    """What stands at the end of a log: a list of one text, or none."""
    with open(path, errors='replace') as log:
        lines = log.read().strip().splitlines()
    return [f'{path} ends: {lines[-1]}'] if lines else []


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
    logs = [os.path.join(folder, f'worker-{number}.log') for number in range(1, workers + 1)]
    zeo_log = os.path.join(folder, 'zeo.log')
    for log in logs:
        open(log, 'w').close()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_interruptible())
        server_log = stack.enter_context(open(zeo_log, 'w'))
        uri = f'file:{path}?connection_cache_size={cache_size}'
        server = supervisor.Server(uri, GRACE_SECONDS, server_log)
        options = [server.client_uri, f'--path={module}', f'--threads={threads}']
        options.append(f'--grace={GRACE_SECONDS}')

        def spawn(number):
            with open(logs[number - 1], 'a') as log:
                return supervisor.Process(
                    lambda line: supervisor.start_worker(options, number, line, log)
                )

        office = supervisor.Supervisor(spawn, workers, GRACE_SECONDS, servers=[server])
        stack.enter_context(_at_work(office, [zeo_log, *logs]))
        db = stack.enter_context(contextlib.closing(open_database(server.client_uri)))
        configure.base()
        yield Staff(db, office, [zeo_log, *logs])


@contextlib.contextmanager
def _at_work(office, logs):
    """Have a Supervisor's processes at work for as long as the block lasts."""
    try:
        while not all(server.answers for server in office.servers):
            pause(office.look())
            check(office, logs)
        yield
    finally:
        office.stop()
        try:
            while (seconds := office.look()) is not None:
                pause(min(seconds, STOP_LOOK_SECONDS))
        finally:  # a second Ctrl-C: leave nobody behind
            office.kill()


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
