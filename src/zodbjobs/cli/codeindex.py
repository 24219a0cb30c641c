"""A full-text and symbol index of Python sources, kept in a database.

This is the application that ``zodbjobs demo`` gives work to; it knows nothing
of jobs.  `parse` reads one file into a plain record, in whatever thread asks,
and touches no database.  A `CodeIndex` is persistent: its methods change it in
the caller's transaction and never commit.

What is stored: each word with the numbers of the files it stands in, each name
that is defined likewise, and one record per file with its symbols and words,
so that a file can be taken out again exactly.
"""

import ast
import hashlib
import io
import itertools
import keyword
import os
import re
import threading
import tokenize
import warnings
from typing import NamedTuple

from BTrees.IIBTree import IITreeSet, intersection
from BTrees.IOBTree import IOBTree
from BTrees.Length import Length
from BTrees.OOBTree import OOBTree
from persistent import Persistent

#: Up to so many files a word keeps a tuple in the tree's own bucket; above, a
#: set of its own.  Half of all words stand in one file only, and a record for
#: each would double the index: measured for the standard library, packed,
#: 20.7 MB with 0, 9.9 with 1, 7.8 with 4, 7.3 with 8.
FEW = 4

#: No word is longer: what is longer is data, and nobody searches for it.
LONGEST_WORD = 100

#: A search reads the symbols of at most so many files, the likeliest first.
CANDIDATES = 200

WORD = re.compile(r'[^\W\d]\w*')
PART = re.compile(r'[A-Z]+(?=[A-Z][a-z])|[A-Z]?[^\W\dA-Z_]+|[A-Z]+')
CONSTANT = re.compile(r'_*[A-Z][A-Z0-9_]*\Z')
KEYWORDS = frozenset(keyword.kwlist)

#: Tokens after which a string is a statement of its own: a docstring.
OPENERS = frozenset(
    (None, tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT)
)

# The compiler warns about old escapes in the sources it reads.  They are the
# input here, not our code; `catch_warnings` would not be safe in a thread.
warnings.filterwarnings('ignore', r'"?invalid .*(escape|literal)|"\\', SyntaxWarning)
warnings.filterwarnings('ignore', r'"?invalid .*(escape|literal)|"\\', DeprecationWarning)


#: CPython before 3.11.8 and 3.12.2 has one counter of depth for all threads that parse, so now and
#: then one gets "SystemError: AST constructor recursion depth mismatch".  Hence a lock, and because
#: others parse too (a traceback does, to point at the fault), so many tries.
PARSE_TRIES = 5
_parsing = threading.Lock()


class Stamp(NamedTuple):
    """How a file looked from outside: when this changes, it is read again."""

    mtime_ns: int
    size: int


class Symbol(NamedTuple):
    """A definition: ``kind`` is function, class, method or constant."""

    kind: str
    name: str  # qualified: 'JSONDecoder.decode'
    line: int


class Source(NamedTuple):
    """One file, read: what `parse` gives and `CodeIndex.add` takes."""

    path: str
    stamp: Stamp
    digest: bytes
    lines: int
    symbols: tuple  # of (kind, qualified name, line)
    words: str  # sorted, one space between: a third of a pickled list

    def __repr__(self):  # for logs; all of it would be some pages
        return f'<Source {self.path}, {self.lines} lines, {len(self.symbols)} symbols>'


class Hit(NamedTuple):
    """One answer of a search; a hit in the text has no line and no name."""

    path: str
    line: int | None
    kind: str
    name: str | None


def scan(folder, suffix='.py'):
    """The sources below `folder`: a dict of relative path -> `Stamp`.

    Paths are written with '/'.  Hidden folders, caches and installed packages
    are left out, and so is what vanishes meanwhile.  Raises OSError if
    `folder` itself cannot be read.
    """
    os.listdir(folder)  # os.walk would be silent
    found = {}
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not _is_foreign(f))
        for name in sorted(n for n in names if n.endswith(suffix)):
            full = os.path.join(here, name)
            try:
                seen = os.stat(full)
            except OSError:
                continue
            path = os.path.relpath(full, folder).replace(os.sep, '/')
            found[path] = Stamp(seen.st_mtime_ns, seen.st_size)
    return found


