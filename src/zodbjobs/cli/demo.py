"""``zodbjobs demo``: make an index of Python sources, with jobs.

The first part of this module is what an application would write: four
functions that run as jobs, and one that puts them.  A job of its own reads
each file, a hundred side by side make a batch; what a batch has read goes into
the index in one piece, and never two batches at the same moment; when all
batches are done, their figures become a report.  The jobs, their results and the index
are in one database, so nothing is lost or done twice wherever the program is
stopped: the next run goes on.

The rest is the command: it opens the database, has somebody work on the jobs,
shows how far they are, and reports.  Jobs run in the workers' threads and
transactions, everything else in the main thread.
"""

import contextlib
import itertools
import logging
import os
import shutil
import sys
import textwrap

import transaction
from BTrees.OOBTree import OOBTree

from zodbjobs import Job, Queue, Queues, clock, parallel
from zodbjobs.cli.arguments import positive
from zodbjobs.cli.codeindex import CodeIndex, parse, scan
from zodbjobs.cli.output import (
    WRONGLY_ASKED,
    CommandError,
    bytes_text,
    describe,
    logging_to,
    percentile,
    print_json,
    progress,
    say,
    seconds_text,
)
from zodbjobs.cli.staff import pause, staffed
from zodbjobs.interfaces import COMPLETED, KEY, NEW
from zodbjobs.runtime.address import open_database

BATCH = 100  # files that enter the index in one transaction; half as many take 1.4 times the room
ONE_AT_A_TIME = 'demo index'  # the quota under which they do
FIRST = 1  # the priority of what others wait for


# The application: its jobs, and how they are put -----------------------------------------------


def update(index, files):
    """Read `files`, a list of (path, stamp), side by side; then put them into `index`."""
    last = Job(add_parsed, index)
    last.quota_names, last.priority = (ONE_AT_A_TIME,), FIRST
    reads = [Job(parse, index.folder, path, stamp) for path, stamp in files]
    for read in reads:
        read.failure_log_level = logging.INFO  # a broken file is no surprise
    return parallel(*reads, postprocess=last)


def add_parsed(index, *reads):
    """Put what the jobs `reads` have read into `index`; returns their figures."""
    index.add(read.result for read in reads if read.outcome == 'success')
    for read in reads:
        if read.outcome != 'success':
            folder, path, stamp = read.args
            index.add_broken(path, stamp, reason(read))
    return figures(reads)


def sum_up(*parts):
    """Add the figures of all batches to one report."""
    return total([part.result for part in parts if isinstance(part.result, dict)], parts)


def keep_report(index, report):
    """The callback of the whole run: `report` is what `sum_up` returned, or a Failure."""
    index.report = report


def put_update(queue, index, limit=None):
    """Put the jobs that bring `index` up to date with its folder, or its first `limit` files.

    Returns the job that stands for all of them, or None if nothing has changed.
    """
    found = dict(itertools.islice(scan(index.folder).items(), limit))
    changed, gone = index.changes(found)
    parts = [Job(update, index, [(path, found[path]) for path in some]) for some in cut(changed)]
    if gone:
        parts.append(Job(index.remove, gone))
        parts[-1].quota_names = (ONE_AT_A_TIME,)
    if not parts:
        return None
    index.run = queue.put(parallel(*parts, postprocess=sum_up))
    index.run.addCallback(Job(keep_report, index))
    return index.run


def cut(things):
    """`things` in lists of `BATCH`."""
    return [things[start : start + BATCH] for start in range(0, len(things), BATCH)]


# Figures: how it went, as plain values that can be stored and added ----------------------------


def reason(job):
    """Why `job` failed, in a line."""
    return f'{job.result.type.__name__}: {job.result.getErrorMessage()}'


def figures(reads):
    """How the jobs of one batch went."""
    ran = [read for read in reads if read.active_start and read.active_end]  # not: cancelled
    overhead = 2 * [clock.micros()]  # `update` and `add_parsed` are jobs, too
    return {
        'broken': [(read.args[1], reason(read)) for read in reads if read.outcome != 'success'],
        'ends': [clock.micros_of(read.active_end) for read in ran] + overhead,
        'waits': [(read.active_start - read.begin_after).total_seconds() for read in ran],
        'retried': sum(read.attempts - 1 + read.interruptions for read in ran),
        'conflicts': sum(read.conflicts for read in reads),
        'lost': [],
    }


