"""A real Zope that puts jobs and runs them: over HTTP, as its users, in its sites."""

import pytest

pytest.importorskip('Zope2')

from support import PATIENCE_SECONDS, Instance, running, wait_until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]


@pytest.fixture(scope='module')
def zope(tmp_path_factory):
    instance = Instance(tmp_path_factory.mktemp('zope'), 'zodbjobs-configure.zcml')
    with running(instance):
        instance.probe('make', id='site1')
        instance.probe('make', '/site1', id='folder')
        yield instance


BOB = 'bob:secret'


def test_a_view_puts_a_job_and_another_sees_its_result(zope):
    assert zope.ask('/site1/@@order', BOB, number='7').body == 'Thank you!'
    assert wait_until(lambda: zope.ask('/site1/invoice-7', BOB).status != 404)


def test_the_user_the_site_and_the_request_are_restored(zope):
    headers = {'Host': 'shop.example.org', 'Accept-Language': 'fr'}
    path = '/VirtualHostBase/https/shop.example.org:443/site1/VirtualHostRoot/_vh_shop'
    oid = zope.probe('surroundings', path, BOB, headers=headers)
    found = zope.result(oid)
    assert found['thread'].startswith('zodbjobs')
    assert (found['user'], found['folder']) == ('bob', '/site1/acl_users')
    assert 'Member' in found['roles']
    assert found['site'] == '/site1'
    assert found['url'] == 'https://shop.example.org/shop'
    assert found['request'] and found['interaction'] and found['layer']
    assert (found['language'], found['accepted']) == ('de', 'de')


def test_nobody_stays_nobody(zope):
    found = zope.result(zope.probe('surroundings', user=None))
    assert (found['user'], found['folder'], found['site']) == (None, None, None)


def test_nothing_is_left_in_the_thread(zope):
    oids = [zope.probe('surroundings', '/site1', BOB) for _ in range(6)]
    oids += [zope.probe('fail', '/site1', BOB) for _ in range(3)]
    for oid in oids:
        zope.outcome(oid)
    for _ in range(6):
        assert zope.result(zope.probe('bare')) == [None, None, None, None]


# Coroutines -------------------------------------------------------------------------------------


def test_each_step_of_a_coroutine_is_in_the_scene_of_its_job(zope):
    oids = {}
    for user in (BOB, zope.ADMIN, BOB, zope.ADMIN, None):  # their steps come in turns
        oids[zope.probe('later', '/site1', user, name='x')] = user and user.partition(':')[0]
    for oid, user in oids.items():
        steps = zope.result(oid)
        assert [each[:2] for each in steps] == 4 * [[user, '/site1']]
        assert {each[2] for each in steps} == {'zodbjobs asyncio'}
        assert [each[3] for each in steps] == 4 * [True]
    assert zope.result(zope.probe('bare_later')) == [None, None, None, None]


def test_a_coroutine_that_raises_leaves_nothing(zope):
    told = zope.outcome(zope.probe('fail_later', '/site1', BOB))
    assert told['result'] == ['ValueError', 'bob']
    assert zope.result(zope.probe('bare_later')) == [None, None, None, None]


def test_a_coroutine_does_not_write_what_nothing_would_commit(zope):
    kind, text = zope.outcome(zope.probe('write_later', '/site1', BOB))['result']
    assert kind == 'RuntimeError'
    assert 'write_later' in text and 'write it in a callback' in text


# What a job may be given ------------------------------------------------------------------------


def test_a_method_of_content(zope):
    told = zope.outcome(zope.probe('method', '/site1/folder', BOB))
    url = f'http://127.0.0.1:{zope.port}/site1/folder'
    assert told['result'] == ['/site1/folder', 'site1', url, '']
    assert told['call'] == 'probe.Content.describe'


def test_content_inside_of_lists_and_tables(zope):
    url = f'http://127.0.0.1:{zope.port}/site1/folder'
    assert zope.result(zope.probe('nested', '/site1/folder')) == [url, url]


def test_what_can_be_called_in_the_database(zope):
    zope.probe('make', '/site1', id='scripts')
    assert zope.result(zope.probe('script', '/site1/scripts')) == ['script', 'scripts', 'x']
    told = zope.outcome(zope.probe('script_alone', '/site1/scripts'))
    assert told['call'] == 'probe.Script' and told['result'][0] == 'TypeError'  # it needs `more`


def test_a_callback_is_the_same_user_in_the_same_place(zope):
    oid, back = zope.probe('chain', '/site1/folder', BOB)
    found = zope.result(oid)
    described = zope.result(back)
    assert found['user'] == 'bob' and described[0] == '/site1/folder'
    assert described[3]['user'] == 'bob'  # what the job returned is what the callback gets


def test_a_job_that_is_called_here_and_now(zope):
    url = f'http://127.0.0.1:{zope.port}/site1/folder'
    assert zope.probe('here_and_now', '/site1/folder', BOB)[2:] == [url, 'now']