def _is_foreign(folder):
    return folder.startswith('.') or folder in (
        '__pycache__',
        'site-packages',
        'dist-packages',
        'node_modules',
    )


def parse(folder, path, stamp=None):
    """Read the file `path` below `folder` into a `Source`.

    `stamp` is the `Stamp` under which the file was found; without it the file
    is looked at now.  Raises SyntaxError, UnicodeDecodeError, OSError, ... for
    a file that is no Python of this interpreter.
    """
    full = os.path.join(folder, path)
    if stamp is None:
        seen = os.stat(full)
        stamp = Stamp(seen.st_mtime_ns, seen.st_size)
    with open(full, 'rb') as file:
        data = file.read()
    text = _decoded(data)
    symbols = tuple(tuple(symbol) for symbol in symbols_of(_tree(text, path)))
    words = words_of(text) | _pieces(path.removesuffix('.py').replace('/', ' '))
    return Source(
        path=path,
        stamp=Stamp(*stamp),
        digest=hashlib.blake2b(data, digest_size=16).digest(),
        lines=len(text.splitlines()),
        symbols=symbols,
        words=' '.join(sorted(words)),
    )


def _decoded(data):
    encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    return io.TextIOWrapper(io.BytesIO(data), encoding).read()


def _tree(text, path):
    for number in range(PARSE_TRIES):
        try:
            with _parsing:
                return ast.parse(text, path)
        except SystemError:
            if number == PARSE_TRIES - 1:
                raise


def symbols_of(tree):
    """Yield a `Symbol` for each definition in the `ast` module `tree`."""
    yield from _symbols_in(tree, (), in_class=False)


def _symbols_in(node, scope, in_class):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            is_class = isinstance(child, ast.ClassDef)
            kind = 'class' if is_class else 'method' if in_class else 'function'
            inner = (*scope, child.name)
            yield Symbol(kind, '.'.join(inner), child.lineno)
            yield from _symbols_in(child, inner, is_class)
        elif isinstance(child, (ast.Assign, ast.AnnAssign)):
            if in_class or not scope:  # a function's own names are no constants
                yield from _constants_in(child, scope)
        elif isinstance(child, (ast.stmt, ast.excepthandler, ast.match_case)):
            yield from _symbols_in(child, scope, in_class)  # below if, try, with, ...


def _constants_in(statement, scope):
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    for target in targets:
        if isinstance(target, ast.Name) and CONSTANT.match(target.id):
            yield Symbol('constant', '.'.join((*scope, target.id)), statement.lineno)


def words_of(text):
    """The set of words in a source: of its identifiers, comments and docstrings.

    All in lower case: each identifier whole, and its parts where it is written
    in camelCase or snake_case.  Keywords and other strings are left out.
    """
    found = set()
    before = None
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            found.add(token.string)
        elif token.type == tokenize.COMMENT or (
            token.type == tokenize.STRING and before in OPENERS
        ):
            found.update(WORD.findall(token.string))
        before = token.type
    return set().union(*map(_pieces, found - KEYWORDS))


def _pieces(text):
    """The words in `text`, in lower case, whole and in parts."""
    whole = WORD.findall(text)
    parts = (part for word in whole for part in PART.findall(word) if len(part) > 1)
    return {word.lower() for word in (*whole, *parts) if len(word) <= LONGEST_WORD}


