"""Every address people write opens, and what cannot be opened is said and leaves nothing."""

import contextlib
import importlib.metadata
import os
import socket
import sys

import pytest
import transaction
import ZODB

from zodbjobs.runtime import storages
from zodbjobs.runtime.address import CACHE_SIZE, POOL_SIZE, AddressError, open_database
from zodbjobs.testing.storages import close_database

pytestmark = pytest.mark.usefixtures('no_thread_stays')


@pytest.fixture
def opened():
    """opened(uri, **options) -> ZODB.DB, closed after the test."""
    with contextlib.ExitStack() as stack:

        def start(uri, **options):
            db = open_database(uri, **options)
            stack.callback(close_database, db)
            return db

        yield start


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, a fresh one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(uri, **options):
    """The text with which an address is refused."""
    with pytest.raises(AddressError) as caught:
        open_database(uri, **options)
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


def write(db):
    with db.transaction() as connection:
        connection.root()['written'] = True


@pytest.fixture
def free_port():
    with socket.socket() as asking:
        asking.bind(('127.0.0.1', 0))
        return asking.getsockname()[1]


# Files.


@pytest.mark.parametrize(
    'uri',
    [
        'Data.fs',
        './Data.fs',
        '{here}/Data.fs',
        'file:Data.fs',
        'file:./Data.fs',
        'file://Data.fs',
        'file:{here}/Data.fs',
        'file://{here}/Data.fs',
        'FILE:Data.fs',
    ],
)
def test_a_file(uri, here, opened):
    db = opened(uri.format(here=here))
    write(db)
    assert storages.kind(db) == storages.EXCLUSIVE
    assert os.path.getsize(here / 'Data.fs') > 100
    assert db.storage.getName() == str(here / 'Data.fs')


def test_a_path_object(tmp_path, opened):
    opened(tmp_path / 'Data.fs')
    assert os.path.exists(tmp_path / 'Data.fs')


def test_a_name_with_a_colon_needs_a_folder_before_it(here, opened):
    assert './odd:... if that is meant' in refusal('odd:name')
    opened('./odd:name')
    assert os.path.exists('odd:name')


def test_what_the_address_says_of_the_database(here, opened):
    db = opened('file:Data.fs?connection_cache_size=17&database_name=jobs')
    assert (db.getCacheSize(), db.getPoolSize()) == (17, POOL_SIZE)
    assert db.database_name == 'jobs'


def test_what_the_caller_says_wins(here, opened):
    db = opened('file:Data.fs?connection_pool_size=3', pool_size=5, cache_size_bytes=1000)
    assert (db.getPoolSize(), db.getCacheSize()) == (5, CACHE_SIZE)
    assert db.getCacheSizeBytes() == 1000


def test_sizes_may_have_units(here, opened):
    assert opened('file:Data.fs?connection_cache_size_bytes=2MB').getCacheSizeBytes() == 2 * 2**20


def test_blobs_beside_the_file(here, opened):
    db = opened('file:Data.fs?blobstorage_dir=blobs')
    assert storages.kind(db) == storages.EXCLUSIVE
    assert db.storage.temporaryDirectory().startswith('blobs')


def test_a_file_that_another_process_has_open(here, interpreter):
    there = interpreter()
    there.run('from zodbjobs.runtime.address import open_database')
    there.run('db = open_database("file:Data.fs")')
    told = refusal('file:Data.fs')
    assert f'file:Data.fs: process {there.process.pid} has the file open; stop it' in told
    assert 'zeo: address' in told
    there.kill()
    open_database('file:Data.fs').close()


def test_a_file_that_this_process_has_open(here, opened):
    opened('file:Data.fs')
    assert 'this process has the file open already' in refusal('Data.fs')


def test_no_folder_is_made(here):
    assert f'there is no folder {here}/missing' in refusal('file:missing/Data.fs')
    assert os.listdir(here) == []


def test_a_folder_is_no_file(here):
    os.mkdir('folder')
    assert f'{here}/folder is a folder' in refusal('folder')
    assert 'names no file' in refusal('file:')
    assert 'names no file' in refusal('')
    assert os.listdir('folder') == []


def test_something_else_is_no_database(here):
    kept = []
    for _ in range(2):  # and the second time it is not locked by the first
        with open('Data.fs', 'wb') as other:
            other.write(b'something else ' * 100)
        with pytest.raises(AddressError, match='Data.fs') as caught:
            open_database('Data.fs')
        kept.append(caught.value)
        assert 'has the file open' not in str(kept[-1])


def test_a_missing_file_opened_for_reading_only(here):
    assert 'Data.fs' in refusal('file:Data.fs?read_only=1')


