"""The systems that are measured, and the servers and files they stand on."""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import storages
from benchmarks.measure import wait_until

ROOT = Path(__file__).resolve().parents[2]

#: The Python that has the peers.
PEERS_PYTHON = ROOT / '.venv-peers' / 'bin' / 'python'

SERVER_SECONDS = 10


@contextlib.contextmanager
def server(command, socket):
    """Run a server until the block ends; `socket` is the path that shows that it is ready."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        if not wait_until(lambda: os.path.exists(socket), SERVER_SECONDS):
            raise RuntimeError(f'{command[0]} does not get ready')
        yield
    finally:
        process.terminate()
        process.wait()


class Places:
    """What all stand on: one PostgreSQL for everybody, and the environment of the processes.

    What is measured is made anew for every round; PostgreSQL's server stays.
    """

    def __init__(self, stack):
        self._stack = stack
        self._raw = {}

    def environment(self):
        """The environment of every process; the systems add the places of theirs."""
        paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
        return os.environ | {'PYTHONPATH': os.pathsep.join(paths)}

    def raw(self, name):
        """The Place on the storage of that name to take the raw commit rate of."""
        if name not in self._raw:
            self._raw[name] = self._stack.enter_context(storages.PLACES[name]())
        return self._raw[name]


# What is made for a round: context managers that add their places to the environment.


def _ours(kind):
    """What makes a fresh database of that kind, and lets go of it: the workers open it."""

    @contextlib.contextmanager
    def fresh(environment):
        with storages.PLACES[kind]() as place:
            place.close()
            environment['PEERS_URI'] = place.uri
            yield

    return fresh


@contextlib.contextmanager
def on_bare_postgres(environment):
    """The same server, and a database with Procrastinate's tables."""
    from zodbjobs.testing.storages import postgresql_server

    found = postgresql_server()
    name = 'procrastinate'
    with storages.durable(found):
        found.execute(f'CREATE DATABASE {name}')
        try:
            dsn = f'host={found.socket_folder} dbname={name} user=postgres'
            environment['PEERS_DSN'] = dsn
            code = 'import benchmarks.peers.with_procrastinate as m; m.prepare()'
            subprocess.run([str(PEERS_PYTHON), '-c', code], env=environment, check=True)
            yield
        finally:
            found.drop(name)


@contextlib.contextmanager
def on_sqlite(environment):
    with tempfile.TemporaryDirectory(prefix='bench-') as folder:
        environment['PEERS_FOLDER'] = folder
        yield


@contextlib.contextmanager
def served(environment, variable, command):
    """A server of ``command(folder, socket)``, whose socket that variable names."""
    with tempfile.TemporaryDirectory(prefix='bench-') as folder:
        socket = environment[variable] = os.path.join(folder, 'socket')
        with server(command(folder, socket), socket):
            yield


def on_redis(environment):
    """A Redis that syncs its log at every command."""
    return served(environment, 'PEERS_REDIS', redis_command)


def redis_command(folder, socket):
    command = ['redis-server', '--port', '0', '--unixsocket', socket, '--save', '']
    return [*command, '--appendonly', 'yes', '--appendfsync', 'always', '--dir', folder]


def on_beanstalkd(environment):
    """A beanstalkd that syncs its log at every command."""
    return served(environment, 'PEERS_BEANSTALK', beanstalkd_command)


def beanstalkd_command(folder, socket):
    return ['beanstalkd', '-b', folder, '-f', '0', '-l', f'unix:{socket}']


@dataclasses.dataclass(frozen=True)
class System:
    """A system: `module` ends the name of its ``with_...``, `fresh` makes what it stands on."""

    name: str
    module: str
    fresh: callable
    note: str
    needs: str | None = None  # a program
    storage: str | None = None  # of ours, whose raw commit rate it is to be seen beside
    is_shared: bool = True  # whether somebody else may put while a worker runs

    @property
    def python(self):
        return sys.executable if self.module == 'zodbjobs' else str(PEERS_PYTHON)

    def reason_missing(self):
        """Why it cannot be measured here; None: it can."""
        if self.needs and shutil.which(self.needs) is None:
            return f'there is no {self.needs} here (Debian has a package of that name)'
        if self.module != 'zodbjobs' and not PEERS_PYTHON.exists():
            return 'there is no .venv-peers: make bench-peers makes it'
        return None


SYSTEMS = (
    System(
        'zodbjobs on FileStorage',
        'zodbjobs',
        _ours('file'),
        'one process has the file; the put is a commit that is synced.  Put to start is in'
        ' the other tables, as nobody else can put while a worker has the file.',
        storage='file',
        is_shared=False,
    ),
    System(
        'zodbjobs on ZEO',
        'zodbjobs',
        _ours('zeo'),
        'every put is a commit of its own, synced by the server.',
        storage='zeo',
    ),
    System(
        'zodbjobs on PostgreSQL',
        'zodbjobs',
        _ours('postgres'),
        'RelStorage without history; every put is a commit, fsync and full_page_writes are on.',
        storage='postgres',
    ),
    System(
        'Procrastinate on PostgreSQL',
        'procrastinate',
        on_bare_postgres,
        'the same server with the same settings; finished jobs are kept, as is its default.',
        storage='postgres',
    ),
    System(
        'Celery on Redis',
        'celery',
        on_redis,
        'appendfsync always, late acknowledgement, no results, pool of threads.',
        'redis-server',
    ),
    System(
        'Dramatiq on Redis',
        'dramatiq',
        on_redis,
        'appendfsync always; one process, acknowledged after the job as always.',
        'redis-server',
    ),
    System(
        'RQ on Redis',
        'rq',
        on_redis,
        'appendfsync always; its worker forks for each job, one at a time, as is its default.',
        'redis-server',
    ),
    System(
        'Huey on SQLite',
        'huey',
        on_sqlite,
        'fsync on; a job is taken off before it runs, so a crash loses it (at most once), where'
        ' the others run it again.',
    ),
    System(
        'beanstalkd',
        'beanstalk',
        on_beanstalkd,
        'log synced at every write (-f 0); no transactions, no results, a bare loop of reserve'
        ' and delete as the worker.',
        'beanstalkd',
    ),
)

NAMES = tuple(system.name for system in SYSTEMS)
