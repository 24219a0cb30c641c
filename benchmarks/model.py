"""Many hosts: a small model of a queue on one storage, ``python -m benchmarks.model``.

It simulates hosts with threads that do jobs which never run out, and a storage
that makes one commit after the other, and tells how many jobs get done by 1,
10 and 100 hosts, and how much of it the storage allows at all.  What a commit
costs is taken from what `benchmarks` has measured here (the parts ``commits``,
``jobs``); everything else about a host is an assumption that stands below.

* A commit takes `serial` seconds of the storage, which nobody shares, and
  `latency` seconds in the client, which others use.  To tell each other
  client of it takes the storage `notice` seconds more.
* A dispatcher claims jobs for its free threads, and as many again as take
  `AHEAD_SECONDS`, in one commit, and makes one such commit at a time.
* A job that writes nothing is written down by the next claim of its host; one
  that writes something commits itself.
* Every job was put by a commit of its own.

Nothing is lost in conflicts here: see what was measured with several processes.
"""

import argparse
import dataclasses
import heapq
import itertools
import json
from pathlib import Path

from benchmarks.publish import JSON, NAMES, simple_table
from benchmarks.report import short

#: Work that a dispatcher claims ahead of its threads.
AHEAD_SECONDS = 0.1

#: Most jobs of one claim.
MOST_CLAIMED = 200

#: Threads of a host, and the time that a job costs its host beside its work.
THREADS = 8
OVERHEAD_SECONDS = 0.0002

HOSTS = (1, 10, 100)
WORK_SECONDS = (0.001, 0.01, 0.1, 1.0)

#: A run simulates so many commits, and then as many which count.
COMMITS = 20_000


@dataclasses.dataclass(frozen=True)
class Storage:
    """What a commit costs, in seconds."""

    serial: float
    latency: float
    notice: float = 0.0

    def cost(self, clients):
        """Seconds of the storage for one commit while so many clients listen."""
        return self.serial + self.notice * max(0, clients - 1)

    @classmethod
    def measured(cls, table):
        """From the rows of the part ``commits`` of a storage; None if they are missing."""
        rows = {row['name']: row for row in table['rows'] if row['part'] == 'commits'}
        together = [row['value'] for row in rows.values() if 'processes' in row['facts']]
        if not together:
            return None
        serial = 1 / max(together)
        alone = max(1 / together[0], serial)
        listened = [row for name, row in rows.items() if 'that listen' in name]
        notice = 0.0
        if listened:
            # The clients that listened shared the processor with the one that committed.
            count = int(listened[0]['name'].partition('beside ')[2].split()[0])
            notice = max(0.0, (1 / listened[0]['value'] - alone) / count)
        return cls(serial, alone - serial, notice)


class Simulation:
    """`hosts` on a Storage, with jobs of `work` seconds that write (or not) what they do."""

    def __init__(self, storage, hosts, work, writes):
        self.storage, self.hosts, self.work, self.writes = storage, hosts, work, writes
        self.cost = storage.cost(hosts + 1)
        self.now = 0.0
        self.free_at = 0.0  # when the storage has made all commits it was asked for
        self.busy_seconds = 0.0
        self.done = self.commits = 0
        self._events = []
        self._order = itertools.count()
        ahead = int(THREADS * AHEAD_SECONDS / max(work, 1e-6))
        self._room = min(MOST_CLAIMED, THREADS + ahead)  # jobs that a host holds

    def run(self):
        """(jobs per second, share of its time in which the storage was busy)."""
        for host in range(self.hosts):
            self._at(0.0, self._claim, Host(host))
        self._until(COMMITS + 4 * self.hosts * self._room)  # until it runs evenly
        began, done, busy = self.now, self.done, self.busy_seconds
        self._until(self.commits + COMMITS)
        seconds = self.now - began
        return (self.done - done) / seconds, min(1.0, (self.busy_seconds - busy) / seconds)

    def _until(self, commits):
        while self.commits < commits and self._events:
            self.now, _, deed, arguments = heapq.heappop(self._events)
            deed(*arguments)

    def _at(self, moment, deed, *arguments):
        heapq.heappush(self._events, (moment, next(self._order), deed, arguments))

    def _commit(self, deed, *arguments):
        """Ask the storage for a commit; `deed` follows when the client knows that it is made."""
        start = max(self.now, self.free_at)
        self.free_at = start + self.cost
        self._at(self.free_at, self._made)
        self._at(self.free_at + self.storage.latency, deed, *arguments)

    def _made(self):
        self.busy_seconds += self.cost
        self.commits += 1

    def _claim(self, host):
        """Take as many as there is room for, and write down what has ended; at once."""
        wanted = self._room - host.held
        if wanted <= 0 and not host.ended:
            host.claims = False
            return
        host.claims = True
        host.held += wanted
        ended, host.ended = host.ended, 0
        self._commit(self._claimed, host, wanted, ended)

    def _claimed(self, host, taken, written):
        host.held -= written
        host.waiting += taken
        for _ in range(written):
            self._put()
        self._start(host)
        self._claim(host)

    def _put(self):
        """Somebody puts a job for each that is done: the storage pays for that, too."""
        self._commit(self._was_put)

    def _was_put(self):
        self.done += 1  # counted here, so that no debt of puts is left at the end

    def _start(self, host):
        while host.waiting and host.running < THREADS:
            host.waiting -= 1
            host.running += 1
            self._at(self.now + self.work + OVERHEAD_SECONDS, self._worked, host)

    def _worked(self, host):
        if self.writes:
            self._commit(self._ended, host)
        else:
            self._ended(host)

    def _ended(self, host):
        host.running -= 1
        host.ended += 1
        self._start(host)
        if not host.claims and host.waiting * 2 <= THREADS:
            self._claim(host)


