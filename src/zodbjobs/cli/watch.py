"""The commands that keep looking: ``top`` and ``tail``.

Each looks again every second or so, in transactions that only read, and ends
with Ctrl-C.  Runs in the main thread.
"""

import contextlib
import sys
import threading

from zodbjobs import clock
from zodbjobs.cli import tables
from zodbjobs.cli.arguments import positive, seconds
from zodbjobs.cli.output import print_json
from zodbjobs.cli.see import JOB_COLUMNS, QUEUE_COLUMNS, Command, job_lines
from zodbjobs.cli.source import opened, split_words

#: Jobs of each kind that `top` shows.
SHOWN = 12

#: Ended jobs between two looks of `tail` that are told.
TOLD = 500

#: Characters of a bar of progress.
BAR = 20


def pause(seconds):
    """Wait; Ctrl-C ends it."""
    threading.Event().wait(seconds)


# top


def _top_arguments(parser):
    add = parser.add_argument
    add('--interval', type=seconds, default=1, metavar='S', help='default: 1 second')
    add('--once', action='store_true', help='one look; so it is where the output is piped')
    add('--looks', type=positive, metavar='N', help='end after so many looks')


def _top(args):
    address, words = split_words(args)
    with opened(address or (words[0] if words else None)) as source:
        if args.json:
            print_json(_look(source))
        elif args.once or not sys.stdout.isatty():
            print(_plain_top(_look(source), None, source.shown))
        else:
            with contextlib.suppress(KeyboardInterrupt):
                _live_top(source, args)


def _look(source):
    """What `top` shows, as plain values."""
    found = source.ask('status')
    for name, states in (
        ('running', ['active', 'assigned', 'callbacks']),
        ('due', ['due']),
        ('ended', ['completed']),
    ):
        found[name] = source.ask('jobs', states=states, limit=SHOWN)['jobs']
    return found | {'at': clock.micros()}


def _live_top(source, args):
    from rich.console import Console
    from rich.live import Live

    console = Console()
    former, looks = None, 0
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while args.looks is None or looks < args.looks:
            found = _look(source)
            live.update(_screen(found, former, source.shown), refresh=True)
            former, looks = found, looks + 1
            pause(args.interval)


def _headline(found, former, shown):
    sums = {
        name: sum(queue[name] for queue in found['queues'])
        for name in ('waiting', 'held', 'running', 'finished', 'threads')
    }
    rate = ''
    if former is not None:
        done = sums['finished'] - sum(queue['finished'] for queue in former['queues'])
        seconds = (found['at'] - former['at']) / clock.SECOND
        rate = f'   {max(0, done) / seconds:.0f} a second' if seconds else ''
    return (
        f'{shown}   {sums["running"]} of {sums["threads"]} threads busy   {sums["waiting"]} wait'
        f'   {sums["held"]} held   {sums["finished"]} finished{rate}'
    )


def _parts(found):
    """(title, columns, rows) of the tables."""
    yield 'queues', QUEUE_COLUMNS, found['queues']
    yield 'running', _RUNNING_COLUMNS, found['running']
    yield 'next', JOB_COLUMNS[:7], found['due']
    yield 'ended', _ENDED_COLUMNS, found['ended']


def _plain_top(found, former, shown):
    texts = [_headline(found, former, shown)]
    texts += [tables._plain(*tables.cells_of(columns, rows), title) for title, columns, rows
              in _parts(found)]  # fmt: skip
    return '\n\n'.join(text.rstrip() for text in texts)


def _screen(found, former, shown):
    from rich.console import Group
    from rich.text import Text

    parts = [Text(_headline(found, former, shown), style='bold')]
    for title, columns, rows in _parts(found):
        if rows or title == 'running':
            parts.append(tables.rich_table(*tables.cells_of(columns, rows), title))
    return Group(*parts)


def bar(value):
    """'####------ 4/10 indexing' for progress whose total is known."""
    if not isinstance(value, dict):
        return ''
    done, total = value.get('done'), value.get('total')
    known = all(isinstance(number, (int, float)) for number in (done, total))
    if not known or not total:
        return tables.progress(value)
    filled = max(0, min(BAR, round(BAR * done / total)))
    return f'{"#" * filled}{"-" * (BAR - filled)} {tables.progress(value)}'


_RUNNING_COLUMNS = [
    ('JOB', lambda row: row['oid']),
    ('ID', lambda row: row['id']),
    ('CALL', lambda row: row['call']),
    ('QUEUE', lambda row: tables.name(row['queue'])),
    ('AGENT', lambda row: row.get('agent')),
    ('RUN', lambda row: tables.seconds(row.get('run_seconds'))),
    ('PROGRESS', lambda row: bar(row.get('progress'))),
]

_ENDED_COLUMNS = [
    ('JOB', lambda row: row['oid']),
    ('ID', lambda row: row['id']),
    ('STATE', lambda row: row['state']),
    ('CALL', lambda row: row['call']),
    ('ENDED', lambda row: tables.when(row.get('ended'))),
    ('WAIT', lambda row: tables.seconds(row.get('wait_seconds'))),
    ('RUN', lambda row: tables.seconds(row.get('run_seconds'))),
]

