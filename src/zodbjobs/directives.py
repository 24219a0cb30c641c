"""The ZCML directives: queues, quotas, agents, a dispatcher and retry policies by configuration.

A directive only looks at what it is given and registers a subscriber, so that a
mistake is reported with its file and line.  The doing comes when a database is
opened, in the thread that opened it, and for agents when a dispatcher is
activated, in the dispatcher's transaction.

What is written in ZCML is set at each start.  What is not written there any
more is left in the database as it is.
"""

import uuid as uuid_module

import zope.component
from zope.configuration.exceptions import ConfigurationError
from zope.configuration.fields import GlobalObject, Tokens
from zope.interface import Interface
from zope.schema import Bool, Float, Int, TextLine

from zodbjobs.configure import provide_job_factory
from zodbjobs.interfaces import KEY, DispatcherActivated, IJob, IRetryPolicy
from zodbjobs.model.agent import Agent
from zodbjobs.model.retry import RetryPolicy
from zodbjobs.subscribers import (
    QueueInstaller,
    ThreadedDispatcherInstaller,
    TwistedDispatcherInstaller,
    in_transaction,
    opened_events,
)

#: In which order what was configured is done, wherever it stands in the files.
QUEUES, QUOTAS, AGENTS, DISPATCHER, JOB_FACTORY = 10, 20, 30, 40, 50

#: The agent that serves a queue for which no agent is configured.
DEFAULT_AGENT = 'main'


class IQueueDirective(Interface):
    """Make a queue when the database is opened, if there is none of that name."""

    name = TextLine(title='Name', required=False, default='', missing_value='')
    database = TextLine(
        title='Database',
        description='in which the queues live, of those that are opened together',
        required=False,
    )


class IQuotaDirective(Interface):
    """Let at most so many jobs that name this quota run at a time."""

    name = TextLine(title='Name')
    size = Int(title='Size', min=1, default=1, required=False)
    queue = TextLine(title='Queue', required=False, default='', missing_value='')


class IAgentDirective(Interface):
    """Give each dispatcher of this process an agent in a queue."""

    name = TextLine(title='Name', required=False, default=DEFAULT_AGENT)
    queue = TextLine(title='Queue', required=False, default='', missing_value='')
    size = Int(title='Threads', min=0, default=3, required=False)
    channels = Tokens(title='Channels', value_type=TextLine(), required=False)
    filter = GlobalObject(title='Function that says which jobs it takes', required=False)
    chooser = GlobalObject(title='Function that takes jobs for it', required=False)


class IDispatcherDirective(Interface):
    """Serve the queues of the database that is opened from this process."""

    threads = Int(
        title='Threads',
        description='of the agent "main" in queues for which no agent is configured',
        min=0,
        default=3,
        required=False,
    )
    poll_interval = Float(title='Seconds between looks', default=5.0, required=False)
    grace = Float(title='Seconds to end at a stop', min=0.0, default=30.0, required=False)
    uuid = TextLine(title='Who it is', required=False)
    deployment = TextLine(title='Name of the deployment', required=False)
    twisted = Bool(
        title="On the process's own Twisted reactor, not in a thread",
        required=False,
        default=False,
    )


class IRetryPolicyDirective(Interface):
    """What jobs do that were given no retry policy of their own, or ask for this one by name."""

    name = TextLine(
        title='Name',
        description="'' is the default of jobs, 'callback' that of callbacks",
        required=False,
        default='',
        missing_value='',
    )
    factory = GlobalObject(title='Callable that takes the job', required=False)
    retries = Int(title='Attempts after the first', min=0, required=False)
    backoff = Tokens(title='Seconds between them', value_type=Float(min=0.0), required=False)
    on_exhausted = TextLine(title="'fail' or 'hold'", required=False)


class IJobFactoryDirective(Interface):
    """Let functions and methods that are put become jobs of this class."""

    factory = GlobalObject(title='Callable that takes the call')


def queue(_context, name='', database=None):
    """See IQueueDirective."""
    _at_opening(
        _context, ('zodbjobs queue', name), QUEUES, QueueInstaller(name, db_name=database or None)
    )


def quota(_context, name, size=1, queue=''):
    """See IQuotaDirective."""
    _at_opening(
        _context,
        ('zodbjobs quota', queue, name),
        QUOTAS,
        _QuotaInstaller(_context.info, queue, name, size),
    )


def agent(_context, name=DEFAULT_AGENT, queue='', size=3, channels=None, filter=None, chooser=None):
    """See IAgentDirective."""
    if filter is not None and chooser is not None:
        raise ConfigurationError('an agent has a chooser or a filter, not both')
    if channels is not None:
        # In an attribute an empty channel cannot be told from none.
        channels = tuple('' if channel == '-' else channel for channel in channels)
    installer = _AgentInstaller(_context.info, name, queue, size, channels, filter, chooser)
    _context.action(('zodbjobs agent', queue, name), _register_agent, (installer,), order=AGENTS)