class Document(Persistent):
    """What the index knows of one file: enough to take it out again."""

    lines, symbols, words = 0, (), ''

    def read(self, source):
        """Take over what `source` says; None: nothing."""
        if source is None:
            source = Document
        self.lines, self.symbols, self.words = source.lines, source.symbols, source.words

    def holdings(self):
        """(set of words, set of plain names that are defined here)."""
        return set(self.words.split()), {_plain(name) for _, name, _ in self.symbols}


def _plain(qualified):
    return qualified.rpartition('.')[2].lower()


class CodeIndex(Persistent):
    """An index of the Python sources in one folder.

    Several transactions may add different files at a time, yet they meet in
    the common words: adding in turn is faster (see ``demo.py``).  `run` and
    `report` are for whoever keeps it up to date.
    """

    run = None
    report = None

    def __init__(self, folder):
        self.folder = folder
        self._files = OOBTree()  # path -> (number, mtime_ns, size, digest)
        self._paths = IOBTree()  # number -> path
        self._documents = IOBTree()  # number -> Document
        self._words = OOBTree()  # word -> numbers
        self._definitions = OOBTree()  # plain name in lower case -> numbers
        self._broken = OOBTree()  # path -> (mtime_ns, size, why)
        self._totals = {name: Length() for name in ('files', 'lines', 'symbols', 'words')}

    def __len__(self):
        """How many files were read, the broken ones too."""
        return len(self._files) + len(self._broken)

    def __bool__(self):
        return True  # an empty index is an index

    def __contains__(self, path):
        return path in self._files

    # -- changing ---------------------------------------------------------

    def add(self, sources):
        """Put `sources`, an iterable of `Source`, in; known paths are replaced."""
        with _Changes(self) as changes:
            for source in sources:
                self._broken.pop(source.path, None)
                known = self._files.get(source.path)
                number = self._new_number(source.path) if known is None else known[0]
                if known is None or known[3] != source.digest:
                    changes.note(number, source)
                self._files[source.path] = (number, *source.stamp, source.digest)

    def add_broken(self, path, stamp, why):
        """Note that the file `path`, which had `stamp`, cannot be read: `why`."""
        self.remove([path])
        self._broken[path] = (*stamp, why)

    def remove(self, paths):
        """Forget the files at `paths`; what is unknown is gone already."""
        with _Changes(self) as changes:
            for path in paths:
                self._broken.pop(path, None)
                known = self._files.pop(path, None)
                if known is not None:
                    changes.note(known[0], None)
                    del self._documents[known[0]], self._paths[known[0]]
                    self._totals['files'].change(-1)

    def _new_number(self, path):
        number = self._paths.maxKey() + 1 if self._paths else 0
        self._paths[number] = path
        self._documents[number] = Document()
        self._totals['files'].change(1)
        return number

    # -- asking -----------------------------------------------------------

    def changes(self, found):
        """Compare with `found`, a dict of path -> `Stamp`.

        Returns (paths that are new or changed, paths that are gone), sorted.
        """
        known = {path: Stamp(*entry[1:3]) for path, entry in self._files.items()}
        known.update((path, Stamp(*entry[:2])) for path, entry in self._broken.items())
        changed = sorted(path for path in found if known.get(path) != found[path])
        return changed, sorted(known.keys() - found.keys())

    def broken(self):
        """The files that could not be read: a list of (path, why)."""
        return [(path, entry[2]) for path, entry in self._broken.items()]

    def summary(self):
        """Counts: a dict with files, broken, lines, symbols and words."""
        counts = {name: total() for name, total in self._totals.items()}
        return {**counts, 'broken': len(self._broken)}

    def search(self, words, limit=10):
        """Where all of `words` stand (a text or several): a list of `Hit`.

        Definitions of a name that was asked for come first, then the other
        files that hold all of the words.
        """
        asked = WORD.findall(words if isinstance(words, str) else ' '.join(words))
        numbers = self._holding({word.lower() for word in asked})
        definitions = self._defining(asked, numbers)[:limit]
        shown = {hit.path for hit in definitions}
        rest = [path for path in self._ranked(numbers, asked) if path not in shown]
        return [*definitions, *(Hit(path, None, 'text', None) for path in rest)][:limit]

    def sample_word(self, wished='JSONDecoder'):
        """`wished` if it is defined somewhere, else some word that is; or None."""
        if wished.lower() in self._definitions:
            return wished
        first = itertools.islice(self._definitions.keys('a'), CANDIDATES)
        return max(first, key=len, default=None)

    def _holding(self, words):
        """The set of numbers of the files that hold all of `words`."""
        found = None
        for word in words:
            found = intersection(found, IITreeSet(self._words.get(word, ())))
        return IITreeSet() if found is None else found

    def _defining(self, asked, numbers):
        """The hits for definitions of an `asked` name, the best first."""
        wanted = {word.lower() for word in asked}
        places = set()
        for word in wanted:
            places.update(self._definitions.get(word, ()))
        places = {self._paths[n]: n for n in places if n in numbers}
        hits = []
        for path in sorted(places, key=_distance)[:CANDIDATES]:
            for kind, name, line in self._documents[places[path]].symbols:
                if _plain(name) in wanted:
                    hits.append(Hit(path, line, kind, name))
        return sorted(hits, key=lambda hit: _merit(hit, asked))

    def _ranked(self, numbers, asked):
        paths = [self._paths[number] for number in numbers]
        wanted = {word.lower() for word in asked}
        return sorted(paths, key=lambda p: (-len(_pieces(p) & wanted), _distance(p)))


