"""The programs that the pages show in full are run, each as a process of its own.

A program is a ``code-block`` of Python whose first line is a comment with its
file name; one that is called ``test_*.py`` is run by pytest.
"""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import zodbjobs

pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(zodbjobs.__file__).resolve().parents[1]
PAGES = [ROOT / 'README.rst', *sorted(ROOT.glob('docs/*.rst'))]

BLOCK = re.compile(r'^\.\. code-block:: python\n\n((?:    .*\n|\n)+)', re.MULTILINE)

#: What a program prints, where it prints anything.
PRINTED = {'hello.py': 'Hello, world!\n'}


def programs():
    """Yield (file name, text) of each program."""
    for page in PAGES:
        for block in BLOCK.findall(page.read_text('utf-8')):
            text = textwrap.dedent(block)
            if name := re.match(r'# (\w+\.py)\n', text):
                yield name[1], text


PROGRAMS = dict(programs())


def run(folder, *arguments):
    environment = os.environ | {'PYTHONPATH': str(SOURCE)}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_there_are_programs():
    assert {'hello.py', 'shop.py', 'test_orders.py', 'test_real.py'} <= set(PROGRAMS)


@pytest.mark.parametrize('name', [name for name in PROGRAMS if not name.startswith('test_')])
def test_a_program_runs_and_runs_again(name, tmp_path):
    (tmp_path / name).write_text(PROGRAMS[name])
    for _ in range(2):
        done = run(tmp_path, name)
        assert done.returncode == 0, done.stderr
        assert 'Traceback' not in done.stderr
        assert done.stdout == PRINTED.get(name, '')


def test_the_tests_pass(tmp_path):
    names = [name for name in PROGRAMS if name.startswith('test_')]
    for name in names:
        (tmp_path / name).write_text(PROGRAMS[name])
    done = run(tmp_path, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *names)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf'^{len(names)} passed', done.stdout, re.MULTILINE)
