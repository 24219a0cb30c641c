"""What the jobs and polls of this process came to, kept in memory only.

The dispatcher and its worker threads tell what happens as it happens; monitors,
commands and tests ask.  Any thread may do either: each log has one lock that is
held for a few microseconds, no transaction is involved, and nothing here ever
raises at those who tell.

Two kinds of answer, which rotate out at different speeds:

* Counts without a window (`Statistics.getStatistics()`) are of the whole life
  of the dispatcher since it was activated, and never rotate out, nor do the
  jobs named there as the longest and shortest.
* Counts with a window (`at`, `before` or `since`) are of the jobs that were
  claimed by the polls of the window.  The newest 400 polls are kept and the
  newest 200 jobs; a job of the window that is no longer kept, or that ended
  without an outcome, counts as 'unknown'.

In both, started = successful + failed + unknown + those that are still active.
A job that is tried again is counted at each attempt.  Jobs that run never
rotate out, there are no more of them than threads; jobs that wait, without a
thread, for a job or Deferred that they returned may.

Times are naive UTC datetimes and job ids are (int oid, database name), as the
users of zc.async know them.
"""

import bisect
import collections
import itertools
import math
import threading

from zodbjobs import clock
from zodbjobs.model.failure import is_failure

#: Characters of a result or a traceback that are kept for each job.
RESULT_LENGTH = 10_000
#: Characters of a call's repr.
CALL_LENGTH = 1000
#: Pairs of queue and agent with counts of their own.  Far more than anybody configures; beyond
#: it (agents that are named anew all the time) they are counted together.
LIVES = 500
OTHERS = (None, None)

#: Attempts that ended are counted so many at a time: each alone would cost its worker more.
UNCOUNTED = 32

#: Upper bounds in seconds of the classes in which times are counted.
BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 300, 3600)
_BOUNDS_MICROS = [round(bound * clock.SECOND) for bound in BOUNDS]

ACTIVE = 'active'
SUMS = ('conflicts', 'retries', 'rescues')
TIMES = ('wait', 'run', 'commit')
SUCCESSFUL = 'successful'
FAILED = 'failed'
UNKNOWN = 'unknown'


def _naive(micros):
    """The naive UTC datetime of microseconds; None stays None."""
    return None if micros is None else clock.datetime_of(micros).replace(tzinfo=None)


def _chosen(name, wanted):
    return wanted is None or name == wanted


# Polls -------------------------------------------------------------------------------------


class PollInfo(dict):
    """What one poll found: {queue name: None or {agent name: facts}}.

    None stands for a queue that another process serves under this UUID.
    The facts are 'size', 'len', 'error', 'new jobs' and 'active jobs'.

    `key` is an int, unique in this process and ascending: of two polls the
    later one has the greater key, even at the same instant.
    """

    def __init__(self, key, micros):
        super().__init__()
        self.key = key
        self.micros = micros

    @property
    def utc_timestamp(self):
        """When the poll began, a naive UTC datetime."""
        return _naive(self.micros)

    def new_jobs(self, queue=None, agent=None):
        """Yield the ids of the jobs it claimed (for that queue, for that agent)."""
        for queue_name, agents in self.items():
            if agents is not None and _chosen(queue_name, queue):
                for agent_name, facts in agents.items():
                    if _chosen(agent_name, agent):
                        yield from facts.get('new jobs', ())


