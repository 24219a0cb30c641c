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

import argparse
import contextlib
import itertools
import logging
import os
import signal
import sys
import uuid

import transaction

from zodbjobs import Agent, Queue, Queues, configure, subscribers
from zodbjobs.cli import configured, supervisor
from zodbjobs.cli.arguments import add_path, age, import_paths, positive, seconds, size
from zodbjobs.cli.output import LOG_FORMAT, WRONGLY_ASKED, CommandError, describe
from zodbjobs.cli.staff import close_database
from zodbjobs.interfaces import KEY, DatabaseOpened
from zodbjobs.runtime import shared_file
from zodbjobs.runtime.address import open_database, without_password
from zodbjobs.runtime.complaint import is_news

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

        With -n it starts and watches so many worker processes, each with so many threads.  For a
        file it starts the ZEO server that they share.  SIGHUP replaces them one by one.
        """,
        """
        zodbjobs run var/Data.fs --path src
        zodbjobs run var/Data.fs -n 4 --max-memory 500M --max-age 12h
        zodbjobs run zeo://localhost:9991 --threads 8
        zodbjobs run zeo://one:9991 zeo://two:9991         the jobs of both databases
        zodbjobs run postgres://jobs@db.example.org/jobs --queue mail --queue '' --channel slow
        zodbjobs run --zcml site.zcml zeo://localhost:9991
        zodbjobs run --zope etc/zope-worker.conf --threads 2
        """,
    )
    add = parser.add_argument
    add('uris', nargs='*', metavar='URI', help='where the database is, or several')
    add('--zcml', metavar='FILE', help='load this configuration before the database is opened')
    add('--zope', metavar='CONF', help='serve the database of the Zope with this zope.conf')
    add('-n', '--processes', type=positive, metavar='N', help='so many worker processes')
    add('--queue', action='append', metavar='NAME', help="a queue to serve (default: '')")
    add('--threads', type=positive, metavar='N', default=3, help='jobs at a time (default: 3)')
    add('--channel', action='append', metavar='C', help='take the jobs of this channel only')
    add('--poll-interval', type=seconds, metavar='S', default=5, help='default: 5 seconds')
    add_path(parser)
    add('--grace', type=seconds, metavar='S', default=30, help='time to end (default: 30 seconds)')
    add('--deployment', metavar='NAME', help='serve a database of this deployment only')
    add('--name', type=uuid.UUID, metavar='UUID', help='who it is (default: found by itself)')
    add('--zodb', action='append', type=named_uri, metavar='NAME=URI',
        help='a further database, in which --queue QUEUE@NAME may lie')  # fmt: skip
    add('--max-jobs', type=positive, metavar='N', help='with -n: replace a worker after N jobs')
    add('--max-memory', type=size, metavar='SIZE', help='... when it holds so much, as in 500M')
    add('--max-age', type=age, metavar='AGE', help='... when it is so old, as in 90s, 30m, 12h, 1d')
    add('--monitor', metavar='WHERE', help='off, or PORT or HOST:PORT, to be asked by TCP as well')
    add('--log-format', choices=('text', 'json'), default='text', help='default: text')
    add('--metrics', metavar='WHERE', help='serve metrics for Prometheus at PORT or HOST:PORT')
    add('--pack-every', type=age, metavar='AGE', help='pack the database so often, as in 24h')
    add('--pack-keep', type=age, metavar='AGE', default=86400, help='... keeping so much (1d)')
    add('--supervised', type=positive, help=argparse.SUPPRESS)  # the number of a worker


def named_uri(text):
    """An argparse type: (name, address) of NAME=URI."""
    name, equals, uri = text.partition('=')
    if not (name and equals and uri):
        raise ValueError(text)
    return name, uri


def main(args):
    """See `zodbjobs.cli.main`."""
    logging.basicConfig(stream=sys.stderr)
    for output in logging.getLogger().handlers:
        output.setFormatter(formatter(args))
        output.addFilter(is_news)
    logging.getLogger('zodbjobs').setLevel(logging.INFO)
    check(args)
    if args.monitor is not None:
        os.environ['ZODBJOBS_MONITOR'] = args.monitor  # workers of -n have it, too
    if args.processes:
        return supervise(args)
    import_paths(args)
    if args.zcml or args.zope:
        return run_configured(args)
    configure.base()
    return run([lambda uri=uri: open_with_others(uri, args.zodb) for uri in args.uris], args)


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
            db = open_with_others(args.uris[0], args.zodb)
            configured.announce(db)
        dispatcher = configured.serving()
        if dispatcher is None:
            return run([lambda: db], args, told)
        told.wait(dispatcher)
        close_database(db, dispatcher)
    finally:
        told.forget()
    return 0


def run(openings, args, told=None):
    """Serve the databases that `openings` open, with dispatchers as `args` wants them.

    `told` is the `configured.Stop` that has heard the signals until now, if any.
    """
    opened, dispatchers = [], []
    try:
        from twisted.internet import reactor  # late: importing it chooses and installs it

        for opening in openings:
            opened.append(opening())
            dispatchers.append(make_dispatcher(opened[-1], reactor, args))
        with extras(dispatchers, args):
            serve(dispatchers, reactor, args.supervised, told)
    finally:
        for db, dispatcher in itertools.zip_longest(opened, dispatchers):
            close_family(db, dispatcher)
    return 0


@contextlib.contextmanager
def extras(dispatchers, args):
    """What `args` want beside the work itself, for as long as the block lasts."""
    end = None
    if args.pack_every:
        from zodbjobs.monitor.packing import pack_every

        for dispatcher in dispatchers:
            pack_every(dispatcher, args.pack_every, args.pack_keep / 86400)
    if args.metrics:
        end = served_metrics(dispatchers, args)
    try:
        yield
    finally:
        if end is not None:
            end()


def served_metrics(dispatchers, args):
    """Serve metrics; returns what ends it.  Raises CommandError."""
    from zodbjobs.monitor.door import wanted_tcp

    try:
        from zodbjobs.monitor.metrics import serve as serve_metrics
    except ImportError as error:
        text = f'--metrics needs prometheus_client: pip install "zodbjobs[metrics]" ({error})'
        raise CommandError(text, WRONGLY_ASKED) from None
    try:
        host, port = wanted_tcp(args.metrics)
        if args.supervised:  # each worker of -n has the port that follows
            port += args.supervised - 1
        return serve_metrics(dispatchers, (host, port))
    except (OSError, ValueError, OverflowError) as error:
        raise CommandError(f'--metrics {args.metrics}: {error}', WRONGLY_ASKED) from None


def formatter(args):
    """How lines of the log are written."""
    from zodbjobs.monitor.logs import JobFormatter, JSONFormatter

    if args.log_format == 'json':
        return JSONFormatter()
    worker = f' worker {args.supervised} ' if args.supervised else ' '
    return JobFormatter(LOG_FORMAT.replace(' ', worker, 1))


def check(args):
    """Refuse what cannot be meant; raises CommandError."""
    limits = (args.max_jobs, args.max_memory, args.max_age)
    problem = None
    if bool(args.uris) == (args.zope is not None):
        problem = 'give the URI of a database, or --zope CONF'
    elif args.zcml and len(args.uris) > 1:
        problem = '--zcml is for one database'
    elif args.zope and (args.zodb or args.supervised or args.processes):
        problem = '--zope is for one process with what zope.conf says: no --zodb, no -n'
    elif not args.processes and any(limit is not None for limit in limits):
        problem = '--max-jobs, --max-memory and --max-age are for the workers of -n N: -n 1 will do'
    elif args.name and (args.processes or len(args.uris) > 1):
        problem = '--name is for one process with one database: leave it out, names are found'
    elif args.processes and any(uri.lower().startswith('memory:') for uri in args.uris):
        problem = 'memory: is for one process, so -n has nothing to share'
    if problem:
        raise CommandError(problem, WRONGLY_ASKED)


def open_with_others(uri, others):
    """Open the database at `uri`, in one multi-database with `others`: (name, address) pairs."""
    family = {}
    try:
        for name, other in others or ():
            open_database(other, databases=family, database_name=name)
        return open_database(uri, databases=family)
    except BaseException:
        for db in family.values():
            db.close()
        raise


def close_family(db, dispatcher):
    """Close `db` after its dispatcher has stopped, and the others of its multi-database."""
    others = [other for other in db.databases.values() if other is not db]
    close_database(db, dispatcher)
    for other in others:
        other.close()


def make_dispatcher(db, reactor, args):
    """A dispatcher with its agents as `args` wants them, and what else is missing in `db`."""
    from zodbjobs import Dispatcher  # late: it brings Twisted

    # First: who this dispatcher is follows from the identity of the queues.
    for text in args.queue or ['']:
        name, home = queue_and_home(text, db)
        subscribers.QueueInstaller([name], queue_db_name=home)(DatabaseOpened(db))
    dispatcher = Dispatcher(
        db, reactor, poll_interval=args.poll_interval, uuid=args.name, grace=args.grace,
        deployment=args.deployment,
    )  # fmt: skip
    transactions = transaction.TransactionManager()
    with contextlib.closing(db.open(transactions)) as connection:
        # Other workers may start at the same moment and make the same things.
        transactions.run(lambda: install(connection.root(), dispatcher.UUID, args), TRIES)
    subscribers.open_doors(dispatcher)
    return dispatcher


def queue_and_home(text, db):
    """(name of the queue, name of its database or None) of QUEUE or QUEUE@DATABASE."""
    name, at, home = text.rpartition('@')
    return (name, home) if at and home in db.databases else (text, None)


def install(root, name, args):
    """See that there are the queues, and in each of them our agent as `args` wants it."""
    wanted = [queue_and_home(text, root._p_jar.db())[0] for text in args.queue or ['']]
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


def serve(dispatchers, reactor, supervised=None, told=None):
    """Run the reactor until a signal has stopped it and the dispatchers have drained."""
    from twisted.python.log import PythonLoggingObserver

    PythonLoggingObserver().start()
    if supervised:
        line = supervisor.WorkersEnd(lambda: facts(dispatchers))
        reactor.callWhenRunning(line.begin, reactor)
    reactor.callWhenRunning(listen_to_signals, reactor, dispatchers[0].grace)
    if told is not None:
        reactor.callWhenRunning(told.repeat)
    for dispatcher in dispatchers:
        reactor.callWhenRunning(dispatcher.activate)
    reactor.run()


def facts(dispatchers):
    """What a worker tells its supervisor: plain values."""
    counts = [dispatcher.getStatistics() for dispatcher in dispatchers]
    done = sum(count['successful'] + count['failed'] for count in counts)
    active = sum(len(dispatcher.getActiveJobIds()) for dispatcher in dispatchers)
    return {'uuids': [str(d.UUID) for d in dispatchers], 'jobs': done, 'active': active}


def supervise(args):
    """Start and watch workers; see `zodbjobs.cli.supervisor`."""
    limits = supervisor.Limits(args.max_jobs, args.max_memory, args.max_age)
    servers, uris = shared(args.uris, args.grace)
    other_servers, others = shared([uri for _, uri in args.zodb or ()], args.grace)
    zodb = [f'{name}={uri}' for (name, _), uri in zip(args.zodb or (), others, strict=True)]
    options = [*uris, *given('--queue', args.queue), *given('--channel', args.channel)]
    options += [*given('--path', args.path), *given('--zodb', zodb)]
    options += given('--zcml', args.zcml and [args.zcml])
    for name in ('threads', 'poll_interval', 'grace', 'deployment', 'metrics', 'log_format'):
        value = getattr(args, name)
        options += given(f'--{name.replace("_", "-")}', [] if value is None else [value])
    for name in ('pack_every', 'pack_keep'):
        value = getattr(args, name)
        options += given(f'--{name.replace("_", "-")}', [f'{value:g}s'] if value else [])
    office = supervisor.Supervisor(
        lambda number: supervisor.Process(
            lambda line: supervisor.start_worker(options, number, line)
        ),
        args.processes, args.grace, limits, servers + other_servers,
        ' '.join(without_password(uri) for uri in args.uris),
    )  # fmt: skip
    supervisor.Watch(office).run()
    return office.broken or 0


def shared(uris, grace):
    """(servers for those that are files, the addresses by which workers reach all of them)."""
    servers, found = [], []
    for uri in uris:
        if shared_file.path_of(uri) is not None:
            servers.append(supervisor.Server(uri, grace + supervisor.MARGIN_SECONDS))
            uri = servers[-1].client_uri
        found.append(uri)
    return servers, found


def given(option, values):
    """Command line arguments that give `option` each of the values."""
    return [f'{option}={value}' for value in values or ()]


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
