"""TLS, by an endpoint of Twisted: a real certificate, and clients that check it."""

import contextlib
import shutil
import socket
import ssl
import subprocess

import pytest

from tests.doors.beanstalk.support import Line
from tests.doors.beanstalk.test_main import run
from zodbjobs.testing.beanstalkd import PROGRAM, Beanstalkd, free_port

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(shutil.which('openssl') is None, reason='there is no openssl'),
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with key.pem and cert.pem, which says that we are 'localhost'."""
    pytest.importorskip('OpenSSL')
    folder = tmp_path_factory.mktemp('tls')
    subprocess.run(
        ['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj',
         '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost', '-keyout', 'key.pem', '-out',
         'cert.pem'],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder


class Encrypted(Beanstalkd):
    """A server that listens with TLS, on `port` as well."""

    def __init__(self, folder):
        self.context = ssl.create_default_context(cafile=folder / 'cert.pem')
        port = free_port()
        keys = f'privateKey={folder}/key.pem:certKey={folder}/cert.pem'
        endpoint = f'ssl:{port}:interface=127.0.0.1:{keys}'
        super().__init__('--endpoint', endpoint)

    def start(self):
        self.port = int(self.command[-1].split(':')[1])
        super().start()

    def _answers(self):
        with contextlib.suppress(OSError), contextlib.closing(self.connect()) as line:
            return line.ask(b'list-tube-used\r\n') == b'USING default\r\n'
        return False

    def connect(self, context=None):
        line = Line(('127.0.0.1', self.port))
        context = context or self.context
        line.socket = context.wrap_socket(line.socket, server_hostname='localhost')
        return line


@pytest.fixture(scope='module')
def server(folder):
    with Encrypted(folder) as server:
        yield server


def test_jobs_go_through_tls(server):
    body = bytes(range(256)) * 255
    with server.connect() as one, server.connect() as other:
        other.send(b'reserve\r\n')
        put = b'put 1 0 60 %d\r\n%s\r\n' % (len(body), body)
        one.send(put * 3 + b'list-tubes\r\n')
        assert [one.answer() for _ in range(3)] == [b'INSERTED %d\r\n' % n for n in (1, 2, 3)]
        assert one.answer() == b'OK 14\r\n---\n- default\n\r\n'
        assert other.answer() == b'RESERVED 1 %d\r\n%s\r\n' % (len(body), body)
        assert other.ask(b'delete 1\r\n') == b'DELETED\r\n'
        one.send(b'peek 2\r\n' * 50)  # more than a socket takes at a time
        for _ in range(50):
            assert one.answer() == b'FOUND 2 %d\r\n%s\r\n' % (len(body), body)
        one.send(b'quit\r\n')
        assert one.line() == b''


def test_who_does_not_trust_us_or_does_not_encrypt_gets_nothing(server):
    with pytest.raises(ssl.SSLCertVerificationError):
        server.connect(ssl.create_default_context())
    with socket.create_connection(('127.0.0.1', server.port), 10) as plain:
        plain.sendall(b'list-tubes\r\n')
        with contextlib.suppress(ConnectionError):
            assert b'OK' not in plain.recv(100)
    silent = [socket.create_connection(('127.0.0.1', server.port), 10) for _ in range(50)]
    with server.connect() as line:  # who never says hello does not hinder others
        assert line.ask(b'list-tube-used\r\n') == b'USING default\r\n'
    for each in silent:
        each.close()


def test_an_endpoint_that_cannot_be(folder):
    ended = run('--endpoint', f'ssl:0:privateKey={folder}/no.pem:certKey={folder}/cert.pem')
    assert ended.returncode == 111
    assert 'no.pem' in ended.stderr
    ended = run('--endpoint', 'carrier-pigeon:1')
    assert ended.returncode == 111
    assert 'carrier-pigeon' in ended.stderr


def test_a_port_that_is_taken():
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        for flags in (
            ['-l', '127.0.0.1', '-p', str(port)],
            ['--endpoint', f'tcp:{port}:interface=127.0.0.1'],
        ):
            ended = run(*flags)
            assert ended.returncode == 111, PROGRAM
            assert str(port) in ended.stderr
            assert 'Traceback' not in ended.stderr
