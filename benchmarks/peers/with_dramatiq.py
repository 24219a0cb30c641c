"""Dramatiq, on the Redis whose socket PEERS_REDIS names."""

import contextlib
import os
import sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.peers.tick import tick

dramatiq.set_broker(RedisBroker(url=f'unix://{os.environ["PEERS_REDIS"]}'))
actor = dramatiq.actor(tick)


def worker(threads):
    command = [sys.executable, '-m', 'dramatiq', 'benchmarks.peers.with_dramatiq']
    return [*command, '--processes', '1', '--threads', str(threads)]


@contextlib.contextmanager
def producer():
    yield actor.send
