"""OpenTelemetry: the trace in which a job was put goes on in the job.

Whoever puts a job inside a span leaves the span's name with the job (its W3C
``traceparent``), in the same transaction.  Its worker makes a span of each
attempt, a child of that, so what the job does shows in the same trace.

Nothing is imported where the application does not use OpenTelemetry itself, and
without the extra ``otel`` nothing happens.  Runs in the putter's and in the
workers' threads.
"""

import contextlib
import logging
import sys

log = logging.getLogger('zodbjobs.events')

#: The name of our tracer.
NAME = 'zodbjobs'

_UNUSED = contextlib.nullcontext()


def carry(job):
    """Leave the present trace with a job that is being put."""
    if 'opentelemetry.trace' not in sys.modules or job._trace is not None:
        return
    found = {}
    try:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(found)
    except Exception:
        log.exception('the trace could not be left with %r', job)
    if 'traceparent' in found:
        job._trace = found['traceparent']


def span(job, resumed=False):
    """A context manager: the work of a job, in the trace in which it was put.

    `resumed`: it has the value now for which it waited.
    """
    found = job._trace or getattr(job._parent, '_trace', None)  # of a callback: that of its job
    if found is None and 'opentelemetry.trace' not in sys.modules:
        return _UNUSED
    try:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError:
        return _UNUSED  # it was put by a process that has the extra
    carrier = {} if found is None else {'traceparent': found}
    parent = TraceContextTextMapPropagator().extract(carrier)
    queue = job.queue
    return trace.get_tracer(NAME).start_as_current_span(
        f'job {job.call_name}' + (' (resumed)' if resumed else ''),
        context=parent,
        kind=trace.SpanKind.CONSUMER,
        attributes={
            'messaging.system': NAME,
            'messaging.destination.name': '' if queue is None else queue.name or '',
            'zodbjobs.job': job.oid,
            'zodbjobs.attempt': job.attempts,
        },
    )
