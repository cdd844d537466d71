"""Metrics: four labels, sums that are right whoever counts and whoever reads, and nothing that points at a release."""

from __future__ import annotations

import gc
import os
import threading

import pytest
from opentelemetry.sdk.metrics import Counter, MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader

from dpmesh.telemetry import meters, names
from tests.support import children

from .conftest import at_once, read, refreshed

KEY = ("/demo.v1.Collector/Report", "discrete_laplace,randomized_response", "released", "device-daily")
SUMS = (names.RELEASES, names.PRIVACY_LOSS)


def sums(reader, key=KEY) -> tuple[float, float, int]:
    """Releases, epsilon and the number of durations under one set of labels."""
    found = read(reader)
    releases, loss = (found[name][key].value for name in SUMS)
    return releases, loss, found[names.RELEASE_DURATION][key].count


def test_what_is_exported(listening):
    reader = listening.meter()
    telemetry = refreshed()
    assert telemetry.metering
    telemetry.add(*KEY, 1, 2.0, 0.003)
    telemetry.ledger(0.001)
    telemetry.count("dpmesh.items.cut", "/a.B/C", 3)
    (resource,) = reader.get_metrics_data().resource_metrics
    (scope,) = resource.scope_metrics
    assert scope.scope.name == "dpmesh"
    found = {metric.name: metric for metric in scope.metrics}
    assert {name: metric.unit for name, metric in found.items()} == {
        "dpmesh.releases": "{message}",
        "dpmesh.privacy.loss": "1",
        "dpmesh.release.duration": "s",
        "dpmesh.ledger.duration": "s",
        "dpmesh.items.cut": "{item}",
    }
    (cut,) = found[names.ITEMS_CUT].data.data_points
    assert (dict(cut.attributes), cut.value) == ({"method": "/a.B/C"}, 3)
    labels = dict(zip(("method", "mechanism", "decision", "budget"), KEY, strict=True))
    for name in (*SUMS, names.RELEASE_DURATION):
        (point,) = found[name].data.data_points
        assert dict(point.attributes) == labels
    (ledger,) = found[names.LEDGER_DURATION].data.data_points
    assert not ledger.attributes
    for name in SUMS:
        assert found[name].data.is_monotonic
        assert found[name].data.aggregation_temporality is AggregationTemporality.CUMULATIVE


@pytest.mark.parametrize(("name", "seconds"), [(names.RELEASE_DURATION, 3e-5), (names.LEDGER_DURATION, 3e-4)])
def test_the_buckets_fit_what_is_measured(listening, name, seconds):
    reader = listening.meter()
    telemetry = refreshed()
    telemetry.add(*KEY, 1, 2.0, seconds)
    telemetry.ledger(seconds)
    (point,) = read(reader)[name].values()
    bucket = point.bucket_counts.index(1)
    assert 0 < bucket < len(point.explicit_bounds)
    assert point.explicit_bounds[bucket] / point.explicit_bounds[bucket - 1] < 2.6


def test_counters_are_cumulative(listening):
    reader = listening.meter()
    telemetry = refreshed()
    telemetry.add(*KEY, 1, 2.0, 0.001)
    assert sums(reader) == (1, 2.0, 1)
    assert sums(reader) == (1, 2.0, 1)
    telemetry.add(*KEY, 3, 0.5, 0.001)
    other = (*KEY[:2], "refused", KEY[3])
    telemetry.add(*other, 1, 0.0, 0.001)
    assert sums(reader) == (4, 2.5, 2)
    assert sums(reader, other) == (1, 0.0, 1)


def test_every_reader_gets_all_of_it(listening):
    """One cumulative, one delta; how often either reads does not change what the other gets."""
    delta = InMemoryMetricReader(
        preferred_temporality={
            Counter: AggregationTemporality.DELTA,
            ObservableCounter: AggregationTemporality.DELTA,
        }
    )
    total = InMemoryMetricReader()
    listening.meters = MeterProvider([delta, total], shutdown_on_exit=False)
    telemetry = refreshed()
    telemetry.add(*KEY, 1, 2.0, 0.001)
    assert sums(delta)[:2] == (1, 2.0)
    telemetry.add(*KEY, 2, 4.0, 0.001)
    assert sums(delta)[:2] == (2, 4.0)
    assert sums(total)[:2] == (3, 6.0)


