"""The fleet example: the services through real RPCs, its declared sensitivities, and what `dpmesh demo` prints."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

import dpmesh
from dpmesh.estimate import Reader
from dpmesh.policy import Grid
from dpmesh_fleet import fleet_pb2, fleet_pb2_grpc
from dpmesh_fleet.compare import compare
from dpmesh_fleet.data import Flight, load
from dpmesh_fleet.fleet_pb2 import SummarizeRequest
from dpmesh_fleet.fly import configuration, fly
from dpmesh_fleet.service import Collector, FleetStatistics, summarize
from dpmesh_fleet.show import dates
from dpmesh_grpc import aio_client_interceptors, aio_server_interceptors

# The first three days; some aircraft fly more than three times on one of them.
REPORTS = 2500
FLIGHTS, SKIPPED = load()
TAILS = {flight.tail_number for flight in FLIGHTS}


def beyond_budget(flights: list[Flight]) -> int:
    days = Counter((flight.day, flight.tail_number) for flight in flights)
    return sum(max(0, count - 3) for count in days.values())


def tails_in(content: bytes) -> set[str]:
    """The tail numbers that occur anywhere in it, in time that does not grow with their number."""
    found = set()
    for word in set(re.findall(rb"[A-Z0-9]{4,}", content)):
        text = word.decode()
        for length in {len(tail) for tail in TAILS}:
            found |= {text[at : at + length] for at in range(len(text) - length + 1)} & TAILS
    return found


# -- the data and the aggregates -----------------------------------------------------------------------------------


def test_the_data_are_the_month():
    assert len(FLIGHTS) == 26_398
    assert SKIPPED == 606
    assert len(TAILS) == 3_140
    assert "" not in TAILS
    assert beyond_budget(FLIGHTS) == 145
    assert [flight.departure for flight in FLIGHTS] == sorted(flight.departure for flight in FLIGHTS)


def test_a_report_costs_what_the_files_say():
    assert Reader(fleet_pb2.FlightReport).plan.cost.epsilon == 4_000_000_000
    assert Reader(fleet_pb2.FleetSummary).plan.cost.epsilon == 1_900_000_000


def test_no_day_of_an_aircraft_moves_an_aggregate_by_more_than_is_declared():
    """Replaces one aircraft's day by the most different one, for the busiest aircraft and days."""
    flights = FLIGHTS[:3000]
    sensitivity = {
        "flights": 3,
        "air_time": 2100,
        "origins.flights": 3,
        "origins.dep_delay": 630,
        "carriers.flights": 3,
    }
    before = aggregates(flights)
    busiest = Counter((flight.day, flight.tail_number) for flight in flights).most_common(5)
    for (day, tail), _ in busiest:
        mine = [flight.day == day and flight.tail_number == tail for flight in flights]
        for delay, air_time, origin in ((1e4, 1e4, "ORIGIN_JFK"), (-1e4, 0.0, "ORIGIN_LGA")):
            changed = [
                replace(flight, dep_delay=delay, air_time=air_time, origin=origin, carrier="CARRIER_OO")
                if own
                else flight
                for flight, own in zip(flights, mine, strict=True)
            ]
            absent = [flight for flight, own in zip(flights, mine, strict=True) if not own]
            for other in (changed, absent):
                after = aggregates(other)
                assert before.keys() == after.keys()
                for (name, row), value in before.items():
                    # Sums are rounded to whole minutes, and the data are whole minutes.
                    assert abs(after[name, row] - value) <= sensitivity[name], name


def aggregates(flights: list[Flight]) -> dict[tuple[str, int], int]:
    summary = summarize(flights)
    found = {("flights", 0): summary.flights, ("air_time", 0): summary.air_time}
    for entry in summary.origins:
        found["origins.flights", entry.origin] = entry.flights
        found["origins.dep_delay", entry.origin] = entry.dep_delay
    found |= {("carriers.flights", entry.carrier): entry.flights for entry in summary.carriers}
    return found


