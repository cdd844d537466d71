"""The examples of overlays on schemas that nobody here wrote: OpenTelemetry's metrics, Kuksa's signals, google.type."""

from __future__ import annotations

import asyncio
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf import json_format
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource

import dpmesh
from dpmesh.cli import run

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SECRETS = ("pump-17", "i-0abc", "ada", "valve", "leak")


def config(epsilon: float, key: str = "global") -> dict:
    budget = {"name": "device", "key": key, "epsilon": epsilon, "accounting": "pure", "window": "lifetime"}
    return {"ledger": {"url": "memory:"}, "budget": [budget]}


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Imports a module of an example as its own folder would."""

    def imported(folder: str, module: str):
        monkeypatch.syspath_prepend(EXAMPLES / folder)
        return importlib.import_module(module)

    before = set(sys.modules)
    yield imported
    for name in {"relay", "vehicle"} & (sys.modules.keys() - before):
        del sys.modules[name]


def findings(*arguments: str | Path) -> int:
    return run(["check", *map(str, arguments)])


class Collector(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self) -> None:
        self.received: list[metrics_service_pb2.ExportMetricsServiceRequest] = []

    async def Export(self, request, context):
        self.received.append(request)
        return metrics_service_pb2.ExportMetricsServiceResponse()


def export_twice(port: int) -> list[bool]:
    """What a device does with OpenTelemetry's SDK and its synchronous exporter; whether each export succeeded."""
    exporter = OTLPMetricExporter(endpoint=f"127.0.0.1:{port}", insecure=True)
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)
    resource = Resource.create({"host.name": "pump-17", "service.instance.id": "i-0abc"})
    buckets = View(
        instrument_name="request.duration", aggregation=ExplicitBucketHistogramAggregation([1, 2, 3])
    )
    provider = MeterProvider([reader], resource, views=[buckets], shutdown_on_exit=False)
    meter = provider.get_meter("valve")

    def battery(_: CallbackOptions) -> list[Observation]:
        return [Observation(61.25, {"user": "ada"}), Observation(12.5, {"user": "eve"})]

    meter.create_observable_gauge("battery.level", [battery], unit="%")
    meter.create_observable_gauge("cpu.used", [lambda _: [Observation(40)]], unit="%", description="leak")
    meter.create_counter("requests").add(123_456_789)
    durations = meter.create_histogram("request.duration", unit="s")
    for seconds in (0.5, 0.5, 1.5, 9):
        durations.record(seconds)
    sent = [reader.force_flush(10_000), reader.force_flush(10_000)]
    provider.shutdown()
    return sent


