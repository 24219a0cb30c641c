"""What is around a call in Zope: remembered as plain data, put up again for a job.

`ZopeHost.remember` and `stored` run in the thread and the transaction of whoever
makes the job; `enter`, `found` and `leave` in a worker's thread, around the
job's own transaction and its commit, so that what is done at the commit (such
as Plone's indexing) meets the same site and user.
"""

import io
import logging
import threading

from AccessControl import getSecurityManager, users
from AccessControl.SecurityManagement import (
    newSecurityManager,
    noSecurityManager,
    setSecurityManager,
)
from AccessControl.unauthorized import Unauthorized
from Acquisition import aq_acquire, aq_base, aq_inner, aq_parent
from OFS.interfaces import IApplication
from persistent import Persistent
from zExceptions import NotFound
from zope.component.hooks import getSite, setSite
from zope.globalrequest import clearRequest, getRequest, setRequest
from zope.interface import alsoProvides, directlyProvidedBy
from zope.interface.interfaces import IInterface
from zope.publisher.browser import setDefaultSkin
from zope.publisher.interfaces.browser import IBrowserRequest
from zope.security.management import endInteraction, newInteraction, queryInteraction
from ZPublisher.BaseRequest import RequestContainer
from ZPublisher.HTTPRequest import HTTPRequest
from ZPublisher.HTTPResponse import HTTPResponse

from zodbjobs import local
from zodbjobs.model.call import Vanished, custom_repr, refuse_broken, resolved
from zodbjobs.model.hosted import Wrapped
from zodbjobs.zope.whereabouts import found_again, is_placed

log = logging.getLogger('zodbjobs.events')

PERMISSION = 'zodbjobs: Run as another user'

#: Where Zope keeps its application in the root of its database.
APPLICATION = 'Application'

# Users who are in no user folder, as a scene names them.
SYSTEM, EMERGENCY = 'system', 'emergency'

#: More objects around one another than any site has; who has more has a circle.
DEPTH_LIMIT = 100

_thread = threading.local()


class UserGone(LookupError):
    """The user as whom a job should run is not there any more."""


class ContentGone(LookupError):
    """The content that a job was given is not in the site any more."""


class ZopeHost:
    """See `zodbjobs.model.hosted`.  It has no state; one serves all."""

    # where the job is made

    def remember(self):
        scene = {'user': user_of(getSecurityManager().getUser())}
        site = getSite()
        if site is not None and hasattr(site, 'getPhysicalPath'):
            scene['site'] = '/'.join(site.getPhysicalPath())
        request = getRequest()
        if request is not None and hasattr(request, 'physicalPathToURL'):
            scene.update(remember_request(request))
        return scene

    def stored(self, value):
        kind = type(value)
        if kind is list or kind is tuple:
            kept = [self.stored(each) for each in value]
            changed = any(new is not old for new, old in zip(kept, value, strict=True))
            return kind(kept) if changed else value
        if kind is dict:
            kept = {key: self.stored(each) for key, each in value.items()}
            return kept if any(kept[key] is not value[key] for key in value) else value
        return value if aq_base(value) is value else unwrapped(value)

    def scene_of_user(self, job, user_id, folder=None):
        """The scene of `job` with another user; see `ZopeJob.run_as`."""
        if folder is None:
            site = getSite()
            if site is None:
                raise ValueError('there is no site: say of which user folder the user is')
            folder = aq_acquire(site, 'acl_users')
        place = aq_parent(aq_inner(folder))
        manager = getSecurityManager()
        if not manager.checkPermission(PERMISSION, place):
            raise Unauthorized(
                f'{manager.getUser()!r} lacks the permission {PERMISSION!r}'
                f' at {"/".join(place.getPhysicalPath()) or "/"}'
            )
        path = '/'.join(folder.getPhysicalPath())
        found_user(folder, path, user_id)
        return {**job.scene, 'user': (path, user_id)}

    # where it is run

    def is_entered(self):
        return getattr(_thread, 'app', None) is not None

    def enter(self, job, scene):
        app = application_of(job._p_jar)
        if app is None:
            raise LookupError(
                f'{job!r} is to run in a Zope, and there is no {APPLICATION!r} in the root of the'
                f' database that this process serves'
            )
        try:
            request = new_request(app, scene)
            _thread.request = request
            _thread.app = app = app.__of__(RequestContainer(REQUEST=request))
            request['PARENTS'] = [app]
            setRequest(request)
            self._enter_site(app, request, scene.get('site'))
            restore_user(app, request, scene.get('user'))
            newInteraction()
        except BaseException:
            self.leave(None)
            raise

    def _enter_site(self, app, request, path):
        if path is None:
            return
        try:
            site = app.unrestrictedTraverse(path)
        except (KeyError, AttributeError, NotFound) as error:
            raise LookupError(f'the site {path} is not there any more') from error
        setSite(site)
        skin = getattr(site, 'setupCurrentSkin', None)  # CMF's
        if skin is not None:
            skin(request)
        _bind_language(request)

    def leave(self, entered):
        request = getattr(_thread, 'request', None)
        self._take_down()
        if request is not None:
            request.close()

    def _take_down(self):
        _thread.app = _thread.request = None
        if queryInteraction() is not None:
            endInteraction()
        noSecurityManager()
        setSite(None)
        clearRequest()

    def pause(self):
        held = getSecurityManager(), getSite(), _thread.request, _thread.app
        self._take_down()
        return held

    def proceed(self, held):
        manager, site, _thread.request, _thread.app = held
        setSecurityManager(manager)
        setSite(site)
        setRequest(_thread.request)
        newInteraction()

    def found(self, value):
        kind = type(value)
        if kind is Wrapped:
            return rewrapped(value)
        if kind is list or kind is tuple:
            return kind(self.found(each) for each in value)
        if kind is dict:
            return {key: self.found(each) for key, each in value.items()}
        return value

    def result(self, value):
        """What to store of what the call returned: content without its wrappers."""
        return aq_base(value)


