"""``zodbjobs run`` for what is configured elsewhere: a ZCML file, or a Zope instance.

What the configuration says is done when the database is opened: queues, quotas
and agents are made.  A dispatcher that is configured there serves, in its own
thread; without one the command makes one with its own options.
"""

import signal
import threading

import zc.lockfile
from zope.configuration import xmlconfig
from zope.configuration.exceptions import ConfigurationError
from zope.event import notify

from zodbjobs import subscribers
from zodbjobs.cli.output import WRONGLY_ASKED, CommandError
from zodbjobs.interfaces import DatabaseOpened


class Stop:
    """Told by SIGTERM or SIGINT, after a dispatcher's own handler has stopped that.

    Make it before the dispatcher, which hands a signal on to whom it finds there.
    """

    def __init__(self):
        self._told = threading.Event()
        self._number = None  # of the signal that told
        self._former = {
            number: signal.signal(number, self._tell) for number in (signal.SIGINT, signal.SIGTERM)
        }

    def _tell(self, number, frame):
        self._number = number
        self._told.set()

    def repeat(self):
        """Raise the signal that came too early once more, for whoever listens by now."""
        if self._told.is_set():
            signal.raise_signal(self._number)

    def wait(self, dispatcher):
        """Return when the process was told to stop, or the dispatcher has ended."""
        while dispatcher.thread.is_alive() and not self._told.wait(1):
            pass
        subscribers.stop(dispatcher)

    def forget(self):
        """Put the former handlers back, where nobody else's are installed."""
        for number, former in self._former.items():
            if signal.getsignal(number) == self._tell:
                signal.signal(number, former)


def load_zcml(path):
    """Load a ZCML file; CommandError with file and line for a mistake in it."""
    try:
        xmlconfig.file(path)
    except (ConfigurationError, OSError) as error:
        raise CommandError(f'--zcml {path}: {error}', WRONGLY_ASKED) from error


def announce(db):
    """Have done what the ZCML that was loaded says of a database that was opened."""
    try:
        notify(DatabaseOpened(db))
    except ConfigurationError as error:
        raise CommandError(str(error), WRONGLY_ASKED) from None


def open_zope(path):
    """Start the Zope that a zope.conf describes, without a web server; returns its database."""
    try:
        from Zope2.Startup.run import configure_wsgi
    except ImportError as error:
        raise CommandError(
            f'--zope needs Zope in the environment of this command: {error}', WRONGLY_ASKED
        ) from None
    import ZConfig
    import Zope2

    try:
        starter = configure_wsgi(path)
    except (ZConfig.ConfigurationError, OSError) as error:
        raise CommandError(f'--zope {path}: {error}', WRONGLY_ASKED) from None
    try:
        starter.prepare()
    except ConfigurationError as error:
        raise CommandError(f'--zope {path}: {error}', WRONGLY_ASKED) from error
    except zc.lockfile.LockError as error:
        raise CommandError(
            f'--zope {path}: another process has its file open ({error}): let that one run the jobs'
            f' itself, or name a ZEO server in both configurations',
            WRONGLY_ASKED,
        ) from None
    return Zope2.DB


def serving():
    """The dispatcher that the configuration has started in a thread of this process, or None."""
    from zodbjobs.runtime import dispatcher  # late: it brings Twisted

    found = dispatcher.get()
    return found if getattr(found, 'thread', None) is not None else None
