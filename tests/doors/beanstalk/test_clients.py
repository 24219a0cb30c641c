"""Clients of others, as their users use them, against our server."""

import os
import resource
import signal
import socket
import subprocess
import threading
import time

import greenstalk
import pystalk
import pytest

from tests.doors.beanstalk.support import Server

pytestmark = [pytest.mark.processes]


@pytest.fixture
def tube(request):
    return request.node.name[:100].replace('[', '-').replace(']', '').replace('_', '-')


@pytest.fixture
def green(served, tube):
    with greenstalk.Client(('127.0.0.1', served.port), use=tube, watch=tube) as client:
        yield client


@pytest.fixture
def pyst(served):
    return pystalk.BeanstalkClient('127.0.0.1', served.port, socket_timeout=10)


def took(since):
    return time.monotonic() - since


# greenstalk --------------------------------------------------------------------------------


def test_the_life_of_a_job(green):
    number = green.put('测试@example.com')
    job = green.reserve()
    assert (job.id, job.body) == (number, '测试@example.com')
    green.delete(job)
    with pytest.raises(greenstalk.NotFoundError):
        green.delete(job)
    with pytest.raises(greenstalk.TimedOutError):
        green.reserve(timeout=0)


def test_priorities(green):
    for priority in (2, 1, 3):
        green.put(str(priority), priority=priority)
    assert [green.reserve().body for _ in range(3)] == ['1', '2', '3']


def test_binary_bodies(served, tube):
    with greenstalk.Client(('127.0.0.1', served.port), encoding=None, use=tube, watch=tube) as one:
        body = os.urandom(4096)
        one.put(body)
        assert one.reserve().body == body
        with pytest.raises(greenstalk.JobTooBigError):
            one.put(bytes(2**16))


def test_delays_are_kept(green):
    start = time.monotonic()
    green.put('later', delay=1)
    job = green.reserve()
    assert 1 <= took(start) < 2
    green.release(job, delay=1)
    with pytest.raises(greenstalk.TimedOutError):
        green.reserve(timeout=0)
    assert green.reserve(timeout=5).body == 'later'
    assert 2 <= took(start) < 4


def test_the_deadline_comes_soon(green):
    green.put('soon', ttr=2)
    start = time.monotonic()
    job = green.reserve()
    with pytest.raises(greenstalk.DeadlineSoonError):
        green.reserve()
    assert 0.9 <= took(start) < 2
    green.touch(job)
    green.bury(job)


def test_states(green):
    ids = [green.put('x'), green.put('y', delay=60)]
    assert green.peek_ready().id == ids[0]
    assert green.peek_delayed().id == ids[1]
    assert green.peek(ids[1]).body == 'y'
    with pytest.raises(greenstalk.NotFoundError):
        green.peek_buried()
    green.bury(green.reserve_job(ids[0]))
    assert green.peek_buried().id == ids[0]
    green.kick_job(ids[1])
    assert green.kick(10) == 1
    with pytest.raises(greenstalk.NotFoundError):
        green.kick_job(ids[0])
    assert green.stats_job(ids[0])['kicks'] == 1


def test_what_the_statistics_say(green, tube):
    number = green.put('x')
    assert green.stats_job(number) == {
        'id': number, 'tube': tube, 'state': 'ready', 'pri': greenstalk.DEFAULT_PRIORITY, 'age': 0,
        'delay': 0, 'ttr': greenstalk.DEFAULT_TTR, 'time-left': 0, 'file': 0, 'reserves': 0,
        'timeouts': 0, 'releases': 0, 'buries': 0, 'kicks': 0,
    }  # fmt: skip
    figures = green.stats_tube(tube)
    assert (figures['name'], figures['current-jobs-ready'], figures['total-jobs']) == (tube, 1, 1)
    assert green.stats()['current-jobs-ready'] >= 1
    assert tube in green.tubes()
    assert (green.using(), green.watching()) == (tube, [tube])
    with pytest.raises(greenstalk.NotIgnoredError):
        green.ignore(tube)


