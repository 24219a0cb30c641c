"""An ordered mapping with text keys whose writers rarely meet: a tree of merging buckets.

A BTree checks its inner nodes at every insert, so a transaction that was open
while anybody split a node anywhere below them has lost.  Here every node is a
stock bucket that stands alone, which merges inserts and deletes of different
keys, and nobody checks what is above.  A node that is split, or taken away as
it is empty, is *cleared*, smallest key and all: whoever still wrote to it gets
a ConflictError, and nobody else does.

Get, set and remove cost O(log n).  The merging is done by code of BTrees, also
in a ZEO server that lacks this package.  Runs in whoever's transaction.
"""

from BTrees.OOBTree import OOBucket
from persistent import Persistent

from zodbjobs.model.intake import length_of
from zodbjobs.model.moments import moment

#: The smallest key of every node, as long as the node is in use.  In a leaf its
#: value is None, in an inner node the first child.
LOW = ''

#: Entries of a node beside LOW.  Each change writes its leaf, about 50 bytes an
#: entry; the smaller the leaves, the more often one is split.
NODE_ENTRIES = 32

#: A tree of so many entries is one leaf: small collections never split.
ROOT_ENTRIES = 64


class MergingTree(Persistent):
    """{text that is not empty: value}.  This record is written when the tree grows a level.

    Merging compares values, and cannot compare two different persistent
    objects.  So a value that holds one and may be *changed* begins with
    something that differs: a tuple of a `moment` and the rest.
    """

    def __init__(self):
        self.root = _new_node([])

    # look

    def get(self, key, default=None):
        return self._leaf(key)[1].get(key, default) if key != LOW else default

    def __getitem__(self, key):
        value = self.get(key, self)
        if value is self:
            raise KeyError(key)
        return value

    def __contains__(self, key):
        return self.get(key, self) is not self

    def __len__(self):
        return sum(length_of(leaf) - 1 for leaf in _leaves(self.root))

    def __bool__(self):
        return True

    def items(self):
        """Yield (key, value) in order.  Make a list of it before you change anything."""
        for leaf in _leaves(self.root):
            yield from leaf.items(LOW, excludemin=True)

    def __iter__(self):
        return (key for key, _ in self.items())

    def values(self):
        return (value for _, value in self.items())

    def first(self):
        """The smallest key, or None."""
        return self.next_key(LOW)

    def last(self):
        """The largest key, or None."""
        return _largest(self.root)

    def next_key(self, key):
        """The first key behind `key`, or None."""
        path, leaf = self._leaf(key)
        for found in leaf.keys(key, excludemin=True):
            return found
        for node, name in reversed(path):
            for _, child in node.values(name, excludemin=True):
                found = _smallest(child)
                if found is not None:
                    return found
        return None

    def previous_key(self, key):
        """The last key before `key`, or None."""
        path, leaf = self._leaf(key)
        found = _below(leaf, key)
        if found != LOW:
            return found
        for node, name in reversed(path):
            while name != LOW:
                name = _below(node, name)
                found = _largest(node[name][1])
                if found is not None:
                    return found
        return None

    def _leaf(self, key):
        """([(inner node, name of the child taken)], the leaf) for `key`."""
        path, node = [], self.root
        while (first := node[LOW]) is not None:
            name = node.maxKey(key)
            path.append((node, name))
            node = first[1] if name == LOW else node[name][1]
        return path, node

    def nodes(self, key):
        """The nodes on the way to `key`, the leaf last: one changes if something comes there."""
        path, leaf = self._leaf(key)
        return [*(node for node, _ in path), leaf]

    # change

    def __setitem__(self, key, value):
        if not isinstance(key, str) or key == LOW:
            raise TypeError(f'a key is a text that is not empty, not {key!r}')
        path, leaf = self._leaf(key)
        leaf[key] = value
        if length_of(leaf) > (NODE_ENTRIES if path else max(NODE_ENTRIES, ROOT_ENTRIES)) + 1:
            self._split(path, leaf, key)

    def pop(self, key):
        """Remove `key` and return its value.  KeyError if it is not here."""
        path, leaf = self._leaf(key)
        value = leaf.pop(key)
        if length_of(leaf) == 1:
            self._drop(path, leaf)
        return value

    def __delitem__(self, key):
        self.pop(key)

    def close(self):
        """Clear everything, so that nobody can change the tree any more."""
        for node in list(_all_nodes(self.root)):
            node.clear()

    def _split(self, path, node, key):
        """Put nodes in the place of `node`, which has become too large by `key`."""
        entries = list(node.items())[1:]
        first = node[LOW]
        node.clear()
        new = []  # [(name, node)]
        for piece in _pieces(entries, key):
            name = piece[0][0] if new else LOW
            if first is None:
                new.append((name, _new_node(piece)))
            elif not new:
                new.append((name, _new_node(piece, first)))
            else:
                new.append((name, _new_node(piece[1:], piece[0][1])))
        new = [(name, (moment(), child)) for name, child in new]
        if not path:
            self.root = _new_node(new[1:], new[0][1])
            return
        parent, low = path.pop()
        parent[low] = new[0][1]
        parent.update(new[1:])
        if length_of(parent) > NODE_ENTRIES + 1:
            self._split(path, parent, key)

    def _drop(self, path, node):
        """Take `node`, which is empty, away, and what is empty above it."""
        while path:
            parent, name = path[-1]
            if name != LOW:
                del parent[name]
                _close(node)
                if not _is_empty(parent):
                    return
            elif length_of(parent) > 1:
                return  # its range has no other place to go to
            node = path.pop()[0]
        if node[LOW] is not None:
            _close(node)
            self.root = _new_node([])


