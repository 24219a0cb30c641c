"""Configuration from Python: the same as the ZCML files do, in one call.

`minimal` and `base` register adapters and utilities; `start` also serves a
database.  All may be called more than once.
"""

import os
import types
import uuid as uuid_module

import persistent.interfaces
import transaction.interfaces
import ZODB.interfaces
import zope.component
import zope.component.event  # lets handlers registered there hear of our events
from zope.interface import implementer

from zodbjobs import subscribers
from zodbjobs.facts import PassingUUID
from zodbjobs.interfaces import IUUID, KEY, DatabaseOpened, IJob, IQueue
from zodbjobs.model.job import Job

#: Names the file that keeps the identity of this process over restarts.
UUID_VARIABLE = 'ZODBJOBS_UUID'


def process_uuid():
    """The UUID of this process: from the file that ZODBJOBS_UUID names, else a passing one.

    The file is made if it is missing; its first line is the UUID.
    """
    path = os.environ.get(UUID_VARIABLE)
    if not path:
        return PassingUUID(int=uuid_module.uuid4().int)
    try:
        with open(path) as source:
            return uuid_module.UUID(source.readline().strip())
    except FileNotFoundError:
        found = uuid_module.uuid4()
        with open(path, 'x') as target:
            target.write(
                f'{found}\n\nThis is the identity of a zodbjobs dispatcher.  Delete the file to'
                f' get a new one;\nnever let two processes use it at the same time.\n'
            )
        return found


def transaction_manager_of(obj):
    """The transaction manager of a persistent object or a connection."""
    connection = getattr(obj, '_p_jar', obj)
    if connection is None:
        raise TypeError(f'{obj!r} has no connection')
    return connection.transaction_manager


def connection_of(obj):
    """The connection of a persistent object.  TypeError if it has none."""
    if obj._p_jar is None:
        raise TypeError(f'{obj!r} has no connection')
    return obj._p_jar


@zope.component.adapter(persistent.interfaces.IPersistent)
@implementer(IQueue)
def getDefaultQueue(obj):
    """The queue '' of the database of a persistent object or a connection."""
    return getattr(obj, '_p_jar', obj).root()[KEY]['']


def provide_job_factory(factory):
    """Let functions and methods that are put become jobs by way of `factory`, a class of jobs."""
    for adapted in (
        types.FunctionType,
        types.MethodType,
        types.BuiltinFunctionType,
        type([].__len__),
    ):
        zope.component.provideAdapter(factory, adapts=(adapted,), provides=IJob)


def minimal():
    """Register what a process needs that puts jobs: adapters to jobs, and its UUID."""
    provide = zope.component.provideAdapter
    ITransactionManager = transaction.interfaces.ITransactionManager
    for adapted in (persistent.interfaces.IPersistent, ZODB.interfaces.IConnection):
        provide(transaction_manager_of, adapts=(adapted,), provides=ITransactionManager)
    provide_job_factory(Job)
    if zope.component.queryUtility(IUUID) is None:
        zope.component.provideUtility(process_uuid(), IUUID)


def base():
    """`minimal`, and the adapter from a persistent object to its connection."""
    minimal()
    zope.component.provideAdapter(
        connection_of,
        adapts=(persistent.interfaces.IPersistent,),
        provides=ZODB.interfaces.IConnection,
    )


def start(
    db,
    poll_interval=5,
    db_name=None,
    agent_chooser=None,
    agent_filter=None,
    agent_size=3,
    twisted=False,
    grace=30,
    deployment=None,
):
    """Serve a database from this process, and return the dispatcher.

    `db` is a ZODB.DB or an address such as 'file:Data.fs'.  The queue '' is
    made if it is missing (in the database `db_name` of a multi-database), and
    an agent 'main' with `agent_size` threads.  The dispatcher runs in a thread
    of its own, where SIGTERM and SIGINT drain it if the main thread starts it;
    with `twisted` it runs on the global reactor, which the caller must run.
    `grace` is how many seconds running jobs may take to end at a stop.
    `deployment` is the name of the deployment that this process belongs to.

    Raises what opening the database raises.
    """
    if isinstance(db, (str, os.PathLike)):
        from zodbjobs.runtime.address import open_database

        db = open_database(os.fspath(db))
    base()
    for adapted in (persistent.interfaces.IPersistent, ZODB.interfaces.IConnection):
        zope.component.provideAdapter(getDefaultQueue, adapts=(adapted,), provides=IQueue)
    opened = DatabaseOpened(db)
    subscribers.QueueInstaller(db_name=db_name)(opened)
    agent = subscribers.AgentInstaller(
        'main', chooser=agent_chooser, filter=agent_filter, size=agent_size
    )
    subscribers.at_activation(db, agent)
    uuid = None if os.environ.get(UUID_VARIABLE) is None else process_uuid()
    if twisted:
        installer = subscribers.TwistedDispatcherInstaller(poll_interval, uuid, grace, deployment)
    else:
        installer = subscribers.ThreadedDispatcherInstaller(
            poll_interval, uuid=uuid, grace=grace, deployment=deployment
        )
    return installer(opened)
