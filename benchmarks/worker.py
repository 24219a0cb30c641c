"""A worker process for the benchmarks: ``python -m benchmarks.worker URI THREADS``.

It serves the database until its standard input ends.  When it is ready, and
after each line it was given, it prints a line of JSON: what it did, and its
resident memory.  The only request is ``run N``: put N jobs that do nothing, and
have them done.
"""

import contextlib
import json
import resource
import sys

import transaction

from benchmarks import staff, work
from benchmarks.measure import wait_until
from zodbjobs.interfaces import KEY
from zodbjobs.runtime.address import open_database

#: Jobs put in one transaction.
BATCH = 100

#: Seconds that a request may take.
RUN_SECONDS = 60


def resident_bytes():
    """The memory this process has now; its peak where the system does not tell."""
    try:
        with open('/proc/self/statm') as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(db, dispatcher, count):
    """Put `count` jobs and have them done; returns how many were."""
    before = dispatcher.getStatistics()['successful']
    manager = transaction.TransactionManager()
    with contextlib.closing(db.open(manager)) as connection:
        for first in range(0, count, BATCH):
            manager.begin()
            for _ in range(min(BATCH, count - first)):
                connection.root()[KEY][''].put(work.nothing)
            manager.commit()

    def done():
        return dispatcher.getStatistics()['successful'] - before

    wait_until(lambda: done() >= count, RUN_SECONDS)
    return done()


def say(**answer):
    print(json.dumps(answer | {'rss': resident_bytes()}), flush=True)


def main(uri, threads):
    staff.log_briefly()
    with contextlib.closing(open_database(uri)) as db:
        with staff.dispatcher(db, threads) as dispatcher:
            say(ready=True)
            for line in sys.stdin:
                say(done=run(db, dispatcher, int(line.split()[1])))


if __name__ == '__main__':
    main(sys.argv[1], int(sys.argv[2]))
