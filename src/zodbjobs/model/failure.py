"""What became of a call that raised, in a form that can be kept for years.

A `Failure` is made in the worker's thread, inside its ``except`` block, and is
stored in the job's record with the worker's commit.  So it must be safe to
keep: it holds text and numbers only, never a frame, a traceback, a persistent
object or the exception itself.  What it keeps is one plain dict, the *record*::

    version    1
    module     'builtins'                      where the exception's class is from
    name       'NameError'                     its qualified name there
    bases      ('builtins.NameError', ...)     the class and its bases, dotted
    text       "name 'foo' is not defined"
    frames     ((function, file, line, source, ((local, text), ...)), ...)
    gap        (index, count)                  frames left out there
    notes      (text, ...)                     of add_note()
    causes     ((how, class, text, frames), ...)  newest first, frames in short
    parts      ((depth, class, text, frame), ...) of an exception group
    exception  bytes                           its pickle, proved to load

Entries that say nothing are left out.  The three details of a traceback are
written out of the record when they are asked for.  Nothing else is pickled, so
no class of an application can make a job's record unloadable; the exception's
own pickle is opaque bytes, opened when somebody asks for `Failure.value`.

Values of local variables are described without asking their classes anything:
a ``__repr__`` may raise, hang, or load half the database.
"""

import collections
import copyreg
import datetime
import decimal
import importlib
import inspect
import io
import itertools
import linecache
import pickle
import re
import sys
import types
import uuid
from collections.abc import Callable

from persistent import Persistent
from persistent.wref import WeakRef
from twisted.python.failure import Failure as TwistedFailure
from twisted.python.failure import NoCurrentExceptionError

VERSION = 1

# How much is kept.  Guessed so that an ordinary failure stays below 1.5 kB and the worst one
# below ZODB's habitual size of a record; the innermost part of anything says most.
TEXT_LENGTH = 2000  # characters of the exception's text
SHORT_TEXT_LENGTH = 300  # of a cause's, a note's, a part's
SOURCE_LENGTH = 160  # of a line of source
PATH_LENGTH = 240
OUTER_FRAMES = 10
INNER_FRAMES = 30
CAUSES = 4
CAUSE_FRAMES = 5
PARTS = 12
PART_DEPTH = 3
NOTES = 5
BASES = 30
LOCALS = 12  # in one frame
LOCAL_LENGTH = 80
LOCALS_LENGTH = 5000  # characters, in all frames
ITEMS = 4  # of a container
DEPTH = 2  # of containers in containers
INTEGER_BITS = 256
EXCEPTION_SIZE = 8192  # bytes
#: Characters of a traceback by detail, about 20 kB together.
DETAILS = {'brief': 4000, 'default': 8000, 'verbose': 8000}

#: Code that only carries a job to its call: it says nothing about what went wrong there.
CARRIERS = ('zodbjobs.runtime.', 'zodbjobs.model.')

#: Variables whose values are not written down.
PRIVATE = re.compile(
    r'pass(word|wd|phrase)|secret|token|credential|authori[sz]ation|(api|private)_?key', re.I
)

HEAD = 'Traceback (most recent call last):'
HOW = {
    'cause': 'The above exception was the direct cause of the following exception:',
    'context': 'During handling of the above exception, another exception occurred:',
}


def is_failure(value):
    """Whether `value` is a Failure, of ours or of Twisted's."""
    return issubclass(type(value), TwistedFailure)


class StoredException(Exception):
    """Stands for an exception that could not be kept, or cannot be loaded.

    Its str() is the original's text.  Where the original's class can still
    be imported the stand-in is an instance of that too, so ``except`` clauses
    work; it lacks the attributes that class gives its instances.
    """

    stored_module = ''
    stored_name = ''
    stored_text = ''

    @property
    def dotted_name(self):
        """The dotted name of the original's class."""
        return _joined(self.stored_module, self.stored_name)

    def __str__(self):
        return self.stored_text

    def __repr__(self):
        return f'<StoredException {self.dotted_name}: {self.stored_text}>'

    def __reduce__(self):
        return _stand_in, (self.stored_module, self.stored_name, self.stored_text)