def test_threads_lose_nothing(listening):
    reader = listening.meter()
    telemetry = refreshed()

    def count() -> None:
        for _ in range(2000):
            telemetry.add(*KEY, 1, 0.5, 0.001)
            telemetry.add(*KEY[:3], "", 2, 0.25, 0.001)

    seen: list[float] = []
    reading = threading.Thread(target=lambda: seen.extend(series(reader) for _ in range(20)))
    reading.start()
    at_once(4, count)
    reading.join()
    assert seen == sorted(seen)
    found = read(reader)
    assert (found[names.RELEASES][KEY].value, found[names.PRIVACY_LOSS][KEY].value) == (8000, 4000.0)
    blank = (*KEY[:3], "")
    assert (found[names.RELEASES][blank].value, found[names.PRIVACY_LOSS][blank].value) == (16000, 2000.0)
    assert 100 <= found[names.RELEASE_DURATION][KEY].count <= 8000  # a sample, see below


def test_a_busy_series_records_a_hundred_durations_a_second_and_counts_all(listening, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(meters.time, "monotonic", lambda: now[0])
    reader = listening.meter()
    telemetry = refreshed()
    for step in range(3000):  # a thousand a second, three seconds long
        now[0] = 1000 + step / 1000
        telemetry.add(*KEY, 1, 0.5, 0.001)
    releases, loss, durations = sums(reader)
    assert (releases, loss) == (3000, 1500.0)
    assert 395 <= durations <= 405  # the first second's worth at once, then one in ten
    now[0] += 60
    for _ in range(50):  # a quiet series records all
        telemetry.add(*KEY, 1, 0.5, 0.001)
    assert sums(reader)[2] == durations + 50


def series(reader) -> float:
    points = read(reader).get(names.RELEASES, {})
    return points[KEY].value if KEY in points else 0


def test_several_in_one_process_share_the_counts(listening, caplog):
    reader = listening.meter()
    several = [refreshed() for _ in range(3)]
    for telemetry in several:
        telemetry.add(*KEY, 1, 2.0, 0.001)
        telemetry.refresh()
    assert sums(reader) == (3, 6.0, 3)
    # The counts outlive whoever made them.
    several.clear()
    gc.collect()
    refreshed().add(*KEY, 1, 2.0, 0.001)
    assert sums(reader) == (4, 8.0, 4)
    assert not caplog.records


def test_several_that_start_at_once_share_the_counts(listening):
    reader = listening.meter()
    at_once(8, lambda: refreshed().add(*KEY, 1, 2.0, 0.001))
    assert sums(reader) == (8, 16.0, 8)


def test_another_provider_starts_from_nothing(listening):
    old = listening.meter()
    telemetry = refreshed()
    telemetry.add(*KEY, 1, 2.0, 0.001)
    new = listening.meter()
    telemetry.refresh()
    telemetry.add(*KEY, 5, 1.0, 0.001)
    assert sums(new) == (5, 1.0, 1)
    assert sums(old) == (1, 2.0, 1)


def test_no_exemplar_even_within_a_sampled_span(listening):
    """The SDK's default filter makes exemplars of what is measured in a sampled span."""
    tracer = listening.trace().get_tracer("rpc")
    reader = listening.meter()
    telemetry = refreshed()
    control = listening.meters.get_meter("control").create_histogram("control")
    with tracer.start_as_current_span("rpc"):
        telemetry.add(*KEY, 1, 2.0, 0.001)
        telemetry.ledger(0.001)
        control.record(1.0)
        found = read(reader)
    assert found.pop("control")[()].exemplars
    assert len(found) == 4
    for points in found.values():
        for point in points.values():
            assert not point.exemplars


def test_a_child_counts_its_own(listening):
    reader = listening.meter()
    telemetry = refreshed()
    telemetry.add(*KEY, 1, 2.0, 0.001)

    def child() -> tuple[float, float]:
        telemetry.add(*KEY, 7, 1.0, 0.001)
        return sums(reader)[:2]

    assert children.run(child) == (7, 1.0)
    assert sums(reader)[:2] == (1, 2.0)


def test_a_fork_while_another_thread_counts(listening):
    """The child starts while locks are held by a thread that it does not have."""
    listening.meter()
    telemetry = refreshed()
    shared = meters.by_provider.of(listening.meters)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with shared._lock, meters.by_provider.lock:
            held.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        child = children.start(lambda: (telemetry.add(*KEY, 1, 1.0, 0.1), refreshed().metering)[1])
    finally:
        done.set()
        holder.join()
    timer = threading.Timer(60, os.kill, (child[0], 9))
    timer.start()
    assert children.finish(child) is True
    timer.cancel()
