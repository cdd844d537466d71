"""Accumulators: parts, in any order and merged, give exactly the answer for all values at once."""

from __future__ import annotations

import json
import random
import tracemalloc

import numpy as np
import pytest

from dpmesh.estimate import Accumulator, EstimateError, Reader
from dpmesh.v1 import policy_pb2
from tests.support.protos import compiled

REPORT = """
message Report {
  option (dpmesh.v1.message) = {epsilon: 8.0};
  enum Color { RED = 0; GREEN = 5; BLUE = 7; }
  string unit = 1 [(dpmesh.v1.field).unit = {}];
  double speed = 2 [(dpmesh.v1.field).numeric = {lower: -50 upper: 50 mechanism: DISCRETE_LAPLACE}];
  double part = 3 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1 resolution: 0.3 output: IN_RANGE
                                                mechanism: DISCRETE_LAPLACE}];
  double ends = 4 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1 mechanism: DUCHI}];
  optional double few = 5 [(dpmesh.v1.field).numeric = {lower: 0 upper: 90}];
  sint64 total = 6 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1099511627776 resolution: 1
                                                 mechanism: DISCRETE_LAPLACE}];
  Color color = 7 [(dpmesh.v1.field).categorical = {}];
  dpmesh.v1.CategoryReport word = 8 [(dpmesh.v1.field).categorical = {}];
  repeated float step = 9 [(dpmesh.v1.field).vector = {dimension: 3 l2_norm: 1 epsilon: 2.0}];
  LatLng at = 10 [(dpmesh.v1.field).location = {
    min_latitude: 45.8 max_latitude: 47.9 min_longitude: 5.9 max_longitude: 10.5
    latitude: "lat" longitude: "lng" epsilon: 4.0}];
}
message LatLng { double lat = 1; double lng = 2; }
"""
WORDS = ["yes", "no"]
# How each field's answer is asked for, and what its accumulator is made with.
ASKED = [
    ("speed", "mean", {}),
    ("speed", "sum", {}),
    ("part", "mean", {}),
    ("ends", "mean", {}),
    ("few", "mean", {}),
    ("total", "mean", {}),
    ("color", "frequencies", {}),
    ("word", "frequencies", {"candidates": WORDS}),
    ("step", "mean_vector", {}),
    ("at", "heat_map", {"cell_km": 150}),
]


def alias(_unit: bytes, _epoch: float) -> bytes:
    return bytes(16)


@pytest.fixture(scope="module")
def protos():
    return compiled(REPORT)


@pytest.fixture(scope="module")
def reader(protos) -> Reader:
    return Reader(protos.Report)


@pytest.fixture(scope="module")
def received(protos, reader):
    report = protos.Report(unit="u", speed=12, part=0.3, ends=0.4, few=30, total=2**39 + 1, color=7)
    report.word.value = "yes"
    report.step.extend([0.5, -0.1, 0])
    report.at.lat, report.at.lng = 46.9, 7.4
    return [reader.plan.protect(report, alias) for _ in range(90)]


def same(found, expected) -> bool:
    if hasattr(found, "values") and isinstance(found.values, np.ndarray):
        return all(
            np.array_equal(getattr(found, name), getattr(expected, name))
            for name in ("values", "low", "high")
        )
    return found == expected


@pytest.mark.parametrize(("path", "call", "setting"), ASKED)
def test_parts_in_any_order_give_exactly_the_answer_of_all(reader, received, path, call, setting):
    expected = getattr(reader, call)(path, received, **setting)
    shuffled = random.Random(1).sample(received, len(received))
    parts = [shuffled[:1], shuffled[1:50], [], shuffled[50:]]
    one = reader.accumulator(path, **setting)
    for part in parts:
        assert one.add(iter(part)) is one
    assert one.n == 90
    merged = reader.accumulator(path, **setting)
    for part in reversed(parts):
        merged.merge(reader.accumulator(path, **setting).add(part))
    stored = reader.accumulator(path, **setting).merge(json.loads(json.dumps(one.to_dict())))
    for found in (one, merged, stored):
        assert found.to_dict() == one.to_dict()
        assert same(getattr(found, call)(), expected)


def test_held_is_given_with_the_question(reader, received):
    found = reader.accumulator("few").add(received)
    assert found.mean().per_place
    assert found.mean(held=0.5, confidence=0.9) == reader.mean("few", received, held=0.5, confidence=0.9)
    assert found.sum(held=0.5) == reader.sum("few", received, held=0.5)
    with pytest.raises(EstimateError, match="never absent"):
        reader.accumulator("speed").add(received).mean(held=0.5)


