"""What the tests of Plone need beside `probe`: a site, users, pages."""

import json

from plone.dexterity.utils import createContentInContainer
from plone.protect.interfaces import IDisableCSRFProtection
from probe import Probe
from Products.CMFCore.utils import getToolByName
from Products.CMFPlone.factory import addPloneSite
from Products.Five.browser import BrowserView
from zope.globalrequest import getRequest
from zope.i18n import translate
from zope.interface import alsoProvides

from zodbjobs.interfaces import IQueue
from zodbjobs.zope import Job


def retitle(page, title):
    page.title = title
    page.reindexObject()
    return '/'.join(page.getPhysicalPath())


def words():
    return [translate('weekday_mon', domain='plonelocales', context=getRequest())]


class Make(BrowserView):
    """Make a Plone site with two users."""

    def __call__(self):
        alsoProvides(self.request, IDisableCSRFProtection)
        site = addPloneSite(
            self.context,
            'Plone',
            default_language='de',
            extension_ids=('plone.app.contenttypes:default', 'plone.restapi:default'),
        )
        for name, role in (('eva', 'Manager'), ('max', 'Reader')):
            site.acl_users.userFolderAddUser(name, 'secret-12345', [role], [])
        folder = createContentInContainer(site, 'Folder', id='news', title='News')
        for number in range(3):
            createContentInContainer(folder, 'Document', id=f'page-{number}', title='A page')
        drafts = createContentInContainer(site, 'Folder', id='drafts', title='Drafts')
        createContentInContainer(drafts, 'Document', id='draft', title='A draft')
        return json.dumps(site.getId())


class PloneProbe(Probe):
    def __call__(self, what):
        alsoProvides(self.request, IDisableCSRFProtection)
        return super().__call__(what)

    def states(self):
        workflow = getToolByName(self.context, 'portal_workflow')
        return [workflow.getInfoFor(each, 'review_state') for each in self.context.objectValues()]

    def titles(self, text):
        """What the catalog finds."""
        catalog = getToolByName(self.context, 'portal_catalog')
        return [brain.Title for brain in catalog.unrestrictedSearchResults(SearchableText=text)]

    def retitle(self, title):
        return self.put(retitle, self.context, title)

    def unindex(self):
        for page in self.context.objectValues():
            page.title = 'Unseen'
        return len(self.context.objectIds())

    def page(self, id):
        return createContentInContainer(self.context, 'Document', id=id, title=id).getId()

    def rename(self, id, new):
        self.context.manage_renameObject(id, new)
        return new

    def waiting_retitle(self, title):
        return self.queue.put(Job(retitle, self.context, title), delay=3600).oid

    def words(self, language):
        self.request.set('LANGUAGE', language)
        return self.queue.put(words).oid

    def class_of(self, oid):
        return type(self._job(oid)).__name__

    def plain_put(self):
        """What becomes of a function that is put, by the configuration."""
        return type(IQueue(self.context).put(words)).__name__
