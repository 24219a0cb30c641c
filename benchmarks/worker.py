"""A worker process for the benchmarks: ``python -m benchmarks.worker URI THREADS``.

It serves the database until its standard input ends.  When it is ready, and
after each line it was given, it prints a line of JSON: how many jobs it has
done so far, and its resident memory.  The requests are ``look``; ``run N``: put
N jobs that do nothing, and have them done; ``commit S``: commit a small object
for so many seconds, and tell how often that went in a second.  With no THREADS
it serves nothing.
"""

import contextlib
import json
import os
import sys

import transaction

from benchmarks import staff, work
from benchmarks.measure import raw_rate, resident_bytes, wait_until
from zodbjobs.interfaces import KEY
from zodbjobs.runtime.address import open_database

#: Jobs put in one transaction.
BATCH = 100

#: Seconds that a request may take.
RUN_SECONDS = 120


def run(db, dispatcher, count):
    """Put `count` jobs and have them done."""
    wanted = done(dispatcher) + count
    manager = transaction.TransactionManager()
    with contextlib.closing(db.open(manager)) as connection:
        for first in range(0, count, BATCH):
            manager.begin()
            for _ in range(min(BATCH, count - first)):
                connection.root()[KEY][''].put(work.nothing)
            manager.commit()
    wait_until(lambda: done(dispatcher) >= wanted, RUN_SECONDS)


def done(dispatcher):
    return dispatcher.getStatistics()['successful']


def commits(db, seconds):
    """How often in a second a small object of this process can be committed."""
    manager = transaction.TransactionManager()
    with contextlib.closing(db.open(manager)) as connection:
        return raw_rate(connection, seconds, key=f'raw of {os.getpid()}').per_second


def answer(db, dispatcher, verb='look', number='0'):
    """Do what was asked for; returns the answer, a dict."""
    found = {}
    if verb == 'run':
        run(db, dispatcher, int(number))
    elif verb == 'commit':
        found['commits'] = commits(db, float(number))
    if dispatcher is not None:
        found['done'] = done(dispatcher)
    return found | {'rss': resident_bytes()}


def main(uri, threads):
    staff.log_briefly()
    with contextlib.closing(open_database(uri)) as db:
        serving = staff.dispatcher(db, threads) if threads else contextlib.nullcontext()
        with serving as dispatcher:
            print(json.dumps(answer(db, dispatcher)), flush=True)
            for line in sys.stdin:
                print(json.dumps(answer(db, dispatcher, *line.split())), flush=True)


if __name__ == '__main__':
    main(sys.argv[1], int(sys.argv[2]))