class PollsLog:
    """The newest `size` polls; iterating gives the newest first."""

    def __init__(self, size=400):
        self._lock = threading.Lock()
        self._polls = collections.deque(maxlen=size)
        self._last_key = 0
        self.first_micros = None  # when the first poll of all began

    def begin(self):
        """A new PollInfo with its key, not yet in the log and still empty."""
        with self._lock:
            micros = clock.micros()
            # Time may stand still in tests, and step back on machines: the key goes on.
            self._last_key = max(micros, self._last_key + 1)
            return PollInfo(self._last_key, micros)

    def add(self, poll):
        """Log `poll` among those that began before and after it."""
        with self._lock:
            if self.first_micros is None:
                self.first_micros = poll.micros
            later = []
            while self._polls and self._polls[-1].key > poll.key:
                later.append(self._polls.pop())
            self._polls.append(poll)
            self._polls.extend(reversed(later))

    def clear(self):
        """Forget all polls; keys go on ascending."""
        with self._lock:
            self._polls.clear()
            self.first_micros = None

    def __len__(self):
        return len(self._polls)

    def __iter__(self):
        with self._lock:
            polls = list(self._polls)
        return reversed(polls)

    def first(self):
        """The newest poll.  Raises ValueError if there is none."""
        return self.get()

    def get(self, at=None, before=None):
        """The newest poll not after `at`, or earlier than `before`; ValueError if none is."""
        for poll in self.select(at, before):
            return poll
        raise ValueError('no poll is known at that time')

    def select(self, at=None, before=None, since=None):
        """Yield polls, newest first: not after `at`, earlier than `before`, not before `since`.

        Each is the key of a poll or a datetime.  Raises ValueError if both
        `at` and `before` are given.
        """
        if at is not None and before is not None:
            raise ValueError('give one of `at` and `before`, not both')
        latest, end, earliest = map(_bound, (at, before, since))
        return (
            poll
            for poll in self
            if (at is None or latest(poll) >= 0)
            and (before is None or end(poll) > 0)
            and (since is None or earliest(poll) <= 0)
        )


def _bound(value):
    """A function: how much later `value`, a poll's key or a datetime, is than a poll."""
    if value is None:
        return None
    if isinstance(value, int):
        return lambda poll: value - poll.key
    micros = clock.micros_of(value)
    return lambda poll: micros - poll.micros


# Jobs --------------------------------------------------------------------------------------


class _Attempt:
    """One attempt of one job; instants in microseconds."""

    __slots__ = (
        'agent',
        'call',
        'claimed',
        'commit',
        'conflicts',
        'due',
        'ended',
        'going_on',
        'in_thread',
        'job_id',
        'left',
        'poll_key',
        'queue',
        'quota_names',
        'reassigned',
        'rescheduled',
        'rescued',
        'result',
        'started',
        'state',
        'thread',
    )

    def __init__(self, job_id, queue, agent, poll_key, quota_names):
        self.job_id = job_id
        self.queue = queue
        self.agent = agent
        self.poll_key = poll_key
        self.going_on = ()  # keys of polls that claimed it again, when what it waited for was done
        self.quota_names = tuple(quota_names)
        self.claimed = clock.micros()
        self.call = self.thread = self.result = None
        self.due = self.started = self.left = self.ended = None
        self.state = ACTIVE
        self.in_thread = self.reassigned = self.rescheduled = self.rescued = False
        self.commit = None  # microseconds that the commit of the work took
        self.conflicts = 0

    @property
    def duration(self):
        """Microseconds from its start until its end, or until now."""
        end = clock.micros() if self.ended is None else self.ended
        return end - (self.claimed if self.started is None else self.started)

    @property
    def wait(self):
        """Microseconds it was due before it started."""
        return max(0, self.started - (self.claimed if self.due is None else self.due))

    @property
    def run(self):
        """Microseconds it had a thread."""
        return (self.ended if self.left is None else self.left) - self.started

    def info(self):
        return {
            'agent': self.agent,
            'call': self.call,
            'completed': _naive(self.ended) if self.state in (SUCCESSFUL, FAILED) else None,
            'failed': self.state == FAILED,
            'poll id': self.poll_key,
            'queue': self.queue,
            'quota names': self.quota_names,
            'reassigned': self.reassigned,
            'result': self.result,
            'started': _naive(self.started),
            'thread': self.thread,
        }


