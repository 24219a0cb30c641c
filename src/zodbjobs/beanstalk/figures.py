"""The statistics of the beanstalk door, by the names and in the order of beanstalkd.

Counters are kept in memory, per process and run, as beanstalkd does; figures of
jobs are counted in the database when they are asked for.

Runs in the gateway's transaction.
"""

import os
import resource

from zodbjobs import clock

#: The commands that are counted, in the order of `stats`.
COMMANDS = (
    'put', 'peek', 'peek-ready', 'peek-delayed', 'peek-buried', 'reserve', 'reserve-with-timeout',
    'delete', 'release', 'use', 'watch', 'ignore', 'bury', 'kick', 'touch', 'stats', 'stats-job',
    'stats-tube', 'list-tubes', 'list-tube-used', 'list-tubes-watched', 'pause-tube',
)  # fmt: skip

#: What is counted under the name of another command.
COUNTED_AS = {'oversize put': 'put'}

STATES = ('urgent', 'ready', 'reserved', 'delayed', 'buried')


def exists(gateway, name):
    """Whether a tube is used, or watched, or has jobs."""
    if gateway.uses[name] or name == 'default':
        return True
    queue = gateway.store.tube(name)
    return queue is not None and not gateway.store.is_empty(queue)


def tube_names(gateway):
    """The names of all tubes, in the order in which this process met them."""
    names = dict.fromkeys([*gateway.tubes, *gateway.store.tube_names()])
    return [name for name in names if exists(gateway, name)]


def _counts(gateway, name):
    queue = gateway.store.tube(name)
    return dict.fromkeys(STATES, 0) if queue is None else gateway.store.counts(queue)


def of_tube(gateway, name):
    """[(key, value)] of stats-tube."""
    clients, known = gateway.clients, gateway.tube(name)
    counts = _counts(gateway, name)
    left = _pause_left(gateway, name)
    return [
        ('name', name),
        *((f'current-jobs-{state}', counts[state]) for state in STATES),
        ('total-jobs', known['total-jobs']),
        ('current-using', sum(client.use == name for client in clients)),
        ('current-watching', sum(name in client.watch for client in clients)),
        ('current-waiting', sum(client.waits and name in client.watch for client in clients)),
        ('cmd-delete', known['cmd-delete']),
        ('cmd-pause-tube', known['cmd-pause-tube']),
        ('pause', gateway.pauses.get(name, left) if left else 0),
        ('pause-time-left', left),
    ]


def _pause_left(gateway, name):
    """Seconds for which a tube gives nothing yet."""
    queue = gateway.store.tube(name)
    until = None if queue is None else gateway.store.paused_until(queue, gateway.store.now)
    if until is None:
        return 0
    if until is True:
        return 2**32 - 1
    return (until - gateway.store.now) // clock.SECOND


def of_server(gateway):
    """[(key, value)] of stats."""
    clients, counts = gateway.clients, gateway.counts
    names = tube_names(gateway)
    sums = dict.fromkeys(STATES, 0)
    for name in names:
        for state, count in _counts(gateway, name).items():
            sums[state] += count
    usage = resource.getrusage(resource.RUSAGE_SELF)
    system = os.uname()
    info = gateway.info
    return [
        *((f'current-jobs-{state}', sums[state]) for state in STATES),
        *((f'cmd-{command}', counts[command]) for command in COMMANDS),
        ('job-timeouts', counts['job-timeouts']),
        ('total-jobs', counts['total-jobs']),
        ('max-job-size', gateway.body_bytes),
        ('current-tubes', len(names)),
        ('current-connections', len(clients)),
        ('current-producers', sum(client.puts for client in clients)),
        ('current-workers', sum(client.works for client in clients)),
        ('current-waiting', sum(client.waits for client in clients)),
        ('total-connections', counts['total-connections']),
        ('pid', os.getpid()),
        ('version', info.get('version', '1.12')),
        ('rusage-utime', usage.ru_utime),
        ('rusage-stime', usage.ru_stime),
        ('uptime', int(clock.monotonic() - gateway.started)),
        ('binlog-oldest-index', 0),
        ('binlog-current-index', 0),
        ('binlog-records-migrated', 0),
        ('binlog-records-written', 0),
        ('binlog-max-size', info.get('log_bytes', 0)),
        ('draining', gateway.draining),
        ('id', info.get('id', '0')),
        ('hostname', system.nodename),
        ('os', system.version),
        ('platform', system.machine),
    ]
