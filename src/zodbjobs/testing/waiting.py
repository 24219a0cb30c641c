"""Waiting, in a test, for what jobs and dispatchers do.

While a virtual `Reactor` is started these functions let virtual time pass;
otherwise they wait in real time for a dispatcher that runs in a thread.  They
are called in the test's thread and begin its transaction anew, so that it sees
what was committed elsewhere.  When the time is over they raise an
AssertionError that tells how things stand.
"""

import itertools
import logging
import sys
import threading

from ZODB.POSException import ConflictError

from zodbjobs import clock
from zodbjobs.runtime import delivery
from zodbjobs.status import ACTIVE, CALLBACKS, COMPLETED
from zodbjobs.testing.reactor import TICK_SECONDS, Reactor, begin_anew, current

#: The logger whose messages `print_logs` shows.
LOGGER = 'zodbjobs'

_machine = clock.SystemTime()


class TearDownDispatcherError(AssertionError):
    """A dispatcher, or a job of its, will not stop."""


# Jobs --------------------------------------------------------------------------------------


def wait_for_start(job, seconds=6):
    """Wait until the job's call has begun (it may have ended already)."""
    _wait_for_job(job, lambda: job.status in (ACTIVE, CALLBACKS, COMPLETED), seconds, 'start')


def wait_for_result(job, seconds=6):
    """Wait until the job is completed; returns its result."""
    _wait_for_job(job, lambda: job.status == COMPLETED, seconds, 'complete')
    return job.result


def wait_for_annotation(job, name, seconds=6):
    """Wait until the job has an annotation of this name; returns its value."""
    _wait_for_job(job, lambda: name in job.annotations, seconds, f'have an annotation {name!r}')
    return job.annotations[name]


def _wait_for_job(job, look, seconds, what):
    def looked():
        begin_anew([job])
        try:
            return look()
        except ConflictError:  # read while somebody wrote it: look again
            return False

    if not wait_until(looked, seconds):
        raise AssertionError(f'{job!r} did not {what} within {seconds} seconds: {standing(job)}')


def standing(job):
    """How a job stands: its status, its queue and who serves that.  Never raises."""
    told = [_asked(lambda: f'it is {job.status}')]
    begin_after = _asked(lambda: job.begin_after)
    if begin_after is not None:
        told.append(f'it begins after {begin_after}, now is {clock.now()}')
    queue = getattr(job, 'queue', None)
    if queue is None:
        return '; '.join([*told, 'it is in no queue'])
    told.append(_asked(lambda: f'{len(queue)} jobs wait in queue {queue.name!r}'))
    return '; '.join([*told, _asked(lambda: _service(queue))])


def _service(queue):
    """Who serves a queue, as text."""
    told = []
    for uuid, agents in queue.dispatchers.items():
        since = f'since {agents.activated}' if agents.activated else 'not activated'
        told.append(f'dispatcher {uuid} ({"dead" if agents.dead else since})')
        told += [
            f'agent {name!r} has {len(agent)} of {agent.size}' for name, agent in agents.items()
        ]
    return ', '.join(told) or 'no dispatcher is registered for it'


def _asked(ask):
    try:
        return ask()
    except Exception as error:  # the report of a failure must not fail
        return f'{type(error).__name__}: {error}'


def wait_for_notices(feeds, seconds=6):
    """Wait until the handlers of this process have heard of all that is committed, in real time."""
    if not delivery.settle(feeds, seconds):
        raise AssertionError(f'handlers of {feeds!r} have not come back within {seconds} seconds')


# Dispatchers -------------------------------------------------------------------------------


def get_poll(dispatcher, count=None, seconds=6):
    """Wait for the next poll and return it.

    With `count`, wait until there are more polls than that.
    """
    known = next(iter(dispatcher.polls), None)

    def look():
        if count is None:
            return next(iter(dispatcher.polls), None) is not known
        return len(list(dispatcher.polls)) > count

    if not wait_until(look, seconds, dispatcher):
        raise AssertionError(f'no poll! {_serving(dispatcher)}')
    return next(iter(dispatcher.polls))


def wait_for_deactivation(dispatcher, seconds=10):
    """Wait until the dispatcher has stopped."""
    if not wait_until(lambda: dispatcher.activated is False, seconds, dispatcher):
        raise AssertionError(
            f'dispatcher {dispatcher.UUID} did not stop within {seconds} seconds:'
            f' {_serving(dispatcher)}'
        )


