"""Rows as a table: by rich on a terminal, in plain columns where it is piped.

A table is a list of (heading, function of a row that gives its text).
"""

import datetime
import sys

from zodbjobs import clock
from zodbjobs.cli.output import seconds_text

#: Styles of words that stand in a column, on a terminal.
STYLES = {
    'failed': 'red', 'dead': 'red', 'stuck': 'red', 'error': 'red', 'broken': 'red',
    'cancelled': 'yellow', 'held': 'yellow', 'warning': 'yellow', 'paused': 'yellow',
    'active': 'green', 'succeeded': 'green',
}  # fmt: skip


def print_table(columns, rows, title=None):
    """Print rows; a table without any is said to be empty."""
    sys.stdout.write(table_text(columns, rows, title))


def table_text(columns, rows, title=None):
    """The table as a text, with a line end; styled if stdout is a terminal and rich is there."""
    cells = [[_text(function(row)) for _, function in columns] for row in rows]
    headings = [heading for heading, _ in columns]
    if sys.stdout.isatty():
        try:
            return _rich(headings, cells, title)
        except ImportError:
            pass
    return _plain(headings, cells, title)


def _text(value):
    return '' if value is None else str(value)


def _plain(headings, cells, title):
    lines = [] if title is None else [title]
    if not cells:
        return '\n'.join([*lines, 'none', ''])
    table = [headings, *cells]
    widths = [max(len(row[number]) for row in table) for number in range(len(headings))]
    for row in table:
        text = '  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(text.rstrip())
    return '\n'.join([*lines, ''])


def rich_table(headings, cells, title=None):
    """A rich Table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, title=title, title_justify='left', pad_edge=False)
    for heading in headings:
        numeric = all(row[headings.index(heading)][:1].isdigit() for row in cells)
        table.add_column(heading, justify='right' if numeric and cells else 'left', no_wrap=True)
    for row in cells:
        table.add_row(*(Text(cell, style=STYLES.get(cell, '')) for cell in row))
    return table


def _rich(headings, cells, title):
    from rich.console import Console

    console = Console(highlight=False)
    with console.capture() as capture:
        console.print(rich_table(headings, cells, title))
        if not cells:
            console.print('none')
    return capture.get()


def cells_of(columns, rows):
    """(headings, the texts of the rows)."""
    return [heading for heading, _ in columns], [
        [_text(function(row)) for _, function in columns] for row in rows
    ]


def print_facts(facts):
    """Print (name, value) pairs, a line each; None is left out."""
    width = max((len(name) for name, _ in facts), default=0)
    for name, value in facts:
        if value is not None and value != '':
            print(f'{name.ljust(width)}  {value}')


# Values.


def seconds(value):
    """'1.2 s' for a number of seconds; '' for None."""
    return '' if value is None else seconds_text(value) if value < 3600 else _long(value)


def _long(value):
    hours, rest = divmod(int(value), 3600)
    days, hours = divmod(hours, 24)
    return f'{days} d {hours} h' if days else f'{hours} h {rest // 60} min'


def when(text):
    """'14:05:09' for an instant of today (UTC), else with its date; '' for None."""
    if text is None:
        return ''
    found = datetime.datetime.fromisoformat(text)
    today = clock.now().date()
    return f'{found:%H:%M:%S}' if found.date() == today else f'{found:%Y-%m-%d %H:%M}'


def progress(value):
    """'3/10 indexing' for what local.progress() reported."""
    if not isinstance(value, dict):
        return ''
    done, total, message = (value.get(name) for name in ('done', 'total', 'message'))
    amount = f'{done:g}' if isinstance(done, (int, float)) else str(done)
    if isinstance(total, (int, float)):
        amount += f'/{total:g}'
    return f'{amount} {message or ""}'.strip()


def name(value, empty="''"):
    """A name of a queue or channel; the empty one is visible."""
    return empty if value in (None, '') else value