class _Histogram:
    """How many times were not longer than each of `BOUNDS`, and their sum."""

    __slots__ = ('counts', 'total')

    def __init__(self):
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0

    def add(self, micros):
        self.counts[bisect.bisect_left(_BOUNDS_MICROS, micros)] += 1
        self.total += micros

    def merge(self, other):
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.total += other.total

    def shown(self):
        """([(upper bound as a text, count up to it)], sum in seconds), as Prometheus wants it."""
        names = [*map(str, BOUNDS), '+Inf']
        return list(
            zip(names, itertools.accumulate(self.counts), strict=True)
        ), self.total / clock.SECOND


class _Tally:
    """Counts of attempts by outcome, with the shortest and the longest of each."""

    def __init__(self):
        self.started = 0
        self.counts = {SUCCESSFUL: 0, FAILED: 0, UNKNOWN: 0, ACTIVE: 0}
        self.sums = dict.fromkeys(SUMS, 0)
        self.times = {name: _Histogram() for name in TIMES}
        self.shortest = {}
        self.longest = {}

    def add(self, attempt):
        """Count one attempt in the state it is in."""
        self.counts[attempt.state] += 1
        sums = self.sums
        sums['conflicts'] += attempt.conflicts
        sums['retries'] += attempt.rescheduled
        sums['rescues'] += attempt.rescued
        if attempt.state in (SUCCESSFUL, FAILED) and attempt.started is not None:
            self.times['wait'].add(attempt.wait)
            self.times['run'].add(attempt.run)
            if attempt.commit is not None:
                self.times['commit'].add(attempt.commit)
        if attempt.state != UNKNOWN:
            self.measure(attempt)

    def measure(self, attempt):
        """Remember the attempt if none was shorter, or longer."""
        state, duration = attempt.state, attempt.duration
        shortest, longest = self.shortest.get(state), self.longest.get(state)
        if shortest is None or duration < shortest.duration:
            self.shortest[state] = attempt
        if longest is None or duration > longest.duration:
            self.longest[state] = attempt

    def merge(self, other):
        """Add what `other` counted."""
        self.started += other.started
        for state, count in other.counts.items():
            self.counts[state] += count
        for name, count in other.sums.items():
            self.sums[name] += count
        for name, histogram in other.times.items():
            self.times[name].merge(histogram)
        for attempt in other.extremes():
            self.measure(attempt)

    def totals(self):
        """A dict of counts, and under the names in `TIMES` what `_Histogram.shown` gives."""
        times = {name: histogram.shown() for name, histogram in self.times.items()}
        return {'started': self.started, **self.counts, **self.sums, **times}

    def extremes(self):
        """The attempts it remembers, at most two for each state."""
        return [*self.shortest.values(), *self.longest.values()]

    def shown(self):
        """The counts and job ids by the names users know."""
        shown = {'started': self.started}
        for state in (SUCCESSFUL, FAILED, UNKNOWN):
            shown[state] = self.counts[state]
        for state in (SUCCESSFUL, FAILED, ACTIVE):
            for word, found in (('shortest', self.shortest), ('longest', self.longest)):
                shown[f'{word} {state}'] = found[state].job_id if state in found else None
        return shown


