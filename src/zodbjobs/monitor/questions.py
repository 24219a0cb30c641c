"""What can be asked of a database, by name, with plain values in and out.

The command line asks here when it has the database open itself, and through
the door of a dispatcher's process when that has it.  So both answer alike.

Each question and each deed runs in a transaction of its own, in the thread of
whoever asks; only deeds commit.
"""

import contextlib

import transaction

from zodbjobs.interfaces import KEY
from zodbjobs.monitor import deeds, digest, doctor, loops, reason, shown, view
from zodbjobs.monitor.wanted import wanted

#: How often a deed that conflicts is tried.
TRIES = 10


class UnknownQuestion(ValueError):
    """Nobody knows how to answer that."""


# Questions: called with the mapping of queues and plain values.


def status(queues):
    """Queues and dispatchers."""
    return digest.overview(queues) | {'dispatchers': dispatchers(queues)}


def queues_(queues):
    return [shown.queue_facts(queue) for queue in queues.values()]


def dispatchers(queues, dispatcher=None):
    search = wanted((), dispatcher=dispatcher)
    return [
        shown.dispatcher_facts(record)
        for queue in queues.values()
        for record in queue.dispatchers.values()
        if search.has_dispatcher(record)
    ]


def agents(queues, **filters):
    return [shown.agent_facts(agent) for agent in digest.agents(queues, **filters)]


def jobs(queues, states=(), limit=view.LIMIT, look=view.LOOK, with_reason=False, **filters):
    found = view.jobs(queues, *states, limit=limit, look=look, **filters)
    rows = [shown.brief(job) for job in found]
    if with_reason:
        for row, job in zip(rows, found, strict=True):
            row['why'] = reason.why(job)
    return {'jobs': rows, 'looked_at': found.looked_at, 'is_all': found.is_all}


def job(queues, name):
    return shown.full(view.find(queues, name))


def count(queues, states=(), look=view.LOOK, **filters):
    number, is_exact = view.count(queues, *states, look=look, **filters)
    return {'count': number, 'exact': is_exact}


def job_stats(queues, states=(), look=view.LOOK, **filters):
    return digest.job_stats(queues, *states, look=look, **filters)


def stats(queues, since='1H', look=view.LOOK, **filters):
    return digest.ended_stats(queues, since, look, **filters)


def next_(queues, **filters):
    found = view.next_pending(queues, **filters)
    return None if found is None else shown.full(found)


def last(queues, **filters):
    found = view.last_completed(queues, **filters)
    return None if found is None else shown.full(found)


def traceback(queues, name, detail='default'):
    return shown.traceback(view.find(queues, name), detail)


def why(queues, name):
    found = view.find(queues, name)
    return {'job': reason.name_of(found), 'why': reason.why(found)}


#: name -> a function of the queues: it only reads.
QUESTIONS = {
    'status': status,
    'queues': queues_,
    'dispatchers': dispatchers,
    'agents': agents,
    'jobs': jobs,
    'job': job,
    'count': count,
    'job_stats': job_stats,
    'stats': stats,
    'next': next_,
    'last': last,
    'traceback': traceback,
    'why': why,
    'health': doctor.health,
    'doctor': doctor.examine,
    'lint': doctor.lint,
}

#: name -> a function of the queues: what it changes is committed.
DEEDS = {
    'act_on_jobs': deeds.act_on_jobs,
    'pause': deeds.pause,
    'unpause': deeds.unpause,
    'set_quota': deeds.set_quota,
    'set_agent': deeds.set_agent,
    'set_retention': deeds.set_retention,
    'prune': deeds.prune,
    'put': deeds.put,
}

#: Those that are about loops, which may be anywhere: functions of the database's root.
OF_ROOT = {
    'loops': loops.loops,
    'loop_stats': loops.loop_stats,
    'loop_check': loops.loop_check,
    'loop_create': loops.loop_create,
    'loop_add': loops.loop_add,
    'loop_remove': loops.loop_remove,
    'loop_bump': loops.loop_bump,
}
QUESTIONS |= {name: OF_ROOT[name] for name in ('loops', 'loop_stats', 'loop_check')}
DEEDS |= {name: OF_ROOT[name] for name in ('loop_create', 'loop_add', 'loop_remove', 'loop_bump')}


def ask(db, name, args=None):
    """Answer the question `name`, or do the deed, with the keyword arguments in the dict `args`.

    `db` is a ZODB.DB.  Raises UnknownQuestion, and ValueError, TypeError or LookupError for
    what was asked wrongly.
    """
    args = args or {}
    if name == 'pack':
        return pack(db, **args)
    if name not in QUESTIONS and name not in DEEDS:
        raise UnknownQuestion(
            f'unknown question {name!r}; there are {", ".join([*QUESTIONS, *DEEDS, "pack"])}'
        )
    manager = transaction.TransactionManager()
    with contextlib.closing(db.open(manager)) as connection:
        try:
            if name in QUESTIONS:
                return QUESTIONS[name](_subject(connection, name), **args)
            return manager.run(lambda: DEEDS[name](_subject(connection, name), **args), TRIES)
        finally:
            manager.abort()


def _subject(connection, name):
    return connection.root() if name in OF_ROOT else _queues(connection)


def _queues(connection):
    queues = connection.root().get(KEY)
    if queues is None:
        raise LookupError(f'there are no queues in this database (nothing at root[{KEY!r}])')
    return queues


def pack(db, days=1):
    """Pack the database, keeping what was current in the last `days`; returns its sizes in bytes.

    This takes long, and slows others down meanwhile.
    """
    before = db.getSize()
    db.pack(days=days)
    return {'before': before, 'after': db.getSize(), 'days': days}
