"""A storage that is away, full, read-only or packed while jobs run: they wait, and are done once.

Dispatchers have real threads and real time.  Each tells what it meets in one
line, and in one more when that is over.
"""

import contextlib
import subprocess
import threading

import pytest
from persistent.mapping import PersistentMapping

from tests.storages.conftest import open_place
from tests.storages.test_conformance import PATIENCE_SECONDS, Site, gate, gates
from zodbjobs import Job, RetryCommonFourTimes
from zodbjobs.interfaces import COMPLETED
from zodbjobs.runtime import storages, trouble
from zodbjobs.testing.waiting import wait_until

__all__ = ['gates']  # the fixture

#: A ZEO client tries once a second to come back; a PostgreSQL server recovers in less.
BACK_SECONDS = 30

LOST, FULL, WELL = 'lost the storage', 'cannot write to the storage', 'goes on'


class Patient(RetryCommonFourTimes):
    """The default policy, for tests that do not want to wait five seconds."""

    initial_backoff = backoff_increment = 0.1


class Works(Site):
    """A site whose jobs count, in the database, how often each was done."""

    def __init__(self, place):
        super().__init__(place)
        with place.db.transaction() as connection:
            connection.root()['counts'] = PersistentMapping()
        self.number = 0
        self.dispatcher = self.serve()
        self.one = self.client()

    def put(self, count, call, *args, quota_names=()):
        """Put jobs that `call(counter, *args)`, as often as it takes; returns nothing."""
        while not self._is_put(count, call, args, quota_names):
            pass
        self.number += count

    def _is_put(self, count, call, args, quota_names):
        try:
            queue = self.one.begin()
            counts = self.one.root['counts']
            if self.number in counts:
                return True  # a commit that raised was made
            for number in range(self.number, self.number + count):
                counts[number] = Counter()
                job = Job(call, counts[number], *args)
                queue.put(job, retry_policy_factory=Patient, quota_names=quota_names)
                counts[number].job = job
            self.one.manager.commit()
        except Exception as error:
            assert trouble.is_disconnected(error) or trouble.is_conflict(error), repr(error)
            with contextlib.suppress(Exception):
                self.one.abort()
            return False
        return True

    def are_done(self):
        """Whether all jobs are completed."""
        try:
            self.one.begin()
            return all(each.job.status == COMPLETED for each in self.one.root['counts'].values())
        except Exception as error:
            assert trouble.is_disconnected(error), repr(error)
            with contextlib.suppress(Exception):
                self.one.abort()
            return False

    def done_counts(self):
        """How often the work of each job is in the database, as a set."""
        self.one.begin()
        return {each.value for each in self.one.root['counts'].values()}

    def is_idle(self):
        """Whether no slot, no entry and no quota place is taken, and every thread lives."""
        queue = self.one.begin()
        agents = [a for record in queue.dispatchers.values() for a in record.values()]
        places = [quota.clean() or len(quota) for quota in queue.quotas.values()]
        self.one.abort()
        pools = [pool for pools in self.dispatcher.queues.values() for pool in pools.values()]
        return (
            not self.dispatcher._flight
            and not any(len(agent) for agent in agents)
            and not any(places)
            and all(thread.is_alive() for pool in pools for thread in pool.threads)
            and all(pool._taken == 0 == pool._busy for pool in pools)
        )

    def end_well(self):
        """Wait until all is done, and see that nothing was done twice or left behind."""
        assert wait_until(self.are_done, BACK_SECONDS), self.undone()
        assert self.done_counts() == {1}
        self.put(1, count_up)  # it is not only the old work that is done
        assert wait_until(self.are_done, BACK_SECONDS), self.undone()
        assert wait_until(self.is_idle, PATIENCE_SECONDS)

    def undone(self):
        self.one.begin()
        jobs = [each.job for each in self.one.root['counts'].values()]
        return [job.stats() for job in jobs if job.status != COMPLETED]


class Counter(PersistentMapping):
    """How often one job was done, and the job."""

    value = 0
    job = None


def count_up(counter, seconds=0.0):
    counter.value += 1
    threading.Event().wait(seconds)


def count_at_gate(counter, name):
    """Count, say that we are here, and commit when the gate opens."""
    counter.value += 1
    gate(f'at {name}').set()
    assert gate(name).wait(BACK_SECONDS)


@pytest.fixture
def works():
    """works(place) -> Works."""
    with contextlib.ExitStack() as stack:
        yield lambda place: stack.enter_context(contextlib.closing(Works(place)))


@pytest.fixture
def told(caplog):
    """told() -> what dispatchers said of the storage, in order."""
    caplog.set_level('INFO', 'zodbjobs.events')

    def look():
        said = [record.getMessage() for record in caplog.records if 'dispatcher' in record.msg]
        said += [r.getMessage() for r in caplog.records if r.msg.startswith('%s ')]
        return [word for line in said for word in (LOST, FULL, WELL) if word in line]

    return look


# A server goes and comes back.


