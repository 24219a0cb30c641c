"""The parts of a run, and the run itself.

A part measures its figures in groups.  After each group the raw commit rate is
measured, and the group is compared with the median of the windows before and
after it: who else uses the machine may come and go within seconds.
"""

import dataclasses

from benchmarks import (
    backlog,
    commits,
    conflicts,
    feeds,
    latency,
    loops,
    memory,
    monitor,
    passes,
    processes,
    puts,
    restart,
    size,
    throughput,
)
from benchmarks.measure import Figure, Raw, raw_rate

#: Name -> what measures it: called with a Place and a Scale, it yields tuples of Figures.
PARTS = {
    'commits': commits.measure,
    'put': puts.measure,
    'jobs': throughput.measure,
    'processes': processes.measure,
    'latency': latency.measure,
    'passes': passes.measure,
    'restart': restart.measure,
    'backlog': backlog.measure,
    'monitor': monitor.measure,
    'size': size.measure,
    'conflicts': conflicts.measure,
    'memory': memory.measure,
    'feeds': feeds.measure,
    'loops': loops.measure,
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A Figure of a part, and the Raw that was measured around it."""

    part: str
    figure: Figure
    raw: Raw

    @property
    def ratio(self):
        return self.figure.ratio(self.raw)


@dataclasses.dataclass
class Table:
    """What was measured on one storage."""

    storage: str
    rows: list = dataclasses.field(default_factory=list)
    windows: list = dataclasses.field(default_factory=list)  # every Raw

    @property
    def raw(self):
        return Raw.median(self.windows)


def measure(place, scale, names=tuple(PARTS), tell=lambda name: None):
    """Measure the parts of these names at `place`; returns a Table.

    `tell` is called with the name of each part before it begins.
    """
    table = Table(place.kind)
    before = _windows(place, scale)
    table.windows += before
    for name in names:
        tell(name)
        for figures in PARTS[name](place, scale):
            after = _windows(place, scale)
            table.windows += after
            raw = Raw.median(before + after)
            table.rows += [Row(name, figure, raw) for figure in figures]
            before = after
    return table


def _windows(place, scale):
    size = place.file_size if place.path else None
    return [raw_rate(place.producer, scale.raw_seconds, size) for _ in range(scale.raw_windows)]
