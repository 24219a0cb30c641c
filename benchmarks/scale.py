"""How much is measured: enough for a look, or for a figure to rely on."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Scale:
    """Counts and seconds, which bound each part."""

    #: The raw commit rate is taken in so many windows of so many seconds.
    raw_windows: int = 3
    raw_seconds: float = 0.15
    #: What is measured by time takes so long; where the storage is slower than thought, at most
    #: `PATIENCE` times that.
    run_seconds: float = 1.5
    #: Throughput is measured so often, and the median is told.
    rounds: int = 1
    threads: tuple = (1, 2, 4)
    #: Seconds of jobs that take time.
    sleeps: tuple = (0.001, 0.01)
    #: Jobs in one transaction.
    bulks: tuple = (1_000, 10_000)
    bulk_rounds: int = 2
    #: Jobs started on an idle system, and how long that may take.
    starts: int = 100
    start_seconds: float = 8
    backlogs: tuple = (10_000, 100_000)
    #: Seconds that it may take to fill one of them.
    fill_seconds: float = 30
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


PATIENCE = 4

#: Three storages in less than three minutes.
QUICK = Scale()

#: About ten minutes.
FULL = Scale(
    raw_seconds=0.3,
    run_seconds=3,
    rounds=3,
    starts=400,
    start_seconds=20,
    backlogs=(10_000, 100_000, 1_000_000),
    fill_seconds=180,
    claims=40,
    claim_seconds=10,
    lives=10_000,
    produce_seconds=8,
    worker_jobs=20_000,
)

#: To see that it runs.
TINY = Scale(
    raw_windows=1,
    raw_seconds=0.01,
    run_seconds=0.01,
    threads=(1,),
    sleeps=(0.001,),
    bulks=(5, 10),
    bulk_rounds=1,
    starts=3,
    backlogs=(50,),
    claims=2,
    lives=10,
    producers=2,
    produce_seconds=0.05,
    open_seconds=0.02,
    worker_jobs=5,
)
