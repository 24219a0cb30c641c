"""Feeds: publishing to a feed that holds many items, and telling a hundred subscribers of it.

Publishers of one feed, each with a connection; handlers of one process; and clients of
the server for browsers, on real sockets, which all have to have an event before
the next is published.  Storages other than a file get fewer items; the rows say how many.
"""

import contextlib
import functools
import selectors
import socket
import threading
import time

import transaction
from twisted.internet.selectreactor import SelectReactor

from benchmarks.measure import COST, PLAIN, RATE, Figure, Stopwatch, percentile, wait_until
from zodbjobs import Feeds, clock
from zodbjobs.interfaces import FEEDS_KEY
from zodbjobs.runtime import delivery
from zodbjobs.web.feeds import FeedsResource, make_site

SUBSCRIBERS = 100

#: Items per transaction while the feed is filled: then several of them share each leaf.
BULK = 10_000

#: Events whose way to all subscribers is measured, and seconds between them.
EVENTS = 40
PAUSE_SECONDS = 0.01

#: For something to arrive.
END_SECONDS = 30


def measure(place, scale):
    count = scale.feed_items if place.path else max(40, int(scale.feed_items * scale.slow_share))
    feeds = _fresh(place)
    feed, ordered = feeds.feed('feed'), feeds.sorted_feed('list')
    place.manager.commit()
    yield (_publish(place, scale, feed, 'an empty feed'),)
    with Stopwatch() as filling:
        last = _fill(place, feed, ordered, count)
    many = f'{count:,} items'
    yield (
        Figure(f'feeds: filled with {many}, each', filling.total / (2 * count), 's', COST,
               f'{BULK:,} in a transaction, half of them sorted'),
        _publish(place, scale, feed, f'a feed of {many}'),
        _publish(place, scale, ordered, f'a sorted feed of {many}'),
        _move(place, scale, ordered, many),
    )  # fmt: skip
    yield tuple(_look(place, feed, last, many))
    yield _conflicts(place, scale)
    yield _told(place, feed)
    yield _served(place, feed)


def _fresh(place):
    place.fresh()
    feeds = place.producer.root()[FEEDS_KEY] = Feeds()
    place.manager.commit()
    return feeds


def _fill(place, feed, ordered, count):
    for done in range(0, count, BULK):
        for number in range(done, min(count, done + BULK)):
            last = feed.publish(f'item {number}')
            ordered.append(f'item {number}')
        place.manager.commit()
        place.producer.cacheGC()
    return last


def _publish(place, scale, feed, what):
    count, started = 0, clock.monotonic()
    while clock.monotonic() - started < scale.run_seconds:
        place.manager.begin()
        feed.publish('one more item')
        place.manager.commit()
        count += 1
    taken = clock.monotonic() - started
    return Figure(f'feeds: publish to {what}', count / taken, 'items/s', RATE)


