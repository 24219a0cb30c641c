"""How a job's attributes are stored, in as few bytes as can be.

A job's record is written twice in its life, and it is most of what a job costs
the storage.  What nearly every job has is one run of bytes, as each value that
is pickled costs its key, its mark and a call of Python.  What only some have
stands behind it under numbers.

    bytes                          what nearly every job has
    (bytes, arguments)             and arguments, a tuple
    (bytes, {number: value})       and others

Nothing here knows jobs: it deals with dicts of plain values, in whatever thread
stores or loads one.
"""

import struct

from zodbjobs import status
from zodbjobs.model.tokens import first_token

#: Attribute -> its number in the stored state.  A number is never used for anything else.
STATE = {
    '_status': 1,
    '_call': 2,
    '_args': 3,
    '_kwargs': 4,
    '_queue_oid': 5,
    '_agent_oid': 6,
    '_parent': 7,
    '_token': 8,
    '_due': 9,
    '_put': 10,
    '_begin_by': 11,
    '_priority': 12,
    '_channel': 13,
    '_quota_names': 14,
    '_id': 15,
    '_depends_on': 16,
    '_after': 17,
    '_callbacks': 18,
    '_outers': 19,
    '_result': 20,
    '_waits': 21,
    '_active_start': 22,
    '_active_end': 23,
    '_told': 24,
    '_attempts': 25,
    '_interruptions': 26,
    '_conflicts': 27,
    '_interrupted': 28,
    '_cancelled': 29,
    '_hold_reason': 30,
    '_policy': 31,
    '_retry_policy_factory': 32,
    '_retries': 33,
    '_failure_log_level': 34,
    '_result_ttl': 35,
    '_annotations': 36,
    '_assigner': 37,
    '_lease': 38,
    '_time_limit': 39,
    '_overran': 40,
    '_number': 41,
    '_deeds': 42,
    '_trace': 43,
}

NAMES = {number: name for name, number in STATE.items()}

#: Where the attributes of a subclass are kept.
OF_SUBCLASS = 0


#: A state's place here is its stored form: none ever moves, and new ones go to the end.
STORED_STATES = (
    status.NEW,
    status.PENDING,
    status.HELD,
    status.ASSIGNED,
    status.ACTIVE,
    status.CALLBACKS,
    status.COMPLETED,
)

_PLACES = {each: place for place, each in enumerate(STORED_STATES)}

_STATUS, _CALL, _ARGS, _QUEUE, _AGENT, _PUT, _DUE, _TOKEN, _START, _END, _ATTEMPTS, _ASSIGNER = (
    STATE[name]
    for name in (
        '_status', '_call', '_args', '_queue_oid', '_agent_oid', '_put', '_due', '_token',
        '_active_start', '_active_end', '_attempts', '_assigner',
    )
)  # fmt: skip

#: When it was put (microseconds << 8) with its state's place (<< 4) and flags; the queue's oid.
_HEAD = struct.Struct('>QI')

#: Of what has run: the agent's oid, microseconds from the put and those of the run, attempts.
_RUN = struct.Struct('>IIIB')

_HAS_ASSIGNER, _HAS_RUN = 1, 2
_ASSIGNER_BYTES = 16

#: What does not fit stays in the dict: a later put, a larger oid.
_LATEST = 1 << 56
_LARGEST_OID = b'\0\0\0\0\xff\xff\xff\xff'


def packed(state):
    """The stored form of {number: value}, a dict that is used up by this."""
    put = state.pop(_PUT) if 0 < state.get(_PUT, 0) < _LATEST else 0
    if put:
        if state.get(_DUE) == put:  # most jobs begin when they are put
            del state[_DUE]
        if state.get(_TOKEN) == first_token(put):
            del state[_TOKEN]
    flags, assigner, call = _PLACES[state.pop(_STATUS, status.NEW)] << 4, b'', b''
    queue = state.pop(_QUEUE) if state.get(_QUEUE, b'\xff') <= _LARGEST_OID else b''
    if len(state.get(_ASSIGNER, b'')) == _ASSIGNER_BYTES:
        assigner = state.pop(_ASSIGNER)
        flags |= _HAS_ASSIGNER
    run = _run_of(state, put) if _END in state else b''
    if run:
        flags |= _HAS_RUN
    if type(state.get(_CALL)) is str:
        call = state.pop(_CALL).encode()
    head = _HEAD.pack(put << 8 | flags, int.from_bytes(queue, 'big')) + assigner + run + call
    if not state:
        return head
    return head, state[_ARGS] if len(state) == 1 and _ARGS in state else state


def _run_of(state, put):
    """What has run, taken out of `state`; nothing if it is not as usual."""
    start = state.get(_START)
    if start is None or state.get(_AGENT, b'\xff') > _LARGEST_OID:
        return b''
    agent = int.from_bytes(state[_AGENT], 'big')
    try:
        run = _RUN.pack(agent, start - put, state[_END] - start, state.get(_ATTEMPTS, 0))
    except struct.error:  # it waited or ran for more than an hour, say
        return b''
    del state[_START], state[_END], state[_AGENT]
    state.pop(_ATTEMPTS, None)
    return run


def unpacked(stored):
    """{number: value} of a stored form."""
    if type(stored) is bytes:
        state = {}
    else:
        stored, rest = stored
        state = dict(rest) if type(rest) is dict else {_ARGS: rest}
    start, queue = _HEAD.unpack_from(stored)
    put, place, flags, end = start >> 8, start >> 4 & 15, start & 15, _HEAD.size
    state[_STATUS] = STORED_STATES[place]
    if put:
        state[_PUT] = put
        state.setdefault(_DUE, put)
        state.setdefault(_TOKEN, first_token(put))
    if queue:
        state[_QUEUE] = queue.to_bytes(8, 'big')
    if flags & _HAS_ASSIGNER:
        state[_ASSIGNER] = stored[end : end + _ASSIGNER_BYTES]
        end += _ASSIGNER_BYTES
    if flags & _HAS_RUN:
        agent, waited, ran, attempts = _RUN.unpack_from(stored, end)
        end += _RUN.size
        state[_AGENT] = agent.to_bytes(8, 'big')
        state[_START] = put + waited
        state[_END] = put + waited + ran
        state[_ATTEMPTS] = attempts
    if len(stored) > end:
        state[_CALL] = stored[end:].decode()
    return state
