"""The commands that look and act, on a file that nobody else has open."""

import io
import json
import operator
import os
import re

import pytest
import transaction

from zodbjobs import Job, Queue, Queues, status
from zodbjobs.cli import source
from zodbjobs.cli.main import main
from zodbjobs.interfaces import KEY
from zodbjobs.runtime.address import open_database


def words_of(value):
    """The id of a parameter."""
    return ' '.join(value) if isinstance(value, list) else None


pytestmark = pytest.mark.usefixtures('no_default')


@pytest.fixture
def path(tmp_path):
    """A file with a job of each kind that can be had without a worker."""
    path = str(tmp_path / 'Data.fs')
    db = open_database(path)
    with db.transaction() as connection:
        queue = Queue()
        connection.root()[KEY] = Queues()
        connection.root()[KEY][''] = queue
        transaction_of(connection).savepoint()
        queue.put(Job(operator.mul, 6, 7), id='now')
        queue.put(Job(operator.mul, 6, 7), id='nightly', delay=3600, channel='slow')
        queue.put(Job(operator.truediv, 1, 0), id='odd').hold('looks odd')
    db.close()
    return path


def transaction_of(connection):
    return connection.transaction_manager


def asked(capsys, *words):
    """(exit code, stdout, stderr) of a command."""
    code = main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def as_json(capsys, *words):
    code, out, _ = asked(capsys, *words, '--json')
    return json.loads(out)


def states(path):
    """{id: status} of the waiting and held jobs, as the file has them."""
    db = open_database(path)
    try:
        with db.transaction() as connection:
            queue = connection.root()[KEY]['']
            return {job.id: job.status for job in [*queue, *queue.held.values()]}
    finally:
        db.close()


def test_lists(capsys, path):
    rows = as_json(capsys, 'jobs', path)['jobs']
    assert [row['id'] for row in rows] == ['now', 'nightly', 'odd']
    code, out, _ = asked(capsys, 'jobs', path, 'later', '--why')
    assert code == 0 and out.splitlines()[0].split()[:3] == ['JOB', 'ID', 'STATE']
    assert 'nightly' in out and 'it is not due until' in out and 'odd' not in out
    assert asked(capsys, 'jobs', path, 'failed')[1] == 'none\n'
    assert [row['id'] for row in as_json(capsys, 'jobs', path, '--limit', '1')['jobs']] == ['now']


@pytest.mark.parametrize(
    'words, count',
    [
        ([], 3),
        (['pending'], 2),
        (['pending', 'held'], 3),
        (['--callable', 'true*'], 1),
        (['--channel', 'slow'], 1),
        (['--id', 'n*'], 2),
        (['--state', 'held'], 1),
        (['--requested', '1H'], 3),
        (['failed'], 0),
    ],
    ids=words_of,
)
def test_counts(capsys, path, words, count):
    assert asked(capsys, 'count', path, *words)[1] == f'{count}\n'
    assert as_json(capsys, 'count', path, *words) == {'count': count, 'exact': True}


@pytest.mark.parametrize('command', ['status', 'queues', 'dispatchers', 'agents', 'stats'])
def test_overviews_are_said_in_words_and_as_json(capsys, path, command):
    code, out, err = asked(capsys, command, path)
    assert code == 0 and out and err == ''
    assert as_json(capsys, command, path) is not None


def test_one_job(capsys, path):
    code, out, _ = asked(capsys, 'job', path, 'odd')
    assert (
        code == 0 and "'odd'" in out and 'it is held: looks odd' in out and 'truediv(1, 0)' in out
    )
    oid = as_json(capsys, 'job', path, 'odd')['oid']
    assert as_json(capsys, 'why', path, str(oid))['why'].startswith('it is held: looks odd')
    assert asked(capsys, 'traceback', path, 'odd')[:2] == (1, 'it has no failure\n')
    assert as_json(capsys, 'next', path)['id'] == 'now'
    assert asked(capsys, 'last', path)[:2] == (1, 'none\n')
    code, _, err = asked(capsys, 'job', path, 'nobody')
    assert code == 2 and "there is no job 'nobody'" in err


