"""Arguments that several commands take, and how their texts are read.

The functions with a `text` are types for argparse: they raise ValueError for what
is no such thing, which argparse tells.  Nothing here knows of jobs or databases.
"""

import importlib
import os
import sys

from zodbjobs.cli.output import WRONGLY_ASKED, CommandError

SIZES = {'k': 1e3, 'M': 1e6, 'G': 1e9, 'K': 1e3}
AGES = {'s': 1, 'm': 60, 'h': 3600, 'd': 86400}


def positive(text):
    """A whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def seconds(text):
    """A number from 0 on."""
    number = float(text)
    if not 0 <= number < float('inf'):
        raise ValueError(text)
    return number


def size(text):
    """Bytes, also as 500k, 500M, 2G."""
    return int(_with_unit(text.removesuffix('B').removesuffix('b'), SIZES))


def age(text):
    """Seconds, also as 90s, 30m, 12h, 1d."""
    return _with_unit(text, AGES)


def _with_unit(text, units):
    factor = units.get(text[-1:], 1)
    number = float(text[:-1] if text[-1:] in units else text) * factor
    if not 0 < number < float('inf'):
        raise ValueError(text)
    return number


def add_path(parser, what='jobs'):
    """Give `parser` the ``--path`` that `import_paths` obeys."""
    parser.add_argument(
        '--path', action='append', metavar='P', help=f'a folder or a module to import {what} from'
    )


def import_paths(args):
    """Put each folder among ``--path`` on sys.path, and import each module.

    Raises CommandError for what is neither.
    """
    for path in args.path or ():
        if os.path.isdir(path):
            sys.path.insert(0, os.path.abspath(path))
        else:
            _import(path)


def _import(name):
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise CommandError(
            f'--path {name}: no folder, and no module: {error}', WRONGLY_ASKED
        ) from None
