"""Put: one job per transaction, and many in one."""

from benchmarks import work
from benchmarks.measure import COST, PLAIN, RATE, Figure, Stopwatch
from zodbjobs import clock


def measure(place, scale):
    yield (one_by_one(place, scale),)
    yield tuple(in_bulk(place, scale))


def one_by_one(place, scale):
    queue = place.fresh()
    place.manager.begin()
    count, started = 0, clock.monotonic()
    while clock.monotonic() - started < scale.run_seconds:
        queue.put(work.nothing)  # what is measured as a raw commit begins nothing either
        place.manager.commit()
        count += 1
    taken = clock.monotonic() - started
    return Figure('put, one per transaction', count / taken, 'puts/s', RATE)


def in_bulk(place, scale):
    """What a job costs in a transaction of many, and whether many cost more each."""
    watches = {bulk: (Stopwatch(), Stopwatch()) for bulk in scale.bulks}
    for _ in range(scale.bulk_rounds):
        for bulk, (put, commit) in watches.items():
            queue = place.fresh()
            place.manager.begin()
            with put:
                for _ in range(bulk):
                    queue.put(work.nothing)
            with commit:
                place.manager.commit()
    costs = []
    for bulk, (put, commit) in watches.items():
        each = (put.median + commit.median) / bulk
        costs.append(each)
        yield Figure(
            f'put, {bulk:,} in one transaction: each',
            each, 's', COST,
            f'{put.median / bulk * 1e6:.0f} us in put, {commit.median / bulk * 1e6:.0f} in commit',
            {'put_seconds': put.median / bulk, 'commit_seconds': commit.median / bulk},
        )  # fmt: skip
    few, many = scale.bulks[0], scale.bulks[-1]
    yield Figure(
        f'put, in bulk: each of {many:,} against each of {few:,}',
        costs[-1] / costs[0], 'x', PLAIN, '1.0 is linear',
    )  # fmt: skip
