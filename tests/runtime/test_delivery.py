"""Handlers of this process, and readers who wait."""

import logging
import threading

import pytest
import transaction
import ZODB
from ZODB.FileStorage import FileStorage

from zodbjobs import Feeds, Queue, Queues, local, testing
from zodbjobs.interfaces import KEY, Empty, FeedDeleted, NoticesGone, ReassignedError
from zodbjobs.model import log
from zodbjobs.runtime import delivery, wakeup


class Place:
    """A database with feeds; `connect` gives them on another connection."""

    def __init__(self, path):
        self.db = ZODB.DB(FileStorage(str(path)))
        self.opened = []
        self.manager, self.feeds = None, None
        with self.db.transaction() as connection:
            connection.root()['feeds'] = Feeds()
        self.manager, self.feeds = self.connect()

    def connect(self):
        manager = transaction.TransactionManager()
        connection = self.db.open(manager)
        self.opened.append((manager, connection))
        return manager, connection.root()['feeds']

    def close(self):
        delivery.stop(self.db)
        for manager, connection in self.opened:
            manager.abort()
            connection.close()
        wakeup.hang_up(self.db)
        self.db.close()


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path / 'Data.fs')
    yield place
    place.close()


@pytest.fixture
def heard(place):
    """Registers a handler for a kind and gives the list of what it heard."""

    class Calls(list):
        handler = None

    def make(kind, **options):
        calls = Calls()
        calls.handler = lambda *arguments: calls.append(arguments)
        place.feeds.register_handler(f'{kind}_notice', calls.handler, **options)
        return calls

    return make


def test_handlers_hear_of_each_kind_with_the_arguments_of_the_seed(place, heard):
    feeds = place.feeds
    calls = {
        kind: heard(kind)
        for kind in ('create', 'delete', 'publish', 'edit', 'retract', 'position', 'finish')
    }
    feed, ordered, jobs = feeds.feed('f'), feeds.sorted_feed('s'), feeds.job('j')
    feed.publish('one', 'a')
    feed.publish('two', 'a')
    feed.retract('a')
    id = ordered.append('x')
    work = jobs.put('work')
    jobs.finish(jobs.get(0), 'result')
    place.manager.commit()
    feeds.delete_feed('f')
    place.manager.commit()
    testing.wait_for_notices(feeds)
    assert calls['create'] == [('f',), ('s',), ('j',)]
    assert calls['publish'] == [('f', 'one', 'a'), ('s', 'x', id), ('j', 'work', work)]
    assert calls['edit'] == [('f', 'two', 'a')]
    assert calls['retract'] == [('f', 'a')]
    assert calls['position'] == [('s', id, ':end')]
    assert calls['finish'] == [('j', work, 'result')]
    assert calls['delete'] == [('f',)]


def test_only_what_is_committed_and_only_from_now_on(place, heard):
    feed = place.feeds.feed('f')
    feed.publish('before')
    place.manager.commit()
    calls = heard('publish')
    feed.publish('aborted')
    place.manager.abort()
    feed.publish('after')
    place.manager.commit()
    testing.wait_for_notices(place.feeds)
    assert [item for _, item, _ in calls] == ['after']


def test_who_was_away_hears_what_he_missed_once_and_in_order(place, heard):
    feed = place.feeds.feed('f')
    feed.publish(0)
    place.manager.commit()
    since = place.feeds.last_number
    for number in range(1, 6):
        feed.publish(number)
        place.manager.commit()
    calls = heard('publish', since=since)
    feed.publish(6)
    place.manager.commit()
    testing.wait_for_notices(place.feeds)
    testing.wait_for_notices(place.feeds)
    assert [item for _, item, _ in calls] == [1, 2, 3, 4, 5, 6]


def test_a_handler_may_hear_of_one_feed_only(place, heard):
    first, second = place.feeds.feed('a'), place.feeds.feed('b')
    place.manager.commit()
    calls = heard('publish', feed='b')
    first.publish(1)
    second.publish(2)
    place.manager.commit()
    testing.wait_for_notices(place.feeds)
    assert [item for _, item, _ in calls] == [2]
    with pytest.raises(KeyError):
        heard('publish', feed='nothing')


def test_a_handler_that_raises_harms_nobody(place, heard, caplog):
    feed = place.feeds.feed('f')
    place.manager.commit()

    def fail(*arguments):
        raise RuntimeError('not today')

    place.feeds.register_handler('publish_notice', fail)
    calls = heard('publish')
    with caplog.at_level(logging.ERROR, 'zodbjobs.feeds'):
        feed.publish(1)
        place.manager.commit()
        feed.publish(2)
        place.manager.commit()
        testing.wait_for_notices(place.feeds)
    assert [item for _, item, _ in calls] == [1, 2]
    assert caplog.text.count('\nRuntimeError: not today') == 2


def test_a_removed_handler_hears_nothing(place, heard):
    feed = place.feeds.feed('f')
    calls = heard('publish')
    place.feeds.remove_handler('publish_notice', calls.handler)
    feed.publish(1)
    place.manager.commit()
    testing.wait_for_notices(place.feeds)
    assert calls == []
    with pytest.raises(LookupError):
        place.feeds.remove_handler('publish_notice', calls.handler)


@pytest.mark.parametrize('kind', ['publish', 'claim_notice', 'notice', None])
def test_there_is_no_other_kind(place, kind):
    with pytest.raises(ValueError, match='publish_notice'):
        place.feeds.register_handler(kind, print)


def test_a_handler_is_called(place):
    with pytest.raises(TypeError, match='cannot be'):
        place.feeds.register_handler('publish_notice', 'print')


