"""The demo, run as a user runs it: on small folders, in this process and in others."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import types

import pytest
import ZODB

from zodbjobs import Job
from zodbjobs.cli import demo, staff
from zodbjobs.cli.codeindex import CodeIndex, parse, scan
from zodbjobs.cli.main import main
from zodbjobs.cli.output import CommandError
from zodbjobs.interfaces import KEY
from zodbjobs.runtime.address import open_database

BROKEN = 'print "hello"\n'


@pytest.fixture
def folder(tmp_path):
    """Twelve sources, one of them broken."""
    place = tmp_path / 'sources'
    for number in range(11):
        write(
            place, f'pkg{number % 3}/module{number}.py', f'class Seal{number}:\n    """Otter."""\n'
        )
    write(place, 'bad.py', BROKEN)
    return place


@pytest.fixture
def database(tmp_path):
    return str(tmp_path / 'var' / 'Data.fs')


def write(place, path, text):
    file = place / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def text_of(path):
    with open(path) as file:
        return file.read()


def run(capsys, *words):
    """Run the demo here; returns (exit code, its JSON, stderr)."""
    code = main(['demo', *map(str, words), '--json'])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


def opened(database):
    return open_database(f'file:{database}?read_only=1')


def stored(database, folder):
    """What the index in the database holds, and what one made without jobs would hold."""
    fresh = CodeIndex(str(folder))
    for path, stamp in scan(folder).items():
        try:
            fresh.add([parse(str(folder), path, stamp)])
        except SyntaxError as error:
            fresh.add_broken(path, stamp, f'SyntaxError: {error}')
    db = opened(database)
    with db.transaction() as connection:
        kept = plain(connection.root()[demo.INDEXES][str(folder)])
    db.close()
    return kept, plain(fresh)


def plain(index):
    paths = index._paths
    postings = (
        {word: sorted(paths[n] for n in numbers) for word, numbers in tree.items()}
        for tree in (index._words, index._definitions)
    )
    return *postings, index.summary(), index.broken(), index.changes(scan(index.folder))


# One run after the other -------------------------------------------------------------------


def test_the_first_run_indexes_everything(capsys, folder, database):
    code, report, err = run(capsys, folder, '--db', database)
    assert code == 0 and 'files: 12 of 12' in err
    assert report['folder'] == str(folder)
    assert {name: report['index'][name] for name in ('files', 'symbols', 'lines', 'broken')} == {
        'files': 11, 'symbols': 11, 'lines': 22, 'broken': 1,
    }  # fmt: skip
    jobs = report['jobs']
    assert jobs['done'] == 12 + 2 + 3 and jobs['failed'] == 1
    assert jobs['retried'] == jobs['conflicts'] == 0 and jobs['per second'] > 0
    ((path, why),) = report['broken']
    assert path == 'bad.py' and why.startswith('SyntaxError: Missing parentheses')
    assert 0 < report['put to start']['p50'] <= report['put to start']['p95'] < 5
    assert report['waited for a turn']['p50'] > 0 and report['lost'] == []
    assert report['database'] == {'file': database, 'bytes': os.path.getsize(database)}
    assert report['sample']['hits'][0]['name'].lower() == report['sample']['word']
    kept, fresh = stored(database, folder)
    assert kept == fresh


def test_the_second_run_reads_what_has_changed_only(capsys, folder, database):
    run(capsys, folder, '--db', database)
    code, report, err = run(capsys, folder, '--db', database)
    assert code == 0 and 'nothing has changed' in err
    assert report['jobs']['done'] == report['jobs']['failed'] == 0
    assert report['index']['files'] == 11 and report['put to start']['p50'] is None
    assert [path for path, why in report['broken']] == ['bad.py']  # told, not read again

    write(folder, 'pkg1/module1.py', 'class Walrus: pass\n')
    write(folder, 'bad.py', 'print("hello")\n')
    write(folder, 'pkg2/new.py', BROKEN)
    (folder / 'pkg0/module0.py').unlink()
    code, report, err = run(capsys, folder, '--db', database)
    assert code == 0 and report['jobs']['done'] == 3 + 2 + 3 and report['jobs']['failed'] == 1
    kept, fresh = stored(database, folder)
    assert kept == fresh


def test_a_removed_file_alone_is_a_change(capsys, folder, database):
    run(capsys, folder, '--db', database)
    (folder / 'bad.py').unlink()
    (folder / 'pkg0/module0.py').unlink()
    code, report, err = run(capsys, folder, '--db', database)
    assert code == 0 and report['index']['files'] == 10 and report['broken'] == []
    kept, fresh = stored(database, folder)
    assert kept == fresh


def test_batches_enter_the_index_one_at_a_time(capsys, folder, database, monkeypatch):
    monkeypatch.setattr(demo, 'BATCH', 2)
    code, report, err = run(capsys, folder, '--db', database, '--threads', '4')
    assert code == 0 and report['jobs']['done'] == 12 + 2 * 6 + 3
    assert report['jobs']['conflicts'] == 0
    kept, fresh = stored(database, folder)
    assert kept == fresh


def test_fresh_and_limit(capsys, folder, database):
    run(capsys, folder, '--db', database)
    code, report, err = run(capsys, folder, '--db', database, '--fresh', '--limit', '4')
    assert code == 0 and report['index']['files'] == 3 and len(report['broken']) == 1
    assert report['jobs']['done'] == 4 + 2 + 3
    code, report, err = run(capsys, folder, '--db', database)
    assert report['index']['files'] == 11 and report['jobs']['done'] == 8 + 2 + 3


def test_two_folders_in_one_database(capsys, folder, database, tmp_path):
    write(tmp_path / 'other', 'a.py', 'class Seal1: pass\n')
    run(capsys, folder, '--db', database)
    code, report, err = run(capsys, tmp_path / 'other', '--db', database)
    assert report['index']['files'] == 1
    code, hits, err = run(capsys, 'search', 'Seal1', '--db', database)
    assert {os.path.dirname(hit['file']) for hit in hits if hit['line']} == {
        str(tmp_path / 'other'), str(folder / 'pkg1'),
    }  # fmt: skip


def test_an_empty_folder(capsys, tmp_path, database):
    (tmp_path / 'empty').mkdir()
    code, report, err = run(capsys, tmp_path / 'empty', '--db', database)
    assert code == 0 and report['index']['files'] == 0 and report['sample']['hits'] == []


def test_the_report_for_people(capsys, folder, database):
    assert main(['demo', str(folder), '--db', database]) == 0
    out = capsys.readouterr().out
    for text in (
        'index         11 files, 22 lines, 11 symbols,',
        'jobs          17 done, 1 failed, 0 retried, 0 conflicts\n',
        'speed         ',
        'put to start  p50 ',
        f' in {database}\n',
        'not readable  1 files:\n  bad.py: SyntaxError: Missing',
        'zodbjobs demo search seal10\n  pkg1/module10.py:1',
    ):
        assert text in out
    assert main(['demo', str(folder), '--db', database]) == 0
    assert 'put to start' not in capsys.readouterr().out  # nothing was done


# Going on ----------------------------------------------------------------------------------


def put_without_workers(database, folder):
    """What a run leaves that is stopped right after it has put its jobs."""
    demo.make_database(database, str(folder), fresh=False)
    db = open_database(f'file:{database}')
    desk = demo.Desk(db, str(folder))
    assert desk.put(None)
    assert desk.is_unfinished() and desk.size() == 12 and desk.done() == 0
    desk.close()
    db.close()


def test_an_unfinished_run_is_finished_and_not_doubled(capsys, folder, database):
    put_without_workers(database, folder)
    code, report, err = run(capsys, folder, '--db', database)
    assert code == 0 and 'going on where the last run stopped: 0 of 12 files\n' in err
    assert report['jobs']['done'] == 12 + 2 + 3
    kept, fresh = stored(database, folder)
    assert kept == fresh


def test_what_changed_meanwhile_is_read_after_that(capsys, folder, database):
    put_without_workers(database, folder)
    write(folder, 'new.py', 'class Walrus: pass\n')
    code, report, err = run(capsys, folder, '--db', database)
    assert code == 0 and report['jobs']['done'] == (12 + 2 + 3) + (1 + 2 + 3)
    kept, fresh = stored(database, folder)
    assert kept == fresh


def test_a_run_whose_job_was_taken_out_is_not_waited_for(folder, database):
    put_without_workers(database, folder)
    db = open_database(f'file:{database}')
    with db.transaction() as connection:
        connection.root()[KEY][''].pull()
    desk = demo.Desk(db, str(folder))
    assert not desk.is_unfinished()
    assert desk.put(None)
    desk.close()
    db.close()


@pytest.mark.processes
@pytest.mark.parametrize('stop', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_cleanly_and_the_next_run_goes_on(capsys, tmp_path, database, stop):
    """On a part of the standard library: enough to be in the middle of it."""
    place = tmp_path / 'library'
    for package in ('asyncio', 'email', 'json'):
        shutil.copytree(os.path.join(demo.LIBRARY, package), place / package)
    process = subprocess.Popen(
        [sys.executable, '-m', 'zodbjobs', 'demo', str(place), '--db', database],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = os.path.join(os.path.dirname(database), 'demo.log')
    while not (os.path.exists(log) and 'parse' in text_of(log)):
        staff.pause(0.02)
        assert process.poll() is None
    process.send_signal(stop)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == ''
    assert err.endswith('the rest waits in the database\ninterrupted\n')
    assert 'has stopped' in text_of(log)
    code, report, err = run(capsys, place, '--db', database)
    assert code == 0 and 'going on' in err and report['lost'] == []
    assert report['jobs']['retried'] == 0
    kept, fresh = stored(database, place)
    assert kept == fresh


# Several processes -------------------------------------------------------------------------


@pytest.mark.processes
def test_workers_on_a_server(capsys, folder, database):
    code, report, err = run(capsys, folder, '--db', database, '--workers', '2')
    assert code == 0 and report['jobs']['done'] == 17 and report['lost'] == []
    assert report['put to start']['p50'] > 0
    place = os.path.dirname(database)
    for log in ('worker-1.log', 'worker-2.log'):
        assert 'has stopped' in text_of(os.path.join(place, log))
    assert 'has stopped' in text_of(os.path.join(place, 'zeo.log'))
    kept, fresh = stored(database, folder)
    assert kept == fresh
    code, report, err = run(capsys, folder, '--db', database)  # and now without a server
    assert code == 0 and 'nothing has changed' in err


class Ended:
    """Stands for processes that have ended soon after their start, so often in turn."""

    def __init__(self, *often, server=0):
        self.workers = [types.SimpleNamespace(soon=count) for count in often]
        self.servers = [types.SimpleNamespace(post=types.SimpleNamespace(soon=server))]


def test_one_worker_is_enough_and_none_is_not(tmp_path):
    log = tmp_path / 'worker-1.log'
    log.write_text('first\nit is shut\n')
    logs = [str(log), str(tmp_path / 'none.log')]
    staff.check(Ended(staff.ENOUGH_ENDS, 0), logs)
    with pytest.raises(CommandError, match='worker-1.log ends: it is shut$'):
        staff.check(Ended(staff.ENOUGH_ENDS, staff.ENOUGH_ENDS), logs)
    with pytest.raises(CommandError, match='end as soon as they are started'):
        staff.check(Ended(0, 0, server=staff.ENOUGH_ENDS), [])


# Asking ------------------------------------------------------------------------------------


def test_search(capsys, folder, database):
    run(capsys, folder, '--db', database)
    code, hits, err = run(capsys, 'search', 'Seal3', '--db', database)
    assert code == 0
    assert hits == [
        {
            'file': str(folder / 'pkg0/module3.py'),
            'path': 'pkg0/module3.py',
            'line': 1,
            'kind': 'class',
            'name': 'Seal3',
        }
    ]
    code, hits, err = run(capsys, 'search', '--db', database, 'otter', '--limit', '3')
    assert code == 0 and len(hits) == 3 and {hit['line'] for hit in hits} == {None}
    assert main(['demo', 'search', 'otter', 'seal3', '--db', database]) == 0
    assert capsys.readouterr().out.split() == ['pkg0/module3.py:1', 'class', 'Seal3']


def test_search_finds_nothing(capsys, folder, database):
    run(capsys, folder, '--db', database)
    assert main(['demo', 'search', 'walrus', 'otter', '--db', database]) == 1
    assert capsys.readouterr() == ('', 'nothing found for walrus otter\n')


def test_search_while_the_database_is_in_use(capsys, folder, database):
    run(capsys, folder, '--db', database)
    db = open_database(f'file:{database}')
    code, hits, err = run(capsys, 'search', 'Seal3', '--db', database)
    db.close()
    assert code == 0 and len(hits) == 1


# Bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'words, said',
    [
        (['no-such-folder'], 'there is no folder '),
        (['.', '.'], 'one folder at a time, not 2'),
        (['search'], 'search for what?'),
        (['search', 'x', '--db', 'no-such-file'], 'there is no no-such-file: run "zodbjobs demo"'),
    ],
)
def test_wrong_questions(capsys, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    assert main(['demo', *words]) == 2
    out, err = capsys.readouterr()
    assert out == '' and err.startswith(f'zodbjobs demo: {said}') and err.count('\n') == 1


@pytest.mark.parametrize('words', [['--threads', '0'], ['--workers', 'x'], ['--limit', '-1']])
def test_wrong_numbers(capsys, words):
    with pytest.raises(SystemExit) as caught:
        main(['demo', *words])
    assert caught.value.code == 2 and 'invalid positive value' in capsys.readouterr().err


def test_a_database_in_use_is_told(capsys, folder, database):
    demo.make_database(database, str(folder), fresh=False)
    db = open_database(f'file:{database}')
    assert main(['demo', str(folder), '--db', database]) == 2
    db.close()
    assert 'open already' in capsys.readouterr().err


def test_fresh_spares_the_database_of_somebody_else(capsys, folder, database):
    os.makedirs(os.path.dirname(database))
    db = ZODB.DB(database)
    with db.transaction() as connection:
        connection.root()['accounts'] = 'precious'
    db.close()
    assert main(['demo', str(folder), '--db', database, '--fresh']) == 2
    assert 'holds more than this demo (accounts)' in capsys.readouterr().err
    db = ZODB.DB(database)
    with db.transaction() as connection:
        assert connection.root()['accounts'] == 'precious'
    db.close()


def test_something_else_than_a_database(capsys, folder, tmp_path):
    (tmp_path / 'notes.txt').write_text('no database, but some text of a few lines\n' * 20)
    assert main(['demo', str(folder), '--db', str(tmp_path / 'notes.txt'), '--fresh']) == 2
    assert (tmp_path / 'notes.txt').exists()
    assert capsys.readouterr().err.count('\n') == 1


# The jobs, called by hand ------------------------------------------------------------------


def fails():
    raise LookupError('the folder is gone')


def works():
    return {name: [] for name in ('broken', 'ends', 'waits', 'lost')} | {
        'retried': 1, 'conflicts': 2,
    }  # fmt: skip


def test_a_lost_batch_is_told_and_counts(capsys):
    parts = [Job(works), Job(fails), Job(works)]
    for part in parts:
        part()
    report = demo.sum_up(*parts)
    assert report['lost'] == ['LookupError: the folder is gone']
    assert (report['retried'], report['conflicts'], len(report['ends'])) == (2, 4, 3)


def test_a_run_that_failed_as_a_whole_is_an_error(folder, database):
    put_without_workers(database, folder)
    db = open_database(f'file:{database}')
    desk = demo.Desk(db, str(folder))
    with desk.transactions:
        desk.queue.remove(desk.index.run)
        failed = desk.index.run = desk.queue.put(fails)
    with desk.transactions:
        failed.cancel()
        demo.keep_report(desk.index, failed.result)
    with pytest.raises(CommandError, match='the jobs failed: CancelledError'):
        desk.figures()
    desk.close()
    db.close()


def test_start_times_gives_up_without_workers(folder, database, monkeypatch):
    monkeypatch.setattr(demo, 'PROBE_SECONDS', 0.05)
    demo.make_database(database, str(folder), fresh=False)
    db = open_database(f'file:{database}')
    desk = demo.Desk(db, str(folder))
    assert desk.start_times() == []
    desk.close()
    db.close()


def test_no_thread_is_left_behind(capsys, folder, database):
    before = set(threading.enumerate())
    run(capsys, folder, '--db', database)
    left = [t for t in threading.enumerate() if t not in before and t.name.startswith('zodbjobs')]
    for thread in left:
        thread.join(5)  # those that have done their work may be on their way out
    assert not any(thread.is_alive() for thread in left)


def test_the_signal_handlers_are_put_back(capsys, folder, database):
    before = [signal.getsignal(number) for number in staff.SIGNALS]
    run(capsys, folder, '--db', database)
    assert [signal.getsignal(number) for number in staff.SIGNALS] == before


def test_a_cancelled_file_is_broken_and_the_batch_is_not_lost(capsys, folder, database):
    demo.make_database(database, str(folder), fresh=False)
    db = open_database(f'file:{database}')
    with db.transaction() as connection:
        index = connection.root()[demo.INDEXES][str(folder)]
        paths = list(scan(str(folder)).items())[:2]
        reads = [connection.root()[KEY][''].put(Job(parse, str(folder), *item)) for item in paths]
        for read in reads:
            read.cancel()
        figures = demo.add_parsed(index, *reads)
        assert [why.partition(':')[0] for path, why in figures['broken']] == 2 * ['CancelledError']
        assert figures['waits'] == [] and len(index.broken()) == 2
    db.close()
