"""Helpers for the tests of applications that use zodbjobs.

A `Reactor` with virtual time drives a dispatcher whose worker threads are
real: a test of a job that is scheduled for tomorrow takes milliseconds.  The
same waiting functions work with a dispatcher that runs in real time.
"""

import os
import tempfile

import transaction
from zope.component import globalregistry

from zodbjobs import clock
from zodbjobs.testing.reactor import Reactor, set_now
from zodbjobs.testing.waiting import (
    TearDownDispatcherError,
    get_poll,
    print_logs,
    stop_printing_logs,
    tear_down_dispatcher,
    wait_for_annotation,
    wait_for_deactivation,
    wait_for_death,
    wait_for_notices,
    wait_for_result,
    wait_for_start,
)

__all__ = [
    'Reactor',
    'TearDownDispatcherError',
    'get_poll',
    'print_logs',
    'setUp',
    'set_now',
    'stop_printing_logs',
    'tearDown',
    'tear_down_dispatcher',
    'wait_for_annotation',
    'wait_for_deactivation',
    'wait_for_death',
    'wait_for_notices',
    'wait_for_result',
    'wait_for_start',
]


class Layer:
    """A database with a queue '' and a dispatcher in virtual time, for one test.

    Attributes: `db`, `connection`, `root`, `queues`, `queue`, `reactor`,
    `dispatcher`, `agent` (named 'main').
    """

    def __init__(self, storage=None, size=3, poll_interval=5):
        import ZODB
        from ZODB.FileStorage import FileStorage

        from zodbjobs import Agent, Queue, Queues, configure
        from zodbjobs.interfaces import KEY
        from zodbjobs.runtime.dispatcher import Dispatcher

        configure.base()
        self.reactor = Reactor()
        self.reactor.start()
        self._folder = None
        if storage is None:
            self._folder = tempfile.TemporaryDirectory()
            storage = FileStorage(os.path.join(self._folder.name, 'Data.fs'))
        self.db = ZODB.DB(storage)
        self.connection = self.db.open()
        self.root = self.connection.root()
        self.queues = self.root[KEY] = Queues()
        self.queue = self.queues[''] = Queue()
        transaction.commit()
        self.dispatcher = Dispatcher(self.db, self.reactor, poll_interval)
        self.dispatcher.activate()
        self.reactor.watch(self.dispatcher)
        self.reactor.time_passes()
        transaction.begin()
        self.agent = self.queue.dispatchers[self.dispatcher.UUID]['main'] = Agent(size=size)
        transaction.commit()
        self.reactor.time_passes()

    def close(self):
        from zodbjobs.runtime import delivery, dispatcher, wakeup

        transaction.abort()
        if self.reactor.running:  # a test may have stopped it
            self.reactor.stop()
        tear_down_dispatcher(self.dispatcher)
        dispatcher.clear()
        self.connection.close()
        delivery.stop(self.db)
        wakeup.hang_up(self.db)
        self.db.close()
        if self._folder is not None:
            self._folder.cleanup()


def setUp(test=None):
    """Set up a `Layer` for a test, and return it.

    `test` is anything with a dict `globs` (as a doctest has), which then gets
    the layer's attributes as names, or None.
    """
    layer = Layer()
    _layers.append(layer)
    if test is not None:
        names = ('db', 'root', 'queues', 'queue', 'reactor', 'dispatcher', 'agent')
        test.globs.update({name: getattr(layer, name) for name in names})
        test.globs.update(conn=layer.connection, transaction=transaction)
    return layer


def tearDown(test=None):
    """Take down what `setUp` made, the last first, all registrations, and `print_logs`."""
    while _layers:
        _layers.pop().close()
    stop_printing_logs()
    clock.use(None)
    globalregistry.base.__init__('base')


_layers = []
