"""The commands that examine: for probes, for people, and before a deployment.

Runs in the main thread; nothing is stored.
"""

from zodbjobs.cli.arguments import add_path, import_paths, positive, seconds
from zodbjobs.cli.output import print_json
from zodbjobs.cli.see import Command, answer
from zodbjobs.cli.tables import print_table

HEALTHY, SICK = 0, 1


def _max_wait(parser):
    add = parser.add_argument
    add('--max-wait', type=seconds, default=300, metavar='S', help='default: 300 seconds')


def _health(args):
    found = answer(args, 'health', max_wait=args.max_wait)
    if args.json:
        print_json(found)
    else:
        waiting = sum(queue['waiting'] for queue in found['queues'].values())
        count = len(found['queues'])
        fine = f'healthy: {count} queue{"s" * (count != 1)}, {waiting} waiting jobs'
        print('; '.join(found['problems']) or fine)
    return HEALTHY if found['healthy'] else SICK


health = Command(
    """
    Say in one line whether the jobs of the database are being done.  Exit code 0: yes; 1: no
    dispatcher serves a queue in which jobs are due, or a due job has waited too long; 2: the
    database cannot be reached.
    """,
    """
    zodbjobs health zeo://localhost:9991
    zodbjobs health zeo://localhost:9991 --max-wait 60 --json
    """,
    _health, _max_wait,
)  # fmt: skip


def _doctor(args):
    found = answer(args, 'doctor', max_wait=args.max_wait)
    if args.json:
        print_json(found)
    elif not found['findings']:
        print('nothing was found')
    else:
        columns = [
            ('', lambda row: row['level']),
            ('FOUND', lambda row: row['what']),
            ('WHAT HELPS', lambda row: row['advice']),
        ]
        print_table(columns, found['findings'])
    return HEALTHY if found['healthy'] else SICK


doctor = Command(
    """
    Look for what needs somebody's attention: due jobs that wait too long, dead dispatchers, full
    quotas, jobs whose code is gone, many failures, growth, clocks that differ.  Exit code 1 if
    there is an error among the findings.
    """,
    'zodbjobs doctor zeo://localhost:9991\nzodbjobs doctor var/Data.fs --json',
    _doctor, _max_wait,
)  # fmt: skip


def _lint_arguments(parser):
    add_path(parser)
    parser.add_argument(
        '--look', type=positive, default=100_000, metavar='N', help='default: 100000 jobs'
    )


def _lint(args):
    import_paths(args)
    found = answer(args, 'lint', look=args.look)
    if args.json:
        print_json(found)
    else:
        columns = [('JOB', lambda row: row['job']), ('PROBLEM', lambda row: row['problem'])]
        if found['problems']:
            print_table(columns, found['problems'])
        count = len(found['problems'])
        print(f'{count} of {found["looked_at"]} waiting jobs could not be run with this code')
        if not found['is_all']:
            print('there may be more: --look N looks at more')
    return SICK if found['problems'] else HEALTHY


lint = Command(
    """
    With new code installed, and before its workers start: which waiting and held jobs could not be
    loaded or called by it?  Exit code 1 if there are any.  (Where a process has the file locked,
    that process answers, with the code that it has.)
    """,
    'zodbjobs lint zeo://localhost:9991 --path src\nzodbjobs lint postgres://db/jobs --json',
    _lint, _lint_arguments,
)  # fmt: skip
