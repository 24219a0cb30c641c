"""Jobs in the ZODB: put in your transaction, run exactly once, nothing beside it.

The public names are here.  Each is imported when it is asked for, so the
command line answers at once, and no name imports a Twisted reactor.
"""

import functools
import importlib
import typing

# Not `import zope.event`: that would leave a name `zope` here, which is a door of ours.
from zope.event import subscribers as _subscribers

from zodbjobs import local

if typing.TYPE_CHECKING:
    from zodbjobs.model.agent import Agent
    from zodbjobs.model.compose import parallel, serial
    from zodbjobs.model.failure import Failure
    from zodbjobs.model.feed import Feed
    from zodbjobs.model.feeds import Feeds
    from zodbjobs.model.job import Job
    from zodbjobs.model.jobfeed import JobFeed
    from zodbjobs.model.loop import Batch, Loop, Loops
    from zodbjobs.model.looprunner import LoopRunner
    from zodbjobs.model.message import Message
    from zodbjobs.model.messagequeue import MessageQueue
    from zodbjobs.model.queue import Queue, Queues
    from zodbjobs.model.retry import (
        NeverRetry,
        RetryCommonForever,
        RetryCommonFourTimes,
        RetryPolicy,
    )
    from zodbjobs.model.sortedfeed import SortedFeed
    from zodbjobs.runtime.dispatcher import Dispatcher

__all__ = [
    'Agent',
    'Batch',
    'Dispatcher',
    'Failure',
    'Feed',
    'Feeds',
    'Job',
    'JobFeed',
    'MessageQueue',
    'Loop',
    'LoopRunner',
    'Loops',
    'Message',
    'NeverRetry',
    'Queue',
    'Queues',
    'RetryCommonForever',
    'RetryCommonFourTimes',
    'RetryPolicy',
    'SortedFeed',
    'local',
    'parallel',
    'serial',
    'start',
]

_HOMES = {
    'Agent': 'model.agent',
    'Batch': 'model.loop',
    'Dispatcher': 'runtime.dispatcher',
    'Failure': 'model.failure',
    'Feed': 'model.feed',
    'Feeds': 'model.feeds',
    'Job': 'model.job',
    'JobFeed': 'model.jobfeed',
    'MessageQueue': 'model.messagequeue',
    'Loop': 'model.loop',
    'LoopRunner': 'model.looprunner',
    'Loops': 'model.loop',
    'Message': 'model.message',
    'NeverRetry': 'model.retry',
    'Queue': 'model.queue',
    'Queues': 'model.queue',
    'RetryCommonForever': 'model.retry',
    'RetryCommonFourTimes': 'model.retry',
    'RetryPolicy': 'model.retry',
    'SortedFeed': 'model.sortedfeed',
    'parallel': 'model.compose',
    'serial': 'model.compose',
    'start': 'configure',
}


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    found = getattr(importlib.import_module(f'{__name__}.{_HOMES[name]}'), name)
    globals()[name] = found  # each record of a job is stored under its name here
    return found


def __dir__():
    return sorted(__all__)


@functools.cache
def _runtime(name):
    """A module of the runtime, imported when it is first needed."""
    return importlib.import_module(f'{__name__}.runtime.{name}')


def _attend(event):
    """Have the runtime do what an event asks for, whatever else the process imports.

    That is to wake dispatchers at the commit (`rings`), and what feeds need
    (`delivery`): to wait, and to call handlers.
    """
    if getattr(event, 'rings', False):
        _runtime('wakeup').job_added(event)
    elif getattr(event, 'delivery', False):
        _runtime('delivery').attend(event)


_subscribers.insert(0, _attend)  # a put rings, whatever others raise who hear of it


def _make_consumer(name, queues):
    return _runtime('consumer').Consumer(name, queues)


local.make_consumer = _make_consumer
