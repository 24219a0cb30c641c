"""What the directives do to a database, and what they say of mistakes."""

import io
import uuid

import pytest
import transaction
import ZODB
import zope.component
from zope.configuration import xmlconfig
from zope.configuration.exceptions import ConfigurationError
from zope.event import notify

from zodbjobs import Job, subscribers, testing
from zodbjobs.interfaces import KEY, DatabaseOpened
from zodbjobs.runtime import dispatcher as dispatchers

HEAD = """\
<configure xmlns="http://namespaces.zope.org/zope" xmlns:jobs="urn:zodbjobs">
  <include package="zodbjobs" />
  <include package="zodbjobs" file="meta.zcml" />
"""


def answer():
    return 42


def is_small(job):
    return True


def take(agent):
    return agent.queue.claim()


def stumble():
    raise ValueError('a stone')


@pytest.fixture(autouse=True)
def _clean():
    yield
    while dispatchers._dispatchers:
        assert subscribers.stop(dispatchers._dispatchers.popitem()[1])
    testing.tearDown()


@pytest.fixture
def db(tmp_path):
    db = ZODB.DB(str(tmp_path / 'Data.fs'))
    yield db
    for dispatcher in list(dispatchers._dispatchers.values()):
        subscribers.stop(dispatcher)
    db.close()


def configure(*directives, path='site.zcml'):
    """Load directives, as the lines of a file of this name that follow line 3."""
    text = HEAD + '\n'.join(directives) + '\n</configure>\n'
    context = xmlconfig.ConfigurationMachine()
    xmlconfig.registerCommonDirectives(context)
    source = io.StringIO(text)
    source.name = path
    xmlconfig.processxmlfile(source, context)
    context.execute_actions()


@pytest.fixture
def opened(db):
    """Load directives, open the database, and give its queues."""
    connections = []

    def open_with(*directives):
        zope.component.globalregistry.base.__init__('base')
        configure(*directives)
        notify(DatabaseOpened(db))
        if not connections:
            connections.append(db.open())
        transaction.begin()
        return connections[0].root()[KEY]

    yield open_with
    transaction.abort()
    for connection in connections:
        connection.close()


def served(queues, name=''):
    """The agents of the one dispatcher of a queue, when it has come to serve that."""
    job = queues[name].put(answer)
    transaction.commit()
    assert testing.wait_for_result(job) == 42
    (record,) = queues[name].dispatchers.values()
    return {agent_name: record[agent_name] for agent_name in record}


def test_queues_and_quotas_are_made(opened):
    queues = opened(
        '<jobs:queue />',
        '<jobs:queue name="mail" />',
        '<jobs:quota name="disk" />',
        '<jobs:quota queue="mail" name="smtp" size="3" />',
    )
    assert list(queues) == ['', 'mail']
    assert queues[''].quotas['disk'].size == 1
    assert queues['mail'].quotas['smtp'].size == 3


def test_the_order_in_the_file_does_not_matter(opened):
    queues = opened('<jobs:quota name="disk" />', '<jobs:queue />')
    assert queues[''].quotas['disk'].size == 1


def test_what_is_configured_anew_is_set_at_the_next_start(opened):
    opened('<jobs:queue />', '<jobs:quota name="disk" size="1" />')
    queues = opened('<jobs:queue />', '<jobs:quota name="disk" size="2" />')
    assert queues[''].quotas['disk'].size == 2


def test_what_is_as_configured_is_not_written(opened, db):
    opened('<jobs:queue />', '<jobs:quota name="disk" size="1" />')
    before = db.lastTransaction()
    opened('<jobs:queue />', '<jobs:quota name="disk" size="1" />')
    assert db.lastTransaction() == before


def test_a_queue_in_another_database(tmp_path):
    configure('<jobs:queue database="jobs" />')
    databases = {}
    main = ZODB.DB(str(tmp_path / 'Data.fs'), databases=databases, database_name='main')
    jobs = ZODB.DB(str(tmp_path / 'jobs.fs'), databases=databases, database_name='jobs')
    notify(DatabaseOpened(main))
    with main.transaction() as connection:
        assert connection.root()[KEY]['']._p_jar.db() is jobs
    main.close()
    jobs.close()


def test_a_dispatcher_has_an_agent_where_none_is_configured(opened):
    queues = opened('<jobs:queue />', '<jobs:dispatcher threads="2" />')
    agents = served(queues)
    assert {name: agent.size for name, agent in agents.items()} == {'main': 2}


