"""OpenTelemetry: the trace in which a job was put goes on in the job."""

import pytest
import transaction

from zodbjobs import Job

trace = pytest.importorskip('opentelemetry.trace')
context = pytest.importorskip('opentelemetry.context')

TRACE = 0x0AF7651916CD43DD8448EB211C80319C
SPAN = 0xB7AD6B7169203331


@pytest.fixture
def traced():
    """A span of the application is current in this thread."""
    found = trace.SpanContext(TRACE, SPAN, True, trace.TraceFlags(1))
    token = context.attach(trace.set_span_in_context(trace.NonRecordingSpan(found)))
    yield
    context.detach(token)


def trace_id(result=None):
    return trace.get_current_span().get_span_context().trace_id


def test_the_trace_goes_on_in_the_job_and_its_callbacks(layer, traced):
    job = layer.queue.put(Job(trace_id))
    callback = job.addCallback(Job(trace_id))
    transaction.commit()
    layer.reactor.wait_for(job, callback)
    transaction.begin()
    assert job.result == TRACE and callback.result == TRACE


def test_an_aborted_put_leaves_no_trace(layer, traced):
    job = Job(trace_id)
    layer.queue.put(job)
    assert job._trace == f'00-{TRACE:032x}-{SPAN:016x}-01'
    transaction.abort()
    assert len(layer.queue) == 0


def test_without_a_span_nothing_is_stored(layer):
    job = layer.queue.put(Job(trace_id))
    transaction.commit()
    layer.reactor.wait_for(job)
    transaction.begin()
    assert job._trace is None and job.result == 0
