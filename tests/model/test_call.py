"""What can be called later and what can be stored: found again, or refused with help."""

import builtins
import datetime
import functools
import operator
import sys
import types
import zoneinfo

import persistent.mapping
import pytest
import transaction
import ZODB
from persistent import Persistent
from persistent.list import PersistentList
from ZODB.DemoStorage import DemoStorage

from tests.model import support
from tests.model.support import Thing, work
from zodbjobs import Job, Queue, Queues, status
from zodbjobs.interfaces import KEY
from zodbjobs.model import call


class Base:
    @classmethod
    def make(cls):
        return cls

    @staticmethod
    def helper(x):
        return x

    class Inner:
        def __call__(self):
            return 'inner'


class Child(Base):
    pass


class Renamed(Persistent):
    def kept(self):
        return 'kept'

    kept.__name__ = 'gone'


class Adder:
    """A plain object that can be called."""

    def __init__(self, n):
        self.n = n

    def __call__(self, m):
        return self.n + m

    def __eq__(self, other):
        return isinstance(other, Adder) and self.n == other.n

    __hash__ = None


def decorated(function):
    return functools.wraps(function)(lambda *args: ('decorated', *args))


@decorated
def wrapped(*args):
    return args


def plain():
    return 'plain'


def replaced():
    return 'the first'


the_first = replaced


def replaced():  # noqa: F811 - as a careless module does
    return 'the second'


class Vanishing:
    """A module that is there for a time, with what tests put into it."""

    name = 'tests.model.vanishing'

    def __enter__(self):
        self.module = sys.modules[self.name] = types.ModuleType(self.name)
        return self

    def __exit__(self, *exc):
        sys.modules.pop(self.name, None)

    def define(self, code):
        exec(code, self.module.__dict__)
        return self.module


@pytest.fixture
def vanishing():
    with Vanishing() as module:
        yield module


def loaded_anew(house, job):
    """The job as a connection finds it that never saw it."""
    return house.side().twin(job)


# Calls -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('given', 'args', 'result'),
    [
        (plain, (), 'plain'),
        (wrapped, (1,), ('decorated', 1)),
        (len, ([1, 2],), 2),
        (operator.add, (1, 2), 3),
        (datetime.datetime, (2020, 1, 1), datetime.datetime(2020, 1, 1)),
        (Base.make, (), Base),
        (Child.make, (), Child),
        (Base.helper, (5,), 5),
        (Child.helper, (5,), 5),
        (Base.Inner, (), None),
        (str.upper, ('a',), 'A'),
        ('abc'.upper, (), 'ABC'),
        ([1, 2].__len__, (), 2),
        (datetime.date(2020, 1, 2).isoformat, (), '2020-01-02'),
        (Adder(2), (3,), 5),
        (functools.partial(work, 1, a=2), (3,), (1, 3, {'a': 2})),
        (functools.partial(functools.partial(work, 1, a=1), 2, a=2), (3,), (1, 2, 3, {'a': 2})),
        (functools.partial(Adder(2), 3), (), 5),
        (Job(work, 1), (2,), (1, 2)),
        (operator.attrgetter('real'), (3,), 3),
    ],
)
def test_it_is_found_again(house, side, queue, given, args, result):
    job = queue.put(given) if not args else queue.put(Job(given, *args))
    side.commit()
    found = loaded_anew(house, job)
    answer = found.run()
    assert answer == result or (result is None and isinstance(answer, Base.Inner))


def test_a_method_of_a_persistent_object_keeps_the_object(house, side, queue):
    thing = side.root['thing'] = Thing()
    job, called = queue.put(Job(thing.increase, 5)), queue.put(thing)
    side.commit()
    other = house.side()
    other.twin(job).run()
    other.twin(called).run()
    assert other.root['thing'].value == 6
    assert other.twin(job)._call == (other.root['thing'], 'increase')


def test_a_method_on_the_job_itself(house, side, queue):
    class_method = Labelled.labelled
    assert class_method is not None
    job = Labelled(work)
    job.callable = job.labelled
    queue.put(job)
    side.commit()
    assert loaded_anew(house, job).run() == 'labelled'