def total(batches, parts=()):
    """The sum of several `figures`; `parts` are the jobs they are the results of."""
    added = {name: [] for name in ('broken', 'ends', 'waits', 'lost')}
    for name, values in added.items():
        for batch in batches:
            values.extend(batch[name])
    if parts:
        added['ends'] += 3 * [clock.micros()]  # `parallel`, `sum_up` and `keep_report`
        added['lost'] += [reason(part) for part in parts if part.outcome != 'success']
    for name in ('retried', 'conflicts'):
        added[name] = sum(batch[name] for batch in batches)
    return added


# The command -----------------------------------------------------------------------------------

LIBRARY = os.path.dirname(os.__file__)
DATABASE = os.path.join('var', 'demo', 'Data.fs')
INDEXES = 'codeindex'  # key in the root: a mapping of folder -> CodeIndex
CACHE_SIZE = 20_000  # objects for each connection: a batch touches some ten thousand
TICK_SECONDS = 0.2  # between two looks at how far the jobs are
PROBES = 20  # jobs put one by one when all is done, to time how a job starts
PROBE_PAUSE_SECONDS = 0.005  # between two looks whether it is done
PROBE_SECONDS = 5  # none takes so long; then there is no figure
LISTED = 5  # broken files that the report names; --json names all
WHY_LENGTH = 70  # characters


def add_arguments(parser):
    """See `zodbjobs.cli.main`."""
    describe(
        parser,
        """
        Make a full-text and symbol index of a folder of Python sources, by default the standard
        library of this Python: a job for each file, in a database of its own.  Run it again and
        only what has changed is read.  Ctrl-C stops it; the next run goes on where it stopped.
        """,
        """
        zodbjobs demo                            the standard library
        zodbjobs demo ~/src/project --threads 8  another folder
        zodbjobs demo --workers 2                the same, in two processes on a ZEO server
        zodbjobs demo search JSONDecoder         where is that?
        """,
    )
    parser.usage = 'zodbjobs demo [PATH] [options]\n       zodbjobs demo search WORD... [options]'
    add = parser.add_argument
    add('words', nargs='*', metavar='PATH', help=f'the folder to index (default: {LIBRARY})')
    add('--db', metavar='FILE', default=DATABASE, help='the database (default: %(default)s)')
    add('--threads', type=positive, metavar='N', default=2, help='per process (default: 2)')
    add('--workers', type=positive, metavar='N', help='use N processes on a ZEO server')
    add('--fresh', action='store_true', help='begin with a new database')
    add('--limit', type=positive, metavar='N', help='index N files only; search: N answers')
    add('--plain', action='store_true', help='lines of progress instead of a bar')
    add('--json', action='store_true', help='print the report, or the answers, as JSON')


def main(args):
    """See `zodbjobs.cli.main`."""
    if args.words[:1] == ['search']:
        return search(args)
    if len(args.words) > 1:
        raise CommandError(f'one folder at a time, not {len(args.words)}', WRONGLY_ASKED)
    folder = os.path.realpath(args.words[0] if args.words else LIBRARY)
    if not os.path.isdir(folder):
        raise CommandError(f'there is no folder {folder}', WRONGLY_ASKED)
    make_database(args.db, folder, args.fresh)
    with contextlib.ExitStack() as stack:
        stack.enter_context(logging_to(os.path.join(os.path.dirname(args.db), 'demo.log')))
        staff = stack.enter_context(
            staffed(args.db, args.threads, args.workers, CACHE_SIZE, update.__module__)
        )
        desk = stack.enter_context(contextlib.closing(Desk(staff.db, folder)))
        report = work(desk, staff, args)
    report['database'] = {'file': args.db, 'bytes': os.path.getsize(args.db)}
    print_json(report) if args.json else print_report(report)
    return 1 if report['lost'] else 0


def work(desk, staff, args):
    """Do what the last run has left, then what has changed since; returns the report."""
    started, figures = clock.micros(), []
    try:
        if desk.is_unfinished():
            say(f'going on where the last run stopped: {desk.done()} of {desk.size()} files')
            figures.append(watch(desk, staff, args.plain))
        if desk.put(args.limit):
            figures.append(watch(desk, staff, args.plain))
    except KeyboardInterrupt:
        say('stopping: what is being read is finished, the rest waits in the database')
        raise
    if not figures:
        say('nothing has changed')
    seconds = (clock.micros() - started) / clock.SECOND
    return desk.report(total(figures), started, seconds)


