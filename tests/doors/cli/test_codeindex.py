"""The index of sources: what is read out of a file, what is kept, what is found."""

import json
import os
import textwrap

import pytest
import transaction
import ZODB
from hypothesis import given, settings
from hypothesis import strategies as st

from zodbjobs.cli.codeindex import (
    FEW,
    CodeIndex,
    Hit,
    Source,
    Stamp,
    parse,
    scan,
)

LIBRARY = os.path.dirname(os.__file__)

SAMPLE = '''\
"""Reads the parrotfish."""
import os

MAX_SIZE = 3   # never a mongoose
_LOW: int = 1
lower = 2

if os.name:
    def conditional(): pass

class HTTPServer:
    """A docstring of a HumbleBee."""
    PORT = 80

    async def handle_request(self, someArgument):
        "Short one: weasel."
        LOCAL = 'a plain string with aardvark'
        def nested():
            for i in range(3):
                class Deep: pass
        return LOCAL

    try:
        def tried(self): pass
    except ImportError:
        def excepted(self): pass
'''


@pytest.fixture
def folder(tmp_path):
    def write(path, text):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else textwrap.dedent(text).encode())
        return str(tmp_path)

    return write


def source(path, words='', symbols=(), digest=b'1', mtime=1):
    return Source(path, Stamp(mtime, 10), digest, 1, tuple(symbols), words)


def words_of(index):
    """What the index holds, as plain values: the same for the same files."""
    paths = index._paths
    return {
        kind: {word: sorted(paths[n] for n in numbers) for word, numbers in tree.items()}
        for kind, tree in (('words', index._words), ('definitions', index._definitions))
    }


# Reading -----------------------------------------------------------------------------------


def test_symbols_have_kind_scope_and_line(folder):
    assert parse(folder('a.py', SAMPLE), 'a.py').symbols == (
        ('constant', 'MAX_SIZE', 4),
        ('constant', '_LOW', 5),
        ('function', 'conditional', 9),
        ('class', 'HTTPServer', 11),
        ('constant', 'HTTPServer.PORT', 13),
        ('method', 'HTTPServer.handle_request', 15),
        ('function', 'HTTPServer.handle_request.nested', 18),
        ('class', 'HTTPServer.handle_request.nested.Deep', 20),
        ('method', 'HTTPServer.tried', 24),
        ('method', 'HTTPServer.excepted', 26),
    )


@pytest.mark.parametrize(
    'word',
    [
        'parrotfish',  # the module's docstring
        'mongoose',  # a comment
        'humblebee', 'humble', 'bee',  # a class's docstring, in parts
        'weasel',  # a method's docstring
        'httpserver', 'http', 'server',  # camelCase with an acronym
        'handle_request', 'handle', 'request',  # snake_case
        'someargument', 'some', 'argument',
        'max_size', 'i',
        'pkg', 'module',  # the path
    ],
)  # fmt: skip
def test_words(folder, word):
    assert word in parse(folder('pkg/module.py', SAMPLE), 'pkg/module.py').words.split()


@pytest.mark.parametrize('word', ['aardvark', 'plain', 'class', 'def', 'HTTPServer', '3', ''])
def test_what_is_no_word(folder, word):
    assert word not in parse(folder('a.py', SAMPLE), 'a.py').words.split(' ')


def test_words_are_sorted_and_plain(folder):
    words = parse(folder('a.py', SAMPLE), 'a.py').words
    assert words.split(' ') == sorted(set(words.split()))


def test_stamp_digest_and_lines(folder, tmp_path):
    where = folder('a.py', 'x = 1\r\ny = 2')
    stat = (tmp_path / 'a.py').stat()
    read = parse(where, 'a.py')
    assert read.stamp == (stat.st_mtime_ns, stat.st_size) and read.lines == 2
    assert parse(where, 'a.py', (7, 8)).stamp == Stamp(7, 8)
    assert len(read.digest) == 16
    assert parse(folder('a.py', 'x = 1\r\ny = 3'), 'a.py').digest != read.digest


def test_an_empty_file_has_its_path_only(folder):
    read = parse(folder('pkg/__init__.py', ''), 'pkg/__init__.py')
    assert (read.lines, read.symbols, read.words) == (0, (), '__init__ init pkg')


