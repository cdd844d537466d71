"""Absent values: what is estimated where they are filled up, and how `held` takes them out."""

from __future__ import annotations

import math

import pytest

from dpmesh.estimate import Estimate, EstimateError, Reader, absence
from dpmesh.policy import Policy
from tests.support.protos import compiled

# At this epsilon little noise is left. What is estimated is what the formulas say, within six standard errors (a false
# alarm in 10^8), or for shares within six lies more than never (10^12).
PROTO = """
message Inner {
  double depth = 1 [(dpmesh.v1.field).numeric = {lower: 10 upper: 60 resolution: 1 epsilon: 60.0}];
  Kind kind = 2 [(dpmesh.v1.field).categorical = {epsilon: 60.0}];
  oneof choice {
    option (dpmesh.v1.oneof) = {epsilon: 60.0};
    double near = 3 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1 epsilon: 1.0}];
    double far = 4 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1 epsilon: 1.0}];
  }
}
enum Kind { A = 0; B = 1; C = 2; }
message Mine {
  string id = 1 [(dpmesh.v1.field).unit = {}];
  double depth = 2 [(dpmesh.v1.field).numeric = {lower: 10 upper: 60 epsilon: 60.0}];
}
message M {
  repeated double values = 1 [
      (dpmesh.v1.field).numeric = {lower: 0 upper: 100 resolution: 1 mechanism: DISCRETE_LAPLACE epsilon: 60.0},
      (dpmesh.v1.field).max_items = 5];
  repeated Kind kinds = 2 [(dpmesh.v1.field).categorical = {epsilon: 60.0}, (dpmesh.v1.field).max_items = 5];
  optional double speed = 3 [(dpmesh.v1.field).numeric =
      {lower: 20 upper: 100 resolution: 1 mechanism: DISCRETE_LAPLACE epsilon: 60.0}];
  google.protobuf.Int32Value boxed = 4 [(dpmesh.v1.field).numeric =
      {lower: -5 upper: 5 mechanism: DISCRETE_LAPLACE epsilon: 60.0}];
  optional bool open = 5 [(dpmesh.v1.field).categorical = {epsilon: 60.0}];
  optional string gate = 6 [(dpmesh.v1.field).categorical = {epsilon: 60.0 domain: "X" domain: "Y"}];
  Inner inner = 7;
  repeated Inner inners = 8 [(dpmesh.v1.field).max_items = 4];
  map<string, Inner> spares = 9 [(dpmesh.v1.field).max_items = 4];
  double plain = 10 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1 epsilon: 60.0}];
  oneof shown {
    option (dpmesh.v1.oneof) = {public: true};
    double left = 11 [(dpmesh.v1.field).numeric = {lower: 10 upper: 20 resolution: 1 epsilon: 60.0}];
    double right = 12 [(dpmesh.v1.field).numeric = {lower: 10 upper: 20 resolution: 1 epsilon: 60.0}];
  }
  uint32 count = 13 [(dpmesh.v1.field).numeric = {lower: 0 upper: 5 output: IN_RANGE epsilon: 60.0}];
}
message Batch { repeated Mine reports = 1; }
message Contact {
  string id = 1 [(dpmesh.v1.field).unit = {form: SUPPRESSED}];
  bool sick = 2 [(dpmesh.v1.field).categorical = {epsilon: 60.0}];
}
message Phone {
  string id = 1 [(dpmesh.v1.field).unit = {}];
  repeated Contact seen = 2 [(dpmesh.v1.field).max_items = 4];
  Contact spouse = 3;
  bool on = 4 [(dpmesh.v1.field).categorical = {epsilon: 60.0}];
}
message Phones { repeated Phone phones = 1; }
"""


def alias(_unit: bytes, _epoch: float) -> bytes:
    return bytes(16)


@pytest.fixture(scope="module")
def protos():
    return compiled(PROTO)


@pytest.fixture(scope="module")
def reader(protos) -> Reader:
    return Reader(protos.M)


@pytest.fixture(scope="module")
def received(protos, reader):
    """100 messages of which each fourth holds an optional, a wrapper and a nested message, and all two values of five."""
    messages = []
    for number in range(100):
        message = protos.M(values=[50, 50], kinds=["C", "C"], count=2, plain=1)
        message.spares["s"].depth = 30
        message.inners.add(depth=50, kind="B", near=1)
        if number % 4 == 0:
            message.speed, message.open, message.gate = 60, True, "Y"
            message.boxed.value = 4
            message.inner.depth, message.inner.kind = 50, 2
            message.inner.far = 1
            message.left = 15
        elif number % 4 == 1:
            message.right = 12
        messages.append(reader.plan.protect(message, alias))
    return messages