def watch(desk, staff, plain):
    """Show how far the jobs are until they are done; returns the figures.

    Raises CommandError if they failed as a whole or nobody is there to work.
    """
    with progress('files', desk.size(), plain) as show:
        while desk.is_unfinished():
            show.advance(desk.done(), desk.note())
            staff.check()
            pause(TICK_SECONDS)
        show.advance(desk.done())
    return desk.figures()


class Desk:
    """What the main thread sees of the database: the index of a folder, and its jobs.

    Each method is a transaction of its own, on one connection.
    """

    def __init__(self, db, folder):
        self.transactions = transaction.TransactionManager()
        self.root = db.open(self.transactions).root()
        self.folder = folder

    def close(self):
        self.transactions.abort()
        self.root._p_jar.close()

    @property
    def index(self):
        return self.root[INDEXES][self.folder]

    @property
    def queue(self):
        return self.root[KEY]['']

    def put(self, limit):
        """Put the jobs for what has changed; whether there was something."""
        with self.transactions:
            return put_update(self.queue, self.index, limit) is not None

    def is_unfinished(self):
        """Whether the jobs that were put, now or by an earlier run, are not all done."""
        with self.transactions:
            run = self.index.run
            return run is not None and run.status not in (COMPLETED, NEW)  # new: taken out

    def size(self):
        """How many files the jobs that were put are about."""
        with self.transactions:
            return sum(len(part.args[-1]) for part in self.index.run.args)

    def done(self):
        """How many of them are done with, counted in whole batches."""
        with self.transactions:
            parts = self.index.run.args
            return sum(len(part.args[-1]) for part in parts if part.status == COMPLETED)

    def note(self):
        """A few words on what is going on."""
        with self.transactions:
            return f'{len(self.queue)} jobs wait'

    def figures(self):
        """The figures of the jobs that were put, when they are done."""
        with self.transactions:
            if not isinstance(self.index.report, dict):
                raise CommandError(f'the jobs failed: {reason(self.index.run)}')
            return self.index.report

    def report(self, figures, started, seconds):
        """Everything the command has to tell, as plain values; times `nothing`, too."""
        done = sum(end >= started for end in figures['ends'])
        starts, turns = self.start_times() if done else [], sorted(figures['waits'])
        with self.transactions:
            word = self.index.sample_word()
            return {
                'folder': self.folder,
                'index': self.index.summary(),
                'jobs': {
                    'done': done,
                    'failed': len(figures['broken']) + len(figures['lost']),
                    'retried': figures['retried'],
                    'conflicts': figures['conflicts'],
                    'seconds': round(seconds, 3),
                    'per second': round(done / seconds, 1),
                },
                'put to start': {'p50': percentile(starts, 0.5), 'p95': percentile(starts, 0.95)},
                'waited for a turn': {
                    'p50': percentile(turns, 0.5),
                    'p95': percentile(turns, 0.95),
                },
                'broken': self.index.broken(),
                'lost': figures['lost'],
                'sample': {'word': word, 'hits': answers(self.index, [word or ''], LISTED)},
            }

    def start_times(self):
        """Seconds from put to start of `PROBES` jobs, put one at a time; sorted."""
        waits = []
        for _ in range(PROBES):
            with self.transactions:
                job = self.queue.put(nothing)
            deadline = clock.monotonic() + PROBE_SECONDS
            while not self.is_done(job):
                if clock.monotonic() > deadline:
                    return []
                pause(PROBE_PAUSE_SECONDS)
            waits.append((job.active_start - job.begin_after).total_seconds())
        return sorted(waits)

    def is_done(self, job):
        with self.transactions:
            return job.status == COMPLETED


def nothing():
    """The job that `Desk.start_times` puts."""


# Opening, asking, telling


