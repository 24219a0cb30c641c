"""Opening a database by its address.

An address is a zodburi URI, in every spelling people type, or the plain path of
a file.  What cannot be opened is said in one sentence, with what to do about
it, and leaves nothing behind: no lock, no thread, no folder.

Used by the commands and by processes started for work.  The caller's thread
opens, and waits; opening commits once to a database that has no root yet, and
RelStorage creates its tables where they are missing.
"""

import importlib.metadata
import os
import re
import traceback
import urllib.parse

import zc.lockfile
import ZConfig
import ZODB
import zodburi
import zodburi.datatypes
from ZODB.POSException import POSError

from zodbjobs.runtime import shared_file, trouble
from zodbjobs.runtime.oids import give_ids_once

#: Connections expected at once; more are only warned about, and a dispatcher
#: with several agents has a thread, hence a connection, for every job.
POOL_SIZE = 32

#: Objects kept per connection: there are many connections, and jobs rarely meet
#: the same objects again (zodburi's default is 10,000).
CACHE_SIZE = 2000

#: How long a server may take to answer, unless the address says otherwise.
WAIT_SECONDS = 10

#: Two letters at least, so that a Windows drive is not taken for a scheme.
_SCHEME = re.compile(r'([A-Za-z][A-Za-z0-9+.-]+):(.*)', re.DOTALL)

_RESOLVERS = 'zodburi.resolvers'  # the entry points by which zodburi is extended


class AddressError(ValueError):
    """The database at an address cannot be opened, for the reason the message gives."""


def open_database(uri, **db_options):
    """Open the database at `uri` and return the ZODB.DB.

    `uri` (a string or a path): ``file:`` ``zeo:`` ``zconfig:`` ``memory:``
    ``postgres:`` (or ``postgresql:``), another scheme zodburi knows, or a path
    without a scheme.  `db_options` go to ZODB.DB and win over what the address
    says.  A file that workers share (``zodbjobs run -n``) is opened through
    their server.  Raises AddressError.
    """

    def open_all(factory, named):
        options = {'pool_size': POOL_SIZE, 'cache_size': CACHE_SIZE, **named, **db_options}
        return _open(factory, options)

    try:
        return _opened(uri, open_all)
    except AddressError as exc:
        # Workers that share a file have a server for it, by which we can have it, too.
        is_locked = isinstance(exc.__cause__, zc.lockfile.LockError)
        shared = shared_file.answered_uri(uri) if is_locked else None
        if shared is None:
            raise
    return _opened(shared, open_all)


def open_storage(uri):
    """Open the storage at `uri` alone and return it; raises AddressError."""
    return _opened(uri, lambda factory, named: factory())


def _opened(uri, call):
    """What `call` returns for the factory and the options of the address, or AddressError."""
    uri = os.fspath(uri)
    scheme, rest = _split(uri)
    factory, named = _resolve(uri, scheme, rest)
    try:
        return call(factory, named)
    except Exception as exc:
        reason = _reason(exc, scheme, rest)
        if reason is None:
            raise
        # The frames of the failed call hold what it had opened, a file's lock
        # for one, and would do so for as long as somebody keeps the exception.
        traceback.clear_frames(exc.__traceback__)
        raise AddressError(f'{without_password(uri)}: {reason}') from exc


def _open(factory, options):
    storage = factory()
    try:
        db = ZODB.DB(storage, **options)
    except BaseException:
        storage.close()
        raise
    give_ids_once(db)
    return db


def _split(uri):
    """(scheme, what follows its colon); a path without a scheme is a file."""
    match = _SCHEME.fullmatch(uri)
    if match is None:
        return 'file', uri
    scheme = match[1].lower()
    return {'postgresql': 'postgres'}.get(scheme, scheme), match[2]


# From an address to something that opens a storage.


def _resolve(uri, scheme, rest):
    """(callable that opens the storage, options of the database named in the address)."""
    try:
        resolver = _resolver(scheme)
        factory, options = resolver(_SPELLINGS.get(scheme, _as_written)(scheme, rest))
        return factory, _database_options(options)
    except AddressError:
        raise
    except (ValueError, KeyError, OSError, ZConfig.ConfigurationError) as exc:
        said = exc.args[0] if isinstance(exc, KeyError) and exc.args else exc
        raise AddressError(f'{without_password(uri)}: {said}') from exc
    except ImportError as exc:
        raise AddressError(f'{without_password(uri)}: {_missing(exc, scheme)}') from exc


def _resolver(scheme):
    """The zodburi resolver for `scheme`: a callable, uri -> (factory, options)."""
    found = {each.name: each for each in importlib.metadata.entry_points(group=_RESOLVERS)}
    if scheme == 'postgres':
        return _postgresql_resolver()
    if scheme not in found:
        known = ' '.join(f'{name}:' for name in sorted({*found, 'postgres', 'postgresql'}))
        raise AddressError(
            f'{scheme}: is no kind of database address; known are {known}'
            f' and the plain path of a file (./{scheme}:... if that is meant)'
        )
    return found[scheme].load()


def _file(scheme, rest):
    path, mark, query = rest.removeprefix('//').partition('?')
    if not path:
        raise AddressError('file: names no file; write file:Data.fs or file:///var/lib/Data.fs')
    path = os.path.abspath(path)
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise AddressError(f'{path}: there is no folder {folder}')
    if os.path.isdir(path):
        raise AddressError(f'{path} is a folder; name a file in it, such as {path}/Data.fs')
    return f'file://{path}{mark}{query}'


def _memory(scheme, rest):
    return f'memory://{rest.lstrip("/")}'