def test_true_aggregates_lie_within_their_bounds():
    plan = Reader(fleet_pb2.FleetSummary).plan
    bounds = {
        field.path.replace("[]", ""): field.payload.grid
        for field in plan.fields
        if str(field.kind) == "numeric"
    }
    for (name, _), value in aggregates(FLIGHTS).items():
        assert bounds[name].lower <= value <= bounds[name].upper


def on_grid(value: float, grid: Grid) -> float:
    """A value as it would be sent without noise."""
    return round(min(max(value, grid.lower), grid.upper) / grid.step) * grid.step


# -- the month, in this process ------------------------------------------------------------------------------------


async def test_three_days_of_the_fleet(tmp_path):
    # Raw values beside the grid that noisy ones lie on, so that none of those is a raw one by chance.
    flights = [
        replace(flight, dep_delay=flight.dep_delay + 1 / 3, air_time=flight.air_time + 1 / 3)
        for flight in FLIGHTS[:REPORTS]
    ]
    month = await fly(flights, tmp_path)
    assert month.refused == beyond_budget(flights) > 0
    assert len(month.received) + month.refused == REPORTS
    assert month.refusal.status == "RESOURCE_EXHAUSTED"
    assert month.refusal.reason == "PRIVACY_BUDGET_EXHAUSTED"
    assert 0 < month.refusal.retry_after <= 86_400

    # Nothing of an aircraft but what its annotations let through.
    assert not TAILS & {report.tail_number for report in month.received}
    assert {report.destination for report in month.received} == {""}
    assert {report.flight_number for report in month.received} == {0}
    received = [(report.dep_delay, report.air_time) for report in month.received]
    assert not {flight.dep_delay for flight in flights} & {delay for delay, _ in received}
    assert not {flight.air_time for flight in flights} & {minutes for _, minutes in received}
    # Nor are they the raw ones put on the grid: of 2,500 pairs 0.002 are some flight's by chance, more than three once
    # in 1e12 runs.
    fields = {field.path: field for field in Reader(fleet_pb2.FlightReport).plan.fields}
    delay, minutes = fields["dep_delay"].payload.grid, fields["air_time"].payload.grid
    held = {(on_grid(flight.dep_delay, delay), on_grid(flight.air_time, minutes)) for flight in flights}
    assert sum(pair in held for pair in received) <= 3

    # The ledger agrees with what arrived: 4 for each report, by aircraft and day.
    days = Counter((flight.day, flight.tail_number) for flight in flights)
    assert sorted(month.spent) == sorted(4.0 * min(count, 3) for count in days.values())

    # 5 at delta 1e-6 is a rho of 0.47, and an answer takes 0.107.
    assert len(month.answers) == 4
    assert month.answer_refusal.reason == "PRIVACY_BUDGET_EXHAUSTED"
    assert len({answer.SerializeToString() for answer in month.answers}) == 4
    assert [len(answer.origins) for answer in month.answers] == [3] * 4
    assert [len(answer.carriers) for answer in month.answers] == [16] * 4

    # All 40 intervals are 95 % ones: fewer than 27 that hold are a false alarm of 4e-8.
    held_intervals, of = compare(month).held()
    assert of == 40
    assert held_intervals >= 27


async def test_a_stream_of_reports(tmp_path):
    flights = FLIGHTS[:300]
    collector = Collector()
    async with (
        dpmesh.open(configuration(tmp_path / "aircraft.db")) as aircraft,
        dpmesh.open(configuration(tmp_path / "operator.db")) as operator,
    ):
        server = grpc.aio.server(interceptors=aio_server_interceptors(operator))
        fleet_pb2_grpc.add_CollectorServicer_to_server(collector, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            target = f"127.0.0.1:{port}"
            async with grpc.aio.insecure_channel(
                target, interceptors=aio_client_interceptors(aircraft)
            ) as channel:
                stub = fleet_pb2_grpc.CollectorStub(channel)
                ack = await stub.ReportAll(flight.report() for flight in flights)
            async with grpc.aio.insecure_channel(target) as bare:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await fleet_pb2_grpc.CollectorStub(bare).Report(flights[0].report())
        finally:
            await server.stop(None)
    assert ack.stored == len(collector.reports) == 300
    assert not TAILS & {report.tail_number for report in collector.reports}
    # fleet.proto requires protection: a report without it is not taken in.
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


# -- the command ---------------------------------------------------------------------------------------------------


def demo(*options: str, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "DPMESH_"))}
    return subprocess.run(
        [sys.executable, "-c", f"{before}\nfrom dpmesh.cli import main; main()", "demo", *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**clean, **environment},
    )


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("demo") / "the ledgers"


