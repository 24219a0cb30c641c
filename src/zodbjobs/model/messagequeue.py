"""Queues of messages: each is taken by one reader, in the reader's own transaction.

A message that was taken is back if that transaction is aborted.  Putting
conflicts with nobody.  Two readers of one process take different messages;
those of two processes may meet at the first one, and one of them conflicts.

Runs in the caller's transaction; the waiting of `get` is done by the runtime.
"""

import uuid

from zope.event import notify
from zope.interface import implementer

from zodbjobs.interfaces import FeedChanged, IMessageQueue
from zodbjobs.model.call import check_storable
from zodbjobs.model.feed import FeedRecord
from zodbjobs.model.lanes import Lanes
from zodbjobs.model.log import Item
from zodbjobs.model.moments import moment
from zodbjobs.model.reservations import reserve


@implementer(IMessageQueue)
class MessageQueue(FeedRecord):
    """See IMessageQueue."""

    kind = 'queue'

    #: For `put`: before all that is not.
    HIGH = True

    def __init__(self, feeds, name):
        super().__init__(feeds, name)
        self.high = Lanes()  # {moment: Item}
        self.normal = Lanes()

    def put(self, item, priority=None):
        jar = self._live()
        check_storable(item, jar, 'the item')
        message = Item(uuid.uuid4().hex, item)
        self._lanes_of(priority).add(jar, moment(), message)
        notify(FeedChanged(self, 'publish', message.id))
        return message.id

    publish = put

    def _lanes_of(self, priority):
        if priority not in (None, False, True):
            raise ValueError(f'priority is None or HIGH, not {priority!r}')
        return self.high if priority else self.normal

    def get(self, timeout=None):
        return self._wait_for(self._take, timeout)[0]

    def _take(self):
        """(the item,) of the first message that nobody takes; () if there is none."""
        found = first_free(self, (self.high, self.normal))
        return (found.value,) if found else ()

    def get_ids(self):
        """See IMessageQueue.get_ids."""
        return [
            message.id for lanes in (self.high, self.normal) for _, _, message in lanes.in_order()
        ]

    def __len__(self):
        return len(self.high) + len(self.normal)

    def __iter__(self):
        return iter(self.get_ids())

    def oids(self):
        return super().oids() | self.high.oids() | self.normal.oids()

    def deleted(self):
        self.high.close_all()
        self.normal.close_all()
        return super().deleted()


def first_free(feed, all_lanes):
    """Take the first entry that no other transaction of this process takes, and return its value.

    None if there is none.
    """
    jar = feed._p_jar
    transaction = jar.transaction_manager.get()
    for lanes in all_lanes:
        for key, place, value in lanes.walk():
            if reserve(transaction, jar.db(), feed._p_oid, place, key):
                lanes.remove(place, key)
                return value
    return None
