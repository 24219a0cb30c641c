"""Figures about jobs over all processes, computed from what the database keeps.

Runs in the caller's transaction and writes nothing.
"""

import math

from ZODB.broken import Broken

from zodbjobs import clock, status
from zodbjobs.monitor.reason import name_of
from zodbjobs.monitor.shown import brief, queue_facts
from zodbjobs.monitor.view import LOOK, agents_of, jobs
from zodbjobs.monitor.wanted import FAILED, SUCCEEDED, moment, wanted

#: Entries of `stats` that are named in one view.
QUANTILES = (50, 95, 99)


def percentile(values, percent):
    """The value that `percent` of the sorted `values` do not exceed; None of none."""
    return values[math.ceil(len(values) * percent / 100) - 1] if values else None


def ended_stats(queues, since='1H', look=LOOK, **filters):
    """What ended `since` then, for each agent name of each queue, and in all.

    A dict: 'since', 'looked_at', 'is_all' (no more than `look` were there) and
    'rows', each with 'queue', 'agent', the counts 'succeeded', 'failed',
    'cancelled', 'conflicts', 'retries' and 'interruptions', and seconds under
    'wait_p50' ... 'run_p99'.  The row of all has None for its queue and agent.
    """
    since_us = moment(since) if isinstance(since, str) else since
    found = jobs(
        queues, status.COMPLETED, limit=None, look=look,
        ended=(clock.datetime_of(since_us), None), **filters,
    )  # fmt: skip
    rows = {(None, None): _Row()}
    for job in found:
        agent = job.agent
        key = (job.queue.name, None if agent is None else agent.name)
        for each in (key, (None, None)):
            rows.setdefault(each, _Row()).add(job)
    return {
        'since': brief_instant(since_us),
        'looked_at': found.looked_at,
        'is_all': found.is_all,
        'rows': [
            {'queue': queue, 'agent': agent, **row.shown()}
            for (queue, agent), row in sorted(
                rows.items(), key=lambda item: tuple(part or '' for part in item[0])
            )
        ],
    }


def brief_instant(us):
    """An instant without fractions of a second."""
    return f'{clock.datetime_of(us):%Y-%m-%dT%H:%M:%SZ}'


class _Row:
    """Counts and times of the jobs of one agent."""

    def __init__(self):
        self.counts = dict.fromkeys(
            (SUCCEEDED, FAILED, 'cancelled', 'conflicts', 'retries', 'interruptions'), 0
        )
        self.waits, self.runs = [], []

    def add(self, job):
        kind = {'success': SUCCEEDED, 'failure': FAILED}.get(job.outcome, 'cancelled')
        self.counts[kind] += 1
        self.counts['conflicts'] += job.conflicts
        self.counts['interruptions'] += job.interruptions
        self.counts['retries'] += max(0, job.attempts - 1 - job.interruptions)
        if job._active_start is not None:
            self.waits.append(max(0, job._active_start - job._due) / clock.SECOND)
            self.runs.append((job._active_end - job._active_start) / clock.SECOND)

    def shown(self):
        found = dict(self.counts)
        for word, values in (('wait', sorted(self.waits)), ('run', sorted(self.runs))):
            for percent in QUANTILES:
                found[f'{word}_p{percent}'] = percentile(values, percent)
        return found


def job_stats(queues, *states, look=LOOK, **filters):
    """Counts by state of the jobs that are as wanted, with the extremes of their times.

    A dict: 'counts', 'is_all', and under 'longest_wait', 'shortest_wait',
    'longest_run' and 'shortest_run' None or [seconds, a job in brief].
    """
    found = jobs(queues, *states, limit=None, look=look, **filters)
    shown = [brief(job) for job in found if not isinstance(job, Broken)]
    counts = {}
    for facts in shown:
        counts[facts['state']] = counts.get(facts['state'], 0) + 1
    result = {'counts': counts, 'looked_at': found.looked_at, 'is_all': found.is_all}
    for word in ('wait', 'run'):
        timed = [facts for facts in shown if facts[f'{word}_seconds'] is not None]
        for name, choose in (('longest', max), ('shortest', min)):
            one = choose(timed, key=lambda facts: facts[f'{word}_seconds'], default=None)
            result[f'{name}_{word}'] = one and [one[f'{word}_seconds'], one]
    return result


def waits_for_quotas(queues):
    """What holds the places of quotas that are full: [{'queue', 'quota', 'size', 'held_by'}]."""
    rows = []
    for name, queue in queues.items():
        for quota in queue.quotas.values():
            holders = [
                job for token, job in quota.places if isinstance(job, Broken) or job.occupies(token)
            ]
            if len(holders) >= quota.size:
                rows.append(
                    {
                        'queue': name,
                        'quota': quota.name,
                        'size': quota.size,
                        'held_by': [name_of(job) for job in holders],
                    }
                )
    return rows


def overview(queues):
    """All queues, and what is wrong with them in words."""
    return {
        'deployment': getattr(queues, 'deployment', None),
        'queues': [queue_facts(queue) for queue in queues.values()],
    }


def agents(queues, **filters):
    """The agents that the filters `queue`, `agent` and `dispatcher` name."""
    return [agent for *_, agent in agents_of(queues, wanted((), **filters))]
