"""A server of the beanstalk protocol for tests, in a process of its own and on a free port."""

import contextlib
import signal
import socket
import subprocess
import sys

PROGRAM = 'import sys; from zodbjobs.beanstalk.main import main; sys.exit(main())'

#: Seconds between looks whether the server answers, and how many there are.
LOOK_SECONDS, START_LOOKS = 0.05, 600

#: Seconds within which a server must answer, and end, on a machine that is busy.
ANSWER_SECONDS, STOP_SECONDS = 30, 10


def free_port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


class Beanstalkd:
    """``zodbjobs-beanstalkd`` with these flags, listening on 127.0.0.1 and `port`.

    `command` is another server's, as a list.  A context manager that stops it.
    """

    def __init__(self, *flags, command=(sys.executable, '-c', PROGRAM)):
        self.port = free_port()
        self.command = [*command, '-l', '127.0.0.1', '-p', str(self.port), *flags]
        self.process = None
        self.start()

    def start(self):
        """Start it (again), and wait until it answers."""
        self.process = subprocess.Popen(self.command)
        for _ in range(START_LOOKS):
            if self._answers():
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                ended = self.process.wait(LOOK_SECONDS)  # in real time, whatever the test's is
                raise RuntimeError(f'the server ended at once, with {ended}')
        self.kill()
        raise RuntimeError('the server does not answer')

    def _answers(self):
        with contextlib.suppress(OSError):
            with socket.create_connection(('127.0.0.1', self.port), ANSWER_SECONDS) as line:
                line.sendall(b'list-tube-used\r\n')
                return line.recv(100).startswith(b'USING')
        return False

    def kill(self):
        """SIGKILL, and wait until the system has buried it."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        """SIGTERM, and wait for its end."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.stop()
