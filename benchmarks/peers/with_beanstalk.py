"""beanstalkd with a log that is synced at every write, and greenstalk.

It brings no worker: this one reserves, runs and deletes, one job after the other.
"""

import contextlib
import os
import sys

import greenstalk

from benchmarks.peers.tick import tick


def worker(threads):
    return [sys.executable, '-m', 'benchmarks.peers.with_beanstalk']


@contextlib.contextmanager
def producer():
    with _client() as client:
        yield lambda: client.put('tick')


def _client():
    return greenstalk.Client(os.environ['PEERS_BEANSTALK'])


def main():
    with _client() as client:
        while True:
            job = client.reserve()
            tick()
            client.delete(job)


if __name__ == '__main__':
    main()
