"""Live annotations in virtual time: no instant passes before a reader had its look."""

import pytest
import transaction

from zodbjobs import local, testing


@pytest.fixture
def layer():
    layer = testing.setUp()
    yield layer
    testing.tearDown()


def wait_for_word():
    local.setLiveAnnotation('ready', True)
    return local.getLiveAnnotation('word', timeout=30, poll=1)


def tell():
    local.progress(1, total=2)


@pytest.mark.parametrize('time', range(5))
def test_a_reader_looks_as_often_as_it_asked_to(layer, time):
    job = layer.queue.put(wait_for_word)
    transaction.commit()
    testing.wait_for_annotation(job, 'ready')
    job.annotations['word'] = 'go'
    transaction.commit()
    layer.reactor.wait_for(job, attempts=2)
    assert job.result == 'go'


@pytest.mark.parametrize('time', range(5))
def test_what_a_finished_job_told_is_there(layer, time):
    job = layer.queue.put(tell)
    transaction.commit()
    layer.reactor.wait_for(job)
    assert job.progress == {'done': 1, 'total': 2, 'message': None}
