"""Feeds: what they refuse, what they tell, and that publishers do not meet."""

import itertools

import pytest
from persistent import Persistent
from ZODB.POSException import ConflictError

from zodbjobs import Feeds, Job
from zodbjobs.interfaces import FeedDeleted, NoticesGone
from zodbjobs.model import lanes, log


class Thing(Persistent):
    """A persistent item."""


class Sides:
    """Connections that see the same feeds; each on a lane of its own, unless `lane` says so."""

    def __init__(self, house, monkeypatch):
        self.house = house
        self.all = []
        self.numbers = {}
        count = itertools.count()

        def lane_number(jar):
            if id(jar) not in self.numbers:
                self.numbers[id(jar)] = next(count) % lanes.LANES
            return self.numbers[id(jar)]

        monkeypatch.setattr(lanes, 'lane_number', lane_number)
        monkeypatch.setattr(log, 'lane_number', lane_number)
        monkeypatch.setattr('zodbjobs.model.feed.lane_number', lane_number)
        house.first.root['feeds'] = Feeds()
        house.first.commit()

    def __call__(self, lane=None):
        side = self.house.side()
        if lane is not None:
            self.numbers[id(side.connection)] = lane
        return side


@pytest.fixture
def sides(house, monkeypatch):
    return Sides(house, monkeypatch)


@pytest.fixture
def feeds(sides, side):
    return side.root['feeds']


def told(notices):
    return [(notice.kind, notice.feed, notice.id) for notice in notices]


# The mapping -------------------------------------------------------------------------------


def test_feeds_must_be_stored_first():
    with pytest.raises(ValueError, match='in no database yet'):
        Feeds().feed('news')


def test_a_name_belongs_to_one_kind(feeds):
    feeds.feed('news')
    assert feeds.feed('news') is feeds['news'] and feeds.feed_exists('news')
    with pytest.raises(TypeError, match="'news' is a 'feed', not a 'job'"):
        feeds.job('news')
    with pytest.raises(TypeError, match='cannot become'):
        feeds.set_config('news', {'type': 'queue'})


def test_create_feed_takes_the_type_from_the_configuration(feeds):
    feeds.create_feed('a', {'max_length': 50})
    feeds.create_feed('b', '{"type": "job", "lease": 5}')
    assert feeds.get_config('a') == {'type': 'feed', 'max_length': 50}
    assert feeds.get_config('b') == {'type': 'job', 'lease': 5}
    assert feeds.get_feed_names() == list(feeds) == ['a', 'b']
    with pytest.raises(ValueError, match='there is a feed'):
        feeds.create_feed('a')
    with pytest.raises(ValueError, match='no type'):
        feeds.create_feed('c', {'type': 'list'})
    with pytest.raises(KeyError, match='there are'):
        feeds['c']


@pytest.mark.parametrize(
    ('config', 'words'),
    [
        ({'max_length': 0}, 'whole number from 1'),
        ({'max_length': True}, 'whole number from 1'),
        ({'notices': 'many'}, 'whole number from 1'),
        ({'lenght': 5}, 'no setting'),
        ({'lease': 5}, 'no setting'),
        ({'title': 5}, 'is a text'),
    ],
    ids=str,
)
def test_what_is_no_setting_is_refused_and_nothing_is_made(feeds, config, words):
    with pytest.raises(ValueError, match=words):
        feeds.feed('news', config)
    assert not feeds.feed_exists('news') and feeds.notices() == []


def test_a_setting_is_taken_back_with_none(feeds):
    feed = feeds.feed('news', {'max_length': 5, 'title': 'News'})
    feeds.set_config('news', {'max_length': None})
    assert feed.config == {'type': 'feed', 'title': 'News'}


def test_a_wrong_item_is_refused_and_the_transaction_stays_usable(feeds, side):
    feed, ordered = feeds.feed('news'), feeds.sorted_feed('list')
    jobs, messages = feeds.job('jobs'), feeds.queue('queue')
    for put in (feed.publish, ordered.append, jobs.put, messages.put):
        with pytest.raises(TypeError, match='cannot be stored'):
            put(lambda: 1)
    for id in ('', 7, b'x'):
        with pytest.raises(TypeError, match='not empty'):
            feed.publish('x', id=id)
    side.commit()
    assert [len(each) for each in (feed, ordered, jobs, messages)] == [0, 0, 0, 0]


