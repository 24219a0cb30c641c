"""Copies are fenced: a worker serves only the deployment that it belongs to.

A database may carry the name of its deployment ('production'), and so may a
worker's configuration.  A copy of the database carries the name too, so a
worker that is started on it without that name, or with another, claims
nothing: production's jobs are not run a second time.  Whoever wants to use the
copy adopts it.

Runs in a dispatcher's transaction, or in that of the command ``zodbjobs adopt``.
"""

import os

from zodbjobs.model.claim import take_back

#: A time (microseconds) at which every lease has ended.
FOR_EVER = 2**60

#: Gives a worker its deployment where no argument does.
VARIABLE = 'ZODBJOBS_DEPLOYMENT'


def configured(deployment=None):
    """The deployment of this process: the argument, else the environment's, else None."""
    return deployment or os.environ.get(VARIABLE) or None


def objection(queues, deployment):
    """Why a worker of `deployment` (a text or None) may not serve these queues, or None."""
    owner = getattr(queues, 'deployment', None)
    if owner is None or owner == deployment:
        return None
    mine = 'names no deployment' if deployment is None else f'belongs to {deployment!r}'
    return (
        f'the database belongs to the deployment {owner!r}, and this worker {mine}: it claims'
        f' nothing.  If this is that deployment, start the worker with --deployment {owner}'
        f' (or {VARIABLE}={owner}).  If this is a copy, `zodbjobs adopt URI` makes it yours,'
        f' with its jobs, or without them by --discard'
    )


def mark(queues, deployment):
    """Let an unmarked database belong to `deployment`; True if that was written."""
    if deployment is None or getattr(queues, 'deployment', None) is not None:
        return False
    queues.deployment = deployment
    return True


def adopt(queues, deployment, discard=False):
    """Let the database belong to `deployment` (None: to nobody).

    Returns how many jobs were discarded.  With `discard` the jobs that wait, are held
    or were running are taken out.  Otherwise they are kept, and what was running is given
    back as interrupted.
    """
    queues.deployment = deployment
    count = 0
    for queue in queues.values():
        for record in queue.dispatchers.values():
            if record.activated is not None:
                record.died()
        while take_back(queue, FOR_EVER):  # what consumers have claimed
            pass
        if discard:
            count += queue.clear()
            for job in list(queue.held.values()):
                queue.remove(job)
                count += 1
    return count