class JobsLog:
    """Attempts that run, and the newest `size` of all that were made."""

    def __init__(self, size=200):
        self._lock = threading.Lock()
        self._size = size
        self.clear()

    def clear(self):
        """Forget everything."""
        with self._lock:
            self._ended = []  # attempts that are not counted yet
            self._active = {}  # job id -> attempt that has a thread, or is about to
            self._past = collections.deque()  # attempts that gave their thread back
            self._newest = {}  # job id -> the newest of its attempts among those
            self._lives = {}  # (queue, agent) -> _Tally

    # What the runtime tells.  All take the job's id first.

    def claimed(self, job_id, queue, agent, poll_key=None, quota_names=()):
        """The job was claimed for an agent; `poll_key` is that of the poll that did."""
        attempt = _Attempt(job_id, queue, agent, poll_key, quota_names)
        with self._lock:
            former = self._taken(job_id)
            if former is not None and former.left is not None:
                former.going_on += (poll_key,)
                return  # it has waited for a job, and is claimed for the rest: it goes on
            if former is not None:  # nobody said how that one ended
                self._end(former, UNKNOWN)
            self._active[job_id] = attempt
            self._life(attempt).started += 1
            self._rotate()

    def started(self, job_id, call_repr, thread=None, due=None, rescued=False):
        """Its call begins in the thread of that identity.

        `call_repr` is a text, best a short one.  `due` is when the job could
        have started, in microseconds; without it the wait is from the claim.
        """
        with self._lock:
            attempt = self._active.get(job_id)
            if attempt is not None:
                attempt.call = call_repr and call_repr[:CALL_LENGTH]
                attempt.thread = thread
                attempt.due = due
                attempt.rescued = rescued
                attempt.started = clock.micros()
                attempt.in_thread = True

    def conflicted(self, job_id):
        """The attempt ran its call once more after a conflict."""
        with self._lock:
            attempt = self._active.get(job_id)
            if attempt is not None:
                attempt.conflicts += 1

    def committed(self, job_id, seconds):
        """The commit of its work took so long."""
        with self._lock:
            attempt = self._active.get(job_id)
            if attempt is not None:
                attempt.commit = round(seconds * clock.SECOND)

    def waits(self, job_id):
        """The call returned a job or a Deferred: active still, but without a thread."""
        with self._lock:
            attempt = self._active.pop(job_id, None)
            if attempt is not None:
                attempt.left = clock.micros()
                self._lay_by(attempt)

    def finished(self, job_id, failed, result, seconds=None):
        """The job has its result; `result` is a text, its repr or a verbose traceback.

        `seconds` is how long the commit of its work took, if that is known now.
        """
        with self._lock:
            attempt = self._taken(job_id)
            if attempt is not None:
                attempt.result = result and result[:RESULT_LENGTH]
                if seconds is not None:
                    attempt.commit = round(seconds * clock.SECOND)
                self._end(attempt, FAILED if failed else SUCCESSFUL)

    def rescheduled(self, job_id):
        """The attempt ended without an outcome: the job will be tried again."""
        with self._lock:
            attempt = self._taken(job_id)
            if attempt is not None:
                attempt.rescheduled = True
                self._end(attempt, UNKNOWN)

    def reassigned(self, job_id):
        """The attempt ended in vain: the job belongs to another worker."""
        with self._lock:
            attempt = self._taken(job_id)
            if attempt is not None:
                attempt.reassigned = True
                self._end(attempt, UNKNOWN)

    def _taken(self, job_id):
        """The attempt of the job that has not ended, or None."""
        attempt = self._active.pop(job_id, None) or self._newest.get(job_id)
        return attempt if attempt is not None and attempt.state == ACTIVE else None

    def _end(self, attempt, state):
        attempt.state = state
        attempt.ended = clock.micros()
        self._ended.append(attempt)
        if len(self._ended) >= UNCOUNTED:
            self._count_ended()
        if attempt.left is None:  # else it was laid by when it began to wait
            self._lay_by(attempt)

    def _count_ended(self):
        for attempt in self._ended:
            self._life(attempt).add(attempt)
        self._ended.clear()

    def _lay_by(self, attempt):
        attempt.in_thread = False
        self._past.append(attempt)
        self._newest[attempt.job_id] = attempt
        self._rotate()

    def _rotate(self):
        while self._past and len(self._past) + len(self._active) > self._size:
            attempt = self._past.popleft()
            if self._newest.get(attempt.job_id) is attempt:
                del self._newest[attempt.job_id]
            if attempt.state == ACTIVE:  # it waits; its end will find nothing to count
                attempt.state = UNKNOWN
                self._life(attempt).add(attempt)

    def _life(self, attempt):
        key = (attempt.queue, attempt.agent)
        life = self._lives.get(key)
        if life is None:
            if len(self._lives) >= LIVES:
                key = OTHERS
            life = self._lives.setdefault(key, _Tally())
        return life

    # What others ask.

    def __len__(self):
        """How many attempts are known."""
        return len(self._active) + len(self._past)

    def attempts(self, queue=None, agent=None):
        """Attempts that are known, the oldest claim first as far as they have ended."""
        with self._lock:
            return self._known(queue, agent)

    def _known(self, queue, agent):
        known = itertools.chain(self._past, self._active.values())
        return [a for a in known if _chosen(a.queue, queue) and _chosen(a.agent, agent)]

    def active_ids(self, queue=None, agent=None):
        """Ids of the jobs that run in threads now, the longest running first."""
        with self._lock:
            running = [
                a
                for a in self._active.values()
                if a.in_thread and _chosen(a.queue, queue) and _chosen(a.agent, agent)
            ]
        return [attempt.job_id for attempt in sorted(running, key=_started)]

    def active(self):
        """{(queue, agent): `active_ids`} of those that have any."""
        with self._lock:
            running = [a for a in self._active.values() if a.in_thread]
        found = {}
        for attempt in sorted(running, key=_started):
            found.setdefault((attempt.queue, attempt.agent), []).append(attempt.job_id)
        return found

    def life(self, queue=None, agent=None):
        """The _Tally of everything since the log was made or cleared."""
        tally = _Tally()
        with self._lock:
            self._count_ended()
            for (queue_name, agent_name), life in self._lives.items():
                if _chosen(queue_name, queue) and _chosen(agent_name, agent):
                    tally.merge(life)
            for attempt in self._known(queue, agent):
                if attempt.state == ACTIVE:
                    tally.add(attempt)
        return tally

    def totals(self):
        """{(queue, agent): `_Tally.totals` of the attempts that ended}, since it was cleared."""
        with self._lock:
            self._count_ended()
            return {key: life.totals() for key, life in self._lives.items()}

    def window(self, polls, queue=None, agent=None):
        """The _Tally of the attempts that these polls began."""
        attempts = self.attempts(queue, agent)
        known = {(a.poll_key, a.job_id): a for a in attempts}
        going_on = {(key, a.job_id) for a in attempts for key in a.going_on}
        tally = _Tally()
        for poll in polls:
            for job_id in poll.new_jobs(queue, agent):
                if (poll.key, job_id) in going_on:
                    continue
                tally.started += 1
                attempt = known.get((poll.key, job_id))
                if attempt is None:
                    tally.counts[UNKNOWN] += 1
                else:
                    tally.add(attempt)
        return tally

    def find(self, oid, database_name=None):
        """The newest attempt of a job.  Raises ValueError: none known, or several databases."""
        with self._lock:
            self._count_ended()
            extremes = itertools.chain(*(life.extremes() for life in self._lives.values()))
            known = [*extremes, *self._newest.values(), *self._active.values()]
        found = {a.job_id[1]: a for a in known if a.job_id[0] == oid}  # the newest is last
        if database_name is not None:
            found = {name: a for name, a in found.items() if name == database_name}
        if not found:
            raise ValueError(f'no job {oid!r} is known here; only the newest {self._size} are kept')
        if len(found) > 1:
            raise ValueError(
                f'job {oid!r} is ambiguous: give database_name, one of {sorted(found)}'
            )
        return found.popitem()[1]