top = Command(
    'Show live how the queues stand, what runs and how far it is, what is next and what ended.',
    'zodbjobs top zeo://localhost:9991\nzodbjobs top var/Data.fs --once',
    _top, _top_arguments,
)  # fmt: skip


# tail


def _tail_arguments(parser):
    add = parser.add_argument
    add('--interval', type=seconds, default=0.5, metavar='S', help='default: 0.5 seconds')
    add('--looks', type=positive, metavar='N', help='end after so many looks')
    add('--queue', metavar='GLOB')
    add('--callable', metavar='GLOB')


def _tail(args):
    address, names = split_words(args)
    with opened(address) as source, contextlib.suppress(KeyboardInterrupt):
        if names:
            return _follow_one(source, names[0], args)
        _follow_all(source, args)
    return 0


def _follow_all(source, args):
    """A line for each job that starts, says how far it is, or ends."""
    filters = {
        name: value for name in ('queue', 'callable') if (value := getattr(args, name)) is not None
    }
    known, since, looks = {}, clock.now().isoformat(), 0
    while args.looks is None or looks < args.looks:
        found = source.ask(
            'jobs', states=['active', 'callbacks'], limit=TOLD, **filters
        )['jobs']  # fmt: skip
        found += reversed(
            source.ask('jobs', ended=since, states=['completed'], limit=TOLD, **filters)['jobs']
        )
        for row in found:
            state = (row['state'], row['started'], str(row['progress']))
            if known.get(row['oid']) != state:
                known[row['oid']] = state
                _print_change(row, args)
        if len(known) > 10 * TOLD:
            present = {row['oid'] for row in found}
            known = {oid: state for oid, state in known.items() if oid in present}
        looks += 1
        pause(args.interval)


def _print_change(row, args):
    if args.json:
        import json

        print(json.dumps(row), flush=True)
        return
    at = tables.when(row['ended']) or f'{clock.now():%H:%M:%S}'
    times = ''
    if row['ended']:
        times = f' after {tables.seconds(row["run_seconds"])}, waited ' + tables.seconds(
            row['wait_seconds']
        )
    name = f'{row["oid"]}' + (f' {row["id"]!r}' if row['id'] else '')
    line = f'{at} {row["state"]:<9} {name} {row["call"]}{times} {bar(row["progress"])}'
    print(line.rstrip(), flush=True)


def _follow_one(source, name, args):
    """Follow one job until it ends; the exit code says how."""
    told, lines, looks = None, 0, 0
    while True:
        job = source.ask('job', name=name)
        name = str(job['oid'])
        state = (job['state'], str(job.get('progress')), job.get('started'))
        if state != told:
            told = state
            _print_change(job, args)
        for at, level, text in job.get('log', ())[lines:]:
            print(f'  {at} {level} {text}', flush=True)
        lines = len(job.get('log', ()))
        looks += 1
        if job['state'] in ('succeeded', 'failed', 'cancelled', 'broken', 'new'):
            if not args.json:
                tables.print_facts([pair for pair in job_lines(job) if pair[0] == 'result'])
            return 0 if job['state'] == 'succeeded' else 1
        if looks == args.looks:
            return 0
        pause(args.interval)


tail = Command(
    """
    Tell of each job, in a line, when it starts, how far it is and how it ends.  With a JOB: follow
    that one, with what it logs, until it ends; exit code 1 if it did not succeed.
    """,
    """
    zodbjobs tail zeo://localhost:9991
    zodbjobs tail nightly
    zodbjobs tail --callable 'myapp.*' --json
    """,
    _tail, _tail_arguments, '[JOB]', 'the number or the id of one job',
)  # fmt: skip


# threads


def _threads_arguments(parser):
    parser.add_argument('--all', action='store_true', help='also threads that run no job')
    parser.add_argument('--dispatcher', metavar='UUID', help='or its first digits')


def _threads(args):
    from zodbjobs.monitor import doors

    found = []
    for door in doors.found():
        with contextlib.closing(door):
            if door.uuid.startswith(args.dispatcher or ''):
                rows = door.ask('threads', {'everything': args.all})
                found.append({'dispatcher': door.uuid, 'pid': door.pid, 'threads': rows})
    if args.json:
        print_json(found)
        return
    for each in found:
        print(f'dispatcher {each["dispatcher"]}, process {each["pid"]}')
        for row in each['threads']:
            what = row['name']
            if 'oid' in row:
                what = f'job {row["oid"]} {row["call"]} for {tables.seconds(row["seconds"])}'
            print(f'\nthread {row["thread"]}: {what}')
            print('\n'.join(row['stack']))
        print()
    if not found:
        print('no dispatcher of this user can be asked on this host')


threads = Command(
    'Show the jobs that run in the processes of this host, with the live stack of each thread.',
    'zodbjobs threads\nzodbjobs threads --all --json',
    _threads, _threads_arguments,
)  # fmt: skip
