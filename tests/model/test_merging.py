"""The tree of merging buckets: what it holds, and who meets whom."""

import contextlib

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from ZODB.POSException import ConflictError

from zodbjobs.model import merging
from zodbjobs.model.merging import LOW, MergingTree

KEYS = st.text('abc', min_size=1, max_size=4)


class TreeMachine(RuleBasedStateMachine):
    """A tree with very small nodes against a dict."""

    def __init__(self):
        super().__init__()
        self.former = merging.NODE_ENTRIES, merging.ROOT_ENTRIES
        merging.NODE_ENTRIES, merging.ROOT_ENTRIES = 3, 5
        self.tree, self.model = MergingTree(), {}

    def teardown(self):
        merging.NODE_ENTRIES, merging.ROOT_ENTRIES = self.former

    @rule(keys=st.lists(KEYS, max_size=12), value=st.integers())
    def insert(self, keys, value):
        for key in keys:
            self.tree[key] = value
            self.model[key] = value

    @rule(keys=st.lists(KEYS, max_size=12))
    def remove(self, keys):
        for key in keys:
            if key in self.model:
                assert self.tree.pop(key) == self.model.pop(key)
            else:
                with pytest.raises(KeyError):
                    del self.tree[key]

    @rule()
    def remove_from_the_front(self):
        for key in sorted(self.model)[: len(self.model) // 2 + 1]:
            del self.tree[key]
            del self.model[key]

    @rule(key=KEYS)
    def look_around(self, key):
        keys = sorted(self.model)
        assert self.tree.get(key) == self.model.get(key)
        assert self.tree.next_key(key) == next((k for k in keys if k > key), None)
        assert self.tree.previous_key(key) == next((k for k in reversed(keys) if k < key), None)

    @invariant()
    def it_is_the_dict_in_order(self):
        keys = sorted(self.model)
        assert list(self.tree.items()) == [(key, self.model[key]) for key in keys]
        assert len(self.tree) == len(keys)
        assert self.tree.first() == (keys[0] if keys else None)
        assert self.tree.last() == (keys[-1] if keys else None)
        assert all(len(leaf) <= 6 for leaf in merging._leaves(self.tree.root))
        if not keys:
            assert dict(self.tree.root) == {LOW: None}, 'an empty tree keeps nothing'


TestTree = TreeMachine.TestCase
TestTree.settings = settings(max_examples=30, stateful_step_count=25)


def test_keys_are_texts():
    for key in ('', 7, None):
        with pytest.raises(TypeError, match='not empty'):
            MergingTree()[key] = 1


# Two connections ---------------------------------------------------------------------------


@pytest.fixture
def trees(house):
    """The same tree, with a hundred keys, as three connections see it, and these."""
    sides = [house.first, house.side(), house.side()]
    tree = sides[0].root['tree'] = MergingTree()
    for number in range(100):
        tree[f'{number:03}'] = number
    sides[0].commit()
    for side in sides:
        side.begin()
    return [side.root['tree'] for side in sides], sides


def leaf_of(tree, key):
    return tree._leaf(key)[1]


def test_inserts_into_one_leaf_merge(trees):
    (first, second, seen), sides = trees
    first['0501'] = 'a'
    second['0502'] = 'b'
    assert leaf_of(first, '0501')._p_oid == leaf_of(second, '0502')._p_oid
    sides[0].commit()
    sides[1].commit()
    sides[2].begin()
    assert (seen['0501'], seen['0502'], len(seen)) == ('a', 'b', 102)


def test_a_split_conflicts_with_who_writes_that_leaf_and_nobody_else(trees):
    (splitter, near, far), sides = trees
    for number in range(40):
        splitter[f'050{number:02}'] = number
    near['0505x'] = 'near'
    far['090x'] = 'far'
    assert leaf_of(near, '0505x')._p_oid != leaf_of(far, '090x')._p_oid
    for side in (sides[0], sides[2]):
        side.commit()
    with pytest.raises(ConflictError):
        sides[1].commit()
    sides[1].abort()
    assert '0505x' not in near and near['090x'] == 'far' and len(near) == 141
    near['0505x'] = 'near'
    sides[1].commit()


def test_two_leaves_of_one_parent_may_be_split_at_the_same_time(trees):
    (first, second, seen), sides = trees
    for number in range(40):
        first[f'010{number:02}'] = number
        second[f'090{number:02}'] = number
    sides[0].commit()
    sides[1].commit()
    sides[2].begin()
    assert len(seen) == 180 and list(seen) == sorted(seen)


def test_a_leaf_that_became_empty_takes_no_late_insert(trees):
    (first, second, seen), sides = trees
    doomed = [key for key in leaf_of(first, '050') if key]
    second[doomed[0] + 'x'] = 'late'
    for key in doomed:
        del first[key]
    sides[0].commit()
    with pytest.raises(ConflictError):
        sides[1].commit()
    sides[1].abort()
    second[doomed[0] + 'x'] = 'late'
    sides[1].commit()
    sides[2].begin()
    assert seen[doomed[0] + 'x'] == 'late' and list(seen) == sorted(seen)


def test_what_grows_at_an_end_splits_rarely_and_keeps_its_leaves_full():
    up, down = MergingTree(), MergingTree()
    for number in range(2000):
        up[f'{number:04}'] = down[f'{9999 - number}'] = number
    for tree in (up, down):
        leaves = [len(leaf) - 1 for leaf in merging._leaves(tree.root)]
        assert len(leaves) < 2000 / 24 and max(leaves) <= merging.NODE_ENTRIES


def test_a_small_tree_never_splits(house):
    tree = MergingTree()
    for number in range(merging.ROOT_ENTRIES):
        tree[str(number)] = number
    assert tree.root[LOW] is None
    tree['x'] = 1
    assert 3 <= len(list(merging._leaves(tree.root))) <= 4


def test_equal_keys_conflict(trees):
    (first, second, _), sides = trees
    first['new'] = 1
    second['new'] = 2
    sides[0].commit()
    with pytest.raises(ConflictError):
        sides[1].commit()


@pytest.mark.parametrize('seed', range(12))
def test_whatever_two_do_at_the_same_time_nothing_is_lost(house, seed, monkeypatch):
    """Each commit either conflicts or leaves a tree that is exactly what both did."""
    import random

    monkeypatch.setattr(merging, 'NODE_ENTRIES', 3)
    monkeypatch.setattr(merging, 'ROOT_ENTRIES', 5)
    chance = random.Random(seed)
    first, second, third = house.first, house.side(), house.side()
    first.root['tree'] = MergingTree()
    first.commit()
    model, kept = {}, 0
    for _ in range(60):
        changes = []
        for side in (first, second):
            side.begin()
            tree, change = side.root['tree'], {}
            for _ in range(chance.randint(1, 3)):
                key = f'{chance.randrange(200):03}'
                if key in tree and chance.random() < 0.6:
                    del tree[key]
                    change[key] = None
                elif key not in tree:
                    tree[key] = change[key] = chance.random()
            changes.append(change)
        for side, change in zip((first, second), changes, strict=True):
            with contextlib.suppress(ConflictError):
                side.commit()
                kept += 1
                model.update(change)
            side.abort()
        third.begin()
        expected = {key: value for key, value in sorted(model.items()) if value is not None}
        assert dict(third.root['tree'].items()) == expected
    assert kept > 70, 'most commits go through'
