"""Feeds over HTTP: real sockets, a reactor of the test's own, and clients of every temper."""

import contextlib
import http.client
import json
import socket
import threading

import pytest
import transaction
import ZODB
from twisted.internet.selectreactor import SelectReactor
from ZODB.FileStorage import FileStorage

from zodbjobs import Feeds
from zodbjobs.interfaces import FEEDS_KEY
from zodbjobs.model import log
from zodbjobs.runtime import delivery, wakeup
from zodbjobs.testing.waiting import wait_until
from zodbjobs.web import stream
from zodbjobs.web.feeds import LOCAL_HOSTS, FeedsResource, make_site
from zodbjobs.web.stream import plain

SECONDS = 15


def find(connection):
    return connection.root().get(FEEDS_KEY)


class Server:
    """A database with feeds, and a server on it in a thread."""

    def __init__(self, path, **options):
        self.db = ZODB.DB(FileStorage(str(path)))
        self.manager = transaction.TransactionManager()
        self.connection = self.db.open(self.manager)
        self.feeds = self.connection.root()[FEEDS_KEY] = Feeds()
        self.manager.commit()
        self.reactor = SelectReactor()
        self.resource = FeedsResource(self.db, find, self.reactor, **options)
        self.broadcast = self.resource.broadcast
        started = threading.Event()

        def start():
            self.port = self.reactor.listenTCP(0, make_site(self.resource), interface='127.0.0.1')
            self.resource.start().addCallback(lambda _: started.set())

        self.reactor.callWhenRunning(start)
        self.thread = threading.Thread(target=self.reactor.run, args=(False,), daemon=True)
        self.thread.start()
        assert started.wait(SECONDS)
        self.opened = []

    def close(self):
        for each in self.opened:
            each.close()

        def stop():
            self.resource.stop()
            self.reactor.stop()

        self.reactor.callFromThread(stop)
        self.thread.join(SECONDS)
        self.manager.abort()
        self.connection.close()
        delivery.stop(self.db)
        wakeup.hang_up(self.db)
        self.db.close()

    @contextlib.contextmanager
    def commit(self):
        yield self.feeds
        self.manager.commit()

    def get(self, path, method='GET', **headers):
        """(status, headers, body)."""
        line = http.client.HTTPConnection('127.0.0.1', self.port.getHost().port, timeout=SECONDS)
        line.request(method, path, headers={k.replace('_', '-'): v for k, v in headers.items()})
        answer = line.getresponse()
        body = answer.read()
        line.close()
        return answer.status, answer.headers, body

    def json(self, path, **headers):
        status, _, body = self.get(path, **headers)
        return status, json.loads(body)

    def listen(self, path, buffer=None, **headers):
        listener = Listener(self.port.getHost().port, path, buffer, headers)
        self.opened.append(listener)
        return listener

    def settle(self):
        """Wait until all that is committed is in the server's memory."""
        assert delivery.settle(self.feeds, SECONDS)
        done = threading.Event()
        self.reactor.callFromThread(done.set)
        assert done.wait(SECONDS)


class Listener:
    """An event source: reads events as a browser would, when it is told to."""

    def __init__(self, port, path, buffer, headers):
        self.socket = socket.socket()
        if buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.settimeout(SECONDS)
        self.socket.connect(('127.0.0.1', port))
        lines = [f'GET {path} HTTP/1.0', 'Host: localhost']
        lines += [f'{name.replace("_", "-")}: {value}' for name, value in headers.items()]
        self.socket.sendall('\r\n'.join([*lines, '', '']).encode())
        self.file = self.socket.makefile('rb')
        self.last_id = None

    def begin(self):
        """Read up to the id with which the stream begins; returns the status."""
        status = int(self.file.readline().split()[1])
        while self.file.readline().strip():
            pass
        if status == 200:
            while self.last_id is None:
                self.read_block()
        return status

    def read_block(self):
        """(event, data) of the next block that has data; None for other blocks and at the end."""
        event, data = 'message', None
        while line := self.file.readline().decode().rstrip('\n'):
            name, _, value = line.partition(': ')
            if name == 'id':
                self.last_id = value
            elif name == 'event':
                event = value
            elif name == 'data':
                data = json.loads(value)
        return None if data is None else (event, data)

    def events(self, count):
        found = []
        while len(found) < count:
            block = self.read_block()
            if block is not None:
                found.append(block)
        return found

    def close(self):
        self.file.close()
        self.socket.close()


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path / 'Data.fs')
    yield server
    server.close()


# Reading -----------------------------------------------------------------------------------


