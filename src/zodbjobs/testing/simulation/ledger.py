"""The invariants, checked against the database after each commit, and at the end.

The ledger looks through a connection of its own, which sees every commit at
once and never writes.  It relies on as little of the engine as it can: on the
records of jobs, on the lists that agents and histories keep, and on the marks
that the jobs themselves left (see `errands`).

Runs in the director's thread; `begins` and `ends` in jobs' threads.
"""

import collections

import transaction

from zodbjobs import status
from zodbjobs.interfaces import KEY
from zodbjobs.model.compose import Composite
from zodbjobs.model.failure import is_failure
from zodbjobs.model.intake import entries_of
from zodbjobs.model.job import WAITS_FOR_JOB, Job
from zodbjobs.testing.simulation.errands import QUOTAS, Mark
from zodbjobs.testing.simulation.process import Process

#: Failures that any job may end with, by what the run has met.
BY_TROUBLE = {
    'conflict': {'ConflictError', 'ReadConflictError', 'BTreesConflictError'},
    'disconnected': {'ClientDisconnected'},
    'unknown': {'ClientDisconnected'},
    'error': {'PlannedError'},
}

#: Traits of a run in which dispatchers die, or may be held for dead.
INTERRUPTING = {'crashes', 'pauses', 'faults', 'cuts', 'burials', 'stops', 'stalls'}


class Violation(AssertionError):
    """An invariant does not hold.  `name` tells which."""

    def __init__(self, name, text):
        super().__init__(f'{name}: {text}')
        self.name = name


class Run:
    """One run of a job's body, until it ends."""

    def __init__(self, number, token, process):
        self.number = number
        self.token = token
        self.process = process


