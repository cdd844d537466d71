"""Records the demo's spans: keeps a few to show them, and sends all to a collector if there is one."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

# Spans that may wait for the collector; the whole month has fewer.
_QUEUE = 2**17


@dataclass(slots=True)
class Album:
    """The first trace of each decision, kept while its spans end.

    Attributes:
        traces: The spans of a trace by (full method, decision).
    """

    traces: dict[tuple[str, str], list[Any]] = field(default_factory=dict)
    _kept: dict[int, tuple[str, str]] = field(default_factory=dict)

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """Nothing yet: the decision is known at the end."""

    def _on_ending(self, span: Any) -> None:
        """Nothing: a hook of newer SDKs."""

    def on_end(self, span: Any) -> None:
        """Keeps a span of a trace that is to be shown. dpmesh's own span of a trace is the first to end."""
        trace_id = span.context.trace_id
        if span.name == "dpmesh.release":
            key = (str(span.attributes.get("rpc.method")), str(span.attributes.get("dpmesh.decision")))
            if key not in self.traces:
                self.traces[key] = []
                self._kept[trace_id] = key
        if trace_id in self._kept:
            self.traces[self._kept[trace_id]].append(span)

    def shutdown(self) -> None:
        """Nothing is held open."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing waits."""
        return True


@dataclass(frozen=True, slots=True)
class Tracing:
    """What is recorded, and how.

    Attributes:
        album: The traces to show, or None when the SDK is not installed.
        client: OpenTelemetry's own interceptors of channels, for the spans of the RPCs themselves.
        server: The same of servers.
        close: Sends what still waits to be sent.
    """

    album: Album | None = None
    client: Sequence[Any] = ()
    server: Sequence[Any] = ()
    close: Callable[[], object] = lambda: None


def start(endpoint: str | None) -> Tracing:
    """Sets OpenTelemetry's global tracer provider up.

    Args:
        endpoint: The collector's OTLP/gRPC address such as http://localhost:4317, or None.

    Raises:
        ImportError: There is an endpoint, but what exports to it is not installed.
    """
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
    except ImportError:
        if endpoint:
            raise
        return Tracing()
    album = Album()
    provider = TracerProvider(resource=Resource.create({"service.name": "dpmesh-fleet"}))
    provider.add_span_processor(album)  # type: ignore[arg-type]  # any object with these methods will do
    if endpoint:
        _export(provider, endpoint)
    trace.set_tracer_provider(provider)
    return Tracing(album, *_interceptors(), provider.shutdown)


def _export(provider: Any, endpoint: str) -> None:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https:"))
    batches = BatchSpanProcessor(exporter, max_queue_size=_QUEUE, max_export_batch_size=2048)
    provider.add_span_processor(batches)


def _interceptors() -> tuple[Sequence[Any], Sequence[Any]]:
    """OpenTelemetry's own for channels and for servers."""
    try:
        from opentelemetry.instrumentation import grpc as instrumented
    except ImportError:
        return (), ()
    otel: Any = instrumented
    return otel.aio_client_interceptors(), [otel.aio_server_interceptor()]


def answers(endpoint: str) -> bool:
    """Whether something listens at an endpoint."""
    parts = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}")
    try:
        with socket.create_connection((parts.hostname or "localhost", parts.port or 4317), timeout=2):
            return True
    except OSError:
        return False
