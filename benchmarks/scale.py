"""How much is measured: enough for a look, or for a figure to rely on."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Scale:
    """Counts and seconds, which bound each part."""

    #: The raw commit rate is taken in so many windows of so many seconds.
    raw_windows: int = 3
    raw_seconds: float = 0.15
    #: So many processes commit side by side, for so many seconds.
    committers: tuple = (1, 2, 4)
    commit_seconds: float = 1
    #: What is measured by time takes so long; where the storage is slower than thought, at most
    #: `PATIENCE` times that.
    run_seconds: float = 1
    #: Throughput is measured so often, and the median is told.
    rounds: int = 3
    threads: tuple = (1, 2, 4)
    processes: tuple = (1, 2, 3)
    #: Seconds of jobs that take time.
    sleeps: tuple = (0.001, 0.01)
    #: Jobs in one transaction.
    bulks: tuple = (1_000, 10_000)
    bulk_rounds: int = 2
    #: Jobs started on an idle system, and how long that may take.
    starts: int = 100
    start_seconds: float = 8
    latency_backlog: int = 10_000
    #: Queues that a dispatcher serves, and jobs for one of them.
    queues: tuple = (1, 10, 100)
    passes: int = 30
    #: How often a worker is killed.
    kills: int = 3
    #: (shape, how many jobs, in turn); storages other than a file get `slow_share` of them.
    backlogs: tuple = (
        ('waiting', (10_000, 100_000)),
        ('scheduled', (100_000,)),
        ('blocked-10', (10_000,)),
        ('blocked-10000', (20_000,)),
        ('priorities', (20_000,)),
        ('queues', (10_000,)),
        ('channels', (20_000,)),
    )
    slow_share: float = 0.1
    #: Seconds that it may take to fill one of them.
    fill_seconds: float = 15
    #: Claims measured at each of them, and how long that may take.
    claims: int = 15
    claim_seconds: float = 4
    #: Jobs whose life is weighed.
    lives: int = 1_000
    #: Producers, and for how long they produce.
    producers: int = 8
    produce_seconds: float = 2.5
    open_seconds: float = 0.2
    worker_jobs: int = 2_000
    #: Items of a feed, and of a sorted one.
    feed_items: int = 20_000
    loop_ids: int = 100_000


PATIENCE = 4

#: Three storages in some ten minutes on a quiet machine of two cores.
QUICK = Scale()

#: As much as `docs/performance.rst` shows; in pieces, or overnight.
FULL = Scale(
    raw_seconds=0.3,
    commit_seconds=3,
    run_seconds=3,
    rounds=3,
    starts=400,
    start_seconds=20,
    latency_backlog=40_000,
    passes=100,
    kills=5,
    backlogs=(
        ('waiting', (10_000, 100_000, 1_000_000)),
        ('scheduled', (1_000_000,)),
        ('blocked-10', (100_000,)),
        ('blocked-10000', (100_000,)),
        ('priorities', (100_000,)),
        ('queues', (100_000,)),
        ('channels', (100_000,)),
    ),
    fill_seconds=180,
    claims=40,
    claim_seconds=10,
    lives=10_000,
    produce_seconds=8,
    worker_jobs=40_000,
    feed_items=100_000,
    loop_ids=1_000_000,
)

#: To see that it runs.
TINY = Scale(
    raw_windows=1,
    raw_seconds=0.01,
    committers=(2,),
    commit_seconds=0.05,
    run_seconds=0.01,
    rounds=1,
    threads=(1,),
    processes=(2,),
    sleeps=(0.001,),
    bulks=(5, 10),
    bulk_rounds=1,
    starts=3,
    latency_backlog=5,
    queues=(1, 3),
    passes=3,
    kills=1,
    backlogs=tuple(
        (name, (30,))
        for name in ('waiting', 'scheduled', 'blocked-10', 'priorities', 'queues', 'channels')
    ),
    slow_share=1,
    claims=2,
    lives=10,
    producers=2,
    produce_seconds=0.05,
    open_seconds=0.02,
    worker_jobs=8,
    feed_items=40,
    loop_ids=200,
)
