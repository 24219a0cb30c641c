"""``zodbjobs worker``: runs the tasks of a queue one by one, until it is told to stop.

The simplest worker there is: one process, one task at a time, in the main
thread.  SIGTERM and SIGINT end it after the task that runs; a second one ends it at
once, and what ran is found and run again, as after any crash.
"""

import contextlib
import logging
import sys

from zodbjobs.cli.arguments import add_path, import_paths, seconds
from zodbjobs.cli.output import LOG_FORMAT, describe


def add_arguments(parser):
    """See `zodbjobs.cli.main`."""
    describe(
        parser,
        """
        Run the tasks in a queue of the database at URI, one at a time.  SIGTERM or Ctrl-C stops it
        when the task that runs has ended.  For more at a time start more of them, where the storage
        lets several processes in; `zodbjobs run` has threads.
        """,
        """
        zodbjobs worker Data.fs --path src
        zodbjobs worker zeo://localhost:9991 --queue mail --max-tasks 1000
        """,
    )
    add = parser.add_argument
    add('uri', metavar='URI', help='where the database is')
    add('--queue', metavar='NAME', default='', help="default: ''")
    add('--max-tasks', type=int, metavar='N', default=0, help='end after so many (0: never)')
    add('--nap-time', type=seconds, metavar='S', default=0.1, help='default: 0.1 seconds')
    add_path(parser, 'tasks')


def main(args):
    """See `zodbjobs.cli.main`."""
    from zodbjobs.tasks import Tasks, Worker

    logging.basicConfig(stream=sys.stderr, format=LOG_FORMAT)
    logging.getLogger('zodbjobs').setLevel(logging.INFO)
    import_paths(args)
    with contextlib.closing(Tasks(args.uri, args.queue)) as tasks:
        Worker(tasks, args.max_tasks, args.nap_time).run_forever()
    return 0
