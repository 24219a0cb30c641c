"""Producers and dispatchers at the lanes: what merges, what conflicts, what is never lost."""

import contextlib

import pytest
from ZODB.POSException import ConflictError

from tests.model.support import work
from zodbjobs.model.intake import (
    CHUNK_ENTRIES,
    DEFAULT_PRIORITY,
    GRACE_SECONDS,
    LANES,
    LARGE_CHUNK_ENTRIES,
    LINGER_SECONDS,
    SENTINEL,
    SPARE_CHUNKS,
    TIDY_SECONDS,
    URGENT,
    chunk_room,
    entries_of,
    key_of_first,
    lane_number,
    loaded,
    new_bucket,
    size_of,
)
from zodbjobs.model.tokens import first_token, next_token


@pytest.fixture
def one_lane(monkeypatch):
    """Every connection puts into the same lane: the worst that chance can bring."""
    monkeypatch.setattr('zodbjobs.model.intake.lane_number', lambda jar: 3)


@pytest.fixture
def sides(house, one_lane):
    """Three more connections, with transactions of their own."""
    return [house.side() for _ in range(3)]


def put(side, count=1):
    return [side.queue.put(work) for _ in range(count)]


def chunks_of(queue, lane=3):
    return {key: chunk for key, chunk in queue.intake.lanes[lane].items() if key != SENTINEL}


def waiting(side):
    side.begin()
    return [job._p_oid for job in side.queue]


# Merging -----------------------------------------------------------------------------------


def test_concurrent_puts_into_one_chunk_merge(side, sides):
    jobs = [job for each in sides for job in put(each, 5)]
    for each in sides:
        each.commit()
    assert sorted(waiting(side)) == sorted(job._p_oid for job in jobs)


def test_a_put_merges_with_a_claim_of_all_there_was(side, sides):
    slow, claimer, other = sides
    early = put(other, 3)
    other.commit()
    for each in (slow, claimer):
        each.begin()
    late = put(slow)
    assert len(claimer.claim(5)) == len(early)
    claimer.commit()
    slow.commit()
    assert waiting(side) == [late[0]._p_oid]


def test_a_transaction_may_stay_open_while_chunks_fill_and_are_emptied(side, sides):
    slow, producer, claimer = sides
    late = put(slow)
    for _ in range(3):
        producer.begin()
        put(producer, CHUNK_ENTRIES)
        producer.commit()
        claimer.begin()
        claimer.claim(2 * CHUNK_ENTRIES)
        claimer.commit()
    slow.commit()
    assert waiting(side) == [late[0]._p_oid]


def test_two_claims_of_one_job_conflict(sides):
    first, second, producer = sides
    (job,) = put(producer)
    producer.commit()
    for each in (first, second):
        assert each.agent is not None
        each.commit()
    assert [each.claim()[0].oid for each in (first, second)] == [job._p_oid] * 2
    first.commit()
    with pytest.raises(ConflictError):
        second.commit()
    second.abort()
    assert second.claim() == []


def test_claims_of_different_jobs_in_one_chunk_merge(side, sides):
    first, second, producer = sides
    jobs = put(producer, 2)
    jobs[1].channel = 'other'
    producer.commit()
    for each, channel in ((first, ''), (second, 'other')):
        each.begin()
        each.agent.channels = [channel]
        each.commit()
        each.begin()
    claims = [each.claim(5)[0].oid for each in (first, second)]
    assert claims == [job._p_oid for job in jobs]
    first.commit()
    second.commit()
    assert waiting(side) == []


def test_removal_of_a_job_conflicts_with_its_claim(sides):
    app, claimer, producer = sides
    (job,) = put(producer)
    producer.commit()
    for each in (app, claimer):
        each.begin()
    app.queue.remove(app.twin(job))
    claimer.claim()
    claimer.commit()
    with pytest.raises(ConflictError):
        app.commit()


# Chunks ------------------------------------------------------------------------------------


