"""Things of one kind by their names: what `Queues` and `Loops` have in common.

Runs in the caller's transaction.  Stored are the classes above it, and its
attribute `_items`.
"""

import typing
from collections.abc import MutableMapping

from BTrees.OOBTree import OOBTree
from persistent import Persistent


class Named(Persistent, MutableMapping):
    """A stored mapping, name (a text) -> thing.  It is true also while it is empty."""

    #: What a thing is called, and the interface that it must provide.
    kind = 'thing'
    contract: typing.Any = None

    def __init__(self):
        self._items = OOBTree()

    def __getitem__(self, name):
        try:
            return self._items[name]
        except (KeyError, TypeError):
            raise KeyError(
                f'there is no {self.kind} {name!r}; there are {sorted(self._items)}'
            ) from None

    def __setitem__(self, name, thing):
        if not self.contract.providedBy(thing):
            raise ValueError(f'only a {self.kind} can be put here, not {thing!r}')
        if not isinstance(name, str):
            raise TypeError(f'the name of a {self.kind} is a text, not {name!r}')
        self._items[name] = thing

    def __delitem__(self, name):
        if name not in self._items:
            self[name]  # says what there is
        del self._items[name]

    def __iter__(self):
        return iter(self._items)

    def __len__(self):
        return len(self._items)

    def __bool__(self):
        return True

    def keys(self):
        return list(self._items)

    def __repr__(self):
        return f'<{type(self).__name__} {list(self._items)}>'
