"""What a user may expect of `serial` and `parallel`, while they run."""

import pytest
import transaction

from tests.runtime.support import gate, is_idle, said
from zodbjobs import (
    Agent,
    Dispatcher,
    Job,
    NeverRetry,
    Queue,
    clock,
    local,
    parallel,
    serial,
    status,
    testing,
)
from zodbjobs.interfaces import BadStatusError, DependencyError, QueueClosed

begun = []


@pytest.fixture
def layer(layer):
    begun.clear()
    return layer


@pytest.fixture
def small(layer):
    """An agent of one thread."""
    layer.agent.size = 1
    transaction.commit()
    layer.reactor.time_flies(5)
    return layer


def finish(layer, *jobs, **wishes):
    """Wait until the jobs have ended; without virtual time unless `attempts` says so."""
    transaction.commit()
    layer.reactor.wait_for(*jobs, **{'attempts': 1} | wishes)
    transaction.begin()
    assert {job.status for job in jobs} == {status.COMPLETED}


def work(value):
    said.append(value)
    return value


def fail(value):
    said.append(value)
    raise ValueError(value)


def wait(value):
    begun.append(value)
    assert gate.wait(10)
    return work(value)


def work_unless_broken(value):
    said.append(value)
    if local.getJob()._p_jar.root()['broken']:
        raise ValueError('broken')
    return value


def succeed(*jobs):
    """The results, if all have succeeded."""
    if any(job.outcome != 'success' for job in jobs):
        raise LookupError('not all')
    return [job.result for job in jobs]


def put_next(value):
    local.getJob().queue.put(Job(work, value + 1))


def return_results(*jobs):
    return Job(results, *jobs)


def results(*jobs):
    return [job.result for job in jobs]


def outcomes(*jobs):
    return [job.outcome for job in jobs]


@pytest.fixture(params=[serial, parallel], ids=['serial', 'parallel'])
def compose(request):
    return request.param


