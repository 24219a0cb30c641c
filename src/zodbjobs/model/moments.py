"""The time as a key that grows: what comes later sorts later, and no two are alike.

No database; any thread.
"""

import itertools
import random

from zodbjobs import clock

#: Bits of a moment that are not time.
TIE_BITS = 10
_TIES = (1 << TIE_BITS) - 1

#: Two calls of one process in the same microsecond are kept in order by moving the
#: later one on, at most so far: beyond that the clock was set back.
DRIFT = clock.SECOND


class Moments:
    """The time as a growing number, never the same one twice."""

    def __init__(self):
        self._latest = 0
        self._ties = itertools.count(random.getrandbits(TIE_BITS))

    def __call__(self):
        now = clock.micros()
        if self._latest >= now > self._latest - DRIFT:
            now = self._latest + 1
        self._latest = now
        return now << TIE_BITS | next(self._ties) & _TIES


#: ``moment()``: now, as a key.  Ties of several threads are told apart by the low bits.
moment = Moments()


def micros_of(key):
    """The microseconds of a moment."""
    return key >> TIE_BITS