class Labelled(Job):
    def labelled(self):
        return 'labelled'


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        (lambda: None, 'a lambda, which another process could not find'),
        (functools.partial(lambda: None), 'a lambda'),
        (the_first, 'is not what is found under that name'),
        (wrapped.__wrapped__, 'is not what is found under that name'),
        (Renamed().kept, "is not the method 'gone' of its object"),
        (None, 'cannot be called; to pass arguments use Job'),
        (types.FunctionType(plain.__code__, {}, 'made'), 'cannot be found under that name'),
    ],
    ids=['lambda', 'partial', 'replaced', 'unwrapped', 'renamed', 'none', 'made'],
)
def test_what_could_not_be_found_is_refused(given, words):
    with pytest.raises(TypeError, match=words):
        Job(given)


def test_a_function_inside_another_is_refused():
    def inner():
        pass

    class Local:
        def method(self):
            pass

    with pytest.raises(TypeError, match='a function made inside another function.*at the top of'):
        Job(inner)
    with pytest.raises(TypeError, match='inside another'):
        Job(Local)


def test_names_are_readable():
    thing = Thing()
    names = [plain, Child.make, thing.increase, thing, Adder(1), len, Base.Inner]
    assert [Job(each).call_name for each in names] == [
        f'{__name__}.plain',
        f'{__name__}.Child.make',
        f'{Thing.__module__}.Thing.increase',
        f'{Thing.__module__}.Thing',
        f'{__name__}.Adder',
        'builtins.len',
        f'{__name__}.Base.Inner',
    ]


# What has vanished -------------------------------------------------------------------------


def failure_of(job):
    """What running a job raises."""
    with pytest.raises(call.Vanished) as caught:
        job.run()
    return str(caught.value)


@pytest.mark.parametrize(
    ('deed', 'words'),
    [
        (lambda v: sys.modules.pop(v.name), f"module '{Vanishing.name}' cannot be imported"),
        (lambda v: delattr(v.module, 'gone'), f"module '{Vanishing.name}' has no 'gone'"),
    ],
)
def test_a_function_that_vanished_fails_its_job(house, side, queue, vanishing, deed, words):
    job = queue.put(vanishing.define('def gone(): return 1').gone)
    side.commit()
    deed(vanishing)
    there = loaded_anew(house, job)
    assert words in failure_of(there)
    assert (there.status, there.call_name) == (status.PENDING, f'{Vanishing.name}.gone')
    assert 'gone' in repr(there)


def test_a_method_that_vanished_fails_its_job(house, side, queue, vanishing):
    cls = vanishing.define(
        'from persistent import Persistent\nclass Gone(Persistent):\n    def method(self): pass'
    ).Gone
    job = queue.put(cls().method)
    side.commit()
    del cls.method
    assert "Gone has no method 'method'" in failure_of(loaded_anew(house, job))


GONE_CLASS = 'class Gone:\n    def __call__(self): return 1\n    method = __call__\n'
GONE_PERSISTENT = f'from persistent import Persistent\n{GONE_CLASS}'.replace(
    'class Gone', 'class Gone(Persistent)'
)


@pytest.mark.parametrize('code', [GONE_CLASS, GONE_PERSISTENT], ids=['plain', 'persistent'])
@pytest.mark.parametrize(
    'make',
    [
        Job,
        lambda gone: Job(gone.method),
        lambda gone: Job(work, gone),
        lambda gone: Job(work, key=gone),
    ],
    ids=['callable', 'method', 'argument', 'keyword'],
)
def test_a_class_that_vanished_fails_its_job(house, side, queue, vanishing, code, make):
    """It must not be called: a broken class answers with a broken instance, and no error."""
    job = queue.put(make(vanishing.define(code).Gone()))
    side.commit()
    house.db.cacheMinimize()
    sys.modules.pop(vanishing.name)
    there = loaded_anew(house, job)
    assert f'{Vanishing.name}.Gone cannot be imported' in failure_of(there)
    assert list(there.queue) == [there]
    assert repr(there)