class TestBoth:
    def test_results(self, layer, compose):
        """postprocess gets the finished jobs, in the order they were given."""
        job = layer.queue.put(compose(*(Job(work, i) for i in range(5)), postprocess=results))
        finish(layer, job)
        assert job.result == [0, 1, 2, 3, 4] and sorted(said) == [0, 1, 2, 3, 4]
        assert is_idle(layer)
        assert len(layer.agent.history.done) == 7

    def test_without_postprocess(self, layer, compose):
        """The result is the tuple of the jobs."""
        parts = [Job(work, 1), Job(fail, 2)]
        job = layer.queue.put(compose(*parts))
        finish(layer, job)
        assert job.result == tuple(parts) and job.outcome == 'success'
        assert results(*job.result)[0] == 1

    def test_no_parts(self, layer, compose):
        """Nothing to wait for."""
        empty = layer.queue.put(compose())
        post = layer.queue.put(compose(postprocess=results))
        finish(layer, empty, post)
        assert empty.result == () and post.result == []
        assert is_idle(layer)

    def test_postprocess_with_arguments_of_its_own(self, layer, compose):
        """They come first."""
        job = layer.queue.put(compose(Job(work, 1), postprocess=Job(extra, 'x', key='y')))
        finish(layer, job)
        assert job.result == ('x', [1], 'y')

    def test_a_failed_part_stops_nobody(self, layer, compose):
        """The others run, postprocess is called and looks itself."""
        parts = [Job(work, 1), Job(fail, 2), Job(work, 3)]
        job = layer.queue.put(compose(*parts, postprocess=outcomes))
        finish(layer, job)
        assert job.result == ['success', 'failure', 'success'] and sorted(said) == [1, 2, 3]

    def test_a_failing_postprocess(self, layer, compose):
        """That is the failure of the whole."""
        job = layer.queue.put(compose(Job(work, 1), postprocess=refuse))
        told = job.addCallbacks(failure=Job(str))
        finish(layer, job, told)
        assert job.result.check(LookupError)
        assert is_idle(layer)

    def test_functions_and_methods(self, layer, compose):
        """Parts may be whatever can be put."""
        job = layer.queue.put(compose(nothing, Job(len, 'abc'), postprocess=results))
        finish(layer, job)
        assert job.result == [None, 3]

    def test_parts_keep_their_wishes(self, layer, compose):
        """A part's own date and quota count; the others run."""
        layer.queue.quotas.create('one')
        later = Job(work, 'later')
        early = Job(work, 'early')
        early.quota_names = ['one']
        later._due = clock.micros() + 60 * clock.SECOND
        job = layer.queue.put(compose(early, later, postprocess=results))
        transaction.commit()
        layer.reactor.settle()
        assert said == ['early']
        layer.reactor.time_flies(60)
        finish(layer, job)
        assert job.result == ['early', 'later'] and is_idle(layer)

    def test_parts_inherit_priority_and_channel(self, layer, compose):
        """Unless they have their own, so that who takes the whole takes the parts."""
        layer.agent.channels = ['c']
        transaction.commit()
        layer.reactor.time_flies(5)
        part = Job(work, 1)
        job = layer.queue.put(compose(part), channel='c', priority=7)
        finish(layer, job)
        assert (part.channel, part.priority) == ('c', 7)

    def test_postprocess_with_a_quota(self, layer, compose):
        """It waits for its place like any job."""
        layer.queue.quotas.create('one')
        post = Job(results)
        post.quota_names = ['one']
        blocking = layer.queue.put(Job(wait, 'blocking'), quota_names=['one'])
        job = layer.queue.put(compose(Job(work, 1), postprocess=post))
        transaction.commit()
        layer.reactor.settle(5, until=lambda: said == [1])
        layer.reactor.settle(0.05)
        transaction.begin()
        assert post.status == status.PENDING and job.status == status.ACTIVE
        gate.set()
        finish(layer, blocking, job)
        assert job.result == [1] and is_idle(layer)

    def test_a_quota_on_the_whole_is_free_while_it_waits(self, layer, compose):
        """Its parts may have the same one."""
        layer.queue.quotas.create('one')
        parts = [Job(work, i) for i in range(3)]
        for part in parts:
            part.quota_names = ['one']
        job = layer.queue.put(compose(*parts, postprocess=results), quota_names=['one'])
        finish(layer, job)
        assert job.result == [0, 1, 2] and is_idle(layer)

    def test_three_on_one_thread(self, small, compose):
        """Waiting parents take no slot, so they cannot block their children."""
        jobs = [
            small.queue.put(compose(*(Job(work, i) for i in range(3)), postprocess=results))
            for _ in range(3)
        ]
        finish(small, *jobs)
        assert [job.result for job in jobs] == [[0, 1, 2]] * 3
        assert is_idle(small)

    def test_nested(self, small, compose):
        """Five deep, of both kinds, on one thread."""
        job = Job(work, 0)
        for depth in range(1, 6):
            inside = (serial, parallel)[depth % 2] if depth < 5 else compose
            job = inside(Job(work, depth), job, Job(work, depth), postprocess=last_of_three)
        small.queue.put(job)
        finish(small, job)
        assert job.result == 5 and len(said) == 11
        assert is_idle(small)

    def test_grows_before_it_starts(self, layer, compose):
        """Parts may be appended to its args."""
        job = layer.queue.put(compose(postprocess=results))
        job.args.append(Job(work, 1))
        job.args.append(Job(work, 2))
        finish(layer, job)
        assert job.result == [1, 2]

    def test_grows_while_it_runs(self, layer, compose):
        """By a part, and by a callback of a part, as the usage text shows it."""
        job = layer.queue.put(compose(postprocess=results))
        job.args.append(Job(first_job, job))
        finish(layer, job)
        assert job.result == ['first', 'second', 'third']
        assert is_idle(layer)

    def test_a_part_that_was_put_already(self, layer, compose):
        """By its user, or it has even ended: it is waited for, not put again."""
        ended = layer.queue.put(Job(work, 'ended'))
        finish(layer, ended)
        waiting = layer.queue.put(Job(work, 'waiting'))
        job = layer.queue.put(compose(ended, waiting, postprocess=results))
        finish(layer, job, attempts=2)  # one that ends as it is found is seen at the next poll
        assert job.result == ['ended', 'waiting'] and len(said) == 2

    def test_parts_in_another_queue(self, layer, compose):
        """Who puts a part elsewhere has it run there."""
        second = layer.queues['second'] = Queue()
        transaction.commit()
        layer.reactor.time_flies(5)
        second.dispatchers[layer.dispatcher.UUID]['main'] = Agent(size=1)
        part = second.put(Job(work, 'there'))
        job = layer.queue.put(compose(part, Job(work, 'here'), postprocess=results))
        transaction.commit()
        layer.reactor.time_flies(5)
        finish(layer, job)
        assert job.result == ['there', 'here'] and part.agent.queue is second

    def test_over_several_dispatchers(self, layer, compose):
        """Parts run wherever there is room; the last ones may end at the same moment."""
        other = Dispatcher(layer.db, layer.reactor, uuid='00000000-0000-0000-0000-0000000000aa')
        other.activate()
        layer.reactor.time_passes()
        transaction.begin()
        layer.queue.dispatchers[other.UUID]['main'] = Agent(size=3)
        transaction.commit()
        layer.reactor.time_flies(5)
        jobs = [
            layer.queue.put(compose(*(Job(work, i) for i in range(6)), postprocess=results))
            for _ in range(3)
        ]
        finish(layer, *jobs, attempts=3)
        assert [job.result for job in jobs] == [[0, 1, 2, 3, 4, 5]] * 3
        testing.tear_down_dispatcher(other)

    def test_a_cancelled_part(self, layer, compose):
        """It counts as a failed one."""
        part = Job(work, 1)
        part._due = 2**60
        job = layer.queue.put(compose(part, Job(work, 2), postprocess=outcomes))
        transaction.commit()
        layer.reactor.settle()
        transaction.begin()
        part.cancel()
        finish(layer, job)
        assert job.result == ['cancelled', 'success']

    def test_a_part_that_was_taken_out(self, layer, compose):
        """The whole cannot be finished, and fails; run again, it puts the part once more."""
        part = Job(work, 1)
        part._due = 2**60
        job = layer.queue.put(compose(part, Job(work, 2), postprocess=outcomes))
        transaction.commit()
        layer.reactor.settle()
        transaction.begin()
        layer.queue.remove(part)
        finish(layer, job, attempts=2)
        assert job.result.check(DependencyError) and is_idle(layer)
        job.retry()
        finish(layer, job)
        assert job.result == ['success', 'success'] and sorted(said) == [1, 2]
        layer.reactor.time_flies(5)  # run again at once, its former filing is miscounted for a poll
        assert is_idle(layer)

    def test_run_again(self, layer, compose):
        """What failed is run again, what succeeded is not; then postprocess is called again."""
        layer.root['broken'] = True
        inside = compose(Job(work, 3), Job(work_unless_broken, 4), postprocess=succeed)
        parts = [Job(work, 1), Job(work_unless_broken, 2), inside, Job(work, 5)]
        job = layer.queue.put(compose(*parts, postprocess=succeed))
        finish(layer, job)
        assert job.outcome == inside.outcome == 'failure'
        for _ in range(2):
            said.clear()
            job.retry()
            finish(layer, job)
            assert job.outcome == 'failure' and set(said) == {2, 4}
        said.clear()
        layer.root['broken'] = False
        job.retry()
        finish(layer, job)
        assert job.result == [1, 2, [3, 4], 5] and set(said) == {2, 4}
        assert said == [2, 4] or compose is parallel
        layer.reactor.time_flies(5)  # run again at once, its former filing is miscounted for a poll
        assert is_idle(layer)

    def test_run_again_when_it_was_cancelled(self, layer, compose):
        """It goes on where it was."""
        job = layer.queue.put(
            compose(Job(work, 1), Job(wait, 2), Job(work, 3), postprocess=results)
        )
        transaction.commit()
        layer.reactor.settle(5, until=lambda: begun)
        transaction.begin()
        job.cancel()
        finish(layer, job)
        layer.reactor.time_flies(5)
        transaction.begin()
        job.retry()
        transaction.commit()
        layer.reactor.settle(0.05)
        gate.set()
        finish(layer, job)
        assert job.result == [1, 2, 3] and sorted(said) == [1, 2, 3]
        layer.reactor.time_flies(5)  # run again at once, its former filing is miscounted for a poll
        assert is_idle(layer)

    def test_retries_are_for_its_parts(self, layer, compose):
        """Those that have no wish of their own, and postprocess."""
        fussy = Job(fail, 'fussy')
        fussy.retry_policy_factory = NeverRetry
        whole = compose(Job(fail, 'usual'), fussy, postprocess=Job(refuse))
        job = layer.queue.put(whole, retries=2)
        finish(layer, job)
        assert said.count('usual') == 3 and said.count('fussy') == 1
        assert job.postprocess.attempts == 3 and job.attempts == 1
        said.clear()
        once = compose(Job(fail, 'once'), postprocess=Job(results))
        job = layer.queue.put(once, retry_policy_factory=NeverRetry)
        finish(layer, job)
        assert said == ['once'] and job.args[0].retry_policy_factory is NeverRetry

    def test_the_whole_is_cancelled(self, layer, compose):
        """It ends; the part that runs ends in its own time and calls nobody."""
        job = layer.queue.put(compose(Job(wait, 1), Job(wait, 2), postprocess=results))
        transaction.commit()
        layer.reactor.settle(5, until=lambda: begun)
        layer.reactor.settle(0.05)
        transaction.begin()
        job.cancel()
        finish(layer, job)
        assert job.outcome == 'cancelled'
        gate.set()
        layer.reactor.settle()
        assert said == ([1] if compose is serial else [1, 2]) or sorted(said) == [1, 2]
        assert job.outcome == 'cancelled'
        assert is_idle(layer)

    def test_one_that_was_not_put(self, compose):
        """Called by hand it has no queue for its parts."""
        assert compose(Job(work, 1))().check(BadStatusError)

    def test_a_part_that_cannot_be_put(self, layer, compose, caplog):
        """The whole fails, and no worker is stuck."""
        job = layer.queue.put(compose(Job(work, 1), postprocess=results))
        job.args.append(Job(append_nonsense, job))
        finish(layer, job)
        assert job.result.check(TypeError)
        assert is_idle(layer)

    def test_handed_back_at_a_stop(self, layer, compose):
        """A stop in the middle: what was done is not done again, and the result is complete."""
        job = layer.queue.put(
            compose(Job(work, 1), Job(wait, 2), Job(work, 3), postprocess=results)
        )
        transaction.commit()
        layer.reactor.settle(5, until=lambda: 1 in said and begun)
        layer.reactor.settle(0.05)
        layer.dispatcher.grace = 0.01
        pool = layer.dispatcher.queues['']['main']
        layer.dispatcher.deactivate()
        gate.set()
        pool.join(5)
        layer.dispatcher.activate()
        layer.reactor.time_passes()
        finish(layer, job, attempts=3)
        assert job.result == [1, 2, 3]
        assert said.count(1) == said.count(3) == 1
        assert is_idle(layer)


