"""OpenTelemetry: the trace in which a job was put goes on in the job."""

import pytest
import transaction

from zodbjobs import Job, RetryPolicy, local

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


# With the SDK, which exports what an application would see.


@pytest.fixture
def exported(monkeypatch):
    """exported() -> the spans that have ended so far, a tuple, as an exporter gets them."""
    pytest.importorskip('opentelemetry.sdk')
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # `set_tracer_provider` may be called once in a process, which other tests share.
    monkeypatch.setattr(trace, '_TRACER_PROVIDER', provider)
    return exporter.get_finished_spans


def work():
    with trace.get_tracer('application').start_as_current_span('part of the work'):
        return 'done'


async def work_later():
    with trace.get_tracer('application').start_as_current_span('part of the work'):
        return 'done'


def raise_once():
    if local.getJob().attempts == 1:
        raise OSError('no luck')
    return 'luck'


def put_in_request(layer, *calls, **options):
    with trace.get_tracer('application').start_as_current_span('request'):
        jobs = [layer.queue.put(Job(call), **options) for call in calls]
        transaction.commit()
    return jobs


def parent_of(span):
    return span.parent.span_id


def test_a_job_is_a_span_below_the_request_and_its_parts_are_below_it(layer, exported):
    (job,) = put_in_request(layer, work)
    callback = job.addCallback(Job(str))
    transaction.commit()
    layer.reactor.wait_for(job, callback)
    transaction.begin()
    spans = {span.name: span for span in exported()}
    request, part = spans['request'], spans['part of the work']
    attempt, told = spans[f'job {job.call_name}'], spans[f'job {callback.call_name}']
    assert {span.context.trace_id for span in spans.values()} == {request.context.trace_id}
    assert parent_of(attempt) == parent_of(told) == request.context.span_id
    assert parent_of(part) == attempt.context.span_id
    assert attempt.kind == trace.SpanKind.CONSUMER and attempt.status.is_unset
    assert dict(attempt.attributes) == {
        'messaging.system': 'zodbjobs',
        'messaging.destination.name': '',
        'zodbjobs.job': job.oid,
        'zodbjobs.attempt': 1,
    }


def test_each_attempt_is_a_span_and_an_error_is_in_it(layer, exported):
    (job,) = put_in_request(layer, raise_once, retry_policy_factory=RetryPolicy(1, 0))
    layer.reactor.wait_for(job)
    transaction.begin()
    assert job.result == 'luck'
    found = [span for span in exported() if span.name.startswith('job ')]
    assert [span.attributes['zodbjobs.attempt'] for span in found] == [1, 2]
    first, second = found
    assert first.status.status_code == trace.StatusCode.ERROR
    (event,) = first.events
    assert event.attributes['exception.message'] == 'no luck'
    assert second.status.is_unset and not second.events
    assert first.context.trace_id == second.context.trace_id


def test_a_job_put_outside_of_spans_begins_a_trace(layer, exported):
    job = layer.queue.put(Job(work))
    transaction.commit()
    layer.reactor.wait_for(job)
    transaction.begin()
    spans = {span.name: span for span in exported()}
    assert spans[f'job {job.call_name}'].parent is None
    assert parent_of(spans['part of the work']) == spans[f'job {job.call_name}'].context.span_id


def test_what_a_coroutine_traces_is_below_its_job_which_goes_on_beside_it(layer, exported):
    (job,) = put_in_request(layer, work_later)
    layer.reactor.wait_for(job)
    spans = {span.name: span for span in exported()}
    called, part = spans[f'job {job.call_name}'], spans['part of the work']
    assert parent_of(part) == called.context.span_id
    assert parent_of(spans[f'job {job.call_name} (resumed)']) == parent_of(called)
