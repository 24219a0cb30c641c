"""The simulator: seeds that must hold, and what it makes of a seed that does not.

More seeds, or longer ones, than in every check of a change:

    ZODBJOBS_SEEDS=2000 ZODBJOBS_STEPS=300 pytest tests/races/test_simulation.py
"""

import os
import re
import subprocess
import sys

import pytest

from zodbjobs.model.quota import Quota
from zodbjobs.testing import simulate
from zodbjobs.testing.simulation.play import Play
from zodbjobs.testing.simulation.shrink import as_ranges, from_ranges, shortest
from zodbjobs.testing.simulation.stage import Stage

FIRST = int(os.environ.get('ZODBJOBS_FIRST_SEED', '0'))
SEEDS = int(os.environ.get('ZODBJOBS_SEEDS', '40'))
STEPS = int(os.environ.get('ZODBJOBS_STEPS', '150'))

#: Seeds of one test: so many that starting a test does not count, so few that workers share them.
TOGETHER = 5


class TestSeeds:
    @pytest.mark.timeout(600)
    @pytest.mark.parametrize('first', range(FIRST, FIRST + SEEDS, TOGETHER))
    def test_every_promise_is_kept(self, first, capsys):
        """Says the shortest way to what is broken, if something is."""
        count = min(TOGETHER, FIRST + SEEDS - first)
        code = simulate.main([f'--seed={first}', f'--seeds={count}', f'--steps={STEPS}'])
        assert code == 0, capsys.readouterr().out

    def test_on_a_file(self, capsys):
        code = simulate.main(['--seed=1', '--seeds=3', '--storage=file'])
        assert code == 0, capsys.readouterr().out

    def test_a_seed_is_the_same_story_in_each_process(self):
        """Whatever the addresses of objects, and the order of sets."""
        stories = [
            subprocess.run(
                [
                    sys.executable,
                    '-m',
                    'zodbjobs.testing.simulate',
                    '--seed=9',
                    '--steps=60',
                    '--tell',
                ],
                env={**os.environ, 'PYTHONHASHSEED': salt, 'PYTHONPATH': os.pathsep.join(sys.path)},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for salt in '12'
        ]
        first, second = (re.sub(r'\(\d+ steps/s\)', '', story) for story in stories)
        assert first == second
        assert len(first.splitlines()) > 60

    def test_another_seed_is_another_story(self):
        stories = []
        for seed in (1, 2):
            tell = []
            Play(seed, 30, tell=tell).run()
            stories.append(tell)
        assert stories[0] != stories[1]


class TestViolation:
    @pytest.fixture
    def careless(self, monkeypatch):
        """An engine that gives no place in a quota, so that more run than may."""
        monkeypatch.setattr(Quota, 'take', lambda self, token, job: None)

    def test_the_shortest_way_is_told_and_leads_there_again(self, careless, capsys):
        assert simulate.main(['--seed=0', '--seeds=20', '--shrink=40']) == 1
        told = capsys.readouterr().out
        assert re.search(r'^seed \d+ breaks a promise: ', told, re.M)
        found = re.search(r'^and then: (.*)', told, re.M)[1]
        command = re.search(r'^again: python -m zodbjobs.testing.simulate (.*)', told, re.M)[1]
        kept = from_ranges(command.split('--keep ')[1])
        assert 0 < len(kept) < 60
        assert f'{len(kept)} steps' in told

        assert simulate.main(command.split()) == 1
        assert f'and then: {found}' in capsys.readouterr().out

    def test_what_an_actor_finds_ends_the_run(self):
        play = Play(0, 0, traits=())
        with play.set_up():
            play.spawn_client('fool', lambda connection: connection.root()['nothing there'])
            with pytest.raises(
                AssertionError, match="fool ended with KeyError\\('nothing there'\\)"
            ):
                play.end()


class TestShrinking:
    def test_what_does_not_matter_is_left_out(self):
        assert shortest(lambda numbers: {3, 17} <= set(numbers), range(50)) == [3, 17]

    def test_nothing_may_matter(self):
        assert shortest(lambda numbers: True, range(9)) == []

    def test_the_work_is_bounded(self):
        runs = []
        found = shortest(lambda numbers: runs.append(1), range(1000), most_runs=20)
        assert (len(runs), len(found)) == (20, 1000)

    @pytest.mark.parametrize('text', ['', '0', '0-3', '0-1,3,5-9', '7,9'])
    def test_ranges(self, text):
        assert as_ranges(from_ranges(text)) == text

    def test_what_is_no_range(self):
        with pytest.raises(ValueError):
            from_ranges('3-x')


class TestStage:
    """Only who has the turn runs, and whoever is killed unwinds where he stands."""

    class Process:
        name = 'test'
        is_paused = False
        filings = None

    @pytest.fixture
    def stage(self):
        return Stage()

    def test_turns(self, stage):
        said = []

        def count():
            for i in range(3):
                said.append(i)
                stage.pass_turn('count')

        one, two = (stage.spawn(self.Process(), name, count) for name in 'ab')
        for actor in (one, one, two, one, two):
            stage.give_turn(actor)
        assert said == [0, 1, 0, 2, 1]
        stage.kill([one, two])

    def test_waiting(self, stage):
        gate = []
        actor = stage.spawn(self.Process(), 'a', lambda: stage.wait(lambda: gate, 'gate'))
        stage.give_turn(actor)
        assert not stage.runnable()
        gate.append(1)
        assert stage.runnable() == [actor]
        stage.give_turn(actor)
        assert actor.has_ended and stage.actors == []

    def test_killing(self, stage):
        said = []

        def work():
            try:
                stage.pass_turn('work')
                said.append('worked')
            except BaseException:
                said.append('killed')
                stage.pass_turn('once more')

        actor = stage.spawn(self.Process(), 'a', work)
        stage.give_turn(actor)
        stage.kill([actor])
        assert said == ['killed'] and actor.has_ended and actor.error is None

    def test_killed_before_the_first_turn(self, stage):
        actor = stage.spawn(self.Process(), 'a', lambda: pytest.fail('it must not run'))
        stage.kill([actor])
        assert actor.has_ended and actor.error is None


class TestScenes:
    """Stories that chance comes to seldom; the ledger checks them like any other."""

    @pytest.fixture
    def play(self):
        """A scene with the dispatchers A and B."""
        play = Play(seed=0, steps=0, traits={'stops', 'burials', 'channels'})
        with play.set_up():
            for actor in play.stage.runnable():
                play.run_some(actor)
            yield play

    def test_a_job_that_may_not_begin_again_outlives_the_grace_of_a_stop(self, play):
        play.put('p', {'script': (('sleep', 60),), 'policy': 'never'})
        play.pass_time(1)
        worker = next(
            actor for actor in play.stage.runnable() if actor.worker or 'main' in actor.name
        )
        play.run_some(worker)
        assert play.ledger.run_count('p') == 1
        worker.process.stop()
        play.end()
        assert play.ledger.marks['p'].job.outcome == 'failure'

    def test_a_job_is_held_while_a_worker_still_has_it_who_lost_it(self, play):
        """It must not begin again there, nor end."""
        play.put('p', {'script': (('pause',),)})
        reactor = play.holder('A').actors()[0]
        play.run_some(reactor)
        worker = next(actor for actor in play.holder('A').actors() if actor is not reactor)
        play.run_some(worker, 2)
        assert play.ledger.run_count('p') == 1
        play.run_some(play.bury('A'))
        oid = play.ledger.marks['p'].job._p_oid
        play.run_some(play.spawn_client('operator', lambda c: c.get(oid).hold() or True))
        assert play.ledger.marks['p'].job.status == 'held'
        play.run_some(worker)
        assert play.ledger.marks['p'].job.status == 'held'
        play.end()

    def test_a_callback_runs_when_its_job_is_lost(self, play):
        """What the callback has written is not committed."""
        play.put('p', {'script': (), 'callbacks': ({'script': (('pause',),), 'on': 'any'},)})
        reactor = play.holder('A').actors()[0]
        play.run_some(reactor)
        worker = next(actor for actor in play.holder('A').actors() if actor is not reactor)
        while not play.ledger.run_count('p.c0'):
            play.run_some(worker, 1)
        play.run_some(play.bury('A'))
        play.run_some(worker)
        assert not play.ledger.marks['p.c0'].effect_count()
        play.end()

    def test_two_claim_the_last_place_of_a_quota_for_different_jobs(self, play):
        """A takes jobs of channel a, B of channel b; one of them has to look again."""
        for number in 'ab':
            wishes = {'quota_names': ('one',), 'channel': number}
            play.put(number, {'script': (('sleep', 1),), 'wishes': wishes})
        slow, fast = (play.holder(name).actors()[0] for name in 'AB')
        while slow.where != 'commit':
            play.run_some(slow, 1)
        play.run_some(fast)
        play.run_some(slow)
        assert [play.ledger.marks[number].job.status for number in 'ab'] == ['pending', 'active']
        play.end()
