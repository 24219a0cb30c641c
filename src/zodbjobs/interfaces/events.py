"""The events, fired by ``zope.event.notify``."""

from zope.interface import Attribute, Interface, implementer


class ObjectEvent:
    """Something happened to `object`."""

    def __init__(self, object):
        self.object = object

    def __repr__(self):
        return f'<{type(self).__name__} {self.object!r}>'


class ObjectAdded(ObjectEvent):
    """The mapping of queues, or a queue, was put in its place.

    `parent` is what holds it, `name` the key it has there.
    """

    def __init__(self, object, parent=None, name=None):
        super().__init__(object)
        self.parent = parent
        self.name = name


class DispatcherRegistered(ObjectEvent):
    """A record for a dispatcher was made; `object` is its IDispatcherAgents."""


class DispatcherUnregistered(ObjectEvent):
    """The record of a dispatcher was removed."""


class DispatcherActivated(ObjectEvent):
    """A dispatcher began to serve this queue."""


class DispatcherDeactivated(ObjectEvent):
    """A dispatcher stopped, or was proved dead."""


class DispatcherReactivated(ObjectEvent):
    """A dispatcher that was wrongly held for dead serves this queue again."""


class _QueueEvent(ObjectEvent):
    """Something happened to a job on its way; `queue` is its queue."""

    def __init__(self, object, queue):
        self.object = object
        self.queue = queue

    @property
    def connection(self):
        """The ZODB connection whose commit lets others see it."""
        return self.queue._p_jar


class JobAdded(_QueueEvent):
    """A job was put; it will be seen by others when the transaction commits.

    Dispatchers are woken (`rings`) when the transaction of `connection` is committed.
    """

    rings = True


class JobFiled(_QueueEvent):
    """A dispatcher has to look at a job again: it came back, or may go on now.

    `object` is None when that is said of all jobs.  It wakes dispatchers as `JobAdded` does.
    """

    rings = True


class JobClaimed(ObjectEvent):
    """An agent took the job; fired in the dispatcher, after its commit.

    `object` is the runtime's Assignment (no database is at hand then).
    """


class JobStarted(ObjectEvent):
    """The job's call is about to run; fired in its worker, in its transaction."""


class JobCompleted(ObjectEvent):
    """The job has its result; fired in the transaction that stores it."""


class JobRescheduled(ObjectEvent):
    """The job will run again, at its begin_after or at once."""


class JobInterrupted(ObjectEvent):
    """The job's worker ended before the job did."""


class FeedChanged(ObjectEvent):
    """Something happened to a feed; fired in the transaction that does it.

    `kind` says what ('publish' ...), or is None where no notice tells of it; `id`
    is the item's.  Who listens to feeds is woken at the commit, and dispatchers are not.
    """

    rings = 'feeds'

    def __init__(self, object, kind=None, id=None):
        super().__init__(object)
        self.kind = kind
        self.id = id

    @property
    def connection(self):
        """The ZODB connection whose commit lets others see it."""
        return self.object._p_jar


class _DeliveryEvent(ObjectEvent):
    """Something that only the runtime can do for a feed."""

    delivery = True


class ArrivalAwaited(_DeliveryEvent):
    """Somebody waits for something to come to the feed `object`.

    He may wait `seconds` (None: for ever), and something will come by itself
    after `sooner` seconds (None: nothing will).  Whoever waits for him sets `seconds` to
    what is left, and `again` to True if it is worth looking again.  The event is
    fired as often as he looks; `ends` are called when he looks no more.
    """

    again = False

    def __init__(self, object, seconds=None, sooner=None):
        super().__init__(object)
        self.seconds = seconds
        self.sooner = sooner
        self.ends = []

    def close(self):
        """He does not wait any more."""
        while self.ends:
            self.ends.pop()()


class HandlerRegistered(_DeliveryEvent):
    """Notices of `kind` shall be delivered to `handler`; see IFeeds.register_handler."""

    def __init__(self, object, kind=None, handler=None, since=None, feed=None):
        super().__init__(object)
        self.kind = kind
        self.handler = handler
        self.since = since
        self.feed = feed


class HandlerRemoved(_DeliveryEvent):
    """Notices of `kind` shall not be delivered to `handler` any more."""

    def __init__(self, object, kind=None, handler=None):
        super().__init__(object)
        self.kind = kind
        self.handler = handler


class LoopLate(ObjectEvent):
    """An id has waited longer than a LoopRunner (`object`) promises; `seconds`: how much longer.

    Fired once, in a job of its own, whose commit has what a subscriber writes.
    """

    def __init__(self, object, seconds=0.0):
        super().__init__(object)
        self.seconds = seconds


class LoopFresh(ObjectEvent):
    """The loop of a LoopRunner (`object`) is again as fresh as promised; fired as LoopLate is."""


class IDatabaseOpenedEvent(Interface):
    """A database was opened and may be served."""

    database = Attribute('the ZODB.DB')


@implementer(IDatabaseOpenedEvent)
class DatabaseOpened:
    """Tell the installers that `database` (a ZODB.DB) may be served."""

    def __init__(self, database):
        self.database = database