def test_a_full_chunk_is_followed_by_a_new_one(side, queue, one_lane):
    put(side, 2 * CHUNK_ENTRIES + 1)
    sizes = [size_of(chunk) for chunk in chunks_of(queue).values()]
    assert sizes == [CHUNK_ENTRIES, CHUNK_ENTRIES, 1]
    assert len(queue) == 2 * CHUNK_ENTRIES + 1


def test_where_there_are_many_chunks_new_ones_are_larger(side, queue, one_lane, monkeypatch):
    """Else a large backlog would make each put write a large directory."""
    monkeypatch.setattr('zodbjobs.model.intake.SPARE_CHUNKS', 1000)
    put(side, 500)
    sizes = [size_of(chunk) for chunk in chunks_of(queue).values()][:-1]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (CHUNK_ENTRIES, chunk_room(len(sizes)))
    assert sizes[-1] > CHUNK_ENTRIES


def test_a_chunk_has_a_bound():
    """It takes time to merge a large one."""
    assert chunk_room(0) == chunk_room(32) == CHUNK_ENTRIES
    assert chunk_room(10**6) == LARGE_CHUNK_ENTRIES


def test_a_long_lane_is_left_for_a_shorter_one(side, queue, one_lane):
    """One producer alone would else fill one lane, and write it anew with each chunk."""
    jobs = put(side, 800)
    lengths = [size_of(lane) for lane in queue.intake.lanes]
    assert max(lengths) - min(lengths) <= SPARE_CHUNKS + 1
    assert len(queue) == 800
    assert list(queue) == jobs


def test_only_wishes_are_stored_with_an_entry(side, queue, one_lane):
    """A chunk is written anew with each put, so most entries are as small as can be."""
    plain, again = queue.put(work), queue.put(work)
    queue.refile(again)
    wishing = queue.put(work, priority=1, begin_by=5)
    (chunk,) = chunks_of(queue).values()
    assert [key for key, found in entries_of(chunk) if found is plain] == [chunk.maxKey()]
    assert chunk[again.oid] == (again._token, again)
    assert len(chunk[wishing.oid]) == 5
    found = {entry.job: entry for _, _, entry in queue.intake.entries()}
    for job in (plain, again):
        assert found[job] == (job._token, 0, (DEFAULT_PRIORITY, '', (), 0), job, 0)
    assert found[wishing].group[0] == 1 and found[wishing].deadline > 0


def test_jobs_that_would_have_one_key_have_two(side, queue, one_lane, turned, monkeypatch):
    """No entry takes the place of another one, whatever the clock says."""
    monkeypatch.setattr('zodbjobs.model.queue._filings.at_once', lambda now: now)
    monkeypatch.setattr('zodbjobs.model.intake.OID_MASK', 0)
    jobs = put(side, 3)
    assert len({job._token for job in jobs}) == 1
    side.commit()
    assert {entry.job for *_, entry in queue.intake.entries()} == set(jobs)
    assert [entry.token for *_, entry in queue.intake.entries()] == [jobs[0]._token] * 3
    for job in reversed(jobs):
        assert queue.intake.remove(job.oid, job._token)
        assert not queue.intake.remove(job.oid, job._token)


@pytest.mark.parametrize('us', [0, 5, 2**49 - 1, 2**49, 2**51, 2**52 - 1, 2**52, 2**56])
def test_no_oid_looks_like_the_time_of_a_filing(us):
    """Whatever the clock says; and what a key tells of a filing is its token."""
    oid = 2**40 + 5
    key = key_of_first(first_token(us), oid)
    assert key == 0 or 2**59 < key < 2**63
    assert bool(key) == (2**49 <= us < 2**52)
    if key:
        assert loaded(key, oid) == (first_token(us), 0, (DEFAULT_PRIORITY, '', (), 0), oid, 0)
    assert not key_of_first(next_token(first_token(us), urgent=False), oid)


