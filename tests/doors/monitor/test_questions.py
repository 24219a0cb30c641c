"""Questions and deeds by name, as the command line and the door ask them."""

import json
import operator

import pytest
import transaction

from zodbjobs import Agent
from zodbjobs.model.history import DAY_SECONDS
from zodbjobs.monitor.questions import DEEDS, OF_ROOT, QUESTIONS, UnknownQuestion, ask

ARGUMENTS = {'job': {'name': 'x'}, 'why': {'name': 'x'}, 'traceback': {'name': 'x'}}


@pytest.mark.parametrize('name', sorted(set(QUESTIONS) - set(OF_ROOT)))
def test_every_answer_is_plain(layer, put, run, name):
    """What is answered can be sent as JSON, and asking has changed nothing."""
    run(put(), put(operator.truediv, (1, 0), retries=0))
    put(delay=5, id='x')
    before = layer.db.lastTransaction()
    answer = ask(layer.db, name, ARGUMENTS.get(name))
    assert json.loads(json.dumps(answer)) == answer
    assert layer.db.lastTransaction() == before


def test_an_unknown_question_is_told_of_those_there_are(layer):
    with pytest.raises(UnknownQuestion, match='unknown question .colour.; there are status, '):
        ask(layer.db, 'colour')
    assert not set(QUESTIONS) & set(DEEDS)


def test_a_database_without_queues(layer):
    from zodbjobs.interfaces import KEY

    del layer.root[KEY]
    transaction.commit()
    with pytest.raises(LookupError, match='there are no queues in this database'):
        ask(layer.db, 'status')


def act(layer, deed, *names, **more):
    found = ask(layer.db, 'act_on_jobs', {'deed': deed, 'names': names, **more})
    transaction.begin()
    return found


def test_deeds_on_named_jobs(layer, put):
    job = put(delay=50, id='x')
    assert act(layer, 'hold', 'x', reason='looks odd')['count'] == 1
    assert (job.status, job.hold_reason) == ('held', 'looks odd')
    assert act(layer, 'resume', job.oid)['count'] == 1 and job.status == 'pending'
    assert act(layer, 'cancel', job.oid)['count'] == 1 and job.outcome == 'cancelled'
    assert act(layer, 'retry', job.oid)['count'] == 1 and job.status == 'pending'
    assert act(layer, 'remove', 'x')['count'] == 1 and job.status == 'new'


def test_what_cannot_be_done_is_said_and_the_rest_is_done(layer, put, run):
    done, waiting = put(), put(delay=50)
    run(done)
    found = act(layer, 'hold', done.oid, waiting.oid, 'nobody')
    assert found['count'] == 1 and waiting.status == 'held'
    problems = sorted(found['problems'])
    assert problems[0] == f'cannot hold job {done.oid} (_operator.mul, completed)'
    assert problems[1].startswith("there is no job 'nobody'")
    assert 'it succeeded' in act(layer, 'retry', done.oid)['problems'][0]


def test_deeds_by_filter_are_previewed(layer, put):
    jobs = [put(delay=50, channel='slow' if number else None) for number in range(4)]
    found = act(layer, 'hold', channel='slow', preview=True)
    assert (found['count'], found['more'], found['problems']) == (3, False, [])
    assert [job.status for job in jobs] == ['pending'] * 4
    assert act(layer, 'hold', channel='slow')['count'] == 3
    assert [job.status for job in jobs] == ['pending'] + ['held'] * 3
    assert act(layer, 'resume', callable='mul')['count'] == 3


def test_retry_takes_the_failed_ones(layer, put, run):
    good, bad = put(), put(operator.truediv, (1, 0), retries=0)
    run(good, bad)
    assert act(layer, 'retry', preview=True)['jobs'] == [
        f'job {bad.oid} (_operator.truediv, completed)'
    ]
    assert act(layer, 'retry')['count'] == 1


def test_many_are_done_in_batches(layer, put, monkeypatch):
    monkeypatch.setattr('zodbjobs.monitor.deeds.BATCH', 3)
    for _ in range(7):
        put(delay=50)
    counts = []
    while True:
        found = act(layer, 'cancel')
        counts.append(found['count'])
        if not found['more']:
            break
    assert counts == [3, 3, 1]


def test_an_unknown_deed(layer):
    with pytest.raises(ValueError, match='unknown deed .stop.; there are hold, resume'):
        act(layer, 'stop')


def test_queues_are_paused(layer, put):
    assert ask(layer.db, 'pause', {'until': '1H'})['paused']
    transaction.begin()
    until = layer.queue.paused_until
    assert (until - put(delay=1).begin_after).total_seconds() == pytest.approx(3599, abs=2)
    ask(layer.db, 'pause')
    ask(layer.db, 'unpause')
    transaction.begin()
    assert layer.queue.paused_until is None
    with pytest.raises(LookupError, match="there is no queue 'x'; there are"):
        ask(layer.db, 'pause', {'queue': 'x'})


