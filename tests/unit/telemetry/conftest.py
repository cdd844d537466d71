"""What tests of telemetry share."""

from __future__ import annotations

import threading

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from dpmesh.telemetry import Telemetry
from tests.support.listening import Listening


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