def _zconfig(scheme, rest):
    path, tail = re.fullmatch(r'([^?#]*)(.*)', rest.removeprefix('//'), re.DOTALL).groups()
    path = os.path.abspath(path)
    if not os.path.isfile(path):
        raise AddressError(f'zconfig: there is no file {path}')
    return f'zconfig://{path}{tail}'


def _zeo(scheme, rest):
    place, _, query = rest.removeprefix('//').partition('?')
    if place.startswith(('/', '.')):
        place = os.path.abspath(place)  # a Unix socket
    if not place:
        raise AddressError('zeo: names no server; write zeo://host:9991 or zeo:///path/of/socket')
    return f'zeo://{place}?{_with_defaults(query, wait_timeout=WAIT_SECONDS)}'


def _postgres(scheme, rest):
    place, _, query = rest.removeprefix('//').partition('?')
    # Jobs come and go by the thousand: old revisions of theirs help nobody.
    query = _with_defaults(query, driver='psycopg2', keep_history='false')
    return f'postgres://{place}?{query}'


def _as_written(scheme, rest):
    return f'{scheme}:{rest}'


_SPELLINGS = {
    'file': _file,
    'memory': _memory,
    'zconfig': _zconfig,
    'zeo': _zeo,
    'postgres': _postgres,
}


def _with_defaults(query, **defaults):
    given = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    return urllib.parse.urlencode({**defaults, **given})


def _database_options(raw):
    """The keyword arguments of ZODB.DB in what a resolver left over, a dict of strings."""
    options = {}
    for name, value in raw.items():
        option = zodburi.PARAMETERS.get(name)
        if option is None:
            known = ' '.join(sorted(zodburi.PARAMETERS))
            raise AddressError(f'unknown option {name!r} in the address; for the database: {known}')
        if isinstance(value, str) and option in zodburi.BYTES_PARAMETERS:
            value = zodburi.datatypes.convert_bytesize(value)
        elif isinstance(value, str) and option != 'database_name':
            value = int(value)
        options[option] = value
    return options


# PostgreSQL.  RelStorage reads the address and its own options; the connection
# string is made here, because its own helper writes a missing user or port as
# the text None, takes an escaped password literally and cannot name a socket.

_LIBPQ_OPTIONS = (
    'host', 'hostaddr', 'port', 'user', 'password', 'passfile', 'service', 'connect_timeout',
    'options', 'sslmode', 'sslcert', 'sslkey', 'sslrootcert', 'target_session_attrs',
)  # fmt: skip


def _postgresql_resolver():
    from relstorage.zodburi_resolver import RelStorageURIResolver

    return RelStorageURIResolver(_postgresql_adapter)


def _postgresql_adapter(parts, options):
    """Called by RelStorage with the parsed address and a dict of the options in its query.

    Returns (callable, RelStorage's options -> adapter; the options not used).
    """
    unquote = urllib.parse.unquote
    named = {
        'dbname': unquote(parts.path.strip('/')),
        'user': unquote(parts.username or ''),
        'password': unquote(parts.password or ''),
        'host': unquote(parts.hostname or ''),
        'port': parts.port,
    }
    if 'psycopg2' in options['driver']:
        named['connect_timeout'] = WAIT_SECONDS
    named |= {name: options[name] for name in _LIBPQ_OPTIONS if name in options}
    dsn = ' '.join(f'{name}={_dsn_value(value)}' for name, value in named.items() if value)

    def factory(relstorage_options):
        from relstorage.adapters.postgresql import PostgreSQLAdapter

        return PostgreSQLAdapter(dsn=dsn, options=relstorage_options)

    return factory, {name: value for name, value in options.items() if name not in _LIBPQ_OPTIONS}


def _dsn_value(value):
    return "'" + re.sub(r"(['\\])", r'\\\1', str(value)) + "'"


# What to tell when it cannot be opened.


def _reason(exc, scheme, rest):
    """Why the database cannot be opened, in words; None when `exc` is not for us to explain."""
    if isinstance(exc, zc.lockfile.LockError):
        return _locked(exc, scheme, rest)
    if trouble.is_disconnected(exc):
        return f'no connection to the server: {trouble.in_short(exc)}'
    if isinstance(exc, ImportError):
        return _missing(exc, scheme)
    if isinstance(exc, OSError):
        return f'{exc.strerror or exc}{f": {exc.filename}" if exc.filename else ""}'
    if isinstance(exc, (POSError, ZConfig.ConfigurationError)):
        keeps = scheme == 'postgres' and 'history-preserving database' in str(exc)
        advice = ' Or add keep_history=true to the address.' if keeps else ''
        return f'{exc or type(exc).__name__}{advice}'
    return None


def _locked(exc, scheme, rest):
    advice = 'stop it, or let a ZEO server open the file and give everybody its zeo: address'
    holder = 'another process'
    if scheme == 'file':
        pid = _pid_in(f'{rest.removeprefix("//").partition("?")[0]}.lock')
        if pid == os.getpid():
            return 'this process has the file open already; use that database'
        if pid is not None:
            holder = f'process {pid}'
    return f'{holder} has the file open; {advice} ({exc})'


def _pid_in(lock_path):
    try:
        with open(lock_path) as lock:
            return int(lock.read().split()[0])
    except (OSError, ValueError, IndexError):
        return None  # the advice is good without the number


def _missing(exc, scheme):
    if scheme == 'postgres':
        return f'RelStorage and psycopg2 are needed: pip install "zodbjobs[postgresql]" ({exc})'
    return f'a package is missing: {exc}'


def without_password(uri):
    """An address as it may be shown."""
    shown = re.sub(r'(//[^/@:]*):[^/@]*@', r'\1:***@', uri)
    return re.sub(r'([?&]password=)[^&]*', r'\1***', shown)
