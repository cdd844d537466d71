"""What a Reader answers, and what it says to bad input."""

from __future__ import annotations

import math

import pytest
from google.protobuf.message import Message

from dpmesh.errors import DpmeshError
from dpmesh.estimate import EstimateError, Reader
from dpmesh.policy import Policy
from dpmesh.v1 import policy_pb2
from tests.support.protos import compiled

REPORT = """
message Report {
  option (dpmesh.v1.message) = {epsilon: 5.0};
  enum Color { RED = 0; GREEN = 5; BLUE = 7; }
  message Part {
    double weight = 1 [(dpmesh.v1.field).numeric = {lower: 0 upper: 10 epsilon: 1.0}];
  }
  string unit = 1 [(dpmesh.v1.field).unit = {}];
  double speed = 2 [(dpmesh.v1.field).numeric = {lower: -50 upper: 50 mechanism: DISCRETE_LAPLACE}];
  float ratio = 3 [(dpmesh.v1.field).numeric = {lower: 0.1 upper: 0.9 output: IN_RANGE}];
  Color color = 4 [(dpmesh.v1.field).categorical = {}];
  bool open = 5 [(dpmesh.v1.field).categorical = {}];
  string gate = 6 [(dpmesh.v1.field).categorical = {domain: "A" domain: "B"}];
  string note = 7 [(dpmesh.v1.field).suppress = {}];
  repeated Part parts = 8 [(dpmesh.v1.field).max_items = 2];
  map<string, Part> spares = 9 [(dpmesh.v1.field).max_items = 2];
  google.protobuf.DoubleValue boxed = 10 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1 epsilon: 1.0}];
  repeated sint32 steps = 11
      [(dpmesh.v1.field).numeric = {lower: 0 upper: 9 epsilon: 1.0 resolution: 3}, (dpmesh.v1.field).max_items = 3];
  oneof choice {
    option (dpmesh.v1.oneof) = {epsilon: 1.0};
    double near = 12 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1 epsilon: 1.0}];
    double far = 13 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1 epsilon: 1.0}];
  }
  sint64 total = 14 [(dpmesh.v1.field).numeric =
      {lower: 0 upper: 1000000 resolution: 1 sensitivity: 10 epsilon: 0.5}];
}
message Plain { double speed = 1; }
"""
SECRET = 4711.125


def alias(_unit: bytes, _epoch: float) -> bytes:
    return bytes(16)


@pytest.fixture(scope="module")
def protos():
    return compiled(REPORT)


@pytest.fixture(scope="module")
def reader(protos) -> Reader:
    return Reader(protos.Report)


@pytest.fixture(scope="module")
def received(protos, reader) -> list[Message]:
    """400 protected reports that all hold the same."""
    report = protos.Report(unit="u", speed=12, ratio=0.3, color=7, open=True, gate="B", total=500, near=1)
    report.parts.add(weight=4)
    report.parts.add(weight=4)
    report.spares["s"].weight = 6
    report.boxed.value = 0.5
    report.steps.extend([9, 9, 9])
    return [reader.plan.protect(report, alias) for _ in range(400)]


def near(estimate, truth: float) -> bool:
    """Within 6 standard errors (a false alarm in 5e8)."""
    return abs(estimate.value - truth) <= estimate.margin / 1.95996 * 6


@pytest.mark.parametrize(
    ("path", "truth", "n"),
    [
        ("speed", 12, 400),
        ("ratio", 0.3, 400),
        ("parts.weight", 4, 800),
        ("parts[].weight", 4, 800),
        ("spares.weight", 6, 400),
        ("spares{}.weight", 6, 400),
        ("boxed", 0.5, 400),
        ("steps", 9, 1200),
        ("total", 500, 400),
    ],
)
def test_means_are_read_from_messages_by_path(reader, received, path, truth, n):
    mean = reader.mean(path, received)
    assert mean.n == n
    assert near(mean, truth)
    total = reader.sum(path, received)
    assert total.value == pytest.approx(mean.value * n)
    assert (total.low, total.high) == (pytest.approx(mean.low * n), pytest.approx(mean.high * n))


