"""Where content is now that is not where it was: the same object, or nothing.

Content is what it is by its identity in the database, wherever it stands and
whatever it is called.  So what is found must be that very object, reached from
the root of Zope step by step by the ids that the objects have now, and below
the site of the job; what else stands at the old path is other content.

Whoever keeps account of content is asked first: the catalog by the UUID, as in
Plone, then the ids of zope.intid.  Where neither knows such content, folders are
searched, the nearest to the site first, up to a limit.

Runs in a worker's thread and transaction, in the scene of a job.
"""

import collections
import itertools

from Acquisition import aq_base, aq_inner, aq_parent
from OFS.interfaces import IApplication, IObjectManager
from zExceptions import NotFound
from zope.component import queryUtility

from zodbjobs.model.call import Vanished, resolved

#: Folders whose contents are looked through, and objects that are seen there, for one that moved.
FOLDERS_LOOKED_AT, OBJECTS_LOOKED_AT = 1000, 20_000


def is_placed(inner, outer):
    """Whether `outer` has `inner` under the id that `inner` has."""
    get, name = getattr(outer, '_getOb', None), getattr(inner, 'getId', None)
    if get is None or name is None:
        return False
    try:
        return aq_base(get(name())) is aq_base(inner)
    except (KeyError, AttributeError):
        return False


def found_again(content, top):
    """`content`, which is not where it was, wrapped as it stands below `top` now; or None.

    `content` is without wrappers; `top` is the site or the root of Zope, with them.
    """
    for ask in (_by_uuid, _by_intid):
        known, found = ask(content, top)
        if known:
            return _verified(found, content, top)
    return _verified(_by_search(content, top), content, top)


def _verified(found, content, top):
    """`found` if it is the content, and stands below `top` step by step; else None."""
    if found is None or aq_base(found) is not content:
        return None
    each = found = aq_inner(found)
    passed = False
    while not IApplication.providedBy(each):
        passed = passed or aq_base(each) is aq_base(top)
        outer = aq_parent(aq_inner(each))
        if outer is None or not is_placed(aq_base(each), aq_base(outer)):
            return None
        each = outer
    return found if passed or aq_base(each) is aq_base(top) else None


# Who may know.  Each answers (whether it keeps account of such content, what it has found).


def _by_uuid(content, top):
    try:
        uuid = resolved('plone.uuid.interfaces:IUUID')(content, None)
        path_of = resolved('plone.app.uuid.utils:uuidToPhysicalPath')
    except Vanished:
        return False, None
    if uuid is None or getattr(aq_base(top), 'portal_catalog', None) is None:
        return False, None
    path = path_of(uuid)
    return True, None if path is None else _traversed(top, path)


def _by_intid(content, top):
    try:
        ids = queryUtility(resolved('zope.intid.interfaces:IIntIds'))
    except Vanished:
        return False, None
    number = None if ids is None else ids.queryId(content)
    if number is None:
        return False, None
    found = ids.queryObject(number)
    if found is None or not hasattr(found, 'getPhysicalPath'):
        return False, None
    return True, _traversed(top, '/'.join(found.getPhysicalPath()))


def _traversed(top, path):
    try:
        return top.unrestrictedTraverse(path)
    except (KeyError, AttributeError, NotFound):
        return None


def _by_search(content, top):
    folders, seen = collections.deque([top]), 0
    for _ in range(FOLDERS_LOOKED_AT):
        if not folders or seen > OBJECTS_LOOKED_AT:
            break
        folder = folders.popleft()
        if is_placed(content, aq_base(folder)):
            return content.__of__(folder)
        for inner in itertools.islice(folder.objectValues(), OBJECTS_LOOKED_AT - seen):
            seen += 1
            if IObjectManager.implementedBy(type(aq_base(inner))):
                folders.append(inner)
    return None