def test_a_file_nobody_may_read(here):
    if os.getuid() == 0:
        pytest.skip('root may read everything')
    open_database('Data.fs').close()
    os.chmod('Data.fs', 0)
    assert 'Permission denied' in refusal('Data.fs')


def test_a_database_that_cannot_be_made_leaves_the_storage_closed(here):
    databases = {'unnamed': None}
    with pytest.raises(ValueError, match='already in databases'):
        open_database('Data.fs', databases=databases)
    open_database('Data.fs').close()


# Schemes.


@pytest.mark.parametrize('uri', ['memory:', 'memory://', 'memory:name', 'memory://name'])
def test_memory(uri, opened):
    write(opened(uri))


def test_demo(here, opened):
    db = opened('demo:(memory://a)/(memory://b)')
    write(db)
    assert storages.kind(db) == storages.EXCLUSIVE


def test_unknown_schemes_are_told_of_the_known_ones():
    told = refusal('mongodb://localhost/jobs')
    assert 'mongodb: is no kind of database address' in told
    for known in ('file:', 'memory:', 'postgres:', 'postgresql:', 'zconfig:', 'zeo:'):
        assert f' {known}' in told


def test_unknown_options(here):
    assert "unknown option 'pool'" in refusal('file:Data.fs?pool=3')
    assert 'connection_pool_size' in refusal('memory:?pool=3')
    assert 'invalid literal' in refusal('file:Data.fs?connection_pool_size=many')
    assert 'invalid literal' in refusal('file:Data.fs?create=perhaps')
    assert os.listdir(here) == []


# ZConfig.


ZCONFIG = """
%import relstorage
<zodb main>
  cache-size 123
  <filestorage>
    path $here/Data.fs
  </filestorage>
</zodb>
<mappingstorage scratch>
</mappingstorage>
"""


@pytest.mark.parametrize(
    'uri', ['zconfig:zodb.conf', 'zconfig://zodb.conf', 'zconfig://{here}/zodb.conf#main']
)
def test_zconfig(uri, here, opened):
    (here / 'zodb.conf').write_text(ZCONFIG.replace('$here', str(here)))
    db = opened(uri.format(here=here))
    write(db)
    assert db.getCacheSize() == 123
    assert db.storage.getName() == str(here / 'Data.fs')


def test_a_storage_in_zconfig(here, opened):
    (here / 'zodb.conf').write_text(ZCONFIG.replace('$here', str(here)))
    db = opened('zconfig:zodb.conf?connection_cache_size=7#scratch')
    assert db.getCacheSize() == 7
    assert os.listdir(here) == ['zodb.conf']


def test_zconfig_that_is_not_there_or_not_right(here, opened):
    assert f'there is no file {here}/zodb.conf' in refusal('zconfig:zodb.conf')
    (here / 'zodb.conf').write_text('<zodb>\n<nonsense/>\n</zodb>')
    assert 'nonsense' in refusal('zconfig:zodb.conf')
    (here / 'zodb.conf').write_text(ZCONFIG.replace('$here', str(here)))
    assert 'No storage or database named other found' in refusal('zconfig:zodb.conf#other')
    opened('Data.fs')
    assert 'has the file open' in refusal('zconfig:zodb.conf')


def test_postgresql_by_zconfig(postgres, here, opened):
    (here / 'zodb.conf').write_text(f"""
        %import relstorage
        <zodb>
          <relstorage>
            keep-history false
            <postgresql>
              driver psycopg2
              dsn dbname='{postgres.name}' user='postgres' host='{postgres.server.socket_folder}'
            </postgresql>
          </relstorage>
        </zodb>
    """)
    write(postgres.db)
    db = opened('zconfig:zodb.conf')
    assert storages.kind(db) == storages.POSTGRESQL
    with db.transaction() as connection:
        assert connection.root()['written']


# ZEO.


def test_zeo(zeo, opened):
    write(zeo.db)
    for uri in (f'zeo://127.0.0.1:{zeo.server.port}', f'zeo:localhost:{zeo.server.port}'):
        db = opened(uri)
        assert storages.kind(db) == storages.ZEO
        with db.transaction() as connection:
            assert connection.root()['written']


def test_a_server_nobody_runs(free_port):
    told = refusal(f'zeo://127.0.0.1:{free_port}?wait_timeout=1')
    assert 'no connection to the server' in told
    assert f'127.0.0.1:{free_port}' in told


@pytest.mark.parametrize('uri', ['zeo:{here}/zeo.sock', 'zeo:./zeo.sock', 'zeo://{here}/zeo.sock'])
def test_a_socket_nobody_listens_to(uri, here):
    assert 'no connection to the server' in refusal(uri.format(here=here) + '?wait_timeout=1')
    assert os.listdir(here) == []


