"""The states of a job, and the table of the legal changes between them.

Plain strings: they are stored with every job and shown to users.
"""

NEW = 'new'
PENDING = 'pending'
ASSIGNED = 'assigned'
ACTIVE = 'active'
CALLBACKS = 'callbacks'
COMPLETED = 'completed'
HELD = 'held'

#: Every state, in the order in which a job meets them.
STATES = (NEW, PENDING, HELD, ASSIGNED, ACTIVE, CALLBACKS, COMPLETED)

#: state -> the states it may become.  To the right is progress; back to
#: PENDING is the one gate upstream (retry, interruption, ended lease, dead
#: dispatcher), and NEW is what a job taken out of its queue is again.
#: COMPLETED -> PENDING is ``job.retry()``, an explicit wish.
MOVES = {
    NEW: {PENDING, ACTIVE, CALLBACKS, COMPLETED, HELD},
    PENDING: {NEW, ASSIGNED, ACTIVE, HELD, PENDING, CALLBACKS, COMPLETED},
    HELD: {PENDING, NEW, CALLBACKS, COMPLETED},
    ASSIGNED: {ACTIVE, PENDING, NEW, HELD, CALLBACKS, COMPLETED},
    ACTIVE: {CALLBACKS, COMPLETED, PENDING, HELD, ACTIVE},
    CALLBACKS: {COMPLETED},
    COMPLETED: {PENDING},
}

#: A job in one of these will not run its call again by itself.
FINISHED = frozenset((CALLBACKS, COMPLETED))


def may_move(old, new):
    """Whether a job that is `old` may become `new`."""
    return new in MOVES[old]
