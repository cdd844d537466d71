"""What people search for in Jaeger, asked of a real one: the demo's spans, and those of two processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass

import pytest

from dpmesh_fleet.data import load
from tests.support import jaeger as support
from tests.support import traced
from tests.support.jaeger import Jaeger, Span, parsed

BINARY = support.find()
pytestmark = [
    pytest.mark.jaeger,
    pytest.mark.skipif(
        BINARY is None,
        reason="no Jaeger v1 all-in-one binary: `make jaeger` finds one, or builds one where there is Go",
    ),
]

REPORT, REPORT_ALL = "/fleet.v1.Collector/Report", "/fleet.v1.Collector/ReportAll"
SUMMARIZE = "/fleet.v1.FleetStatistics/Summarize"
RELEASE = "dpmesh.release"
# Days on which some aircraft fly more often than their budget allows.
DEMO_REPORTS = 2500


@pytest.fixture(scope="module")
def jaeger(tmp_path_factory):
    with Jaeger(BINARY, tmp_path_factory.mktemp("jaeger") / "log") as running:
        yield running


def environment(jaeger: Jaeger, service: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "DPMESH_"))}
    # Jaeger takes traces only.
    ours = {"OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.endpoint, "OTEL_METRICS_EXPORTER": "none"}
    return kept | ours | {"OTEL_SERVICE_NAME": service}


def assert_each_release_is_under_its_rpc(spans: list[Span], side: dict[str, str]) -> None:
    """On the client or the server side, as the direction says; and the server's RPC lies under the client's."""
    known = {(span.trace, span.id): span for span in spans}
    for span in spans:
        if span.name != RELEASE:
            continue
        rpc = known[span.trace, span.parent]
        assert rpc.name == span.tags["rpc.method"]
        assert rpc.tags["span.kind"] == side[span.tags["dpmesh.direction"]]
        assert rpc.service == span.service
        if rpc.tags["span.kind"] == "server":
            caller = known[rpc.trace, rpc.parent]
            assert (caller.name, caller.tags["span.kind"]) == (rpc.name, "client")


SIDE = {"request": "client", "response": "server"}


# -- the demo ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(jaeger) -> Counter[tuple[int, str]]:
    """Runs `dpmesh demo`; returns how many flights each aircraft had on each day."""
    program = "from dpmesh.cli import main; main()"
    command = [sys.executable, "-c", program, "demo", "--reports", str(DEMO_REPORTS)]
    done = subprocess.run(
        command,
        env=environment(jaeger, "dpmesh-fleet"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # The analyst's answers are 4, and a refusal.
    jaeger.wait_for("dpmesh-fleet", RELEASE, DEMO_REPORTS + 5)
    jaeger.wait_for_parents("dpmesh-fleet")
    return Counter((flight.day, flight.tail_number) for flight in load()[0][:DEMO_REPORTS])


def test_refused_reports_of_the_demo(jaeger, demo):
    """One search: which releases of this method were refused?"""
    found = jaeger.matching("dpmesh-fleet", {"dpmesh.decision": "refused", "rpc.method": REPORT})
    assert len(found) == sum(max(0, count - 3) for count in demo.values()) > 0
    assert {span.name for span in found} == {RELEASE}
    assert {span.tags["dpmesh.budget.state"] for span in found} == {"exhausted"}
    assert {span.tags["dpmesh.budget.name"] for span in found} == {"aircraft-day"}


def test_low_budgets_of_the_demo(jaeger, demo):
    found = jaeger.matching("dpmesh-fleet", {"dpmesh.budget.state": "low"})
    by_method = Counter(span.tags["rpc.method"] for span in found)
    # An aircraft's third report of a day is its last, as is the analyst's fourth question.
    assert by_method == {REPORT: sum(count >= 3 for count in demo.values()), SUMMARIZE: 1}


def test_each_release_of_the_demo_is_under_its_rpc(jaeger, demo):
    spans = jaeger.spans("dpmesh-fleet")
    assert Counter(span.name for span in spans)[RELEASE] == DEMO_REPORTS + 5
    assert_each_release_is_under_its_rpc(spans, SIDE)


def test_no_aircraft_of_the_demo_is_in_jaeger(jaeger, demo):
    body = jaeger.traces("dpmesh-fleet").decode()
    tails = {tail for _, tail in demo}
    # Within longer words too; by their lengths, because searching for each of a thousand tails takes long.
    words = set(re.findall(r"[A-Z0-9]{4,}", body))
    lengths = {len(tail) for tail in tails}
    parts = {word[at : at + length] for word in words for length in lengths for at in range(len(word))}
    assert not parts & tails


# -- a client and a server, each a process -------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """What the two processes printed.

    Attributes:
        codes: How the client's RPCs ended.
        received: The reports as they reached the server: noise is in these values.
    """

    codes: list[str]
    received: list[dict[str, object]]


@pytest.fixture(scope="module")
def pair(jaeger, tmp_path_factory) -> Pair:
    folder = tmp_path_factory.mktemp("ledgers")
    command = [sys.executable, traced.__file__]
    server = subprocess.Popen(
        [*command, "server", str(folder / "server.db")],
        env=environment(jaeger, "operator"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        target = f"127.0.0.1:{int(server.stdout.readline())}"
        client = subprocess.run(
            [*command, "client", str(folder / "client.db"), target],
            env=environment(jaeger, "aircraft"),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert client.returncode == 0, client.stderr
        received, _ = server.communicate(timeout=120)
    finally:
        server.kill()
        server.wait()
    # 4 reports, 2 streams; one answer (a handler that fails releases nothing).
    jaeger.wait_for("aircraft", RELEASE, traced.REPORTS + 2)
    jaeger.wait_for("operator", RELEASE, 1)
    # What reached the server for certain: the refused report did not, and of the refused stream perhaps nothing.
    for method, count in ((REPORT, traced.REPORTS - 1), (REPORT_ALL, 1), (SUMMARIZE, 2)):
        jaeger.wait_for("operator", method, count)
    jaeger.wait_for_parents("aircraft")
    return Pair(json.loads(client.stdout), json.loads(received))


def test_the_rpcs_end_as_they_should(pair):
    refused = "RESOURCE_EXHAUSTED"
    assert pair.codes[:-1] == ["OK", "OK", "OK", refused, "OK", refused, "OK"]
    assert pair.codes[-1] not in ("OK", refused)
    # The unary ones, and the streams up to the refusal; what gRPC still held of a cancelled stream may be lost.
    assert 6 <= len(pair.received) <= 9


def test_both_processes_are_in_one_trace(jaeger, pair):
    assert {"aircraft", "operator"} <= jaeger.services()
    spans = jaeger.spans("aircraft")
    assert_each_release_is_under_its_rpc(spans, SIDE)
    by_trace: dict[str, set[str]] = {}
    for span in spans:
        by_trace.setdefault(span.trace, set()).add(span.service)
    # All but the refused report, which did not leave its process.
    assert sum(services == {"aircraft", "operator"} for services in by_trace.values()) >= len(pair.codes) - 2
    assert any(services == {"aircraft"} for services in by_trace.values())


@pytest.mark.parametrize(("method", "count"), [(REPORT, 1), (REPORT_ALL, 1), (SUMMARIZE, 0)])
def test_refused_releases_of_one_method(jaeger, pair, method, count):
    found = jaeger.matching("aircraft", {"dpmesh.decision": "refused", "rpc.method": method})
    assert len(found) == count
    assert all(span.tags["dpmesh.budget.state"] == "exhausted" for span in found)


def test_low_budgets(jaeger, pair):
    """The third report, and the stream of three."""
    found = jaeger.matching("aircraft", {"dpmesh.budget.state": "low"})
    assert Counter(span.tags["rpc.method"] for span in found) == {REPORT: 1, REPORT_ALL: 1}
    assert {span.tags["dpmesh.budget.spent"] for span in found} == {12}
    assert {span.tags["dpmesh.budget.cap"] for span in found} == {12}


def test_a_stream_is_one_span_with_events(jaeger, pair):
    (span,) = jaeger.matching("aircraft", {"dpmesh.decision": "released", "rpc.method": REPORT_ALL})
    assert span.tags["dpmesh.messages.count"] == 3
    assert span.tags["dpmesh.epsilon"] == 12
    states = [event["dpmesh.budget.state"] for event in span.events if "dpmesh.budget.state" in event]
    assert states == ["low"]


def test_the_attributes_of_a_release(jaeger, pair):
    spans = jaeger.matching("aircraft", {"dpmesh.decision": "released", "rpc.method": REPORT})
    assert len(spans) == 3
    for span in spans:
        ours = {name for name in span.tags if name.startswith(("dpmesh.", "rpc."))}
        assert ours == {
            "rpc.method",
            *(f"dpmesh.{name}" for name in ("direction", "message", "decision", "epsilon", "delta", "rho")),
            *(
                f"dpmesh.{name}"
                for name in ("mechanisms", "fields.count", "messages.count", "policy.version")
            ),
            *(f"dpmesh.budget.{name}" for name in ("name", "spent", "cap", "state")),
            "dpmesh.unit",
        }
        assert span.tags["span.kind"] == "internal"
        assert span.tags["otel.scope.name"] == "dpmesh"
    # All of one aircraft on one day: the same keyed hash.
    assert len({span.tags["dpmesh.unit"] for span in spans}) == 1


def test_nothing_that_was_said_is_in_jaeger(jaeger, pair):
    """No raw value, unit id or noisy value is anywhere in what Jaeger returns for either process."""
    bodies = [jaeger.traces(service) for service in ("aircraft", "operator")]
    assert all(len(list(parsed(body))) > 5 for body in bodies)
    said = {*traced.TAILS, traced.DESTINATION, str(traced.NUMBER), str(traced.DELAY), str(traced.AIR_TIME)}
    noisy = {str(report[name]) for report in pair.received for name in ("depDelay", "airTime")}
    pseudonyms = {str(report["tailNumber"]) for report in pair.received}
    # Few digits may occur for another reason.
    distinct = {value for value in noisy if "." in value and len(value) > 6}
    assert distinct
    for body in bodies:
        text = body.decode()
        for value in said | distinct | pseudonyms:
            assert value not in text, "something that was said is in Jaeger"