def test_numbers_and_messages_give_the_same(reader, received):
    assert reader.mean("speed", [message.speed for message in received]) == reader.mean("speed", received)
    assert reader.mean("speed", iter(received)) == reader.mean("speed", received)


def test_enums_are_named(reader, received):
    found = reader.frequencies("color", received)
    assert list(found) == ["RED", "GREEN", "BLUE"]
    assert near(found["BLUE"], 1.0)
    assert near(found["RED"], 0.0)
    assert sum(entry.value for entry in found.values()) == pytest.approx(1.0)
    assert reader.frequencies("color", [message.color for message in received]) == found
    names = {0: "RED", 5: "GREEN", 7: "BLUE"}
    assert reader.frequencies("color", [names[message.color] for message in received]) == found


def test_other_categories_are_their_own_labels(reader, received):
    assert set(reader.frequencies("open", received)) == {False, True}
    assert near(reader.frequencies("open", received)[True], 1.0)
    assert near(reader.frequencies("gate", received)["B"], 1.0)
    assert near(reader.frequencies("choice", received)["near"], 1.0)
    assert set(reader.frequencies("choice", received)) == {"near", "far", "none"}


def test_confidence_widens(reader, received):
    widths = [reader.mean("speed", received, confidence=c).margin for c in (0.5, 0.95, 0.999)]
    assert widths == sorted(widths)
    assert widths[1] / widths[0] == pytest.approx(1.959964 / 0.67449, rel=5e-3)
    for confidence in (0, 1, -1, math.nan, 2):
        with pytest.raises(ValueError, match="confidence"):
            reader.mean("speed", received, confidence=confidence)
        with pytest.raises(ValueError, match="confidence"):
            reader.value("total", 5, confidence=confidence)


def test_few_values_get_the_plans_worst_variance(reader):
    field = next(entry for entry in reader.plan.fields if entry.path == "speed")
    worst = math.sqrt(field.payload.mechanism.worst_variance) * field.payload.grid.step
    assert reader.mean("speed", [3.0, 3.0, 3.0, 3.0]).margin == pytest.approx(1.959964 * worst / 2, rel=1e-5)
    assert reader.mean("speed", [3.0]).margin == pytest.approx(1.959964 * worst, rel=1e-5)


def test_a_single_aggregate(reader, received):
    message = received[0]
    told = reader.value("total", message)
    assert told == reader.value("total", message.total)
    assert told.value == message.total
    # b = 20: the least w with 2 a^(w+1)/(1+a) <= 0.05.
    a = math.exp(-1 / 20)
    assert 2 * a ** (told.margin + 1) / (1 + a) <= 0.05 < 2 * a**told.margin / (1 + a)
    assert told.margin == round(told.margin)
    assert told.n == 1
    assert told.covers(told.value)
    assert not told.covers(told.high + 1)


def test_overlays_count(protos):
    overlay = policy_pb2.Policy()
    rule = overlay.fields[protos.Report.DESCRIPTOR.full_name + ".speed"].numeric
    rule.lower, rule.upper, rule.epsilon, rule.mechanism = -50, 50, 0.25, rule.DISCRETE_LAPLACE
    default, changed = Reader(protos.Report), Reader(protos.Report, overlay)
    assert changed.mean("speed", [0.0]).margin > 2 * default.mean("speed", [0.0]).margin


