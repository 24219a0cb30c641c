"""Sharing a file: where the ZEO server of a ``Data.fs`` listens, and who looks there.

A FileStorage can be open in one process.  When several work on it, one of them
is a ZEO server (see `zeoserver`) whose unix socket has a name made of the file's
path, so that whoever knows the file finds the server: other supervisors, single
workers, and all the commands.

Nothing is opened here; any thread may ask.
"""

import contextlib
import hashlib
import os
import socket
import urllib.parse

from zodbjobs.runtime import witness

#: Bytes in the path of a unix socket, on the systems that allow the least.
LONGEST_SOCKET = 100

#: A server that lives greets within milliseconds.
GREETING_SECONDS = 1.0

#: Options in the address of a file that concern who has it open, and not its clients.
_SERVERS_OWN = ('create', 'quota', 'blobstorage_layout', 'blobstorage_dir')


def path_of(uri):
    """The real path of the file that an address names, None if it is another kind of address."""
    scheme, colon, rest = os.fspath(uri).partition(':')
    if not colon or len(scheme) < 2 or os.sep in scheme:
        scheme, rest = 'file', os.fspath(uri)
    if scheme.lower() != 'file':
        return None
    path = rest.removeprefix('//').partition('?')[0]
    return os.path.realpath(path) if path else None


def socket_of(path):
    """Where the server of the file at `path` listens: a path that is short enough for a socket.

    It is in the folder of the locks where that is short; raises OSError if there can be none.
    """
    folder, path = witness.lock_folder(), os.path.realpath(path)
    name = hashlib.sha256(os.fsencode(f'{folder}\n{path}')).hexdigest()[:16]
    found = os.path.join(folder, f'{name}.zeo')
    if len(os.fsencode(found)) > LONGEST_SOCKET:
        found = os.path.join(witness.own_folder(), f'{name}.zeo')
    return found


def is_answered(address):
    """Whether a server greets at the unix socket `address`; waits `GREETING_SECONDS` for it."""
    if not hasattr(socket, 'AF_UNIX'):
        return False
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as line:
        line.settimeout(GREETING_SECONDS)
        try:
            line.connect(address)
            return bool(line.recv(64))  # going without a word would be logged there as an error
        except OSError:
            return False


def client_uri(uri, address):
    """The address of the database at the `file:` address `uri`, through the socket `address`.

    Options of the database and its cache stay, and blobs are shared in their folder.
    """
    query = os.fspath(uri).partition('?')[2]
    options = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    if 'blobstorage_dir' in options:
        options |= {'blob_dir': os.path.realpath(options['blobstorage_dir']), 'shared_blob_dir': 1}
    kept = {name: value for name, value in options.items() if name not in _SERVERS_OWN}
    return f'zeo://{address}?{urllib.parse.urlencode(kept)}'.removesuffix('?')


def answered_uri(uri):
    """The ZEO address by which the file at `uri` can be had now; None if no server of it answers.

    Also None for addresses that name no file.
    """
    path = path_of(uri)
    if path is None:
        return None
    try:
        address = socket_of(path)
    except OSError:
        return None  # no place for a socket, hence none that answers
    return client_uri(uri, address) if is_answered(address) else None
