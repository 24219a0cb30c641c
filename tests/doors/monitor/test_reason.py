"""Why a job does not run: a sentence for each reason there is."""

import operator
import os
import socket
import subprocess
import sys

import pytest
import transaction

from zodbjobs import Job, Queue, RetryPolicy, local, monitor, serial
from zodbjobs.monitor.reason import length, why
from zodbjobs.runtime import witness


def said(job):
    transaction.begin()
    return monitor.why(job)


def refuses(job):
    return False


def chooses_nothing(agent):
    return None


def note(result):
    return result


def raises_once():
    if local.getJob().attempts < 2:
        raise OSError('the disk is full')


def test_new(layer):
    assert monitor.why(Job(operator.mul, 6, 7)) == 'it is in no queue: put it'


def test_not_due(layer, put):
    assert said(put(delay=3600)).startswith('it is not due until 2006-08-10 16:44:')
    assert said(put(delay=3600)).endswith(' UTC, in 1 h')


def test_not_due_again(layer, put):
    job = put(raises_once, (), retry_policy_factory=RetryPolicy(3, backoff=60))
    layer.reactor.settle()
    assert said(job).endswith('(try 2 of it)') and 'it is not due until' in said(job)


def test_held(layer, put):
    job = put(delay=5)
    job.hold('looks odd')
    assert why(job) == 'it is held: looks odd; it waits until somebody resumes or cancels it'


def test_a_dependency(layer, put):
    first = put(delay=5, id='first')
    assert said(put(depends_on=[first])) == (
        f"it waits for job {first.oid} 'first' (_operator.mul, pending) to finish"
    )
    many = [put(delay=5) for _ in range(5)]
    assert said(put(after=many)).endswith('and 2 others to finish')


def test_a_paused_queue(layer, put):
    layer.queue.pause()
    assert said(put()) == "queue '' is paused until somebody unpauses it"
    layer.queue.pause(60)
    transaction.commit()
    assert said(put()).startswith("queue '' is paused until 2006-08-10 15:45:")


def test_nobody_serves(layer, put):
    layer.dispatcher.deactivate()
    assert said(put()) == "no dispatcher serves queue '': start a worker"
    layer.queues.deployment = 'production'
    assert "belongs to the deployment 'production', and a worker must name it" in said(put())


def test_the_only_dispatcher_has_died(layer, put, tmp_path, monkeypatch):
    """Also where no other one is left to say so: its process, or its lock, is gone."""
    layer.dispatcher.deactivate()
    transaction.begin()
    record = layer.agent.parent
    ended = subprocess.Popen([sys.executable, '-c', ''])
    ended.wait()
    record.activate(socket.gethostname(), ended.pid)
    assert why(put()).endswith("of queue '' has died: start a worker")
    record.host, record.pid = socket.gethostname(), os.getpid()
    assert 'has died' not in why(put())
    monkeypatch.setenv('ZODBJOBS_LOCK_DIR', str(tmp_path))
    record.host = witness.place_of(str(tmp_path))
    assert why(put()).endswith("of queue '' has died: start a worker")
    assert monitor.dispatcher_facts(record)['state'] == 'dead'
    assert monitor.queue_facts(layer.queue)['dispatchers'] == 0
    layer.reactor.time_flies(1)
    assert 'no dispatcher serves it' in monitor.health(layer.queues)['problems'][0]
    lock = witness.RecordLock(str(tmp_path), str(record.UUID))
    lock.acquire()
    try:
        assert 'has died' not in why(put())
        assert monitor.dispatcher_facts(record)['state'] == 'active'
    finally:
        lock.release()
    record.host = 'elsewhere'
    assert 'has died' not in why(put())
    record.stuck = record.activated
    assert why(put()).endswith("of queue '' lives and does nothing: restart it")
    transaction.abort()


def test_a_job_whose_dispatcher_has_died(layer, busy):
    job = busy()
    record = layer.agent.parent
    ended = subprocess.Popen([sys.executable, '-c', ''])
    ended.wait()
    record.host, record.pid = socket.gethostname(), ended.pid
    assert why(job).endswith('which ran it, has ended: it goes to others when one looks')
    assert '1 jobs of a dispatcher that died' in monitor.health(layer.queues)['problems'][0]
    transaction.abort()


