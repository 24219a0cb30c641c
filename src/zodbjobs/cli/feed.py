"""``zodbjobs feed``: publish to feeds, look at them, follow them, serve them to browsers.

Each deed is one transaction; ``follow`` and ``serve`` go on until they are told to
stop.  Feeds are looked for at ``root['zodbjobs.feeds']``, or where ``--key`` says,
and ``create`` and ``publish`` make the mapping where it is missing.

Runs in the main thread; ``serve`` runs the global Twisted reactor there.
"""

import contextlib
import json
import os
import signal
import sys
import threading

import transaction

from zodbjobs import Feeds
from zodbjobs.cli.arguments import positive
from zodbjobs.cli.output import WRONGLY_ASKED, CommandError, describe, print_json, say
from zodbjobs.cli.source import VARIABLE, is_address
from zodbjobs.interfaces import FEEDS_KEY, NoticesGone
from zodbjobs.runtime import delivery, wakeup
from zodbjobs.runtime.address import open_database
from zodbjobs.web.stream import event_data, plain, summary

#: How often a deed is tried again when others change the same thing.
TRIES = 10


def add_arguments(parser):
    """See `zodbjobs.cli.main`."""
    describe(
        parser,
        f"""
        Feeds of the database at URI, which ${VARIABLE} may name instead.  DEED is one of:

        {deeds_text()}
        """,
        """
        zodbjobs feed create Data.fs news --max-length 50
        zodbjobs feed publish zeo://localhost:9991 news 'Hello' --id first
        zodbjobs feed items zeo://localhost:9991 news --json
        zodbjobs feed follow zeo://localhost:9991 news --since 4897915546598465182105600
        zodbjobs feed serve zeo://localhost:9991 --port 8710
        """,
    )
    add = parser.add_argument
    add('deed', metavar='DEED', choices=DEEDS, help=' '.join(DEEDS))
    add('words', nargs='*', metavar='URI NAME', help='the database, the feed, what DEED takes')
    add('--db', metavar='URI', help='the database, where URI could be mistaken')
    add(
        '--key', default=FEEDS_KEY, help=f"where in the root the feeds are (default: '{FEEDS_KEY}')"
    )
    add('--json', action='store_true', help='print the answer as JSON; items are JSON, too')
    add('--type', choices=('feed', 'sorted_feed', 'queue', 'job'), help='create: of this type')
    add('--max-length', type=positive, metavar='N', help='create: hold so many items at most')
    add('--id', help='publish: the id of the item')
    add('--since', type=int, metavar='NUMBER', help='notices, follow: only after this notice')
    add('--count', type=positive, metavar='N', help='follow: end after so many notices')
    add('--port', type=int, default=8710, help='serve: default 8710; 0 finds a free one')
    add('--interface', default='127.0.0.1', help='serve: default 127.0.0.1, this host only')
    add('--allow-host', action='append', default=[], metavar='NAME', help='serve: as this host')
    add('--allow-origin', action='append', default=[], metavar='URL', help='serve: to its pages')
    add('--clients', type=positive, default=1000, metavar='N', help='serve: so many at once')


def main(args):
    """See `zodbjobs.cli.main`."""
    address, words = _split(args)
    deed, names, writes = DEEDS[args.deed]
    if len(words) < len(names.split()) - names.count('['):
        raise CommandError(f'zodbjobs feed {args.deed} URI {names}'.rstrip(), WRONGLY_ASKED)
    if len(words) > len(names.split()):
        raise CommandError(f'what is {words[-1]!r}? {args.deed} takes {names}', WRONGLY_ASKED)
    db = open_database(address)
    try:
        if writes is None:
            return deed(db, args, *words) or 0
        manager = transaction.TransactionManager()
        with contextlib.closing(db.open(manager)) as connection:
            answer = _tried(
                manager, lambda: deed(_feeds_of(connection, args, writes), args, *words)
            )
        _tell(args, answer)
    finally:
        delivery.stop(db)
        wakeup.hang_up(db)
        db.close()
    return 0