def test_content_that_was_renamed_is_found(zope):
    zope.probe('make', '/site1', id='old')
    oid = zope.probe('held', '/site1/old')
    zope.probe('rename', '/site1', id='old', new='new')
    zope.probe('hurry', oid=oid)
    assert zope.result(oid)['url'].endswith('/site1/new')


def test_content_that_was_deleted_is_told_clearly(zope):
    zope.probe('make', '/site1', id='doomed')
    oid = zope.probe('held', '/site1/doomed')
    zope.probe('drop', '/site1', id='doomed')
    zope.probe('hurry', oid=oid)
    told = zope.outcome(oid)
    assert told['outcome'] == 'failure'
    assert told['result'][0] == 'ContentGone'
    assert "('doomed') is not in /site1 any more" in told['result'][1]


@pytest.fixture
def held(zope):
    """held(path): a job that waits, put by bob for the content there."""
    return lambda path: zope.probe('held', path, BOB)


def hurried(zope, oid):
    """The path of the content that a job was run with; it waited until now."""
    zope.probe('hurry', oid=oid)
    return zope.result(oid)['url'].partition(str(zope.port))[2]


def error_of(zope, oid):
    zope.probe('hurry', oid=oid)
    told = zope.outcome(oid)
    assert told['outcome'] == 'failure'
    kind, text = told['result']
    assert kind == 'ContentGone'
    return text


def make(zope, *paths):
    for path in paths:
        folder, _, id = path.rpartition('/')
        zope.probe('make', folder, id=id)


def test_content_that_was_moved_to_another_folder_is_found(zope, held):
    make(zope, '/site1/a', '/site1/a/page', '/site1/b', '/site1/b/deep')
    oid = held('/site1/a/page')
    zope.probe('move', '/site1/a', id='page', to='/site1/b/deep')
    assert hurried(zope, oid) == '/site1/b/deep/page'


def test_content_whose_folder_was_moved_and_renamed_is_found(zope, held):
    make(zope, '/site1/c', '/site1/c/inner', '/site1/c/inner/page', '/site1/d')
    oid = held('/site1/c/inner/page')
    zope.probe('move', '/site1/c', id='inner', to='/site1/d')
    zope.probe('rename', '/site1/d', id='inner', new='outer')
    assert hurried(zope, oid) == '/site1/d/outer/page'


def test_no_job_is_run_with_other_content_that_took_the_old_place(zope, held):
    make(zope, '/site1/e', '/site1/e/moved', '/site1/e/deleted', '/site1/f')
    moved, deleted = held('/site1/e/moved'), held('/site1/e/deleted')
    zope.probe('move', '/site1/e', id='moved', to='/site1/f')
    zope.probe('drop', '/site1/e', id='deleted')
    make(zope, '/site1/e/moved', '/site1/e/deleted', '/site1/f/deleted')
    assert hurried(zope, moved) == '/site1/f/moved'
    assert "('deleted') is not in /site1/e any more" in error_of(zope, deleted)


def test_content_in_a_folder_that_was_deleted_is_gone(zope, held):
    make(zope, '/site1/g', '/site1/g/page')
    oid = held('/site1/g/page')
    zope.probe('drop', '/site1', id='g')
    assert "('g') is not in /site1 any more" in error_of(zope, oid)


def test_content_that_left_the_site_is_gone_for_its_jobs(zope, held):
    make(zope, '/site1/leaves', '/elsewhere')
    oid = held('/site1/leaves')
    zope.probe('move', '/site1', id='leaves', to='/elsewhere')
    assert "('leaves') is not in /site1 any more" in error_of(zope, oid)


def test_blobs(zope):
    oid = zope.probe('blob', '/site1/folder', BOB, text='a lot of data')
    assert 'Blob' in zope.result(oid)
    assert zope.probe('read_blob', '/site1/folder') == 'a lot of data'


# Transactions -----------------------------------------------------------------------------------


def test_a_request_that_is_retried_after_a_conflict_puts_one_job(zope):
    zope.probe('make', id='conflicts')
    oid, tries = zope.probe('conflict', '/conflicts')
    assert tries == 1
    assert zope.result(oid) == 1
    assert zope.result(zope.probe('count', '/conflicts')) == 2


def test_a_request_that_fails_puts_no_job(zope):
    zope.probe('make', id='failures')
    assert zope.ask('/failures/@@probe', what='put_and_fail').status == 500
    assert zope.result(zope.probe('count', '/failures')) == 1


# Who a job is -----------------------------------------------------------------------------------


def test_a_user_who_is_gone_is_told_clearly_and_nobody_else_does_the_work(zope):
    zope.probe('make', id='site2')
    oid = zope.probe('held', '/site2', BOB)
    zope.probe('drop_user', '/site2', who='bob')
    zope.probe('hurry', oid=oid)
    told = zope.outcome(oid)
    assert told['outcome'] == 'failure'
    assert told['result'] == ['UserGone', "there is no user 'bob' in /site2/acl_users any more"]


