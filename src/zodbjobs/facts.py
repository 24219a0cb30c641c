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
