"""Jobs that need what not every process has wait for one that has it, and others pass them by."""

import logging
import operator

import pytest
import transaction

from zodbjobs import Job, local, monitor, testing
from zodbjobs.model import hosts

#: A bit that this release does not know.
NEEDS_LATER = 64


class Needy(Job):
    """A job of a later release, or of a host that is not here."""

    needs = NEEDS_LATER


class Changed(Job):
    """A job of a class that needed nothing when the job was put."""


def choose_first(agent):
    return agent.queue.claim()


def add_needy():
    local.getJob().addCallback(Needy(operator.neg))
    return 7


def with_needy():
    return Needy(operator.mul, 6, 7)


@pytest.fixture
def layer():
    yield testing.setUp()
    testing.tearDown()


@pytest.fixture
def put(layer):
    def put(job, **options):
        layer.queue.put(job, **options)
        transaction.commit()
        return job

    return put


@pytest.fixture
def settle(layer):
    def settle(*jobs):
        layer.reactor.time_flies(20)
        transaction.begin()
        return [job.status for job in jobs]

    return settle


@pytest.fixture
def move_in(monkeypatch):
    """move_in(): from now on this process has what those jobs need."""

    def move_in():
        host = (NEEDS_LATER, lambda: True, 'a later thing', 'get one')
        monkeypatch.setattr(hosts, 'HOSTS', (*hosts.HOSTS, host))

    return move_in


def test_they_are_left_and_others_pass_them_by(put, settle, move_in, layer):
    needy = [put(Needy(operator.mul, 6, number)) for number in range(30)]
    plain = put(Job(operator.mul, 6, 7))
    assert settle(plain, *needy) == ['completed'] + ['pending'] * 30
    assert {job.attempts for job in needy} == {0}
    move_in()
    assert settle(*needy) == ['completed'] * 30
    assert layer.queue.dispatchers[layer.dispatcher.UUID].hosts == NEEDS_LATER


def test_why_and_what_is_wrong(put, settle, layer, caplog, move_in):
    job = put(Needy(operator.mul, 6, 7))
    assert settle(job) == ['pending']
    said = (
        "it needs what a later release of zodbjobs has, and no dispatcher of queue '' has it:"
        ' start a worker of that release'
    )
    assert monitor.why(job) == said
    told = (
        'jobs need what a later release of zodbjobs has, and no dispatcher has it:'
        ' start a worker of that release'
    )
    assert monitor.queue_facts(layer.queue)['needs'] == told
    assert f"queue '': {told}" in monitor.health(layer.queues)['problems']
    findings = monitor.examine(layer.queues)['findings']
    assert f"queue '': {told}" in [each['what'] for each in findings]
    lines = [record for record in caplog.records if 'are left to others' in record.message]
    assert len(lines) == 1 and lines[0].levelno == logging.WARNING
    move_in()
    settle()
    assert monitor.queue_facts(layer.queue)['needs'] is None


def test_a_process_that_has_it_not_says_nothing_of_their_code(put, settle, layer, move_in):
    job = put(Needy(operator.mul, 6, 7))
    job._call = 'gone:away'  # to be imported elsewhere
    transaction.commit()
    assert monitor.lint(layer.queues)['problems'] == []
    move_in()
    (problem,) = monitor.lint(layer.queues)['problems']
    assert "module 'gone' cannot be imported" in problem['problem']


def test_a_chooser_does_not_get_them(put, settle, layer):
    layer.agent.chooser = choose_first
    transaction.commit()
    needy, plain = put(Needy(operator.mul, 6, 7)), put(Job(operator.mul, 6, 7))
    assert settle(needy, plain) == ['pending', 'completed']


def test_a_callback_waits_with_its_job(put, settle, move_in):
    job = put(Job(operator.mul, 6, 7))
    first, second = job.addCallback(Job(operator.neg)), job.addCallback(Needy(operator.neg))
    late = put(Job(add_needy))
    assert settle(job, first, second, late) == ['callbacks', 'completed', 'new', 'callbacks']
    assert job.result == 42
    assert 'is next: it needs what a later release' in monitor.why(job)
    move_in()
    assert settle(job, second, late) == ['completed'] * 3
    assert second.result == -42 and second.attempts == 1


def test_a_part_waits_and_so_does_who_returned_it(put, settle, move_in):
    outer = put(Job(with_needy))
    assert settle(outer) == ['active']
    move_in()
    assert settle(outer) == ['completed']
    assert outer.result == 42


def test_one_that_was_put_before_its_class_had_needs_goes_back(put, settle, move_in, monkeypatch):
    job = put(Changed(operator.mul, 6, 7), delay=10)
    monkeypatch.setattr(Changed, 'needs', NEEDS_LATER)
    assert settle(job) == ['pending']
    assert job.attempts == job.interruptions == 0
    assert len(job.queue) == 1
    move_in()
    assert settle(job) == ['completed']
    assert len(job.queue) == 0


def test_without_a_need_the_entry_of_a_job_is_as_small_as_ever(put, layer):
    layer.queue.pause()
    put(Job(operator.mul, 6, 7))
    entries = [entry for chunk in layer.queue.intake.chunks() for entry in chunk.values()]
    assert [type(entry) for entry in entries if entry] == [Job]
