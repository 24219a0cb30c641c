"""What the simulator has found in the engine, each as the shortest story that shows it."""

import pytest
import transaction
from ZEO.Exceptions import ClientDisconnected

from zodbjobs import Job, clock
from zodbjobs.model import intake
from zodbjobs.model.intake import DEPENDS, Intake, size_of
from zodbjobs.runtime.dispatcher import PASS_ATTEMPTS
from zodbjobs.testing.simulation.play import Play
from zodbjobs.testing.simulation.process import Process
from zodbjobs.testing.simulation.storage import CONFLICT, UNKNOWN


@pytest.fixture
def play():
    """A scene with the dispatchers A and B, which are proved dead when they are."""
    play = Play(seed=0, steps=0, traits=())
    with play.set_up():
        for actor in play.stage.runnable():
            play.run_some(actor)
        yield play


def reactor(play, name):
    """The actor that makes the passes of a dispatcher."""
    return play.holder(name).actors()[0]


def worker(play, name):
    """The first of the threads that run the jobs of a dispatcher."""
    return next(actor for actor in play.holder(name).actors() if 'main' in actor.name)


def run_until(play, actor, holds):
    """Give turns to an actor until `holds()`."""
    for _ in range(100):
        if holds():
            return
        play.run_some(actor, 1)
    pytest.fail(f'{actor} did not come so far')


def test_a_claim_is_run_although_the_answer_to_its_commit_was_lost(play):
    """The connection breaks after the server has committed what a pass has claimed."""
    play.put('p', {'script': ()})
    play.holder('A').line.faults.append([1, UNKNOWN])
    play.run_some(reactor(play, 'A'))
    assert play.world.has_met == {UNKNOWN}
    play.end()


def test_a_side_of_a_choice_ends_with_it(play):
    """A callback for success returns a job, and ends when that has its result."""
    given = {'script': (('give', {'script': ()}),), 'on': 'success'}
    play.put('p', {'script': (), 'callbacks': (given,)})
    play.end()


@pytest.mark.parametrize('turns', range(1, 7))
def test_a_callback_is_done_once_although_two_workers_come_to_it(play, turns):
    """A worker stands still before a callback while its job goes to another one."""
    callback = {'script': (('pause',),), 'on': 'any'}
    play.put('p', {'script': (), 'callbacks': (callback, callback)})
    play.run_some(reactor(play, 'A'))
    play.traits.add('burials')
    slow = worker(play, 'A')
    run_until(play, slow, play.ledger.marks['p'].effect_count)
    play.run_some(slow, turns)
    play.holder('A').is_paused = True
    play.run_some(play.bury('A'))
    play.pass_time(1)
    run_until(play, worker(play, 'B'), play.ledger.marks['p.c0'].effect_count)
    play.holder('A').is_paused = False
    play.run_some(slow)
    play.end()


@pytest.mark.parametrize('turns', range(1, 8))
def test_a_job_that_was_lost_after_a_conflict_does_not_begin_again(play, turns):
    """Nor does it end there, when an operator holds it meanwhile."""
    play.traits.add('burials')
    play.put('p', {'script': (('pause',),)})
    play.run_some(reactor(play, 'A'))
    play.holder('A').line.faults.append([1, CONFLICT])
    play.run_some(worker(play, 'A'), turns)
    mark = play.ledger.marks['p']
    if not mark.effect_count():
        play.run_some(play.bury('A'))
        play.run_some(
            play.spawn_client('operator', lambda c: c.get(mark.job._p_oid).hold() or True)
        )
        play.run_some(worker(play, 'A'))
        assert mark.job.status == 'held'
    play.end()


def test_what_was_claimed_after_a_burial_is_found_by_the_next_life(play):
    """The burial and the claim overlap, the dispatcher dies, and starts again at once."""
    play.traits.add('burials')
    play.holder('B').crash()
    play.put('p', {'script': ()})
    undertaker = play.bury('A')
    run_until(play, undertaker, lambda: undertaker.where == 'commit')
    play.run_some(reactor(play, 'A'))
    play.run_some(undertaker)
    play.holder('A').crash()
    play.start('A')
    play.end()


def test_a_poll_that_conflicts_is_not_made_again_without_a_pause(play):
    """All its attempts at the present instant fail, as something else is committed each time."""
    line = play.holder('A').line
    line.faults += ([1, CONFLICT] for _ in range(100))
    play.put('p', {'script': ()})
    play.world.now += play.poll_interval * clock.SECOND
    play.run_some(reactor(play, 'A'))
    assert 100 - len(line.faults) == PASS_ATTEMPTS
    line.faults.clear()
    play.end()


