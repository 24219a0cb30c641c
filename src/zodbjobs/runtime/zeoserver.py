"""A ZEO server for a file that several processes of this host share.

``python -m zodbjobs.runtime.zeoserver URI SOCKET`` opens the file at the `file:`
address URI, listens at a unix socket, and runs until SIGTERM or SIGINT.  With
``--linger SECONDS`` it also ends when its standard input does, that is, when
whoever started it has died: as soon as the last client has gone, after so many
seconds at the latest.

Only one can have the file open: the others end at once with the code `TAKEN`,
and whoever started them finds the socket of the first.

All of it happens in the main thread of a process of its own.  No code of an
application is needed here, as what producers share are stock BTrees.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys

import zc.lockfile

from zodbjobs.runtime import address

log = logging.getLogger('zodbjobs.zeoserver')

#: Exit code: another process has the file open.
TAKEN = 75

#: Between two looks whether the last client has gone, when nobody watches over us any more.
LOOK_SECONDS = 0.2


def start(uri, socket, log=None, lifeline=None, linger=30):
    """Start a server for the file at `uri`; returns the subprocess.Popen.

    `socket` is the path where it shall listen, `log` a file for what it says
    (None: our stderr), `lifeline` a file whose other end we keep (a socket or
    a pipe), or None.  When we die, its clients have `linger` seconds to leave.
    """
    command = [sys.executable, '-m', __name__, os.fspath(uri), socket]
    if lifeline is not None:
        command.append(f'--linger={linger}')
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL if lifeline is None else lifeline,
        stdout=log,
        stderr=log,
        start_new_session=True,  # a Ctrl-C is for whoever started us
    )


class Server:
    """A ZEO server on `storage`, which listens at the path `socket`."""

    def __init__(self, storage, socket):
        from ZEO.StorageServer import StorageServer

        self.storage = storage
        self.socket = socket
        self._server = StorageServer(socket, {'1': storage})
        self._loop = self._server.acceptor.event_loop
        self._linger_until = None
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._loop.stop)

    def watch(self, lifeline, seconds):
        """When the file descriptor `lifeline` ends, end within so many seconds."""
        self._loop.add_reader(lifeline, self._told, lifeline, seconds)

    def run(self):
        """Serve until a signal, or the end of the lifeline; then close the storage."""
        log.info('ZEO server: serves %s', self.storage.getName())
        try:
            self._server.loop()
        finally:
            log.info('ZEO server: has stopped')
            with contextlib.suppress(OSError):
                os.unlink(self.socket)
            self.storage.close()

    def _told(self, lifeline, seconds):
        if not os.read(lifeline, 1024):
            self._loop.remove_reader(lifeline)
            self._linger_until = self._loop.time() + seconds
            self._end_when_alone()

    def _end_when_alone(self):
        clients = self._server.zeo_storages_by_storage_id['1']
        if clients and self._loop.time() < self._linger_until:
            self._loop.call_later(LOOK_SECONDS, self._end_when_alone)
        else:
            self._loop.stop()


def main(arguments=None):
    """Run a server; returns the exit code."""
    parser = argparse.ArgumentParser(prog=f'python -m {__name__}')
    parser.add_argument('uri')
    parser.add_argument('socket')
    parser.add_argument('--linger', type=float)
    options = parser.parse_args(arguments)
    logging.basicConfig(format='%(asctime)s %(levelname)s %(message)s')
    log.setLevel(logging.INFO)
    logging.getLogger('ZEO').setLevel(logging.ERROR)  # that a client goes is no news here
    try:
        storage = address.open_storage(options.uri)
    except address.AddressError as error:
        print(f'ZEO server: {error}', file=sys.stderr)
        return TAKEN if isinstance(error.__cause__, zc.lockfile.LockError) else 2
    server = Server(storage, options.socket)
    if options.linger is not None:
        server.watch(sys.stdin.fileno(), options.linger)
    with contextlib.suppress(asyncio.CancelledError):
        server.run()
    return 0


if __name__ == '__main__':
    sys.exit(main())
