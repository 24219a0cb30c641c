"""Jobs in the ZODB: put in your transaction, run exactly once, nothing beside it.

The public names are here; importing them imports no Twisted reactor.
"""

import importlib

from zodbjobs import local
from zodbjobs.model.agent import Agent
from zodbjobs.model.compose import parallel, serial
from zodbjobs.model.failure import Failure
from zodbjobs.model.job import Job
from zodbjobs.model.queue import Queue, Queues
from zodbjobs.model.retry import (
    NeverRetry,
    RetryCommonForever,
    RetryCommonFourTimes,
    RetryPolicy,
)
from zodbjobs.runtime import wakeup

__all__ = [
    'Agent',
    'Dispatcher',
    'Failure',
    'Job',
    'NeverRetry',
    'Queue',
    'Queues',
    'RetryCommonForever',
    'RetryCommonFourTimes',
    'RetryPolicy',
    'local',
    'parallel',
    'serial',
]

#: Names that bring Twisted with them, and are imported when they are asked for.
_LATER = {'Dispatcher': 'zodbjobs.runtime.dispatcher'}

# A process that only puts wakes dispatchers too.
wakeup.install()


def __getattr__(name):
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
    return sorted(__all__)