def test_quotas_are_made_set_and_removed(layer):
    assert ask(layer.db, 'set_quota', {'name': 'index', 'size': 2})['size'] == 2
    assert ask(layer.db, 'set_quota', {'name': 'index', 'size': 5})['size'] == 5
    assert ask(layer.db, 'set_quota', {'name': 'index'})['size'] == 5
    ask(layer.db, 'set_quota', {'name': 'index', 'remove': True})
    with pytest.raises(LookupError, match="has no quota 'index'"):
        ask(layer.db, 'set_quota', {'name': 'index', 'remove': True})


def test_agents_are_set(layer):
    (row,) = ask(layer.db, 'set_agent', {'size': 7, 'channels': ['a', 'b']})
    assert (row['size'], row['channels']) == (7, ['a', 'b'])
    assert ask(layer.db, 'set_agent', {'channels': []})[0]['channels'] is None
    assert ask(layer.db, 'agents')[0]['size'] == 7
    with pytest.raises(LookupError, match='there is no agent like'):
        ask(layer.db, 'set_agent', {'agent': 'x', 'size': 1})


def test_a_job_is_put_by_name(layer, run):
    answer = ask(layer.db, 'put', {'call': 'operator:mul', 'args': [6, 7], 'id': 'x'})
    transaction.begin()
    job = layer.queue.ids.get('x')
    assert job.oid == answer['oid']
    run(job)
    assert job.result == 42


def test_pruning_forgets_what_was_kept_long_enough(layer, put, run):
    """And what `preview` counts is what is then forgotten."""
    run(put(), put())
    layer.reactor.time_flies(6)
    ask(layer.db, 'set_retention', {'days': 2, 'failed_days': 3, 'count': 10})
    transaction.begin()
    history = layer.agent.history
    assert history.keep_seconds == 2 * DAY_SECONDS and history.keep_count == 10
    layer.dispatcher.deactivate()
    layer.reactor.time_flies(2 * DAY_SECONDS + 60)
    transaction.begin()
    assert ask(layer.db, 'prune', {'preview': True}) == {
        'jobs': 2, 'dispatchers': [], 'more': False
    }  # fmt: skip
    assert ask(layer.db, 'prune')['jobs'] == 2
    assert ask(layer.db, 'prune')['jobs'] == 0


def test_records_of_dispatchers_are_dropped_when_nothing_is_left_of_them(layer, put, run):
    """By themselves after a month; before that when asked to."""
    former = layer.queue.dispatchers.register('00000000-0000-0000-0000-0000000000aa')
    former['main'] = Agent()
    configured = layer.queue.dispatchers.register('00000000-0000-0000-0000-0000000000bb')
    former.activate()
    former.deactivate()
    transaction.commit()
    assert len(ask(layer.db, 'prune', {'preview': True, 'stale_days': 0})['dispatchers']) == 2
    layer.dispatcher.deactivate()  # polls of a month take long, even if time does not
    layer.reactor.time_flies(29 * DAY_SECONDS)
    layer.dispatcher.activate()
    layer.reactor.time_passes()
    transaction.begin()
    assert former.UUID in layer.queue.dispatchers
    layer.dispatcher.deactivate()
    layer.reactor.time_flies(2 * DAY_SECONDS)
    layer.dispatcher.activate()
    layer.reactor.time_passes()
    transaction.begin()
    assert former.UUID not in layer.queue.dispatchers
    assert configured.UUID in layer.queue.dispatchers  # it never served: somebody configures it
    found = ask(layer.db, 'prune', {'dispatcher': str(configured.UUID)})
    assert found['dispatchers'] == [str(configured.UUID)]


def test_packing_says_what_it_did(layer, put):
    for _ in range(20):
        put(delay=50)
    answer = ask(layer.db, 'pack', {'days': 0})
    assert 0 < answer['after'] < answer['before']


def test_lint_and_doctor_name_jobs_that_cannot_run(layer, put, monkeypatch):
    job = put(delay=50)
    job._call = 'no_such_module:function'
    transaction.commit()
    (problem,) = ask(layer.db, 'lint')['problems']
    assert problem['oid'] == job.oid and 'no_such_module' in problem['problem']
    findings = ask(layer.db, 'doctor')['findings']
    assert findings[0]['level'] == 'error' and 'cannot be run' in findings[0]['what']


def test_the_doctor_sees_full_quotas(layer, put, busy):
    layer.queue.quotas.create('index', 1)
    transaction.commit()
    busy(quota_names=('index',))
    put(quota_names=('index',))
    words = ' '.join(finding['what'] for finding in ask(layer.db, 'doctor')['findings'])
    assert "quota 'index' is full: held by job" in words


def test_the_doctor_sees_what_waits_too_long(layer, put):
    layer.agent.size = 0
    put()
    layer.reactor.time_flies(600)
    words = ' '.join(finding['what'] for finding in ask(layer.db, 'doctor')['findings'])
    assert 'a due job has waited 60' in words and "agent 'main' has the size 0" in words
    layer.dispatcher.deactivate()
    words = ' '.join(finding['what'] for finding in ask(layer.db, 'doctor')['findings'])
    assert 'jobs are due and no dispatcher serves it' in words
