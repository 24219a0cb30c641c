"""Memory: what a worker process holds, idle and after it has done more and more jobs."""

from benchmarks import staff
from benchmarks.measure import MEGABYTE, Figure

THREADS = 4

#: The run is cut into so many parts, so that growth is told from the first filling of caches.
PARTS = 4


def measure(place, scale):
    place.fresh()
    if not place.several:
        place.close()  # the worker has the file alone
    try:
        with staff.worker_process(place.uri, THREADS) as process:
            sizes = [process.ask()['rss']]
            for _ in range(PARTS):
                answer = process.ask('run', scale.worker_jobs // PARTS)
                sizes.append(answer['rss'])
    finally:
        place.fresh()
    idle, first, *_, last = (size / MEGABYTE for size in sizes)
    note = f'{THREADS} threads; it has put them, too'
    later = answer['done'] - scale.worker_jobs // PARTS
    yield (
        Figure('memory of a worker process, idle', idle, 'MB', note='resident'),
        Figure(f'memory of a worker process after {scale.worker_jobs // PARTS:,} jobs',
               first, 'MB', note=note),
        Figure(f'memory of a worker process after {answer["done"]:,} jobs', last, 'MB', note=note,
               facts={'megabytes': [size / MEGABYTE for size in sizes]}),
        Figure('memory per job from then on', (last - first) * MEGABYTE / max(1, later), 'B',
               note='growth of the resident memory'),
    )  # fmt: skip
