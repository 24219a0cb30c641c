"""Pyramid applications that put jobs: the one of the page by pserve, others in this process."""

import contextlib
import functools
import importlib
import os
import shutil
import signal
import subprocess
import sys

import pytest

pytest.importorskip('pyramid_zodbconn')
pytest.importorskip('waitress')

import transaction
import webtest
from persistent.mapping import PersistentMapping
from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationError
from support import TOP, Client, free_port, wait_until

from zodbjobs import Job, monitor, testing
from zodbjobs.interfaces import KEY
from zodbjobs.pyramid import read_settings
from zodbjobs.testing.storages import zeo_database

EXAMPLE = TOP / 'docs' / 'examples' / 'pyramid'


# By pserve --------------------------------------------------------------------------------------


def surroundings(place):
    path = os.pathsep.join([str(place), *filter(None, sys.path)])
    return os.environ | {'PYTHONPATH': path}


@contextlib.contextmanager
def pserve(place, **changes):
    """The shop, served in the folder `place` with changed settings (None: without)."""
    for name in ('shop.py', 'shop.ini'):
        shutil.copy(EXAMPLE / name, place)
    client = Client(free_port())
    text = (place / 'shop.ini').read_text().replace('6543', str(client.port))
    for name, value in changes.items():
        name = name.replace('__', '.')
        lines = [line for line in text.splitlines() if not line.startswith(name)]
        if value is not None:
            lines.insert(2, f'{name} = {value}')
        text = '\n'.join(lines)
    (place / 'shop.ini').write_text(text)
    log = place / 'log'
    with open(log, 'ab') as target:
        process = subprocess.Popen(
            [sys.executable, '-m', 'pyramid.scripts.pserve', str(place / 'shop.ini')],
            stdout=target, stderr=target, env=surroundings(place), cwd=place,
        )  # fmt: skip
    client.process = process

    def answers():
        assert process.poll() is None, log.read_text()
        try:
            return client.ask('/invoices/0').status == 404
        except OSError:
            return False

    try:
        assert wait_until(answers), log.read_text()
        yield client
    finally:
        process.kill()
        process.wait()


def order_is_done(client, number):
    assert client.ask(f'/orders?number={number}', method='POST').json == {'thank': 'you'}
    found = wait_until(
        lambda: (reply := client.ask(f'/invoices/{number}')).status == 200 and reply.json
    )
    assert found == {'invoice': f'invoice {number}'}


@pytest.mark.processes
def test_the_example_by_pserve(tmp_path):
    with pserve(tmp_path) as client:
        order_is_done(client, 7)
        assert client.ask('/orders?number=8&fail=1', method='POST').status == 500
        order_is_done(client, 9)
        assert client.ask('/invoices/8').status == 404
        client.process.send_signal(signal.SIGTERM)
        assert client.process.wait(30) in (0, 128 + signal.SIGTERM)
    with pserve(tmp_path) as client:  # nothing was left locked
        assert client.ask('/invoices/7').status == 200


@pytest.mark.processes
def test_separate_workers_over_zeo(tmp_path):
    with zeo_database(tmp_path) as place:
        with pserve(tmp_path, zodbconn__uri=place.uri, zodbjobs__embedded=None) as client:
            worker = subprocess.Popen(
                [sys.executable, '-m', 'zodbjobs', 'run', place.uri],
                stderr=subprocess.DEVNULL, env=surroundings(tmp_path),
            )  # fmt: skip
            try:
                order_is_done(client, 7)
                worker.terminate()
                assert worker.wait(30) == 0
            finally:
                worker.kill()
                worker.wait()


# In this process --------------------------------------------------------------------------------


def triple(number):
    return 3 * number


@pytest.fixture
def make_app(tmp_path):
    """Make an application; its view puts `triple` and answers with the oid of the job."""
    apps = []

    def put(request):
        job = request.jobs.put(Job(triple, int(request.params['number'])))
        assert request.jobs is request.jobs
        if 'fail' in request.params:
            raise ValueError('on purpose')
        return {'oid': job.oid}

    def make(*includes, **settings):
        settings = {name.replace('__', '.'): value for name, value in settings.items()}
        settings = {'zodbconn.uri': f'file://{tmp_path}/Data.fs', **settings}
        with Configurator(settings=settings) as config:
            for include in ('pyramid_tm', *includes, 'zodbjobs.pyramid'):
                config.include(include)
            config.add_route('put', '/')
            config.add_view(put, route_name='put', renderer='json')
        app = webtest.TestApp(config.make_wsgi_app())
        apps.append(config.registry)
        app.jobs = config.registry.zodbjobs
        return app

    yield make
    for registry in apps:
        registry.zodbjobs.stop()
        for db in getattr(registry, '_zodb_databases', {}).values():
            db.close()
    testing.tearDown()


def waiting(app):
    manager = transaction.TransactionManager()
    connection = app.jobs.db.open(manager)
    try:
        return len(connection.root()[KEY][''])
    finally:
        connection.close()


