"""Every planted bug is caught: by a seed of the simulator, or by the test that it names.

    python -m pytest tests/faults/test_planted.py -n 2

Each is planted in a copy of the package, which a process of its own imports.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import zodbjobs
from tests.faults.planted import BUGS, Seeds

ROOT = Path(__file__).parents[2]
PACKAGE = Path(zodbjobs.__file__).parent

#: Fewer would mean that somebody has taken some off the list.
FEWEST = 40

each_bug = pytest.mark.parametrize('bug', BUGS, ids=[bug.name for bug in BUGS])


def command(bug):
    """The command that must go red, as a list."""
    if isinstance(bug.caught_by, Seeds):
        first, count = bug.caught_by
        arguments = ['zodbjobs.testing.simulate', f'--seed={first}', f'--seeds={count}']
        return [sys.executable, '-m', *arguments, '--shrink=0']
    quick = ['-q', '-x', '-p', 'no:cacheprovider', '-p', 'no:xdist']
    return [sys.executable, '-m', 'pytest', *quick, bug.caught_by]


def test_the_list_does_not_get_shorter():
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= FEWEST


@each_bug
def test_its_place_is_there(bug):
    """The engine changes; a bug whose place is gone must be planted anew."""
    text = (PACKAGE / bug.file).read_text('utf-8')
    assert bug.planted_in(text) != text


@pytest.mark.slow
@pytest.mark.timeout(300)
@each_bug
def test_it_is_caught(bug, tmp_path):
    copy = tmp_path / 'zodbjobs'
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns('__pycache__'))
    place = copy / bug.file
    place.write_text(bug.planted_in(place.read_text('utf-8')), 'utf-8')
    surroundings = os.environ | {
        'PYTHONPATH': os.pathsep.join([str(tmp_path), *filter(None, sys.path)]),
        'PYTHONDONTWRITEBYTECODE': '1',
    }
    run = subprocess.run(command(bug), cwd=ROOT, env=surroundings, capture_output=True, text=True)
    words = 'breaks a promise' if isinstance(bug.caught_by, Seeds) else ' failed'
    assert run.returncode == 1 and words in run.stdout, f'{run.stdout[-2000:]}{run.stderr[-2000:]}'
