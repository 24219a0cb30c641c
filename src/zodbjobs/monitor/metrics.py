"""Metrics for Prometheus: a collector for any registry, and a small server for a worker.

    from prometheus_client import REGISTRY
    REGISTRY.register(Collector(dispatcher))

What all processes share (how many jobs wait, how old the oldest is) is read from
the database when somebody scrapes; what this process did comes from memory, is
monotonic as long as its dispatcher serves, and costs a job nothing.

Runs in the thread of whoever scrapes, in a transaction that only reads.  It
needs the extra ``metrics``.
"""

import logging

from prometheus_client import core

from zodbjobs.monitor.questions import ask

log = logging.getLogger('zodbjobs.events')

PREFIX = 'zodbjobs'

#: (key of the queue's facts, the label `state`)
STATES = ('waiting', 'later', 'held', 'running', 'finished')

#: What an agent's attempts came to: a key of the statistics' totals, and the help of its metric.
TOTALS = {
    'conflicts': 'Calls that were run again after a conflict.',
    'retries': 'Attempts after which the job was filed again.',
    'rescues': 'Attempts that were made of jobs whose worker had died.',
}

#: Histograms of seconds, likewise.
SPANS = {
    'wait': 'From when a job was due until it started.',
    'run': 'How long a job had a thread.',
    'commit': 'How long the commit of the work took.',
}

LOOPBACK = '127.0.0.1'


class Collector:
    """What Prometheus collects of a dispatcher's process, and of its database.

    `dispatcher` or `db` (a ZODB.DB) may be missing; then so are their metrics.
    """

    def __init__(self, dispatcher=None, db=None):
        self.dispatcher = dispatcher
        self.db = dispatcher.db if db is None and dispatcher is not None else db

    def describe(self):
        """Nothing: else registering would read the database."""
        return []

    def collect(self):
        """Yield the metric families."""
        if self.db is not None:
            yield from self._of_database()
        if self.dispatcher is not None:
            yield from self._of_process()

    def _of_database(self):
        up = core.GaugeMetricFamily(f'{PREFIX}_up', 'Whether the database can be read.')
        try:
            found = ask(self.db, 'status')
        except Exception as error:  # noqa: BLE001 - scrapes go on while the storage is away
            log.info('no metrics of the database: %s', error)
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield from self._of_queues(found['queues'])
        serving = core.GaugeMetricFamily(
            f'{PREFIX}_dispatchers', 'Dispatchers that serve a queue.', labels=['queue', 'state']
        )
        for queue in found['queues']:
            states = [d['state'] for d in found['dispatchers'] if d['queue'] == queue['name']]
            for state in ('active', 'dead'):
                serving.add_metric([queue['name'], state], states.count(state))
        yield serving

    def _of_queues(self, queues):
        jobs = core.GaugeMetricFamily(
            f'{PREFIX}_jobs', 'Jobs in a queue, by state.', labels=['queue', 'state']
        )
        oldest = core.GaugeMetricFamily(
            f'{PREFIX}_oldest_due_seconds', 'For how long the oldest job has been due.',
            labels=['queue'],
        )  # fmt: skip
        paused = core.GaugeMetricFamily(
            f'{PREFIX}_paused', 'Whether the queue hands out nothing.', labels=['queue']
        )
        size = core.GaugeMetricFamily(
            f'{PREFIX}_quota_size', 'How many jobs of a quota may run.', labels=['queue', 'quota']
        )
        taken = core.GaugeMetricFamily(
            f'{PREFIX}_quota_taken', 'Places of a quota that are taken.', labels=['queue', 'quota']
        )
        for queue in queues:
            name = queue['name']
            for state in STATES:
                jobs.add_metric([name, state], queue[state])
            oldest.add_metric([name], queue['oldest_due_seconds'])
            paused.add_metric([name], queue['paused'])
            for quota, facts in queue['quotas'].items():
                size.add_metric([name, quota], facts['size'])
                taken.add_metric([name, quota], facts['taken'])
        yield from (jobs, oldest, paused, size, taken)

    def _of_process(self):
        labels = ['queue', 'agent']
        slots = core.GaugeMetricFamily(
            f'{PREFIX}_slots', 'Jobs that an agent may run at once.', labels=labels
        )
        taken = core.GaugeMetricFamily(
            f'{PREFIX}_slots_taken', 'Slots of an agent that are taken.', labels=labels
        )
        for queue, pools in list(self.dispatcher.queues.items()):
            for agent, pool in list(pools.items()):
                slots.add_metric([queue, agent], pool.getSize())
                taken.add_metric([queue, agent], self.dispatcher.flight_count(queue, agent))
        yield from (slots, taken)
        yield from self._of_attempts()
        rescued = core.CounterMetricFamily(
            f'{PREFIX}_threads_given_up', 'Threads whose jobs ran longer than they may.'
        )
        rescued.add_metric([], self.dispatcher.overrun_count)
        yield rescued

    def _of_attempts(self):
        labels = ['queue', 'agent']
        claims = core.CounterMetricFamily(
            f'{PREFIX}_claims', 'Jobs that were claimed.', labels=labels
        )
        ended = core.CounterMetricFamily(
            f'{PREFIX}_attempts', 'Attempts that ended, by outcome.', labels=[*labels, 'outcome']
        )
        totals = {
            name: core.CounterMetricFamily(f'{PREFIX}_{name}', text, labels=labels)
            for name, text in TOTALS.items()
        }
        spans = {
            name: core.HistogramMetricFamily(f'{PREFIX}_{name}_seconds', text, labels=labels)
            for name, text in SPANS.items()
        }
        for (queue, agent), totals_of in self.dispatcher.statistics.totals().items():
            place = [queue or '', agent or '']
            claims.add_metric(place, totals_of['started'])
            for outcome in ('successful', 'failed', 'unknown'):
                ended.add_metric([*place, outcome], totals_of[outcome])
            for name, family in totals.items():
                family.add_metric(place, totals_of[name])
            for name, family in spans.items():
                buckets, total = totals_of[name]
                family.add_metric(place, buckets, total)
        yield from (claims, ended, *totals.values(), *spans.values())


def serve(dispatchers, place):
    """Let Prometheus scrape the metrics of these dispatchers; returns a function that ends it.

    `place` is (host, port).  Raises OSError if the port is taken.
    """
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()
    for dispatcher in dispatchers:
        registry.register(Collector(dispatcher))
    server, thread = start_http_server(place[1], place[0], registry)
    log.info('metrics at http://%s:%s/metrics', *server.server_address[:2])

    def end():
        server.shutdown()
        server.server_close()
        thread.join()

    end.port = server.server_address[1]
    return end
