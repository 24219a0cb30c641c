"""A worker as on a host of its own: its lease is short, and its clock goes wrong.

``python -m tests.processes.hosted LEASE SHIFT ARGUMENT...`` is ``zodbjobs
ARGUMENT...`` with a lease of LEASE seconds, a sign of life four times in it, and
a wall clock that is SHIFT seconds ahead of the machine's.
"""

import sys

from zodbjobs import clock
from zodbjobs.cli.main import main
from zodbjobs.runtime import liveness


class WrongTime(clock.SystemTime):
    """The machine's clock, some seconds ahead; what measures durations is right, as everywhere."""

    def __init__(self, seconds):
        self.ahead = round(seconds * clock.SECOND)

    def micros(self):
        return super().micros() + self.ahead


if __name__ == '__main__':
    lease, shift, *arguments = sys.argv[1:]
    liveness.LEASE_SECONDS = float(lease)
    liveness.BEAT_SECONDS = float(lease) / 4
    clock.use(WrongTime(float(shift)))
    sys.exit(main(arguments))
