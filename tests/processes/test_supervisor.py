"""``zodbjobs run -n``: workers and their ZEO server are killed, recycled and stopped."""

import contextlib
import json
import os
import signal

import pytest

from tests.processes.conftest import PATIENCE_SECONDS
from tests.processes.work import count, count_slowly
from zodbjobs.cli import supervisor
from zodbjobs.cli.main import main
from zodbjobs.runtime import shared_file
from zodbjobs.runtime.address import open_database
from zodbjobs.testing.waiting import wait_until


class Place:
    """What `Site` wants to know of a database: here a file that a supervisor shares."""

    def __init__(self, path):
        self.uri = str(path)
        self.db = open_database(self.uri)

    def reopen(self):
        with contextlib.suppress(Exception):
            self.db.close()
        assert wait_until(lambda: shared_file.answered_uri(self.uri), PATIENCE_SECONDS)
        self.db = open_database(self.uri)
        return self.db

    def close(self):
        self.db.close()


@pytest.fixture
def site(tmp_path, monkeypatch):
    from tests.processes.conftest import Site

    monkeypatch.setenv('ZODBJOBS_LOCK_DIR', str(tmp_path / 'locks'))
    with contextlib.closing(Site(Place(tmp_path / 'Data.fs'), tmp_path)) as found:
        yield found


def start(site, *options):
    """Put the file into the hands of a supervisor; returns it when its workers are ready."""
    site.leave()
    office = site.worker('-n', '2', '--threads', '2', *options)
    assert wait_until(lambda: len(ready(office)) == 2, PATIENCE_SECONDS), site.said()
    site.come_back()
    return office


def state(office):
    """What the file of a supervisor says of it, {} while it has none."""
    found = [each for each in supervisor.states() if each['pid'] == office.pid]
    return found[0] if found else {}


def ready(office):
    """{name: process id} of the workers that tell of themselves."""
    return {
        each['name']: each['pid']
        for each in state(office).get('workers', ())
        if each.get('uuids') and each['state'] == 'running'
    }


def test_workers_and_the_server_are_killed_and_the_work_is_done(site):
    site.put(*[(count_slowly, 0.02)] * 40)
    office = start(site)
    site.until_done(*range(3))
    os.kill(ready(office)['worker 1'], signal.SIGKILL)
    site.until_done(*range(20))
    os.kill(state(office)['servers'][0]['pid'], signal.SIGKILL)
    site.come_back()
    site.until_done()
    assert site.counted() == {1: 40}
    assert wait_until(lambda: len(ready(office)) == 2, PATIENCE_SECONDS), site.said()
    office.tell_to_stop()
    assert office.wait() == 0, site.said()
    assert state(office) == {}
    assert not shared_file.is_answered(shared_file.socket_of(site.place.uri))


def test_all_are_recycled_one_by_one(site, capsys):
    """Meanwhile the status names them."""
    office = start(site)
    former = ready(office)
    assert main(['status', site.place.uri]) == 0
    assert f'supervisor, process {office.pid}' in capsys.readouterr().out
    assert main(['status', site.place.uri, '--json']) == 0
    (shown,) = json.loads(capsys.readouterr().out)['supervisors']
    assert {worker['pid'] for worker in shown['workers']} == set(former.values())
    office.process.send_signal(signal.SIGHUP)

    def all_are_new():
        found = ready(office)
        return len(found) == 2 and not set(found.values()) & set(former.values())

    assert wait_until(all_are_new, PATIENCE_SECONDS), site.said()
    site.put(*[(count,)] * 5)
    site.until_done()
    assert site.counted() == {1: 5}


def test_a_worker_that_has_done_enough_is_replaced(site):
    office = start(site, '--max-jobs', '10')
    former = ready(office)
    site.put(*[(count,)] * 40)
    site.until_done()

    def somebody_is_new():
        found = ready(office)
        return len(found) == 2 and found != former

    assert wait_until(somebody_is_new, PATIENCE_SECONDS), site.said()
    assert 'jobs' in site.said()
    assert site.counted() == {1: 40}
    assert {job.interruptions for job in site.jobs()} == {0}


def test_a_second_one_joins_and_takes_over_when_the_first_has_gone(site):
    """So does a single worker, and every other command."""
    first = start(site, '--grace', '1')
    second = site.worker('-n', '1')
    single = site.worker()
    assert wait_until(lambda: len(ready(second)) == 1, PATIENCE_SECONDS), site.said()
    assert wait_until(lambda: 'begins to serve' in single.log.read_text(), PATIENCE_SECONDS)
    assert 'pid' not in state(second)['servers'][0]
    first.kill()
    assert wait_until(lambda: 'pid' in state(second)['servers'][0], 90), site.said()
    site.come_back()
    site.put(*[(count,)] * 5)
    site.until_done()
    assert site.counted() == {1: 5}


def test_a_supervisor_that_is_killed_leaves_nobody_behind(site):
    office = start(site)
    found = [*ready(office).values(), state(office)['servers'][0]['pid']]
    site.leave()
    office.kill()

    def are_gone():
        return not any(_is_alive(pid) for pid in found)

    assert wait_until(are_gone, PATIENCE_SECONDS), site.said()


def _is_alive(pid):
    try:
        with open(f'/proc/{pid}/stat') as stat:
            return stat.read().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def test_a_wrong_path_is_told_once_and_not_tried_for_ever(site):
    site.leave()
    office = site.worker('-n', '1', '--path', 'no_such_module_anywhere')
    assert office.wait() == 2
    assert site.said().count('no folder, and no module') == 1
