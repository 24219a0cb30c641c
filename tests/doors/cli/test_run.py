"""The worker process: what it makes in a database, what it says, how it stops."""

import argparse
import contextlib
import signal
import subprocess
import sys
import textwrap
import uuid

import pytest
import ZODB

from zodbjobs import Job, Queue, Queues
from zodbjobs.cli.main import main
from zodbjobs.cli.run import install
from zodbjobs.cli.staff import pause
from zodbjobs.interfaces import COMPLETED, KEY, PENDING
from zodbjobs.runtime.address import open_database

NAME = uuid.UUID('12345678-1234-5678-1234-567812345678')

# What the worker imports from a folder of its own.
WORK = """
    import pathlib, threading

    def touch(path):
        pathlib.Path(path).touch()
        return path

    def touch_and_wait(path, seconds):
        pathlib.Path(path).touch()
        threading.Event().wait(seconds)
"""


def wanted(**changes):
    defaults = {'queue': None, 'threads': 3, 'channel': None}
    return argparse.Namespace(**{**defaults, **changes})


# What it makes -----------------------------------------------------------------------------


@pytest.fixture
def connection():
    with ZODB.DB(None).transaction() as connection:
        yield connection


def agent(connection, queue):
    return connection.root()[KEY][queue].dispatchers[NAME]['main']


def test_an_empty_database_gets_the_default_queue_and_an_agent(connection):
    install(connection.root(), NAME, wanted())
    assert list(connection.root()[KEY]) == ['']
    assert agent(connection, '').size == 3 and agent(connection, '').channels is None


def test_what_is_there_is_kept_and_what_was_asked_for_is_set(connection):
    queues = connection.root()[KEY] = Queues()
    queue = queues['mail'] = Queue()
    install(connection.root(), NAME, wanted(queue=['mail', 'scale'], channel=['slow', 'fast']))
    first = agent(connection, 'mail')
    install(connection.root(), NAME, wanted(queue=['mail'], threads=7))
    assert queues['mail'] is queue and sorted(queues) == ['mail', 'scale']
    assert agent(connection, 'mail') is first
    assert (first.size, first.channels) == (7, None)


def test_a_queue_that_is_not_named_any_more_is_not_served(connection):
    install(connection.root(), NAME, wanted(queue=['a', 'b'], channel=['slow']))
    assert agent(connection, 'b').channels == ('slow',)
    install(connection.root(), NAME, wanted(queue=['a']))
    assert agent(connection, 'a').size == 3 and agent(connection, 'b').size == 0
    install(connection.root(), NAME, wanted(queue=['b']))
    assert agent(connection, 'a').size == 0 and agent(connection, 'b').size == 3


# Bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'words, said',
    [
        (['file:no/such/folder/Data.fs'], 'there is no folder'),
        (['nonsense://x'], 'nonsense: is no kind of database address'),
        (['zeo://localhost:1?wait_timeout=1'], 'no connection to the server'),
        (['memory:', '--path', 'no_such_thing'], '--path no_such_thing: no folder, and no module'),
        ([], 'give the URI of a database, or --zope CONF'),
        (['memory:', '--zope', 'zope.conf'], 'give the URI of a database, or --zope CONF'),
        (['memory:', '--zcml', 'nowhere.zcml'], 'No such file or directory'),
    ],
)
def test_what_cannot_be_opened_is_one_line(capsys, words, said):
    assert main(['run', *words]) == 2
    out, err = capsys.readouterr()
    assert out == '' and said in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith('zodbjobs run: ')


@pytest.mark.parametrize(
    'words',
    [
        ['memory:', '--threads', '0'],
        ['memory:', '--grace', '-1'],
        ['memory:', '--name', 'x'],
        ['memory:', '--poll-interval', 'often'],
    ],
)
def test_wrong_command_lines(capsys, words):
    with pytest.raises(SystemExit) as caught:
        main(['run', *words])
    assert caught.value.code == 2 and 'usage: zodbjobs run' in capsys.readouterr().err


# At work -----------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a module of jobs, importable here too, where they are put."""
    (tmp_path / 'jobs').mkdir()
    (tmp_path / 'jobs' / 'work_for_a_worker.py').write_text(textwrap.dedent(WORK))
    monkeypatch.syspath_prepend(tmp_path / 'jobs')
    yield tmp_path
    sys.modules.pop('work_for_a_worker', None)


@contextlib.contextmanager
def root_of(place):
    db = open_database(f'file:{place}/Data.fs')
    with db.transaction() as connection:
        yield connection.root()
    db.close()


def make_queues(place, *names):
    with root_of(place) as root:
        queues = root[KEY] = Queues()
        for name in names:
            queues[name] = Queue()


def test_a_mistake_in_zcml_is_told_with_its_place(capsys, tmp_path):
    wrong = tmp_path / 'wrong.zcml'
    wrong.write_text(
        '<configure xmlns:jobs="urn:zodbjobs">\n'
        '<include package="zodbjobs" file="meta.zcml" />\n'
        '<jobs:agent size="many" />\n</configure>'
    )
    before = signal.getsignal(signal.SIGTERM)
    assert main(['run', '--zcml', str(wrong), f'file:{tmp_path}/Data.fs']) == 2
    assert f'File "{wrong}", line 3' in capsys.readouterr().err
    assert not (tmp_path / 'Data.fs').exists()
    assert signal.getsignal(signal.SIGTERM) == before


