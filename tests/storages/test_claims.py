"""Claims on every storage: one holder at a time; who lost the lease commits nothing."""

import pathlib
import subprocess
import sys
import threading

import pytest
import transaction
from persistent.mapping import PersistentMapping
from ZODB.POSException import ConflictError

from tests.storages.support import together
from zodbjobs import Message, Queue, Queues
from zodbjobs.interfaces import KEY, ClaimLost
from zodbjobs.testing.waiting import wait_until


class Worker:
    """A client with a consumer."""

    def __init__(self, db):
        self.manager = transaction.TransactionManager()
        self.connection = db.open(self.manager)
        self.root = self.connection.root()
        self.consumer = self.root[KEY][''].consumer('worker')

    def close(self):
        self.manager.abort()
        self.consumer.close()
        self.connection.close()


@pytest.fixture
def workers(storage):
    with storage.db.transaction() as connection:
        queues = connection.root()[KEY] = Queues()
        queues[''] = Queue()
    made = [Worker(storage.open()) for _ in range(2)]
    yield made
    for worker in made:
        worker.close()


def put(worker, *bodies):
    worker.manager.begin()
    for body in bodies:
        worker.root[KEY][''].put(Message(body))
    worker.manager.commit()


def test_who_lost_the_lease_commits_nothing(workers):
    first, second = workers
    put(first, b'1')
    slow = first.consumer.claim(0, lease=0.05)
    fast = second.consumer.claim(10)
    assert (fast.body, fast.token) == (b'1', 2)
    first.root['mine'] = True  # in a transaction that cannot see the second claim yet
    slow.finish()
    with pytest.raises(ConflictError):
        first.manager.commit()
    first.manager.begin()
    with pytest.raises(ClaimLost):
        slow.finish()
    fast.finish('done')
    second.manager.commit()

    def is_done():  # a ZEO client may hear of it a moment later
        first.manager.begin()
        return first.connection.get(slow.job._p_oid).result == 'done'

    assert wait_until(is_done, 10)
    assert 'mine' not in first.root


def test_touches_do_not_disturb_the_work(workers):
    first, second = workers
    put(first, b'1')
    claim = first.consumer.claim(0, lease=0.4)
    done = threading.Event()
    first.root['mine'] = True
    found = []
    thread = threading.Thread(target=lambda: found.append(second.consumer.claim(0.8)))
    thread.start()
    while not done.wait(0.1) and thread.is_alive():
        claim.touch()
    thread.join()
    assert found == [None]
    claim.finish('done')
    first.manager.commit()
    assert first.root['mine']


def test_every_job_is_claimed_once(workers):
    put(workers[0], *[b'%d' % number for number in range(20)])
    done = []

    def consume(worker):
        while (claim := worker.consumer.claim(0)) is not None:
            done.append(claim.body)
            claim.finish()
            worker.manager.commit()

    assert together(consume, workers) == []
    assert sorted(done) == sorted(b'%d' % number for number in range(20))


SCRIPT = pathlib.Path(__file__).parents[2] / 'docs' / 'examples' / 'claims' / 'resizer.py'


@pytest.mark.processes
def test_the_script_of_the_page_works_until_it_is_killed_and_goes_on_after_that(shared):
    with shared.db.transaction() as connection:
        root = connection.root()
        root[KEY] = Queues()
        root[KEY]['images'] = Queue()
        root['sizes'] = PersistentMapping()

    def put(*bodies):
        with shared.db.transaction() as connection:
            queue = connection.root()[KEY]['images']
            for body in bodies:
                queue.put(Message(body), retries=0)

    def sizes():
        with shared.db.transaction() as connection:
            return dict(connection.root()['sizes'])

    def is_done(body):
        return wait_until(lambda: sizes().get(body.decode()) == len(body), 30)

    for bodies in ((b'1', b'22', b'\xff'), (b'333',)):
        put(*bodies)
        with subprocess.Popen([sys.executable, str(SCRIPT), shared.uri]) as script:
            try:
                assert is_done(bodies[0])
                put(b'late' + bodies[0])
                assert is_done(b'late' + bodies[0])
                assert script.poll() is None
            finally:
                script.kill()
    assert sizes() == {'1': 1, '22': 2, 'late1': 5, '333': 3, 'late333': 7}
    with shared.db.transaction() as connection:
        queue = connection.root()[KEY]['images']
        assert len(queue) == 0
        (record,) = queue.consumers.values()
        assert 'UnicodeDecodeError' in str([job.result for job in record.completed])