def test_agents_have_what_is_configured(opened):
    queues = opened(
        '<jobs:queue />',
        '<jobs:queue name="mail" />',
        f'<jobs:agent name="a" size="1" channels="slow -" filter="{__name__}.is_small" />',
        '<jobs:agent name="b" size="2" />',
        '<jobs:dispatcher uuid="aaaaaaaa-0000-4000-8000-000000000001" grace="7" />',
    )
    agents = served(queues)
    assert sorted(agents) == ['a', 'b']
    assert agents['a'].channels == ('slow', '')
    assert agents['a'].filter.__name__ == 'is_small'
    assert agents['b'].size == 2
    assert sorted(served(queues, 'mail')) == ['main']
    (dispatcher,) = dispatchers._dispatchers.values()
    assert uuid.UUID('aaaaaaaa-0000-4000-8000-000000000001') == dispatcher.UUID
    assert dispatcher.grace == 7


def test_an_agent_gets_its_new_settings_at_the_next_start(opened):
    name = 'uuid="aaaaaaaa-0000-4000-8000-000000000002"'
    queues = opened('<jobs:queue />', '<jobs:agent size="1" />', f'<jobs:dispatcher {name} />')
    assert served(queues)['main'].size == 1
    subscribers.stop(dispatchers._dispatchers.popitem()[1])
    queues = opened(
        '<jobs:queue />', '<jobs:agent size="2" channels="- x" />', f'<jobs:dispatcher {name} />'
    )
    agent = served(queues)['main']
    assert (agent.size, agent.channels) == (2, ('', 'x'))


def test_a_filter_gives_way_to_a_chooser_and_back():
    from zodbjobs import Agent
    from zodbjobs.directives import configure_agent

    agent = Agent(filter=is_small)
    configure_agent(agent, {'filter': None, 'chooser': take})
    assert (agent.filter, agent.chooser) == (None, take)
    configure_agent(agent, {'filter': is_small, 'chooser': None})
    assert (agent.filter, agent.chooser) == (is_small, None)


def test_retry_policies(opened):
    queues = opened(
        '<jobs:queue />',
        '<jobs:retryPolicy retries="1" backoff="0" on_exhausted="hold" />',
        '<jobs:retryPolicy name="never" factory="zodbjobs.NeverRetry" />',
        '<jobs:dispatcher />',
    )
    job = queues[''].put(stumble)
    once = queues[''].put(Job(stumble), retry_policy_factory='never')
    transaction.commit()
    assert testing.wait_for_result(once).check(ValueError)
    assert testing.waiting.wait_until(lambda: transaction.begin() and job.status == 'held', 6)
    assert (job.attempts, once.attempts) == (2, 1)


@pytest.mark.parametrize(
    ('directive', 'words'),
    [
        ('<jobs:quota size="1" />', "Missing parameter: 'name'"),
        ('<jobs:quota name="disk" size="0" />', 'TooSmall'),
        ('<jobs:agent size="many" />', 'invalid literal'),
        ('<jobs:agent filter="zodbjobs.nowhere" />', 'nowhere'),
        (
            '<jobs:agent filter="zodbjobs.Job" chooser="zodbjobs.Job" />',
            'a chooser or a filter, not both',
        ),
        ('<jobs:agent colour="red" />', "Unrecognized parameters:.*'colour'"),
        ('<jobs:dispatcher uuid="me" />', "uuid is not a UUID: 'me'"),
        ('<jobs:dispatcher poll_interval="0" />', 'more than 0, not 0'),
        ('<jobs:retryPolicy />', 'either a factory or a number of retries'),
        (
            '<jobs:retryPolicy factory="zodbjobs.NeverRetry" backoff="1" />',
            'go with retries, not with a factory',
        ),
        ('<jobs:retryPolicy retries="1" on_exhausted="cry" />', "'fail' or 'hold'"),
        ('<jobs:worker />', "Unknown directive.*'worker'"),
    ],
    ids=lambda value: value if value.startswith('<') else '',
)
def test_a_mistake_is_told_with_file_and_line(directive, words):
    with pytest.raises(ConfigurationError, match=f'(?s){words}') as caught:
        configure('', directive)
    assert 'File "site.zcml", line 5' in str(caught.value)


@pytest.mark.parametrize(
    'directive',
    [
        '<jobs:queue name="mail" />',
        '<jobs:quota name="disk" />',
        '<jobs:agent name="x" />',
        '<jobs:dispatcher />',
        '<jobs:retryPolicy retries="1" />',
    ],
)
def test_what_is_said_twice_is_a_conflict_that_names_both_places(directive):
    with pytest.raises(ConfigurationError) as caught:
        configure(directive, directive)
    assert 'line 4' in str(caught.value) and 'line 5' in str(caught.value)


def test_a_missing_queue_is_told_with_the_place_that_names_it(opened):
    with pytest.raises(ConfigurationError) as caught:
        opened('<jobs:queue />', '<jobs:agent queue="mial" />')
    assert 'line 5' in str(caught.value)
    assert "no queue 'mial'; it has ['']" in str(caught.value)
    assert 'add <jobs:queue name="mial" />' in str(caught.value)
