"""The agent: takes jobs of one queue for one dispatcher.

Its `running` list is a merging bucket that only its own dispatcher writes (and
whoever recovers its jobs): entered by the claim, left by the next claim after
the job has finished.  A completion does not write it.

Runs in the dispatcher's claim transaction; settings in the application's.
"""

from persistent import Persistent
from zope.interface import implementer

from zodbjobs import status
from zodbjobs.interfaces import IAgent
from zodbjobs.model.history import History
from zodbjobs.model.intake import entries_of, new_bucket, size_of
from zodbjobs.model.tokens import TIE_BITS, is_counted


def _checked_size(size):
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise ValueError(f'the size of an agent is a whole number from 0 on, not {size!r}')
    return size


def _checked_channels(channels):
    if channels is None:
        return None
    if isinstance(channels, str):
        raise TypeError(f'channels is a sequence of names: use [{channels!r}]')
    channels = tuple(dict.fromkeys(channel or '' for channel in channels))
    for channel in channels:
        if not isinstance(channel, str):
            raise TypeError(f'a channel is a text or None, not {channel!r}')
    return channels


def _checked_coalesce(seconds):
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f'coalesce is seconds, a number, not {seconds!r}')
    if not 0 <= seconds <= LONGEST_COALESCE_SECONDS:
        raise ValueError(
            f'coalesce is from 0 to {LONGEST_COALESCE_SECONDS} seconds, not {seconds!r}: what is'
            ' not committed yet is lost, and done again, when the process dies'
        )
    return seconds


#: A transaction of jobs that goes on for longer would conflict with everybody.
LONGEST_COALESCE_SECONDS = 1


#: Behind so many facts of an entry of `running` are the tokens of the claims that it replaced.
FACTS = 3


@implementer(IAgent)
class Agent(Persistent):
    """See IAgent."""

    name = None
    parent = None
    _chooser = None
    _filter = None
    _channels = None
    _coalesce = 0

    def __init__(self, chooser=None, filter=None, size=3, channels=None, coalesce=0):
        if chooser is not None and filter is not None:
            raise ValueError('an agent has a chooser or a filter, not both')
        self.chooser = chooser
        self.filter = filter
        self.size = size
        self.channels = channels
        self.coalesce = coalesce
        # {oid: (token, job, `_packed` time of the claim, *tokens of claims that it took over)}
        self.running = new_bucket()
        self.waiting = new_bucket()  # {oid: job}: they returned a job and wait for it
        self.history = History()

    @property
    def size(self):
        return self._size

    @size.setter
    def size(self, size):
        self._size = _checked_size(size)

    @property
    def coalesce(self):
        return self._coalesce

    @coalesce.setter
    def coalesce(self, seconds):
        self._coalesce = _checked_coalesce(seconds)

    @property
    def channels(self):
        return self._channels

    @channels.setter
    def channels(self, channels):
        self._channels = _checked_channels(channels)

    @property
    def chooser(self):
        return self._chooser

    @chooser.setter
    def chooser(self, chooser):
        _check_function('chooser', chooser)
        if chooser is not None and self._filter is not None:
            raise ValueError('an agent has a chooser or a filter, not both: set filter to None')
        self._chooser = chooser

    @property
    def filter(self):
        return self._filter

    @filter.setter
    def filter(self, filter):
        _check_function('filter', filter)
        if filter is not None and self._chooser is not None:
            raise ValueError('an agent has a chooser or a filter, not both: set chooser to None')
        self._filter = filter

    @property
    def queue(self):
        return None if self.parent is None else self.parent.queue

    completed = property(lambda self: self.history)

    def claimed(self, oid, token, job, ahead, now):
        """The job was taken for this agent at `now` (microseconds).

        True if that takes the place of a filing of the job that counts no more,
        and did.
        """
        former = self.running.get(oid)
        replaces = former is not None and is_counted(former[0])
        replaced = () if former is None else former[FACTS:]
        if replaces:
            replaced = (former[0], *replaced)
        self.running[oid] = (token, job, _packed(token, ahead, now), *replaced)
        return replaces

    def has_replaced(self, oid, token):
        """Whether the claim that it lists of a job took the place of that of the filing `token`."""
        entry = self.running.get(oid)
        return entry is not None and token in entry[FACTS:]

    def holds(self, oid, token):
        """None, or (whether it was claimed ahead,) for a job that it runs under `token`."""
        entry = self.running.get(oid)
        return (bool(entry[2] & 1),) if entry is not None and entry[0] == token else None

    def claimed_at(self, job):
        """Microseconds when it claimed a job that it still lists, or None."""
        entry = self.running.get(job.oid)
        return _claimed(entry) if entry is not None and entry[0] == job._token else None

    def entries(self):
        """[(oid, token, job, ahead, claimed)] of what it runs, the longest held first."""
        found = [
            (oid, *entry[:2], bool(entry[2] & 1), _claimed(entry))
            for oid, entry in entries_of(self.running)
        ]
        return sorted(found, key=lambda entry: entry[4])

    def held_count(self):
        """How many entries `running` has; finished ones count until they are retired."""
        return size_of(self.running)

    def retired(self, oid, token):
        """The entry of a job that needs no thread any more is taken off `running`."""
        entry = self.running.get(oid)
        if entry is None or entry[0] != token:
            return False
        del self.running[oid]
        return True

    def _unfinished(self):
        """{oid: job} of the jobs that are not completed yet."""
        found = {
            oid: job
            for oid, token, job, *_ in self.entries()
            if getattr(job, '_token', None) == token and job._status != status.COMPLETED
        }
        found.update(
            (oid, job)
            for oid, job in entries_of(self.waiting)
            if job._status not in (status.COMPLETED, status.NEW)
        )
        return found

    def __iter__(self):
        return iter(self._unfinished().values())

    def __len__(self):
        return len(self._unfinished())

    def __bool__(self):
        return True

    def __contains__(self, job):
        return any(found is job for found in self)

    def __getitem__(self, index):
        return list(self)[index]

    def index(self, job):
        """The place of a job among those it holds.  ValueError if it is not there."""
        return list(self).index(job)

    def stats(self):
        """A dict of its settings and counts, plain values only."""
        jobs = list(self)
        return {
            'size': self.size,
            'len': len(jobs),
            'active': sum(job.status == status.ACTIVE for job in jobs),
            'channels': self.channels,
            'filter': getattr(self.filter, '__qualname__', self.filter and repr(self.filter)),
            'chooser': getattr(self.chooser, '__qualname__', self.chooser and repr(self.chooser)),
        }

    def __repr__(self):
        return f'<Agent {self.name!r} size {self._size}>'


def _packed(token, ahead, now):
    """When it was claimed, and whether ahead, in one small number: how long it had waited."""
    return now - (token >> TIE_BITS) << 1 | ahead


def _claimed(entry):
    """Microseconds when it was claimed, of a stored entry."""
    return (entry[2] >> 1) + (entry[0] >> TIE_BITS)


def _check_function(what, function):
    if function is not None and not callable(function):
        raise ValueError(f'{what} must be callable, not {function!r}; the number of jobs is size=')
