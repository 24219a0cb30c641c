"""Jobs at home in Zope and Plone: as the user who put them, in the site, with a request.

``from zodbjobs.zope import Job, enqueue_view, view_job, accepted``.  With
``<include package="zodbjobs.zope" />`` whatever is put in a queue becomes such
a Job.

`host` remembers and restores, `views` publishes views and answers 202, `z3` is
the variant for zope.security without Zope's own user folders.
"""

import importlib

from zodbjobs.model.hosted import ZopeJob as Job

__all__ = ['Job', 'UserGone', 'accepted', 'enqueue_view', 'view_job']

_HOMES = {'UserGone': 'host', 'accepted': 'views', 'enqueue_view': 'views', 'view_job': 'views'}


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.{_HOMES[name]}'), name)
