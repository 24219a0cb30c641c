"""The records of the dispatchers that serve a queue, and their agents.

Runs in the transaction of a dispatcher that registers, activates or recovers,
or in the application's that edits agents.
"""

import uuid as uuid_module

from BTrees.OOBTree import OOBTree
from persistent import Persistent
from ZODB.broken import Broken
from zope.interface import implementer

from zodbjobs import clock, status
from zodbjobs.interfaces import (
    DispatcherActivated,
    DispatcherDeactivated,
    DispatcherReactivated,
    DispatcherRegistered,
    DispatcherUnregistered,
    IDispatcherAgents,
    IDispatchers,
)
from zodbjobs.model.announce import announce
from zodbjobs.model.history import DAY_SECONDS
from zodbjobs.model.job import WAITS_FOR_JOB

#: The record of a dispatcher that ended so long ago, and of which nothing is left, is dropped.
STALE_SECONDS = 30 * DAY_SECONDS


class _Mapping(Persistent):
    """What the two mappings here share: an OOBTree, seen from outside."""

    def __init__(self):
        self._items = OOBTree()

    def parts(self):
        """The objects of which one changes when something is put here, or taken away."""
        return (self._items,)

    def _key(self, key):
        return key

    def get(self, key, default=None):
        return self._items.get(self._key(key), default)

    def __getitem__(self, key):
        return self._items[self._key(key)]

    def __contains__(self, key):
        return self._key(key) in self._items

    def __len__(self):
        return len(self._items)

    def __bool__(self):
        return True

    def __iter__(self):
        return iter(self.keys())

    def keys(self):
        return self._items.keys()

    def values(self):
        return self._items.values()

    def items(self):
        return zip(self.keys(), self.values(), strict=True)


class Beat(Persistent):
    """A sign of life, in a record of its own: it is written while jobs are held."""

    count = 0

    def again(self):
        self.count += 1


@implementer(IDispatcherAgents)
class DispatcherAgents(_Mapping):
    """See IDispatcherAgents."""

    activated = None
    ended = None  # microseconds: when it stopped, or was found dead
    dead = False
    stuck = None  # aware UTC datetime: when a sibling found that it makes no passes, though alive
    host = None
    pid = None
    hosts = 0  # what its process has for jobs that need it: bits; see `hosts`

    def __init__(self, uuid, parent):
        super().__init__()
        self.UUID = uuid
        self.parent = parent
        self.beat = Beat()

    @property
    def queue(self):
        return self.parent.parent

    def activate(self, host=None, pid=None, hosts=0):
        if self.activated is not None:
            raise ValueError(f'{self!r} is activated already, since {self.activated}')
        self.emptied()  # an earlier life may have claimed after it was buried
        self.activated = clock.now()
        self.dead = False
        self.stuck = None
        self.host, self.pid = host, pid
        self.found_hosts(hosts)
        announce(DispatcherActivated(self))

    def deactivate(self, begun=()):
        if self.activated is None:
            raise ValueError(f'{self!r} is not activated')
        self.activated = None
        self.ended = clock.micros()
        for agent in self.values():
            hand_back(agent, begun=begun)
        announce(DispatcherDeactivated(self))

    def reactivate(self):
        self.activated = clock.now()
        self.dead = False
        announce(DispatcherReactivated(self))

    def found_hosts(self, hosts):
        """Note what its process has for jobs that need it; whether that is new."""
        if self.hosts == hosts:
            return False
        self.hosts = hosts
        return True

    def found_stuck(self, is_stuck):
        """A sibling has noticed that it does not do its work, or does again."""
        self.stuck = clock.now() if is_stuck else None

    def died(self):
        """It was proved to have ended without saying so; its jobs are interrupted ones."""
        self.activated = None
        self.ended = clock.micros()
        self.dead = True
        for agent in self.values():
            hand_back(agent, interrupted=True)
        announce(DispatcherDeactivated(self))

    def emptied(self):
        """Nobody serves here: what its agents list goes back.  Whether there was anything.

        A claim that was on its way when the dispatcher died does not conflict
        with the burial, and comes after it.
        """
        agents = [agent for agent in self.values() if agent.held_count()]
        for agent in agents:
            hand_back(agent, interrupted=True)
        return bool(agents)

    def is_stale(self, now):
        """Whether it ended long before `now` (microseconds), and nothing of it is left.

        One that never served is kept: somebody configures it.
        """
        if self.activated is not None or self.ended is None:
            return False
        if self.ended > now - STALE_SECONDS * clock.SECOND:
            return False
        return not any(agent.held_count() or len(agent) or agent.history for agent in self.values())

    def __setitem__(self, name, agent):
        if not hasattr(agent, 'running'):
            raise ValueError(f'only an agent can be put here, not {agent!r}')
        if agent.parent is not None and (agent.parent is not self or agent.name != name):
            raise ValueError(f'{agent!r} serves {agent.parent!r} already')
        former = self.get(name)
        if former is agent:
            return
        if former is not None:
            del self[name]
        agent.name = name
        agent.parent = self
        self._items[name] = agent

    def __delitem__(self, name):
        agent = self._items[name]
        if len(agent):
            raise ValueError(
                f'{agent!r} still has {len(agent)} jobs; set its size to 0 and wait for them'
            )
        hand_back(agent)  # what has ended and was not written down yet
        del self._items[name]
        agent.parent = None

    def __repr__(self):
        return f'<DispatcherAgents {self.UUID}>'


