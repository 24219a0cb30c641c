"""Where a command's answers come from: a database that it opens, or a process that has it open.

The address may be left out: then ZODBJOBS_URI names it, or the only dispatcher
that runs on this host for this user is asked, through its door.  So is a
process that has locked the file of the database.  Without such a door the file
is read as it was at this moment, and nothing can be changed.

Runs in the main thread; a database is opened for as long as the command takes.
"""

import contextlib
import logging
import os
import re

from zodbjobs.cli.output import WRONGLY_ASKED, CommandError, say

#: Names the database where no argument does.
VARIABLE = 'ZODBJOBS_URI'

_SCHEME = re.compile(r'[A-Za-z][A-Za-z0-9+.-]+:')
_SCHEMES = ('file', 'zeo', 'zconfig', 'memory', 'postgres', 'postgresql', 'sqlite')


def add_source(parser, words=None, help=None, json=True):
    """Give `parser` the words that name a database, and what else the command takes.

    `words` is the metavar of what follows the address, or None.
    """
    usage = f'URI {words}' if words else 'URI'
    known = 'the database, or a file; may be left out where $ZODBJOBS_URI names it, or where one'
    text = f'{known} worker runs on this host' + (f'; then {help}' if help else '')
    parser.add_argument('words', nargs='*', metavar=usage, help=text)
    parser.add_argument('--db', metavar='URI', help='the database, where URI could be mistaken')
    if json:
        parser.add_argument('--json', action='store_true', help='print the answer as JSON')


def is_address(word):
    """Whether a word of a command line names a database, and is no id or state."""
    if word.split(':')[0].lower() in _SCHEMES and _SCHEME.match(word):
        return True
    return word.endswith('.fs') or (os.sep in word and os.path.isfile(word))


def split_words(args):
    """(address or None, the other words) of what `add_source` has read."""
    words = list(args.words)
    if args.db is not None:
        return args.db, words
    if words and is_address(words[0]):
        return words[0], words[1:]
    return os.environ.get(VARIABLE) or None, words


def only_address(args):
    """The address, for a command that takes nothing else."""
    address, rest = split_words(args)
    if rest and address is None:
        return rest[0]  # the plain path of a file, such as Data
    if rest:
        raise CommandError(f'what is {" ".join(rest)}? there is a database already', WRONGLY_ASKED)
    return address


class DatabaseSource:
    """Asks a database that this process has open."""

    def __init__(self, db, shown):
        self.db, self.shown = db, shown

    def ask(self, question, /, **args):
        from zodbjobs.monitor.questions import ask

        return _asked(lambda: ask(self.db, question, args))

    def close(self):
        self.db.close()


class DoorSource:
    """Asks a process through its door."""

    def __init__(self, door):
        self.door = door
        self.shown = f'process {door.pid}'

    def ask(self, question, /, **args):
        return _asked(lambda: self.door.ask(question, args))

    def close(self):
        self.door.close()


def _asked(call):
    """What `call` answers; what was asked wrongly is a CommandError."""
    try:
        return call()
    except (LookupError, ValueError, TypeError) as error:
        said = error.args[0] if error.args else error
        raise CommandError(str(said), WRONGLY_ASKED) from None


@contextlib.contextmanager
def opened(address, writes=False):
    """A context manager: the source for an address (None: what is to be found).

    With `writes` it can do deeds, too.  Raises AddressError or CommandError.
    """
    logging.getLogger('ZODB').setLevel(logging.ERROR)  # it warns of an old index, which is usual
    source = _source(address, writes)
    try:
        yield source
    finally:
        source.close()


def _source(address, writes):
    from zodbjobs.monitor import doors
    from zodbjobs.runtime import shared_file

    if address is None:
        return DoorSource(_only_door(doors.found()))
    path = _file_of(address)
    if path is None:
        return _database(address)
    door = doors.of_file(path)
    if door is not None:
        return DoorSource(door)
    shared = shared_file.answered_uri(address)
    if shared is not None:
        return _database(shared)
    if not os.path.isfile(path):
        raise CommandError(f'{path}: there is no such file', WRONGLY_ASKED)
    return _database(address) if writes else _snapshot(address, path)


def _only_door(found):
    if len(found) == 1:
        return found[0]
    for door in found:
        door.close()
    if not found:
        raise CommandError(
            f'which database? Name it, or set {VARIABLE}; no worker runs here for this user',
            WRONGLY_ASKED,
        )
    names = '\n'.join(f'  {door.shown_storage} (process {door.pid})' for door in found)
    raise CommandError(
        f'which database? {len(found)} dispatchers run here; name one:\n{names}', WRONGLY_ASKED
    )


def _file_of(address):
    """The path of the file of a FileStorage, or None for another kind of address."""
    if _SCHEME.match(address) and not address.lower().startswith('file:'):
        return None
    path = re.sub(r'(?i)^file:(//)?', '', address).partition('?')[0]
    return os.path.abspath(path)


def _database(address):
    from zodbjobs.runtime.address import open_database

    return DatabaseSource(open_database(address), address)


def _snapshot(address, path):
    """The file as it is now: it is not locked, and nothing is written beside it."""
    if os.path.exists(f'{path}.lock') and _is_locked(path):
        say(f'note: a process has {path} open and no door to ask at; this is what is in the file')
    mark = '&' if '?' in address else '?'
    return _database(f'{address}{mark}read_only=1')


def _is_locked(path):
    import zc.lockfile

    try:
        lock = zc.lockfile.LockFile(f'{path}.lock')
    except zc.lockfile.LockError:
        return True
    lock.close()
    return False
