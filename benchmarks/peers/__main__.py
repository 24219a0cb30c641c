"""The command: ``python -m benchmarks.peers``, or ``make bench-peers ARGS='--only celery'``."""

import argparse
import contextlib
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import report, storages
from benchmarks.measure import percentile, raw_rate
from benchmarks.peers import systems
from benchmarks.peers.tick import STAMP
from benchmarks.publish import simple_table
from zodbjobs import clock

JSON = Path('var') / 'peers.json'

#: Seconds for a worker to begin its first job, and for all of them.
START_SECONDS, WORK_SECONDS = 30, 60

THREADS = 4

#: The first jobs of a worker are not counted: it is still getting up.
WARM_UP = 20
LATENCY_WARM_UP = 5

RAW_SECONDS = 0.3


class Missing(Exception):
    """A peer is not there, for the reason that the message gives."""


class Ticks:
    """The FIFO that all jobs write to, and what came out of it."""

    def __init__(self, folder):
        self.path = os.path.join(folder, 'ticks')
        os.mkfifo(self.path)
        self._fifo = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)  # so that it never ends
        self._rest = b''
        self.stamps = []

    def wait_for(self, count, seconds):
        """Read until `count` jobs have told; returns whether they have."""
        deadline = time.monotonic() + seconds
        while len(self.stamps) < count:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._fifo], [], [], left)[0]:
                return False
            self._rest += os.read(self._fifo, 65536)
            whole = len(self._rest) // STAMP.size * STAMP.size
            self.stamps += [stamp for (stamp,) in STAMP.iter_unpack(self._rest[:whole])]
            self._rest = self._rest[whole:]
        return True


