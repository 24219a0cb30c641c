"""Life and death are proved by real processes, files and sessions."""

import fcntl
import os
import signal
import threading
import uuid

import pytest
import ZODB

from zodbjobs import clock
from zodbjobs.runtime import witness
from zodbjobs.testing.waiting import wait_until

pytestmark = pytest.mark.usefixtures('no_thread_stays')

ONE, OTHER = (uuid.uuid5(uuid.NAMESPACE_DNS, name) for name in ('one.example', 'other.example'))
BASE = uuid.uuid5(uuid.NAMESPACE_DNS, 'base.example')


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'folder').mkdir()
    return str(tmp_path / 'folder')


@pytest.fixture
def turn():
    """turn(seconds): move the clock, which stands still otherwise."""

    class Standing(clock.SystemTime):
        now = 1000.0

        def monotonic(self):
            return self.now

    source = Standing()
    former = clock.use(source)

    def turn(seconds):
        source.now += seconds

    yield turn
    clock.use(former)


@pytest.fixture
def give_back():
    """give_back(thing): its release() is called after the test."""
    things = []

    def add(thing):
        things.append(thing)
        return thing

    yield add
    for thing in things:
        thing.release()


# Record locks.


def test_a_lock_is_taken_once(folder, give_back):
    lock = give_back(witness.RecordLock(folder, 'a'))
    assert witness.is_held(folder, 'a') is False
    assert lock.acquire()
    assert lock.acquire()
    assert not witness.RecordLock(folder, 'a').acquire()
    assert witness.is_held(folder, 'a') is True
    assert witness.is_held(folder, 'b') is False
    lock.release()
    assert witness.is_held(folder, 'a') is False
    assert os.listdir(folder) == []


def test_another_process_sees_the_lock_and_cannot_take_it(folder, give_back, interpreter):
    lock = give_back(witness.RecordLock(folder, 'a'))
    there = interpreter()
    there.run('from zodbjobs.runtime import witness')
    there.run(f'lock = witness.RecordLock({folder!r}, "a")')
    assert lock.acquire()
    assert there.run(f'witness.is_held({folder!r}, "a")') == 'True'
    assert there.run('lock.acquire()') == 'False'
    # Neither the others' looking nor our own has disturbed it.
    assert witness.is_held(folder, 'a') is True
    assert there.run(f'witness.is_held({folder!r}, "a")') == 'True'
    lock.release()
    assert there.run('lock.acquire()') == 'True'
    assert witness.is_held(folder, 'a') is True
    assert not lock.acquire()


def test_a_killed_process_is_dead_at_once(folder, interpreter, give_back):
    there = interpreter()
    there.run('from zodbjobs.runtime import witness')
    there.run(f'lock = witness.RecordLock({folder!r}, "a")')
    assert there.run('lock.acquire()') == 'True'
    assert witness.is_held(folder, 'a') is True
    there.kill()
    assert witness.is_held(folder, 'a') is False
    assert give_back(witness.RecordLock(folder, 'a')).acquire()


def test_a_child_that_outlives_the_process_holds_nothing(folder, interpreter):
    """A job may fork; a lock by `flock` would stay with the child."""
    there = interpreter()
    there.run('import os, signal; from zodbjobs.runtime import witness')
    there.run(f'lock = witness.RecordLock({folder!r}, "a")')
    assert there.run('lock.acquire()') == 'True'
    there.run('child = os.fork() or signal.pause()')
    child = int(there.run('child'))
    try:
        assert witness.is_held(folder, 'a') is True
        there.kill()
        assert witness.is_held(folder, 'a') is False
        os.kill(child, 0)  # it is still there
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.filterwarnings('ignore:.*multi-threaded:DeprecationWarning')  # the child runs 3 lines
def test_a_forked_child_knows_that_the_lock_is_its_parents(folder, give_back):
    lock = give_back(witness.RecordLock(folder, 'a'))
    lock.acquire()
    child = os.fork()
    if not child:
        seen = 1
        try:
            lock.release()  # not its to give back
            seen = 0 if witness.is_held(folder, 'a') and not lock.acquire() else 2
        finally:
            os._exit(seen)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert lock.acquire()
    assert len(os.listdir(folder)) == 1


