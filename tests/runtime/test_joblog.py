"""What is logged while a job runs: whose it is, and what is kept of it."""

import json
import logging
import operator

import pytest
import transaction

from zodbjobs import Job, RetryPolicy, local
from zodbjobs.monitor.logs import JobFormatter, JSONFormatter
from zodbjobs.runtime import joblog
from zodbjobs.runtime.joblog import ANNOTATION, LINE_LENGTH, LINES

log = logging.getLogger('shop')


@pytest.fixture
def layer(layer):
    log.setLevel(logging.INFO)
    yield layer
    log.setLevel(logging.NOTSET)


def chat(fail=False):
    log.debug('unheard')
    log.info('a detail')
    log.warning('odd: %s', 7)
    if fail:
        raise ValueError('on purpose')


def fail_once():
    log.info('attempt %s', local.getJob().attempts)
    if local.getJob().attempts < 2:
        raise ValueError('on purpose')


def chat_much():
    for number in range(LINES + 20):
        log.warning('%s %s', number, 'x' * 1000)


def done(layer, job):
    transaction.commit()
    layer.reactor.wait_for(job)
    layer.reactor.settle()
    transaction.begin()
    return [line[1:] for line in job.annotations.get(ANNOTATION, ())]


def test_of_a_success_its_warnings_are_kept(layer):
    assert done(layer, layer.queue.put(Job(chat))) == [('WARNING', 'odd: 7')]


def test_of_a_failure_all_is_kept(layer):
    job = layer.queue.put(Job(chat, True), retries=0)
    assert done(layer, job) == [('INFO', 'a detail'), ('WARNING', 'odd: 7')]


def test_lines_of_all_attempts_are_kept(layer):
    job = layer.queue.put(Job(fail_once), retry_policy_factory=RetryPolicy(1))
    assert done(layer, job) == [('INFO', 'attempt 1')]
    assert job.attempts == 2


def test_lines_are_bounded(layer):
    lines = done(layer, layer.queue.put(Job(chat_much)))
    assert len(lines) == LINES and lines[-1][1].startswith(f'{LINES + 19} x')
    assert max(len(text) for _, text in lines) == LINE_LENGTH


def test_who_logs_nothing_writes_nothing(layer):
    """Neither a transaction of its own nor an annotation."""
    job = layer.queue.put(Job(operator.mul, 6, 7))
    assert done(layer, job) == [] and not job.annotations
    assert layer.dispatcher.notebook._thread is None


def test_a_job_that_is_forgotten_at_once_leaves_no_lines(layer):
    job = layer.queue.put(Job(chat), result_ttl=0)
    assert done(layer, job) == []
    assert len(layer.queue.notes.trees) == 0


def test_records_say_whose_they_are(layer, caplog):
    job = layer.queue.put(Job(chat))
    done(layer, job)
    (record,) = [record for record in caplog.records if record.getMessage() == 'odd: 7']
    formatter = JobFormatter('[%(zodbjob)s] %(message)s')
    assert formatter.format(record) == f"[job {job.oid} queue '' agent 'main' attempt 1] odd: 7"
    facts = json.loads(JSONFormatter().format(record))
    assert (facts['job'], facts['queue'], facts['agent'], facts['attempt']) == (
        job.oid, '', 'main', 1
    )  # fmt: skip
    assert facts['level'] == 'WARNING' and facts['logger'] == 'shop'
    log.warning('outside')
    outside = caplog.records[-1]
    assert str(outside.zodbjob) == '' and formatter.format(outside) == '[] outside'
    assert 'job' not in json.loads(JSONFormatter().format(outside))
    del outside.zodbjob  # made before anything was installed
    assert formatter.format(outside) == '[] outside'


def test_an_exception_is_in_the_json(caplog):
    try:
        raise ValueError('on purpose')
    except ValueError:
        log.exception('failed')
    facts = json.loads(JSONFormatter().format(caplog.records[-1]))
    assert facts['exception'].endswith('ValueError: on purpose')


def test_steps_are_told(layer, caplog):
    caplog.set_level('INFO', 'zodbjobs.trace')
    job = layer.queue.put(Job(operator.mul, 6, 7))
    done(layer, job)
    assert f"job {job.oid} queue '' agent 'main' attempt 1 begins: " in caplog.text


def test_it_is_installed_once():
    joblog.install()
    factory = logging.getLogRecordFactory()
    joblog.install()
    assert logging.getLogRecordFactory() is factory
