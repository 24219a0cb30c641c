"""Whether a dispatcher that did not say goodbye is dead, as far as that shows from here.

Dispatchers bury each other, but after a crash there may be none left to do it.
So whoever looks asks the same witness as they do: the lock of the dispatcher on
this host, or, for a file that one process has, the process itself.

Reads no database; any thread may ask.
"""

import os
import socket

from zodbjobs.runtime import witness


def is_dead(record):
    """Whether the dispatcher of an IDispatcherAgents is active in its record and proved dead."""
    if record.activated is None:
        return False
    try:
        folder = witness.lock_folder()
        if record.host == witness.place_of(folder):
            return witness.is_held(folder, str(record.UUID)) is False
    except OSError:
        pass  # no locks here: what is left is the process
    if record.host != socket.gethostname() or not record.pid or os.name != 'posix':
        return False
    try:
        os.kill(record.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # it is somebody else's
    return False


def serves(record):
    """Whether it is active, and not known to be dead."""
    return record.activated is not None and not is_dead(record)
