"""The protocol of beanstalkd, without input or output: bytes to commands, answers to bytes.

A `Parser` is fed with what a client sent and returns the commands that are
complete.  What is wrong with the form of a command is an answer already, and
takes its turn among the commands as one of kind `ANSWER`.

The rules are those that beanstalkd 1.12 keeps, which is not always what its
prose says: commands are known by their beginning, numbers may have blanks
before them, and a body that is too long is read and thrown away.
"""

import re
import typing

CRLF = b'\r\n'

#: Bytes of a command line with its CRLF.
LINE_BYTES = 224

#: Bytes of a body unless the server is told otherwise, and the most it may be told.
BODY_BYTES, MOST_BODY_BYTES = 65_535, 1 << 30

MAX_U32, MAX_U64 = 2**32 - 1, 2**64 - 1

#: The longest wait of reserve-with-timeout, in seconds.
MAX_TIMEOUT = 2**31 - 1

NAME = re.compile(rb'[A-Za-z0-9+/;.$_()][-A-Za-z0-9+/;.$_()]{0,199}')

BAD_FORMAT = b'BAD_FORMAT\r\n'
BURIED = b'BURIED\r\n'
DEADLINE_SOON = b'DEADLINE_SOON\r\n'
DELETED = b'DELETED\r\n'
DRAINING = b'DRAINING\r\n'
EXPECTED_CRLF = b'EXPECTED_CRLF\r\n'
INTERNAL_ERROR = b'INTERNAL_ERROR\r\n'
JOB_TOO_BIG = b'JOB_TOO_BIG\r\n'
KICKED = b'KICKED\r\n'
NOT_FOUND = b'NOT_FOUND\r\n'
NOT_IGNORED = b'NOT_IGNORED\r\n'
OUT_OF_MEMORY = b'OUT_OF_MEMORY\r\n'
PAUSED = b'PAUSED\r\n'
RELEASED = b'RELEASED\r\n'
TIMED_OUT = b'TIMED_OUT\r\n'
TOUCHED = b'TOUCHED\r\n'
UNKNOWN_COMMAND = b'UNKNOWN_COMMAND\r\n'


class Command(typing.NamedTuple):
    """A command that arrived: its verb (one of `VERBS`, or one of the three below), and arguments.

    Arguments are numbers (int), names (str), bodies (bytes), in the order of the protocol.
    """

    verb: str
    args: tuple = ()


#: Not a command: the answer to what could not be understood, in its turn.
ANSWER = 'answer'
#: A put whose body did not end as it must: it is refused, but has used up a number.
MALFORMED_PUT = 'malformed put'
#: A put whose body was too long, and was thrown away.
OVERSIZE_PUT = 'oversize put'

_WRONG = Command(ANSWER, (BAD_FORMAT,))
_UNKNOWN = Command(ANSWER, (UNKNOWN_COMMAND,))


class _BadFormat(Exception):
    """The rest of the line is not what the command takes."""


# Reading arguments: each function takes the rest of the line and returns (value, what is left).

_NUMBER = re.compile(rb' *([0-9]+)')


def _number(rest, most):
    match = _NUMBER.match(rest)
    if match is None or len(match[1]) > 30 or int(match[1]) > most:
        raise _BadFormat
    return int(match[1]), rest[match.end() :]


def _numbers(rest, *mosts):
    """Numbers up to the end of the line, as many as there are limits."""
    found = []
    for most in mosts:
        value, rest = _number(rest, most)
        found.append(value)
    _nothing(rest)
    return tuple(found)


def _nothing(rest):
    if rest:
        raise _BadFormat
    return ()


def _name(rest):
    if NAME.fullmatch(rest) is None:
        raise _BadFormat
    return (rest.decode('ascii'),)


_USUAL_PUT = re.compile(rb'([0-9]{1,9}) ([0-9]{1,9}) ([0-9]{1,9}) ([0-9]{1,9})')


def _put(rest):
    usual = _USUAL_PUT.fullmatch(rest)
    if usual is not None:
        return (*map(int, usual.groups()), b'')
    found = []
    for _ in range(4):
        value, rest = _number(rest, MAX_U32)
        found.append(value)
    return (*found, rest)


