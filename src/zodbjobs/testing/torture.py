"""Torture: real processes, killed, stopped and cut off at random, and a count at the end.

``python -m zodbjobs.testing.torture --seconds 600`` (``make torture``) runs
workers (``zodbjobs run``) on FileStorage, ZEO and PostgreSQL, each for a third
of the time.  While jobs of every kind come in, it kills workers with SIGKILL,
stops them with SIGSTOP and lets them go on, asks them to end with SIGTERM,
kills the ZEO server and starts it again, and cuts PostgreSQL's connections or
makes it crash and recover.  When the time is over it lets the work end in
peace, and counts in the database:

* lost: jobs that have not come to an end;
* doubled: jobs whose effect is there more than once, or more than their part;
* early: jobs that began before their date;
* leaked: entries that agents still hold, places in quotas of jobs that ended;
* longest rescue: from the kill of a worker until its last job was taken up;
* first job: from the start of a worker's process, after a kill, until its first job began.

It runs in the main thread; exit code 0 if lost, doubled, early and leaked are 0.
What the workers, the servers and this process say is shown if they are not.
"""

import argparse
import contextlib
import functools
import importlib
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time

import transaction
from BTrees.OOBTree import OOBTree
from persistent import Persistent

from zodbjobs import Job, NeverRetry, Queue, Queues, clock, parallel, serial
from zodbjobs.interfaces import COMPLETED, KEY, AbortedError
from zodbjobs.runtime import trouble
from zodbjobs.testing.storages import (
    TestDatabase,
    close_database,
    file_database,
    postgres_database,
)

QUOTA = 'one at a time'
WORKERS = 3
THREADS = 3
PUT_EVERY_SECONDS = 0.25
CHAOS_SECONDS = (0.3, 2.0)  # between two blows
STOPPED_SECONDS = (0.5, 3.0)
SHOWN_FAULTS = 5
SHOWN_LINES = 60  # of the log
PEACE_SECONDS = 30  # without any job that ends, when the blows have ended
MOST_PEACE_SECONDS = 240  # for all of them to end
FILE_PEACE_SECONDS = 10  # of the lives in which a file's jobs end
FILE_LIFE_SECONDS = (0.2, 3.0)  # of the only worker on a FileStorage, from its first pass on
START_SECONDS = 60  # at most, until a worker serves


# What the jobs do: their effect is in the database, in an object of their own -----------------


class Effect(Persistent):
    """How often the work of one job was done."""

    count = 0
    told = 0
    parts = 1
    early_seconds = 0.0
    due = None

    def work(self, seconds):
        self.early_seconds = max(0.0, ((self.due or 0) - clock.micros()) / clock.SECOND)
        _busy(seconds)
        self.count += 1

    def tell(self, result):
        self.told += 1


def _busy(seconds):
    """Take time in the worker's process, as a call to another service would."""
    import threading

    threading.Event().wait(seconds)


def part(effect_of, seconds):
    _busy(seconds)
    return effect_of


def sum_up(effect, *jobs):
    """The postprocess of a composite: its effect is one more."""
    effect.count += 1
    return [job.result for job in jobs]


# Who puts ------------------------------------------------------------------------------------


class Producer:
    """Puts jobs of every kind and keeps them, with their effects, in the root."""

    def __init__(self, random):
        self.random = random
        self.put_count = 0

    def put(self, db, count):
        """Put `count` jobs in one transaction; nothing is kept of one that fails."""
        manager = transaction.TransactionManager()
        connection = None
        try:
            connection = db.open(manager)
            manager.begin()
            root = connection.root()
            for number in range(self.put_count, self.put_count + count):
                effect = Effect()
                root['effects'][number] = (effect, self._put_one(root, effect))
            manager.commit()
        except Exception as error:
            with contextlib.suppress(Exception):
                manager.abort()
            if not (trouble.is_disconnected(error) or trouble.is_conflict(error)):
                raise
            if connection is not None and self._is_there(db):
                self.put_count += count
        else:
            self.put_count += count
        finally:
            if connection is not None:
                with contextlib.suppress(Exception):
                    connection.close()

    def _is_there(self, db):
        """Whether the transaction whose commit failed is in the database all the same."""
        while True:
            try:
                with contextlib.closing(db.open(transaction.TransactionManager())) as connection:
                    return self.put_count in connection.root()['effects']
            except Exception as error:
                if not trouble.is_disconnected(error):
                    raise
                time.sleep(0.2)

    def _put_one(self, root, effect):
        queue = root[KEY]['']
        seconds = self.random.choice([0.001, 0.01, 0.05, 0.3])
        kind = self.random.randrange(8)
        work = Job(effect.work, seconds)
        if kind == 0:
            effect.due = clock.micros() + clock.SECOND
            return queue.put(work, delay=1)
        if kind == 1:
            return queue.put(work, quota_names=(QUOTA,))
        if kind == 2:
            return queue.put(work, retry_policy_factory=NeverRetry)
        if kind == 3:
            parts = [Job(part, n, seconds) for n in range(3)]
            maker = self.random.choice([parallel, serial])
            return queue.put(maker(*parts, postprocess=Job(sum_up, effect)))
        job = queue.put(work, priority=self.random.choice([1, 2**31]))
        if kind == 4:
            job.addCallback(effect.tell)
        return job


