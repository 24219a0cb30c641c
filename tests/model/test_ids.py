"""The index of ids: only equal ids collide, and what has finished is free."""

import itertools

import pytest
from ZODB.POSException import ConflictError

from tests.model.support import work
from zodbjobs import Failure, Job
from zodbjobs.interfaces import DuplicateJobError
from zodbjobs.model.ids import SLOTS, UniqueIds


def test_an_id_is_free_when_its_job_has_finished(side, queue):
    job = queue.put(work, id='one')
    assert queue.ids.get('one') is job
    side.commit()
    (assignment,) = side.claim()
    report = side.work(assignment)
    assert queue.ids.get('one') is None  # nobody has written it down yet
    other = queue.put(work, id='one')
    side.retire(report)
    assert queue.ids.get('one') is other  # and then nobody forgets the other one


def test_what_ended_is_forgotten(side, queue):
    job = queue.put(work, id='one')
    side.commit()
    side.claim()
    side.run(job)
    assert not any(len(slot) for slot in queue.ids.slots)


def failed(side, id):
    """(a job of that id that has just failed, its Report)."""
    job = side.queue.put(work, id=id)
    side.commit()
    (assignment,) = side.claim()
    report = side.work(assignment, Failure(ValueError()))
    side.commit()
    return job, report


@pytest.mark.parametrize('times', [1, 2])
def test_one_that_runs_again_before_its_end_was_heard_of_keeps_its_id(side, queue, times):
    job, report = failed(side, 'one')
    for _ in range(times):
        job.retry()
        side.retire(report)
        with pytest.raises(DuplicateJobError):
            queue.put(work, id='one')
        (assignment,) = side.claim()
        report = side.work(assignment, Failure(ValueError()))
    side.retire(report)
    assert not any(len(slot) for slot in queue.ids.slots)


@pytest.mark.parametrize('first', ['the retry', 'the report'])
@pytest.mark.parametrize('times', [1, 2])
def test_its_id_is_kept_also_when_both_overlap(house, side, first, times):
    slot = side.queue.ids._slot
    (next_door,) = itertools.islice(
        (id for id in map(str, range(999)) if slot(id) is slot('one')), 1
    )
    side.queue.put(work, delay=10, id=next_door)  # what is left alone merges
    job, report = failed(side, 'one')
    if times == 2:  # and is in the index from the time when it was to run again
        job.retry()
        (assignment,) = side.claim()
        report = side.work(assignment, Failure(ValueError()))
        side.commit()
    other = house.side()
    other.begin()
    side.begin()
    side.retire(report)
    other.twin(job).retry()
    order = (other, side) if first == 'the retry' else (side, other)
    order[0].commit()
    with pytest.raises(ConflictError):
        order[1].commit()


def test_only_the_owner_is_forgotten():
    ids, job = UniqueIds(), Job(work)
    ids.add('one', job)
    ids.discard('one', Job(work))
    ids.discard('other', job)
    assert sum(map(len, ids.slots)) == 1
    ids.discard('one', job)
    assert sum(map(len, ids.slots)) == 0


def test_different_ids_do_not_collide(house, side, queue):
    """There may be as many as there are slots in the fullest sense of bad luck; these differ."""
    sides = [house.side() for _ in range(5)]
    for number, each in enumerate(sides):
        each.queue.put(work, id=f'id {number}')
    slots = [queue.ids._slot(f'id {number}') for number in range(5)]
    assert len({id(slot) for slot in slots}) == 5
    for each in sides:
        each.commit()


def test_equal_ids_collide(house):
    first, second = house.side(), house.side()
    for each in (first, second):
        each.queue.put(work, id='same')
    first.commit()
    with pytest.raises(ConflictError):
        second.commit()


def test_any_text_may_be_an_id(side, queue):
    for id in ('', 'ä', '\ud800', 'x' * 10_000):
        if id:
            assert queue.put(work, id=id).id == id
    with pytest.raises(TypeError):
        queue.put(work, id='')
    assert len({queue.ids._slot(f'{n}')._p_oid for n in range(10 * SLOTS)}) == SLOTS
