"""A client in another language: the own tests of fivebeans, from npm, against our server.

They use port 11300, so nobody else may; and one of them fails with every server on a newer Node,
as it compares the text of an error.
"""

import re
import shutil
import socket
import subprocess
import sys

import pytest

from zodbjobs.testing.beanstalkd import PROGRAM, Beanstalkd

pytestmark = [pytest.mark.slow, pytest.mark.processes]

RELEASE = 'fivebeans@1.5.0'
NEEDS = ['js-yaml@3.6', 'lodash@4.15', 'semver@5.3', 'yargs@5', 'mocha@3.0', 'must@0.13']


@pytest.fixture
def package(tmp_path):
    """The folder of the unpacked package, with what it and its tests need."""
    if shutil.which('npm') is None:
        pytest.skip('there is no npm here')
    run = {'cwd': tmp_path, 'capture_output': True, 'text': True, 'timeout': 300}
    packed = subprocess.run(['npm', 'pack', RELEASE], **run)
    if packed.returncode:
        pytest.skip('the registry of npm cannot be reached')
    shutil.unpack_archive(tmp_path / packed.stdout.split()[-1], tmp_path)
    run['cwd'] = tmp_path / 'package'
    flags = ['--no-audit', '--no-fund', '--ignore-scripts']
    assert subprocess.run(['npm', 'install', *flags, *NEEDS], **run).returncode == 0
    return tmp_path / 'package'


class Fixed(Beanstalkd):
    """Our server on the port that fivebeans' tests name."""

    def start(self):
        self.port = 11300
        self.command = [sys.executable, '-c', PROGRAM, '-p', str(self.port)]
        super().start()


@pytest.mark.timeout(600)
def test_fivebeans_finds_nothing_missing(package):
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(('127.0.0.1', 11300))
        except OSError:
            pytest.skip('somebody listens on port 11300')
    with Fixed():
        done = subprocess.run(
            ['node_modules/.bin/mocha', '-t', '8000', 'test/'],
            cwd=package, capture_output=True, text=True, timeout=200,
        )  # fmt: skip
    counts = {
        word: int(number) for number, word in re.findall(r'(\d+) (passing|failing)', done.stdout)
    }
    assert counts['passing'] >= 53, done.stdout
    if counts.get('failing'):
        assert counts['failing'] == 1 and 'ECONNREFUSED' in done.stdout, done.stdout
