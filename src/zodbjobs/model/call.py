"""What can be called later, and what can be stored.

A function is kept as ``'module:qualified.name'`` and looked up when it is
called: a pickled reference to a function that has vanished would load as a
broken *class*, and calling that succeeds without doing anything.  A method is
kept as its object and its name.  Anything else that is callable is kept itself.

Both are tried when a job is put, so that what could not be run or stored later
is refused there, in words that help, and not by a commit that fails.
"""

import copyreg
import functools
import io
import sys
import types
import zoneinfo

from persistent import Persistent
from persistent.wref import WeakRef
from ZODB.broken import Broken, broken_cache
from zodbpickle import binary, pickle

PROTOCOL = 3  # what ZODB writes

_PLAIN = (str, int, float, bytes, bool, type(None), complex, binary)

#: How deep and how long a plain value may be to be believed without a trial.
_PLAIN_DEPTH, _PLAIN_LENGTH = 3, 50

if sys.version_info < (3, 12):
    # There zodbpickle cannot store a ZoneInfo: its own reducer names a static
    # method.  This one names the class.
    copyreg.pickle(zoneinfo.ZoneInfo, lambda zone: (zoneinfo.ZoneInfo, (zone.key,)))


class Vanished(LookupError):
    """The code that a stored job would call is not there any more."""


def stored_form(call):
    """How `call` is kept in the database.

    Returns text for what a module holds, (object, name) for a bound method,
    else the object.  Raises TypeError for what cannot be found again later.
    """
    if type(call) is types.FunctionType:
        return _name_of(call)
    if not callable(call):
        raise TypeError(f'{call!r} cannot be called; to pass arguments use Job(function, ...)')
    owner = getattr(call, '__self__', None)
    if owner is not None and not isinstance(owner, (type, types.ModuleType)):
        return owner, _method_name(owner, call)
    if isinstance(call, (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type)):
        return _name_of(call)
    if isinstance(call, functools.partial):
        raise TypeError(f'{call!r}: a partial is unwrapped by Job, nested ones are not')
    return call


def _method_name(owner, call):
    name = getattr(call, '__name__', None)
    if name is None or getattr(owner, name, None) != call:
        raise TypeError(
            f'{call!r} is not the method {name!r} of its object, so it could not be found again;'
            f' give it the name under which it is called'
        )
    return name


def _name_of(call):
    module, name = call.__module__, call.__qualname__
    if getattr(sys.modules.get(module), name, None) is call:  # most are simple functions
        return f'{module}:{name}'
    if isinstance(getattr(call, '__self__', None), type):  # a class method, maybe an inherited one
        module, name = call.__self__.__module__, f'{call.__self__.__qualname__}.{call.__name__}'
    if '<lambda>' in name or '<locals>' in name:
        kind = 'a lambda' if '<lambda>' in name else 'a function made inside another function'
        raise TypeError(
            f'{module}.{name} is {kind}, which another process could not find again;'
            f' define it at the top of a module and pass what it needs as arguments:'
            f' Job(function, argument)'
        )
    text = f'{module}:{name}'
    try:
        found = resolved(text)
    except Vanished as error:
        raise TypeError(
            f'{module}.{name} cannot be found under that name, so no worker could call it'
            f' ({error}); define it at the top of a module that workers can import'
        ) from None
    if found is not call and found != call:
        raise TypeError(
            f'{module}.{name} is not what is found under that name ({found!r});'
            f' pass the function that the module holds'
        )
    return text


def resolved(stored):
    """The callable that `stored` (see `stored_form`) stands for.

    Raises Vanished if its module, its name or its class is gone.
    """
    if isinstance(stored, str):
        return _found(stored)
    if isinstance(stored, tuple):
        owner, name = stored
        refuse_broken(owner)
        try:
            return getattr(owner, name)
        except AttributeError:
            raise Vanished(f'{type(owner).__name__} has no method {name!r} any more') from None
    refuse_broken(stored)
    return stored


def _found(text):
    module_name, _, name = text.partition(':')
    try:
        __import__(module_name)  # it waits for another thread that is still importing it
        found = sys.modules[module_name]
        for part in name.split('.'):
            found = getattr(found, part)
    except ImportError as error:
        raise Vanished(f'module {module_name!r} cannot be imported: {error}') from error
    except AttributeError:
        raise Vanished(f'module {module_name!r} has no {name!r}') from None
    return found


class Gone:
    """What is kept in place of something that refers to code that is gone.

    A reference to it can be loaded, as a class that does nothing, but not be
    stored again; and every job must be stored again, to say how it ended.
    """

    def __init__(self, text):
        self.text = text

    def __repr__(self):
        return f'<gone: {self.text}>'


