"""The command: its flags, its sockets, its exit codes; and packing."""

import os
import socket
import subprocess
import sys

import pytest
import ZODB
from twisted.internet import task
from ZODB.FileStorage import FileStorage
from ZODB.MappingStorage import MappingStorage

from zodbjobs.beanstalk import main
from zodbjobs.beanstalk.packing import LOOK_SECONDS, Packing
from zodbjobs.testing.beanstalkd import PROGRAM, Beanstalkd


def run(*flags):
    return subprocess.run(
        [sys.executable, '-c', PROGRAM, *flags], capture_output=True, text=True, timeout=60
    )


def test_the_version_and_the_help(capsys):
    assert main.main(['-v']) == 0
    assert capsys.readouterr().out.startswith('zodbjobs-beanstalkd 1.12 (zodbjobs ')
    with pytest.raises(SystemExit) as caught:
        main.main(['-h'])
    assert caught.value.code == 0
    assert '--zodb URI' in capsys.readouterr().out


@pytest.mark.parametrize('flags', [['-x'], ['-p', 'many'], ['-b', 'a', '--zodb', 'b'], ['word']])
def test_wrong_flags_end_it(flags, capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(flags)
    assert caught.value.code == main.BAD_FLAG
    assert 'usage' in capsys.readouterr().err


def test_flags_of_beanstalkd_are_taken():
    given = [
        '-c',
        '-n',
        '-F',
        '-V',
        '-VV',
        '-f',
        '0',
        '-s',
        '5',
        '-z',
        '7',
        '-l',
        'unix:x',
        '-p',
        '1',
    ]
    options = main.flags().parse_args(given)
    assert (options.V, options.f, options.s, options.z, options.l) == (3, 0, 5, 7, 'unix:x')


def test_a_unix_socket_replaces_what_is_there(tmp_path):
    path = tmp_path / 'socket'
    path.write_text('old')
    with main.open_socket(f'unix:{path}', 0) as listening:
        assert listening.family == socket.AF_UNIX
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_socket_that_was_inherited_is_used(tmp_path):
    """As systemd hands it over: descriptor 3, and two variables."""
    program = (
        'import os, socket, sys; s = socket.create_server(("127.0.0.1", 0));'
        'os.dup2(s.fileno(), 3); os.set_inheritable(3, True);'
        'os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()));'
        'from zodbjobs.beanstalk.main import open_socket; found = open_socket("127.0.0.1", 1);'
        'assert found.fileno() == 3 and "LISTEN_PID" not in os.environ;'
        'assert found.getsockname() == s.getsockname()'
    )
    assert subprocess.run([sys.executable, '-c', program], timeout=60).returncode == 0


def test_a_port_of_no_user_and_no_database(tmp_path):
    assert run('-p', '0', '-u', 'nobody-of-that-name').returncode == main.NO_SUCH_USER
    ended = run('-p', '0', '--zodb', 'file:/nowhere/Data.fs')
    assert ended.returncode == main.NO_LOCK
    assert 'there is no folder /nowhere' in ended.stderr


@pytest.mark.processes
def test_a_database_of_others_is_served(tmp_path):
    with Beanstalkd('--zodb', f'file:{tmp_path}/Data.fs', '-F', '-z', '10') as server:
        with socket.create_connection(('127.0.0.1', server.port)) as line:
            line.sendall(b'put 0 0 1 5\r\nhello\r\n')
            assert line.recv(100) == b'INSERTED 1\r\n'
            line.sendall(b'put 0 0 1 11\r\nhello world\r\n')
            assert line.recv(100) == b'JOB_TOO_BIG\r\n'
    database = ZODB.DB(FileStorage(f'{tmp_path}/Data.fs'))
    with database.transaction() as connection:
        (job,) = connection.root()['zodbjobs']['default']
        assert job.body == b'hello'
    database.close()


def test_unsynced_is_unsynced():
    program = (
        'import sys; from zodbjobs.beanstalk.main import leave_unsynced; import ZODB.FileStorage;'
        'leave_unsynced(); assert sys.modules["ZODB.FileStorage.FileStorage"].fsync is None'
    )
    assert subprocess.run([sys.executable, '-c', program], timeout=60).returncode == 0


# Packing -----------------------------------------------------------------------------------


class Threads(task.Clock):
    """A clock whose threads run at once."""

    def callInThread(self, call):
        call()


def grow(db, count=30):
    for number in range(count):
        with db.transaction() as connection:
            connection.root()['x'] = bytes(1000) + b'%d' % number


def test_a_file_that_has_grown_is_packed(tmp_path):
    path = str(tmp_path / 'Data.fs')
    db = ZODB.DB(FileStorage(path))
    reactor = Threads()
    Packing(db, path, 20_000, reactor).start()
    reactor.advance(LOOK_SECONDS)
    grow(db)
    before = os.path.getsize(path)
    reactor.advance(LOOK_SECONDS)
    assert os.path.getsize(path) < before / 4
    with db.transaction() as connection:
        assert connection.root()['x'].endswith(b'29')
    small = os.path.getsize(path)
    grow(db, 3)
    reactor.advance(LOOK_SECONDS)
    assert os.path.getsize(path) > small  # not worth it yet
    db.close()


def test_what_is_in_memory_is_packed_by_its_revisions(monkeypatch):
    monkeypatch.setattr('zodbjobs.beanstalk.packing.MEMORY_REVISIONS', 20)
    db = ZODB.DB(MappingStorage())
    reactor = Threads()
    packing = Packing(db, None, 0, reactor)
    packing.start()
    grow(db)
    assert packing.is_due()
    reactor.advance(LOOK_SECONDS)
    assert not packing.is_due()
    db.close()
