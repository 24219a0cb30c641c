"""A shop in Pyramid: the page "In Pyramid" shows it, and the tests run it."""

from persistent.mapping import PersistentMapping
from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPNotFound
from pyramid.view import view_config
from pyramid_zodbconn import get_connection

from zodbjobs import Job


def write_invoice(shop, number):
    """Runs in a job, in a thread of the dispatcher: nothing of the request is there."""
    shop[number] = f'invoice {number}'


@view_config(route_name='order', renderer='json', request_method='POST')
def order(request):
    shop = request.root
    request.jobs.put(Job(write_invoice, shop, request.params['number']))
    if 'fail' in request.params:
        raise ValueError('the request fails, and no job was put')
    return {'thank': 'you'}


@view_config(route_name='invoice', renderer='json')
def invoice(request):
    try:
        return {'invoice': request.root[request.matchdict['number']]}
    except KeyError:
        raise HTTPNotFound from None


def root_of(request):
    """The application's root object, made at the first request."""
    root = get_connection(request).root()
    if 'shop' not in root:
        root['shop'] = PersistentMapping()
    return root['shop']


def main(global_config, **settings):
    with Configurator(settings=settings, root_factory=root_of) as config:
        config.include('pyramid_tm')
        config.include('pyramid_zodbconn')
        config.include('zodbjobs.pyramid')
        config.add_route('order', '/orders')
        config.add_route('invoice', '/invoices/{number}')
        config.scan()
    return config.make_wsgi_app()
