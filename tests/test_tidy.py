"""Habits that a reader may rely on, checked in the sources themselves.

Each rule is a function from a source file to its faults, a line each.  Limits
only ever come down: what is over one today stands in `LONG_FUNCTIONS` with the
length it has, and leaves the list when it is mended.
"""

import ast
import re
import subprocess
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: Lines of a function's body, its docstring left out (a signature with a line
#: per argument is a table).  Most have three to seven; a screen is the end of
#: what can be taken in at once.
FUNCTION_LINES = 60
#: 'src/zodbjobs/x.py:Class.method': the lines it has.  May only shrink.
LONG_FUNCTIONS: dict[str, int] = {}
#: A file that is longer hides more than one noun.
MODULE_LINES = 800

OWN_FOLDERS = {'.ci', 'benchmarks', 'docs', 'src', 'tests', 'zcml'}

#: The clock's own business.  Durations, too: a test turns one clock only.
ASKS_THE_TIME = {
    'datetime.date.today',
    'datetime.datetime.now',
    'datetime.datetime.today',
    'datetime.datetime.utcnow',
    'time.monotonic',
    'time.monotonic_ns',
    'time.time',
    'time.time_ns',
}
#: The floors of the house on which nobody holds the pen.
NEVER_COMMIT = {'__init__.py', 'interfaces', 'status.py', 'clock.py', 'facts.py', 'local.py'}


class Source:
    """A Python file: its text, its tree, and what its names mean."""

    def __init__(self, path):
        self.path = path
        self.name = path.relative_to(ROOT).as_posix()
        self.text = path.read_text('utf-8')
        self.lines = self.text.splitlines()

    @cached_property
    def tree(self):
        return ast.parse(self.text, self.name)

    @cached_property
    def nodes(self):
        return list(ast.walk(self.tree))

    @cached_property
    def meanings(self):
        """name in this file -> what was imported under it, in full."""
        found = {}
        for node in self.nodes:
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    found[alias.asname or alias.name] = f'{node.module}.{alias.name}'
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    found[alias.asname or alias.name.split('.')[0]] = (
                        alias.name if alias.asname else alias.name.split('.')[0]
                    )
        return found

    def meaning(self, node):
        """'datetime.datetime.now' for ``dt.now`` after ``from datetime import datetime as dt``."""
        if isinstance(node, ast.Attribute):
            return f'{self.meaning(node.value)}.{node.attr}'
        return self.meanings.get(node.id, '') if isinstance(node, ast.Name) else ''

    def fault(self, node, words):
        return f'{self.name}:{getattr(node, "lineno", 1)}: {words}'


@cache
def committed():
    """The files of the project: those in git or about to be; without git, all in `OWN_FOLDERS`."""
    listed = subprocess.run(
        ['git', 'ls-files', '--cached', '--others', '--exclude-standard', '-z'],
        cwd=ROOT,
        capture_output=True,
    )
    if listed.returncode == 0:
        names = sorted(filter(None, listed.stdout.decode().split('\0')))
        return [path for path in map(ROOT.joinpath, names) if path.is_file()]
    return [
        path
        for path in sorted(ROOT.rglob('*'))
        if path.is_file() and path.relative_to(ROOT).parts[0] in {path.name, *OWN_FOLDERS}
    ]


@cache
def sources(*folders):
    """Every Python file below the `folders`."""
    return [
        Source(path)
        for path in committed()
        if path.suffix == '.py' and path.relative_to(ROOT).parts[0] in folders
    ]


def told(faults):
    """Fail with one line for each fault."""
    faults = sorted(set(faults))
    assert not faults, '\n' + '\n'.join(faults)


def each(rule, *folders):
    """Run `rule` over the files below `folders`; there must be some."""
    files = sources(*folders)
    assert files, f'no sources in {folders}'
    told(fault for source in files for fault in rule(source))


def test_the_time_comes_from_the_clock():
    def rule(source):
        if source.name == 'src/zodbjobs/clock.py':
            return
        for node in source.nodes:
            if isinstance(node, ast.Name | ast.Attribute) and source.meaning(node) in ASKS_THE_TIME:
                yield source.fault(node, f'{source.meaning(node)}: ask zodbjobs.clock instead')

    each(rule, 'src')