@pytest.mark.parametrize(
    'text, word',
    [
        ('# -*- coding: latin-1 -*-\n# gr\xfcn\n'.encode('latin-1'), 'gr\xfcn'),
        ('\ufeffna\xefve = 1\n'.encode(), 'na\xefve'),
        (b'x = 1\r# seal\r', 'seal'),
        (b'x = "\\d"  # seal\n', 'seal'),  # an old escape: not a warning of ours
        (b'def f():\n    x = 1\n    \n    # seal', 'seal'),  # no newline at the end
    ],
)
def test_odd_but_right_sources(folder, text, word, recwarn):
    assert word in parse(folder('a.py', text), 'a.py').words.split()


@pytest.mark.parametrize(
    'text, error',
    [
        ('print "hello"\n', SyntaxError),
        ('def f(:\n', SyntaxError),
        (b'x = 1\0\n', (SyntaxError, ValueError)),  # ValueError before Python 3.12
        (b'# caf\xe9\n', SyntaxError),  # not UTF-8, in the line where a cookie may stand
        (b'\n\n\n# caf\xe9\n', UnicodeDecodeError),
        (b'# coding: uft-8\n', SyntaxError),
    ],
)
def test_broken_sources_raise(folder, text, error):
    with pytest.raises(error):
        parse(folder('a.py', text), 'a.py')


def test_a_vanished_file_raises(tmp_path):
    with pytest.raises(FileNotFoundError):
        parse(str(tmp_path), 'gone.py')


# Scanning ----------------------------------------------------------------------------------


def test_scan_finds_sources_and_leaves_out_what_is_installed(folder):
    for path in (
        'a.py', 'pkg/b.py', 'pkg/deep/c.py', 'notes.txt',
        '.git/d.py', 'site-packages/e.py', '__pycache__/f.py', 'pkg/.hidden/g.py',
    ):  # fmt: skip
        where = folder(path, 'x = 1\n')
    found = scan(where)
    assert list(found) == ['a.py', 'pkg/b.py', 'pkg/deep/c.py']
    assert found['a.py'] == parse(where, 'a.py').stamp


def test_scan_leaves_out_a_link_to_nothing(folder, tmp_path):
    where = folder('a.py', '')
    (tmp_path / 'b.py').symlink_to(tmp_path / 'gone.py')
    assert list(scan(where)) == ['a.py']


def test_scan_of_no_folder_raises(tmp_path):
    with pytest.raises(FileNotFoundError):
        scan(str(tmp_path / 'gone'))


# Changing ----------------------------------------------------------------------------------


def test_summary_counts(folder):
    where = folder('a.py', SAMPLE)
    index = CodeIndex(where)
    assert index and len(index) == 0
    assert index.summary() == dict.fromkeys(('files', 'lines', 'symbols', 'words', 'broken'), 0)
    read = parse(where, 'a.py')
    index.add([read])
    index.add_broken('bad.py', Stamp(1, 2), 'SyntaxError: no')
    words = len(read.words.split())
    counts = {'files': 1, 'lines': 26, 'symbols': 10, 'words': words, 'broken': 1}
    assert index.summary() == counts and len(index) == 2
    assert 'a.py' in index and 'bad.py' not in index
    assert index.broken() == [('bad.py', 'SyntaxError: no')]


def test_changes_are_what_differs_from_the_folder():
    index = CodeIndex('')
    index.add([source(path) for path in ('same.py', 'touched.py', 'gone.py')])
    index.add_broken('bad.py', Stamp(1, 10), 'why')
    index.add_broken('mended.py', Stamp(1, 10), 'why')
    found = dict.fromkeys(('same.py', 'bad.py'), Stamp(1, 10))
    found |= {'touched.py': Stamp(2, 10), 'mended.py': Stamp(1, 11), 'new.py': Stamp(1, 10)}
    assert index.changes(found) == (['mended.py', 'new.py', 'touched.py'], ['gone.py'])