def test_the_first_who_waits_for_a_place_gets_it_whichever_lane_it_came_by(play, monkeypatch):
    """Each dispatcher prefers lanes of its own; jobs that share a quota stand in one line."""
    errand = {'script': (), 'wishes': {'quota_names': ('one',)}}
    for lane, number in enumerate('pq'):
        monkeypatch.setattr(intake, 'lane_number', lambda jar, lane=lane: lane)
        play.put(number, errand)
    play.run_some(reactor(play, 'B'))  # whose lane the second is in
    play.end()


class TestTwoProcessesFileInTheSameMicrosecond:
    """Then two jobs have the same token, and are not the same job."""

    @pytest.fixture
    def other(self, play):
        return Process(play.world, 'other')

    def tokens(self, play, *numbers):
        return {play.ledger.marks[number].job._token for number in numbers}

    def test_a_job_beside_one_with_a_deadline_is_kept(self, play, other):
        """Both are sorted into the trees, as there is a thread for one job only."""
        play.holder('B').crash()
        for i in range(play.agent_size - 1):
            play.put(f'n{i}', {'script': (('sleep', 9),)})
        play.pass_time(1)
        play.put('o', {'script': ()})
        play.put('o1', {'script': ()}, other)
        play.put('p', {'script': ()})
        play.put('q', {'script': (), 'wishes': {'begin_by': 100}}, other)
        assert len(self.tokens(play, 'p', 'q')) == 1
        play.end()

    def test_each_takes_a_place_of_its_own_in_a_quota(self, play, other):
        """One ends and the other begins in its place; then the end of the first is written."""
        errand = {'script': (('sleep', 1),), 'wishes': {'quota_names': ('one',)}}
        play.put('p', errand)
        play.put('q', errand, other)
        play.put('r', errand)
        assert len(self.tokens(play, 'p', 'q')) == 1
        play.end()


@pytest.mark.parametrize('turns', range(1, 8))
def test_a_lost_connection_between_a_job_and_its_callbacks_is_waited_out(play, turns):
    """The job's record is in the worker's cache, those of the callbacks are not."""
    callbacks = tuple({'script': (), 'on': 'any'} for _ in range(3))
    play.put('p', {'script': (('later', 1),), 'callbacks': callbacks})
    play.run_some(reactor(play, 'A'))
    thread, line = worker(play, 'A'), play.holder('A').line
    play.run_some(thread)
    play.pass_time(1)
    play.run_some(thread, turns)
    line.cut()
    play.run_some(thread)
    line.mend()
    play.end()
    assert play.ledger.marks['p'].job.interruptions == 0


class TestALostConnectionShows:
    """BTrees answers to len() of a bucket that cannot be loaded with a SystemError, or worse."""

    def new_job(self, connection):
        job = Job(clock.micros)
        connection.add(job)
        return job

    @pytest.fixture
    def intake(self, play):
        """An intake with an entry, of which only the tuple of lanes is at hand: the line is cut."""
        manager = transaction.TransactionManager()
        connection = play.client.db.open(manager)
        intake = connection.root()['intake'] = Intake()
        intake.add(1, DEPENDS, (), self.new_job(connection))
        manager.commit()
        connection.cacheMinimize()
        intake._v_late = self.new_job(connection)
        intake._p_activate()
        play.client.line.cut()
        yield intake
        play.client.line.mend()
        manager.abort()
        connection.close()

    @pytest.mark.parametrize(
        'look',
        [
            lambda intake: size_of(intake.lanes[0]),
            lambda intake: list(intake.entries()),
            lambda intake: intake.count(),
            lambda intake: intake.oids(),
            lambda intake: intake.prune(clock.micros()),
            lambda intake: intake.add(2, DEPENDS, (), intake._v_late),
        ],
        ids=['size_of', 'entries', 'count', 'oids', 'prune', 'add'],
    )
    def test_in_a_look_at_the_lanes(self, intake, look):
        with pytest.raises(ClientDisconnected):
            look(intake)

    def test_in_a_producer(self, play, intake):
        """Also when the lanes are at hand and only their chunks are not."""
        play.client.line.mend()
        for lane in intake.lanes:
            lane._p_activate()
        play.client.line.cut()
        with pytest.raises(ClientDisconnected):
            intake.add(2, DEPENDS, (), intake._v_late)
