"""The Twisted side of the beanstalk door: connections in, answers out.

A client that does not read what it is sent is not read from either, and its
commands wait; one that sends more than it may while it waits is not read until
it has been answered.  So no client costs more than a line, a body, a few
commands and the answers that the socket has not taken.

Runs in the reactor's thread; the gateway may make its commits in another.  While
one is under way the next commands gather, for the next commit.
"""

import functools
import threading

from twisted.internet import abstract, interfaces, protocol
from zope.interface import implementer

from zodbjobs.beanstalk.gateway import Client
from zodbjobs.beanstalk.protocol import Parser
from zodbjobs.runtime import wakeup

#: Seconds between looks for jobs that agents and consumers have ended, and for empty tubes.
SWEEP_SECONDS = 10

#: A client that has so many commands waiting is not read.
COMMANDS_AHEAD = 1000


@implementer(interfaces.IHalfCloseableProtocol, interfaces.IPushProducer)
class Connection(protocol.Protocol):
    """One connection of a client."""

    def __init__(self, gateway):
        self.gateway = gateway
        self.parser = Parser(gateway.body_bytes)
        self.client = None
        self._is_full = False
        self._at_once = False  # whether the socket has taken all answers until now

    def connectionMade(self):
        for name in ('setTcpNoDelay', 'setTcpKeepAlive'):
            setting = getattr(self.transport, name, None)  # a Unix socket has neither
            if setting is not None:
                setting(True)
        is_plain = isinstance(self.transport, abstract.FileDescriptor)  # nothing is encrypted
        self._at_once = is_plain and not getattr(self.transport, 'TLS', False)
        self.client = Client(self._send, self._close)
        self.transport.registerProducer(self, True)
        self.gateway.connected(self.client)

    def dataReceived(self, data):
        commands = self.parser.feed(data)
        if commands:
            self.gateway.received(self.client, commands)
            if self._ahead() > COMMANDS_AHEAD:
                self._is_full = True
                self.transport.pauseProducing()

    def _ahead(self):
        """How many commands wait."""
        return len(self.client.commands) + self.client.mailed

    def _send(self, data):
        if self._at_once and self.transport.connected:
            # Without the reactor's buffer, and its two calls of epoll for each answer.  Who reads
            # slowly, or is gone, has that from then on.
            count = self.transport.writeSomeData(data)
            self._at_once = count == len(data)
            data = data[count:] if isinstance(count, int) else data
        if data:
            self.transport.write(data)
        if self._is_full and self._ahead() <= COMMANDS_AHEAD:
            self._is_full = False
            if not self.client.stalled:
                self.transport.resumeProducing()

    def _close(self):
        # TLS does not end as long as somebody might have more to say.
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def readConnectionLost(self):
        """The client sends no more, and may still read."""
        self.gateway.half_closed(self.client)

    def writeConnectionLost(self):
        self.transport.loseConnection()

    def connectionLost(self, reason):
        if self.client is not None:
            self.gateway.disconnected(self.client)

    # of what is written: the client does not read it, or does again

    def pauseProducing(self):
        self.client.stalled = True
        self.transport.pauseProducing()

    def resumeProducing(self):
        self.client.stalled = False
        if not self._is_full:
            self.transport.resumeProducing()
        self.gateway.wake(self.client)

    def stopProducing(self):
        self.client.stalled = False


class Factory(protocol.Factory):
    """Makes a `Connection` for each client of `gateway`."""

    noisy = False

    def __init__(self, gateway):
        self.gateway = gateway

    def buildProtocol(self, addr):
        return Connection(self.gateway)


def attach(gateway, reactor, listen=wakeup.listen):
    """Let `gateway` use `reactor`, and hear of others' commits; returns what ends that."""
    gateway.call_later = reactor.callLater
    if not gateway.store.exclusive:
        gateway.carry_out = functools.partial(_in_thread, reactor)

    def ring():
        if gateway.committer != threading.get_ident():  # our own commit tells us nothing
            reactor.callFromThread(gateway.rung)

    def sweep():
        gateway.sweep()
        reactor.callLater(SWEEP_SECONDS, sweep)

    reactor.callLater(SWEEP_SECONDS, sweep)
    return listen(gateway.store.db, ring)


def _in_thread(reactor, work, then):
    """Work in a thread of the reactor's pool; there is one at a time, as there is one gateway."""
    reactor.callInThread(lambda: reactor.callFromThread(then, work()))
