"""Lists and counts of jobs, as a monitor asks for them."""

import operator
import uuid

import pytest
import transaction

from zodbjobs import Agent, Job, Queue, clock, monitor
from zodbjobs.model.handout import Round


def oids(jobs):
    return [job.oid for job in jobs]


def calls_back(result):
    return result


@pytest.fixture
def zoo(layer, put, run):
    """A job in each state that can be had without a thread that runs."""
    found = {
        'succeeded': put(),
        'failed': put(operator.truediv, (1, 0), retries=0),
    }
    run(*found.values())
    found['cancelled'] = put(delay=10, id='gone')
    found['cancelled'].cancel()
    transaction.commit()
    layer.reactor.settle()  # an agent lists it
    transaction.begin()
    found['later'] = put(delay=3600, id='nightly', priority=1)
    found['held'] = put(id='odd')
    found['held'].hold('odd')
    found['due'] = put(channel='nobody')
    layer.agent.channels = ['']
    transaction.commit()
    return found


@pytest.mark.parametrize('state', ['succeeded', 'failed', 'cancelled', 'later', 'held', 'due'])
def test_each_state_has_its_jobs(layer, zoo, state):
    assert oids(monitor.jobs(layer.queues, state)) == [zoo[state].oid]
    assert monitor.count(layer.queues, state) == (1, True)


def test_states_are_taken_together(layer, zoo):
    assert oids(monitor.jobs(layer.queues, 'pending')) == [zoo['due'].oid, zoo['later'].oid]
    ended = [zoo[name].oid for name in ('cancelled', 'succeeded', 'failed')]
    assert sorted(oids(monitor.jobs(layer.queues, 'completed'))) == sorted(ended)
    assert len(monitor.jobs(layer.queues)) == 6
    assert monitor.count(layer.queues) == (6, True)


def test_the_latest_end_comes_first(layer, put, run):
    first, second = put(), put()
    run(first, second)
    layer.reactor.time_flies(6)  # a poll has listed them
    third = put()
    run(third)
    assert oids(monitor.jobs(layer.queues, 'completed'))[0] == third.oid
    assert monitor.last_completed(layer.queues).oid == third.oid


def test_running_jobs(layer, put):
    """What an agent has claimed is assigned or active, and is not listed as pending."""
    job = put()
    layer.dispatcher.deactivate()
    transaction.begin()
    record = layer.queue.dispatchers[layer.dispatcher.UUID]
    record.activate()
    look = Round(layer.queue, clock.micros())
    look.sort()
    assert look.pick(layer.agent, 1)
    transaction.commit()
    assert oids(monitor.jobs(layer.queues, 'active')) == [job.oid]
    assert monitor.jobs(layer.queues, 'pending', 'assigned') == []
    assert monitor.count(layer.queues, 'active') == (1, True)
    assert oids(monitor.jobs(layer.queues, 'active', agent='m*')) == [job.oid]
    assert monitor.jobs(layer.queues, 'active', agent='other') == []
    assert oids(monitor.jobs(layer.queues, 'active', dispatcher=record.UUID)) == [job.oid]
    assert monitor.jobs(layer.queues, 'active', dispatcher=uuid.uuid4()) == []


@pytest.mark.parametrize(
    'filters, names',
    [
        ({'callable': 'truediv'}, ['failed']),
        ({'callable': 'true*'}, ['failed']),
        ({'callable': '_operator.true*'}, ['failed']),
        ({'callable': 'operator.true*'}, []),
        ({'channel': 'nobody'}, ['due']),
        ({'id': 'night*'}, ['later']),
        ({'id': '[no]*'}, ['later', 'held']),
        ({'queue': 'x*'}, []),
        ({'agent': 'main', 'states': ['completed']}, ['succeeded', 'failed', 'cancelled']),
        ({'agent': 'mai', 'states': ['completed']}, []),
        ({'agent': 'main', 'states': ['due']}, []),
        ({'agent': 'main', 'states': ['later']}, ['later']),
    ],
    ids=str,
)
def test_filters(layer, zoo, filters, names):
    filters = dict(filters)
    states = filters.pop('states', ())
    found = monitor.jobs(layer.queues, *states, **filters)
    assert sorted(oids(found)) == sorted(zoo[name].oid for name in names)
    assert monitor.count(layer.queues, *states, **filters) == (len(names), True)