class Ledger:
    """What the database says, and what must be true of it."""

    def __init__(self, play):
        self.play = play
        self.process = Process(play.world, 'ledger')
        self.manager = transaction.TransactionManager()
        self.connection = self.process.db.open(self.manager)
        self.marks = {}  # number -> Mark, as the ledger's connection has it
        self.by_oid = {}  # oid of a mark, its effects or its job -> number
        self.runs = {}  # number of a run -> Run, while it lasts
        self.run_counts = collections.Counter()  # number -> runs of its body
        self.committed_at = {}  # oid of a job -> tid of the latest commit of its record
        self.tokens = {}  # oid of a job -> its token
        self.former_tokens = {}  # the same before the latest commit, where that wrote the job
        self.held_entries = {}  # (agent's oid, job's oid, token) -> number: the running lists
        self.seen_end = {}  # number -> its outcome once it was completed
        self.touched = set()  # numbers of jobs that an operator touched
        self._run = 0

    @property
    def queues(self):
        return self.connection.root().get(KEY, {})

    def claim(self, holds, name, text, *args):
        """Raise Violation unless `holds`."""
        if not holds:
            raise Violation(name, text.format(*args))

    # bodies

    def run_count(self, number):
        """How often the body of that number was run so far."""
        return self.run_counts[number]

    def begins(self, mark, job, given):
        """The body of a job begins; returns the number of this run."""
        number, process = mark.number, self.play.process
        self._run += 1
        self.runs[self._run] = Run(number, job._token, process)
        self.run_counts[number] += 1
        try:
            self._check_begin(mark, job, given)
        except Violation as violation:  # the job must not catch it
            self.play.violate(violation)
        return self._run

    def ends(self, mark, run):
        """The body ended, whatever came of it."""
        del self.runs[run]

    def _check_begin(self, mark, job, given):
        number, errand = mark.number, mark.errand
        self.play.say(f'{number} begins')
        assignment = self.play.stage.current.assignment
        self.claim(
            assignment is None  # the operator has cancelled a job that is in no queue
            or assignment.oid != job._p_oid
            or assignment.token == job._token,
            'none but its own', '{} begins where it is out of date', number,
        )  # fmt: skip
        self.claim(
            errand.get('policy') != 'never' or self.run_counts[number] == 1 or
            number in self.touched,
            'at most once', '{} is of NeverRetry and begins again', number,
        )  # fmt: skip
        # By the clock that is ahead most: whoever files a job may have found it due.
        early = 0 if job._due is None else job._due - self.play.world.latest_micros
        self.claim(
            early <= 0, 'not before begin_after', '{} begins {} microseconds early', number, early
        )
        for other in (*job._depends_on, *job._after):
            known = self.connection.get(other._p_oid)
            self.claim(
                known._status in (status.COMPLETED, status.NEW),
                'dependents later', '{} begins while {!r} is {}', number, known, known._status,
            )  # fmt: skip
        for other in job._depends_on:
            known = self.connection.get(other._p_oid)
            self.claim(
                known.outcome == 'success',
                'dependents need success', '{} begins after {!r} ended', number, known,
            )  # fmt: skip
        if given and assignment is not None:  # in a worker, where it sees what was committed
            self._check_callback(number, given)
        self._check_serial(number)

    def _check_callback(self, number, given):
        parent = self._job_of(number.rpartition('.')[0])
        if parent is None:
            return
        self.claim(
            parent._status in status.FINISHED,
            'callbacks later', '{} begins while its job is {}', number, parent._status,
        )  # fmt: skip
        found = given[0]
        same = is_failure(found) == is_failure(parent._result)
        self.claim(
            same, 'callbacks get the result', '{} got {!r}, not {!r}', number, found,
            parent._result,
        )  # fmt: skip

    def _check_serial(self, number):
        outer, _, last = number.rpartition('.')
        composite = self.marks.get(outer)
        if composite is None or 'parts' not in composite.errand or not last.isdigit():
            return
        if composite.errand['kind'] == 'serial' and int(last):
            before = self._job_of(f'{outer}.{int(last) - 1}')
            self.claim(
                before is not None and before._status == status.COMPLETED,
                'serial order', '{} begins before {}.{} has ended', number, outer, int(last) - 1,
            )  # fmt: skip

    def _job_of(self, number):
        mark = self.marks.get(number)
        return None if mark is None else mark.job

    # after a commit

    def look(self, commit):
        """See what `commit` has written, and check."""
        self.manager.begin()
        self.former_tokens = {}
        touched = []
        for oid in commit.oids:
            thing = self.connection.get(oid)
            if isinstance(thing, Mark):
                self._learn(thing)
            elif isinstance(thing, Job):
                self.committed_at[oid] = commit.tid
                self.former_tokens[oid] = self.tokens.get(oid)
                self.tokens[oid] = thing._token
            number = self.by_oid.get(oid)
            if number is not None and number not in touched:
                touched.append(number)
        if self.play.is_told:
            self._tell(commit, touched)
        if touched:
            self._check_author(commit)
        for number in touched:
            self._check_mark(self.marks[number])
        if KEY in self.connection.root():
            self._check_lists(commit)
            self._check_entries()

    def _check_author(self, commit):
        """Whose job went to another worker, or back to the queue, commits no work any more."""
        assignment = None if commit.actor is None else commit.actor.assignment
        if assignment is None:
            return
        oid = assignment.oid
        token = self.former_tokens.get(oid, self.tokens.get(oid))
        self.claim(
            token == assignment.token,
            'who lost a job commits nothing', '{} commits for {}', commit.actor,
            self.by_oid.get(oid),
        )  # fmt: skip

    def _learn(self, mark):
        self.marks[mark.number] = mark
        for thing in (mark, mark.effects, mark.job):
            self.by_oid[thing._p_oid] = mark.number

    def _tell(self, commit, numbers):
        words = [
            f'{number} {self._job_of(number)._status}{" done" * self.marks[number].effect_count()}'
            for number in numbers
        ]
        for oid in commit.oids:
            words += self._words_on(self.connection.get(oid))
        self.play.say(f'commit by {commit.actor or commit.process.name}: {", ".join(words)}')

    def _words_on(self, thing):
        """What to tell of an object that has no mark."""
        if isinstance(thing, Job) and thing._p_oid not in self.by_oid:
            return [f'{self._number_of(thing)} {thing._status}']
        for _, record, agent in self.agents():
            if agent.running is thing:
                jobs = [self._number_of(entry[1]) for _, entry in entries_of(thing)]
                return [f'{self.play.name_of(record.UUID)} runs {" ".join(jobs) or "nothing"}']
        return []

    def _check_mark(self, mark):
        number, job, count = mark.number, mark.job, mark.effect_count()
        self.claim(
            count <= self._most_effects(mark),
            'exactly once', '{} has {} effects; {}', number, count, self._shown(job),
        )  # fmt: skip
        self._check_id(number, job)
        is_composite = isinstance(job, Composite)
        if count and not is_composite:
            ended = job._status in status.FINISHED or job._waits is not None
            # A side of a choice gets its state with the result, from the choice.
            is_side = mark.errand.get('on', 'any') != 'any' and job._status == status.NEW
            self.claim(
                ended or is_side or self._may_run_again(mark) or number in self.touched,
                'work and result together', '{} has its effect and {}', number, self._shown(job),
            )  # fmt: skip
        if job._status == status.COMPLETED:
            outcome = job.outcome
            known = self.seen_end.setdefault(number, outcome)
            self.claim(
                known == outcome or number in self.touched,
                'the end is the end', '{} ended with {}, now {}', number, known, outcome,
            )  # fmt: skip
            if outcome == 'success' and not is_composite:
                self.claim(count, 'success means done', '{} has no effect', number)
            elif not self._may_run_again(mark) and not self._has_inner(mark):
                self.claim(
                    not count, 'failure means undone', '{} has its effect and {}', number,
                    self._shown(job),
                )  # fmt: skip
        elif number in self.seen_end:
            self.claim(
                number in self.touched, 'the end is the end', '{} had ended, now it is {}', number,
                self._shown(job),
            )  # fmt: skip

    def _may_run_again(self, mark):
        """Whether the errand's work is committed before its end: it returns a Deferred."""
        return any(step[0] == 'later' for step in mark.errand.get('script', ()))

    def _most_effects(self, mark):
        if not self._may_run_again(mark):
            return 1
        return max(1, self.run_counts[mark.number])

    def _has_inner(self, mark):
        """Whether the errand ends as another job does: it may be done and fail."""
        steps = mark.errand.get('script', ())
        return 'parts' in mark.errand or any(step[0] in ('give', 'put_and_give') for step in steps)

    def _shown(self, job):
        result = job._result
        result = result.getErrorMessage() if is_failure(result) else result
        return f'is {job._status}, token {job._token}, waits {job._waits}, result {result!r}'

    def _check_id(self, number, job):
        """No other unfinished job of the queue has the id of this one."""
        if job._id is None or not job.is_unfinished():
            return
        for other_number, mark in self.marks.items():
            other = mark.job
            same = other._id == job._id and other._queue_oid == job._queue_oid
            self.claim(
                not same or other is job or not other.is_unfinished(),
                'unique id', '{} and {} both have the id {!r}', number, other_number, job._id,
            )  # fmt: skip

    # the entries of jobs that wait, wherever they lie

    def _check_entries(self):
        """Each job that waits has an entry somewhere, or nobody would ever find it."""
        entries = {
            (job._p_oid, token) for queue in self.queues.values() for token, job in _entries(queue)
        }
        for number, mark in self.marks.items():
            job = mark.job
            if job._status == status.PENDING:
                self.claim(
                    (job._p_oid, job._token) in entries,
                    'nothing lost', '{} has no entry any more', number,
                )  # fmt: skip

    # the lists of agents

    def agents(self):
        """Every agent: (queue, record, agent)."""
        for queue in self.queues.values():
            for record in queue.dispatchers.values():
                for agent in record.values():
                    yield queue, record, agent

    def _check_lists(self, commit):
        """Quotas, and the order of claims, where a list of running jobs was changed."""
        changed = set(commit.oids)
        if not any(agent.running._p_oid in changed for _, _, agent in self.agents()):
            return
        former, self.held_entries = self.held_entries, {}
        fresh, places = [], collections.defaultdict(list)
        for queue, _, agent in self.agents():
            for oid, entry in entries_of(agent.running):
                token, job = entry[:2]
                key = (agent._p_oid, oid, token)
                self.held_entries[key] = entry
                if key not in former:
                    fresh.append((queue, token, job))
                if job._token == token and job.is_unfinished() and job._waits != WAITS_FOR_JOB:
                    for name in job._quota_names:
                        places[queue.name, name].append(self._number_of(job))
        for (queue_name, name), numbers in places.items():
            self.claim(
                len(numbers) <= QUOTAS[name],
                'quota', 'quota {!r} of {} in queue {!r} is taken by {}', name, QUOTAS[name],
                queue_name, numbers,
            )  # fmt: skip
            self.claim(len(set(numbers)) == len(numbers), 'one place', '{} runs twice', numbers)
        self._check_order(commit, fresh)

    def _check_order(self, commit, fresh):
        """Nobody was passed over in the line of a quota of 1."""
        for queue, token, job in fresh:
            starts = job._token == token and job._status == status.PENDING
            if job._quota_names != ('one',) or not starts:
                continue
            for number, mark in self.marks.items():
                other = mark.job
                if other is job or not self._stands_in_line(other, job, queue, commit):
                    continue
                self.claim(
                    other._token >= token,
                    'first in, first out', '{} was claimed before {}, which waited longer',
                    self._number_of(job), number,
                )  # fmt: skip

    def _stands_in_line(self, other, job, queue, commit):
        """Whether `other` waited in the line of `job` when that was claimed in `commit`."""
        return (
            other._status == status.PENDING
            and other._quota_names == job._quota_names
            and other._priority == job._priority
            and other._channel == job._channel
            and other._queue_oid == queue._p_oid
            and other.runs_once == job.runs_once
            and other._interrupted == job._interrupted  # such a one is not claimed ahead
            and other._due <= commit.clock
            and self.committed_at.get(other._p_oid, b'\xff') < commit.snapshot
            and not (other._depends_on or other._after)  # it takes its place when they have ended
            and other.queue.dispatchers.agent_of(other) is None
        )

    def _number_of(self, job):
        number = self.by_oid.get(job._p_oid)
        if number is None:  # a postprocess, or a choice
            number = next((f'of {arg.number}' for arg in job._args if isinstance(arg, Mark)), 'a')
            number = f'{type(job).__name__.lower()} {job.oid} {number}'
        return number

    # the end

    def unsettled(self):
        """A text for each thing that is not done yet; [] when everything is."""
        self.manager.begin()
        found = [
            f'{number} {self._shown(mark.job)}'
            for number, mark in self.marks.items()
            if not self._is_over(mark)
        ]
        living = {process.uuid for process in self.play.serving()}
        for queue, record, agent in self.agents():
            lists = {'running': [entry[1] for _, entry in entries_of(agent.running)]}
            # Where only a lease could tell, nobody looks after the list of one who went idle.
            lists['waiting'] = [
                job
                for _, job in entries_of(agent.waiting)
                if record.UUID in living or job.is_unfinished()
            ]
            for name, jobs in lists.items():
                if jobs:
                    numbers = ' '.join(map(self._number_of, jobs))
                    found.append(f'{name} of {record.UUID} in {queue.name!r}: {numbers}')
        for queue in self.queues.values():
            found += self._leftovers(queue)
        for process in self.play.serving():
            if process.dispatcher._flight:
                found.append(f'{process.name} has in flight {list(process.dispatcher._flight)}')
        return found

    def _is_over(self, mark):
        job = mark.job
        if job._status in (status.COMPLETED, status.HELD):
            return True
        if job._status == status.NEW:
            # taken out, a callback that was not wanted, or a part or a child that never was put
            return job._queue_oid is None and not self._is_wanted(mark)
        return False

    def _is_wanted(self, mark):
        """Whether a NEW job should have run: a callback of a job that has ended."""
        on = mark.errand.get('on')
        if on is None:
            return False
        parent = self._job_of(mark.number.rpartition('.')[0])
        if parent is None or parent._status != status.COMPLETED:
            return False
        return on == 'any' or (on == 'success') == (parent.outcome == 'success')

    def _leftovers(self, queue):
        queue_name, ready = queue.name, queue.ready
        counts = {
            'intake': queue.intake.count(),
            'later': len(ready.later),
            'groups': len(ready.groups),
            'deadlines': 0,
            'waiters': len(queue.waiters),
            'waiting': ready.waiting(),
            'dropped': ready.dropped(),
            'ids': sum(1 for _ in getattr(queue.ids, 'values', tuple)()),
        }
        return [f'{name} of queue {queue_name!r}: {n}' for name, n in counts.items() if n]

    def check_end(self):
        """What must be true once everything is done."""
        listed = collections.Counter()
        for _, _, agent in self.agents():
            history = agent.history
            for _, (_, job) in (*history.done.backwards(), *history.failed.backwards()):
                listed[job._p_oid] += 1
        for number, mark in self.marks.items():
            self._check_end_of(number, mark, listed)
        for queue in self.queues.values():
            for quota in queue.quotas.values():
                left = [self._number_of(job) for token, job in quota.places if job.occupies(token)]
                self.claim(not left, 'places free', '{!r} is taken by {}', quota, left)

    def _check_end_of(self, number, mark, listed):
        job = mark.job
        if job._status != status.COMPLETED:
            return
        if job._queue_oid is not None and job._parent is None and number not in self.touched:
            self.claim(
                listed[job._p_oid] == 1, 'listed once', '{} is listed {} times in the history',
                number, listed[job._p_oid],
            )  # fmt: skip
        self.claim(
            not job._interruptions or self.play.traits & INTERRUPTING,
            'the living are left alone', '{} was interrupted, and nothing had happened', number,
        )  # fmt: skip
        if is_failure(job._result):
            self._check_failure(number, mark, job._result)
        else:
            self._check_result(number, mark, job._result)

    def _check_result(self, number, mark, result):
        if 'parts' in mark.errand:
            parts = [self._job_of(f'{number}.{i}') for i in range(len(mark.errand['parts']))]
            expected = [part.result if part.outcome == 'success' else None for part in parts]
        elif self._has_inner(mark):
            inner = self._job_of(f'{number}.k')
            expected = None if inner is None else inner._result
        else:
            expected = number
        self.claim(
            result == expected, 'right result', '{} has the result {!r}, not {!r}', number, result,
            expected,
        )  # fmt: skip

    def _check_failure(self, number, mark, failure):
        name = failure.type.__name__ if isinstance(failure.type, type) else str(failure.type)
        name = name.rpartition('.')[2]
        allowed = set()
        for trouble in self.play.world.has_met:
            allowed |= BY_TROUBLE[trouble]
        self.claim(
            name in allowed or self._explains(number, mark, name),
            'failures have a reason', '{} failed with {}: {}', number, name,
            failure.getErrorMessage(),
        )  # fmt: skip

    def _may_not_begin_again(self, errand):
        return errand.get('policy') == 'never' or 'begin_by' in errand.get('wishes', {})

    def _explains(self, number, mark, name):
        errand = mark.errand
        steps = {step[0] for step in errand.get('script', ())}
        return (
            (name == 'Oops' and ('fail' in steps or self._has_inner(mark)))
            or (name in BY_TROUBLE['conflict'])
            or (name == 'TimeoutError' and 'begin_by' in errand.get('wishes', {}))
            or (name == 'TimeLimitExceeded' and 'time_limit' in errand)
            or (name == 'AbortedError' and self._may_not_begin_again(errand))
            or (name == 'DependencyError' and mark.job._depends_on)
            or (name == 'CancelledError' and number in self.touched)
            or self._has_inner(mark)
        )


def _entries(queue):
    """Yield (token, job) for each entry of a job in `queue`, stale ones too."""
    for _, _, entry in queue.intake.entries(late=True):
        yield entry.token, entry.job
    for tree in queue.ready.groups.values():
        yield from ((token, job) for _, token, job in tree.filings())
    for entry in queue.ready.later.values():
        yield entry[0], entry[-1]
    for waiting in queue.waiters.values():
        for entry in waiting.values():
            yield entry[:2]
    for record in queue.dispatchers.values():
        for agent in record.values():
            for _, entry in entries_of(agent.running):
                yield entry[:2]
