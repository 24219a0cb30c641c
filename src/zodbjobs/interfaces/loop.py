"""The contracts of loops; all names are to be imported from `zodbjobs.interfaces`."""

from zope.interface import Attribute, Interface
from zope.interface.common.mapping import IEnumerableMapping

#: Where the commands look for a mapping of loops (ILoops) in the root.
LOOPS_KEY = 'zodbjobs.loops'


class ILoop(Interface):
    """Ids that must stay fresh, for workers that take the stalest first.

    `ids` is one id or any iterable of them; a text or bytes is one id, and so is
    None.  Ids are whatever can be ordered and hashed, of one kind per loop.  Spans
    are seconds or timedeltas.  With ``test=True`` a verb answers what it would,
    and changes nothing.

    An id is locked by `get` and by ``bump(lock_for=...)``.  Once a lock has ended,
    the id goes before all others, the longest ended first: it was bumped, or
    whoever took it never came back.
    """

    runners = Attribute('the ILoopRunners that work this loop (a tuple)')

    def add(ids, updated=False, test=False):
        """See that the loop has these ids; returns how many are new.

        `updated`: new ones count as updated just now.  Ids that are here stay
        as they are.
        """

    def remove(ids, test=False):
        """Forget these ids; returns how many were here."""

    def get(limit, lock_for=3600, min_loop_time=3600, test=False):
        """Take up to `limit` ids and lock them for `lock_for`; returns a Batch.

        A range ``(least, most)`` as `lock_for` is drawn from for each id: then
        what a crashed worker had does not come back all at once.

        First come those whose lock has ended, then those that were never updated,
        then the others, if their last update was `min_loop_time` ago; of each
        kind the longest waiting first.  With several shards two ids may come in
        either order where one has waited less than a tenth longer, or both no more
        than ten seconds.

        Raises TypeError for a limit that is no whole number and for what is no
        span, ValueError for a limit below 0 and a `lock_for` that is not above.
        """

    def did(ids, auto_add=True, test=False):
        """These ids were updated just now: unlock them; returns how many.

        Of a Batch, only those that it still holds, and a bump that came since
        its `get` is kept.  Of plain ids, all; those that are not here are added,
        unless `auto_add` is false.
        """

    def unlock(ids, auto_add=True, test=False):
        """Unlock these ids and let them keep their age; returns how many that changed."""

    def bump(ids, lock_for=0, auto_add=True, test=False, take_over=False):
        """Put these ids first, once `lock_for` has passed; returns how many that changed.

        A bump can only pull an id forward.  Below 0 it counts as bumped so long
        ago.  A range ``(least, most)`` is drawn from for each id, so that many
        ids do not become due at once.

        An id that a worker has taken comes again after that is done.  With
        `take_over` it is taken from the worker instead, if the bump is due
        before its lease ends: somebody else may get it then, and a `did` of the
        Batch it was in changes nothing for it.
        """

    def check(ids):
        """{id: (seconds since its update or None, seconds left of its lock or None)}.

        A lock that has ended has 0 or less left.  Ids that are not here are left out.
        """

    def held(batch):
        """The ids of a Batch that are still leased by it, as a Batch."""

    def failures(ids=None):
        """{id: how many of its leases ended by themselves since it was last done}.

        With None, of all ids that have any.
        """

    def stats():
        """A dict: counts, the ends of the ids, and of three kinds of seconds.

        `total never_updated locked bumped failing`, `min_id max_id` (None if there
        is none), `min_lock_time max_lock_time` (left), `min_bump_time
        max_bump_time` (since the lock ended), `min_update_time max_update_time`
        (since the update); 0.0 where there is none.
        """

    def stale(seconds):
        """How many ids were last updated so long ago or longer.

        Ids that were never updated count from when they were added.
        """

    def oldest():
        """Seconds since the oldest id was updated, or else added; None for no ids."""

    def next_due(min_loop_time=3600):
        """The aware UTC datetime when an id may be taken, maybe past; None for no ids."""

    def __len__():
        """How many ids there are."""

    def __contains__(id):
        """Whether the id is here."""

    def __iter__():
        """Every id, in no order."""


class ILoops(IEnumerableMapping):
    """Loops by name, wherever an application keeps them; the commands look at LOOPS_KEY."""

    def __setitem__(name, loop):
        """Keep an ILoop under a text.  Raises ValueError, TypeError."""

    def __delitem__(name):
        """Forget a loop and all that it knows.  Raises KeyError."""


class ILoopRunner(Interface):
    """Lets the agents of a queue work a loop: a job per batch, its work and `did` one commit."""

    loop = Attribute('ILoop')
    call = Attribute('what is called with an id, or with a Batch where `batch` is more than 1')
    batch = Attribute('how many ids are given to a job')
    lock_for = Attribute('seconds that a batch is leased; a job that takes longer loses its ids')
    min_loop_time = Attribute('seconds between two updates of an id')
    fresh = Attribute('None, or the seconds that no id shall wait longer')
    queue = Attribute('the queue that it puts its jobs in, or None before start()')
    running = Attribute('whether it was started')
    late = Attribute('None, or for how many seconds the oldest id has waited longer than `fresh`')
    jobs = Attribute('the jobs that work on batches now (a tuple)')

    def start(queue, size=1, **wishes):
        """Work the loop with up to `size` jobs at a time, from the commit on.

        `wishes` are those of IQueue.put: priority, channel, quota_names, retries,
        retry_policy_factory, time_limit, result_ttl.  A runner that runs goes on with these.
        """

    def stop():
        """Take no more batches; those that were taken are worked on to their end."""
