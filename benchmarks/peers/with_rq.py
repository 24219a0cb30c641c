"""RQ, on the Redis whose socket PEERS_REDIS names; its worker forks a process for each job."""

import contextlib
import os
import sys

import redis
import rq

from benchmarks.peers.tick import tick


def worker(threads):
    url = f'unix://{os.environ["PEERS_REDIS"]}'
    return [sys.executable, '-m', 'rq.cli', 'worker', '--url', url, '--quiet']


@contextlib.contextmanager
def producer():
    queue = rq.Queue(connection=redis.Redis(unix_socket_path=os.environ['PEERS_REDIS']))
    yield lambda: queue.enqueue(tick, result_ttl=0)