class Failure(TwistedFailure):
    """An exception that was caught, as plain values; see Twisted's Failure.

    ``Failure()`` inside an ``except`` block, or ``Failure(exception)``, or
    ``Failure(failure)`` to keep one of Twisted's.  Raises
    NoCurrentExceptionError when there is nothing to keep.
    """

    sanitized = True  # zc.async's word for: holds no live object
    pickled = 1
    count = 0
    captureVars = True
    tb = None
    _value = None

    def __new__(cls, *args, **kw):
        return super().__new__(cls)  # BaseException would keep the arguments

    def __init__(self, exc_value=None, exc_type=None, exc_tb=None, captureVars=True):
        if exc_value is None:
            exc_value = sys.exception()
            if exc_value is None:
                raise NoCurrentExceptionError()
        try:
            self._record = _record_of(exc_value, exc_type, exc_tb, captureVars)
        except Exception:  # an exception whose very attributes raise: say at least what it was
            self._record = _said(type(exc_value), _text_of(exc_value))

    # What is pickled: this class and the record.

    def __reduce__(self):
        return copyreg.__newobj__, (Failure,), self.__getstate__()

    def __getstate__(self):
        return self._record

    def __setstate__(self, record):
        self._record = record

    # What Twisted keeps as attributes.

    @property
    def type(self):
        """The exception's class; StoredException if that cannot be imported."""
        return _imported(self._record['module'], self._record['name']) or StoredException

    @property
    def value(self):
        """The exception, without its traceback; a StoredException if it was lost."""
        if self._value is None:
            self._value = self._revived()
        return self._value

    @property  # type: ignore[misc]
    def parents(self):
        """Dotted names of the exception's class and of its bases (a list)."""
        return list(self._record['bases'])

    @property  # type: ignore[misc]
    def frames(self):
        """[[function, file, line, [(local, text)], []]], the innermost last."""
        return [
            [function, file, line, list(local), []]
            for function, file, line, source, local in self._record.get('frames', ())
        ]

    @property
    def stack(self):
        """Always empty: what called the code that caught the exception is not kept."""
        return []

    @property
    def __dict__(self):
        # A Failure that Twisted makes of this one (somebody raised it) copies these.
        return {
            'type': self.type,
            'value': self.value,
            'tb': None,
            'frames': self.frames,
            '_frames': self.frames,
            'parents': self.parents,
            '_parents': self.parents,
            'stack': [],
            'captureVars': True,
            'pickled': 1,
            'count': 0,
        }

    def cleanFailure(self):
        """Nothing is left to clean."""

    # What users call.

    def check(self, *errorTypes):
        """The first of `errorTypes` that the exception is an instance of, or None.

        Each is a class, or the dotted name of one, which need not be importable.
        """
        bases = self._record['bases']
        for error in errorTypes:
            if (_dotted(error) if isinstance(error, type) else error) in bases:
                return error
        return None

    def trap(self, *errorTypes):
        """As `check`, but raises the exception if it is none of them."""
        error = self.check(*errorTypes)
        if error is None:
            self.raiseException()
        return error

    def raiseException(self):
        """Raise the exception, or what stands for it."""
        raise self._revived()  # a new one each time: the traceback it gets must not stay with us

    def throwExceptionIntoGenerator(self, g):
        """Raise the exception where the generator `g` waits."""
        return g.throw(self._revived())

    def getErrorMessage(self):
        """The text of the exception."""
        return self._record['text']

    def getTraceback(self, elideFrameworkCode=0, detail='default'):
        """The traceback as text.

        `detail` is 'brief', 'default' or 'verbose' (with local variables);
        `elideFrameworkCode` is there for Twisted's callers and says nothing.
        Raises ValueError for another detail.
        """
        if detail not in DETAILS:
            raise ValueError(f'detail must be one of {", ".join(DETAILS)}, not {detail!r}')
        return _shortened(_WRITERS[detail](self._record), DETAILS[detail])

    def getBriefTraceback(self):
        """One line for the exception and one for each frame."""
        return self.getTraceback(detail='brief')

    def printTraceback(self, file=None, elideFrameworkCode=0, detail='default'):
        """Write `getTraceback` to `file`, which is sys.stderr if not given."""
        (sys.stderr if file is None else file).write(self.getTraceback(detail=detail))

    def printBriefTraceback(self, file=None, elideFrameworkCode=0):
        """Write the brief traceback to `file`."""
        self.printTraceback(file, detail='brief')

    def printDetailedTraceback(self, file=None, elideFrameworkCode=0):
        """Write the verbose traceback to `file`."""
        self.printTraceback(file, detail='verbose')

    def __repr__(self):
        return f'<zodbjobs.Failure {self._record["bases"][0]}: {self._record["text"]}>'

    def __str__(self):
        return f'[Failure instance: {self.getBriefTraceback()}]'

    def _revived(self):
        """The exception loaded anew, or its stand-in."""
        record = self._record
        value = _loaded(record.get('exception'))
        if value is None:
            value = _stand_in(record['module'], record['name'], record['text'])
        return value


