"""The door of a dispatcher's process: who may ask, what is answered, and how it is found."""

import json
import os
import socket
import stat

import pytest
import transaction

from zodbjobs import testing
from zodbjobs.monitor import doors
from zodbjobs.monitor.door import CALLERS, Door, open_door, wanted_tcp
from zodbjobs.monitor.doors import DoorError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv('ZODBJOBS_LOCK_DIR', str(tmp_path))
    monkeypatch.delenv('ZODBJOBS_MONITOR', raising=False)
    return tmp_path


@pytest.fixture
def door(layer, folder):
    door = open_door(layer.dispatcher)
    yield door
    door.close()


@pytest.fixture
def caller(door):
    (caller,) = doors.found()
    yield caller
    caller.close()


def test_it_is_found_and_says_what_is_behind_it(layer, caller):
    assert caller.uuid == str(layer.dispatcher.UUID) and caller.pid == os.getpid()
    assert caller.file == os.path.realpath(layer.db.storage.getName())
    of_file = doors.of_file(layer.db.storage.getName())
    assert of_file.uuid == caller.uuid
    of_file.close()
    assert doors.of_file('/no/such/file') is None


def test_questions_of_the_database_and_of_the_process(layer, put, run, caller):
    run(put(id='x'), put())
    assert caller.ask('count', {'states': ['succeeded']}) == {'count': 2, 'exact': True}
    assert caller.ask('process')['uuid'] == caller.uuid
    assert caller.ask('process')['status']['status'] == 'RUNNING'
    assert caller.ask('statistics')['successful'] == 2
    assert caller.ask('statistics', {'since': '1H'})['successful'] == 2
    assert caller.ask('summary')['count'] == 2
    (pool,) = caller.ask('process')['pools']
    assert (pool['agent'], pool['size'], pool['taken']) == ('main', 1, 0)
    newest, older = caller.ask('polls', {'count': 2})
    assert newest['key'] > older['key'] and newest['results']['']['main']['size'] == 1
    assert len(caller.ask('polls')) == 3


def test_jobs_that_run_are_shown_with_their_stacks(busy, caller):
    job = busy()
    (thread,) = caller.ask('threads')
    assert thread['oid'] == job.oid and 'block' in thread['call'] and thread['queue'] == ''
    assert any('assert gate.wait(20)' in line for line in thread['stack'])
    assert caller.ask('active') == [[job.oid, 'unnamed']]
    assert caller.ask('attempt', {'oid': job.oid})['completed'] is None
    assert caller.ask('threads', {'stacks': False})[0]['stack'] == []
    assert len(caller.ask('threads', {'everything': True})) > 1


def test_deeds_are_committed(layer, put, caller):
    job = put(delay=50)
    assert caller.ask('act_on_jobs', {'deed': 'hold', 'names': [job.oid]})['count'] == 1
    transaction.begin()
    assert job.status == 'held'


@pytest.mark.parametrize(
    'name, args, said',
    [
        ('colour', {}, 'unknown question'),
        ('why', {'name': 'x'}, "there is no job 'x'"),
        ('jobs', {'states': ['x']}, 'is no state'),
        ('jobs', {'colour': 'red'}, 'unknown filter'),
        ('attempt', {'oid': 5}, 'no job 5 is known here'),
        ('threads', {'colour': 'red'}, 'unexpected keyword argument'),
    ],
)
def test_what_is_asked_wrongly_is_said_and_the_next_question_answered(caller, name, args, said):
    with pytest.raises(DoorError, match=said):
        caller.ask(name, args)
    assert caller.ask('count')['count'] == 0


def test_only_its_user_may_come(door, folder):
    (path,) = door.places
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(folder / f'{door.dispatcher.UUID}.door').st_mode) == 0o600


def test_tcp_is_on_demand_and_changes_nothing(layer, folder, put):
    job = put(delay=50)
    door = open_door(layer.dispatcher, '0')
    try:
        _, (host, port) = door.places
        assert host == '127.0.0.1'
        line = socket.create_connection((host, port), 5)
        answers = line.makefile()
        line.sendall(b'{"ask": "count"}\n')
        assert json.loads(answers.readline())['answer']['count'] == 1
        for name in ('act_on_jobs', 'pause', 'pack'):
            line.sendall(json.dumps({'ask': name}).encode() + b'\n')
            assert (
                'nothing is changed for callers by TCP' in json.loads(answers.readline())['error']
            )
        line.sendall(b'GET / HTTP/1.1\r\nHost: x\r\n\r\n')
        assert answers.readline() == ''  # a browser is not heard
        line.close()
        assert job.status == 'pending'
    finally:
        door.close()


@pytest.mark.parametrize('line', [b'{}\n', b'{"ask": 1}\n', b'{"ask": "count", "args": []}\n'])
def test_malformed_requests(door, line):
    answer = door.answer(line, True)
    assert ('error' in answer) == (line != b'{"ask": "count", "args": []}\n')


def test_no_more_callers_than_there_is_room_for(door, caller):
    caller.ask('count')
    others = []
    for _ in range(CALLERS - 1):
        others += doors.found()
        others[-1].ask('count')
    (last,) = doors.found()
    with pytest.raises(DoorError, match='callers are being served already'):
        last.ask('count')
    for each in [*others, last]:
        each.close()


def test_it_may_be_off(layer, folder, monkeypatch):
    monkeypatch.setenv('ZODBJOBS_MONITOR', 'off')
    assert open_door(layer.dispatcher) is None and doors.found() == []


def test_what_cannot_be_opened_hinders_nobody(layer, folder, caplog):
    assert open_door(layer.dispatcher, 'nonsense') is None
    assert 'neither off, nor PORT, nor HOST:PORT' in caplog.text
    assert doors.found() == []


@pytest.mark.parametrize(
    'text, place',
    [
        ('', None),
        ('99', ('127.0.0.1', 99)),
        ('0.0.0.0:99', ('0.0.0.0', 99)),
        ('[::1]:99', ('::1', 99)),
    ],
)
def test_places_for_tcp(text, place):
    assert wanted_tcp(text) == place


def test_it_closes_when_the_reactor_stops(layer, door, folder):
    layer.reactor.stop()
    assert doors.found() == [] and not list(folder.glob('*.door'))
    testing.tear_down_dispatcher(layer.dispatcher)


def test_what_a_dead_process_left_is_removed(layer, folder):
    door = Door(layer.dispatcher, str(folder))
    path = folder / f'{layer.dispatcher.UUID}.door'
    left = path.read_text()
    door.close()
    path.write_text(left)
    socket_path = door.folder + '/left.monitor'
    path.write_text(json.dumps(json.loads(left) | {'places': [socket_path]}))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(socket_path)  # and nobody listens
    assert doors.found() == [] and not path.exists() and not os.path.exists(socket_path)
    path.write_text('{"uuid"')  # half of one
    assert doors.found() == []


def test_a_long_path_of_the_folder_does_no_harm(layer, tmp_path, monkeypatch):
    folder = tmp_path / ('long' * 30)
    folder.mkdir()
    monkeypatch.setenv('ZODBJOBS_LOCK_DIR', str(folder))
    door = open_door(layer.dispatcher)
    (caller,) = doors.found()
    assert caller.ask('count')['count'] == 0
    caller.close()
    door.close()
