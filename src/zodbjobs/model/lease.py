"""Leases: which jobs are lent to workers that are not agents, and until when.

The lease of a job ends by itself, so somebody must notice.  Entries lie in
slots of a few seconds by the time at which they end; whoever looks needs the
first slots only, however many jobs are lent.  A slot is a merging bucket for each
lane (see `intake`), so consumers that claim at the same moment do not collide.

To touch a lease changes its entry where it lies; the entry goes on to the slot
of its new end when the old slot's time has come.  The job's record is written
when the job is claimed and when the claim ends, not by a touch, so a touch never
disturbs the transaction of the work.

Runs in the transactions of consumers, and of dispatchers that take back leases
that have ended.
"""

from BTrees.LOBTree import LOBTree
from persistent import Persistent

from zodbjobs import clock
from zodbjobs.model.intake import LANES, entries_of, new_bucket, size_of

#: Microseconds of a slot: long enough that a claim seldom has to make one.
SLOT = 4 * clock.SECOND

#: A key that is larger than those of all lanes of its slot is `slot * LANES + LANES - 1`.
_LAST_LANE = LANES - 1


def slot_key(until, lane):
    """The key of the slot for a lease that ends at `until` (microseconds)."""
    return until // SLOT * LANES + lane


class Leases(Persistent):
    """{slot: {oid: (until, token, job, name)}}.  This record itself is written once.

    `until` is in microseconds, `token` the filing of the job that was claimed,
    `name` that of its consumer.
    """

    def __init__(self):
        self.slots = LOBTree()

    def add(self, lane, oid, until, token, job, name):
        """Note a lease; returns the key of its slot."""
        key = slot_key(until, lane)
        self._bucket(key)[oid] = (until, token, job, name)
        return key

    def _bucket(self, key):
        bucket = self.slots.get(key)
        if bucket is None:
            bucket = self.slots[key] = new_bucket()
        return bucket

    def _find(self, keys, oid, token):
        """(key, entry) of a lease that lies in one of these slots, or (None, None)."""
        for key in keys:
            bucket = self.slots.get(key)
            entry = None if bucket is None else bucket.get(oid)
            if entry is not None and entry[1] == token:
                return key, entry
        return None, None

    def extend(self, keys, oid, token, until):
        """Let a lease that lies in one of the slots `keys` end at `until`.

        Returns the key of the slot where it was found, or None if it is gone.
        """
        key, entry = self._find(keys, oid, token)
        if key is not None:
            self.slots[key][oid] = (until, *entry[1:])
        return key

    def remove(self, keys, oid, token):
        """Take a lease off that lies in one of the slots `keys`; False if it is gone."""
        key, _ = self._find(keys, oid, token)
        if key is not None:
            del self.slots[key][oid]
        return key is not None

    def ended(self, now, limit):
        """Take off what has ended at `now`; returns ([(token, job, name)], whether it wrote)."""
        found, wrote = [], False
        top = slot_key(now, _LAST_LANE)
        for key in list(self.slots.keys(max=top)):
            bucket = self.slots[key]
            for oid, (until, *lease) in entries_of(bucket):
                if len(found) == limit:
                    return found, True
                if until <= now:
                    del bucket[oid]
                    found.append(tuple(lease))
                elif until // SLOT > key // LANES:  # it was touched
                    del bucket[oid]
                    self._bucket(slot_key(until, key % LANES))[oid] = (until, *lease)
                    wrote = True
            if key // LANES < now // SLOT and not size_of(bucket):
                bucket.clear()  # who still adds to it, with a lease that is over, conflicts
                del self.slots[key]
                wrote = True
        return found, wrote or bool(found)

    def next_end(self):
        """Microseconds at which the first lease ends, as far as the slots say, or None."""
        first = None
        for key, bucket in self.slots.items():
            if first is not None and first < key // LANES * SLOT:
                break
            for _, (until, *_) in entries_of(bucket):
                first = until if first is None else min(first, until)
        return first

    def entries(self):
        """Yield (until, token, job, name) of all."""
        for bucket in self.slots.values():
            for _, entry in entries_of(bucket):
                yield entry

    def clear(self):
        """Forget all."""
        self.slots.clear()

    def __len__(self):
        return sum(size_of(bucket) for bucket in self.slots.values())

    def __bool__(self):
        return True
