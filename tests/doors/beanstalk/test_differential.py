"""The same bytes to beanstalkd and to our server: the same bytes come back.

Figures that differ by nature are masked.  Needs the executable of beanstalkd (Debian's package
of that name; or name it in BEANSTALKD), and is skipped without it.
"""
# ruff: noqa: E501 - the table of conversations is read by columns

import re

import pytest

from tests.doors.beanstalk.support import Server, executable

pytestmark = [pytest.mark.processes]

#: What two servers, or two runs of one, say differently.
VOLATILE = re.compile(
    rb'^(pid|version|rusage-utime|rusage-stime|uptime|id|hostname|os|platform|age|total-connections'
    rb'|time-left|pause-time-left|binlog-max-size)(: ).*$',
    re.MULTILINE,
)


@pytest.fixture(scope='module')
def both():
    theirs = executable()
    if theirs is None:
        pytest.skip('there is no beanstalkd here: apt-get install beanstalkd')
    with Server(command=[theirs]) as peer, Server() as server:
        yield peer, server


def put(body, priority=0, delay=0, ttr=100):
    return b'put %d %d %d %d\r\n%s\r\n' % (priority, delay, ttr, len(body), body)


def masked(answer):
    answer = VOLATILE.sub(rb'\1\2*', answer)
    return re.sub(rb'^OK \d+\r\n---\n(?=\S+: )', b'OK *\r\n---\n', answer)


