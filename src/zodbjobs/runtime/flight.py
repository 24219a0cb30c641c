"""What takes a slot here, from the claim to the report, and what of it needs no thread now.

Used by the dispatcher, in any thread; its guard is the one that reports, rings
and counts share, so that none of them is seen without the others.
"""

import dataclasses

from twisted.internet.defer import Deferred

from zodbjobs.interfaces import TimeLimitExceeded
from zodbjobs.runtime.pool import in_time


class Flight(dict):
    """{filing: Assignment}; knows how many there are of each agent."""

    def __init__(self):
        self._counts = {}  # (queue name, agent name) -> how many

    def begin(self, assignment):
        """It takes a slot from now on."""
        if assignment.filing not in self:
            self[assignment.filing] = assignment
            self._count(assignment, 1)

    def end(self, assignment):
        """It takes none any more, if it did."""
        if self.pop(assignment.filing, None) is not None:
            self._count(assignment, -1)

    def _count(self, assignment, change):
        key = assignment.queue, assignment.agent
        count = self._counts.get(key, 0) + change
        if count:
            self._counts[key] = count
        else:
            del self._counts[key]

    def count(self, queue, agent):
        """How many of an agent there are."""
        return self._counts.get((queue, agent), 0)

    def queues(self):
        """The set of the names of queues of which there are any."""
        return {queue for queue, _ in list(self._counts)}

    def clear(self):
        super().clear()
        self._counts.clear()


@dataclasses.dataclass
class _Wait:
    """A job that waits for a Deferred or a coroutine."""

    assignment: object
    is_deferred: bool
    cancel: object = None  # asks it to stop
    was_asked: bool = False  # to stop


class Threadless:
    """Those in flight that wait for a Deferred or a coroutine: they have a slot and no thread.

    `await_value(value, fired)` has `fired` called once with what `value` gives, and
    returns what cancels that.
    """

    def __init__(self, guard, await_value):
        self._guard = guard
        self._await_value = await_value
        self._waits = {}  # filing -> _Wait

    def __len__(self):
        return len(self._waits)

    def clear(self):
        self._waits.clear()

    def assignments(self):
        with self._guard:
            return [wait.assignment for wait in self._waits.values()]

    def deferred_count(self):
        """How many do not wait for a coroutine."""
        with self._guard:
            return sum(wait.is_deferred for wait in self._waits.values())

    def has_of(self, queue, agent):
        """Whether a job of that agent waits: nobody knows how long."""
        return any((a.queue, a.agent) == (queue, agent) for a in self.assignments())

    def begin(self, assignment, value, fired):
        """The job waits; `fired(assignment, value)` is called if it comes to its end so."""
        wait = _Wait(assignment, isinstance(value, Deferred))
        with self._guard:
            self._waits[assignment.filing] = wait
        cancel = self._await_value(value, lambda value: self._fired(wait, value, fired))
        with self._guard:
            wait.cancel = cancel
            was_asked = wait.was_asked
        if was_asked:  # before there was anybody to be told
            cancel()

    def _fired(self, wait, value, fired):
        with self._guard:
            if self._waits.get(wait.assignment.filing) is not wait:
                return  # too late: the job was cancelled, or handed back
            del self._waits[wait.assignment.filing]
        if wait.was_asked:
            value = in_time(value, TimeLimitExceeded('it was asked to stop, as its time was up'))
        fired(wait.assignment, value)

    def end(self, assignment):
        """Whether it did still wait: it does no more, and what it waits for is told so."""
        with self._guard:
            wait = self._wait_of(assignment)
            if wait is not None:
                del self._waits[assignment.filing]
        self._ask(wait)
        return wait is not None

    def _wait_of(self, assignment):
        wait = self._waits.get(assignment.filing)
        return wait if wait is not None and wait.assignment is assignment else None

    def ask(self, assignment):
        """Its time is up: what it waits for is cancelled, as Twisted and asyncio do."""
        with self._guard:
            wait = self._wait_of(assignment)
        self._ask(wait)

    def _ask(self, wait):
        if wait is not None:
            with self._guard:
                wait.was_asked = True
                cancel = wait.cancel
            if cancel is not None:
                cancel()
