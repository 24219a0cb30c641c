"""LoopRunner: lets the agents of a queue work a loop.

A *turn* takes a batch for a free place and puts a job for it; that job does the
work and says `did`, in one commit, and its callback is the place's next turn.
When there is nothing to take, the runner sleeps: one job waits for the moment when
the next id is due, and who makes an id due earlier puts a turn in his own
transaction.  A transaction that was open while a turn was made may know of no
need for that, and what it leaves was not seen by the turn; so some *looks* follow
a turn, less and less often, and each of them is a turn itself.

A turn runs in a job's transaction, `wake` in that of whoever uses the loop.
"""

import inspect
import itertools
import logging

from persistent import Persistent
from zope.event import notify
from zope.interface import implementer

from zodbjobs import clock, status
from zodbjobs.interfaces import ILoop, ILoopRunner, LoopFresh, LoopLate
from zodbjobs.model.call import call_name, resolved, stored_form
from zodbjobs.model.job import Job
from zodbjobs.model.loop import longest
from zodbjobs.model.retry import RetryCommonForever

log = logging.getLogger('zodbjobs.events')

#: Seconds after a turn when a runner looks once more, unless something is due before: what was
#: said in a transaction that was open meanwhile is found at the latest so long after the turn.
#: Then it looks each time when ids may be updated again, at most as often as at last.
LOOKS_SECONDS = 2, 60, 600, 3600

#: When the next id of a loop without ids is due, in microseconds.
NEVER = 2**62

WISHES = {
    'priority', 'channel', 'quota_names', 'retries', 'failure_log_level',
    'retry_policy_factory', 'result_ttl', 'time_limit',
}  # fmt: skip

_UNDER_WAY = (status.PENDING, status.ASSIGNED, status.ACTIVE)


class TurnRetries(RetryCommonForever):
    """A turn is made, whatever stands in its way: nobody else would make the next one."""

    def ownError(self, failure, data_cache):
        return self._wait(self._count(data_cache, 'errors'))


class Orders(Persistent):
    """What `start` and `stop` say; turns only read it, so the two do not conflict."""

    queue = None
    running = False
    places = ()
    wishes = ()


class Place(Persistent):
    """Where one job works on a batch; an object of its own, as places turn at the same time."""

    job = None

    def is_taken(self):
        try:
            return self.job is not None and self.job._status in _UNDER_WAY
        except (AttributeError, KeyError):  # its class is gone, or, with a POSKeyError, its record
            return False


