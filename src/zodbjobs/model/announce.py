"""Saying what happened, where the engine keeps its books and nobody may object.

A subscriber of the application must not keep a job from being filed or
recovered: what it raises is logged, and the next one is told.  Only trouble of
the database goes on up, as the transaction has to be done again.

Runs in the transaction of whoever announces.
"""

import logging

import zope.event
from ZODB.POSException import POSError, POSKeyError

log = logging.getLogger('zodbjobs.events')


def announce(event):
    """Tell all subscribers of `event`, whatever they raise."""
    for subscriber in list(zope.event.subscribers):
        try:
            subscriber(event)
        except Exception as error:
            if isinstance(error, POSError) and not isinstance(error, POSKeyError):
                raise
            log.critical('a subscriber to %s failed', type(event).__name__, exc_info=True)
