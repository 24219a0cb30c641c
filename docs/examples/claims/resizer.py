"""A worker that is not an agent: ``python resizer.py zeo://localhost:9100``."""

import sys

import transaction

from zodbjobs.interfaces import KEY, ClaimLost
from zodbjobs.runtime.address import open_database


def main(uri):
    connection = open_database(uri).open()
    root = connection.root()
    with root[KEY].consumer('resizer', watch=['images']) as consumer:
        while True:
            claim = consumer.claim()  # waits; a commit that puts a job wakes it
            try:
                for attempt in transaction.manager.attempts():  # again after a conflict
                    with attempt:
                        root['sizes'][claim.body.decode()] = len(claim.body)  # the work
                        claim.finish()
            except ClaimLost:
                pass  # the lease ended, and somebody else does it
            except Exception as error:
                with transaction.manager:
                    claim.fail(error)  # its retry policy says what follows


if __name__ == '__main__':
    main(sys.argv[1])
