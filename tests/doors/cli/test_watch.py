"""The commands that keep looking, at a process that runs jobs, through its door."""

import contextlib
import io
import json
import operator
import threading

import pytest
import transaction

from zodbjobs import Job, local, testing
from zodbjobs.cli import watch
from zodbjobs.cli.main import main
from zodbjobs.monitor.door import open_door
from zodbjobs.runtime import dispatcher as dispatchers

gate = threading.Event()


def half_way():
    local.progress(5, 10, 'indexing')
    assert gate.wait(20)
    return 'done'


@pytest.fixture
def layer(monkeypatch, no_default):
    monkeypatch.setattr(dispatchers, 'THREADS_END_SECONDS', 0.05)
    gate.clear()
    layer = testing.setUp()
    open_door(layer.dispatcher)
    yield layer
    gate.set()
    testing.tearDown()


@pytest.fixture
def running(layer):
    """A job that runs and is half way."""
    job = layer.queue.put(Job(half_way), id='index')
    transaction.commit()
    testing.wait_for_annotation(job, 'zodbjobs.progress')
    transaction.begin()
    return job


def told(*words):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main([*words])
    return code, out.getvalue()


def test_top_shows_how_far_a_job_is(layer, running):
    code, out = told('top')
    assert code == 0 and '1 of 3 threads busy' in out
    assert 'index' in out and '##########---------- 5/10 indexing' in out
    found = json.loads(told('top', '--json')[1])
    assert found['running'][0]['progress'] == {'done': 5, 'total': 10, 'message': 'indexing'}


def test_top_on_a_terminal(layer, running, monkeypatch):
    """Two looks; between them a job ends, and the rate is shown."""
    pytest.importorskip('rich')
    looks = []

    def pause(seconds):
        if not looks:
            gate.set()
            layer.reactor.wait_for(running)
            layer.reactor.time_flies(1)
        looks.append(seconds)

    monkeypatch.setattr(watch, 'pause', pause)
    monkeypatch.setenv('COLUMNS', '160')
    out = io.StringIO()
    out.isatty = lambda: True
    with contextlib.redirect_stdout(out):
        assert main(['top', '--looks', '2', '--interval', '0.1']) == 0
    assert looks == [0.1, 0.1]
    assert '5/10 indexing' in out.getvalue() and 'a second' in out.getvalue()


def test_tail_tells_what_starts_and_ends(layer, running, monkeypatch):
    def pause(seconds):
        gate.set()
        layer.reactor.wait_for(running)

    monkeypatch.setattr(watch, 'pause', pause)
    code, out = told('tail', '--looks', '3')
    first, last = out.splitlines()
    assert code == 0 and f" active    {running.oid} 'index' " in first and '5/10' in first
    assert ' succeeded ' in last and 'waited' in last


def test_tail_is_filtered_and_may_be_json(layer, running):
    assert told('tail', '--looks', '1', '--callable', 'other') == (0, '')
    (line,) = told('tail', '--looks', '1', '--json', '--queue', '*')[1].splitlines()
    assert json.loads(line)['id'] == 'index'


def test_one_job_is_followed_to_its_end(layer, running, monkeypatch):
    def pause(seconds):
        gate.set()
        layer.reactor.wait_for(running)

    monkeypatch.setattr(watch, 'pause', pause)
    code, out = told('tail', 'index')
    assert code == 0 and out.splitlines()[-1] == "result  'done'"
    failing = layer.queue.put(Job(operator.truediv, 1, 0), retries=0)
    transaction.commit()
    layer.reactor.wait_for(failing)
    code, out = told('tail', str(failing.oid))
    assert code == 1 and 'division by zero' in out


def test_threads_shows_live_stacks(layer, running):
    code, out = told('threads')
    assert code == 0 and f'job {running.oid} ' in out and 'assert gate.wait(20)' in out
    (process,) = json.loads(told('threads', '--json', '--all')[1])
    assert len(process['threads']) > 1
    assert 'no dispatcher of this user' in told('threads', '--dispatcher', 'x')[1]


@pytest.mark.parametrize(
    'value, text',
    [
        (None, ''),
        ({'done': 3, 'total': None, 'message': None}, '3'),
        ({'done': 3, 'total': 0, 'message': 'x'}, '3/0 x'),
        ({'done': 30, 'total': 10, 'message': None}, '#' * 20 + ' 30/10'),
        ({'done': 'a', 'total': 'b', 'message': 'c'}, 'a c'),
    ],
)
def test_bars(value, text):
    assert watch.bar(value) == text
