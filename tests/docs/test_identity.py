"""configuration.rst: who a process is, if nobody says so."""

import os
import signal
import subprocess
import sys
import uuid

import pytest
import transaction
import ZODB
import zope.component
from ZODB.FileStorage import FileStorage

from zodbjobs import Dispatcher, Job, configure, testing
from zodbjobs.interfaces import IUUID, KEY
from zodbjobs.testing import Reactor


@pytest.fixture(autouse=True)
def tidy(monkeypatch):
    monkeypatch.delenv(configure.UUID_VARIABLE, raising=False)
    testing.tearDown()  # whoever was here before is nobody's name here
    yield
    testing.tearDown()


def add(a, b):
    return a + b


def serve(path):
    """A life of a program: serve the database, run a job; returns who it was."""
    dispatcher = configure.start(f'file:{path}')
    connection = dispatcher.db.open()
    queue = connection.root()[KEY]['']
    job = queue.put(Job(add, 1, 2))
    transaction.commit()
    testing.wait_for_result(job)
    agents = [agent for record in queue.dispatchers.values() for agent in record.values()]
    agents[0].size = 5
    transaction.commit()
    connection.close()
    testing.tear_down_dispatcher(dispatcher)
    dispatcher.db.close()
    testing.tearDown()  # as if the process had ended
    return dispatcher.UUID, len(agents)


def test_a_program_that_is_started_again_is_who_it_was(tmp_path):
    """So it goes on with its own agents, as they were set."""
    first = serve(tmp_path / 'Data.fs')
    assert serve(tmp_path / 'Data.fs') == first
    assert first[1] == 1


def test_one_process_may_serve_two_databases(tmp_path):
    configure.base()
    with Reactor() as reactor:
        dispatchers = []
        for name in 'ab':
            db = ZODB.DB(FileStorage(str(tmp_path / name)))
            dispatchers.append(Dispatcher(db, reactor))
        one, other = dispatchers
        assert one.UUID != other.UUID
        assert zope.component.getUtility(IUUID) in (one.UUID, other.UUID)
    for dispatcher in dispatchers:
        dispatcher.db.close()


def test_who_is_told_who_it_is_is_that(tmp_path, monkeypatch):
    monkeypatch.setenv(configure.UUID_VARIABLE, str(tmp_path / 'uuid.txt'))
    configure.base()
    named = zope.component.getUtility(IUUID)
    db = ZODB.DB(FileStorage(str(tmp_path / 'Data.fs')))
    assert Dispatcher(db, Reactor()).UUID == named == uuid.UUID(str(named))
    db.close()


def work_for_a_while(path):
    """A life of a worker process, from its start to SIGTERM; returns what it said."""
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, '-m', 'zodbjobs', 'run', str(path)]
    worker = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    said = []
    for line in worker.stderr:
        said.append(line)
        if 'begins to serve' in line:
            worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0, ''.join(said)
    return said


@pytest.mark.processes
def test_a_worker_is_who_it_was_from_its_first_life_on(tmp_path):
    """Also if that began without queues."""
    path = tmp_path / 'Data.fs'
    for _ in range(2):
        work_for_a_while(path)
    db = ZODB.DB(FileStorage(str(path)))
    with db.transaction() as connection:
        assert len(connection.root()[KEY][''].dispatchers) == 1
    db.close()
