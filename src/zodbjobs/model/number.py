"""Numbers: the small ascending numbers by which outsiders know jobs.

A job's own name is its oid, which is no number for people, and starts anywhere.
Whoever gives out numbers takes a block of them, which nobody else writes; so
several doors to one database never conflict.  Numbers of a door ascend; those of
several doors say nothing about the order of the puts.

A number is forgotten by the door that sees its job end.  One whose job ended
elsewhere stays until a door sweeps; whoever looks a number up checks the job.

Runs in a door's transaction.
"""

from BTrees.LOBTree import LOBTree
from persistent import Persistent
from ZODB.broken import Broken

#: Numbers of a block.
BLOCK_SIZE = 1000


class Block(Persistent):
    """The numbers from `first` on."""

    #: Commits of the one who writes it, as far as they are counted: a mark that tells whether one
    #: whose connection was lost was made.
    commits = 0

    def __init__(self, first):
        self.first = first
        self.next = first
        self.jobs = LOBTree()  # {number: job}

    @property
    def is_full(self):
        return self.next >= self.first + BLOCK_SIZE


class Numbers(Persistent):
    """{first number of a block: Block}.  This record itself is written once."""

    def __init__(self):
        self.blocks = LOBTree()

    def open_block(self, last=None):
        """A block with numbers left, for one writer: the one that starts at `last`, or a new one.

        `last` True: the last block there is, for who knows that nobody else writes it.
        """
        if last is True:
            last = self.blocks.maxKey() if self.blocks else None
        block = None if last is None else self.blocks.get(last)
        if block is None or block.is_full:
            first = self.blocks.maxKey() + BLOCK_SIZE if self.blocks else 1
            block = self.blocks[first] = Block(first)
        return block

    def get(self, number):
        """The job of that number, or None."""
        block = self.blocks.get(_first(number))
        return None if block is None else block.jobs.get(number)

    def give(self, block, job=None):
        """The next number of `block`, for `job`; without a job it is used up for nothing."""
        number = block.next
        block.next = number + 1
        if job is not None:
            block.jobs[number] = job
            job._number = number
        return number

    def ended(self, after, limit):
        """Look at `limit` numbers behind `after` for jobs that have ended.

        Returns ([their numbers], the number to go on behind, or 0 at the end).
        """
        found, looked = [], 0
        for block in self.blocks.values(_first(after + 1)):
            for number, job in block.jobs.items(after + 1):
                if looked == limit:
                    return found, number - 1
                looked += 1
                if isinstance(job, Broken) or not job.is_unfinished():
                    found.append(number)
        return found, 0

    def forget(self, number):
        """The job of that number is gone."""
        first = _first(number)
        block = self.blocks.get(first)
        if block is None or block.jobs.pop(number, None) is None:
            return
        if block.is_full and not block.jobs and self.blocks.maxKey() != first:
            del self.blocks[first]


def _first(number):
    return (number - 1) // BLOCK_SIZE * BLOCK_SIZE + 1
