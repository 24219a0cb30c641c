"""What the pages promise in words, where an example would be long-winded.

Each test names the page in its docstring.
"""

import pytest
import transaction

from zodbjobs import Job, local, parallel, testing


@pytest.fixture
def layer():
    layer = testing.setUp()
    yield layer
    testing.tearDown()


def double(value):
    return 2 * value


def add(*values):
    return sum(values)


def return_a_new_job():
    return Job(double, 21)


def return_a_new_plan():
    return parallel(Job(double, 1), Job(double, 2), postprocess=add_results)


def add_results(*jobs):
    return sum(job.result for job in jobs)


def return_a_job_for_others_to_put():
    total = Job(add, 1)
    local.getQueue().put(Job(double, 10)).addCallback(Job(append_and_put, total))
    return total


def append_and_put(total, result):
    total.args.append(result)
    local.getQueue().put(total)


def run(layer, call):
    job = layer.queue.put(call)
    transaction.commit()
    layer.reactor.wait_for(job)
    return job


def test_a_returned_job_that_nobody_else_knows_is_put(layer):
    """tutorial.rst: nobody else could."""
    assert run(layer, return_a_new_job).result == 42
    assert run(layer, return_a_new_plan).result == 6


def test_a_returned_job_that_others_know_is_theirs_to_put(layer):
    """tutorial.rst: it may not be complete yet."""
    assert run(layer, return_a_job_for_others_to_put).result == 21


def test_a_stopped_dispatcher_has_no_threads(layer):
    """configuration.rst: after deactivate() the database can be closed."""
    run(layer, Job(double, 1))
    threads = layer.dispatcher.queues['']['main'].threads
    assert threads
    layer.dispatcher.deactivate()
    assert not [thread for thread in threads if thread.is_alive()]


def test_a_test_may_stop_its_reactor(layer):
    """testing.rst: what is stopped already need not be taken down."""
    layer.reactor.stop()
    assert layer.dispatcher.activated is False


def test_a_queue_lists_what_is_sorted_and_what_is_not(layer):
    """jobs.rst: in the order in which it would be taken, wherever it lies."""
    layer.agent.channels = ['nobody']
    first = [layer.queue.put(Job(add, number)) for number in range(20)]  # so many are sorted
    transaction.commit()
    layer.reactor.time_flies(1)
    last = layer.queue.put(add)
    urgent = layer.queue.put(add, priority=1)
    assert list(layer.queue) == [urgent, *first, last]


def test_a_job_that_returned_a_job_is_counted_once(layer):
    """tutorial.rst: started is successful and failed, and nothing is unknown."""
    run(layer, return_a_new_plan)
    layer.reactor.time_flies(layer.dispatcher.poll_interval)
    statistics = layer.dispatcher.getStatistics()
    counts = [statistics[name] for name in ('started', 'successful', 'failed', 'unknown')]
    assert counts == [5, 5, 0, 0]
