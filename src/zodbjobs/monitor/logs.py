"""Formatters for logs: one that names the job, and one of JSON lines.

For the ``logging`` configuration of an application::

    'formatters': {'json': {'()': 'zodbjobs.monitor.logs.JSONFormatter'}}
"""

import json
import logging

from zodbjobs import clock
from zodbjobs.runtime import joblog


class JobFormatter(logging.Formatter):
    """A Formatter whose format may have ``%(zodbjob)s``, also for records of other processes."""

    def __init__(self, format=None, **options):
        super().__init__(format, defaults={'zodbjob': ''}, **options)


class JSONFormatter(logging.Formatter):
    """Each record as a JSON object in a line.

    'at', 'level', 'logger', 'message', and while a job runs 'job' (its number),
    'queue', 'agent' and 'attempt'; 'exception' is a traceback.
    """

    def __init__(self, *args, **options):
        super().__init__()
        joblog.install()

    def format(self, record):
        facts = {
            'at': clock.datetime_of(round(record.created * clock.SECOND)).isoformat(),
            'level': record.levelname,
            'logger': record.name,
            'message': record.getMessage(),
        }
        about = getattr(record, 'zodbjob', None)
        if getattr(about, 'oid', None) is not None:
            facts |= {
                'job': about.oid,
                'queue': about.queue,
                'agent': about.agent,
                'attempt': about.attempt,
            }
        if record.exc_info:
            facts['exception'] = self.formatException(record.exc_info)
        return json.dumps(facts, default=str)
