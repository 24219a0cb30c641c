"""A real Plone site, with content: jobs as its users, over HTTP."""

import pytest

pytest.importorskip('Products.CMFPlone')

from support import EXAMPLES, HERE, INCLUDES, Instance, running, wait_until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

EVA, MAX = 'eva:secret-12345', 'max:secret-12345'
JSON = {'Accept': 'application/json'}


@pytest.fixture(scope='module')
def plone(tmp_path_factory):
    home = tmp_path_factory.mktemp('plone')
    includes = (*INCLUDES, HERE / 'plone_probe.zcml', EXAMPLES / 'plone' / 'press.zcml')
    instance = Instance(home, HERE / 'policy.zcml', includes=includes)
    with running(instance):
        reply = instance.ask('/@@make-plone', instance.ADMIN)
        assert reply.status == 200, instance.log()
        yield instance


def told(plone, address, user):
    """What is told at the address of a job in the end."""
    path = address.partition(str(plone.port))[2]
    return wait_until(
        lambda: (found := plone.ask(path, user).json)['state'] == 'completed' and found
    )


def test_autoinclude_makes_jobs_of_zope(plone):
    assert plone.probe('plain_put', '/Plone/news') == 'ZopeJob'


def test_a_job_runs_as_a_user_of_the_site(plone):
    found = plone.result(plone.probe('surroundings', '/Plone/news', EVA))
    assert (found['user'], found['folder']) == ('eva', '/Plone/acl_users')
    assert found['site'] == '/Plone'
    assert found['url'].endswith('/Plone/news') and found['request'] and found['layer']


def test_what_a_job_changes_is_in_the_catalog(plone):
    path = plone.result(plone.probe('retitle', '/Plone/news/page-0', EVA, title='Snowfall'))
    assert path == '/Plone/news/page-0'
    assert plone.probe('titles', '/Plone', text='Snowfall') == ['Snowfall']


def test_methods_of_content(plone):
    assert plone.probe('unindex', '/Plone/news', EVA) == 3
    assert plone.probe('titles', '/Plone', text='Unseen') == []
    reply = plone.ask('/Plone/news/@reindex-all', EVA, method='POST', headers=JSON)
    assert reply.json == {'pages': 3}
    assert wait_until(lambda: plone.probe('titles', '/Plone', text='Unseen') == 3 * ['Unseen'])


def test_pages_are_found_again_by_their_uuids_and_others_in_their_places_are_left_alone(plone):
    oids = {}
    for id in ('moved', 'renamed', 'deleted'):
        assert plone.probe('page', '/Plone/news', EVA, id=id) == id
        oids[id] = plone.probe('waiting_retitle', f'/Plone/news/{id}', EVA, title=f'Was {id}')
    plone.probe('move', '/Plone/news', EVA, id='moved', to='/Plone/drafts')
    plone.probe('rename', '/Plone/news', EVA, id='renamed', new='changed')
    plone.probe('drop', '/Plone/news', EVA, id='deleted')
    for id in oids:
        assert plone.probe('page', '/Plone/news', EVA, id=id) == id  # another of that name
        plone.probe('hurry', '/Plone', EVA, oid=oids[id])
    assert plone.result(oids['moved']) == '/Plone/drafts/moved'
    assert plone.result(oids['renamed']) == '/Plone/news/changed'
    assert plone.outcome(oids['deleted'])['result'][0] == 'ContentGone'
    assert sorted(plone.probe('titles', '/Plone', text='Was')) == ['Was moved', 'Was renamed']
    for id in (*oids, 'changed'):
        plone.probe('drop', '/Plone/news', EVA, id=id)
    plone.probe('drop', '/Plone/drafts', EVA, id='moved')


def test_accepted_then_done(plone):
    reply = plone.ask('/Plone/news/@publish-all', EVA, method='POST', headers=JSON)
    assert reply.status == 202
    assert reply.headers['Location'] == reply.json['@id']
    found = told(plone, reply.json['@id'], EVA)
    assert (found['outcome'], found['result']) == ('success', 3)
    assert found['progress']['total'] == 3
    assert plone.probe('states', '/Plone/news', EVA) == 3 * ['published']
    path = reply.json['@id'].partition(str(plone.port))[2]
    assert plone.ask(path, MAX).status in (302, 401)  # Plone shows its login form


def test_a_user_without_the_permission_fails_in_the_job(plone):
    reply = plone.ask('/Plone/drafts/@publish-all', MAX, method='POST', headers=JSON)
    found = told(plone, reply.json['@id'], MAX)
    assert found['outcome'] == 'failure' and 'No workflow provides' in found['error']
    assert plone.probe('states', '/Plone/drafts', EVA) == ['private']


def test_a_job_can_be_cancelled_although_plone_guards_against_forged_requests(plone):
    oid = plone.probe('linger', '/Plone/news', EVA, seconds='2')
    path = oid['@id'].partition(str(plone.port))[2]
    assert wait_until(lambda: plone.ask(path, EVA).json['progress'])
    assert plone.ask(path, EVA, method='DELETE').status == 200
    assert told(plone, oid['@id'], EVA)['outcome'] == 'cancelled'


def test_the_language_of_the_request(plone):
    assert plone.result(plone.probe('words', '/Plone', language='de')) == ['Montag']
    assert plone.result(plone.probe('words', '/Plone', language='fr')) == ['Lundi']


def test_a_view_of_plone_as_a_job(plone):
    oid = plone.probe('view', '/Plone/news', EVA, name='plone_context_state')
    assert plone.outcome(oid)['status'] == 'completed'