#: name -> steps; a step is (client, bytes, how many answers come).
#: T in a step stands for a tube of the test's own, N1, N2 ... for the n-th number it was given.
CASES = {
    'life': [
        ('a', b'use T\r\nwatch T\r\nignore default\r\n', 3),
        ('a', put(b'hello'), 1), ('a', b'peek-ready\r\n', 1), ('a', b'reserve\r\n', 1),
        ('a', b'stats-job N1\r\n', 1), ('a', b'touch N1\r\n', 1), ('a', b'stats-tube T\r\n', 1),
        ('a', b'delete N1\r\n', 1), ('a', b'delete N1\r\n', 1), ('a', b'stats-job N1\r\n', 1),
        ('a', b'stats-tube T\r\n', 1),
    ],
    'bury and kick': [
        ('a', b'use T\r\nwatch T\r\n', 2), ('a', put(b'1') + put(b'2') + put(b'3', delay=100), 3),
        ('a', b'reserve\r\nreserve\r\n', 2), ('a', b'bury N2 5\r\nbury N1 6\r\nbury N1 6\r\n', 3),
        ('a', b'peek-buried\r\n', 1), ('a', b'stats-tube T\r\n', 1), ('a', b'stats-job N2\r\n', 1),
        ('b', b'kick-job N1\r\nkick-job N1\r\nkick-job N3\r\nkick-job 999999\r\n', 4),
        ('a', b'kick 9\r\nkick 9\r\nkick 0\r\n', 3), ('a', b'stats-job N2\r\nstats-job N3\r\n', 2),
        ('a', b'reserve\r\nreserve\r\nreserve\r\n', 3),
        ('a', b'delete N1\r\ndelete N2\r\ndelete N3\r\n', 3),
    ],
    'release': [
        ('a', b'use T\r\nwatch T\r\n', 2), ('a', put(b'1', 5) + put(b'2', 5) + put(b'3', 9), 3),
        ('a', b'reserve\r\n', 1), ('a', b'release N1 5 0\r\nrelease N1 5 0\r\n', 2),
        ('a', b'reserve\r\n', 1), ('a', b'release N1 20 0\r\n', 1), ('a', b'reserve\r\n', 1),
        ('a', b'release N2 0 50\r\n', 1), ('a', b'stats-job N2\r\npeek-delayed\r\n', 2),
        ('a', b'stats-tube T\r\n', 1), ('a', b'reserve\r\nreserve\r\n', 2),
        ('a', b'reserve-with-timeout 0\r\n', 1), ('b', b'release N1 0 0\r\nbury N1 0\r\n', 2),
        ('b', b'touch N1\r\ndelete N1\r\n', 2), ('a', b'delete N1\r\ndelete N2\r\ndelete N3\r\n', 3),
    ],
    'reserve-job': [
        ('a', b'use T\r\nwatch T\r\n', 2), ('a', put(b'1') + put(b'2', delay=50), 2),
        ('a', b'reserve-job N2\r\nreserve-job N2\r\nreserve-job 999999\r\n', 3),
        ('b', b'reserve-job N2\r\n', 1), ('a', b'stats-job N2\r\n', 1),
        ('a', b'bury N2 1\r\nreserve-job N2\r\nrelease N2 1 0\r\n', 3),
        ('a', b'stats-job N2\r\n', 1), ('a', b'delete N1\r\ndelete N2\r\n', 2),
    ],
    'tubes': [
        ('a', b'list-tube-used\r\nlist-tubes-watched\r\n', 2),
        ('a', b'use T\r\nlist-tube-used\r\nwatch T\r\nwatch T\r\nlist-tubes-watched\r\n', 5),
        ('a', b'ignore default\r\nignore T\r\nignore T-none\r\nlist-tubes-watched\r\n', 4),
        ('a', b'stats-tube T\r\nstats-tube T-none\r\n', 2),
        ('a', b'pause-tube T 50\r\npause-tube T-none 50\r\nstats-tube T\r\n', 3),
        ('a', put(b'1') + b'reserve-with-timeout 0\r\npeek-ready\r\n', 3),
        ('a', b'pause-tube T 0\r\n', 1), ('a', b'reserve\r\ndelete N1\r\n', 2),
    ],
    'deletes in every state': [
        ('a', b'use T\r\nwatch T\r\n', 2),
        ('a', put(b'1') + put(b'2', delay=50) + put(b'3') + put(b'4', 3), 4),
        ('a', b'reserve\r\nbury N1 0\r\nreserve\r\n', 3), ('b', b'delete N3\r\n', 1),
        ('b', b'delete N1\r\ndelete N2\r\ndelete N4\r\n', 3), ('a', b'delete N3\r\n', 1),
        ('a', b'peek-ready\r\npeek-delayed\r\npeek-buried\r\npeek N1\r\nstats-tube T\r\n', 5),
    ],
    'urgent': [
        ('a', b'use T\r\n', 1), ('a', put(b'1', 1023) + put(b'2', 1024) + put(b'3', 2**32 - 1), 3),
        ('a', b'stats-tube T\r\nstats-job N3\r\n', 2),
        ('a', b'delete N1\r\ndelete N2\r\ndelete N3\r\n', 3),
    ],
    'bodies': [
        ('a', b'use T\r\nwatch T\r\n', 2),
        ('a', put(b'') + put(b'\r\n') + put(bytes(range(256))) + put(b'x' * 65535), 4),
        ('a', b'reserve\r\nreserve\r\nreserve\r\nreserve\r\n', 4),
        ('a', b'delete N1\r\ndelete N2\r\ndelete N3\r\ndelete N4\r\n', 4),
        ('a', b'put 0 0 1 65536\r\n' + b'x' * 65536 + b'\r\n', 1),
        ('a', b'put 0 0 1 3\r\nabcde', 1), ('a', b'\r\n', 1),
        ('a', b'use T\r\nput 0 0 1 1\r\na\r\nuse T\r\n', 3),
        ('a', b'peek N5\r\ndelete N5\r\n', 2),
    ],
    # Not of 225 bytes: there beanstalkd 1.12 throws the CR away and waits for another line's end.
    'forms': [
        ('a', line + b'\r\n', 1)
        for line in (
            b'', b' ', b'put', b'put ', b'put 1', b'put 0 0 1 3 ', b'put 0 0 1 3x', b'put -1 0 1 1',
            b'put 4294967296 0 1 1', b'put 0 4294967296 1 1', b'put 0 0 4294967296 1', b'PUT 0 0 1 1',
            b'put 0 0 1 4294967296', b'use', b'use ', b'use -a', b'use a b', b'use a\0b', b'use \xe9',
            b'use ' + b'a' * 200, b'use ' + b'a' * 201, b'use default', b'watch', b'watch ',
            b'ignore', b'ignore ', b'reserve ', b'reserved', b'reserve-with-timeout',
            b'reserve-with-timeout ', b'reserve-with-timeout x', b'reserve-with-timeout 0x',
            b'reserve-with-timeout  0', b'reserve-with-timeout 0 ', b'reserve-job', b'reserve-job ',
            b'reserve-job x', b'delete', b'delete ', b'delete -1', b'delete 1x', b'delete  1',
            b'delete 1 ', b'delete 18446744073709551615', b'delete 18446744073709551616', b'release',
            b'release ', b'release 1', b'release 1 2', b'release 999999 2 3', b'release 1 2 3 ',
            b'bury', b'bury ', b'bury 1', b'bury 999999 2', b'bury 1 2 ', b'kick', b'kick ', b'kick x',
            b'kick -1', b'kick 1x', b'kick 1 ', b'kick 4294967296', b'kick 99999999999999999999999',
            b'kick-job', b'kick-job ', b'kick-job x', b'kick-job 999999', b'touch', b'touch ',
            b'touch x', b'touch 999999', b'peek', b'peek ', b'peek x', b'peek 999999', b'peek 1 ',
            b'peek-ready ', b'peek-readyx', b'peek-delayed ', b'peek-buried ', b'stats ', b'statsx',
            b'stats-job', b'stats-job ', b'stats-job x', b'stats-job 999999', b'stats-tube',
            b'stats-tube ', b'stats-tube nothing', b'list-tubes ', b'list-tube-used ',
            b'list-tubes-watched ', b'pause-tube', b'pause-tube ', b'pause-tube default',
            b'pause-tube default x', b'pause-tube nothing 1', b'pause-tubex default 1', b'nothing',
            b'a\nuse b', b'x' * 222, b'x' * 224, b'x' * 225, b'x' * 5000,
        )
    ],
    'one packet': [
        ('a', b'use T\r\nwatch T\r\n' + put(b'1') + b'reserve\r\nbury N1 2\r\nnonsense\r\n'
         + b'kick 1\r\nreserve\r\nrelease N1 3 0\r\npeek-ready\r\nreserve\r\ndelete N1\r\n', 12),
    ],
    'waiting': [
        ('a', b'watch T\r\nignore default\r\n', 2), ('a', b'reserve\r\n', 0), ('b', b'use T\r\n', 1),
        ('b', put(b'1'), 1), ('a', b'', 1), ('b', b'stats-tube T\r\n', 1), ('a', b'delete N1\r\n', 1),
        ('a', b'reserve-with-timeout 1\r\n', 1),
    ],
    'deadline': [
        ('a', b'use T\r\nwatch T\r\nignore default\r\n', 3), ('a', put(b'1', ttr=1), 1),
        ('a', b'reserve\r\n', 1), ('a', b'reserve\r\n', 1), ('a', b'touch N1\r\n', 1),
        ('a', b'reserve-with-timeout 0\r\n', 1), ('a', put(b'2') + b'reserve\r\n', 2),
        ('a', b'delete N1\r\ndelete N2\r\n', 2),
    ],
    'leaving': [
        ('a', b'use T\r\nwatch T\r\n', 2), ('b', b'watch T\r\n', 1), ('a', put(b'1') + put(b'2'), 2),
        ('a', b'reserve\r\n', 1), ('b', b'reserve\r\n', 1), ('a', None, 0), ('b', b'reserve\r\n', 1),
        ('b', b'stats-job N1\r\nstats-tube T\r\n', 2), ('b', b'delete N1\r\ndelete N2\r\n', 2),
    ],
    'quit': [('a', b'use T\r\nquit\r\nuse T\r\n', 2)],
}  # fmt: skip


