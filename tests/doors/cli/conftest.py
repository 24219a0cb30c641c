"""Fixtures for the tests of the commands."""

import pytest

from zodbjobs.cli import source


@pytest.fixture
def no_default(monkeypatch, tmp_path):
    """No database of the machine is found by itself."""
    monkeypatch.delenv(source.VARIABLE, raising=False)
    monkeypatch.setenv('ZODBJOBS_LOCK_DIR', str(tmp_path))
