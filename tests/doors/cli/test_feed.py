"""``zodbjobs feed``: its deeds, in this process and as a process of its own."""

import json
import subprocess
import sys
import urllib.request

import pytest

from zodbjobs import Feeds
from zodbjobs.cli import main as cli
from zodbjobs.runtime.address import open_database
from zodbjobs.testing import storages


@pytest.fixture
def uri(tmp_path):
    return f'file:{tmp_path / "Data.fs"}'


@pytest.fixture
def feed(uri, capsys):
    """Runs ``zodbjobs feed DEED URI words``; gives (code, what it printed)."""

    def run(deed, *words):
        code = cli.main(['feed', deed, uri, *words])
        out, run.err = capsys.readouterr()
        return code, out

    return run


def test_publish_makes_what_is_missing(feed):
    code, id = feed('publish', 'news', 'hello')
    assert code == 0 and len(id.strip()) == 32
    assert feed('publish', 'news', 'with id', '--id', 'a')[0] == 0
    assert feed('items', 'news') == (0, f'{id.strip()}\thello\na\twith id\n')
    assert feed('item', 'news', 'a') == (0, 'with id\n')
    assert feed('retract', 'news', 'a')[0] == 0
    assert feed('list') == (0, 'news\t\tfeed\t1\n')


def test_json_goes_in_and_out(feed):
    feed('publish', 'news', '{"a": [1, null]}', '--json', '--id', 'x')
    assert json.loads(feed('items', 'news', '--json')[1]) == [
        {'id': 'x', 'item': {'a': [1, None]}}
    ]  # fmt: skip
    rows = json.loads(feed('notices', 'news', '--json')[1])
    assert [row['kind'] for row in rows] == ['publish']
    since = rows[0]['number']
    feed('retract', 'news', 'x')
    _, out = feed('notices', '--since', since, '--json')
    assert [row['kind'] for row in json.loads(out)] == ['retract']
    code, _ = feed('publish', 'news', 'no json', '--json')
    assert code == 2 and 'the item is no JSON' in feed.err


def test_settings(feed):
    assert feed('create', 'news', '--max-length', '2')[1] == 'type: feed\nmax_length: 2\n'
    assert feed('setconfig', 'news', '{"max_length": 3}')[0] == 0
    assert json.loads(feed('getconfig', 'news', '--json')[1]) == {'type': 'feed', 'max_length': 3}
    assert feed('create', 'line', '--type', 'queue')[0] == 0
    feed('publish', 'line', 'message')
    assert feed('get', 'line') == (0, 'message\n')
    assert feed('get', 'line')[0] == 1
    assert feed('delete', 'line') == (0, '')
    assert feed('list')[1] == 'news\t\tfeed\t0\n'


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        (['items', 'nothing'], "no feed 'nothing'"),
        (['item', 'news', 'x'], "no item 'x'"),
        (['retract', 'news', 'x'], "no item 'x'"),
        (['create', 'news'], 'there is a feed'),
        (['publish', 'news'], 'URI NAME ITEM'),
        (['list', 'news'], "what is 'news'?"),
        (['get', 'news'], 'not a queue'),
        (['setconfig', 'news', '{"lease": 1}'], 'no setting'),
        (['list', '--key', 'elsewhere'], 'no feeds at root'),
    ],
    ids=lambda value: '-'.join(value) if isinstance(value, list) else '',
)
def test_what_is_wrong_is_said(feed, words, said):
    feed('create', 'news')
    code, out = feed(*words)
    assert code == 2 and out == '' and said in feed.err


def test_another_place_in_the_root(feed, uri):
    db = open_database(uri)
    with db.transaction() as connection:
        connection.root()['here'] = Feeds()
    db.close()
    feed('publish', 'news', 'hello', '--key', 'here')
    assert feed('list', '--key', 'here')[1] == 'news\t\tfeed\t1\n'


@pytest.mark.processes
def test_follow_and_serve_as_processes(tmp_path):
    """What one process publishes is printed by another, and served by a third."""
    with storages.zeo_database(tmp_path) as place:
        run = [sys.executable, '-m', 'zodbjobs', 'feed']
        publish = lambda item: subprocess.run(  # noqa: E731
            [*run, 'publish', place.uri, 'news', item], check=True, capture_output=True
        )
        publish('first')
        numbers = subprocess.run(
            [*run, 'notices', place.uri, '--json'], check=True, capture_output=True
        )
        since = json.loads(numbers.stdout)[-1]['number']
        follow = subprocess.Popen(
            [*run, 'follow', place.uri, 'news', '--since', since, '--count', '2', '--json'],
            stdout=subprocess.PIPE,
        )
        server = subprocess.Popen(
            [*run, 'serve', place.uri, '--port', '0'], stderr=subprocess.PIPE, text=True
        )
        try:
            address = server.stderr.readline().split()[-1]
            publish('second')
            events = urllib.request.urlopen(f'{address}events?since={since}', timeout=30)
            publish('third')
            told = [json.loads(line)['item'] for line in follow.stdout]
            assert told == ['second', 'third'] and follow.wait(30) == 0
            data = [line for line in (events.readline() for _ in range(12)) if b'data' in line]
            assert [json.loads(line[6:])['item'] for line in data] == ['second', 'third']
            events.close()
            server.terminate()
            assert server.wait(30) == 0
        finally:
            for process in (follow, server):
                process.kill()
                process.wait()
                for pipe in (process.stdout, process.stderr):
                    if pipe is not None:
                        pipe.close()
