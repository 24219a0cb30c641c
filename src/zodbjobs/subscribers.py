"""What is set up when a database was opened: queues, a dispatcher, an agent.

Each installer is a subscriber to an event; the ready instances have the
defaults.  `QueueInstaller` and the dispatcher installers hear that a database
was opened (any object with the attribute `database`), `AgentInstaller` that a
dispatcher was activated.

Installers run in the thread that opened the database, in transactions of their
own; the threaded dispatcher then lives in a thread of its own.
"""

import atexit
import contextlib
import importlib
import importlib.metadata
import logging
import signal
import threading
import weakref

import transaction
import zope.component.event  # calls the subscribers that ZCML registers
import zope.event
from zope.event import notify

from zodbjobs.interfaces import KEY, DispatcherActivated, IDatabaseOpenedEvent, ObjectAdded
from zodbjobs.model.agent import Agent
from zodbjobs.model.queue import Queue, Queues
from zodbjobs.runtime import trouble

log = logging.getLogger('zodbjobs.events')

#: How often an installation that meets another process's is tried.
ATTEMPTS = 10


def opened_events():
    """The interfaces of the events that say that a database may be served: ours, and Zope's."""
    events = [IDatabaseOpenedEvent]
    with contextlib.suppress(ImportError):
        events.append(importlib.import_module('zope.processlifetime').IDatabaseOpenedWithRoot)
    return events


def in_transaction(db, deed):
    """Do `deed` (called with a connection) and commit it; returns what it returns."""
    for number in range(ATTEMPTS):
        manager = transaction.TransactionManager()
        connection = db.open(manager)
        try:
            manager.begin()
            result = deed(connection)
            manager.commit()
            return result
        except Exception as error:
            manager.abort()
            if number == ATTEMPTS - 1 or not trouble.is_conflict(error):
                raise
        finally:
            connection.close()
    return None


class QueueInstaller:
    """Make the mapping of queues, and the queues named, where they are missing.

    `queues` are names, `factory` makes a queue, `db_name` is the database of
    the multi-database in which the mapping lives (None: the one that was opened),
    `queue_db_name` the one in which new queues do (None: where the mapping is).
    """

    def __init__(self, queues=('',), factory=Queue, db_name=None, queue_db_name=None):
        self.queues = (queues,) if isinstance(queues, str) else tuple(queues)
        self.factory = factory
        self.db_name = db_name
        self.queue_db_name = queue_db_name

    def __call__(self, event):
        in_transaction(event.database, self._install)

    def _install(self, connection):
        root = connection.root()
        mapping = root.get(KEY)
        if mapping is None:
            home = connection if self.db_name is None else connection.get_connection(self.db_name)
            mapping = home.root().get(KEY)
            if mapping is None:
                mapping = home.root()[KEY] = Queues()
                home.add(mapping)
            root[KEY] = mapping
            notify(ObjectAdded(mapping, root, KEY))
            log.info('the mapping of queues was added')
        for name in self.queues:
            if name not in mapping:
                mapping[name] = self._make(connection)
                notify(ObjectAdded(mapping[name], mapping, name))
                log.info('queue %r was added', name)

    def _make(self, connection):
        queue = self.factory()
        if self.queue_db_name is not None:
            connection.get_connection(self.queue_db_name).add(queue)
        return queue


class AgentInstaller:
    """Give a dispatcher an agent in each of the queues named (None: in all).

    An agent that is there already is left as it is.
    """

    def __init__(
        self, agent_name='main', chooser=None, size=3, queue_names=None, filter=None, channels=None
    ):
        if chooser is not None and filter is not None:
            raise ValueError('an agent has a chooser or a filter, not both')
        self.agent_name = agent_name
        self.chooser = chooser
        self.size = size
        self.queue_names = None if queue_names is None else tuple(queue_names)
        self.filter = filter
        self.channels = channels

    def __call__(self, event):
        record = event.object
        queue = record.queue
        if self.queue_names is not None and queue.name not in self.queue_names:
            return
        if self.agent_name in record:
            return
        record[self.agent_name] = Agent(
            chooser=self.chooser, filter=self.filter, size=self.size, channels=self.channels
        )
        log.info('queue %r: agent %r of %s was added', queue.name, self.agent_name, record.UUID)


#: Database -> the installers that `at_activation` was given for it.
_installers = weakref.WeakKeyDictionary()
_guard = threading.Lock()


def at_activation(db, installer):
    """Call `installer` when a dispatcher is activated in a queue of `db`, for as long as that is.

    For configuration from Python; ZCML subscribes to DispatcherActivated.
    """
    with _guard:
        _installers.setdefault(db, []).append(installer)
    # One subscriber for all, that stays: to take one out while the others are
    # being called would hide the next one.
    if _activated not in zope.event.subscribers:
        zope.event.subscribers.append(_activated)


def _activated(event):
    if not isinstance(event, DispatcherActivated):
        return
    family = event.object.queue._p_jar.db().databases
    with _guard:
        found = [(db, tuple(installers)) for db, installers in _installers.items()]
    for db, installers in found:
        if family.get(db.database_name) is db:  # unrelated ones may have its name
            for installer in installers:
                installer(event)


#: Packages that add to every process that serves a database register a function of the
#: dispatcher under this group; the monitor is one of them.
DOORS = 'zodbjobs.doors'


def open_doors(dispatcher):
    """Call what is registered for processes that serve a database; it hinders nobody."""
    for found in importlib.metadata.entry_points(group=DOORS):
        try:
            found.load()(dispatcher)
        except Exception:
            log.exception('%s could not be opened for %r', found.name, dispatcher)


