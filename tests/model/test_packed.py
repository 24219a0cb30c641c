"""The stored form of a job's attributes: whatever they are, they come back."""

from hypothesis import given
from hypothesis import strategies as st

from zodbjobs import status
from zodbjobs.model.packed import NAMES, STATE, STORED_STATES, packed, unpacked
from zodbjobs.model.tokens import first_token

NUMBERS = st.integers(1, 2**58) | st.integers(1, 2**34) | st.integers(1, 300)
OIDS = NUMBERS.map(lambda number: number.to_bytes(8, 'big'))
VALUES = {
    '_status': st.sampled_from(STORED_STATES),
    '_call': st.sampled_from(['module:name', 'm\u00f6dul:n\u00e4me', ('object', 'name')]),
    '_args': st.tuples(NUMBERS) | st.just(()),
    '_queue_oid': OIDS,
    '_agent_oid': OIDS,
    '_put': NUMBERS,
    '_due': NUMBERS,
    '_token': NUMBERS,
    '_active_start': NUMBERS,
    '_active_end': NUMBERS,
    '_attempts': NUMBERS,
    '_assigner': st.binary(min_size=15, max_size=17),
    '_priority': NUMBERS,
}
STATES = st.fixed_dictionaries(
    {}, optional={STATE[name]: values for name, values in VALUES.items()}
)
PUT = 1_700_000_000_000_000


def usual(**more):
    """The state of a job without wishes that has run, and what `more` names."""
    state = {
        '_status': status.COMPLETED, '_call': 'module:name', '_queue_oid': b'\0' * 7 + b'q',
        '_agent_oid': b'\0' * 7 + b'a', '_put': PUT, '_due': PUT, '_token': first_token(PUT),
        '_active_start': PUT + 5, '_active_end': PUT + 7, '_attempts': 1,
    }  # fmt: skip
    return {STATE[name]: value for name, value in (state | more).items()}


def with_what_goes_without_saying(state):
    """`state`, with what `unpacked` adds because it is the default, or told by the rest."""
    full = {STATE['_status']: status.NEW} | state
    put = state.get(STATE['_put'], 0)
    if 0 < put < 2**56:
        full.setdefault(STATE['_due'], put)
        full.setdefault(STATE['_token'], first_token(put))
    if STATE['_attempts'] in unpacked(packed(dict(state))):
        full.setdefault(STATE['_attempts'], 0)
    return full


@given(STATES)
def test_whatever_was_stored_comes_back(state):
    assert unpacked(packed(dict(state))) == with_what_goes_without_saying(state)


@given(st.dictionaries(st.sampled_from(sorted(VALUES)), NUMBERS, max_size=3), st.data())
def test_what_is_not_as_usual_comes_back(names, data):
    state = usual(**{name: data.draw(VALUES[name]) for name in names})
    assert unpacked(packed(dict(state))) == state


def test_the_usual_job_is_a_run_of_bytes():
    state = usual()
    assert packed(dict(state)) == packed(dict(state)) and len(packed(state)) == 12 + 13 + 11
    assigned = packed(usual(_assigner=b'0' * 16))
    assert type(assigned) is bytes and len(assigned) == 12 + 13 + 11 + 16
    head, args = packed(usual(_args=(1, 'two')))
    assert (type(head), args) == (bytes, (1, 'two'))
    head, rest = packed(usual(_args=(1, 'two'), _result='done'))
    assert set(rest) == {STATE['_args'], STATE['_result']}


def test_a_state_has_its_place_for_ever():
    """What is stored must be read by all later releases."""
    assert STORED_STATES == (
        'new', 'pending', 'held', 'assigned', 'active',
        'callbacks', 'completed',
    )  # fmt: skip
    assert unpacked(
        b'\x06\n$\x18\x1e@\x00\x62\x00\x00\x00q\x00\x00\x00a\x00\x00\x00\x05\x00\x00\x00\x02\x01m:n'
    ) == usual(_call='m:n')
    assert len(NAMES) == len(STATE)