def test_a_file_that_a_cleaner_took_away_is_made_again(folder, give_back, interpreter):
    lock = give_back(witness.RecordLock(folder, 'a'))
    lock.acquire()
    os.unlink(lock.path)
    there = interpreter()
    there.run('from zodbjobs.runtime import witness')
    assert there.run(f'witness.is_held({folder!r}, "a")') == 'False'
    assert lock.acquire()  # as a dispatcher does at every poll
    assert there.run(f'witness.is_held({folder!r}, "a")') == 'True'
    os.unlink(lock.path)
    os.rmdir(folder)
    assert lock.acquire()
    assert there.run(f'witness.is_held({folder!r}, "a")') == 'True'
    os.unlink(lock.path)
    there.run(f'lock = witness.RecordLock({folder!r}, "a")')
    assert there.run('lock.acquire()') == 'True'
    assert not lock.acquire()  # too late: another one has the name now
    lock.release()
    assert there.run('lock.acquire()') == 'True'


def test_siblings_compare_when_locks_were_shown(folder, give_back):
    """By the file system's own clock, whatever this machine's clock says."""
    one, other = (give_back(witness.RecordLock(folder, name)) for name in ('one', 'other'))
    assert one.acquire() and other.acquire()
    os.utime(one.path, (1000, 1000))
    os.utime(other.path, (1070, 1070))
    assert witness.seconds_between(folder, 'one', 'other') == 70
    one.show()
    assert witness.seconds_between(folder, 'one', 'other') < 0
    other.release()
    assert witness.seconds_between(folder, 'one', 'other') is None


def test_acquiring_again_keeps_the_file_young(folder, give_back):
    lock = give_back(witness.RecordLock(folder, 'a'))
    lock.acquire()
    os.utime(lock.path, (1, 1))
    lock.acquire()
    assert os.stat(lock.path).st_mtime > 1


def test_many_who_look_do_not_keep_a_process_from_its_lock(folder, interpreter):
    """Looking takes a shared lock for a moment; taking tries more than once."""
    there = interpreter()
    there.run('from zodbjobs.runtime import witness')
    there.run(f'lock = witness.RecordLock({folder!r}, "a")')
    assert there.run('lock.acquire()') == 'True'
    done = threading.Event()
    lookers = [
        threading.Thread(
            target=lambda: [witness.is_held(folder, 'a') for _ in iter(done.is_set, 1)]
        )
        for _ in range(2)
    ]
    for each in lookers:
        each.start()
    try:
        taken = []
        for _ in range(50):
            # Free, but leave the file: only then is there something to collide on.
            there.run('lock._drop(); witness._record_locks.clear()')
            taken.append(there.run('lock.acquire()'))
    finally:
        done.set()
        for each in lookers:
            each.join()
    assert taken == ['True'] * 50


def test_a_file_given_back_while_it_is_being_locked_does_not_count(
    folder, give_back, interpreter, monkeypatch
):
    """Between opening and locking, the holder before may have taken the file away."""

    class GivenBackMeanwhile:
        LOCK_EX, LOCK_NB, LOCK_SH = fcntl.LOCK_EX, fcntl.LOCK_NB, fcntl.LOCK_SH
        given_back = False

        def lockf(self, descriptor, how):
            if not self.given_back:
                self.given_back = True
                os.unlink(lock.path)
            fcntl.lockf(descriptor, how)

    monkeypatch.setattr(witness, 'fcntl', GivenBackMeanwhile())
    lock = give_back(witness.RecordLock(folder, 'a'))
    assert lock.acquire()
    there = interpreter()
    there.run('from zodbjobs.runtime import witness')
    assert there.run(f'witness.is_held({folder!r}, "a")') == 'True'


def test_the_name_of_a_lock_is_no_path(folder):
    with pytest.raises(ValueError, match='is a path'):
        witness.RecordLock(folder, '../a')


def test_the_folder_is_this_users_own(tmp_path, monkeypatch):
    monkeypatch.delenv(witness.FOLDER_VARIABLE)
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    folder = witness.lock_folder()
    assert os.path.dirname(folder) == str(tmp_path)
    assert os.stat(folder).st_mode & 0o777 == 0o700
    assert witness.lock_folder() == folder
    os.rmdir(folder)
    os.symlink(tmp_path, folder)
    with pytest.raises(PermissionError, match=witness.FOLDER_VARIABLE):
        witness.lock_folder()


def test_a_folder_may_be_named(tmp_path, monkeypatch):
    monkeypatch.setenv(witness.FOLDER_VARIABLE, str(tmp_path / 'a' / 'b'))
    assert witness.lock_folder() == str(tmp_path / 'a' / 'b')
    assert os.path.isdir(tmp_path / 'a' / 'b')


