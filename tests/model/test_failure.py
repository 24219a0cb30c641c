"""What users may expect of a Failure: it can always be stored, loaded and read."""

import copy
import gc
import io
import pickle
import pickletools
import socket
import sys
import threading
import types
import weakref

import pytest
import transaction
import ZODB
from hypothesis import given, settings
from hypothesis import strategies as st
from persistent import Persistent
from twisted.internet import defer
from twisted.python.failure import Failure as TwistedFailure
from twisted.python.failure import NoCurrentExceptionError
from ZODB.POSException import ConflictError
from zodbpickle import pickle as zodbpickle

from zodbjobs.model import failure
from zodbjobs.model.failure import Failure, StoredException, described, is_failure


class Holder(Exception):
    """Holds whatever it is given."""


class Demanding(Exception):
    """Its constructor cannot be called as pickle calls it."""

    def __init__(self, code, *, reason):
        super().__init__(f'{code}: {reason}')
        self.code = code


class Wrapping(Exception):
    """Says its words once more each time it is constructed."""

    def __init__(self, what):
        super().__init__(f'could not {what}')


class Mute(Exception):
    """Cannot say anything."""

    def __str__(self):
        raise RuntimeError('no str')

    __repr__ = __str__


class Word(str):
    """An application's own kind of str."""


class Worded(Exception):
    def __str__(self):
        return Word('a word')


class Hostile:
    """Must not be asked for its repr."""

    def __repr__(self):
        raise AssertionError('asked for its repr')


class Note(Persistent):
    def __repr__(self):
        return f'Note({self.text})'


@pytest.fixture
def database():
    db = ZODB.DB(None)
    yield db
    db.close()


def caught(call, *args):
    """The Failure of calling `call`."""
    try:
        call(*args)
    except Exception:
        return Failure()
    raise AssertionError('nothing was raised')


def raising(error):
    def work():
        raise error

    return work


def misspelt():
    return foo + bar  # noqa: F821


def stored(value, database):
    """`value` after a commit, as another connection reads it."""
    with database.transaction() as connection:
        connection.root()['value'] = value
    connection = database.open(transaction.TransactionManager())
    connection.cacheMinimize()
    loaded = connection.root()['value']
    connection.close()
    return loaded


def classes_in(data):
    return {arg for opcode, arg, _ in pickletools.genops(data) if 'GLOBAL' in opcode.name}


def again(value):
    return zodbpickle.loads(zodbpickle.dumps(value, 3))


# Tracebacks --------------------------------------------------------------------------------


def test_default_traceback_reads_as_twisteds():
    text = caught(misspelt).getTraceback()
    assert text.startswith('Traceback (most recent call last):\n  File "')
    assert ', in misspelt\n    return foo + bar' in text
    assert text.endswith("\nbuiltins.NameError: name 'foo' is not defined\n")


def test_brief_traceback_has_a_line_for_each_frame():
    lines = caught(misspelt).getBriefTraceback().splitlines()
    assert lines[0] == "Traceback: <class 'NameError'>: name 'foo' is not defined"
    assert lines[-1].startswith(__file__) and lines[-1].endswith(':misspelt')
    assert len(lines) == 3


def test_verbose_traceback_shows_locals():
    def work(number, words):
        raise LookupError(number)

    text = caught(work, 42, ['a', 'b']).getTraceback(detail='verbose')
    assert "  number : 42\n  words : ['a', 'b']\n" in text
    assert 'builtins.LookupError: 42\n' in text


def test_failure_of_an_exception_that_was_never_raised():
    made = Failure(ValueError('never raised'))
    assert made.getTraceback() == (
        'Traceback (most recent call last):\nFailure: builtins.ValueError: never raised\n'
    )
    assert made.getBriefTraceback().startswith('Traceback (failure with no frames): ')