BAD = [
    ("mean", "sped", [1.0], "no such field with noise; fields with noise: speed, ratio, color"),
    ("mean", "note", [1.0], "is suppress and carries no noise"),
    ("mean", "unit", [1.0], "is unit and carries no noise"),
    ("mean", "color", [0], "not numeric"),
    ("value", "color", 0, "not numeric"),
    ("frequencies", "speed", [1.0], "not categorical"),
    ("mean", "speed", [], "there are no values"),
    ("frequencies", "color", [], "there are no values"),
    ("mean", "near", [1.0], "in the oneof choice"),
    ("mean", "speed", [1.0, "fast"], "not a number"),
    ("mean", "speed", [1.0, None], "not a number"),
    ("mean", "speed", [1.0, 10**400], "not a number"),
    ("mean", "speed", [1.0, math.nan], "outside of"),
    ("mean", "speed", [math.inf], "outside of"),
    ("mean", "speed", [1e308], "outside of"),
    ("mean", "ratio", [SECRET], "outside of 0.1 to 0.899988"),
    ("mean", "ratio", [0.05], "outside of 0.1 to 0.899988"),
    ("mean", "total", [-1e9], "outside of"),
    ("value", "total", 1e9, "outside of"),
    ("value", "boxed", 0.5, "does not simply add noise"),
    ("frequencies", "color", [0, 4711], "not one of its categories"),
    ("frequencies", "color", ["RED", "4711.125"], "not one of its categories"),
    ("frequencies", "color", [[4711]], "not one of its categories"),
]


@pytest.mark.parametrize(("call", "path", "values", "says"), BAD)
def test_bad_input_names_the_field_and_never_the_value(reader, call, path, values, says):
    with pytest.raises(EstimateError) as caught:
        getattr(reader, call)(path, values)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert says in text
    assert "4711" not in text
    assert caught.value.__cause__ is None
    assert isinstance(caught.value, DpmeshError)


def test_messages_of_another_type_are_refused(reader, protos, received):
    with pytest.raises(EstimateError, match=r"is no \S*Report, which this reader is for"):
        reader.mean("speed", [*received, protos.Plain(speed=1)])
    with pytest.raises(EstimateError, match=r"is no \S*Report, which this reader is for"):
        reader.mean("speed", [received[0], 1.0])


def test_a_message_that_holds_it_twice_is_no_single_value(reader, protos):
    report = protos.Report()
    report.steps.extend([1, 2])
    overlay = policy_pb2.Policy()
    rule = overlay.fields[protos.Report.DESCRIPTOR.full_name + ".steps"]
    rule.numeric.lower, rule.numeric.upper, rule.numeric.epsilon = 0, 9, 1
    rule.numeric.mechanism, rule.max_items = rule.numeric.DISCRETE_LAPLACE, 2
    with pytest.raises(EstimateError, match="holds it 2 times"):
        Reader(protos.Report, overlay).value("steps", report)


def test_division_by_nothing(reader):
    with pytest.raises(EstimateError, match="is 0"):
        reader.ratio("total", 5, "total", 0)


def test_unprotected_types_have_nothing_to_estimate(protos):
    with pytest.raises(EstimateError, match="nothing of it is protected"):
        Reader(protos.Plain)


def test_estimates_print_short(reader):
    assert str(reader.value("total", 500)) == "500 [440, 560]"


def test_projected_frequencies_are_shares(reader, received):
    unbiased, found = (reader.frequencies("color", received, project=project) for project in (False, True))
    assert list(found) == list(unbiased)
    assert sum(entry.value for entry in found.values()) == pytest.approx(1)
    for color, entry in found.items():
        assert 0 <= entry.low <= entry.value <= entry.high <= 1
        assert entry.high >= min(unbiased[color].high, 1)


@pytest.mark.parametrize("given", ["acme.Report", int, None])
def test_what_is_no_message_type_is_refused(given):
    with pytest.raises(EstimateError, match="^message_type: has to be a generated class"):
        Reader(given)


