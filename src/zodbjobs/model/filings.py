"""The times under which a process files jobs: among equals, first come, first served.

No two filings of a process get the same microsecond, so that their order is told
by their tokens alone.  Any thread of any transaction; nothing here is stored.
"""

from zodbjobs import clock

#: Two filings of one process that fall into the same microsecond are told apart
#: by moving the later one on; so far a token's time may be ahead of its job's.
DRIFT = clock.SECOND

#: So many dates of begin_after are remembered to tell their jobs apart.
DATES = 1000


class Filings:
    """What this process has given out."""

    def __init__(self):
        self._latest = 0
        self._of_date = {}

    def at_once(self, now):
        """`now`, or a little more: later than the filing before."""
        if now > self._latest or self._latest - now > DRIFT:
            self._latest = now
        else:
            self._latest += 1
        return self._latest

    def on(self, date):
        """`date`, or a little more: later than the filing before for the same date."""
        latest = self._of_date.get(date)
        us = date if latest is None or latest - date >= DRIFT else latest + 1
        if len(self._of_date) >= DATES:
            self._of_date = {}
        self._of_date[date] = us
        return us
