"""What became of an attempt: what its worker tells the dispatcher.

Made in the worker's thread, when its transaction is over; read in the
dispatcher's pass, which writes down what is left to do (see `retire`).
"""

import typing

# What a report says of an attempt.
FINISHED = 'finished'  # the job has its result and has told it
RELEASED = 'released'  # it waits elsewhere: filed again, or held
STALE = 'stale'  # the entry was out of date before the attempt began
REASSIGNED = 'reassigned'  # the job went to another worker meanwhile
WAITING = 'waiting'  # it returned a job, and waits for that without a thread
DEFERRED = 'deferred'  # it returned something that fires later: slot kept, no thread
OVERRAN = 'overran'  # it ran longer than its time limit; its thread was given up
LOST = 'lost'  # the worker met an error of its own
RETURNED = 'returned'  # it was claimed ahead, and no thread became free for it soon
ABANDONED = 'abandoned'  # the worker had to stop before the outcome could be recorded


class Report(typing.NamedTuple):
    """What became of an attempt: facts for the dispatcher, no persistent object."""

    assignment: object
    kind: str
    failed: bool = False
    result_ttl: int | None = None
    job_id: str | None = None
    deferred: object = None
    outcome: object = None  # a `ride.Outcome` that the dispatcher is to write
