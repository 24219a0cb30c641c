"""A worker that lives and does nothing is noticed by its siblings; its jobs stay its own."""

import operator
import os
import signal

import pytest

from tests.processes.work import count, end_when_told
from zodbjobs.interfaces import COMPLETED
from zodbjobs.monitor.doctor import examine, health
from zodbjobs.runtime import witness
from zodbjobs.runtime.liveness import STUCK_SECONDS

NAMES = ('00000000-0000-4000-8000-000000000001', '00000000-0000-4000-8000-000000000002')


def records(site):
    site.client.begin()
    return [site.client.queue.dispatchers[name] for name in NAMES]


def age(name, seconds):
    """Let the file of a worker's lock be older, as if so much time had passed."""
    then = shown(name) - seconds
    os.utime(lock_of(name), (then, then))


def shown(name):
    """When that worker has touched the file of its lock."""
    return os.stat(lock_of(name)).st_mtime


def lock_of(name):
    return os.path.join(witness.lock_folder(), f'{name}.lock')


@pytest.fixture
def two(on):
    """(site, the first worker, the second): both have begun, the first is in a job."""
    site = on('zeo')
    site.put((end_when_told, site.path('first')))
    workers = [site.worker('--name', NAMES[0], '--poll-interval', '1')]
    site.who_is_in('first')
    workers.append(site.worker('--name', NAMES[1], '--poll-interval', '1'))
    site.client.until(lambda: len(site.client.queue.dispatchers) == 2, 30)
    site.client.until(lambda: all(record.activated for record in records(site)), 30)
    return site, *workers


def test_a_stopped_process_is_told_of(two):
    site, first, second = two
    first.process.send_signal(signal.SIGSTOP)
    try:
        age(NAMES[0], STUCK_SECONDS)
        site.until_said('lives, and makes no passes any more')
        site.client.until(lambda: records(site)[0].stuck is not None)
        assert records(site)[1].stuck is None
        found = health(site.client.root['zodbjobs'])
        assert not found['healthy'] and NAMES[0] in found['problems'][0]
        assert any('makes no passes' in each['what'] for each in found_by_doctor(site))
        # Its job may be running, so nobody takes it; others do what comes in.
        site.put((count,))
        site.until_done(1)
        assert site.jobs()[0].status != COMPLETED
    finally:
        first.process.send_signal(signal.SIGCONT)
    site.client.until(lambda: records(site)[0].stuck is None, 30)
    site.let_end('first')
    site.until_done()
    assert site.counted() == {1: 2}
    assert site.jobs()[0].interruptions == 0
    assert health(site.client.root['zodbjobs'])['healthy']
    assert site.said().count('makes no passes any more') == 1


def found_by_doctor(site):
    return examine(site.client.root['zodbjobs'])['findings']


def test_who_is_busy_or_idle_is_not_stuck(two):
    """Files are touched every ten seconds, and nothing is written to the database for it."""
    site, first, second = two
    former = [shown(name) for name in NAMES]
    for name in NAMES:
        age(name, STUCK_SECONDS - 20)
    before = site.place.db.storage.lastTransaction()
    site.client.until(lambda: all(map(operator.gt, map(shown, NAMES), former)), 30)
    assert site.place.db.storage.lastTransaction() == before
    assert 'makes no passes' not in site.said()
    site.let_end('first')
    site.until_done()
