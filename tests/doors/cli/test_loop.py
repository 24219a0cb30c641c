"""``zodbjobs loop``: what it says of loops in a file, and what it changes there."""

import json

import pytest

from zodbjobs import Loop, LoopRunner, Loops, Queue, Queues
from zodbjobs.cli.main import main
from zodbjobs.interfaces import KEY, LOOPS_KEY
from zodbjobs.runtime.address import open_database

pytestmark = pytest.mark.usefixtures('no_default')


@pytest.fixture
def path(tmp_path):
    """A file with loops of numbers and of texts, one with a runner, and one kept elsewhere."""
    path = str(tmp_path / 'Data.fs')
    with open_database(path).transaction() as connection:
        root = connection.root()
        root[KEY] = Queues()
        root[KEY][''] = Queue()
        loops = root[LOOPS_KEY] = Loops()
        loops['users'], loops['pages'], root['app'] = Loop(), Loop(), {'ids': Loop()}
        connection.add(root[KEY][''])
        loops['users'].add(range(10))
        loops['users'].did([1, 2])
        loops['users'].get(3)
        loops['pages'].add(['/', '7'])
        LoopRunner(loops['pages'], print, fresh=60).start(root[KEY][''])
    connection.db().close()
    return path


def asked(capsys, *words):
    """(exit code, stdout, stderr) of a command."""
    code = main(['loop', *words])
    return code, *capsys.readouterr()


def as_json(capsys, *words):
    code, out, _ = asked(capsys, *words, '--json')
    assert code == 0
    return json.loads(out)


def test_list(capsys, path):
    pages, users = as_json(capsys, 'list', path)
    assert (users['name'], users['total'], users['locked'], users['runners']) == (
        'users',
        10,
        3,
        [],
    )
    assert pages['runners'][0]['call'] == 'builtins.print'
    code, out, _ = asked(capsys, 'list', path)
    assert code == 0 and out.splitlines()[0].split()[:2] == ['LOOP', 'IDS']
    assert 'builtins.print: 0 jobs' in out


def test_stats(capsys, path):
    stats = as_json(capsys, 'stats', path, 'users')
    assert (stats['total'], stats['never_updated'], stats['older_than_day']) == (10, 8, 0)
    assert (stats['min_id'], stats['max_id']) == (0, 9)
    _, out, _ = asked(capsys, 'stats', path, 'users')
    assert 'older than week  0' in out and 'max lock time' in out


def test_check(capsys, path):
    rows = as_json(capsys, 'check', path, 'users', '1', '9', '77')
    assert [row['id'] for row in rows] == [1, 9]
    assert rows[0]['updated_seconds'] > 0 and rows[1]['updated_seconds'] is None
    assert len(as_json(capsys, 'check', path, 'users')) == 10
    assert as_json(capsys, 'check', path, 'users', '--failing') == []
    _, out, _ = asked(capsys, 'check', path, 'users', '1', '9')
    assert ' ago' in out and 'never' in out
    assert asked(capsys, 'check', path, 'users', '77')[1] == 'none\n'


def test_deeds_are_stored(capsys, path):
    assert asked(capsys, 'add', path, 'users', '10', '11', '1')[:2] == (0, '2 added\n')
    assert asked(capsys, 'remove', path, 'users', '0', '77')[:2] == (0, '1 removed\n')
    assert asked(capsys, 'bump', path, 'users', '11', '0', '--lock-for=-60')[:2] == (
        0,
        '1 bumped\n',
    )
    (row,) = as_json(capsys, 'check', path, 'users', '11')
    assert row['locked_seconds'] < -59
    assert as_json(capsys, 'stats', path, 'users')['total'] == 11


def test_a_bump_at_random_and_one_that_takes_over(capsys, path):
    bump = ['bump', path, 'users']
    assert asked(capsys, *bump, '8', '9', '--lock-for', '60:90')[:2] == (0, '2 bumped\n')
    rows = as_json(capsys, 'check', path, 'users', '8', '9')
    assert all(50 < row['locked_seconds'] <= 90 for row in rows)
    taken = [r['id'] for r in as_json(capsys, 'check', path, 'users') if r['locked_seconds']]
    words = [*map(str, taken), '--take-over', '--lock-for=-5:0']
    assert asked(capsys, *bump, *words)[:2] == (0, '5 bumped\n')
    stats = as_json(capsys, 'stats', path, 'users')
    assert (stats['locked'], stats['bumped'], stats['failing']) == (0, 5, 0)
    with pytest.raises(SystemExit):
        asked(capsys, *bump, '8', '--lock-for', '9:x')


def test_a_loop_is_made(capsys, path, tmp_path):
    assert asked(capsys, 'create', path, 'new')[:2] == (0, 'new created\n')
    assert as_json(capsys, 'add', path, 'new', 'a', 'b') == {'count': 2}
    assert 'there is a loop' in asked(capsys, 'create', path, 'new')[2]
    assert 'is no key of it' in asked(capsys, 'create', path, '/app/x')[2]
    assert 'without ids' in asked(capsys, 'create', path, 'newer', '1')[2]
    other = str(tmp_path / 'Other.fs')
    open_database(other).close()
    assert as_json(capsys, 'create', other, 'first') == {'name': 'first'}
    assert [row['name'] for row in as_json(capsys, 'list', other)] == ['first']


def test_ids_are_read_as_those_that_are_there(capsys, path):
    assert [row['id'] for row in as_json(capsys, 'check', path, 'pages', '7', '/')] == ['7', '/']
    assert as_json(capsys, 'add', path, '/app/ids', '[3, 4]', '[1, 2]') == {'count': 2}
    assert as_json(capsys, 'stats', path, '/app/ids')['min_id'] == '(1, 2)'


@pytest.mark.parametrize(
    'words, said',
    [
        (['stats'], 'which loop?'),
        (['bump', 'users'], 'which ids?'),
        (['stats', 'nobody'], "there is no loop 'nobody'; at 'zodbjobs.loops'"),
        (['stats', '/app/nobody'], "there are ['pages', 'users']"),
        (['add', 'users', 'x'], "'x' cannot be an id here"),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else None,
)
def test_what_was_asked_wrongly(capsys, path, words, said):
    code, out, err = asked(capsys, words[0], path, *words[1:])
    assert code == 2 and not out and said in err


def test_a_database_without_queues_may_have_loops(capsys, tmp_path):
    path = str(tmp_path / 'Data.fs')
    with open_database(path).transaction() as connection:
        connection.root()[LOOPS_KEY] = Loops()
    connection.db().close()
    assert as_json(capsys, 'list', path) == []
