"""A reactor whose time is virtual, for tests of code that uses jobs.

A test starts a `Reactor`, gives it to a Dispatcher, and says itself how time
passes; an hour takes as long as the work that is due in it.  From `start` to
`stop` the package's clock shows the reactor's time, and nothing is patched.

The test's thread is the reactor's thread: it runs what is due while it is in
one of the methods here (`time_flies`, `time_passes`, `settle`, `wait_for`), and
at no other time.  Jobs run in real threads in real time.  While they do,
virtual time stands still, so for the clock they take no time at all; threads
report by `callFromThread`, and the test's thread waits for that, not for some
number of seconds.  A job that blocks for good cannot stop the test: after a
bounded real time virtual time goes on without it.
"""

import collections
import contextlib
import datetime
import threading

import pytz
import transaction
from transaction.interfaces import NoTransaction
from twisted.internet import task
from twisted.internet.error import (
    ReactorAlreadyRunning,
    ReactorNotRestartable,
    ReactorNotRunning,
)
from twisted.python import log
from twisted.python.threadpool import ThreadPool

from zodbjobs import clock
from zodbjobs.status import COMPLETED

#: When virtual time begins, if nothing else is said: the instant of zc.async's tests.
BEGINNING = datetime.datetime(2006, 8, 10, 15, 44, 22, 211, tzinfo=pytz.UTC)

# Real seconds here are seconds of waiting (see `_Patience`): neither what runs in the test's own
# thread counts, nor how much longer than asked for a busy machine makes a wait.

#: Real seconds that jobs may run before virtual time goes on without them.
PATIENCE_SECONDS = 1.0
#: The same while time flies, for the whole flight: what takes longer is taken along.
BREATH_SECONDS = 0.1
#: The same for the books of a job whose result is there already.
REST_SECONDS = 0.2
#: Real seconds between looks at what nobody reports, such as another connection's commit.
TICK_SECONDS = 0.01
#: What each look counts at least, so that threads that ask without end are not waited for so.
LOOK_SECONDS = 0.001
#: Real seconds for what must end before the reactor stops.
SHUTDOWN_SECONDS = 10.0
#: Calls at one instant.  More than any test needs: a call that puts itself again without delay.
CALLS_AT_ONCE = 10_000

PHASES = ('before', 'during', 'after')

_machine = clock.SystemTime()
_started = []  # reactors, the newest last


def current():
    """The Reactor that was started last and not stopped, or None."""
    return _started[-1] if _started else None


def set_now(moment):
    """Set the started reactor's clock to a datetime; see `Reactor.set_now`."""
    reactor = current()
    if reactor is None:
        raise ValueError('no virtual reactor is started: make a Reactor() and start() it first')
    reactor.set_now(moment)


