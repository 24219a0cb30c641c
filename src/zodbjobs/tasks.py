"""Tasks: any importable function, done later, with as little ceremony as can be.

``tasks.task(function, ...)`` puts a job; ``with tasks.options(...)`` says how.  A
`Worker` is a loop in a program that runs them one by one.  Both are thin: the
job, its retries, its dependencies and its one commit are the queue's and the
engine's.

`Tasks` joins the transaction of the queue's connection, in any thread; only a
`Worker` commits, in the thread that runs it.
"""

import contextvars
import datetime
import functools
import logging
import os
import signal
import threading
import typing
from collections.abc import Callable

import transaction
from ZODB.utils import p64

from zodbjobs import clock, status, subscribers
from zodbjobs.interfaces import KEY, DatabaseOpened, IQueue, MultipleDelayError
from zodbjobs.model.job import Job
from zodbjobs.model.retry import RetryPolicy
from zodbjobs.model.task import HOOKS, Task, run_here, run_now

__all__ = ['Options', 'Task', 'TaskFunction', 'Tasks', 'Worker']

log = logging.getLogger('zodbjobs.tasks')

P = typing.ParamSpec('P')
R_co = typing.TypeVar('R_co', covariant=True)

#: Options that are given to `IQueue.put` as they are.
WISHES = {
    'after', 'begin_by', 'channel', 'failure_log_level', 'on_conflict', 'priority', 'quota_names',
    'result_ttl', 'retries', 'time_limit',
}  # fmt: skip

DELAYS = {'delay_by', 'delay_until'}

OPTIONS = {*WISHES, *DELAYS, *HOOKS, 'backoff', 'depends_on', 'is_async', 'task_id'}