def test_feeds_and_items_are_json(server):
    with server.commit() as feeds:
        feed = feeds.feed('news & more', {'title': 'News'})
        feed.publish({'a': [1, None]}, 'x')
        feed.publish(b'\xff\x00', 'y')
        feeds.sorted_feed('list').append('text')
        feeds.queue('queue').put('secret')
    status, answer = server.json('/feeds')
    assert status == 200
    assert [(row['name'], row['type'], row['items']) for row in answer['feeds']] == [
        ('list', 'sorted_feed', 1), ('news & more', 'feed', 2), ('queue', 'queue', 1)
    ]  # fmt: skip
    status, answer = server.json('/feeds/news%20%26%20more')
    assert answer['items'] == [
        {'id': 'x', 'item': {'a': [1, None]}}, {'id': 'y', 'item': {'base64': '/wA='}}
    ]  # fmt: skip
    assert answer['number'] == str(feed.last_number)
    assert server.json('/feeds/news%20%26%20more?limit=1')[1]['items'][0]['id'] == 'y'


def test_the_page_is_there(server):
    status, headers, body = server.get('/')
    assert status == 200 and b'EventSource' in body
    assert headers['content-type'] == 'text/html; charset=utf-8'


@pytest.mark.parametrize(
    ('path', 'status', 'words'),
    [
        ('/nothing', 404, 'there are'),
        ('/feeds/nothing', 404, "no feed 'nothing'"),
        ('/feeds/nothing/events', 404, "no feed 'nothing'"),
        ('/feeds/queue', 404, 'one reader'),
        ('/feeds/queue/events', 404, 'one reader'),
        ('/feeds/%ff', 400, 'UTF-8'),
        ('/feeds/news?limit=many', 400, 'limit'),
        ('/feeds/news?limit=0', 400, 'limit'),
        ('/events?since=yesterday', 400, 'the id of an event'),
        ('/events?since=%D9%A7x', 400, 'the id of an event'),
    ],
)
def test_what_is_wrong_is_said(server, path, status, words):
    with server.commit() as feeds:
        feeds.queue('queue')
        feeds.feed('news')
    found, answer = server.json(path)
    assert found == status and words in answer['error']


def test_other_methods_change_nothing(server):
    for method in ('POST', 'PUT', 'DELETE'):
        assert server.get('/feeds', method)[0] == 405
    status, _, body = server.get('/events', 'HEAD')
    assert (status, body) == (200, b'')


def test_another_host_name_gets_nothing(server):
    for host in ('evil.example', 'evil.example:80', 'localhost.evil.example', ''):
        assert server.get('/feeds', Host=host)[0] == 403
    for host in ('localhost', 'LOCALHOST:8710', '127.0.0.1:1', '[::1]', '[::1]:80'):
        assert server.get('/feeds', Host=host)[0] == 200


def test_pages_of_other_origins_get_nothing_unless_they_are_allowed(tmp_path):
    with contextlib.closing(
        Server(tmp_path / 'Data.fs', origins=['https://good.example'])
    ) as server:
        allowed = 'access-control-allow-origin'
        _, headers, _ = server.get('/feeds', Origin='https://good.example')
        assert headers[allowed] == 'https://good.example' and headers['vary'] == 'origin'
        assert server.get('/feeds', Origin='https://evil.example')[1][allowed] is None


@pytest.mark.parametrize(
    ('value', 'shown'),
    [
        (float('nan'), 'nan'),
        (b'text', 'text'),
        ({1: (2, {3})}, {'1': [2, [3]]}),
        (LOCAL_HOSTS and object, "<class 'object'>"),
    ],
    ids=['nan', 'bytes', 'nested', 'other'],
)
def test_everything_can_be_shown(value, shown):
    assert plain(value) == shown
    json.dumps(plain(value), allow_nan=False)


# Events ------------------------------------------------------------------------------------


def test_events_come_as_they_are_committed(server):
    with server.commit() as feeds:
        feed = feeds.feed('news')
        other = feeds.sorted_feed('other')
    server.settle()
    one, everything = server.listen('/feeds/news/events'), server.listen('/events')
    assert one.begin() == everything.begin() == 200
    feed.publish('aborted')
    server.manager.abort()
    with server.commit():
        feed.publish('hello\nworld', 'a')
        other.append('else')
        feed.retract('a')
    assert one.events(2) == [
        ('publish', {'feed': 'news', 'id': 'a', 'item': 'hello\nworld'}),
        ('retract', {'feed': 'news', 'id': 'a'}),
    ]
    assert [kind for kind, _ in everything.events(4)] == [
        'publish', 'publish', 'position', 'retract'
    ]  # fmt: skip


def test_who_comes_back_gets_what_he_missed(server):
    with server.commit() as feeds:
        feed = feeds.feed('news')
    server.settle()  # or the creation may be told as news
    first = server.listen('/feeds/news/events')
    first.begin()
    with server.commit():
        feed.publish(0)
    first.events(1)
    first.close()
    for number in range(1, 20):
        with server.commit():
            feed.publish(number)
    second = server.listen('/feeds/news/events', Last_Event_ID=first.last_id)
    second.begin()
    assert [data['item'] for _, data in second.events(19)] == list(range(1, 20))
    third = server.listen(f'/feeds/news/events?since={first.last_id}')
    third.begin()
    assert [data['item'] for _, data in third.events(19)] == list(range(1, 20))


