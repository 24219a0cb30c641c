"""A supervisor: keeps so many worker processes at work, and the ZEO server they share.

A `Supervisor` starts workers, starts those that end anew (at once; after a
growing pause when they end soon after their start), recycles those that are
over a limit, one at a time, and stops all in good order.  It is a plain object
without a thread: whoever has it calls `look` again and again, in one thread,
and is told how long that may wait.  `Watch` does so until a signal ends it.

A worker and its supervisor have a line between them, a pair of sockets: the
worker tells what it does, in lines of JSON, and drains when the other end is
closed, so nobody is left behind by a supervisor that is killed.

What a supervisor knows stands in a JSON file for as long as it lives; `states`
reads those of all supervisors of this user and host.
"""

import contextlib
import json
import logging
import operator
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import typing

from zodbjobs import clock
from zodbjobs.cli.output import WRONGLY_ASKED
from zodbjobs.runtime import shared_file, witness, zeoserver

log = logging.getLogger('zodbjobs.supervisor')

#: A process that ends so soon after its start has something that a new start may not mend:
#: the next one waits, and the next but one twice as long, up to a limit.
SOON_SECONDS = 10
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30

#: What a process may take for its end beside the grace period of its jobs.
MARGIN_SECONDS = 10

#: Between two looks at memory and age; deaths, reports and signals are seen at once.
LOOK_SECONDS = 1.0

#: Between two looks whether a server that is not ours still answers, or ours has its socket.
SERVER_SECONDS, SERVER_START_SECONDS = 2.0, 0.05

#: Between two reports of a worker that has something new to tell.
TELL_SECONDS = 1.0

#: What stands in front of the process id in the name of a supervisor's file.
STATE_PREFIX = 'supervisor-'


class Limits(typing.NamedTuple):
    """When a worker is recycled; None: never for that."""

    jobs: int | None = None
    memory_bytes: int | None = None
    age_seconds: float | None = None


class Process:
    """A child process with a line to us."""

    def __init__(self, start):
        """`start` is called with our end of the line's counterpart, and returns a Popen."""
        self._line, theirs = socket.socketpair()
        self._line.setblocking(False)
        try:
            with theirs:
                self._popen = start(theirs)
        except BaseException:
            self._line.close()
            raise
        self._rest = b''
        self.facts = {}  # what it has told last

    @property
    def pid(self):
        return self._popen.pid

    def poll(self):
        """Its exit code, None while it runs."""
        code = self._popen.poll()
        if code is not None:
            self._line.close()
        return code

    def read(self):
        """Take in what it has told since; its facts are in `facts`."""
        try:
            while chunk := self._line.recv(65536):
                self._rest += chunk
        except OSError:
            pass  # nothing more for now, or closed
        *lines, self._rest = self._rest.split(b'\n')
        for line in lines:
            with contextlib.suppress(ValueError):  # cut short: the next one is whole
                self.facts |= json.loads(line)

    def fileno(self):
        return self._line.fileno()  # -1 when it is closed

    def terminate(self):
        self._popen.terminate()

    def kill(self):
        self._popen.kill()

    def memory_bytes(self):
        """What it holds in memory now, None where the system does not tell."""
        return resident_bytes(self.pid)


def resident_bytes(pid):
    """The resident memory of a process, None where the system does not tell."""
    try:
        with open(f'/proc/{pid}/statm') as statm:
            return int(statm.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    except (OSError, ValueError, IndexError):
        return None


class WorkersEnd:
    """A worker's end of the line, which is its standard input.

    `facts` is called in the reactor's thread, and gives a dict of plain values.
    """

    def __init__(self, facts):
        self._facts = facts
        self._told = None
        self._line = socket.socket(fileno=os.dup(0))
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)  # a program that a job starts must not read ours

    def begin(self, reactor):
        """Tell what changes, every second, and drain when the supervisor is gone."""
        threading.Thread(target=self._listen, name='zodbjobs supervisor', daemon=True).start()
        self._tell(reactor)

    def _tell(self, reactor):
        facts = self._facts()
        if facts != self._told:
            with contextlib.suppress(OSError):  # full: the next ones will do
                self._line.send(json.dumps(facts).encode() + b'\n', socket.MSG_DONTWAIT)
                self._told = facts
        reactor.callLater(TELL_SECONDS, self._tell, reactor)

    def _listen(self):
        with contextlib.suppress(OSError):
            while self._line.recv(1024):
                pass
        log.error('the supervisor is gone')
        os.kill(os.getpid(), signal.SIGTERM)


