"""Tasks: made by functions and options, run by a dispatcher, by a worker, or here and now."""

import datetime
import threading

import pytest
import transaction
import ZODB
from persistent.mapping import PersistentMapping
from ZODB.FileStorage import FileStorage

from zodbjobs import clock, local, status
from zodbjobs.interfaces import (
    CancelledError,
    DependencyError,
    DuplicateJobError,
    MultipleDelayError,
)
from zodbjobs.tasks import Task, Tasks, Worker

calls = []
moods = {}


@pytest.fixture(autouse=True)
def forget():
    calls.clear()
    moods.clear()


@pytest.fixture
def tasks(layer):
    return layer.tasks


def book(name, by=1):
    """Count in the database, in whatever transaction this is."""
    found = local.getJob()
    root = root_of(found)
    root['book'][name] = root['book'].get(name, 0) + by


def root_of(job):
    jar = job._p_jar or moods['jar']
    return jar.root()


def work(*args, **kwargs):
    """What tasks do here: fail as often as `moods` says, and count."""
    calls.append((args, kwargs))
    book('work')
    if moods.get('failures', 0) > 0:
        moods['failures'] -= 1
        raise ValueError(f'failure, {moods["failures"]} to come')
    return 'done'


def starting(task):
    calls.append(('start', task.retries))
    book('start')
    if moods.get('bad start'):
        raise RuntimeError('bad start')


def succeeded(task, result):
    calls.append(('success', result))
    book('success')
    if moods.get('bad success'):
        raise RuntimeError('bad success')


def failed(task, error):
    calls.append(('error', str(error), task.retries))
    book('error')
    if 'retries' in moods:
        task.retries = moods.pop('retries')
    if moods.get('bad error'):
        raise RuntimeError('bad error')


async def later():
    return 'later'


HOOKS = {'on_start': starting, 'on_success': succeeded, 'on_error': failed}


def run(layer, seconds=0):
    transaction.commit()
    layer.reactor.settle()
    if seconds:
        layer.reactor.time_flies(seconds)
        layer.reactor.settle()
    transaction.begin()
    return dict(layer.root['book'])


# Making ------------------------------------------------------------------------------------


def test_any_function_is_a_task(layer, tasks):
    task = tasks.task(work, 1, b=2)
    assert isinstance(task, Task) and tasks.len() == len(tasks) == 1
    run(layer)
    assert calls == [((1,), {'b': 2})]
    assert (task.result, task.outcome, tasks.len()) == ('done', 'success', 0)


def test_an_abort_takes_it_back(tasks):
    tasks.task(work)
    transaction.abort()
    assert tasks.len() == 0


def test_a_function_that_cannot_be_found_again_is_refused(tasks):
    with pytest.raises(TypeError, match='a lambda'):
        tasks.task(lambda: 1)
    with pytest.raises(TypeError, match='a lambda'), tasks.options(on_error=lambda *_: 1):
        tasks.task(work)
    assert tasks.len() == 0


def test_options_hold_inside_their_block_and_by_their_name(tasks):
    with tasks.options(priority=5) as options:
        inside, named = tasks.task(work), options.task(work)
        with tasks.options(priority=7, channel='slow'):
            inner = tasks.task(work)
            by_name = options.task(work)
    outside, later = tasks.task(work), options.task(work)
    assert [t.priority for t in (inside, named, inner, by_name, later)] == [5, 5, 7, 5, 5]
    assert (inner.channel, by_name.channel, inside.channel) == ('slow', 'slow', None)
    assert outside.priority == 2**31


def test_options_are_those_of_a_thread(tasks):
    found = []
    with tasks.options(priority=5):
        thread = threading.Thread(target=lambda: found.append(tasks._ambient.get()))
        thread.start()
        thread.join()
    assert found == [()]


def test_wrong_options_are_told(tasks):
    with pytest.raises(TypeError, match=r"\['retry'\] are no options of a task; there are"):
        tasks.options(retry=3)
    with pytest.raises(MultipleDelayError):
        tasks.options(delay_by=3, delay_until=5)
    with pytest.raises(TypeError):
        tasks.options(delay_by='soon')
    with pytest.raises(ValueError), tasks.options(retries=-1):
        tasks.task(work)
    with pytest.raises(TypeError):
        Tasks(5)


