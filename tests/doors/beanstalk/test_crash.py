"""What was acknowledged survives kill -9; what was reserved comes back; nothing else changes."""

import random
import subprocess

import pytest

from tests.doors.beanstalk.support import Server

pytestmark = [pytest.mark.processes]


class Ledger:
    """What a client was told, and so what must be there."""

    def __init__(self):
        self.jobs = {}  # number -> (state, body)
        self.doubt = set()  # numbers of the last commands, which were not answered

    def act(self, line, random):
        """One command, and its answer written down."""
        deed = random.choice(['put', 'put', 'put', 'later', 'delete', 'bury', 'release', 'reserve'])
        if deed in ('put', 'later'):
            body = b'%d' % random.randrange(10**9)
            delay = 10_000 if deed == 'later' else 0
            answer = line.ask(b'put 1 %d 10000 %d\r\n%s\r\n' % (delay, len(body), body))
            number = int(answer.split()[1])
            self.jobs[number] = ('delayed' if delay else 'ready', body)
            return
        if deed == 'reserve':
            answer = line.ask(b'reserve-with-timeout 0\r\n')
            if answer.startswith(b'RESERVED'):
                number = int(answer.split()[1])
                self.jobs[number] = ('reserved', self.jobs[number][1])
            return
        held = [number for number, (state, _) in self.jobs.items() if state == 'reserved']
        if not held:
            return
        number = random.choice(held)
        body = self.jobs.pop(number)[1]
        if deed == 'delete':
            assert line.ask(b'delete %d\r\n' % number) == b'DELETED\r\n'
        elif deed == 'bury':
            assert line.ask(b'bury %d 1\r\n' % number) == b'BURIED\r\n'
            self.jobs[number] = ('buried', body)
        else:
            assert line.ask(b'release %d 1 0\r\n' % number) == b'RELEASED\r\n'
            self.jobs[number] = ('ready', body)

    def check(self, line, last):
        """All that was acknowledged is as it was told; nothing else is there."""
        for number in range(1, last + 1):
            answer = line.ask(b'stats-job %d\r\n' % number)
            if number not in self.jobs:
                assert answer == b'NOT_FOUND\r\n', number
                continue
            state, body = self.jobs[number]
            state = 'ready' if state == 'reserved' else state
            assert f'state: {state}\n'.encode() in answer, number
            assert line.ask(b'peek %d\r\n' % number).split(b'\r\n')[1] == body
            self.jobs[number] = (state, body)


def test_nothing_acknowledged_is_lost(tmp_path):
    dice = random.Random(5)
    ledger = Ledger()
    with Server('-b', str(tmp_path)) as server:
        for _ in range(4):
            with server.connect() as line:
                for _ in range(dice.randrange(30, 80)):
                    ledger.act(line, dice)
            server.kill()
            server.start()
            with server.connect() as line:
                ledger.check(line, max(ledger.jobs, default=0))


def test_a_clean_stop_keeps_everything(tmp_path):
    with Server('-b', str(tmp_path)) as server:
        with server.connect() as line:
            assert line.ask(b'put 5 0 60 5\r\nhello\r\n') == b'INSERTED 1\r\n'
            assert line.ask(b'pause-tube default 10000\r\n') == b'PAUSED\r\n'
        server.stop()
        assert server.process.returncode == 0
        server.start()
        with server.connect() as line:
            assert line.ask(b'peek-ready\r\n') == b'FOUND 1 5\r\nhello\r\n'
            assert line.ask(b'reserve-with-timeout 0\r\n') == b'TIMED_OUT\r\n'  # paused still


def test_a_directory_has_one_server(tmp_path):
    with Server('-b', str(tmp_path)) as server:
        second = subprocess.run(
            [*server.command[:3], '-l', '127.0.0.1', '-p', '0', '-b', str(tmp_path)],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert second.returncode == 10
        assert 'Data.fs' in second.stderr