def lasting(value):
    """`value`, or a `Gone` if it cannot be stored any more, as code that it refers to is gone."""
    if not broken_cache or is_plain(value):  # this process has met nothing that is gone
        return value
    if type(value) is tuple:
        return tuple(lasting(each) for each in value)
    if type(value) is dict:
        return {key: lasting(each) for key, each in value.items()}
    trial = _Trial(io.BytesIO(), [])
    try:
        trial.dump(value)
    except Exception:  # noqa: BLE001 - whatever the pickler raises
        if trial.met_gone:
            return Gone(repr(value))
    return value  # what cannot be stored for another reason shall be heard of at the commit


def refuse_broken(*things):
    """Raise Vanished if one of `things` is gone: its class, or the function or class it was."""
    for thing in things:
        cls = thing if isinstance(thing, type) else type(thing)
        if issubclass(cls, Broken):
            raise Vanished(f'{cls.__module__}.{cls.__name__} cannot be imported')
        if cls is Gone:
            raise Vanished(f'{thing.text} could not be imported')


def call_name(stored):
    """A readable dotted name for a stored callable, for logs and lists."""
    if isinstance(stored, str):
        return stored.replace(':', '.')
    if isinstance(stored, tuple):
        return f'{_class_name(stored[0])}.{stored[1]}'
    return _class_name(stored)


def _class_name(thing):
    cls = thing if isinstance(thing, type) else type(thing)
    return f'{cls.__module__}.{cls.__qualname__}'


def is_plain(value, depth=_PLAIN_DEPTH):
    """Whether `value` is so simple that it surely can be stored."""
    cls = type(value)
    if cls in _PLAIN:
        return True
    if depth and len(value) <= _PLAIN_LENGTH if cls in (list, tuple, dict, set) else False:
        items = [*value, *value.values()] if cls is dict else value
        return all(is_plain(item, depth - 1) for item in items)
    return False


class _Trial(pickle.Pickler):
    """Pickles as ZODB will, and notes the persistent objects that it meets."""

    def __init__(self, file, met):
        super().__init__(file, PROTOCOL)
        self.met = met
        self.met_gone = False

    def persistent_id(self, obj):
        if isinstance(obj, type):
            self.met_gone |= issubclass(obj, Broken)
        elif isinstance(obj, Persistent):
            self.met.append(obj)
            return b'persistent'
        if isinstance(obj, WeakRef):
            return b'weak'
        return None


def trial_pickle(value):
    """Pickle `value` as ZODB would; returns the persistent objects it refers to.

    Raises whatever the pickler raises.
    """
    met = []
    _Trial(io.BytesIO(), met).dump(value)
    return met


def check_storable(value, jar, what, homes=True):
    """Raise TypeError or ValueError unless `value` could be committed by `jar`.

    `what` names it in the error.  Persistent objects must belong to `jar` or to
    a connection opened with it; new ones are followed, and with `homes` they
    are refused where several databases could be meant.
    """
    if is_plain(value):
        return
    pending, seen = [(value, what)], set()
    while pending:
        part, name = pending.pop()
        try:
            met = trial_pickle(part)
        except Exception as error:
            raise TypeError(
                f'{name} cannot be stored ({type(error).__name__}: {error}):'
                f' pass plain values, persistent objects, or a key to look the thing up by'
            ) from error
        for obj in met:
            if id(obj) in seen:
                continue
            seen.add(id(obj))
            if obj._p_jar is None:
                if homes:
                    _refuse_homeless(obj, jar, what)
                pending.append((obj.__getstate__(), f'{what}, in {type(obj).__name__},'))
            else:
                _refuse_foreign(obj, jar, what)


def _refuse_foreign(obj, jar, what):
    home = obj._p_jar
    if home is jar or any(home is other for other in jar.connections.values()):
        return
    if home.db().database_name == jar.db().database_name and home.db() is jar.db():
        raise ValueError(
            f'{what} refers to {type(obj).__name__} of another connection;'
            f' get it through the connection of the queue: queue._p_jar.get(obj._p_oid)'
        )
    raise ValueError(
        f'{what} refers to {type(obj).__name__} of database {home.db().database_name!r}, which'
        f' is not opened together with the database of the queue; pass a key to look it up by'
    )


def _refuse_homeless(obj, jar, what):
    databases = getattr(jar.db(), 'databases', ())
    if len(databases) > 1 and not hasattr(obj, 'addCallback'):
        raise ValueError(
            f'{what} is a new {type(obj).__name__}, and it is not clear in which of the'
            f' databases {sorted(databases)} it shall live: add it to its place and commit, or'
            f' connection.add(obj), before the job is put'
        )


def custom_repr(thing):
    """A short repr that loads nothing: class and oid for what is stored."""
    if isinstance(thing, Persistent):
        cls = type(thing)
        oid = thing._p_oid
        name = f'{cls.__module__}.{cls.__qualname__}'
        return f'{name} (oid {int.from_bytes(oid, "big")})' if oid else name
    if callable(thing) and hasattr(thing, '__qualname__'):
        return f'{thing.__module__}.{thing.__qualname__}'
    return repr(thing)
