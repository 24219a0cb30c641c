"""What a monitor may expect of the statistics: true counts, jobs that can be asked for, bounds."""

import datetime
import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from zodbjobs import clock
from zodbjobs.runtime import statistics
from zodbjobs.runtime.statistics import PollsLog, Statistics, percentile

START = datetime.datetime(2006, 8, 10, 15, 44, 22, 211)


class HandTurned:
    """A source of time that a test moves."""

    def __init__(self):
        self.now = clock.micros_of(START)

    def micros(self):
        return self.now

    def monotonic(self):
        return self.now / clock.SECOND

    def passes(self, seconds):
        self.now += clock.micros_in(seconds)


@pytest.fixture
def time():
    source = HandTurned()
    clock.use(source)
    return source


def job(number):
    return number, 'unnamed'


def found(*new, agent='main', queue='', active=()):
    """The results of a poll that claimed these jobs."""
    facts = {
        'size': 3,
        'len': len(new),
        'error': None,
        'new jobs': [job(number) for number in new],
        'active jobs': list(active),
    }
    return {queue: {agent: facts}}


def claims(stats, *numbers, agent='main', queue=''):
    """A poll that claims these jobs."""
    poll = stats.polled(found(*numbers, agent=agent, queue=queue))
    for number in numbers:
        stats.claimed(job(number), queue, agent, poll.key, ())
    return poll


def runs(stats, time, number, seconds, failed=False):
    """One attempt that is claimed, runs so long and ends."""
    claims(stats, number)
    stats.started(job(number), f'<job {number}>', 77)
    time.passes(seconds)
    stats.finished(job(number), failed, 'result')


def counts(stats, **window):
    shown = stats.getStatistics(**window)
    return [shown[key] for key in ('started', 'successful', 'failed', 'unknown')]


# What the usage guide shows ----------------------------------------------------------------


def test_statistics_with_an_active_job(time):
    stats = Statistics()
    for number, (seconds, failed) in enumerate([(3, False), (1, False), (2, True), (4, True)]):
        runs(stats, time, number, seconds, failed)
    claims(stats, 4)
    stats.started(job(4), '<call>')
    time.passes(5)
    assert stats.getStatistics() == {
        'started': 5,
        'successful': 2,
        'failed': 2,
        'unknown': 0,
        'longest active': job(4),
        'longest failed': job(3),
        'longest successful': job(0),
        'shortest active': job(4),
        'shortest failed': job(2),
        'shortest successful': job(1),
        'statistics start': START,
        'statistics end': START + datetime.timedelta(seconds=10),
    }


def test_statistics_of_nothing():
    assert set(Statistics().getStatistics().values()) == {0, None}


def test_job_info_while_it_runs_and_afterwards(time):
    stats = Statistics()
    poll = stats.begin_poll()
    stats.claimed(job(1), 'images', 'main', poll.key, ['disk'])
    assert stats.getActiveJobIds() == []  # claimed, but not in a thread yet
    stats.started(job(1), '<call>', 77)
    assert stats.getActiveJobIds() == [job(1)]
    info = {
        'agent': 'main',
        'call': '<call>',
        'completed': None,
        'failed': False,
        'poll id': poll.key,
        'queue': 'images',
        'quota names': ('disk',),
        'reassigned': False,
        'result': None,
        'started': START,
        'thread': 77,
    }
    assert stats.getJobInfo(1) == stats.getJobInfo(1, 'unnamed') == info
    time.passes(2)
    stats.finished(job(1), False, '42')
    completed = START + datetime.timedelta(seconds=2)
    assert stats.getJobInfo(*job(1)) == info | {'completed': completed, 'result': '42'}
    assert stats.getActiveJobIds() == []


def test_failed_job(time):
    stats = Statistics()
    runs(stats, time, 1, 1, failed=True)
    assert stats.getJobInfo(1)['failed'] is True


