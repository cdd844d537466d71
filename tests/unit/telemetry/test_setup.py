"""Setup from the environment, each time in a process of its own: global providers can be set only once."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc

from dpmesh.telemetry import setup

NOWHERE = "http://127.0.0.1:1"


class Collector(trace_grpc.TraceServiceServicer, metrics_grpc.MetricsServiceServicer):
    """An OTLP collector that keeps what it gets."""

    def __init__(self) -> None:
        self.requests: list[object] = []
        self.endpoint = ""

    def Export(self, request, context):
        self.requests.append(request)
        traces = isinstance(request, trace_pb2.ExportTraceServiceRequest)
        return (
            trace_pb2.ExportTraceServiceResponse if traces else metrics_pb2.ExportMetricsServiceResponse
        )()

    def services(self) -> set[str]:
        resources = [entry.resource for entry in (*self.resource_spans(), *self.resource_metrics())]
        pairs = [pair for resource in resources for pair in resource.attributes]
        return {pair.value.string_value for pair in pairs if pair.key == "service.name"}

    def resource_spans(self):
        return [entry for request in self.requests for entry in getattr(request, "resource_spans", ())]

    def resource_metrics(self):
        return [entry for request in self.requests for entry in getattr(request, "resource_metrics", ())]

    def spans(self):
        return [
            span for entry in self.resource_spans() for scope in entry.scope_spans for span in scope.spans
        ]

    def metrics(self):
        scopes = [scope for entry in self.resource_metrics() for scope in entry.scope_metrics]
        return [metric for scope in scopes for metric in scope.metrics]


@pytest.fixture
def collector() -> Iterator[Collector]:
    kept = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_grpc.add_TraceServiceServicer_to_server(kept, server)
    metrics_grpc.add_MetricsServiceServicer_to_server(kept, server)
    kept.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield kept
    server.stop(None).wait()


START = """
import logging, sys, time
logging.basicConfig(level=logging.WARNING)
from opentelemetry import metrics, trace
from dpmesh.telemetry import Telemetry, configure_from_environment, names
"""
RECORD = """
telemetry = Telemetry()
telemetry.refresh()
telemetry.span({names.DECISION: names.RELEASED}, time.time_ns(), time.time_ns())
telemetry.add("/a.B/C", "hybrid", "released", "daily", 1, 1.0, 0.001)
"""


def run(
    program: str, endpoint: str | None, *, start: str = START, **environment: str
) -> subprocess.CompletedProcess:
    """Runs a program in a process that has no OTEL_ variables but these."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    if endpoint is not None:
        kept["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
    done = subprocess.run(
        [sys.executable, "-c", start + textwrap.dedent(program)],
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_everything_reaches_the_collector(collector):
    done = run(f"flush = configure_from_environment()\n{RECORD}\nflush()\nflush()", collector.endpoint)
    assert done.stderr == ""
    (span,) = collector.spans()
    assert span.name == "dpmesh.release"
    names = {metric.name for metric in collector.metrics()}
    assert {"dpmesh.releases", "dpmesh.privacy.loss", "dpmesh.release.duration"} <= names
    assert collector.services() == {"dpmesh"}


def test_what_was_recorded_last_is_sent_at_the_programs_end(collector):
    run(f"configure_from_environment()\n{RECORD}", collector.endpoint)
    assert len(collector.spans()) == 1
    assert collector.metrics()


@pytest.mark.parametrize(
    "variables", [{"OTEL_SERVICE_NAME": "fleet"}, {"OTEL_RESOURCE_ATTRIBUTES": "service.name=fleet"}]
)
def test_the_services_name(collector, variables):
    run(f"configure_from_environment()\n{RECORD}", collector.endpoint, **variables)
    assert collector.services() == {"fleet"}


@pytest.mark.parametrize(("signal", "spans", "metrics"), [("TRACES", 0, True), ("METRICS", 1, False)])
def test_one_signal_can_be_left_out(collector, signal, spans, metrics):
    run(f"configure_from_environment()\n{RECORD}", collector.endpoint, **{f"OTEL_{signal}_EXPORTER": "none"})
    assert len(collector.spans()) == spans
    assert bool(collector.metrics()) is metrics


def test_exception_texts_stay_and_exemplars_are_off(collector):
    """Of spans and measurements that the program itself makes, too."""
    program = """
    configure_from_environment()
    duration = metrics.get_meter("app").create_histogram("duration")
    try:
        with trace.get_tracer("app").start_as_current_span("rpc"):
            duration.record(1.0)
            raise ValueError("temperature was 41.77777777")
    except ValueError:
        pass
    """
    run(program, collector.endpoint)
    (span,) = collector.spans()
    assert span.name == "rpc"
    assert [event.name for event in span.events] == ["exception"]
    assert "41.77777777" not in str(collector.requests)
    (metric,) = [metric for metric in collector.metrics() if metric.name == "duration"]
    assert not metric.histogram.data_points[0].exemplars


@pytest.mark.parametrize(("propagators", "sent"), [(None, "traceparent"), ("baggage", "baggage")])
def test_baggage_stays_unless_asked_for(propagators, sent):
    program = """
    from opentelemetry import baggage, propagate
    flush = configure_from_environment()
    carrier = {}
    with trace.get_tracer("app").start_as_current_span("rpc"):
        propagate.inject(carrier, baggage.set_baggage("user", "ann"))
    assert flush is not None
    print(sorted(carrier))
    import os; sys.stdout.flush(); os._exit(0)
    """
    variables = {} if propagators is None else {"OTEL_PROPAGATORS": propagators}
    assert run(program, NOWHERE, **variables).stdout.strip() == f"['{sent}']"


def test_a_second_mesh_gets_the_same_one():
    program = """
    import os
    first = configure_from_environment()
    provider = trace.get_tracer_provider()
    assert configure_from_environment() is first
    assert trace.get_tracer_provider() is provider
    os._exit(0)
    """
    assert run(program, NOWHERE).stderr == ""


def test_providers_of_the_programs_own_are_left_alone():
    program = """
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.metrics import MeterProvider
    tracers, meters = TracerProvider(), MeterProvider()
    trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(meters)
    assert configure_from_environment() is None
    assert trace.get_tracer_provider() is tracers
    assert metrics.get_meter_provider() is meters
    """
    assert run(program, NOWHERE).stderr == ""


@pytest.mark.parametrize(
    ("endpoint", "variables"), [(None, {}), ("", {}), (NOWHERE, {"OTEL_SDK_DISABLED": "true"})]
)
def test_nothing_is_set_up_unless_asked_for(endpoint, variables):
    program = """
    assert configure_from_environment() is None
    assert "opentelemetry.sdk" not in sys.modules
    assert type(trace.get_tracer_provider()).__name__ == "ProxyTracerProvider"
    """
    assert run(program, endpoint, **variables).stderr == ""


def test_another_protocol_is_not_spoken():
    done = run(
        "assert configure_from_environment() is None", NOWHERE, OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf"
    )
    assert "OTEL_EXPORTER_OTLP_PROTOCOL is 'http/protobuf'" in done.stderr


@pytest.mark.parametrize("missing", ["opentelemetry.sdk", "opentelemetry.exporter"])
def test_a_missing_extra_is_named(missing):
    program = f"""
    sys.modules["{missing}"] = None
    assert configure_from_environment() is None
    {RECORD.strip().replace(chr(10), chr(10) + "    ")}
    assert not telemetry.tracing
    """
    done = run(program, NOWHERE)
    assert "pip install '.[otel]'" in done.stderr
    assert done.stderr.count("WARNING") == 1


def test_an_absent_collector_does_not_hold_the_program_up(monkeypatch):
    """One that never answers is waited for no longer than the limit; the others are not kept waiting by it."""
    never, sent = threading.Event(), threading.Event()
    monkeypatch.setattr(setup, "_FLUSH_SECONDS", 0.05)
    setup._at_once([never.wait, sent.set])
    assert sent.wait(60)
    never.set()


def test_a_failed_flush_is_a_warning_without_its_text(caplog):
    def fail() -> None:
        raise ValueError("temperature was 41.77777777")

    setup._at_once([fail])
    assert [record.getMessage() for record in caplog.records] == ["telemetry could not be sent (ValueError)"]


def test_import_is_cheap():
    """The engine imports no OpenTelemetry at all; Telemetry.refresh() does."""
    program = """
    import sys
    import dpmesh.mesh, dpmesh.telemetry
    assert not [name for name in sys.modules if name.startswith("opentelemetry")]
    dpmesh.telemetry.Telemetry().refresh()
    assert "opentelemetry.trace" in sys.modules
    assert not [name for name in sys.modules if name.startswith("opentelemetry.sdk")]
    """
    run(program, None, start="")


def test_global_providers_that_are_set_after_the_import():
    program = f"""
    from opentelemetry.sdk.trace import TracerProvider
    telemetry = Telemetry()
    telemetry.refresh()
    assert (telemetry.tracing, telemetry.metering) == (False, False)
    trace.set_tracer_provider(TracerProvider())
    telemetry.refresh()
    assert (telemetry.tracing, telemetry.metering) == (True, False)
    {RECORD.strip().replace(chr(10), chr(10) + "    ")}
    """
    assert run(program, None).stderr == ""
