"""Finding the doors of dispatchers' processes, and asking there.

Each door leaves a file beside its socket that says what is behind it.  What a
dead process left behind is known by its socket, where nobody answers, and is
removed.

Runs in the thread of whoever asks, and waits for the answer.
"""

import contextlib
import glob
import hashlib
import json
import os
import socket

#: Bytes in the path of a unix socket, on the systems that allow the least.
LONGEST_SOCKET = 100

#: Seconds for a door to be opened.
CONNECT_SECONDS = 2

#: Seconds for an answer; packing takes as long as it takes.
ANSWER_SECONDS = 120


class DoorError(LookupError):
    """What the process behind a door said of a question that it could not answer."""


def announcement_of(folder, uuid):
    """The path of the file that tells of a dispatcher's door."""
    return os.path.join(folder, f'{uuid}.door')


def socket_path(folder, uuid):
    """Where the door of a dispatcher listens: a path that is short enough for a socket."""
    from zodbjobs.runtime import witness

    found = os.path.join(folder, f'{uuid}.monitor')
    if len(os.fsencode(found)) <= LONGEST_SOCKET:
        return found
    name = hashlib.sha256(os.fsencode(found)).hexdigest()[:16]
    return os.path.join(witness.own_folder(), f'{name}.monitor')


class Caller:
    """A connection to a door; `uuid`, `pid`, `file` and `storage` are what is behind it."""

    def __init__(self, facts):
        self.uuid, self.pid = facts['uuid'], facts['pid']
        self.file, self.storage = facts['file'], facts['storage']
        self._line = _connected(facts['places'][0])
        self._answers = self._line.makefile('rb')

    @property
    def shown_storage(self):
        return self.file or self.storage

    def ask(self, name, args=None):
        """The answer to a question; DoorError for one that the process cannot answer."""
        self._line.settimeout(None if name == 'pack' else ANSWER_SECONDS)
        with contextlib.suppress(BrokenPipeError):  # sent away: the answer says why
            self._line.sendall(json.dumps({'ask': name, 'args': args or {}}).encode() + b'\n')
        try:
            line = self._answers.readline()
        except OSError as error:
            raise DoorError(f'process {self.pid} does not answer: {error}') from None
        if not line:
            raise DoorError(f'process {self.pid} ended before it answered')
        answer = json.loads(line)
        if 'error' in answer:
            raise DoorError(answer['error'])
        return answer['answer']

    def close(self):
        self._answers.close()
        self._line.close()


def _connected(place):
    """A socket connected to `place`: a path, or [host, port]."""
    if not isinstance(place, str):
        return socket.create_connection(tuple(place), CONNECT_SECONDS)
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    line.settimeout(CONNECT_SECONDS)
    try:
        line.connect(place)
    except OSError:
        line.close()
        raise
    return line


def found():
    """Callers at all doors of this host and user that answer; close them."""
    return [caller for facts in _announced() if (caller := _at(facts)) is not None]


def of_file(path):
    """A Caller at the process that has this file open, or None."""
    path = os.path.realpath(path)
    for facts in _announced():
        if facts['file'] == path and (caller := _at(facts)) is not None:
            return caller
    return None


def _announced():
    from zodbjobs.runtime import witness

    try:
        folder = witness.lock_folder()
    except OSError:
        return
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), '*.door'))):
        try:
            with open(path) as source:
                yield json.load(source) | {'announcement': path}
        except (OSError, ValueError):
            continue  # it was just removed


def _at(facts):
    """A Caller, or None where nobody is any more."""
    try:
        return Caller(facts)
    except (ConnectionRefusedError, FileNotFoundError):
        for left in (facts['announcement'], facts['places'][0]):
            with contextlib.suppress(OSError, TypeError):
                os.unlink(left)
    except OSError:
        pass  # too many callers, for one
    return None
