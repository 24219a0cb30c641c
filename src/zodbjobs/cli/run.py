"""``zodbjobs run``: a process that works on the jobs of a database until it is told to stop.

It opens the database, makes what is missing there (the mapping of queues, the
queues it shall serve, its own agents), and runs a dispatcher on the global
Twisted reactor in the main thread, so that jobs may use that reactor too.  It
tells what happens on stderr, a line for each event.

SIGTERM and SIGINT stop it: no new jobs, those that run have some seconds to
end, the others are handed back.  A second signal ends it at once; what ran
then is found and run again, as after any crash.  The exit code is 0 after a
clean stop.
"""

import contextlib
import importlib
import logging
import os
import signal
import sys
import uuid

import transaction

from zodbjobs import Agent, Queue, Queues, configure, subscribers
from zodbjobs.cli import configured
from zodbjobs.cli.output import LOG_FORMAT, WRONGLY_ASKED, CommandError, describe, positive
from zodbjobs.cli.staff import close_database
from zodbjobs.interfaces import KEY, DatabaseOpened
from zodbjobs.runtime.address import open_database

log = logging.getLogger('zodbjobs.run')

AGENT = 'main'  # its name in each queue
TRIES = 10  # to make what is missing


def add_arguments(parser):
    """See `zodbjobs.cli.main`."""
    describe(
        parser,
        """
        Work on the jobs of the database at URI: file: zeo: postgres: zconfig: memory:, or the
        plain path of a file.  Queues and agents that are missing are made.  SIGTERM or Ctrl-C
        stops it when the jobs that run have ended; a second one stops it at once.
        """,
        """
        zodbjobs run var/Data.fs --path src
        zodbjobs run zeo://localhost:9991 --threads 8
        zodbjobs run postgres://jobs@db.example.org/jobs --queue mail --queue '' --channel slow
        zodbjobs run --zcml site.zcml zeo://localhost:9991
        zodbjobs run --zope etc/zope-worker.conf --threads 2
        """,
    )
    add = parser.add_argument
    add('uri', metavar='URI', nargs='?', help='where the database is')
    add('--zcml', metavar='FILE', help='load this configuration before the database is opened')
    add('--zope', metavar='CONF', help='serve the database of the Zope with this zope.conf')
    add('--queue', action='append', metavar='NAME', help="a queue to serve (default: '')")
    add('--threads', type=positive, metavar='N', default=3, help='jobs at a time (default: 3)')
    add('--channel', action='append', metavar='C', help='take the jobs of this channel only')
    add('--poll-interval', type=seconds, metavar='S', default=5, help='default: 5 seconds')
    add('--path', action='append', metavar='P', help='a folder or a module to import jobs from')
    add('--grace', type=seconds, metavar='S', default=30, help='time to end (default: 30 seconds)')
    add('--deployment', metavar='NAME', help='serve a database of this deployment only')
    add('--name', type=uuid.UUID, metavar='UUID', help='who it is (default: found by itself)')


def seconds(text):
    """An argparse type: a number from 0 on."""
    number = float(text)
    if not 0 <= number < float('inf'):
        raise ValueError(text)
    return number


def main(args):
    """See `zodbjobs.cli.main`."""
    if (args.uri is None) == (args.zope is None):
        raise CommandError('give the URI of a database, or --zope CONF', WRONGLY_ASKED)
    logging.basicConfig(stream=sys.stderr, format=LOG_FORMAT)
    logging.getLogger('zodbjobs').setLevel(logging.INFO)
    for path in args.path or ():
        make_importable(path)
    if args.zcml or args.zope:
        return run_configured(args)
    configure.base()
    return run(open_database(args.uri), args)


def run_configured(args):
    """Serve what a ZCML file or a Zope says, by the dispatcher of that, if there is one."""
    told = configured.Stop()
    dispatcher = None
    try:
        if args.zope:
            db = configured.open_zope(args.zope)
        else:
            configure.base()
            configured.load_zcml(args.zcml)
            db = open_database(args.uri)
            configured.announce(db)
        dispatcher = configured.serving()
        if dispatcher is None:
            return run(db, args)
        told.wait(dispatcher)
        close_database(db, dispatcher)
    finally:
        told.forget()
    return 0


def run(db, args):
    """Serve `db` with a dispatcher as `args` wants it, on the global reactor."""
    dispatcher = None
    try:
        from twisted.internet import reactor  # late: importing it chooses and installs it

        dispatcher = make_dispatcher(db, reactor, args)
        serve(dispatcher, reactor)
    finally:
        close_database(db, dispatcher)
    return 0


def make_dispatcher(db, reactor, args):
    """A dispatcher with its agents as `args` wants them, and what else is missing in `db`."""
    from zodbjobs import Dispatcher  # late: it brings Twisted

    # First: who this dispatcher is follows from the identity of the queues.
    subscribers.QueueInstaller(args.queue or [''])(DatabaseOpened(db))
    dispatcher = Dispatcher(
        db, reactor, poll_interval=args.poll_interval, uuid=args.name, grace=args.grace,
        deployment=args.deployment,
    )  # fmt: skip
    transactions = transaction.TransactionManager()
    with contextlib.closing(db.open(transactions)) as connection:
        # Other workers may start at the same moment and make the same things.
        transactions.run(lambda: install(connection.root(), dispatcher.UUID, args), TRIES)
    return dispatcher


def make_importable(path):
    """Put the folder `path` on sys.path, or import the module of that name."""
    if os.path.isdir(path):
        sys.path.insert(0, os.path.abspath(path))
        return
    try:
        importlib.import_module(path)
    except ImportError as error:
        raise CommandError(
            f'--path {path}: no folder, and no module: {error}', WRONGLY_ASKED
        ) from None


def install(root, name, args):
    """See that there are the queues, and in each of them our agent as `args` wants it."""
    wanted = args.queue or ['']
    if KEY not in root:
        root[KEY] = Queues()
    for queue_name in wanted:
        if queue_name not in root[KEY]:
            root[KEY][queue_name] = Queue()
        dispatchers = root[KEY][queue_name].dispatchers
        record = dispatchers[name] if name in dispatchers else dispatchers.register(name)
        if AGENT not in record:
            record[AGENT] = Agent()
        record[AGENT].size, record[AGENT].channels = args.threads, args.channel
    for queue_name, queue in root[KEY].items():
        record = queue.dispatchers.get(name, {})
        if queue_name not in wanted and AGENT in record:
            record[AGENT].size = 0  # of an earlier life that served this queue, too


def serve(dispatcher, reactor):
    """Run the reactor until a signal has stopped it and the dispatcher has drained."""
    from twisted.python.log import PythonLoggingObserver

    PythonLoggingObserver().start()
    reactor.callWhenRunning(listen_to_signals, reactor, dispatcher.grace)
    reactor.callWhenRunning(dispatcher.activate)
    reactor.run()


def listen_to_signals(reactor, grace):
    """The first signal stops the reactor, which waits for the dispatcher; the second ends us."""
    told = []

    def stop(number, frame):
        name = signal.Signals(number).name
        if told:
            log.warning('%s again: ending at once', name)
            os._exit(128 + number)  # threads that run jobs would be waited for
        told.append(number)
        log.info('%s: stopping; jobs that run have %g seconds to end', name, grace)
        reactor.callFromThread(reactor.stop)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