def test_the_place_tells_folders_apart(tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'b').mkdir()
    assert witness.place_of(str(tmp_path / 'a')) == witness.place_of(str(tmp_path / 'a'))
    assert witness.place_of(str(tmp_path / 'a')) != witness.place_of(str(tmp_path / 'b'))


def test_without_record_locks_nothing_is_claimed(tmp_path, monkeypatch):
    """As on Windows."""
    monkeypatch.setattr(witness, 'fcntl', None)
    assert witness.RecordLock(str(tmp_path), 'a').acquire()
    assert witness.is_held(str(tmp_path), 'a') is None
    assert os.listdir(tmp_path) == []


# Advisory locks.


@pytest.fixture
def advisory(postgres, give_back):
    def make(owner):
        return give_back(witness.AdvisoryLock(postgres.db, owner))

    return make


def test_an_advisory_lock_is_seen_by_other_sessions(advisory, turn):
    one, other = advisory(ONE), advisory(OTHER)
    assert one.acquire() is True
    assert one.acquire() is True
    assert advisory(ONE).acquire() is False
    assert other.is_held(ONE) is True
    assert one.is_held(ONE) is True
    assert other.is_held(OTHER) is None


def test_a_session_shows_when_it_was_active(advisory):
    """Its client may be stopped; its lock stays."""
    one, other = advisory(ONE), advisory(OTHER)
    assert other.silence(ONE) is None
    assert one.acquire()
    first = other.silence(ONE)
    assert wait_until(lambda: other.silence(ONE) > first + 0.05, 5)
    longest = other.silence(ONE)
    assert one.acquire()
    assert 0 <= other.silence(ONE) < longest


def test_a_missed_lock_proves_death_after_a_while(advisory, turn):
    one, other = advisory(ONE), advisory(OTHER)
    one.acquire()
    other.acquire()
    one.release()
    assert other.is_held(ONE) is None
    turn(witness.MISSED_SECONDS - 1)
    assert other.is_held(ONE) is None
    turn(1)
    assert other.is_held(ONE) is False
    assert one.acquire() is True
    assert other.is_held(ONE) is True
    one.release()
    assert other.is_held(ONE) is None  # the wait begins anew


def test_a_cut_connection_is_no_death(advisory, postgres, turn):
    one, other = advisory(ONE), advisory(OTHER)
    one.acquire()
    other.acquire()
    postgres.server.disconnect(postgres.name)
    # The other looks first, and must not take the cut for a death, however long
    # it had been cut off itself.
    assert other.is_held(ONE) is None
    turn(witness.MISSED_SECONDS - 1)
    assert one.acquire() is True
    turn(1)
    assert other.is_held(ONE) is True
    assert other.acquire() is True


def test_who_was_cut_off_gives_the_others_time(advisory, postgres, turn):
    one, other = advisory(ONE), advisory(OTHER)
    one.acquire()
    other.acquire()
    one.release()
    other.is_held(ONE)
    turn(witness.MISSED_SECONDS)
    postgres.server.disconnect(postgres.name)
    assert other.is_held(ONE) is None
    turn(witness.MISSED_SECONDS)
    assert other.is_held(ONE) is False


def test_a_server_out_of_reach_proves_nothing(advisory, postgres, turn):
    one, other = advisory(ONE), advisory(OTHER)
    one.acquire()
    other.acquire()
    postgres.server.execute(f'ALTER DATABASE {postgres.name} ALLOW_CONNECTIONS false')
    postgres.server.disconnect(postgres.name)
    assert one.acquire() is None
    assert other.is_held(ONE) is None
    turn(2 * witness.MISSED_SECONDS)
    assert other.is_held(ONE) is None
    postgres.server.execute(f'ALTER DATABASE {postgres.name} ALLOW_CONNECTIONS true')
    assert other.is_held(ONE) is None
    assert one.acquire() is True
    assert other.is_held(ONE) is True


def test_who_lost_the_connection_and_the_name_is_told(advisory, postgres):
    one, usurper = advisory(ONE), advisory(ONE)
    one.acquire()
    postgres.server.disconnect(postgres.name)
    assert usurper.acquire() is True
    assert one.acquire() is False


