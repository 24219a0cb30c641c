"""What the owner of a job wishes of it, and may change while it waits.

Setting what decides the place of a waiting job files it anew.  Each setter
checks what it gets, and raises TypeError, ValueError or BadStatusError with what
to do instead; then nothing has changed.

Runs in the caller's transaction.
"""

import datetime

from zodbjobs import clock, status
from zodbjobs.interfaces import BadStatusError
from zodbjobs.model.record import DEFAULT_PRIORITY, JobRecord
from zodbjobs.model.wishes import (
    check_factory,
    checked_channel,
    checked_level,
    checked_limit,
    checked_priority,
    checked_span,
)


class WishedJob(JobRecord):
    """The settings of a job; see IJob."""

    @property
    def begin_after(self):
        return clock.datetime_of(self._due)

    @begin_after.setter
    def begin_after(self, moment):
        self._place(_due=None if moment is None else clock.micros_of(moment))

    @property
    def begin_by(self):
        return None if self._begin_by is None else datetime.timedelta(microseconds=self._begin_by)

    @begin_by.setter
    def begin_by(self, span):
        self._place(_begin_by=checked_span(span, 'begin_by'))

    @property
    def priority(self):
        return self._priority

    @priority.setter
    def priority(self, priority):
        self._place(_priority=checked_priority(priority))

    @property
    def channel(self):
        return self._channel

    @channel.setter
    def channel(self, channel):
        self._place(_channel=checked_channel(channel))

    @property
    def quota_names(self):
        return self._quota_names

    @quota_names.setter
    def quota_names(self, names):
        queue = self.queue if self._status != status.NEW else None
        if isinstance(names, (str, bytes)):
            raise TypeError(f'quota_names is a sequence of names: use ({names!r},)')
        names = tuple(names)
        self._place(_quota_names=names if queue is None else queue.quotas.check(names))

    def place_beside(self, other):
        """{attribute: value}: where it is put for `other`, unless it has wishes of its own."""
        if self._priority == DEFAULT_PRIORITY and self._channel is None:
            return {'_priority': other._priority, '_channel': other._channel}
        return {}

    def _place(self, **changes):
        """Set what decides the place of a job, and file it anew if it waits."""
        self._must_be(f'change {next(iter(changes))[1:]} of', status.NEW, status.PENDING)
        waits = self._status == status.PENDING
        queue = self.queue
        for name, value in changes.items():
            setattr(self, name, value)
        if waits:
            if self._due is None:
                self._due = clock.micros()
            queue.refile(self, keep='_due' not in changes)

    @property
    def failure_log_level(self):
        return self._failure_log_level

    @failure_log_level.setter
    def failure_log_level(self, level):
        self._failure_log_level = checked_level(level)

    @property
    def time_limit(self):
        if self._time_limit is None:
            return None
        return tuple(datetime.timedelta(microseconds=limit) for limit in self._time_limit)

    @time_limit.setter
    def time_limit(self, limit):
        self._must_be('change the time limit of', status.NEW, status.PENDING)
        self._time_limit = checked_limit(limit)

    @property
    def retry_policy_factory(self):
        return self._retry_policy_factory

    @retry_policy_factory.setter
    def retry_policy_factory(self, factory):
        check_factory(factory, self._p_jar)
        self._retry_policy_factory = factory

    def _must_be(self, deed, *states):
        now = self.status
        if now not in states:
            raise BadStatusError(
                f'cannot {deed} {self!r}: it is {now}, and it must be {" or ".join(states)}'
            )