def _split(args):
    """(address, the other words)."""
    words = list(args.words)
    if args.db is not None:
        return args.db, words
    if os.environ.get(VARIABLE) and not (words and is_address(words[0])):
        return os.environ[VARIABLE], words
    if not words:
        raise CommandError(f'which database? Name it, or set {VARIABLE}', WRONGLY_ASKED)
    return words[0], words[1:]


def _tried(manager, deed):
    """``deed()``, with what the world may say against it as a CommandError."""
    try:
        return manager.run(deed, TRIES)
    except NoticesGone as error:
        raise CommandError(str(error)) from None
    except (LookupError, ValueError, TypeError) as error:
        raise CommandError(str(error.args[0] if error.args else error), WRONGLY_ASKED) from None


def _feeds_of(connection, args, make):
    root = connection.root()
    feeds = root.get(args.key)
    if feeds is None and make:
        feeds = root[args.key] = Feeds()
        connection.add(feeds)
    if not isinstance(feeds, Feeds):
        there = f'{type(feeds).__name__} is' if feeds is not None else 'nothing is'
        raise ValueError(
            f'there are no feeds at root[{args.key!r}] ({there} there): make them with'
            f' zodbjobs feed create, or say with --key where they are'
        )
    return feeds


def _tell(args, answer):
    if args.json:
        print_json(answer)
    elif isinstance(answer, list):
        for row in answer:
            print(*(_shown(value) for value in row.values()), sep='\t')
    elif isinstance(answer, dict):
        for name, value in answer.items():
            print(f'{name}: {_shown(value)}')
    elif answer is not None:
        print(_shown(answer))


def _shown(value):
    if isinstance(value, str):
        return value
    return '' if value is None else json.dumps(value)


def _item(args, text):
    """What is to be published: the text, or with --json what it says; '-' is standard input."""
    text = sys.stdin.read() if text == '-' else text
    if not args.json:
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f'the item is no JSON: {error}') from None


# The deeds


def list_feeds(feeds, args):
    """The feeds: name, title, type, how many items."""
    return [summary(feed) for feed in feeds.by_name.values()]


def create(feeds, args, name):
    """Make a feed."""
    config = {'type': args.type, 'max_length': args.max_length}
    feed = feeds.create_feed(name, {key: value for key, value in config.items() if value})
    return feed.config


def delete(feeds, args, name):
    """Delete a feed with all that is in it."""
    feeds.delete_feed(name)


def getconfig(feeds, args, name):
    """Show the settings of a feed."""
    return feeds.get_config(name)


def setconfig(feeds, args, name, config):
    """Change settings: a JSON object."""
    feeds.set_config(name, config)
    return feeds.get_config(name)


def publish(feeds, args, name, text):
    """Publish an item (text, with --json a JSON value, - is standard input); prints its id."""
    feed = feeds.get(name)
    feed = feeds.feed(name) if feed is None else feed
    item = _item(args, text)
    if args.id is None:
        return feed.publish(item)
    if feed.kind != 'feed':
        raise ValueError(f'{name!r} is a {feed.kind!r}: it finds the ids of its items itself')
    return feed.publish(item, args.id)


def retract(feeds, args, name, id):
    """Remove an item."""
    feed = feeds[name]
    if feed.kind == 'queue':
        raise ValueError(f'{name!r} is a queue: its messages are taken with get')
    feed.retract(id)


def items(feeds, args, name):
    """The items of a feed: id, item."""
    feed = feeds[name]
    if feed.kind == 'queue':
        return [{'id': id} for id in feed.get_ids()]
    return [{'id': id, 'item': plain(feed.get_item(id))} for id in feed.get_ids()]


def item(feeds, args, name, id):
    """One item."""
    feed = feeds[name]
    if feed.kind == 'queue' or id not in feed:
        raise LookupError(f'feed {name!r} has no item {id!r}')
    return plain(feed.get_item(id))


def get(feeds, args, name):
    """Take the first message of a queue; exit code 1 if there is none."""
    if feeds[name].kind != 'queue':
        raise TypeError(f'{name!r} is a {feeds[name].kind!r}, not a queue')
    if not len(feeds[name]):
        raise CommandError(f'{name!r} is empty')
    return plain(feeds[name].get(timeout=0))