def test_who_was_cut_off_before_anything_happened_misses_nothing(server):
    with server.commit() as feeds:
        feed = feeds.feed('news')
    first = server.listen('/feeds/news/events')
    first.begin()
    first.close()
    with server.commit():
        feed.publish('meanwhile')
    second = server.listen('/feeds/news/events', Last_Event_ID=first.last_id)
    second.begin()
    ((_, data),) = second.events(1)
    if 'item' not in data:  # the feed's own beginning, of which the first had not heard yet
        ((_, data),) = second.events(1)
    assert data['item'] == 'meanwhile'


def test_a_restarted_server_knows_what_was_missed(tmp_path):
    with contextlib.closing(Server(tmp_path / 'Data.fs')) as server:
        with server.commit() as feeds:
            feeds.feed('news').publish(1)
        server.settle()
        listener = server.listen('/events')
        listener.begin()
        with server.commit() as feeds:
            feeds['news'].publish(2)
        listener.events(1)
        with server.commit() as feeds:
            feeds['news'].publish(3)
        root = server.connection.root()
        saved = root[FEEDS_KEY]
    with contextlib.closing(Server(tmp_path / 'Other.fs')) as other:
        assert saved is not other.feeds  # another database: an old number is harmless there
        with other.commit() as feeds:
            feeds.feed('news').publish(4)
        late = other.listen('/events', Last_Event_ID=listener.last_id)
        late.begin()
        assert late.events(2)[1][1]['item'] == 4


def test_what_is_not_kept_is_said(server, monkeypatch):
    monkeypatch.setattr(log, 'KEEP_SECONDS', -1)
    with server.commit() as feeds:
        feed = feeds.feed('news', {'notices': 1})
    since = feeds.last_number
    for number in range(150):
        with server.commit():
            feed.publish(number)
    server.settle()
    server.broadcast.recent.clear()
    server.broadcast.floor = feeds.last_number
    listener = server.listen(f'/feeds/news/events?since={since}')
    listener.begin()
    (kind, data), (_, following) = listener.events(2)
    assert kind == 'lost' and data == {'feed': 'news'}
    assert following['item'] > 0


def test_a_slow_client_costs_nothing_and_loses_nothing(server, monkeypatch):
    monkeypatch.setattr(stream, 'RECENT_BYTES', 200_000)
    with server.commit() as feeds:
        feed = feeds.feed('news')
    slow, quick = (server.listen('/feeds/news/events', buffer=4096) for _ in range(2))
    assert slow.begin() == quick.begin() == 200
    big, count = 'x' * 20_000, 300
    for number in range(count):
        with server.commit():
            feed.publish([number, big])
        if number % 10 == 9:  # the quick one keeps up, the slow one reads nothing
            assert [data['item'][0] for _, data in quick.events(10)] == list(
                range(number - 9, number + 1)
            )
    server.settle()
    held = sum(len(frame) for _, _, frame in server.broadcast.recent)
    assert held <= 3 * stream.RECENT_BYTES
    waiting = [len(client.request.channel.transport.dataBuffer) for client in clients_of(server)]
    assert max(waiting) < 500_000, 'six megabytes were published'
    assert [data['item'][0] for _, data in slow.events(count)] == list(range(count))


def clients_of(server):
    return list(server.broadcast.clients)


def test_who_takes_nothing_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, 'HEARTBEAT_SECONDS', 0.05)
    monkeypatch.setattr(stream, 'STALL_SECONDS', 0.1)
    with contextlib.closing(Server(tmp_path / 'Data.fs')) as server:
        with server.commit() as feeds:
            feed = feeds.feed('news')
        stalled, idle = (server.listen('/feeds/news/events', buffer=4096) for _ in range(2))
        assert stalled.begin() == idle.begin() == 200
        idle.close()
        assert wait_until(lambda: len(server.broadcast.clients) == 1, SECONDS)
        for number in range(300):
            with server.commit():
                feed.publish([number, 'x' * 20_000])
        assert wait_until(lambda: not server.broadcast.clients, SECONDS)


def test_there_is_room_for_so_many(tmp_path):
    with contextlib.closing(Server(tmp_path / 'Data.fs', clients=2)) as server:
        first = server.listen('/events')
        assert first.begin() == server.listen('/events').begin() == 200
        assert server.listen('/events').begin() == 503
        first.close()
        assert wait_until(lambda: len(server.broadcast.clients) == 1, SECONDS)
        assert server.listen('/events').begin() == 200


def test_a_hundred_clients_all_get_all(server):
    with server.commit() as feeds:
        feed = feeds.feed('news')
    server.settle()
    listeners = [server.listen('/events') for _ in range(100)]
    assert {each.begin() for each in listeners} == {200}
    for number in range(20):
        with server.commit():
            feed.publish(number)
    for each in listeners:
        assert [data['item'] for _, data in each.events(20)] == list(range(20))