NOON = datetime.datetime(2031, 5, 6, 12)


@pytest.mark.parametrize(
    'moment, due',
    [
        (NOON, NOON),
        (
            NOON.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
            NOON.replace(hour=10),
        ),
        (NOON.date(), NOON.replace(hour=0)),
        (NOON.replace(tzinfo=datetime.timezone.utc).timestamp(), NOON),
    ],
    ids=['naive', 'zone', 'date', 'number'],
)
def test_delay_until_is_utc(tasks, moment, due):
    with tasks.options(delay_until=moment):
        assert tasks.task(work).begin_after.replace(tzinfo=None) == due


def test_delays(layer, tasks):
    with tasks.options(delay_by=300) as options:
        task = tasks.task(work)
        with tasks.options(delay_until=clock.now() + datetime.timedelta(seconds=100)):
            sooner = tasks.task(work)  # the inner block says when
    with tasks.options(delay_by=datetime.timedelta(minutes=1)):
        minute = tasks.task(work)
    run(layer)
    assert not calls and tasks.len() == 3
    for seconds, done in ((61, [minute]), (40, [minute, sooner]), (200, [minute, sooner, task])):
        run(layer, seconds)
        assert [t for t in (minute, sooner, task) if t.outcome] == done
    assert options.options == {'delay_by': 300}


def test_a_task_waits_for_those_it_depends_on(layer, tasks):
    with tasks.options(delay_by=60, task_id='first'):
        tasks.task(work, 'first')
    with tasks.options(depends_on=['first']):
        second = tasks.task(work, 'second')
    with tasks.options(depends_on=second):
        third = tasks.task(work, 'third')
    run(layer)
    assert not calls and third.status == status.PENDING
    run(layer, 61)
    assert [args for args, _ in calls] == [('first',), ('second',), ('third',)]
    with pytest.raises(LookupError, match="no unfinished task 'first'"):
        tasks.options(depends_on='first').task(work)


def test_who_depends_on_a_failure_does_not_run(layer, tasks):
    moods['failures'] = 1
    with tasks.options(depends_on=tasks.task(work)):
        second = tasks.task(work)
    run(layer)
    assert second.result.check(DependencyError) and len(calls) == 1


def test_ids(layer, tasks):
    with tasks.options(task_id='mail 7', delay_by=60):
        named = tasks.task(work)
        with pytest.raises(DuplicateJobError):
            tasks.task(work)
    plain = tasks.task(work)
    assert named.task_id == 'mail 7' and plain.task_id.startswith('#')
    assert tasks.cancel(plain.task_id) is plain and tasks.cancel(plain.task_id) is None
    assert plain.result.check(CancelledError)
    assert tasks.cancel('mail 7') is named and tasks.cancel('mail 7') is None
    for unknown in ('', 'x', '#', '#0', '#fffffff', '#-5', f'#{"f" * 30}'):
        assert tasks.cancel(unknown) is None and tasks.get(unknown) is None
    run(layer, 100)
    assert not calls


# Retries and hooks, in a dispatcher ------------------------------------------------------------


def test_retries(layer, tasks):
    moods['failures'] = 2
    with tasks.options(retries=3):
        task = tasks.task(work)
    assert task.retries == 3
    assert run(layer) == {'work': 1}  # what failed left nothing
    assert len(calls) == 3 and task.attempts == 3 and task.retries == 1
    assert task.result == 'done'


def test_retries_end(layer, tasks):
    moods['failures'] = 9
    with tasks.options(retries=2):
        task = tasks.task(work)
    run(layer)
    assert len(calls) == 3 and task.outcome == 'failure'
    assert task.result.getErrorMessage() == 'failure, 6 to come'


def test_backoff_waits_by_a_date(layer, tasks):
    moods['failures'] = 3
    with tasks.options(retries=3, backoff=[10, 100]):
        tasks.task(work)
    for seconds, count in ((0, 1), (9, 1), (2, 2), (95, 2), (6, 3), (90, 3), (11, 4)):
        run(layer, seconds)
        assert len(calls) == count