@pytest.fixture(scope="module")
def printed(kept) -> str:
    done = demo("--reports", str(REPORTS), "--keep", str(kept))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_it_names_the_days_that_were_flown(printed):
    assert "from New York, 1 to 3 January 2013 (public records" in " ".join(printed.split())
    assert "in the windows of 1 to 3 January 2013" in printed


def test_dates_in_words():
    days = [0, 0, 3, 40, 400]
    flights = [replace(FLIGHTS[0], departure=FLIGHTS[0].departure + day * 86_400) for day in days]
    assert dates(flights[:2]) == "1 January 2013"
    assert dates(flights[:3]) == "1 to 4 January 2013"
    assert dates(flights[:4]) == "1 January 2013 to 10 February 2013"
    assert dates(flights[3:]) == "10 February 2013 to 5 February 2014"
    assert dates(FLIGHTS) == "1 to 31 January 2013"


async def test_a_month_is_answered_with_its_own_flights():
    later = [replace(flight, departure=flight.departure + 40 * 86_400) for flight in FLIGHTS[:50]]
    service = FleetStatistics([*FLIGHTS[:100], *later])
    asked = {
        month: await service.Summarize(SummarizeRequest(month=month), None)
        for month in ("2013-01", "2013-02")
    }
    assert asked == {"2013-01": summarize(FLIGHTS[:100]), "2013-02": summarize(later)}


