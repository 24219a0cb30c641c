"""The benchmarks run: every part, with tiny numbers.  How fast is for nobody to assert here."""

import io
import json
import platform
import re
import tempfile

import pytest

from benchmarks import __main__ as command
from benchmarks import beanstalk, measure, model, parts, publish, report, scale, storages


@pytest.fixture(scope='module')
def table():
    with storages.file_place() as place:
        return parts.measure(place, scale.TINY)


def named(table, start):
    """The values of the figures whose name begins so."""
    found = [row.figure for row in table.rows if row.figure.name.startswith(start)]
    assert found, f'no figure is named {start!r}'
    return found


def test_every_part_has_figures(table):
    assert {row.part for row in table.rows} == set(parts.PARTS) - {
        'processes',
        'commits',
    }  # a file has one


def test_all_but_plain_figures_stand_beside_the_raw_commit_rate(table):
    for row in table.rows:
        assert (row.ratio is None) == (row.figure.kind == measure.PLAIN), row.figure.name
        assert row.raw.per_second > 0


def test_no_job_needs_more_than_a_commit_of_its_own_and_its_share_of_a_claim(table):
    for figure in named(table, 'jobs'):
        facts = figure.facts
        assert facts['jobs'] >= 1
        assert 0 < facts['commits_per_job'] < 1.001 + 1 / facts['jobs_per_claim']


def test_producers_meet_no_conflict(table):
    for figure in named(table, 'conflicts'):
        assert figure.facts['transactions'] > 0
        assert figure.value == 0


def test_a_life_is_more_than_its_put_and_less_after_pack(table):
    _, life = named(table, 'the same')
    (kept,) = named(table, 'left of it after pack, while')
    assert life.facts['put'] > 100 and life.facts['run'] > 100
    assert 0 < kept.value < life.value


def test_the_worker_process_did_its_jobs(table):
    assert named(table, f'memory of a worker process after {scale.TINY.worker_jobs} jobs')


def test_a_killed_worker_was_replaced(table):
    (first,) = named(table, 'kill -9 of the only worker to the first')
    (second,) = named(table, 'kill -9 of the only worker to the second')
    assert 0 < first.value <= second.value


@pytest.mark.parametrize('shape', ['waiting', 'scheduled', 'blocked', 'priorities', 'channels'])
def test_every_shape_of_a_backlog_has_every_verb(table, shape):
    from benchmarks import backlog

    names = [row.figure.name for row in table.rows if row.part == 'backlog']
    for verb in backlog.VERBS:
        assert any(name.startswith(f'{verb}, 30') and shape in name for name in names)
    assert 30 in {figure.value for figure in named(table, 'len says, 30 waiting')}


def test_a_run_in_pieces_keeps_what_it_does_not_measure(table):
    known = report.facts()
    whole = report.as_json([table], known, {})
    piece = parts.Table('file', [row for row in table.rows if row.part == 'put'], table.windows)
    other = parts.Table('zeo', piece.rows, table.windows)
    again = json.loads(report.as_json([piece, other], known, {}, whole))
    names = [row['name'] for row in json.loads(whole)['storages']['file']['rows']]
    assert [row['name'] for row in again['storages']['file']['rows']] == names
    assert {row['part'] for row in again['storages']['zeo']['rows']} == {'put'}


def test_what_is_published_has_all_figures_in_tables(table, tmp_path):
    source = tmp_path / 'bench.json'
    source.write_text(report.as_json([table], report.facts(), {}))
    publish.main(['--json', str(source), '--to', str(tmp_path)])
    text = (tmp_path / 'file.txt').read_text()
    for row in table.rows:
        if row.part != 'backlog':
            assert row.figure.name in text
    assert '30 waiting in 10,000 priorities' in (tmp_path / 'file-backlog.txt').read_text()
    assert 'cores' in (tmp_path / 'machine.txt').read_text()
    for path in tmp_path.glob('*.txt'):
        assert docutils_complaints(path.read_text()) == '', path


@pytest.mark.parametrize('hosts', [1, 20])
@pytest.mark.parametrize('writes, commits', [(False, 1), (True, 2)])
def test_the_model_does_no_more_than_its_storage_allows(hosts, writes, commits):
    """Each job was put by a commit, and one that writes has another."""
    storage = model.Storage(serial=0.001, latency=0.001)
    rate, busy = model.Simulation(storage, hosts, 0.001, writes).run()
    assert 0.5 * 1000 / commits < rate < 1.1 * 1000 / commits  # what waited may be ahead a bit
    assert busy > 0.8


def test_the_model_does_no_more_than_its_threads_allow(monkeypatch):
    monkeypatch.setattr(model, 'COMMITS', 2000)
    rate, busy = model.Simulation(model.Storage(0.001, 0.001), 2, 1.0, True).run()
    assert rate == pytest.approx(2 * model.THREADS, rel=0.05)
    assert busy < 0.1
    assert model.knee(model.Storage(0.001, 0.001), 1.0, True) > 20