def test_hooks_of_a_success_are_in_its_commit(layer, tasks):
    with tasks.options(**HOOKS):
        tasks.task(work)
    assert run(layer) == {'start': 1, 'work': 1, 'success': 1}
    assert calls == [('start', 0), ((), {}), ('success', 'done')]


def test_on_error_is_called_after_each_failed_attempt_and_stays(layer, tasks):
    moods['failures'] = 2
    with tasks.options(retries=2, **HOOKS):
        tasks.task(work)
    assert run(layer) == {'start': 1, 'work': 1, 'success': 1, 'error': 2}
    errors = [call for call in calls if call[0] == 'error']
    assert errors == [
        ('error', 'failure, 1 to come', 2),
        ('error', 'failure, 0 to come', 1),
    ]


@pytest.mark.parametrize('given, retries, attempts', [(9, 0, 1), (0, 2, 3)])
def test_on_error_may_set_the_retries_that_are_left(layer, tasks, given, retries, attempts):
    moods.update(failures=99, retries=retries)
    with tasks.options(retries=given, on_error=failed):
        task = tasks.task(work)
    run(layer)
    assert task.outcome == 'failure' and task.attempts == attempts


@pytest.mark.parametrize('which', ['bad start', 'bad success'])
def test_a_hook_that_raises_undoes_the_attempt(layer, tasks, which):
    moods[which] = True
    with tasks.options(retries=1, **HOOKS):
        task = tasks.task(work)
    assert run(layer) == {'error': 2}
    assert task.result.getErrorMessage() == which and task.attempts == 2


def test_an_on_error_that_raises_changes_nothing(layer, tasks):
    moods.update({'failures': 1, 'bad error': True})
    with tasks.options(retries=1, **HOOKS):
        task = tasks.task(work)
    assert run(layer) == {'start': 1, 'work': 1, 'success': 1}
    assert task.result == 'done'


def test_on_success_needs_its_result_at_once(layer, tasks):
    with tasks.options(on_success=succeeded):
        task = tasks.task(later)
    plain = tasks.task(later)
    run(layer)
    layer.reactor.wait_for(plain)
    transaction.begin()
    assert plain.result == 'later'
    assert 'will have its result later' in task.result.getErrorMessage()


# Here and now ------------------------------------------------------------------------------


@pytest.fixture
def here(layer):
    moods['jar'] = layer.connection
    with layer.tasks.options(is_async=False, delay_by=1000) as options:
        yield options


def test_here_and_now(layer, tasks, here):
    task = tasks.task(work, 5)
    assert task.result == 'done' and task.status == status.COMPLETED and tasks.len() == 0
    assert layer.root['book'] == {'work': 1}
    transaction.abort()
    assert not layer.root['book']


def test_here_and_now_with_retries_and_hooks(layer, tasks, here):
    layer.root['book']['mine'] = 1
    moods['failures'] = 2
    with tasks.options(retries=2, backoff=1000, **HOOKS):
        task = tasks.task(work)
    assert layer.root['book'] == {'mine': 1, 'start': 1, 'work': 1, 'success': 1, 'error': 2}
    assert task.result == 'done'
    assert [call[2] for call in calls if call[0] == 'error'] == [2, 1]


def test_here_and_now_the_last_error_is_raised(layer, tasks, here):
    layer.root['book']['mine'] = 1
    moods['failures'] = 9
    with pytest.raises(ValueError, match='failure, 7 to come'):
        tasks.options(retries=1, on_error=failed).task(work)
    with pytest.raises(ValueError, match='failure, 7 to come'), tasks.options(retries=1):
        moods['failures'] = 9
        tasks.task(work)
    assert layer.root['book'] == {'mine': 1, 'error': 2}


def test_here_and_now_needs_what_it_depends_on(layer, tasks, here):
    first = Tasks(layer.queue).task(work)
    with tasks.options(depends_on=first), pytest.raises(DependencyError):
        tasks.task(work)
    run(layer)
    with tasks.options(depends_on=first):
        assert tasks.task(work).result == 'done'


