"""Feeds over HTTP, to be read: a small Twisted resource.

``/``                 a page that shows feeds as they change
``/feeds``            the feeds
``/feeds/NAME``       the items of one, and the number to follow it from
``/feeds/NAME/events``, ``/events``    what happens, as server-sent events

An event has the number of its notice as id; ``Last-Event-ID`` (which browsers send by
themselves) or ``?since=`` resumes behind it.  An event ``lost`` says that some are not
kept any more: read the feed again.

Nothing can be changed here.  A page of another origin, or one that was lured to
another host name for this address, gets nothing unless that is allowed.
"""

import importlib.resources
import json

from twisted.web import http
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from zodbjobs.model.feed import ToldFeed
from zodbjobs.runtime import trouble
from zodbjobs.web.stream import Broadcast, Client, log, plain, summary

#: Clients that may listen at once.
CLIENTS = 1000

#: Reads that may wait for a thread before others are refused.
READS = 200

#: Items in an answer, unless ``?limit=`` asks for fewer or more.
ITEMS = 1000
MOST_ITEMS = 100_000

LOCAL_HOSTS = frozenset(('localhost', '127.0.0.1', '[::1]'))


class Refused(Exception):
    """The request is answered with `code` and a reason."""

    def __init__(self, code, reason):
        super().__init__(reason)
        self.code = code


class FeedsResource(Resource):
    """The feeds that `find(connection)` gives in the ZODB.DB `db`.

    `hosts`: names by which this server may be called, without a port; None: any.
    `origins`: other origins whose pages may read here, such as 'https://example.org'.
    `clients`: how many may listen at once.  Call `start` when the reactor runs
    (it returns a Deferred), and `stop` before the database is closed.
    """

    isLeaf = True

    def __init__(self, db, find, reactor, hosts=LOCAL_HOSTS, origins=(), clients=CLIENTS):
        super().__init__()
        self.hosts, self.origins, self.clients = hosts, frozenset(origins), clients
        self.broadcast = Broadcast(db, find, reactor)
        self.start, self.stop = self.broadcast.start, self.broadcast.stop

    def render(self, request):
        if request.method in (b'GET', b'HEAD'):
            return super().render(request)
        request.setHeader(b'allow', b'GET, HEAD')
        return _say(request, http.NOT_ALLOWED, {'error': 'nothing can be changed here'})

    def render_GET(self, request):
        try:
            self._check(request)
            return self._answer(request, [part.decode() for part in request.postpath if part])
        except Refused as refused:
            return _say(request, refused.code, {'error': str(refused)})
        except UnicodeDecodeError:
            return _say(request, http.BAD_REQUEST, {'error': 'names are UTF-8'})

    def render_HEAD(self, request):
        request.setHeader(b'content-length', b'0')
        return b''

    def _check(self, request):
        request.setHeader(b'cache-control', b'no-store')
        request.setHeader(b'x-content-type-options', b'nosniff')
        if self.hosts is not None:
            host = (request.getHeader('host') or '').lower()
            name = host if host.endswith(']') else host.rpartition(':')[0] or host
            if name not in self.hosts:
                raise Refused(http.FORBIDDEN, f'this server is not called {name!r}: --allow-host')
        origin = request.getHeader('origin')
        if origin in self.origins:
            request.setHeader(b'access-control-allow-origin', origin.encode())
            request.setHeader(b'vary', b'origin')

    def _answer(self, request, path):
        match path:
            case []:
                request.setHeader(b'content-type', b'text/html; charset=utf-8')
                return importlib.resources.files(__package__).joinpath('feeds.html').read_bytes()
            case ['feeds']:
                return self._later(request, _list_feeds)
            case ['feeds', name]:
                limit = _number(request, 'limit', ITEMS, MOST_ITEMS)
                return self._later(request, _show_feed, name, limit)
            case ['feeds', name, 'events']:
                return self._stream(request, name)
            case ['events']:
                return self._stream(request, None)
        raise Refused(http.NOT_FOUND, 'there are /, /feeds, /feeds/NAME, and events below each')

    def _later(self, request, look, *args):
        """Answer with what `look(feeds, *args)` finds, as JSON."""
        if self.broadcast.backlog > READS:
            raise Refused(http.SERVICE_UNAVAILABLE, 'too many requests wait')
        gone = []
        request.notifyFinish().addErrback(gone.append)
        reading = self.broadcast.read(look, *args)
        reading.addErrback(_error_of)
        reading.addCallback(lambda answer: gone or _finish(request, *answer))
        return NOT_DONE_YET

    def _stream(self, request, name):
        if self.broadcast.floor is None:
            raise Refused(http.SERVICE_UNAVAILABLE, 'the database cannot be read now')
        if len(self.broadcast.clients) >= self.clients:
            request.setHeader(b'retry-after', b'5')
            raise Refused(http.SERVICE_UNAVAILABLE, f'{self.clients} clients listen already')
        since = _since(request)
        if name is None:
            self._begin(request, since, None)
            return NOT_DONE_YET
        gone = []
        request.notifyFinish().addErrback(gone.append)

        def looked(answer):
            if gone:
                return
            if answer is not None:
                _finish(request, *answer)
            else:
                self._begin(request, since, name)

        reading = self.broadcast.read(_check_feed, name)
        reading.addErrback(_error_of)
        reading.addCallback(looked)
        return NOT_DONE_YET

    def _begin(self, request, since, name):
        request.setHeader(b'content-type', b'text/event-stream; charset=utf-8')
        request.setHeader(b'x-accel-buffering', b'no')  # nginx would collect events
        Client(self.broadcast, request, since, name).start()