# Who works -----------------------------------------------------------------------------------


class Workers:
    """Processes that run jobs of the database at `uri`."""

    def __init__(self, uri, count, log):
        self.uri = uri
        self.log = log
        self.read_from = os.stat(log.name).st_size
        self.killed = []  # microseconds of each SIGKILL
        self.started = []  # microseconds of each start
        self.processes = [self._start() for _ in range(count)]

    def _start(self):
        self.started.append(clock.micros())
        command = [sys.executable, '-m', 'zodbjobs', 'run', self.uri, '--threads', str(THREADS)]
        command += ['--path', __name__, '--grace', '2', '--poll-interval', '2']
        return subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def wait_until_one_serves(self):
        """Wait until one of them says that it has begun, as a busy machine takes its time."""
        end = clock.monotonic() + START_SECONDS
        while clock.monotonic() < end:
            with open(self.log.name, errors='replace') as said:
                said.seek(self.read_from)
                if 'begins to serve' in said.read():
                    return
            time.sleep(0.05)

    def again(self, index):
        self.processes[index].wait()
        self.processes[index] = self._start()

    def kill(self, index):
        self.processes[index].send_signal(signal.SIGKILL)
        self.killed.append(clock.micros())

    def end(self):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def blow(workers, chance, restart):
    """Hurt one worker, or the server; returns what was done."""
    index = chance.randrange(len(workers.processes))
    deed = chance.choice(['kill', 'kill', 'stop', 'term', 'server'])
    if deed == 'server':
        return restart(chance)
    if deed == 'stop':
        process = workers.processes[index]
        process.send_signal(signal.SIGSTOP)
        time.sleep(chance.uniform(*STOPPED_SECONDS))
        process.send_signal(signal.SIGCONT)
        return 'workers stopped for a while'
    if deed == 'term':
        workers.processes[index].terminate()
        workers.again(index)
        return 'workers told to end'
    workers.kill(index)
    workers.again(index)
    return 'workers killed'


# One storage ---------------------------------------------------------------------------------


def prepare(db):
    with contextlib.closing(db.open(transaction.TransactionManager())) as connection:
        root = connection.root()
        root[KEY] = Queues()
        root[KEY][''] = Queue()
        root[KEY][''].quotas.create(QUOTA)
        root['effects'] = OOBTree()
        connection.transaction_manager.commit()


class ServerProcess:
    """A ZEO server in a process of its own, which can be killed."""

    def __init__(self, folder, log):
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            address = f'127.0.0.1:{probe.getsockname()[1]}'
        self.uri = f'zeo://{address}?wait_timeout=30'
        path = os.path.join(folder, 'Data.fs')
        self._command = [sys.executable, '-m', 'ZEO.runzeo', '-f', path, '-a', address]
        self._log = log
        self.start()

    def start(self):
        self.process = subprocess.Popen(self._command, stdout=self._log, stderr=self._log)

    def restart(self, chance):
        """Kill it in the middle of whatever it does, and start it again."""
        self.process.kill()
        self.process.wait()
        self.start()
        return 'servers killed'

    def stop(self):
        self.process.terminate()
        self.process.wait()


@contextlib.contextmanager
def zeo_place(folder, log):
    """A database on a ZEO server that `restart` kills and starts again."""
    server = ServerProcess(folder, log)
    try:
        with contextlib.closing(TestDatabase('zeo', server.uri)) as place:
            place.restart = server.restart
            yield place
    finally:
        server.stop()


@contextlib.contextmanager
def postgres_place(folder, log):
    """A database on PostgreSQL; `restart` cuts its clients' connections, or lets it crash."""
    with postgres_database(folder) as place:

        def restart(chance):
            if chance.random() < 0.5:
                place.server.disconnect(place.name)
                return 'times all connections cut'
            place.server.restart()
            return 'servers killed'

        place.restart = restart
        yield place