# Making the record -------------------------------------------------------------------------


def _record_of(value, kind=None, traceback=None, with_locals=True):
    """The record of what was caught: an exception, or a Failure that holds one."""
    if isinstance(value, Failure):
        return value._record
    given_frames = ()
    if isinstance(value, TwistedFailure):
        kind, traceback, given_frames, value = value.type, value.tb, value.frames, value.value
    if not isinstance(kind, type):
        kind = type(value)
    text = _text_of(value)
    traceback = traceback or getattr(value, '__traceback__', None)
    if traceback is not None:
        frames, gap = _frames_of(traceback, with_locals)
    else:
        frames, gap = _frames_given(given_frames)
    more = {
        'frames': frames,
        'gap': gap,
        'notes': _notes_of(value),
        'causes': _causes_of(value),
        'parts': tuple(itertools.islice(_parts_of(value), PARTS)),
        'exception': _pickle_of(value, text),
    }
    return _said(kind, text) | {key: entry for key, entry in more.items() if entry}


def _said(kind, text):
    """The entries that every record has."""
    module, name = _place(kind)
    bases = tuple(map(_dotted, kind.__mro__[:BASES]))
    return {'version': VERSION, 'module': module, 'name': name, 'bases': bases, 'text': text}


def _place(kind):
    """(module, qualified name) of a class, as plain strings."""
    module, name = kind.__module__, kind.__qualname__
    return _plain(module if isinstance(module, str) else '?'), _plain(name)


def _joined(module, name):
    return f'{module}.{name}'


def _dotted(kind):
    return _joined(*_place(kind))


def _plain(text, length=SHORT_TEXT_LENGTH):
    """`text` as an exact str that every storage and terminal takes, cut short."""
    # An application's subclass of str must not get into the pickle; str's own slicing makes
    # a plain one.  Lone surrogates (undecodable file names) cannot be written anywhere.
    size = str.__len__(text)
    text = str.__getitem__(text, slice(0, length))
    if not text.isascii():
        text = text.encode('utf-8', 'backslashreplace').decode('utf-8')
    return text if size <= length else text + '...'


def _text_of(value, length=TEXT_LENGTH):
    """str(value), whatever its class does about it."""
    try:
        return _plain(str(value), length)
    except Exception as error:
        return f'<{_dotted(type(value))} whose text cannot be read: {_dotted(type(error))}>'


def _notes_of(value):
    notes = getattr(value, '__notes__', None)
    if not isinstance(notes, (list, tuple)):
        return ()
    return tuple(_text_of(note, SHORT_TEXT_LENGTH) for note in notes[:NOTES])


def _entries(traceback):
    """[(frame, line)] of a traceback, without the code that only led to the call."""
    entries = []
    while traceback is not None:
        entries.append((traceback.tb_frame, traceback.tb_lineno or 0))
        traceback = traceback.tb_next
    first = (number for number, (frame, line) in enumerate(entries) if not _carries(frame))
    return entries[next(first, 0) :]


def _carries(frame):
    name = frame.f_globals.get('__name__')
    return isinstance(name, str) and name.startswith(CARRIERS)