def test_a_pause(green, tube):
    green.put('x')
    start = time.monotonic()
    green.pause_tube(tube, 1)
    assert green.reserve(timeout=5).body == 'x'
    assert 1 <= took(start) < 3


def test_draining_by_a_signal():
    with Server() as server, greenstalk.Client(('127.0.0.1', server.port)) as client:
        assert client.put('1') == 1
        server.process.send_signal(signal.SIGUSR1)
        end = time.monotonic() + 10
        while client.stats()['draining'] != 'true':
            assert time.monotonic() < end
        with pytest.raises(greenstalk.DrainingError):
            client.put('2')
        client.reserve(timeout=0)


def test_a_unix_socket_and_an_inherited_one(tmp_path):
    path = f'{tmp_path}/socket'
    with Server() as server:
        server.stop()
        command = [*server.command, '-l', f'unix:{path}']
        server.command = command
        server.process = subprocess.Popen(command)
        end = time.monotonic() + 20
        while True:
            try:
                client = greenstalk.Client(path)
                break
            except OSError:
                assert time.monotonic() < end
        with client:
            assert client.put('1') == 1


# pystalk -----------------------------------------------------------------------------------


def test_consuming_by_pystalk(pyst, tube):
    for number in range(100):
        pyst.put_job_into(tube, str(number))
    assert pyst.stats_tube(tube)['current-jobs-ready'] == 100
    pyst.watch(tube)
    found = []
    for job in pyst.reserve_iter():
        found.append(int(job.job_data))
        pyst.delete_job(job)
    assert found == list(range(100))


def test_connections_that_come_back(pyst, tube):
    pyst.use(tube)
    pyst.watch(tube)
    pyst.put_job('1')
    pyst.close()
    pyst.put_job('2')
    assert pyst.stats_tube(tube)['current-jobs-ready'] == 2
    assert pyst.reserve_job(0).job_data == b'1'


def test_pausing_by_pystalk(pyst, tube):
    pyst.put_job_into(tube, 'x')
    pyst.watch(tube)
    pyst.pause_tube(tube, delay=30)
    with pytest.raises(pystalk.BeanstalkError) as caught:
        pyst.reserve_job(0)
    assert caught.value.message == 'TIMED_OUT'
    pyst.unpause_tube(tube)
    assert pyst.reserve_job(1).job_data == b'x'


def test_burying_by_pystalk(pyst, tube):
    pyst.use(tube)
    pyst.watch(tube)
    for number in range(10):
        pyst.put_job(str(number))
    jobs = [pyst.reserve_job(0) for _ in range(10)]
    for job in jobs:
        pyst.bury_job(job)
    assert pyst.peek_buried().job_id == jobs[0].job_id
    pyst.kick_job(jobs[5].job_id)
    assert pyst.peek_ready().job_id == jobs[5].job_id
    pyst.kick_jobs(4)
    counts = pyst.stats_tube(tube)
    assert (counts['current-jobs-ready'], counts['current-jobs-buried']) == (5, 5)
    pyst.release_job(pyst.reserve_job(0))
    assert pyst.stats_tube(tube)['current-jobs-ready'] == 5


# Clients that do not behave -----------------------------------------------------------------


def test_hostile_clients_harm_nobody(served, green):
    address = ('127.0.0.1', served.port)
    endless = socket.create_connection(address)
    silent = [socket.create_connection(address) for _ in range(200)]
    deaf = socket.create_connection(address)
    deaf.settimeout(0.2)
    number = green.put('x' * 60000)
    flood = b'peek %d\r\n' % number * 1000
    with pytest.raises(TimeoutError):  # nobody reads the answers, so nobody reads the questions
        for _ in range(1000):
            deaf.sendall(flood)
    for _ in range(100):
        endless.sendall(b'x' * 10_000)
    start = time.monotonic()
    for _ in range(20):
        green.delete(green.reserve_job(green.put('y')))
    assert took(start) < 10
    assert resident_kilobytes(served) < 300_000
    for each in (endless, deaf, *silent):
        each.close()