def near(found: Estimate, truth: float) -> bool:
    return abs(found.value - truth) <= found.margin / 1.95 * 6


MEANS = [
    # (path, the default that fills a place, the mean over all places, the share held, the mean of held values)
    ("values", 0, 20, 0.4, 50),
    ("speed", 20, 30, 0.25, 60),
    ("boxed", 0, 1, 0.25, 4),
    ("inner.depth", 10, 20, 0.25, 50),
    ("inners.depth", 10, 20, 0.25, 50),
]


@pytest.mark.parametrize(("path", "default", "over_places", "held", "of_held"), MEANS)
def test_the_mean_is_per_place_and_with_held_that_of_held_values(
    reader, received, path, default, over_places, held, of_held
):
    per_place = reader.mean(path, received)
    assert per_place.per_place
    assert "per place" in str(per_place)
    assert near(per_place, over_places)
    found = reader.mean(path, received, held=held)
    assert not found.per_place
    assert near(found, of_held)
    assert (found.value - default) * held == pytest.approx(per_place.value - default)
    assert (found.high - found.low) * held == pytest.approx(per_place.high - per_place.low)
    # Everything held is what was estimated before.
    assert reader.mean(path, received, held=1).value == pytest.approx(per_place.value)


@pytest.mark.parametrize(("path", "default", "over_places", "held", "of_held"), MEANS)
def test_sums_take_out_what_fills_places(reader, received, path, default, over_places, held, of_held):
    plain, of = reader.sum(path, received), reader.sum(path, received, held=held)
    assert near(of, of.n * held * of_held)
    assert plain.per_place == (default != 0)
    if default == 0:
        assert (plain.value, plain.low, plain.high) == pytest.approx((of.value, of.low, of.high))


@pytest.mark.parametrize(
    ("path", "held", "over_places", "of_held"),
    [
        ("kinds", 0.4, {"A": 0.6, "B": 0, "C": 0.4}, {"A": 0, "B": 0, "C": 1}),
        ("open", 0.25, {False: 0.75, True: 0.25}, {False: 0, True: 1}),
        ("gate", 0.25, {"X": 0.75, "Y": 0.25}, {"X": 0, "Y": 1}),
        ("inner.kind", 0.25, {"A": 0.75, "B": 0, "C": 0.25}, {"A": 0, "B": 0, "C": 1}),
        ("inners.kind", 0.25, {"A": 0.75, "B": 0.25, "C": 0}, {"A": 0, "B": 1, "C": 0}),
        ("inner.choice", 0.25, {"near": 0, "far": 0.25, "none": 0.75}, {"near": 0, "far": 1, "none": 0}),
        ("inners.choice", 0.25, {"near": 0.25, "far": 0, "none": 0.75}, {"near": 1, "far": 0, "none": 0}),
    ],
)
def test_shares_are_per_place_and_with_held_those_of_held_values(
    reader, received, path, held, over_places, of_held
):
    found = reader.frequencies(path, received)
    assert all(entry.per_place for entry in found.values())
    assert {label: entry.value for label, entry in found.items()} == pytest.approx(over_places, abs=0.02)
    found = reader.frequencies(path, received, held=held)
    assert not any(entry.per_place for entry in found.values())
    assert {label: entry.value for label, entry in found.items()} == pytest.approx(of_held, abs=0.05)


@pytest.mark.parametrize("path", ["plain", "spares.depth", "left"])
def test_what_is_never_filled_is_no_place(reader, received, path):
    """Plain fields, entries of maps, and members of a oneof whose choice is public, which are there if chosen."""
    found = reader.mean(path, received)
    assert not found.per_place
    assert (found.n, round(found.value)) == {"plain": (100, 1), "spares.depth": (100, 30), "left": (25, 15)}[
        path
    ]
    with pytest.raises(EstimateError, match="never absent"):
        reader.mean(path, received, held=0.5)


def test_elements_with_a_unit_of_their_own_are_not_filled_up(protos):
    reader = Reader(protos.Batch)
    batch = protos.Batch(reports=[protos.Mine(id="a", depth=20)] * 3)
    found = reader.mean("reports.depth", [reader.plan.protect(batch, alias)])
    assert (found.n, found.per_place) == (3, False)


def test_messages_of_senders_that_could_not_pay_hold_no_report(reader, received, protos):
    blank = reader.plan.blank(protos.M(values=[1], speed=30), alias)
    for path in ("values", "kinds", "speed", "boxed", "open", "inner.depth", "inners.depth"):
        estimate = reader.frequencies if path in ("kinds", "open") else reader.mean
        assert estimate(path, [*received, blank, blank]) == estimate(path, received)
        with pytest.raises(EstimateError, match="no values"):
            estimate(path, [blank])


