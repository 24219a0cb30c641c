"""Celery, on the Redis whose socket PEERS_REDIS names; a task is acknowledged when it is done."""

import contextlib
import os
import sys

import celery

from benchmarks.peers.tick import tick

app = celery.Celery('peers', broker=f'redis+socket://{os.environ["PEERS_REDIS"]}')
app.conf.task_acks_late = True
app.conf.task_ignore_result = True
app.conf.broker_connection_retry_on_startup = True
task = app.task(tick, name='tick')


def worker(threads):
    command = [sys.executable, '-m', 'celery', '-A', 'benchmarks.peers.with_celery', 'worker']
    return [*command, '--pool=threads', f'--concurrency={threads}', '--without-gossip']


@contextlib.contextmanager
def producer():
    yield task.delay