host = ZopeHost()


# Users ---------------------------------------------------------------------------------------


def user_of(user):
    """How a scene names a user: None (nobody), (path of the user folder, id), or a special name."""
    bare = aq_base(user)
    if bare is None or bare is aq_base(users.nobody):
        return None
    if bare is aq_base(users.system):
        return SYSTEM
    if bare is aq_base(users.emergency_user):
        return EMERGENCY
    folder = aq_parent(aq_inner(user))
    if user.getId() is None:
        return None  # a user folder's own anonymous user
    if folder is None or not hasattr(folder, 'getUserById'):
        raise ValueError(
            f'{user!r} is in no user folder, so that a job could not find this user again: put'
            f' the job as a user of a user folder'
        )
    return '/'.join(folder.getPhysicalPath()), user.getId()


def found_user(folder, path, user_id):
    """The user of that id, wrapped in the user folder.  Raises UserGone."""
    user = folder.getUserById(user_id)
    if user is None or user.getId() != user_id:
        raise UserGone(f'there is no user {user_id!r} in {path} any more')
    return user if aq_parent(user) is not None else user.__of__(folder)


def restore_user(app, request, named):
    """Make this thread's security manager that of the user whom a scene names."""
    if named is None:
        noSecurityManager()
        return
    if named == SYSTEM:
        user = users.system
    elif named == EMERGENCY:
        user = users.emergency_user
        if user.getUserName() is None:
            raise UserGone('this process has no emergency user')
    else:
        path, user_id = named
        try:
            folder = app.unrestrictedTraverse(path)
        except (KeyError, AttributeError, NotFound) as error:
            raise UserGone(f'there is no user folder {path} any more') from error
        user = found_user(folder, path, user_id)
    newSecurityManager(None, user)
    request['AUTHENTICATED_USER'] = user


# Requests --------------------------------------------------------------------------------------


def remember_request(request):
    """Language, layers and URLs of a request, as plain data."""
    layers = [
        layer.__identifier__
        for layer in directlyProvidedBy(request)
        if IInterface.providedBy(layer) and layer is not IBrowserRequest
    ]
    kept = {
        'server_url': request.get('SERVER_URL'),
        'script': tuple(request._script),
        'virtual_root': tuple(request.get('VirtualRootPhysicalPath', ('',))),
        'layers': tuple(layers),
        'accept_language': request.environ.get('HTTP_ACCEPT_LANGUAGE'),
        'language': request.get('LANGUAGE'),
    }
    return {name: value for name, value in kept.items() if value is not None}


