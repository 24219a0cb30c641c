"""The door of a dispatcher's process: a socket at which it can be asked, as JSON lines.

Whoever connects sends ``{"ask": NAME, "args": {...}}`` in a line and gets
``{"answer": ...}`` or ``{"error": TEXT, "kind": ...}`` in a line, as often as
wanted.  The names are those of `zodbjobs.monitor.process` and of
`zodbjobs.monitor.questions`.

It is a unix socket in a folder that only this user can enter, beside a file
that says what is behind it (see `zodbjobs.monitor.doors`).  The variable
ZODBJOBS_MONITOR says otherwise: ``off``, or ``HOST:PORT`` or ``PORT`` for TCP
as well.  Without a HOST that is the loopback; and whoever comes by TCP can ask,
but change nothing, as it is not known who that is.

It has threads of its own, one to listen and one for each caller, so it answers
also when the reactor is stuck.  Deeds run in such a thread, in transactions of
their own.
"""

import atexit
import contextlib
import json
import logging
import os
import socket
import threading

from zodbjobs import clock
from zodbjobs.monitor import process, questions
from zodbjobs.monitor.doors import announcement_of, socket_path
from zodbjobs.runtime import storages

log = logging.getLogger('zodbjobs.events')

#: 'off', or where to listen for TCP beside the unix socket.
VARIABLE = 'ZODBJOBS_MONITOR'

#: Characters of a request.
REQUEST_LENGTH = 1_000_000

#: Callers at a time; others are sent away.
CALLERS = 16

#: For a thread that accepts callers to end, which takes an instant.
END_SECONDS = 1

LOOPBACK = '127.0.0.1'

# Kinds of errors.
WRONGLY_ASKED, FAILED = 'wrongly asked', 'failed'


