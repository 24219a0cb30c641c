"""Jobs made of other jobs: one after the other, or side by side.

The composite puts its parts, keeps no thread while they run, and is told as
each finishes, in the transaction that finishes it.  There it looks for the
first part that is not done.  Nothing shared is written for that: the part it
found is read as current, so of two last parts that finish at the same moment
one conflicts and looks again.

Runs in workers' transactions.
"""

from zodbjobs import status
from zodbjobs.interfaces import BadStatusError, ZodbJobsError
from zodbjobs.model.call import Vanished, refuse_broken
from zodbjobs.model.failure import Failure
from zodbjobs.model.job import NEVER_STORED, WAITS_FOR_JOB, Job, as_job
from zodbjobs.model.retry import RetryCommonForever


class Composite(Job):
    """A job whose work is its parts, which are its args; they may be added while it runs."""

    _postprocess = None
    _again = ()  # jobs that have failed and are to be run once more when their turn comes

    def __init__(self, maker, calls, postprocess):
        super().__init__(maker, *(as_job(call) for call in calls))
        if postprocess is not None:
            self._postprocess = as_job(postprocess)

    @property
    def postprocess(self):
        """The job that gets the finished parts, or None."""
        return self._postprocess

    @property
    def runs_once(self):
        """Its own steps may be repeated; what was wished is for its parts."""
        return False

    def getRetryPolicy(self):
        """One for its own steps, which may always be done again."""
        if self._policy is None:
            self._policy = RetryCommonForever(self)
        return self._policy

    def run_again(self):
        parts = [part for part in self.args if isinstance(part, Job)]
        over = [part for part in parts if part._status == status.COMPLETED]
        self._again = tuple(part for part in over if part.outcome != 'success')
        last = self._postprocess
        if last is not None and last._status == status.COMPLETED:
            self._again += (last,)
        self.__dict__.pop('_v_done', None)
        super().run_again()

    def run(self, args=(), kwargs=None):
        if self.queue is None:
            raise BadStatusError(f'{self!r} is in no queue to put its parts into: put it')
        if self._parts_are_done():
            return self._outcome()
        self._waits = WAITS_FOR_JOB
        return self

    def inner_finished(self, inner):
        if self._waits != WAITS_FOR_JOB:
            return False
        if self._result is not None:
            return super().inner_finished(inner)
        try:
            if not self._parts_are_done():
                return False
            outcome = self._outcome()
        except (ZodbJobsError, Vanished, TypeError, ValueError) as error:
            # The next one cannot be put.  That is our trouble, and not that of the part
            # in whose transaction this is; what put() refuses it has not changed.
            outcome = Failure(error)
        if isinstance(outcome, Job):
            self._result = outcome
            outcome.add_outer(self)
            return False
        self.settled(outcome)
        return True

    def awaited(self):
        if self._result is not None:
            return super().awaited()
        return [*super().awaited(), *(part for part in self.args if isinstance(part, Job))]

    def _outcome(self):
        """The postprocess job, put; or the parts themselves."""
        parts = tuple(self.args)
        last = self._postprocess
        if last is None:
            return parts
        if not parts or tuple(last.args[-len(parts) :]) != parts:  # else it is run once more
            last.args.extend(parts)
        self._put_part(last)
        return last

    def _part(self, index):
        part = self.args[index]
        refuse_broken(part)
        if not isinstance(part, Job):
            part = self.args[index] = as_job(part)
        return part

    def _put_part(self, part):
        """Put a part if that has not been done; it tells this job when it has finished."""
        if part._status == status.NEW:
            self.queue.put_part(part, part.place_beside(self) | self._retry_wishes(part))
        elif self._is_to_run_again(part):
            self._again = tuple(job for job in self._again if job is not part)
            part.run_again()

    def _is_to_run_again(self, part):
        return any(part is job for job in self._again)

    def _retry_wishes(self, part):
        """{attribute: value}: how often a part is tried that has no wish of its own."""
        if part._retries is not None or part._retry_policy_factory is not None:
            return {}
        return {'_retries': self._retries, '_retry_policy_factory': self._retry_policy_factory}

    def _first_undone(self):
        """The index of the first part that has not finished; the number of parts if none."""
        index = known = self.__dict__.get('_v_done', 0)
        count = len(self.args)
        while index < count and self._is_done(self._part(index)):
            # What finished in this very transaction may be undone by its abort.
            if known == index and not self.args[index]._p_changed:
                known += 1
            index += 1
        self._v_done = known
        return index

    def _is_done(self, part):
        return part._status == status.COMPLETED and not self._is_to_run_again(part)


class Serial(Composite):
    """See `serial`."""

    def _parts_are_done(self):
        index = self._first_undone()
        if index == len(self.args):
            return True
        part = self._part(index)
        self._put_part(part)
        part.add_outer(self)
        return False


class Parallel(Composite):
    """See `parallel`."""

    _put_count = 0  # so many of the parts have been put

    def run_again(self):
        super().run_again()
        self._put_count = 0

    def _parts_are_done(self):
        count = len(self.args)
        while self._put_count < count:
            part = self._part(self._put_count)
            self._put_count += 1
            if not self._is_done(part):
                self._put_part(part)
                part.add_outer(self)
        index = self._first_undone()
        if index == len(self.args):
            return True
        part = self._part(index)
        if part._p_serial != NEVER_STORED:
            part._p_jar.readCurrent(part)
        return False


def serial(*calls, postprocess=None):
    """A job that runs `calls` one after the other, failures or not.

    `calls` are jobs, or what can be put.  When all have finished, `postprocess`
    (a call or a job) is called with the finished jobs behind its own arguments;
    what it returns is the result.  Without it the result is the tuple of jobs.
    Priority, channel, retries and retry policy of the returned job are for those
    parts, and for `postprocess`, that have no wish of their own.
    Jobs may be appended to the args of the returned job before it starts, by a
    part while it runs, or by a callback of a part.
    """
    return Serial(serial, calls, postprocess)


def parallel(*calls, postprocess=None):
    """A job that runs `calls` side by side; else as `serial`."""
    return Parallel(parallel, calls, postprocess)