class Post:
    """A place for one process at a time; whoever holds it is replaced by the next."""

    def __init__(self, name, spawn):
        self.name = name
        self._spawn = spawn
        self.process = None
        self.started = 0.0  # monotonic seconds
        self.told = None  # when it was told to stop
        self.reason = None  # why, if to be recycled
        self.hurried = False
        self.starts = 0
        self.soon = 0  # how often in turn it has ended soon
        self.next_start = 0.0
        self.code = None  # that the last one ended with

    @property
    def is_alive(self):
        return self.process is not None

    @property
    def is_ready(self):
        """Whether there is a process, and it has told something."""
        return self.process is not None and bool(self.process.facts)

    def start(self, now):
        self.process = self._spawn()
        self.started, self.told, self.reason, self.hurried = now, None, None, False
        self.starts += 1
        log.info('%s: started as process %d', self.name, self.process.pid)

    def look(self, now):
        """See whether it has ended; True if it has, just now."""
        if self.process is None:
            return False
        code = self.process.poll()
        self.process.read()
        if code is None:
            return False
        wished = self.told is not None
        self.soon = 0 if wished or now - self.started >= SOON_SECONDS else self.soon + 1
        pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(self.soon - 1, 20))
        self.next_start = now + (pause if self.soon else 0)
        again = f'; the next one in {pause:g} s' if self.soon else ''
        level = logging.INFO if wished else logging.ERROR
        log.log(level, '%s: process %d ended, %s%s', self.name, self.process.pid, said(code), again)
        self.process, self.code = None, code
        return True

    def tell_to_stop(self, now, reason=None):
        """Once only: a worker that is told again ends without finishing its jobs."""
        if self.process is not None and self.told is None:
            self.told, self.reason = now, reason
            if reason:
                log.info('%s: process %d is recycled: %s', self.name, self.process.pid, reason)
            self.process.terminate()

    def hurry(self):
        """Tell it a second time."""
        if self.process is not None and not self.hurried:
            self.hurried = True
            self.process.terminate()

    def kill_late(self, now, seconds):
        """End it by force when it was told to stop so long ago."""
        if self.process is not None and self.told is not None and now - self.told >= seconds:
            log.error('%s: process %d does not end: killed', self.name, self.process.pid)
            self.process.kill()
            self.told = now

    def state(self, now):
        """What is known of it, plain values."""
        found = {
            'name': self.name,
            'state': 'waiting' if not self.is_alive else 'stopping' if self.told else 'running',
            'starts': self.starts,
            'ends soon': self.soon,
            'exit code': self.code,
        }
        if self.is_alive:
            found |= {
                'pid': self.process.pid,
                'age seconds': round(now - self.started, 1),
                'memory bytes': self.process.memory_bytes(),
                **self.process.facts,
            }
        return found


