"""Throughput: jobs that wait already, done by one dispatcher of this process.

Counted are the commits of the dispatcher and its workers; k is how many jobs a
claim takes.
"""

import statistics

from persistent.mapping import PersistentMapping

from benchmarks import staff, work
from benchmarks.measure import RATE, Figure, raw_rate, wait_until
from benchmarks.scale import PATIENCE
from zodbjobs import Job, clock

#: Jobs put in one transaction.
BATCH = 500

#: No run has more, so that none spends its time with putting.
JOBS_LIMIT = 20_000

#: For the agent that makes several jobs final in one commit.
COALESCE_SECONDS = 0.02

#: Threads for the jobs that take time.
SLEEPERS = 4

#: Seconds between two looks how far the jobs are: each look keeps the workers from their work.
LOOK_SECONDS = 0.02

#: Seconds for a guess how fast the storage is today.
GUESS_SECONDS = 0.05


def measure(place, scale):
    for threads in scale.threads:
        yield (throughput(place, scale, f'jobs that do nothing, {_shown(threads)}', threads),)
    own = 'jobs that write an object of their own'
    for threads in dict.fromkeys((1, max(scale.threads))):
        yield (throughput(place, scale, f'{own}, {_shown(threads)}', threads, writing),)
    name = f'{own}, {_shown(1)}, coalesce={COALESCE_SECONDS}'
    yield (throughput(place, scale, name, 1, writing, coalesce=COALESCE_SECONDS),)
    for seconds in scale.sleeps:
        name = f'jobs of {seconds * 1000:g} ms, {SLEEPERS} threads'
        yield (throughput(place, scale, name, SLEEPERS, sleeping(seconds), SLEEPERS / seconds),)


def _shown(threads):
    return f'{threads} thread{"s" if threads > 1 else ""}'


# Makers: called with the producer's connection, each gives the next job.


def idle(connection):
    """A job that does nothing."""
    return work.nothing


def writing(connection):
    """A job that changes an object of its own."""
    counter = PersistentMapping()
    connection.add(counter)
    return Job(work.write, counter)


def sleeping(seconds):
    """A maker of jobs that take so long and use no processor."""
    return lambda connection: Job(work.sleep, seconds)


def computing(seconds):
    """A maker of jobs that use a processor for so long."""
    return lambda connection: Job(work.compute, seconds)


def throughput(place, scale, name, threads, make=idle, most=None, coalesce=0):
    """The Figure of the median of some runs; `most` jobs/s could be done, commits apart."""
    runs = [run(place, scale, threads, make, most, coalesce) for _ in range(scale.rounds)]
    rate = statistics.median(found['rate'] for found in runs)
    found = min(runs, key=lambda found: abs(found['rate'] - rate))
    note = f'k {found["jobs_per_claim"]:.1f}, {found["commits_per_job"]:.2f} commits per job'
    if most is not None:
        note += f', at most {most:,.0f}/s'
    if found['failed_commits']:
        note += f', {found["failed_commits"]} commits failed'
    return Figure(name, rate, 'jobs/s', RATE, note, found)


def wait_in(place, scale, make, most):
    """Open the place anew, with as many jobs in a paused queue as a run needs; returns (queue,
    their number).  `most` jobs/s can be done, if anything but the storage is the limit.
    """
    queue = place.fresh()
    guess = raw_rate(place.producer, GUESS_SECONDS).per_second
    fastest = 2 * guess if most is None else min(guess, most)
    count = min(JOBS_LIMIT, max(10, round(fastest * scale.run_seconds)))
    place.manager.begin()
    queue.pause()
    place.manager.commit()
    fill(place, queue, make, count)
    return queue, count


def run(place, scale, threads, make, most, coalesce=0):
    """One run; returns its facts."""
    queue, count = wait_in(place, scale, make, most)
    with staff.dispatcher(place.db, threads) as dispatcher:
        place.manager.begin()
        for agent in queue.dispatchers[dispatcher.UUID].values():
            if agent.coalesce != coalesce:
                agent.coalesce = coalesce
        place.manager.commit()
        claims = staff.Claims(dispatcher)
        before = place.tally.commits, place.tally.failures
        queue.unpause()
        started = clock.monotonic()
        place.manager.commit()
        done = finish(dispatcher, claims, count, PATIENCE * scale.run_seconds + 1)
        taken = clock.monotonic() - started
        claims.look()
        commits, failures = place.tally.commits - before[0], place.tally.failures - before[1]
    return {
        'rate': done / taken,
        'jobs': done,
        'jobs_per_claim': claims.mean,
        'commits_per_job': commits / max(1, done),
        'failed_commits': failures,
    }


def fill(place, queue, make, count):
    """Put `count` jobs that `make` makes."""
    for first in range(0, count, BATCH):
        place.manager.begin()
        for _ in range(min(BATCH, count - first)):
            queue.put(make(place.producer))
        place.manager.commit()
    place.manager.begin()


def finish(dispatcher, claims, count, seconds):
    """Wait until `count` jobs are done, for so many seconds at most; returns how many are."""

    def done():
        return dispatcher.getStatistics()['successful']

    def all_done():
        claims.look()
        return done() >= count

    wait_until(all_done, seconds, LOOK_SECONDS)
    return done()
