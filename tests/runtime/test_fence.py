"""A copied database does not run the original's jobs."""

import shutil

import pytest
import transaction
import ZODB

from zodbjobs import testing
from zodbjobs.cli.main import main
from zodbjobs.interfaces import COMPLETED, KEY, PENDING
from zodbjobs.runtime import dispatcher as dispatchers
from zodbjobs.runtime import fence
from zodbjobs.testing import Reactor

ran = []


def work():
    ran.append(1)


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    ran.clear()
    yield
    testing.tearDown()


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The path of a copy of a database of the deployment 'production', with a waiting job."""
    db = ZODB.DB(str(tmp_path / 'Data.fs'))
    layer_queues(db, 'production')
    db.close()
    shutil.copy(tmp_path / 'Data.fs', tmp_path / 'copy.fs')
    return str(tmp_path / 'copy.fs')


def layer_queues(db, deployment):
    from zodbjobs import Agent, Queue, Queues

    with db.transaction() as connection:
        queues = connection.root()[KEY] = Queues()
        queue = queues[''] = Queue()
        queues.deployment = deployment
        record = queue.dispatchers.register('6f1a1b52-57a2-4f7b-95c9-0d3f7a4c8f10')
        record['main'] = Agent()
    with db.transaction() as connection:
        connection.root()[KEY][''].put(work)


def serve(path, deployment=None):
    """Serve the database for some virtual time; returns (the job's status, the objection)."""
    db = ZODB.DB(path)
    reactor = Reactor()
    reactor.start()
    uuid = '6f1a1b52-57a2-4f7b-95c9-0d3f7a4c8f10'
    dispatcher = dispatchers.Dispatcher(db, reactor, uuid=uuid, deployment=deployment)
    dispatcher.activate()
    with db.transaction() as connection:
        job = connection.root()[KEY][''].peek()
        oid = job._p_oid
    reactor.time_flies(12)
    objection = dispatcher.objection
    reactor.stop()
    testing.wait_for_deactivation(dispatcher)
    dispatchers.pop(dispatcher.UUID)
    connection = db.open()
    status = connection.get(oid).status
    transaction.abort()
    connection.close()
    db.close()
    return status, objection


def test_a_worker_without_the_name_holds_everything(copy):
    status, objection = serve(copy)
    assert status == PENDING and not ran
    assert "belongs to the deployment 'production'" in objection and 'adopt' in objection


def test_a_worker_of_another_deployment_holds_everything(copy, monkeypatch):
    monkeypatch.setenv(fence.VARIABLE, 'staging')
    status, objection = serve(copy)
    assert status == PENDING and not ran and "'staging'" in objection


def test_a_worker_of_that_deployment_serves(copy):
    assert serve(copy, 'production') == (COMPLETED, None)
    assert ran == [1]


def test_adopting_keeps_the_jobs(copy, capsys):
    assert main(['adopt', copy, '--deployment', 'staging']) == 0
    assert "belongs to 'staging'" in capsys.readouterr().out
    assert serve(copy, 'staging') == (COMPLETED, None)


def test_adopting_may_discard_the_jobs(copy, capsys):
    assert main(['adopt', copy, '--discard']) == 0
    assert 'nobody in particular; 1 jobs discarded' in capsys.readouterr().out
    db = ZODB.DB(copy)
    with db.transaction() as connection:
        assert len(connection.root()[KEY]['']) == 0
    db.close()


def test_adopting_ends_the_claims_of_the_original(copy):
    db = ZODB.DB(copy)
    connection = db.open()
    with connection.root()[KEY][''].consumer('production') as consumer:
        consumer.claim(0)
        with db.transaction() as other:
            queues = other.root()[KEY]
            assert len(queues[''].leases) == 1
            assert fence.adopt(queues, None, discard=True) == 1
            assert (len(queues['']), len(queues[''].leases)) == (0, 0)
    connection.close()
    db.close()


def test_an_unmarked_database_is_marked_by_the_first_worker_with_a_name(tmp_path):
    db = ZODB.DB(str(tmp_path / 'new.fs'))
    layer_queues(db, None)
    db.close()
    serve(str(tmp_path / 'new.fs'), 'production')
    db = ZODB.DB(str(tmp_path / 'new.fs'))
    with db.transaction() as connection:
        assert connection.root()[KEY].deployment == 'production'
    db.close()


def test_health_tells_by_its_exit_code(copy, capsys):
    assert main(['health', copy]) == 1
    assert 'no dispatcher serves it' in capsys.readouterr().out
    serve(copy, 'production')
    assert main(['health', copy]) == 0
    assert main(['health', copy, '--json']) == 0
