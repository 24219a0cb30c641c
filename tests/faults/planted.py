"""Bugs planted on purpose, and who catches each: a proof that the tests can fail.

Each `Bug` is one small change to one file of the package, of the kind that a
careless hand could make.  `test_planted.py` applies it to a copy and has the
simulator (`Seeds`) or a named test run on that copy; it must go red.  When the
engine changes so that `old` is not found any more, plant the same mistake in
the new text, or another one in its place; do not let the list get shorter.
"""

from typing import NamedTuple


class Seeds(NamedTuple):
    """Seeds of the simulator, one of which finds the bug: `count` from `first` on."""

    first: int
    count: int


class Bug(NamedTuple):
    """`old` becomes `new` in `file` (below the package); `caught_by`: Seeds, or a test's id.

    Where a mistake must be made twice to be one, `old` and `new` are tuples of texts.
    """

    name: str
    file: str
    old: str | tuple
    new: str | tuple
    caught_by: Seeds | str

    def planted_in(self, text):
        """`text` with the bug; ValueError if it has no such place, or several."""
        if isinstance(self.old, str):
            pairs = [(self.old, self.new)]
        else:
            pairs = zip(self.old, self.new, strict=True)
        for old, new in pairs:
            if text.count(old) != 1:
                raise ValueError(f'{self.file} has {text.count(old)} times, not once: {old!r}')
            text = text.replace(old, new)
        return text


