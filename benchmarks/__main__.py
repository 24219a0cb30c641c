"""The command: ``python -m benchmarks``, or ``make bench ARGS='--only latency --storage file'``."""

import argparse
import dataclasses
import sys
from pathlib import Path

from benchmarks import backlog, parts, report, scale, staff, storages
from zodbjobs import clock

JSON = Path('var') / 'bench.json'


def main(arguments=None):
    options = parser().parse_args(arguments)
    staff.log_briefly()
    chosen = scale.FULL if options.full else scale.QUICK
    names = options.only or list(parts.PARTS)
    if options.shape:
        shapes = [each for each in chosen.backlogs if each[0] in options.shape]
        chosen = dataclasses.replace(chosen, backlogs=tuple(shapes))
    known = report.facts()
    tables = []
    started = clock.monotonic()
    for storage in options.storage or list(storages.PLACES):
        with storages.PLACES[storage]() as place:
            table = parts.measure(place, chosen, names, teller(storage))
        tables.append(table)
        print(f'\n{report.text(table)}\n', flush=True)
    print(report.LEGEND)
    taken = clock.monotonic() - started
    print(f'{taken:.0f} s, load average {known["load"]} before, {report.load()} after')
    asked = {'scale': 'full' if options.full else 'quick', 'parts': names}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    former = options.json.read_text() if options.add and options.json.exists() else None
    options.json.write_text(report.as_json(tables, known, asked, former) + '\n')


def parser():
    found = argparse.ArgumentParser(
        prog='python -m benchmarks',
        description='Measure zodbjobs on each storage, beside the raw commit rate of that storage.',
    )
    add = found.add_argument
    add('--storage', action='append', choices=storages.PLACES, help='again for more; all of them')
    add('--only', action='append', choices=parts.PARTS, help='a part; again for more; all of them')
    add('--shape', action='append', choices=backlog.SHAPES, help='a kind of backlog; all of them')
    speed = found.add_mutually_exclusive_group()
    speed.add_argument('--quick', action='store_true', help='about ten minutes; the default')
    speed.add_argument('--full', action='store_true', help='an hour, with 1,000,000 jobs')
    add('--json', type=Path, default=JSON, metavar='PATH', help=f'where to write (default: {JSON})')
    add('--add', action='store_true', help='keep there what is not measured now')
    return found


def teller(storage):
    """Says on stderr, where somebody looks at it, what is being measured."""

    def tell(name):
        if sys.stderr.isatty():
            print(f'\r{storage}: {name}\033[K\r', end='', file=sys.stderr, flush=True)

    return tell


if __name__ == '__main__':
    main()
