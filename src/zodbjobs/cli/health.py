"""``zodbjobs health``: is the work being done?  One line, and an exit code.

It looks at the database only, so it also notices a worker that is alive and
stuck: jobs that are due do not start.  Reading never writes.
"""

import contextlib
import itertools

import transaction

from zodbjobs import clock
from zodbjobs.cli.output import describe, print_json
from zodbjobs.cli.run import seconds
from zodbjobs.interfaces import KEY
from zodbjobs.runtime.address import open_database

#: How many waiting jobs of a queue are looked at for the oldest due one.
LOOKED_AT = 100

HEALTHY, SICK = 0, 1


def add_arguments(parser):
    """See `zodbjobs.cli.main`."""
    describe(
        parser,
        """
        Say in one line whether the jobs of the database at URI are being done.  Exit code 0: yes;
        1: no dispatcher serves a queue in which jobs are due, or a due job has waited too long;
        2: the database cannot be reached.
        """,
        """
        zodbjobs health zeo://localhost:9991
        zodbjobs health zeo://localhost:9991 --max-wait 60 --json
        """,
    )
    add = parser.add_argument
    add('uri', metavar='URI', help='where the database is')
    add('--max-wait', type=seconds, default=300, metavar='S', help='default: 300 seconds')
    add('--json', action='store_true', help='print the answer as JSON')


def main(args):
    """See `zodbjobs.cli.main`."""
    manager = transaction.TransactionManager()
    with (
        contextlib.closing(open_database(args.uri)) as db,
        contextlib.closing(db.open(manager)) as connection,
    ):
        queues = connection.root().get(KEY) or {}
        found = {name: state_of(queue) for name, queue in queues.items()}
    problems = [
        f'queue {name!r}: {problem}'
        for name, state in found.items()
        for problem in problems_of(state, args.max_wait)
    ]
    if args.json:
        print_json({'healthy': not problems, 'problems': problems, 'queues': found})
    else:
        waiting = sum(state['waiting'] for state in found.values())
        print('; '.join(problems) or f'healthy: {len(found)} queues, {waiting} jobs wait')
    return SICK if problems else HEALTHY


def state_of(queue):
    """How a queue stands: plain values."""
    now = clock.micros()
    ages = [
        (now - job._due) / clock.SECOND
        for job in itertools.islice(queue, LOOKED_AT)
        if job._due is not None and job._due <= now and not job.blockers()
    ]
    return {
        'waiting': len(queue),
        'oldest due seconds': max(ages, default=0.0),
        'dispatchers': sum(r.activated is not None for r in queue.dispatchers.values()),
        'paused': queue.is_paused(now),
    }


def problems_of(state, max_wait):
    """What is wrong with a queue, in words."""
    if state['paused'] or not state['oldest due seconds']:
        return
    if not state['dispatchers']:
        yield 'jobs are due and no dispatcher serves it'
    elif state['oldest due seconds'] > max_wait:
        yield f'a due job has waited {state["oldest due seconds"]:.0f} s'
