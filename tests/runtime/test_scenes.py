"""Coroutines of jobs: their context variables, and the scene of hosted ones in every step."""

import asyncio
import contextvars
import threading

import pytest
import transaction
from persistent.mapping import PersistentMapping

from zodbjobs import Job
from zodbjobs.model.hosted import HostedJob

asks_for = contextvars.ContextVar('asks_for', default='nobody')


class Careful(Job):
    """Sets a context variable around its call."""

    def setUp(self):
        return asks_for.set('me')

    def tearDown(self, setup_info):
        asks_for.reset(setup_info)


class Stage:
    """A host whose scene is one word in a thread."""

    def __init__(self):
        self.thread = threading.local()
        self.left = []
        self.jars = []  # the connections of coroutines

    @property
    def word(self):
        return getattr(self.thread, 'word', None)

    def remember(self):
        return {'word': asks_for.get()}

    def stored(self, value):
        return value

    found = result = stored

    def is_entered(self):
        return self.word is not None

    def enter(self, job, scene):
        if scene['word'] == 'refused':
            raise LookupError('no scene for this one')
        self.thread.word = scene['word']
        if 'asyncio' in threading.current_thread().name:
            self.jars.append((job._p_jar, job._p_jar.transaction_manager))

    def pause(self):
        held, self.thread.word = self.word, None
        return held

    def proceed(self, held):
        self.thread.word = held

    def leave(self, entered):
        self.left.append((threading.current_thread().name, self.word))
        self.thread.word = None


stage = Stage()


class Staged(HostedJob):
    host_name = 'tests.runtime.test_scenes:stage'


async def ask():
    before = asks_for.get()
    await asyncio.sleep(0)
    inner = await asyncio.gather(ask_inside(), ask_inside())
    return [before, asks_for.get(), *inner]


async def ask_inside():
    await asyncio.sleep(0)
    return asks_for.get()


async def look(box=None):
    found = [stage.word]
    await asyncio.sleep(0.001)
    found.append(stage.word)
    found += await asyncio.gather(look_inside(), look_inside())
    return found if box is None else [*found, box['what']]


async def look_inside():
    await asyncio.sleep(0)
    return stage.word


async def write(box):
    box['what'] = 'lost'
    await asyncio.sleep(0)


async def give_back(box):
    return box


async def cancel_myself():
    asyncio.current_task().cancel()
    await asyncio.sleep(1)


async def raise_later():
    await asyncio.sleep(0)
    raise ValueError(stage.word)


async def leave_a_task(done):
    tasks.append(asyncio.ensure_future(outlive(done)))


async def outlive(done):
    await asyncio.sleep(0.01)
    seen_later.append(stage.word)


tasks, seen_later = [], []


@pytest.fixture(autouse=True)
def clean():
    stage.left.clear()
    stage.jars.clear()
    seen_later.clear()
    yield
    assert not stage.is_entered()


@pytest.fixture
def run(layer):
    def run(*jobs):
        for job in jobs:
            layer.queue.put(job)
        transaction.commit()
        layer.reactor.wait_for(*jobs, attempts=20)
        transaction.begin()
        return [job.result for job in jobs]

    return run


def staged(word, *args):
    token = asks_for.set(word)
    try:
        return Staged(*args)
    finally:
        asks_for.reset(token)


def test_context_variables_are_those_of_the_call(run):
    mine, plain = run(Careful(ask), Job(ask))
    assert mine == ['me'] * 4
    assert plain == ['nobody'] * 4


def test_a_callback_too(run):
    job = Careful(ask)
    callback = job.addCallback(Careful(ask_after))
    run(job)
    assert callback.result == 'me'


async def ask_after(result):
    await asyncio.sleep(0)
    return asks_for.get()


def test_the_scene_is_there_in_every_step_and_nobody_elses(run):
    assert run(staged('a', look), staged('b', look), Job(look), staged('c', look)) == [
        ['a'] * 4, ['b'] * 4, [None] * 4, ['c'] * 4,
    ]  # fmt: skip
    ours = [word for thread, word in stage.left if thread == 'zodbjobs asyncio']
    assert sorted(ours) == ['a', 'b', 'c']  # each was taken down for good once


def test_a_callback_that_is_a_coroutine_has_its_scene_and_the_result(run):
    job = staged('a', look)
    back = job.addCallback(staged('b', look_after))
    run(job)
    assert back.result == [['a'] * 4, 'b']


async def look_after(result):
    await asyncio.sleep(0)
    return [result, stage.word]


def test_arguments_are_read_in_a_connection_of_its_own(run, layer):
    box = layer.root['box'] = PersistentMapping(what='the thing')
    (found,) = run(staged('a', look, box))
    assert found == ['a'] * 4 + ['the thing']


def test_what_it_writes_is_refused_and_not_lost_silently(run, layer):
    box = layer.root['box'] = PersistentMapping(what='the thing')
    (failure,) = run(staged('a', write, box))
    assert failure.check(RuntimeError)
    assert 'write it in a callback' in failure.getErrorMessage()
    assert box['what'] == 'the thing'


def test_a_stored_object_is_no_result_of_it(run, layer):
    box = layer.root['box'] = PersistentMapping()
    (failure,) = run(staged('a', give_back, box))
    assert failure.check(TypeError, ValueError)
    assert 'another connection' in failure.getErrorMessage()


@pytest.mark.parametrize('end', [raise_later, cancel_myself])
def test_however_it_ends_all_is_taken_down(run, end):
    run(staged('a', end), staged('b', end))
    assert sorted(word for thread, word in stage.left if 'asyncio' in thread) == ['a', 'b']
    # Closed; others may have opened them anew.
    assert not any(jar.opened and jar.transaction_manager is own for jar, own in stage.jars)
    assert len(stage.jars) == 2


def test_a_scene_that_cannot_be_put_up_fails_the_job(run):
    (failure,) = run(staged('refused', look))
    assert failure.check(LookupError)


def test_a_task_that_outlives_its_job_has_no_scene(run):
    run(staged('a', leave_a_task, 1))
    (task,) = tasks
    task.get_loop().call_soon_threadsafe(lambda: None)
    done = threading.Event()
    task.get_loop().call_soon_threadsafe(task.add_done_callback, lambda task: done.set())
    assert done.wait(20)
    tasks.clear()
    assert seen_later == [None]
