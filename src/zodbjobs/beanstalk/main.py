"""The command ``zodbjobs-beanstalkd``: beanstalkd's flags, and a database underneath.

It opens the socket first and everything else after, so that clients that start
it and connect at once find it.  Packs its own file when that has grown.

The main thread runs the reactor; packing has a thread of its own.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import os
import pwd
import resource
import secrets
import signal
import socket
import sys

from zodbjobs.beanstalk.protocol import BODY_BYTES, MOST_BODY_BYTES

#: The release of beanstalkd whose behaviour this is.  Clients read it in the statistics, and
#: some ask whether it is large enough for a command.
SPOKEN = '1.12'

#: Bytes by which a file of our own must have grown, and at least doubled, to be packed.
LOG_BYTES = 10 * 1024 * 1024

#: What is kept of a database of our own: a job that is reserved soon is not loaded again.
CACHE = {'cache_size': 50_000, 'cache_size_bytes': 64 * 1024 * 1024}

# Exit codes that beanstalkd has for these.
BAD_FLAG, NO_SUCH_USER, NO_LOCK, NO_SOCKET = 5, 1, 10, 111


class _Flags(argparse.ArgumentParser):
    def error(self, message):
        self.print_usage(sys.stderr)
        self.exit(BAD_FLAG, f'{self.prog}: {message}\n')


def flags():
    """The parser of the command line."""
    parser = _Flags(
        prog='zodbjobs-beanstalkd',
        description='Serve the protocol of beanstalkd from a ZODB. What is acknowledged is stored.',
        add_help=False,
    )
    add = parser.add_argument
    add('-b', metavar='DIR', help='keep jobs in DIR/Data.fs; without -b and --zodb, in memory')
    add('-f', metavar='MS', type=int, help='accepted, and taken as 0: each commit is synced')
    add('-F', action='store_true', help='never sync the file of -b')
    add('-l', metavar='ADDR', default='127.0.0.1', help='listen there (127.0.0.1), or unix:PATH')
    add('-p', metavar='PORT', type=int, default=11300, help='listen on this port (11300)')
    add('-u', metavar='USER', help='become this user, once the socket is open')
    add(
        '-z',
        metavar='BYTES',
        type=int,
        default=BODY_BYTES,
        help='the longest body of a job (65535)',
    )
    add('-s', metavar='BYTES', type=int, default=LOG_BYTES, help='growth before the file is packed')
    add('-c', action='store_true', help='accepted, and does nothing')
    add('-n', action='store_true', help='accepted, and does nothing')
    add('-V', action='count', default=0, help='say more; may be repeated')
    add('-v', action='store_true', help='show the version and exit')
    add('-h', action='help', help='show this and exit')
    add('--zodb', metavar='URI', help='serve this database: zeo:, postgres:, file: ...')
    add('--endpoint', metavar='TEXT', help="listen there instead: a Twisted endpoint, as 'ssl:...'")
    return parser


def version():
    return f'{SPOKEN} (zodbjobs {importlib.metadata.version("zodbjobs")})'


def main(args=None):
    """Run the command; returns its exit code."""
    options = flags().parse_args(args)
    if options.v:
        print(f'zodbjobs-beanstalkd {version()}')
        return 0
    if options.b and options.zodb:
        flags().error('-b and --zodb: one of them')
    if not 0 <= options.z <= MOST_BODY_BYTES:
        print('zodbjobs-beanstalkd: -z is at most 1073741824, taken as that', file=sys.stderr)
        options.z = MOST_BODY_BYTES
    try:
        listening = None if options.endpoint else open_socket(options.l, options.p)
    except OSError as error:
        place = options.l if options.l.startswith('unix:') else f'{options.l}, port {options.p}'
        print(f'zodbjobs-beanstalkd: cannot listen on {place}: {error}', file=sys.stderr)
        return NO_SOCKET
    allow_files()
    if options.u:
        become(options.u)
    return serve(options, listening)


def open_socket(address, port):
    """A listening socket: the one that was inherited, or one at `address`."""
    inherited = inherited_socket()
    if inherited is not None:
        return inherited
    if address.startswith('unix:'):
        path = address.removeprefix('unix:')
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        found = socket.socket(socket.AF_UNIX)
        found.bind(path)
    else:
        ((family, _, _, _, place), *_) = socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        found = socket.socket(family)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(place)
    found.listen(1024)
    return found


def inherited_socket():
    """The first socket that systemd, or who else started us, has opened for us, or None."""
    if os.environ.get('LISTEN_PID') != str(os.getpid()) or not os.environ.get('LISTEN_FDS'):
        return None
    if os.environ.pop('LISTEN_FDS') == '0':
        return None
    os.environ.pop('LISTEN_PID')
    return socket.socket(fileno=3)


def become(user):
    """Give up what only root may do."""
    try:
        found = pwd.getpwnam(user)
    except KeyError:
        print(f'zodbjobs-beanstalkd: there is no user {user!r}', file=sys.stderr)
        sys.exit(NO_SUCH_USER)
    os.initgroups(user, found.pw_gid)
    os.setgid(found.pw_gid)
    os.setuid(found.pw_uid)


def allow_files():
    """Have as many files, and so connections, as the system lets this process have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def serve(options, listening):
    """Open the database and serve until a signal says to stop; returns the exit code."""
    import gc
    import logging

    from twisted.internet import reactor

    from zodbjobs.beanstalk.gateway import Gateway
    from zodbjobs.beanstalk.own import OwnStore
    from zodbjobs.beanstalk.packing import Packing
    from zodbjobs.beanstalk.server import Factory, attach
    from zodbjobs.beanstalk.store import Store
    from zodbjobs.runtime import storages

    # Every job brings some objects, none of them in a cycle: looking for cycles after each few
    # hundred, as Python does, costs a tenth of all time.
    gc.set_threshold(20_000, 10, 100)
    levels = [logging.ERROR, logging.INFO, logging.DEBUG]
    logging.basicConfig(level=levels[min(options.V, 2)], format='%(name)s: %(message)s')
    db = open_database(options)
    if db is None:
        return NO_LOCK
    identity = secrets.token_hex(8)
    name = f'beanstalkd {identity}'
    if options.zodb:
        store = Store(db, name, storages.kind(db) == storages.EXCLUSIVE)
    else:
        store = OwnStore(db, name)
    store.prepare()
    info = {'version': SPOKEN, 'id': identity, 'log_bytes': options.s}
    gateway = Gateway(store, options.z, info)
    listener = attach(gateway, reactor)
    signal.signal(signal.SIGUSR1, lambda *_: gateway.drain())
    failures = []
    if options.endpoint:
        listen_at(options.endpoint, Factory(gateway), reactor, failures)
    else:
        listening.setblocking(False)
        reactor.adoptStreamPort(listening.fileno(), listening.family, Factory(gateway))
    if not options.zodb:  # a database of others is packed by others
        Packing(db, file_of(options), options.s, reactor).start()
    if not failures:
        reactor.run()
    listener.close()
    store.close()
    db.close()
    return NO_SOCKET if failures else 0


