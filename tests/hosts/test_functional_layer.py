"""Tests of a Zope application, with plone.testing: jobs run when the test says so."""

import pytest

pytest.importorskip('plone.testing.zope')

import transaction
from AccessControl.SecurityManagement import newSecurityManager, noSecurityManager
from plone.testing.zope import FUNCTIONAL_TESTING
from probe import Content, surroundings

from zodbjobs.configure import getDefaultQueue
from zodbjobs.testing.layers import JobsLayer
from zodbjobs.zope import Job


def all_of(layer, found=()):
    """The layers below, those first that stand lower."""
    for base in layer.__bases__:
        found = all_of(base, found)
    return (*found, layer) if layer not in found else found


@pytest.fixture(scope='module')
def layer():
    layer = JobsLayer([FUNCTIONAL_TESTING], name='Probe:Jobs')
    for each in all_of(layer):
        each.setUp()
    yield layer
    for each in reversed(all_of(layer)):
        each.tearDown()


@pytest.fixture
def jobs(layer):
    for each in all_of(layer):
        each.testSetUp()
    yield layer['jobs']
    for each in reversed(all_of(layer)):
        each.testTearDown()


@pytest.mark.parametrize('time', [1, 2])
def test_jobs_of_zope_in_a_functional_test(layer, jobs, time):
    app = layer['app']
    assert 'content' not in app.objectIds()  # each test finds the same
    app._setObject('content', Content('content'))
    app.acl_users.userFolderAddUser('eva', 'secret', ['Manager'], [])
    transaction.commit()
    newSecurityManager(None, app.acl_users.getUserById('eva').__of__(app.acl_users))
    job = getDefaultQueue(app).put(Job(surroundings, app.content))
    described = getDefaultQueue(app).put(Job(app.content.describe, more='and more'))
    noSecurityManager()
    transaction.commit()
    assert jobs.run() == 0
    assert job.outcome == described.outcome == 'success', (job.result, described.result)
    assert job.result['user'] == 'eva'
    assert described.result == ['/content', '', 'http://nohost/content', 'and more']