def torture_shared(place_of, folder, seconds, chance, log):
    """Several workers on a server, and jobs that come in all the time."""
    with place_of(folder, log) as place:
        prepare(place.db)
        producer, blows = Producer(chance), {}
        workers = Workers(place.uri, WORKERS, log)
        try:
            end = clock.monotonic() + seconds
            next_blow = clock.monotonic() + 3
            while clock.monotonic() < end:
                producer.put(place.db, chance.randrange(1, 8))
                if clock.monotonic() >= next_blow:
                    deed = blow(workers, chance, place.restart)
                    blows[deed] = blows.get(deed, 0) + 1
                    next_blow = clock.monotonic() + chance.uniform(*CHAOS_SECONDS)
                time.sleep(PUT_EVERY_SECONDS)
            _wait_for_peace(place.db)
        finally:
            workers.end()
        return Count(place.db, producer, workers, blows)


def torture_file(folder, seconds, chance, log):
    """One worker after the other on a file; jobs are put between their lives."""
    with file_database(folder) as place:
        prepare(place.db)
        producer, blows, killed, started = Producer(chance), {}, [], []
        end = clock.monotonic() + seconds
        while clock.monotonic() < end:
            producer.put(place.db, 40)
            close_database(place.db)
            deed = _one_life(place.uri, chance, log, killed, started)
            blows[deed] = blows.get(deed, 0) + 1
            place.reopen()
        _end_in_peace(place, log)
        workers = Workers(place.uri, 0, log)
        workers.killed, workers.started = killed, started
        return Count(place.db, producer, workers, blows)


def _one_life(uri, chance, log, killed, started):
    workers = Workers(uri, 1, log)
    started += workers.started
    if chance.random() < 0.2:
        time.sleep(1)  # and it dies while it starts
    else:
        workers.wait_until_one_serves()
        time.sleep(chance.uniform(*FILE_LIFE_SECONDS))
    if chance.random() < 0.75:
        workers.kill(0)
        workers.processes[0].wait()
        killed += workers.killed
        return 'workers killed'
    workers.end()
    return 'workers told to end'


def _wait_for_peace(db):
    """Let the work end, as long as it gets less."""
    last = clock.monotonic() + MOST_PEACE_SECONDS
    left, end = None, 0.0
    while left != 0 and clock.monotonic() < last:
        now = _unfinished(db)
        if left is None or now < left:
            left, end = now, clock.monotonic() + PEACE_SECONDS
        elif clock.monotonic() > end:
            return
        time.sleep(0.5)


def _unfinished(db):
    """How many jobs have not come to their end, with those that they have put themselves."""
    with contextlib.closing(db.open(transaction.TransactionManager())) as connection:
        root = connection.root()
        count = sum(job.status != COMPLETED for _, job in root['effects'].values())
        return count and count + len(root[KEY][''])


def _end_in_peace(place, log):
    """Let workers work on a file, which nobody else can open, until all is done."""
    left = _unfinished(place.db)
    while left:
        close_database(place.db)
        workers = Workers(place.uri, 1, log)
        workers.wait_until_one_serves()
        time.sleep(FILE_PEACE_SECONDS)
        workers.end()
        place.reopen()
        former, left = left, _unfinished(place.db)
        if left >= former:
            return