class Conversation:
    """The steps of a case with one server."""

    def __init__(self, server, tube):
        self.server = server
        self.tube = tube
        self.lines = {}
        self.numbers = []

    def step(self, who, data, count):
        line = self.lines.get(who)
        if line is None:
            line = self.lines[who] = self.server.connect()
        if data is None:
            line.close()
            return []
        line.send(self.filled(data))
        return [self.understood(line.answer()) for _ in range(count)]

    def filled(self, data):
        """The bytes to send: the tube's name and the numbers are put in."""
        data = re.sub(rb'\bT\b', self.tube, data)
        for place, number in enumerate(self.numbers, 1):
            data = re.sub(rb'\bN%d\b' % place, number, data)
        if b' N' in data:  # in the packet that puts it: the next number
            data = data.replace(b'N1', self.next_number())
        return data

    def next_number(self):
        with self.server.connect() as line:
            number = int(line.ask(b'put 0 0 1 0\r\n\r\n').split()[1])
            line.ask(b'delete %d\r\n' % number)
        return b'%d' % (number + 1)

    def understood(self, answer):
        """The answer with its numbers replaced by their places."""
        if answer.startswith(b'INSERTED '):
            self.numbers.append(answer.split()[1])
        for place, number in enumerate(self.numbers, 1):
            answer = re.sub(rb'^(INSERTED |FOUND |RESERVED |OK \d+\r\n---\nid: )%s\b' % number,
                            rb'\1N%d' % place, answer)  # fmt: skip
        return masked(answer)

    def close(self):
        for line in self.lines.values():
            line.close()


