"""Metrics: what Prometheus would see of a database and of a process."""

import operator
import urllib.request

import pytest
import transaction

from zodbjobs.monitor.packing import pack_every, pack_if_due

prometheus = pytest.importorskip('prometheus_client')


@pytest.fixture
def value(layer):
    """value(name, **labels) -> what a scrape gives."""
    from zodbjobs.monitor.metrics import Collector

    registry = prometheus.CollectorRegistry()
    registry.register(Collector(layer.dispatcher))
    return lambda name, **labels: registry.get_sample_value(f'zodbjobs_{name}', labels)


def raises_once():
    from zodbjobs import local

    if local.getJob().attempts < 2:
        raise OSError('the disk is full')


def writes():
    from zodbjobs import local

    local.getQueue()._p_jar.root()['written'] = True


def test_counts_of_the_database(layer, put, run, value):
    layer.queue.quotas.create('index', 3)
    run(put(), put())
    put(delay=60)
    put(delay=60).hold()
    transaction.commit()
    layer.reactor.time_flies(6)
    assert value('jobs', queue='', state='finished') == 2
    assert value('jobs', queue='', state='waiting') == 1
    assert value('jobs', queue='', state='held') == 1
    assert value('dispatchers', queue='', state='active') == 1
    assert value('quota_size', queue='', quota='index') == 3
    assert value('oldest_due_seconds', queue='') == 0
    assert value('up') == 1


def test_counts_of_the_process_only_grow(layer, put, run, value):
    here = {'queue': '', 'agent': 'main'}
    run(put(), put(operator.truediv, (1, 0), retries=0))
    run(put(raises_once, (), retries=1))
    assert value('claims_total', **here) == 4
    assert value('attempts_total', outcome='successful', **here) == 2
    assert value('attempts_total', outcome='failed', **here) == 1
    assert value('retries_total', **here) == 1
    assert value('conflicts_total', **here) == value('rescues_total', **here) == 0
    assert value('run_seconds_count', **here) == 3
    assert value('run_seconds_bucket', le='+Inf', **here) == 3
    assert value('wait_seconds_bucket', le='0.001', **here) == 3
    assert value('commit_seconds_count', **here) == 0  # they wrote nothing of their own
    run(put(writes, ()))
    assert value('commit_seconds_count', **here) == 1
    assert value('slots', **here) == 1


def test_times_fall_into_their_classes(layer, put, run, value):
    here = {'queue': '', 'agent': 'main'}
    layer.queue.pause()
    transaction.commit()
    job = put()
    layer.reactor.time_flies(7)
    layer.queue.unpause()
    transaction.commit()
    run(job)
    assert value('wait_seconds_bucket', le='5.0', **here) in (0, None)
    assert value('wait_seconds_bucket', le='10', **here) == 1
    assert 7 <= value('wait_seconds_sum', **here) < 8


def test_rescued_jobs_are_counted(layer, put, run, value):
    layer.queue.pause()
    job = put()
    job._interrupted = True
    layer.queue.unpause()
    transaction.commit()
    run(job)
    assert value('rescues_total', queue='', agent='main') == 1


def test_a_scrape_goes_on_while_the_database_is_away(layer, put, run, value, monkeypatch):
    run(put())

    def away(*args):
        raise OSError('no storage')

    monkeypatch.setattr(layer.db, 'open', away)
    assert value('up') == 0 and value('slots', queue='', agent='main') == 1
    monkeypatch.undo()


def test_it_is_served(layer):
    from zodbjobs.monitor.metrics import serve

    end = serve([layer.dispatcher], ('127.0.0.1', 0))
    try:
        page = urllib.request.urlopen(f'http://127.0.0.1:{end.port}/metrics', timeout=10).read()
    finally:
        end()
    assert b'zodbjobs_jobs{queue="",state="waiting"} 0.0' in page


# Packing on a schedule ---------------------------------------------------------------------


def test_one_of_those_who_share_a_database_packs_it(layer):
    assert not pack_if_due(layer.db, 3600)  # the time is counted from the first look
    layer.reactor.time_flies(3601)
    assert pack_if_due(layer.db, 3600)
    assert not pack_if_due(layer.db, 3600)


def test_packing_is_repeated(layer, put, caplog):
    caplog.set_level('INFO', 'zodbjobs.events')
    pack_every(layer.dispatcher, 600, keep_days=0)
    for _ in range(2):
        layer.reactor.time_flies(601)
    layer.reactor.settle()
    assert caplog.text.count('packed ') >= 1