def test_unknown_and_ambiguous_jobs():
    stats = Statistics()
    with pytest.raises(ValueError, match='no job 5 is known'):
        stats.getJobInfo(5)
    stats.claimed((5, 'one'), '', 'main')
    stats.claimed((5, 'two'), '', 'main')
    with pytest.raises(ValueError, match=r"ambiguous.*\['one', 'two'\]"):
        stats.getJobInfo(5)
    assert stats.getJobInfo(5, 'two')['agent'] == 'main'
    with pytest.raises(ValueError, match='no job 5'):
        stats.getJobInfo(5, 'three')


def test_long_texts_are_cut():
    stats = Statistics()
    stats.claimed(job(1), '', 'main')
    stats.started(job(1), 'c' * 20_000)
    stats.finished(job(1), False, 'r' * 20_000)
    info = stats.getJobInfo(1)
    assert (len(info['result']), len(info['call'])) == (10_000, 1000)


# Attempts without an outcome ---------------------------------------------------------------


def test_each_attempt_is_counted(time):
    stats = Statistics()
    claims(stats, 1)
    stats.started(job(1), '<call>')
    time.passes(9)
    stats.rescheduled(job(1))
    assert stats.getJobInfo(1)['completed'] is None
    runs(stats, time, 1, 1)
    assert counts(stats) == counts(stats, since=START) == [2, 1, 0, 1]
    assert stats.getStatistics()['longest successful'] == job(1)
    assert stats.getJobInfo(1)['result'] == 'result'


def test_reassigned_job(time):
    stats = Statistics()
    claims(stats, 1)
    stats.started(job(1), '<call>')
    stats.reassigned(job(1))
    assert stats.getJobInfo(1)['reassigned'] is True
    assert counts(stats) == [1, 0, 0, 1]
    stats.finished(job(1), False, 'too late')
    assert counts(stats) == [1, 0, 0, 1]
    assert stats.getJobInfo(1)['result'] is None


def test_claim_that_nobody_ended(time):
    stats = Statistics()
    claims(stats, 1)
    claims(stats, 1)
    assert counts(stats) == [2, 0, 0, 1]
    assert stats.getStatistics()['longest active'] == job(1)


def test_a_job_that_waited_is_claimed_for_the_rest(time):
    """What it waited for has ended: it goes on, and was started once."""
    stats = Statistics()
    claims(stats, 1)
    stats.waits(job(1))
    claims(stats, 1)
    assert counts(stats) == [1, 0, 0, 0]
    assert stats.getStatistics()['longest active'] == job(1)
    stats.finished(job(1), False, '42')
    assert counts(stats) == [1, 1, 0, 0]
    assert stats.getJobInfo(1)['result'] == '42'


def test_a_window_counts_it_once(time):
    """In the window of the poll that began it; the poll that claimed it again began nothing."""
    stats = Statistics()
    claims(stats, 1)
    time.passes(1)
    stats.waits(job(1))
    second = clock.now()
    claims(stats, 1, 2)
    stats.finished(job(1), False, '42')
    assert counts(stats, since=START) == [2, 1, 0, 0]
    assert counts(stats, since=second) == [1, 0, 0, 0]
    assert counts(stats, before=second) == [1, 1, 0, 0]


def test_what_nobody_claimed_is_no_error():
    stats = Statistics()
    for tell in (stats.conflicted, stats.waits, stats.rescheduled, stats.reassigned):
        tell(job(9))
    stats.started(job(9), '<call>')
    stats.finished(job(9), False, 'r')
    assert counts(stats) == [0, 0, 0, 0]


def test_waiting_for_a_returned_job(time):
    stats = Statistics()
    claims(stats, 1)
    stats.started(job(1), '<call>')
    time.passes(2)
    stats.waits(job(1))
    assert stats.getActiveJobIds() == []
    assert stats.getStatistics()['longest active'] == job(1)
    time.passes(60)
    stats.finished(job(1), False, '42')
    assert counts(stats) == [1, 1, 0, 0]
    assert stats.getStatistics()['longest active'] is None
    assert stats.summary()['run p95'] == 2
    assert stats.getJobInfo(1)['result'] == '42'
    assert len(stats.jobs) == 1