def test_a_touched_file_gets_its_new_stamp_and_nothing_else():
    index = CodeIndex('')
    index.add([source('a.py', 'seal')])
    number = index._files['a.py'][0]
    document = index._documents[number]
    index.add([source('a.py', 'seal', mtime=2)])
    assert index._documents[number] is document
    assert index.changes({'a.py': Stamp(2, 10)}) == ([], [])


def test_a_broken_file_is_not_found_until_it_is_mended():
    index = CodeIndex('')
    index.add([source('a.py', 'seal')])
    index.add_broken('a.py', Stamp(2, 10), 'why')
    assert index.search('seal') == [] and index.summary()['files'] == 0
    index.add([source('a.py', 'seal')])
    assert index.search('seal') == [Hit('a.py', None, 'text', None)]
    assert index.broken() == []


def test_removing_leaves_nothing_behind():
    index = CodeIndex('')
    empty = words_of(index), index.summary()
    index.add([source(f'{n}.py', 'seal otter', [('class', 'Seal', 1)]) for n in range(3 * FEW)])
    for n in range(3 * FEW):
        index.remove([f'{n}.py'])
    index.remove(['unknown.py'])
    assert (words_of(index), index.summary()) == empty
    assert not index._paths and not index._documents


WORDS = ['seal', 'otter', 'mole', 'Owl']
CONTENT = st.lists(st.sampled_from(WORDS), max_size=4, unique=True)
STEPS = st.lists(
    st.tuples(st.integers(0, 2 * FEW), st.sampled_from(['add', 'remove', 'break']), CONTENT),
    max_size=30,
)


def content(path, words):
    symbols = [('class', word, 1) for word in words[:2]]
    text = ' '.join(sorted(word.lower() for word in words))
    return source(path, text, symbols, digest=repr(words).encode())


@settings(max_examples=200)
@given(STEPS, st.integers(1, 5))
def test_whatever_happens_it_equals_a_fresh_index(steps, batch):
    """After any changes the index holds what one built from nothing would hold."""
    index, files, broken = CodeIndex(''), {}, {}
    for start in range(0, len(steps), batch):
        adding = []
        for number, what, words in steps[start : start + batch]:
            path = f'{number}.py'
            if what == 'add':
                adding.append(content(path, words))
                continue
            index.add(adding)
            adding.clear()
            if what == 'remove':
                index.remove([path])
            else:
                index.add_broken(path, Stamp(1, 1), 'why')
        index.add(adding)
    for number, what, words in steps:
        path = f'{number}.py'
        files.pop(path, None)
        broken.pop(path, None)
        if what == 'add':
            files[path] = content(path, words)
        elif what == 'break':
            broken[path] = 'why'
    fresh = CodeIndex('')
    fresh.add(files.values())
    assert words_of(index) == words_of(fresh)
    assert index.summary() == fresh.summary() | {'broken': len(broken)}
    assert dict(index.broken()) == broken
    assert len(index) == len(files) + len(broken)


def test_one_word_goes_from_a_tuple_to_a_set_and_is_found_in_both():
    index = CodeIndex('')
    for n in range(FEW):
        index.add([source(f'{n}.py', 'seal')])
    assert isinstance(index._words['seal'], tuple) and len(index.search('seal', 99)) == FEW
    index.add([source('last.py', 'seal')])
    assert not isinstance(index._words['seal'], tuple)
    assert len(index.search('seal', 99)) == FEW + 1


# Keeping -----------------------------------------------------------------------------------


def test_it_is_kept_in_a_database(folder):
    where = folder('a.py', SAMPLE)
    with ZODB.DB(None).transaction() as connection:
        database = connection.db()
        connection.root.index = CodeIndex(where)
        connection.root.index.add([parse(where, 'a.py')])
    with database.transaction() as connection:
        assert connection.root.index.search('humblebee') == [Hit('a.py', None, 'text', None)]
        assert connection.root.index.folder == where