def test_stats_of_states(capsys, path):
    code, out, _ = asked(capsys, 'stats', path, 'pending', 'held')
    assert code == 0 and 'pending  2' in out and 'held     1' in out and 'longest wait' in out


def test_deeds_on_names(capsys, path):
    assert asked(capsys, 'hold', path, 'now', '--reason', 'wait')[:2] == (0, '1 job held\n')
    assert states(path) == {'now': 'held', 'odd': 'held', 'nightly': 'pending'}
    assert asked(capsys, 'resume', path, 'now', 'odd')[1] == '2 jobs resumed\n'
    code, out, err = asked(capsys, 'cancel', path, 'now', 'nobody')
    assert code == 1 and out == '1 job cancelled\n' and "there is no job 'nobody'" in err
    assert states(path) == {'odd': 'pending', 'nightly': 'pending'}


def test_deeds_by_filter_ask_first(capsys, path, monkeypatch):
    monkeypatch.setattr('sys.stdin', io.StringIO())
    code, _, err = asked(capsys, 'cancel', path, '--all')
    assert code == 2 and 'cancel 3 jobs? Nothing was done: say so with --yes' in err
    assert asked(capsys, 'cancel', path, '--all', '--dry-run')[1] == '3 jobs would be cancelled\n'
    assert len(states(path)) == 3
    assert asked(capsys, 'cancel', path, '--channel', 'slow', '--yes')[1] == '1 job cancelled\n'
    code, _, err = asked(capsys, 'cancel', path)
    assert code == 2 and 'name jobs, or say which by filters, or --all' in err
    assert asked(capsys, 'hold', path, '--channel', 'none')[:2] == (0, '0 jobs held\n')
    assert len(states(path)) == 2


def test_somebody_at_a_terminal_is_asked(capsys, path, monkeypatch):
    class Terminal:
        def isatty(self):
            return True

        def readline(self):
            return self.answer

    terminal = Terminal()
    monkeypatch.setattr('sys.stdin', terminal)
    terminal.answer = '\n'
    assert asked(capsys, 'hold', path, '--all')[:2] == (0, '0 jobs held\n')
    terminal.answer = 'y\n'
    code, out, err = asked(capsys, 'hold', path, '--all')
    assert (code, out) == (0, '2 jobs held\n') and 'hold 2 jobs? [y/N]' in err


def test_queues(capsys, path):
    assert asked(capsys, 'pause', path, '--until', '30M')[1].startswith("queue '' is paused until")
    assert 'is paused until' in asked(capsys, 'why', path, 'now')[1]
    assert asked(capsys, 'unpause', path)[1] == "queue '' hands out jobs again\n"
    assert asked(capsys, 'quota', path, 'index', '3')[1] == 'quota index has the size 3\n'
    assert asked(capsys, 'quota', path, 'index', '--remove')[1] == 'quota index is removed\n'
    assert asked(capsys, 'clear', path, '--yes')[1] == '2 jobs were taken out\n'
    assert states(path) == {'odd': 'held'}
    code, _, err = asked(capsys, 'agent', path, 'main', '--size', '4')
    assert code == 2 and "there is no agent like 'main'" in err


def test_put(capsys, path):
    code, out, _ = asked(capsys, 'put', path, 'operator:concat', '"a"', 'b', '--id', 'ab')
    assert code == 0 and as_json(capsys, 'job', path, 'ab')['args'] == ["'a'", "'b'"]
    assert int(out) == as_json(capsys, 'job', path, 'ab')['oid']
    code, _, err = asked(capsys, 'put', path, 'no_such:thing')
    assert code == 2 and 'no_such' in err


def test_maintenance(capsys, path):
    assert 'would be forgotten' in asked(capsys, 'prune', path, '--dry-run')[1]
    assert as_json(capsys, 'prune', path) == {'jobs': 0, 'dispatchers': []}
    assert asked(capsys, 'pack', path, '--days', '0')[1].startswith('packed: ')