# Filters -----------------------------------------------------------------------------------


def test_counts_of_one_queue_or_agent(time):
    stats = Statistics()
    claims(stats, 1, 2, agent='main')
    claims(stats, 3, agent='other')
    claims(stats, 4, queue='images')
    for number in (1, 2, 3, 4):
        stats.started(job(number), '<call>')
        time.passes(1)
    stats.finished(job(3), True, 't')
    for window in ({}, {'since': START}):
        assert counts(stats, queue='', **window) == [3, 0, 1, 0]
        assert counts(stats, agent='main', **window) == [3, 0, 0, 0]
        assert counts(stats, queue='', agent='other', **window) == [1, 0, 1, 0]
        assert counts(stats, queue='none', **window) == [0, 0, 0, 0]
    assert stats.getActiveJobIds() == [job(1), job(2), job(4)]
    assert stats.getActiveJobIds(queue='', agent='main') == [job(1), job(2)]
    assert stats.getActiveJobIds(queue='images') == [job(4)]


# Rotating out ------------------------------------------------------------------------------


def test_counts_of_the_whole_life_do_not_rotate_out(time):
    stats = Statistics(jobs_size=3, polls_size=2)
    runs(stats, time, 0, 100)
    for number in range(1, 20):
        runs(stats, time, number, 1)
    assert counts(stats) == [20, 20, 0, 0]
    shown = stats.getStatistics()
    assert shown['longest successful'] == job(0)
    assert stats.getJobInfo(0)['result'] == 'result'
    assert shown['statistics start'] == START
    with pytest.raises(ValueError, match='newest 3'):
        stats.getJobInfo(2)
    assert len(stats.jobs) == 3


def test_windows_rotate_out(time):
    stats = Statistics(jobs_size=3, polls_size=5)
    for number in range(20):
        runs(stats, time, number, 1)
    assert counts(stats, since=START) == [5, 3, 0, 2]
    shown = stats.getStatistics(since=START)
    assert shown['statistics start'] == START + datetime.timedelta(seconds=15)
    assert shown['statistics end'] == START + datetime.timedelta(seconds=19)


def test_active_jobs_never_rotate_out(time):
    stats = Statistics(jobs_size=3)
    claims(stats, *range(100, 110))
    for number in range(100, 110):
        stats.started(job(number), '<call>')
    for number in range(5):
        runs(stats, time, number, 1)
    assert len(stats.getActiveJobIds()) == 10
    assert stats.getJobInfo(100)['call'] == '<call>'
    assert len(stats.jobs) == 10


def test_jobs_that_wait_without_a_thread_may_rotate_out(time):
    stats = Statistics(jobs_size=3)
    for number in range(5):
        claims(stats, number)
        stats.started(job(number), '<call>')
        stats.waits(job(number))
    assert len(stats.jobs) == 3
    assert counts(stats) == [5, 0, 0, 2]
    stats.finished(job(0), False, 'nobody knows')
    stats.finished(job(4), False, 'known')
    assert counts(stats) == [5, 1, 0, 2]


def test_agents_without_end_are_counted_together(monkeypatch, time):
    monkeypatch.setattr(statistics, 'LIVES', 3)
    stats = Statistics(jobs_size=2)
    for number in range(10):
        stats.claimed(job(number), '', f'agent {number}')
        stats.finished(job(number), False, 'r')
    assert counts(stats) == [10, 10, 0, 0]
    assert counts(stats, agent='agent 0') == [1, 1, 0, 0]
    assert len(stats.jobs._lives) == 4