def test_no_handler_catches_everything_in_silence():
    def rule(source):
        for node in source.nodes:
            if not isinstance(node, ast.ExceptHandler):
                continue
            if node.type is None:
                yield source.fault(node, 'a bare except; name what you can handle')
            elif catches_all(node) and all(map(says_nothing, node.body)):
                yield source.fault(
                    node, 'catches all and says nothing: log it, answer, or let it go'
                )

    each(rule, 'src', 'tests', 'docs', 'benchmarks')


def catches_all(handler):
    types = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(ast.unparse(one) in ('Exception', 'BaseException') for one in types)


def says_nothing(statement):
    return isinstance(statement, ast.Pass | ast.Continue) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def test_root_and_model_never_commit():
    """A transaction is a person's hand on the pen; on these floors nobody holds it."""

    def rule(source):
        room = Path(source.name).relative_to('src/zodbjobs').parts[0]
        if room != 'model' and room not in NEVER_COMMIT:
            return
        for node in source.nodes:
            if isinstance(node, ast.Call) and getattr(node.func, 'attr', None) == 'commit':
                yield source.fault(node, 'commits; only runtime/, doors, cli/ and testing/ may')

    each(rule, 'src')


def test_tests_do_not_sleep():
    """Step the workers, move the clock.  Real processes may need a pause, and say why."""

    def rule(source):
        for node in source.nodes:
            if not isinstance(node, ast.Call) or source.meaning(node.func) != 'time.sleep':
                continue
            if not source.name.startswith('tests/processes/'):
                yield source.fault(node, 'sleeps; wait for what should happen, or turn the clock')
            elif '#' not in '\n'.join(source.lines[max(node.lineno - 2, 0) : node.lineno]):
                yield source.fault(node, 'sleeps without a comment that gives the reason')

    each(rule, 'tests')


def test_functions_fit_on_a_screen():
    lengths = dict(length for source in sources('src') for length in function_lengths(source))
    told(
        f'{name} has {lines} lines, {LONG_FUNCTIONS.get(name, FUNCTION_LINES)} are allowed;'
        ' look for the missing noun before cutting'
        for name, lines in lengths.items()
        if lines > LONG_FUNCTIONS.get(name, FUNCTION_LINES)
    )
    told(
        f'{name} has {lengths.get(name, 0)} lines now; lower its {lines} in LONG_FUNCTIONS,'
        f' or drop it at {FUNCTION_LINES}'
        for name, lines in LONG_FUNCTIONS.items()
        if lengths.get(name, 0) < lines
    )


def function_lengths(source):
    """(name, lines of the body) of each function, nested ones too."""

    def walk(node, path):
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            below = [*path, child.name] if named else path
            if named and not isinstance(child, ast.ClassDef):
                yield f'{source.name}:{".".join(below)}', code_lines(child)
            yield from walk(child, below)

    return walk(source.tree, [])


def code_lines(function):
    body = function.body
    if ast.get_docstring(function, clean=False) is not None:
        body = body[1:]
    return function.end_lineno - body[0].lineno + 1 if body else 0


def test_modules_stay_short():
    told(
        f'{source.name} has {len(source.lines)} lines, {MODULE_LINES} are allowed'
        for source in sources('src')
        if len(source.lines) > MODULE_LINES
    )


def test_public_modules_say_what_they_are_for():
    """An __init__.py that holds nothing needs no words."""

    def rule(source):
        private = source.path.stem.startswith('_') and source.path.stem != '__init__'
        if source.tree.body and not private and not ast.get_docstring(source.tree):
            yield source.fault(source.tree, 'no docstring; open with the idea')

    each(rule, 'src', 'tests')


def test_no_lock_file_is_committed():
    """uv.lock writes the registry's address into each of its entries."""
    told(f'{path.name} is committed' for path in committed() if path.name == 'uv.lock')


#: Why -> what no committed text holds.  This file is left out: it must name them.
UNWANTED = {
    'a path of one machine': r'(?<![\w.:/~-])/(root|home|work|Users)/',
    'the address of a registry': r'\b(files\.pythonhosted\.org|pypi\.org|registry\.npmjs\.org)\b',
}


def test_texts_are_free_of_their_makers_surroundings():
    def faults():
        for path in committed():
            if path == Path(__file__).resolve():
                continue
            try:
                lines = path.read_text('utf-8').splitlines()
            except UnicodeDecodeError:
                continue  # an image or a database
            for number, line in enumerate(lines, 1):
                for reason, pattern in UNWANTED.items():
                    if match := re.search(pattern, line):
                        yield f'{path.relative_to(ROOT)}:{number}: {match[0]!r}: {reason}'

    told(faults())
