"""Live annotations: written and read in other transactions than the job's.

Writes are done in one service thread per dispatcher, in the order they came;
the job does not wait for them.  Reads are done in the job's own thread, with a
connection that is borrowed for a moment.
"""

import logging
import queue
import threading

import transaction

from zodbjobs import clock
from zodbjobs.runtime import joblog, trouble

log = logging.getLogger('zodbjobs.events')

#: Progress of one job is written at most so often.
PROGRESS_SECONDS = 0.25

#: The shortest time between two looks for an annotation.
SHORTEST_POLL_SECONDS = 0.01

#: How often a write that conflicts is tried.
ATTEMPTS = 20

_END = object()


class _Added:
    """Lines that are added to those an annotation has."""

    def __init__(self, lines):
        self.lines = lines

    def to(self, former):
        return joblog.added(former, self.lines)


class Surroundings:
    """What `local` gives to the jobs of one agent (see `zodbjobs.local.enter`)."""

    def __init__(self, dispatcher, queue_name, agent_name):
        self.dispatcher = dispatcher
        self.queue_name = queue_name
        self.agent_name = agent_name

    def write_annotation(self, job, name, value):
        self.dispatcher.notebook.write(_address(job), name, value)

    def read_annotation(self, job, name, default, timeout, poll):
        return self.dispatcher.notebook.read(_address(job), name, default, timeout, poll)

    def write_progress(self, job, done, total, message):
        self.dispatcher.notebook.write_progress(
            _address(job), {'done': done, 'total': total, 'message': message}
        )


def _address(job):
    if job._p_oid is None:
        raise ValueError(f'{job!r} is not stored: only a job that was put has live annotations')
    return job._p_oid, job._p_jar.db().database_name


class Notebook:
    """The live annotations of a dispatcher's jobs."""

    def __init__(self, dispatcher):
        self._dispatcher = dispatcher
        self._inbox = queue.SimpleQueue()
        self._guard = threading.Lock()
        self._thread = None
        self._open = 0  # writes not done
        self._written = {}  # address -> when its progress was written (monotonic seconds)
        self._latest = {}  # address -> progress not written yet
        self._waiting = set()  # events of readers that wait
        self._life = 0  # how often the dispatcher has stopped

    def is_quiet(self):
        return not self._open

    # write

    def write(self, address, name, value):
        with self._guard:
            self._open += 1
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._serve, name='zodbjobs annotations', daemon=True
                )
                self._thread.start()
        self._inbox.put((address, name, value))

    def add_to(self, address, name, lines):
        """Add lines to the annotation of that name, which is a tuple of the latest ones."""
        self.write(address, name, _Added(lines))

    def write_progress(self, address, progress):
        with self._guard:
            waits = address in self._latest
            self._latest[address] = progress
        if waits:
            return
        age = clock.monotonic() - self._written.get(address, -PROGRESS_SECONDS)
        if age >= PROGRESS_SECONDS:
            self._flush(address)
        else:
            reactor = self._dispatcher.reactor
            reactor.callFromThread(reactor.callLater, PROGRESS_SECONDS - age, self._flush, address)

    def _flush(self, address):
        with self._guard:
            progress = self._latest.pop(address, None)
            self._written[address] = clock.monotonic()
            if len(self._written) > 1000:
                self._written.clear()
        if progress is not None:
            self.write(address, 'zodbjobs.progress', progress)

    def stop(self):
        """Write what is there, and end the thread."""
        for address in list(self._latest):
            self._flush(address)
        with self._guard:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._inbox.put(_END)
            thread.join()

    def _serve(self):
        manager = transaction.TransactionManager()
        while (item := self._inbox.get()) is not _END:
            try:
                self._write(manager, *item)
            except Exception:
                log.exception('the live annotation %r could not be written', item[1])
            finally:
                manager.abort()
                with self._guard:
                    self._open -= 1
            self.look_again()

    def _write(self, manager, address, name, value):
        for attempt in range(ATTEMPTS):
            connection = self._dispatcher.db.open(manager)
            try:
                notes = _job_at(connection, address).annotations
                notes[name] = value.to(notes.get(name)) if isinstance(value, _Added) else value
                manager.commit()
                return
            except Exception as error:
                manager.abort()
                if attempt == ATTEMPTS - 1 or not trouble.is_conflict(error):
                    raise
            finally:
                connection.close()

    # read

    def read(self, address, name, default, timeout, poll):
        deadline = clock.monotonic() + timeout
        missing, life = object(), self._life
        while True:
            value = self._read(address, name, missing)
            if value is not missing:
                return value
            left = deadline - clock.monotonic()
            if left <= 0 or life != self._life:
                return default
            self._wait(min(max(poll, SHORTEST_POLL_SECONDS), left))

    def _read(self, address, name, default):
        manager = transaction.TransactionManager()
        connection = self._dispatcher.db.open(manager)
        try:
            return _job_at(connection, address).annotations.get(name, default)
        finally:
            manager.abort()
            connection.close()

    @property
    def waiting_count(self):
        """How many readers wait for time to pass, and are not about to look again."""
        with self._guard:
            return sum(not event.is_set() for event in self._waiting)

    def is_cancelled(self, assignment):
        """Whether a running job was cancelled, as it is now in the database."""
        manager = transaction.TransactionManager()
        connection = self._dispatcher.db.open(manager)
        try:
            return _job_at(connection, (assignment.oid, assignment.database))._cancelled
        finally:
            manager.abort()
            connection.close()

    def _wait(self, seconds):
        """Wait for time to pass on the reactor's clock, or for a commit that rings."""
        event = threading.Event()
        reactor = self._dispatcher.reactor
        # In this order: a reader that counts as waiting has asked to be woken.
        reactor.callFromThread(reactor.callLater, seconds, event.set)
        with self._guard:
            self._waiting.add(event)
        try:
            event.wait()
        finally:
            with self._guard:
                self._waiting.discard(event)

    def end_waiting(self):
        """Let readers wait no longer: their jobs were handed back."""
        self._life += 1
        self.look_again()

    def look_again(self):
        """Something was committed: readers that wait look again."""
        with self._guard:
            for event in self._waiting:
                event.set()


def _job_at(connection, address):
    oid, database = address
    home = connection.get_connection(database) if database else connection
    return home.get(oid)
