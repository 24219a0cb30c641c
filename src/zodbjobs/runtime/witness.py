"""Who can testify that a dispatcher lives, and that it died.

The jobs of a dead dispatcher are given to others, so death has to be proved; a
living one is never declared dead for being slow.  The witnesses, strongest first:

* an exclusive storage: no other process can have it open, so whoever is not in
  this process is gone;
* a record lock on a file, for processes of one host: the system takes it away
  in the moment of death, and at no other time;
* an advisory lock in PostgreSQL, held by a session: it ends with the process,
  but may also end with the connection, so it must be missed for a while.

Each answers True (lives), False (dead) or None (cannot tell).  The dispatcher's
thread asks, at its polls; nothing here joins a transaction or reads the
database's objects.
"""

import errno
import hashlib
import logging
import os
import socket
import stat
import tempfile
import threading
import time
import uuid as uuids
import weakref

from zodbjobs import clock
from zodbjobs.runtime import storages, trouble

try:
    import fcntl
except ImportError:  # Windows: no record locks, and then nobody can tell
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger('zodbjobs.witness')


# Dispatchers of this process.

_local_guard = threading.Lock()
_local = weakref.WeakKeyDictionary()  # storage object -> the UUIDs that live on it, a set


def register_local(db, uuid):
    """Note that the dispatcher `uuid` lives in this process; False if it was noted before."""
    return _register(storages.base(db), uuid)


def unregister_local(db, uuid):
    """Take back `register_local`; harmless when there is nothing to take back."""
    _unregister(storages.base(db), uuid)


def _register(storage, uuid):
    with _local_guard:
        alive = _local.setdefault(storage, set())
        if uuid in alive:
            return False
        alive.add(uuid)
        return True


def _unregister(storage, uuid):
    with _local_guard:
        _local.get(storage, set()).discard(uuid)


def _is_local(storage, uuid):
    with _local_guard:
        return uuid in _local.get(storage, ())


# Record locks: processes of one host.

#: A sibling's test holds a lock for some microseconds: try again before giving up.
ACQUIRE_ATTEMPTS = 3
ACQUIRE_PAUSE_SECONDS = 0.002

#: Names the folder of the locks; processes that share a database must agree on it.
FOLDER_VARIABLE = 'ZODBJOBS_LOCK_DIR'

#: The locks of this process, by the real path of the file.  Closing *any*
#: descriptor of a file drops all of the process's locks on it, so a file whose
#: lock is held here must never be opened a second time.
_record_locks = {}
_record_guard = threading.Lock()


def _start_anew():
    """In a forked child: the dispatchers and their locks stay with the parent."""
    global _local_guard, _record_guard
    _local_guard, _record_guard = threading.Lock(), threading.Lock()
    _local.clear()
    _record_locks.clear()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_start_anew)