def test_no_agents(layer, put):
    layer.queues['bare'] = Queue()
    transaction.commit()
    layer.reactor.time_flies(6)
    assert said(put(queue='bare')) == "the dispatchers of queue 'bare' have no agent there"
    layer.agent.size = 0
    transaction.commit()
    assert said(put()) == "every agent of queue '' has the size 0"


def test_no_agent_for_a_channel(layer, put):
    layer.agent.channels = ['fast']
    transaction.commit()
    assert said(put(channel='slow')) == "no agent of queue '' takes the channel 'slow'"
    assert said(put()) == "no agent of queue '' takes jobs without a channel"


def test_filters(layer, put):
    layer.agent.filter = refuses
    transaction.commit()
    assert said(put()) == "the filter of the only agent of queue '' refuses it"


def test_choosers(layer, put):
    layer.agent.chooser = chooses_nothing
    transaction.commit()
    assert said(put()) == (
        "it is due; <Agent 'main' size 1> chooses by itself, and has not chosen it"
    )


def test_a_full_quota(layer, put, busy):
    layer.queue.quotas.create('index', 1)
    layer.queue.quotas.create('none', 0)
    layer.agent.size = 2
    transaction.commit()
    holder = busy(quota_names=('index',))
    assert said(put(quota_names=('index',))) == (
        f"quota 'index' is full (1 of 1): held by job {holder.oid}"
        f' (tests.doors.monitor.conftest.block, active)'
    )
    assert said(put(quota_names=('none',))) == "quota 'none' has the size 0"


def test_no_thread_is_free(layer, put, busy):
    running = busy()
    assert said(running).startswith("it runs: agent 'main' of dispatcher ")
    layer.agent.parent.parent.parent.pause()  # so that nothing is claimed ahead
    first, second = put(), put()
    layer.queue.unpause()
    assert why(first) == (
        'it is due, and waits for a thread: all 1 of the 1 agent that may take it are busy'
    )
    assert why(second).endswith(f'are busy; job {first.oid} (_operator.mul, pending) is next')


def test_nothing_hinders(layer):
    job = layer.queue.put(Job(operator.mul, 6, 7))
    assert why(job) == 'nothing hinders it: it is due, and should start at any moment'


def test_too_late(layer, put):
    layer.queue.pause()
    job = put(begin_by=10)
    layer.dispatcher.deactivate()
    layer.reactor.time_flies(60)
    assert said(job).startswith('its begin_by passed 50.0 s ago')


def test_callbacks(layer, put):
    layer.agent.size = 0
    job = put()
    callback = job.addCallback(note)
    transaction.commit()
    assert said(callback) == (
        f'it is a callback: it runs when job {job.oid} (_operator.mul, pending) has its result'
    )
    job.cancel()
    assert why(job).startswith('it has its result, and waits for a thread to tell it to job ')


def test_parents(layer):
    parent = layer.queue.put(serial(Job(operator.mul, 2, 3), Job(operator.mul, 2, 3)))
    transaction.commit()
    layer.queue.pause()
    transaction.commit()
    assert said(parent).startswith('queue')  # the parent waits as any other
    layer.queue.unpause()
    transaction.commit()
    layer.reactor.wait_for(parent)
    assert said(parent).startswith('it has finished: it succeeded')


@pytest.mark.parametrize(
    'call, args, words',
    [(operator.mul, (6, 7), 'it succeeded'), (operator.truediv, (1, 0), 'it failed')],
)
def test_finished(layer, put, run, call, args, words):
    job = put(call, args, retries=0)
    run(job)
    assert said(job) == f'it has finished: {words} 0.0 s ago'


def test_cancelled_while_it_runs(busy):
    job = busy()
    job.cancel()
    transaction.commit()
    assert said(job).endswith(
        '; it was cancelled, and ends when it looks for that, or with its work'
    )


def test_cancelled(layer, put):
    job = put(delay=5)
    job.cancel()
    assert why(job) == 'it has finished: it was cancelled 0.0 s ago'


@pytest.mark.parametrize(
    'seconds, text',
    [(0.25, '0.2 s'), (59, '59.0 s'), (60, '1 min'), (61, '1 min 1 s'), (3660, '1 h 1 min'),
     (90000, '1 d 1 h'), (-5, '5.0 s')],
)  # fmt: skip
def test_lengths(seconds, text):
    assert length(seconds * 1_000_000) == text
