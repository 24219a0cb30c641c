"""What is logged while a job runs: said with the job's name, and kept with it.

Every record that is made in a worker's thread gets the attribute ``zodbjob``,
an `About` whose text is ``job 117 queue 'mail' agent 'main' attempt 1``; records
of other threads have an empty one.  So any format may say ``%(zodbjob)s``.

What the job's own code logged (from INFO on, as far as its loggers let it pass)
is kept with the job if the attempt did not succeed, and its warnings also if it
did, a bounded number of lines.  They are written like live annotations, so
the job's own commit does not meet them, and a job that logs nothing costs nothing.

Runs in the workers' threads; the writing is done by the dispatcher's notebook.
"""

import logging
import threading

from zodbjobs import clock

#: Lines that are kept with a job: the latest, over all its attempts.
LINES = 100

#: Characters of a line.
LINE_LENGTH = 500

#: Where they are kept: a tuple of (ISO 8601 text, level, text).
ANNOTATION = 'zodbjobs.log'

_here = threading.local()


class About:
    """What a thread works on: for the records that it logs."""

    __slots__ = ('agent', 'attempt', 'lines', 'oid', 'queue')

    def __init__(self, queue='', agent='', oid=None, attempt=None):
        self.queue = queue
        self.agent = agent
        self.oid = oid
        self.attempt = attempt
        self.lines = []

    def __str__(self):
        if self.oid is None:
            return ''
        attempt = '' if self.attempt is None else f' attempt {self.attempt}'
        return f'job {self.oid} queue {self.queue!r} agent {self.agent!r}{attempt}'

    def hear(self, record):
        """Remember what the job's own code says."""
        if record.levelno < logging.INFO or record.name.startswith('zodbjobs.'):
            return
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 - whoever handles the record says what is wrong
            text = str(record.msg)
        at = f'{clock.now():%Y-%m-%dT%H:%M:%SZ}'
        self.lines.append((at, record.levelname, text[:LINE_LENGTH]))
        del self.lines[:-LINES]

    def kept(self, succeeded):
        """The lines that are worth keeping."""
        if not succeeded:
            return tuple(self.lines)
        return tuple(line for line in self.lines if line[1] not in ('INFO', 'DEBUG'))


_NOTHING = About()


def current():
    """The About of this thread."""
    return getattr(_here, 'about', _NOTHING)


def begin(assignment, attempt):
    """This thread begins that attempt at a job; returns the About of it."""
    oid = int.from_bytes(assignment.oid, 'big')
    found = _here.about = About(assignment.queue, assignment.agent, oid, attempt)
    return found


def end():
    """This thread works on nothing any more; returns the About of what it worked on."""
    found = getattr(_here, 'about', _NOTHING)
    _here.about = _NOTHING
    return found


class _Factory:
    """Makes records as `former` did, and says what the thread works on."""

    def __init__(self, former):
        self.former = former

    def __call__(self, *args, **kwargs):
        record = self.former(*args, **kwargs)
        found = current()
        if found is not _NOTHING:
            found.hear(record)
        record.zodbjob = found
        return record


def install():
    """Let the records of this process carry what their threads work on; once."""
    former = logging.getLogRecordFactory()
    if not isinstance(former, _Factory) and _Factory not in _factories_below(former):
        logging.setLogRecordFactory(_Factory(former))


def _factories_below(factory):
    """The types of the factories on which another package's factory is known to stand."""
    found = getattr(factory, 'former', None) or getattr(factory, '__wrapped__', None)
    return [] if found is None else [type(found)]


def added(former, lines):
    """What an annotation becomes by further lines."""
    return (*(former or ()), *lines)[-LINES:]