def _without_middle(entries):
    """(the entries that are kept, (index, count) of those that are not or None)."""
    excess = len(entries) - OUTER_FRAMES - INNER_FRAMES
    if excess <= 0:
        return list(entries), None
    return [*entries[:OUTER_FRAMES], *entries[-INNER_FRAMES:]], (OUTER_FRAMES, excess)


def _frames_of(traceback, with_locals):
    entries, gap = _without_middle(_entries(traceback))
    paths = {frame.f_code.co_filename: None for frame, line in entries}
    for path in paths:
        linecache.checkcache(path)  # or a file that changed shows lines it no longer has
        paths[path] = _plain(path, PATH_LENGTH)  # one object for all frames: pickled once
    left = LOCALS_LENGTH if with_locals else 0
    frames = []
    for frame, line in reversed(entries):
        local = _locals_of(frame, left)
        left -= sum(len(name) + len(text) for name, text in local)
        code = frame.f_code
        source = _source_of(code.co_filename, line, frame.f_globals)
        frames.append((_plain(code.co_name), paths[code.co_filename], line, source, local))
    return tuple(reversed(frames)), gap


def _frames_given(frames):
    """Our frames out of those of a Twisted Failure whose traceback is gone."""
    frames, gap = _without_middle(list(frames or ()))
    return tuple(
        (
            _plain(function),
            _plain(file, PATH_LENGTH),
            int(line or 0),
            _source_of(file, line),
            tuple(_described(local)),
        )
        for function, file, line, local, _ in frames
    ), gap


def _source_of(path, line, namespace=None):
    try:
        return _plain(linecache.getline(path, line, namespace).strip(), SOURCE_LENGTH)
    except Exception:  # a module's loader may do what it likes
        return ''


def _locals_of(frame, left):
    """((name, text), ...) of a function's variables, at most `left` characters."""
    # A module's or a class's names are long lists that are seldom to blame.
    if left <= 0 or not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        return ()
    kept = []
    for name, text in _described(frame.f_locals.items()):
        left -= len(name) + len(text)
        if left < 0:
            break
        kept.append((name, text))
    return tuple(kept)


def _described(variables):
    for name, value in itertools.islice(variables, LOCALS):
        name = _plain(str(name), LOCAL_LENGTH)
        yield name, '<hidden>' if PRIVATE.search(name) else described(value)


def _causes_of(value):
    """((how, class, text, frames), ...): what led to `value`, the nearest first."""
    causes, seen = [], {id(value)}
    while isinstance(value, BaseException) and len(causes) < CAUSES:
        how, value = _cause_of(value)
        if value is None or id(value) in seen:
            break
        seen.add(id(value))
        frames = tuple(_short_frame(*entry) for entry in _entries(value.__traceback__))
        text = _text_of(value, SHORT_TEXT_LENGTH)
        causes.append((how, _dotted(type(value)), text, frames[-CAUSE_FRAMES:]))
    return tuple(causes)


def _cause_of(value):
    if value.__cause__ is not None:
        return 'cause', value.__cause__
    return 'context', None if value.__suppress_context__ else value.__context__


def _short_frame(frame, line):
    code = frame.f_code
    return _plain(code.co_name), _plain(code.co_filename, PATH_LENGTH), line


def _parts_of(value, depth=1):
    """Yield (depth, class, text, innermost frame) for what an exception group holds."""
    if not isinstance(value, BaseExceptionGroup) or depth > PART_DEPTH:
        return
    for part in value.exceptions:
        entries = _entries(part.__traceback__)
        frame = _short_frame(*entries[-1]) if entries else ()
        yield depth, _dotted(type(part)), _text_of(part, SHORT_TEXT_LENGTH), frame
        yield from _parts_of(part, depth + 1)


# The exception itself ----------------------------------------------------------------------


class _Bounded(io.BytesIO):
    """Takes EXCEPTION_SIZE bytes and refuses more."""

    def write(self, data):
        if self.tell() + len(data) > EXCEPTION_SIZE:
            raise pickle.PicklingError('too large')
        return super().write(data)


class _TrialPickler(pickle.Pickler):
    """Refuses what must not be stored by value."""

    def persistent_id(self, value):
        if issubclass(type(value), (Persistent, WeakRef, TwistedFailure)):
            raise pickle.PicklingError('belongs to a database')


