"""What a dispatcher's process knows of itself: threads, running jobs, stacks, polls, statistics.

All of it is in memory; no database is read, so it is answered also while the
storage is away.  Runs in any thread.
"""

import os
import socket
import sys
import threading
import traceback

from zodbjobs import clock
from zodbjobs.monitor.shown import plain

#: Polls that are shown, unless told otherwise.
POLLS = 3

#: Frames of a stack that are shown, the innermost ones.
FRAMES = 60


def process(dispatcher):
    """Who this process is and how it stands."""
    import importlib.metadata

    return {
        'uuid': str(dispatcher.UUID),
        'pid': os.getpid(),
        'host': socket.gethostname(),
        'version': importlib.metadata.version('zodbjobs'),
        'python': sys.version.split()[0],
        'database': dispatcher.db.storage.getName(),
        'objection': dispatcher.objection,
        'threads_given_up': dispatcher.overrun_count,
        'status': plain(dispatcher.getStatusInfo()),
        'pools': pools(dispatcher),
        'summary': dispatcher.statistics.summary(),
    }


def pools(dispatcher):
    """The thread pools: one for each agent."""
    return [
        {
            'queue': queue,
            'agent': agent,
            'size': pool.getSize(),
            'threads': len(pool.threads),
            'taken': dispatcher.flight_count(queue, agent),
            'waiting': pool.waiting_count(),
        }
        for queue, of_queue in list(dispatcher.queues.items())
        for agent, pool in list(of_queue.items())
    ]


def threads(dispatcher, stacks=True, everything=False):
    """The threads that run jobs, with their stacks; `everything`: and all others.

    Each has 'thread', 'name', and for a job 'oid', 'database', 'queue', 'agent',
    'call' and 'seconds'; 'stack' has the innermost frame last.
    """
    frames = sys._current_frames()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    now = clock.micros()
    rows, told = [], set()
    for attempt in dispatcher.jobs.attempts():
        if attempt.in_thread:
            told.add(attempt.thread)
            oid, database = attempt.job_id
            rows.append(
                {
                    'thread': attempt.thread,
                    'name': names.get(attempt.thread),
                    'oid': oid,
                    'database': database,
                    'queue': attempt.queue,
                    'agent': attempt.agent,
                    'call': attempt.call,
                    'seconds': (now - attempt.started) / clock.SECOND,
                }
            )
    rows.sort(key=lambda row: -row['seconds'])
    if everything:
        rows += [{'thread': ident, 'name': names[ident]} for ident in names if ident not in told]
    for row in rows:
        frame = frames.get(row['thread'])
        row['stack'] = _stack(frame) if stacks and frame is not None else []
    return rows


def _stack(frame):
    lines = traceback.format_stack(frame)[-FRAMES:]
    return [line.rstrip('\n') for line in lines]


def polls(dispatcher, at=None, before=None, since=None, count=None):
    """The newest polls; three unless `since` or `count` is given.

    The times are keys of polls, or times as for `zodbjobs.monitor.wanted.moment`.
    """
    if count is None and since is None:
        count = POLLS
    found = dispatcher.iterPolls(*map(_poll_time, (at, before, since)), count=count)
    return [
        {'key': p.key, 'time': plain(p.utc_timestamp), 'results': plain(dict(p))} for p in found
    ]


def statistics(dispatcher, at=None, before=None, since=None, queue=None, agent=None):
    """The statistics of this process, as IDispatcher.getStatistics tells them."""
    times = map(_poll_time, (at, before, since))
    return plain(dispatcher.getStatistics(*times, queue=queue, agent=agent))


def summary(dispatcher, queue=None, agent=None, window=None):
    """Percentiles of waiting and running; `window` is in seconds."""
    return dispatcher.statistics.summary(queue, agent, window)


def attempt(dispatcher, oid, database=None):
    """What this process knows of its newest attempt at a job."""
    return plain(dispatcher.getJobInfo(oid, database))


def active(dispatcher, queue=None, agent=None):
    """The jobs that run in threads now: [[oid, name of the database]]."""
    return plain(dispatcher.getActiveJobIds(queue, agent))


def _poll_time(value):
    from zodbjobs.monitor.wanted import moment

    return clock.datetime_of(moment(value)) if isinstance(value, str) else value


#: name -> a function of the dispatcher.
QUESTIONS = {
    'process': process,
    'threads': threads,
    'polls': polls,
    'statistics': statistics,
    'summary': summary,
    'attempt': attempt,
    'active': active,
}