def make_site(resource):
    """The Twisted site for a FeedsResource."""
    site = Site(resource, timeout=60, reactor=resource.broadcast.reactor)
    site.displayTracebacks = False
    site.noisy = False
    return site


# What is read in a thread: each returns (code, answer).


def _list_feeds(feeds):
    rows = [summary(feed) for feed in ([] if feeds is None else feeds.by_name.values())]
    return http.OK, {'feeds': rows, 'number': str(0 if feeds is None else feeds.last_number)}


def _show_feed(feeds, name, limit):
    refusal = _check_feed(feeds, name)
    if refusal is not None:
        return refusal
    feed = feeds[name]
    ids = feed.get_ids()
    items = [{'id': id, 'item': plain(feed.get_item(id))} for id in ids[-limit:]]
    # A text: the numbers of a browser have 53 bits.
    return http.OK, {
        'name': name,
        'type': feed.kind,
        'count': len(ids),
        'items': items,
        'number': str(feed.last_number),
    }


def _check_feed(feeds, name):
    """None, or why this feed cannot be read."""
    feed = None if feeds is None else feeds.get(name)
    if feed is None:
        return http.NOT_FOUND, {'error': f'there is no feed {name!r}'}
    if not isinstance(feed, ToldFeed):
        return http.NOT_FOUND, {'error': f'{name!r} is a queue: each message is for one reader'}
    return None


def _error_of(failure):
    if trouble.is_disconnected(failure.value) or trouble.is_conflict(failure.value):
        return http.SERVICE_UNAVAILABLE, {'error': 'the database cannot be read now'}
    log.failure('a request failed', failure)
    return http.INTERNAL_SERVER_ERROR, {'error': 'this failed; the server has logged why'}


# Requests and answers


def _say(request, code, data):
    request.setResponseCode(code)
    request.setHeader(b'content-type', b'application/json')
    return json.dumps(data).encode()


def _finish(request, code, data):
    request.write(_say(request, code, data))
    request.finish()


def _number(request, name, default, most):
    text = request.args.get(name.encode(), [str(default).encode()])[-1]
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 < number <= most:
        raise Refused(http.BAD_REQUEST, f'{name} is a whole number from 1 to {most}')
    return number


def _since(request):
    """The number of the last event that the client has, or None."""
    text = request.getHeader('last-event-id') or request.args.get(b'since', [b''])[-1].decode()
    if not text:
        return None
    if not text.isdecimal() or len(text) > 40:
        raise Refused(http.BAD_REQUEST, 'since, or Last-Event-ID, is the id of an event')
    return int(text)
