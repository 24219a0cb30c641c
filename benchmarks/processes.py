"""Processes: the same jobs, done by several worker processes that share the storage.

Each has a database connection pool, caches and threads of its own.  Where the
storage lets one process in only, there is nothing to measure.
"""

import statistics

from benchmarks import staff
from benchmarks.measure import RATE, Figure, wait_until
from benchmarks.scale import PATIENCE
from benchmarks.throughput import computing, idle, wait_in, writing
from zodbjobs import clock

#: Threads of each process.
THREADS = 2

#: Seconds of the processor that a computing job uses.
COMPUTE_SECONDS = 0.01


def measure(place, scale):
    if not place.several:
        return
    kinds = [
        ('jobs that do nothing', idle, lambda count: None),
        ('jobs that write an object of their own', writing, lambda count: None),
        (
            f'jobs that compute for {COMPUTE_SECONDS * 1000:g} ms',
            computing(COMPUTE_SECONDS),
            lambda count: count / COMPUTE_SECONDS,
        ),
    ]
    for name, make, most in kinds:
        for count in scale.processes:
            yield (throughput(place, scale, name, make, count, most(count)),)


def throughput(place, scale, name, make, count, most):
    """The Figure of the median of some runs with `count` processes."""
    runs = [run(place, scale, make, count, most) for _ in range(scale.rounds)]
    rate = statistics.median(found['rate'] for found in runs)
    found = min(runs, key=lambda found: abs(found['rate'] - rate))
    shares = ' '.join(f'{share:.0%}' for share in found['shares'])
    note = f'{THREADS} threads each; their shares {shares}'
    processes = f'{count} process{"es" if count > 1 else ""}'
    return Figure(f'{name}, {processes}', rate, 'jobs/s', RATE, note, found)


def run(place, scale, make, count, most):
    """One run; returns its facts."""
    with_commits = most and most / count  # the guess is for one
    queue, jobs = wait_in(place, scale, make, with_commits)
    with staff.worker_processes(place.uri, count, THREADS) as workers:
        queue.unpause()
        started = clock.monotonic()
        place.manager.commit()
        done = []

        def all_done():
            done[:] = [worker.ask('look')['done'] for worker in workers]
            return sum(done) >= jobs

        wait_until(all_done, PATIENCE * scale.run_seconds + 1)
        taken = clock.monotonic() - started
    total = max(1, sum(done))
    return {
        'rate': sum(done) / taken,
        'jobs': sum(done),
        'shares': [one / total for one in done],
    }
