"""setUp and tearDown of a job, when what lies between them goes wrong."""

import pytest
import transaction

from zodbjobs import Job
from zodbjobs.runtime.hook import Hook

said = []


def nothing():
    return None


class Careful(Job):
    """Leaves something in the thread, which has to go."""

    def setUp(self):
        said.append('up')
        return 'info'

    def tearDown(self, setup_info):
        said.append(setup_info)


class Away(transaction.TransactionManager):
    """A transaction manager whose storage is away."""

    def begin(self):
        raise OSError('no storage')

    def abort(self):
        said.append('aborted')


@pytest.mark.parametrize('manager', [transaction.TransactionManager, Away])
def test_the_thread_is_cleared_storage_or_no_storage(manager):
    said.clear()
    hook = Hook(Careful(nothing))
    hook.set_up()
    hook.tear_down(manager())
    assert said[:2] == ['up', 'info']
    assert said[2:] == (['aborted'] if manager is Away else [])


def test_a_job_out_of_reach_is_not_loaded_for_it(tmp_path):
    import ZODB

    db = ZODB.DB(str(tmp_path / 'Data.fs'))
    with db.transaction() as connection:
        connection.root()['job'] = Careful(nothing)
    connection = db.open(transaction.TransactionManager())
    job = connection.root()['job']
    said.clear()
    hook = Hook(job)
    hook.set_up()
    job._p_deactivate()
    connection.close()  # from here on its record cannot be read
    hook.tear_down(transaction.TransactionManager())
    assert said == ['up', 'info']
    db.close()
