"""Serial and parallel as records: what conflicts, what an abort takes back, how they grow.

How they run is in tests/runtime.
"""

import pytest
from ZODB.POSException import ConflictError

from tests.model.support import fails, other_work, work
from zodbjobs import Failure, Job, clock, parallel, serial, status
from zodbjobs.interfaces import BadStatusError
from zodbjobs.model.compose import Composite

KINDS = [serial, parallel]
both_kinds = pytest.mark.parametrize('compose', KINDS, ids=lambda kind: kind.__name__)


def start(side, job):
    """Claim `job`, which is the first, and do what its worker does."""
    assert side.claimed_jobs() == [job]
    job.begun(clock.micros(), side.agent._p_oid)
    value = job.run()
    if value is job:
        job._status = status.ACTIVE
    elif isinstance(value, Job):
        job.waits_for_job(value)
    else:
        job.settled(value)
        job.finished()
    side.commit()


def end(side, part, result=None):
    """Claim a part, which is the first, and finish it."""
    assert side.claimed_jobs() == [part]
    part.settled(result)
    part.finished()


def waiting(queue):
    return [job for job in queue if not isinstance(job, Composite)]


# In order ----------------------------------------------------------------------------------


def test_serial_puts_one_after_the_other(side, queue):
    whole = queue.put(serial(Job(work, 1), Job(work, 2), postprocess=Job(work, 'all')))
    one, two = whole.args
    start(side, whole)
    assert waiting(queue) == [one]
    assert (whole.status, whole.result, two.status) == (status.ACTIVE, None, status.NEW)
    end(side, one)
    assert waiting(queue) == [two]
    end(side, two, Failure(ValueError()))
    assert waiting(queue) == [whole.postprocess]
    assert whole.postprocess.args == ['all', one, two]
    end(side, whole.postprocess, 'done')
    assert (whole.status, whole.result) == (status.COMPLETED, 'done')


def test_parallel_puts_all_at_once(side, queue):
    whole = queue.put(parallel(Job(work, 1), Job(work, 2)))
    start(side, whole)
    parts = list(whole.args)
    assert waiting(queue) == parts
    for part in parts:
        assert whole.status == status.ACTIVE
        end(side, part)
    assert (whole.status, whole.result) == (status.COMPLETED, tuple(parts))


@both_kinds
def test_nothing_to_do_is_done_at_once(side, queue, compose):
    whole = queue.put(compose())
    start(side, whole)
    assert (whole.status, whole.result) == (status.COMPLETED, ())


@both_kinds
def test_nothing_to_do_is_postprocessed(side, queue, compose):
    whole = queue.put(compose(postprocess=work))
    start(side, whole)
    end(side, whole.postprocess, 'empty')
    assert whole.result == 'empty'


@both_kinds
def test_parts_may_be_anything_that_can_be_put(side, queue, compose):
    inner = serial(work)
    whole = queue.put(compose(work, Job(other_work), inner))
    assert [type(part).__name__ for part in whole.args] == ['Job', 'Job', 'Serial']
    side.commit()
    with pytest.raises(TypeError, match='lambda'):
        compose(lambda: None)
    with pytest.raises(TypeError):
        compose(work, unheard=work)


def test_what_a_part_cannot_be_is_refused_by_put(side, queue):
    with pytest.raises(TypeError, match='cannot be stored'):
        queue.put(serial(Job(work, lambda: None)))
    whole = queue.put(parallel(work))
    whole.args.append(5)
    side.commit()
    assert side.claimed_jobs() == [whole]
    with pytest.raises(TypeError, match='cannot be called'):
        whole.run()


@both_kinds
def test_it_must_be_put(compose):
    assert compose(work)().type is BadStatusError


@both_kinds
def test_parts_take_priority_and_channel_unless_they_have_their_own(side, queue, compose):
    own = Job(fails)
    own.priority = 3
    whole = queue.put(compose(own, postprocess=work), priority=7, channel='heavy')
    start(side, whole)
    assert (own.priority, own.channel) == (3, None)
    end(side, own)
    assert (whole.postprocess.priority, whole.postprocess.channel) == (7, 'heavy')


# Growing -----------------------------------------------------------------------------------


@both_kinds
def test_parts_may_be_added_by_a_part(side, queue, compose):
    whole = queue.put(compose(work))
    (one,) = whole.args
    start(side, whole)
    assert side.claimed_jobs() == [one]
    whole.args.append(work)
    one.settled(None)
    one.finished()
    side.commit()
    two = whole.args[1]
    assert (waiting(queue), whole.status) == ([two], status.ACTIVE)
    end(side, two)
    assert whole.result == (one, two)


def test_to_add_a_part_conflicts_with_the_end(house, side, queue):
    """Either the part is done, or its adder hears that it came too late."""
    whole = queue.put(parallel(work))
    start(side, whole)
    other = house.side()
    other.begin()
    other.twin(whole).args.append(Job(work))
    end(side, whole.args[0])
    side.commit()
    with pytest.raises(ConflictError):
        other.commit()


# Conflicts and aborts ----------------------------------------------------------------------


def test_of_two_last_parts_that_end_at_once_one_looks_again(house, side, queue):
    whole = queue.put(parallel(work, other_work))
    start(side, whole)
    parts = list(whole.args)
    assert side.claimed_jobs(2) == parts
    side.commit()
    other = house.side()
    other.begin()
    parts[0].settled(1)
    parts[0].finished()
    theirs = other.twin(parts[1])
    theirs.settled(2)
    theirs.finished()
    assert whole.status == other.twin(whole).status == status.ACTIVE
    side.commit()
    with pytest.raises(ConflictError):
        other.commit()
    other.abort()
    theirs.settled(2)
    theirs.finished()
    other.commit()
    side.begin()
    assert whole.status == status.COMPLETED


def test_parts_that_are_not_the_last_disturb_nobody(house, side, queue):
    whole = queue.put(parallel(work, work, work))
    start(side, whole)
    parts = list(whole.args)
    side.claim(3)
    side.commit()
    other = house.side()
    other.begin()
    for each, part in ((side, parts[1]), (other, other.twin(parts[2]))):
        part.settled(None)
        part.finished()
        assert each is not None
    side.commit()
    other.commit()
    side.begin()
    assert (whole.status, parts[2].status) == (status.ACTIVE, status.COMPLETED)


def test_a_part_whose_end_was_aborted_is_not_done(side, queue):
    whole = queue.put(parallel(work, other_work))
    start(side, whole)
    first, second = whole.args
    side.claim(2)
    side.commit()
    first.settled(None)
    first.finished()
    side.abort()  # a conflict
    assert first.status == status.ACTIVE
    second.settled(None)
    second.finished()
    side.commit()
    assert whole.status == status.ACTIVE
    first.settled(None)
    first.finished()
    assert whole.status == status.COMPLETED


def test_very_many_parts_do_not_cost_their_square(side, queue, monkeypatch):
    """What is known to be done is not looked at again."""
    whole = queue.put(parallel(*[Job(work, n) for n in range(60)]))
    start(side, whole)
    parts = list(whole.args)
    looks = []
    part_of = Composite._part
    monkeypatch.setattr(Composite, '_part', lambda self, i: looks.append(i) or part_of(self, i))
    side.claim(60)
    for part in parts:
        part.settled(None)
        part.finished()
        side.commit()
    assert whole.status == status.COMPLETED
    assert len(looks) < 6 * len(parts)
