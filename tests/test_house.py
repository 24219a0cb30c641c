"""The floors of the house: imports point down only.

Reads the sources with `ast`, so it needs nothing that the package needs, except
for the last tests, which import it in a fresh interpreter.  When a test fails
here, the import belongs elsewhere; a new module of the package is given its
floor in `FLOORS`, a new stored structure its place in `STRUCTURES`.
"""

import ast
import graphlib
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = 'zodbjobs'
SOURCE = Path(__file__).resolve().parents[1] / 'src' / PACKAGE

#: From the ground up.  '' is zodbjobs/__init__.py, which only names again what
#: stands below it; the assembly is what doors may share.
FLOORS = {
    'root': {'interfaces', 'status', 'clock', 'facts', 'local'},
    'model': {'model'},
    'runtime': {'runtime'},
    'entrance': {''},
    'assembly': {'configure', 'subscribers', 'directives'},
    'doors': {'tasks', 'beanstalk', 'monitor', 'zope', 'pyramid', 'web'},
    'cli': {'cli', '__main__'},
    'testing': {'testing'},
}
HEIGHTS = {room: height for height, rooms in enumerate(FLOORS.values()) for room in rooms}

#: What the other stored classes are built of.
STRUCTURES = {
    'call', 'groups', 'ids', 'intake', 'lanes', 'lease', 'log', 'merging', 'moments', 'notes',
    'number', 'owned', 'ready', 'reservations', 'sequence', 'shard', 'tally', 'tokens',
}  # fmt: skip

#: floor -> what it never imports from outside.  Time comes from `clock`.
NEVER = {
    'root': {'BTrees', 'persistent', 'transaction', 'twisted', 'ZODB', 'ZEO'},
    'model': {'asyncio', 'concurrent', 'sched', 'threading', 'time', 'transaction', 'twisted'},
}
#: The class users expect a Failure to be; importing it starts no reactor.
ALLOWED = {(f'{PACKAGE}.model.failure', 'twisted.python.failure')}


class Import(NamedTuple):
    """`module` imports `target` at `place`; `early`: when it is itself imported."""

    module: str
    target: str
    place: str
    early: bool


def module_name(path):
    """The dotted name of the source file at `path`."""
    parts = path.relative_to(SOURCE.parent).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob('*.py'))}


def room(module):
    """'model' for zodbjobs.model.job; '' for zodbjobs itself."""
    return module.split('.')[1] if '.' in module else ''


def floor(module):
    """The name of the floor `module` stands on, None when it has none yet."""
    return next((name for name, rooms in FLOORS.items() if room(module) in rooms), None)


def absolute(module, node):
    """The names that the import statement `node` in `module` asks for, in full."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ''
    if node.level:
        up = node.level - (MODULES[module].stem == '__init__')  # a package stands in itself
        parts = module.split('.')
        base = '.'.join(parts[: len(parts) - up] + ([base] if base else []))
    # `from a import b` asks for a.b where that is a module, else for a.
    return [f'{base}.{alias.name}' for alias in node.names]


def statements(node, early=True):
    """Each import below `node`, and whether it happens when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, early
        else:
            later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing_only = isinstance(child, ast.If) and 'TYPE_CHECKING' in ast.unparse(child.test)
            yield from statements(child, early and not later and not typing_only)


def imports():
    """Every import of the package: of its own modules and of others'."""
    for module, path in MODULES.items():
        for node, early in statements(ast.parse(path.read_text('utf-8'))):
            place = f'{path.relative_to(SOURCE.parent.parent)}:{node.lineno}'
            for name in absolute(module, node):
                if name.split('.')[0] == PACKAGE and name not in MODULES:
                    name = name.rpartition('.')[0]
                yield Import(module, name, place, early)


IMPORTS = list(imports())
OWN = [one for one in IMPORTS if one.target in MODULES]


def told(faults):
    """Fail with one line for each fault."""
    faults = sorted(set(faults))
    assert not faults, '\n' + '\n'.join(faults)


