"""A list and a dict that belong to a persistent object.

They are stored inside their owner's record; changing them marks the owner as
changed.  One that the application kept while its owner was loaded anew first
takes over the owner's present content, so a change is never lost nor made to
a copy.

Runs in the thread of the owner's connection.
"""

import functools


def _changing(name, base):
    """A method that changes the content: refresh, change, mark the owner."""

    @functools.wraps(getattr(base, name))
    def change(self, *args, **kwargs):
        self._refresh()
        result = getattr(base, name)(self, *args, **kwargs)
        self._owner._p_changed = True
        return self if name.startswith('__i') and name != '__init__' else result

    return change


def _owned(base, names):
    def make(cls):
        for name in names:
            setattr(cls, name, _changing(name, base))
        return cls

    return make


class _Owned:
    def _keep(self, owner, cache, attribute):
        self._owner, self._cache, self._attribute = owner, cache, attribute

    def _refresh(self):
        current = getattr(self._owner, self._attribute)
        if current is not self:
            self._take(list(current) if isinstance(current, list) else dict(current))
            setattr(self._owner, self._cache, self)

    def __reduce__(self):
        return (list, (list(self),)) if isinstance(self, list) else (dict, (dict(self),))


@_owned(
    list,
    ['append', 'clear', 'extend', 'insert', 'pop', 'remove', 'reverse', 'sort',
     '__delitem__', '__iadd__', '__imul__', '__setitem__'],
)  # fmt: skip
class OwnedList(_Owned, list):
    """A list whose changes mark `owner`, which gives it by `attribute`."""

    def __init__(self, owner, cache, attribute, content=()):
        list.__init__(self, content)
        self._keep(owner, cache, attribute)

    def _take(self, content):
        list.__init__(self, content)


@_owned(
    dict,
    ['clear', 'pop', 'popitem', 'setdefault', 'update', '__delitem__', '__ior__', '__setitem__'],
)
class OwnedDict(_Owned, dict):
    """A dict whose changes mark `owner`, which gives it by `attribute`."""

    def __init__(self, owner, cache, attribute, content=()):
        dict.__init__(self, content)
        self._keep(owner, cache, attribute)

    def _take(self, content):
        dict.clear(self)
        dict.update(self, content)