def _move(place, scale, ordered, many):
    ids = ordered.get_ids()
    middle, count, started = ids[len(ids) // 2], 0, clock.monotonic()
    while clock.monotonic() - started < scale.run_seconds:
        place.manager.begin()
        ordered.move_before(middle, ids[count % (len(ids) // 3)])
        place.manager.commit()
        count += 1
    taken = clock.monotonic() - started
    return Figure(f'feeds: move in a sorted feed of {many}', count / taken, 'moves/s', RATE)


def _look(place, feed, id, many):
    seen = feed.last_number
    feed.publish('news')
    place.manager.commit()
    for verb, look in (
        ('get_item', lambda: feed.get_item(id)),
        ('get_ids', feed.get_ids),
        ('notices since the last', lambda: feed.notices(seen)),
    ):
        watch = Stopwatch()
        for _ in range(5):
            with watch:
                look()
        yield Figure(f'feeds: {verb}, of {many}', watch.median, 's', COST, 'median of 5')


def _conflicts(place, scale):
    """Two quick publishers and one whose transaction is open for a while, to one full feed."""
    place.producer.root()[FEEDS_KEY].feed('busy', {'max_length': 50})
    place.manager.commit()
    until = clock.monotonic() + scale.produce_seconds
    tallies = [[0, 0] for _ in range(3)]

    def run(tally, open_seconds):
        manager = transaction.TransactionManager()
        with contextlib.closing(place.db.open(manager)) as connection:
            while clock.monotonic() < until:
                manager.begin()
                connection.root()[FEEDS_KEY]['busy'].publish('news')
                time.sleep(open_seconds)
                tally[0] += 1
                try:
                    manager.commit()
                except transaction.interfaces.TransientError:
                    tally[1] += 1
                    manager.abort()

    pauses = (0, 0, scale.open_seconds)
    threads = [
        threading.Thread(target=run, args=args) for args in zip(tallies, pauses, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    quick, slow = [sum(column) for column in zip(*tallies[:2], strict=True)], tallies[2]
    return tuple(
        Figure(f'feeds: {name} publishers of a full feed that conflicted', 100 * failed / total,
               '%', PLAIN, f'{failed} of {total}', {'transactions': total})
        for name, (total, failed) in (('quick', quick), ('slow', slow)) if total
    )  # fmt: skip


def _told(place, feed):
    """From the call of commit until the last of many handlers of a process has heard."""
    feeds = feed.feeds
    heard, done = [], threading.Event()

    def handler(name, item, id):
        heard.append(id)
        if len(heard) == SUBSCRIBERS:
            done.set()

    # Each of them is another handler, so none replaces another.
    handlers = [functools.partial(handler) for _ in range(SUBSCRIBERS)]
    for each in handlers:
        feeds.register_handler('publish_notice', each)
    waits = []
    for number in range(EVENTS):
        time.sleep(PAUSE_SECONDS)
        heard.clear()
        done.clear()
        feed.publish(number)
        began = clock.monotonic()
        place.manager.commit()
        if not done.wait(END_SECONDS):
            raise RuntimeError('handlers were not told')
        waits.append(clock.monotonic() - began)
    for each in handlers:
        feeds.remove_handler('publish_notice', each)
    return _latencies(waits, f'the last of {SUBSCRIBERS} handlers')


def _served(place, feed):
    """From the call of commit until the last of many event sources has the event."""
    with _server(place) as port, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(_listen(port)) for _ in range(SUBSCRIBERS)]
        with selectors.DefaultSelector() as selector:
            for client in clients:
                selector.register(client, selectors.EVENT_READ)
            waits = []
            for number in range(EVENTS):
                time.sleep(PAUSE_SECONDS)
                mark = f'event {number}.'
                feed.publish(mark)
                began = clock.monotonic()
                place.manager.commit()
                _read_all(selector, mark.encode(), began + END_SECONDS)
                waits.append(clock.monotonic() - began)
    return _latencies(waits, f'the last of {SUBSCRIBERS} event sources')


def _latencies(waits, whom):
    note = f'{len(waits)} events, publisher and subscribers in one process'
    return tuple(
        Figure(f'feeds: commit to {whom}, p{percent}', percentile(waits, percent), 's', COST, note)
        for percent in (50, 95)
    )


@contextlib.contextmanager
def _server(place):
    """The port of a server on the feeds of the place, in a thread."""
    reactor = SelectReactor()
    resource = FeedsResource(place.db, lambda c: c.root()[FEEDS_KEY], reactor)
    ports, started = [], threading.Event()

    def start():
        ports.append(reactor.listenTCP(0, make_site(resource), 200, '127.0.0.1'))
        resource.start().addCallback(lambda _: started.set())

    def stop():
        resource.stop()
        reactor.stop()

    reactor.callWhenRunning(start)
    thread = threading.Thread(target=reactor.run, args=(False,), daemon=True)
    thread.start()
    if not started.wait(END_SECONDS):
        raise RuntimeError('the server did not start')
    try:
        yield ports[0].getHost().port
    finally:
        reactor.callFromThread(stop)
        thread.join(END_SECONDS)
        delivery.stop(place.db)


@contextlib.contextmanager
def _listen(port):
    with socket.create_connection(('127.0.0.1', port)) as client:
        client.sendall(b'GET /events HTTP/1.0\r\nHost: localhost\r\n\r\n')
        answer = b''
        while not (b'\nid: ' in answer and answer.endswith(b'\n\n')):
            answer += client.recv(10_000)
        yield client


def _read_all(selector, mark, deadline):
    waiting = set(selector.get_map())
    wait_until(lambda: _read(selector, mark, waiting), deadline - clock.monotonic())
    if waiting:
        raise RuntimeError(f'{len(waiting)} clients were not told')


def _read(selector, mark, waiting):
    """Read what is there; whether nobody waits any more."""
    while waiting:
        ready = selector.select(PAUSE_SECONDS)
        if not ready:
            return False
        for key, _ in ready:
            if mark in key.fileobj.recv(100_000):
                waiting.discard(key.fd)
    return True
