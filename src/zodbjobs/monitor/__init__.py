"""To see and to steer the jobs of a database, from Python.

    from zodbjobs import monitor

    queues = connection.root()[KEY]
    monitor.jobs(queues, 'pending', callable='index*', limit=10)
    monitor.why(monitor.find(queues, 'nightly'))

These names read, in the caller's transaction, and write nothing.  The command
``zodbjobs`` and the door of a dispatcher's process (`zodbjobs.monitor.door`)
stand on them.
"""

from zodbjobs.monitor.digest import ended_stats, job_stats
from zodbjobs.monitor.doctor import examine, health, lint
from zodbjobs.monitor.reason import why
from zodbjobs.monitor.shown import (
    agent_facts,
    brief,
    dispatcher_facts,
    full,
    queue_facts,
    traceback,
)
from zodbjobs.monitor.view import count, find, jobs, last_completed, next_pending

__all__ = [
    'agent_facts',
    'brief',
    'count',
    'dispatcher_facts',
    'ended_stats',
    'examine',
    'find',
    'full',
    'health',
    'job_stats',
    'jobs',
    'last_completed',
    'lint',
    'next_pending',
    'queue_facts',
    'traceback',
    'why',
]
