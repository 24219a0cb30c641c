"""Job feeds: items that are claimed for a time, and come back unless they are finished.

A claim is made in the claimer's transaction and is there for others from its
commit on.  What the worker then writes, and `finish`, may be another
transaction.  The claim's number is kept on the record of the item, which has no
conflict resolution: a worker that lost its claim cannot commit what it finished.

Why this does not rest on the claims of queues (`claim`, `lease`): there a claim is
a commit of its own, made on a connection of its own before the worker's transaction
begins, and a dispatcher or a consumer sorts what was put.  Here `get` joins the
transaction of whoever calls it, so that an item can be taken and another one put
in one commit; nobody but the callers is at work; a job feed has items with ids, notices
and results, and no calls, statuses, retry policies or agents.  What would be shared is
the key by which leases are listed.

Runs in the caller's transaction; waiting is done by the runtime.
"""

import uuid

from persistent import Persistent
from zope.event import notify
from zope.interface import implementer

from zodbjobs import clock
from zodbjobs.facts import ClaimedItem, Finished
from zodbjobs.interfaces import ClaimLost, FeedChanged, IJobFeed
from zodbjobs.model.call import check_storable
from zodbjobs.model.feed import ToldFeed, check_seconds
from zodbjobs.model.line import Line
from zodbjobs.model.log import Item
from zodbjobs.model.merging import MergingTree
from zodbjobs.model.moments import moment
from zodbjobs.model.reservations import reserve

AVAILABLE, CLAIMED, STALLED, FINISHED = 'available', 'claimed', 'stalled', 'finished'

#: How long a claim lasts, unless the feed's `lease` says otherwise.
LEASE_SECONDS = 3600

#: How long a result is kept, unless `finish` says otherwise.
RESULT_SECONDS = 7 * 86_400

#: Ended claims and old results that one call puts in order.
SWEEP_LIMIT = 100


class Work(Persistent):
    """An item of a job feed, where it stands, and what came of it."""

    state = AVAILABLE
    where = None  # (high, place, key) while available
    expires = None  # microseconds, while claimed; when to forget it, once finished
    token = 0  # how often it was claimed
    failures = 0
    result = None

    def __init__(self, id, item):
        self.id = id
        self.item = item