def test_examinations(capsys, path):
    code, out, _ = asked(capsys, 'doctor', path)
    assert code == 1 and 'jobs are due and no dispatcher serves it' in out
    assert asked(capsys, 'health', path)[0] == 1
    assert asked(capsys, 'lint', path)[0] == 0
    db = open_database(path)
    with db.transaction() as connection:
        next(iter(connection.root()[KEY][''])).callable = vanishing
    db.close()
    name, globals()['vanishing'] = vanishing, None
    try:
        code, out, err = asked(capsys, 'lint', path)
        assert code == 1 and 'vanishing' in out and '1 of 3 waiting jobs' in out
        del globals()['vanishing']
        assert 'vanishing' in asked(capsys, 'lint', path)[1]
    finally:
        globals()['vanishing'] = name


def vanishing():
    return status.PENDING


@pytest.mark.parametrize(
    'words, said',
    [
        (['jobs', 'no.fs'], 'no.fs: there is no such file'),
        (['jobs'], 'which database? Name it, or set ZODBJOBS_URI'),
        (['jobs', 'PATH', 'waiting'], "'waiting' is no state"),
        (['jobs', 'PATH', 'pending', '--ended', '1H'], 'jobs that are pending have no time'),
        (['jobs', 'PATH', '--ended', 'soon'], "'soon' is no time"),
        (['job', 'PATH'], 'name one job'),
        (['quota', 'PATH'], 'name a quota'),
        (['quota', 'PATH', 'x', 'many'], "'many' is no whole number"),
        (['status', 'PATH', 'x'], 'what is x?'),
        (['pause', 'PATH', '--queue', 'x'], "there is no queue 'x'"),
    ],
    ids=words_of,
)
def test_bad_input_is_one_line(capsys, path, words, said):
    code, out, err = asked(capsys, *[path if word == 'PATH' else word for word in words])
    assert (code, out) == (2, '') and said in err and err.count('\n') == 1


def test_the_environment_names_the_database(capsys, path, monkeypatch):
    monkeypatch.setenv(source.VARIABLE, path)
    assert asked(capsys, 'count', 'pending')[1] == '2\n'
    assert as_json(capsys, 'why', 'odd')['why'].startswith('it is held')
    assert asked(capsys, 'count', '--db', path, 'held')[1] == '1\n'


def test_looking_leaves_nothing_behind(capsys, path):
    """Neither a lock that would keep a worker out, nor a change of the file."""
    folder = os.path.dirname(path)
    before = {name: os.stat(os.path.join(folder, name)).st_mtime_ns for name in os.listdir(folder)}
    for command in ('status', 'jobs', 'count', 'stats', 'doctor', 'health', 'lint', 'next'):
        asked(capsys, command, path)
    after = {name: os.stat(os.path.join(folder, name)).st_mtime_ns for name in os.listdir(folder)}
    after.pop('Data.fs.lock', None), before.pop('Data.fs.lock', None)
    assert after == before


def test_completion(capsys):
    for shell in ('bash', 'zsh', 'fish'):
        code, out, _ = asked(capsys, 'completion', shell)
        assert code == 0 and 'zodbjobs completion words' in out
    assert 'jobs' in asked(capsys, 'completion', 'words')[1].split()
    words = asked(capsys, 'completion', 'words', 'jobs')[1].split()
    assert {'--limit', '--json', 'pending'} <= set(words)


def test_tables_are_styled_on_a_terminal(monkeypatch, path, capsys):
    """What stands in a table is the same with rich and without."""
    pytest.importorskip('rich')
    from zodbjobs.cli import tables

    columns = [('STATE', lambda row: row[0]), ('N', lambda row: row[1])]
    rows = [('failed', 12), ('held', None)]
    plain = tables.table_text(columns, rows).split()
    monkeypatch.setattr('sys.stdout.isatty', lambda: True)
    rich = re.sub('\x1b\\[[0-9;]*m', '', tables.table_text(columns, rows))
    assert [word for word in rich.split() if word.isalnum()] == plain
    transaction.abort()
