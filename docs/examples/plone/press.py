"""A press office in Plone: the page "In Plone" shows it, and the tests run it."""

from plone.protect.interfaces import IDisableCSRFProtection
from plone.restapi.services import Service
from Products.CMFCore.utils import getToolByName
from zope.interface import alsoProvides

from zodbjobs import local
from zodbjobs.interfaces import IQueue
from zodbjobs.zope import Job, accepted


# begin: accepted
def publish_all(folder):
    """Runs in a job, as the user who asked for it: who may not publish fails here, too."""
    workflow = getToolByName(folder, 'portal_workflow')
    pages = folder.objectValues()
    for count, page in enumerate(pages, 1):
        if workflow.getInfoFor(page, 'review_state') != 'published':
            workflow.doActionFor(page, 'publish')
        local.progress(count, len(pages), page.Title())
    return len(pages)


class PublishAll(Service):
    """POST .../folder/@publish-all"""

    def reply(self):
        alsoProvides(self.request, IDisableCSRFProtection)
        job = IQueue(self.context).put(Job(publish_all, self.context))
        return accepted(self.context, self.request, job)


# end: accepted
# begin: method
class ReindexAll(Service):
    """POST .../folder/@reindex-all: one job for each page, so that none waits for the others."""

    def reply(self):
        alsoProvides(self.request, IDisableCSRFProtection)
        queue = IQueue(self.context)
        for page in self.context.objectValues():
            queue.put(page.reindexObject)
        return {'pages': len(self.context.objectIds())}


# end: method
