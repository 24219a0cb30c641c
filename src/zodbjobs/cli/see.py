"""The commands that look: nothing they do is stored.

Each is a `Command`; `zodbjobs.cli.main.COMMANDS` names them.  Every one has
``--json``, whose names and shapes are those of `zodbjobs.monitor.shown`.

Runs in the main thread.
"""

import argparse

from zodbjobs.cli import tables
from zodbjobs.cli.arguments import positive
from zodbjobs.cli.output import (
    WRONGLY_ASKED,
    CommandError,
    bytes_text,
    describe,
    print_json,
)
from zodbjobs.cli.source import add_source, only_address, opened, split_words
from zodbjobs.cli.tables import print_facts, print_table

FILTERS = ('callable', 'queue', 'agent', 'dispatcher', 'channel', 'quota', 'id')
SPANS = ('requested', 'started', 'ended', 'told')

JOB_COLUMNS = [
    ('JOB', lambda row: row['oid']),
    ('ID', lambda row: row['id']),
    ('STATE', lambda row: row['state']),
    ('CALL', lambda row: row['call']),
    ('QUEUE', lambda row: tables.name(row['queue'])),
    ('DUE', lambda row: tables.when(row.get('due'))),
    ('WAIT', lambda row: tables.seconds(row.get('wait_seconds'))),
    ('RUN', lambda row: tables.seconds(row.get('run_seconds'))),
    ('TRIES', lambda row: row.get('attempts') or None),
    ('PROGRESS', lambda row: tables.progress(row.get('progress'))),
]


class Command:
    """One command: what it says of itself, its arguments, and what it does."""

    def __init__(self, text, examples, ask, arguments=None, words=None, words_help=None):
        self._text, self._examples = text, examples
        self._ask, self._arguments = ask, arguments
        self._words, self._words_help = words, words_help

    def add_arguments(self, parser):
        """See `zodbjobs.cli.main`."""
        describe(parser, self._text, self._examples)
        add_source(parser, self._words, self._words_help)
        if self._arguments is not None:
            self._arguments(parser)

    def main(self, args):
        """See `zodbjobs.cli.main`."""
        return self._ask(args) or 0


def add_filters(parser):
    """The filters of `zodbjobs.monitor.wanted`."""
    add = parser.add_argument
    add('--callable', metavar='GLOB', help="the function's name, or with a dot its full name")
    add('--queue', metavar='GLOB', help="the queue's name")
    add('--agent', metavar='GLOB', help='the agent that has or had it, or could take it')
    add('--dispatcher', metavar='UUID', help='or its first digits')
    add('--channel', metavar='NAME', help="the job's channel")
    add('--quota', metavar='NAME', help='a quota that the job names')
    add('--id', metavar='GLOB', help='the id it was put with')
    for name, what in zip(
        SPANS, ('its begin_after', 'its start', 'its end', 'the end of its callbacks'), strict=True
    ):
        add(
            f'--{name}', metavar='SPAN', help=f'{what}, such as since1H, before2D, since2D,before1D'
        )
    add('--look', type=positive, metavar='N', help='jobs to look at (default: 5000)')