def test_what_is_not_kept_is_an_error_at_once_or_a_lost_notice_later(place, heard, monkeypatch):
    monkeypatch.setattr(log, 'KEEP_SECONDS', -1)
    feed = place.feeds.feed('f', {'notices': 1})
    place.manager.commit()
    since = place.feeds.last_number
    gate, entered = threading.Event(), threading.Event()

    def block(*arguments):
        entered.set()
        gate.wait(10)

    place.feeds.register_handler('edit_notice', block)
    lost, calls = heard('lost'), heard('publish')
    feed.publish('x', 'x')
    feed.publish('y', 'x')
    place.manager.commit()
    assert entered.wait(10)
    for number in range(200):
        feed.publish(number)
        place.manager.commit()
    gate.set()
    testing.wait_for_notices(place.feeds)
    assert len(lost) == 1 and lost[0][0] == 'f'
    items = [item for _, item, _ in calls]
    assert items[0] == 'x' and items[1:] == list(range(200))[-len(items) + 1 :]
    assert len(items) < 200
    with pytest.raises(NoticesGone):
        place.feeds.register_handler('publish_notice', print, since=since)


def test_feeds_wake_no_dispatchers_and_jobs_no_handlers(place):
    rung = {topic: [] for topic in (wakeup.JOBS, wakeup.FEEDS)}
    listeners = [wakeup.listen(place.db, lambda t=t: rung[t].append(t), t) for t in rung]
    place.feeds.feed('f').publish('x')
    place.manager.commit()
    assert rung == {wakeup.JOBS: [], wakeup.FEEDS: ['feeds']}
    root = place.opened[0][1].root()
    root[KEY] = Queues()
    root[KEY][''] = Queue()
    place.manager.commit()
    root[KEY][''].put(print)
    place.feeds['f'].publish('y')
    place.manager.commit()
    assert rung == {wakeup.JOBS: ['jobs'], wakeup.FEEDS: ['feeds'] * 2}
    for listener in listeners:
        listener.close()


def test_the_thread_ends_with_the_database(tmp_path):
    place = Place(tmp_path / 'Data.fs')
    place.feeds.register_handler('publish_notice', print)
    testing.wait_for_notices(place.feeds)
    follower = delivery._followers[place.db][place.feeds._p_oid]
    place.close()
    follower.join(5)
    assert not follower.is_alive()


def test_feeds_that_are_not_committed_yet_are_waited_for(place, caplog):
    connection = place.opened[0][1]
    early = connection.root()['early'] = Feeds()
    connection.add(early)
    heard = []
    early.register_handler('publish_notice', lambda *call: heard.append(call[1]))
    assert delivery.settle(early)
    early.feed('f').publish('hello')
    place.manager.commit()
    testing.wait_for_notices(early)
    assert heard == ['hello'] and not caplog.records


# Waiting -----------------------------------------------------------------------------------


def later(place, act):
    """Do `act(feeds)` on a connection of another thread, and commit, while the test waits."""

    def run():
        manager, feeds = place.connect()
        act(feeds)
        manager.commit()

    thread = threading.Timer(0.05, run)
    thread.start()
    return thread


def test_a_reader_waits_for_a_message(place):
    queue = place.feeds.queue('q')
    place.manager.commit()
    thread = later(place, lambda feeds: feeds['q'].put('hello'))
    assert queue.get() == 'hello'
    thread.join()


def test_the_time_to_wait_ends(place):
    queue = place.feeds.queue('q')
    place.manager.commit()
    with pytest.raises(Empty, match='within 0.05 seconds'):
        queue.get(timeout=0.05)


def test_who_has_changes_cannot_wait_and_keeps_them(place):
    queue = place.feeds.queue('q')
    with pytest.raises(ValueError, match='commit or abort first'):
        queue.get(timeout=5)
    with pytest.raises(Empty):
        queue.get(timeout=0)
    place.manager.commit()
    assert 'q' in place.feeds


def test_who_waits_hears_that_the_feed_is_deleted(place):
    queue = place.feeds.queue('q')
    place.manager.commit()
    thread = later(place, lambda feeds: feeds.delete_feed('q'))
    with pytest.raises(FeedDeleted):
        queue.get(timeout=10)
    thread.join()


def test_a_result_is_waited_for_and_an_ended_claim_wakes(place):
    jobs = place.feeds.job('j', {'lease': 0.1})
    id = jobs.put('work')
    place.manager.commit()
    jobs.get(0)
    place.manager.commit()
    claim = jobs.get(timeout=10)
    assert claim.cancelled == 1, 'it came back by itself'
    place.manager.commit()
    thread = later(place, lambda feeds: feeds['j'].finish(claim, 'done'))
    assert jobs.get_result(id, timeout=10) == ('work', 'done')
    thread.join()


def test_a_job_that_lost_its_turn_while_it_waited_commits_nothing(place, monkeypatch):
    """A new transaction would see what the other worker wrote, and not conflict with it."""

    class Running:
        _token, _parent = 7, None

    job = Running()
    queue = place.feeds.queue('q')
    place.manager.commit()
    former = local.enter(job, None)
    try:
        thread = later(place, lambda feeds: setattr(job, '_token', 8) or feeds['q'].put('x'))
        with pytest.raises(ReassignedError):
            queue.get(timeout=10)
        thread.join()
    finally:
        local.leave(former)
    assert len(queue) == 1


def test_explicit_transactions_can_wait_too(place):
    place.feeds.queue('q')
    place.manager.commit()
    manager = transaction.TransactionManager(explicit=True)
    connection = place.db.open(manager)
    manager.begin()
    thread = later(place, lambda feeds: feeds['q'].put('hello'))
    assert connection.root()['feeds']['q'].get(timeout=10) == 'hello'
    manager.commit()
    thread.join()
    connection.close()