def test_persistent_items_are_the_objects_themselves(feeds, side):
    feed, thing = feeds.feed('news'), Thing()
    id = feed.publish(thing)
    side.commit()
    assert feed.get_item(id) is thing and thing._p_jar is side.connection


def test_a_move_to_where_it_is_changes_nothing_and_is_not_told(feeds, side):
    ordered = feeds.sorted_feed('list')
    a, b, c = (ordered.append(item) for item in 'abc')
    side.commit()
    seen = ordered.last_number
    for move in (
        lambda: ordered.move_after(a, b), lambda: ordered.move_before(c, b),
        lambda: ordered.move_first(a), lambda: ordered.move_last(c),
        lambda: ordered.move_before(b, b), lambda: ordered.move(f'{b}:', b),
    ):  # fmt: skip
        move()
    side.commit()
    assert ordered.get_ids() == [a, b, c] and ordered.notices(seen) == []
    ordered.move_first(int(c))
    side.commit()
    (notice,) = ordered.notices(seen)
    assert notice.arguments == ('list', c, 'begin:')


# Deleting ----------------------------------------------------------------------------------


def test_who_kept_a_deleted_feed_is_told(feeds, side):
    made = {
        'feed': feeds.feed('a'), 'sorted_feed': feeds.sorted_feed('b'),
        'queue': feeds.queue('c'), 'job': feeds.job('d'),
    }  # fmt: skip
    side.commit()
    for name in 'abcd':
        feeds.delete_feed(name)
    side.commit()
    for kind, feed in made.items():
        with pytest.raises(FeedDeleted, match=rf'feeds\.{kind}'):
            feed.publish('x')
    with pytest.raises(FeedDeleted):
        made['queue'].get(0)
    with pytest.raises(KeyError):
        feeds.delete_feed('a')
    assert not len(feeds) and feeds


@pytest.mark.parametrize('kind', ['feed', 'sorted_feed', 'queue', 'job'])
@pytest.mark.parametrize('lane', [None, 5], ids=['other lane', 'same lane'])
def test_a_publish_under_way_conflicts_with_the_deletion(sides, side, feeds, kind, lane):
    publisher, deleter = sides(5), sides(lane)
    feed = getattr(feeds, kind)('news')
    feed.publish('first')
    side.commit()
    publisher.begin()
    deleter.begin()
    publisher.root['feeds']['news'].publish('late')
    deleter.root['feeds'].delete_feed('news')
    deleter.commit()
    with pytest.raises(ConflictError):
        publisher.commit()
    publisher.abort()
    assert getattr(publisher.root['feeds'], kind)('news').get_ids() == []


def test_what_a_deleted_feed_told_is_not_forgotten(feeds, side):
    feed = feeds.feed('news')
    side.commit()
    seen = feeds.last_number
    id = feed.publish('last words')
    side.commit()
    feeds.delete_feed('news')
    feeds.feed('news').publish('again', id='x')
    side.commit()
    assert told(feeds.notices(seen)) == [
        ('publish', 'news', id), ('delete', 'news', None),
        ('create', 'news', None), ('publish', 'news', 'x'),
    ]  # fmt: skip


# Notices -----------------------------------------------------------------------------------


def test_numbers_follow_the_commits_and_not_the_calls(sides, side, feeds):
    first, second = sides(), sides()
    feeds.feed('news')
    side.commit()
    for each in (first, second):
        each.begin()
    first.root['feeds']['news'].publish('called first', 'a')
    second.root['feeds']['news'].publish('committed first', 'b')
    second.commit()
    side.begin()
    seen = feeds['news'].last_number
    first.commit()
    side.begin()
    assert [notice.id for notice in feeds['news'].notices()] == ['b', 'a']
    assert [notice.id for notice in feeds['news'].notices(seen)] == ['a'], 'nothing slips through'
    assert feeds['news'].get_ids() == ['a', 'b'], 'items stand in the order of the calls'


def test_what_is_not_committed_has_no_number(feeds, side):
    feed = feeds.feed('news')
    feed.publish('x')
    assert feeds.notices() == [] and feeds.last_number == 0
    side.transaction_manager.savepoint(optimistic=True)
    feed.publish('y')
    assert feeds.notices() == [] and feeds.last_number == 0
    side.commit()
    assert [notice.value for notice in feed.notices()] == ['x', 'y']
    numbers = [notice.number for notice in feeds.notices()]
    assert len(set(numbers)) == 3 and max(numbers) <= feeds.last_number


