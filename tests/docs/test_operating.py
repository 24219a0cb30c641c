"""Every command of the page "Operating" runs against a live worker, on each storage."""

import argparse
import contextlib
import json
import operator
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import transaction

from zodbjobs import Job, Queue, Queues, clock
from zodbjobs.cli import run as run_command
from zodbjobs.cli.main import COMMANDS, main
from zodbjobs.interfaces import KEY
from zodbjobs.monitor import doors
from zodbjobs.monitor.questions import ask
from zodbjobs.runtime.address import open_database
from zodbjobs.testing import storages

pytest.importorskip('prometheus_client', reason='the worker serves metrics')

pytestmark = pytest.mark.processes

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'operating.rst'
LINES = [
    shlex.split(line.strip().removeprefix('$ '))
    for line in PAGE.read_text('utf-8').splitlines()
    if line.strip().startswith('$ ')
]

#: The commands of the page that say by exit code 1 what is no mistake here.
MAY_SAY_NO = {'doctor'}

WORK = """
    import logging, threading
    from zodbjobs import local

    def multiply(a, b):
        return a * b

    def divide(a, b):
        logging.getLogger('shop').warning('about to divide by %s', b)
        return a / b

    def take_long():
        local.progress(3, 10, 'importing')
        threading.Event().wait(60)
"""


@contextlib.contextmanager
def zeo_database(folder):
    with storages.zeo_database(folder) as place:
        yield place.uri


@contextlib.contextmanager
def postgres_database(folder):
    with storages.postgres_database(folder) as place:
        yield place.uri


@contextlib.contextmanager
def file_database(folder):
    yield os.path.join(folder, 'Data.fs')


PLACES = {'file': file_database, 'zeo': zeo_database, 'postgres': postgres_database}


@pytest.fixture(params=sorted(PLACES))
def uri(request, tmp_path, monkeypatch):
    """The address of an empty database, with no worker of anybody else to be seen."""
    locks = tmp_path / 'locks'
    locks.mkdir(0o700)
    monkeypatch.setenv('ZODBJOBS_LOCK_DIR', str(locks))
    monkeypatch.delenv('ZODBJOBS_MONITOR', raising=False)
    with PLACES[request.param](str(tmp_path)) as uri:
        monkeypatch.setenv('ZODBJOBS_URI', uri)
        yield uri


@pytest.fixture
def worker(uri, tmp_path, monkeypatch):
    """A live worker of that database; gives the folder of its code."""
    folder = tmp_path / 'code'
    folder.mkdir()
    (folder / 'shop.py').write_text('\n'.join(line[4:] for line in WORK.splitlines()))
    monkeypatch.syspath_prepend(folder)
    options = ('--path', str(folder), '--grace', '1', '--log-format', 'json', '--metrics', '0')
    with open(tmp_path / 'worker.log', 'w') as log:
        process = subprocess.Popen(
            [sys.executable, '-m', 'zodbjobs', 'run', uri, *options], stderr=log, stdout=log
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            process.kill()
            sys.modules.pop('shop', None)


def await_door(process, seconds=60):
    """A caller at the worker's door, once it is open."""
    deadline = clock.monotonic() + seconds
    while clock.monotonic() < deadline and process.poll() is None:
        found = doors.found()
        if found:
            return found[0]
        threading.Event().wait(0.05)
    raise AssertionError('the worker did not begin')


def await_state(caller, name, states, seconds=60):
    deadline = clock.monotonic() + seconds
    while clock.monotonic() < deadline:
        found = caller.ask('job', {'name': name})
        if found['state'] in states:
            return found
        threading.Event().wait(0.05)
    raise AssertionError(f'{name} is {found["state"]}: {found["why"]}')


def test_the_page_shows_every_command_of_the_monitor():
    shown = {words[1] for words in LINES}
    homes = ('cli.see', 'cli.act', 'cli.check', 'cli.watch')
    ours = {
        name for name, (path, _) in COMMANDS.items() if any(home in path for home in homes)
    }  # fmt: skip
    assert ours <= shown


def test_every_command_of_the_page_runs(uri, worker, capsys):
    with contextlib.closing(await_door(worker)) as caller:

        def put(call, *args, **options):
            return caller.ask('put', {'call': call, 'args': args, **options})['oid']

        failed = put('shop:divide', 1, 0, retries=0)
        multiplied = put('shop:multiply', 6, 7)
        await_state(caller, failed, ['failed'])
        await_state(caller, multiplied, ['succeeded'])
        put('shop:take_long', id='import')
        await_state(caller, 'import', ['active'])
        put('shop:multiply', 6, 7, id='nightly', delay=3600, channel='slow')
        for words in LINES:
            if words[1] == 'run':
                parser = argparse.ArgumentParser()
                run_command.add_arguments(parser)
                parser.parse_args(words[2:])
                continue
            words = [str(failed) if word == '4711' else word for word in words]
            code = main(words[1:])
            out, err = capsys.readouterr()
            assert code == 0 or (code == 1 and words[1] in MAY_SAY_NO), (words, out, err)
            assert out.strip(), words
            if words[1:3] == ['job', 'nightly']:
                assert 'it is not due until' in out
        lines = caller.ask('job', {'name': failed})['log']
        assert [line[1:] for line in lines][0] == ['WARNING', 'about to divide by 0']


@pytest.mark.parametrize('uri', ['file'], indirect=True)
def test_a_worker_tells_its_steps_as_json(uri, worker, tmp_path):
    with contextlib.closing(await_door(worker)) as caller:
        oid = caller.ask('put', {'call': 'shop:divide', 'args': [1, 0], 'retries': 0})['oid']
        await_state(caller, oid, ['failed'])
    log = (tmp_path / 'worker.log').read_text()
    found = [json.loads(line) for line in log.splitlines() if line.startswith('{')]
    (line,) = [line for line in found if 'about to divide' in line['message']]
    assert (line['job'], line['queue'], line['agent'], line['attempt']) == (oid, '', 'main', 1)
    assert any('metrics at http://127.0.0.1:' in line['message'] for line in found)


def test_a_file_that_a_process_without_a_door_has_open_is_read(tmp_path, monkeypatch, capsys):
    """As it is at this moment, and it is said so; to change it is refused."""
    monkeypatch.setenv('ZODBJOBS_LOCK_DIR', str(tmp_path))
    path = str(tmp_path / 'Data.fs')
    code = 'import ZODB, sys; db = ZODB.DB(sys.argv[1]); print("open", flush=True); input()'
    with contextlib.closing(open_database(path)) as db:
        with db.transaction() as connection:
            queue = Queue()
            connection.root()[KEY] = Queues()
            connection.root()[KEY][''] = queue
            connection.transaction_manager.savepoint()
            queue.put(Job(operator.mul, 6, 7))
        assert ask(db, 'count')['count'] == 1
    holder = subprocess.Popen(
        [sys.executable, '-c', code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == 'open\n'
        assert main(['count', path]) == 0
        out, err = capsys.readouterr()
        assert out == '1\n' and 'no door to ask at' in err
        assert main(['pause', path]) == 2
        assert re.search(r'process \d+ has the file open', capsys.readouterr().err)
    finally:
        holder.communicate('\n')
    transaction.abort()
