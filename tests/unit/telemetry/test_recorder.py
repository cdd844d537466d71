"""Spans: the contract's names, what the mesh passes and nothing else, under the right parent."""

from __future__ import annotations

import time

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind

from dpmesh.telemetry import Telemetry, names

from .conftest import refreshed

ATTRIBUTES = {
    names.RPC_METHOD: "/demo.v1.Collector/Report",
    names.MECHANISMS: ("discrete_laplace", "randomized_response"),
    names.DECISION: names.RELEASED,
    names.EPSILON: 2.0,
    names.FIELDS_COUNT: 8,
}


def test_the_names_are_the_contract():
    spelled = {value for name, value in vars(names).items() if name.isupper()}
    promised = """
        dpmesh.release rpc.method dpmesh.direction dpmesh.message dpmesh.decision dpmesh.epsilon dpmesh.delta
        dpmesh.rho dpmesh.mechanisms dpmesh.fields.count dpmesh.messages.count dpmesh.budget.name dpmesh.budget.spent
        dpmesh.budget.cap dpmesh.budget.state dpmesh.policy.version dpmesh.unit
        released refused replayed observed ok low exhausted
        dpmesh.privacy.loss dpmesh.releases dpmesh.release.duration dpmesh.ledger.duration dpmesh.identity.age
        dpmesh.items.cut dpmesh.observed.refusals
        method mechanism decision budget"""
    assert set(promised.split()) <= spelled


def test_a_span_has_what_was_passed_and_nothing_else(listening):
    listening.trace()
    telemetry = refreshed()
    assert telemetry.tracing
    started = time.time_ns() - 5_000_000
    telemetry.span(ATTRIBUTES, started, started + 7_000_000)
    (span,) = listening.spans.get_finished_spans()
    assert span.name == "dpmesh.release"
    assert span.kind is SpanKind.INTERNAL
    assert dict(span.attributes) == ATTRIBUTES
    assert span.start_time == started
    assert span.end_time == started + 7_000_000
    assert span.parent is None
    assert not span.events
    assert not span.links
    assert span.status.description is None
    assert span.instrumentation_scope.name == "dpmesh"


def test_it_is_a_child_of_the_current_span(listening):
    tracer = listening.trace().get_tracer("rpc")
    telemetry = refreshed()
    with tracer.start_as_current_span("rpc") as rpc:
        telemetry.span(ATTRIBUTES, 1, 2)
        telemetry.open_span(ATTRIBUTES, 1).end()
    *inner, outer = listening.spans.get_finished_spans()
    assert outer.context.span_id == rpc.get_span_context().span_id
    assert [span.parent.span_id for span in inner] == [outer.context.span_id] * 2
    assert [span.context.trace_id for span in inner] == [outer.context.trace_id] * 2


def test_an_open_span_takes_more_until_it_ends(listening):
    listening.trace()
    started = time.time_ns() - 1000
    span = refreshed().open_span({names.RPC_METHOD: "/a.B/C"}, started)
    span.add_event(names.BUDGET_EVENT, {names.BUDGET_STATE: names.STATE_LOW})
    span.set_attributes({names.MESSAGES_COUNT: 3})
    assert not listening.spans.get_finished_spans()
    span.end()
    (done,) = listening.spans.get_finished_spans()
    assert done.name == "dpmesh.release"
    assert done.kind is SpanKind.INTERNAL
    assert done.start_time == started
    assert dict(done.attributes) == {"rpc.method": "/a.B/C", "dpmesh.messages.count": 3}
    assert [event.name for event in done.events] == ["dpmesh.budget"]


def everything(telemetry: Telemetry) -> None:
    telemetry.span(ATTRIBUTES, 1, 2)
    span = telemetry.open_span(ATTRIBUTES, 1)
    span.add_event("event", {})
    span.set_attributes({"a": 1})
    span.end()
    telemetry.add("/a.B/C", "hybrid", "released", "daily", 1, 1.0, 0.1)
    telemetry.ledger(0.1)


def test_nothing_happens_before_refresh_and_without_providers(listening):
    telemetry = Telemetry()
    everything(telemetry)
    telemetry.refresh()
    assert (telemetry.tracing, telemetry.metering) == (False, False)
    everything(telemetry)
    assert not listening.spans.get_finished_spans()


def test_providers_that_are_set_later_are_found(listening):
    telemetry = refreshed()
    reader = listening.meter()
    telemetry.refresh()
    assert (telemetry.tracing, telemetry.metering) == (False, True)
    listening.trace()
    everything(telemetry)
    assert not listening.spans.get_finished_spans()
    telemetry.refresh()
    assert (telemetry.tracing, telemetry.metering) == (True, True)
    everything(telemetry)
    assert len(listening.spans.get_finished_spans()) == 2
    assert reader.get_metrics_data() is not None


def test_refresh_without_news_changes_nothing(listening):
    listening.trace()
    listening.meter()
    telemetry = refreshed()
    before = dict(vars(telemetry))
    telemetry.refresh()
    assert all(vars(telemetry)[name] is value for name, value in before.items())


def test_a_disabled_sdk_counts_as_none(listening, monkeypatch):
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    listening.trace()
    listening.meter()
    telemetry = refreshed()
    assert (telemetry.tracing, telemetry.metering) == (False, False)
    everything(telemetry)


def test_what_a_sampler_drops_is_not_recorded(listening):
    listening.trace(sampler=ALWAYS_OFF)
    refreshed().span(ATTRIBUTES, 1, 2)
    assert not listening.spans.get_finished_spans()


@pytest.mark.parametrize("value", [True, False])
def test_an_unsampled_rpc_has_no_release_span(listening, value):
    provider = listening.trace()
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if value else 0)
    rpc = trace.NonRecordingSpan(trace.SpanContext(7, 9, is_remote=True, trace_flags=flags))
    with trace.use_span(rpc):
        refreshed().span(ATTRIBUTES, 1, 2)
    assert len(listening.spans.get_finished_spans()) == value
    provider.shutdown()
