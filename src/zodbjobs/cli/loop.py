"""``zodbjobs loop``: look at loops of ids, make one, and bump, add or remove some ids.

The first word says what: ``list stats check create bump add remove``.  Like the other
commands it asks a database that it opens, or the process that has it open.

Runs in the main thread; each deed is a transaction of its own.
"""

from zodbjobs.cli import tables
from zodbjobs.cli.arguments import seconds
from zodbjobs.cli.output import WRONGLY_ASKED, CommandError, describe, print_json
from zodbjobs.cli.source import add_source, opened, split_words
from zodbjobs.cli.tables import print_facts, print_table

#: What can be done -> what it is called when it is done; None for what only looks.
VERBS = {
    'list': None,
    'stats': None,
    'check': None,
    'create': 'created',
    'bump': 'bumped',
    'add': 'added',
    'remove': 'removed',
}


def span(text):
    """An argparse type: seconds, maybe below 0."""
    return -seconds(text[1:]) if text.startswith('-') else seconds(text)


def span_or_range(text):
    """An argparse type: seconds, or LEAST:MOST to draw between."""
    least, colon, most = text.partition(':')
    return (span(least), span(most)) if colon else span(text)


def add_arguments(parser):
    """See `zodbjobs.cli.main`."""
    describe(
        parser,
        """
        Look at loops: `list` them all; `stats` of one; `check` how ids stand.  Or `create` one; or
        `bump`, `add` or `remove` ids.  A loop is named by its key in the mapping at
        'zodbjobs.loops' in the root, or by its path from the root, such as /app/users.  Ids are
        read as those of the loop are: texts, or numbers.
        """,
        """
        zodbjobs loop list zeo://localhost:9991
        zodbjobs loop stats Data.fs users
        zodbjobs loop check Data.fs users 17 4711
        zodbjobs loop check Data.fs users --failing
        zodbjobs loop bump Data.fs users 17 --lock-for=-3600
        zodbjobs loop bump Data.fs users 17 18 19 --lock-for 60:600
        zodbjobs loop create Data.fs pages
        zodbjobs loop add Data.fs /app/users 18 19 --updated
        """,
    )
    parser.add_argument('verb', choices=VERBS, metavar='VERB', help=' '.join(VERBS))
    add_source(parser, '[LOOP [ID ...]]', 'the loop and ids of it')
    add = parser.add_argument
    add('--failing', action='store_true', help='check: those that workers did not finish')
    add('--lock-for', type=span_or_range, metavar='S', default=0,
        help='bump: first after so many seconds; LEAST:MOST draws for each id')  # fmt: skip
    add('--take-over', action='store_true', help='bump: also from a worker that has them now')
    add('--updated', action='store_true', help='add: as if they were updated just now')


def main(args):
    """See `zodbjobs.cli.main`."""
    address, words = split_words(args)
    name, ids = (words[0], words[1:]) if words else (None, [])
    if name is None and args.verb != 'list':
        raise CommandError(f'loop {args.verb}: which loop?', WRONGLY_ASKED)
    if args.verb == 'create' and ids:
        raise CommandError('loop create: one loop, without ids', WRONGLY_ASKED)
    if VERBS[args.verb] and not ids and args.verb != 'create':
        raise CommandError(f'loop {args.verb}: which ids?', WRONGLY_ASKED)
    question, show, more = _asked(args, name, ids)
    with opened(address, writes=bool(VERBS[args.verb])) as source:
        answer = source.ask(question, **more)
    print_json(answer) if args.json else show(answer)
    return 0


def _asked(args, name, ids):
    """(the question, what shows the answer, its arguments)."""
    if args.verb == 'list':
        return 'loops', _show_loops, {}
    if args.verb == 'stats':
        return 'loop_stats', _show_stats, {'name': name}
    if args.verb == 'check':
        more = {'name': name, 'ids': ids, 'failing': args.failing}
        return 'loop_check', lambda rows: print_table(ID_COLUMNS, rows), more
    if args.verb == 'create':
        return 'loop_create', lambda answer: print(f'{answer["name"]} created'), {'name': name}
    more = {'name': name, 'ids': ids}
    if args.verb == 'bump':
        more |= {'lock_for': args.lock_for, 'take_over': args.take_over}
    if args.verb == 'add':
        more['updated'] = args.updated
    past = VERBS[args.verb]
    return f'loop_{args.verb}', lambda answer: print(f'{answer["count"]} {past}'), more


ID_COLUMNS = [
    ('ID', lambda row: row['id']),
    ('UPDATED', lambda row: _ago(row['updated_seconds'])),
    ('LOCK', lambda row: _lock(row['locked_seconds'])),
    ('FAILURES', lambda row: row['failures'] or None),
]

LOOP_COLUMNS = [
    ('LOOP', lambda row: row['name']),
    ('IDS', lambda row: row['total']),
    ('NEVER UPDATED', lambda row: row['never_updated']),
    ('LOCKED', lambda row: row['locked']),
    ('BUMPED', lambda row: row['bumped']),
    ('FAILING', lambda row: row['failing']),
    ('OLDEST', lambda row: tables.seconds(row['oldest_seconds'])),
    ('RUNNER', lambda row: '; '.join(map(_runner, row['runners']))),
]


def _ago(value):
    return 'never' if value is None else f'{tables.seconds(max(0, value))} ago'


def _lock(value):
    if value is None:
        return None
    return f'{tables.seconds(value)} left' if value > 0 else f'ended {_ago(-value)}'


def _runner(runner):
    late = runner['late_seconds']
    state = f'late by {tables.seconds(late)}' if late else f'{runner["jobs"]} jobs'
    return f'{runner["call"]}: {state}'


def _show_loops(rows):
    print_table(LOOP_COLUMNS, rows)


def _show_stats(stats):
    facts = []
    for name, value in stats.items():
        if name == 'runners':
            facts += [('runner', _runner(runner)) for runner in value]
        elif name.endswith('_time') or name == 'oldest_seconds':
            facts.append((name.replace('_', ' '), tables.seconds(value)))
        else:
            facts.append((name.replace('_', ' '), value))
    print_facts(facts)
