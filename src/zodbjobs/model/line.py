"""What waits in a line: a part of a feed, with HIGH before the rest, each in the order it came.

Putting conflicts with nobody, as lanes merge.  Two transactions of one process
take different entries; those of two processes may meet at the first one, and one
of them conflicts.

Runs in the caller's transaction.
"""

from zodbjobs.model.lanes import Lanes
from zodbjobs.model.reservations import reserve


class Line:
    """For a FeedRecord: entries that wait, by priority."""

    #: For `put`: before all that is not.
    HIGH = True

    def __init__(self, feeds, name):
        super().__init__(feeds, name)
        self.high = Lanes()  # {moment: entry}
        self.normal = Lanes()

    @staticmethod
    def _is_high(priority):
        if priority not in (None, False, True):
            raise ValueError(f'priority is None or HIGH, not {priority!r}')
        return bool(priority)

    def _line(self, high):
        return self.high if high else self.normal

    def _first_free(self):
        """Take the first entry that no other transaction of this process takes, or None."""
        jar = self._p_jar
        transaction = jar.transaction_manager.get()
        for lanes in (self.high, self.normal):
            for key, place, entry in lanes.walk():
                if reserve(transaction, jar.db(), self._p_oid, place, key):
                    lanes.remove(place, key)
                    return entry
        return None

    def __iter__(self):
        return iter(self.get_ids())

    def oids(self):
        return super().oids() | self.high.oids() | self.normal.oids()

    def deleted(self):
        self.high.close_all()
        self.normal.close_all()
        return super().deleted()
