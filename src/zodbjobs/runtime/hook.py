"""The setUp and tearDown of a job, each at most once in an attempt, and what a failed one tells.

Runs in the worker's thread: setUp in the transaction of the call, tearDown in
one of its own, after the outcome was committed; a job that wants to hear that an
attempt was undone hears it in one of its own, before anything is decided.
"""

import logging

from zodbjobs import local
from zodbjobs.model.job import Job
from zodbjobs.runtime import trouble

log = logging.getLogger('zodbjobs.events')

#: What a job writes when an attempt was undone is tried so often, if it conflicts.
TRIES = 10


def hook_of(job):
    """The Hook of a job, or what stands for that of the many that have nothing to set up."""
    hooked = job.hooked
    cls = type(hooked)
    return _NONE if cls.setUp is Job.setUp and cls.tearDown is Job.tearDown else Hook(hooked)


class _NoHook:
    def set_up(self):
        pass

    def tear_down(self, manager):
        pass


_NONE = _NoHook()


class Hook:
    """The setUp and tearDown of `job`."""

    def __init__(self, job):
        self.job = job
        self.done = False
        self.info = None

    def set_up(self):
        self.done = True
        self.info = self.job.setUp()

    def tear_down(self, manager):
        """Call tearDown, if setUp was called, in a transaction of `manager`."""
        if not self.done or type(self.job).tearDown is Job.tearDown:
            return
        try:
            try:
                manager.begin()
            finally:  # the thread has to be cleared of what setUp left there, storage or no storage
                # By the class: to look it up in a job whose record is out of reach would raise.
                type(self.job).tearDown(self.job, self.info)
            manager.commit()
        except BaseException:  # noqa: BLE001 - user code, after the commit: the outcome stands
            log.critical('tearDown of %r failed', self.job, exc_info=True)
            try:
                manager.abort()
            except Exception:
                log.exception('abort failed')


def tell_undone(load, manager, place, error, kind, counts):
    """Tell the job that `load()` begins a transaction with that an attempt was undone; commit.

    `place` is what `local.enter` gets beside the job; `error`, `kind` and `counts`
    are given to `IJob.undone`.  What that raises is logged, and changes nothing.
    """
    for number in range(TRIES):
        job = load()
        if type(job).undone is Job.undone:
            return
        former = local.enter(job, *place)
        try:
            job.undone(error, kind, counts)
            manager.commit()
            return
        except BaseException as raised:  # noqa: BLE001 - user code
            manager.abort()
            if not trouble.is_conflict(raised) or number == TRIES - 1:
                log.critical('what follows a failed attempt of %r failed', job, exc_info=True)
                return
        finally:
            local.leave(former)
