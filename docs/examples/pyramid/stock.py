"""Sells what is in stock: two requests at the same moment conflict, and one is made again."""

from persistent.mapping import PersistentMapping
from pyramid.config import Configurator
from pyramid_zodbconn import get_connection

from zodbjobs import Job


def send(stock, number):
    """Runs in a job."""
    stock[f'parcel {number}'] = 'sent'


# begin: sell
def sell(request):
    stock = request.root
    stock['left'] -= 1
    request.jobs.put(Job(send, stock, stock['left']))
    return {'left': stock['left']}


def main(global_config, view=sell, **settings):
    settings = {'retry.attempts': 3, **settings}
    with Configurator(settings=settings, root_factory=root_of) as config:
        config.include('pyramid_retry')
        config.include('pyramid_tm')
        config.include('pyramid_zodbconn')
        config.include('zodbjobs.pyramid')
        config.add_route('sell', '/sell')
        config.add_view(view, route_name='sell', renderer='json', request_method='POST')
    return config.make_wsgi_app()


# end: sell


def root_of(request):
    root = get_connection(request).root()
    if 'stock' not in root:
        root['stock'] = PersistentMapping(left=10)
    return root['stock']