def test_spans_of_time(layer, put, run):
    first = put()
    run(first)
    layer.reactor.time_flies(3600)
    second = put()
    run(second)
    transaction.begin()
    assert oids(monitor.jobs(layer.queues, ended='30M')) == [second.oid]
    assert oids(monitor.jobs(layer.queues, ended='before30M')) == [first.oid]
    assert oids(monitor.jobs(layer.queues, started='since2H,before30M')) == [first.oid]
    assert oids(monitor.jobs(layer.queues, 'completed', requested='30M')) == [second.oid]
    assert len(monitor.jobs(layer.queues, told='2H')) == 0  # they had no callbacks to tell


def test_quotas(layer, put):
    layer.queue.quotas.create('index', 1)
    job = put(quota_names=('index',), delay=5)
    put(delay=5)
    assert oids(monitor.jobs(layer.queues, quota='index')) == [job.oid]


def test_a_limit_and_a_look(layer, put):
    """A list ends at its limit, and a walk after so many jobs; both are said."""
    for number in range(20):
        put(delay=100 + number, channel='odd' if number % 2 else None)
    found = monitor.jobs(layer.queues, 'pending', limit=5)
    assert (len(found), found.is_all) == (5, False)
    found = monitor.jobs(layer.queues, 'pending', channel='odd', look=10)
    assert (len(found), found.looked_at, found.is_all) == (5, 10, False)
    assert monitor.count(layer.queues, 'pending', channel='odd', look=10) == (5, False)
    assert monitor.count(layer.queues, 'pending', channel='odd') == (10, True)
    assert len(monitor.jobs(layer.queues, 'pending', limit=None)) == 20


def test_queues_are_merged_in_the_order_of_claims(layer, put):
    layer.queues['other'] = Queue()
    transaction.commit()
    late, early, first = put(delay=30), put(delay=20, queue='other'), put(delay=25, priority=1)
    assert oids(monitor.jobs(layer.queues, 'pending')) == [first.oid, early.oid, late.oid]
    assert oids(monitor.jobs(layer.queues, 'pending', queue='o*')) == [early.oid]
    assert monitor.next_pending(layer.queues).oid == first.oid
    assert monitor.count(layer.queues, 'pending', queue='o*') == (1, True)


def test_agents_take_what_their_filters_accept(layer, put):
    layer.agent.filter = takes_odd
    layer.queue.dispatchers[layer.dispatcher.UUID]['rest'] = Agent(channels=['slow'])
    odd, even = put(args=(1, 1), delay=9), put(args=(2, 2), delay=9)
    slow = put(args=(4, 4), delay=9, channel='slow')
    transaction.commit()
    assert oids(monitor.jobs(layer.queues, 'pending', agent='main')) == [odd.oid]
    assert oids(monitor.jobs(layer.queues, 'pending', agent='rest')) == [slow.oid]
    assert len(monitor.jobs(layer.queues, 'pending')) == 3 and even.status == 'pending'


def takes_odd(job):
    return job.args[0] % 2


def test_find(layer, zoo):
    assert monitor.find(layer.queues, 'nightly') is zoo['later']
    assert monitor.find(layer.queues, zoo['failed'].oid) is zoo['failed']
    assert monitor.find(layer.queues, str(zoo['failed'].oid)) is zoo['failed']
    for name in ('nobody', '123456789', '0'):
        with pytest.raises(LookupError, match=f"there is no job '{name}'"):
            monitor.find(layer.queues, name)