def _pickle_of(value, text):
    """The pickle of an exception that was loaded in a trial, else None.

    The trial must give the same class and text: some classes load and then
    say something else, as their constructor wraps its argument once more.
    """
    if not isinstance(value, BaseException):
        return None
    file = _Bounded()
    try:
        # 4 is the first protocol that writes as it goes, so a huge exception stops early.
        _TrialPickler(file, protocol=4).dump(value)
        data = file.getvalue()
        loaded = pickle.loads(data)
    except Exception:  # locks, sockets, constructors with arguments of their own, ...
        return None
    return data if type(loaded) is type(value) and _text_of(loaded) == text else None


def _loaded(data):
    """The exception whose pickle this is, or None if it cannot be had any more."""
    if data is None:
        return None
    try:
        value = pickle.loads(data)
    except Exception:  # its class changed, or is gone
        return None
    return value if isinstance(value, BaseException) else None


def _imported(module, name):
    """The class of exceptions that is called so, or None."""
    if '<locals>' in name:
        return None
    try:
        found = importlib.import_module(module)
        for part in name.split('.'):
            found = getattr(found, part)
    except Exception:  # importing a module runs it
        return None
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def _stand_in(module, name, text):
    """A StoredException that says `text`, of the named class too if it exists."""
    kind = _imported(module, name)
    try:
        value = _mixed(kind)
        value.args = (text,)
        value.stored_module, value.stored_name, value.stored_text = module, name, text
    except Exception:  # not every class can be subclassed, or made without its arguments
        value = StoredException(text)
        value.stored_module, value.stored_name, value.stored_text = module, name, text
    return value


def _mixed(kind):
    if kind is None or kind is Exception or not issubclass(kind, Exception):
        return StoredException()
    both = types.new_class(kind.__name__, (StoredException, kind))
    both.__module__ = kind.__module__
    return both.__new__(both)


# Describing values -------------------------------------------------------------------------


def described(value, depth=DEPTH):
    """A short text for any value: runs no code of the application, raises nothing."""
    try:
        describe = _DESCRIBERS.get(type(value), _by_class)
        return _plain(describe(value, depth), LOCAL_LENGTH)
    except Exception:  # a container that changes meanwhile, a class with a strange metaclass
        return '<unreadable>'


def _by_class(value, depth):
    kind = type(value)
    if issubclass(kind, Persistent):
        oid = Persistent._p_oid.__get__(value, kind)  # loads nothing
        if isinstance(oid, bytes):
            return f'<{_dotted(kind)} oid {int.from_bytes(oid, "big"):#x}>'
    if issubclass(kind, type):
        return f'<class {_dotted(value)}>'
    return f'<{_dotted(kind)}>'


def _by_repr(value, depth):
    return repr(value)


def _integer(value, depth):
    # repr() of a huge one takes long, and raises from 4,300 digits on.
    bits = value.bit_length()
    return repr(value) if bits <= INTEGER_BITS else f'<int of {bits} bits>'


def _string(value, depth):
    short = repr(value[:LOCAL_LENGTH])
    return short if len(value) <= LOCAL_LENGTH else short + '...'


def _moment(value, depth):
    zone = value.tzinfo
    return repr(value) if zone is None or zone is datetime.UTC else _by_class(value, depth)


def _function(value, depth):
    return f'<function {_joined(value.__module__, value.__qualname__)}>'


def _method(value, depth):
    return f'<method {value.__func__.__qualname__} of {described(value.__self__, depth)}>'


def _module(value, depth):
    return f'<module {types.ModuleType.__getattribute__(value, "__name__")}>'


def _container(opening, closing):
    def describe(value, depth):
        return _enclosed(opening, closing, value, depth, lambda item: described(item, depth - 1))

    return describe


def _mapping(value, depth):
    def entry(item):
        key, content = item
        hidden = type(key) is str and PRIVATE.search(key)
        shown = '<hidden>' if hidden else described(content, depth - 1)
        return f'{described(key, depth - 1)}: {shown}'

    return _enclosed('{', '}', value.items(), depth, entry)