def test_two_producers_may_open_a_chunk_each(side, sides, turned):
    first, second, _ = sides
    put(first, CHUNK_ENTRIES)
    first.commit()
    for each in (first, second):
        each.begin()
        put(each)
    first.commit()
    second.commit()
    assert len(waiting(side)) == CHUNK_ENTRIES + 2


def emptied(side, turned):
    """Fill a chunk, open the next one, claim everything, and wait until the first is out of use."""
    put(side, CHUNK_ENTRIES + 2)
    side.commit()
    side.claim(2 * CHUNK_ENTRIES)
    turned.advance(LINGER_SECONDS + 1)
    assert side.queue.intake.prune(turned.micros()) == 1
    side.commit()


def test_an_empty_chunk_goes_when_it_has_a_successor(side, queue, one_lane, turned):
    put(side, CHUNK_ENTRIES + 1)
    (old, new) = chunks_of(queue).values()
    side.commit()
    intake, now = queue.intake, turned.micros
    turned.advance(LINGER_SECONDS + 1)
    assert intake.prune(now()) == 0  # not empty
    side.claim(2 * CHUNK_ENTRIES)
    turned.now -= 2_000_000
    assert intake.prune(now()) == 0  # not for long enough
    turned.now += 2_000_000
    assert intake.prune(now()) == 1
    assert list(chunks_of(queue).values()) == [new]
    assert (size_of(old), len(old)) == (0, 1)  # it still merges
    turned.advance(GRACE_SECONDS + 1)
    assert intake.prune(now()) == 1
    assert len(old) == 0  # closed: without its sentinel
    assert intake.prune(now()) == 0  # never the newest


def test_a_put_into_a_chunk_that_went_meanwhile_is_found(sides, turned):
    slow, dispatcher, _ = sides
    late = put(slow)
    dispatcher.begin()
    emptied(dispatcher, turned)
    slow.commit()
    dispatcher.begin()
    intake = dispatcher.queue.intake
    assert [entry.job.oid for *_, entry in intake.entries(late=True)] == [late[0].oid]
    turned.advance(GRACE_SECONDS + 1)
    assert intake.prune(turned.micros()) == 0  # it is not closed before that is taken
    assert intake.remove(late[0].oid, late[0]._token)
    assert intake.prune(turned.micros()) == 1


def test_claims_by_hand_look_after_lanes(side, queue, one_lane, turned):
    """Nobody else does, where there is neither a dispatcher nor a consumer."""
    lane = queue.intake.lanes[3]
    for _ in range(4):
        put(side, 3 * CHUNK_ENTRIES)
        while queue.claim() is not None:
            turned.advance(0.1)
        turned.advance(TIDY_SECONDS)
    assert queue.claim() is None
    assert size_of(lane) <= 2


def test_claims_by_hand_find_all_that_came_late(sides, turned):
    """Not one of them each time that the lanes are looked after."""
    slow, dispatcher, claimer = sides
    late = put(slow, 3)
    dispatcher.begin()
    emptied(dispatcher, turned)
    slow.commit()
    claimer.begin()
    claimed = [claimer.queue.claim() for _ in range(4)]
    assert claimed == [*map(claimer.twin, late), None]


def test_what_came_late_is_sorted_for_everybody(sides, turned):
    """Only slow polls look into chunks that are out of use: consumers never do."""
    slow, dispatcher, claimer = sides
    (late,) = put(slow)
    dispatcher.begin()
    emptied(dispatcher, turned)
    slow.commit()
    dispatcher.begin()
    look = dispatcher.look()
    look.sort(late=True)
    look.file_rest()
    dispatcher.commit()
    claimer.begin()
    assert [found.oid for found in claimer.claim(1)] == [late._p_oid]