BUGS = [
    # whose job it is
    Bug(
        'an attempt does not ask whether the job is still its own',
        'runtime/attempt.py',
        'if job._token != self.assignment.token or job._status in (status.NEW, status.HELD):',
        'if False:',
        Seeds(0, 100),
    ),
    Bug(
        'an attempt begins under an entry that is out of date',
        'runtime/attempt.py',
        '        if job._token != self.assignment.token:\n            raise _Over(STALE)\n',
        '',
        Seeds(0, 100),
    ),
    Bug(
        'a job that is filed again keeps its token',
        'model/queue.py',
        '        token = next_token(job._token, urgent=group[0] == URGENT)\n',
        '        token = job._token or 1\n',
        Seeds(0, 100),
    ),
    Bug(
        'a callback that another worker has done is done again',
        'runtime/attempt.py',
        (
            '        if main._token != self.assignment.token:\n'
            "            raise ReassignedError(f'{main!r} went to another worker')\n",
            '        self._still_ours(job)\n'
            '        if job._status == status.COMPLETED:\n'
            '            raise _Over(FINISHED)\n',
        ),
        ('        pass\n', ''),
        'tests/faults/test_found.py',
    ),
    # one commit
    Bug(
        'what an attempt that raised has written is kept',
        'runtime/attempt.py',
        '            self._abort()  # what settle has not committed must not stay\n',
        '            self.tm.commit()\n',
        Seeds(0, 100),
    ),
    Bug(
        'a commit that raised is always taken for one that was not made',
        'runtime/attempt.py',
        "        if not getattr(error, '_zodbjobs_commit', False):\n            return False\n",
        '        return False\n',
        Seeds(0, 100),
    ),
    Bug(
        'the result is committed apart from the work',
        'runtime/attempt.py',
        '        job._conflicts += self.conflicts\n        later = self._is_later(value)\n',
        '        self.tm.commit()\n'
        '        job = self._current(self.begin)\n'
        '        later = self._is_later(value)\n',
        Seeds(0, 100),
    ),
    Bug(
        'a claim whose answer was lost is forgotten',
        'runtime/dispatcher.py',
        'claimed, self._unsure = still_held(self.UUID, queues, self._unsure), []',
        'claimed, self._unsure = [], []',
        Seeds(0, 100),
    ),
    Bug(
        'the end of an attempt is reported before it has begun',
        'runtime/pool.py',
        '        self.assignment = assignment\n        self._soft_at',
        '        self.assignment = assignment\n'
        '        from zodbjobs.runtime.ended import Report\n'
        "        self.dispatcher.reported(Report(assignment, 'finished'))\n"
        '        self._soft_at',
        Seeds(0, 100),
    ),
    # quotas
    Bug(
        'a quota forgets jobs that still run',
        'model/quota.py',
        'not isinstance(job, Broken) and job.occupies(token)',
        'False',
        Seeds(0, 100),
    ),
    Bug(
        'the end of one job frees all places of its quota',
        'model/quota.py',
        '(token, job) for token, job in self.places if (token, job._p_oid) not in filings',
        '(token, job) for token, job in self.places if not filings',
        Seeds(0, 100),
    ),
    Bug(
        'places are told apart by their tokens alone',
        'model/quota.py',
        '(token, job) for token, job in self.places if (token, job._p_oid) not in filings',
        '(token, job) for token, job in self.places if token not in {t for t, _ in filings}',
        'tests/faults/test_found.py',
    ),
    Bug(
        'a claim takes no place in the quota',
        'model/quota.py',
        '        self.places += ((token, job),)\n',
        '        pass\n',
        Seeds(0, 100),
    ),
    Bug(
        'two claims of the last place are merged',
        'model/quota.py',
        '    def room(self):\n',
        '    def _p_resolveConflict(self, old, saved, new):\n'
        '        return new\n'
        '\n'
        '    def room(self):\n',
        'tests/races/test_simulation.py::TestScenes',
    ),
    Bug(
        'the line of a quota is not kept between lanes',
        'model/handout.py',
        '        if entry.group[QUOTAS]:  # who waits longest for a place gets it\n'
        '            return True\n',
        '',
        'tests/faults/test_found.py',
    ),
    # entries
    Bug(
        'a claim leaves its entry in the lane',
        'model/handout.py',
        '            del chunk[key]\n            self.fresh[group].remove(item)\n',
        '            self.fresh[group].remove(item)\n',
        Seeds(0, 100),
    ),
    Bug(
        'a claim leaves its entry in the tree',
        'model/groups.py',
        '        del tree[slot]\n',
        '',
        Seeds(0, 100),
    ),
    Bug(
        'what is claimed is not listed with the agent',
        'model/agent.py',
        '        self.running[oid] = (token, job, _packed(token, ahead, now), *replaced)\n',
        '        pass\n',
        Seeds(0, 100),
    ),
    Bug(
        'jobs that are due later mature too early',
        'model/ready.py',
        '            if key >> TIE_BITS > now:\n'
        '                break\n'
        '            token, group, job = self.later.pop(key)\n',
        '            if key >> TIE_BITS > now + 1_000_000:\n'
        '                break\n'
        '            token, group, job = self.later.pop(key)\n',
        Seeds(0, 100),
    ),
    Bug(
        'jobs in the lanes are claimed before they are due',
        'model/handout.py',
        '            elif entry.due > self.now:\n',
        '            elif entry.due > self.now + 10_000_000:\n',
        Seeds(0, 100),
    ),
    Bug(
        'jobs of one lane are not put in order',
        'model/handout.py',
        '            stream.sort(key=lambda item: item[0])\n',
        '            stream.sort(key=lambda item: -item[0])\n',
        Seeds(0, 100),
    ),
    Bug(
        'sorted jobs are not counted',
        'model/handout.py',
        '            self.ready.waiting.change(self.sorted_count)\n',
        '            pass\n',
        Seeds(0, 100),
    ),
    Bug(
        'a chunk of a lane has no smallest key that stays',
        'model/intake.py',
        '    bucket[SENTINEL] = None\n',
        '',
        Seeds(0, 100),
    ),
    # what becomes of jobs
    Bug(
        'a job does not tell who waits for its result',
        'model/job.py',
        'outer.inner_taken_out(self) if gone else outer.inner_finished(self)\n',
        'False\n',
        Seeds(0, 100),
    ),
    Bug(
        'a side of a choice does not end with it',
        'model/job.py',
        '        return () if chosen is None else (chosen,)\n',
        '        return ()\n',
        'tests/faults/test_found.py',
    ),
    Bug(
        'a recovered job whose callbacks are not done is left alone',
        'model/queue.py',
        '            self.file_urgently(job)\n            return\n        failed',
        '            return\n        failed',
        Seeds(0, 100),
    ),
    Bug(
        'an interrupted job is not filed again',
        'model/job.py',
        '        self._count_lost_attempt()\n        self._wait_again()\n        with contextlib',
        '        self._count_lost_attempt()\n        with contextlib',
        Seeds(0, 100),
    ),
    Bug(
        'a callback that was done is not passed over',
        'model/job.py',
        '            if ours and callback._status != status.COMPLETED:\n',
        '            if ours:\n',
        Seeds(0, 100),
    ),
    Bug(
        'the dead keep their jobs',
        'model/registry.py',
        '    for oid, token, job, ahead, _ in agent.entries():\n',
        '    for oid, token, job, ahead, _ in (() if interrupted else agent.entries()):\n',
        Seeds(0, 100),
    ),
    Bug(
        'what was claimed in the moment of a burial is forgotten',
        'model/registry.py',
        '        self.emptied()  # an earlier life may have claimed after it was buried\n',
        '',
        'tests/faults/test_found.py',
    ),
    Bug(
        'a restarted ZEO server is taken at its word',
        'runtime/oids.py',
        '            self._floor = self._highest\n',
        '            self._floor = 0\n',
        'tests/storages/test_oids.py',
    ),
    Bug(
        'a full disk is the failure of a job',
        'runtime/attempt.py',
        'trouble.is_disconnected(error) or trouble.is_refused(error, in_commit)',
        'trouble.is_disconnected(error)',
        'tests/storages/test_outages.py::test_a_storage_is_read_only_for_a_while',
    ),
    Bug(
        'the living are buried',
        'runtime/liveness.py',
        '        return holds and now - since >= LEASE_SECONDS\n',
        '        return holds\n',
        Seeds(0, 100),
    ),
    Bug(
        'a policy is not asked after an interruption',
        'runtime/attempt.py',
        '        if error is None and job._interrupted:\n'
        '            error = self._after_interruption(job)\n'
        '        if error is None and job._overran:\n',
        '        if error is None and job._overran:\n',
        Seeds(0, 100),
    ),
    Bug(
        'a clean stop hands back what had begun as if it had not',
        'model/registry.py',
        'job.handed_back(begun=interrupted or oid in begun)',
        'job.handed_back()',
        'tests/races/test_simulation.py::TestScenes',
    ),
    Bug(
        'an attempt that ended is listed as finished whatever it says',
        'runtime/retire.py',
        '        elif report.kind == ended.FINISHED:\n            self.queue.keep(\n',
        '        elif report.kind != attempt.WAITING:\n            self.queue.keep(\n',
        Seeds(0, 100),
    ),
    # dependencies and composites
    Bug(
        'of two last parts that end together neither sees the other',
        'model/compose.py',
        '            part._p_jar.readCurrent(part)\n',
        '            pass\n',
        'tests/races/test_running.py::TestParts',
    ),
    Bug(
        'a part begins before the one in front of it has ended',
        'model/compose.py',
        '        part = self._part(index)\n'
        '        self._put_part(part)\n'
        '        part.add_outer(self)\n',
        '        part = self._part(index)\n'
        '        for each in range(len(self.args)):\n'
        '            self._put_part(self._part(each))\n'
        '        part.add_outer(self)\n',
        Seeds(0, 100),
    ),
    Bug(
        'nobody lets go who waited for a job that has ended',
        'model/queue.py',
        '            home.await_blockers(token, job)\n',
        '',
        Seeds(0, 100),
    ),
    Bug(
        'a job waits for one that ends at that very moment',
        'model/queue.py',
        '            first._p_jar.readCurrent(first)\n',
        '',
        'tests/races/test_running.py::TestDependents',
    ),
    Bug(
        'a job depends on nothing',
        'model/job.py',
        '            for other in (*self._depends_on, *self._after)\n',
        '            for other in ()\n',
        Seeds(0, 100),
    ),
    Bug(
        'an id may be taken twice',
        'model/ids.py',
        'return job if job is not None and job.id == id and job.is_unfinished() else None',
        'return None',
        Seeds(0, 100),
    ),
    # looks, time and copies
    Bug(
        'a lost connection is hidden by a length',
        'model/intake.py',
        '    bucket._p_activate()\n    return len(bucket)\n',
        '    return len(bucket)\n',
        'tests/faults/test_found.py',
    ),
    Bug(
        'deadlines are kept by tokens',
        'model/handout.py',
        '                    self.deadlines[entry.job._p_oid] = entry\n',
        '                    first = next(iter(self.deadlines), entry.job._p_oid)\n'
        '                    self.deadlines[first] = entry\n',
        Seeds(0, 200),
    ),
    Bug(
        'a dispatcher asks for the next pass at once',
        'runtime/dispatcher.py',
        '        seconds = max(0, self._slow_due - clock.monotonic())\n',
        '        seconds = 0\n',
        Seeds(0, 20),
    ),
    Bug(
        'an idle dispatcher writes',
        'runtime/chores.py',
        '        if not holds or not self.liveness.must_show():\n',
        '        if False:\n',
        Seeds(0, 20),
    ),
    Bug(
        'a copied database is served like its original',
        'runtime/fence.py',
        '    if owner is None or owner == deployment:\n',
        '    if True:\n',
        'tests/runtime/test_fence.py',
    ),
]
