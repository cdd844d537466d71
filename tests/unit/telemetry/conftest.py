"""Providers of OpenTelemetry's SDK that keep what they get, in place of the global ones."""

from __future__ import annotations

import threading

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from dpmesh.telemetry import Telemetry


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


@pytest.fixture
def listening(monkeypatch) -> Listening:
    return Listening(monkeypatch)


def refreshed() -> Telemetry:
    telemetry = Telemetry()
    telemetry.refresh()
    return telemetry


def read(reader: InMemoryMetricReader) -> dict[str, dict[tuple[str, ...], object]]:
    """Collects: the points of each metric, by the values of the labels."""
    data = reader.get_metrics_data()
    found: dict[str, dict[tuple[str, ...], object]] = {}
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                points = found.setdefault(metric.name, {})
                for point in metric.data.data_points:
                    labels = tuple((point.attributes or {}).values())
                    assert labels not in points, "one series, twice"
                    points[labels] = point
    return found


def at_once(count: int, function) -> None:
    """Runs a function in several threads."""
    threads = [threading.Thread(target=function) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