def extra(first, *jobs, key):
    return first, results(*jobs), key


def refuse(*jobs):
    raise LookupError('no')


def nothing():
    return None


def last_of_three(*jobs):
    return jobs[2].result


def second_job():
    return 'second'


def third_job():
    return 'third'


def schedule_third(main_job, ignored):
    main_job.args.append(Job(third_job))


def first_job(main_job):
    job = Job(second_job)
    main_job.args.append(job)
    job.addCallback(Job(schedule_third, main_job))
    return 'first'


def append_nonsense(main_job):
    main_job.args.append('not a call')


class TestSerial:
    def test_one_after_the_other(self, layer):
        """Each begins when the one before has ended."""
        job = layer.queue.put(serial(Job(wait, 1), Job(work, 2), Job(work, 3)))
        transaction.commit()
        layer.reactor.settle(5, until=lambda: begun)
        transaction.begin()
        assert said == [] and len(layer.queue) == 0
        gate.set()
        finish(layer, job)
        assert said == [1, 2, 3]

    def test_in_a_queue_that_was_closed(self, layer):
        """What is under way is finished: parts, postprocess, and what that returns."""
        job = layer.queue.put(serial(Job(wait, 1), Job(work, 2), postprocess=return_results))
        transaction.commit()
        layer.reactor.settle(5, until=lambda: begun)
        layer.queue.closed = True
        with pytest.raises(QueueClosed):
            layer.queue.put(Job(work, 'outside'))
        transaction.commit()
        gate.set()
        finish(layer, job)
        assert (job.result, said) == ([1, 2], [1, 2])
        assert is_idle(layer)

    def test_a_part_that_puts_in_a_queue_that_was_closed(self, layer):
        """What it puts itself is new work: a job that always puts its successor comes to an end."""
        job = layer.queue.put(Job(put_next, 1), delay=1)
        layer.queue.closed = True
        finish(layer, job, attempts=2)
        assert job.result.check(QueueClosed) and is_idle(layer)

    def test_in_a_paused_queue(self, layer):
        """It goes on when the queue does."""
        job = layer.queue.put(serial(Job(wait, 1), Job(work, 2)))
        transaction.commit()
        layer.reactor.settle(5, until=lambda: begun)
        layer.queue.pause()
        transaction.commit()
        gate.set()
        layer.reactor.settle(5, until=lambda: said == [1])
        layer.reactor.time_flies(20)
        assert said == [1]
        layer.queue.unpause()
        finish(layer, job)
        assert said == [1, 2]