def test_sums_are_exact_where_floats_are_not(reader):
    """2^40 steps: sums of squares exceed 2^80, and the variance of four neighbours is still known."""
    high = 2**40
    found = reader.accumulator("total").add([high, high - 1, high - 2, high - 3]).to_dict()["figures"]
    assert found["total"] == [4 * high - 6]
    assert found["squares"] == [sum((high - k) ** 2 for k in range(4))]


def test_a_call_with_a_bad_value_adds_nothing(reader):
    found = reader.accumulator("speed").add([1.0, 2.0])
    before = found.to_dict()
    with pytest.raises(EstimateError, match="speed: one of the values is not a number"):
        found.add([1.0] * 20_000 + ["fast"])
    assert found.to_dict() == before


def test_accumulators_of_another_policy_or_field_are_refused(protos, reader):
    overlay = policy_pb2.Policy()
    rule = overlay.fields[protos.Report.DESCRIPTOR.full_name + ".ends"].numeric
    rule.lower, rule.upper, rule.mechanism, rule.epsilon = 0, 1, rule.DUCHI, 0.25
    own = reader.accumulator("ends")
    with pytest.raises(EstimateError, match="ends: is merged with an accumulator of another policy"):
        own.merge(Reader(protos.Report, overlay).accumulator("ends").add([]))
    with pytest.raises(EstimateError, match="of another field"):
        own.merge(reader.accumulator("speed"))
    with pytest.raises(EstimateError, match="of another setting"):
        reader.accumulator("word", candidates=["yes"]).merge(reader.accumulator("word", candidates=["no"]))
    with pytest.raises(EstimateError, match="of another setting"):
        reader.accumulator("at", cell_km=150).merge(reader.accumulator("at", cell_km=120))


@pytest.mark.parametrize(
    "change",
    [
        {"figures": None},
        {"figures": {}},
        {"figures": {"n": [1], "total": [1], "squares": [1], "first": [1], "last": [True]}},
        {"figures": {"n": [1], "total": [1.5], "squares": [1], "first": [1], "last": [1]}},
        {"figures": {"n": [1, 2], "total": [1], "squares": [1], "first": [1], "last": [1]}},
        {"figures": {"n": [-1], "total": [1], "squares": [1], "first": [1], "last": [1]}},
        {"format": 2},
    ],
)
def test_stored_figures_of_another_form_are_refused(reader, change):
    found = reader.accumulator("speed").add([1.0])
    with pytest.raises(EstimateError, match="speed: "):
        reader.accumulator("speed").merge(found.to_dict() | change)
    with pytest.raises(EstimateError, match="speed: "):
        reader.accumulator("speed").merge(change)
    with pytest.raises(EstimateError, match="only be merged with an accumulator"):
        reader.accumulator("speed").merge([1])  # type: ignore[arg-type]


def test_questions_that_do_not_fit_the_field_are_refused(reader):
    asked: list[tuple[str, str, str]] = [
        ("color", "mean", "not numeric"),
        ("color", "sum", "not numeric"),
        ("speed", "frequencies", "not categorical"),
        ("speed", "mean_vector", "not a vector"),
        ("speed", "heat_map", "not location"),
    ]
    for path, call, says in asked:
        with pytest.raises(EstimateError, match=f"{path}: .*{says}"):
            getattr(reader.accumulator(path), call)()
    with pytest.raises(EstimateError, match="leave candidates out"):
        reader.accumulator("speed", candidates=WORDS)
    with pytest.raises(EstimateError, match="leave cell_km out"):
        reader.accumulator("color", cell_km=1)
    with pytest.raises(EstimateError, match="list those whose shares you want"):
        reader.accumulator("word")


@pytest.mark.parametrize(("path", "call", "setting"), ASKED)
def test_no_values_have_no_answer(reader, path, call, setting):
    found: Accumulator = reader.accumulator(path, **setting)
    assert found.n == 0
    with pytest.raises(EstimateError, match=f"{path}: there are no v"):
        getattr(found, call)()


def test_memory_does_not_grow_with_the_values(reader):
    """A million numbers are 8 MB as floats; the peak is that of one block and what is computed from it."""
    found = reader.accumulator("speed")
    found.add([1.0])
    tracemalloc.start()
    found.add(float(number % 7) for number in range(100_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.n == 100_001
    assert peak < 600_000