def test_clear_begins_anew(time):
    stats = Statistics()
    runs(stats, time, 1, 1)
    stats.clear()
    assert counts(stats) == [0, 0, 0, 0]
    assert list(stats.iterPolls()) == []
    time.passes(5)
    runs(stats, time, 2, 1)
    assert stats.getStatistics()['statistics start'] == START + datetime.timedelta(seconds=6)


# Polls -------------------------------------------------------------------------------------


@pytest.fixture
def polled(time):
    """Statistics with a poll at START, and 5, 10 and 15 seconds later."""
    stats = Statistics()
    for number in range(4):
        claims(stats, number)
        time.passes(5)
    return stats


def at(seconds):
    return START + datetime.timedelta(seconds=seconds)


def times(polls):
    return [(poll.utc_timestamp - START).seconds for poll in polls]


def test_polls_are_given_newest_first(polled):
    assert times(polled.iterPolls()) == [15, 10, 5, 0]
    assert times(polled.polls) == [15, 10, 5, 0]
    assert times([polled.getPollInfo(), polled.polls.first()]) == [15, 15]
    assert polled.getPollInfo() == found(3)
    assert times(polled.iterPolls(count=2)) == [15, 10]
    keys = [poll.key for poll in polled.iterPolls()]
    assert keys == sorted(keys, reverse=True)


@pytest.mark.parametrize(
    'window, expected',
    [
        ({'at': at(10)}, [10, 5, 0]),
        ({'at': at(12)}, [10, 5, 0]),
        ({'before': at(10)}, [5, 0]),
        ({'since': at(5)}, [15, 10, 5]),
        ({'since': at(6), 'before': at(15)}, [10]),
        ({'at': at(-1)}, []),
        ({'at': at(99), 'count': 0}, []),
    ],
)
def test_polls_of_a_window(polled, window, expected):
    assert times(polled.iterPolls(**window)) == expected
    keys = {at(second): poll.key for poll in polled.iterPolls() for second in times([poll])}
    by_key = {name: keys.get(value, value) for name, value in window.items()}
    assert times(polled.iterPolls(**by_key)) == expected


def test_polls_may_be_asked_for_in_any_zone(polled):
    moment = at(10).replace(tzinfo=datetime.timezone(datetime.timedelta(hours=1)))
    moment += datetime.timedelta(hours=1)
    assert times([polled.getPollInfo(at=moment)]) == [10]


def test_statistics_of_a_window(polled):
    shown = polled.getStatistics(at=at(12), since=at(5))
    assert (shown['started'], shown['statistics start'], shown['statistics end']) == (
        2,
        at(5),
        at(10),
    )
    assert (shown['longest active'], shown['shortest active']) == (job(1), job(2))


def test_at_and_before_together_are_refused(polled):
    both = {'at': at(5), 'before': at(5)}
    for ask in (polled.getPollInfo, polled.iterPolls, polled.getStatistics):
        with pytest.raises(ValueError, match='not both'):
            ask(**both)


def test_polls_that_are_not_there(polled):
    with pytest.raises(ValueError, match='no poll'):
        polled.getPollInfo(before=START)
    with pytest.raises(ValueError, match='negative'):
        polled.iterPolls(count=-1)
    with pytest.raises(TypeError):
        polled.getPollInfo(at='yesterday')


def test_queue_of_another_process(time):
    stats = Statistics()
    poll = stats.polled({'': None, 'images': {}})
    assert poll[''] is None
    assert counts(stats, since=START) == [0, 0, 0, 0]


def test_keys_are_unique_while_time_stands_still(time):
    log = PollsLog()
    keys = [log.begin().key for _ in range(5)]
    assert keys == sorted(set(keys))
    time.passes(-60)
    assert log.begin().key > keys[-1]


def test_polls_that_end_out_of_order_are_kept_in_order(time):
    log = PollsLog(size=2)
    first, second, third = log.begin(), log.begin(), log.begin()
    for poll in (second, third, first):
        log.add(poll)
    assert list(map(id, log)) == list(map(id, (third, second)))


# Percentiles -------------------------------------------------------------------------------