def test_jobs_with_callbacks_to_tell(layer, put):
    """A job that waits for a thread, only to tell its callbacks, is listed as such."""
    layer.agent.size = 0
    job = put(delay=5)
    job.addCallback(calls_back)
    job.cancel()
    transaction.commit()
    assert oids(monitor.jobs(layer.queues, 'callbacks')) == [job.oid]
    assert 'waits for a thread to tell it to' in monitor.why(job)


def test_no_view_writes(layer, zoo):
    """Whatever is asked, nothing is changed that a commit would store."""
    connection = layer.connection
    transaction.begin()
    before = layer.db.lastTransaction()
    monitor.jobs(layer.queues)
    monitor.count(layer.queues, callable='*')
    monitor.job_stats(layer.queues)
    monitor.ended_stats(layer.queues)
    monitor.examine(layer.queues)
    monitor.lint(layer.queues)
    monitor.health(layer.queues)
    for job in zoo.values():
        monitor.full(job)
        monitor.traceback(job)
    for queue in layer.queues.values():
        monitor.queue_facts(queue)
    assert not connection._registered_objects
    transaction.commit()
    assert layer.db.lastTransaction() == before


def test_stats_of_what_ended(layer, zoo):
    found = monitor.ended_stats(layer.queues)
    total, rest, agent = found['rows']
    assert (total['queue'], total['agent']) == (None, None)
    assert (rest['queue'], rest['agent']) == ('', None)  # cancelled before anybody had it
    assert (agent['queue'], agent['agent']) == ('', 'main')
    counts = [[row[kind] for kind in ('succeeded', 'failed', 'cancelled')] for row in found['rows']]
    assert counts == [[1, 1, 1], [0, 0, 1], [1, 1, 0]]
    layer.reactor.time_flies(1)
    assert monitor.ended_stats(layer.queues, since='0S')['rows'][0]['succeeded'] == 0


def test_stats_of_jobs(layer, zoo):
    layer.reactor.time_flies(100)
    transaction.begin()
    found = monitor.job_stats(layer.queues)
    assert found['counts'] == {
        'pending': 2, 'held': 1, 'succeeded': 1, 'failed': 1, 'cancelled': 1
    }  # fmt: skip
    seconds, job = found['longest_wait']
    assert seconds >= 100 and job['oid'] in (zoo['due'].oid, zoo['held'].oid)
    assert job['wait_seconds'] == seconds


def test_a_job_in_full(layer, put, run):
    job = put(operator.truediv, (1, 0), retries=0, id='zero')
    job.annotations['note'] = 'by hand'
    transaction.commit()
    run(job)
    facts = monitor.full(job)
    assert facts['args'] == ['1', '0'] and facts['result'] == 'division by zero'
    assert facts['annotations'] == {'note': "'by hand'"} and facts['id'] == 'zero'
    assert facts['state'] == 'failed' and facts['agent'] == 'main' and facts['ended'][-1] == 'Z'
    assert monitor.traceback(job, 'brief').count('\n') < monitor.traceback(job).count('\n')
    assert monitor.traceback(job).rstrip().endswith('division by zero')
    assert monitor.traceback(put(delay=5)) is None


def test_oldest_due(layer, put):
    """The age of a queue is that of its oldest job, whatever the priorities are."""
    layer.agent.size = 0
    put(priority=5)
    layer.reactor.time_flies(60)
    put(priority=1)
    layer.reactor.time_flies(30)
    transaction.begin()
    facts = monitor.queue_facts(layer.queue)
    assert 90 <= facts['oldest_due_seconds'] < 91
    health = monitor.health(layer.queues, max_wait=60)
    assert health['problems'] == ["queue '': a due job has waited 90 s"]


def test_parents_that_wait_are_active(layer, put):
    layer.agent.size = 1
    job = put(make_a_job, ())
    layer.reactor.settle()
    transaction.begin()
    assert oids(monitor.jobs(layer.queues, 'active')) == [job.oid]
    assert monitor.why(job).startswith('it has run, and waits for job ')


def make_a_job():
    from zodbjobs import local

    return local.getQueue().put(Job(operator.mul, 2, 3), delay=500)
