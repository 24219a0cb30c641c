"""What happens to feeds, written to many clients as server-sent events.

A `Broadcast` hears each notice once, keeps the last of them as ready bytes, and
lets every client that is able to take more have them.  A client is only a
number, up to which it has got everything, so a slow one costs nothing: when its
socket takes bytes again it goes on from memory, or, if it is too far behind, from
the stored log, a page at a time, read by a thread.  One whose socket takes nothing
for a while is cut off, and the browser comes back with the number by itself.

Everything here runs in the reactor's thread, except `Broadcast._hear`, which is
called by the follower, and what is read in the pool's threads.
"""

import base64
import bisect
import contextlib
import json
import math

import transaction
from twisted.internet import task
from twisted.internet.interfaces import IPushProducer
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from zodbjobs.runtime import delivery

log = Logger('zodbjobs.web')

#: Ready notices are kept for clients up to so many, and so many bytes.
RECENT_COUNT = 2000
RECENT_BYTES = 8 * 1024 * 1024

#: Bytes handed to a client's socket at once, about; a socket that is full asks for a pause.
CHUNK_BYTES = 64 * 1024

#: So often a client is sent a line that says nothing: it keeps proxies from closing the
#: connection, and shows whether there is still somebody.
HEARTBEAT_SECONDS = 15

#: A socket that has taken nothing for so long is closed.
STALL_SECONDS = 60

#: Clients are asked to come back so soon after a connection was lost.
RETRY_MILLISECONDS = 1000

THREADS = 3

#: What a notice's value is called in the data of an event.
VALUE_NAMES = {'publish': 'item', 'edit': 'item', 'position': 'position', 'finish': 'result'}


