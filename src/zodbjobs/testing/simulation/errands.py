"""The jobs of a simulation: what they do, and marks that tell whether it was done.

Each job has a `Mark` with a number and a plain description, the errand, by
which anybody can tell what must come of it.  `perform` does the errand: it
makes one entry in its mark, follows the errand's script, and returns the
number.  The entry lies in a merging bucket, so a second effect would not be
hidden by a conflict.

An errand is a dict: `script` (a tuple of steps, see `Script`), `policy` (a key
of `POLICIES`), `wishes` (for put), `on` (of a callback: 'any', 'success' or
'failure'), `callbacks` (errands), `parts` and `kind` ('serial' or 'parallel').

`perform` and its kin run in the jobs' threads and transactions; the rest in the
director's or a producer's.
"""

from persistent import Persistent
from twisted.internet.defer import Deferred

from zodbjobs import Job, NeverRetry, RetryCommonForever, RetryPolicy, local, parallel, serial
from zodbjobs.model.intake import new_bucket, size_of

#: The names that errands give to retry policies.
POLICIES = {
    None: None,
    'never': NeverRetry,
    'forever': RetryCommonForever,
    'twice': RetryPolicy(2, backoff=(1, 5)),
    'held': RetryPolicy(1, backoff=0, on_exhausted='hold'),
}

#: Quotas and their sizes.
QUOTAS = {'one': 1, 'two': 2}

#: How many shared counters there are, for conflicts.
HOT_COUNT = 2

_playing = []


class Oops(Exception):
    """What a job raises because its script says so."""


class Mark(Persistent):
    """What is known of one job: its number and errand, and an entry for each effect."""

    def __init__(self, number, errand):
        self.number = number
        self.errand = errand
        self.effects = new_bucket()
        self.job = None

    def effect_count(self):
        """How many times the job's work was committed."""
        return size_of(self.effects)


class Hot(Persistent):
    """A counter that many jobs increase."""

    value = 0


def job_of(number, errand):
    """A new job for an errand, with its callbacks and parts."""
    mark = Mark(number, errand)
    if 'parts' in errand:
        parts = [job_of(f'{number}.{i}', part) for i, part in enumerate(errand['parts'])]
        make = serial if errand['kind'] == 'serial' else parallel
        job = make(*parts, postprocess=Job(gather, mark))
    else:
        job = Job(perform, mark)
    job.retry_policy_factory = POLICIES[errand.get('policy')]
    job.time_limit = errand.get('time_limit')
    mark.job = job
    for i, callback in enumerate(errand.get('callbacks', ())):
        follower = job_of(f'{number}.c{i}', callback)
        if callback['on'] == 'any':
            job.addCallback(follower, retry_policy_factory=POLICIES[callback.get('policy')])
        else:
            job.addCallbacks(**{callback['on']: follower})
    return job


def put(queue, number, errand, **more):
    """Put the job of an errand in `queue`; returns it."""
    return queue.put(job_of(number, errand), **errand.get('wishes', {}), **more)


def perform(mark, *given):
    """Do an errand: the body of most jobs.  `given`: the result that a callback gets."""
    play = _playing[-1]
    # Callbacks of a job that was cancelled before it was put run in the caller's thread.
    run = play.ledger.begins(mark, local.getJob() or mark.job, given)
    try:
        mark.effects[run] = None
        script = Script(play, mark, run)
        for step in mark.errand.get('script', ()):
            getattr(script, step[0])(*step[1:])
        return script.value
    finally:
        play.ledger.ends(mark, run)


def gather(mark, *parts):
    """The postprocess of composites: the results of the parts, None for failures."""
    perform(mark)
    return [part.result if part.outcome == 'success' else None for part in parts]


