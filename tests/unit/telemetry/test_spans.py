"""Spans that are written whole are what the SDK's own way gives; where they could differ, it is the SDK's own way."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import RandomIdGenerator, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, SamplingResult

from dpmesh.telemetry import spans

# What the fast way reads of the SDK is there since 1.44. Before, all spans are made in the SDK's own way.
fast = pytest.mark.skipif(
    not hasattr(trace.TraceFlags, "RANDOM_TRACE_ID"), reason="this version of the SDK has no fast way"
)

ATTRIBUTES = {"dpmesh.epsilon": 2.0, "dpmesh.mechanisms": ("hybrid", "duchi"), "dpmesh.fields.count": 8}


class Counting(RandomIdGenerator):
    """Ids that two tracers agree on."""

    def __init__(self):
        self.last = 0

    def generate_span_id(self):
        self.last += 1
        return self.last

    generate_trace_id = generate_span_id


class Adding(Sampler):
    """A sampler that adds to the attributes and to the trace state."""

    def __init__(self, decision):
        self.decision = decision

    def should_sample(self, parent_context, trace_id, name, kind=None, attributes=None, links=None, **_):
        state = trace.TraceState([("vendor", "1")])
        return SamplingResult(self.decision, {**attributes, "added": True}, state)

    def get_description(self):
        return "adding"


def made(write_with, *, parent=None, processors=(), refused=False, **options):
    """What the exporter got of one span, as JSON, and the provider."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False, id_generator=Counting(), **options)
    for processor in (*processors, SimpleSpanProcessor(exporter)):
        provider.add_span_processor(processor)
    write = write_with(provider.get_tracer("dpmesh", "1"))
    current = nullcontext() if parent is None else trace.use_span(trace.NonRecordingSpan(parent))
    with current:
        write(ATTRIBUTES, 1_000, 2_000, refused)
    return [json.loads(span.to_json()) for span in exporter.get_finished_spans()], write


def own_way(tracer):
    def write(attributes, start, end, refused):
        span = tracer.start_span("dpmesh.release", attributes=attributes, start_time=start)
        if refused:
            span.set_status(trace.StatusCode.ERROR, "dpmesh refused to release the message")
        span.end(end)

    return write


def parent(flags):
    return trace.SpanContext(7, 9, is_remote=True, trace_flags=trace.TraceFlags(flags))


@pytest.mark.parametrize(
    "given", [None, parent(1), parent(0), parent(3), parent(2), trace.INVALID_SPAN_CONTEXT]
)
@pytest.mark.parametrize(
    "sampler",
    [None, ALWAYS_OFF, *map(Adding, (Decision.RECORD_AND_SAMPLE, Decision.RECORD_ONLY, Decision.DROP))],
)
@pytest.mark.parametrize("refused", [False, True])
@fast
def test_it_is_what_the_sdk_makes(given, sampler, refused):
    found, write = made(spans.writer, parent=given, sampler=sampler, refused=refused)
    expected, _ = made(own_way, parent=given, sampler=sampler, refused=refused)
    assert found == expected
    assert write.__qualname__.startswith("_direct"), "the fast way was not taken"


class Tenant(SpanProcessor):
    def on_start(self, span, parent_context=None):
        span.set_attribute("tenant", "acme")


class Last(SpanProcessor):
    def _on_ending(self, span):
        span._attributes = {**span.attributes, "last": True}


@pytest.mark.parametrize("processor", [Tenant, pytest.param(Last, marks=fast)])
@pytest.mark.parametrize("late", [False, True])
def test_processors_that_change_spans_still_do(processor, late):
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    write = spans.writer(provider.get_tracer("dpmesh"))
    if late:
        write(ATTRIBUTES, 1, 2, False)
    provider.add_span_processor(processor())
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    write(ATTRIBUTES, 1, 2, False)
    (span,) = exporter.get_finished_spans()
    assert len(span.attributes) == len(ATTRIBUTES) + 1


@pytest.mark.parametrize("limits", [{"max_span_attributes": 2}, {"max_span_attribute_length": 3}])
def test_limits_hold(limits):
    for refused in (False, True):
        found, _ = made(spans.writer, span_limits=SpanLimits(**limits), refused=refused)
        expected, _ = made(own_way, span_limits=SpanLimits(**limits), refused=refused)
        assert found == expected
    assert found[0]["attributes"] != {**ATTRIBUTES, "dpmesh.mechanisms": ["hybrid", "duchi"]}


def test_another_tracer_does_it_in_its_own_way():
    class Other(trace.NoOpTracer):
        started = 0

        def start_span(self, *args, **kwargs):
            Other.started += 1
            return trace.INVALID_SPAN

    spans.writer(Other())(ATTRIBUTES, 1, 2, False)
    assert Other.started == 1


@fast
def test_a_batch_processor_is_no_obstacle():
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("dpmesh")
    tracer.start_span = None  # the usual way would fail
    spans.writer(tracer)(ATTRIBUTES, 1, 2, False)
    provider.force_flush()
    assert len(exporter.get_finished_spans()) == 1
    provider.shutdown()
