"""How the commands speak: help texts, plain numbers, progress, errors.

Answers go to stdout, one JSON value with ``--json``; what happens meanwhile goes
to stderr.  Nothing here knows of jobs or databases, and `rich` is imported
only for a bar on a terminal.
"""

import contextlib
import json
import logging
import sys
import textwrap

from zodbjobs import clock

#: A piped log gets a line each so many seconds; a terminal has a bar.
LINE_SECONDS = 3.0


#: A line of a log.
LOG_FORMAT = '%(asctime)s %(levelname)s %(message)s'

#: Exit codes.
FAILED, WRONGLY_ASKED, INTERRUPTED = 1, 2, 130


class CommandError(Exception):
    """The command cannot do what was asked, for the reason that the message gives.

    `code` is the exit code: FAILED or WRONGLY_ASKED.
    """

    def __init__(self, message, code=FAILED):
        super().__init__(message)
        self.code = code


def describe(parser, text, examples):
    """Give `parser` a description and examples; both may be indented."""
    parser.description = textwrap.dedent(text).strip()
    parser.epilog = 'examples:\n' + textwrap.indent(textwrap.dedent(examples).strip(), '  ')


def say(text):
    """Tell what happens, on stderr."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def logging_to(path):
    """What is logged in the block goes to the file at `path`, anew, and not to the screen."""
    handler = logging.FileHandler(path, mode='w', delay=True)
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    root, ours = logging.getLogger(), logging.getLogger('zodbjobs')
    former = ours.level
    root.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        ours.setLevel(former)
        root.removeHandler(handler)
        handler.close()


def print_json(data):
    """Print `data` (plain values) for a program to read."""
    print(json.dumps(data, indent=2, default=str))


def bytes_text(size):
    """'76.1 MB' for a number of bytes."""
    for unit in ('bytes', 'kB', 'MB', 'GB'):
        if size < 1000 or unit == 'GB':
            break
        size /= 1000
    return f'{size} {unit}' if unit == 'bytes' else f'{size:.1f} {unit}'


def seconds_text(seconds):
    """'1.4 ms', '27.1 s', '3 min 5 s'."""
    if seconds < 1:
        return f'{seconds * 1000:.1f} ms'
    if seconds < 60:
        return f'{seconds:.1f} s'
    return f'{int(seconds // 60)} min {int(seconds % 60)} s'


def percentile(values, share):
    """The value below which `share` (0 to 1) of the sorted `values` lie; None of none."""
    return values[min(int(share * len(values)), len(values) - 1)] if values else None


def progress(title, total, plain=False):
    """A context manager with ``advance(done, note)`` that shows how far a work is.

    A bar where stderr is a terminal and rich is installed, else lines.
    """
    if plain or not sys.stderr.isatty():
        return LineProgress(title, total)
    try:
        return BarProgress(title, total)
    except ImportError:
        return LineProgress(title, total)


class LineProgress:
    """A line every few seconds, and one at the end."""

    def __init__(self, title, total):
        self.title, self.total = title, total
        self.latest = self.said = None
        self.next_time = clock.monotonic() + LINE_SECONDS

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.say()

    def advance(self, done, note=''):
        self.latest = f'{self.title}: {done} of {self.total}{note and ", " + note}'
        if clock.monotonic() >= self.next_time:
            self.say()

    def say(self):
        self.next_time = clock.monotonic() + LINE_SECONDS
        if self.latest != self.said:
            say(self.latest)
            self.said = self.latest


class BarProgress:
    """A bar that stays in its line."""

    def __init__(self, title, total):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed

        columns = (
            TextColumn('{task.description}'),
            BarColumn(),
            MofNCompleteColumn(),
            Elapsed(),
            TextColumn('[dim]{task.fields[note]}'),
        )
        self.bar = Progress(*columns, console=Console(stderr=True))
        self.task = self.bar.add_task(title, total=total, note='')

    def __enter__(self):
        self.bar.start()
        return self

    def __exit__(self, *error):
        self.bar.stop()

    def advance(self, done, note=''):
        self.bar.update(self.task, completed=done, note=note)