def filters_of(args):
    """The filters among the arguments, for a question."""
    names = (*FILTERS, *SPANS, 'look')
    found = {name: getattr(args, name, None) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def answer(args, question, writes=False, **more):
    """Ask one question, or for one deed, at the source that the arguments name."""
    with opened(only_address(args), writes) as source:
        return source.ask(question, **more)


# queues, dispatchers, agents


def _queue_state(row):
    words = [word for word in ('paused', 'closed') if row[word]]
    if not row['dispatchers']:
        words.append('not served')
    full = [name for name, quota in row['quotas'].items() if quota['taken'] >= quota['size']]
    words += [f'quota {name} full' for name in full]
    return ', '.join(words) or 'open'


QUEUE_COLUMNS = [
    ('QUEUE', lambda row: tables.name(row['name'])),
    ('WAITING', lambda row: row['waiting']),
    ('LATER', lambda row: row['later']),
    ('HELD', lambda row: row['held']),
    ('RUNNING', lambda row: row['running']),
    ('FINISHED', lambda row: row['finished']),
    ('OLDEST DUE', lambda row: tables.seconds(row['oldest_due_seconds'])),
    ('THREADS', lambda row: row['threads']),
    ('STATE', _queue_state),
]


DISPATCHER_COLUMNS = [
    ('DISPATCHER', lambda row: row['uuid']),
    ('QUEUE', lambda row: tables.name(row['queue'])),
    ('STATE', lambda row: row['state']),
    ('SINCE', lambda row: tables.when(row['activated'] or row['ended'])),
    ('PID', lambda row: row['pid']),
    ('AGENTS', lambda row: _agents_text(row['agents'].values())),
]


def _agents_text(agents):
    return ', '.join(f'{agent["name"]} {agent["active"]}/{agent["size"]}' for agent in agents)


AGENT_COLUMNS = [
    ('AGENT', lambda row: row['name']),
    ('QUEUE', lambda row: tables.name(row['queue'])),
    ('DISPATCHER', lambda row: row['dispatcher'][:8]),
    ('SERVING', lambda row: 'yes' if row['serving'] else 'no'),
    ('SIZE', lambda row: row['size']),
    ('ACTIVE', lambda row: row['active']),
    ('JOBS', lambda row: row['jobs']),
    ('FINISHED', lambda row: row['finished']),
    ('CHANNELS', lambda row: _channels_text(row['channels'])),
    ('CHOOSES', lambda row: row['filter'] or row['chooser']),
]


def _channels_text(channels):
    return 'all' if channels is None else ' '.join(tables.name(channel) for channel in channels)


def _rows(question, columns):
    def ask(args):
        rows = answer(args, question, **filters_of(args))
        if args.json:
            print_json(rows)
        else:
            print_table(columns, rows)

    return ask


def _agent_filters(parser):
    parser.add_argument('--queue', metavar='GLOB')
    parser.add_argument('--agent', metavar='GLOB', help='the name of the agent')
    parser.add_argument('--dispatcher', metavar='UUID', help='or its first digits')


def _dispatcher_filters(parser):
    parser.add_argument('--dispatcher', metavar='UUID', help='or its first digits')


WORKER_COLUMNS = [
    ('WORKER', lambda row: row['name']),
    ('STATE', lambda row: row['state']),
    ('PID', lambda row: row.get('pid')),
    ('AGE', lambda row: tables.seconds(row.get('age seconds'))),
    ('MEMORY', lambda row: row.get('memory bytes') and bytes_text(row['memory bytes'])),
    ('DONE', lambda row: row.get('jobs')),
    ('ACTIVE', lambda row: row.get('active')),
    ('STARTS', lambda row: row['starts']),
    ('DISPATCHER', lambda row: ' '.join(row.get('uuids', ()))),
]


def _supervisors(found):
    """The supervisors on this host of the dispatchers that a status tells of."""
    from zodbjobs.cli import supervisor  # late: it brings the database's packages

    ours = {record['uuid'] for record in found['dispatchers']}
    return [
        state
        for state in supervisor.states()
        if any(ours.intersection(worker.get('uuids', ())) for worker in state['workers'])
    ]


def _status(args):
    found = answer(args, 'status')
    found['supervisors'] = _supervisors(found)
    if args.json:
        print_json(found)
        return
    if found['deployment']:
        print(f'deployment {found["deployment"]}')
    print_table(QUEUE_COLUMNS, found['queues'])
    for queue in found['queues']:
        if queue['needs']:
            print(f'queue {queue["name"]!r}: {queue["needs"]}')
    serving = [record for record in found['dispatchers'] if record['state'] != 'off']
    if serving:
        print()
        print_table(DISPATCHER_COLUMNS, serving)
    for state in found['supervisors']:
        print()
        print_table(WORKER_COLUMNS, state['workers'], f'supervisor, process {state["pid"]}')


status = Command(
    'Show how the queues stand and who serves them.',
    'zodbjobs status zeo://localhost:9991\nzodbjobs status var/Data.fs --json',
    _status,
)
queues = Command(
    'List the queues: jobs that wait, run and have finished, the age of the oldest due one.',
    'zodbjobs queues zeo://localhost:9991',
    _rows('queues', QUEUE_COLUMNS),
)
dispatchers = Command(
    'List the dispatchers that serve or served the queues, and their agents.',
    'zodbjobs dispatchers zeo://localhost:9991\nzodbjobs dispatchers --dispatcher 3f2a',
    _rows('dispatchers', DISPATCHER_COLUMNS),
    _dispatcher_filters,
)
agents = Command(
    'List the agents: their sizes, channels and jobs.',
    "zodbjobs agents zeo://localhost:9991\nzodbjobs agents --queue 'mail*'",
    _rows('agents', AGENT_COLUMNS),
    _agent_filters,
)


# jobs


def _states_and_filters(parser):
    add_filters(parser)
    parser.add_argument('--state', action='append', default=[], help='as a STATE behind the URI')


def _limited_filters(parser):
    _states_and_filters(parser)
    parser.add_argument('--limit', type=positive, default=50, metavar='N', help='default: 50')
    parser.add_argument('--why', action='store_true', help='and why each of them does not run')


def _states(args):
    """(address, states) of a command that lists jobs."""
    address, words = split_words(args)
    return address, [*words, *args.state]


def _jobs(args):
    address, states = _states(args)
    with opened(address) as source:
        found = source.ask(
            'jobs', states=states, limit=args.limit, with_reason=args.why, **filters_of(args)
        )
    if args.json:
        print_json(found)
        return
    columns = [*JOB_COLUMNS, ('WHY', lambda row: row['why'])] if args.why else JOB_COLUMNS
    print_table(columns, found['jobs'])
    if not found['is_all']:
        print(f'there may be more; {found["looked_at"]} jobs were looked at')


def _count(args):
    address, states = _states(args)
    with opened(address) as source:
        found = source.ask('count', states=states, **filters_of(args))
    if args.json:
        print_json(found)
    else:
        print(found['count'] if found['exact'] else f'{found["count"]} or more')


def _job_stats(args, source, states):
    found = source.ask('job_stats', states=states, **filters_of(args))
    if args.json:
        print_json(found)
        return
    print_facts(list(found['counts'].items()))
    for name in ('longest_wait', 'shortest_wait', 'longest_run', 'shortest_run'):
        if found[name]:
            seconds, job = found[name]
            print(f'{name.replace("_", " ")}: {tables.seconds(seconds)}, job {job["oid"]}')


STATS_COLUMNS = [
    ('QUEUE', lambda row: 'all' if row['queue'] is None else tables.name(row['queue'])),
    ('AGENT', lambda row: row['agent']),
    ('SUCCEEDED', lambda row: row['succeeded']),
    ('FAILED', lambda row: row['failed']),
    ('CANCELLED', lambda row: row['cancelled']),
    ('RETRIES', lambda row: row['retries']),
    ('CONFLICTS', lambda row: row['conflicts']),
    ('WAIT P50', lambda row: tables.seconds(row['wait_p50'])),
    ('P95', lambda row: tables.seconds(row['wait_p95'])),
    ('RUN P50', lambda row: tables.seconds(row['run_p50'])),
    ('P95', lambda row: tables.seconds(row['run_p95'])),
]


def _stats(args):
    address, states = _states(args)
    with opened(address) as source:
        if states:
            _job_stats(args, source, states)
            return
        found = source.ask('stats', since=args.since, **filters_of(args))
    if args.json:
        print_json(found)
        return
    print_table(STATS_COLUMNS, found['rows'], f'ended since {found["since"]}')
    if not found['is_all']:
        print(f'there may be more; {found["looked_at"]} jobs were looked at')


def _stats_arguments(parser):
    _states_and_filters(parser)
    parser.add_argument('--since', metavar='TIME', default='1H', help='default: 1H')


STATES_HELP = (
    'states: pending due later held assigned active callbacks completed succeeded failed cancelled'
)

jobs = Command(
    """
    List jobs: those that run first, then those that wait in the order in which they will be
    claimed, then those that are held, then those that ended, the latest first.
    """,
    """
    zodbjobs jobs zeo://localhost:9991 pending --limit 50
    zodbjobs jobs failed --ended since1H --callable 'myapp.*'
    zodbjobs jobs var/Data.fs due --why
    """,
    _jobs, _limited_filters, '[STATE ...]', STATES_HELP,
)  # fmt: skip
count = Command(
    'Say how many jobs there are. With filters so many are looked at as --look says.',
    "zodbjobs count zeo://localhost:9991 pending\nzodbjobs count failed --ended since1D --json",
    _count, _states_and_filters, '[STATE ...]', STATES_HELP,
)  # fmt: skip
stats = Command(
    """
    Figures of the jobs that ended lately, for each agent and queue: outcomes, and how long
    they waited and ran.  With states: counts and extremes of the jobs in them.
    """,
    """
    zodbjobs stats zeo://localhost:9991 --since 6H
    zodbjobs stats var/Data.fs pending active
    """,
    _stats, _stats_arguments, '[STATE ...]', STATES_HELP,
)  # fmt: skip


# one job


def job_lines(job):
    """(name, text) of what is known about a job, for people."""
    lines = [
        ('job', f'{job["oid"]}' + (f' {job["id"]!r}' if job['id'] else '')),
        ('call', f'{job["call"]}({_call_args(job)})'),
        ('state', job['state']),
        ('why', job['why']),
        ('queue', tables.name(job['queue'])),
    ]
    if job['state'] == 'broken':
        return lines
    for name in ('channel', 'priority', 'agent', 'dispatcher', 'hold_reason', 'retry_policy'):
        lines.append((name.replace('_', ' '), job[name]))
    lines += [
        ('quotas', ' '.join(job['quota_names'])),
        *((name, job[name]) for name in ('put', 'due', 'started', 'ended')),
        ('waited', tables.seconds(job['wait_seconds'])),
        ('ran', tables.seconds(job['run_seconds'])),
        ('attempts', job['attempts']),
        ('conflicts', job['conflicts'] or None),
        ('interruptions', job['interruptions'] or None),
        ('progress', tables.progress(job['progress'])),
        ('result', job['result']),
        *(
            ('callback', f'{each["oid"]} {each["call"]} {each["state"]}')
            for each in job['callbacks']
        ),
        *(('needs', f'{each["oid"]} {each["state"]}') for each in job['depends_on'] + job['after']),
        *((f'[{name}]', value) for name, value in job['annotations'].items()),
    ]
    return lines


def _job_text(job):
    return ' '.join(str(job[name]) for name in ('oid', 'call', 'state') if job.get(name))


def _call_args(job):
    given = list(job.get('args', ()))
    given += [f'{name}={value}' for name, value in job.get('kwargs', {}).items()]
    return ', '.join(given)


def _print_job(args, job):
    if args.json:
        print_json(job)
        return 0
    if job is None:
        print('none')
        return 1
    print_facts(job_lines(job))
    for at, level, text in job.get('log', ()):
        print(f'  {at} {level} {text}')
    return 0


def one_name(args):
    """(address, the name of the one job) that the words give."""
    address, names = split_words(args)
    if len(names) != 1:
        raise CommandError('name one job: its number, or the id it was put with', WRONGLY_ASKED)
    return address, names[0]


def _about(question, tell, **more):
    def ask(args):
        address, name = one_name(args)
        with opened(address) as source:
            asked = {key: getattr(args, key) for key in more}
            return tell(args, source.ask(question, name=name, **asked))

    return ask


def _print_traceback(args, text):
    if args.json:
        print_json(text)
    else:
        print(text or 'it has no failure')
    return 0 if text else 1


def _print_why(args, found):
    if args.json:
        print_json(found)
    else:
        print(f'{found["job"]}: {found["why"]}')


def _found(question):
    def ask(args):
        with opened(only_address(args)) as source:
            return _print_job(args, source.ask(question, **filters_of(args)))

    return ask


def _details(parser):
    parser.add_argument(
        '--detail', choices=('brief', 'default', 'verbose'), default='default',
        help='verbose shows local variables',
    )  # fmt: skip


ONE_JOB = 'the number of a job, or the id that it was put with'

job = Command(
    'Show all that is known about one job, with the lines it logged.',
    'zodbjobs job zeo://localhost:9991 4711\nzodbjobs job nightly --json',
    _about('job', _print_job), None, 'JOB', ONE_JOB,
)  # fmt: skip
why = Command(
    'Say in one sentence why a job does not run.',
    'zodbjobs why zeo://localhost:9991 4711\nzodbjobs why nightly',
    _about('why', _print_why), None, 'JOB', ONE_JOB,
)  # fmt: skip
traceback = Command(
    'Show the traceback of a job that failed. Exit code 1 if it did not.',
    'zodbjobs traceback zeo://localhost:9991 4711\nzodbjobs traceback nightly --detail verbose',
    _about('traceback', _print_traceback, detail=None), _details, 'JOB', ONE_JOB,
)  # fmt: skip
next_ = Command(
    'Show the job that is claimed next. Exit code 1 if none waits.',
    'zodbjobs next zeo://localhost:9991 --queue mail',
    _found('next'), add_filters,
)  # fmt: skip
last = Command(
    'Show the job that finished last. Exit code 1 if there is none.',
    "zodbjobs last zeo://localhost:9991 --callable 'index*'",
    _found('last'), add_filters,
)  # fmt: skip


def namespace(**values):
    """Arguments for a command that another one calls."""
    return argparse.Namespace(**values)
