"""Size: what a job writes in its life, and what a pack leaves of it.

Measured where the database is a file that this process has: put, claim and
completion, one commit per put.  Arguments are stored twice, as a job's record is.
"""

import transaction

from benchmarks import staff, work
from benchmarks.measure import PLAIN, SIZE, Figure
from benchmarks.throughput import finish
from zodbjobs import Job, clock
from zodbjobs.interfaces import KEY

THREADS = 4

#: For all jobs to be done.
END_SECONDS = 60


def measure(place, scale):
    if place.path is None:
        return
    count = scale.lives
    steady = _as_it_comes(place, count)
    yield (Figure("bytes in a job's life, done as it comes", steady, 'B', SIZE),)
    yield (_life(place, count, 'the same of a call alone, put before there is a worker', _call),)
    queue = place.fresh()
    bare = _packed(place)
    life = _life(place, count, 'the same with three arguments', _call_with_arguments, queue)
    kept = (_packed(place) - bare) / count
    _forget(place)
    left = _packed(place) - bare
    yield (
        life,
        Figure('left of it after pack, while history keeps the job', kept, 'B', SIZE),
        Figure(
            'left of it after pack, when history has forgotten it', left / count, 'B', PLAIN,
            f'{left:,} B of {count:,} jobs',
        ),
    )  # fmt: skip


def _life(place, count, name, job_of, queue=None):
    """What `count` jobs write that are put before there is a worker."""
    queue = queue or place.fresh()
    put = _put_before(place, queue, count, job_of) / count
    run, k = _run(place, queue, count)
    run /= count
    return Figure(
        name, put + run, 'B', SIZE,
        f'put {put:.0f}, claim and completion {run:.0f} (k {k:.1f})',
        {'put': put, 'run': run, 'jobs_per_claim': k},
    )  # fmt: skip


def _call(number):
    return Job(work.nothing)


def _call_with_arguments(number):
    return Job(work.nothing, number, 'a text of some length', 3.5)


def _as_it_comes(place, count):
    """Bytes per job of a queue whose workers keep up with one producer."""
    queue = place.fresh()
    with staff.dispatcher(place.db, THREADS) as dispatcher:
        before = place.file_size()
        for number in range(count):
            _put(place, queue, _call_with_arguments(number))
        _finish(dispatcher, staff.Claims(dispatcher), count)
    return (place.file_size() - before) / count


def _packed(place):
    """Pack; returns the bytes of the file."""
    place.manager.begin()
    place.db.pack()
    return place.file_size()


def _put(place, queue, job):
    place.manager.begin()
    queue.put(job)
    place.manager.commit()


def _put_before(place, queue, count, job_of):
    """Put `count` jobs in a paused queue; returns the bytes."""
    before = place.file_size()
    place.manager.begin()
    queue.pause()
    place.manager.commit()
    for number in range(count):
        _put(place, queue, job_of(number))
    return place.file_size() - before


def _run(place, queue, count):
    """(bytes that claims, completions and the stop of the dispatcher write, jobs per claim)."""
    with staff.dispatcher(place.db, THREADS) as dispatcher:
        before = place.file_size()
        claims = staff.Claims(dispatcher)
        place.manager.begin()
        queue.unpause()
        place.manager.commit()
        _finish(dispatcher, claims, count)
    return place.file_size() - before, claims.mean


def _finish(dispatcher, claims, count):
    done = finish(dispatcher, claims, count, END_SECONDS)
    if done < count:
        raise RuntimeError(f'{done} of {count} jobs were done in {END_SECONDS} seconds')


def _forget(place):
    """Let the histories forget everything, as they do in time."""
    manager = transaction.TransactionManager()
    connection = place.db.open(manager)
    try:
        for record in connection.root()[KEY][''].dispatchers.values():
            for agent in record.values():
                agent.history.keep_seconds = 0
                while agent.history.sweep(clock.micros() + clock.SECOND):
                    pass
        manager.commit()
    finally:
        connection.close()
