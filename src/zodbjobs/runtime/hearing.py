"""What a dispatcher listens to: commits to the databases in which its queues lie.

The queues may lie in another database of a multi-database than the one that is
served, each queue in its own.  Where a storage pushes, it is told which objects
change when there is work.

Used by the dispatcher, in its passes; rings come in any thread.
"""

from zodbjobs.runtime import wakeup


class Hearing:
    """Calls `ring` when a commit to `db`, or where queues of it lie, may have brought jobs."""

    def __init__(self, db, ring):
        self._ring = ring
        self._known = {}  # oid of an intake -> (serials of its lanes, what is watched there)
        self._listeners = {db: wakeup.listen(db, ring)}

    @property
    def pushes(self):
        """Whether commits of other processes ring here, at this moment, wherever queues lie."""
        return all(listener.pushes for listener in self._listeners.values())

    def attend(self, queues, uuid, anew=False):
        """Listen where these queues lie, for what concerns the dispatcher `uuid` there.

        With `anew` these are all, and what concerned it before does no more.  True
        if some of the queues lie where nobody listened until now.
        """
        homes = {}
        for queue in queues:
            homes.setdefault(queue._p_jar.db(), []).append(queue)
        new = [db for db in homes if db not in self._listeners]
        for db in new:
            self._listeners[db] = wakeup.listen(db, self._ring)
        for db, listener in list(self._listeners.items()):
            if listener.chooses:
                oids = {_ROOT}.union(*(self._watched_of(each, uuid) for each in homes.get(db, ())))
                if anew or db in new:
                    listener.watch(oids)
                else:
                    listener.watch_also(oids)
        return bool(new)

    def _watched_of(self, queue, uuid):
        """The oids of what changes when there is work in a queue for the dispatcher `uuid`."""
        oids = set(self._of_intake(queue.intake))
        oids.update(quota._p_oid for quota in queue.quotas.values())
        oids.add(queue.settings._p_oid)
        record = queue.dispatchers.get(uuid)
        if record is not None:
            oids.update(agent._p_oid for agent in record.values())
        oids.discard(None)
        return oids

    def _of_intake(self, intake):
        """Its oids; they change with the lanes only."""
        for lane in intake.lanes:
            lane._p_activate()
        serials = [lane._p_serial for lane in intake.lanes]
        known, oids = self._known.get(intake._p_oid, (None, ()))
        if known != serials:
            oids = intake.oids()
            self._known[intake._p_oid] = serials, oids
        return oids

    def close(self):
        """Ring no more."""
        for listener in self._listeners.values():
            listener.close()


#: The oid of the root of every database.
_ROOT = b'\0' * 8