def test_a_kind_of_job_that_vanished_harms_nobody(house, side, queue, vanishing, turned):
    """Neither those who look nor those who claim, count or give back."""
    queue.quotas.create('one')
    special = vanishing.define('from zodbjobs import Job\nclass Special(Job): pass').Special
    lost = queue.put(special(work), begin_by=60, quota_names=['one'])
    waits = queue.put(work, after=[lost])
    depends = queue.put(work, depends_on=[lost])
    good = queue.put(work, begin_by=60, quota_names=['one'])
    side.commit()
    sys.modules.pop(vanishing.name)
    house.db.cacheMinimize()
    other = house.side()
    found = [other.twin(each) for each in (waits, depends, good)]
    assert list(other.queue) == [found[2], *found[:2]]
    assert other.queue.peek() is found[2]
    other.claim(0)
    other.commit()
    assert list(other.queue) == [found[0], found[1], found[2]]
    assert other.queue.claim() is found[0]
    other.queue.putBack(found[0])
    other.commit()
    oids = [assignment.oid for assignment in other.claim(9)]
    # It takes no place from others: it ends as soon as a worker meets it.
    assert set(oids) == {each._p_oid for each in (lost, waits, depends, good)}
    assert list(other.queue.quotas['one']) == [found[2]]
    assert list(other.agent) == [job for job in found if job in other.agent]
    assert len(other.agent) == 3
    other.commit()
    turned.advance(61)
    assert other.claim(9) == []
    other.record.deactivate()
    other.commit()
    assert [job._p_oid for job in other.agent.history.newest_failed()] == [lost._p_oid]
    assert set(other.queue) == set(found)


# What can be stored ------------------------------------------------------------------------


