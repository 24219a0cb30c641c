"""The journal against a plain list; and what an addition writes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zodbjobs.model.intake import size_of
from zodbjobs.model.journal import CHUNK_ENTRIES, FULL_ENTRIES, Journal

ADD, POP = st.tuples(st.just('add'), st.integers(0, 50)), st.just(('pop', 0))


@given(st.lists(ADD | ADD | POP, max_size=80))
def test_a_journal_is_a_list_that_loses_its_oldest(deeds):
    journal, plain = Journal(), []
    for number, (deed, step) in enumerate(deeds):
        if deed == 'add':
            key = 5000 + 100 * number - 83 * step  # the clock goes back now and then
            journal.append(key, number, f'job {number}')
            plain.append((max(key, plain[-1][0] + 1 if plain else key), (number, f'job {number}')))
        elif plain:
            assert journal.pop_first() == plain.pop(0)[1]
        check(journal, plain)


def check(journal, plain):
    assert len(journal) == len(plain)
    assert bool(journal) == bool(plain)
    assert list(journal) == [key for key, _ in plain]
    assert journal.first_key() == (plain[0][0] if plain else None)
    assert list(journal.backwards()) == plain[::-1]
    for before, _ in plain[::5]:
        found = [entry for entry in plain[::-1] if entry[0] < before]
        assert list(journal.backwards(before)) == found


def test_an_empty_one_has_nothing_to_pop():
    with pytest.raises(ValueError):
        Journal().pop_first()


def test_an_addition_writes_the_last_chunk_only(house):
    side = house.side()
    journal = side.connection.root()['journal'] = Journal()
    for number in range(3 * CHUNK_ENTRIES - 1):
        journal.append(number, number, None)
        side.commit()
        side.begin()
    chunks = list(journal.chunks.values())
    assert [size_of(chunk) for chunk in chunks] == [CHUNK_ENTRIES] * 2 + [CHUNK_ENTRIES - 1]
    side.begin()
    journal.append(100, 100, None)
    assert [chunk._p_changed for chunk in chunks] == [False, False, True]
    assert not journal.chunks._p_changed
    side.abort()


def test_many_additions_of_one_transaction_share_larger_chunks(house):
    """The last one is written anyway, however many there are."""
    side = house.side()
    journal = side.connection.root()['journal'] = Journal()
    side.commit()
    for _ in range(2):
        side.begin()
        for number in range(FULL_ENTRIES + 1):
            journal.append(number, number, None)
        side.commit()
    sizes = [size_of(chunk) for chunk in journal.chunks.values()]
    assert sizes == [FULL_ENTRIES, FULL_ENTRIES, 2]