@contextlib.contextmanager
def worker(place, *words):
    with open(place / 'log', 'w') as log:
        process = subprocess.Popen(
            [sys.executable, '-m', 'zodbjobs', 'run', f'file:{place}/Data.fs', *words],
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.kill()
        assert process.communicate()[0] == b''  # answers go to stdout, and this one has none


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, path.with_name('log').read_text()
        pause(0.02)


@pytest.mark.processes
@pytest.mark.parametrize('stop', [signal.SIGTERM, signal.SIGINT])
def test_it_works_and_stops(place, stop):
    import work_for_a_worker as work

    make_queues(place, '', 'mail')
    with root_of(place) as root:
        queues = root[KEY]
        done = root['done'] = queues['mail'].put(Job(work.touch, str(place / 'touched')))
        left = root['left'] = queues[''].put(Job(work.touch, str(place / 'never')))
    words = ('--queue', 'mail', '--queue', 'new', '--path', str(place / 'jobs'))
    with worker(place, *words, '--name', str(NAME), '--threads', '2') as process:
        wait_for(place / 'touched', process)
        process.send_signal(stop)
        assert process.wait(30) == 0
    lines = (place / 'log').read_text().splitlines()
    assert all(line[:4].isdigit() for line in lines)  # each begins with its time
    for text in ('begins to serve', f'{stop.name}: stopping; jobs that run have 30 s', 'has stop'):
        assert sum(text in line for line in lines) == 1
    with root_of(place) as root:
        done, left = root['done'], root['left']
        assert (done.status, done.result) == (COMPLETED, str(place / 'touched'))
        assert left.status == PENDING and not (place / 'never').exists()
        assert sorted(root[KEY]) == ['', 'mail', 'new']
        record = root[KEY]['mail'].dispatchers[NAME]
        assert record.activated is None and record['main'].size == 2


@pytest.mark.processes
def test_a_job_that_takes_too_long_is_handed_back(place):
    import work_for_a_worker as work

    make_queues(place, '')
    with root_of(place) as root:
        root['job'] = root[KEY][''].put(Job(work.touch_and_wait, str(place / 'touched'), 60))
    with worker(place, '--path', str(place / 'jobs'), '--grace', '0.2') as process:
        wait_for(place / 'touched', process)
        process.terminate()
        assert process.wait(30) == 0
    with root_of(place) as root:
        job = root['job']
        assert job.status == PENDING and job.attempts == job.interruptions == 0


@pytest.mark.processes
def test_a_second_signal_ends_it_at_once(place):
    import work_for_a_worker as work

    make_queues(place, '')
    with root_of(place) as root:
        root[KEY][''].put(Job(work.touch_and_wait, str(place / 'touched'), 60))
    with worker(place, '--path', str(place / 'jobs')) as process:
        wait_for(place / 'touched', process)
        process.send_signal(signal.SIGINT)
        while 'SIGINT: stopping' not in (place / 'log').read_text():
            pause(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 128 + signal.SIGINT
    assert 'SIGINT again: ending at once' in (place / 'log').read_text()


def configured_by(place, *directives):
    """The words that let a worker work as a ZCML file says, which ends with these directives."""
    (place / 'site.zcml').write_text(f"""
        <configure xmlns="http://namespaces.zope.org/zope" xmlns:jobs="urn:zodbjobs">
          <include package="zodbjobs" />
          <include package="zodbjobs" file="meta.zcml" />
          <jobs:queue name="mail" />
          <jobs:agent queue="mail" name="post" size="2" />
          {' '.join(directives)}
        </configure>""")
    return '--zcml', str(place / 'site.zcml'), '--path', str(place / 'jobs')


WHO_SERVES = pytest.mark.parametrize(
    'configured', [True, False], ids=['its dispatcher', "the command's own"]
)


@pytest.mark.processes
@WHO_SERVES
def test_it_works_as_zcml_says(place, configured):
    import work_for_a_worker as work

    words = configured_by(place, '<jobs:dispatcher grace="0.5" />' if configured else '')
    make_queues(place, 'mail')
    with root_of(place) as root:
        root['done'] = root[KEY]['mail'].put(Job(work.touch, str(place / 'touched')))
    with worker(place, *words) as process:
        wait_for(place / 'touched', process)
        process.terminate()
        assert process.wait(30) == 0
    with root_of(place) as root:
        assert root['done'].status == COMPLETED
        (record,) = root[KEY]['mail'].dispatchers.values()
        assert record.activated is None and record['post'].size == 2


@pytest.mark.processes
@WHO_SERVES
def test_a_signal_while_it_starts_is_obeyed(place, configured):
    """Told to stop while the configuration does its work, it does not go on for ever."""
    (place / 'jobs' / 'told_early.py').write_text(
        'import signal\n\ndef stop(event):\n    signal.raise_signal(signal.SIGTERM)\n'
    )
    listener = '<subscriber for="zodbjobs.interfaces.DatabaseOpened" handler="told_early.stop" />'
    words = configured_by(place, listener, '<jobs:dispatcher />' if configured else '')
    with worker(place, *words) as process:
        assert process.wait(30) == 0, (place / 'log').read_text()
    said = (place / 'log').read_text()
    assert said.count('begins to serve') == said.count('has stopped')
