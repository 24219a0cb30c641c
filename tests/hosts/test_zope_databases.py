"""Zope with the jobs in a database of their own, and with workers beside it over ZEO."""

import contextlib
import signal
import subprocess

import pytest

pytest.importorskip('Zope2')

from support import FILE, ZEO, Instance, running, wait_until

from zodbjobs.testing.storages import zeo_database

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

BOB = 'bob:secret'


def test_jobs_in_a_database_of_their_own(tmp_path):
    more = [('async', '/async', FILE)]
    instance = Instance(tmp_path, 'zodbjobs-multidb-configure.zcml', more_databases=more)
    with running(instance) as zope:
        zope.probe('make', id='site1')
        assert zope.probe('databases', '/site1') == [['async', '']]
        found = zope.result(zope.probe('surroundings', '/site1', BOB))
        assert (found['user'], found['site']) == ('bob', '/site1')
        assert zope.result(zope.probe('count', '/site1')) == 1
        assert zope.result(zope.probe('measured_blob', '/site1', text='data')) == 4
        assert zope.probe('read_blob', '/site1') == 'data'
        assert zope.result(zope.probe('make_and_put', '/site1', id='new'))[0] == '/site1/new'
        reply = zope.ask('/site1/@@order-by-service', BOB, number='9')
        address = reply.headers['Location'].partition(str(zope.port))[2]
        assert wait_until(lambda: zope.ask(address, BOB).json['outcome'] == 'success')


@contextlib.contextmanager
def working(zope, *words):
    """A worker beside the instance, until the end, when it must stop well."""
    before = begun(zope)
    worker = zope.start_worker(*words)
    try:
        assert wait_until(lambda: begun(zope) > before), zope.log('worker.log')
        yield worker
        worker.send_signal(signal.SIGTERM)
        try:
            code = worker.wait(60)  # twice what it gives to running jobs
        except subprocess.TimeoutExpired:
            code = 'it did not stop'
        assert code == 0, zope.log('worker.log')
    finally:
        worker.kill()
        worker.wait()


def begun(zope):
    """How many workers have begun to serve here."""
    path = zope.home / 'var' / 'worker.log'
    return path.read_text().count('begins to serve') if path.exists() else 0


@pytest.fixture(scope='module')
def producer(tmp_path_factory):
    """An instance that only puts, on a ZEO server."""
    folder = tmp_path_factory.mktemp('zeo')
    with zeo_database(folder) as place:
        place.close()  # the instance opens what the server has
        storage = ZEO.replace('{port}', str(place.server.port))
        instance = Instance(folder / 'zope', 'zodbjobs-producer-configure.zcml', storage)
        with running(instance) as zope:
            zope.probe('make', id='site1')
            yield zope


def test_workers_beside_the_instance(producer):
    zope = producer
    oid = zope.probe('surroundings', '/site1', BOB)
    assert zope.probe('job', oid=oid)['status'] == 'pending'  # nobody is there
    with working(zope, '--threads', '2') as worker:
        found = zope.result(oid)
        assert found['pid'] == worker.pid
        assert (found['user'], found['site'], found['language']) == ('bob', '/site1', 'de')
        assert zope.result(zope.probe('view', '/site1', BOB, name='report')) == 'Report: 1 invoices'
    assert 'SIGTERM: stopping' in zope.log('worker.log')


def test_two_workers_do_each_job_once(producer):
    zope = producer
    with working(zope), working(zope):
        oids = [zope.probe('count', '/site1') for _ in range(20)]
        assert sorted(zope.result(oid) for oid in oids) == list(range(1, 21))


def test_a_worker_with_an_instance_home_of_its_own(producer, tmp_path):
    storage = (producer.home / 'etc' / 'zope.conf').read_text()
    port = storage.partition('127.0.0.1:')[2].split()[0]
    home = Instance(tmp_path, 'zodbjobs-worker-configure.zcml', ZEO.replace('{port}', port))
    with working(home) as worker:
        assert producer.result(producer.probe('surroundings', '/site1'))['pid'] == worker.pid
    assert 'has stopped' in home.log('worker.log')


@contextlib.contextmanager
def plain_worker(zope):
    """A worker for the same database that knows nothing of Zope, though it could import it."""
    worker = zope.start_plain_worker()
    try:
        yield worker
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0, zope.log('plain.log')
    finally:
        worker.kill()
        worker.wait()


def test_a_plain_worker_leaves_the_jobs_of_zope_alone(producer):
    zope = producer
    with plain_worker(zope) as plain:
        held = [zope.probe('surroundings', '/site1', BOB) for _ in range(3)]
        plain_one, back = zope.probe('plain_and_callback', '/site1', BOB)
        assert zope.result(zope.probe('bare')) == [None, None, None, None]  # it does its work
        told = wait_until(
            lambda: (found := zope.probe('job', oid=plain_one))['status'] == 'callbacks' and found
        )
        assert told['result'] == plain.pid  # it ran there; what follows needs a Zope
        why = zope.probe('why', oid=held[0])
        assert 'it needs a Zope, and no dispatcher' in why and 'zodbjobs run --zope' in why
        assert zope.probe('job', oid=held[0])['status'] == 'pending'
        assert any('jobs need a Zope' in what for what in zope.probe('doctor'))
        assert wait_until(lambda: 'are left to others' in zope.log('plain.log'))
        with working(zope) as worker:
            assert {zope.result(oid)['pid'] for oid in held} == {worker.pid}
            assert zope.result(back)['pid'] == worker.pid
            assert zope.outcome(plain_one)['result'] == plain.pid
