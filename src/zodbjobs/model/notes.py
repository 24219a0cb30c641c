"""Annotations: what the application or a running job wrote beside a job.

They live in a record of their own, outside the job's, because they are written
while the job runs and must not make its completion conflict.  A queue keeps
them by the job's oid and makes a record only for a job that has some.
"""

from collections.abc import MutableMapping

from BTrees.LOBTree import LOBTree
from BTrees.OOBTree import OOBTree
from persistent import Persistent


class Notes(Persistent):
    """{oid of a job: its annotations} of a queue.  Written once."""

    def __init__(self):
        self.trees = LOBTree()

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
        if oid in self.trees:
            del self.trees[oid]


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