@implementer(IJobFeed)
class JobFeed(Line, ToldFeed):
    """See IJobFeed."""

    kind = 'job'

    def __init__(self, feeds, name):
        super().__init__(feeds, name)
        self.index = MergingTree()  # {id: (moment, Work)} of what is not finished
        self.leases = MergingTree()  # {time and id: id} of claims
        self.results = MergingTree()  # {id: (moment, Work)}
        self.endings = MergingTree()  # {time and id: id} of results

    # put and take

    def put(self, item, priority=None):
        jar = self._live()
        high = self._is_high(priority)
        check_storable(item, jar, 'the item')
        work = Work(uuid.uuid4().hex, item)
        self.index[work.id] = (moment(), work)
        self._offer(work, high)
        self._tell('publish', Item(work.id, item))
        return work.id

    publish = put

    def _offer(self, work, high=False):
        """Let it be claimed, after all that are there."""
        key = moment()
        place, _ = self._line(high).add(self._p_jar, key, work.id)
        work.state, work.where, work.expires = AVAILABLE, (high, place, key), None
        notify(FeedChanged(self, None, work.id))

    def get(self, timeout=None):
        return self._wait_for(self._take, timeout)

    def _take(self):
        now = clock.micros()
        self._reclaim(now)
        id = self._first_free()
        if id is None:
            return ()
        work = self.index[id][1]
        lease = self._setting('lease', LEASE_SECONDS)
        work.state, work.where = CLAIMED, None
        work.token += 1
        work.expires = now + clock.micros_in(lease)
        self.leases[_timed(work.expires, id)] = id
        claimed = ClaimedItem(id, work.item, work.failures)
        claimed.token = work.token
        return claimed

    def _reclaim(self, now):
        """Offer again what was claimed and not finished in time."""
        jar = self._p_jar
        transaction = jar.transaction_manager.get()
        for key in _due(self.leases, now):
            # All who wait for work come here when a claim ends: one of them is enough.
            if reserve(transaction, jar.db(), self._p_oid, key):
                work = self.index[self.leases.pop(key)][1]
                work.failures += 1
                self._offer(work)

    def _next_change(self):
        first = self.leases.first()
        return None if first is None else max(0, _time_of(first) - clock.micros()) / clock.SECOND

    # what a worker says

    def finish(self, id, item=None, result=None, timeout=None):
        self._live()
        check_storable(item, self._p_jar, 'the result')
        if timeout is not None:
            check_seconds('timeout', timeout)
        work = self._claimed(id, 'finish', may_be_late=True)
        self._take_away(work)
        del self.index[work.id]
        work.state = FINISHED
        now = clock.micros()
        if result or (result is None and item is not None):
            work.result = item
            work.expires = now + clock.micros_in(RESULT_SECONDS if timeout is None else timeout)
            self.results[work.id] = (moment(), work)
            self.endings[_timed(work.expires, work.id)] = work.id
        for key in _due(self.endings, now):
            del self.results[self.endings.pop(key)]
        self._tell('finish', Item(work.id, item))

    def cancel(self, id):
        self._live()
        work = self._claimed(id, 'cancel')
        self._take_away(work)
        work.failures += 1
        self._offer(work)

    def stall(self, id):
        self._live()
        work = self._work(id)
        if work.state == STALLED:
            raise self._wrong(work, 'stall', AVAILABLE, CLAIMED)
        self._take_away(work)
        work.state, work.where, work.expires = STALLED, None, None
        work.failures = 0

    def retry(self, id):
        self._live()
        work = self._work(id)
        if work.state != STALLED:
            raise self._wrong(work, 'retry', STALLED)
        self._offer(work)

    def retract(self, id):
        self._live()
        if id in self.results:
            work = self.results.pop(id)[1]
            del self.endings[_timed(work.expires, id)]
        else:
            work = self._work(id)
            self._take_away(work)
            del self.index[work.id]
        self._tell('retract', Item(work.id))

    def _take_away(self, work):
        """Take it out of the lanes or the claims."""
        if work.state == AVAILABLE:
            high, place, key = work.where
            self._line(high).remove(place, key)
        elif work.state == CLAIMED:
            del self.leases[_timed(work.expires, work.id)]

    def _work(self, id):
        id = id.id if isinstance(id, ClaimedItem) else id
        found = self.index.get(id) if isinstance(id, str) else None
        if found is None:
            raise LookupError(f'job feed {self.name!r} has no unfinished item {id!r}')
        return found[1]

    def _claimed(self, id, verb, may_be_late=False):
        """The Work of an id, or of what `get` returned; it must be claimed, and by this claim."""
        token = id.token if isinstance(id, ClaimedItem) else None
        if token is not None and id.id not in self.index:
            raise ClaimLost(f'{id.id!r} of job feed {self.name!r} is finished or retracted')
        work = self._work(id)
        if token not in (None, work.token):
            raise ClaimLost(
                f'the claim of {work.id!r} ended and it was claimed again: abort, and leave it'
            )
        late = may_be_late and token is not None and work.state == AVAILABLE
        if work.state != CLAIMED and not late:
            raise self._wrong(work, verb, CLAIMED)
        return work

    def _wrong(self, work, verb, *wanted):
        return LookupError(
            f'job feed {self.name!r}: to {verb} {work.id!r} it must be {" or ".join(wanted)},'
            f' and it is {work.state}'
        )

    # look

    def get_result(self, id, timeout=None):
        id = id.id if isinstance(id, ClaimedItem) else id
        return self._wait_for(lambda: self._result(id), timeout)

    def _result(self, id):
        found = self.results.get(id)
        if found is not None and found[1].expires > clock.micros():
            return Finished(found[1].item, found[1].result)
        if id in self.index:
            return ()
        raise LookupError(
            f'job feed {self.name!r} has no result for {id!r}: it was retracted, finished without'
            f' a result, or the result is not kept any more'
        )

    def get_ids(self):
        found = sorted((number, id) for id, (number, _) in self.index.items())
        return [id for _, id in found]

    def get_item(self, id):
        found = self.index.get(id) if isinstance(id, str) else None
        return None if found is None else found[1].item

    def get_state(self, id):
        return self._work(id).state

    def get_failure_count(self, id):
        return self._work(id).failures

    def __contains__(self, id):
        return isinstance(id, str) and id in self.index

    def __len__(self):
        return len(self.index)


def _timed(us, id):
    """A key that sorts by time."""
    return f'{us:016x}{id}'


def _time_of(key):
    return int(key[:16], 16)


def _due(tree, now):
    """Up to SWEEP_LIMIT keys of `tree` whose time has come."""
    found, key = [], tree.first()
    while key is not None and _time_of(key) <= now and len(found) < SWEEP_LIMIT:
        found.append(key)
        key = tree.next_key(key)
    return found
