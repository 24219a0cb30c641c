"""Monitor: how long an operator's questions take where many jobs wait.

Asked as the command line asks, with caches emptied before each question.
"""

import statistics

from benchmarks.backlog import Claimer, fill
from benchmarks.measure import COST, Figure, Stopwatch
from zodbjobs import clock
from zodbjobs.model.intake import GRACE_SECONDS
from zodbjobs.monitor.questions import ask

#: Each question is asked so often, and the median is told.
ROUNDS = 5


def measure(place, scale):
    queue = place.fresh()
    claimer = Claimer(place)
    waiting = 0
    for backlog in scale.backlogs:
        waiting += fill(place, queue, claimer, backlog - waiting, scale.fill_seconds)
        _prune(claimer)
        place.manager.begin()
        yield tuple(_figures(place, waiting, queue.peek().oid))
        if waiting < backlog:
            break
    claimer.close()


def _prune(claimer):
    """Take the chunks that were emptied out of use, as a dispatcher does as it goes."""
    claimer.manager.begin()
    claimer.queue.intake.prune(clock.micros() + GRACE_SECONDS * clock.SECOND)
    claimer.manager.commit()


def _figures(place, waiting, oid):
    questions = {
        'jobs --state pending --limit 50': ('jobs', {'states': ['pending'], 'limit': 50}),
        'count pending': ('count', {'states': ['pending']}),
        'count pending --callable': ('count', {'states': ['pending'], 'callable': 'nothing'}),
        'why': ('why', {'name': oid}),
        'status': ('status', {}),
        'doctor': ('doctor', {}),
    }
    for name, (question, args) in questions.items():
        watch = Stopwatch()
        for _ in range(ROUNDS):
            place.db.cacheMinimize()
            with watch:
                ask(place.db, question, args)
        seconds = statistics.median(watch.laps)
        yield Figure(f'{name}, {waiting:,} waiting', seconds, 's', COST)
