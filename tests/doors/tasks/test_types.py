"""What type checkers make of `Tasks.job`: the function's own signature, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_a_decorated_function_keeps_its_types():
    """Wrong calls are found, right ones are not; the file says at each line which it is."""
    pytest.importorskip('mypy')
    checked = subprocess.run(
        [sys.executable, '-m', 'mypy', 'tests/doors/tasks/typed_use.py'],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout


def test_make_types_reads_it():
    assert "'tests/doors/tasks/typed_use.py'" in (ROOT / 'pyproject.toml').read_text()
