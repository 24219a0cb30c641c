"""What jobs of the tests here say and wait for, and how to see that nothing is left of them.

Jobs are stored by name, so those of a test stand in its own module; `said`, `gate` and
`waiting` are one per process, and the fixture `layer` begins each test with fresh ones.
"""

import threading

import transaction

from zodbjobs import local

#: What the jobs of a test said, in the order they ran.
said = []

#: Lets blocked jobs go on.
gate = threading.Event()

#: Deferreds that jobs returned.
waiting = []


def root():
    """The root of the database, in a job's own connection."""
    return local.getJob()._p_jar.root()


#: Virtual seconds in which two polls come: a job that ended while its thread had not yet told
#: that it waits is listed by the first, and goes with the second.
TWO_POLLS_SECONDS = 10


def is_idle(layer):
    """Nothing is left of any attempt, or soon will be: no slot, no entry, no quota place."""
    layer.reactor.time_flies(5)
    return layer.reactor.wait_until(lambda: nothing_is_left(layer), TWO_POLLS_SECONDS)


def nothing_is_left(layer):
    transaction.begin()
    for quota in layer.queue.quotas.values():
        quota.clean()
    places = [len(quota) for quota in layer.queue.quotas.values()]
    transaction.abort()
    return (
        layer.dispatcher._flight == {}
        and not layer.dispatcher.awaits_deferred
        and layer.agent.held_count() == 0
        and len(layer.agent) == 0
        and len(layer.queue) == 0
        and not any(places)
    )