def _enclosed(opening, closing, items, depth, describe):
    if not items:
        return opening + closing
    if depth <= 0:
        return f'{opening}...{closing}'
    shown = [describe(item) for item in itertools.islice(items, ITEMS)]
    if len(items) > ITEMS:
        shown.append(f'... {len(items)} in all')
    return opening + ', '.join(shown) + closing


#: Exact classes only: a subclass may do anything.
_DESCRIBERS: dict[type, Callable] = {
    **dict.fromkeys((type(None), type(...), bool, float, complex, range), _by_repr),
    **dict.fromkeys((datetime.date, datetime.timedelta, decimal.Decimal, uuid.UUID), _by_repr),
    int: _integer,
    **dict.fromkeys((str, bytes, bytearray), _string),
    datetime.datetime: _moment,
    list: _container('[', ']'),
    tuple: _container('(', ')'),
    set: _container('{', '}'),
    frozenset: _container('frozenset({', '})'),
    collections.deque: _container('deque([', '])'),
    dict: _mapping,
    **dict.fromkeys((types.FunctionType, types.BuiltinFunctionType), _function),
    types.MethodType: _method,
    types.ModuleType: _module,
}


# Writing tracebacks ------------------------------------------------------------------------


def _brief(record):
    shown = record['bases'][0].removeprefix('builtins.')
    head = 'Traceback' if record.get('frames') else 'Traceback (failure with no frames)'
    lines = [f"{head}: <class '{shown}'>: {record['text']}"]
    lines += _with_gap(record, lambda frame: ['{1}:{2}:{0}'.format(*frame)])
    return _lines(lines)


def _default(record):
    return _lines([*_led_by(record), HEAD, *_tail(record, _placed)])


def _verbose(record):
    inner = _tail(record, _with_locals)
    begin, end = '*--- Failure ---', '*--- End of Failure ---'
    return _lines([begin, *_led_by(record), *inner, end])


_WRITERS = {'brief': _brief, 'default': _default, 'verbose': _verbose}


def _lines(lines):
    return '\n'.join(lines) + '\n'


def _tail(record, write):
    """The frames by `write`, then what was raised."""
    said = f'{record["bases"][0]}: {record["text"]}'
    if not record.get('frames'):
        said = f'Failure: {said}'  # Twisted's way to say that there is no traceback
    return [
        *_with_gap(record, write),
        said,
        *record.get('notes', ()),
        *itertools.chain.from_iterable(map(_part, record.get('parts', ()))),
    ]


def _with_gap(record, write):
    index, count = record.get('gap', (-1, 0))
    lines = []
    for number, frame in enumerate(record.get('frames', ())):
        if number == index:
            lines.append(f'  [{count} frames left out]')
        lines += write(frame)
    return lines


def _placed(frame):
    function, file, line, *rest = frame
    lines = [f'  File "{file}", line {line}, in {function}']
    if rest and rest[0]:
        lines.append(f'    {rest[0]}')
    return lines


def _with_locals(frame):
    function, file, line, source, local = frame
    lines = [f'{file}:{line}: {function}(...)']
    if source:
        lines.append(f'    {source}')
    lines.append(' [ Locals ]')
    return lines + [f'  {name} : {text}' for name, text in local]


def _part(part):
    depth, kind, text, frame = part
    indent = '  ' * depth
    place = f' ({frame[1]}:{frame[2]}:{frame[0]})' if frame else ''
    return [f'{indent}+ {kind}: {text}{place}']


def _led_by(record):
    """The causes, the farthest first, each with how it led to what follows."""
    lines = []
    for how, kind, text, frames in reversed(record.get('causes', ())):
        said = f'{kind}: {text}' if frames else f'Failure: {kind}: {text}'
        placed = itertools.chain.from_iterable(map(_placed, frames))
        lines += [HEAD, *placed, said, '', HOW[how], '']
    return lines


def _shortened(text, length):
    """`text` with its middle left out if it is longer than `length`."""
    if len(text) <= length:
        return text
    mark = '\n  [text left out]\n'
    head = length // 3
    return text[:head] + mark + text[head + len(mark) - length :]