def test_changes_of_different_files_in_two_connections_are_merged(tmp_path):
    database = ZODB.DB(str(tmp_path / 'Data.fs'))  # a MappingStorage resolves no conflicts
    with database.transaction() as connection:
        connection.root.index = CodeIndex('')
        connection.root.index.add([source(f'{n}.py', 'seal') for n in range(2 * FEW)])
    managers = [transaction.TransactionManager() for _ in range(2)]
    roots = [database.open(manager).root() for manager in managers]
    for number, root in enumerate(roots):
        known = f'{number}.py'
        root['index'].add([source(known, f'seal only{number}', digest=b'2')])
    for manager, root in zip(managers, roots, strict=True):
        manager.commit()
        root._p_jar.close()
    with database.transaction() as connection:
        index = connection.root.index
        assert [hit.path for hit in index.search('only0')] == ['0.py']
        assert [hit.path for hit in index.search('only1')] == ['1.py']
        assert index.summary()['words'] == 3
    database.close()


# Asking ------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def library():
    """An index of two packages of the standard library, with one broken file."""
    index = CodeIndex(LIBRARY)
    found = {
        path: stamp
        for path, stamp in scan(LIBRARY).items()
        if path.startswith(('json/', 'asyncio/'))
    }
    assert len(found) > 30
    index.add(parse(LIBRARY, path, stamp) for path, stamp in found.items())
    assert index.changes(found) == ([], [])
    return index


def test_a_definition_comes_first(library):
    first, *others = library.search('JSONDecoder')
    with open(json.decoder.__file__) as file:
        lines = file.read().splitlines()
    assert first.path == 'json/decoder.py' and first.kind == 'class'
    assert lines[first.line - 1].startswith('class JSONDecoder')
    assert Hit('json/__init__.py', None, 'text', None) in others


@pytest.mark.parametrize(
    'words, name',
    [
        ('gather', 'gather'),
        ('asyncio gather', 'gather'),
        (['asyncio', 'gather'], 'gather'),
        ('asyncio.gather', 'gather'),
        ('raw_decode', 'JSONDecoder.raw_decode'),
        ('jsondecoder', 'JSONDecoder'),
    ],
)
def test_names_are_found(library, words, name):
    assert library.search(words)[0].name == name


def test_all_words_must_be_there(library):
    assert library.search('gather zymurgy') == []
    assert library.search('raw_decode eventloop') == []
    both = {hit.path for hit in library.search('raw_decode scanner', 50)}
    each = [{hit.path for hit in library.search(w, 50)} for w in ('raw_decode', 'scanner')]
    assert both == each[0] & each[1] and both


def test_every_file_that_holds_the_word_is_found_once(library):
    """The index against plain reading: identifiers in lower case."""
    hits = library.search('eventloop', 100)
    texts = [hit.path for hit in hits if hit.kind == 'text']
    assert len(texts) == len(set(texts))
    expected = set()
    for path in scan(LIBRARY):
        if path in library and 'eventloop' in parse(LIBRARY, path).words.split():
            expected.add(path)
    assert {hit.path for hit in hits} == expected and expected


def test_limit(library):
    assert len(library.search('self', 7)) == 7
    assert library.search('self', 0) == []


@pytest.mark.parametrize('words', ['', ' ', '+-', []])
def test_asking_for_no_word_finds_nothing(library, words):
    assert library.search(words) == []


def test_exact_spelling_and_tests_last():
    index = CodeIndex('')
    index.add(
        [
            source('test/test_seal.py', 'seal test', [('class', 'Seal', 5)]),
            source('b.py', 'seal', [('function', 'seal', 3)]),
            source('a.py', 'seal', [('method', 'Zoo.Seal', 7), ('class', 'Seal', 1)]),
            source('seal.py', 'seal'),
            source('tests/x.py', 'seal'),
            source('c.py', 'seal'),
        ]
    )
    assert [(hit.path, hit.name) for hit in index.search('Seal')] == [
        ('a.py', 'Seal'),
        ('a.py', 'Zoo.Seal'),
        ('test/test_seal.py', 'Seal'),
        ('b.py', 'seal'),
        ('seal.py', None),
        ('c.py', None),
        ('tests/x.py', None),
    ]


def test_a_sample_word_is_defined_somewhere(library):
    assert library.sample_word() == 'JSONDecoder'
    other = library.sample_word('NoSuchNameAnywhere')
    assert library.search(other)[0].name.rpartition('.')[2].lower() == other
    assert CodeIndex('').sample_word() is None