@pytest.mark.parametrize("month", ["2013-03", "", "January"])
async def test_a_month_without_records_is_said_to_be_one(month):
    server = grpc.aio.server()
    fleet_pb2_grpc.add_FleetStatisticsServicer_to_server(FleetStatistics(FLIGHTS[:100]), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await fleet_pb2_grpc.FleetStatisticsStub(channel).Summarize(SummarizeRequest(month=month))
    await server.stop(None)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_it_prints_every_statistic(printed):
    assert "Mean departure delay by origin" in printed
    assert "Mean air time" in printed
    assert "Share of each carrier" in printed
    rows = re.findall(
        r"^ ([A-Z0-9]{2,3}) .*?\(.*? \.\. .*?\).*?(?:yes|no) .*?\(.*? \.\. .*?\) .*(?:yes|no)", printed, re.M
    )
    assert {"EWR", "JFK", "LGA"} <= set(rows)
    assert len(rows) == 3 + 16
    held, of = map(int, re.search(r"(\d+) of (\d+) intervals hold", printed).groups())
    assert of == 40
    assert held >= 27
    assert f"{REPORTS}/{REPORTS}" in printed


def test_it_prints_the_budget(printed):
    refused = beyond_budget(FLIGHTS[:REPORTS])
    assert f"{refused} of {REPORTS:,}" in printed
    assert re.search(r"median +95th percentile +maximum", printed)
    assert re.search(r"^ +4 +8 +12 ", printed, re.M)
    assert printed.count("RESOURCE_EXHAUSTED: ") == 2
    assert printed.count("ErrorInfo PRIVACY_BUDGET_EXHAUSTED") == 2
    assert "answered 4 times" in printed


def test_it_prints_a_trace(printed):
    tree = printed.split("a trace of one report", 1)[1]
    assert re.search(r"^/fleet.v1.Collector/Report +\(client, .*\n├── dpmesh.release +\(internal", tree, re.M)
    assert re.search(r"^└── /fleet.v1.Collector/Report +\(server", tree, re.M)
    for attribute in ("decision = released", "decision = refused", "budget.state = exhausted", "epsilon = 4"):
        assert f"dpmesh.{attribute}" in tree
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in tree


def test_nothing_of_an_aircraft_is_printed(printed):
    assert not tails_in(printed.encode())
    assert tails_in(b"\x06" + FLIGHTS[0].tail_number.encode() + b"J")


def test_what_to_try_next_works(printed, kept):
    commands = re.findall(r"^  ((?:\w+=\S+ )?dpmesh (?:check|plan|budget) .*)$", printed, re.M)
    assert len(commands) == 3
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in commands:
        done = subprocess.run(
            ["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False, env=environment
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        if " budget " in command:
            (row,) = csv.DictReader(done.stdout.splitlines())
            # Four answers of rho 0.107 each, in a window of the month that was flown.
            assert float(row["spent"]) == pytest.approx(0.429, abs=0.001)
            assert row["window_start"] < "2013-01-02" < row["window_end"]
    # The ledgers do not know the aircraft by their numbers.
    ledgers = list(kept.glob("*.db*"))
    assert len(ledgers) >= 2
    assert not any(tails_in(ledger.read_bytes()) for ledger in ledgers)


def test_used_ledgers_are_not_used_again(printed, kept):
    done = demo("--keep", str(kept))
    assert done.returncode == 2
    assert "exists" in done.stderr


NO_SDK = "import sys; sys.modules['opentelemetry.sdk'] = sys.modules['opentelemetry.exporter'] = None"


def test_it_works_without_the_sdk_and_whatever_the_shell_configures():
    configured = {"DPMESH_MODE": "observe", "DPMESH_LEDGER_URL": "sqlite:////nowhere/at/all.db"}
    done = demo("--reports", "1000", before=NO_SDK, **configured)
    assert done.returncode == 0, done.stderr
    assert "pip install '.[otel]'" in " ".join(done.stdout.split())
    assert "answered 4 times" in done.stdout


def test_exporting_without_the_exporter_names_the_extra(sink):
    done = demo("--reports", "1000", before=NO_SDK, OTEL_EXPORTER_OTLP_ENDPOINT=sink[1])
    assert done.returncode == 2
    assert "pip install '.[otel]'" in done.stderr


def test_an_absent_collector_is_said_at_once():
    done = demo("--reports", "1000", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    assert done.returncode == 2
    assert "no collector answers at http://127.0.0.1:1" in done.stderr


class Sink(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP collector that keeps what it gets."""

    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []

    def Export(self, request, context):
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def sink() -> Iterator[tuple[Sink, str]]:
    kept = Sink()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(kept, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield kept, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


def counted(spans, key: str) -> Counter[str]:
    """How often a text attribute has each of its values."""
    found = (attribute for span in spans for attribute in span.attributes if attribute.key == key)
    return Counter(attribute.value.string_value for attribute in found)


def test_all_spans_reach_a_collector(sink):
    """Each release under its RPC's span, from the client to the server; no tail number anywhere."""
    collector, endpoint = sink
    done = demo("--reports", str(REPORTS), OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert done.returncode == 0, done.stderr
    assert endpoint in done.stdout
    spans = [
        span
        for request in collector.requests
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    known = {span.span_id: span for span in spans}
    releases = [span for span in spans if span.name == "dpmesh.release"]
    assert len(releases) == REPORTS + 5
    for release in releases:
        parent = known[release.parent_span_id]
        assert parent.name in ("/fleet.v1.Collector/Report", "/fleet.v1.FleetStatistics/Summarize")
        assert parent.trace_id == release.trace_id
    refused = beyond_budget(FLIGHTS[:REPORTS])
    decisions = counted(releases, "dpmesh.decision")
    assert decisions == {"released": REPORTS - refused + 4, "refused": refused + 1}
    # An aircraft's third report leaves its day's budget low, as does the analyst's fourth answer.
    days = Counter((flight.day, flight.tail_number) for flight in FLIGHTS[:REPORTS])
    states = counted(releases, "dpmesh.budget.state")
    assert states["low"] == sum(count >= 3 for count in days.values()) + 1
    assert states["exhausted"] == refused + 1
    assert not any(tails_in(request.SerializeToString()) for request in collector.requests)