# By hand -----------------------------------------------------------------------------------


@pytest.fixture
def idle(layer):
    """Tasks of a queue whose agents rest."""
    layer.agent.size = 0
    transaction.commit()
    layer.reactor.settle()
    transaction.begin()
    return layer.tasks


def test_pop_runs_the_first_that_is_due_in_this_transaction(layer, idle):
    with idle.options(delay_by=60):
        idle.task(work, 'later')
    task = idle.task(work, 'now')
    transaction.commit()
    assert idle.pop() is task and task.result == 'done' and idle.len() == 1
    assert layer.root['book'] == {'work': 1}
    transaction.abort()
    assert task.status == status.PENDING and not layer.root['book'] and idle.len() == 2
    assert idle.pop() is task
    transaction.commit()
    assert idle.pop() is None and task.outcome == 'success'


def test_get_runs_one_that_is_not_due(layer, idle):
    with idle.options(delay_by=60, task_id='x'):
        task = idle.task(work)
    assert idle.get('y') is None
    assert idle.get('x') is task and task.result == 'done'
    transaction.commit()
    assert idle.get('x') is None and idle.len() == 0


def test_a_pop_that_fails_waits_for_its_next_attempt(layer, idle):
    moods['failures'] = 2
    with idle.options(retries=1, on_error=failed):
        task = idle.task(work)
    transaction.commit()
    layer.root['book']['mine'] = 1
    assert idle.pop() is task and task.status == status.PENDING and task.attempts == 1
    assert layer.root['book'] == {'mine': 1, 'error': 1}
    transaction.commit()
    assert idle.pop() is task and task.outcome == 'failure' and task.attempts == 2
    transaction.commit()
    assert idle.pop() is None


def test_who_depends_on_what_was_popped_goes_on(layer, idle):
    first = idle.task(work, 1)
    with idle.options(depends_on=first):
        second = idle.task(work, 2)
    transaction.commit()
    layer.reactor.settle()
    transaction.begin()
    assert idle.pop() is first
    transaction.commit()
    assert idle.pop() is second and second.result == 'done'


# The decorator -----------------------------------------------------------------------------

shop = Tasks(lambda: moods['queue'])


@shop.job
def price(article: str, pieces: int = 1) -> int:
    """What so many pieces cost."""
    return len(article) * pieces


@shop.job(retries=2, priority=3)
def fail(times: int) -> None:
    moods['failures'] = moods.get('failures', times)
    work()


def test_a_decorated_function_stays_a_function(layer):
    moods['queue'] = layer.queue
    assert price('tea', 2) == 6 and price.__doc__ == 'What so many pieces cost.'
    task = price.task('coffee', pieces=2)
    other = fail.task(2)
    run(layer)
    assert task.result == 12 and price.task.__name__ == 'price'
    assert other.outcome == 'success' and (other.priority, other.attempts) == (3, 3)


# Workers -----------------------------------------------------------------------------------


@pytest.fixture
def plain(tmp_path):
    """Tasks of a database that no dispatcher serves."""
    calls.clear()
    moods.clear()
    db = ZODB.DB(FileStorage(str(tmp_path / 'Data.fs')))
    tasks = Tasks(db)
    tasks.queue._p_jar.root()['book'] = PersistentMapping()
    transaction.commit()
    yield tasks
    tasks.close()
    db.close()


@pytest.fixture
def worker(plain):
    worker = Worker(plain, nap_time=0.01)
    yield worker
    worker.close()


def test_a_worker_runs_one_task_at_a_time(plain, worker):
    assert worker.check_and_run_task() is False
    moods['failures'] = 1
    bad, good = plain.task(work, 1), plain.task(work, 2)
    with plain.options(delay_by=1000):
        later = plain.task(work, 3)
    transaction.commit()
    assert worker.check_and_run_task() is False
    assert worker.check_and_run_task() is True
    assert worker.check_and_run_task() is False
    transaction.begin()
    assert (bad.outcome, good.outcome, later.outcome) == ('failure', 'success', None)
    assert worker.tasks_run == 2 and good.agent.name == 'by hand'