def listen_at(text, factory, reactor, failures):
    """Listen at a Twisted endpoint, now or soon; what hinders is said, and noted in `failures`."""
    from twisted.internet import endpoints

    def fail(error):
        failures.append(error)
        print(f'zodbjobs-beanstalkd: --endpoint {text}: {error}', file=sys.stderr)
        if text.startswith('ssl:') and isinstance(error, ImportError | AttributeError):
            print("TLS needs two more packages: pip install 'zodbjobs[tls]'", file=sys.stderr)
        if reactor.running:
            reactor.stop()

    try:
        listening = endpoints.serverFromString(reactor, text).listen(factory)
    except Exception as error:  # noqa: BLE001 - whatever the endpoint's plugin raises
        fail(error)
    else:
        listening.addErrback(lambda failure: fail(failure.value))


def file_of(options):
    """The path of the file that -b asks for, or None."""
    return None if options.b is None else os.path.join(options.b, 'Data.fs')


def open_database(options):
    """The ZODB.DB, or None after saying why there is none."""
    import zc.lockfile
    import ZODB

    if options.zodb:
        from zodbjobs.runtime.address import AddressError
        from zodbjobs.runtime.address import open_database as open_at

        try:
            return open_at(options.zodb)
        except AddressError as error:
            print(f'zodbjobs-beanstalkd: {error}', file=sys.stderr)
            return None
    if options.b is None:
        from ZODB.MappingStorage import MappingStorage

        return ZODB.DB(MappingStorage('beanstalkd'), **CACHE)
    from ZODB.FileStorage import FileStorage

    path = file_of(options)
    try:
        storage = FileStorage(path)
    except (zc.lockfile.LockError, OSError) as error:
        print(f'zodbjobs-beanstalkd: {path}: {error}', file=sys.stderr)
        return None
    if options.F:
        leave_unsynced()
    return ZODB.DB(storage, **CACHE)


def leave_unsynced():
    """Let FileStorage write without syncing, in this process."""
    # The package has a class of that name, which hides the module.
    importlib.import_module('ZODB.FileStorage.FileStorage').fsync = None