def dispatcher(
    _context, threads=3, poll_interval=5.0, grace=30.0, uuid=None, deployment=None, twisted=False
):
    """See IDispatcherDirective."""
    if poll_interval <= 0:
        raise ConfigurationError(f'poll_interval is seconds, more than 0, not {poll_interval}')
    if uuid is not None:
        try:
            uuid = uuid_module.UUID(uuid)
        except ValueError:
            raise ConfigurationError(
                f'uuid is not a UUID: {uuid!r}; leave it out, and the dispatcher finds one itself'
            ) from None
    if twisted:
        serve = TwistedDispatcherInstaller(poll_interval, uuid, grace, deployment)
    else:
        serve = ThreadedDispatcherInstaller(
            poll_interval, uuid=uuid, grace=grace, deployment=deployment
        )
    _context.action('zodbjobs dispatcher', _register_dispatcher, (serve, threads), order=DISPATCHER)


def retryPolicy(_context, name='', factory=None, retries=None, backoff=None, on_exhausted=None):
    """See IRetryPolicyDirective."""
    if (factory is None) == (retries is None):
        raise ConfigurationError('a retry policy has either a factory or a number of retries')
    if factory is not None and (backoff is not None or on_exhausted is not None):
        raise ConfigurationError('backoff and on_exhausted go with retries, not with a factory')
    if factory is None:
        try:
            factory = RetryPolicy(retries, backoff or 0, on_exhausted or 'fail')
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
    _context.action(
        ('zodbjobs retry policy', name),
        zope.component.provideAdapter,
        (factory, (IJob,), IRetryPolicy, name),
    )


def jobFactory(_context, factory):
    """See IJobFactoryDirective."""
    # Last, to replace what configure.zcml registers wherever that is included.
    _context.action('zodbjobs job factory', provide_job_factory, (factory,), order=JOB_FACTORY)


def _at_opening(_context, discriminator, order, deed):
    _context.action(discriminator, _register_opening, (deed,), order=order)


def _register_opening(deed):
    for event in opened_events():
        zope.component.provideHandler(deed, (event,))


def _register_agent(installer):
    _register_opening(installer.check)
    zope.component.provideHandler(installer, (DispatcherActivated,))


def _register_dispatcher(serve, threads):
    # Agents are configured by now: see the order.
    configured = {
        handler.factory.queue_name
        for handler in zope.component.getGlobalSiteManager().registeredHandlers()
        if isinstance(handler.factory, _AgentInstaller)
    }
    zope.component.provideHandler(
        _DefaultAgentInstaller(threads, configured),
        (DispatcherActivated,),
    )
    _register_opening(serve)


class _QuotaInstaller:
    """See that a queue has a quota of that size."""

    def __init__(self, info, queue_name, name, size):
        self.info = info
        self.queue_name = queue_name
        self.name = name
        self.size = size

    def __call__(self, event):
        in_transaction(event.database, self._install)

    def _install(self, connection):
        quotas = _queue_of(connection, self.queue_name, self.info).quotas
        if self.name not in quotas:
            quotas.create(self.name, self.size)
        elif quotas[self.name].size != self.size:
            quotas[self.name].size = self.size


class _AgentInstaller:
    """See that a dispatcher that is activated in that queue has an agent with these settings."""

    def __init__(self, info, name, queue_name, size, channels, filter, chooser):
        self.info = info
        self.name = name
        self.queue_name = queue_name
        self.settings = {'size': size, 'channels': channels, 'filter': filter, 'chooser': chooser}

    def check(self, event):
        """Say at the start that the queue is missing, and not by a job that never runs."""
        in_transaction(
            event.database, lambda connection: _queue_of(connection, self.queue_name, self.info)
        )

    def __call__(self, event):
        record = event.object
        if record.queue.name != self.queue_name:
            return
        if self.name not in record:
            record[self.name] = Agent(**self.settings)
        configure_agent(record[self.name], self.settings)


class _DefaultAgentInstaller:
    """Give a dispatcher an agent in each queue for which none is configured."""

    def __init__(self, size, configured):
        self.size = size
        self.configured = configured

    def __call__(self, event):
        record = event.object
        if record.queue.name in self.configured:
            return
        if DEFAULT_AGENT not in record:
            record[DEFAULT_AGENT] = Agent(size=self.size)
        configure_agent(record[DEFAULT_AGENT], {'size': self.size})


def configure_agent(agent, settings):
    """Set what differs; what is as it should be is not written."""
    if settings.get('filter') is None and settings.get('chooser') is not None:
        settings = {'filter': None, **settings}  # one has to go before the other may come
    for name in ('chooser', 'filter') if settings.get('filter') else ('filter', 'chooser'):
        if name in settings and getattr(agent, name) != settings[name]:
            setattr(agent, name, settings[name])
    for name in ('size', 'channels'):
        if name in settings and getattr(agent, name) != settings[name]:
            setattr(agent, name, settings[name])


def _queue_of(connection, name, info):
    queues = connection.root().get(KEY) or {}
    if name not in queues:
        raise ConfigurationError(
            f'{str(info).splitlines()[0]}: the database has no queue {name!r}; it has'
            f' {sorted(queues) or "none"}: add <jobs:queue name="{name}" />'
        )
    return queues[name]