def test_a_notice_keeps_what_was_published(feeds, side):
    feed = feeds.feed('news')
    feed.publish('one', 'a')
    side.commit()
    feed.publish('two', 'a')
    side.commit()
    assert [notice.arguments for notice in feed.notices()] == [
        ('news', 'one', 'a'), ('news', 'two', 'a')
    ]  # fmt: skip


def test_notices_of_a_transaction_keep_their_order_over_all_feeds(feeds, side):
    names = [f'feed {n % 3}' for n in range(40)]
    for number, name in enumerate(names):
        feeds.feed(name).publish(number)
    side.commit()
    published = [notice for notice in feeds.notices() if notice.kind == 'publish']
    assert [notice.value for notice in published] == list(range(40))


def publish_slowly(side, feed, count, seconds=5):
    """Publish, a commit each, with time between."""
    for number in range(count):
        feed.publish(number)
        side.commit()
        side_clock(side).advance(seconds)


def side_clock(side):
    from zodbjobs import clock

    source = clock.use()
    clock.use(source)
    return source


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(lanes, 'CHUNK_ENTRIES', 4)


def test_the_log_is_bounded_and_says_what_is_missing(feeds, side, small_chunks):
    feed = feeds.feed('news', {'notices': 10})
    side.commit()
    begin = feeds.last_number
    publish_slowly(side, feed, 60)
    kept = feed.notices()
    assert 10 <= len(kept) <= 10 + 5 * lanes.CHUNK_ENTRIES
    assert [notice.value for notice in kept] == list(range(60 - len(kept), 60))
    with pytest.raises(NoticesGone, match='read the feed anew') as caught:
        feed.notices(begin)
    assert feed.notices(caught.value.number) == kept
    with pytest.raises(NoticesGone):
        feeds.notices(begin)
    assert [notice.kind for notice in feeds.follow(begin)][:2] == ['lost', 'publish']
    assert isinstance(caught.value, LookupError)


def test_whoever_has_heard_all_is_never_told_of_loss(feeds, side, small_chunks):
    """Also not when the last thing heard is the last thing dropped."""
    feed = feeds.feed('news', {'notices': 1})
    side.commit()
    seen = feed.last_number
    for number in range(50):
        feed.publish(number)
        side.commit()
        side_clock(side).advance(10)
        (notice,) = feed.notices(seen)
        assert notice.value == number
        seen = notice.number


def test_a_minute_of_notices_is_kept_however_many(feeds, side, small_chunks):
    feed = feeds.feed('news', {'notices': 2})
    side.commit()
    seen = feed.last_number
    publish_slowly(side, feed, 50, seconds=1)
    assert len(feed.notices(seen)) == 50


def test_a_long_transaction_drops_nothing_of_its_own(feeds, side):
    feed = feeds.feed('news', {'notices': 1})
    side.commit()
    seen = feed.last_number
    for number in range(10):
        for _ in range(20):
            feed.publish(number)
        side_clock(side).advance(100)
        side.transaction_manager.savepoint(optimistic=True)
    side.commit()
    assert len(feed.notices(seen)) == 200


def test_no_publisher_pays_for_all_that_is_too_much(feeds, side):
    """After a load of very many each publish drops a little, until the log is short again."""
    feed = feeds.feed('news', {'notices': 10})
    side.commit()
    for _ in range(20):
        for number in range(200):
            feed.publish(number)
        side.commit()
        side_clock(side).advance(1)
    side_clock(side).advance(100)
    side.connection.cacheMinimize()
    loaded = []
    for number in range(250):
        side.begin()
        side.connection.getTransferCounts(clear=True)
        feed.publish(number)
        loaded.append(side.connection.getTransferCounts()[0])
        side.commit()
        side_clock(side).advance(1)
        side.connection.cacheMinimize()
    assert max(loaded) < log.TRIM_CHUNKS * 200 + 100
    assert len(feed.notices()) < 70 + 2 * lanes.CHUNK_ENTRIES + 10