class Reactor(task.Clock):
    """The part of a Twisted reactor that a Dispatcher needs, on virtual time.

    It is a source of time for `zodbjobs.clock` as well.  Like Twisted's it can
    be started only once.
    """

    def __init__(self):
        super().__init__()
        self.running = False
        self._stopped = False
        self._start_micros = clock.micros_of(BEGINNING)
        self._driving = threading.RLock()  # held by whoever is the reactor's thread just now
        self._changed = threading.Condition()  # told when a thread asks for a call, or ends one
        self._asked = collections.deque()  # calls that threads asked for
        self._in_threads = 0  # calls of callInThread that have not ended
        self._pool = None
        self._watched = []
        self._triggers = []  # (phase, event, call, args, kw)
        self._fired = 0  # delayed calls run so far

    # The clock.

    def micros(self):
        """Virtual microseconds since 1970-01-01 UTC."""
        return self._start_micros + round(self.rightNow * clock.SECOND)

    def monotonic(self):
        """Virtual seconds that never step back: the same as `seconds()`."""
        return self.rightNow

    def set_now(self, moment):
        """Set virtual time to a datetime (naive is UTC), without running anything.

        What is due by then runs once, at the next step.  Going back changes
        the date only: delayed calls come as many seconds later as they would
        have.
        """
        with self._driving:
            target = clock.micros_of(moment)
            ahead = target - self.micros()
            if ahead > 0:
                self.rightNow += ahead / clock.SECOND
            self._start_micros += target - self.micros()  # all of it when going back

    # Starting and stopping.

    def start(self, now=BEGINNING):
        """Begin virtual time at `now`, a datetime (naive is UTC).

        Raises ReactorAlreadyRunning or ReactorNotRestartable.
        """
        if self.running:
            raise ReactorAlreadyRunning()
        if self._stopped:
            raise ReactorNotRestartable()
        self.set_now(now)
        self.running = True
        self._former_clock = clock.use(self)
        _started.append(self)
        for phase in PHASES:
            for call, args, kw in self._taken(phase, 'startup'):
                self.callLater(0, call, *args, **kw)

    def stop(self):
        """Run the shutdown triggers, then give the former clock back.

        What a trigger returns as a Deferred is waited for, in virtual time.
        The first error of a trigger is raised, after all of them have run.
        Raises ReactorNotRunning, and AssertionError if a Deferred never fires.
        """
        if not self.running:
            raise ReactorNotRunning()
        errors = []
        try:
            for phase in PHASES:
                self._shut_down(phase, errors)
        finally:
            self.crash()
        if errors:
            raise errors[0]

    def crash(self):
        """Stop without running the shutdown triggers."""
        if not self.running:
            raise ReactorNotRunning()
        self.running = False
        self._stopped = True
        above = _started[_started.index(self) + 1 :]
        if above:  # it shall not give the clock back to this one
            above[0]._former_clock = self._former_clock
        else:
            clock.use(self._former_clock)
        _started.remove(self)
        if self._pool is not None:
            # Threads that are stuck must not hold up the test.
            ending = threading.Thread(target=self._pool.stop, daemon=True)
            ending.start()
            ending.join(PATIENCE_SECONDS)
        self._count_threads(0)  # whoever waits for a change

    def run(self, installSignalHandlers=False):
        """Start if that was not done, and be the reactor's thread until somebody stops it.

        Virtual time still passes only when some thread lets it.
        """
        if not self.running:
            self.start()
        while self.running:
            self._run_now()
            self._wait(TICK_SECONDS)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc_info):
        if self.running:
            self.stop()

    def addSystemEventTrigger(self, phase, event, call, *args, **kw):
        """See IReactorCore; 'startup' and 'shutdown' happen."""
        if phase not in PHASES:
            raise ValueError(f'phase must be one of {PHASES}, not {phase!r}')
        trigger = (phase, event, call, args, kw)
        self._triggers.append(trigger)
        return trigger

    def removeSystemEventTrigger(self, trigger):
        """Forget what addSystemEventTrigger returned.  ValueError if it is not there."""
        self._triggers.remove(trigger)

    def callWhenRunning(self, call, *args, **kw):
        """Call at the first step of virtual time, counted among the delayed calls."""
        if self.running:
            self.callLater(0, call, *args, **kw)
            return None
        return self.addSystemEventTrigger('after', 'startup', call, *args, **kw)

    def _taken(self, phase, event):
        """The triggers of a phase, which are taken off the list: [(call, args, kw)]."""
        found = [trigger for trigger in self._triggers if trigger[:2] == (phase, event)]
        self._triggers = [trigger for trigger in self._triggers if trigger not in found]
        return [trigger[2:] for trigger in found]

    def _shut_down(self, phase, errors):
        pending = []
        for call, args, kw in self._taken(phase, 'shutdown'):
            try:
                result = call(*args, **kw)
            except Exception as error:  # the other triggers have a right to run
                errors.append(error)
            else:
                if phase == 'before' and hasattr(result, 'addBoth'):
                    pending.append(result)
                    result.addCallbacks(_nothing, lambda failed: errors.append(failed.value))
        if pending and not self.insist(
            lambda: all(deferred.called for deferred in pending), SHUTDOWN_SECONDS, step=1
        ):
            errors.append(AssertionError('what must end before the reactor stops did not end'))

    # Calls.

    def callLater(self, delay, callable, *args, **kw):
        """See IReactorTime.  In the reactor's thread only."""
        with self._driving:
            return super().callLater(delay, callable, *args, **kw)

    def callFromThread(self, callable, *args, **kw):
        """Have the reactor's thread run it at its next step.  From any thread."""
        with self._changed:
            self._asked.append((callable, args, kw))
            self._changed.notify_all()

    def callInThread(self, callable, *args, **kw):
        """Run it in a real thread of the reactor's pool."""
        self.getThreadPool().callInThread(callable, *args, **kw)

    def getThreadPool(self):
        """The pool of `callInThread`."""
        if self._pool is None:
            self._pool = _CountedThreadPool(self)
            self._pool.start()
        return self._pool

    def suggestThreadPoolSize(self, size):
        """Let the pool have up to `size` threads."""
        self.getThreadPool().adjustPoolsize(0, size)

    def _count_threads(self, change):
        with self._changed:
            self._in_threads += change
            self._changed.notify_all()

    # Watching what runs in other threads.

    def watch(self, thing):
        """Wait also for `thing`, whose ``is_quiet()`` says if it has nothing to do at this instant.

        A thread of it that ends its work reports by `callFromThread` first,
        and lets ``is_quiet()`` be true after that.
        """
        if thing not in self._watched:
            self._watched.append(thing)

    def unwatch(self, thing):
        """Wait for it no more; no error if it was not watched."""
        if thing in self._watched:
            self._watched.remove(thing)

    def is_quiet(self):
        """Whether nothing is due and no thread does anything that is known of."""
        # In this order: a thread reports before it becomes quiet.
        quiet = not self._in_threads and all(thing.is_quiet() for thing in list(self._watched))
        return quiet and not self._asked and not self._is_due(self.rightNow)

    # Time.

    def time_passes(self):
        """Run what is due at this instant; whether there was anything to run."""
        with self._driving:
            due = sum(call.getTime() <= self.rightNow for call in self.calls)
            ran = self._run_asked()
            for _ in range(due):
                ran |= self._fire(self.rightNow)
        _see_commits()
        return ran

    def time_flies(self, seconds):
        """Let virtual time pass and run what becomes due, each call at its own time.

        `seconds` is a number or a timedelta.  Between two instants, threads
        get what they asked for, and jobs a moment of real time to end in
        (BREATH_SECONDS for the whole flight).  Returns how many delayed calls
        were run.  Then the test's transaction, if it changed nothing, is begun
        anew, to see what was committed.
        """
        micros = clock.micros_in(seconds)
        if micros < 0:
            raise ValueError(f'time does not fly backwards: {seconds!r}')
        with self._driving:
            before, end = self._fired, self.rightNow + micros / clock.SECOND
            breath = _Patience(BREATH_SECONDS)
            self._settle(breath)
            while self._fire(end):
                self._settle(breath)
            self.rightNow = max(self.rightNow, end)
            self._run_now()
        _see_commits()
        return self._fired - before

    def advance(self, amount):
        """Twisted's name for `time_flies`."""
        self.time_flies(amount)

    def settle(self, seconds=PATIENCE_SECONDS, until=None):
        """Let threads finish what they do, up to so many real seconds; virtual time stands still.

        With `until`, a function, it ends as soon as that is true.  Returns
        whether it ended so, or without it whether all is quiet.
        """
        return self._settle(_Patience(seconds), until)

    def _settle(self, patience, until=None):
        while True:
            self._run_now()
            if until is not None and until():
                return True
            if self.is_quiet():
                return until is None
            if not patience.wait(self._wait):
                return False

    def wait_until(self, look, seconds, step=1):
        """Let virtual time pass, `step` seconds at a time, until look() is true; whether it is.

        At the end it is given a real second more: what it depends on may be
        done by threads, or processes, that nobody told of.
        """
        end = self.rightNow + seconds
        while not self.settle(until=look):
            left = end - self.rightNow
            if left <= 0:
                return self.insist(look, PATIENCE_SECONDS)
            self.time_flies(min(step, left))
        return True

    def insist(self, look, seconds, step=0):
        """Wait for look() so many real seconds, even while all seems quiet; whether it is true.

        At each look `step` virtual seconds pass.
        """
        patience = _Patience(seconds)
        while True:
            self._run_now()
            if look():
                return True
            if not patience.wait(self._wait):
                return False
            self.time_flies(step)

    def wait_for(self, *jobs, attempts=10, poll_interval=5):
        """Let virtual time pass until all `jobs` are completed.

        Looks `attempts` times, `poll_interval` virtual seconds apart, and
        prints TIME OUT if that was in vain.  At each look running jobs get up
        to a real second.  The jobs must have been committed; the transaction
        of their connections is begun anew.
        """
        for attempt in range(attempts):
            if attempt:
                self.time_flies(poll_interval)
            if self.settle(until=lambda: _are_completed(jobs)):
                break
        else:
            if not self._others_complete(jobs):
                print('TIME OUT')
                return
        self.settle(REST_SECONDS, until=lambda: not self._are_on_the_books(jobs))
        begin_anew(jobs)

    def _others_complete(self, jobs):
        """Whether jobs complete while what they wait for gets a second of real time more.

        A Deferred may be fired by a thread that nobody told of.
        """
        awaited = any(getattr(thing, 'awaits_deferred', False) for thing in self._watched)
        return awaited and self.insist(lambda: _are_completed(jobs), PATIENCE_SECONDS)

    def _are_on_the_books(self, jobs):
        """Whether a watched dispatcher takes one of the jobs for running, or writes notes."""
        ids = {(int.from_bytes(job._p_oid, 'big'), job._p_jar.db().database_name) for job in jobs}
        books = (getattr(thing, 'getActiveJobIds', tuple) for thing in self._watched)
        if any(ids.intersection(active()) for active in books):
            return True
        notebooks = [thing.notebook for thing in self._watched if hasattr(thing, 'notebook')]
        return not all(notebook.is_quiet() for notebook in notebooks)

    # Steps.

    def _is_due(self, until):
        return any(call.getTime() <= until for call in list(self.calls))

    def _run_now(self):
        """Run all that is due now, and what that makes due."""
        with self._driving:
            for _ in range(CALLS_AT_ONCE):
                if not self._run_asked() and not self._fire(self.rightNow):
                    return
            raise RuntimeError(f'more than {CALLS_AT_ONCE} calls at one instant: {self.calls!r}')

    def _run_asked(self):
        """Run what threads asked for until now; whether there was anything."""
        count = len(self._asked)  # what these ask for in turn comes next time
        for _ in range(count):
            call, args, kw = self._asked.popleft()
            call(*args, **kw)
        return bool(count)

    def _fire(self, until):
        """Run the next delayed call, at its own time, if it is due by then; whether it was."""
        self._sortCalls()
        if not self.calls or self.calls[0].getTime() > until:
            return False
        call = self.calls.pop(0)
        self.rightNow = max(self.rightNow, call.getTime())
        self._fired += 1
        call.called = 1
        call.func(*call.args, **call.kw)
        return True

    def _wait(self, seconds):
        with self._changed:
            if not self._asked:
                self._changed.wait(seconds)


