"""Workers die without a word, in the middle of jobs; each job's work is done, and done once."""

from tests.processes.work import count, count_slowly, die_once, hang_once, tell

#: From a death to the end of all work, where somebody else is there to do it.
SOON_SECONDS = 10

#: Some of them are running when their worker dies, some are claimed, and some wait.  What was
#: claimed ahead is not counted as interrupted: nobody knows whether it had begun.
SOME = [(count_slowly, 0.02)] * 20


def test_one_of_two_is_killed_and_the_other_does_its_work(on):
    site = on('zeo')
    site.put((hang_once, site.path('victim')), *SOME, *SOME)  # it gets a free thread
    site.worker()
    site.worker()
    site.who_is_in('victim').kill()
    site.until_done(seconds=SOON_SECONDS)
    assert site.counted() == {1: 41}
    others = site.jobs()
    victim = others.pop(0)
    assert victim.interruptions == 1
    survivor = next(worker for worker in site.workers if worker.process.poll() is None)
    assert victim.result == survivor.pid
    assert {job.result for job in others} <= {worker.pid for worker in site.workers}


def test_a_job_that_kills_its_process_is_run_again_elsewhere(on):
    site = on('zeo')
    site.put((die_once, site.path('bad')), *[(count,)] * 10)
    site.worker()
    site.worker()
    site.until_done()
    assert site.counted() == {1: 11}
    assert site.jobs()[0].interruptions == 1
    assert sum(worker.process.poll() is not None for worker in site.workers) == 1


def test_the_only_one_is_killed_and_the_next_one_does_its_work(on):
    """On PostgreSQL: the next one has the same name and place, and knows whose jobs those are."""
    site = on('postgres')
    site.put((hang_once, site.path('victim')), *SOME, *SOME)  # it gets a free thread
    site.worker()
    site.who_is_in('victim').kill()
    site.worker()
    site.until_done()
    assert site.counted() == {1: 41}
    assert site.jobs()[0].interruptions == 1
    assert len(site.client.queue.dispatchers) == 1


def test_the_only_one_on_a_file_is_killed_and_started_again(on):
    """Nobody else can look while it works: the file is its own."""
    site = on('file')
    site.put((hang_once, site.path('victim')), *SOME, *SOME)  # it gets a free thread
    site.put((tell, site.path('done')), after=site.jobs())
    site.leave()
    site.worker()
    site.who_is_in('victim').kill()
    again = site.worker()
    site.who_is_in('done')
    again.tell_to_stop()
    assert again.wait() == 0
    site.come_back()
    assert site.counted() == {1: 42}
    assert site.jobs()[0].interruptions == 1
    assert len(site.client.queue.dispatchers) == 1