def test_the_sources_are_found():
    """A house test that reads no house would always pass."""
    assert {'zodbjobs.clock', 'zodbjobs.status'} <= set(MODULES)
    assert any(one.target == 'zodbjobs.status' for one in OWN)


def test_every_module_has_a_floor():
    told(
        f'{module}: {room(module)!r} stands on no floor; give it one in FLOORS'
        for module in MODULES
        if floor(module) is None
    )


def test_what_the_package_imports_of_itself_exists():
    told(
        f'{one.place}: there is no {one.target}'
        for one in IMPORTS
        if one.target.split('.')[0] == PACKAGE and one.target not in MODULES
    )


def test_imports_point_down_only():
    told(
        f'{one.place}: {one.module} ({floor(one.module)}) asks for {one.target}'
        f' ({floor(one.target)}), which stands above it; move what both need down,'
        ' or let the upper one pass it in'
        for one in OWN
        if HEIGHTS.get(room(one.target), 0) > HEIGHTS.get(room(one.module), 99)
    )


def test_doors_never_import_each_other():
    told(
        f'{one.place}: the door {room(one.module)} asks for the door {room(one.target)};'
        ' what two doors share goes down into runtime/'
        for one in OWN
        if floor(one.module) == floor(one.target) == 'doors'
        and room(one.module) != room(one.target)
    )


def test_testing_is_imported_by_nobody():
    told(
        f'{one.place}: {one.module} asks for {one.target}, which is for the tests of our users'
        for one in OWN
        if floor(one.target) == 'testing' and floor(one.module) != 'testing'
    )


def test_structures_stand_below_what_is_built_of_them():
    structures = {f'{PACKAGE}.model.{name}' for name in STRUCTURES}
    told(
        f'{one.place}: the structure {one.module} asks for {one.target}, which is built of it'
        for one in OWN
        if one.module in structures and room(one.target) == 'model' and one.target not in structures
    )


@pytest.mark.parametrize('name', sorted(NEVER))
def test_a_floor_leaves_alone_what_is_not_its_business(name):
    told(
        f'{one.place}: {one.module} asks for {one.target}; {name} never imports'
        f' {one.target.split(".")[0]}'
        for one in IMPORTS
        if floor(one.module) == name
        and one.target.split('.')[0] in NEVER[name]
        and (one.module, one.target) not in ALLOWED
        and (one.module, one.target.rpartition('.')[0]) not in ALLOWED
    )


def test_there_is_no_import_cycle():
    graph = {module: set() for module in MODULES}
    for one in OWN:
        if one.early and one.module != one.target:
            graph[one.module].add(one.target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail('each is imported by the next: ' + ', '.join(error.args[1]), pytrace=False)


def imported_afterwards(*lines):
    """The names of `sys.modules` after a fresh interpreter has run `lines`."""
    program = '\n'.join(['import sys', *lines, "print('\\n'.join(sys.modules))"])
    # Told where to look: under buildout only the scripts know.
    surroundings = os.environ | {'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, '-c', program]
    run = subprocess.run(command, capture_output=True, text=True, env=surroundings)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def assert_no_reactor(found):
    assert 'twisted.internet.reactor' not in found, (
        'an import starts the default reactor, so nobody can choose another;'
        ' `python -X importtime -c ...` tells whose import it is'
    )


def test_the_package_imports_without_a_reactor():
    """Who only puts jobs pays for no reactor, and may still choose his own."""
    found = imported_afterwards(
        'import zodbjobs', 'for name in dir(zodbjobs): getattr(zodbjobs, name)'
    )
    assert 'zodbjobs' in found
    assert_no_reactor(found)


def test_no_floor_up_to_the_runtime_imports_a_reactor():
    lower = [module for module in MODULES if floor(module) in ('root', 'model', 'runtime')]
    found = imported_afterwards(*(f'import {module}' for module in lower))
    assert set(lower) <= found
    assert_no_reactor(found)