class _Patience:
    """Seconds that somebody is ready to wait for threads."""

    def __init__(self, seconds):
        self.left = seconds

    def wait(self, wait):
        """Have ``wait(seconds)`` wait for a moment; False if there is no patience left."""
        if self.left <= 0:
            return False
        moment = min(self.left, TICK_SECONDS)
        begun = _machine.monotonic()
        wait(moment)
        self.left -= max(LOOK_SECONDS, min(moment, _machine.monotonic() - begun))
        return True


class _CountedThreadPool(ThreadPool):
    """Lets the reactor know how much its threads have to do."""

    @staticmethod
    def threadFactory(*args, **kw):
        return threading.Thread(*args, daemon=True, **kw)

    def __init__(self, reactor):
        super().__init__(0, 10, 'virtual reactor')
        self._reactor = reactor

    def callInThreadWithCallback(self, onResult, func, *args, **kw):
        def ended(success, result):
            try:
                if onResult is not None:
                    onResult(success, result)
                elif not success:
                    log.err(result)
            finally:
                self._reactor._count_threads(-1)

        self._reactor._count_threads(+1)
        super().callInThreadWithCallback(ended, func, *args, **kw)


def _nothing(result):
    return None


def _see_commits():
    """Let the test's thread see what others committed, unless it has changes to lose."""
    # zc.async's dispatcher shared the test's transaction, so its tests could rely on that.
    manager = transaction.manager
    if not manager.explicit and not manager.get()._resources:
        manager.begin()


def begin_anew(objects):
    """Begin a transaction on the objects' connections, to see what others committed.

    Raises ValueError for an object that has no connection.
    """
    managers = {}
    for stored in objects:
        if stored._p_jar is None:
            raise ValueError(f'{stored!r} was never stored: put it in a queue and commit first')
        manager = stored._p_jar.transaction_manager
        managers[id(manager)] = manager
    for manager in managers.values():
        if manager.explicit:  # such a one refuses to begin in the middle of a transaction
            with contextlib.suppress(NoTransaction):
                manager.abort()
        manager.begin()


def _are_completed(jobs):
    begin_anew(jobs)
    return all(job.status == COMPLETED for job in jobs)
