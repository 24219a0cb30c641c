"""Limits on how many jobs of a name run at once, over all workers.

A quota is plain and resolves no conflicts, on purpose: two dispatchers that
take its last place at the same time collide, and one of them looks again.  So
the limit is exact.  A job that ends does not write its quota; places of jobs
that run no more are freed when a dispatcher next looks.

Runs in a dispatcher's claim transaction; `create`, `remove` and `size` in the
application's.
"""

from BTrees.OOBTree import OOBTree
from persistent import Persistent
from ZODB.broken import Broken
from zope.interface import implementer

from zodbjobs.interfaces import IQuota, IQuotas


def _checked_size(size):
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise ValueError(f'the size of a quota is a whole number from 0 on, not {size!r}')
    return size


@implementer(IQuota)
class Quota(Persistent):
    """See IQuota."""

    def __init__(self, name, size=1):
        self.name = name
        self._size = _checked_size(size)
        self.places = ()  # of (token, job)

    @property
    def size(self):
        return self._size

    @size.setter
    def size(self, size):
        self._size = _checked_size(size)

    @property
    def filled(self):
        return len(self.places) >= self._size

    def __len__(self):
        return len(self.places)

    def __bool__(self):
        return True

    def __iter__(self):
        return (job for _, job in self.places)

    def room(self):
        """How many places are free; forgets first if it looks full."""
        if self.filled:
            self.clean()
        return max(0, self._size - len(self.places))

    def clean(self):
        # A job whose class is gone cannot say so: it ends as soon as a worker meets it.
        kept = tuple(
            (token, job)
            for token, job in self.places
            if not isinstance(job, Broken) and job.occupies(token)
        )
        forgotten = len(self.places) - len(kept)
        if forgotten:
            self.places = kept
        return forgotten

    def take(self, token, job):
        """Give a place to the job filed as `token`."""
        self.places += ((token, job),)

    def free(self, filings):
        """Take back the places of these filings: a set of (token, the job's 8-byte oid).

        Two processes may file jobs in the same microsecond, under the same token.
        """
        kept = tuple(
            (token, job) for token, job in self.places if (token, job._p_oid) not in filings
        )
        if len(kept) != len(self.places):
            self.places = kept

    def __repr__(self):
        return f'<Quota {self.name!r} {len(self.places)} of {self._size}>'


@implementer(IQuotas)
class Quotas(Persistent):
    """See IQuotas."""

    def __init__(self):
        self._by_name = OOBTree()

    def create(self, name, size=1):
        if not isinstance(name, str):
            raise TypeError(f'the name of a quota is a text, not {name!r}')
        if name in self._by_name:
            raise ValueError(
                f'there is a quota {name!r} already: {self._by_name[name]!r};'
                f' to change its limit set quotas[{name!r}].size'
            )
        self._by_name[name] = Quota(name, size)

    def remove(self, name):
        del self._by_name[name]

    def get(self, name, default=None):
        return self._by_name.get(name, default)

    def __getitem__(self, name):
        return self._by_name[name]

    def __contains__(self, name):
        return name in self._by_name

    def __len__(self):
        return len(self._by_name)

    def __bool__(self):
        return True

    def __iter__(self):
        return iter(self._by_name)

    def keys(self):
        return self._by_name.keys()

    def values(self):
        return self._by_name.values()

    def items(self):
        return self._by_name.items()

    def check(self, names):
        """Return `names` as a tuple; ValueError for one that is not here."""
        if isinstance(names, (str, bytes)):
            raise TypeError(f'quota_names is a sequence of names: use ({names!r},)')
        names = tuple(names)
        for name in names:
            if name not in self._by_name:
                raise ValueError('unknown quota name', name)
        return tuple(dict.fromkeys(names))
