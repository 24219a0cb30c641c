"""Timing: how often a storage commits, how long things take, and how both are put in relation.

Everything runs in the caller's thread, on connections that are passed in, and
is bounded by a count or by seconds.
"""

import dataclasses
import math
import resource
import statistics
import threading
import time

from persistent.mapping import PersistentMapping

from zodbjobs import clock

#: How a figure compares with the raw commit rate.
RATE = 'rate'  # so many per second: more is better; the ratio is to commits per second
COST = 'cost'  # so many seconds each: less is better; the ratio is to the time of a commit
SIZE = 'size'  # so many bytes each: less is better; the ratio is to the bytes of a commit
PLAIN = 'plain'  # a count, or a share: it needs no comparison

MEGABYTE = 1 << 20

#: So often it is tried to make an object in the root while other processes do so, too.
MAKE_ATTEMPTS = 20

#: Seconds between two looks whether something has happened.
PAUSE_SECONDS = 0.005


@dataclasses.dataclass(frozen=True)
class Figure:
    """One row: what was measured.  `value` is in `unit` (seconds for a COST, bytes for a SIZE).

    `note` is for people, `facts` (plain values) are for programs.
    """

    name: str
    value: float
    unit: str
    kind: str = PLAIN
    note: str = ''
    facts: dict = dataclasses.field(default_factory=dict)

    def ratio(self, raw):
        """How it compares with `raw`, a `Raw`; None if it is PLAIN."""
        if self.kind == PLAIN or not raw.per_second:
            return None
        if self.kind == SIZE:
            return self.value / raw.bytes_each if raw.bytes_each else None
        return self.value / raw.per_second if self.kind == RATE else self.value * raw.per_second


@dataclasses.dataclass(frozen=True)
class Raw:
    """What the bare storage does: commits of one small object by one thread."""

    per_second: float
    bytes_each: float | None = None  # where the storage is a file of ours

    @classmethod
    def median(cls, found):
        """The median of several."""
        sizes = [raw.bytes_each for raw in found if raw.bytes_each]
        return cls(
            statistics.median(raw.per_second for raw in found),
            statistics.median(sizes) if sizes else None,
        )


def raw_rate(connection, seconds, file_size=None, key='raw'):
    """Commit a small object for `seconds`; returns a Raw.

    `file_size`, if any, tells the bytes of the database's file; `key` is where in
    the root the object is.
    """
    manager = connection.transaction_manager
    manager.begin()
    root = connection.root()
    for attempt in manager.attempts(MAKE_ATTEMPTS):
        with attempt:
            if key not in root:
                root[key] = PersistentMapping()
    number = root[key]
    before = file_size() if file_size else 0
    count, started = 0, clock.monotonic()
    while clock.monotonic() - started < seconds:
        number['count'] = count
        manager.commit()
        count += 1
    taken = clock.monotonic() - started
    return Raw(count / taken, (file_size() - before) / count if file_size else None)


class Stopwatch:
    """Seconds of the blocks it was used for: ``with watch: ...``."""

    def __init__(self):
        self.laps = []

    def __enter__(self):
        self._started = clock.monotonic()
        return self

    def __exit__(self, *error):
        self.laps.append(clock.monotonic() - self._started)

    @property
    def median(self):
        return statistics.median(self.laps)

    @property
    def total(self):
        return math.fsum(self.laps)


def percentile(values, percent):
    """The value that `percent` of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]


def wait_until(is_so, seconds, pause=PAUSE_SECONDS):
    """Look until `is_so()` holds, for so many seconds at most; returns whether it does.

    `pause` is the seconds between two looks.
    """
    deadline = clock.monotonic() + seconds
    while not is_so():
        if clock.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def resident_bytes():
    """The memory this process has now; its peak where the system does not tell."""
    try:
        with open('/proc/self/statm') as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Tally:
    """Commits, and commits that failed, of the connections that tell it; of any thread."""

    def __init__(self):
        self._guard = threading.Lock()
        self.commits = self.failures = 0

    def committed(self):
        with self._guard:
            self.commits += 1

    def failed(self):
        with self._guard:
            self.failures += 1