class TaskFunction(typing.Protocol[P, R_co]):
    """A function that was given to `Tasks.job`: still the function, and `task` puts a task."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    def task(self, *args: P.args, **kwargs: P.kwargs) -> Task: ...


class Options:
    """How tasks are to be run; a context manager.

    Tasks that are made in its block have these options, and those of blocks round
    it; those that are made by its own `task` have them anywhere.  It may be used
    again, and by several threads.
    """

    def __init__(self, tasks: 'Tasks', options: dict):
        self._tasks = tasks
        self.options = _checked(options)

    def task(self, function, /, *args, **kwargs) -> Task:
        """Put a task with these options; see `Tasks.task`."""
        return self._tasks._make(self.options, function, args, kwargs)

    def __enter__(self) -> 'Options':
        self._tasks._ambient.set((*self._tasks._ambient.get(), self))
        return self

    def __exit__(self, *error) -> None:
        self._tasks._ambient.set(self._tasks._ambient.get()[:-1])


class Tasks:
    """Makes tasks, and finds them again.

    `queue_or_uri` is a queue; or an address such as 'file:Data.fs', or a ZODB.DB,
    in which the queue of the name `queue` is used (and made if it is missing)
    through a connection of each thread; or a callable that gives the queue at
    hand.  Everything joins the transaction of the queue's connection: for an
    address that is the thread's own, ``transaction.get()``.
    """

    def __init__(self, queue_or_uri, queue: str = ''):
        self._given = queue_or_uri
        self.queue_name = queue
        self._db: typing.Any = None
        self._is_ours = False
        self._lock = threading.Lock()
        self._here = threading.local()
        self._ambient: contextvars.ContextVar[tuple] = contextvars.ContextVar('ambient', default=())
        if hasattr(queue_or_uri, 'open') and hasattr(queue_or_uri, 'storage'):
            self._db, self._given = queue_or_uri, None
            self._install()
        elif not (
            isinstance(queue_or_uri, (str, os.PathLike))
            or IQueue.providedBy(queue_or_uri)
            or callable(queue_or_uri)
        ):
            raise TypeError(
                f'{queue_or_uri!r} is neither a queue, nor the address of a database, nor a'
                f' database, nor a callable that gives a queue'
            )

    # where

    @property
    def queue(self):
        """The queue that tasks are put in, of a connection of this thread."""
        if IQueue.providedBy(self._given):
            return self._given
        if callable(self._given):
            return self._given()
        connection = getattr(self._here, 'connection', None)
        if connection is None or connection.opened is None:
            connection = self._here.connection = self.db.open(transaction.manager)
        return connection.root()[KEY][self.queue_name]

    @property
    def db(self):
        """The database, opened when it is first needed."""
        if self._db is None and isinstance(self._given, (str, os.PathLike)):
            with self._lock:
                if self._db is None:
                    from zodbjobs.runtime.address import open_database

                    self._db = open_database(os.fspath(self._given))
                    self._is_ours = True
                    self._install()
        return self.queue._p_jar.db() if self._db is None else self._db

    @property
    def place(self):
        """The database and the name of the queue, found without a connection where that can be."""
        if isinstance(self._given, (str, os.PathLike, type(None))):
            return self.db, self.queue_name
        return self.db, self.queue.name

    def _install(self):
        subscribers.QueueInstaller([self.queue_name])(DatabaseOpened(self._db))

    def close(self) -> None:
        """Close this thread's connection, and the database if it was opened here.

        Other threads that have used it are to close their connections before.
        """
        connection = getattr(self._here, 'connection', None)
        if connection is not None and connection.opened is not None:
            transaction.abort()
            connection.close()
        if self._is_ours:
            self._db.close()
            self._db = None

    # making

    def task(self, function, /, *args, **kwargs) -> Task:
        """Put a task that calls `function` with these arguments, and return it.

        It has the options of the blocks that are open.  With ``is_async=False``
        it is run here and now, and what its last attempt raised is raised.
        """
        return self._make({}, function, args, kwargs)

    def options(self, **options) -> Options:
        """Say how tasks are to be run, for a ``with`` block; see `Options`.

        `retries` (a number) with `backoff` (seconds, a sequence of them, or a
        callable of the number of the failed attempt); `delay_by` (seconds or a
        timedelta) or `delay_until` (a Unix time, or a date or datetime, naive is
        UTC); `depends_on` (tasks or their ids, which must succeed first); the
        hooks `on_start` `on_success` `on_error`; `task_id`; `is_async`; and of
        `IQueue.put`: `after begin_by channel failure_log_level on_conflict
        priority quota_names result_ttl time_limit`.

        Raises TypeError for other names, MultipleDelayError for both delays.
        """
        return Options(self, options)

    @typing.overload
    def job(self, function: Callable[P, R_co], /) -> TaskFunction[P, R_co]: ...

    @typing.overload
    def job(
        self, function: None = None, /, **options: typing.Any
    ) -> Callable[[Callable[P, R_co]], TaskFunction[P, R_co]]: ...

    def job(self, function=None, /, **options):
        """Decorate a module's function, so that ``function.task(...)`` puts a task.

        The function stays what it is: calling it calls it, and type checkers see
        its own arguments, in ``function.task`` too.  ``@tasks.job(retries=3)``
        gives options.
        """
        if function is None:
            return functools.partial(self._decorated, options)
        return self._decorated(options, function)

    def _decorated(self, options, function):
        own = Options(self, options)

        @functools.wraps(function)
        def task(*args, **kwargs):
            return own.task(function, *args, **kwargs)

        function.task = task
        return function

    def _make(self, own, function, args, kwargs):
        wished = {}
        for options in (*(block.options for block in self._ambient.get()), own):
            if DELAYS & options.keys():
                wished = {name: value for name, value in wished.items() if name not in DELAYS}
            wished.update(options)
        queue = self.queue
        task = Task(function, *args, **kwargs)
        for name in HOOKS:
            if wished.get(name) is not None:
                task.hook(name, wished[name])
        if wished.get('backoff') is not None:
            task.backoff = RetryPolicy(0, wished['backoff'])
        puts = {name: wished[name] for name in WISHES & wished.keys()}
        if 'depends_on' in wished:
            puts['depends_on'] = self._found(wished['depends_on'])
        if not wished.get('is_async', True):
            return self._run_now(task, puts)
        return queue.put(task, _begin_after(wished), id=wished.get('task_id'), **puts)

    def _found(self, ids):
        """The jobs of an iterable of jobs and ids, or of one."""
        if ids is None:
            return ()
        found = []
        for one in [ids] if isinstance(ids, (str, Job)) else ids:
            job = self._find(one) if isinstance(one, str) else one
            if job is None:
                raise LookupError(
                    f'depends_on: queue {self.queue.name!r} has no unfinished task {one!r};'
                    f' pass the task itself, which is known when it has finished, too'
                )
            found.append(job)
        return tuple(found)

    def _run_now(self, task, puts):
        task._retries = puts.get('retries')
        task._depends_on = puts.get('depends_on', ())
        return run_now(task, self._savepoint)

    def _savepoint(self):
        return self.queue._p_jar.transaction_manager.savepoint(optimistic=True)

    # finding, and running by hand

    def get(self, task_id: str) -> Job | None:
        """Take the task with this id, due or not, run it here, and return it.

        None if none that waits has it.  Taking, running and its end are part of
        the transaction.  One that failed waits for its next attempt, or its
        result is a Failure: nothing is raised.
        """
        job = self._find(task_id)
        if job is None or job.status not in (status.PENDING, status.HELD):
            return None
        queue = self.queue
        if job.status == status.HELD:
            job.resume()
        queue.unfile(job)
        job._move(status.ASSIGNED)
        return run_here(job, self._savepoint)

    def pop(self) -> Job | None:
        """Take the first task that is due, run it as `get` does, and return it; or None."""
        job = self.queue.claim()
        return None if job is None else run_here(job, self._savepoint)

    def cancel(self, task_id: str) -> Job | None:
        """Cancel the unfinished task with this id, and return it; None if none has it."""
        job = self._find(task_id)
        if job is not None:
            job.cancel()
        return job

    def len(self) -> int:
        """How many tasks wait, with those that are not due yet."""
        return len(self.queue)

    __len__ = len

    def __bool__(self) -> bool:
        return True

    def _find(self, task_id):
        """The unfinished job of that id, or None."""
        queue = self.queue
        job = queue.ids.get(task_id)
        if job is not None or not task_id.startswith('#'):
            return job
        try:
            job = queue._p_jar.get(p64(int(task_id[1:], 16)))
        except (KeyError, ValueError, OverflowError):  # a POSKeyError, or no number
            return None
        ours = isinstance(job, Job) and job.is_unfinished() and job.queue is queue
        return job if ours else None

    def __repr__(self) -> str:
        return f'<Tasks {self.queue_name!r}>'


class Worker:
    """Runs tasks one by one, in the thread that calls it.

    `max_tasks` is after how many `run_forever` ends (0: never); failed ones
    count.  `nap_time` is how many seconds it waits for a commit to wake it
    before it looks again.  A task is claimed in a commit of its own, so a worker
    that dies loses none, and it runs with ``transaction.get()`` of this thread.
    Nobody can take this thread from a task: past its `time_limit` it is asked to
    stop, and that is all.
    A subclass may override `starting`, `stopping` and `result`.
    """

    def __init__(self, tasks: Tasks, max_tasks: int = 0, nap_time: float = 0.1):
        self.tasks = tasks
        self.max_tasks = max_tasks
        self.nap_time = nap_time
        self.tasks_run = 0
        self._dispatcher: typing.Any = None
        self._stops = False

    def check_and_run_task(self) -> bool:
        """Run the next task that is due; whether there was one and it succeeded."""
        return self._run_one() is True

    def _run_one(self):
        """None if no task was due; else whether it succeeded."""
        from zodbjobs.runtime.byhand import is_success

        report = self._opened().run_next()
        if report is None:
            return None
        self.tasks_run += 1
        succeeded = is_success(report)
        self.result(succeeded)
        return succeeded

    def run_forever(self) -> None:
        """Run tasks until `stop`, `max_tasks`, SIGTERM or SIGINT; the task that runs is ended.

        The signals are heard if this is the main thread; a second one ends the process.
        """
        self.starting()
        former = self._listen()
        try:
            while not self._stops and not 0 < self.max_tasks <= self.tasks_run:
                if self._run_one() is None and not self._stops:
                    self._opened().rest(self.nap_time)
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
            self.close()
            self.stopping()

    def stop(self) -> None:
        """Let `run_forever` end after the task that runs; from any thread."""
        self._stops = True
        if self._dispatcher is not None:
            self._dispatcher.reactor.callFromThread(_nothing)

    def close(self) -> None:
        """Stop serving; a task that was claimed and has not begun is handed back."""
        dispatcher, self._dispatcher = self._dispatcher, None
        if dispatcher is not None:
            dispatcher.close()

    def starting(self) -> None:
        """Called when `run_forever` begins."""
        log.info('worker for queue %r begins', self._opened().queue_name)

    def stopping(self) -> None:
        """Called when `run_forever` has ended."""
        log.info('worker ends after %d tasks', self.tasks_run)

    def result(self, succeeded: bool) -> None:
        """Called after each task, outside of any transaction."""

    def _opened(self):
        if self._dispatcher is None:
            from zodbjobs.runtime.byhand import HandDispatcher

            self._dispatcher = HandDispatcher(*self.tasks.place).open()
        return self._dispatcher

    def _listen(self):
        """Hear signals; returns the former handlers."""
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {
            number: signal.signal(number, self._told) for number in (signal.SIGTERM, signal.SIGINT)
        }

    def _told(self, number, frame):
        if self._stops:
            os._exit(128 + number)
        log.info('%s: ending after the task that runs', signal.Signals(number).name)
        self.stop()


def _nothing():
    """Only wakes the reactor."""


def _checked(options):
    """Options under their right names, without those that are None."""
    unknown = options.keys() - OPTIONS
    if unknown:
        raise TypeError(f'{sorted(unknown)} are no options of a task; there are {sorted(OPTIONS)}')
    given = {name: value for name, value in options.items() if value is not None}
    if given.keys() >= DELAYS:
        raise MultipleDelayError('delay_by and delay_until both say when to begin: give one')
    _begin_after(given)  # raises for what is no delay
    return given


def _begin_after(options):
    """The datetime before which a task shall not begin, or None."""
    if 'delay_by' in options:
        return clock.datetime_of(clock.micros() + clock.micros_in(options['delay_by']))
    moment = options.get('delay_until')
    if isinstance(moment, datetime.date) and not isinstance(moment, datetime.datetime):
        return datetime.datetime(moment.year, moment.month, moment.day)
    if isinstance(moment, (int, float)) and not isinstance(moment, bool):
        return clock.datetime_of(round(moment * clock.SECOND))
    return moment
