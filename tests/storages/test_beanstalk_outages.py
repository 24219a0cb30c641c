"""A beanstalk gateway whose database is away, or takes no writes, for a while.

The gateway is a process of its own, its clients are sockets, and what goes away
is the real server of the database.
"""

import shutil
import subprocess
import sys
import threading

import pytest

from tests.doors.beanstalk.support import Server
from tests.storages.test_outages import go_and_come_back
from zodbjobs.testing.beanstalkd import PROGRAM

pytestmark = [pytest.mark.processes]

#: Deeds of a client before the database goes, and in all.
BEFORE, COUNT = 15, 60


@pytest.fixture
def gateway(shared):
    if shared.kind == 'zeo':
        shared.uri += '?wait_timeout=2'
    shared.close()
    with Server('--zodb', shared.uri) as server:
        yield server


class Work:
    """Clients in threads, and what they were told."""

    def __init__(self, gateway):
        self.gateway = gateway
        self.put, self.deleted, self.errors = [], [], []
        self.begun = threading.Semaphore(0)  # deeds that were done
        self.threads = []

    def start(self, deed, *args):
        thread = threading.Thread(target=self._run, args=(deed, *args))
        self.threads.append(thread)
        thread.start()

    def _run(self, deed, *args):
        try:
            with self.gateway.connect() as line:
                line.socket.settimeout(60)
                for _ in range(COUNT):
                    deed(line, *args)
                    self.begun.release()
        except BaseException as error:  # noqa: BLE001 - told by the test
            self.errors.append(error)
            self.begun.release(1000)

    def produce(self, line, name):
        body = b'%s-%d' % (name, len(self.put))
        answer = line.ask(b'put 1 0 100 %d\r\n%s\r\n' % (len(body), body))
        assert answer.startswith(b'INSERTED '), answer
        self.put.append(body)

    def consume(self, line):
        answer = line.ask(b'reserve-with-timeout 0\r\n')
        if answer != b'TIMED_OUT\r\n':
            number, body = answer.split()[1], answer.split(b'\r\n')[1]
            assert line.ask(b'delete %s\r\n' % number) == b'DELETED\r\n'
            self.deleted.append(body)

    def wait(self, count):
        for _ in range(count):
            assert self.begun.acquire(timeout=60)

    def end(self):
        for thread in self.threads:
            thread.join(120)
        assert self.errors == []
        with self.gateway.connect() as line:
            while len(self.deleted) < len(self.put):
                before = len(self.deleted)
                self.consume(line)
                assert len(self.deleted) > before, 'something that was acknowledged is lost'
            assert line.ask(b'reserve-with-timeout 0\r\n') == b'TIMED_OUT\r\n'


def test_a_database_is_restarted_under_load(shared, gateway):
    """Each command is answered, what was acknowledged is there, and nothing twice."""
    work = Work(gateway)
    for name in (b'a', b'b', b'c'):
        work.start(work.produce, name)
    for _ in range(2):
        work.start(work.consume)
    for _ in range(2):
        work.wait(BEFORE)
        go_and_come_back(shared)
    work.end()
    assert len(set(work.deleted)) == len(work.deleted)
    assert sorted(work.deleted) == sorted(work.put)


def test_clients_wait_while_the_database_is_away(shared, gateway):
    with gateway.connect() as early:
        assert early.ask(b'put 1 0 100 1\r\na\r\n').startswith(b'INSERTED ')
        early.send(b'reserve\r\ntouch 1\r\n')
        assert early.answer().startswith(b'RESERVED 1 ')
        assert early.answer() == b'TOUCHED\r\n'
        shared.server.stop()
        early.send(b'delete 1\r\nput 1 0 100 1\r\nb\r\n')
        with gateway.connect() as late:  # the reactor is not held up
            late.send(b'watch x\r\nreserve-with-timeout 0\r\n')
            late.socket.settimeout(1)
            with pytest.raises(TimeoutError):
                late.line()
            late.socket.settimeout(60)
            early.socket.settimeout(60)
            shared.server.start()
            assert late.answer() == b'WATCHING 2\r\n'
            assert early.answer() == b'DELETED\r\n'
            assert early.answer() == b'INSERTED 2\r\n'
            assert late.answer().split(b' ')[0].strip() in (b'RESERVED', b'TIMED_OUT')


@pytest.mark.skipif(shutil.which('prlimit') is None, reason='there is no prlimit')
def test_a_file_that_cannot_grow(tmp_path):
    """Puts are refused, what needs no write is done, and the rest waits until it can be done."""
    command = ['prlimit', '--fsize=300000:', sys.executable, '-c', PROGRAM]
    with Server('-b', str(tmp_path), command=command) as server:
        put = b'put 1 0 100 2000\r\n%s\r\n' % (b'x' * 2000)
        with server.connect() as one, server.connect() as other:
            count = 0
            while (answer := one.ask(put)) == b'INSERTED %d\r\n' % (count + 1):
                count += 1
            assert answer == b'OUT_OF_MEMORY\r\n'
            assert 20 < count < 150
            assert other.ask(b'peek-ready\r\n').startswith(b'FOUND 1 2000\r\n')
            assert other.ask(b'reserve\r\n').startswith(b'RESERVED 1 2000\r\n')
            assert other.ask(b'put 1 0 100 2000\r\n%s\r\n' % (b'y' * 2000)) == b'OUT_OF_MEMORY\r\n'
            other.send(b'bury 1 5\r\nstats-job 1\r\n')
            assert one.ask(b'stats-job 1\r\n').count(b'state: reserved') == 1
            pid = str(server.process.pid)
            subprocess.run(['prlimit', '--pid', pid, '--fsize=unlimited:'], check=True)
            assert other.answer() == b'BURIED\r\n'
            assert b'state: buried' in other.answer()
            assert one.ask(put).startswith(b'INSERTED ')
        server.kill()
        server.start()
        with server.connect() as line:
            assert b'state: buried' in line.ask(b'stats-job 1\r\n')
            assert line.ask(b'peek %d\r\n' % count).startswith(b'FOUND ')