def test_a_killed_process_loses_its_advisory_lock(advisory, postgres, interpreter, turn):
    there = interpreter()
    there.run('import uuid; from zodbjobs.runtime import address, witness')
    there.run(f'db = address.open_database({postgres.uri!r})')
    there.run(f'lock = witness.AdvisoryLock(db, uuid.UUID({str(ONE)!r}))')
    assert there.run('lock.acquire()') == 'True'
    other = advisory(OTHER)
    assert other.is_held(ONE) is True
    there.kill()
    held = True
    while held:  # the server's process ends a moment after its client
        held = other.is_held(ONE)
    turn(witness.MISSED_SECONDS)
    assert other.is_held(ONE) is False


# The witness of a dispatcher.


def test_a_witness_is_alive_until_it_is_released(storage, give_back, turn):
    one = give_back(witness.witness_for(storage.db, ONE))
    other = give_back(witness.witness_for(storage.open(), OTHER))
    assert one.proves
    assert one.acquire() is True
    assert other.acquire() is True
    assert one.acquire() is True
    assert other.sees_alive(ONE, one.place) is True
    assert one.sees_alive(ONE, one.place) is True
    one.release()
    assert other.sees_alive(ONE, one.place) is False
    assert one.acquire() is True
    assert other.sees_alive(ONE, one.place) is True


def test_a_name_has_one_holder(storage, give_back):
    one = give_back(witness.witness_for(storage.db, ONE))
    twin = give_back(witness.witness_for(storage.open(), ONE))
    assert one.acquire() is True
    assert twin.acquire() is False
    twin.release()
    assert one.acquire() is True
    assert witness.witness_for(storage.db, OTHER).sees_alive(ONE, one.place) is True


def test_what_is_said_of_a_holder_on_another_host(storage, give_back, turn):
    one = give_back(witness.witness_for(storage.db, ONE))
    other = give_back(witness.witness_for(storage.open(), OTHER))
    one.acquire()
    alive, dead = (other.sees_alive(each, 'far/away') for each in (ONE, BASE))
    turn(witness.MISSED_SECONDS)
    later = other.sees_alive(BASE, 'far/away')
    assert (alive, dead, later) == {
        'file': (True, False, False),  # there is no other host
        'zeo': (None, None, None),
        'postgres': (True, None, False),
    }[storage.kind]


def test_a_process_is_killed_and_its_name_taken_up_again(shared, interpreter, give_back):
    there, other = interpreter(), interpreter()
    for each in (there, other):
        each.run('import uuid; from zodbjobs.runtime import address, witness')
        each.run(f'db = address.open_database({shared.uri!r})')
        each.run(f'name, mine = witness.claim_identity(db, {str(BASE)!r})')
    first = uuid.UUID(there.run('str(name)').strip("'"))
    second = uuid.UUID(other.run('str(name)').strip("'"))
    assert first != second
    place = there.run('mine.place').strip("'")
    mine = give_back(witness.witness_for(shared.db, ONE))
    assert mine.sees_alive(first, place) is True
    assert mine.sees_alive(second, place) is True
    there.kill()
    assert mine.sees_alive(first, place) is False
    assert mine.sees_alive(second, place) is True
    name, again = witness.claim_identity(shared.db, str(BASE))
    give_back(again)
    assert name == first


def test_names_are_stable_and_apart(storage, give_back):
    names = []
    for _ in range(3):
        name, held = witness.claim_identity(storage.db, BASE)
        names.append(name)
        give_back(held)
    assert len(set(names)) == 3
    held.release()
    assert witness.claim_identity(storage.db, BASE)[0] == names[2]
    witness._unregister(held._storage, names[2])
    assert witness.claim_identity(storage.db, 'any text')[0] not in names


def test_a_storage_without_any_witness_gets_a_name_nobody_had(monkeypatch, zeo):
    monkeypatch.setattr(witness, 'fcntl', None)
    first, held = witness.claim_identity(zeo.db, BASE)
    second, other = witness.claim_identity(zeo.db, BASE)
    assert first != second
    assert not held.proves
    assert held.acquire() is True
    assert other.sees_alive(first, held.place) is True  # of this process
    held.release()
    assert other.sees_alive(first, held.place) is None
    other.release()


def test_registering_by_hand():
    db = ZODB.DB(None)
    assert witness.register_local(db, ONE)
    assert not witness.register_local(db, ONE)
    mine = witness.witness_for(db, OTHER)
    assert mine.sees_alive(ONE, mine.place) is True
    witness.unregister_local(db, ONE)
    witness.unregister_local(db, ONE)
    assert mine.sees_alive(ONE, mine.place) is False
    db.close()