def test_a_worker_claims_nothing_that_it_does_not_run(plain, worker):
    tasks = [plain.task(work) for _ in range(3)]
    transaction.commit()
    worker.check_and_run_task()
    transaction.begin()
    assert [task.status for task in tasks] == [status.COMPLETED, *[status.PENDING] * 2]


def test_a_worker_ends_after_so_many_tasks(plain):
    for number in range(5):
        plain.task(work, number)
    transaction.commit()
    worker = Worker(plain, max_tasks=3, nap_time=0.01)
    worker.run_forever()
    transaction.begin()
    assert len(calls) == 3 == worker.tasks_run and plain.len() == 2
    assert plain.queue._p_jar.root()['book'] == {'work': 3}
    assert not [r for r in plain.queue.dispatchers.values() if r.activated]


def test_a_commit_wakes_a_napping_worker(plain):
    ended = []

    class Counting(Worker):
        def result(self, succeeded):
            ended.append(succeeded)

        def starting(self):
            super().starting()
            began.set()

    began = threading.Event()
    worker = Counting(plain, max_tasks=1, nap_time=60)
    thread = threading.Thread(target=worker.run_forever)
    thread.start()
    assert began.wait(10)
    plain.task(work)
    transaction.commit()
    thread.join(10)
    assert ended == [True] and not thread.is_alive()


def test_a_worker_waits_for_a_coroutine(plain, worker):
    task = plain.task(later)
    transaction.commit()
    assert worker.check_and_run_task() is True
    transaction.begin()
    assert task.result == 'later'


def test_a_worker_makes_retries_and_lets_go_who_depends(plain):
    moods['failures'] = 1
    with plain.options(retries=1):
        first = plain.task(work)
    with plain.options(depends_on=first):
        second = plain.task(work)
    transaction.commit()
    Worker(plain, max_tasks=3, nap_time=0.01).run_forever()
    transaction.begin()
    assert (first.result, second.result, first.attempts) == ('done', 'done', 2)


def linger(seconds):
    """Go on until we are asked to stop, or for so many seconds; which of the two."""
    job, end = local.getJob(), clock.monotonic() + seconds
    while clock.monotonic() < end:
        if job.stop_requested:
            return 'asked'
    return 'at its end'


@pytest.mark.parametrize('limit, said', [((0.02, 30), 'asked'), ((60, 60.01), 'at its end')])
def test_a_worker_asks_a_task_to_stop_and_takes_nothing_away(plain, worker, limit, said):
    with plain.options(time_limit=limit):
        task = plain.task(linger, 5 if said == 'asked' else 0.05)
    transaction.commit()
    assert worker.check_and_run_task() is True
    transaction.begin()
    assert task.result == said and task.attempts == 1


def test_a_task_that_outlives_its_limit_is_kept_by_a_worker(plain, worker):
    """The thread is the caller's own: there is no other one to go on with."""
    with plain.options(time_limit=(0.01, 0.02)):
        task = plain.task(overrun)
    other = plain.task(linger, 0)
    transaction.commit()
    assert worker.check_and_run_task() is True and worker.check_and_run_task() is True
    transaction.begin()
    assert (task.result, task.attempts, other.result) == ('late', 1, 'at its end')


def overrun():
    end = clock.monotonic() + 0.05
    while clock.monotonic() < end:
        pass
    return 'late'


def test_stop_from_another_thread(plain):
    worker = Worker(plain, nap_time=60)
    thread = threading.Thread(target=worker.run_forever)
    thread.start()
    worker.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_an_address(tmp_path):
    tasks = Tasks(f'file:{tmp_path / "Data.fs"}', queue='mail')
    tasks.task(price, 'tea')
    transaction.commit()
    assert (tasks.len(), tasks.queue.name, repr(tasks)) == (1, 'mail', "<Tasks 'mail'>")
    tasks.close()
    again = Tasks(tmp_path / 'Data.fs', queue='mail')
    assert again.pop().result == 3
    transaction.commit()
    assert again.len() == 0
    again.close()
