"""That a queue has nothing to do for a dispatcher: then a pass need not look at it.

A dispatcher may serve a hundred queues of which two have work.  What would bring
work to an idle one changes one of a few objects, and the connection tells what
was changed by others: it makes a ghost of that.  So a glance at those objects
stands for the look.  Anything missed so is found by the next poll, which looks
everywhere.

Used by the dispatcher, in its passes, with its connection.
"""

import operator

from zodbjobs import clock

#: Objects of one queue that the dispatcher's connection has room for: those that are glanced
#: at are some thirty, and a glance at what has left the cache is a look.
OBJECTS_PER_QUEUE = 60

#: What tells that an object was changed, by others (then it is a ghost) or by us.
_state_of = operator.attrgetter('_p_changed', '_p_serial')


class Idle:
    """`queue` had nothing for the dispatcher of `record` to do before `wake_at` (microseconds).

    `sizes` are those of its agents there, {name: size}.
    """

    def __init__(self, queue, record, wake_at, sizes):
        self.queue = queue
        self.wake_at = wake_at
        self.sizes = sizes
        self.name = queue.name
        #: What the statistics say of a pass that found nothing here, while no job runs.
        self.found = {
            agent: {'size': size, 'len': 0, 'error': None, 'new jobs': [], 'active jobs': []}
            for agent, size in sizes.items()
        }
        self._parts = list(_parts(queue, record))
        for part in self._parts:
            part._p_activate()
        self._states = [(False, part._p_serial) for part in self._parts]

    def holds(self, queue, now):
        """Whether `queue`, as it is in the present transaction, is the same and as it was."""
        return (
            queue is self.queue
            and (self.wake_at is None or now < self.wake_at)
            and list(map(_state_of, self._parts)) == self._states
        )


def make_room(connection, count):
    """Let the caches of `connection` hold what the dispatcher must know of so many queues.

    ZODB's own default is 400 objects, enough for ten.  There is no public way to
    give one connection more than the others of its database have.
    """
    for each in connection.connections.values():  # queues may lie in several databases
        cache = getattr(each, '_cache', None)
        if cache is not None:
            cache.cache_size = max(cache.cache_size, count * OBJECTS_PER_QUEUE)


def _parts(queue, record):
    """What changes when there is work: with new entries, with what others sort, with settings."""
    yield from (queue.settings, queue.ready.waiting, queue.leases.slots, record)
    yield from queue.ready.groups.parts()
    yield from record.parts()
    yield from record.values()
    for lane in queue.intake.lanes:
        yield lane
        yield from (chunk for chunk in lane.values() if chunk is not None)


def still_idle(known, queues, reports):
    """Those of `known`, {queue name: Idle}, that a pass with these Reports need not look at."""
    told = {report.assignment.queue for report in reports}
    now = clock.micros()
    return {
        name: idle
        for name, idle in known.items()
        if name not in told and idle.holds(queues.get(name), now)
    }
