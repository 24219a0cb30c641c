"""Producers pay nothing for being slow: their transactions meet no conflict with dispatchers.

An application's transaction may be open for as long as its request takes, while
others put and dispatchers claim.  Here that is 200 real milliseconds, in threads
with connections of their own, as the storage would see it.
"""

import collections
import contextlib
import threading

import pytest
from ZODB.POSException import ReadConflictError

from tests.storages.test_conformance import Site
from zodbjobs import Job, subscribers
from zodbjobs.interfaces import COMPLETED, PENDING
from zodbjobs.model.intake import CHUNK_ENTRIES, lane_number

PRODUCERS = 4
TRANSACTIONS = 5
JOBS = 10  # in each of them

#: How long a producer's transaction is open; what happens in it cannot be turned by a clock.
OPEN_SECONDS = 0.2

PATIENCE_SECONDS = 20


@pytest.fixture
def site(storage):
    with contextlib.closing(Site(storage)) as site:
        yield site


class Producer(threading.Thread):
    """Puts `TRANSACTIONS` times `JOBS` jobs, half of them late; `error` is what stopped it."""

    def __init__(self, client, number):
        super().__init__()
        self.client = client
        self.number = number
        self.error = None
        self.oids = []

    def run(self):
        try:
            for turn in range(TRANSACTIONS):
                with self.client as queue:
                    self._put(queue, turn, range(JOBS // 2))
                    threading.Event().wait(OPEN_SECONDS)  # the application's own work
                    self._put(queue, turn, range(JOBS // 2, JOBS))
        except Exception as error:  # whatever it is, the test shall tell
            self.error = error

    def _put(self, queue, turn, numbers):
        jobs = [queue.put(Job(note, (self.number, turn, n))) for n in numbers]
        self.oids += [job._p_oid for job in jobs]


_noted = collections.Counter()


def note(name):
    _noted[name] += 1
    return name


def test_slow_producers_meet_no_conflict(site):
    _noted.clear()
    for _ in range(2):
        site.serve()
    clients = [site.client() for _ in range(2)]
    clients += [site.connect(client.db) for client in clients]
    producers = [Producer(client, n) for n, client in enumerate(clients)]
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join(PATIENCE_SECONDS)
    assert [producer.error for producer in producers] == [None] * PRODUCERS
    oids = [oid for producer in producers for oid in producer.oids]
    client = clients[0]
    client.until(lambda: are_completed(client, oids), PATIENCE_SECONDS)
    names = [
        (producer, turn, n)
        for producer in range(PRODUCERS)
        for turn in range(TRANSACTIONS)
        for n in range(JOBS)
    ]
    assert dict(_noted) == dict.fromkeys(names, 1)


def are_completed(client, oids):
    try:
        return all(client.connection.get(oid).status == COMPLETED for oid in oids)
    except ReadConflictError:  # nothing has told this client yet that there is such a job
        return False


def test_a_producer_that_is_open_while_others_come_and_go(site):
    """Its chunk is filled, emptied and succeeded meanwhile; yet its commit is heard."""
    site.serve()
    slow = site.client()
    fast = same_lane(site, slow)
    queue = slow.begin()
    jobs = [queue.put(Job(note, n)) for n in range(8)]
    count = 2 * CHUNK_ENTRIES
    with fast as queue:
        for n in range(count):
            queue.put(Job(note, n), delay=3600)
    fast.until(lambda: fast.queue.stats()['later'] == count, PATIENCE_SECONDS)
    slow.manager.commit()
    slow.until(lambda: all(job.status == COMPLETED for job in jobs))


def same_lane(site, client):
    """Another client whose jobs go to the same lane."""
    db = site.client().db
    for _ in range(200):
        other = site.connect(db)
        if lane_number(other.connection) == lane_number(client.connection):
            return other
    raise AssertionError('no connection of two hundred has this lane')


def test_thousands_in_one_transaction(site):
    """They come whole and in order; at every moment each of them is in one place."""
    count = 2000
    client, other = site.client(), site.client()
    queue = client.begin()
    jobs = [queue.put(Job(note, n)) for n in range(count)]
    with other as queue:
        assert len(queue) == 0
        queue.put(Job(note, 'between'))
    client.manager.commit()
    other.begin()
    assert len(other.queue) == count + 1
    own = [job for job in other.queue if job.args[0] != 'between']
    assert [job.args[0] for job in own] == list(range(count))
    dispatcher = site.serve()
    client.until(lambda: jobs[99].status == COMPLETED, PATIENCE_SECONDS)
    assert in_their_places(client, jobs)
    assert subscribers.stop(dispatcher, PATIENCE_SECONDS)
    client.begin()
    done = [job.status == COMPLETED for job in jobs]
    assert in_their_places(client, jobs) and 100 <= sum(done) < count
    assert {job.status for job, ended in zip(jobs, done, strict=True) if not ended} == {PENDING}
    assert len(client.queue) == done.count(False) + 1  # the one between is the last


def in_their_places(client, jobs):
    """Whether each job is in the queue, or with an agent, or completed, and in one of them only."""
    queue = client.queue
    agents = [agent for record in queue.dispatchers.values() for agent in record.values()]
    places = [job.oid for job in queue]
    places += [job.oid for agent in agents for job in agent]
    places += [job.oid for job in jobs if job.status == COMPLETED]
    ours = {job.oid for job in jobs}
    return sorted(oid for oid in places if oid in ours) == sorted(ours)
