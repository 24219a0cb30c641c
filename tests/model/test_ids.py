"""The index of ids: only equal ids collide, and what has finished is free."""

import pytest
from ZODB.POSException import ConflictError

from tests.model.support import work
from zodbjobs import Job
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
