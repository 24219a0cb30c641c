"""zodbjobs, on the database that PEERS_URI names."""

import contextlib
import os
import sys

import transaction

from benchmarks.peers.tick import tick
from zodbjobs import subscribers
from zodbjobs.interfaces import KEY, DatabaseOpened
from zodbjobs.runtime.address import open_database


def worker(threads):
    uri = os.environ['PEERS_URI']
    return [sys.executable, '-m', 'zodbjobs', 'run', uri, '--threads', str(threads)]


@contextlib.contextmanager
def producer():
    with contextlib.closing(open_database(os.environ['PEERS_URI'])) as db:
        subscribers.QueueInstaller()(DatabaseOpened(db))
        manager = transaction.TransactionManager()
        with contextlib.closing(db.open(manager)) as connection:

            def put():
                manager.begin()
                connection.root()[KEY][''].put(tick)
                manager.commit()

            yield put
            manager.abort()
