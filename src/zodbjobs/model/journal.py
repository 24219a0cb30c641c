"""A list that grows at its end and goes from its beginning: finished jobs in order.

It is cut into chunks that are filled one after the other, so an addition writes
one small record, and a full chunk is never touched again until it goes.  Each chunk
knows how many entries had come before it.  That tells the length without a
counter, which would be a record more in each transaction.

An entry's key is its time, made larger where that is needed: keys ascend in the
order of the additions, whatever the clock does.  Kept with the job is by how
much its key exceeds its token: a few bytes instead of nine.

Runs in the transaction of the one dispatcher that writes, and in readers'.
"""

from persistent import Persistent

from zodbjobs.model.intake import SENTINEL, entries_of, new_bucket, size_of
from zodbjobs.model.ready import Sorted

#: An addition writes the last chunk anew, some 35 bytes an entry, so it is small; unless that
#: is written anyway, as there are several additions in one transaction.
CHUNK_ENTRIES = 8
FULL_ENTRIES = 16


class Directory(Sorted):
    """The chunks: few in a leaf, as the last leaf is written for each new one."""

    max_leaf_size = 16
    max_internal_size = 24


def _room(chunk):
    """How many entries the last chunk may have."""
    is_written = chunk._p_changed or chunk._p_jar is None
    return FULL_ENTRIES if is_written else CHUNK_ENTRIES


class Journal(Persistent):
    """{key: (token, job)} with ascending keys.  This record itself is written once."""

    def __init__(self):
        self.chunks = Directory()  # {its first key: chunk {key: (key - token, job)}}

    def append(self, key, token, job):
        """Add an entry at `key`, or at the first possible one above it."""
        chunk = self.chunks[self.chunks.maxKey()] if self.chunks else None
        if chunk is not None:
            key = max(key, chunk.maxKey() + 1)
        if chunk is None or size_of(chunk) >= _room(chunk):
            before = 0 if chunk is None else chunk[SENTINEL] + size_of(chunk)
            chunk = new_bucket()
            chunk[SENTINEL] = before
            self.chunks[key] = chunk
        chunk[key] = key - token, job

    def pop_first(self):
        """Remove the oldest entry; returns (token, job).  ValueError if there is none."""
        first = self.chunks.minKey()
        chunk = self.chunks[first]
        key = chunk.minKey(SENTINEL + 1)
        excess, job = chunk.pop(key)
        if not size_of(chunk):
            del self.chunks[first]
        return key - excess, job

    def first_key(self):
        """The smallest key, or None."""
        if not self.chunks:
            return None
        return self.chunks[self.chunks.minKey()].minKey(SENTINEL + 1)

    def __len__(self):
        if not self.chunks:
            return 0
        first, last = self.chunks.minKey(), self.chunks.maxKey()
        size = size_of(self.chunks[first])
        if first == last:
            return size
        second, last = self.chunks[self.chunks.minKey(first + 1)], self.chunks[last]
        return size + last[SENTINEL] + size_of(last) - second[SENTINEL]

    def __bool__(self):
        return bool(self.chunks)

    def __iter__(self):
        """Yield the keys, ascending."""
        for chunk in self.chunks.values():
            yield from (key for key, _ in entries_of(chunk))

    def backwards(self, before=None):
        """Yield (key, (token, job)) from the last entry below the key `before` down."""
        top = before
        while self.chunks:
            try:
                first = self.chunks.maxKey() if top is None else self.chunks.maxKey(top - 1)
            except ValueError:
                return
            for key, (excess, job) in reversed(entries_of(self.chunks[first])):
                if before is None or key < before:
                    yield key, (key - excess, job)
            top = first