def wait_for_death(dispatcher_agents, seconds=60):
    """Wait until the stored record of a dispatcher says that it is dead."""

    def look():
        begin_anew([dispatcher_agents])
        return dispatcher_agents.dead

    if not wait_until(look, seconds):
        raise AssertionError(
            f'dispatcher {dispatcher_agents.UUID} was not found dead within {seconds} seconds'
        )


def tear_down_dispatcher(dispatcher, seconds=3):
    """Stop a dispatcher, its private reactor and its threads.

    Each gets so many real seconds.  A virtual reactor goes on: it may serve
    other dispatchers.  Raises TearDownDispatcherError, which names what will
    not stop.
    """
    threads = _threads(dispatcher)
    own = getattr(dispatcher, 'thread', None)
    if own is not None and own.is_alive():
        dispatcher.reactor.callFromThread(dispatcher.reactor.stop)
        own.join(seconds)
        if own.is_alive():
            raise TearDownDispatcherError(
                f'the thread of dispatcher {dispatcher.UUID} will not stop: {_serving(dispatcher)}'
            )
    elif dispatcher.activated:
        dispatcher.deactivate()
    if dispatcher.activated is not False:
        wait_for_deactivation(dispatcher)
    for thread in threads:
        _join(thread, seconds, dispatcher)
        if thread.is_alive():
            raise TearDownDispatcherError(f'jobs will not stop: {_serving(dispatcher)}')


def _threads(dispatcher):
    pools = itertools.chain.from_iterable(
        agents.values() for agents in list(dispatcher.queues.values())
    )
    return [thread for pool in list(pools) for thread in list(getattr(pool, 'threads', ()))]


def _join(thread, seconds, dispatcher):
    reactor = _virtual(dispatcher)
    if reactor is None:
        thread.join(seconds)
    else:  # the thread may need the reactor to come to its end
        reactor.insist(lambda: not thread.is_alive(), seconds)


def _serving(dispatcher):
    """How a dispatcher stands, as text."""
    active = _asked(
        lambda: [
            f'{job_id}: {dispatcher.getJobInfo(*job_id)["call"]}'
            for job_id in dispatcher.getActiveJobIds()
        ]
    )
    return f'activated is {dispatcher.activated}, jobs that run: {active or "none"}'


# Both kinds of time ------------------------------------------------------------------------


def wait_until(look, seconds, dispatcher=None):
    """Let time pass until look() is true; returns whether it came true in time.

    The time is that of the dispatcher's reactor, else of the virtual reactor
    that is started, else real.
    """
    reactor = current() if dispatcher is None else _virtual(dispatcher)
    if reactor is not None:
        return reactor.wait_until(look, seconds)
    deadline, pause = _machine.monotonic() + seconds, threading.Event()
    while not look():
        left = deadline - _machine.monotonic()
        if left <= 0:
            return False
        pause.wait(min(left, TICK_SECONDS))
    return True


def _virtual(dispatcher):
    reactor = dispatcher.reactor
    return reactor if isinstance(reactor, Reactor) else None


# Logs --------------------------------------------------------------------------------------


class _Printer(logging.StreamHandler):
    """Prints to a file, or to what sys.stdout is at the moment, as doctests replace it."""

    def __init__(self, file):
        logging.Handler.__init__(self)
        self._file = file

    @property
    def stream(self):
        return sys.stdout if self._file is None else self._file


_printing = []  # (handler, the logger's level before)


def print_logs(log_file=None, log_level=logging.CRITICAL):
    """Print what this package logs, from `log_level` on, to `log_file` (None: sys.stdout).

    It takes the place of an earlier `print_logs`.
    """
    stop_printing_logs()
    logger, handler = logging.getLogger(LOGGER), _Printer(log_file)
    handler.setLevel(log_level)
    _printing.append((handler, logger.level))
    logger.addHandler(handler)
    if not logger.isEnabledFor(log_level):
        logger.setLevel(log_level)


def stop_printing_logs():
    """Undo `print_logs`; no error if nothing is printed."""
    while _printing:
        handler, level = _printing.pop()
        logging.getLogger(LOGGER).removeHandler(handler)
        logging.getLogger(LOGGER).setLevel(level)
