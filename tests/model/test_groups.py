"""Groups of due jobs: a walk in order that opens no tree too many, and groups that are shut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model.support import work
from zodbjobs.facts import Assignment
from zodbjobs.model import groups as groups_module
from zodbjobs.model import handout
from zodbjobs.model.groups import Groups
from zodbjobs.model.ready import Due
from zodbjobs.model.tokens import TIE_BITS


def filled(*entries):
    """Groups with a job for each (priority, channel, token)."""
    groups = Groups()
    for priority, channel, token in entries:
        groups.add((priority, channel, (), 0), token, f'{channel} {token}', Due)
    return groups


def walked(groups, **kw):
    return [(*place, item[1]) for place, item in groups.walk(**kw)]


ENTRIES = st.lists(st.tuples(st.integers(0, 3), st.sampled_from('abcd'), st.integers(0, 40)))


@given(ENTRIES, st.data())
def test_a_walk_goes_by_priority_and_token(entries, data):
    """Whatever was filed, taken, shut and opened before."""
    groups, known = Groups(), {}
    for step, (priority, channel, token) in enumerate(entries):
        group = (priority, channel, (), 0)
        token <<= TIE_BITS  # there is room for those of the same microsecond
        deed = data.draw(st.sampled_from(['add', 'add', 'take', 'shut', 'open']))
        if deed == 'add':
            groups.add(group, token, step, Due)
            known.setdefault(group, {})
            while token in known[group]:
                token += 1
            known[group][token] = step
        elif deed == 'take' and group in known:
            slot = data.draw(st.sampled_from(sorted(known[group])))
            groups.take(group, slot)
            del known[group][slot]
            if not known[group]:
                del known[group]
        elif deed == 'shut':
            groups.shut(group, channel)
        elif deed == 'open':
            groups.open(channel, limit=1)
    assert set(groups) == set(known) and len(groups) == len(known) and bool(groups) == bool(known)
    found = [(place, group, slot) for place, (_, slot, group, _) in groups.walk(shut=True)]
    assert [place for place, *_ in found] == sorted(place for place, *_ in found)
    assert sorted((group, slot) for _, group, slot in found) == sorted(
        (group, slot) for group, jobs in known.items() for slot in jobs
    )
    open_ones = {group for _, (_, _, group, _) in groups.walk()}
    assert open_ones == {group for group in known if not groups.is_shut(group)}
    for name in groups.shut_quotas(limit=9):
        while groups.open(name):
            pass
    assert {group for _, (_, _, group, _) in groups.walk()} == set(known)


def test_a_walk_opens_a_tree_when_it_comes_to_its_first_job():
    groups = filled(*((5, f'c{n}', n * 10) for n in range(1000)))
    opened = []

    def wanted(group):
        opened.append(group)
        return True

    walk = groups.walk(wanted)
    assert next(walk)[1][0] == 0
    assert len(set(opened)) == 1
    assert [next(walk)[1][0] for _ in range(3)] == [10, 20, 30]
    assert len(set(opened)) <= 5


def test_an_earlier_job_that_comes_late_is_seen():
    groups = filled((5, 'a', 100), (5, 'b', 50), (5, 'a', 10))
    assert [token for _, token, _ in walked(groups)] == [10, 50, 100]


def test_a_penalty_puts_a_group_behind():
    groups = filled((5, 'a', 1), (5, 'a', 4), (5, 'b', 2), (5, 'b', 3), (1, 'b', 9))
    found = groups.walk(penalty=lambda group: 100 if group[1] == 'a' else 0)
    assert [item[-1] for _, item in found] == ['b 9', 'b 2', 'b 3', 'a 1', 'a 4']


def test_no_more_than_some_are_opened_at_once():
    """The first ones, by priority; the others when the next place is free."""
    groups = filled(*((n, 'c', n) for n in range(50)))
    for group in list(groups):
        groups.shut(group, 'q')
        groups.shut(group, 'other')  # one is enough
    assert walked(groups) == [] and groups.shut_quotas(limit=5) == ['q']
    assert groups.open('q', 3) == 3
    assert [priority for priority, *_ in walked(groups)] == [0, 1, 2]
    assert groups.open('qu') == 0 and groups.open('q') == groups_module.OPEN_LIMIT


# With quotas -------------------------------------------------------------------------------


@pytest.fixture
def crowd(side, queue, monkeypatch):
    """{quota name: [its jobs]}: two each of sixty quotas of one place."""
    names = [f'q{number:02}' for number in range(60)]
    for name in names:
        queue.quotas.create(name)
    jobs = {name: [queue.put(work, quota_names=[name]) for _ in range(2)] for name in names}
    side.commit()
    first = side.claimed_jobs(100)
    assert first == [pair[0] for pair in jobs.values()]
    side.commit()
    assert side.claimed_jobs(100) == []
    side.commit()
    return jobs


def test_groups_behind_full_quotas_are_shut(side, queue, crowd):
    groups = queue.ready.groups
    assert len(groups) == 60 and all(groups.is_shut(group) for group in groups)
    assert next(groups.walk(), None) is None


def test_agents_that_name_channels_pass_by_what_is_shut(side, queue, crowd):
    side.agent.channels = ['']
    look = side.look()
    look.sort()
    assert look.pick(side.agent, 9) == [] and look.full == {}


def test_a_round_shuts_no_more_than_some_and_is_made_again(side, queue, monkeypatch):
    monkeypatch.setattr(handout, 'FULL_LIMIT', 1)
    monkeypatch.setattr(handout, 'FULL_LOOKED_AT', 2)
    for number in range(5):
        queue.quotas.create(f'q{number}', 0)
        queue.put(work, quota_names=[f'q{number}'], priority=number)
    last = queue.put(work, priority=9)
    side.commit()
    side.file_all()
    rounds = []
    while True:
        look = side.look()
        look.sort()
        found = look.pick(side.agent, 9)
        look.file_rest()
        rounds.append(look.hindered)
        if found:
            break
    assert rounds == [True, True, False]
    assert [queue._p_jar.get(assignment.oid) for assignment in found] == [last]


def test_a_place_that_is_free_again_opens_its_groups(side, queue, crowd):
    for name in ('q07', 'q42'):
        side.run(crowd[name][0])
    assert side.claimed_jobs(100) == [crowd['q07'][1], crowd['q42'][1]]
    side.commit()
    assert queue.peek() is crowd['q00'][1]  # the shut ones are in all lists
    assert list(queue) == [jobs[1] for name, jobs in crowd.items() if name not in ('q07', 'q42')]
    assert len(queue) == 58


def test_a_larger_quota_is_noticed_in_a_while(side, queue, crowd):
    queue.quotas['q33'].size = 2
    side.commit()
    found = []
    for _ in range(60 // handout.SOME_QUOTAS + 1):
        found += side.claimed_jobs(100)
        side.commit()
    assert found == [crowd['q33'][1]]


def test_a_slow_look_finds_it_at_once(side, queue, crowd):
    queue.quotas.remove('q33')
    side.commit()
    look = side.look()
    look.sort(late=True)
    assert [queue._p_jar.get(a.oid) for a in look.pick(side.agent, 9)] == [crowd['q33'][1]]


def test_who_waits_at_a_shut_group_comes_before_what_comes_now(side, queue, crowd):
    """Also while nobody has written down yet that the place is free."""
    first, second = crowd['q05']
    token, *_ = side.agent.running[first.oid]
    side.work(Assignment(first._p_oid, token, '', 'main', first.quota_names))
    queue.put(work, quota_names=['q05'])
    assert side.claimed_jobs(9) == [second]


def test_new_jobs_join_those_that_are_shut(side, queue, crowd):
    more = queue.put(work, quota_names=['q05'])
    look = side.look()
    look.sort()
    assert look.pick(side.agent, 9) == []
    look.file_rest(leave=0)
    assert len(queue.ready.groups) == 60
    side.run(crowd['q05'][0])
    assert side.claimed_jobs(9) == [crowd['q05'][1]]
    side.run(crowd['q05'][1])
    assert side.claimed_jobs(9) == [more]