def make_database(path, folder, fresh):
    """See that the database has a queue, a quota and an index of `folder`.

    `fresh`: begin with a new file.  Raises CommandError, AddressError.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    if fresh and os.path.exists(path):
        remove_database(path)
    with contextlib.closing(open_database(f'file:{path}')) as db:
        with db.transaction() as connection:
            root = connection.root()
            if KEY not in root:
                root[KEY] = Queues()
            if '' not in root[KEY]:
                root[KEY][''] = Queue()
            if ONE_AT_A_TIME not in root[KEY][''].quotas:
                root[KEY][''].quotas.create(ONE_AT_A_TIME)
            if INDEXES not in root:
                root[INDEXES] = OOBTree()
            if folder not in root[INDEXES]:
                root[INDEXES][folder] = CodeIndex(folder)


def remove_database(path):
    """Remove the files of the database at `path`, if it is one of the demo's."""
    with contextlib.closing(open_database(f'file:{path}')) as db:
        with db.transaction() as connection:
            others = set(connection.root()) - {KEY, INDEXES}
    if others:
        raise CommandError(
            f'{path} holds more than this demo ({", ".join(sorted(others))}), so it is not removed;'
            f' name another file with --db',
            WRONGLY_ASKED,
        )
    for ending in ('', '.index', '.lock', '.old', '.tmp'):
        with contextlib.suppress(FileNotFoundError):
            os.remove(path + ending)


def search(args):
    """``zodbjobs demo search WORD...``: from all folders in the database."""
    words, limit = args.words[1:], args.limit or 10
    if not words:
        raise CommandError('search for what?  zodbjobs demo search WORD...', WRONGLY_ASKED)
    if not os.path.exists(args.db):
        raise CommandError(f'there is no {args.db}: run "zodbjobs demo" first', WRONGLY_ASKED)
    # A reader needs no lock, so this answers while the index is being made.
    with contextlib.closing(open_database(f'file:{args.db}?read_only=1')) as db:
        with db.transaction() as connection:
            indexes = connection.root().get(INDEXES, {}).values()
            hits = [hit for index in indexes for hit in answers(index, words, limit)][:limit]
    if args.json:
        print_json(hits)
    else:
        print_hits(hits)
    if not hits:
        say(f'nothing found for {" ".join(words)}')
    return 0 if hits else 1


def answers(index, words, limit):
    """The hits of a search, as plain values."""
    hits = index.search(words, limit)
    return [{'file': os.path.join(index.folder, hit.path), **hit._asdict()} for hit in hits]


def print_hits(hits, indent=''):
    for hit in hits:
        place = hit['path'] if hit['line'] is None else f'{hit["path"]}:{hit["line"]}'
        print(f'{indent}{place:<40}  {hit["kind"]} {hit["name"] or ""}'.rstrip())


def print_report(report):
    """The report, for people."""
    index, jobs, database = report['index'], report['jobs'], report['database']
    start, turn = report['put to start'], report['waited for a turn']
    counts = ', '.join(f'{index[name]:,} {name}' for name in ('files', 'lines', 'symbols', 'words'))
    print(f'index         {counts}')
    print(
        f'jobs          {jobs["done"]} done, {jobs["failed"]} failed,'
        f' {jobs["retried"]} retried, {jobs["conflicts"]} conflicts'
    )
    if jobs['done']:
        print(f'speed         {jobs["per second"]} jobs/s for {seconds_text(jobs["seconds"])}')
    if start['p50'] is not None:
        print(
            f'put to start  p50 {seconds_text(start["p50"])}, p95 {seconds_text(start["p95"])}'
            f' ({PROBES} jobs, one at a time)'
        )
    if turn['p50'] is not None:
        print(
            f'turn          p50 {seconds_text(turn["p50"])}, p95 {seconds_text(turn["p95"])}'
            f' (all at once: they wait for each other)'
        )
    print(f'database      {bytes_text(database["bytes"])} in {database["file"]}')
    print_broken(report['broken'])
    for why in report['lost']:
        print(f'lost a batch: {why}')
    if report['sample']['word']:
        print(f'\n{called_as()} demo search {report["sample"]["word"]}')
        print_hits(report['sample']['hits'], indent='  ')


def called_as():
    """What a user types to call this command."""
    name = os.path.basename(sys.argv[0])
    return sys.argv[0] if name == 'zodbjobs' and shutil.which(name) is None else 'zodbjobs'


def print_broken(broken):
    if broken:
        print(f'not readable  {len(broken)} files:')
    for path, why in broken[:LISTED]:
        print(f'  {path}: {textwrap.shorten(why, WHY_LENGTH)}')
    if len(broken) > LISTED:
        print(f'  ... and {len(broken) - LISTED} more (--json lists all)')