def test_digests_of_another_policy_are_refused(protos):
    """Two bools at different epsilons give the same outputs, and only what their senders said tells them apart."""
    overlay = policy_pb2.Policy()
    overlay.fields[protos.Report.DESCRIPTOR.full_name + ".open"].categorical.epsilon = 4
    digests = [Policy(each).plan(protos.Report.DESCRIPTOR).version for each in (None, overlay)]
    assert digests[0] != digests[1]
    plain, changed = Reader(protos.Report), Reader(protos.Report, overlay, digests=digests[1])
    for digest in (digests[0], [digests[0]] * 3, {digests[0]}, []):
        assert Reader(protos.Report, digests=digest).plan.version == plain.plan.version
    with pytest.raises(EstimateError, match=r"Report: one of the digests is not this policy's"):
        Reader(protos.Report, digests=digests)
    with pytest.raises(EstimateError, match="one of the digests"):
        Reader(protos.Report, digests=changed.plan.version)
    with pytest.raises(EstimateError, match="one of the digests"):
        Reader(protos.Report, digests="")


def test_a_plan_knows_its_version_and_no_overlays(reader):
    assert Reader(reader.plan, digests=reader.plan.version).plan is reader.plan
    with pytest.raises(EstimateError, match="one of the digests"):
        Reader(reader.plan, digests=Policy().digest)


@pytest.mark.parametrize(
    ("call", "path", "values", "says"),
    [
        ("mean", "speed", [1.0, 1 / 3], "none of its policy's outputs"),
        ("value", "total", 4711.5, "none of its policy's outputs"),
        ("frequencies", "open", [True] * 200, "another policy has released them"),
        ("frequencies", "color", ["RED"] * 200, "another policy has released them"),
    ],
)
def test_what_the_law_can_not_give_is_refused(reader, call, path, values, says):
    with pytest.raises(EstimateError, match=f"^{path}: .*{says}") as caught:
        getattr(reader, call)(path, values)
    assert "4711" not in str(caught.value)


@pytest.mark.parametrize(
    "path", ["speed", "ratio", "total", "steps", "boxed", "parts.weight", "spares.weight"]
)
def test_messages_that_left_without_values_count_for_no_number(reader, received, path):
    """0 is an output of some fields, so zeros of an exhausted budget would pass for values."""
    blank = [reader.plan.blank(message, alias) for message in received]
    assert reader.mean(path, received + blank) == reader.mean(path, received)


@pytest.mark.parametrize("path", ["color", "open", "gate", "choice"])
def test_messages_that_left_without_values_count_for_no_category(reader, received, path):
    blank = [reader.plan.blank(message, alias) for message in received]
    assert reader.frequencies(path, received + blank) == reader.frequencies(path, received)


def test_memoized_answers_count_in_messages_that_left_without_other_values():
    types = compiled("""message M {
          string unit = 1 [(dpmesh.v1.field).unit = {}];
          bool open = 2 [(dpmesh.v1.field) = {categorical: {epsilon: 1} memoize: {}}];
          uint32 people = 3 [(dpmesh.v1.field).numeric = {lower: 0 upper: 9 epsilon: 1 output: IN_RANGE}];
          optional double speed = 4 [(dpmesh.v1.field).numeric = {lower: 0 upper: 9 epsilon: 1}];
        }""")
    reader, replayed = Reader(types.M), types.M(unit="u", open=True)
    assert reader.frequencies("open", [replayed] * 9)[True].n == 9
    with pytest.raises(EstimateError, match="there are no values"):
        reader.mean("people", [replayed])


def test_messages_of_another_type_are_refused_with_the_type_that_is_read(reader, protos, received):
    """A part of the message, say: the reader is for the whole."""
    with pytest.raises(
        EstimateError, match=r"^parts\[\].weight: one of the values is no \S*Report, which this reader is for"
    ):
        reader.mean("parts.weight", [message.parts[0] for message in received])
    with pytest.raises(EstimateError, match="pass numbers, or the messages that were received"):
        reader.mean("speed", [protos])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_lists_of_another_length_are_refused(reader, protos, count):
    message = protos.Report()
    message.steps.extend([3] * count)
    with pytest.raises(EstimateError, match="^steps: .* does not hold it 3 times"):
        reader.mean("steps", [message])
