"""Which dispatchers live: who must be buried, and how to be seen alive.

The witness (a record lock, an advisory lock, an exclusive storage) proves life
and death at once.  Where none of them reaches, as between hosts on ZEO, a lease
takes its place: whoever holds jobs shows a sign in the database at least every
`BEAT_SECONDS`, and claims count as signs.  A sibling whose sign has not changed
for `LEASE_SECONDS`, measured by our own clock from when we first saw it, has
lost its lease.  No two hosts' clocks are compared, and whoever holds no job
writes nothing.

Who lives may be stuck all the same: its process stopped, its reactor blocked by
a call, a pass that hangs.  So whoever makes its passes in time touches the file
of its record lock, and a session of PostgreSQL shows by itself when it was
active.  A sibling that has not done so for `STUCK_SECONDS` is told of, in the log
and in its record.  It keeps its jobs, as they may be running.

Used by the dispatcher in its passes; `somebody_died` reads no database.
"""

from zodbjobs import clock
from zodbjobs.model.intake import size_of

#: Seconds between signs of a dispatcher that holds jobs and has claimed nothing else.
BEAT_SECONDS = 20

#: Seconds without a new sign after which the holder of jobs has lost them.
LEASE_SECONDS = 75

#: Seconds between two questions to the witness whether the siblings live.
LOOK_SECONDS = 1

#: Seconds between two signs, outside the database, that we do our work.
SHOW_SECONDS = 10

#: Seconds without such a sign of a living sibling after which it is called stuck.
STUCK_SECONDS = 60


class Liveness:
    """What one dispatcher knows of the life of its siblings, and shows of its own."""

    def __init__(self, witness):
        self.witness = witness
        self._siblings = set()  # (uuid, place) of those that were active at the last look
        self._signs = {}  # record's oid -> (sign, since when we know it: monotonic seconds)
        self._shown = clock.monotonic()  # when we committed a sign last
        self._seen = 0.0  # when we gave the witness a sign last

    @property
    def needs_looks(self):
        """Whether siblings may exist in other processes."""
        return not self.witness.exclusive

    def remember(self, queues, mine):
        """Note the siblings that are active in these queues; `mine` is our own UUID."""
        self._siblings = {
            (record.UUID, record.host)
            for queue in queues.values()
            for record in queue.dispatchers.values()
            if mine != record.UUID and record.activated is not None
        }

    def somebody_died(self):
        """Whether the witness proves one of the siblings dead.  Reads no database."""
        return any(self.witness.sees_alive(*sibling) is False for sibling in self._siblings)

    def work(self):
        """We do our work: let siblings see it.  Writes nothing to the database."""
        now = clock.monotonic()
        if now - self._seen >= SHOW_SECONDS:
            self._seen = now
            self.witness.show()

    def is_stuck(self, record):
        """Whether the dispatcher of an active record lives and does nothing; None: not known."""
        silence = self.witness.silence(record.UUID, record.host)
        return None if silence is None else silence >= STUCK_SECONDS

    def is_dead(self, record):
        """Whether the dispatcher of an active record is dead, or has lost its lease."""
        alive = self.witness.sees_alive(record.UUID, record.host)
        if alive is not None:
            self._signs.pop(record._p_oid, None)
            return not alive
        return self._has_lost_its_lease(record)

    def _has_lost_its_lease(self, record):
        sign = sign_of(record)
        now = clock.monotonic()
        known, since = self._signs.get(record._p_oid, (None, now))
        if sign != known:
            self._signs[record._p_oid] = (sign, now)
            return False
        holds = any(size_of(agent.running) for agent in record.values())
        return holds and now - since >= LEASE_SECONDS

    def showed(self):
        """A claim or another sign of ours was committed."""
        self._shown = clock.monotonic()

    def must_show(self):
        """Whether it is time for a sign, if we hold jobs."""
        return self.witness.needs_lease and clock.monotonic() - self._shown >= BEAT_SECONDS


def sign_of(record):
    """What changes with every sign of a dispatcher: the serials of its beat and its lists."""
    parts = [record.beat, *(agent.running for agent in record.values())]
    for part in parts:
        part._p_activate()
    return tuple(part._p_serial for part in parts)