def test_traceback_is_written_to_a_file_or_to_stderr(capsys):
    made, file = caught(misspelt), io.StringIO()
    made.printTraceback(file)
    assert file.getvalue() == made.getTraceback()
    made.printBriefTraceback()
    assert capsys.readouterr().err == made.getBriefTraceback()
    made.printDetailedTraceback()
    assert capsys.readouterr().err == made.getTraceback(detail='verbose')


def test_unknown_detail_is_refused():
    with pytest.raises(ValueError, match='brief, default, verbose'):
        caught(misspelt).getTraceback(detail='long')


def test_repr_and_str_tell_what_happened():
    made = caught(misspelt)
    assert repr(made) == "<zodbjobs.Failure builtins.NameError: name 'foo' is not defined>"
    assert str(made) == f'[Failure instance: {made.getBriefTraceback()}]'
    assert made.getErrorMessage() == "name 'foo' is not defined"


def test_causes_stand_before_what_they_led_to():
    def work():
        try:
            {}['missing']
        except KeyError as error:
            try:
                raise ValueError('bad') from error
            except ValueError:
                raise RuntimeError('worse')  # noqa: B904

    text = again(caught(work)).getTraceback()
    assert text.startswith('Traceback (most recent call last):\n')
    assert text.endswith('\nbuiltins.RuntimeError: worse\n')
    key, cause = text.index("KeyError: 'missing'"), text.index('direct cause of the following')
    value, context = text.index('ValueError: bad\n'), text.index('another exception occurred')
    assert key < cause < value < context


def test_suppressed_context_is_not_shown():
    def work():
        try:
            {}['missing']
        except KeyError:
            raise ValueError('bad') from None

    assert 'missing' not in caught(work).getTraceback().replace("{}['missing']", '')


def test_causes_that_lead_in_a_circle_end():
    first, second = ValueError('first'), ValueError('second')
    first.__cause__, second.__cause__ = second, first
    assert caught(raising(first)).getTraceback().count('direct cause') == 1


def test_exception_group_names_its_parts():
    group = ExceptionGroup('many', [ValueError('a'), ExceptionGroup('in', [KeyError('b')])])
    made = again(caught(raising(group)))
    assert made.getTraceback().endswith(
        'builtins.ExceptionGroup: many (2 sub-exceptions)\n'
        '  + builtins.ValueError: a\n'
        '  + builtins.ExceptionGroup: in (1 sub-exception)\n'
        "    + builtins.KeyError: 'b'\n"
    )
    assert made.value.exceptions[0].args == ('a',)


def test_notes_are_kept():
    error = ValueError('bad')
    error.add_note('seen on a Monday')
    assert (
        again(caught(raising(error)))
        .getTraceback()
        .endswith('builtins.ValueError: bad\nseen on a Monday\n')
    )


@pytest.mark.parametrize('carrier', ['zodbjobs.runtime.attempt', 'zodbjobs.model.job'])
def test_code_that_only_carried_the_job_is_left_out(carrier):
    namespace = {'__name__': carrier}
    exec('def carry(call):\n    call()', namespace)
    made = caught(lambda: namespace['carry'](misspelt))
    assert 'carry' in made.getTraceback()  # the test stands above it, so it is not at the top
    try:
        namespace['carry'](misspelt)
    except NameError as error:
        inner = error.with_traceback(error.__traceback__.tb_next)
    assert [frame[0] for frame in Failure(inner).frames] == ['misspelt']


def test_a_fault_of_our_own_keeps_its_frames():
    namespace = {'__name__': 'zodbjobs.runtime.attempt'}
    exec('def carry():\n    1 / 0', namespace)
    try:
        namespace['carry']()
    except ZeroDivisionError as error:
        inner = error.with_traceback(error.__traceback__.tb_next)
    assert [frame[0] for frame in Failure(inner).frames] == ['carry']


# Storing -----------------------------------------------------------------------------------


def with_connection():
    one, other = socket.socketpair()
    other.close()
    return one


