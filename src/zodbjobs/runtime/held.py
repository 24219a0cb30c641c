"""What was claimed ahead of the free threads, in the order in which threads come to it.

A claim takes short jobs by the dozen.  One of a higher priority that comes then
need not wait for all of them: it overtakes, which is for the pool to allow and for
the claim to use.

Used by an agent's pool, under its guard.
"""

import bisect

#: So many jobs may have overtaken others and not begun yet; more wait for the next claim.
OVERTAKE_LIMIT = 16


class Held:
    """Assignments by priority, and those of one priority as they came."""

    def __init__(self):
        self._entries = []  # [(priority, number, Assignment)], sorted
        self._first = self._last = 0

    def __len__(self):
        return len(self._entries)

    def append(self, assignment):
        """It comes behind all of its priority."""
        self._last += 1
        bisect.insort(self._entries, (assignment.priority, self._last, assignment))

    def put_back(self, assignments):
        """These come before all of their priority."""
        for assignment in reversed(assignments):
            self._first -= 1
            bisect.insort(self._entries, (assignment.priority, self._first, assignment))

    def pop(self):
        """Remove and return the first one."""
        return self._entries.pop(0)[-1]

    def take_all(self):
        """Remove and return all."""
        found = [assignment for *_, assignment in self._entries]
        self._entries.clear()
        return found

    def is_overtaken_by(self, assignment):
        """Whether it leaves others behind that would wait for it."""
        return bool(self._entries) and self._entries[-1][0] > assignment.priority

    def overtaking(self):
        """(priority, how many): so many jobs of smaller numbers may come before some of these."""
        if not self._entries:
            return 0, 0
        last = self._entries[-1][0]
        ahead = bisect.bisect_left(self._entries, (last,))
        return last, max(0, OVERTAKE_LIMIT - ahead)