class Peer:
    """One system on this machine: puts jobs, and has its own workers do them."""

    def __init__(self, system, environment):
        self.system = system
        self._environment = environment

    def measure(self, jobs, pulses):
        """One round: {'puts', 'jobs' (per second), 'latency' (seconds)}."""
        with tempfile.TemporaryDirectory(prefix='bench-') as folder:
            ticks = Ticks(folder)
            environment = self._environment | {'PEERS_FIFO': ticks.path}
            with self.system.fresh(environment):
                puts = self._drive(environment, 'put', jobs)
                with self._worker(environment):
                    done = ticks.wait_for(1, START_SECONDS) and ticks.wait_for(jobs, WORK_SECONDS)
                    if not done:
                        raise Missing(f'{len(ticks.stamps)} of {jobs} jobs were done')
                    counted = sorted(ticks.stamps)[WARM_UP:]
                    rate = (len(counted) - 1) * 1e9 / (counted[-1] - counted[0])
                    latency = None
                    if self.system.is_shared:
                        latency = self._latency(environment, ticks, pulses)
        return {'puts': puts, 'jobs': rate, 'latency': latency}

    def _latency(self, environment, ticks, pulses):
        """The median of the seconds from the call of a put to the start of the job."""
        ticks.stamps.clear()
        pulses += LATENCY_WARM_UP
        began = self._drive(environment, 'pulse', pulses)
        if not ticks.wait_for(pulses, START_SECONDS):
            raise Missing('a job that was put alone was not done')
        waits = [
            (end - start) / 1e9 for start, end in zip(began, sorted(ticks.stamps), strict=True)
        ]
        return percentile(waits, 50)

    def _drive(self, environment, verb, count):
        command = [self.system.python, '-m', 'benchmarks.peers.drive', self.system.module]
        done = subprocess.run(
            [*command, verb, str(count)], env=environment, capture_output=True, text=True,
            timeout=WORK_SECONDS,
        )  # fmt: skip
        if done.returncode:
            raise Missing(done.stderr.strip().splitlines()[-1])
        return json.loads(done.stdout)

    @contextlib.contextmanager
    def _worker(self, environment):
        code = f'import benchmarks.peers.with_{self.system.module} as m, json;'
        asked = subprocess.run(
            [self.system.python, '-c', f'{code} print(json.dumps(m.worker({THREADS})))'],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        process = subprocess.Popen(
            json.loads(asked.stdout.splitlines()[-1]), env=environment, cwd=systems.ROOT,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            yield
        finally:
            end(process)


def end(process):
    """Stop a worker and whatever it has started, gently at first."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        pass
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main(arguments=None):
    options = parser().parse_args(arguments)
    known = report.facts()
    found, missing, raws = {}, {}, []
    with contextlib.ExitStack() as stack:
        places = systems.Places(stack)
        chosen = [one for one in systems.SYSTEMS if one.name in (options.only or systems.NAMES)]
        peers = {}
        for system in chosen:
            reason = system.reason_missing()
            if reason:
                missing[system.name] = reason
            else:
                peers[system.name] = Peer(system, places.environment())
        for number in range(options.rounds):
            raws.append(raw_commits(places, {system.storage for system in chosen}))
            for name, peer in list(peers.items()):
                tell(f'round {number + 1} of {options.rounds}: {name}')
                try:
                    result = peer.measure(options.jobs, options.pulses)
                except (Missing, subprocess.SubprocessError, OSError) as error:
                    missing[name] = f'{error}'
                    del peers[name]
                else:
                    found.setdefault(name, []).append(result)
    result = summary(found, missing, raws, known, options)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + '\n')
    print(text(result))


def raw_commits(places, names):
    """{storage: commits per second} of those of these names that there are."""
    return {
        name: raw_rate(places.raw(name).producer, RAW_SECONDS).per_second
        for name in storages.PLACES
        if name in names
    }


def tell(what):
    if sys.stderr.isatty():
        print(f'\r{what}\033[K\r', end='', file=sys.stderr, flush=True)


def parser():
    found = argparse.ArgumentParser(
        prog='python -m benchmarks.peers', description='Measure zodbjobs beside its peers.'
    )
    add = found.add_argument
    add('--only', action='append', choices=systems.NAMES, help='again for more; all of them')
    add('--rounds', type=int, default=3, help='default: 3')
    add('--jobs', type=int, default=2000, help='of each in a round; default: 2000')
    add('--pulses', type=int, default=50, help='jobs put alone, for the latency; default: 50')
    add('--json', type=Path, default=JSON, metavar='PATH', help=f'where to write (default: {JSON})')
    return found


def summary(found, missing, raws, known, options):
    """All that is known, plain values; the medians of the rounds under 'systems'."""
    medians = {}
    for name, rounds in found.items():
        medians[name] = {
            key: statistics.median(values) if values else None
            for key in ('puts', 'jobs', 'latency')
            for values in [[one[key] for one in rounds if one[key] is not None]]
        } | {'rounds': rounds}
    return {
        'facts': known | {'load_at_the_end': report.load(), 'ended': clock.now().isoformat()},
        'options': {'rounds': options.rounds, 'jobs': options.jobs, 'threads': THREADS},
        'raw': {name: statistics.median(raw[name] for raw in raws) for name in raws[0]},
        'systems': medians,
        'missing': missing,
    }  # fmt: skip


def text(result):
    """The table, and the notes below it, as reStructuredText."""
    base = result['systems'].get('zodbjobs on PostgreSQL', {}).get('jobs')
    rows = [('', 'puts/s', 'jobs/s', 'jobs/s: zodbjobs on PostgreSQL = 1', 'put to start, p50')]
    for system in systems.SYSTEMS:
        one = result['systems'].get(system.name)
        if one is not None:
            latency = '' if one['latency'] is None else f'{report.short(one["latency"] * 1e3)} ms'
            ratio = report.short(one['jobs'] / base) if base else ''
            rows.append(
                (system.name, report.short(one['puts']), report.short(one['jobs']), ratio, latency)
            )
    lines = [simple_table(rows)]
    raw = ', '.join(
        f'{storages.TITLES[name]} {report.short(rate)}' for name, rate in result['raw'].items()
    )
    lines.append(f'Raw commits/s in the same run: {raw}.\n')
    lines += [
        f'* {system.name}: {system.note}'
        for system in systems.SYSTEMS
        if system.name in result['systems']
    ]
    lines += [f'* left out, {name}: {reason}' for name, reason in result['missing'].items()]
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    main()
