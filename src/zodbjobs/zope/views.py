"""Views as jobs, and views about jobs: publish one later, answer 202 now, ask how it stands.

``enqueue_view(context, '@@view', **form)`` puts a job that publishes a view as
the current user.  ``accepted(context, request, job)`` answers a request by the
address of the job, and the view ``@@zodbjobs`` answers at that address.

All runs in the request's thread and transaction, `publish` in a worker's.
"""

import json
import secrets

from AccessControl import getSecurityManager
from AccessControl.unauthorized import Unauthorized
from Acquisition import aq_base, aq_inner, aq_parent
from OFS.interfaces import IApplication
from Products.Five.browser import BrowserView
from zExceptions import BadRequest, NotFound
from ZODB.POSException import POSKeyError
from ZODB.utils import p64
from zope.component.hooks import getSite
from zope.globalrequest import getRequest
from zope.interface import alsoProvides, implementer
from zope.publisher.interfaces import IPublishTraverse
from ZPublisher.mapply import mapply

from zodbjobs.interfaces import COMPLETED, KEY
from zodbjobs.model.call import resolved
from zodbjobs.model.failure import is_failure
from zodbjobs.model.hosted import ZopeJob
from zodbjobs.zope.host import user_of

MANAGE = 'zodbjobs: Manage jobs'

#: The view at which a job answers, and the note in which its key is kept.
VIEW, NOTE = '@@zodbjobs', 'zodbjobs.key'


# Views as jobs -------------------------------------------------------------------------------


def view_job(context, name, form=None):
    """A job that publishes the view `name` of `context` as the current user, with this form.

    `form` is a mapping of names to storable values.  The job's result is what
    the view returned.  Raises NotFound or Unauthorized now for what would not
    be there for the current user.
    """
    name = name.removeprefix('@@')
    found_view(context, name)
    return ZopeJob(publish, context, name, dict(form or {}))


def enqueue_view(context, name, /, **form):
    """Put a job that publishes a view in the queue '' of the database; returns the job."""
    return queue_of(context).put(view_job(context, name, form))


def found_view(context, name):
    """The view of that name, if the current user may see it."""
    try:
        return context.restrictedTraverse(f'@@{name}')
    except (KeyError, AttributeError):
        raise NotFound(f'{"/".join(context.getPhysicalPath())} has no view @@{name}') from None


def publish(context, name, form):
    """Publish a view in the request of this thread; returns what the view returns."""
    request = getRequest()
    request.form.update(form)
    request['PARENTS'] = _parents(context)
    view = found_view(context, name)
    request['PUBLISHED'] = view
    request['URL'] = f'{context.absolute_url()}/@@{name}'
    return mapply(view, (), request, _call, 1, _missing, context=request, bind=1)


def _call(view, args, request):
    return view(*args)


def _missing(name, request):
    raise BadRequest(f'the form has no {name!r}')


def _parents(context):
    found, each = [], aq_inner(context)
    while each is not None and hasattr(aq_base(each), 'getPhysicalPath'):
        found.append(each)
        each = aq_parent(aq_inner(each))
    return found


def queue_of(context, name=''):
    """The queue of that name in the database of `context`, of its site, or of what is above it."""
    each = context
    while each is not None:
        jar = getattr(aq_base(each), '_p_jar', None)
        if jar is not None:
            queues = jar.root().get(KEY)
            if queues is None:  # a mounted database: the root of the site's knows
                others = [other.root().get(KEY) for other in list(jar.connections.values())]
                queues = next((found for found in others if found is not None), None)
            if queues is None or name not in queues:
                raise LookupError(
                    f'there is no queue {name!r} in the database: start an instance or a worker'
                    f' that is configured to make it, or <jobs:queue name="{name}" />'
                )
            return queues[name]
        each = aq_parent(aq_inner(each))
    raise LookupError(f'{context!r} is in no database')


# Views about jobs ----------------------------------------------------------------------------


def accepted(context, request, job):
    """Answer `request` with 202 Accepted and where to ask for `job`, which was put before.

    Sets the status and the header Location, and returns {'@id': address,
    'state': ...}, as JSON has it.  The address has a key that cannot be
    guessed; the user who put the job may ask there, who manages jobs, and for
    the job of nobody whoever knows the address.
    """
    if job.queue is None:
        raise ValueError(f'{job!r} is in no queue: put it first')
    key = secrets.token_urlsafe(16)
    job.annotations[NOTE] = key
    address = f'{_home(context).absolute_url()}/{VIEW}/{job.oid:x}-{key}'
    request.response.setStatus(202, lock=1)
    request.response.setHeader('Location', address)
    return {'@id': address, 'state': job.status}


def _home(context):
    """The site, or the root, below which the address of a job is."""
    site = getSite()
    if site is not None and hasattr(site, 'absolute_url'):
        return site
    each = context
    while each is not None and not IApplication.providedBy(each):
        each = aq_parent(aq_inner(each))
    return context if each is None else each


def state_of(job):
    """What is told of a job, as JSON has it: state, outcome, progress, result or error."""
    told = {'state': job.status, 'outcome': job.outcome, 'progress': job.progress}
    if job.status == COMPLETED:
        if is_failure(job.result):
            told['error'] = job.result.getErrorMessage()
        else:
            told['result'] = _plain(job.result)
    return told


def _plain(value):
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return None  # what it did is in the database; there is nothing to be said of it in JSON


@implementer(IPublishTraverse)
class JobsView(BrowserView):
    """How a job stands, at the address that `accepted` gave: GET asks, DELETE cancels."""

    job = None

    def publishTraverse(self, request, name):
        oid, _, key = name.partition('-')
        job = self._known(oid) if key and self.job is None else None
        known = None if job is None else job.annotations.get(NOTE)
        if known is None or not secrets.compare_digest(known.encode(), key.encode()):
            raise NotFound(f'there is no job {name}, or it is kept no longer')
        self.job = job
        return self

    def _known(self, oid):
        try:
            job = queue_of(self.context)._p_jar.get(p64(int(oid, 16)))
        except (ValueError, OverflowError, LookupError, POSKeyError):
            return None
        return job if isinstance(job, ZopeJob) else None

    def _check_user(self):
        owner, manager = self.job.scene.get('user'), getSecurityManager()
        if owner is None or owner == user_of(manager.getUser()):
            return
        if not manager.checkPermission(MANAGE, self.context):
            raise Unauthorized('the job is of another user')

    def __call__(self):
        if self.job is None:
            raise NotFound('the address of a job is missing')
        self._check_user()
        response = self.request.response
        if self.request.method == 'DELETE':
            # No form can send that from another site, so no token is asked for.
            _allow_writing(self.request)
            if self.job.status != COMPLETED:
                self.job.cancel()
        elif self.request.method not in ('GET', 'HEAD'):
            response.setStatus(405)
            response.setHeader('Allow', 'GET, HEAD, DELETE')
            return ''
        response.setHeader('Content-Type', 'application/json')
        response.setHeader('Cache-Control', 'no-store')
        return json.dumps({'@id': self.request['ACTUAL_URL'], **state_of(self.job)})


def _allow_writing(request):
    """Tell plone.protect, where it is, that this request may write."""
    try:
        marker = resolved('plone.protect.interfaces:IDisableCSRFProtection')
    except LookupError:
        return
    alsoProvides(request, marker)
