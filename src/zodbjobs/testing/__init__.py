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
    'Layer',
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

    `db` is a ZODB.DB of the test's own, whose queues are used if it has any, and
    which is not closed; else there is a new one, with this `storage` (None: a
    file).  `size` is how many jobs run at a time.
    """

    def __init__(self, storage=None, size=3, poll_interval=5, db=None):
        from zodbjobs import Agent, configure
        from zodbjobs.runtime.dispatcher import Dispatcher

        configure.base()
        self.reactor = Reactor()
        self.reactor.start()
        self._folder = None
        self._is_own = db is None
        self.db = self._make_database(storage) if db is None else db
        self.connection = self.db.open()
        self.root = self.connection.root()
        self._find_queue()
        self.dispatcher = Dispatcher(self.db, self.reactor, poll_interval)
        self.dispatcher.activate()
        self.reactor.watch(self.dispatcher)
        self.reactor.time_passes()
        transaction.begin()
        self.agent = self.queue.dispatchers[self.dispatcher.UUID]['main'] = Agent(size=size)
        transaction.commit()
        self.reactor.time_passes()

    def _make_database(self, storage):
        import ZODB
        from ZODB.FileStorage import FileStorage

        if storage is None:
            self._folder = tempfile.TemporaryDirectory()
            storage = FileStorage(os.path.join(self._folder.name, 'Data.fs'))
        return ZODB.DB(storage)

    def _find_queue(self):
        from zodbjobs import Queue, Queues
        from zodbjobs.interfaces import KEY

        self.queues = self.root.get(KEY)
        if self.queues is None:
            self.queues = self.root[KEY] = Queues()
        if '' not in self.queues:
            self.queues[''] = Queue()
        self.queue = self.queues['']
        transaction.commit()

    def run(self):
        """Run all jobs that are due, and what they put, until there are none left.

        They run for real, in a thread with a transaction of its own, and time
        stands still.  With size 1 they run one after the other.  Returns how
        many jobs are left, which wait for a date, for others, or are held.
        Raises AssertionError if the test has changes it has not committed, as
        no job could see them, and if jobs do not come to an end.
        """
        changed = _uncommitted()
        if changed:
            raise AssertionError(
                f'commit first: jobs see what is committed only, and {changed[0]!r} is not'
            )
        if not self.reactor.settle(RUN_SECONDS):
            raise AssertionError(f'jobs did not end in {RUN_SECONDS} seconds')
        transaction.begin()
        return sum(len(queue) + len(queue.held) for queue in self.queues.values())

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
        if self._is_own:
            self.db.close()
        if self._folder is not None:
            self._folder.cleanup()


#: Real seconds that `Layer.run` gives to jobs; more than a job of a test should need.
RUN_SECONDS = 30


def _uncommitted():
    """Objects that the transaction of this thread has changed."""
    found = []
    for resource in transaction.get()._resources:
        found += getattr(resource, '_registered_objects', ())
        found += getattr(resource, '_added', {}).values()
    return found


def setUp(test=None, **settings):
    """Set up a `Layer` for a test, and return it.

    `test` is anything with a dict `globs` (as a doctest has), which then gets
    the layer's attributes as names, or None.  `settings` are those of `Layer`.
    """
    layer = Layer(**settings)
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
