"""Sorted jobs: keys that are taken, groups that are skipped, the order of a walk."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zodbjobs.model.intake import URGENT, Entry
from zodbjobs.model.ready import CHANNEL, SHARD_RUN, SHARDS, Ready, Sorted, merged
from zodbjobs.model.tokens import FAR, TIE_BITS, order_key


class Counted(Sorted):
    """Counts how often a key is looked up."""

    looks = 0

    def __contains__(self, key):
        type(self).looks += 1
        return super().__contains__(key)


def group(priority=5, channel='', quotas=()):
    return (priority, channel, quotas, 0)


def ready_with(*entries):
    """A Ready that holds the jobs of (token, group)."""
    ready = Ready()
    for token, where in entries:
        ready.file(Entry(token, 0, where, f'job {token}'), now=0)
    return ready


# Sorted ------------------------------------------------------------------------------------


def test_ten_thousand_equal_keys_do_not_cost_their_square():
    Counted.looks = 0
    tree = Counted()
    keys = [tree.add(7, number) for number in range(10_000)]
    assert keys == list(range(7, 10_007))
    assert list(tree.values()) == list(range(10_000))
    assert Counted.looks < 40 * 10_000


@given(st.lists(st.integers(0, 60), max_size=200))
def test_nothing_is_overwritten_or_put_before_its_key(wishes):
    tree = Sorted()
    given = {tree.add(key, number): key for number, key in enumerate(wishes)}
    assert len(tree) == len(given) == len(wishes)
    assert all(key >= wished for key, wished in given.items())
    for wished in set(wishes):
        numbers = [tree[key] for key in sorted(given) if given[key] == wished]
        assert numbers == sorted(numbers)  # equals stay in the order in which they came


@pytest.mark.parametrize('us', [-(2**62), -1, 0, 1, FAR, FAR + 1, 2**70])
def test_every_time_has_a_key_that_fits(us):
    tree = Sorted()
    assert tree.add(order_key(us), 'first') <= tree.add(order_key(us), 'second')
    assert 0 <= tree.minKey() >> TIE_BITS <= FAR


# Groups ------------------------------------------------------------------------------------


def test_runs_go_by_priority_and_leave_channels_out():
    urgent = group(URGENT, 'mail')
    groups = [
        group(3, 'mail'), group(3, 'mail', ('q',)), group(3, 'mailing'), group(3, 'mai'),
        group(4, 'web'), group(9, ''), urgent,
    ]  # fmt: skip
    ready = ready_with(*enumerate(groups))
    assert list(ready.runs()) == [[urgent], sorted(groups[:4]), [groups[4]], [groups[5]]]
    assert list(ready.runs(['mail'])) == [[urgent], groups[:2]]
    assert list(ready.runs(['mail', 'mai'])) == [[urgent], [groups[3], *groups[:2]]]
    assert list(ready.runs([''])) == [[groups[5]]]
    assert list(ready.runs(['unheard'])) == []
    assert list(ready.runs([])) == []


def test_channels_are_skipped_without_looking_at_each_group(monkeypatch):
    """Groups of other channels, with a quota each, cost nothing; a priority costs a step or two."""
    ready = ready_with(*((n, group(n % 3, 'busy', (f'q{n}',))) for n in range(900)))
    ready.file(Entry(1000, 0, group(1, 'mine'), 'mine'), now=0)
    reads = []
    tree = ready.groups

    class Watching:
        def keys(self, *args, **kw):
            for key in tree.keys(*args, **kw):
                reads.append(key)
                yield key

    ready.groups = Watching()
    assert list(ready.runs(['mine'])) == [[group(1, 'mine')]]
    assert len(reads) < 10


def test_a_stream_ends_as_soon_as_its_quota_is_full():
    ready = ready_with((1, group()), (2, group()), (3, group()))
    left = [2]

    def wanted(where):
        left[0] -= 1
        return left[0] >= 0

    assert [token for token, *_ in ready.stream(group(), wanted)] == [1, 2]


def test_streams_are_merged_without_comparing_jobs():
    streams = [[(1, object()), (3, object())], [(1, object()), (2, object())]]
    found = merged([iter(each) for each in streams], [0, 0])
    assert [token for token, _ in found] == [1, 1, 2, 3]
    assert list(merged([], [])) == []


def test_late_streams_come_later():
    streams = [[(1, 'a'), (30, 'b')], [(2, 'c'), (40, 'd')], [(3, 'e')]]
    found = merged([iter(each) for each in streams], [0, 100, 25])
    assert [item[1] for _, item in found] == ['a', 'e', 'b', 'c', 'd']


def test_a_large_group_is_spread_over_shards():
    """In runs, so that one dispatcher that takes all in order meets one tree at a time."""
    count = SHARD_RUN * (SHARDS + 1)
    ready = ready_with(*((token, group()) for token in range(1, count + 1)))
    assert list(ready.groups) == [group(), *((*group(), number) for number in range(1, SHARDS))]
    sizes = [len(tree) for tree in ready.groups.values()]
    assert sizes == [2 * SHARD_RUN] + [SHARD_RUN] * (SHARDS - 1)
    assert [token for _, token, _ in ready.walk(0)] == list(range(1, count + 1))
    assert list(ready.runs()) == [list(ready.groups)]
    assert list(ready.runs([''])) == [list(ready.groups)]


def test_where_order_is_the_point_there_is_one_tree():
    ready = ready_with(*((token, group(quotas=('q',))) for token in range(2 * SHARD_RUN)))
    assert len(ready.groups) == 1


def test_the_last_job_takes_its_group_along():
    ready = ready_with((1, group()), (2, group()))
    ready.take(group(), 1)
    assert list(ready.groups) == [group()]
    ready.take(group(), 2)
    assert list(ready.groups) == []


# Later -------------------------------------------------------------------------------------


def test_what_is_due_matures_and_no_more():
    ready = Ready()
    for due in (10, 20, 20, 30):
        ready.file(Entry(due << TIE_BITS, due, group(), f'job at {due}'), now=5)
    assert ready.next_due() == 10
    assert ready.mature(9, limit=100) == 0
    assert ready.mature(10, limit=100) == 1  # at the very microsecond
    assert ready.mature(29, limit=1) == 1
    assert ready.mature(29, limit=100) == 1
    assert ready.next_due() == 30
    assert [job for _, _, job in ready.walk(29)] == ['job at 10', 'job at 20', 'job at 20']
    assert ready.mature(30, limit=100) == 1
    assert ready.next_due() is None


def test_a_walk_shows_what_became_due_in_its_place():
    ready = ready_with((5, group(2)), (1, group(3)))
    ready.file(Entry(3, 3, group(2), 'soon'), now=0)
    ready.file(Entry(4, 4, group(1), 'later'), now=0)
    assert [job for *_, job in ready.walk(2)] == ['job 5', 'job 1']
    assert [job for *_, job in ready.walk(3)] == ['soon', 'job 5', 'job 1']
    assert [job for *_, job in ready.walk_later(3)] == ['later']


def test_later_jobs_of_one_date_go_by_priority():
    ready = Ready()
    for token, due, priority in ((1, 9, 7), (2, 9, 3), (3, 8, 9), (4, 9, 3)):
        ready.file(Entry(token, due, group(priority), token), now=0)
    assert [job for *_, job in ready.walk_later(0)] == [3, 2, 4, 1]


def test_deadlines_come_in_order_and_some_at_a_time():
    ready = Ready()
    for deadline in (30, 10, 20):
        ready.deadlines.add(order_key(deadline), (deadline, 'job'))
    assert ready.next_deadline() == 10
    assert ready.expire(9, limit=5) == []
    assert ready.expire(25, limit=1) == [(10, 'job')]
    assert ready.expire(25, limit=5) == [(20, 'job')]
    assert ready.next_deadline() == 30


def test_a_group_tells_its_channel():
    assert group(channel='mail')[CHANNEL] == 'mail'
