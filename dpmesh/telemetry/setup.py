"""Setup: exporters from environment variables, for programs that don't set up OpenTelemetry themselves."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from dpmesh import extras
from dpmesh.telemetry.meters import is_api_only

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

log = logging.getLogger("dpmesh")

# How long closing a mesh waits at most for a collector that does not answer.
_FLUSH_SECONDS = 5.0

_lock = threading.Lock()
_flush: Callable[[], None] | None = None


def configure_from_environment() -> Callable[[], None] | None:
    """Sets up global providers that export to the collector at OTEL_EXPORTER_OTLP_ENDPOINT, over gRPC.

    Does nothing if that variable is not set, or if the program has set providers. Honours the other OTEL_ variables:
    OTEL_SERVICE_NAME ("dpmesh" if unset), OTEL_TRACES_EXPORTER=none, OTEL_METRICS_EXPORTER=none (for Jaeger, which
    takes no metrics), OTEL_SDK_DISABLED, and those of the SDK and the exporter. Exception texts do not leave the
    process, exemplars are off, and trace context goes on the wire without baggage unless OTEL_PROPAGATORS says so.

    Returns:
        A function that sends all that was recorded so far, or None if nothing was set up. Call it before the program
        ends; any thread may call it, any number of times, and it takes at most 5 s.
    """
    global _flush
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip() or _says("OTEL_SDK_DISABLED", "true"):
        return None
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc").strip()
    if protocol != "grpc":
        log.warning(
            "nothing is exported: OTEL_EXPORTER_OTLP_PROTOCOL is %r, and dpmesh speaks only 'grpc'; "
            "for others, set OpenTelemetry's global providers up before dpmesh.open",
            protocol,
        )
        return None
    with _lock:
        if _flush is None:
            try:
                _flush = _configure()
            except ImportError:
                log.warning(
                    "nothing is exported: OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry's SDK and its "
                    "OTLP exporter are not installed; %s",
                    extras.install("otel"),
                )
        return _flush


def _configure() -> Callable[[], None] | None:
    from opentelemetry.sdk.resources import Resource

    resource = Resource.create()
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "dpmesh"}))
    flushes = []
    if not _says("OTEL_TRACES_EXPORTER", "none"):
        flushes += _traces(resource)
    if not _says("OTEL_METRICS_EXPORTER", "none"):
        flushes += _metrics(resource)
    if not flushes:
        return None
    return lambda: _at_once(flushes)


def _traces(resource: Resource) -> list[Callable[[], object]]:
    from opentelemetry import propagate, trace
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    from dpmesh.telemetry.scrub import ScrubbingExporter

    if not is_api_only(trace.get_tracer_provider()):
        return []
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(ScrubbingExporter(OTLPSpanExporter())))
    trace.set_tracer_provider(provider)
    if "OTEL_PROPAGATORS" not in os.environ:
        propagate.set_global_textmap(TraceContextTextMapPropagator())
    return [provider.force_flush]


def _metrics(resource: Resource) -> list[Callable[[], object]]:
    from opentelemetry import metrics
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    if not is_api_only(metrics.get_meter_provider()):
        return []
    reader = PeriodicExportingMetricReader(OTLPMetricExporter())
    provider = MeterProvider(
        metric_readers=[reader],
        resource=resource,
        exemplar_filter=AlwaysOffExemplarFilter(),
    )
    metrics.set_meter_provider(provider)
    return [provider.force_flush]


def _at_once(flushes: list[Callable[[], object]]) -> None:
    """Runs all in parallel, and waits for them no longer than _FLUSH_SECONDS."""
    end = time.monotonic() + _FLUSH_SECONDS
    threads = [threading.Thread(target=_quietly, args=(flush,), daemon=True) for flush in flushes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))


def _quietly(flush: Callable[[], object]) -> None:
    try:
        flush()
    except Exception as error:  # a collector that is away must not break the program's end
        log.warning("telemetry could not be sent (%s)", type(error).__name__)


def _says(variable: str, value: str) -> bool:
    return os.environ.get(variable, "").strip().lower() == value