@pytest.mark.parametrize(
    'value',
    [
        zoneinfo.ZoneInfo('Europe/Zurich'),
        datetime.datetime(2020, 1, 1, tzinfo=zoneinfo.ZoneInfo('Europe/Zurich')),
        datetime.timezone.utc,
        Adder(1),
        {1: [2, (3, {4})]},
        frozenset([1]),
        10**100,
        b'bytes',
        range(3),
        work,
        Adder,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_can_be_stored_comes_back(house, side, queue, value):
    job = queue.put(Job(work, value, key=value))
    side.commit()
    there = loaded_anew(house, job)
    assert (there.args, there.kwargs) == ([value], {'key': value})


class Unpicklable:
    def __reduce__(self):
        raise ValueError('not me')


def deep(value, levels):
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    'value',
    [
        Unpicklable(),
        deep(Unpicklable(), 20),
        [0] * 100 + [Unpicklable()],
        {'key': (Unpicklable(),)},
        PersistentList([PersistentList([Unpicklable()])]),
        persistent.mapping.PersistentMapping(key=Unpicklable()),
        Job(work, Unpicklable()),
        Job(work, Job(work, key=Unpicklable())),
    ],
    ids=['bare', 'deep', 'long', 'dict', 'persistent', 'mapping', 'job', 'job in job'],
)
def test_what_cannot_be_stored_is_refused(side, queue, value):
    with pytest.raises(TypeError, match='an argument of .*cannot be stored .ValueError: not me'):
        queue.put(Job(work, value))
    side.commit()
    assert len(queue) == 0


@pytest.mark.parametrize(
    ('value', 'is_plain'),
    [
        (None, True), (1, True), ('a', True), ((1, [2.0, b'3']), True), ({'a': {1}}, True),
        (deep(1, 3), True), (deep(1, 4), False), ([1] * 50, True), ([1] * 51, False),
        (Adder(1), False), ([Adder(1)], False), ({Adder: 1}, False), (builtins.len, False),
        (True, True), (type('Text', (str,), {})('a'), False),
    ],
)  # fmt: skip
def test_simple_values_are_believed_without_a_trial(value, is_plain):
    assert call.is_plain(value) is is_plain


def test_a_new_object_is_stored_with_the_job(house, side, queue):
    thing = Thing()
    job = queue.put(Job(work, thing, [Thing()]))
    side.commit()
    assert loaded_anew(house, job).args[0].value == 0
    assert thing._p_jar is side.connection


def test_an_object_of_another_connection_is_refused(house, side, queue):
    side.root['thing'] = Thing()
    side.commit()
    stranger = house.side().root['thing']
    for job in (Job(work, stranger), Job(stranger.increase), Job(work, [stranger])):
        with pytest.raises(ValueError, match=r'another connection.*queue._p_jar.get'):
            queue.put(job)
    side.commit()


def test_a_job_of_another_connection_is_refused(house, side, queue):
    stranger = house.side()
    theirs = stranger.queue.put(work)
    with pytest.raises(ValueError, match='after refers to Job of another connection'):
        queue.put(work, after=[theirs])
    other = Job(work)
    stranger.connection.add(other)
    with pytest.raises(ValueError, match='belongs to another connection'):
        queue.put(other)


def test_what_cannot_be_stored_is_heard_of_also_beside_what_is_gone(side, queue, vanishing):
    """Only a reference to code that is gone is replaced, so that its job can say how it ended."""
    gone = queue.put(Job(work, vanishing.define('class Gone: pass').Gone))
    side.commit()
    sys.modules.pop(vanishing.name)
    side.connection.cacheMinimize()
    assert 'Gone cannot be imported' in failure_of(gone)
    with pytest.raises(TypeError, match='cannot be stored'):
        queue.put(Job(work, Job(work, Unpicklable())))
    gone.settled('ended')
    side.commit()
    assert 'Gone' in failure_of(gone)
    gone.args.append(Unpicklable())
    with pytest.raises(ValueError, match='not me'):
        side.commit()


# Several databases -------------------------------------------------------------------------


class Both:
    """An application's database and one for jobs, opened together."""

    def __init__(self):
        self.databases = {}
        self.main = ZODB.DB(DemoStorage(), databases=self.databases, database_name='main')
        ZODB.DB(DemoStorage(), databases=self.databases, database_name='jobs')
        self.manager = transaction.TransactionManager()
        self.connection = self.main.open(self.manager)
        self.root = self.connection.root()
        self.jobs = self.connection.get_connection('jobs')
        self.jobs.root()[KEY] = Queues()
        self.queue = self.jobs.root()[KEY][''] = Queue()
        self.manager.commit()
        self.root[KEY] = self.jobs.root()[KEY]
        self.manager.commit()

    def close(self):
        self.manager.abort()
        self.connection.close()
        for database in self.databases.values():
            database.close()


@pytest.fixture
def both(turned):
    both = Both()
    yield both
    both.close()


def test_queues_may_live_in_a_database_of_their_own(both):
    thing = both.root['thing'] = Thing()
    both.manager.commit()
    job = both.queue.put(Job(thing.increase, 2))
    both.manager.commit()
    assert (job._p_jar, thing._p_jar) == (both.jobs, both.connection)
    assert repr(job).startswith(f"<zodbjobs.Job (oid {job.oid}, db 'jobs')")
    manager = transaction.TransactionManager()
    other = both.main.open(manager)
    (found,) = list(other.root()[KEY][''])
    assert found.run() == 2
    manager.commit()
    other.close()
    both.manager.begin()
    assert both.root['thing'].value == 2


@pytest.mark.parametrize(
    'make',
    [
        lambda thing: Job(work, thing),
        lambda thing: Job(work, key={'deep': [thing]}),
        Job,
        lambda thing: Job(thing.increase),
        lambda thing: Job(work, Job(work, thing)),
    ],
    ids=['argument', 'keyword', 'callable', 'method', 'in a job'],
)
def test_an_object_without_a_home_is_refused(both, make):
    """It would be stored, unseen, in the database of the jobs."""
    thing = Thing()
    job = make(thing)
    with pytest.raises(ValueError, match=r"new Thing.*'jobs', 'main'.*connection.add\(obj\)"):
        both.queue.put(job)
    both.manager.commit()
    both.connection.add(thing)
    both.queue.put(job)
    both.manager.commit()
    assert thing._p_jar is both.connection


def test_jobs_without_a_home_are_at_home_with_their_queue(both):
    inner = Job(work)
    job = both.queue.put(Job(work, inner))
    callback = job.addCallback(work)
    both.manager.commit()
    assert inner._p_jar is callback._p_jar is both.jobs


def test_an_object_of_a_database_apart_is_refused(both):
    apart = ZODB.DB(DemoStorage(), database_name='apart')
    manager = transaction.TransactionManager()
    connection = apart.open(manager)
    thing = connection.root()['thing'] = Thing()
    manager.commit()
    with pytest.raises(ValueError, match="database 'apart', which is not opened together"):
        both.queue.put(Job(work, thing))
    connection.close()
    apart.close()


def test_a_job_in_another_database_than_its_queue_is_refused(both):
    job = Job(work)
    both.connection.add(job)
    with pytest.raises(ValueError, match='another connection than the queue'):
        both.queue.put(job)


def test_the_support_is_what_workers_import():
    assert call.resolved('tests.model.support:work') is support.work