@implementer(ILoopRunner)
class LoopRunner(Persistent):
    """See ILoopRunner.

    `call` gets an id, or with a `batch` of more than 1 the list of them; it must
    have done its work when it returns.  Ids whose latest lease ended by itself are
    given to a job of their own, so that one bad id does not keep others back.
    """

    told_late = False
    _v_works = False
    _alarm = None  # the job that waits for the next id to be due
    _asleep_since = None  # microseconds of the latest turn that was no look; None: see the next
    _asleep_until = None  # microseconds; None while all places are taken

    def __init__(self, loop, call, batch=1, lock_for=3600, min_loop_time=3600, fresh=None):
        if not ILoop.providedBy(loop):
            raise TypeError(f'a loop is needed, not {loop!r}')
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise ValueError(f'batch is a whole number from 1 on, not {batch!r}')
        if fresh is not None and clock.micros_in(fresh) <= 0:
            raise ValueError(f'fresh is more than 0 seconds, not {fresh!r}')
        loop.get(0, lock_for, min_loop_time)  # raises if they are no spans
        self.orders = Orders()
        self.loop = loop
        self._call = stored_form(call)
        self.batch = batch
        self.lock_for = lock_for
        self.min_loop_time = min_loop_time
        self.fresh = fresh

    @property
    def call(self):
        return resolved(self._call)

    @property
    def queue(self):
        return self.orders.queue

    @property
    def running(self):
        return self.orders.running

    @property
    def size(self):
        return len(self.orders.places)

    @property
    def jobs(self):
        return tuple(place.job for place in self.orders.places if place.is_taken())

    @property
    def call_name(self):
        """The dotted name of what is called; never raises."""
        return call_name(self._call)

    @property
    def late(self):
        oldest = None if self.fresh is None else self.loop.oldest()
        if oldest is None:
            return None
        over = oldest - clock.micros_in(self.fresh) / clock.SECOND
        return over if over > 0 else None

    def start(self, queue, size=1, **wishes):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f'size is a whole number from 1 on, not {size!r}')
        unknown = set(wishes) - WISHES
        if unknown:
            raise TypeError(f'{sorted(unknown)}: a runner may wish {sorted(WISHES)} of its jobs')
        orders = self.orders
        former = orders.places[:size]
        orders.places = former + tuple(Place() for _ in range(size - len(former)))
        orders.queue, orders.wishes = queue, tuple(sorted(wishes.items()))
        orders.running = True
        if self not in self.loop.runners:
            self.loop.runners += (self,)
        self._put_turn(self.turn)

    def stop(self):
        self.orders.running = False
        self.loop.runners = tuple(each for each in self.loop.runners if each is not self)
        self._silence(self._alarm)

    def wake(self, moment):
        """An id may be taken at `moment` (microseconds): see that there is a turn then."""
        until = self._asleep_until
        if until is not None and moment < until and self.running and not self._v_works:
            self._put_turn(self.turn, moment)

    # what jobs call

    def look(self):
        """Make a turn that nobody has asked for."""
        self.turn(asked=False)

    def turn(self, number=None, result=None, asked=True):
        """Put jobs for what is due, and see to the next turn.

        `number` is the place whose job has just ended, with that `result`; None
        for all places.
        """
        if not self.running:
            return
        numbers = range(self.size)
        if number is not None and self._asleep_until is None:  # the other places are taken
            numbers = numbers[number : number + 1]
        has_room = False
        for number in numbers:
            place = self.orders.places[number]
            if place.is_taken():
                continue
            batch = self._take()
            if not batch:
                has_room = True
                break
            place.job = self._put_work(batch, number)
        self._mind_freshness()
        self._sleep(has_room, asked)

    def work(self, batch):
        """Call what is to be called with the ids of `batch`, and say `did`: one commit."""
        held = self.loop.held(batch)
        if not held:
            log.info('%r: the lease of %d ids ended before their job began', self, len(batch))
            return None
        value = self.call(held[0] if self.batch == 1 else held)
        if inspect.isawaitable(value) or hasattr(value, 'addCallback'):
            if inspect.iscoroutine(value):
                value.close()
            raise TypeError(
                f'{self.call_name} answered {value!r}: what a LoopRunner calls must have'
                f' done its work when it returns, so that "did" can be said in the same commit'
            )
        self._v_works = True  # its callback will be a turn
        try:
            self.loop.did(held)
        finally:
            self._v_works = False
        return value

    # how a turn is made

    def _take(self):
        count = self.batch
        if count > 1:
            ids = self._get(count, test=True)
            bad = [bool(each) for each in self.loop.failures(ids).values()]
            count = 1 if bad[:1] == [True] else sum(1 for _ in itertools.takewhile(_not, bad))
        return self._get(count) if count else []

    def _get(self, count, test=False):
        return self.loop.get(count, self.lock_for, self.min_loop_time, test)

    def _put_work(self, batch, number):
        job = Job(self.work, batch)
        job.addCallback(Job(self.turn, number), retry_policy_factory=TurnRetries)
        return self.queue.put(job, **dict(self.orders.wishes))

    def _put_turn(self, call, moment=None):
        """Put a job that makes a turn by that `call`, now or at `moment` (microseconds)."""
        begin_after = None if moment is None else clock.datetime_of(max(0, moment))
        return self._put(Job(call), begin_after, retry_policy_factory=TurnRetries)

    def _put(self, job, *args, **wishes):
        """Put a job of the runner's own where those that work are put."""
        for name, value in self.orders.wishes:
            if name in ('channel', 'priority'):
                wishes[name] = value
        return self.queue.put(job, *args, **wishes)

    def _sleep(self, has_room, asked):
        """See that there is a turn when something can be taken, or has to be told."""
        now, look = clock.micros(), None
        if has_room:
            due = self.loop.next_due(self.min_loop_time)
            until = NEVER if due is None else max(clock.micros_of(due), now + clock.SECOND)
            moments = [until]
            if asked or self._asleep_since is None:
                self._asleep_since = now
            if self._asleep_until != until:
                self._asleep_until = until
            look = self._next_look(now)
        else:
            # The jobs will call; if they were taken away, their leases end.
            moments = [now + longest(self.lock_for)]
            if self._asleep_until is not None:  # places turn at the same time: else write nothing
                self._asleep_since = self._asleep_until = None
        if self.fresh is not None and not self.told_late:
            oldest = self.loop.oldest()
            if oldest is not None:
                rest = clock.micros_in(self.fresh) - round(oldest * clock.SECOND)
                moments.append(now + max(rest, 0) + clock.SECOND)
        moment = min(moments)
        if look is not None and look < moment:
            self._set_alarm(self.look, look)
        else:
            self._set_alarm(self.turn, moment)

    def _next_look(self, now):
        """Microseconds."""
        looks = (self._asleep_since + seconds * clock.SECOND for seconds in LOOKS_SECONDS)
        last = now + max(clock.micros_in(self.min_loop_time), LOOKS_SECONDS[-1] * clock.SECOND)
        return next((look for look in looks if look > now), last)

    def _set_alarm(self, call, moment):
        """See that a turn waits for `moment` (microseconds); one that comes before will do."""
        alarm = self._alarm
        if alarm is not None and alarm.status == status.PENDING and alarm._due <= moment:
            return
        self._silence(alarm)
        self._alarm = self._put_turn(call, moment)

    @staticmethod
    def _silence(alarm):
        if alarm is not None and alarm.status == status.PENDING:
            alarm.queue.remove(alarm)

    # the promise

    def _mind_freshness(self):
        """Put a job that tells, when the promise is broken and when it is kept again."""
        late = self.late
        if (late is not None) != self.told_late:
            self.told_late = late is not None
            self._put(Job(self.tell_freshness, late))

    def tell_freshness(self, late):
        """Log and fire that the promise is broken, by `late` seconds, or with None that it is kept.

        A job of its own: a subscriber may write, and if it raises, no turn is lost.
        """
        if late is None:
            log.info('%r is again as fresh as promised', self)
            notify(LoopFresh(self))
        else:
            log.warning(
                '%r: the oldest id has waited %.0f seconds, and %s are promised',
                self, late + clock.micros_in(self.fresh) / clock.SECOND, self.fresh,
            )  # fmt: skip
            notify(LoopLate(self, late))

    def __repr__(self):
        return f'<LoopRunner {self.call_name}>'


def _not(value):
    return not value
