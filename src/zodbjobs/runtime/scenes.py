"""What is around the steps of a coroutine: its context, and the scene of a hosted job.

An ``async def`` job runs in the thread of an event loop, one step at a time among
the steps of others.  Its context variables are those of the call.  Of a hosted
job (see `model.hosted`) the scene is put up before each step and taken down after
it, also for tasks that the job makes, so that no other coroutine finds any of it.

There the call and its arguments come from a connection of the coroutine's own,
which sees the database as it was when the coroutine began.  It is for reading:
nothing would commit what is written, so that is refused.

`run` and `carried` are for the worker's thread, all else for the loop's.
"""

import asyncio
import collections.abc
import contextlib
import contextvars
import logging

import transaction

from zodbjobs.model.call import is_plain, trial_pickle
from zodbjobs.runtime.ride import is_frozen, wrote_nothing

log = logging.getLogger('zodbjobs.events')

#: What makes the steps of the present task, and shall make those of the tasks that it makes.
_maker = contextvars.ContextVar('zodbjobs.maker', default=None)


def run(job, worker, database):
    """Call a job: what it returns, which for an ``async def`` is a coroutine."""
    if job.is_staged_later():
        return Staged(worker.dispatcher.db, database, job)
    return job.run(job.call_args())


def carried(value):
    """What a call has returned; the steps of a coroutine are made in the present context."""
    if is_frozen(value) or not isinstance(value, collections.abc.Coroutine):
        return value
    return Stepped(value, contextvars.copy_context().run)


def make_task(loop, coroutine, **options):
    """The task factory of our loops."""
    make = _maker.get()
    if make is not None:
        coroutine = Stepped(coroutine, make)
    return asyncio.Task(coroutine, loop=loop, **options)


class Stepped(collections.abc.Coroutine):
    """A coroutine whose steps are made by `make(step, *args)`."""

    def __init__(self, coroutine, make):
        self._coroutine = coroutine
        self._make = make

    def send(self, value):
        return self._make(self._coroutine.send, value)

    def throw(self, *error):
        return self._make(self._coroutine.throw, *error)

    def close(self):
        return self._make(self._coroutine.close)

    def __next__(self):
        return self.send(None)

    def __await__(self):
        return self


class Staged(collections.abc.Coroutine):
    """The coroutine of a hosted job, which is called at the first step.

    `database` is the name of the job's database, or None for that of `db` itself.
    """

    def __init__(self, db, database, job):
        self._db, self._database = db, database
        self._oid, self._host, self._shown = job._p_oid, job.host, repr(job)
        self._manager = transaction.TransactionManager()
        self._connection = None
        self._coroutine = None
        self._held = None  # the scene, while it is taken down
        self._is_up = self._is_over = False

    def send(self, value):
        return self._main_step(self._send, value)

    def throw(self, *error):
        if self._coroutine is None:
            self._is_over = True
            raise error[0]
        return self._main_step(self._coroutine.throw, *error)

    def close(self):
        if self._coroutine is None or self._is_over:
            return
        with contextlib.suppress(StopIteration):
            self._main_step(self._close)

    def __next__(self):
        return self.send(None)

    def __await__(self):
        return self

    def _send(self, value):
        if self._coroutine is None:
            _maker.set(self.make)
            job = self._job()
            self._coroutine = job.run(job.call_args())
        return self._coroutine.send(value)

    def _close(self):
        self._coroutine.close()
        raise StopIteration

    def _main_step(self, step, *args):
        try:
            return self.make(step, *args)
        except StopIteration as end:
            self._end()
            self._refuse_stored(end.value)
            raise
        except BaseException:
            self._end()
            raise

    def _refuse_stored(self, value):
        """Raise ValueError for a result that refers to what was read here.

        Whoever writes it down has another connection; or, by chance, this one, opened anew.
        """
        if is_plain(value):
            return
        try:
            met = trial_pickle(value)
        except Exception:  # noqa: BLE001 - whoever writes it down says what is wrong with it
            return
        for thing in met:
            if thing._p_jar is not None:
                raise ValueError(
                    f'the result of {self._shown} refers to {type(thing).__name__} of another'
                    f' connection, that of the coroutine: return a key to look it up by'
                )

    def make(self, step, *args):
        """Make a step of it, or of a task of its, in the scene."""
        if self._is_up or self._is_over:  # a task may outlive the job
            return step(*args)
        self._put_up()
        try:
            made = step(*args)
            self._refuse_writing()
            return made
        except StopIteration:
            self._refuse_writing()
            raise
        finally:
            self._is_up = False
            self._held = self._host.pause()

    def _put_up(self):
        if self._held is None:
            job = self._job()
            self._host.enter(job, job.scene)
        else:
            self._host.proceed(self._held)
        self._is_up = True

    def _job(self):
        if self._connection is None:
            self._connection = self._db.open(self._manager)
        home = self._connection
        if self._database:
            home = home.get_connection(self._database)
        return home.get(self._oid)

    def _refuse_writing(self):
        if wrote_nothing(self._manager):
            return
        self._manager.abort()
        raise RuntimeError(
            f'{self._shown} has changed the database, and nothing would commit what a coroutine'
            f' writes: return what is to be written, and write it in a callback'
        )

    def _end(self):
        if self._is_over:
            return
        self._is_over = True
        try:
            if self._held is not None:
                self._host.proceed(self._held)
                self._host.leave(None)
            if self._coroutine is not None:
                self._coroutine.close()
        except Exception:
            log.exception('the scene of %s could not be taken down', self._shown)
        finally:
            if self._connection is not None:
                self._manager.abort()
                self._connection.close()