def new_request(app, scene):
    """A request as the one that a scene remembers, without its form and its body."""
    environ = {'SERVER_NAME': 'localhost', 'SERVER_PORT': '80', 'REQUEST_METHOD': 'GET'}
    if scene.get('server_url'):
        environ['SERVER_URL'] = scene['server_url']
    language = scene.get('language')
    accepted = language or scene.get('accept_language')
    if accepted:
        environ['HTTP_ACCEPT_LANGUAGE'] = accepted
    request = HTTPRequest(io.BytesIO(), environ, HTTPResponse(stdout=io.BytesIO()))
    request._script[:] = scene.get('script', ())
    request.other['VirtualRootPhysicalPath'] = tuple(scene.get('virtual_root', ('',)))
    request._resetURLS()
    request['ACTUAL_URL'] = request.get('URL')
    setDefaultSkin(request)
    for name in scene.get('layers', ()):
        layer = _layer(name)
        if layer is not None and not layer.providedBy(request):
            alsoProvides(request, layer)
    if language:
        request.set('LANGUAGE', language)
    return request


def _bind_language(request):
    """Have Plone translate into the language of the request, whatever it would negotiate."""
    language = request.get('LANGUAGE')
    try:
        binding = resolved('plone.i18n.utility:LanguageBinding')()
    except Vanished:
        return
    if language is not None:
        binding.LANGUAGE = binding.DEFAULT_LANGUAGE = language
        binding.LANGUAGE_LIST = [language]
        request['LANGUAGE_TOOL'] = binding


def _layer(name):
    try:
        return resolved(':'.join(name.rsplit('.', 1)))
    except Vanished:
        log.warning('the layer %s of a job is not in this process', name)
        return None


# Content ---------------------------------------------------------------------------------------


def application_of(jar):
    """Zope's application in the database of a connection, or in that which is served; or None."""
    dispatcher = local.getDispatcher()
    jars = [jar, *jar.connections.values()]
    if dispatcher is not None:
        jars.insert(0, jar.get_connection(dispatcher.db.database_name))
    for each in jars:
        app = each.root().get(APPLICATION)
        if IApplication.providedBy(app):
            return app
    return None


def unwrapped(value):
    """What is kept of an acquisition-wrapped object: a `Wrapped`.  TypeError for what cannot be."""
    chain, each = [], value
    while each is not None and len(chain) < DEPTH_LIMIT:
        base = aq_base(each)
        if not isinstance(base, Persistent):
            raise TypeError(
                f'{value!r} lies in {type(base).__name__}, which is not stored: pass content that'
                f' is in its place in the site, or a key to look it up by'
            )
        chain.append(base)
        if IApplication.providedBy(base):
            placed = map(is_placed, chain, chain[1:])
            _give_homes(chain)
            return Wrapped(chain, placed)
        each = aq_parent(aq_inner(each))
    raise TypeError(
        f'{value!r} is not in the site: nothing above it is the root of Zope; put the job when'
        f' the content is in its place, or pass a key to look it up by'
    )


def _give_homes(chain):
    """Content that was made in this transaction goes to the database of what it lies in.

    A job in another database would leave two to choose from.
    """
    jar = chain[-1]._p_jar
    for base in reversed(chain):
        if base._p_jar is None and jar is not None:
            jar.add(base)
        jar = base._p_jar


def rewrapped(kept):
    """The object for which a `Wrapped` stands, in the scene of this thread."""
    refuse_broken(*kept.chain)
    root = kept.chain[-1]
    app = getattr(_thread, 'app', None)
    if app is None:  # called here and now, in whatever is around the caller
        request = getRequest()
        obj = root if request is None else root.__of__(RequestContainer(REQUEST=request))
    elif aq_base(app) is root:
        obj = app
    else:
        obj = root.__of__(RequestContainer(REQUEST=_thread.request))
    for number in range(len(kept.chain) - 2, -1, -1):
        inner, outer = kept.chain[number], kept.chain[number + 1]
        if not kept.placed[number] or is_placed(inner, outer):
            obj = inner.__of__(obj)
        else:
            obj = _moved(inner, obj, app)
    return obj


def _path(obj):
    return '/'.join(obj.getPhysicalPath()) or '/'


def _moved(inner, outer, app):
    """Content that is not where it was: where it is now, in the same site.  Raises ContentGone."""
    site = getSite()
    top = outer.getPhysicalRoot() if app is None else app
    if site is not None and hasattr(site, 'getPhysicalPath'):
        top = top.unrestrictedTraverse(site.getPhysicalPath())
    found = found_again(inner, top)
    if found is None:
        raise ContentGone(
            f'{custom_repr(inner)} ({inner.getId()!r}) is not in {_path(outer)} any more, and was'
            f' not found elsewhere in {_path(top)}: it was deleted or moved after the job was put'
        )
    return found