def said(code):
    """An exit code in words."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f'killed by {signal.Signals(-code).name}'
    return f'exit code {code}'


class Server:
    """The ZEO server for the file at `uri`: ours, or somebody else's that answers already.

    When its supervisor dies, the clients have `linger` seconds to leave.
    """

    def __init__(self, uri, linger=30, log_file=None):
        self.path = shared_file.path_of(uri)
        self.socket = shared_file.socket_of(self.path)
        self.client_uri = shared_file.client_uri(uri, self.socket)
        self.answers = False
        self._said = None

        def start(line):
            return zeoserver.start(uri, self.socket, log_file, line, linger)

        self.post = Post('ZEO server', lambda: Process(start))
        self._next_look = 0.0

    def look(self, now):
        """See that there is a server; returns the seconds until the next look."""
        if self.post.look(now):
            self.answers = False
            self._next_look = now
        if now >= self._next_look:
            if not (self.answers and self.post.is_alive):
                self.answers = shared_file.is_answered(self.socket)
            self._tell()
            if not self.answers and not self.post.is_alive and now >= self.post.next_start:
                self.post.start(now)
            self._next_look = now + (SERVER_SECONDS if self.answers else SERVER_START_SECONDS)
        return max(0.0, self._next_look - now)

    def _tell(self):
        """Say once whose server it is."""
        whose = None if not self.answers else 'ours' if self.post.is_alive else "another's"
        if whose not in (None, self._said):
            log.info('ZEO server (%s): %s listens at %s', whose, self.path, self.socket)
        self._said = whose

    def state(self, now):
        """What is known of it, plain values."""
        ours = self.post.state(now) if self.post.is_alive else {}
        return ours | {'file': self.path, 'socket': self.socket, 'answers': self.answers}


class Supervisor:
    """Keeps `count` processes of `spawn` at work; see the text of the module.

    `spawn` is called with a number from 1 on and returns a `Process`.  `grace`
    is how many seconds its jobs may take to end when it is told to stop.
    `servers` are `Server` objects that must answer before a worker is started.
    `title` stands for the database in the state, a text.
    """

    def __init__(self, spawn, count, grace=30, limits=None, servers=(), title=''):
        self.grace = grace
        self.limits = limits or Limits()
        self.servers = list(servers)
        self.title = title
        self.workers = [
            Post(f'worker {number}', lambda number=number: spawn(number))
            for number in range(1, count + 1)
        ]
        self.stopping = False
        self.was_ready = False  # a worker has once come so far as to tell something
        self.broken = None  # the code with which workers end that never get ready
        self._recycle = set()  # names of those that are to be replaced, whatever their limits

    def look(self):
        """Do what is due; returns the seconds until the next look, None when all is over."""
        now = clock.monotonic()
        seconds = min([LOOK_SECONDS, *(server.look(now) for server in self._watched())])
        for post in self.workers:
            if post.look(now) and post.code == WRONGLY_ASKED and not self.was_ready:
                self.broken = post.code
            self.was_ready |= post.is_ready
            post.kill_late(now, MARGIN_SECONDS + self.grace)
        if self.stopping:
            return self._end(now)
        self._recycle_one(now)
        if all(server.answers for server in self.servers):
            for post in self.workers:
                if not post.is_alive and now >= post.next_start:
                    post.start(now)
        due = [post.next_start - now for post in self.workers if not post.is_alive]
        return max(0.0, min([seconds, *(wait for wait in due if wait > 0)]))

    def _watched(self):
        """The servers that must answer: while we stop only as long as somebody works."""
        return self.servers if not self.stopping or self._works() else ()

    def _works(self):
        return any(post.is_alive for post in self.workers)

    def _end(self, now):
        """Go on with the stop; None when nobody is left."""
        if self._works():
            return LOOK_SECONDS
        posts = [server.post for server in self.servers]
        for post in posts:
            post.look(now)
            post.tell_to_stop(now)
            post.kill_late(now, MARGIN_SECONDS)
        return LOOK_SECONDS if any(post.is_alive for post in posts) else None

    def _recycle_one(self, now):
        """Tell one worker to stop that is over a limit, unless another one is on its way."""
        if any(post.told is not None for post in self.workers if post.is_alive):
            return
        if any(not post.is_ready and not post.soon for post in self.workers):
            return  # the successor of the last one is not there yet
        for post in filter(operator.attrgetter('is_alive'), self.workers):
            reason = self._over(post, now)
            if reason:
                self._recycle.discard(post.name)
                post.tell_to_stop(now, reason)
                return

    def _over(self, post, now):
        """Why the process at this post is to be recycled; None: it is not."""
        if post.name in self._recycle:
            return 'as asked'
        limits = self.limits
        if limits.jobs is not None and post.process.facts.get('jobs', 0) >= limits.jobs:
            return f'it has done {post.process.facts["jobs"]} jobs'
        if limits.age_seconds is not None and now - post.started >= limits.age_seconds:
            return f'it is {now - post.started:.0f} s old'
        if limits.memory_bytes is not None:
            memory = post.process.memory_bytes() or 0
            if memory >= limits.memory_bytes:
                return f'it holds {memory / 1e6:.0f} MB'
        return None

    def recycle_all(self):
        """Replace all workers, one after the other; those that are just gone are new anyway."""
        self._recycle = {post.name for post in self.workers if post.is_alive}

    def stop(self):
        """Begin to stop: workers end their jobs, then the servers that are ours end."""
        self.stopping = True
        for post in self.workers:
            post.tell_to_stop(clock.monotonic())

    def hurry(self):
        """Tell the workers a second time: they end at once."""
        for post in self.workers:
            post.hurry()

    def kill(self):
        """End everybody by force, now."""
        for post in [*self.workers, *(server.post for server in self.servers)]:
            if post.process is not None:
                post.process.kill()

    def lines(self):
        """File descriptors that have something to read when there is something to look at."""
        posts = [*self.workers, *(server.post for server in self.servers)]
        found = [post.process.fileno() for post in posts if post.is_alive]
        return [descriptor for descriptor in found if descriptor >= 0]

    def state(self):
        """What is known of all, plain values."""
        now = clock.monotonic()
        return {
            'pid': os.getpid(),
            'database': self.title,
            'stopping': self.stopping,
            'limits': self.limits._asdict(),
            'servers': [server.state(now) for server in self.servers],
            'workers': [post.state(now) for post in self.workers],
        }


class Watch:
    """Looks after a `Supervisor` in the main thread, until a signal has stopped it.

    SIGTERM and SIGINT stop it, a second one hurries, SIGHUP recycles all.  The
    supervisor's state is in a file meanwhile.
    """

    def __init__(self, supervisor):
        self.supervisor = supervisor
        self._signals = []
        self._stopped = 0
        self._written = None

    def run(self):
        """Returns when all processes have ended."""
        numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD]
        formers = {number: signal.signal(number, self._note) for number in numbers}
        here, there = os.pipe()
        for descriptor in (here, there):
            os.set_blocking(descriptor, False)
        former = signal.set_wakeup_fd(there, warn_on_full_buffer=False)
        try:
            with _state_file() as path:
                seconds = 0.0
                while seconds is not None:
                    self._wait(here, seconds)
                    self._obey()
                    seconds = self.supervisor.look()
                    self._write(path)
        finally:
            self.supervisor.kill()
            signal.set_wakeup_fd(former)
            for number, handler in formers.items():
                signal.signal(number, handler)
            os.close(here)
            os.close(there)

    def _note(self, number, frame):
        if number != signal.SIGCHLD:  # that one only ends the wait
            self._signals.append(number)

    def _wait(self, wakeup, seconds):
        with selectors.DefaultSelector() as selector:
            for descriptor in {wakeup, *self.supervisor.lines()}:
                selector.register(descriptor, selectors.EVENT_READ)
            selector.select(seconds)
        with contextlib.suppress(BlockingIOError):
            os.read(wakeup, 1024)

    def _obey(self):
        if self.supervisor.broken is not None and not self.supervisor.stopping:
            log.error('no worker gets ready: giving up')
            self.supervisor.stop()
        while self._signals:
            number = self._signals.pop(0)
            name = signal.Signals(number).name
            if number == signal.SIGHUP:
                log.info('%s: all workers are recycled, one by one', name)
                self.supervisor.recycle_all()
            elif not self._stopped:
                self._stopped = 1
                log.info('%s: stopping; jobs that run have %g seconds', name, self.supervisor.grace)
                self.supervisor.stop()
            else:
                log.warning('%s again: ending at once', name)
                self.supervisor.hurry()

    def _write(self, path):
        """Renew the file when something has changed, or a second has passed."""
        now = clock.monotonic()
        if path is None or (self._written is not None and now - self._written < LOOK_SECONDS / 2):
            return
        self._written = now
        text = json.dumps(self.supervisor.state())
        with open(f'{path}.new', 'w') as file:
            file.write(text)
        os.replace(f'{path}.new', path)


@contextlib.contextmanager
def _state_file():
    """The path for our state, removed at the end; None if there is no place for it."""
    try:
        path = os.path.join(witness.lock_folder(), f'{STATE_PREFIX}{os.getpid()}.json')
    except OSError as error:
        log.info('no file for the state of the supervisor: %s', error)
        yield None
        return
    try:
        yield path
    finally:
        for name in (path, f'{path}.new'):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)


def states():
    """The states of the supervisors of this user that run on this host: a list of dicts.

    Each is what `Supervisor.state` gave within the last second or so: 'pid',
    'database' (a text), 'stopping', 'limits', 'servers', and 'workers', each of
    which has 'name', 'state' (running, stopping, waiting), 'starts' and, when it
    runs, 'pid', 'age seconds', 'memory bytes', and what it tells itself: 'uuids'
    (of its dispatchers), 'jobs' (done) and 'active'.
    """
    try:
        folder = witness.lock_folder()
        names = [name for name in os.listdir(folder) if name.startswith(STATE_PREFIX)]
    except OSError:
        return []
    found = []
    for name in sorted(name for name in names if name.endswith('.json')):
        path = os.path.join(folder, name)
        with contextlib.suppress(OSError, ValueError):
            with open(path) as file:
                state = json.load(file)
            if _is_there(state['pid']):
                found.append(state)
            else:  # it was killed, and has left its file
                os.unlink(path)
    return found


def _is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # there, and somebody else's
    return True


def start_worker(options, number, line, log_file=None):
    """Start ``zodbjobs run`` with these `options` (texts) as worker `number`; returns a Popen."""
    # A worker finds the modules that a single process started as we were would find.
    path = sys.path[0] if sys.path else None
    here = [] if path in ('', os.getcwd()) else ['-P']
    command = [
        sys.executable,
        *here,
        '-m',
        'zodbjobs',
        'run',
        *options,
        '--supervised',
        str(number),
    ]
    return subprocess.Popen(
        command, stdin=line, stdout=log_file, stderr=log_file, start_new_session=True
    )