def _timeout(rest):
    """Seconds, 0 where there is no number; None, for ever, where it is negative."""
    match = re.match(rb'[ \t]*([-+]?)([0-9]{1,40})', rest)
    if match is None:
        return (0,)
    if int(match[2]) > MAX_TIMEOUT:
        raise _BadFormat
    return (None if match[1] == b'-' and int(match[2]) else int(match[2]),)


def _kick(rest):
    match = re.match(rb'[ \t]*([-+]?)([0-9]{1,40})', rest)
    if match is None or int(match[2]) > MAX_U64:
        raise _BadFormat
    bound = -int(match[2]) if match[1] == b'-' else int(match[2])
    return (bound & MAX_U32,)  # as C has it


def _pause(rest):
    rest = rest.lstrip(b' ')
    name, mark, seconds = rest.partition(b' ')
    if not mark:
        raise _BadFormat
    return (*_name(name), *_numbers(seconds, MAX_U32))


def _id(rest):
    if rest.isdigit() and len(rest) < 19:
        return (int(rest),)
    return _numbers(rest, MAX_U64)


def _anything(rest):
    return ()


#: The beginning of a line -> (verb, what reads the rest), in the order in which they are tried.
_BEGINNINGS = (
    (b'put ', 'put', _put),
    (b'peek ', 'peek', _id),
    (b'peek-ready', 'peek-ready', _nothing),
    (b'peek-delayed', 'peek-delayed', _nothing),
    (b'peek-buried', 'peek-buried', _nothing),
    (b'reserve-with-timeout ', 'reserve-with-timeout', _timeout),
    (b'reserve-job ', 'reserve-job', _id),
    (b'reserve', 'reserve', _nothing),
    (b'delete ', 'delete', _id),
    (b'release ', 'release', lambda rest: _numbers(rest, MAX_U64, MAX_U32, MAX_U32)),
    (b'bury ', 'bury', lambda rest: _numbers(rest, MAX_U64, MAX_U32)),
    (b'kick ', 'kick', _kick),
    (b'kick-job ', 'kick-job', _id),
    (b'touch ', 'touch', _id),
    (b'stats-job ', 'stats-job', _id),
    (b'stats-tube ', 'stats-tube', _name),
    (b'stats', 'stats', _nothing),
    (b'use ', 'use', _name),
    (b'watch ', 'watch', _name),
    (b'ignore ', 'ignore', _name),
    (b'list-tubes-watched', 'list-tubes-watched', _nothing),
    (b'list-tube-used', 'list-tube-used', _nothing),
    (b'list-tubes', 'list-tubes', _nothing),
    (b'quit', 'quit', _anything),
    (b'pause-tube', 'pause-tube', _pause),
)

VERBS = tuple(verb for _, verb, _ in _BEGINNINGS)

#: The same for the first word of a line, with the blank behind it.  No beginning that stands
#: before one of these is the beginning of it.
_WORDS_FIRST = {beginning: (verb, read) for beginning, verb, read in _BEGINNINGS}


def parse_line(line):
    """The Command of a line without its CRLF.

    For a put its arguments are the four numbers and what stands behind them, as
    the body has not arrived.
    """
    if b'\0' in line:
        return _WRONG
    word = line[: line.find(b' ') + 1] or line
    usual = _WORDS_FIRST.get(word)
    if usual is not None:
        try:
            return Command(usual[0], usual[1](line[len(word) :]))
        except _BadFormat:
            return _WRONG
    for beginning, verb, read in _BEGINNINGS:
        if line.startswith(beginning):
            try:
                return Command(verb, read(line[len(beginning) :]))
            except _BadFormat:
                return _WRONG
    return _UNKNOWN


