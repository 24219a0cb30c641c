"""A shop in Zope: the page "In Zope" shows it, and the tests run it."""

from AccessControl import getSecurityManager
from OFS.SimpleItem import SimpleItem
from Products.Five.browser import BrowserView

from zodbjobs.interfaces import IQueue
from zodbjobs.zope import Job, accepted, enqueue_view


class Invoice(SimpleItem):
    def __init__(self, id, text):
        self.id = id
        self.text = text


# begin: job
def write_invoice(shop, number):
    """Runs in a job: as the user who ordered, in the site, with the URLs of the site."""
    user = getSecurityManager().getUser().getId()
    shop._setObject(f'invoice-{number}', Invoice(f'invoice-{number}', f'{number} for {user}'))
    return shop[f'invoice-{number}'].absolute_url()


class Order(BrowserView):
    """Takes an order; the invoice is written later."""

    def __call__(self, number):
        IQueue(self.context).put(Job(write_invoice, self.context, number))
        return 'Thank you!'


# end: job
# begin: accepted
class OrderByService(BrowserView):
    """The same for programs: answers 202, and where to ask for the outcome."""

    def __call__(self, number):
        job = IQueue(self.context).put(Job(write_invoice, self.context, number))
        return accepted(self.context, self.request, job)


# end: accepted
# begin: view
class Report(BrowserView):
    """Takes long; can be asked for in a browser or by a job."""

    def __call__(self, title='Report'):
        return f'{title}: {len(self.context.objectIds())} invoices'


class ReportInTheNight(BrowserView):
    def __call__(self):
        enqueue_view(self.context, '@@report', title='All invoices')
        return 'It will be there in the morning.'


# end: view
