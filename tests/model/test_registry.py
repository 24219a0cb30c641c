"""Records of dispatchers: made, activated, ended; and what becomes of the jobs they held."""

import uuid

import pytest
import zope.event
from ZODB.POSException import ConflictError

from tests.model.support import work
from zodbjobs import Agent, clock, status
from zodbjobs.interfaces import (
    DispatcherActivated,
    DispatcherDeactivated,
    DispatcherReactivated,
    DispatcherRegistered,
    DispatcherUnregistered,
)

A = uuid.UUID(int=1)


@pytest.fixture
def events():
    """The dispatcher events of the test, as (class name, UUID)."""
    found = []

    def listen(event):
        kinds = (
            DispatcherActivated, DispatcherDeactivated, DispatcherReactivated,
            DispatcherRegistered, DispatcherUnregistered,
        )  # fmt: skip
        if isinstance(event, kinds):
            found.append((type(event).__name__, event.object.UUID))

    zope.event.subscribers.append(listen)
    yield found
    zope.event.subscribers.remove(listen)


# Records -----------------------------------------------------------------------------------


def test_a_dispatcher_is_registered_once(queue, events):
    record = queue.dispatchers.register(A)
    with pytest.raises(ValueError, match='registered already'):
        queue.dispatchers.register(str(A))
    assert queue.dispatchers[A] is queue.dispatchers[str(A)] is record
    assert (record.UUID, record.queue, record.activated, record.dead) == (A, queue, None, False)
    assert events == [('DispatcherRegistered', A)]
    with pytest.raises(ValueError):
        queue.dispatchers.register('no uuid')


def test_dispatchers_are_a_mapping(queue):
    record = queue.dispatchers.register(A)
    dispatchers = queue.dispatchers
    assert (list(dispatchers), len(dispatchers), bool(dispatchers)) == ([A], 1, True)
    assert list(dispatchers.keys()) == [A]
    assert (list(dispatchers.values()), list(dispatchers.items())) == ([record], [(A, record)])
    assert (A in dispatchers, uuid.UUID(int=2) in dispatchers) == (True, False)
    assert dispatchers.get(uuid.UUID(int=2), 'none') == 'none'
    with pytest.raises(KeyError):
        dispatchers[uuid.UUID(int=2)]


def test_an_idle_dispatcher_may_be_forgotten(queue, events):
    record = queue.dispatchers.register(A)
    record.activate()
    with pytest.raises(ValueError, match='stop it first'):
        queue.dispatchers.unregister(A)
    record.deactivate()
    assert queue.dispatchers.unregister(A) is record
    assert list(queue.dispatchers) == []
    with pytest.raises(KeyError):
        queue.dispatchers.unregister(A)
    assert [name for name, _ in events] == [
        'DispatcherRegistered', 'DispatcherActivated', 'DispatcherDeactivated',
        'DispatcherUnregistered',
    ]  # fmt: skip


def test_one_that_still_waits_for_jobs_is_kept(side, queue):
    job = queue.put(work)
    side.commit()
    side.claim()
    job.begun(1, None)
    job.waits_for_job(queue.put(work))
    side.record.deactivate()
    with pytest.raises(ValueError, match='still holds 1 jobs'):
        queue.dispatchers.unregister(side.uuid)


def test_activate_and_deactivate_take_turns(queue, turned, events):
    record = queue.dispatchers.register(A)
    with pytest.raises(ValueError, match='is not activated'):
        record.deactivate()
    record.activate('host', 7)
    assert (record.activated, record.host, record.pid) == (clock.now(), 'host', 7)
    with pytest.raises(ValueError, match='activated already'):
        record.activate()
    record.died()
    assert (record.activated, record.dead) == (None, True)
    record.reactivate()
    assert (record.activated, record.dead) == (clock.now(), False)
    assert events[2:] == [('DispatcherDeactivated', A), ('DispatcherReactivated', A)]


# Agents ------------------------------------------------------------------------------------


def test_agents_have_one_place(queue):
    record = queue.dispatchers.register(A)
    agent = record['main'] = Agent()
    assert (agent.name, agent.parent, agent.queue) == ('main', record, queue)
    record['main'] = agent
    with pytest.raises(ValueError, match='serves .* already'):
        record['other'] = agent
    with pytest.raises(ValueError, match='serves .* already'):
        queue.dispatchers.register(uuid.UUID(int=2))['main'] = agent
    with pytest.raises(ValueError, match='only an agent'):
        record['number'] = 5
    assert (list(record), len(record)) == (['main'], 1)
    del record['main']
    assert (agent.parent, list(record)) == (None, [])


def test_an_agent_with_jobs_is_neither_replaced_nor_removed(side, queue):
    job = queue.put(work)
    side.commit()
    side.claim()
    old = side.agent
    for deed in (
        lambda: side.record.__setitem__('main', Agent()),
        lambda: side.record.__delitem__('main'),
    ):
        with pytest.raises(ValueError, match='still has 1 jobs; set its size to 0'):
            deed()
    assert (side.agent, list(old)) == (old, [job])
    side.run(job)
    new = side.record['main'] = Agent(size=7)
    assert (side.agent, old.parent) == (new, None)


def test_what_ended_is_written_down_before_its_agent_goes(side, queue):
    job = queue.put(work, id='one')
    waits = queue.put(work, after=[job])
    side.commit()
    (assignment,) = side.claim()
    side.work(assignment)  # and nobody has reported it yet
    old = side.agent
    side.record['main'] = Agent()
    assert list(old.history) == [job]
    assert side.claimed_jobs() == [waits]
    assert not any(map(len, queue.ids.slots))


# Giving back -------------------------------------------------------------------------------


