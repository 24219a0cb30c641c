"""Notes: what was written beside a job while it ran.

These are its annotations, by the application or the job itself, and the callbacks that
were added to it after it was taken.  They live in records of their own, outside
the job's, so that its completion does not conflict.  A queue keeps them by the
job's oid, and only for jobs that have some.
"""

from collections.abc import MutableMapping

from BTrees.LOBTree import LOBTree
from BTrees.OOBTree import OOBTree
from persistent import Persistent


class Notes(Persistent):
    """{oid of a job: its annotations} of a queue, and its late callbacks.  Written once."""

    def __init__(self):
        self.trees = LOBTree()
        self.callbacks = LOBTree()  # {oid: tuple of jobs}

    def get(self, oid):
        return self.trees.get(oid)

    def make(self, oid):
        tree = self.trees.get(oid)
        if tree is None:
            tree = self.trees[oid] = OOBTree()
        return tree

    def take(self, oid):
        """Give the annotations of that job away; None if it has none."""
        return self.trees.pop(oid, None)

    def drop(self, oid):
        for tree in (self.trees, self.callbacks):
            if oid in tree:
                del tree[oid]

    def late_callbacks(self, oid):
        """The callbacks that were added to that job while it was under way; a tuple."""
        return self.callbacks.get(oid, ())

    def add_late_callback(self, oid, callback):
        self.callbacks[oid] = (*self.late_callbacks(oid), callback)

    def take_late_callbacks(self, oid):
        """Give them away."""
        return self.callbacks.pop(oid, ())


class Annotations(MutableMapping):
    """A job's annotations, as a mapping; reading never writes."""

    def __init__(self, read, make):
        self._read = read  # () -> OOBTree or None
        self._make = make  # () -> OOBTree

    def _tree(self):
        tree = self._read()
        return {} if tree is None else tree

    def __getitem__(self, name):
        return self._tree()[name]

    def __setitem__(self, name, value):
        self._make()[name] = value

    def __delitem__(self, name):
        del self._tree()[name]

    def __iter__(self):
        return iter(self._tree())

    def __len__(self):
        return len(self._tree())

    def __repr__(self):
        return f'<Annotations {dict(self)!r}>'
