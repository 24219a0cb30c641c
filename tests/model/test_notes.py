"""Annotations: written beside the job, so that nobody who writes them disturbs the job."""

import pytest

from tests.model.support import work
from zodbjobs import Job


def test_they_are_a_mapping(queue):
    job = queue.put(work)
    notes = job.annotations
    assert (dict(notes), len(notes), 'a' in notes) == ({}, 0, False)
    notes['a'] = 1
    notes.update(b=2)
    assert notes.pop('a') == 1
    assert dict(job.annotations) == {'b': 2}
    with pytest.raises(KeyError):
        notes['a']
    with pytest.raises(KeyError):
        del notes['a']
    assert repr(notes) == "<Annotations {'b': 2}>"


def test_reading_them_writes_nothing(side, queue):
    job = queue.put(work)
    side.commit()
    assert dict(job.annotations) == {}
    assert job.progress is None
    assert not any(each._p_changed for each in (job, queue, queue.notes, queue.notes.trees))


def test_writing_them_does_not_write_the_job(side, queue):
    job = queue.put(work)
    side.commit()
    job.annotations['a'] = 1
    assert not job._p_changed


@pytest.mark.parametrize('before', [False, True])
def test_others_may_write_them_while_the_job_completes(house, side, queue, before):
    job = queue.put(work)
    if before:
        job.annotations['first'] = 0
    side.commit()
    (assignment,) = side.claim()
    side.commit()
    other = house.side()
    other.begin()
    other.twin(job).annotations['seen'] = 1
    side.work(assignment)
    side.commit()
    other.commit()
    side.begin()
    assert job.status == 'completed'
    assert job.annotations['seen'] == 1


def test_a_new_job_keeps_its_own(side, queue):
    job = Job(work)
    job.annotations['a'] = 1
    assert dict(job.annotations) == {'a': 1}
    queue.put(job)
    job.annotations['b'] = 2
    side.commit()
    assert dict(job.annotations) == {'a': 1, 'b': 2}
    job.annotations['c'] = 3
    assert not job._p_changed


def test_callbacks_have_some_of_their_own(side, queue):
    job = queue.put(work)
    callback = job.addCallback(work)
    callback.annotations['a'] = 1
    side.commit()
    assert (dict(callback.annotations), dict(job.annotations)) == ({'a': 1}, {})


@pytest.mark.parametrize('ttl', [0, 60, None])
def test_they_go_with_the_job(side, queue, turned, ttl):
    job = queue.put(work, result_ttl=ttl)
    job.annotations['a'] = 1
    side.commit()
    side.claim()
    side.run(job)
    assert len(queue.notes.trees) == (0 if ttl == 0 else 1)
    turned.advance(61 if ttl else 8 * 86_400)
    side.retire()
    assert len(queue.notes.trees) == 0