@pytest.mark.parametrize('name', CASES)
def test_both_answer_alike(both, name):
    tube = b'tube-' + name.encode().replace(b' ', b'-')
    talks = [Conversation(server, tube) for server in both]
    try:
        for who, data, count in CASES[name]:
            peer, ours = (talk.step(who, data, count) for talk in talks)
            assert ours == peer, data
    finally:
        for talk in talks:
            talk.close()


def test_both_have_the_same_figures(both):
    for server in both:
        with server.connect() as line:
            line.ask(b'use figures\r\n')
            for _ in range(3):
                line.ask(put(b'x'))
    peer, ours = (server.connect() for server in both)
    with peer, ours:
        stats = [masked(line.ask(b'stats\r\n')) for line in (peer, ours)]
    keys = [re.findall(rb'^([a-z-]+):', text, re.MULTILINE) for text in stats]
    assert keys[0] == keys[1]
    jobs = [
        re.findall(rb'^(current-jobs-[a-z]+|job-timeouts): (\d+)', text, re.MULTILINE)
        for text in stats
    ]
    assert jobs[0] == jobs[1]


#: (client, command), with both servers just started.
TUBES = (
    ('a', b'use a'), ('a', b'list-tubes'), ('b', b'watch b'), ('b', b'watch c'), ('b', b'watch d'),
    ('a', b'list-tubes'), ('b', b'ignore b'), ('b', b'list-tubes-watched'), ('a', b'list-tubes'),
    ('a', b'put 0 0 1 0\r\n'), ('a', b'pause-tube a 50'), ('a', b'use e'), ('a', b'list-tubes'),
    ('b', b'delete 1'), ('b', b'list-tubes'), ('a', b'use a'), ('a', b'stats-tube a'),
    ('a', b'put 0 0 1 0\r\n'), ('b', b'use c'), ('b', b'ignore c'), ('a', b'list-tubes'),
    ('c', b'watch a'), ('c', b'reserve-with-timeout 0'), ('a', b'use default'), ('c', b'delete 2'),
    ('c', b'stats-tube a'), ('c', b'ignore a'), ('a', b'list-tubes'), ('a', b'stats-tube a'),
    ('a', b'pause-tube a 1'), ('b', b'watch default'), ('b', b'list-tubes-watched'),
)  # fmt: skip


def test_both_have_the_same_tubes(tmp_path):
    """A tube comes with its first use, and goes with its last; in the same order in the lists."""
    theirs = executable()
    if theirs is None:
        pytest.skip('there is no beanstalkd here: apt-get install beanstalkd')
    with Server(command=[theirs]) as peer, Server() as server:
        lines = {who: (peer.connect(), server.connect()) for who in 'abc'}
        for who, command in TUBES:
            theirs, ours = (masked(line.ask(command + b'\r\n')) for line in lines[who])
            assert ours == theirs, command
        for line in sum(lines.values(), ()):
            line.close()
