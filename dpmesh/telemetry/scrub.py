"""Scrub: an exporter that removes exception texts. An exception of a handler may quote the value that caused it."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Status

# The attributes of an exception event that are kept (OpenTelemetry's names). Its message and stack trace are not.
_KEPT = ("exception.type", "exception.escaped")


class ScrubbingExporter(SpanExporter):
    """Exports spans without the texts of exceptions and statuses, no matter what recorded them."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Exports spans; those with such texts as scrubbed copies."""
        return self._exporter.export([scrubbed(span) for span in spans])

    def shutdown(self) -> None:
        """Shuts the exporter down."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Sends all spans that the exporter still holds."""
        return self._exporter.force_flush(timeout_millis)


def scrubbed(span: ReadableSpan) -> ReadableSpan:
    """A span without the texts of exceptions and of its status."""
    if not span.status.description and not any(event.name == "exception" for event in span.events):
        return span
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=span.attributes,
        events=[_scrubbed(event) for event in span.events],
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _scrubbed(event: Event) -> Event:
    if event.name != "exception":
        return event
    kept = {name: value for name, value in (event.attributes or {}).items() if name in _KEPT}
    return Event(event.name, kept, event.timestamp)