class Door:
    """The open door of `dispatcher`.  `places` are where it listens: paths and (host, port)."""

    def __init__(self, dispatcher, folder, tcp=None):
        self.dispatcher = dispatcher
        self.folder = folder
        self.places = []
        self._listeners = []  # (socket, the thread that accepts there)
        self._callers = threading.BoundedSemaphore(CALLERS)
        self._announcement = None
        self._pid = os.getpid()
        if hasattr(socket, 'AF_UNIX'):
            self._listen_locally()
        if tcp is not None:
            self._listen_on_the_net(tcp)
        if self.places:
            self._announce()
        atexit.register(self._close_at_exit)  # a reactor may never be told to stop

    def _close_at_exit(self):
        if os.getpid() == self._pid:  # and not in a child that was forked
            self.close()

    def _listen_locally(self):
        path = socket_path(self.folder, self.dispatcher.UUID)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # of a former life: a UUID is one process at a time
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        os.chmod(path, 0o600)
        self._listen(listener, trusted=True)

    def _listen_on_the_net(self, place):
        try:
            listener = socket.create_server(place)
        except OSError as error:  # of several workers of a host one has the port
            log.warning('the monitor cannot listen at %s:%s: %s', *place, error)
            return
        self._listen(listener, trusted=False)

    def _listen(self, listener, trusted):
        listener.listen()
        thread = threading.Thread(
            target=self._accept, args=(listener, trusted), name='zodbjobs monitor', daemon=True
        )
        thread.start()
        self._listeners.append((listener, thread))
        self.places.append(listener.getsockname())

    def _accept(self, listener, trusted):
        while True:
            try:
                line, _ = listener.accept()
            except OSError:
                return  # it was closed
            threading.Thread(
                target=self._serve, args=(line, trusted), name='zodbjobs monitor', daemon=True
            ).start()

    def _serve(self, line, trusted):
        """Answer one caller; in a thread of its own."""
        with contextlib.closing(line), contextlib.suppress(OSError):  # the caller has gone
            if not self._callers.acquire(blocking=False):
                _say(line, _error(f'{CALLERS} callers are being served already', FAILED))
                return
            try:
                requests = line.makefile('rb')
                # Whoever sends what is no request, such as a browser, is not heard any further.
                while (request := requests.readline(REQUEST_LENGTH)).startswith(b'{'):
                    _say(line, self.answer(request, trusted))
            finally:
                self._callers.release()

    def _announce(self):
        """Leave word of the door, whole or not at all."""
        path = announcement_of(self.folder, self.dispatcher.UUID)
        base = storages.base(self.dispatcher.db)
        name = getattr(base, '_file_name', None)
        facts = {
            'uuid': str(self.dispatcher.UUID),
            'pid': os.getpid(),
            'places': self.places,
            'file': os.path.realpath(name) if isinstance(name, str) else None,
            'storage': self.dispatcher.db.storage.getName(),
            'opened': clock.now().isoformat(),
        }
        draft = f'{path}.{os.getpid()}'
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 'w') as target:
            json.dump(facts, target)
        os.replace(draft, path)
        self._announcement = path

    def close(self):
        """Let nobody in any more.  Twice does no harm."""
        atexit.unregister(self._close_at_exit)
        paths = [place for place in self.places if isinstance(place, str)]
        if self._announcement is not None:
            paths.append(self._announcement)
        for path in paths:
            with contextlib.suppress(OSError):
                os.unlink(path)
        for listener, thread in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts there
            listener.close()
            thread.join(END_SECONDS)
        self._listeners, self.places, self._announcement = [], [], None

    def answer(self, line, trusted):
        """The answer to one request, a dict."""
        try:
            asked = json.loads(line)
            name, args = asked['ask'], asked.get('args') or {}
            if not isinstance(args, dict):
                raise TypeError('args is an object of named arguments')
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return _error(f'{error!r}: a request is {{"ask": NAME, "args": {{...}}}}')
        if not trusted and (name in questions.DEEDS or name == 'pack'):
            return _error(f'{name}: nothing is changed for callers by TCP; use the unix socket')
        try:
            if name in process.QUESTIONS:
                return {'answer': process.QUESTIONS[name](self.dispatcher, **args)}
            return {'answer': questions.ask(self.dispatcher.db, name, args)}
        except (LookupError, ValueError, TypeError) as error:
            return _error(str(error.args[0] if error.args else error))
        except Exception as error:
            log.exception('the monitor could not answer %r', name)
            return _error(f'{type(error).__name__}: {error}', FAILED)

    def __repr__(self):
        return f'<Door of {self.dispatcher!r} at {self.places}>'


def _error(text, kind=WRONGLY_ASKED):
    return {'error': text, 'kind': kind}


def _say(line, answer):
    line.sendall(json.dumps(answer, default=str).encode() + b'\n')


def wanted_tcp(text):
    """(host, port) of ``HOST:PORT`` or ``PORT``; None for ''.  Raises ValueError."""
    if not text:
        return None
    host, _, port = text.rpartition(':')
    if not port.isdigit():
        raise ValueError(f'{text!r} is neither off, nor PORT, nor HOST:PORT')
    return host.strip('[]') or LOOPBACK, int(port)


def open_door(dispatcher, wanted=None):
    """Open the door of `dispatcher` until its reactor shuts down; returns it, or None.

    `wanted` is as the variable ZODBJOBS_MONITOR, which counts if it is None.  A door that cannot
    be opened is said in the log, and hinders nobody.
    """
    from zodbjobs.runtime import witness

    if wanted is None:
        wanted = os.environ.get(VARIABLE, '')
    if wanted == 'off':
        return None
    try:
        door = Door(dispatcher, witness.lock_folder(), wanted_tcp(wanted))
    except (OSError, ValueError) as error:
        log.warning('dispatcher %s has no monitor: %s', dispatcher.UUID, error)
        return None
    dispatcher.reactor.addSystemEventTrigger('after', 'shutdown', door.close)
    log.info('dispatcher %s can be asked at %s', dispatcher.UUID, door.places)
    return door
