"""Monitor: how long an operator's questions take where many jobs wait.

Asked as the command line asks, with caches emptied before each question.
"""

import statistics

from benchmarks.backlog import SHAPES, Claimer, Filling
from benchmarks.measure import COST, Figure, Stopwatch
from zodbjobs import clock
from zodbjobs.interfaces import KEY
from zodbjobs.model.intake import GRACE_SECONDS
from zodbjobs.monitor.questions import ask

#: Each question is asked so often, and the median is told.
ROUNDS = 5


def measure(place, scale):
    name, counts = scale.backlogs[0]
    share = 1 if place.kind == 'file' else scale.slow_share
    place.fresh()
    shape = SHAPES[name]
    claimer = Claimer(place, shape)
    waiting = 0
    for count in counts:
        wanted = round(count * share)
        waiting += Filling(place, shape, claimer, waiting).fill(
            wanted - waiting, scale.fill_seconds
        )
        _prune(claimer)
        place.manager.begin()
        yield tuple(_figures(place, waiting))
        if waiting < wanted:
            break
    claimer.close()


def _prune(claimer):
    """Take the chunks that were emptied out of use, as a dispatcher does as it goes."""
    claimer.manager.begin()
    claimer.queues[''].intake.prune(clock.micros() + GRACE_SECONDS * clock.SECOND)
    claimer.manager.commit()


def _figures(place, waiting):
    oid = place.producer.root()[KEY][''].peek().oid
    questions = {
        'list of 50 pending': ('jobs', {'states': ['pending'], 'limit': 50}),
        'count of pending': ('count', {'states': ['pending']}),
        'count by callable': ('count', {'states': ['pending'], 'callable': 'nothing'}),
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