@implementer(IDispatchers)
class Dispatchers(_Mapping):
    """See IDispatchers."""

    def __init__(self, queue):
        super().__init__()
        self.parent = queue

    def _key(self, key):
        return str(key)

    def keys(self):
        return [record.UUID for record in self._items.values()]

    def register(self, uuid):
        if not isinstance(uuid, uuid_module.UUID):
            uuid = uuid_module.UUID(str(uuid))
        if uuid in self:
            raise ValueError(f'{uuid} is registered already')
        record = self._items[str(uuid)] = DispatcherAgents(uuid, self)
        announce(DispatcherRegistered(record))
        return record

    def unregister(self, uuid):
        record = self[uuid]
        if record.activated is not None:
            raise ValueError(f'{record!r} is activated since {record.activated}: stop it first')
        for agent in record.values():
            if len(agent):
                raise ValueError(f'{agent!r} of {uuid} still holds {len(agent)} jobs')
        del self._items[str(uuid)]
        announce(DispatcherUnregistered(record))
        return record

    def agent_of(self, job):
        """(agent, whether it was claimed ahead) for a job that some agent runs, or None."""
        oid = job.oid
        for record in self._items.values():
            for agent in record.values():
                found = agent.holds(oid, job._token)
                if found is not None:
                    return agent, found[0]
        return None


def hand_back(agent, interrupted=False, begun=()):
    """Give the jobs that an agent runs back to their queue.

    A job that has its result but not told it yet goes to another worker; one
    that has finished is listed in the history; others wait at their old place.
    `interrupted`: their worker is known to have ended, and they are counted as
    interrupted.  Jobs whose oid is in `begun` were still running when their
    worker was told to stop: that is not counted, but their retry policy is asked
    whether they may begin again.  The same holds for what an ended worker had
    claimed ahead, as nobody knows whether that had begun: it is not claimed ahead
    another time, so it is known the next time, and who ends its worker each time
    takes no others along.  Returns how many went back.
    """
    count = 0
    queue = agent.queue
    for oid, token, job, ahead, _ in agent.entries():
        agent.retired(oid, token)
        if isinstance(job, Broken):
            queue.keep(agent, token, job, clock.micros(), failed=True, ttl=None)
            continue
        if job._token != token:
            if not interrupted:  # after a crash it is not known why; see Queue.settle_count
                queue.ready.forget_stale(token)
            continue
        if job._status in status.FINISHED:
            if job._status == status.CALLBACKS and (interrupted or oid in begun):
                job.telling_was_interrupted(counted=interrupted)
            queue.conclude(agent, job)
        elif job.waits == WAITS_FOR_JOB:
            agent.waiting[oid] = job
        elif interrupted and (not ahead or job.waits is not None):
            job.was_interrupted()
            count += 1
        else:
            job.handed_back(begun=interrupted or oid in begun)
            count += 1
    return count
