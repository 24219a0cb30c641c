"""Jobs in Pyramid: ``config.include('zodbjobs.pyramid')``, then ``request.jobs.put(...)``.

``request.jobs`` is the queue, opened in the transaction manager of the request
(``request.tm``, as pyramid_tm makes it, explicit or not), so that a job is put
if the request commits and only then.  It is opened when it is asked for: there
is no tween.

The database is the one of pyramid_zodbconn, or what the setting
``zodbjobs.uri`` says.  With ``zodbjobs.embedded`` this process runs jobs as
well, in a thread that is started when the application was made.

`queue_of` runs in the thread of the request, the rest in the thread that makes
the application.
"""

import atexit
import contextlib

import transaction
from pyramid.events import ApplicationCreated
from pyramid.exceptions import ConfigurationError
from pyramid.settings import asbool
from transaction.interfaces import NoTransaction

from zodbjobs import configure, subscribers
from zodbjobs.interfaces import KEY, DatabaseOpened
from zodbjobs.runtime.address import open_database

PREFIX = 'zodbjobs.'


def _number(kind):
    def convert(text):
        number = kind(text)
        if not 0 <= number < float('inf'):
            raise ValueError(text)
        return number

    return convert


#: Setting (behind the prefix) -> (default, what makes its value of a text).
SETTINGS = {
    'uri': (None, str),
    'database': (None, str),
    'queue': ('', str),
    'embedded': (False, asbool),
    'threads': (3, _number(int)),
    'poll_interval': (5.0, _number(float)),
    'grace': (30.0, _number(float)),
    'deployment': (None, str),
}


class Jobs:
    """What an application has for its jobs; ``registry.zodbjobs``.

    `db` is the ZODB.DB, `dispatcher` the one of this process or None.
    """

    dispatcher = None

    def __init__(self, settings):
        self.settings = settings
        self.queue_name = settings['queue']
        self.db = None if settings['uri'] is None else open_database(settings['uri'])
        self.is_own = self.db is not None

    def start(self, registry):
        """The application was made: see that there is a queue, and serve it if that is wanted."""
        if self.db is None:
            self.db = _primary_database(registry)
        database, queue = self.settings['database'], self.queue_name
        subscribers.QueueInstaller(queue, db_name=database)(DatabaseOpened(self.db))
        if self.settings['embedded']:
            self.dispatcher = configure.start(
                self.db,
                poll_interval=self.settings['poll_interval'],
                db_name=database,
                agent_size=self.settings['threads'],
                grace=self.settings['grace'],
                deployment=self.settings['deployment'],
            )
            # For servers that end by other ways than a signal.
            atexit.register(self.stop)

    def stop(self):
        """Let running jobs end, give back the rest, and close what was opened here."""
        atexit.unregister(self.stop)
        if self.dispatcher is not None:
            subscribers.stop(self.dispatcher)
        if self.is_own and self.db is not None:
            self.db.close()
            self.db = None

    def connection(self, request):
        """The connection to the database of the queue, in the transaction of `request`."""
        if not self.is_own:
            from pyramid_zodbconn import get_connection  # here: with `uri` nobody needs it

            return get_connection(request, self.settings['database'])
        manager = getattr(request, 'tm', None) or transaction.manager
        connection = self.db.open(manager)

        def close(request):
            with contextlib.suppress(NoTransaction):
                manager.abort()
            connection.close()

        request.add_finished_callback(close)
        return connection


def _primary_database(registry):
    databases = getattr(registry, '_zodb_databases', None) or {}
    if '' not in databases:
        raise ConfigurationError(
            'zodbjobs.pyramid has no database: include pyramid_zodbconn and set zodbconn.uri, or'
            ' set zodbjobs.uri'
        )
    return databases['']


def queue_of(request):
    """The queue, in the transaction of `request`: what ``request.jobs`` is."""
    jobs = request.registry.zodbjobs
    return jobs.connection(request).root()[KEY][jobs.queue_name]


def read_settings(settings):
    """The settings with our prefix as a dict.  Raises ConfigurationError for what cannot be."""
    found = {name: default for name, (default, _) in SETTINGS.items()}
    for key, text in settings.items():
        if not key.startswith(PREFIX):
            continue
        name = key.removeprefix(PREFIX)
        if name not in SETTINGS:
            raise ConfigurationError(
                f'there is no setting {key}; there are'
                f' {", ".join(PREFIX + known for known in SETTINGS)}'
            )
        try:
            found[name] = SETTINGS[name][1](text)
        except ValueError:
            raise ConfigurationError(f'{key} = {text!r} is not possible') from None
    if found['uri'] is not None and found['database'] is not None:
        raise ConfigurationError(
            'zodbjobs.database names one of the databases of pyramid_zodbconn: it does not go with'
            ' zodbjobs.uri'
        )
    return found


def includeme(config):
    """See the module's text."""
    configure.base()
    jobs = config.registry.zodbjobs = Jobs(read_settings(config.registry.settings))
    config.add_request_method(queue_of, 'jobs', reify=True)
    config.add_subscriber(lambda event: jobs.start(event.app.registry), ApplicationCreated)