async def test_metrics_of_opentelemetrys_own_exporter_leave_the_device_protected(example):
    relay = example("otlp", "relay")
    collector, server = Collector(), grpc.aio.server()
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(collector, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    # An export costs 8, so that the second one is beyond the budget.
    async with dpmesh.open(config(10), policy=relay.POLICY) as mesh:
        serving, port = await relay.serve(mesh, "127.0.0.1:0", address)
        sent = await asyncio.to_thread(export_twice, port)
        await serving.stop(None)
    await server.stop(None)
    assert sent == [True, True]
    (request,) = collector.received
    text = json_format.MessageToJson(request)
    assert not [secret for secret in (*SECRETS, "123456789", "61.25") if secret in text]
    (resource,) = request.resource_metrics
    (scope,) = resource.scope_metrics
    metrics = {metric.name: metric for metric in scope.metrics}
    assert set(metrics) == {"battery.level", "cpu.used", "requests", "request.duration"}
    # Of two batteries, one data point is shown; the number of the others is data.
    (battery,) = metrics["battery.level"].gauge.data_points
    (cpu,) = metrics["cpu.used"].gauge.data_points
    assert (battery.WhichOneof("value"), cpu.WhichOneof("value")) == ("as_double", "as_int")
    (duration,) = metrics["request.duration"].histogram.data_points
    assert list(duration.explicit_bounds) == [1, 2, 3]
    assert len(duration.bucket_counts) == 4
    assert all(0 <= count <= 60 for count in duration.bucket_counts)
    assert (duration.count, duration.sum) == (0, 0)
    assert not metrics["requests"].sum.data_points


def test_the_page_has_the_errors_that_plans_print(example, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    schema = tmp_path / "otlp.pb"
    schema.write_bytes(example("otlp", "relay").descriptor_set().SerializeToString())
    travel, vehicle = EXAMPLES / "travel", EXAMPLES / "vehicle"
    for arguments in (
        ["--descriptor-set", schema, "--config", EXAMPLES / "otlp" / "dpmesh.toml"],
        [travel / "booking.proto", "--policy", travel / "policy.yaml"],
        [vehicle / "val.proto", "--policy", vehicle / "policy.yaml"],
    ):
        assert run(["plan", *map(str, arguments)]) == 0
    page, printed = (EXAMPLES.parent / "docs" / "overlays.md").read_text(), capsys.readouterr().out
    errors = re.findall(r"sd [\d.e+]+", page)
    assert len(errors) == 5
    assert [error for error in errors if error not in printed] == []
    assert printed.count("at most ε 8,") == 2


def test_a_check_of_otlp_finds_no_error(example, tmp_path, capsys):
    relay = example("otlp", "relay")
    schema = tmp_path / "otlp.pb"
    schema.write_bytes(relay.descriptor_set().SerializeToString())
    assert findings("--descriptor-set", schema, "--config", relay.CONFIG) == 0
    assert "0 errors" in capsys.readouterr().out


async def test_a_vehicles_signals_leave_protected(example):
    vehicle = example("vehicle", "vehicle")
    broker, server = vehicle.Broker(), grpc.aio.server()
    vehicle.services.add_VALServicer_to_server(broker, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with dpmesh.open(vehicle.CONFIG, policy=vehicle.POLICY) as mesh:
        await vehicle.publish(mesh, address, vehicle.SIGNALS)
    await server.stop(None)
    received = {each.signal_id.path: each.data_point for each in broker.received}
    assert list(received) == list(vehicle.SIGNALS)
    assert not any(point.HasField("timestamp") for point in received.values())
    assert received["Vehicle.Speed"].value.WhichOneof("typed_value") == "float"
    assert -400 < received["Vehicle.Speed"].value.float < 650
    assert received["Vehicle.CurrentLocation.Latitude"].value.WhichOneof("typed_value") == "double"
    assert received["Vehicle.Driver.Identifier.Subject"].value.string == ""


async def test_a_bookings_common_types_are_protected_where_they_stand(example):
    booking_pb2 = example("travel", "booking_pb2")
    booking = booking_pb2.Booking(traveller="ada", price={"currency_code": "EUR", "units": 120, "nanos": 99})
    booking.deposit.units = 10
    booking.pickup.latitude, booking.pickup.longitude = 48.1, 11.5
    booking.stay.start_time.GetCurrentTime()
    booking.birthday.year, booking.birthday.month = 1985, 7
    booking.wishes["note"] = "leak"
    request = booking_pb2.BookingRequest(booking=booking)
    policy = EXAMPLES / "travel" / "policy.yaml"
    async with dpmesh.open(config(8, "unit"), policy=policy) as mesh:
        received = (await mesh.release(request)).message.booking
    assert received.traveller != "ada"
    assert received.price.currency_code in {"EUR", "GBP", "USD"}
    assert received.price.nanos == 0
    assert received.birthday.month == 0
    assert 47 <= received.pickup.latitude <= 55
    assert received.stay.start_time.seconds % 86_400 == received.stay.start_time.nanos == 0
    assert received.stay.HasField("end_time")
    unprotected = ("deposit", "wishes")
    assert not [name for name in unprotected if received.HasField(name)]


@pytest.mark.parametrize("proto", ["travel/booking.proto", "vehicle/val.proto"])
def test_a_check_of_the_other_examples_finds_nothing(proto, capsys):
    path = EXAMPLES / proto
    assert findings(path, "--policy", path.parent / "policy.yaml") == 0
    assert "No findings" in capsys.readouterr().out


@pytest.mark.parametrize("proto", ["travel/booking.proto", "vehicle/val.proto"])
def test_the_errors_in_the_document_are_what_plans_say(proto, capsys):
    page = (EXAMPLES.parent / "docs" / "overlays.md").read_text()
    (section,) = [part for part in page.split("\n## ") if f"dpmesh plan examples/{proto}" in part]
    documented = re.findall(r"sd ([\d.]+(?:e\+\d+)?)", section)
    path = EXAMPLES / proto
    assert run(["plan", str(path), "--policy", str(path.parent / "policy.yaml")]) == 0
    printed = set(re.findall(r"sd ([\d.]+(?:e\+\d+)?)", capsys.readouterr().out))
    assert documented
    assert set(documented) <= printed
