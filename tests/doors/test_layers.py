"""What users' tests are given: fixtures, a layer, jobs on demand."""

import datetime

import pytest
import transaction
import ZODB
from ZODB.DemoStorage import DemoStorage

from zodbjobs import Job, clock, testing
from zodbjobs.interfaces import KEY
from zodbjobs.testing.layers import JobsLayer

pytest_plugins = ['zodbjobs.testing.fixtures']


def note(root, word):
    root['words'] = [*root.get('words', ()), word]


def note_and_go_on(root, word):
    from zodbjobs import local

    note(root, word)
    local.getQueue().put(Job(note, root, f'after {word}'))


def test_jobs_run_when_the_test_says_so_and_in_order(jobs):
    for word in 'abcdefgh':
        jobs.queue.put(Job(note, jobs.root, word))
    transaction.commit()
    assert 'words' not in jobs.root
    assert jobs.run() == 0
    assert jobs.root['words'] == list('abcdefgh')


def test_what_jobs_put_runs_as_well(jobs):
    jobs.queue.put(Job(note_and_go_on, jobs.root, 'a'))
    transaction.commit()
    assert jobs.run() == 0
    assert jobs.root['words'] == ['a', 'after a']


def test_what_is_for_later_is_left(jobs):
    before = clock.now()
    jobs.queue.put(Job(note, jobs.root, 'tomorrow'), delay=datetime.timedelta(days=1))
    jobs.queue.put(Job(note, jobs.root, 'now'))
    held = jobs.queue.put(Job(note, jobs.root, 'never'))
    held.hold()
    transaction.commit()
    assert jobs.run() == 2
    assert jobs.root['words'] == ['now']
    assert clock.now() == before
    jobs.reactor.time_flies(datetime.timedelta(days=1))
    assert jobs.run() == 1
    assert jobs.root['words'] == ['now', 'tomorrow']


def test_a_job_that_is_aborted_is_none(jobs):
    jobs.queue.put(Job(note, jobs.root, 'a'))
    transaction.abort()
    assert jobs.run() == 0
    assert 'words' not in jobs.root


def test_a_forgotten_commit_is_told(jobs):
    jobs.queue.put(Job(note, jobs.root, 'a'))
    with pytest.raises(AssertionError, match='commit first'):
        jobs.run()
    transaction.commit()
    assert jobs.run() == 0


def test_a_database_of_the_test_is_served_and_left_open(jobs_on, tmp_path):
    db = ZODB.DB(str(tmp_path / 'Data.fs'))
    jobs = jobs_on(db)
    connection = db.open()
    job = connection.root()[KEY][''].put(Job(note, connection.root(), 'a'))
    transaction.commit()
    assert jobs.run() == 0
    assert job.status == 'completed' and connection.root()['words'] == ['a']
    connection.close()
    testing.tearDown()
    with db.transaction() as connection:
        assert connection.root()['words'] == ['a']
    db.close()


class Base:
    """A layer that stacks a database for each test on the one before, as plone.testing does."""

    __bases__ = ()
    __name__ = 'Base'

    def __init__(self):
        self._db = None

    def get(self, name):
        return {'zodbDB': self._db, 'a': 1}.get(name)

    def testSetUp(self):
        self._db = ZODB.DB(DemoStorage())

    def testTearDown(self):
        self._db.close()


def test_a_layer_gives_each_test_its_own():
    base = Base()
    layer = JobsLayer([base], name='Shop:Jobs')
    layer.setUp()
    for _ in range(2):
        base.testSetUp()
        layer.testSetUp()
        assert layer['a'] == 1 and layer['jobs'].db is layer['zodbDB'] is base._db
        connection = layer['zodbDB'].open()
        assert 'words' not in connection.root()
        connection.root()[KEY][''].put(Job(note, connection.root(), 'a'))
        transaction.commit()
        layer['jobs'].run()
        assert connection.root()['words'] == ['a']
        connection.close()
        layer.testTearDown()
        base.testTearDown()
        with pytest.raises(KeyError):
            layer['jobs']
    layer.tearDown()


def test_a_layer_without_bases_has_its_own_database():
    layer = JobsLayer()
    layer.testSetUp()
    jobs = layer['jobs']
    jobs.queue.put(Job(note, jobs.root, 'a'))
    transaction.commit()
    assert jobs.run() == 0
    layer.testTearDown()
