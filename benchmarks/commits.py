"""Commits: what the bare storage does for several processes, and what listeners cost it.

No job system here: one small object per process, changed again and again.  These
figures feed `benchmarks.model`.
"""

import contextlib

from benchmarks import staff
from benchmarks.measure import RATE, Figure, raw_rate
from zodbjobs.runtime.address import open_database

#: Clients that have the database open and only hear of its changes.
LISTENERS = 8


def measure(place, scale):
    if not place.several:
        return
    for count in scale.committers:
        yield (_together(place, scale, count),)
    place.fresh()
    with contextlib.ExitStack() as stack:
        for _ in range(LISTENERS):
            db = stack.enter_context(contextlib.closing(open_database(place.uri)))
            connection = stack.enter_context(contextlib.closing(db.open()))
            connection.root().get('raw')  # so that its cache has what changes
        rates = [raw_rate(place.producer, scale.raw_seconds).per_second for _ in range(3)]
    yield (
        Figure(
            f'commits of 1 process beside {LISTENERS} clients that listen', sorted(rates)[1],
            'commits/s', RATE,
        ),
    )  # fmt: skip


def _together(place, scale, count):
    place.fresh()
    with staff.worker_processes(place.uri, count, 0) as processes:
        for process in processes:
            process.send('commit', scale.commit_seconds)
        rates = [process.ask()['commits'] for process in processes]
    name = f'commits of {count} process{"es" if count > 1 else ""}'
    return Figure(name, sum(rates), 'commits/s', RATE, facts={'processes': count})
