"""Jobs that run with the principals of their interaction, by zope.security alone."""

import pytest

pytest.importorskip('zope.authentication')

import asyncio

import transaction
import zope.component
from persistent import Persistent
from zope.authentication.interfaces import IAuthentication, PrincipalLookupError
from zope.component.hooks import getSite, setHooks, setSite
from zope.component.persistentregistry import PersistentComponents
from zope.interface import implementer
from zope.security.management import endInteraction, newInteraction, queryInteraction

from zodbjobs import Job as PlainJob
from zodbjobs import local
from zodbjobs.configure import provide_job_factory
from zodbjobs.zope.z3 import Job, Participation

pytest_plugins = ['zodbjobs.testing.fixtures']

seen_at_commit = []


class Principal:
    def __init__(self, id):
        self.id = id


@implementer(IAuthentication)
class Authentication:
    def getPrincipal(self, id):
        if id == 'gone':
            raise PrincipalLookupError(id)
        return Principal(id)


class Site(Persistent):
    def __init__(self):
        self.components = PersistentComponents('site', (zope.component.getGlobalSiteManager(),))

    def getSiteManager(self):
        return self.components


def principals():
    interaction = queryInteraction()
    return interaction and [part.principal.id for part in interaction.participations]


def look():
    transaction.get().addBeforeCommitHook(lambda: seen_at_commit.append(principals()))
    return principals(), getattr(getSite(), '_p_oid', None)


def fail():
    raise ValueError(principals())


@pytest.fixture
def site(jobs):
    setHooks()
    zope.component.provideUtility(Authentication(), IAuthentication)
    site = jobs.root['site'] = Site()
    transaction.commit()
    seen_at_commit.clear()
    yield site
    endInteraction()
    setSite(None)


def put_as(jobs, call, *ids):
    newInteraction(*(Participation(Principal(id)) for id in ids))
    try:
        job = jobs.queue.put(call if isinstance(call, PlainJob) else Job(call))
    finally:
        endInteraction()
    transaction.commit()
    return job


def test_the_site_and_the_principals_are_there_until_after_the_commit(jobs, site):
    setSite(site)
    job = put_as(jobs, look, 'ann', 'bob')
    setSite(None)
    assert jobs.run() == 0
    assert job.result == (['ann', 'bob'], site._p_oid)
    assert seen_at_commit == [['ann', 'bob']]


def test_nothing_is_left_in_the_thread(jobs, site):
    setSite(site)
    first, second = put_as(jobs, fail, 'ann'), put_as(jobs, look, 'gone')
    setSite(None)
    last = jobs.queue.put(PlainJob(look))
    transaction.commit()
    assert jobs.run() == 0
    assert first.result.check(ValueError) and 'ann' in first.result.getErrorMessage()
    assert second.result.check(PrincipalLookupError)
    assert last.result == (None, None)


def test_site_and_participants_can_be_changed(jobs, site):
    job = put_as(jobs, look)
    assert (job.site, job.participants) == (None, ())
    job.site, job.participants = site, ['eve']
    transaction.commit()
    assert jobs.run() == 0
    assert job.result == (['eve'], site._p_oid)


def test_it_may_be_what_functions_become_that_are_put(jobs, site):
    provide_job_factory(Job)
    newInteraction(Participation(Principal('ann')))
    job = jobs.queue.put(look)
    endInteraction()
    transaction.commit()
    assert type(job) is Job
    assert jobs.run() == 0
    assert job.result[0] == ['ann']


async def look_later():
    await asyncio.sleep(0)
    return principals(), getattr(getSite(), '_p_oid', None)


def test_a_coroutine_has_them_in_each_step(jobs, site):
    setSite(site)
    job, other = put_as(jobs, look_later, 'ann', 'bob'), put_as(jobs, look_later, 'eve')
    setSite(None)
    assert jobs.run() == 0
    assert job.result == (['ann', 'bob'], site._p_oid)
    assert other.result == (['eve'], site._p_oid)


def put_another():
    return local.getQueue().put(Job(look))


def test_what_a_job_puts_runs_as_the_same(jobs, site):
    job = put_as(jobs, put_another, 'ann')
    assert jobs.run() == 0
    assert job.result[0] == ['ann']
