"""Tables and a picture for the documentation: ``python -m benchmarks.publish``.

Reads what a run has written (``--json``), and writes files that
``docs/performance.rst`` includes, so that every figure there is one that a
command has printed.  matplotlib draws the picture, and is needed for it only.
"""

import argparse
import json
from pathlib import Path

from benchmarks.report import short, shown_value
from benchmarks.storages import TITLES

FIGURES = Path('docs') / 'figures'
JSON = FIGURES / 'bench.json'
PEERS_JSON = FIGURES / 'peers.json'

#: Storages in their order, and the short name of each.
NAMES = {'file': 'FileStorage', 'zeo': 'ZEO', 'postgres': 'PostgreSQL'}

#: Rows whose ratio to the raw commit rate the picture shows, by the beginning of their names.
BARS = (
    'put, one per transaction',
    'jobs that do nothing, 1 thread',
    'jobs that do nothing, 2 threads',
    'jobs that do nothing, 4 threads',
    'jobs that write an object of their own, 4 threads',
    'jobs that do nothing, 2 processes',
)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog='python -m benchmarks.publish', description=__doc__)
    parser.add_argument('--json', type=Path, default=JSON)
    parser.add_argument('--peers', type=Path, default=PEERS_JSON)
    parser.add_argument('--to', type=Path, default=FIGURES)
    options = parser.parse_args(arguments)
    found = json.loads(options.json.read_text())
    options.to.mkdir(parents=True, exist_ok=True)
    if options.peers.exists():
        from benchmarks.peers.__main__ import text

        (options.to / 'peers.txt').write_text(text(json.loads(options.peers.read_text())))
    for storage, table in found['storages'].items():
        (options.to / f'{storage}.txt').write_text(figures_table(storage, table))
        backlog = backlog_table(table)
        if backlog:
            (options.to / f'{storage}-backlog.txt').write_text(backlog)
    (options.to / 'machine.txt').write_text(machine(found['facts']))
    draw(found['storages'], options.to / 'bench.svg')


def machine(facts):
    """What the figures were measured with, one sentence."""
    versions = ', '.join(
        f'{name} {version}'
        for name, version in facts['versions'].items()
        if version and name != 'zodbjobs'
    )
    when = facts['when'][:10]
    place = f'{facts["system"]}, {facts["cores"]} cores, {facts["python"]}'
    load = f'The load average was {facts["load"]} before and {facts["load_at_the_end"]} after'
    return f'Measured on {when}: {place}, {versions}.  {load} the last run.\n'


def figures_table(storage, table):
    """All rows but those of the backlog, as reStructuredText."""
    rows = [('figure', 'measured', 'raw commits/s', 'ratio to raw', '')]
    for row in table['rows']:
        if row['part'] == 'backlog':
            continue
        ratio = row['ratio']
        rows.append((
            row['name'],
            shown_value(row['value'], row['unit'], row['kind']),
            '' if ratio is None else short(row['raw_commits_per_second']),
            '' if ratio is None else short(ratio),
            row['note'],
        ))  # fmt: skip
    raw = short(table['raw_commits_per_second'])
    return f'{TITLES[storage]}: {raw} raw commits/s.\n\n{simple_table(rows)}'


def backlog_table(table):
    """{shape: {verb: time}} as a matrix of times, each with its ratio to an empty queue."""
    cells, verbs = {}, []
    for row in table['rows']:
        if row['part'] != 'backlog' or 'to_empty' not in row['facts']:
            continue
        verb, _, where = row['name'].partition(', ')
        if verb not in verbs:
            verbs.append(verb)
        is_empty = where.startswith('an empty queue')
        shown = shown_value(row['value'], row['unit'], row['kind'])
        if not is_empty:
            shown = f'{short(row["facts"]["to_empty"])} x'
        where = 'an empty queue' if is_empty else where
        cells.setdefault(where, {}).setdefault(verb, shown)
    if not cells:
        return ''
    rows = [('', *verbs)]
    rows += [(where, *(found.get(verb, '') for verb in verbs)) for where, found in cells.items()]
    return simple_table(rows)


def simple_table(rows):
    """A table of reStructuredText; the first row is its heading."""
    rows = [[cell.replace('*', '\\*') or '\\ ' for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rule = '  '.join('=' * width for width in widths)
    lines = ['  '.join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return '\n'.join([rule, lines[0], rule, *lines[1:], rule]) + '\n'


def draw(storages, path):
    """The picture: throughput in raw commits, and what a claim costs with a backlog."""
    try:
        import matplotlib
    except ImportError:
        print('no picture: matplotlib is missing (pip install "zodbjobs[bench]")')
        return
    matplotlib.use('svg')
    matplotlib.rcParams['svg.hashsalt'] = 'zodbjobs'  # the same figures give the same file
    from matplotlib import pyplot

    picture, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout='constrained')
    _draw_bars(left, storages)
    _draw_backlog(right, storages)
    picture.savefig(path, metadata={'Date': None})


def _draw_bars(axes, storages):
    height = 0.8 / max(1, len(storages))
    for number, (storage, name) in enumerate(NAMES.items()):
        found = {row['name']: row['ratio'] for row in storages.get(storage, {}).get('rows', ())}
        bars = [(place, found[bar]) for place, bar in enumerate(BARS) if found.get(bar)]
        if bars:
            places, ratios = zip(*bars, strict=True)
            places = [place + number * height for place in places]
            axes.barh(places, ratios, height, label=name)
    axes.axvline(1, color='black', linewidth=0.8)
    axes.set_yticks([place + height for place in range(len(BARS))], BARS)
    axes.invert_yaxis()
    axes.set_xlabel('per raw commit of the same storage')
    axes.legend()


def _draw_backlog(axes, storages):
    for storage, name in NAMES.items():
        rows = storages.get(storage, {}).get('rows', ())
        points = []
        for row in rows:
            verb, _, where = row['name'].partition(', ')
            count = where.removesuffix(' waiting').replace(',', '')
            if verb.startswith('claim') and count.isdigit():
                points.append((int(count), row['facts']['to_empty']))
        if points:
            axes.plot(*zip(*points, strict=True), marker='o', label=name)
    axes.axhline(1, color='black', linewidth=0.8)
    axes.set_xscale('log')
    axes.set_ylim(bottom=0)
    axes.set_xlabel('jobs that wait')
    axes.set_ylabel('time of a claim, relative to an empty queue')
    if axes.lines[1:]:
        axes.legend()


if __name__ == '__main__':
    main()
