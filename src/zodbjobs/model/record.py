"""The attributes of a job, and which of them are stored.

What has its class's default is not stored at all, the rest as `packed` does it.

Runs in the thread of the job's connection.
"""

import uuid

from persistent import Persistent

from zodbjobs import clock, status
from zodbjobs.interfaces import BadStatusError
from zodbjobs.model.call import lasting
from zodbjobs.model.intake import DEFAULT_PRIORITY
from zodbjobs.model.owned import OwnedDict, OwnedList
from zodbjobs.model.packed import NAMES, OF_SUBCLASS, STATE, packed, unpacked

#: What is safe to compare with a class's default: no foreign __eq__ is called.
_COMPARABLE = frozenset((type(None), str, int, bool, tuple, float))


def _moment(attribute, doc):
    return property(lambda self: clock.datetime_of(getattr(self, attribute)), doc=doc)


class JobRecord(Persistent):
    """The attributes of a job, how they are stored, and those that can only be read."""

    _status = status.NEW
    _call = None
    _args = ()
    _kwargs = {}  # noqa: RUF012 - never changed in place
    _queue_oid = None
    _agent_oid = None
    _parent = None
    _token = 0
    _due = None
    _put = None
    _begin_by = None
    _priority = DEFAULT_PRIORITY
    _channel = None
    _quota_names = ()
    _id = None
    _depends_on = ()
    _after = ()
    _callbacks = ()
    _outers = ()
    _result = None
    _waits = None
    _active_start = None
    _active_end = None
    _told = None
    _attempts = 0
    _interruptions = 0
    _conflicts = 0
    _interrupted = False
    _cancelled = False
    _hold_reason = None
    _policy = None
    _retry_policy_factory = None
    _retries = None
    _failure_log_level = None
    _result_ttl = None
    _annotations = None
    _assigner = None
    _lease = None
    _time_limit = None
    _overran = False
    _trace = None
    _number = None
    _deeds = ()

    #: Whether its work is bytes, which only a consumer or the queue's handler understands.
    is_message = False

    #: What must be around it, as bits; see `hosts`.
    needs = 0

    def __getstate__(self):
        self._p_activate()
        state, extra = {}, {}
        for name, value in self.__dict__.items():
            number = STATE.get(name)
            if number is None:
                if name[:3] not in ('_v_', '_p_'):
                    extra[name] = value
            elif type(value) not in _COMPARABLE or value != _DEFAULTS[name]:
                state[number] = value
        if '_v_args' in self.__dict__ or '_v_kwargs' in self.__dict__:
            args, kwargs = self.given()
            for number, given in ((STATE['_args'], args), (STATE['_kwargs'], kwargs)):
                if given:
                    state[number] = given
                else:
                    state.pop(number, None)
        if extra:
            state[OF_SUBCLASS] = extra
        return lasting(packed(state))

    def __setstate__(self, state):
        found = self.__dict__
        found.clear()
        for number, value in unpacked(state).items():
            if number == OF_SUBCLASS:
                found.update(value)
            else:
                found[NAMES[number]] = value

    id = property(lambda self: self._id)
    depends_on = property(lambda self: self._depends_on)
    after = property(lambda self: self._after)
    attempts = property(lambda self: self._attempts)
    interruptions = property(lambda self: self._interruptions)
    conflicts = property(lambda self: self._conflicts)
    hold_reason = property(lambda self: self._hold_reason)
    waits = property(lambda self: self._waits)
    active_start = _moment('_active_start', 'aware UTC datetime, or None')
    active_end = _moment('_active_end', 'aware UTC datetime, or None')

    @property
    def oid(self):
        """The job's oid as an int."""
        return int.from_bytes(self._p_oid, 'big')

    @property
    def assignerUUID(self):
        return None if self._assigner is None else uuid.UUID(bytes=self._assigner)

    @property
    def progress(self):
        return self.annotations.get('zodbjobs.progress')

    @property
    def idempotency_key(self):
        if self._p_oid is None:
            raise BadStatusError(f'{self!r} is not stored yet: put it, then it has a key')
        return f'{self.oid:x}.{self._put or 0:x}'

    def bare_call(self):
        """The stored form of what is called (see `call`), without what a host keeps with it."""
        return self._call

    def is_staged_later(self):
        """Whether its call is a coroutine that needs a scene around each step; see `hosted`."""
        return False

    def is_unfinished(self):
        """Whether the job is in a queue and has not got its result yet."""
        return self._status not in status.FINISHED and self._status != status.NEW

    def given(self):
        """(tuple, dict) of its arguments, without making what `args` and `kwargs` show."""
        args, kwargs = self.__dict__.get('_v_args'), self.__dict__.get('_v_kwargs')
        return (
            self._args if args is None else tuple(args),
            self._kwargs if kwargs is None else dict(kwargs),
        )

    @property
    def args(self):
        args = self.__dict__.get('_v_args')
        if args is None:
            args = self._v_args = OwnedList(self, '_v_args', 'args', self._args)
        return args

    @args.setter
    def args(self, args):
        self._v_args = OwnedList(self, '_v_args', 'args', args)
        self._p_changed = True

    @property
    def kwargs(self):
        kwargs = self.__dict__.get('_v_kwargs')
        if kwargs is None:
            kwargs = self._v_kwargs = OwnedDict(self, '_v_kwargs', 'kwargs', self._kwargs)
        return kwargs

    @kwargs.setter
    def kwargs(self, kwargs):
        self._v_kwargs = OwnedDict(self, '_v_kwargs', 'kwargs', kwargs)
        self._p_changed = True

    def stats(self):
        return {
            'id': self._id,
            'oid': None if self._p_oid is None else self.oid,
            'call': self.call_name,
            'status': self.status,
            'outcome': self.outcome,
            'priority': self._priority,
            'channel': self._channel,
            'quota names': self._quota_names,
            'begin after': self.begin_after,
            'begin by': self.begin_by,
            'put': clock.datetime_of(self._put),
            'active start': self.active_start,
            'active end': self.active_end,
            'callbacks': len(self.callbacks),
            'attempts': self._attempts,
            'interruptions': self._interruptions,
            'conflicts': self._conflicts,
            'hold reason': self._hold_reason,
        }


_DEFAULTS = {name: getattr(JobRecord, name) for name in STATE}
