"""The setUp and tearDown of a job, each at most once in an attempt.

Runs in the worker's thread: setUp in the transaction of the call, tearDown in
one of its own, after the outcome was committed.
"""

import logging

from zodbjobs.model.job import Job

log = logging.getLogger('zodbjobs.events')


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