def _pieces(entries, key):
    """`entries` in pieces, for a node each.

    What grows at an end goes on to do so: then the full piece stays nearly full, and
    a node is split, which is when writers meet, only half as often.
    """
    room = NODE_ENTRIES // 8 + 1
    if len(entries) <= NODE_ENTRIES + 1 and entries[-1][0] == key:
        cuts = [len(entries) - room]
    elif len(entries) <= NODE_ENTRIES + 1 and entries[0][0] == key:
        cuts = [room]
    else:
        count = max(2, len(entries) // (NODE_ENTRIES // 2 + 1))
        cuts = [len(entries) * n // count for n in range(1, count)]
    return [entries[low:high] for low, high in zip([0, *cuts], [*cuts, None], strict=True)]


def _new_node(entries, first=None):
    node = OOBucket()
    node[LOW] = first
    node.update(entries)
    return node


def _leaves(node):
    if node[LOW] is None:
        yield node
    else:
        for _, child in node.values():
            yield from _leaves(child)


def _all_nodes(node):
    """Yield the nodes below `node`, and it."""
    if node[LOW] is not None:
        for _, child in node.values():
            yield from _all_nodes(child)
    yield node


def _smallest(node):
    for leaf in _leaves(node):
        for key in leaf.keys(LOW, excludemin=True):
            return key
    return None


def _largest(node):
    if node[LOW] is None:
        return node.maxKey() if length_of(node) > 1 else None
    name = node.maxKey()
    while True:
        found = _largest(node[name][1])
        if found is not None or name == LOW:
            return found
        name = _below(node, name)


def _below(node, key):
    """The last key of `node` that is smaller than `key`; LOW at the least."""
    found = LOW
    if key != LOW:
        keys = node.keys(LOW, key, excludemax=True)
        found = keys[-1]
    return found


def _is_empty(node):
    while length_of(node) == 1:
        if node[LOW] is None:
            return True
        node = node[LOW][1]
    return False


def _close(node):
    """Clear `node`, which is empty, and what is below: late writers conflict."""
    while node is not None:
        first = node[LOW]
        node.clear()
        node = None if first is None else first[1]
