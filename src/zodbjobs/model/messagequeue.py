"""Queues of messages: each is taken by one reader, in the reader's own transaction.

A message that was taken is back if that transaction is aborted.  Who conflicts
with whom: see `line`.

Runs in the caller's transaction; the waiting of `get` is done by the runtime.
"""

import uuid

from zope.event import notify
from zope.interface import implementer

from zodbjobs.interfaces import FeedChanged, IMessageQueue
from zodbjobs.model.call import check_storable
from zodbjobs.model.feed import FeedRecord
from zodbjobs.model.line import Line
from zodbjobs.model.log import Item
from zodbjobs.model.moments import moment


@implementer(IMessageQueue)
class MessageQueue(Line, FeedRecord):
    """See IMessageQueue."""

    kind = 'queue'

    def put(self, item, priority=None):
        jar = self._live()
        check_storable(item, jar, 'the item')
        message = Item(uuid.uuid4().hex, item)
        self._line(self._is_high(priority)).add(jar, moment(), message)
        notify(FeedChanged(self, 'publish', message.id))
        return message.id

    publish = put

    def get(self, timeout=None):
        return self._wait_for(self._take, timeout)[0]

    def _take(self):
        """(the item,) of the first message that nobody takes; () if there is none."""
        found = self._first_free()
        return (found.value,) if found else ()

    def get_ids(self):
        """See IMessageQueue.get_ids."""
        return [
            message.id for lanes in (self.high, self.normal) for _, _, message in lanes.in_order()
        ]

    def __len__(self):
        return len(self.high) + len(self.normal)
