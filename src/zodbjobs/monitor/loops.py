"""What can be asked of loops, and done to them: plain values in and out.

A loop is named by its key in the mapping at `LOOPS_KEY` in the root; or by a path
from the root, such as '/app/loops/users', of keys and attributes.
"""

import datetime
import itertools
import json

from zodbjobs.interfaces import LOOPS_KEY, ILoop
from zodbjobs.model.loop import Loop, Loops

DAY = 86_400

#: Seconds for which `loop_stats` tells how many ids are older.
STALE_SECONDS = {'hour': 3600, 'day': DAY, 'week': 7 * DAY}

#: A check of more ids than this is cut short.
LIMIT = 1000


def loops(root):
    """Every loop at `LOOPS_KEY`, with what matters most."""
    return [_brief(name, loop) for name, loop in sorted(root.get(LOOPS_KEY, {}).items())]


def _brief(name, loop):
    stats = loop.stats()
    names = ('total', 'never_updated', 'locked', 'bumped', 'failing')
    return {
        'name': name,
        **{key: stats[key] for key in names},
        'oldest_seconds': loop.oldest(),
        'runners': [_runner(runner) for runner in loop.runners],
    }


def _runner(runner):
    return {
        'call': runner.call_name,
        'queue': runner.queue.name,
        'size': runner.size,
        'batch': runner.batch,
        'jobs': len(runner.jobs),
        'fresh': _seconds(runner.fresh),
        'late_seconds': runner.late,
    }


def _seconds(span):
    return span.total_seconds() if isinstance(span, datetime.timedelta) else span


def loop_stats(root, name):
    """All figures of a loop."""
    loop = found(root, name)
    stats = loop.stats()
    stats |= {f'older_than_{span}': loop.stale(s) for span, s in STALE_SECONDS.items()}
    for key in ('min_id', 'max_id'):
        stats[key] = _plain(stats[key])
    runners = [_runner(runner) for runner in loop.runners]
    return {'name': name, **stats, 'oldest_seconds': loop.oldest(), 'runners': runners}


def loop_check(root, name, ids=(), failing=False):
    """How ids stand; without any, all of them up to a limit, or those that failed."""
    loop = found(root, name)
    wanted = ids_of(loop, ids)
    if failing:
        counts = loop.failures()
        wanted = sorted(counts, key=counts.get, reverse=True)
    elif not ids:
        wanted = itertools.islice(loop, LIMIT)
    wanted = list(wanted)
    states, failures = loop.check(wanted), loop.failures(wanted) if wanted else {}
    return [
        {
            'id': _plain(id),
            'updated_seconds': states[id][0],
            'locked_seconds': states[id][1],
            'failures': failures[id],
        }
        for id in wanted[:LIMIT]
        if id in states
    ]


def loop_create(root, name):
    """A new loop in the mapping at `LOOPS_KEY`, which is made if it is missing."""
    if not name or name.startswith('/'):
        raise ValueError(
            f'a loop is made in the mapping at {LOOPS_KEY!r}: {name!r} is no key of it'
        )
    if LOOPS_KEY not in root:
        root[LOOPS_KEY] = Loops()
    if name in root[LOOPS_KEY]:
        raise ValueError(f'there is a loop {name!r} already')
    root[LOOPS_KEY][name] = Loop()
    return {'name': name}


def loop_add(root, name, ids, updated=False):
    """Add ids to a loop that is there."""
    loop = found(root, name)
    return {'count': loop.add(ids_of(loop, ids), updated)}


def loop_remove(root, name, ids):
    loop = found(root, name)
    return {'count': loop.remove(ids_of(loop, ids))}


def loop_bump(root, name, ids, lock_for=0, take_over=False):
    """Bump ids that are there; those that are not are not added, as a slip of a hand would do."""
    loop = found(root, name)
    return {'count': loop.bump(ids_of(loop, ids), lock_for, False, take_over=take_over)}


def found(root, name):
    """The loop of that name or path.  LookupError if there is none."""
    loop = _at(root, name) if name.startswith('/') else root.get(LOOPS_KEY, {}).get(name)
    if not ILoop.providedBy(loop):
        known = sorted(root.get(LOOPS_KEY, {}))
        raise LookupError(
            f'there is no loop {name!r}; at {LOOPS_KEY!r} in the root there are {known};'
            f' one that is kept elsewhere is named by its path, such as /app/users'
        )
    return loop


def _at(place, path):
    for part in path.strip('/').split('/'):
        try:
            place = place[part]
        except (AttributeError, KeyError, TypeError):
            place = getattr(place, part, None)
    return place


def ids_of(loop, words):
    """The ids that words of a command line mean: of the kind of those that are there.

    In a loop without any, what can be read as a number is one.
    """
    sample = next((id for id in loop if id is not None), None)
    if isinstance(sample, str):
        return list(words)
    if isinstance(sample, bytes):
        return [word.encode() for word in words]
    return [_read(word) for word in words]


def _read(word):
    """A number or a list (as a tuple) that is written as JSON; else the word itself."""
    try:
        value = json.loads(word)
    except ValueError:
        return word
    return tuple(value) if isinstance(value, list) else value


def _plain(id):
    if isinstance(id, bytes):
        return id.decode('utf-8', 'backslashreplace')
    return id if isinstance(id, (str, int, float, type(None))) else repr(id)