class _DispatcherInstaller:
    def __init__(self, poll_interval=5, uuid=None, grace=30, deployment=None):
        self.poll_interval = poll_interval
        self.uuid = uuid
        self.grace = grace
        self.deployment = deployment

    def _make(self, db, reactor):
        # Here and not above: it brings Twisted, which a process that only puts can spare
        from zodbjobs.runtime.dispatcher import Dispatcher

        dispatcher = Dispatcher(
            db,
            reactor,
            self.poll_interval,
            self.uuid,
            grace=self.grace,
            deployment=self.deployment,
        )
        open_doors(dispatcher)
        return dispatcher


class ThreadedDispatcherInstaller(_DispatcherInstaller):
    """Run a dispatcher on a private reactor in a daemon thread of its own.

    For a process whose main thread does something else, such as serving WSGI.
    `reactor_factory` makes the reactor (None: the best one for the platform).
    With `signals`, and in the main thread, SIGTERM and SIGINT stop it first.
    A process that just ends stops it as well.
    """

    def __init__(
        self,
        poll_interval=5,
        reactor_factory=None,
        uuid=None,
        grace=30,
        signals=True,
        deployment=None,
    ):
        super().__init__(poll_interval, uuid, grace, deployment)
        self.reactor_factory = reactor_factory or private_reactor
        self.signals = signals

    def __call__(self, event):
        reactor = self.reactor_factory()
        dispatcher = self._make(event.database, reactor)
        thread = threading.Thread(
            target=self._run, args=(dispatcher,), name='zodbjobs dispatcher', daemon=True
        )
        dispatcher.thread = thread
        if self.signals and threading.current_thread() is threading.main_thread():
            install_signal_handlers(dispatcher)
        stop_at_exit(dispatcher)
        thread.start()
        return dispatcher

    @staticmethod
    def _run(dispatcher):
        dispatcher.activate()
        dispatcher.reactor.run(installSignalHandlers=False)


class TwistedDispatcherInstaller(_DispatcherInstaller):
    """Run a dispatcher on the installed, global reactor, which the caller runs.

    Its database work is done in threads of the reactor's pool.
    """

    def __call__(self, event):
        from twisted.internet import reactor  # the global one, on purpose

        dispatcher = self._make(event.database, reactor)
        dispatcher.activate(threaded=True)
        return dispatcher


def private_reactor():
    """A reactor of its own, which leaves the global one alone."""
    for module, name in (
        ('twisted.internet.epollreactor', 'EPollReactor'),
        ('twisted.internet.selectreactor', 'SelectReactor'),
    ):
        try:
            return getattr(importlib.import_module(module), name)()
        except ImportError:
            continue
    raise RuntimeError('no Twisted reactor can be made here')


def stop(dispatcher, wait_seconds=None):
    """Stop a dispatcher that runs on a private reactor in a thread; from any other thread.

    It stops claiming, waits for running jobs up to its grace period, and hands
    back the rest.  In the main thread the former signal handlers are put back.
    Returns whether the thread has ended.
    """
    thread = dispatcher.thread
    if thread is not None and thread.is_alive():
        dispatcher.reactor.callFromThread(_stop_reactor, dispatcher.reactor)
        thread.join(dispatcher.grace + 5 if wait_seconds is None else wait_seconds)
    if threading.current_thread() is threading.main_thread():
        restore_signal_handlers(dispatcher)
    return thread is None or not thread.is_alive()


#: Dispatchers that run in daemon threads of this process, which would be cut off at its end.
_to_stop_at_exit = weakref.WeakSet()


def stop_at_exit(dispatcher):
    """See that `dispatcher` is stopped when the process comes to its end by itself."""
    atexit.unregister(_stop_all)  # registered last it is called first, while databases are open
    atexit.register(_stop_all)
    _to_stop_at_exit.add(dispatcher)


def _stop_all():
    for dispatcher in list(_to_stop_at_exit):
        with contextlib.suppress(ValueError):  # it has been stopped
            dispatcher.deactivate()  # in this thread: no other one can be started any more
        stop(dispatcher)


def _stop_reactor(reactor):
    if reactor.running:
        reactor.stop()


#: {id(dispatcher): {signal number: (former handler, ours)}}
signal_handlers = {}

_SIGNALS = ('SIGINT', 'SIGTERM', 'SIGBREAK')


def install_signal_handlers(dispatcher):
    """Stop `dispatcher` when the process is told to end, then do what was done before."""
    installed = signal_handlers[id(dispatcher)] = {}
    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is None:
            continue
        former = signal.getsignal(number)

        def stopped(signum, frame, former=former):
            if dispatcher.activated is None:  # the second signal: hurry
                dispatcher.hurry()
                return
            stop(dispatcher)
            if callable(former):
                former(signum, frame)
            elif former != signal.SIG_IGN:
                raise SystemExit(128 + signum)

        signal.signal(number, stopped)
        installed[number] = (former, stopped)


def restore_signal_handlers(dispatcher):
    """Put the former handlers back, where ours are still installed."""
    for number, (former, ours) in signal_handlers.pop(id(dispatcher), {}).items():
        if signal.getsignal(number) is ours:
            signal.signal(number, former)


queue_installer = QueueInstaller()
multidb_queue_installer = QueueInstaller(db_name='async')
threaded_dispatcher_installer = ThreadedDispatcherInstaller()
twisted_dispatcher_installer = TwistedDispatcherInstaller()
agent_installer = AgentInstaller()