def test_what_is_told_in_one_transaction_lies_together(feeds, side):
    """A reader of what came last loads few chunks, although a minute of notices is kept."""
    feed = feeds.feed('news')
    side.commit()
    seen = feed.last_number
    for number in range(2000):
        feed.publish(number)
    side.commit()
    assert [notice.value for notice in feed.notices(seen)] == list(range(2000))
    assert len(list(feed.log.lanes.places())) <= 2000 // log.BULK_ENTRIES + 2
    feed.publish('next')
    side.commit()
    assert len(list(feed.lanes.places())) > 2000 // lanes.CHUNK_ENTRIES
    assert feed.notices()[-1].value == 'next'


def test_lanes_that_nobody_uses_any_more_are_trimmed(sides, side, feeds, small_chunks):
    feeds.feed('news', {'notices': 5})
    side.commit()
    for _ in range(6):
        other = sides()
        other.begin()
        publish_slowly(other, other.root['feeds']['news'], 4)
    side_clock(side).advance(2 * log.IDLE_SECONDS)
    side.begin()
    publish_slowly(side, feeds['news'], 40)
    assert len(feeds['news'].notices()) <= 5 + 5 * lanes.CHUNK_ENTRIES


# Subscriptions -----------------------------------------------------------------------------


def mail(kind, feed, id, value):
    """What a subscription calls."""


def test_a_subscription_puts_jobs_in_the_transaction_of_the_publisher(feeds, queue, side):
    feed = feeds.feed('news')
    feed.subscribe(queue, mail, 'publish', channel='mail')
    side.commit()
    id = feed.publish('hello')
    side.abort()
    assert len(queue) == 0
    id = feed.publish('hello')
    feed.retract(id)
    side.commit()
    (job,) = queue
    assert isinstance(job, Job) and job.callable is mail and job.channel == 'mail'
    assert job.args == ['publish', 'news', id, 'hello']
    assert feed.unsubscribe(queue, mail) and not feed.unsubscribe(queue, mail)
    feed.publish('unheard')
    assert len(queue) == 1


def test_a_second_subscription_of_a_call_replaces_the_first(feeds, queue):
    feed = feeds.sorted_feed('list')
    feed.subscribe(queue, mail)
    feed.subscribe(queue, mail, ['position'])
    feed.append('x')
    assert [job.args[0] for job in queue] == ['position']


def test_wrong_subscriptions_are_refused(feeds, queue):
    feed = feeds.feed('news')
    for wrong in (
        lambda: feed.subscribe('queue', mail),
        lambda: feed.subscribe(queue, lambda: 1),
        lambda: feed.subscribe(queue, mail, where=lambda: 1),
    ):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(ValueError, match='nothing that happens'):
        feed.subscribe(queue, mail, 'claim')
    assert feed.settings.subscriptions == ()


# Two connections ---------------------------------------------------------------------------


@pytest.mark.parametrize('lane', [None, 4], ids=['own lanes', 'one lane'])
@pytest.mark.parametrize('kind', ['feed', 'sorted_feed', 'queue', 'job'])
def test_publishers_do_not_conflict(sides, side, feeds, kind, lane):
    """Not even one whose transaction is open while the others fill chunks and leaves."""
    getattr(feeds, kind)('news')
    side.commit()
    slow, *others = publishers = [sides(lane) for _ in range(3)]
    for each in publishers:
        each.begin()
    slow.root['feeds']['news'].publish('slow')
    for round in range(8):
        for each in others:
            each.root['feeds']['news'].publish(f'quick {round}')
        for each in others:
            each.commit()
    slow.commit()
    side.begin()
    assert len(feeds['news']) == len(feeds['news'].get_ids()) == 17


def test_publishers_of_one_id_do(sides, side, feeds):
    feeds.feed('news')
    side.commit()
    first, second = sides(), sides()
    first.root['feeds']['news'].publish(1, 'same')
    second.root['feeds']['news'].publish(2, 'same')
    first.commit()
    with pytest.raises(ConflictError):
        second.commit()


def test_edits_and_retracts_of_different_items_merge(sides, side, feeds):
    for kind in ('feed', 'sorted_feed'):
        feed = getattr(feeds, kind)(kind)
        ids = [feed.publish(n) for n in range(10)]
        side.commit()
        first, second = sides(), sides()
        ours, theirs = first.root['feeds'][kind], second.root['feeds'][kind]
        ours.edit(ids[2], 'edited')
        ours.retract(ids[3])
        theirs.edit(ids[5], 'edited')
        theirs.retract(ids[6])
        theirs.publish('new')
        first.commit()
        second.commit()
        side.begin()
        assert len(feed) == 9 and feed.get_item(ids[2]) == feed.get_item(ids[5]) == 'edited'


