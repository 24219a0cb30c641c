"""Several hosts on one ZEO server: nobody can prove a death there, so there is a lease.

Each host is a network namespace with a name, a network and a folder for locks
of its own; workers reach the server over TCP.  The lease is short here, and
the hosts' clocks are hours apart.

    make test ARGS='-m "slow or not slow" tests/processes/test_hosts.py'
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.processes.conftest import ROOT, Site, Worker
from tests.processes.work import count, end_when_told, hang_once
from zodbjobs.interfaces import COMPLETED
from zodbjobs.testing.storages import TestDatabase
from zodbjobs.testing.waiting import wait_until

LEASE_SECONDS = 4
HOUR = 3600

#: From the last sign of a worker until its lease is over and its job has begun elsewhere, with
#: a slow poll of a second and a busy machine.
RESCUED_SECONDS = 30

#: Addresses for measurements between networks (RFC 2544): nobody else has them here.
NETWORK = '198.18'


def run(*command):
    subprocess.run(command, check=True, capture_output=True, timeout=20)


class Host:
    """A network namespace with a cable to ours; `cut` and `mend` the cable."""

    def __init__(self, number, folder):
        self.name = f'zodbjobs-{os.getpid()}-{number}'
        self.cable = f'zj{os.getpid() % 100000}-{number}'
        self.locks = folder / f'locks-{number}'
        net = f'{NETWORK}.{os.getpid() % 250}'
        self.ours, self.theirs = f'{net}.{4 * number + 1}', f'{net}.{4 * number + 2}'

    def build(self):
        run('ip', 'netns', 'add', self.name)
        far = 'inside'
        run('ip', 'link', 'add', self.cable, 'type', 'veth', 'peer', far, 'netns', self.name)
        run('ip', 'addr', 'add', f'{self.ours}/30', 'dev', self.cable)
        run('ip', 'link', 'set', self.cable, 'up')
        run('ip', '-n', self.name, 'addr', 'add', f'{self.theirs}/30', 'dev', far)
        run('ip', '-n', self.name, 'link', 'set', far, 'up')
        run('ip', '-n', self.name, 'link', 'set', 'lo', 'up')

    def cut(self):
        run('ip', 'link', 'set', self.cable, 'down')

    def mend(self):
        run('ip', 'link', 'set', self.cable, 'up')

    def remove(self):
        subprocess.run(['ip', 'netns', 'del', self.name], capture_output=True)

    def inside(self, *command):
        """The command that runs `command` on this host."""
        enter = ['ip', 'netns', 'exec', self.name, 'unshare', '--uts']
        return [*enter, 'sh', '-c', f'hostname {self.name} && exec "$@"', 'sh', *command]


class HostedWorker(Worker):
    """A worker on a host.  The commands that lead there replace themselves: its process is ours."""

    def __init__(self, host, port, log, shift):
        self.host, self.log = host, log
        uri = f'zeo://{host.ours}:{port}?wait_timeout=2'
        worker = [sys.executable, '-m', 'tests.processes.hosted', str(LEASE_SECONDS), str(shift)]
        worker += ['run', uri, '--path', str(ROOT), '--poll-interval', '1', '--threads', '1']
        surroundings = os.environ | {'ZODBJOBS_LOCK_DIR': str(host.locks)}
        with open(log, 'wb') as output:
            self.process = subprocess.Popen(
                host.inside(*worker), stdout=output, stderr=output, cwd=ROOT, env=surroundings
            )


class Hosts(Site):
    """A site with a ZEO server that listens on every network, and workers on hosts."""

    def __init__(self, place, folder, port):
        super().__init__(place, folder)
        self.port = port
        self.hosts = []

    def worker_on_a_host(self, shift=0):
        host = Host(len(self.hosts), self.folder)
        self.hosts.append(host)
        host.build()
        log = self.folder / f'worker-{len(self.workers)}.log'
        self.workers.append(HostedWorker(host, self.port, log, shift))
        return self.workers[-1]

    def record_of(self, worker):
        self.client.begin()
        records = self.client.queue.dispatchers.values()
        return next(r for r in records if (r.host or '').startswith(worker.host.name))

    def close(self):
        for worker in self.workers:
            with contextlib.suppress(ProcessLookupError):
                worker.process.send_signal(signal.SIGCONT)
        super().close()
        for host in self.hosts:
            host.remove()


@pytest.fixture
def hosts(tmp_path, monkeypatch):
    """A `Hosts`, where this system lets us build some."""
    probe = Host(9, tmp_path)
    try:
        probe.build()
        run(*probe.inside('true'))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, 'stderr', None) or b''
        pytest.skip(f'no hosts can be built here (ip netns, as root): {error} {said.decode()}')
    finally:
        probe.remove()
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(filter(None, sys.path)))
    with contextlib.ExitStack() as stack:
        port = free_port()
        command = [sys.executable, '-m', 'ZEO.runzeo', '-f', str(tmp_path / 'Data.fs')]
        with open(tmp_path / 'zeo.log', 'wb') as log:
            server = subprocess.Popen([*command, '-a', f'0.0.0.0:{port}'], stdout=log, stderr=log)
        stack.callback(server.wait)
        stack.callback(server.terminate)
        place = stack.enter_context(
            contextlib.closing(TestDatabase('zeo', f'zeo://127.0.0.1:{port}?wait_timeout=20'))
        )
        yield stack.enter_context(contextlib.closing(Hosts(place, tmp_path, port)))


def free_port():
    with socket.socket() as probe:
        probe.bind(('0.0.0.0', 0))
        return probe.getsockname()[1]


def in_job(site, name, shift=0):
    """A worker on a host of its own that is in the job of that name."""
    worker = site.worker_on_a_host(shift)
    assert site.who_is_in(name) is worker
    return worker


@pytest.mark.slow
def test_a_job_is_not_taken_for_its_length_nor_for_its_clock(hosts):
    """It runs for more than two leases, between hosts whose clocks are two hours apart."""
    hosts.put((end_when_told, hosts.path('long')))
    in_job(hosts, 'long', shift=HOUR)
    other = hosts.worker_on_a_host(shift=-HOUR)
    hosts.put((count,))
    hosts.until_done(1)
    beats = []

    def is_over():
        hosts.client.begin()
        beats.append(hosts.record_of(hosts.workers[0]).beat.count)
        return beats[-1] >= beats[0] + 8  # each of them a quarter of the lease

    assert wait_until(is_over, 60)
    hosts.let_end('long')
    hosts.until_done()
    assert hosts.counted() == {1: 2}
    assert hosts.jobs()[0].interruptions == 0
    assert hosts.jobs()[1].result == other.pid
    assert 'is dead' not in hosts.said()


@pytest.mark.slow
def test_a_host_that_dies_loses_its_jobs_after_the_lease(hosts):
    hosts.put((hang_once, hosts.path('victim')))
    victim = in_job(hosts, 'victim', shift=-HOUR)
    other = hosts.worker_on_a_host(shift=HOUR)
    hosts.put((count,))
    hosts.until_done(1)
    victim.kill()
    hosts.until_done(0, seconds=RESCUED_SECONDS)
    assert hosts.counted() == {1: 2}
    assert hosts.jobs()[0].interruptions == 1
    assert hosts.jobs()[0].result == other.pid


@pytest.mark.parametrize('way', ['stopped', pytest.param('cut off', marks=pytest.mark.slow)])
def test_who_comes_back_from_the_dead_leaves_no_trace(hosts, way):
    """Its job went to another one; it says so at once, and goes on with new work."""
    hosts.put((end_when_told, hosts.path('job')))
    zombie = in_job(hosts, 'job', shift=HOUR)
    other = hosts.worker_on_a_host(shift=-HOUR)
    hosts.put((count,))
    hosts.until_done(1)
    os.rename(hosts.path('job'), hosts.path('was'))  # it runs again: who is in it then?
    os.unlink(f'{hosts.path("job")}.new')
    leave(zombie, way)
    hosts.until_said('is dead; its jobs go to others')
    assert hosts.who_is_in('job') is other
    come_back(zombie, way)
    hosts.let_end('job')
    hosts.until_done(0)
    hosts.until_said('went to another worker; this worker leaves no trace')
    assert hosts.jobs()[0].result == other.pid
    assert hosts.jobs()[0].interruptions == 1
    other.kill()
    hosts.put((count,), (count,))
    hosts.until_done(seconds=RESCUED_SECONDS)
    assert [job.result for job in hosts.jobs()[2:]] == [zombie.pid] * 2
    assert hosts.counted() == {1: 4}
    assert all(job.status == COMPLETED for job in hosts.jobs())


def leave(worker, way):
    if way == 'stopped':
        worker.process.send_signal(signal.SIGSTOP)
    else:
        worker.host.cut()


def come_back(worker, way):
    if way == 'stopped':
        worker.process.send_signal(signal.SIGCONT)
    else:
        worker.host.mend()
