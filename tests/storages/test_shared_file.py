"""A file that a ZEO server of ours has open is found by everybody who knows the file."""

import contextlib
import os
import subprocess

import pytest
import transaction
from ZODB.blob import Blob

from zodbjobs.runtime import shared_file, zeoserver
from zodbjobs.runtime.address import AddressError, open_database
from zodbjobs.testing.waiting import wait_until

SECONDS = 30


@pytest.fixture
def serve(tmp_path):
    """serve(uri) -> the Popen of a server that answers."""
    started = []

    def start(uri, **options):
        socket = shared_file.socket_of(shared_file.path_of(uri))
        with open(tmp_path / 'zeo.log', 'a') as log:
            started.append(zeoserver.start(uri, socket, log, **options))
        assert wait_until(lambda: shared_file.is_answered(socket), SECONDS)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    'uri, name',
    [
        ('Data.fs', 'Data.fs'),
        ('file:Data.fs', 'Data.fs'),
        ('FILE://Data.fs?quota=1', 'Data.fs'),
        ('./a:b.fs', 'a:b.fs'),
        ('zeo://localhost:1', None),
        ('postgres://x/y', None),
        ('file:', None),
    ],
)
def test_which_addresses_are_files(uri, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shared_file.path_of(uri) == (name and os.path.realpath(name))


def test_options_of_the_database_stay_and_those_of_the_file_go(tmp_path):
    uri = f'file:{tmp_path}/Data.fs?connection_cache_size=7&quota=5&blobstorage_dir={tmp_path}/b'
    found = shared_file.client_uri(uri, '/s')
    assert found.startswith('zeo:///s?connection_cache_size=7&blob_dir=')
    assert 'shared_blob_dir=1' in found and 'quota' not in found
    assert shared_file.client_uri('Data.fs', '/s') == 'zeo:///s'


def test_a_path_of_any_length_has_a_socket(tmp_path):
    long = tmp_path / ('x' * 200) / 'Data.fs'
    socket = shared_file.socket_of(long)
    assert len(os.fsencode(socket)) <= shared_file.LONGEST_SOCKET
    assert socket != shared_file.socket_of(tmp_path / 'Data.fs')


def test_whoever_opens_the_file_gets_the_server(tmp_path, serve):
    uri = f'file:{tmp_path}/Data.fs?blobstorage_dir={tmp_path}/blobs'
    server = serve(uri)
    with contextlib.closing(open_database(uri)) as one:
        with one.transaction() as connection:
            connection.root()['blob'] = Blob(b'some bytes')
        with contextlib.closing(open_database(uri)) as other:
            with other.transaction() as connection:
                with connection.root()['blob'].open() as blob:
                    assert blob.read() == b'some bytes'
    server.terminate()
    assert server.wait(SECONDS) == 0
    open_database(uri).close()  # now it is free


def test_somebody_else_who_has_the_file_is_told_as_before(tmp_path):
    uri = f'file:{tmp_path}/Data.fs'
    with contextlib.closing(open_database(uri)):
        with pytest.raises(AddressError, match='this process has the file open already'):
            open_database(uri)
        server = zeoserver.start(uri, str(tmp_path / 's'), subprocess.DEVNULL)
        assert server.wait(SECONDS) == zeoserver.TAKEN


def test_it_ends_when_its_starter_has_died_and_the_last_client_has_gone(tmp_path, serve):
    uri = f'file:{tmp_path}/Data.fs'
    read, write = os.pipe()
    server = serve(uri, lifeline=read, linger=SECONDS)
    os.close(read)
    with contextlib.closing(open_database(uri)) as db:
        os.close(write)
        with contextlib.closing(db.open(transaction.TransactionManager())) as connection:
            connection.root()['still'] = 'there'
            connection.transaction_manager.commit()
        assert server.poll() is None
    assert server.wait(SECONDS) == 0