class Script:
    """The steps that a script may have; each is a method.  `run` is the body's number."""

    def __init__(self, play, mark, run):
        self.play = play
        self.mark = mark
        self.run = run
        self.value = mark.number

    def pause(self):
        """Let others go on."""
        self.play.stage.pass_turn('pause')

    def sleep(self, seconds):
        """Take some time."""
        self.play.process.sleep(seconds, where='sleep')

    def mind(self, seconds):
        """Take some time, but end soon when asked to."""
        job = local.getJob()
        for _ in range(round(seconds)):
            if job.stop_requested:
                break
            self.play.process.sleep(1, where='mind')

    def hot(self, index):
        """Increase a counter that others increase too."""
        self.mark._p_jar.root()['hot'][index].value += 1

    def fail(self, times):
        """Raise in the first so many runs."""
        if self.play.ledger.run_count(self.mark.number) <= times:
            raise Oops(self.mark.number)

    def put(self, index, errand):
        """Put another job."""
        put(local.getQueue(), f'{self.mark.number}.k{index}', errand)

    def give(self, errand):
        """Return a job; the result of this one will be its."""
        self.value = job_of(f'{self.mark.number}.k', errand)

    def put_and_give(self, errand):
        """Put a job and return it."""
        self.value = put(local.getQueue(), f'{self.mark.number}.k', errand)

    def later(self, seconds):
        """Return a Deferred that gives the number some time later."""
        self.value = deferred = Deferred()
        reactor = local.getReactor()
        reactor.callFromThread(reactor.callLater, seconds, deferred.callback, self.mark.number)


# Making errands up


class Fancy:
    """Makes errands up.  `chance` is a random.Random; `traits` says what they may have."""

    def __init__(self, chance, traits):
        self.chance = chance
        self.traits = traits

    def likes(self, trait, probability):
        """Whether to use a trait now, if this run has it at all."""
        return self.chance.random() < probability and trait in self.traits

    def errand(self, depth=0):
        """An errand for a job that is put.  `depth`: how many jobs it is inside of."""
        chance = self.chance
        if depth < 2 and self.likes('composites', 0.15):
            errand = {
                'kind': chance.choice(('serial', 'parallel')),
                'parts': tuple(self.part(depth + 1) for _ in range(chance.randint(1, 3))),
            }
        else:
            errand = {'script': self.script(depth)}
            if self.likes('policies', 0.4):
                errand['policy'] = chance.choice(('never', 'never', 'forever', 'twice', 'held'))
            if self.likes('limits', 0.15):
                errand['script'] = (*errand['script'][:1], (self._slow(), 40))
                errand['time_limit'] = (5, chance.choice((8, 20)))
        if self.likes('callbacks', 0.3):
            errand['callbacks'] = tuple(
                self.callback(depth + 1) for _ in range(chance.randint(1, 2))
            )
        errand['wishes'] = self.wishes()
        return errand

    def _slow(self):
        return self.chance.choice(('sleep', 'mind'))

    def part(self, depth):
        """An errand of a composite: like others, but it begins when its time has come."""
        return self.errand(depth) | {'wishes': {}}

    def callback(self, depth):
        """An errand for a callback."""
        errand = {
            'script': self.script(depth),
            'on': self.chance.choice(('any', 'success', 'failure')),
        }
        if self.likes('policies', 0.2):
            errand['policy'] = 'never'
        if depth < 2 and self.likes('callbacks', 0.2):
            errand['callbacks'] = (self.callback(depth + 1),)
        return errand

    def script(self, depth):
        """Some steps."""
        chance = self.chance
        steps = [('pause',)] * chance.choice((0, 0, 1, 2))
        if self.likes('hot', 0.3):
            steps.append(('hot', chance.randrange(HOT_COUNT)))
            steps.append(('pause',))
        if self.likes('slow', 0.2):
            steps.append((self._slow(), chance.choice((0.5, 3, 30))))
        if self.likes('errors', 0.2):
            steps.append(('fail', chance.choice((1, 1, 2, 99))))
        if depth < 2 and self.likes('children', 0.2):
            how = chance.choice(('put', 'give', 'put_and_give'))
            child = self.errand(depth + 1)
            steps.append((how, 0, child) if how == 'put' else (how, child))
        elif depth == 0 and self.likes('deferreds', 0.1):
            steps.append(('later', chance.choice((0, 2, 15))))
        return tuple(steps)

    def wishes(self):
        """Arguments for put."""
        chance, wishes = self.chance, {}
        if self.likes('quotas', 0.4):
            wishes['quota_names'] = chance.choice((('one',), ('one',), ('two',), ('one', 'two')))
        if self.likes('delays', 0.25):
            wishes['delay'] = chance.choice((0.000_01, 1, 1, 10, 45))
        if self.likes('deadlines', 0.15):
            wishes['begin_by'] = chance.choice((0, 3, 20))
        if self.likes('priorities', 0.2):
            wishes['priority'] = chance.choice((1, 2, 2**31))
        if self.likes('channels', 0.2):
            wishes['channel'] = chance.choice(('a', 'b'))
        return wishes
