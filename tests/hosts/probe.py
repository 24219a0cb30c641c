"""Views that the tests of hosts ask, in a Zope instance, over HTTP.

Each answers JSON.  What they put are functions of this module.
"""

import asyncio
import datetime
import json
import os
import threading

from AccessControl import getSecurityManager
from AccessControl.SecurityManagement import newSecurityManager
from Acquisition import aq_base, aq_parent
from OFS.Folder import Folder
from OFS.SimpleItem import SimpleItem
from Products.Five.browser import BrowserView
from Products.Five.component import enableSite
from ZODB.blob import Blob
from ZODB.POSException import ConflictError
from ZODB.utils import p64
from zope.component import getGlobalSiteManager
from zope.component.hooks import getSite
from zope.component.persistentregistry import PersistentComponents
from zope.globalrequest import getRequest
from zope.interface import Interface, alsoProvides
from zope.security.management import queryInteraction

from zodbjobs import RetryCommonForever, local, monitor
from zodbjobs.interfaces import KEY, IQueue
from zodbjobs.zope import Job, accepted, view_job


class ILayer(Interface):
    """A layer of a request."""


class Script(SimpleItem):
    """Can be called, as scripts in the database can."""

    def __call__(self, more):
        return [self.getId(), aq_parent(self).getId(), more]


class Content(Folder):
    """Content with a method to be put."""

    def describe(self, more=''):
        return [
            '/'.join(self.getPhysicalPath()),
            aq_parent(self).getId(),
            self.absolute_url(),
            more,
        ]


def surroundings(context=None):
    """What a job finds around it."""
    user, site, request = getSecurityManager().getUser(), getSite(), getRequest()
    return {
        'user': user.getId(),
        'folder': '/'.join(aq_parent(user).getPhysicalPath()) if aq_parent(user) else None,
        'roles': sorted(user.getRoles()),
        'site': None if site is None else '/'.join(site.getPhysicalPath()),
        'url': None if context is None else context.absolute_url(),
        'request': context is None or context.REQUEST is request,
        'language': request.get('LANGUAGE'),
        'accepted': request.environ.get('HTTP_ACCEPT_LANGUAGE'),
        'layer': ILayer.providedBy(request),
        'pid': os.getpid(),
        'thread': threading.current_thread().name,
        'interaction': queryInteraction() is not None,
    }


def surroundings_after(context, result):
    return surroundings(context)


async def surroundings_later(context, name):
    """What steps of a coroutine find, and the steps of tasks that it makes."""
    found = [surroundings(context)]
    await asyncio.sleep(0.02)
    found.append(surroundings(context))

    async def part():
        await asyncio.sleep(0.01)
        return surroundings(getSite())

    found += await asyncio.gather(part(), part())
    return [[each['user'], each['site'], each['thread'], each['request']] for each in found]


async def write_later(context):
    await asyncio.sleep(0)
    context.written = True


async def fail_later(context):
    await asyncio.sleep(0)
    raise ValueError(getSecurityManager().getUser().getId())


async def find_nothing():
    await asyncio.sleep(0)
    return thread_is_bare()


def thread_is_bare():
    """What a plain job finds in a thread in which others ran before: nothing of theirs."""
    return [
        getSecurityManager().getUser().getId(),
        getSite(),
        getRequest(),
        queryInteraction(),
    ]


def fail(context):
    raise ValueError('on purpose')


def measure_blob(context, text):
    with write_blob(context, text).open() as source:
        return len(source.read())


def write_blob(context, text):
    blob = context.blob = Blob()
    with blob.open('w') as target:
        target.write(text.encode())
    return blob


def count(context):
    context.counter = getattr(aq_base(context), 'counter', 0) + 1
    return context.counter


def linger(context, seconds):
    local.progress(1, 2, 'half')
    threading.Event().wait(seconds)
    context.lingered = True
    return 'lingered'


