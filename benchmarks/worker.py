"""A worker process for the benchmarks: ``python -m benchmarks.worker URI THREADS``.

It serves the database until its standard input ends.  When it is ready, and
after each line it was given, it prints a line of JSON: how many jobs it has
done so far, and its resident memory.  The requests are ``look``, and ``run N``:
put N jobs that do nothing, and have them done.
"""

import contextlib
import json
import sys

import transaction

from benchmarks import staff, work
from benchmarks.measure import resident_bytes, wait_until
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


def main(uri, threads):
    staff.log_briefly()
    with contextlib.closing(open_database(uri)) as db:
        with staff.dispatcher(db, threads) as dispatcher:

            def say():
                answer = {'done': done(dispatcher), 'rss': resident_bytes()}
                print(json.dumps(answer), flush=True)

            say()
            for line in sys.stdin:
                verb, *numbers = line.split()
                if verb == 'run':
                    run(db, dispatcher, int(numbers[0]))
                say()


if __name__ == '__main__':
    main(sys.argv[1], int(sys.argv[2]))
