"""Feeds against simple models: a list and a dict."""

import pytest
import transaction
import ZODB
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from zodbjobs import Feeds
from zodbjobs.model import lanes, log, merging, sortedfeed

SMALL = {
    (lanes, 'CHUNK_ENTRIES'): 3,
    (merging, 'NODE_ENTRIES'): 3,
    (merging, 'ROOT_ENTRIES'): 4,
    (sortedfeed, 'LONG_KEY'): 20,
}

INDEX = st.integers(0, 1000)
ITEMS = st.integers() | st.text(max_size=5)


class FeedMachine(RuleBasedStateMachine):
    """Rules that both kinds have.  `self.ids` is the order, `self.items` what there is."""

    def __init__(self):
        super().__init__()
        self.former = {place: getattr(*place) for place in SMALL}
        for (module, name), value in SMALL.items():
            setattr(module, name, value)
        self.db = ZODB.DB(None)
        self.connection = self.db.open()
        self.feeds = self.connection.root()['feeds'] = Feeds()
        transaction.commit()
        self.ids, self.items, self.told = [], {}, []
        self.saved = None

    def teardown(self):
        transaction.abort()
        self.connection.close()
        self.db.close()
        for (module, name), value in self.former.items():
            setattr(module, name, value)

    def some(self, index):
        return self.ids[index % len(self.ids)]

    def has_items(self):
        return bool(self.ids)

    def gone(self, id):
        self.ids.remove(id)
        del self.items[id]
        self.told.append(('retract', id))

    @rule()
    def commit(self):
        transaction.commit()
        self.saved = list(self.ids), dict(self.items), list(self.told)

    @precondition(lambda self: self.saved is not None)
    @rule()
    def abort(self):
        transaction.abort()
        self.ids, self.items, self.told = (type(each)(each) for each in self.saved)

    @precondition(has_items)
    @rule(index=INDEX)
    def retract(self, index):
        id = self.some(index)
        self.feed.retract(id)
        self.gone(id)

    @rule(id=st.sampled_from(['nothing', '17', '']))
    def ask_for_what_is_not_there(self, id):
        with pytest.raises(LookupError):
            self.feed.retract(id)
        with pytest.raises(LookupError):
            self.feed.edit(id, 'new')
        assert self.feed.get_item(id) is None and id not in self.feed

    @invariant()
    def it_is_the_model(self):
        assert self.feed.get_ids() == list(self.feed) == self.ids
        assert list(self.feed.get_all().items()) == [(id, self.items[id]) for id in self.ids]
        assert len(self.feed) == len(self.ids)
        for id in self.ids[:2]:
            assert id in self.feed and self.feed.get_item(id) == self.items[id]

    @invariant()
    def what_is_committed_was_told(self):
        if self.saved is not None:
            told = [(notice.kind, notice.id) for notice in self.feed.notices()]
            assert told == self.saved[2]


class PlainMachine(FeedMachine):
    """A Feed against a list, with and without a limit."""

    @initialize(limit=st.none() | st.integers(1, 6))
    def make(self, limit):
        self.limit = limit
        self.feed = self.feeds.feed('f', limit and {'max_length': limit})
        self.commit()

    def trim(self):
        while self.limit is not None and len(self.ids) > self.limit:
            self.gone(self.ids[0])

    @rule(item=ITEMS, id=st.none() | st.sampled_from(['a', 'b', 'c']))
    def publish(self, item, id):
        new = self.feed.publish(item, id)
        assert id is None or new == id
        kind = 'edit' if new in self.items else 'publish'
        if kind == 'edit':
            self.ids.remove(new)
        self.ids.append(new)
        self.items[new] = item
        self.told.append((kind, new))
        self.trim()

    @precondition(FeedMachine.has_items)
    @rule(index=INDEX, item=ITEMS)
    def edit(self, index, item):
        id = self.some(index)
        self.feed.edit(id, item)
        self.ids.remove(id)
        self.ids.append(id)
        self.items[id] = item
        self.told.append(('edit', id))

    @precondition(lambda self: not self.feed.settings._p_changed)
    @rule(limit=st.none() | st.integers(1, 6))
    def set_limit(self, limit):
        self.limit = limit
        self.feeds.set_config('f', {'max_length': limit})
        self.trim()
        self.commit()


class SortedMachine(FeedMachine):
    """A SortedFeed against a list."""

    @initialize()
    def make(self):
        self.feed = self.feeds.sorted_feed('f')
        self.commit()

    def put(self, id, place, item):
        self.ids.insert(place, id)
        self.items[id] = item
        self.told += [('publish', id), ('position', id)]

    @rule(item=ITEMS, at_end=st.booleans())
    def put_at_an_end(self, item, at_end):
        if at_end:
            self.put(self.feed.append(item), len(self.ids), item)
        else:
            self.put(self.feed.prepend(item), 0, item)

    @precondition(FeedMachine.has_items)
    @rule(index=INDEX, item=ITEMS, count=st.integers(1, 12))
    def put_before(self, index, item, count):
        anchor = self.some(index)
        for _ in range(count):
            self.put(self.feed.publish_before(anchor, item), self.ids.index(anchor), item)

    @precondition(FeedMachine.has_items)
    @rule(index=INDEX, item=ITEMS, count=st.integers(1, 12))
    def put_behind(self, index, item, count):
        anchor = self.some(index)
        for _ in range(count):
            self.put(self.feed.publish_after(anchor, item), self.ids.index(anchor) + 1, item)

    @precondition(FeedMachine.has_items)
    @rule(index=INDEX, item=ITEMS)
    def edit(self, index, item):
        id = self.some(index)
        self.feed.edit(id, item)
        self.items[id] = item
        self.told.append(('edit', id))

    @precondition(FeedMachine.has_items)
    @rule(index=INDEX, at_end=st.booleans())
    def move_to_an_end(self, index, at_end):
        id, before = self.some(index), list(self.ids)
        self.ids.remove(id)
        if at_end:
            self.feed.move_last(id)
            self.ids.append(id)
        else:
            self.feed.move_first(id)
            self.ids.insert(0, id)
        self.moved(id, before)

    @precondition(FeedMachine.has_items)
    @rule(index=INDEX, other=INDEX, behind=st.booleans(), by_text=st.booleans())
    def move(self, index, other, behind, by_text):
        id, anchor, before = self.some(index), self.some(other), list(self.ids)
        if by_text:
            self.feed.move(f'{anchor}:' if behind else f':{anchor}', id)
        else:
            (self.feed.move_after if behind else self.feed.move_before)(anchor, id)
        if id != anchor:
            self.ids.remove(id)
            self.ids.insert(self.ids.index(anchor) + behind, id)
        self.moved(id, before)

    def moved(self, id, before):
        if self.ids != before:
            self.told.append(('position', id))

    @invariant()
    def keys_stay_short(self):
        assert all(len(key) <= 40 for key in self.feed.order)


for machine in (PlainMachine, SortedMachine):
    machine.TestCase.settings = settings(max_examples=25, stateful_step_count=30)

TestFeed = PlainMachine.TestCase
TestSortedFeed = SortedMachine.TestCase


def test_the_machines_keep_within_the_log():
    assert log.KEEP_COUNT >= 1000