def claimed(side, count=1, **wishes):
    jobs = [side.queue.put(work, **wishes) for _ in range(count)]
    side.commit()
    assignments = side.claim(count)
    assert len(assignments) == count
    side.commit()
    return jobs


def test_a_stop_gives_jobs_back_uncounted(side, queue):
    jobs = claimed(side, 3)
    other = queue.put(work)
    side.record.deactivate(begun=[jobs[1].oid])
    assert (list(queue), len(queue), len(side.agent)) == ([*jobs, other], 4, 0)
    assert [(job.attempts, job.interruptions) for job in jobs] == [(0, 0)] * 3
    assert [job._interrupted for job in jobs] == [False, True, False]


def test_a_death_counts_as_an_interruption(side, queue):
    jobs = claimed(side, 2)
    side.record.died()
    assert list(queue) == jobs
    assert [(job.interruptions, job._interrupted) for job in jobs] == [(1, True)] * 2


def test_of_jobs_claimed_ahead_it_is_not_known_who_had_begun(side, queue):
    """They are not counted, and next time claimed for a free thread only: then it is known."""
    jobs = [queue.put(work) for _ in range(4)]
    side.commit()
    assert len(side.claim(1, ahead=2)) == 3
    side.record.died()
    assert list(queue) == jobs
    assert [job.interruptions for job in jobs] == [1, 0, 0, 0]
    assert [job.attempts for job in jobs] == [1, 0, 0, 0]
    assert [job._interrupted for job in jobs] == [True, True, True, False]
    side.record.activate()
    assert side.claimed_jobs(1, ahead=9) == [jobs[0], jobs[3]]
    side.run(jobs[0])
    assert side.claimed_jobs(1, ahead=9) == [jobs[1]]
    side.record.died()
    assert [job.interruptions for job in jobs[1:]] == [1, 0, 0]
    side.record.activate()
    assert side.claimed_jobs(3) == jobs[1:]


def test_a_job_claimed_ahead_that_waits_for_a_deferred_had_begun(side, queue):
    queue.put(work)
    job = queue.put(work)
    side.commit()
    assert len(side.claim(1, ahead=1)) == 2
    job.begun(1, side.agent._p_oid)
    job.waits_for_deferred()
    side.record.died()
    assert (job.attempts, job.interruptions) == (1, 1)


def test_what_had_ended_is_listed(side, queue):
    job, waits = claimed(side, 1, id='one')[0], queue.put(work, id='two')
    waits._after = (job,)
    queue.refile(waits)
    side.commit()
    assert side.claim(0) == []
    job.begun(1, None)
    job.settled(5)
    job.finished()
    side.record.died()
    assert list(side.agent.history) == [job]
    assert job.interruptions == 0
    side.record.activate()
    assert side.claimed_jobs(9) == [waits]
    assert queue.ids.get('one') is None


@pytest.mark.parametrize('how', ['deactivate', 'died'])
def test_callbacks_go_on_elsewhere(house, side, queue, how):
    job = queue.put(work)
    job.addCallback(work)
    side.commit()
    side.claim()
    job.begun(1, None)
    job.settled(5)
    side.commit()
    getattr(side.record, how)()
    side.commit()
    assert (job.status, job.interruptions, len(queue)) == (status.CALLBACKS, how == 'died', 0)
    other = house.side()
    assert other.claimed_jobs() == [other.twin(job)]


def test_a_job_that_waits_for_another_goes_on_waiting(side, queue):
    (outer,) = claimed(side)
    inner = queue.put(work)
    outer.begun(1, side.agent._p_oid)
    outer.waits_for_job(inner)
    side.record.died()
    assert (outer.status, outer.interruptions) == (status.ACTIVE, 0)
    assert (list(side.agent), side.agent.held_count()) == ([outer], 0)


def test_a_withdrawn_filing_is_counted_out(side, queue):
    (job,) = claimed(side)
    stale = queue.put(work)
    side.commit()
    side.file_all()
    stale.hold()
    assert len(side.claim(1)) == 1
    side.record.deactivate()
    assert (len(queue), list(queue)) == (1, [job])
    stale.resume()
    assert (len(queue), list(queue)) == (2, [job, stale])


def test_the_count_recovers_from_a_crash(side, queue):
    """After a death it is not known which claims had been withdrawn."""
    job = queue.put(work)
    side.commit()
    side.file_all()
    side.commit()
    job.hold()
    assert len(side.claim(1)) == 1
    side.record.died()
    side.record.activate()
    side.commit()
    assert side.claim(1) == []
    assert queue.ready.dropped() == 0
    job.resume()
    assert len(queue) == 1


def test_nothing_is_given_back_twice(house, side, queue):
    """Two siblings that bury the same dispatcher conflict."""
    (job,) = claimed(side)
    first, second = house.side(), house.side()
    for each in (first, second):
        each.begin()
        each.queue.dispatchers[side.uuid].died()
    first.commit()
    with pytest.raises(ConflictError):
        second.commit()
    side.begin()
    assert (list(queue), job.interruptions) == ([job], 1)


def test_a_zombie_cannot_complete_what_went_to_another(house, side, queue):
    (job,) = claimed(side)
    job.begun(1, None)
    job.settled('zombie')
    job.finished()
    sibling = house.side()
    sibling.begin()
    sibling.queue.dispatchers[side.uuid].died()
    sibling.commit()
    with pytest.raises(ConflictError):
        side.commit()
    side.abort()
    assert (job.status, job.result) == (status.PENDING, None)


def test_a_claim_that_came_after_the_burial_goes_back_too(side, queue):
    (job,) = claimed(side)
    record = side.record
    record.activated = None
    assert record.emptied()
    assert not record.emptied()
    assert (list(queue), job.interruptions) == ([job], 1)
