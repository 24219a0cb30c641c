"""Keys for things ordered by hand: always room, always in order, never too long at an end."""

from hypothesis import given
from hypothesis import strategies as st

from zodbjobs.model.sequence import (
    END_DIGITS,
    first_key,
    key_after,
    key_before,
    key_between,
    spread,
)


def test_appending_and_prepending_keeps_keys_short():
    keys = [first_key()]
    for _ in range(2000):
        keys = [key_before(keys[0]), *keys, key_after(keys[-1])]
    assert keys == sorted(set(keys))
    assert max(map(len, keys)) <= END_DIGITS


def test_the_ends_never_run_out():
    last, first = 'f' * END_DIGITS, '0' * (END_DIGITS - 1) + '1'
    for _ in range(50):
        assert key_after(last) > last and key_before(first) < first
        last, first = key_after(last), key_before(first)


@given(st.lists(st.integers(0, 1), max_size=60))
def test_there_is_always_room_between_two(sides):
    """Whatever way one goes, between two keys there is a third."""
    low, high = '', ''
    for side in sides:
        key = key_between(low, high)
        assert low < key and (not high or key < high) and not key.endswith('0')
        low, high = (key, high) if side else (low, key)


@given(
    st.integers(1, 200), st.sampled_from([('', ''), ('8', '80001'), ('', '00001'), ('ffff', '')])
)
def test_spread_keys_are_in_order_between_the_two(count, bounds):
    low, high = bounds
    keys = spread(low, high, count)
    assert len(keys) == count and keys == sorted(set(keys))
    assert low < keys[0] and (not high or keys[-1] < high)
    assert not any(key.endswith('0') for key in keys)
