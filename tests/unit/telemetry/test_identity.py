"""Telemetry of identities: when they rotate, how old they are, what failed; nothing that ties one to the next."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import time

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.trace import SpanKind

from dpmesh.errors import IdentityError
from dpmesh.identity import Identity, RotatingIdentity
from dpmesh.telemetry import names
from dpmesh.telemetry.identity import IdentityTelemetry
from tests.support import children, mutual_tls
from tests.support.certificates import DOMAIN, Root

from .conftest import at_once, read

ROOT = Root()
LIFE = 1800


class Issuer:
    """Real certificates; fails when it is told to."""

    follows = False

    def __init__(self) -> None:
        self.reason: str | None = None
        self.spans: list[object] = []
        self.made: list[Identity] = []

    async def fetch(self) -> Identity:
        self.spans.append(trace.get_current_span().get_span_context())
        if self.reason is not None:
            raise IdentityError(self.reason, "hunter2")
        now = time.time()
        leaf = ROOT.leaf(now=now, life=LIFE)
        self.made.append(Identity.load(leaf.certificates, leaf.key, leaf.trust_bundle, now))
        return self.made[-1]

    async def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _alone():
    gc.collect()  # Identities of other tests that were never closed.


def ages(reader) -> list[float]:
    return [point.value for point in read(reader).get(names.IDENTITY_AGE, {}).values()]


def failures(reader) -> dict[tuple[str, ...], float]:
    return {labels: point.value for labels, point in read(reader).get(names.IDENTITY_FAILURES, {}).items()}


async def test_the_span_of_a_rotation(listening):
    listening.trace()
    before = time.time_ns()
    async with RotatingIdentity(Issuer()) as identity:
        await identity.renew("a test")
    first, second = listening.spans.get_finished_spans()
    assert {first.name, second.name} == {"dpmesh.identity.rotate"}
    assert first.kind is SpanKind.INTERNAL
    assert dict(first.attributes) == {
        "dpmesh.identity.generation": 1,
        "dpmesh.identity.reason": "opened",
        "dpmesh.identity.overlap": 0.0,
    }
    overlap = second.attributes["dpmesh.identity.overlap"]
    assert LIFE - 60 < overlap <= LIFE
    assert dict(second.attributes) == {
        "dpmesh.identity.generation": 2,
        "dpmesh.identity.reason": "a test",
        "dpmesh.identity.overlap": overlap,
    }
    assert before <= first.start_time <= first.end_time <= second.start_time <= second.end_time
    assert second.end_time <= time.time_ns()


async def test_the_schedule_says_that_it_was_due(listening):
    listening.trace()
    async with RotatingIdentity(Issuer(), every=0.05) as identity:
        await identity.wait(2)
    reasons = [span.attributes[names.IDENTITY_REASON] for span in listening.spans.get_finished_spans()]
    assert reasons[:3] == ["opened", "due", "due"]


async def test_no_trace_outlives_an_identity(listening):
    """Neither dpmesh's own spans nor the source's RPCs belong to the trace in which the identity was opened."""
    tracer = listening.trace().get_tracer("application")
    issuer = Issuer()
    with tracer.start_as_current_span("start"):
        async with RotatingIdentity(issuer, every=0.05) as identity:
            await identity.wait(3)
            await identity.renew("a test")
    *rotations, start = listening.spans.get_finished_spans()
    assert start.name == "start"
    assert len(rotations) >= 5
    assert all(span.parent is None for span in rotations)
    assert len({span.context.trace_id for span in [*rotations, start]}) == len(rotations) + 1
    assert len(issuer.spans) >= 5
    assert not any(context.is_valid for context in issuer.spans)


async def test_nothing_that_names_an_identity_is_exported(listening, caplog):
    listening.trace()
    reader = listening.meter()
    issuer = Issuer()
    async with RotatingIdentity(issuer) as identity:
        await identity.renew("a test")
        issuer.reason = "REFUSED"
        with pytest.raises(IdentityError):
            await identity.renew("a test")
        said = reader.get_metrics_data().to_json()
    said += "".join(span.to_json() for span in listening.spans.get_finished_spans()) + caplog.text
    assert "dpmesh.identity.age" in said
    for made in issuer.made:
        for secret in (DOMAIN, "spiffe", "BEGIN", str(int(made.not_after)), "hunter2"):
            assert secret not in said


async def test_the_age(listening):
    reader = listening.meter()
    async with RotatingIdentity(Issuer()) as identity:
        await asyncio.sleep(0.2)
        (age,) = ages(reader)
        assert 0.2 <= age < 30
        data = reader.get_metrics_data().resource_metrics[0].scope_metrics[0]
        assert data.scope.name == "dpmesh"
        (metric,) = [metric for metric in data.metrics if metric.name == "dpmesh.identity.age"]
        assert metric.unit == "s"
        began = time.monotonic()
        await identity.renew("a test")
        (newer,) = ages(reader)
        # The one before would be older by at least 0.2 s, however long that took.
        assert newer <= time.monotonic() - began
    assert ages(reader) == []


async def test_of_several_identities_the_oldest_is_told(listening):
    reader = listening.meter()
    async with RotatingIdentity(Issuer()):
        await asyncio.sleep(0.2)
        async with RotatingIdentity(Issuer()):
            (age,) = ages(reader)
            assert age >= 0.2
    assert ages(reader) == []


async def test_failures_are_counted_by_reason(listening):
    reader = listening.meter()
    issuer = Issuer()
    async with RotatingIdentity(issuer) as identity:
        assert failures(reader) == {}
        for reason in ("REFUSED", "REFUSED", "RATE_LIMITED", "device-7"):
            issuer.reason = reason
            with pytest.raises(IdentityError):
                await identity.renew("a test")
    counted = {("REFUSED",): 2, ("RATE_LIMITED",): 1, ("ISSUER_UNAVAILABLE",): 1}
    assert failures(reader) == counted
    with pytest.raises(IdentityError):
        await RotatingIdentity(issuer).__aenter__()
    assert failures(reader) == {**counted, ("ISSUER_UNAVAILABLE",): 2}


async def test_failures_point_at_no_trace(listening):
    from opentelemetry.sdk.metrics import AlwaysOnExemplarFilter

    reader = listening.meter(exemplar_filter=AlwaysOnExemplarFilter())
    tracer = listening.trace().get_tracer("application")
    telemetry = IdentityTelemetry(lambda: 1.0)
    telemetry.refresh()
    with tracer.start_as_current_span("an RPC"):
        telemetry.failed("REFUSED")
        points = [point for found in read(reader).values() for point in found.values()]
    assert len(points) == 2
    assert not any(exemplar.trace_id for point in points for exemplar in point.exemplars)


def test_the_span_is_a_root_whatever_is_current(listening):
    tracer = listening.trace().get_tracer("application")
    telemetry = IdentityTelemetry(lambda: 1.0)
    telemetry.refresh()
    with tracer.start_as_current_span("an RPC"):
        telemetry.rotated(1, names.IDENTITY_OPENED, 0.0, 1, 2)
    rotation, rpc = listening.spans.get_finished_spans()
    assert rotation.parent is None
    assert rotation.context.trace_id != rpc.context.trace_id


async def test_a_provider_that_is_set_later_is_found(listening, monkeypatch):
    monkeypatch.setattr("dpmesh.identity.rotation.schedule.POLL", 0.02)
    async with RotatingIdentity(Issuer()):
        reader = listening.meter()
        await mutual_tls.until(lambda: len(ages(reader)) == 1)


def test_threads_register_the_instruments_once(listening, caplog):
    reader = listening.meter()
    telemetry = [IdentityTelemetry(lambda: 1.0) for _ in range(8)]
    pending = iter(telemetry)
    at_once(8, lambda: next(pending).refresh())
    for entry in telemetry:
        entry.failed("REFUSED")
    assert failures(reader) == {("REFUSED",): 8}
    assert ages(reader) == [1.0]
    assert not caplog.records


def test_providers_are_let_go(listening):
    telemetry = IdentityTelemetry(lambda: 1.0)
    first = listening.meter()
    telemetry.refresh()
    telemetry.failed("REFUSED")
    second = InMemoryMetricReader()
    listening.meters = MeterProvider([second], shutdown_on_exit=False)
    telemetry.refresh()
    telemetry.failed("REFUSED")
    assert failures(first) == failures(second) == {("REFUSED",): 1}


def test_nobody_listens():
    telemetry = IdentityTelemetry(lambda: 1.0)
    telemetry.failed("REFUSED")
    telemetry.rotated(1, names.IDENTITY_OPENED, 0.0, 0, 1)
    telemetry.refresh()
    telemetry.failed("REFUSED")
    telemetry.rotated(1, names.IDENTITY_OPENED, 0.0, 0, 1)


def test_nothing_is_imported_when_nobody_listens():
    program = """
import asyncio, sys, time
from dpmesh.identity import Identity, RotatingIdentity

class Source:
    follows = False
    async def fetch(self):
        now = time.time()
        return Identity(b"", str(now).encode(), b"", "", now, now + 60, now)
    async def close(self):
        pass

async def main():
    async with RotatingIdentity(Source()) as identity:
        await identity.renew("a test")

asyncio.run(main())
print([name for name in sys.modules if name.startswith(("opentelemetry", "grpc"))])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


async def test_a_forked_child_tells_no_age(listening):
    reader = listening.meter()
    async with RotatingIdentity(Issuer()):
        assert len(ages(reader)) == 1
        assert children.run(lambda: ages(reader)) == []
