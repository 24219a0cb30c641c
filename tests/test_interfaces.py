"""The contracts: who says that it keeps one does, and who keeps one says so."""

import inspect
import types
import uuid

import pytest
import zope.event
from twisted.internet.selectreactor import SelectReactor
from zope.interface import implementedBy, providedBy
from zope.interface.interface import InterfaceClass
from zope.interface.verify import verifyClass, verifyObject

import zodbjobs
from tests.model import support
from tests.model.support import work
from zodbjobs import (
    Agent,
    Dispatcher,
    Feed,
    Feeds,
    Job,
    JobFeed,
    Loop,
    LoopRunner,
    Loops,
    Message,
    MessageQueue,
    NeverRetry,
    Queue,
    Queues,
    RetryCommonForever,
    RetryCommonFourTimes,
    RetryPolicy,
    SortedFeed,
    clock,
    interfaces,
    parallel,
    serial,
    status,
)
from zodbjobs.model.claim import Claim
from zodbjobs.model.compose import Parallel, Serial
from zodbjobs.model.job import Choice
from zodbjobs.model.quota import Quota, Quotas
from zodbjobs.model.registry import DispatcherAgents, Dispatchers
from zodbjobs.runtime.consumer import Consumer
from zodbjobs.testing import Reactor

#: Interface -> the classes that implement it.
CLASSES = {
    interfaces.IJob: [Job, Message, Choice, Serial, Parallel],
    interfaces.IQuota: [Quota],
    interfaces.IQuotas: [Quotas],
    interfaces.IQueue: [Queue],
    interfaces.IQueues: [Queues],
    interfaces.IDispatchers: [Dispatchers],
    interfaces.IDispatcherAgents: [DispatcherAgents],
    interfaces.IAgent: [Agent],
    interfaces.ILoop: [Loop],
    interfaces.ILoops: [Loops],
    interfaces.ILoopRunner: [LoopRunner],
    interfaces.IRetryPolicy: [
        RetryCommonFourTimes, RetryCommonForever, NeverRetry, type(RetryPolicy(1)(Job(work))),
    ],
    interfaces.IClaim: [Claim],
    interfaces.IConsumer: [Consumer],
    interfaces.IDispatcher: [Dispatcher],
    interfaces.IFeeds: [Feeds],
    interfaces.IFeed: [Feed],
    interfaces.ISortedFeed: [SortedFeed],
    interfaces.IMessageQueue: [MessageQueue],
    interfaces.IJobFeed: [JobFeed],
    interfaces.IToldFeed: [Feed, SortedFeed, JobFeed],
    interfaces.IAnyFeed: [Feed, SortedFeed, JobFeed, MessageQueue],
    interfaces.IDatabaseOpenedEvent: [interfaces.DatabaseOpened],
}  # fmt: skip

#: These are kept by things of others: a reactor of Twisted, a uuid.UUID.
OF_OTHERS = {interfaces.IReactor, interfaces.IUUID}

PAIRS = [(interface, cls) for interface, classes in CLASSES.items() for cls in classes]


def named(value):
    return value.__name__


def is_ours(value):
    """Whether `value` is defined in the package of contracts."""
    return f'{getattr(value, "__module__", None)}.'.startswith(f'{interfaces.__name__}.')


@pytest.fixture
def house(tmp_path):
    former = clock.use(support.TurnedClock())
    house = support.file_house(tmp_path)
    yield house
    house.close()
    clock.use(former)


# Interfaces --------------------------------------------------------------------------------


def test_every_interface_is_kept_by_somebody():
    ours = {
        value
        for value in vars(interfaces).values()
        if isinstance(value, InterfaceClass) and is_ours(value)
    }
    assert ours == CLASSES.keys() | OF_OTHERS


@pytest.mark.parametrize(('interface', 'cls'), PAIRS, ids=named)
def test_classes_have_the_methods_they_promise(interface, cls):
    assert interface in implementedBy(cls)
    # Attributes may be made in __init__, so they are looked for in objects, below.
    verifyClass(interface, cls, tentative=False)


@pytest.mark.parametrize(('interface', 'cls'), PAIRS, ids=named)
def test_signatures_are_those_of_the_contract(interface, cls):
    """Names, order and defaults of arguments; verifyClass counts them only."""
    for name, description in interface.namesAndDescriptions(all=True):
        if not hasattr(description, 'getSignatureInfo') or interface.get(name) is None:
            continue
        if not is_ours(description.interface) or name.startswith('__'):
            continue
        wanted = description.getSignatureInfo()
        method = inspect.signature(getattr(cls, name))
        given = [each for each in method.parameters.values() if each.name != 'self']
        options = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
        plain = [each.name for each in given if each.kind not in options]
        assert tuple(plain) == wanted['positional'], f'{cls.__name__}.{name}'
        optional = {
            each.name: each.default
            for each in given
            if each.name in plain and each.default is not each.empty
        }
        assert optional == wanted['optional'], f'{cls.__name__}.{name}'


def test_the_keywords_of_put_are_those_of_the_contract():
    wanted = interfaces.IQueue['put']
    source = inspect.getsource(interfaces)
    body = source[source.index('    def put(\n') : source.index('Put a job, in the caller')]
    arguments = inspect.signature(Queue.put).parameters.values()
    given = [each for each in arguments if each.kind is each.KEYWORD_ONLY]
    assert given
    for parameter in given:
        assert f'        {parameter.name}={parameter.default!r},\n' in body
    assert body.count('=') == len(given) + 2
    assert wanted.getSignatureInfo()['positional'] == ('item', 'begin_after', 'begin_by')