class Parser:
    """Takes what a client sends apart; `body_bytes` is the longest body it may send.

    It keeps at most one line and one body.
    """

    def __init__(self, body_bytes=BODY_BYTES):
        self.body_bytes = body_bytes
        self._rest = bytearray()
        self._put = None  # the numbers of a put whose body is on its way
        self._wanted = 0  # bytes of that body, with CRLF
        self._skipped = 0  # bytes of a body to throw away
        self._overlong = False  # in a line that is too long

    def feed(self, data):
        """Take these bytes; returns a list of the commands that are complete by them."""
        found = []
        if not self._rest and self._is_idle():
            data = self._usual(data, found)
        self._rest += data
        while data:
            command = self._next()
            if command is None:
                break
            found.append(command)
        return found

    def _is_idle(self):
        """Whether the next byte begins a line."""
        return self._put is None and not self._skipped and not self._overlong

    def _usual(self, data, found):
        """Take whole commands off the front of `data`, without a copy of it; returns what is left.

        What is unusual is left.
        """
        start = 0
        while True:
            end = data.find(CRLF, start)
            if end < 0 or end + 2 - start > LINE_BYTES:
                return data[start:]
            command = parse_line(data[start:end])
            if command.verb == 'put':
                *numbers, size, behind = command.args
                begin, end = end + 2, end + 2 + size
                if behind or size > self.body_bytes or data[end : end + 2] != CRLF:
                    return data[start:]
                command = Command('put', (*numbers, data[begin:end]))
            found.append(command)
            start = end + 2

    def _next(self):
        """One command, or None until there is more."""
        while True:
            if self._skipped:
                count = min(self._skipped, len(self._rest))
                del self._rest[:count]
                self._skipped -= count
                if self._skipped:
                    return None
                return Command(OVERSIZE_PUT)
            if self._put is not None:
                return self._body()
            line = self._line()
            if line is None:
                return None
            command = _WRONG if line is _WRONG else parse_line(line)
            if command.verb != 'put':
                return command
            *numbers, size, behind = command.args
            if size > self.body_bytes:
                self._skipped = size + 2
            elif behind:
                return _WRONG
            else:
                self._put, self._wanted = numbers, size + 2

    def _line(self):
        """The next line without CRLF; `_WRONG` for one that was too long; None until it is here."""
        end = self._rest.find(CRLF)
        if end < 0:
            if len(self._rest) >= LINE_BYTES:
                self._overlong = True
            if self._overlong:  # what came of it is not kept, but for a CR that may have its LF yet
                del self._rest[: len(self._rest) - self._rest.endswith(b'\r')]
            return None
        too_long = self._overlong or end + 2 > LINE_BYTES
        line = bytes(self._rest[:end]) if not too_long else _WRONG
        del self._rest[: end + 2]
        self._overlong = False
        return line

    def _body(self):
        if len(self._rest) < self._wanted:
            return None
        numbers, self._put = self._put, None
        body = bytes(self._rest[: self._wanted])
        del self._rest[: self._wanted]
        if not body.endswith(CRLF):
            return Command(MALFORMED_PUT)
        return Command('put', (*numbers, body[:-2]))


# Answers


def found(word, number, body):
    """RESERVED or FOUND: a job with its body."""
    return b'%s %d %d\r\n%s\r\n' % (word, number, len(body), body)


def chunk(text):
    """OK, and a text of YAML."""
    data = text.encode('utf-8')
    return b'OK %d\r\n%s\r\n' % (len(data), data)


def mapping(pairs):
    """A YAML text of (key, value) pairs."""
    return ''.join(['---\n', *(f'{key}: {scalar(value)}\n' for key, value in pairs)])


def listing(names):
    """A YAML text of a list of names."""
    return ''.join(['---\n', *(f'- {name}\n' for name in names)])


#: What stands for itself in YAML, and would not be read as something else.
_PLAIN = re.compile(r'[A-Za-z_/(;$][-A-Za-z0-9+/;.$_()]*')
_WORDS = frozenset(('y', 'n', 'yes', 'no', 'on', 'off', 'true', 'false', 'null', 'nan', 'inf'))


def scalar(value):
    """A value as YAML has it; a text is quoted only where it would not be read as that text."""
    if isinstance(value, bool):
        return 'true' if value else 'false'
    if isinstance(value, float):
        return f'{value:.6f}'
    if not isinstance(value, str):
        return str(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    escaped = value.replace('\\', '\\\\').replace('"', '\\"')
    return f'"{escaped}"'