def test_to_run_as_another_user_takes_a_permission(zope):
    oid = zope.probe('run_as', '/site1', zope.ADMIN, who='bob')
    found = zope.result(oid)
    assert (found['user'], found['folder'], found['site']) == ('bob', '/site1/acl_users', '/site1')
    reply = zope.ask('/site1/@@probe', BOB, what='run_as', who='admin', folder='/acl_users')
    assert reply.status == 401
    reply = zope.ask('/site1/@@probe', BOB, what='run_as', who='bob')
    assert reply.status == 401
    reply = zope.ask('/site1/@@probe', zope.ADMIN, what='run_as', who='nobody')
    assert reply.status == 500 and "there is no user 'nobody' in /site1/acl_users" in zope.log()


def test_a_name_in_a_request_is_nobody(zope):
    """REMOTE_USER and the like are for the user folders to judge, not for jobs."""
    oid = zope.probe('surroundings', '/site1', None, headers={'Remote-User': 'bob'})
    assert zope.result(oid)['user'] is None


def test_what_the_system_puts_runs_as_the_system(zope):
    oid = zope.probe('run_as_system')
    assert zope.probe('scene', oid=oid)['user'] == 'system'
    assert zope.result(oid)['user'] is None


# Views ------------------------------------------------------------------------------------------


def test_a_view_as_a_job(zope):
    assert zope.ask('/site1/@@report-in-the-night', BOB).status == 200
    oid = zope.probe('view', '/site1', BOB, name='report', title='Mine')
    assert zope.result(oid).startswith('Mine: ')


def test_a_view_that_the_user_may_not_see_is_refused_when_it_is_put(zope):
    assert zope.ask('/site1/@@probe', BOB, what='view', name='secret').status == 401
    assert zope.ask('/site1/@@probe', BOB, what='view', name='nothing').status == 404


def test_accepted(zope):
    reply = zope.ask('/site1/@@order-by-service', BOB, number='8')
    assert reply.status == 202
    address = reply.headers['Location'].partition(str(zope.port))[2]
    told = wait_until(
        lambda: (found := zope.ask(address, BOB).json)['state'] == 'completed' and found
    )
    assert told['outcome'] == 'success'
    assert told['result'] == f'http://127.0.0.1:{zope.port}/site1/invoice-8'
    assert zope.ask(address).status == 401
    assert zope.ask(address, zope.ADMIN).json['state'] == 'completed'
    assert zope.ask(address[:-3] + 'abc', BOB).status == 404
    assert zope.ask(address.rpartition('/')[0], BOB).status == 404
    assert zope.ask(address, BOB, method='POST').status == 405


def test_accepted_tells_of_progress_and_cancels(zope):
    reply = zope.ask('/site1/@@probe', BOB, what='linger', seconds='2')
    assert reply.status == 202
    address = reply.json['@id'].partition(str(zope.port))[2]
    assert wait_until(lambda: zope.ask(address, BOB).json['progress'])
    assert zope.ask(address, 'bob:wrong', method='DELETE').status == 401
    assert zope.ask(address, BOB, method='DELETE').status == 200
    told = wait_until(
        lambda: (found := zope.ask(address, BOB).json)['state'] == 'completed' and found
    )
    assert told['outcome'] == 'cancelled' and 'was cancelled' in told['error']
    assert zope.probe('lingered', '/site1') is False


def test_nothing_is_wrong_with_a_method_of_content_that_waits(zope):
    oid = zope.probe('later_method', '/site1/folder', BOB)
    assert [each for each in zope.probe('lint') if each['oid'] == oid] == []
    assert [what for what in zope.probe('doctor') if str(oid) in what] == []
    assert zope.probe('why', oid=oid).startswith('it is not due until')
    zope.probe('hurry', oid=oid)
    assert zope.result(oid)[0] == '/site1/folder'


# Workers beside it ------------------------------------------------------------------------------


def test_a_worker_on_the_file_that_the_instance_has_open_is_told_so(zope):
    worker = zope.start_worker()
    assert worker.wait(PATIENCE_SECONDS) == 2
    said = zope.log('worker.log')
    assert 'another process has its file open' in said and 'name a ZEO server' in said
    assert 'Traceback' not in said


# The end ----------------------------------------------------------------------------------------


def test_a_stop_lets_running_jobs_end(zope):
    zope.probe('make', id='lingering')
    reply = zope.ask('/lingering/@@probe', what='linger', seconds='1')
    address = reply.json['@id'].partition(str(zope.port))[2]
    assert wait_until(lambda: zope.ask(address).json['progress'])
    code = zope.stop()
    assert 'has stopped' in zope.log()
    assert code == 0
    zope.start()
    assert zope.ask(address).json['outcome'] == 'success'
    assert zope.probe('lingered', '/lingering') is True
