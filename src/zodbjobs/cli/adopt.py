"""``zodbjobs adopt``: say to which deployment a database belongs.

Runs in the main thread, in one transaction of its own.
"""

import contextlib

import transaction

from zodbjobs.cli.output import CommandError, describe
from zodbjobs.interfaces import KEY
from zodbjobs.runtime import fence
from zodbjobs.runtime.address import open_database

TRIES = 10


def add_arguments(parser):
    """See `zodbjobs.cli.main`."""
    describe(
        parser,
        """
        Let the database at URI belong to a deployment: only workers that name it claim jobs there.
        A copy carries the name of the original, so that workers started on it hold everything
        until it is adopted.  Jobs that were running when the copy was made are given back.
        """,
        """
        zodbjobs adopt copy/Data.fs --deployment staging
        zodbjobs adopt copy/Data.fs --discard          its jobs are thrown away
        """,
    )
    add = parser.add_argument
    add('uri', metavar='URI', help='where the database is')
    add('--deployment', metavar='NAME', help='to whom (default: to nobody, any worker may run)')
    add('--discard', action='store_true', help='take out all jobs that wait, are held or ran')


def main(args):
    """See `zodbjobs.cli.main`."""
    manager = transaction.TransactionManager()
    with (
        contextlib.closing(open_database(args.uri)) as db,
        contextlib.closing(db.open(manager)) as connection,
    ):

        def adopt():
            queues = connection.root().get(KEY)
            if queues is None:
                raise CommandError('there are no queues in this database')
            return fence.adopt(queues, args.deployment, args.discard)

        count = manager.run(adopt, TRIES)
    whom = repr(args.deployment) if args.deployment else 'nobody in particular'
    print(f'the database belongs to {whom}' + (f'; {count} jobs discarded' if args.discard else ''))
    return 0
