"""Dispatchers that share a large backlog: each takes from its own trees first, none for ever."""

import pytest

from tests.model.support import work
from zodbjobs import clock
from zodbjobs.model.handout import SHARD_MICROSECONDS, Round
from zodbjobs.model.ready import SHARD_RUN, SHARDS

COUNT = SHARD_RUN * SHARDS


@pytest.fixture
def backlog(side, queue, monkeypatch):
    """The oids of that many sorted jobs in the order of their filing."""
    # Lanes are read one after the other, so only those of one lane are sorted in as they were put.
    monkeypatch.setattr('zodbjobs.model.intake.SPARE_CHUNKS', COUNT)
    oids = [queue.put(work).oid for _ in range(COUNT)]
    look = Round(queue, clock.micros())
    while queue.intake.count():
        look.sort()
        look.file_rest(leave=0)
        look = Round(queue, clock.micros())
    side.commit()
    assert len(queue.ready.groups) == SHARDS
    return oids


def claim(side, room, rank=0, count=1):
    look = Round(side.queue, clock.micros(), rank, count=count)
    look.sort()
    found = look.pick(side.agent, room)
    look.file_rest()
    return [int.from_bytes(assignment.oid, 'big') for assignment in found]


def test_one_dispatcher_takes_all_in_order(side, backlog):
    assert claim(side, COUNT) == backlog


def test_two_take_from_different_trees_and_do_not_conflict(side, house, backlog):
    other = house.side()
    other.begin()
    other_agent = other.agent  # a record of its own
    assert other_agent is not side.agent
    other.commit()
    side.begin()
    other.begin()
    mine, theirs = claim(side, 8, 0, 2), claim(other, 8, 1, 2)
    assert mine == backlog[:8]
    assert theirs == backlog[SHARD_RUN : SHARD_RUN + 8]
    side.commit()
    other.commit()


def test_one_that_is_alone_in_the_end_takes_the_rest(side, backlog):
    assert sorted(claim(side, COUNT, 1, 2)) == sorted(backlog)


def test_what_lies_in_the_shards_of_others_is_not_left_there_for_ever(side, queue, turned, backlog):
    """Own jobs that were filed much later come behind it."""
    turned.advance(SHARD_MICROSECONDS / clock.SECOND + 1)
    late = [queue.put(work).oid for _ in range(SHARD_RUN)]
    look = Round(queue, clock.micros())
    look.sort()
    look.file_rest(leave=0)
    order = claim(side, 2 * COUNT, 1, 2)
    assert max(map(order.index, backlog)) < min(map(order.index, late))