def _distance(path):
    """Tests come after what they test, deep files after shallow ones."""
    parts = path.split('/')
    is_test = any(part in ('test', 'tests') or part.startswith('test_') for part in parts)
    return is_test, len(parts), path


def _merit(hit, asked):
    last = hit.name.rpartition('.')[2]
    order = ('class', 'function', 'method', 'constant').index(hit.kind)
    return last not in asked, _distance(hit.path)[0], order, _distance(hit.path), hit.line


class _Changes:
    """Collects what a change of files means for the words, to write it in one go.

    One pass in the order of the words loads and writes each bucket once.
    """

    def __init__(self, index):
        self.index = index
        self.words = {}  # word -> {number: whether it stands there now}
        self.definitions = {}

    def __enter__(self):
        return self

    def __exit__(self, error_type, error, traceback):
        if error is not None:
            return  # the caller aborts
        grown = _write(self.words, self.index._words)
        _write(self.definitions, self.index._definitions)
        self._count('words', grown)

    def note(self, number, source):
        """The file `number` shall be as `source` says; None: empty."""
        document = self.index._documents[number]
        before, lines, symbols = document.holdings(), document.lines, len(document.symbols)
        document.read(source)
        for changes, old, new in zip(
            (self.words, self.definitions), before, document.holdings(), strict=True
        ):
            for word in old ^ new:
                changes.setdefault(word, {})[number] = word in new
        self._count('lines', document.lines - lines)
        self._count('symbols', len(document.symbols) - symbols)

    def _count(self, name, change):
        if change:
            self.index._totals[name].change(change)


def _write(changes, tree):
    """Write `changes` to the postings in `tree`; returns by how many words it grew."""
    grown = 0
    for word in sorted(changes):
        held = tree.get(word, ())
        grown -= bool(held)
        left = _changed(held, changes[word])
        grown += bool(left)
        if not left:
            tree.pop(word, None)
        elif left is not held:
            tree[word] = left
    return grown


def _changed(held, changes):
    """`held` numbers, a tuple or a set, after `changes`: {number: whether it is in}."""
    come = [number for number, is_in in changes.items() if is_in]
    if isinstance(held, tuple):
        left = (*(number for number in held if number not in changes), *come)
        return left if len(left) <= FEW else IITreeSet(left)
    for number in changes:
        if number in held:
            held.remove(number)
    held.update(come)
    return held