@pytest.mark.parametrize('others', ['in this process', 'elsewhere'])
@pytest.mark.parametrize('lane', [None, 4], ids=['own lanes', 'one lane'])
def test_publishers_of_a_full_feed_do_not_fight_for_the_oldest(
    sides, side, feeds, turned, monkeypatch, others, lane
):
    """Each retracts what was its own; nobody sees too much meanwhile, and all is told."""
    if others == 'elsewhere':
        if lane is not None:
            pytest.skip('two processes on one lane may conflict')
        monkeypatch.setattr('zodbjobs.model.feed.reserve', lambda *key: True)
    feeds.feed('news', {'max_length': 10})
    side.commit()
    publishers = [sides(lane), sides(lane), sides(lane)]
    for round in range(20):
        for each in publishers:
            each.begin()
            each.root['feeds']['news'].publish(round)
            turned.advance(0.01)
        for each in publishers:
            each.commit()
        side.begin()
        assert len(feeds['news']) == len(feeds['news'].get_all()) == min(10, 3 * (round + 1))
    turned.advance(5)
    ids = feeds['news'].get_ids()
    last = feeds['news'].publish('the last')
    side.commit()
    retracted = [notice.id for notice in feeds['news'].notices() if notice.kind == 'retract']
    assert len(retracted) == len(set(retracted)) == 61 - 10
    assert feeds['news'].get_ids() == [*ids[1:], last]


def test_what_is_beyond_the_limit_is_gone_before_it_is_retracted(sides, side, feeds, turned):
    feed = feeds.feed('news', {'max_length': 2})
    side.commit()
    first, second = sides(), sides()
    for each, id in ((first, 'a'), (second, 'b')):
        each.begin()
        each.root['feeds']['news'].publish(id, id)
        each.commit()
    second.begin()
    second.root['feeds']['news'].publish('c', 'c')
    second.commit()
    side.begin()
    assert len(feed.lanes) == 3, 'first was busy a moment ago'
    assert feed.get_ids() == ['b', 'c'] and 'a' not in feed and feed.get_item('a') is None
    with pytest.raises(LookupError):
        feed.retract('a')
    feed.publish('a again', 'a')
    side.commit()
    assert told(feed.notices())[-2:] == [('retract', 'news', 'a'), ('publish', 'news', 'a')]
    assert feed.get_ids() == ['c', 'a']


def test_emptied_chunks_leave(feeds, side, turned):
    feed = feeds.feed('news', {'max_length': 20})
    for _ in range(10):
        for number in range(50):
            feed.publish(number)
        side.commit()
        turned.advance(20)
    assert len(list(feed.lanes.places())) <= 4


def test_two_who_insert_at_the_same_place_do_not_conflict(sides, side, feeds):
    ordered = feeds.sorted_feed('list')
    first, last = ordered.append('first'), ordered.append('last')
    side.commit()
    one, two = sides(), sides()
    for each in (one, two):
        each.begin()
        each.root['feeds']['list'].publish_before(last, 'between')
    one.commit()
    two.commit()
    side.begin()
    assert len(ordered) == 4 and ordered.get_ids()[0] == first and ordered.get_ids()[-1] == last


def test_what_came_late_to_an_older_chunk_is_taken_in_its_turn(sides, side, feeds, turned):
    """A reader takes messages in the order of the calls, whichever chunk they lie in."""
    feeds.queue('line')
    side.commit()
    slow, quick = sides(3), sides(3)
    quick.root['feeds']['line'].put(0)
    quick.commit()
    slow.begin()
    for number in range(1, lanes.CHUNK_ENTRIES + 5):
        turned.advance(0.001)
        quick.begin()
        quick.root['feeds']['line'].put(number)
        quick.commit()
    turned.advance(0.001)
    slow.root['feeds']['line'].put('late')
    slow.commit()
    side.begin()
    taken = [feeds['line'].get(0) for _ in range(lanes.CHUNK_ENTRIES + 6)]
    assert taken == [*range(lanes.CHUNK_ENTRIES + 5), 'late']