class Count:
    """What is in the database in the end."""

    def __init__(self, db, producer, workers, blows):
        with contextlib.closing(db.open(transaction.TransactionManager())) as connection:
            root = connection.root()
            pairs = list(root['effects'].values())
            queue = root[KEY]['']
            self.done = sum(job.status == COMPLETED for _, job in pairs)
            self.lost = len(pairs) - self.done + (producer.put_count - len(pairs))
            self.doubled = sum(self._is_doubled(*pair) for pair in pairs)
            self.undone = sum(self._is_undone(*pair) for pair in pairs)
            self.early = sum(effect.early_seconds > 0 for effect, _ in pairs)
            self.parked = sum(_was_parked(job) for _, job in pairs)
            self.interrupted = sum(job.interruptions > 0 for _, job in pairs)
            self.leaked = self._leaks(queue)
            self.rescue_seconds = self._longest_rescue(pairs, workers.killed)
            self.first_seconds = self._first_jobs(pairs, workers)
            self.faults = [
                f'{job!r} is {job.status}: effect {effect.count}, told {effect.told}, {job.stats()}'
                for effect, job in pairs
                if job.status != COMPLETED
                or self._is_doubled(effect, job)
                or self._is_undone(effect, job)
            ]
        self.blows = blows

    @staticmethod
    def _is_doubled(effect, job):
        return effect.count > 1 or effect.told > 1

    @staticmethod
    def _is_undone(effect, job):
        """Completed without its effect, although its policy lets it run again."""
        return job.status == COMPLETED and effect.count == 0 and not _was_parked(job)

    @staticmethod
    def _leaks(queue):
        held = sum(len(agent) for record in queue.dispatchers.values() for agent in record.values())
        quota = queue.quotas[QUOTA]
        quota.clean()
        return held + len(quota)

    @staticmethod
    def _longest_rescue(pairs, killed):
        """Seconds from a kill until the last of that worker's jobs was taken up again."""
        longest = 0
        for _, job in pairs:
            if job.interruptions and job._active_start:
                before = [moment for moment in killed if moment < job._active_start]
                if before:
                    longest = max(longest, job._active_start - before[-1])
        return longest / clock.SECOND

    @staticmethod
    def _first_jobs(pairs, workers):
        """Seconds from each start of the only worker, after a kill, to its first job."""
        if len(workers.processes) > 1:
            return []  # the others go on meanwhile
        began = sorted(job._active_start for _, job in pairs if job._active_start)
        found = []
        for start in workers.started:
            if any(moment < start for moment in workers.killed):
                later = [moment for moment in began if moment > start]
                found += [(later[0] - start) / clock.SECOND] if later else []
        return sorted(found)

    @property
    def is_good(self):
        return not (self.lost or self.doubled or self.undone or self.early or self.leaked)

    def lines(self, kind):
        blows = ', '.join(f'{count} {deed}' for deed, count in sorted(self.blows.items()))
        yield f'{kind:9} crashes survived {sum(self.blows.values())}: {blows}'
        yield (
            f'{"":9} jobs done {self.done} ({self.interrupted} of them interrupted,'
            f' {self.parked} parked by NeverRetry)'
        )
        yield (
            f'{"":9} lost {self.lost}  doubled {self.doubled}  not done {self.undone}'
            f'  early {self.early}  leaked {self.leaked}'
            f'  longest rescue {self.rescue_seconds:.1f} s'
        )
        if self.first_seconds:
            median = self.first_seconds[len(self.first_seconds) // 2]
            yield (
                f'{"":9} first job after kill and start {median:.1f} s'
                f' (longest {self.first_seconds[-1]:.1f} s)'
            )
        yield from self.faults[:SHOWN_FAULTS]


def _was_parked(job):
    """Whether it may run once only, and ended as a failure that says so."""
    return (
        job.retry_policy_factory is NeverRetry
        and job.outcome == 'failure'
        and bool(
            job.result.check(
                AbortedError,
                'ZODB.POSException.ConflictError',
                'transaction.interfaces.TransientError',
            )
            or trouble.is_disconnected(job.result.value)
        )
    )


TORTURES = {
    'file': torture_file,
    'zeo': functools.partial(torture_shared, zeo_place),
    'postgres': functools.partial(torture_shared, postgres_place),
}


def main(argv=None):
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(prog='python -m zodbjobs.testing.torture', description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument('--seconds', type=float, default=600, help='in all (default: 600)')
    parser.add_argument('--storage', action='append', choices=sorted(TORTURES))
    parser.add_argument('--seed', type=int, default=None)
    parser.add_argument('--log', help='files for what all of them say begin so')
    args = parser.parse_args(argv)
    seed = random.randrange(10**6) if args.seed is None else args.seed
    kinds = args.storage or list(TORTURES)
    print(f'torture with --seed {seed}, {args.seconds:g} s', flush=True)
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            home = os.path.join(folder, kind)
            os.mkdir(home)
            chance = random.Random(f'{seed} {kind}')
            path = f'{args.log}.{kind}' if args.log else os.path.join(folder, f'{kind}.log')
            with logged_to(path) as log:
                count = TORTURES[kind](home, args.seconds / len(kinds), chance, log)
            print('\n'.join(count.lines(kind)), flush=True)
            if not count.is_good:
                show_end(path)
            good &= count.is_good
    print('good' if good else 'BAD')
    return 0 if good else 1


@contextlib.contextmanager
def logged_to(path):
    """A file for what the processes say; our own loggers, ZEO's for one, write there, too."""
    with open(path, 'a') as log:
        ours = logging.StreamHandler(log)
        ours.setFormatter(logging.Formatter('%(asctime)s torture %(name)s %(message)s'))
        logging.getLogger().addHandler(ours)
        try:
            yield log
        finally:
            logging.getLogger().removeHandler(ours)


def show_end(path):
    """Print the last of what was said; all of it is in the files that --log names."""
    with open(path, errors='replace') as log:
        lines = log.readlines()
    print(f'the log has {len(lines)} lines; it ends:')
    print(''.join(f'    {line}' for line in lines[-SHOWN_LINES:]), end='')


if __name__ == '__main__':
    # Under its own name: what is stored must be found by the workers
    sys.exit(importlib.import_module('zodbjobs.testing.torture').main())