@pytest.mark.parametrize('hook', [None, 'pyramid_tm.explicit_manager'])
@pytest.mark.parametrize('own', [False, True], ids=['zodbconn', 'own database'])
def test_a_job_is_put_if_the_request_commits(make_app, tmp_path, hook, own):
    settings = {} if hook is None else {'tm__manager_hook': hook}
    if own:
        app = make_app(zodbjobs__uri=f'file:{tmp_path}/jobs.fs', **settings)
    else:
        app = make_app('pyramid_zodbconn', **settings)
    assert app.get('/?number=1').json['oid']
    assert waiting(app) == 1
    with pytest.raises(ValueError):
        app.get('/?number=1&fail=1')
    assert waiting(app) == 1
    app.get('/?number=2')
    assert waiting(app) == 2


@contextlib.contextmanager
def stock_app(view, **settings):
    """The stock of the page, whose view is wrapped in `view`, asked without a socket."""
    stock = importlib.import_module('stock')
    app = stock.main({}, view=functools.partial(view, stock), **settings)
    try:
        yield webtest.TestApp(app), app.registry
    finally:
        app.registry.zodbjobs.stop()
        for db in app.registry._zodb_databases.values():
            db.close()
        testing.tearDown()


def sells_elsewhere(stock, tries, request):
    """Sell, and have another transaction sell something before the first commit."""
    answer = stock.sell(request)
    tries.append(request.jobs._p_jar)
    if len(tries) == 1:
        with tries[0].db().transaction() as connection:
            connection.root()['stock']['left'] -= 5
    return answer


@pytest.mark.processes
@pytest.mark.parametrize('hook', [None, 'pyramid_tm.explicit_manager'])
def test_a_request_that_is_made_again_after_a_conflict_puts_one_job(tmp_path, monkeypatch, hook):
    pytest.importorskip('pyramid_retry')
    monkeypatch.syspath_prepend(str(EXAMPLE))
    tries = []
    with zeo_database(tmp_path) as place:
        settings = {'zodbconn.uri': place.uri, 'zodbjobs.embedded': 'true'}
        if hook is not None:
            settings['tm.manager_hook'] = hook

        def view(stock, request):
            return sells_elsewhere(stock, tries, request)

        with stock_app(view, **settings) as (app, registry):
            with registry._zodb_databases[''].transaction() as connection:
                connection.root()['stock'] = PersistentMapping(left=10)
            assert app.post('/sell').json == {'left': 4}
            assert len(tries) == 2
            assert app.post('/sell').json == {'left': 3}
            db = registry._zodb_databases['']

            def parcels():
                with db.transaction() as connection:
                    found = sorted(set(connection.root()['stock']) - {'left'})
                return found if len(found) == 2 else None

            assert wait_until(parcels) == ['parcel 3', 'parcel 4']
            with db.transaction() as connection:
                queues = connection.root()[KEY]
                assert len(queues['']) == 0
                assert wait_until(lambda: len(monitor.jobs(queues, 'completed')) == 2)


def test_an_embedded_dispatcher_does_it(make_app):
    app = make_app(
        'pyramid_zodbconn', zodbjobs__embedded='true', zodbjobs__threads='1', zodbjobs__grace='2'
    )
    oid = app.get('/?number=14').json['oid']
    manager = transaction.TransactionManager()
    connection = app.jobs.db.open(manager)
    from ZODB.utils import p64

    assert testing.wait_for_result(connection.get(p64(oid))) == 42
    (record,) = connection.root()[KEY][''].dispatchers.values()
    assert record['main'].size == 1
    manager.abort()
    connection.close()
    app.jobs.stop()
    assert app.jobs.dispatcher.activated is False


def test_the_queue_may_be_in_another_database(make_app, tmp_path):
    app = make_app(
        'pyramid_zodbconn',
        zodbconn__uri__jobs=f'file://{tmp_path}/jobs.fs',
        zodbjobs__database='jobs',
    )
    app.get('/?number=1')
    with app.jobs.db.databases['jobs'].transaction() as connection:
        assert len(connection.root()[KEY]['']) == 1


def test_another_queue(make_app):
    app = make_app('pyramid_zodbconn', zodbjobs__queue='mail')
    app.get('/?number=1')
    with app.jobs.db.transaction() as connection:
        assert len(connection.root()[KEY]['mail']) == 1


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        ({'zodbjobs.thread': '3'}, 'there is no setting zodbjobs.thread; there are zodbjobs.uri'),
        ({'zodbjobs.threads': 'many'}, "zodbjobs.threads = 'many' is not possible"),
        ({'zodbjobs.grace': '-1'}, "zodbjobs.grace = '-1' is not possible"),
        ({'zodbjobs.uri': 'memory:', 'zodbjobs.database': 'x'}, 'does not go with zodbjobs.uri'),
    ],
)
def test_mistakes_in_the_settings(settings, words):
    with pytest.raises(ConfigurationError, match=words):
        read_settings(settings)


def test_no_database(make_app):
    with pytest.raises(ConfigurationError, match='include pyramid_zodbconn and set zodbconn.uri'):
        make_app()
