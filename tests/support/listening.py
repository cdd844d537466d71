"""Providers of OpenTelemetry's SDK that keep what they get, in place of the global ones."""

from __future__ import annotations

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


class Listening:
    """What the global providers are, and what they got. Global ones can be set once a process; these any time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.spans = InMemorySpanExporter()
        self.tracers: object = trace.ProxyTracerProvider()
        self.meters: object = metrics.NoOpMeterProvider()
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: self.tracers)
        monkeypatch.setattr(metrics, "get_meter_provider", lambda: self.meters)

    def trace(self, **options) -> TracerProvider:
        self.tracers = TracerProvider(shutdown_on_exit=False, **options)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        return self.tracers

    def meter(self, **options) -> InMemoryMetricReader:
        reader = InMemoryMetricReader(**options.pop("reader", {}))
        self.meters = MeterProvider([reader], shutdown_on_exit=False, **options)
        return reader
