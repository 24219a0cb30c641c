"""The beanstalk door beside beanstalkd: ``python -m benchmarks.beanstalk``.

Puts, then reserves and deletes, over 1, 10 and 100 connections, each of which
waits for its answer before it asks again.  beanstalkd runs with ``-b DIR -f 0``, so
both have what they acknowledge on the disk; and both write to the same disk, in
turns, several rounds of them.  Before each round stands what the disk does for one
writer alone: bare commits of one small object to a FileStorage, and bare appends
to a file, each of them synced.
"""

import argparse
import contextlib
import os
import selectors
import shutil
import socket
import sys
import tempfile
import time

import ZODB
from ZODB.FileStorage import FileStorage

from zodbjobs.testing.beanstalkd import Beanstalkd

BODY = b'x' * 100
PUT = b'put 1000 0 120 %d\r\n%s\r\n' % (len(BODY), BODY)
RESERVE = b'reserve-with-timeout 0\r\n'


class Putter:
    """A client that puts, as often as `shared` says that there is something to put."""

    def __init__(self, shared):
        self.shared = shared

    def first(self):
        return self.next(b'')

    def next(self, answer):
        """What to send after this answer, or None at the end."""
        if not self.shared:
            return None
        self.shared.pop()
        return PUT


class Worker(Putter):
    """A client that reserves a job and deletes it."""

    def next(self, answer):
        if answer.startswith(b'RESERVED'):
            return b'delete %s\r\n' % answer.split()[1]
        if not self.shared:
            return None
        self.shared.pop()
        return RESERVE


def is_whole(answer):
    """Whether an answer has arrived with its body."""
    if not answer.endswith(b'\r\n'):
        return False
    return not answer.startswith(b'RESERVED') or answer.count(b'\r\n') == 2


def seconds(port, kind, connections, count):
    """How long it takes to do `count` jobs over so many connections."""
    shared = [None] * count
    with contextlib.ExitStack() as stack:
        chosen = stack.enter_context(selectors.DefaultSelector())
        for _ in range(connections):
            line = stack.enter_context(socket.create_connection(('127.0.0.1', port)))
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            chosen.register(line, selectors.EVENT_READ, [kind(shared), b''])
        started = time.perf_counter()
        for key in list(chosen.get_map().values()):
            _send(chosen, key, key.data[0].first())
        while chosen.get_map():
            for key, _ in chosen.select():
                key.data[1] += key.fileobj.recv(65536)
                if is_whole(key.data[1]):
                    answer, key.data[1] = key.data[1], b''
                    _send(chosen, key, key.data[0].next(answer))
        return time.perf_counter() - started


def _send(chosen, key, data):
    if data is None:
        chosen.unregister(key.fileobj)
    else:
        key.fileobj.sendall(data)


def of_the_disk(count=200):
    """(bare commits per second, synced appends per second) of one writer."""
    with tempfile.TemporaryDirectory(prefix='zodbjobs-bench-') as folder:
        with contextlib.closing(ZODB.DB(FileStorage(f'{folder}/Data.fs'))) as db:
            started = time.perf_counter()
            for number in range(count):
                with db.transaction() as connection:
                    connection.root()['number'] = number, BODY
            commits = count / (time.perf_counter() - started)
        with open(f'{folder}/log', 'ab', buffering=0) as log:
            started = time.perf_counter()
            for _ in range(count):
                log.write(BODY)
                os.fsync(log.fileno())
            return commits, count / (time.perf_counter() - started)


def measure(name, command, number, count):
    """Print a line for so many connections."""
    folder = tempfile.mkdtemp(prefix='zodbjobs-bench-')
    try:
        options = {} if command is None else {'command': command}
        with Beanstalkd('-b', folder, '-f', '0', **options) as server:
            jobs = min(count, 100 + count * number // 20)
            puts = jobs / seconds(server.port, Putter, number, jobs)
            pairs = jobs / seconds(server.port, Worker, number, jobs)
        print(f'{name:<12} {number:>11} {puts:>9.0f} {pairs:>17.0f}', flush=True)
    finally:
        shutil.rmtree(folder)


def main(arguments=None):
    found = argparse.ArgumentParser(prog='python -m benchmarks.beanstalk', description=__doc__)
    found.add_argument('--jobs', type=int, default=3000, help='with many connections (3000)')
    found.add_argument('--connections', type=int, nargs='+', default=[1, 10, 100])
    found.add_argument('--rounds', type=int, default=3, help='how often, in turns (3)')
    options = found.parse_args(arguments)
    peer = shutil.which('beanstalkd', path='/usr/sbin:/usr/bin:/usr/local/bin')
    if peer is None:
        print('there is no beanstalkd here to compare with: apt-get install beanstalkd')
    for number in range(1, options.rounds + 1):
        commits, appends = of_the_disk()
        print(f'round {number}: {commits:.0f} bare commits/s, {appends:.0f} synced appends/s')
        print(f'{"server":<12} {"connections":>11} {"put/s":>9} {"reserve+delete/s":>17}')
        for connections in options.connections:
            measure('zodbjobs', None, connections, options.jobs)
            if peer is not None:
                measure('beanstalkd', [peer], connections, options.jobs)


if __name__ == '__main__':
    sys.exit(main())