def plain(value):
    """`value` as JSON can have it: other than plain values become a text."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, (bytes, bytearray)):
        try:
            return value.decode('utf-8')
        except UnicodeDecodeError:
            return {'base64': base64.b64encode(value).decode('ascii')}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    return repr(value)


def summary(feed):
    """A feed in a list of them, a dict."""
    title = feed.config.get('title')
    return {'name': feed.name, 'title': title, 'type': feed.kind, 'items': len(feed)}


def event_data(notice):
    """What the data of the event for a Notice says, a dict."""
    data = {'feed': notice.feed}
    if notice.id is not None:
        data['id'] = notice.id
    if notice.kind in VALUE_NAMES:
        data[VALUE_NAMES[notice.kind]] = plain(notice.value)
    return data


def frame_of(notice):
    """The event for a Notice, as bytes."""
    data = json.dumps(event_data(notice))
    return f'id: {notice.number}\nevent: {notice.kind}\ndata: {data}\n\n'.encode()


class Broadcast:
    """The notices of the feeds that `find(connection)` gives, for any number of clients.

    `find` is called with a ZODB connection, in a thread, and may give None.
    """

    def __init__(self, db, find, reactor, count=RECENT_COUNT):
        self.db, self._find, self.reactor = db, find, reactor
        self.count = count
        self.clients = set()
        self.recent = []  # [(number, feed, frame)]
        self._bytes = 0
        #: What is in `recent` is all that came after this number; None: not started.
        self.floor = None
        self._flush = None
        self._subscription = None
        self._pool = ThreadPool(0, THREADS, 'zodbjobs web')
        self._heartbeat = task.LoopingCall(self._beat)
        self._heartbeat.clock = reactor

    def start(self):
        """Begin to hear; returns a Deferred."""
        self._pool.start()
        self._heartbeat.start(HEARTBEAT_SECONDS, now=False)
        return self.read(self._follow)

    def stop(self):
        """Let all clients go."""
        if self._heartbeat.running:
            self._heartbeat.stop()
        for client in list(self.clients):
            client.cut_off()
        if self._subscription is not None:
            self._subscription.close()
        self._pool.stop()

    def read(self, look, *args):
        """A Deferred of ``look(feeds, *args)``, called in a thread, in a transaction of its own."""
        return deferToThreadPool(self.reactor, self._pool, self._read, look, args)

    def newest(self):
        """The number of the last notice that was heard, or from which on we heard."""
        return self.recent[-1][0] if self.recent else self.floor

    @property
    def backlog(self):
        """How many reads wait for a thread."""
        return self._pool.q.qsize() if hasattr(self._pool, 'q') else len(self._pool.waiters)

    def _read(self, look, args):
        manager = transaction.TransactionManager()
        with contextlib.closing(self.db.open(manager)) as connection:
            try:
                return look(self._find(connection), *args)
            finally:
                manager.abort()

    def _follow(self, feeds):
        if feeds is None:
            raise LookupError('there are no feeds in this database')
        self.floor = number = feeds.last_number
        self._subscription = delivery.follow(feeds, self._hear, number)

    def _hear(self, notice):
        self.reactor.callFromThread(self._add, notice.number, notice.feed, frame_of(notice))

    def _add(self, number, feed, frame):
        self.recent.append((number, feed, frame))
        self._bytes += len(frame)
        if len(self.recent) > 2 * self.count or self._bytes > 2 * RECENT_BYTES:
            self._shorten()
        if self._flush is None:  # what comes together goes out together
            self._flush = self.reactor.callLater(0, self._flush_clients)

    def _shorten(self):
        """Forget half: clients that are further behind read the log."""
        while len(self.recent) > self.count or (self._bytes > RECENT_BYTES and self.recent):
            gone = self.recent[: len(self.recent) // 2 + 1]
            del self.recent[: len(gone)]
            self.floor = gone[-1][0]
            self._bytes -= sum(len(frame) for _, _, frame in gone)

    def _flush_clients(self):
        self._flush = None
        for client in list(self.clients):
            client.go_on()

    def _beat(self):
        for client in list(self.clients):
            client.beat()


@implementer(IPushProducer)
class Client:
    """One connection: what it has got, and whether it can take more."""

    def __init__(self, broadcast, request, number, feed=None):
        self.broadcast, self.request, self.feed = broadcast, request, feed
        #: It has got everything up to this number; None: all that comes from now on.
        self.number = number
        self._paused_at = None
        self._reading = False
        self._gone = False

    def start(self):
        """Send what was missed, and then what comes."""
        request = self.request
        request.notifyFinish().addBoth(self._finished)
        request.registerProducer(self, True)
        self.broadcast.clients.add(self)
        request.write(f'retry: {RETRY_MILLISECONDS}\n\n'.encode())
        if self.number is None:
            self.number = self.broadcast.newest()
        # A browser that is cut off before anything happened comes back with this number.
        request.write(f'id: {self.number}\n\n'.encode())
        self.go_on()

    def go_on(self):
        """Write what there is and what the socket takes."""
        while not (self._gone or self._reading or self._paused_at is not None):
            if self.number < self.broadcast.floor:
                self._read_log()
                return
            recent = self.broadcast.recent
            first = bisect.bisect_right(recent, self.number, key=_number_of)
            if first == len(recent):
                return
            self._write([(number, frame) for number, feed, frame in self._wanted(first)])

    def _wanted(self, first):
        """The entries from `first` on that make a chunk; one at least, for the number's sake."""
        size = 0
        for number, feed, frame in self.broadcast.recent[first:]:
            wanted = self.feed in (None, feed)
            yield number, feed, frame if wanted else b''
            size += len(frame) if wanted else 0
            if size > CHUNK_BYTES:
                return

    def _write(self, frames):
        self.number = frames[-1][0]
        data = b''.join(frame for _, frame in frames)
        if data:
            self.request.write(data)

    def _read_log(self):
        self._reading = True
        reading = self.broadcast.read(_page, self.number, self.feed)
        reading.addCallbacks(self._got_page, self._failed)

    def _got_page(self, page):
        self._reading = False
        if not self._gone:
            frames, self.number = page
            if frames:
                self.request.write(b''.join(frames))
            self.go_on()

    def _failed(self, failure):
        log.failure('the log of feeds cannot be read', failure)
        self.cut_off()

    def beat(self):
        """Show that we are here, or find that nobody is there."""
        if self._paused_at is None:
            if not self._gone:
                self.request.write(b':\n\n')
        elif self.broadcast.reactor.seconds() - self._paused_at > STALL_SECONDS:
            self.cut_off()

    def cut_off(self):
        """Close the connection, whatever it has not taken yet."""
        if not self._gone:
            self._finished(None)
            if self.request.channel is not None:
                self.request.channel.transport.abortConnection()

    def _finished(self, _):
        self._gone = True
        self.broadcast.clients.discard(self)

    # IPushProducer: called by the transport

    def pauseProducing(self):
        if self._paused_at is None:
            self._paused_at = self.broadcast.reactor.seconds()

    def resumeProducing(self):
        self._paused_at = None
        self.go_on()

    def stopProducing(self):
        self._finished(None)


def _number_of(entry):
    return entry[0]


def _page(feeds, since, feed):
    """([frames], the number up to which they are everything), out of the log."""
    frames, size = [], 0
    for notice in [] if feeds is None else feeds.follow(since, feed):
        if size > CHUNK_BYTES:
            return frames, since
        frames.append(frame_of(notice))
        size += len(frames[-1])
        since = notice.number
    return frames, max(since, 0 if feeds is None else feeds.last_number)
