"""The ZCML files can be loaded, and the policies make a database work, without any host.

The slugs for Zope are loaded by tests/hosts, in a Zope.
"""

import pathlib

import pytest
import transaction
import ZODB
import zope.component
from zope.configuration import xmlconfig
from zope.event import notify

import zodbjobs
from zodbjobs import subscribers, testing
from zodbjobs.interfaces import IUUID, KEY, DatabaseOpened, IJob, IQueue
from zodbjobs.runtime import dispatcher as dispatchers

TOP = pathlib.Path(__file__).parents[3]
PACKAGE = pathlib.Path(zodbjobs.__file__).parent


def answer():
    return 42


@pytest.fixture(autouse=True)
def _clean():
    yield
    for dispatcher in list(dispatchers._dispatchers.values()):
        assert subscribers.stop(dispatcher)
    subscribers.signal_handlers.clear()
    dispatchers.clear()
    testing.tearDown()


@pytest.mark.parametrize(
    'path',
    [TOP / 'zcml' / 'site.zcml', *sorted(set(PACKAGE.glob('*.zcml')) - {PACKAGE / 'meta.zcml'})],
    ids=lambda path: path.name,
)
def test_every_file_loads(path):
    xmlconfig.file(str(path), zodbjobs if path.parent == PACKAGE else None)
    assert zope.component.getUtility(IUUID) is zope.component.getUtility(IUUID)
    assert IJob(answer).callable is answer


@pytest.mark.parametrize(
    ('path', 'queues'),
    [
        (PACKAGE / 'basic_dispatcher_policy.zcml', ['']),
        (TOP / 'zcml' / 'site.zcml', ['', 'mail']),
    ],
    ids=lambda value: getattr(value, 'name', ''),
)
def test_an_opened_database_is_served(path, queues, tmp_path):
    xmlconfig.file(str(path), zodbjobs)
    db = ZODB.DB(str(tmp_path / 'Data.fs'))
    notify(DatabaseOpened(db))
    connection = db.open()
    job = IQueue(connection).put(answer)
    transaction.commit()
    assert testing.wait_for_result(job) == 42
    assert list(connection.root()[KEY]) == queues
    subscribers.stop(dispatchers.get())
    connection.close()
    db.close()


def test_queues_in_a_database_of_their_own(tmp_path):
    xmlconfig.file(str(PACKAGE / 'multidb_dispatcher_policy.zcml'), zodbjobs)
    databases = {}
    main = ZODB.DB(str(tmp_path / 'Data.fs'), databases=databases, database_name='main')
    jobs = ZODB.DB(str(tmp_path / 'jobs.fs'), databases=databases, database_name='async')
    notify(DatabaseOpened(main))
    connection = main.open()
    queue = connection.root()[KEY]['']
    assert queue._p_jar.db() is jobs
    job = queue.put(answer)
    transaction.commit()
    assert testing.wait_for_result(job) == 42
    subscribers.stop(dispatchers.get())
    connection.close()
    main.close()
    jobs.close()


def test_the_package_of_ours_that_is_called_zope_is_no_other():
    """ZCML takes an attribute of the package for it, before it imports anything."""
    import zope

    assert vars(zodbjobs).get('zope') is not zope