class Host:
    """A process with threads: how many jobs it holds, that wait, run, or ended unwritten."""

    def __init__(self, number):
        self.number = number
        self.held = self.waiting = self.running = self.ended = 0
        self.claims = False  # a claim is on its way


def simulated(storage, hosts=HOSTS, works=WORK_SECONDS):
    """Rows of a table: jobs/s by work and by hosts, and how busy the storage is."""
    for writes in (False, True):
        for work in works:
            cells = []
            for count in hosts:
                rate, busy = Simulation(storage, count, work, writes).run()
                cells.append(f'{short(rate)} ({busy:.0%})')
            kind = 'writes' if writes else 'writes nothing'
            yield (f'{work * 1000:g} ms, {kind}', *cells, short(knee(storage, work, writes)))


def knee(storage, work, writes):
    """Hosts from which on the storage is busy, so that more of them add little."""
    low, high = 1, 2
    while _busy(storage, high, work, writes) < BUSY and high < MOST_HOSTS:
        low, high = high, high * 2
    while high - low > max(1, low // 10):
        middle = (low + high) // 2
        if _busy(storage, middle, work, writes) < BUSY:
            low = middle
        else:
            high = middle
    return high if _busy(storage, low, work, writes) < BUSY else low


#: A storage that is busy for so much of its time makes everybody wait.
BUSY = 0.8

MOST_HOSTS = 2048


def _busy(storage, hosts, work, writes):
    return Simulation(storage, hosts, work, writes).run()[1]


def measured(path):
    """{shown name: Storage} of the storages whose commits were measured, from that JSON file."""
    tables = json.loads(path.read_text())['storages']
    found = {
        shown: Storage.measured(tables[name]) for name, shown in NAMES.items() if name in tables
    }
    return {shown: storage for shown, storage in found.items() if storage is not None}


def given(text):
    """An argparse type: (name, Storage) of NAME=ALONE,TOGETHER, two rates of commits."""
    name, _, rates = text.partition('=')
    alone, together = map(float, rates.split(','))
    return name, Storage(1 / together, max(0.0, 1 / alone - 1 / together))


def text(storages):
    """The tables of these storages, as reStructuredText."""
    parts = []
    for shown, storage in storages.items():
        parts.append(
            f'{shown}: a commit takes {short(storage.serial * 1e3)} ms of the storage,'
            f' {short(storage.latency * 1e3)} ms more in the client, and'
            f' {short(storage.notice * 1e6)} us of the storage for each other client'
            f' that is told.\n'
        )
        heading = ('a job of', *(f'{count} host{"s"[: count > 1]}' for count in HOSTS), 'knee')
        parts.append(simple_table([heading, *simulated(storage)]))
    return '\n'.join(parts)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog='python -m benchmarks.model')
    parser.add_argument('--json', type=Path, default=JSON)
    parser.add_argument('--to', type=Path, help='write the tables to this file')
    parser.add_argument(
        '--rates', action='append', type=given, metavar='NAME=ALONE,TOGETHER',
        help='commits per second of one process, and of several together, instead of measured ones',
    )  # fmt: skip
    options = parser.parse_args(arguments)
    found = text(dict(options.rates) if options.rates else measured(options.json))
    if options.to:
        options.to.write_text(found)
    print(found)


if __name__ == '__main__':
    main()
