"""A gateway without sockets, in virtual time; and real servers, ours and beanstalkd."""

import contextlib
import os
import socket
import threading

import ZODB
from twisted.internet import task
from ZODB.MappingStorage import MappingStorage

from tests.model.support import TurnedClock
from zodbjobs import clock
from zodbjobs.beanstalk.gateway import Client, Gateway
from zodbjobs.beanstalk.own import OwnStore
from zodbjobs.beanstalk.protocol import Parser
from zodbjobs.beanstalk.store import Store
from zodbjobs.testing.beanstalkd import Beanstalkd

#: Looks at a gateway until it has nothing more to do at once.
SETTLE_LIMIT = 1000


class Desk:
    """A gateway, and the clients that a test speaks for."""

    def __init__(self, db=None, exclusive=True, body_bytes=65535, source=None, own=False):
        self.time = TurnedClock() if source is None else source
        clock.use(self.time)
        self.db = ZODB.DB(MappingStorage()) if db is None else db
        self.reactor = task.Clock()
        self.pause = threading.Event()
        name = 'beanstalkd test'
        self.store = OwnStore(self.db, name) if own else Store(self.db, name, exclusive)
        self.store.prepare()
        self.gateway = Gateway(self.store, body_bytes)
        self.gateway.call_later = self.reactor.callLater
        self.failures = []  # of batches, which the gateway survives
        self.may_fail = False
        single_steps = self.gateway._single_steps
        self.gateway._single_steps = lambda error: (
            self.failures.append(error) or single_steps(error)
        )

    def client(self):
        return Talk(self)

    def settle(self):
        for _ in range(SETTLE_LIMIT):
            self.reactor.advance(0)
            due = any(call.getTime() <= self.reactor.seconds() for call in self.reactor.calls)
            clients = self.gateway.clients
            if not due and not any(each.commands and not each.waits for each in clients):
                return
            self.pause.wait(0.001)  # after conflicts it waits for a moment, in real time
            self.reactor.advance(0.001)
        raise AssertionError('the gateway does not come to rest')

    def advance(self, seconds):
        """Let so many seconds pass, with a look at every tenth."""
        for _ in range(round(seconds * 10)):
            self.time.advance(0.1)
            self.reactor.advance(0.1)
            self.settle()

    def check(self):
        """Nothing went wrong that should not."""
        assert self.may_fail or self.failures == []

    def close(self):
        self.store.close()
        self.db.close()


class Talk:
    """A client of a Desk: what it sends, and what it is sent."""

    def __init__(self, desk):
        self.desk = desk
        self.parser = Parser(desk.gateway.body_bytes)
        self.got = b''
        self.closed = False
        self.client = Client(self._take, self._close)
        desk.gateway.connected(self.client)

    def _take(self, data):
        self.got += data

    def _close(self):
        self.closed = True
        self.desk.gateway.disconnected(self.client)

    def send(self, data):
        """Send bytes and let the gateway work; nothing is returned."""
        self.desk.gateway.received(self.client, self.parser.feed(data))

    def heard(self):
        """What was received since the last time."""
        self.desk.settle()
        got, self.got = self.got, b''
        return got

    def say(self, *lines):
        """Send lines; returns the answer."""
        self.send(b''.join(line + b'\r\n' for line in lines))
        return self.heard()

    def put(self, body, priority=100, delay=0, ttr=60):
        """Put a job; returns its number."""
        answer = self.say(b'put %d %d %d %d' % (priority, delay, ttr, len(body)), body)
        assert answer.startswith(b'INSERTED '), answer
        return int(answer.split()[1])

    def facts(self, command):
        """A dict of what a command of statistics says."""
        answer = self.say(command)
        assert answer.startswith(b'OK '), answer
        lines = answer.split(b'\r\n', 1)[1].decode().splitlines()
        return dict(line.split(': ', 1) for line in lines if ': ' in line)

    def leave(self):
        self.desk.gateway.disconnected(self.client)
        self.desk.settle()


class Server(Beanstalkd):
    """A server, and connections to it."""

    def connect(self):
        return Line(('127.0.0.1', self.port))


class Line:
    """A connection to a server: bytes out, bytes in."""

    def __init__(self, address):
        self.socket = socket.create_connection(address, 10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.rest = b''

    def send(self, data):
        self.socket.sendall(data)

    def line(self):
        """One line of answer, with its CRLF; b'' at the end of the connection."""
        while b'\r\n' not in self.rest:
            data = self.socket.recv(65536)
            if not data:
                return self.rest
            self.rest += data
        found, _, self.rest = self.rest.partition(b'\r\n')
        return found + b'\r\n'

    def answer(self):
        """A whole answer, with the body that comes with it."""
        line = self.line()
        if line.split(b' ')[0] not in (b'OK', b'RESERVED', b'FOUND'):
            return line
        size = int(line.split()[-1]) + 2
        while len(self.rest) < size:
            data = self.socket.recv(65536)
            assert data, 'the connection ended in a body'
            self.rest += data
        body, self.rest = self.rest[:size], self.rest[size:]
        return line + body

    def ask(self, data):
        self.send(data)
        return self.answer()

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


def executable():
    """The path of a beanstalkd of others: BEANSTALKD, or what the PATH has; None: there is none."""
    named = os.environ.get('BEANSTALKD')
    if named:
        return named
    for folder in [*os.get_exec_path(), '/usr/sbin']:
        path = os.path.join(folder, 'beanstalkd')
        if os.access(path, os.X_OK):
            return path
    return None


@contextlib.contextmanager
def desk(**options):
    """A Desk for a with block."""
    made = Desk(**options)
    try:
        yield made
    finally:
        made.close()
    made.check()