def go_and_come_back(place):
    if place.kind == 'zeo':
        place.server.stop()
        place.server.start()
    else:
        place.server.restart('immediate')


def test_a_server_is_restarted_under_load(shared, works, told):
    """PostgreSQL crashes and recovers; a ZEO server's next life knows nothing of the former."""
    works = works(shared)
    for _ in range(2):
        works.put(15, count_up, 0.02)
        go_and_come_back(shared)
    works.end_well()
    assert told().count(LOST) <= 2
    assert wait_until(lambda: told().count(WELL) == told().count(LOST), PATIENCE_SECONDS)


def test_a_server_is_away_while_jobs_want_to_end(shared, works, told):
    """All threads are in the middle of something; each comes back to its work."""
    if shared.kind == 'zeo':
        shared.uri += '?wait_timeout=1'  # and not ten seconds, before it is called lost
    works = works(shared)
    works.put(3, count_at_gate, 'end')
    works.put(6, count_up)
    assert gate('at end').wait(PATIENCE_SECONDS)
    shared.server.stop()
    gate('end').set()
    works.dispatcher._ring()
    assert wait_until(lambda: LOST in told(), PATIENCE_SECONDS)
    shared.server.start()
    works.end_well()
    assert wait_until(lambda: told()[-1] == WELL, PATIENCE_SECONDS)
    assert told() == [LOST, WELL]


# Nothing can be written.


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own, of some megabytes."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f'a small disk cannot be mounted here: {error}')
    yield folder
    subprocess.run(['umount', '-l', str(folder)], check=True)


def fill(folder):
    """Let nothing more go on that disk; returns the path of what fills it."""
    path = folder / 'ballast'
    with contextlib.suppress(OSError), open(path, 'wb', buffering=0) as ballast:
        while True:
            ballast.write(b'-' * 4096)
    return path


# Behind ZEO a FileStorage that was full may answer a read with what it had buffered
# (CorruptedDataError) until it is opened anew; so that one is not run each time.
@pytest.mark.parametrize('kind', ['file', pytest.param('zeo', marks=pytest.mark.slow)])
def test_a_disk_is_full_for_a_while(kind, small_disk, works, told):
    """The default policy does not make a failure of it: the disk is nobody's job."""
    with open_place(kind, small_disk) as place:
        works = works(place)
        works.put(3, count_at_gate, 'end')
        works.put(6, count_up)
        assert gate('at end').wait(PATIENCE_SECONDS)
        ballast = fill(small_disk)
        gate('end').set()
        assert wait_until(lambda: FULL in told(), PATIENCE_SECONDS)
        assert not works.are_done()
        ballast.unlink()
        works.end_well()
        assert wait_until(lambda: told()[-1] == WELL, PATIENCE_SECONDS)
        assert told().count(FULL) == 1
        works.close()


#: Is called for every write, and may say what a standby says.
REFUSE = """
CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    {}
    RETURN NULL;
END $$
"""
SAY = "RAISE 'cannot write in a read-only transaction' USING ERRCODE = '25006';"
HEAR = """
SET lock_timeout = '5s';
CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON object_state EXECUTE FUNCTION refuse()
"""


@pytest.fixture
def lock(storage):
    """lock(True) makes the storage read-only, lock(False) undoes that."""

    def lock_file(closed):
        storages.base(storage.db)._is_read_only = closed

    def lock_zeo(closed):
        storage.server._server.storages['1']._is_read_only = closed

    def lock_postgres(closed, then=''):
        # RelStorage's sessions overrule the settings that make them read-only.
        with contextlib.closing(storage.server.connect(storage.name)) as connection:
            connection.cursor().execute(REFUSE.format(SAY if closed else '') + then)

    if storage.kind == 'postgres':
        lock_postgres(False, ';' + HEAR)
    lock = {'file': lock_file, 'zeo': lock_zeo, 'postgres': lock_postgres}[storage.kind]
    yield lock
    lock(False)


def test_a_storage_is_read_only_for_a_while(storage, works, told, lock):
    """As after a failover to a standby that was not promoted yet."""
    works = works(storage)
    works.put(3, count_at_gate, 'end')
    works.put(6, count_up)
    assert gate('at end').wait(PATIENCE_SECONDS)
    lock(True)
    gate('end').set()
    works.dispatcher._ring()
    assert wait_until(lambda: FULL in told(), PATIENCE_SECONDS)
    assert not works.are_done()
    lock(False)
    works.end_well()
    assert wait_until(lambda: told()[-1] == WELL, PATIENCE_SECONDS)
    assert told().count(FULL) == 1


# A pack.


def test_a_pack_in_the_middle_of_the_work(storage, works):
    """Records that it takes away are not missed by jobs, nor by who puts them."""
    works = works(storage)
    packer = storage.open()
    packing = threading.Thread(target=packer.pack)
    works.put(20, count_up, 0.02)
    packing.start()
    for _ in range(5):
        works.put(10, count_up, 0.005)
    packing.join()
    works.end_well()
