"""Workers are told to stop: what runs may end, the rest waits for others, nobody is blamed."""

import signal

import pytest

from tests.processes.work import count, count_slowly, end_when_told
from zodbjobs.interfaces import COMPLETED, PENDING
from zodbjobs.testing.waiting import wait_until


@pytest.mark.parametrize('kind', ['zeo', 'file'])
def test_a_worker_that_stops_ends_what_it_does(on, kind):
    site = on(kind)
    names = ['one', 'other']
    site.put(*[(end_when_told, site.path(name)) for name in names], *[(count,)] * 10)
    if kind == 'file':
        site.leave()
    worker = site.worker('--threads', '2')
    for name in names:
        assert site.who_is_in(name) is worker
    worker.tell_to_stop()
    site.until_said('stopping')
    for name in names:
        site.let_end(name)
    assert worker.wait() == 0, site.said()
    if kind == 'file':
        site.come_back()
    running, waiting = site.jobs()[:2], site.jobs()[2:]
    assert [job.status for job in running] == [COMPLETED] * 2
    assert [(job.status, job.attempts) for job in waiting] == [(PENDING, 0)] * 10
    assert site.counted() == {1: 2, 0: 10}
    (record,) = site.client.queue.dispatchers.values()
    assert record.activated is None and not record.dead


def test_what_takes_longer_than_the_grace_is_handed_back(on):
    site = on('postgres')
    site.put((end_when_told, site.path('long')), *[(count,)] * 5)
    worker = site.worker('--threads', '1', '--grace', '0.1')
    site.who_is_in('long')
    worker.tell_to_stop()
    assert worker.wait() == 0, site.said()
    jobs = site.jobs()
    assert [(job.status, job.interruptions) for job in jobs] == [(PENDING, 0)] * 6
    assert site.counted() == {0: 6}
    site.let_end('long')
    site.worker()
    site.until_done()
    assert site.counted() == {1: 6}


def test_a_second_signal_ends_it_at_once(on):
    """That is as good as a kill: the jobs are found and run again."""
    site = on('zeo')
    site.put((end_when_told, site.path('long')), *[(count,)] * 5)
    worker = site.worker('--threads', '1')
    site.who_is_in('long')
    worker.tell_to_stop()
    site.until_said('stopping')
    worker.tell_to_stop()
    assert worker.wait() == 128 + signal.SIGTERM
    site.let_end('long')
    site.worker()
    site.until_done()
    assert site.counted() == {1: 6}
    assert site.jobs()[0].interruptions == 1


def test_one_of_two_stops_and_nothing_is_lost_or_delayed(on):
    site = on('zeo')
    site.put(*[(count_slowly, 0.02)] * 60)
    workers = [site.worker('--threads', '2') for _ in range(2)]
    site.until_done(*range(5))
    # the other one may have done these, while this one could not hear signals yet
    assert wait_until(lambda: 'begins to serve' in workers[0].log.read_text(), 30)
    workers[0].tell_to_stop()
    assert workers[0].wait() == 0
    site.until_done()
    assert site.counted() == {1: 60}
    assert {job.interruptions for job in site.jobs()} == {0}