@pytest.mark.parametrize(
    'error',
    [
        ValueError('plain'),
        Holder(threading.Lock()),
        Holder(with_connection()),
        Holder(lambda: None),
        Holder(Hostile),
        Demanding(3, reason='so'),
        Wrapping('eat'),
        Mute(),
        Worded(),
        Holder('\udc80 and \x00'),
        ExceptionGroup('group', [Holder(threading.Lock())]),
        SystemError(),
        OSError(2, 'gone', 'file'),
        UnicodeDecodeError('utf-8', b'\xff', 0, 1, 'bad'),
        SyntaxError('bad', ('file', 1, 2, 'text')),
        ConflictError('in a conflict'),
        type('Nowhere', (Exception,), {'__module__': None})('no module'),
        type('Local', (Exception,), {'__module__': 'no.such.module'})('cannot be imported'),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_exception_can_be_stored(error, database):
    made = caught(raising(error))
    loaded = stored(made, database)
    assert classes_in(zodbpickle.dumps(loaded, 3)) == {'zodbjobs.model.failure Failure'}
    for detail in failure.DETAILS:
        assert loaded.getTraceback(detail=detail) == made.getTraceback(detail=detail)
    assert loaded.check(type(error)) is type(error)
    assert loaded.check('builtins.Exception')
    assert isinstance(loaded.value, Exception)
    assert Failure(loaded.value).getErrorMessage() == made.getErrorMessage()


def test_simple_failure_is_small():
    assert len(zodbpickle.dumps(caught(misspelt), 3)) < 1500


def test_the_worst_failure_is_not_large():
    def work(depth, filler):
        if depth:
            work(depth - 1, ['x' * 1000] * 1000)
        try:
            raise Holder('y' * 10_000_000)
        except Holder as error:
            group = ExceptionGroup('z' * 1_000_000, [Holder('p' * 1000)] * 100)
            group.add_note('n' * 1_000_000)
            raise group from error

    made = caught(work, 300, [])
    assert len(zodbpickle.dumps(made, 3)) < 25_000
    lengths = {detail: len(made.getTraceback(detail=detail)) for detail in failure.DETAILS}
    assert lengths == failure.DETAILS | {'brief': lengths['brief']}
    assert lengths['brief'] <= failure.DETAILS['brief']
    text = made.getTraceback()
    assert text.startswith('Traceback (most recent') and '\n  [text left out]\n' in text
    assert text.endswith('pppp...\n')


def test_frames_in_the_middle_are_left_out():
    def work(depth):
        return work(depth - 1) if depth else 1 / 0

    made = again(caught(work, 200))
    assert len(made.frames) == failure.OUTER_FRAMES + failure.INNER_FRAMES
    # caught(), 201 times work()
    assert '  [162 frames left out]\n' in made.getBriefTraceback()


def test_all_pickles_and_copies_agree():
    made = caught(raising(Holder('h')))
    for other in (pickle.loads(pickle.dumps(made)), again(again(made)), copy.deepcopy(made)):
        assert type(other) is Failure
        assert other.getTraceback(detail='verbose') == made.getTraceback(detail='verbose')
        assert type(other.value) is Holder and other.value.args == ('h',)


def test_nothing_alive_is_kept():
    class Big:
        pass

    big = Big()
    seen = weakref.ref(big)

    def work(thing):
        raise Holder(thing)

    made = caught(work, big)
    del big
    gc.collect()
    assert seen() is None
    assert made.tb is None and made.args == () and made.__traceback__ is None
    assert made.sanitized is True


def test_an_exception_that_is_given_is_not_kept():
    error = Holder('h')
    seen = weakref.ref(error)
    made = Failure(error)
    del error
    gc.collect()
    assert seen() is None
    assert made.args == () and made.value.args == ('h',)


def test_persistent_objects_are_neither_kept_nor_loaded(database):
    with database.transaction() as connection:
        connection.root()['note'] = note = Note()
        note.text = 'text'
    connection = database.open(transaction.TransactionManager())
    note = connection.root()['note']
    note._p_deactivate()

    def work(first, second):
        raise Holder('h')

    made = caught(work, note, [note])
    assert note._p_changed is None  # still a ghost
    shown = f'<{__name__}.Note oid {int.from_bytes(note._p_oid, "big"):#x}>'
    assert f'  first : {shown}\n  second : [{shown}]\n' in made.getTraceback(detail='verbose')
    held = caught(raising(Holder(note)))
    assert isinstance(held.value, StoredException)
    assert 'Note' not in ''.join(classes_in(zodbpickle.dumps(held, 3)))
    connection.close()


# The exception itself ----------------------------------------------------------------------


def test_value_is_the_exception_with_its_attributes():
    error = Holder('a', 2)
    error.more = 'x'
    value = again(caught(raising(error))).value
    assert type(value) is Holder and value.args == ('a', 2) and value.more == 'x'


@pytest.mark.parametrize(
    'error', [Demanding(3, reason='so'), Wrapping('eat'), Holder(threading.Lock())]
)
def test_stand_in_is_caught_as_what_it_stands_for(error):
    made = again(caught(raising(error)))
    assert made.type is type(error)
    assert isinstance(made.value, StoredException)
    assert made.value.dotted_name == f'{__name__}.{type(error).__name__}'
    with pytest.raises(type(error)) as info:
        made.raiseException()
    assert str(info.value) == str(error)
    assert str(pickle.loads(pickle.dumps(made.value))) == str(error)


def test_class_that_vanished(monkeypatch):
    module = types.ModuleType('passing_fashion')
    monkeypatch.setitem(sys.modules, 'passing_fashion', module)
    exec('class Gone(LookupError): pass', vars(module))
    data = zodbpickle.dumps(caught(raising(module.Gone('bye'))), 3)
    assert type(zodbpickle.loads(data).value) is module.Gone
    monkeypatch.delitem(sys.modules, 'passing_fashion')
    loaded = zodbpickle.loads(data)
    assert loaded.type is StoredException
    assert repr(loaded.value) == '<StoredException passing_fashion.Gone: bye>'
    assert loaded.check('passing_fashion.Gone') == 'passing_fashion.Gone'
    assert loaded.check(KeyError, LookupError) is LookupError
    assert loaded.getTraceback().endswith('passing_fashion.Gone: bye\n')


def test_opening_a_failure_does_not_open_its_exception():
    data = zodbpickle.dumps(caught(raising(Holder('h'))), 3)
    loaded = zodbpickle.loads(data.replace(b'Holder', b'Folder'))
    assert loaded.getErrorMessage() == 'h'
    assert isinstance(loaded.value, StoredException)


def test_check_and_trap():
    made = again(caught(raising(KeyError('k'))))
    assert made.check(ValueError, 'no.Such') is None
    assert made.check(ValueError, LookupError) is LookupError
    assert made.check('builtins.KeyError') == 'builtins.KeyError'
    assert made.trap(LookupError) is LookupError
    with pytest.raises(KeyError, match='k'):
        made.trap(ValueError)


def test_raising_leaves_no_traceback_behind():
    made = caught(raising(KeyError('k')))
    with pytest.raises(KeyError):
        made.raiseException()
    assert made.value.__traceback__ is None


def test_a_stranger_text_becomes_plain():
    made = caught(raising(Worded()))
    assert type(made.getErrorMessage()) is str and made.getErrorMessage() == 'a word'
    mute = caught(raising(Mute())).getErrorMessage()
    assert mute == f'<{__name__}.Mute whose text cannot be read: builtins.RuntimeError>'


# Beside Twisted ----------------------------------------------------------------------------


def test_without_an_exception_there_is_no_failure():
    with pytest.raises(NoCurrentExceptionError):
        Failure()


@pytest.mark.parametrize('prepare', [lambda f: None, lambda f: f.cleanFailure()])
def test_twisteds_failure_is_taken_over(prepare):
    try:
        misspelt()
    except NameError:
        theirs = TwistedFailure(captureVars=True)
    prepare(theirs)
    made = again(Failure(theirs))
    assert made.frames[-1][0] == 'misspelt'
    assert made.getTraceback().endswith("builtins.NameError: name 'foo' is not defined\n")
    assert type(made.value) is NameError


def test_failure_of_a_failure_is_the_same():
    made = caught(misspelt)
    assert Failure(made).getTraceback() == made.getTraceback()
    try:
        raise made
    except Failure:
        assert Failure().getTraceback() == made.getTraceback()


def test_failure_passes_through_a_deferred():
    made, seen = again(caught(misspelt)), []
    deferred = defer.Deferred()
    deferred.addErrback(lambda failed: seen.append(failed) or failed)
    deferred.addErrback(lambda failed: failed.raiseException())
    deferred.addErrback(seen.append)
    deferred.errback(made)
    assert seen[0] is made
    assert seen[1].check(NameError)


def test_failure_that_is_raised_in_a_deferred():
    made, seen = again(caught(misspelt)), []

    def reraise(ignored):
        raise made

    defer.succeed(None).addCallback(reraise).addErrback(seen.append)
    assert seen[0].check(NameError)
    assert 'in misspelt' in seen[0].getTraceback()


def test_coroutine_gets_the_exception():
    async def work():
        try:
            await defer.fail(caught(misspelt))
        except NameError as error:
            return str(error)

    seen = []
    defer.ensureDeferred(work()).addBoth(seen.append)
    assert seen == ["name 'foo' is not defined"]


def test_traceback_object_has_the_frames():
    made = caught(misspelt)
    names = []
    tb = made.getTracebackObject()
    while tb is not None:
        names.append(tb.tb_frame.f_code.co_name)
        tb = tb.tb_next
    assert names == ['caught', 'misspelt']


def test_is_failure():
    assert is_failure(Failure(ValueError()))
    assert is_failure(TwistedFailure(ValueError()))
    assert not is_failure(ValueError())
    assert not is_failure(Failure)


# Describing values -------------------------------------------------------------------------


class StrangeMeta(type):
    @property
    def __module__(cls):
        raise RuntimeError


class Strange(metaclass=StrangeMeta):
    pass


class Chatty(dict):
    def items(self):
        raise AssertionError('asked for its items')


@pytest.mark.parametrize(
    'value, text',
    [
        (None, 'None'),
        (10**5000, '<int of 16610 bits>'),
        ('x' * 200, "'" + 'x' * 79 + '...'),
        ([[[1]]], '[[[...]]]'),
        ([1, 2, 3, 4, 5, 6], '[1, 2, 3, 4, ... 6 in all]'),
        ({'a': 1, 'db_password': 'geheim'}, "{'a': 1, 'db_password': <hidden>}"),
        ((), '()'),
        (Hostile(), f'<{__name__}.Hostile>'),
        (Hostile, f'<class {__name__}.Hostile>'),
        (Chatty(), f'<{__name__}.Chatty>'),
        (Hostile().__repr__, f'<method Hostile.__repr__ of <{__name__}.Hostile>>'),
        (misspelt, f'<function {__name__}.misspelt>'),
        (len, '<function builtins.len>'),
        (pickle, '<module pickle>'),
        (Strange(), '<unreadable>'),
    ],
    ids=lambda value: '',
)
def test_values_are_described_without_asking_them(value, text):
    assert described(value) == text


def test_secrets_are_not_written_down():
    def work(user, password, api_key):
        raise ValueError('no')

    text = caught(work, 'ann', 'geheim', 'geheim').getTraceback(detail='verbose')
    assert 'geheim' not in text.replace("'ann', 'geheim', 'geheim'", '')
    assert "  user : 'ann'\n  password : <hidden>\n  api_key : <hidden>\n" in text


nested = st.recursive(
    st.none() | st.integers() | st.floats() | st.text() | st.binary() | st.datetimes(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=30,
)


@given(nested)
@settings(max_examples=50)
def test_descriptions_are_short(value):
    assert len(described(value)) <= failure.LOCAL_LENGTH + 3