class Probe(BrowserView):
    """`what` is one of the methods; the answer is JSON."""

    def __call__(self, what):
        form = {name: value for name, value in self.request.form.items() if name != 'what'}
        return json.dumps(getattr(self, what)(**form))

    @property
    def queue(self):
        return IQueue(self.context)

    def put(self, call, *args, **kwargs):
        return self.queue.put(Job(call, *args, **kwargs)).oid

    def make(self, id):
        """A folder, which is a site if the id begins with `site`, with users of its own."""
        content = Content(id)
        self.context._setObject(id, content)
        if id.startswith('site'):
            content = self.context[id]
            content.manage_addUserFolder()
            content.acl_users.userFolderAddUser('bob', 'secret', ['Member'], [])
            enableSite(content)
            content.setSiteManager(PersistentComponents('site', (getGlobalSiteManager(),)))
        return id

    def surroundings(self):
        self.request.set('LANGUAGE', 'de')
        alsoProvides(self.request, ILayer)
        return self.put(surroundings, self.context)

    def method(self):
        return self.queue.put(self.context.describe).oid

    def later_method(self):
        return self.queue.put(self.context.describe, delay=3600).oid

    def lint(self):
        return monitor.lint(self.context._p_jar.root()[KEY])['problems']

    def make_and_put(self, id):
        """Put a method of content that is made in the same transaction."""
        self.context._setObject(id, Content(id))
        return self.queue.put(self.context[id].describe).oid

    def script(self):
        script = Script()
        script.id = 'script'
        self.context._setObject('script', script)
        return self.queue.put(Job(self.context.script, 'x')).oid

    def script_alone(self):
        return self.queue.put(self.context.script).oid

    def chain(self):
        """A job, and a callback that is a method."""
        job = self.queue.put(Job(surroundings, self.context))
        back = job.addCallback(Job(self.context.describe))
        return [job.oid, back.oid]

    def here_and_now(self):
        return Job(self.context.describe, more='now')()

    def nested(self):
        return self.put(nested, [self.context, {'a': (self.context,)}])

    def bare(self):
        from zodbjobs import Job as PlainJob

        return self.queue.put(PlainJob(thread_is_bare)).oid

    def plain_and_callback(self):
        """A job that needs nothing, and a callback of Zope's."""
        from zodbjobs import Job as PlainJob

        job = self.queue.put(PlainJob(os.getpid))
        return [job.oid, job.addCallback(Job(surroundings_after, self.context)).oid]

    def why(self, oid):
        return monitor.why(self._job(oid))

    def doctor(self):
        queues = self.context._p_jar.root()[KEY]
        return [finding['what'] for finding in monitor.examine(queues)['findings']]

    def later(self, name):
        return self.put(surroundings_later, self.context, name)

    def write_later(self):
        return self.put(write_later, self.context)

    def fail_later(self):
        return self.put(fail_later, self.context)

    def bare_later(self):
        from zodbjobs import Job as PlainJob

        return self.queue.put(PlainJob(find_nothing)).oid

    def fail(self):
        return self.put(fail, self.context)

    def blob(self, text):
        return self.put(write_blob, self.context, text)

    def measured_blob(self, text):
        return self.put(measure_blob, self.context, text)

    def read_blob(self):
        with self.context.blob.open() as source:
            return source.read().decode()

    def count(self):
        job = Job(count, self.context)
        return self.queue.put(job, retry_policy_factory=RetryCommonForever).oid

    def counter(self):
        return getattr(aq_base(self.context), 'counter', 0)

    def conflict(self):
        """Put a job, then meet a conflict at the first and the second try."""
        oid = self.put(count, self.context)
        if self.request.retry_count < 1:
            raise ConflictError('on purpose')
        return [oid, self.request.retry_count]

    def put_and_fail(self):
        self.put(count, self.context)
        raise ValueError('on purpose')

    def held(self, delay='3600'):
        job = Job(surroundings, self.context)
        return self.queue.put(job, delay=float(delay)).oid

    def run_as(self, who, folder=''):
        folder = self.context.restrictedTraverse(folder) if folder else None
        return self.queue.put(Job(surroundings, self.context).run_as(who, folder)).oid

    def run_as_system(self):
        from AccessControl.users import system

        newSecurityManager(None, system)
        return self.queue.put(Job(surroundings, self.context)).oid

    def hurry(self, oid):
        """Let a job that waits begin."""
        self._job(oid).begin_after = datetime.datetime(2001, 1, 1)
        return oid

    def drop_user(self, who):
        self.context.acl_users.userFolderDelUsers([who])
        return who

    def drop(self, id):
        self.context._delObject(id)
        return id

    def rename(self, id, new):
        obj = aq_base(self.context._getOb(id))
        self.context._delObject(id, suppress_events=True)
        obj.id = new
        self.context._setObject(new, obj, set_owner=0, suppress_events=True)
        return new

    def move(self, id, to):
        """Cut and paste, as users do."""
        cut = self.context.manage_cutObjects([id])
        return self.context.unrestrictedTraverse(to).manage_pasteObjects(cut)[0]['new_id']

    def view(self, name, **form):
        return self.queue.put(view_job(self.context, name, form)).oid

    def linger(self, seconds):
        return accepted(
            self.context, self.request, self.queue.put(Job(linger, self.context, float(seconds)))
        )

    def lingered(self):
        return getattr(aq_base(self.context), 'lingered', False)

    def scene(self, oid):
        return self._job(oid).scene

    def _job(self, oid):
        return self.queue._p_jar.get(p64(int(oid)))

    def job(self, oid):
        """How a job stands, whoever asks."""
        job = self._job(oid)
        result = job.result
        if hasattr(result, 'getErrorMessage'):
            result = [result.type.__name__, result.getErrorMessage()]
        return {
            'status': job.status,
            'outcome': job.outcome,
            'result': result if isinstance(result, (dict, list, str, int)) else repr(result),
            'call': job.call_name,
            'repr': repr(job),
        }

    def databases(self):
        return sorted(
            [queue._p_jar.db().database_name, name]
            for name, queue in self.context._p_jar.root()[KEY].items()
        )


def nested(things):
    content, table = things
    return [content.absolute_url(), table['a'][0].absolute_url()]
