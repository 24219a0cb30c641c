"""Instances of hosts, one for a module; where a host is not installed its tests are left out."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _started_processes(request):
    request.node.add_marker('processes')