def resident_kilobytes(server):
    with open(f'/proc/{server.process.pid}/status', encoding='ascii') as status:
        (kilobytes,) = (int(row.split()[1]) for row in status if row.startswith('VmRSS'))
    return kilobytes


@pytest.fixture
def many_files():
    """This process may have thousands of connections, too."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] < 2 * CROWD:
        pytest.skip('this process may not have so many connections')
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


#: Clients that are connected and wait.
CROWD = 3000


def test_thousands_wait_and_cost_the_others_little(many_files):
    with Server() as server:
        before = resident_kilobytes(server)
        address = ('127.0.0.1', server.port)
        crowd = [socket.create_connection(address, 30) for _ in range(CROWD)]
        for number, each in enumerate(crowd):
            each.sendall(b'watch crowd\r\nignore default\r\nreserve-with-timeout 600\r\n')
            if number % 500 == 499:  # what is not accepted yet would be refused at some point
                assert each.recv(100).startswith(b'WATCHING 2')
        with greenstalk.Client(address, use='crowd') as client:
            while client.stats_tube('crowd')['current-waiting'] < CROWD:
                pass
            start = time.monotonic()
            for _ in range(50):
                client.use('other')
                client.delete(client.put('mine'))
                client.use('crowd')
                client.put('for the one that waits longest')
            assert took(start) < 10
            for each in crowd[:50]:
                answer = b''
                while not answer.endswith(b'longest\r\n'):
                    answer += each.recv(1000)
            for each in crowd[::2]:  # half of them hang up
                each.close()
            while client.stats()['current-connections'] > CROWD // 2 + 1:
                pass
            assert client.stats_tube('crowd')['current-jobs-ready'] == 0
            assert client.stats_tube('crowd')['current-jobs-reserved'] == 50
        assert resident_kilobytes(server) - before < 20 * CROWD
        for each in crowd:
            each.close()


def test_half_open_sockets(served, tube):
    """One that says no more may still read; one that vanished without a word loses its jobs."""
    address = ('127.0.0.1', served.port)
    name = tube.encode()
    half, vanished = (socket.create_connection(address, 30) for _ in range(2))
    put = b'use %s\r\nput 0 0 60 1\r\nx\r\n' % name
    half.sendall(put + b'watch %s\r\nreserve-with-timeout 60\r\nreserve\r\n' % name)
    half.shutdown(socket.SHUT_WR)
    answer = b''
    while data := half.recv(1000):
        answer += data
    assert answer.endswith(b'x\r\nTIMED_OUT\r\n')  # and then the server has closed it
    with greenstalk.Client(address, use=tube, watch=tube) as client:
        vanished.sendall(b'watch %s\r\nreserve\r\n' % name)
        answer = b''
        while not answer.endswith(b'x\r\n'):
            answer += vanished.recv(100)
        with pytest.raises(greenstalk.TimedOutError):
            client.reserve(timeout=0)
        vanished.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')
        vanished.close()  # a reset, as of a process that was killed with data unread
        assert client.reserve(timeout=10).body == 'x'


def test_an_endless_line_is_not_kept(served):
    with socket.create_connection(('127.0.0.1', served.port), 30) as endless:
        before = resident_kilobytes(served)
        for _ in range(300):
            endless.sendall(b'x' * 100_000)
        endless.sendall(b'\r\nlist-tube-used\r\n')
        answer = b''
        while answer.count(b'\r\n') < 2:
            answer += endless.recv(1000)
        assert answer == b'BAD_FORMAT\r\nUSING default\r\n'
        assert resident_kilobytes(served) - before < 20_000


def test_many_clients_at_once(served, tube):
    """Each job goes to one of them."""
    found, errors = [], []

    def work():
        try:
            with greenstalk.Client(('127.0.0.1', served.port), use=tube, watch=tube) as client:
                for number in range(20):
                    client.put(str(number))
                for _ in range(20):
                    job = client.reserve(timeout=10)
                    found.append(job.id)
                    client.delete(job)
        except Exception as error:  # noqa: BLE001 - told by the test
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(found) == len(set(found)) == 160