def notices(feeds, args, name=None):
    """What happened, as far as it is kept: number, kind, what."""
    source = feeds if name is None else feeds[name]
    return [notice_row(notice) for notice in source.notices(args.since)]


def notice_row(notice):
    """A Notice as JSON has it; the number is a text, as it has more than 53 bits."""
    return {'number': str(notice.number), 'kind': notice.kind, **event_data(notice)}


def follow(db, args, name=None):
    """Print what happens, a line each (with --json a JSON object each), until Ctrl-C."""
    left = [args.count]
    done = threading.Event()

    def told(notice):
        if done.is_set():
            return
        row = notice_row(notice)
        line = json.dumps(row) if args.json else '\t'.join(map(_shown, row.values()))
        try:
            print(line, flush=True)
        except BrokenPipeError:
            done.set()
        if left[0] is not None:
            left[0] -= 1
            if not left[0]:
                done.set()

    def begin(feeds):
        if name is not None:
            feeds[name]  # noqa: B018 - KeyError if there is none
        return delivery.follow(feeds, told, since_of(feeds, args), name)

    manager = transaction.TransactionManager()
    with contextlib.closing(db.open(manager)) as connection:
        subscription = _tried(manager, lambda: begin(_feeds_of(connection, args, False)))
    former = signal.signal(signal.SIGTERM, lambda *_: done.set())
    try:
        done.wait()
    finally:
        signal.signal(signal.SIGTERM, former)
        subscription.close()


def since_of(feeds, args):
    return feeds.last_number if args.since is None else args.since


def serve(db, args):
    """Serve the feeds over HTTP, to be read, with server-sent events, until Ctrl-C."""
    from twisted.internet import reactor  # late: importing it chooses and installs it
    from twisted.python.log import PythonLoggingObserver

    from zodbjobs.web.feeds import LOCAL_HOSTS, FeedsResource, make_site

    PythonLoggingObserver().start()
    local = args.interface in ('127.0.0.1', '::1', 'localhost')
    hosts = LOCAL_HOSTS | set(args.allow_host) if local or args.allow_host else None
    resource = FeedsResource(
        db,
        lambda connection: _feeds_of(connection, args, False),
        reactor,
        hosts,
        args.allow_origin,
        args.clients,
    )
    problems = []

    def failed(failure):
        problems.append(failure.value)
        reactor.stop()

    def begin():
        try:
            port = reactor.listenTCP(args.port, make_site(resource), interface=args.interface)
        except Exception as error:  # the port is taken, or no port of ours
            problems.append(error)
            reactor.stop()
            return
        host = port.getHost()
        shown = f'[{host.host}]' if ':' in host.host else host.host
        started = resource.start()
        started.addCallbacks(lambda _: say(f'serving feeds at http://{shown}:{host.port}/'), failed)

    reactor.callWhenRunning(begin)
    reactor.addSystemEventTrigger('before', 'shutdown', resource.stop)
    reactor.run()
    if problems:
        raise CommandError(f'cannot serve: {problems[0]}')


#: deed -> (function, its words, whether it makes what is missing; None: not in a transaction)
DEEDS = {
    'list': (list_feeds, '', False),
    'create': (create, 'NAME', True),
    'delete': (delete, 'NAME', False),
    'getconfig': (getconfig, 'NAME', False),
    'setconfig': (setconfig, 'NAME JSON', False),
    'publish': (publish, 'NAME ITEM', True),
    'retract': (retract, 'NAME ID', False),
    'items': (items, 'NAME', False),
    'item': (item, 'NAME ID', False),
    'get': (get, 'NAME', False),
    'notices': (notices, '[NAME]', False),
    'follow': (follow, '[NAME]', None),
    'serve': (serve, '', None),
}


def deeds_text():
    """The deeds for the help, a line each."""
    return ('\n' + ' ' * 8).join(
        f'{name + " " + words:<20}{deed.__doc__}' for name, (deed, words, _) in DEEDS.items()
    )
