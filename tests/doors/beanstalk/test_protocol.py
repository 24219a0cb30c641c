"""The protocol without input or output: however the bytes are cut, the commands are the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zodbjobs.beanstalk.protocol import (
    ANSWER,
    BAD_FORMAT,
    LINE_BYTES,
    MALFORMED_PUT,
    OVERSIZE_PUT,
    UNKNOWN_COMMAND,
    Parser,
    listing,
    mapping,
    scalar,
)

WRONG = (ANSWER, (BAD_FORMAT,))
UNKNOWN = (ANSWER, (UNKNOWN_COMMAND,))

CASES = {
    b'put 1 2 3 4\r\nbody\r\n': ('put', (1, 2, 3, b'body')),
    b'put  1  2  3  0\r\n\r\n': ('put', (1, 2, 3, b'')),
    b'put 0 0 0 4\r\n\r\n\r\n\r\n': ('put', (0, 0, 0, b'\r\n\r\n')),
    b'put 0 0 0 3\r\nabcde': (MALFORMED_PUT, ()),
    b'put 0 0 0 11\r\n' + b'x' * 13: (OVERSIZE_PUT, ()),
    b'put 0 0 0 3 \r\n': WRONG,
    b'put 0 0 0\r\n': WRONG,
    b'put 4294967296 0 0 1\r\n': WRONG,
    b'put -1 0 0 1\r\n': WRONG,
    b'put\r\n': UNKNOWN,
    b'reserve\r\n': ('reserve', ()),
    b'reserve \r\n': WRONG,
    b'reserved\r\n': WRONG,
    b'reserve-with-timeout 0\r\n': ('reserve-with-timeout', (0,)),
    b'reserve-with-timeout 5x\r\n': ('reserve-with-timeout', (5,)),
    b'reserve-with-timeout -1\r\n': ('reserve-with-timeout', (None,)),
    b'reserve-with-timeout 2147483648\r\n': WRONG,
    b'reserve-with-timeout x\r\n': ('reserve-with-timeout', (0,)),
    b'reserve-job 7\r\n': ('reserve-job', (7,)),
    b'delete 18446744073709551615\r\n': ('delete', (2**64 - 1,)),
    b'delete 18446744073709551616\r\n': WRONG,
    b'delete  1\r\n': ('delete', (1,)),
    b'delete 1 \r\n': WRONG,
    b'delete -1\r\n': WRONG,
    b'delete\r\n': UNKNOWN,
    b'release 1 2 3\r\n': ('release', (1, 2, 3)),
    b'release 1 2\r\n': WRONG,
    b'bury 1 2\r\n': ('bury', (1, 2)),
    b'kick 1x\r\n': ('kick', (1,)),
    b'kick -1\r\n': ('kick', (2**32 - 1,)),
    b'kick 4294967296\r\n': ('kick', (0,)),
    b'kick 99999999999999999999999\r\n': WRONG,
    b'kick \r\n': WRONG,
    b'kick\r\n': UNKNOWN,
    b'kick-job 3\r\n': ('kick-job', (3,)),
    b'touch 3\r\n': ('touch', (3,)),
    b'peek 3\r\n': ('peek', (3,)),
    b'peek-ready\r\n': ('peek-ready', ()),
    b'peek-readyx\r\n': WRONG,
    b'peek-delayed\r\n': ('peek-delayed', ()),
    b'peek-buried\r\n': ('peek-buried', ()),
    b'stats\r\n': ('stats', ()),
    b'statsx\r\n': WRONG,
    b'stats-job 3\r\n': ('stats-job', (3,)),
    b'stats-tube a\r\n': ('stats-tube', ('a',)),
    b'use a-b+c/d;e.f$g_h(i)\r\n': ('use', ('a-b+c/d;e.f$g_h(i)',)),
    b'use ' + b'a' * 200 + b'\r\n': ('use', ('a' * 200,)),
    b'use ' + b'a' * 201 + b'\r\n': WRONG,
    b'use -a\r\n': WRONG,
    b'use a b\r\n': WRONG,
    b'use a\0b\r\n': WRONG,
    b'watch a\r\n': ('watch', ('a',)),
    b'ignore a\r\n': ('ignore', ('a',)),
    b'list-tubes\r\n': ('list-tubes', ()),
    b'list-tubes \r\n': WRONG,
    b'list-tube-used\r\n': ('list-tube-used', ()),
    b'list-tubes-watched\r\n': ('list-tubes-watched', ()),
    b'pause-tube a 3\r\n': ('pause-tube', ('a', 3)),
    b'pause-tube  a  3\r\n': ('pause-tube', ('a', 3)),
    b'pause-tube a\r\n': WRONG,
    b'pause-tubex a 3\r\n': WRONG,
    b'quit\r\n': ('quit', ()),
    b'quit now\r\n': ('quit', ()),
    b'\r\n': UNKNOWN,
    b'a\nuse b\r\n': UNKNOWN,
    b'USE a\r\n': UNKNOWN,
    b'x' * (LINE_BYTES - 2) + b'\r\n': UNKNOWN,
    b'x' * (LINE_BYTES - 1) + b'\r\n': WRONG,
    b'x' * 5000 + b'\r\n': WRONG,
}


def named(value):
    return repr(value[:40])


@pytest.mark.parametrize('sent', CASES, ids=named)
def test_what_is_understood(sent):
    assert Parser(10).feed(sent) == [CASES[sent]]


@given(st.lists(st.sampled_from(sorted(CASES)), max_size=8), st.lists(st.integers(1, 40)))
def test_it_does_not_matter_how_the_bytes_are_cut(sent, cuts):
    parser, data, found = Parser(10), b''.join(sent), []
    for cut in cuts:
        found += parser.feed(data[:cut])
        data = data[cut:]
    found += parser.feed(data)
    assert found == [CASES[each] for each in sent]


@given(st.binary(max_size=600))
def test_no_bytes_raise_and_little_is_kept(data):
    parser = Parser(100)
    for command in parser.feed(data):
        assert isinstance(command.verb, str)
    assert len(parser._rest) <= LINE_BYTES + 102


def test_an_endless_line_is_not_kept():
    parser = Parser(10)
    for _ in range(1000):
        assert parser.feed(b'x' * 1000) == []
        assert len(parser._rest) <= LINE_BYTES
    assert parser.feed(b'\r\nuse a\r\n') == [WRONG, ('use', ('a',))]


@pytest.mark.parametrize(
    ('value', 'text'),
    [
        ('default', 'default'), ('a.b-c', 'a.b-c'), ('1', '"1"'), ('true', '"true"'),
        ('No', '"No"'),
        ('#1 SMP', '"#1 SMP"'), ('', '""'), ('-', '"-"'), ('a"b', '"a\\"b"'), (True, 'true'),
        (False, 'false'), (3, '3'), (0.5, '0.500000'), ('1.12', '"1.12"'), ('x86_64', 'x86_64'),
    ],
)  # fmt: skip
def test_texts_are_quoted_where_they_must(value, text):
    assert scalar(value) == text


def test_yaml():
    assert mapping([('a', 1), ('b', 'c')]) == '---\na: 1\nb: c\n'
    assert listing(['a', '1']) == '---\n- a\n- 1\n'