# Both --------------------------------------------------------------------------------------


class Statistics:
    """The statistics of one dispatcher; see the module's text for what they count."""

    def __init__(self, jobs_size=200, polls_size=400):
        self.jobs = JobsLog(jobs_size)
        self.polls = PollsLog(polls_size)
        # What the runtime tells of jobs goes straight to their log.
        self.claimed = self.jobs.claimed
        self.started = self.jobs.started
        self.committed = self.jobs.committed
        self.conflicted = self.jobs.conflicted
        self.waits = self.jobs.waits
        self.finished = self.jobs.finished
        self.rescheduled = self.jobs.rescheduled
        self.reassigned = self.jobs.reassigned

    def clear(self):
        """Begin anew, as a dispatcher does when it is activated."""
        self.jobs.clear()
        self.polls.clear()

    def begin_poll(self):
        """A PollInfo whose `key` may be told with the jobs it claims; see `polled`."""
        return self.polls.begin()

    def polled(self, results, poll=None):
        """Log what a poll found and return its PollInfo.

        `results` is {queue name: None or {agent name: {'size', 'len', 'error',
        'new jobs', 'active jobs'}}} and must not be changed afterwards; `poll`
        is what `begin_poll` gave, if it was asked.
        """
        poll = self.polls.begin() if poll is None else poll
        poll.update(results)
        self.polls.add(poll)
        return poll

    def getStatistics(self, at=None, before=None, since=None, queue=None, agent=None):
        """See IDispatcher.getStatistics.

        'statistics start' is the earlier end, both are None without any poll.
        The shortest and longest jobs are ids, or None.  Raises ValueError if
        both `at` and `before` are given.
        """
        polls = list(self.polls.select(at, before, since))
        if at is None and before is None and since is None:
            tally, start = self.jobs.life(queue, agent), self.polls.first_micros
        else:
            tally = self.jobs.window(polls, queue, agent)
            start = polls[-1].micros if polls else None
        return tally.shown() | {
            'statistics start': _naive(start),
            'statistics end': polls[0].utc_timestamp if polls else None,
        }

    def getActiveJobIds(self, queue=None, agent=None):
        """See IDispatcher.getActiveJobIds: the longest running first."""
        return self.jobs.active_ids(queue, agent)

    def getJobInfo(self, oid, database_name=None):
        """See IDispatcher.getJobInfo.

        'completed' is None also for an attempt that ended without an outcome.
        """
        return self.jobs.find(oid, database_name).info()

    def getPollInfo(self, at=None, before=None):
        """See IDispatcher.getPollInfo: the newest poll, or the one at or before a time or key."""
        return self.polls.get(at, before)

    def iterPolls(self, at=None, before=None, since=None, count=None):
        """See IDispatcher.iterPolls; at most `count` of them, ValueError if it is negative."""
        if count is not None and count < 0:
            raise ValueError(f'count must not be negative: {count!r}')
        return itertools.islice(self.polls.select(at, before, since), count)

    def totals(self):
        """Counts and histograms for each (queue, agent), which only grow: for metrics."""
        return self.jobs.totals()

    def summary(self, queue=None, agent=None, window=None):
        """How long jobs waited and ran, of those kept or of the last `window` seconds.

        A dict: 'count' of the attempts that came to a result; seconds under
        'wait p50', 'wait p95', 'run p50' and 'run p95' (None when there are
        none); 'conflicts' and 'retries'.  The wait is from when a job was due
        until it started, the run how long it had a thread.
        """
        oldest = -math.inf if window is None else clock.micros() - clock.micros_in(window)
        recent = [
            attempt
            for attempt in self.jobs.attempts(queue, agent)
            if attempt.ended is None or attempt.ended >= oldest
        ]
        ended = [a for a in recent if a.state in (SUCCESSFUL, FAILED) and a.started is not None]
        waits, runs = sorted(a.wait for a in ended), sorted(a.run for a in ended)
        return {
            'count': len(ended),
            'wait p50': percentile(waits, 50),
            'wait p95': percentile(waits, 95),
            'run p50': percentile(runs, 50),
            'run p95': percentile(runs, 95),
            'conflicts': sum(attempt.conflicts for attempt in recent),
            'retries': sum(attempt.rescheduled for attempt in recent),
        }


def _started(attempt):
    return attempt.started


def percentile(micros, percent):
    """Seconds that `percent` of the sorted `micros` do not exceed; None if there are none."""
    if not micros:
        return None
    return micros[math.ceil(len(micros) * percent / 100) - 1] / clock.SECOND


def shown(result):
    """A short text for a result: the repr, or the traceback of a failure."""
    if is_failure(result):
        return result.getTraceback(detail='verbose')[-RESULT_LENGTH:]
    try:
        return repr(result)[:RESULT_LENGTH]
    except Exception as error:  # noqa: BLE001 - the repr is user code
        return f'<a {type(result).__name__} whose repr raised {type(error).__name__}>'