def test_the_model_is_fed_by_what_was_measured():
    rows = [
        {'part': 'commits', 'name': f'commits of {n}', 'value': rate, 'facts': {'processes': n}}
        for n, rate in ((1, 500), (4, 800))
    ]
    name = 'commits of 1 process beside 8 clients that listen'
    rows.append({'part': 'commits', 'name': name, 'value': 400, 'facts': {}})
    storage = model.Storage.measured({'rows': rows})
    assert storage.serial == 1 / 800 and storage.latency == pytest.approx(1 / 500 - 1 / 800)
    assert storage.cost(9) == pytest.approx(storage.serial + 1 / 400 - 1 / 500)
    assert model.Storage.measured({'rows': []}) is None
    name, storage = model.given('ZEO=480,800')
    assert name == 'ZEO' and 1 / storage.serial == pytest.approx(800)
    assert 1 / (storage.serial + storage.latency) == pytest.approx(480)


@pytest.mark.processes
def test_ours_is_measured_as_its_peers_are(tmp_path, capsys):
    from benchmarks.peers import __main__ as peers

    path = tmp_path / 'peers.json'
    name = 'zodbjobs on FileStorage'
    peers.main(['--only', name, '--rounds', '1', '--jobs', '40', '--json', str(path)])
    printed = capsys.readouterr().out
    found = json.loads(path.read_text())
    assert found['systems'][name]['jobs'] > 0 and found['systems'][name]['puts'] > 0
    assert found['missing'] == {} and found['raw']['file'] > 0
    assert name in printed and docutils_complaints(printed) == ''


@pytest.mark.processes
def test_a_peer_that_is_not_there_is_left_out_and_named(tmp_path, capsys, monkeypatch):
    from benchmarks.peers import __main__ as peers
    from benchmarks.peers import systems

    monkeypatch.setattr(systems, 'PEERS_PYTHON', tmp_path / 'no' / 'python')
    path = tmp_path / 'peers.json'
    peers.main(['--only', 'Huey on SQLite', '--rounds', '1', '--json', str(path)])
    assert 'left out, Huey on SQLite: there is no .venv-peers' in capsys.readouterr().out


def docutils_complaints(text):
    """What docutils has to say against `text`."""
    core = pytest.importorskip('docutils.core')
    warnings = io.StringIO()
    core.publish_doctree(text, settings_overrides={'warning_stream': warnings})
    return warnings.getvalue()


def test_what_is_printed_and_written_has_all_rows_and_no_name_of_the_machine(table):
    text = report.text(table)
    written = report.as_json([table], report.facts(), {})
    for row in table.rows:
        assert row.figure.name in text
    read = json.loads(written)
    assert len(read['storages']['file']['rows']) == len(table.rows)
    assert read['facts']['cores'] > 0
    assert not re.search(rf'\b{re.escape(platform.node())}\b', written)
    assert tempfile.gettempdir() not in written


def test_the_command_measures_what_was_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scale, 'QUICK', scale.TINY)
    path = tmp_path / 'var' / 'bench.json'
    command.main(['--storage', 'file', '--only', 'put', '--json', str(path)])
    assert 'FileStorage' in capsys.readouterr().out
    found = json.loads(path.read_text())
    assert {row['part'] for row in found['storages']['file']['rows']} == {'put'}
    assert found['options'] == {'scale': 'quick', 'parts': ['put']}


def test_a_ratio_says_how_often_the_raw_figure_goes_into_it():
    raw = measure.Raw(per_second=200, bytes_each=150)
    assert measure.Figure('', 100, 'jobs/s', measure.RATE).ratio(raw) == 0.5
    assert measure.Figure('', 0.01, 's', measure.COST).ratio(raw) == 2
    assert measure.Figure('', 600, 'B', measure.SIZE).ratio(raw) == 4
    assert measure.Figure('', 5, '').ratio(raw) is None


@pytest.mark.parametrize(
    'value, kind, text',
    [
        (0.0123, measure.COST, '12.3 ms'),
        (0.0000123, measure.COST, '12.3 us'),
        (1234.5, measure.RATE, '1,234 jobs'),
        (0.0047, measure.PLAIN, '0.0047 jobs'),
    ],
)
def test_figures_are_shown_short(value, kind, text):
    assert report.shown(measure.Figure('', value, 'jobs', kind)) == text


def test_percentiles():
    assert measure.percentile([3, 1, 2, 4], 50) == 2
    assert measure.percentile(range(1, 101), 95) == 95
    assert measure.percentile([7], 99) == 7


def test_the_beanstalk_door_is_measured(capsys):
    beanstalk.main(['--jobs', '20', '--connections', '2', '--rounds', '1'])
    rows = [row for row in capsys.readouterr().out.splitlines() if 'there is no' not in row]
    assert re.fullmatch(r'round 1: \d+ bare commits/s, \d+ synced appends/s', rows[0])
    assert rows[1].split() == ['server', 'connections', 'put/s', 'reserve+delete/s']
    assert re.fullmatch(r'zodbjobs +2 +\d+ +\d+', rows[2])