class TestParallel:
    def test_side_by_side(self, layer):
        """As many as there are threads."""
        job = layer.queue.put(parallel(*(Job(wait, i) for i in range(3))))
        transaction.commit()
        assert layer.reactor.settle(5, until=lambda: len(layer.dispatcher.getActiveJobIds()) == 3)
        gate.set()
        finish(layer, job)

    def test_many_parts(self, layer):
        """The parts are written once each, and the whole is not written by every part."""
        job = layer.queue.put(parallel(*(Job(work, i) for i in range(60)), postprocess=count))
        finish(layer, job, attempts=10)
        assert job.result == 60 and job.conflicts == 0
        assert sum(part.conflicts for part in job.args) == 0

    def test_by_hand(self, layer):
        """The usage text's own implementation: a returned job that the last part puts."""
        job = layer.queue.put(main_job)
        finish(layer, job, attempts=3)
        assert job.result == 42
        assert is_idle(layer)


def count(*jobs):
    return len(jobs)


def add_up(*numbers):
    return sum(numbers)


def report(job, result):
    job.args.append(result)
    if len(job.args) == 3:
        local.getJob().queue.put(job)


def main_job():
    job = Job(add_up)
    for value in (12, 14, 16):
        local.getJob().queue.put(Job(work, value)).addCallback(Job(report, job))
    return job
