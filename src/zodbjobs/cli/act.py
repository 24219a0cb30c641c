"""The commands that act: on jobs by name or by filter, on queues, quotas, agents, the database.

By filter they first say how many jobs it would be, and ask; ``--yes`` does not
ask.  Where nobody can be asked they stop there.

Runs in the main thread; each batch of jobs is a transaction of its own.
"""

import json
import sys

from zodbjobs.cli.arguments import add_path, import_paths
from zodbjobs.cli.output import WRONGLY_ASKED, CommandError, print_json, say
from zodbjobs.cli.see import Command, add_filters, answer, filters_of, only_address
from zodbjobs.cli.source import opened, split_words
from zodbjobs.cli.tables import name as shown_name

#: Batches of one deed; more jobs than 500 times that are not done in one command.
BATCHES = 10_000


def confirmed(args, question):
    """Whether the deed shall be done; asks where somebody can answer.  Raises CommandError."""
    if args.yes:
        return True
    if not sys.stdin.isatty():
        raise CommandError(f'{question} Nothing was done: say so with --yes', WRONGLY_ASKED)
    print(f'{question} [y/N] ', end='', file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ('y', 'yes')


# on jobs


def _job_deed(deed, past, text, examples, arguments=None):
    def add_arguments(parser):
        add_filters(parser)
        add = parser.add_argument
        add('--state', action='append', default=[], help='of those a filter finds')
        add('--all', action='store_true', help='all jobs that it is possible for')
        add('--yes', action='store_true', help='do not ask')
        add('--dry-run', action='store_true', help='only say how many it would be')
        if arguments is not None:
            arguments(parser)

    def ask(args):
        address, names = split_words(args)
        reason = getattr(args, 'reason', None)
        filters = {name: value for name, value in filters_of(args).items() if name != 'look'}
        wanted = {'deed': deed, 'states': args.state, **filters}
        if names:
            wanted = {'deed': deed, 'names': names}
        elif not filters and not args.state and not args.all:
            raise CommandError('name jobs, or say which by filters, or --all', WRONGLY_ASKED)
        with opened(address, writes=not args.dry_run) as source:
            if not names or args.dry_run:
                preview = source.ask('act_on_jobs', preview=True, **wanted)
                if args.dry_run:
                    return _tell(args, preview, f'would be {past}')
                more = ' or more' if preview['more'] else ''
                noun = 'job' if preview['count'] == 1 else 'jobs'
                question = f'{deed} {preview["count"]}{more} {noun}?'
                if not preview['count'] or not confirmed(args, question):
                    return _tell(args, {**preview, 'count': 0, 'jobs': []}, past)
            return _tell(args, _in_batches(source, wanted, reason), past)

    return Command(text, examples, ask, add_arguments, '[JOB ...]', 'numbers or ids of jobs')


def _in_batches(source, wanted, reason):
    more = {} if reason is None else {'reason': reason}
    total = {'count': 0, 'jobs': [], 'problems': [], 'more': True}
    for _ in range(BATCHES):
        found = source.ask('act_on_jobs', **wanted, **more)
        total['count'] += found['count']
        total['jobs'] = total['jobs'] or found['jobs']
        total['problems'] += found['problems']
        total['more'] = found['more']
        if not found['more'] or not found['count']:
            break
    return total


def _tell(args, found, past):
    if args.json:
        print_json(found)
    else:
        print(f'{found["count"]} {"job" if found["count"] == 1 else "jobs"} {past}')
        for problem in found['problems']:
            say(problem)
    return 1 if found['problems'] else 0


def _reason(parser):
    parser.add_argument('--reason', metavar='TEXT', help='shown by `zodbjobs why`')


hold = _job_deed(
    'hold', 'held',
    'Set jobs that wait aside, until they are resumed.',
    """
    zodbjobs hold zeo://localhost:9991 4711 nightly --reason 'the index is broken'
    zodbjobs hold --callable 'myapp.index*' --yes
    """,
    _reason,
)  # fmt: skip
resume = _job_deed(
    'resume', 'resumed',
    'Let held jobs wait for their turn again.',
    'zodbjobs resume zeo://localhost:9991 4711\nzodbjobs resume --all --yes',
)  # fmt: skip
cancel = _job_deed(
    'cancel', 'cancelled',
    """
    Cancel jobs: those that wait or are held complete with a CancelledError, and their callbacks
    run.  One that runs is asked to stop, if it is named, or --state active is given.
    """,
    """
    zodbjobs cancel zeo://localhost:9991 4711
    zodbjobs cancel --channel mail --requested before7D --dry-run
    """,
)  # fmt: skip
retry = _job_deed(
    'retry', 'put again',
    'Run jobs that failed again, as if they were put now.',
    """
    zodbjobs retry zeo://localhost:9991 4711
    zodbjobs retry --callable send_mail --ended since1H
    """,
)  # fmt: skip


# on queues


def _queue_option(parser):
    parser.add_argument('--queue', metavar='NAME', default='', help="default: ''")


def _pause_arguments(parser):
    _queue_option(parser)
    parser.add_argument('--until', metavar='TIME', help='an interval such as 30M, or an instant')


def _say_json_or(args, found, text):
    if args.json:
        print_json(found)
    else:
        print(text)


def _pause(args):
    found = answer(args, 'pause', True, queue=args.queue, until=args.until)
    until = '' if args.until is None else f' until {found["until"]}'
    _say_json_or(args, found, f'queue {shown_name(args.queue)} is paused{until}')


def _unpause(args):
    found = answer(args, 'unpause', True, queue=args.queue)
    _say_json_or(args, found, f'queue {shown_name(args.queue)} hands out jobs again')


pause = Command(
    'Let a queue hand out no jobs; those that run go on.',
    'zodbjobs pause zeo://localhost:9991 --queue mail --until 30M',
    _pause, _pause_arguments,
)  # fmt: skip
unpause = Command(
    'Let a queue hand out jobs again.',
    'zodbjobs unpause zeo://localhost:9991 --queue mail',
    _unpause, _queue_option,
)  # fmt: skip


def _clear_arguments(parser):
    _queue_option(parser)
    parser.add_argument('--yes', action='store_true', help='do not ask')


def _clear(args):
    with opened(only_address(args), writes=True) as source:
        number = source.ask('count', states=['pending'], queue=args.queue)['count']
        wanted = {'deed': 'remove', 'states': ['pending'], 'queue': args.queue}
        done = {'count': 0}
        if number and confirmed(args, f'take {number} waiting jobs out?'):
            done = _in_batches(source, wanted, None)
    _say_json_or(args, {'count': done['count']}, f'{done["count"]} jobs were taken out')


clear = Command(
    'Take all waiting jobs out of a queue: they will not run, and their callbacks neither.',
    'zodbjobs clear zeo://localhost:9991 --queue mail --yes',
    _clear, _clear_arguments,
)  # fmt: skip


def _words(args, count, what):
    """(address, exactly so many other words)."""
    address, words = split_words(args)
    if not count[0] <= len(words) <= count[1]:
        raise CommandError(what, WRONGLY_ASKED)
    return address, words


def _quota_arguments(parser):
    _queue_option(parser)
    parser.add_argument('--remove', action='store_true', help='jobs that name it run without')


def _quota(args):
    address, words = _words(args, (1, 2), 'name a quota, and the size that it shall have')
    size = whole(words[1]) if len(words) > 1 else None
    with opened(address, writes=True) as source:
        found = source.ask(
            'set_quota', name=words[0], size=size, queue=args.queue, remove=args.remove
        )
    text = 'is removed' if found['size'] is None else f'has the size {found["size"]}'
    _say_json_or(args, found, f'quota {found["quota"]} {text}')


def whole(text):
    """A whole number from 0 on.  Raises CommandError."""
    if not text.isdigit():
        raise CommandError(f'{text!r} is no whole number from 0 on', WRONGLY_ASKED)
    return int(text)


quota = Command(
    'Make a quota, or set how many jobs that name it may run at once.',
    'zodbjobs quota zeo://localhost:9991 index 3\nzodbjobs quota index --remove',
    _quota, _quota_arguments, 'NAME [SIZE]', 'the quota, and its size',
)  # fmt: skip


def _agent_arguments(parser):
    add = parser.add_argument
    add('--size', metavar='N', help='how many jobs at a time')
    add('--channel', action='append', metavar='C', help='take the jobs of these channels only')
    add('--all-channels', action='store_true', help='take the jobs of all channels')
    add('--queue', metavar='GLOB')
    add('--dispatcher', metavar='UUID', help='or its first digits')


def _agent(args):
    address, words = _words(args, (1, 1), 'name the agent, such as main')
    size = None if args.size is None else whole(args.size)
    channels = [] if args.all_channels else args.channel
    with opened(address, writes=True) as source:
        found = source.ask(
            'set_agent', agent=words[0], size=size, channels=channels, queue=args.queue,
            dispatcher=args.dispatcher,
        )  # fmt: skip
    lines = [
        f'agent {row["agent"]} of dispatcher {row["dispatcher"][:8]}, queue'
        f' {shown_name(row["queue"])}: size {row["size"]}, channels'
        f' {"all" if row["channels"] is None else " ".join(row["channels"])}'
        for row in found
    ]
    _say_json_or(args, found, '\n'.join(lines))


agent = Command(
    'Set the size or the channels of the agents of a name; running jobs go on.',
    'zodbjobs agent zeo://localhost:9991 main --size 8\nzodbjobs agent main --channel mail',
    _agent, _agent_arguments, 'NAME', 'the name of the agents',
)  # fmt: skip


# on the database


def _put_arguments(parser):
    _queue_option(parser)
    add = parser.add_argument
    add('--kwargs', metavar='JSON', type=json.loads, help='keyword arguments, a JSON object')
    add('--delay', type=float, metavar='S', help='seconds until it may start')
    add('--priority', type=int, metavar='N', help='smaller is sooner')
    add('--channel', metavar='C')
    add('--quota', action='append', metavar='NAME', help='a quota it needs a place of')
    add('--id', metavar='ID', help='unique among unfinished jobs')
    add('--retries', type=int, metavar='N')
    add_path(parser)


def _put(args):
    import_paths(args)
    address, words = split_words(args)
    if not words or ':' not in words[0]:
        raise CommandError('name a function as module:function', WRONGLY_ASKED)
    names = ('delay', 'priority', 'channel', 'id', 'retries')
    options = {name: getattr(args, name) for name in names}
    with opened(address, writes=True) as source:
        found = source.ask(
            'put', call=words[0], args=[value_of(word) for word in words[1:]],
            kwargs=args.kwargs, queue=args.queue, quota_names=args.quota, **options,
        )  # fmt: skip
    _say_json_or(args, found, found['oid'])


def value_of(word):
    """A JSON value if the word is one, else the word itself."""
    try:
        return json.loads(word)
    except ValueError:
        return word


put = Command(
    """
    Put a job that calls a function, and print its number.  Arguments are JSON values; a word that
    is none is a text.  The function must be importable here (--path says where it is), or in the
    process that has the file open.
    """,
    """
    zodbjobs put zeo://localhost:9991 myapp.tasks:reindex 7 '"all"' --delay 60
    zodbjobs put myapp.tasks:nightly --id nightly
    """,
    _put, _put_arguments, 'MODULE:FUNCTION [ARG ...]', 'what to call, and with what',
)  # fmt: skip


def _prune_arguments(parser):
    add = parser.add_argument
    add('--dry-run', action='store_true', help='only say what would be forgotten')
    add('--stale-days', type=float, metavar='N', help='also dispatchers that ended so long ago')
    add('--dispatcher', metavar='UUID', help='only the record of this dispatcher, with its history')
    add('--keep-days', type=float, metavar='N', help='from now on keep finished jobs so long')
    add('--keep-failed-days', type=float, metavar='N', help='and those that failed')
    add('--keep-count', type=int, metavar='N', help='and never more than this, for each agent')


def _prune(args):
    retention = {
        'days': args.keep_days, 'failed_days': args.keep_failed_days, 'count': args.keep_count
    }  # fmt: skip
    wanted = {'stale_days': args.stale_days, 'dispatcher': args.dispatcher}
    total = {'jobs': 0, 'dispatchers': []}
    with opened(only_address(args), writes=not args.dry_run) as source:
        if args.dry_run:
            total = source.ask('prune', preview=True, **wanted)
        else:
            if any(value is not None for value in retention.values()):
                source.ask('set_retention', **retention)
            for _ in range(BATCHES):
                found = source.ask('prune', **wanted)
                total['jobs'] += found['jobs']
                total['dispatchers'] += found['dispatchers']
                if not found['more']:
                    break
    would = 'would be ' if args.dry_run else ''
    count = len(total['dispatchers'])
    text = f'{total["jobs"]} finished jobs and {count} records of dispatchers {would}forgotten'
    _say_json_or(args, total, text)


prune = Command(
    """
    Forget finished jobs that were kept long enough, and records of dispatchers that ended a month
    ago and of which nothing is left.  Dispatchers do that by themselves; this does it now.
    """,
    """
    zodbjobs prune zeo://localhost:9991 --dry-run
    zodbjobs prune --keep-days 2 --keep-failed-days 14
    """,
    _prune, _prune_arguments,
)  # fmt: skip


def _pack_arguments(parser):
    parser.add_argument('--days', type=float, default=1, metavar='N', help='kept; default: 1')


def _pack(args):
    from zodbjobs.cli.output import bytes_text

    found = answer(args, 'pack', True, days=args.days)
    before, after = bytes_text(found['before']), bytes_text(found['after'])
    _say_json_or(args, found, f'packed: {before} before, {after} now')


pack = Command(
    """
    Pack the database: give back the space of what is no longer referred to, and of states older
    than a day.  Workers may go on meanwhile, a little slower.  Once a day is often enough;
    `zodbjobs run --pack-every 24H` does it by itself.
    """,
    'zodbjobs pack zeo://localhost:9991\nzodbjobs pack var/Data.fs --days 7',
    _pack, _pack_arguments,
)  # fmt: skip