def test_summary_of_waits_and_runs(time):
    stats = Statistics()
    for number in range(1, 21):
        due = clock.micros()
        time.passes(number)
        stats.claimed(job(number), '', 'main')
        stats.started(job(number), '<call>', due=due)
        time.passes(0.5)
        stats.finished(job(number), False, 'r')
    stats.claimed(job(99), '', 'main')
    stats.started(job(99), '<call>', due=clock.micros() + 10**9)
    stats.conflicted(job(99))
    stats.conflicted(job(99))
    stats.rescheduled(job(99))
    assert stats.summary() == {
        'count': 20,
        'wait p50': 10,
        'wait p95': 19,
        'run p50': 0.5,
        'run p95': 0.5,
        'conflicts': 2,
        'retries': 1,
    }
    recent = stats.summary(window=30)
    assert (recent['count'], recent['wait p50']) == (2, 19)
    assert stats.summary(agent='other')['wait p50'] is None


def test_percentiles_are_values_that_occurred():
    assert percentile([], 95) is None
    assert percentile([3_000_000], 50) == percentile([3_000_000], 95) == 3
    assert percentile([1_000_000, 2_000_000], 50) == 1
    assert percentile([1_000_000, 2_000_000], 95) == 2


# Threads -----------------------------------------------------------------------------------


def test_many_threads_lose_no_count():
    stats = Statistics(jobs_size=10)

    def work(worker):
        for number in range(200):
            job_id = (worker * 1000 + number, 'unnamed')
            stats.claimed(job_id, '', f'agent {worker}')
            stats.started(job_id, '<call>')
            stats.finished(job_id, number % 2, 'r')
            stats.getStatistics(), stats.summary(), stats.getActiveJobIds()

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts(stats) == [800, 400, 400, 0]
    assert len(stats.jobs) == 10


class Story(RuleBasedStateMachine):
    """Whatever happens to jobs, the books balance and the log stays within its bounds."""

    numbers = st.integers(0, 5)

    def __init__(self):
        super().__init__()
        self.time = HandTurned()
        clock.use(self.time)
        self.stats = Statistics(jobs_size=4, polls_size=3)
        self.claims = 0
        self.ends = {'successful': 0, 'failed': 0}
        self.open = set()

    @rule(number=numbers)
    def claimed(self, number):
        claims(self.stats, number)
        self.claims += 1
        self.open.add(number)

    @rule(number=numbers)
    def started(self, number):
        self.stats.started(job(number), '<call>')

    @precondition(lambda self: self.open)
    @rule(data=st.data(), failed=st.booleans())
    def finished(self, data, failed):
        number = data.draw(st.sampled_from(sorted(self.open)))
        self.open.discard(number)
        self.stats.finished(job(number), failed, 'r')
        self.ends['failed' if failed else 'successful'] += 1

    @rule(number=numbers, how=st.sampled_from(['rescheduled', 'reassigned']))
    def in_vain(self, number, how):
        getattr(self.stats, how)(job(number))
        self.open.discard(number)

    @rule(seconds=st.integers(0, 9))
    def time_passes(self, seconds):
        self.time.passes(seconds)

    @invariant()
    def books_balance(self):
        shown = self.stats.getStatistics()
        assert shown['started'] == self.claims
        assert {key: shown[key] for key in self.ends} == self.ends
        assert shown['started'] == sum(
            [shown['successful'], shown['failed'], shown['unknown'], len(self.open)]
        )
        window = self.stats.getStatistics(since=START)
        assert window['started'] <= 3
        assert window['successful'] + window['failed'] + window['unknown'] <= window['started']

    @invariant()
    def log_is_bounded(self):
        assert len(self.stats.jobs) <= max(4, len(self.open))
        assert len(self.stats.polls) <= 3
        for number in self.open:
            assert self.stats.getJobInfo(number)['completed'] is None

    def teardown(self):
        clock.use()


TestStory = Story.TestCase
TestStory.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
