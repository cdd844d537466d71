"""Exception texts quote values; what leaves the process does not have them."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode

from dpmesh.telemetry.scrub import ScrubbingExporter, scrubbed

SECRET = "temperature was 41.77777777"


@pytest.fixture
def kept() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(kept):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(ScrubbingExporter(kept)))
    return provider.get_tracer("rpc")


def test_the_text_of_an_exception_ends_here(kept, tracer):
    with pytest.raises(ValueError, match="41.77777777"), tracer.start_as_current_span("rpc"):
        raise ValueError(SECRET)
    (span,) = kept.get_finished_spans()
    assert "41.77777777" not in span.to_json()
    (event,) = span.events
    assert event.name == "exception"
    assert event.attributes["exception.type"] == "ValueError"
    assert set(event.attributes) == {"exception.type", "exception.escaped"}
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description is None


def test_the_rest_of_the_span_stays(kept, tracer):
    link = Link(SpanContext(3, 4, is_remote=False))
    with tracer.start_as_current_span("parent") as parent:
        span = tracer.start_span("rpc", kind=SpanKind.SERVER, attributes={"a": 1}, links=[link], start_time=5)
        span.add_event("event", {"b": 2}, timestamp=6)
        span.record_exception(ValueError(SECRET), timestamp=7)
        span.end(end_time=8)
    done = kept.get_finished_spans()[0]
    original = span._readable_span()
    for name in ("name", "context", "kind", "attributes", "links", "start_time", "end_time", "resource"):
        assert getattr(done, name) == getattr(original, name), name
    assert done.parent.span_id == parent.get_span_context().span_id
    assert done.instrumentation_scope.name == "rpc"
    assert [(event.name, event.timestamp) for event in done.events] == [("event", 6), ("exception", 7)]
    assert dict(done.events[0].attributes) == {"b": 2}


def test_other_spans_are_not_copied(tracer):
    span = tracer.start_span("rpc")
    span.set_status(StatusCode.ERROR)
    span.add_event("event")
    readable = span._readable_span()
    assert scrubbed(readable) is readable


def test_the_exporter_behind_it_is_used():
    class Exporter(InMemorySpanExporter):
        ended = False

        def export(self, spans):
            return SpanExportResult.FAILURE

        def shutdown(self):
            self.ended = True

        def force_flush(self, timeout_millis=30_000):
            return timeout_millis == 5

    behind = Exporter()
    exporter = ScrubbingExporter(behind)
    assert exporter.export([]) is SpanExportResult.FAILURE
    assert exporter.force_flush(5) is True
    exporter.shutdown()
    assert behind.ended
