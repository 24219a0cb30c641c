"""A ZEO server that cannot import this package: what lies in lanes is merged nevertheless."""

import contextlib
import socket
import subprocess
import sys

import pytest
from ZEO.ClientStorage import ClientStorage

from tests.model.support import House, work

#: A `None` among the modules is one that cannot be imported.
SERVER = """
import sys
sys.modules['zodbjobs'] = None
from ZEO.runzeo import main
main(sys.argv[1:])
"""


@pytest.fixture
def house(tmp_path, monkeypatch):
    monkeypatch.setattr('zodbjobs.model.intake.lane_number', lambda jar: 3)
    with socket.create_server(('127.0.0.1', 0)) as found:
        address = found.getsockname()
    options = ['-a', '{}:{}'.format(*address), '-f', str(tmp_path / 'Data.fs')]
    server = subprocess.Popen(
        [sys.executable, '-c', SERVER, *options], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    try:
        with contextlib.closing(House(ClientStorage(address, wait_timeout=20))) as house:
            yield house
    finally:
        server.terminate()
        server.wait(10)


def test_producers_and_a_claim_merge(house):
    early, late, claimer = (house.side() for _ in range(3))
    first = [early.queue.put(work) for n in range(3)]
    early.commit()
    for side in (early, late, claimer):
        side.begin()
    second = [side.queue.put(work, delay=delay) for side in (early, late) for delay in (None, 60)]
    assert [assignment.oid for assignment in claimer.claim(2)] == [job._p_oid for job in first[:2]]
    for side in (claimer, early, late):
        side.commit()
    side = house.side()
    left = [first[2], second[0], second[2], second[1], second[3]]
    assert [job._p_oid for job in side.queue] == [job._p_oid for job in left]
    assert {job.call_name for job in side.queue} == {f'{work.__module__}.work'}
    assert len(side.claim(5)) == 3  # with references that went through the server's hands
    side.commit()
    assert len(house.side().queue) == 2
