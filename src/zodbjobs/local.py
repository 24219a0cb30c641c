"""What a running job may ask of its surroundings.

The runtime fills this in for the worker's thread, before the call, and clears
it after; the functions may be called from a job and from its callbacks.
Outside a job `getJob`, `getQueue`, `getDispatcher`, `getReactor` and
`getAgentName` answer None; the live annotations raise ValueError.
"""

import threading
import typing

_current = threading.local()

#: Makes a consumer of a name for queues (see IQueue.consumer).  The package's entrance
#: says how: claims need transactions of their own, which are the runtime's business.
make_consumer: typing.Any = None


#: What `getattr` gives for a thread that runs no job: job, surroundings, stop.
_NOWHERE = (None, None, None)


def enter(job, surroundings, stop=None):
    """Say that this thread runs `job` for `surroundings`; returns what was said before.

    `surroundings` has ``dispatcher``, ``agent_name`` and the methods
    ``write_annotation(job, name, value)`` and
    ``read_annotation(job, name, default, timeout, poll)``.  `stop()` says
    whether the job shall come to an end.
    """
    former = getattr(_current, 'place', _NOWHERE)
    _current.place = (job, surroundings, stop)
    return former


def leave(former):
    """Go back to what `enter` returned."""
    _current.place = former


def _surroundings():
    return getattr(_current, 'place', _NOWHERE)[1]


def getJob():
    """The job that this thread runs (in a callback: the callback), or None."""
    return getattr(_current, 'place', _NOWHERE)[0]


def is_asked_to_stop(job):
    """Whether `job` runs in this thread and shall come to an end soon."""
    current, _, stop = getattr(_current, 'place', _NOWHERE)
    return current is job and stop is not None and stop()


def getQueue():
    """The queue of the running job, or None."""
    job = getJob()
    return None if job is None else job.queue


def getDispatcher():
    """The dispatcher whose worker runs the job, or None."""
    return getattr(_surroundings(), 'dispatcher', None)


def getReactor():
    """The reactor of that dispatcher, or None."""
    return getattr(getDispatcher(), 'reactor', None)


def getAgentName():
    """The name of the agent that took the job, or None."""
    return getattr(_surroundings(), 'agent_name', None)


def setLiveAnnotation(name, value, job=None):
    """Set an annotation of `job` (default: the running one) for all to see now.

    It is written in another connection and transaction, soon after this
    returns; this job's own transaction does not matter to it.  `value` should
    be immutable and must not be persistent.  Raises ValueError outside a job.
    """
    job, surroundings = _place(job)
    surroundings.write_annotation(job, name, value)


def getLiveAnnotation(name, default=None, timeout=0, poll=1, job=None):
    """Get an annotation of `job` (default: the running one) as it is now.

    It is read in another connection.  With a `timeout` (seconds) it waits so
    long for the annotation to be there, looking every `poll` seconds; then the
    answer is `default`.  Raises ValueError outside a job.
    """
    job, surroundings = _place(job)
    return surroundings.read_annotation(job, name, default, timeout, poll)


def progress(done, total=None, message=None):
    """Say how far the running job has come, for all to see now.

    `done` and `total` are numbers, `message` a text.  It is written like a live
    annotation and shown as ``job.progress``; calls that come quickly one after
    another are written at most a few times a second.
    """
    job, surroundings = _place(None)
    surroundings.write_progress(job, done, total, message)


def _place(job):
    current, surroundings, _ = getattr(_current, 'place', _NOWHERE)
    if surroundings is None:
        raise ValueError('not initialized: only a running job has live annotations')
    return (current if job is None else job), surroundings
