"""The jobs that worker processes run in these tests; a worker imports them from here.

What they do to the database is counted there, in `counts`; what they do outside
is seen in files, which no abort takes back.
"""

import os
import signal
import time


def count(counter, n):
    """Count, in the job's own transaction, that this was done."""
    counter[n] = counter.get(n, 0) + 1
    return os.getpid()


def count_slowly(counter, n, seconds):
    """As `count`, and take some time for it: what runs when somebody is killed must be running."""
    done = count(counter, n)
    time.sleep(seconds)  # the time is what the test is about: a process dies in it
    return done


def hang_once(counter, n, path):
    """Whoever does this first never comes to its end; `path` is a file that names the process."""
    done = count(counter, n)
    if is_first(path):
        time.sleep(600)  # until this process is killed
    return done


def end_when_told(counter, n, path, seconds=60):
    """Say that we run, and go on until there is the file `path`.end, or so many seconds."""
    done = count(counter, n)
    is_first(path)
    deadline = time.monotonic() + seconds
    while not os.path.exists(f'{path}.end') and time.monotonic() < deadline:
        time.sleep(0.01)  # other processes have no other way to tell us
    return done


def die_once(counter, n, path):
    """The first process that does this dies of it, as by a fault in a library."""
    done = count(counter, n)
    if is_first(path):
        os.kill(os.getpid(), signal.SIGKILL)
    return done


def tell(counter, n, path):
    """Say that everything before this has finished."""
    is_first(path)
    return count(counter, n)


def is_first(path):
    """Whether nobody was here before; who was is written into the file `path`."""
    try:
        with open(f'{path}.new', 'x') as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return False
    os.rename(f'{path}.new', path)  # whole, or not there
    open(f'{path}.new', 'x').close()
    return True
