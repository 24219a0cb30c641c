"""Frozen values that travel between the floors.

An `Assignment` says what was claimed for whom; a `Decision` what shall become
of an attempt.  They hold no persistent object, so they may cross threads.
"""

import typing
import uuid


class Assignment(typing.NamedTuple):
    """One job that was claimed, on its way to a worker thread.

    `token` is the job's filing at the time of the claim: a job whose own
    token differs was taken out, re-filed or recovered meanwhile.
    """

    oid: bytes
    token: int
    queue: str
    agent: str
    quota_names: tuple = ()
    ahead: bool = False
    database: str = ''
    job_class: type | None = None  # of the job, as far as the claim knows it
    priority: int = 2**31

    @property
    def job_id(self):
        """(int oid, database name): the form in which statistics name a job."""
        return int.from_bytes(self.oid, 'big'), self.database

    @property
    def filing(self):
        """What tells this claim from others, also from those of other filings of the job."""
        return self.oid, self.database, self.token


#: Kinds of `Decision`.
AGAIN = 'again'  # run the body again at once, in the same attempt
LATER = 'later'  # file the job again, to begin at `due`
GIVE_UP = 'give up'  # the failure is the result
HOLD = 'hold'  # set the job aside, for somebody to look at


class Decision(typing.NamedTuple):
    """What shall become of an attempt that went wrong.

    `due` is in microseconds, for LATER; 0 puts the job back to its old place.
    """

    kind: str
    due: int = 0


class PassingUUID(uuid.UUID):
    """A UUID that was made up for this process: its next life will have another one.

    Good for saying who put a job.  A dispatcher looks for a name that lasts.
    """

    __slots__ = ()


class Notice(typing.NamedTuple):
    """What happened to a feed, and when: numbers grow in the order of the commits.

    `kind` is 'publish', 'edit', 'retract', 'position', 'finish', and for the
    feed as a whole 'create' or 'delete'; 'lost' says that the log no longer has
    all that came after a number.  `value` is the item, the position or the
    result.
    """

    number: int
    kind: str
    feed: str
    id: str | None = None
    value: object = None

    @property
    def arguments(self):
        """What a handler of this kind is called with."""
        return (self.feed, *_ARGUMENTS[self.kind](self))


#: kind of notice -> what its handlers get behind the name of the feed
_ARGUMENTS: dict = {
    'publish': lambda notice: (notice.value, notice.id),
    'edit': lambda notice: (notice.value, notice.id),
    'retract': lambda notice: (notice.id,),
    'position': lambda notice: (notice.id, notice.value),
    'finish': lambda notice: (notice.id, notice.value),
    'create': lambda notice: (),
    'delete': lambda notice: (),
    'lost': lambda notice: (notice.number,),
}


class _Claimed(typing.NamedTuple):
    id: str
    item: object
    cancelled: int


class ClaimedItem(_Claimed):
    """An item of a job feed that was claimed: its id, what it is, how often it went wrong.

    `token` tells this claim from later ones.
    """

    token = 0


class Finished(typing.NamedTuple):
    """What was asked of a job feed, and the result."""

    query: object
    result: object
