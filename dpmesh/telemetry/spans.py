"""Spans of releases that have ended: written at once, in a third of the time of starting and ending a span."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dpmesh.telemetry import names

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import Tracer as SdkTracer
    from opentelemetry.trace import Status, Tracer

# Records a span that has ended, from its attributes, begin and end in ns since 1970, and whether the release was
# refused.
Write = Callable[[Mapping[str, Any], int, int, bool], None]

# More than any span of a release has.
_ATTRIBUTES = 32


def writer(tracer: Tracer) -> Write:
    """Returns a function that records an ended span: a child of the current one, INTERNAL, without events or links.

    A refused release has an error status with a fixed text; other releases have no status.

    The SDK's own tracer makes a span that can be changed, checks each of its attributes, and copies it when it ends. A
    span that has ended needs none of that, so it goes directly to the processors. The tracer is used where the result
    could differ: with a processor that changes spans as they start, with limits on attributes, with the SDK's metrics
    of itself, and with a tracer or a version of the SDK that is not known here.
    """

    def usual(attributes: Mapping[str, Any], start: int, end: int, refused: bool) -> None:
        # With all attributes at the start, the SDK checks them in one call. The kind is INTERNAL by default.
        span = tracer.start_span(names.RELEASE, attributes=attributes, start_time=start)
        if refused:
            span.set_status(refused_status())
        span.end(end)

    try:
        return _direct(tracer, usual)
    except (ImportError, AttributeError):
        return usual


def _direct(tracer: Any, usual: Write) -> Write:
    """Returns a function that writes directly to the processors, or `usual` where the result could differ.

    Raises:
        ImportError: There is no SDK.
        AttributeError: The tracer or the version of the SDK is not known here.
    """
    from opentelemetry.sdk.trace import ReadableSpan, Tracer
    from opentelemetry.trace import SpanContext, SpanKind, Status, TraceFlags, get_current_span

    if type(tracer) is not Tracer or _limited(tracer):
        return usual
    scope, enabled = tracer._instrumentation_scope, tracer._is_enabled
    # Adding a processor replaces this tuple.
    known, plain = tracer.span_processor._span_processors, _plain(tracer)
    ids, random = tracer.id_generator, TraceFlags.RANDOM_TRACE_ID
    unset, error = Status(), refused_status()
    is_random, internal = ids.is_trace_id_random, SpanKind.INTERNAL

    def write(attributes: Mapping[str, Any], start: int, end: int, refused: bool) -> None:
        nonlocal known, plain
        if tracer.span_processor._span_processors is not known:
            known, plain = tracer.span_processor._span_processors, _plain(tracer)
        if not (plain and enabled()):
            return usual(attributes, start, end, refused)
        parent: SpanContext | None = get_current_span().get_span_context()
        if parent is not None and parent.is_valid:
            trace_id, flags = parent.trace_id, parent.trace_flags & random
        else:
            parent, trace_id = None, ids.generate_trace_id()
            flags = random if is_random() else 0
        sampled = tracer.sampler.should_sample(None, trace_id, names.RELEASE, internal, attributes, ())
        if not sampled.decision.is_recording():  # type: ignore[no-untyped-call]
            return None
        if sampled.decision.is_sampled():  # type: ignore[no-untyped-call]
            flags |= TraceFlags.SAMPLED
        own = SpanContext(trace_id, ids.generate_span_id(), False, TraceFlags(flags), sampled.trace_state)
        span = ReadableSpan(
            name=names.RELEASE,
            context=own,
            parent=parent,
            resource=tracer.resource,
            attributes=sampled.attributes,
            kind=internal,
            status=error if refused else unset,
            start_time=start,
            end_time=end,
            instrumentation_scope=scope,
        )
        return tracer.span_processor.on_end(span)

    return write


def _limited(tracer: SdkTracer) -> bool:
    """Whether the SDK would count its spans, or cut their attributes."""
    limits = tracer._span_limits
    return (
        bool(os.environ.get("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED"))
        or limits.max_span_attribute_length is not None
        or (limits.max_span_attributes or _ATTRIBUTES) < _ATTRIBUTES
    )


def refused_status() -> Status:
    """The error status of a refused release."""
    from opentelemetry.trace import Status, StatusCode

    return Status(StatusCode.ERROR, names.REFUSED_STATUS)


def _plain(tracer: SdkTracer) -> bool:
    """Whether all processors ignore a span until it has ended."""
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

    kinds = (SpanProcessor, BatchSpanProcessor, SimpleSpanProcessor)
    idle = {(kind.on_start, kind._on_ending) for kind in kinds}
    processors = tracer.span_processor._span_processors
    return all((type(entry).on_start, type(entry)._on_ending) in idle for entry in processors)