def test_a_chunk_that_was_closed_conflicts_and_loses_nothing(sides, turned):
    slow, dispatcher, _ = sides
    put(slow)
    dispatcher.begin()
    emptied(dispatcher, turned)
    turned.advance(GRACE_SECONDS + 1)
    assert dispatcher.queue.intake.prune(turned.micros()) == 1
    dispatcher.commit()
    with pytest.raises(ConflictError):
        slow.commit()
    slow.abort()
    (again,) = put(slow)
    slow.commit()
    assert waiting(dispatcher) == [again._p_oid]


# Counting and finding ----------------------------------------------------------------------


def test_the_count_of_very_many_chunks_is_extrapolated(side, queue, one_lane, monkeypatch):
    put(side, 500)
    assert len(queue) == 500
    monkeypatch.setattr('zodbjobs.model.intake.COUNTED_CHUNKS', 30)
    assert len(queue) == pytest.approx(500, rel=0.15)


def test_an_entry_is_found_in_any_chunk(side, queue, one_lane):
    jobs = put(side, 2 * CHUNK_ENTRIES + 1)
    for job in (jobs[0], jobs[CHUNK_ENTRIES], jobs[-1]):
        assert queue.intake.remove(job.oid, job._token)
        assert not queue.intake.remove(job.oid, job._token)
    assert len(queue) == len(jobs) - 3


@pytest.mark.parametrize('lanes', [(1, 2), (2, 1)])
def test_what_runs_again_is_taken_out_and_not_its_former_end(side, queue, monkeypatch, lanes):
    """Both may be there, where different connections have filed them."""
    (job,) = put(side)
    for lane, deed in zip(lanes, (job.cancel, job.retry), strict=True):
        monkeypatch.setattr('zodbjobs.model.intake.lane_number', lambda jar, lane=lane: lane)
        deed()
        side.commit()
    assert len(list(queue.intake.entries())) == 2
    job.hold()
    assert [entry.group[0] for _, _, entry in queue.intake.entries()] == [URGENT]
    assert len(queue) == 0


def test_no_more_entries_are_read_than_asked_for(side, queue, one_lane):
    put(side, CHUNK_ENTRIES + 10)
    assert len(list(queue.intake.entries(CHUNK_ENTRIES + 1))) == CHUNK_ENTRIES + 1
    assert len(list(queue.intake.entries(5))) == 5


def test_dispatchers_may_read_lanes_of_their_own(side, queue, monkeypatch):
    for lane in (0, 5):
        monkeypatch.setattr('zodbjobs.model.intake.lane_number', lambda jar, lane=lane: lane)
        put(side)
    first, second = queue
    lanes = [[0, 1], [5], [1, 2], [5, 0]]
    found = [[entry.job for *_, entry in queue.intake.entries(lanes=each)] for each in lanes]
    assert found == [[first], [second], [], [second, first]]


def test_a_connection_has_one_lane(house):
    sides = [house.side() for _ in range(20)]
    lanes = [lane_number(each.connection) for each in sides]
    assert lanes == [lane_number(each.connection) for each in sides]
    assert len(set(lanes)) > 1
    assert set(lanes) <= set(range(LANES))


def test_what_is_watched_changes_with_a_put(house, side, queue, one_lane):
    """Whoever waits for one of these to change hears of every put, into a new chunk too."""
    watched = queue.intake.oids()
    other = house.side()
    for _ in range(2):
        other.begin()
        put(other, CHUNK_ENTRIES)
        other.commit()
        last = other.connection.db().lastTransaction()
        assert changes(house.db.storage, last) & watched
        side.begin()
        watched = queue.intake.oids()


def changes(storage, tid):
    with contextlib.closing(storage.iterator(tid)) as transactions:
        return {record.oid for transaction in transactions for record in transaction}


def test_a_bucket_keeps_its_sentinel():
    bucket = new_bucket()
    bucket[5] = 'five'
    assert (entries_of(bucket), size_of(bucket)) == ([(5, 'five')], 1)
    del bucket[5]
    assert (entries_of(bucket), size_of(bucket), list(bucket)) == ([], 0, [SENTINEL])
    bucket.clear()
    assert size_of(bucket) == 0
