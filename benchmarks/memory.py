"""Memory: what a worker process holds, idle and after it has done jobs."""

from benchmarks import staff
from benchmarks.measure import Figure

THREADS = 4

MEGABYTE = 1 << 20


def measure(place, scale):
    place.fresh()
    if not place.several:
        place.close()  # the worker has the file alone
    try:
        with staff.worker_process(place.uri, THREADS) as process:
            idle = process.ask()['rss']
            answer = process.ask('run', scale.worker_jobs)
    finally:
        place.fresh()
    yield (
        Figure('memory of a worker process, idle', idle / MEGABYTE, 'MB', note='resident'),
        Figure(
            f'memory of a worker process after {answer["done"]:,} jobs',
            answer['rss'] / MEGABYTE, 'MB',
            note=f'{THREADS} threads; it has put them, too',
        ),
    )  # fmt: skip