def test_zeo_wants_a_place():
    assert 'names no server' in refusal('zeo:')
    assert 'invalid literal' in refusal('zeo://localhost:1?wait_timeout=soon')


# PostgreSQL.


def test_postgresql(postgres, opened):
    write(postgres.db)
    rest = postgres.uri.partition(':')[2]
    for uri in (
        f'postgres:{rest}',
        f'postgresql:{rest}',
        f'postgresql://postgres:@/{postgres.name}?host={postgres.server.socket_folder}',
        f'postgres:/{postgres.name}?host={postgres.server.socket_folder}&user=postgres',
    ):
        db = opened(uri)
        assert storages.kind(db) == storages.POSTGRESQL
        assert not db.storage._options.keep_history
        assert type(storages.adapter(db).driver).__name__ == 'Psycopg2Driver'
        assert db.getPoolSize() == POOL_SIZE
        with db.transaction() as connection:
            assert connection.root()['written']


def test_options_of_postgresql_of_relstorage_and_of_the_database(postgres, opened):
    db = opened(
        f'{postgres.uri}&cache_local_mb=3&connection_cache_size=9'
        '&options=-c%20statement_timeout%3D7s'
    )
    assert db.storage._options.cache_local_mb == 3
    assert db.getCacheSize() == 9
    with contextlib.closing(storages.connect(storages.adapter(db), 'ask')) as connection:
        with connection.cursor() as cursor:
            cursor.execute('SHOW statement_timeout')
            assert cursor.fetchone() == ('7s',)


def test_a_password_is_unquoted_and_quoted_again(monkeypatch):
    from relstorage.adapters import postgresql

    dsns = []

    def adapter(dsn, options):
        dsns.append(dsn)
        raise ConnectionRefusedError(111, 'Connection refused')

    monkeypatch.setattr(postgresql, 'PostgreSQLAdapter', adapter)
    told = refusal("postgresql://me:p%40ss'%5Cword@db.example/jobs")
    assert dsns == [
        "dbname='jobs' user='me' password='p@ss\\'\\\\word' host='db.example' connect_timeout='10'"
    ]
    assert told.startswith('postgresql://me:***@db.example/jobs: Connection refused')
    refusal('postgres://db.example:6543/jobs?password=secret&sslmode=require&connect_timeout=3')
    assert dsns[1] == (
        "dbname='jobs' password='secret' host='db.example' port='6543' connect_timeout='3'"
        " sslmode='require'"
    )


def test_a_postgresql_nobody_runs(free_port):
    told = refusal(f'postgresql://me:secret@127.0.0.1:{free_port}/jobs')
    assert 'no connection to the server' in told
    assert 'onnection refused' in told
    assert 'secret' not in told


def test_a_database_that_does_not_exist(postgres):
    told = refusal(postgres.uri.replace(postgres.name, 'nowhere'))
    assert '"nowhere" does not exist' in told


def test_history_that_is_there_is_not_forgotten(postgres, opened):
    """A database made by others with history is refused as one without, not broken."""
    postgres.server.execute('CREATE DATABASE historical')
    try:
        uri = postgres.uri.replace(postgres.name, 'historical')
        open_database(f'{uri}&keep_history=true').close()
        assert 'add keep_history=true to the address' in refusal(uri)
        db = opened(f'{uri}&keep_history=true')
        write(db)
        close_database(db)
    finally:
        postgres.server.drop('historical')


def test_relstorage_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, 'relstorage.zodburi_resolver', None)
    assert 'pip install "zodbjobs[postgresql]"' in refusal('postgres://localhost/jobs')


def test_sqlite(here, opened):
    (here / 'data').mkdir()
    db = opened(f'sqlite://?data_dir={here}/data')
    assert storages.kind(db) == storages.RELSTORAGE
    write(db)


# Kinds through wrappers.


def test_a_storage_of_somebody_else_is_unknown():
    class Other(ZODB.MappingStorage.MappingStorage):
        pass

    plain = ZODB.DB(Other())
    assert storages.kind(plain) == storages.EXCLUSIVE  # it still is one
    plain.close()


def test_schemes_come_from_the_packages_installed():
    names = {each.name for each in importlib.metadata.entry_points(group='zodburi.resolvers')}
    assert {'file', 'memory', 'zconfig', 'zeo', 'demo'} <= names


def test_a_database_is_closed_with_its_connections(tmp_path):
    for explicit in (False, True):
        db = open_database(tmp_path / 'Data.fs')
        manager = transaction.TransactionManager(explicit=explicit)
        manager.begin()
        connection = db.open(manager)
        connection.root()
        manager.abort()
        close_database(db)
        close_database(db)
