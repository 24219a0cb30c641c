"""Huey, on a SQLite file in the folder PEERS_FOLDER that is synced at every commit."""

import contextlib
import os
import sys

from huey import SqliteHuey

from benchmarks.peers.tick import tick

huey = SqliteHuey(
    filename=os.path.join(os.environ['PEERS_FOLDER'], 'huey.sqlite'), fsync=True, results=False
)
task = huey.task()(tick)


def worker(threads):
    command = [sys.executable, '-m', 'huey.bin.huey_consumer', 'benchmarks.peers.with_huey.huey']
    return [*command, '-w', str(threads), '-k', 'thread', '-q']


@contextlib.contextmanager
def producer():
    yield task