def lock_folder():
    """The folder of the record locks, made if it is missing: one per user and host.

    Raises OSError when it cannot be made or belongs to somebody else.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        os.makedirs(named, exist_ok=True)
        return os.path.realpath(named)
    return own_folder()


def own_folder():
    """The folder for what processes of this user and host share, whatever is named elsewhere."""
    user = os.getuid() if hasattr(os, 'getuid') else 'user'
    folder = os.path.join(os.path.realpath(tempfile.gettempdir()), f'zodbjobs-{user}')
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        # Everybody may write where this stands: take nobody else's folder.
        found = os.lstat(folder)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != user:
            raise PermissionError(
                errno.EPERM, f'does not belong to this user; set {FOLDER_VARIABLE}', folder
            ) from None
    return folder


class RecordLock:
    """A POSIX record lock on the file `name` in `folder`, held by this process."""

    def __init__(self, folder, name):
        self.path = _lock_path(folder, name)
        self._descriptor = None

    def acquire(self):
        """Take the lock without waiting; True if it is ours, now or already."""
        if fcntl is None:
            return True  # nobody can tell anyway
        for attempt in range(ACQUIRE_ATTEMPTS):
            if attempt:
                time.sleep(ACQUIRE_PAUSE_SECONDS)
            with _record_guard:
                holder = _record_locks.get(self.path)
                if holder is not None:
                    return holder is self and self._stands()
                if self._take():
                    _record_locks[self.path] = self
                    return True
        return False

    def release(self):
        """Give the lock back and take the file away."""
        with _record_guard:
            if _record_locks.get(self.path) is self:
                del _record_locks[self.path]
                # While it is still locked: who comes later makes a new file, and
                # who has opened this one will see that it is gone.
                if _same_file(self._descriptor, self.path):
                    os.unlink(self.path)
                self._drop()

    def show(self):
        """Let siblings see, by the age of the file, that whoever holds the lock does its work."""
        with _record_guard:
            if _record_locks.get(self.path) is self:
                os.utime(self._descriptor)

    def _take(self):
        """Whether the file could be opened, locked, and still is the one with that name."""
        os.makedirs(os.path.dirname(self.path), 0o700, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(descriptor)
            if exc.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        if not _same_file(descriptor, self.path):
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def _stands(self):
        """Whether others can see the lock; a file that a cleaner took away is made again."""
        if _same_file(self._descriptor, self.path):
            os.utime(self._descriptor)  # cleaners of temporary folders go by age
            return True
        log.warning('%s was deleted while it was locked; locking it anew', self.path)
        del _record_locks[self.path]
        self._drop()
        if self._take():
            _record_locks[self.path] = self
            return True
        return False

    def _drop(self):
        os.close(self._descriptor)
        self._descriptor = None


def is_held(folder, name):
    """Whether some process holds the `RecordLock` of that name; None if that cannot be known."""
    if fcntl is None:
        return None
    path = _lock_path(folder, name)
    with _record_guard:
        if path in _record_locks:
            return True
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        except OSError as exc:
            log.info('cannot look at the lock of %s: %s', name, exc)
            return None
        try:
            # Shared, so that several who ask at a time do not take each other
            # for the holder.
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as exc:
            return True if exc.errno in (errno.EACCES, errno.EAGAIN) else None
        finally:
            os.close(descriptor)
        return False


def seconds_between(folder, name, later):
    """How much later the lock `later` was shown than the lock `name`; None if that is not known."""
    try:
        found = [os.stat(_lock_path(folder, each)).st_mtime for each in (name, later)]
    except OSError:
        return None
    return found[1] - found[0]


def _lock_path(folder, name):
    if os.path.basename(name) != name:
        raise ValueError(f'{name!r} cannot be the name of a lock: it is a path')
    return os.path.join(os.path.realpath(folder), f'{name}.lock')


def _same_file(descriptor, path):
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def place_of(folder):
    """A text that two processes share if, and only if, they see each other's locks in `folder`.

    The host's name alone would not do: machines are cloned with theirs, and
    containers and users of one host may have temporary folders of their own.
    """
    found = os.stat(folder)
    parts = (_boot_id(), folder, str(found.st_dev), str(found.st_ino))
    digest = hashlib.sha256('\n'.join(parts).encode()).hexdigest()
    return f'{socket.gethostname()}/{digest[:12]}'


def _boot_id():
    """Differs between machines, and between starts of one."""
    try:
        with open('/proc/sys/kernel/random/boot_id') as source:
            return source.read().strip()
    except OSError:
        return str(uuids.getnode())  # not Linux: the network card's address


# Advisory locks: sessions on one PostgreSQL server.

#: A lock must be missed this long before its holder is dead: a living holder
#: whose connection was cut, or whose server was restarted, takes it again at its
#: next poll, of which this is three.
MISSED_SECONDS = 15


class AdvisoryLock:
    """An advisory lock in the PostgreSQL database under `db`, on a connection of its own.

    `uuid` is the holder's UUID.  Any thread may call the methods.
    """

    def __init__(self, db, uuid):
        self.uuid = uuid
        self._adapter = storages.adapter(db)
        self._errors = storages.errors(self._adapter)
        self._guard = threading.Lock()
        self._connection = None
        self._missed = {}  # UUID -> since when its lock is missed (seconds of the monotonic clock)

    def acquire(self):
        """Take the lock without waiting, again if the connection was lost.

        True if it is ours, False if another session has it, None if the server
        cannot be reached.
        """
        try:
            with self._guard:
                if self._connection is not None and self._holds():
                    return True
                return self._ask('SELECT pg_try_advisory_lock(%s)', _key(self.uuid))
        except self._errors as exc:
            log.info('cannot lock for dispatcher %s: %s', self.uuid, trouble.in_short(exc))
            return None

    def release(self):
        """Give the lock back and close the connection."""
        with self._guard:
            if self._connection is None:
                return
            try:
                # The server ends a session some time after its client has gone;
                # who comes next wants the lock at once.
                with self._connection.cursor() as cursor:
                    cursor.execute('SELECT pg_advisory_unlock(%s)', (_key(self.uuid),))
            except self._errors as exc:
                log.info('dispatcher %s lost its lock: %s', self.uuid, trouble.in_short(exc))
            self._disconnect()

    def is_held(self, uuid):
        """Whether a session holds the lock of `uuid`.

        None if that is not known: the server cannot be reached, or the lock is
        missing for less than `MISSED_SECONDS`.
        """
        try:
            with self._guard:
                # Reading the table of locks, unlike trying the lock, disturbs nobody.
                if self._ask(_IS_LOCKED, *_halves(uuid)):
                    self._missed.pop(uuid, None)
                    return True
                now = clock.monotonic()
                missed_seconds = now - self._missed.setdefault(uuid, now)
                return False if missed_seconds >= MISSED_SECONDS else None
        except self._errors as exc:
            log.info('cannot look for dispatcher %s: %s', uuid, trouble.in_short(exc))
            return None

    def silence(self, uuid):
        """Seconds since the session that has the lock of `uuid` did anything; None: not known."""
        try:
            with self._guard:
                return self._ask(_SILENCE, *_halves(uuid))
        except self._errors as exc:
            log.info('cannot look for dispatcher %s: %s', uuid, trouble.in_short(exc))
            return None

    def _holds(self):
        return self._ask(f'{_IS_LOCKED} AND pid = pg_backend_pid()', *_halves(self.uuid))

    def _ask(self, question, *values):
        """The one value that the SQL `question` gives, on a connection that works."""
        for last in (False, True):
            if self._connection is None:
                self._connect()
                last = True
            try:
                with self._connection.cursor() as cursor:
                    cursor.execute(question, values)
                    found = cursor.fetchone()
                    return None if found is None else found[0]
            except self._errors:
                self._disconnect()
                if last:
                    raise

    def _connect(self):
        self._connection = storages.connect(self._adapter, 'witness')
        # Whatever cut us off may have cut off the others: give them time.
        self._missed.clear()

    def _disconnect(self):
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _key(uuid):
    """The number of the lock of a dispatcher: 63 bits, unlikely to be anybody else's."""
    digest = hashlib.sha256(f'zodbjobs {uuid}'.encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def _halves(uuid):
    return divmod(_key(uuid), 2**32)


#: objsubid 1 is a lock with one key of 64 bits, given here in two halves.
_IS_LOCKED = """SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND classid = %s::bigint::oid AND objid = %s::bigint::oid AND objsubid = 1"""


#: The server's clock on both sides.  Other users' sessions do not show when they were active.
_SILENCE = """SELECT extract(epoch FROM clock_timestamp() - state_change)::float
    FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND pg_locks.database = pg_stat_activity.datid
    AND datname = current_database()
    AND classid = %s::bigint::oid AND objid = %s::bigint::oid AND objsubid = 1"""


# One witness for a dispatcher, and its name.


def witness_for(db, uuid):
    """The `Witness` of the dispatcher `uuid` (a UUID) on `db`: the strongest the storage allows."""
    kind = storages.kind(db)
    if kind == storages.EXCLUSIVE:
        return Witness(db, uuid, exclusive=True)
    advisory = AdvisoryLock(db, uuid) if storages.can_connect(db) else None
    return Witness(db, uuid, folder=_usable_lock_folder(), advisory=advisory)


def _usable_lock_folder():
    try:
        return lock_folder()
    except OSError as exc:
        log.warning('no record locks, deaths on this host will be noticed later: %s', exc)
        return None


class Witness:
    """Proves to others that a dispatcher lives, and tells it who else does.

    `place` is to be kept in the dispatcher's stored record; others hand it to
    `sees_alive`.
    """

    def __init__(self, db, uuid, exclusive=False, folder=None, advisory=None):
        self.uuid = uuid
        self._storage = storages.base(db)
        self._exclusive = exclusive
        self._folder = folder if fcntl is not None else None
        self._record = RecordLock(folder, str(uuid)) if self._folder else None
        self._advisory = advisory
        self._acquired = False
        self.place = place_of(self._folder) if self._folder else socket.gethostname()

    @property
    def exclusive(self):
        """Whether no other process can have the storage open."""
        return self._exclusive

    @property
    def needs_lease(self):
        """Whether processes on other hosts can see this one alive only by what it writes."""
        return not self._exclusive and self._advisory is None

    @property
    def proves(self):
        """Whether there is anything by which others can see that this dispatcher died."""
        return self._exclusive or self._record is not None or self._advisory is not None

    def acquire(self):
        """Show that the dispatcher lives: True, False if another one lives under this UUID.

        None: a server could not be asked, and processes on other hosts cannot
        see it alive.  To be called again at every poll, as a connection may have
        been cut, or a lock's file deleted.
        """
        if not self._acquired and not _register(self._storage, self.uuid):
            return False
        self._acquired = True
        if self._record is not None and not self._record.acquire():
            return False
        return True if self._advisory is None else self._advisory.acquire()

    def release(self):
        """Others may take the dispatcher for gone."""
        for lock in (self._record, self._advisory):
            if lock is not None:
                lock.release()
        if self._acquired:
            self._acquired = False
            _unregister(self._storage, self.uuid)

    def show(self):
        """Let siblings see that the dispatcher does its work; asking about them shows it, too."""
        if self._record is not None:
            self._record.show()

    def silence(self, uuid, place):
        """Seconds since the living dispatcher `uuid` showed itself; None if that is not known.

        `place` as for `sees_alive`.
        """
        if self._record is not None and place == self.place:
            # Both times are of one file system, and we have just shown ourselves.
            return seconds_between(self._folder, str(uuid), str(self.uuid))
        return None if self._advisory is None else self._advisory.silence(uuid)

    def sees_alive(self, uuid, place):
        """Whether the dispatcher `uuid` lives: True, False (that is proved), or None (unknown).

        `place`: what that dispatcher's witness had in its `place`.
        """
        if _is_local(self._storage, uuid):
            return True
        if self._exclusive:
            return False
        if self._record is not None and place == self.place:
            return is_held(self._folder, str(uuid))
        if self._advisory is not None:
            return self._advisory.is_held(uuid)
        return None


#: Dispatchers of one base id on one host; more is a mistake, such as names never given back.
MOST_SLOTS = 1000


def claim_identity(db, base_id):
    """A name for a dispatcher that a restarted process gets again: (UUID, its acquired Witness).

    Of the names made of `base_id`, the host's name and 0, 1, 2..., the first
    that no living process has.  `base_id` (a UUID, or any text) should come from
    the database: where two share it they share the names too, and the process
    of one would keep the dead of the other alive.  Raises RuntimeError when
    `MOST_SLOTS` are taken.
    """
    if not isinstance(base_id, uuids.UUID):
        base_id = uuids.uuid5(uuids.NAMESPACE_URL, str(base_id))
    for slot in range(MOST_SLOTS):
        witness = witness_for(db, uuids.uuid5(base_id, f'{socket.gethostname()}/{slot}'))
        if not witness.proves:
            break
        if witness.acquire() is not False:
            return witness.uuid, witness
        witness.release()
    else:
        raise RuntimeError(f'{MOST_SLOTS} dispatchers of {base_id} run on this host already')
    # Nothing shows whether a name is in use, so take one that nobody ever had.
    witness = witness_for(db, uuids.uuid4())
    witness.acquire()
    return witness.uuid, witness
