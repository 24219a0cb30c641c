"""Procrastinate, on the PostgreSQL database that PEERS_DSN names."""

import contextlib
import os
import sys

import procrastinate

from benchmarks.peers.tick import tick

app = procrastinate.App(
    connector=procrastinate.PsycopgConnector(conninfo=os.environ['PEERS_DSN']),
    import_paths=['benchmarks.peers.with_procrastinate'],
)
task = app.task(name='tick', pass_context=False)(tick)


def worker(threads):
    command = [
        sys.executable,
        '-m',
        'procrastinate',
        '--app=benchmarks.peers.with_procrastinate.app',
    ]
    return [*command, 'worker', f'--concurrency={threads}', '--delete-jobs=never']


def prepare():
    with app.replace_connector(_sync()) as replaced, replaced.open():
        replaced.schema_manager.apply_schema()


def _sync():
    return procrastinate.SyncPsycopgConnector(conninfo=os.environ['PEERS_DSN'])


@contextlib.contextmanager
def producer():
    with app.replace_connector(_sync()) as replaced, replaced.open():
        yield task.defer