def test_the_share_may_be_an_estimate(reader, received):
    """From a field that counts: both intervals together fail as often as was asked for."""
    counted = reader.mean("count", received, confidence=0.975).scaled(1 / 5)
    assert near(counted, 0.4)
    found = reader.mean("values", received, held=counted)
    wide = reader.mean("values", received, confidence=0.975)
    assert found.value == pytest.approx(wide.value / counted.value)
    assert found.low == pytest.approx(wide.low / counted.high)
    assert found.high == pytest.approx(wide.high / counted.low)
    assert found.confidence == 0.95


def estimate(value: float, low: float, high: float, confidence: float = 0.975) -> Estimate:
    return Estimate(value, low, high, 10, confidence)


@pytest.mark.parametrize(
    ("places", "held", "default", "low", "high"),
    [
        ((30, 20, 40), (0.5, 0.4, 0.8), 10, 10 + 10 / 0.8, 10 + 30 / 0.4),
        ((30, -20, 40), (0.5, 0.4, 0.8), 10, 10 - 30 / 0.4, 10 + 30 / 0.4),
        ((-30, -40, -20), (0.5, 0.4, 0.8), 10, 10 - 50 / 0.4, 10 - 30 / 0.8),
        ((30, 20, 40), (0.5, -0.1, 1.8), 10, 10 + 10, math.inf),
        ((-30, -40, -20), (0.5, -0.1, 1.8), 10, -math.inf, 10 - 30),
        ((10, 10, 10), (0.5, -0.1, 1.8), 10, 10, 10),
    ],
)
def test_the_interval_is_the_widest_of_both(places, held, default, low, high):
    found = absence.mean_of_held("x", estimate(*places), default, estimate(*held), 0.95)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize(
    ("held", "says"),
    [
        (0, "above 0 and at most 1"),
        (2, "above 0 and at most 1"),
        (-0.5, "above 0 and at most 1"),
        (math.nan, "above 0 and at most 1"),
        (True, "above 0 and at most 1"),
        ("0.5", "above 0 and at most 1"),
        (estimate(0.5, 0.4, 0.6, 0.95), "confidence of at least 0.975"),
        (estimate(-0.01, -0.1, 0.1), "no place holds a value"),
    ],
)
def test_a_share_that_is_none(reader, received, held, says):
    for call in (reader.mean, reader.sum):
        with pytest.raises(EstimateError, match=f"^values: .*{says}"):
            call("values", received, held=held)
    with pytest.raises(EstimateError, match=f"^kinds: .*{says}"):
        reader.frequencies("kinds", received, held=held)


@pytest.mark.parametrize("name", ["Phone", "Phones"])
def test_a_unit_inside_of_a_unit_is_filled_where_it_is_absent_and_its_estimates_say_so(protos, name: str):
    phone = {"id": "p", "seen": [{"id": "a", "sick": True}], "spouse": {"id": "b", "sick": True}, "on": True}
    message = protos.Phone(**phone) if name == "Phone" else protos.Phones(phones=[phone])
    reader, path = Reader(getattr(protos, name)), "" if name == "Phone" else "phones."
    received = [reader.plan.protect(message, alias) for _ in range(20)]
    seen = reader.frequencies(f"{path}seen.sick", received)[True]
    assert seen.per_place
    assert seen.value == pytest.approx(0.25, abs=1e-9)
    assert reader.frequencies(f"{path}seen.sick", received, held=0.25)[True].value == pytest.approx(
        1, abs=1e-9
    )
    assert reader.frequencies(f"{path}spouse.sick", received)[True].per_place
    assert not reader.frequencies(f"{path}on", received)[True].per_place


def test_covers_are_taken_out_by_a_field_that_says_what_is_one():
    """The example of docs/wire.md. False alarm: once in 10^9, from the intervals' confidence."""
    protos = compiled(
        """message Position {
          string device = 1 [(dpmesh.v1.field).unit = {}];
          bool driving = 2 [(dpmesh.v1.field).categorical = {epsilon: 4}];
          optional double speed = 3 [(dpmesh.v1.field).numeric = {lower: 0 upper: 200 epsilon: 4}]; }"""
    )
    sent = [protos.Position(device="d7", driving=True, speed=120)] * 1500
    covers = [protos.Position(device="d7")] * 4500
    plan = Policy().plan(protos.Position.DESCRIPTOR)
    messages = [plan.protect(message, alias) for message in sent + covers]
    reader, sure = Reader(protos.Position), 1 - 1e-9
    held = reader.frequencies("driving", messages, confidence=1 - 5e-10)[True]
    assert held.covers(0.25)
    assert reader.mean("speed", messages, confidence=sure).covers(30)
    driven = reader.mean("speed", messages, held=held, confidence=sure)
    assert driven.covers(120)
    assert driven.margin < 60