def test_objects_keep_what_their_classes_promise(house):
    side = house.first
    queue = side.queue
    queue.quotas.create('images')
    queue.quotas.create('disk')
    queue.put(Message(b'body'))
    side.commit()
    consumer = queue.consumer('worker')
    claim = consumer.claim(0)
    job = queue.put(work)
    choice = job.addCallbacks(success=work)
    feeds = side.root['feeds'] = Feeds()
    side.commit()
    objects = [
        feeds, feeds.feed('a'), feeds.sorted_feed('b'), feeds.queue('c'), feeds.job('d'),
        queue, side.queues, queue.quotas, queue.quotas['images'], queue.dispatchers, side.record,
        side.agent, job, choice, queue.put(serial(work)), queue.put(parallel(work)),
        job.getRetryPolicy(), NeverRetry(job), RetryPolicy(1)(job), RetryCommonForever(job),
        interfaces.DatabaseOpened(house.db), consumer, claim,
        Loop(), Loops(), LoopRunner(Loop(), work),
    ]  # fmt: skip
    seen = set()
    for thing in objects:
        for interface in providedBy(thing):
            if is_ours(interface):
                verifyObject(interface, thing)
                seen.add(interface)
    assert seen == CLASSES.keys() - {interfaces.IDispatcher}
    side.abort()
    consumer.close()


def test_a_dispatcher_keeps_its_promise(house):
    reactor = Reactor()
    dispatcher = Dispatcher(house.db, reactor, uuid=uuid.uuid4())
    try:
        verifyObject(interfaces.IDispatcher, dispatcher)
    finally:
        zodbjobs.runtime.dispatcher.pop(dispatcher.UUID)


@pytest.mark.parametrize('reactor', [Reactor, SelectReactor], ids=['testing', 'twisted'])
def test_reactors_have_what_is_needed(reactor):
    made = reactor()
    verifyObject(interfaces.IReactor, made, tentative=True)
    if isinstance(made, SelectReactor):
        made.removeReader(made.waker)
        made.waker.connectionLost(None)


# Statuses, events, errors ------------------------------------------------------------------


def test_statuses_are_plain_strings_and_named_once():
    for state in status.STATES:
        assert type(state) is str
        assert getattr(interfaces, state.upper()) is getattr(status, state.upper()) is state
    assert status.MOVES.keys() == set(status.STATES)
    assert set().union(*status.MOVES.values()) == set(status.STATES)
    assert interfaces.KEY == 'zodbjobs'


def test_the_tree_of_errors_is_the_one_that_is_drawn():
    drawn = {
        word
        for line in interfaces.__doc__.splitlines()
        if '-- ' in line
        for word in line.split('-- ')[1].split()[:1]
    }
    errors = {
        name
        for name, value in vars(interfaces).items()
        if isinstance(value, type) and issubclass(value, interfaces.ZodbJobsError)
    }
    assert drawn == errors - {'ZodbJobsError'}
    assert errors <= set(interfaces.__all__)


def test_errors_may_be_caught_as_what_they_are_for_python():
    assert issubclass(interfaces.DuplicateJobError, ValueError)
    assert issubclass(interfaces.MultipleDelayError, ValueError)
    assert issubclass(interfaces.CancelledError, interfaces.AbortedError)
    claim = object()
    assert interfaces.DeadlineSoon(claim).claim is claim


def test_all_is_what_there_is():
    defined = {
        name
        for name, value in vars(interfaces).items()
        if not name.startswith('_') and is_ours(value) and name != 'ObjectEvent'
    }
    assert set(interfaces.__all__) == defined | {'FEEDS_KEY', 'KEY', 'LOOPS_KEY'} | {
        state.upper() for state in status.STATES
    }
    assert len(interfaces.__all__) == len(set(interfaces.__all__))


def test_public_names_are_documented_and_there():
    for name in zodbjobs.__all__:
        value = getattr(zodbjobs, name)
        assert isinstance(value, types.ModuleType) or value.__doc__, name
    assert dir(zodbjobs) == sorted(zodbjobs.__all__)
    with pytest.raises(AttributeError, match='nothing'):
        zodbjobs.nothing  # noqa: B018


def test_each_event_says_what_it_is_about():
    about = object()
    for name in interfaces.__all__:
        cls = getattr(interfaces, name)
        if not (isinstance(cls, type) and issubclass(cls, interfaces.ObjectEvent)):
            continue
        needs_queue = 'queue' in inspect.signature(cls).parameters
        event = cls(about, None) if needs_queue else cls(about)
        assert event.object is about
        assert repr(event).startswith(f'<{name} ')
        assert cls.__doc__


def test_a_put_is_told_once(house):
    """For the application and for the dispatchers, which it wakes: a put has no time to lose."""
    heard = []
    zope.event.subscribers.append(heard.append)
    try:
        job = house.first.queue.put(work)
    finally:
        zope.event.subscribers.remove(heard.append)
    ours = [event for event in heard if isinstance(event, interfaces.ObjectEvent)]
    assert [type(event).__name__ for event in ours] == ['JobAdded']
    assert ours[0].rings and ours[0].connection is job._p_jar


def test_no_interface_marks_an_instance(house):
    """What marks an instance is stored with it, and its path could never change."""
    side = house.first
    for thing in (side.queue, side.queue.put(work), side.agent):
        assert '__provides__' not in thing.__dict__
