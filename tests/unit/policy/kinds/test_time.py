"""Times leave as whole steps between public bounds, as valid messages, whatever the sender holds."""

import itertools
import math
import re
from fractions import Fraction
from functools import cache
from pathlib import Path

import mpmath
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from dpmesh.accounting import AMOUNT
from dpmesh.errors import AnnotationError
from dpmesh.estimate import Reader
from dpmesh.noise.discrete_laplace import DiscreteLaplace
from dpmesh.noise.numeric import padded
from dpmesh.policy import Grid, Model, Policy
from dpmesh.policy.codegen.source import draw_function
from dpmesh.policy.diagnostics import Severity
from tests.support.protos import compiled
from tests.unit.noise import exact

TIME = "(dpmesh.v1.field).time"
JANUARY = 'earliest: "2026-01-01T00:00:00Z" latest: "2026-01-31T00:00:00Z"'
FIRST, DAY = 1_767_225_600, 86_400
EXACT = "epsilon: 64 largest_shift: {nanos: 1}"
"""With epsilon 64 on a shift of one step, a value on the grid leaves as it is, but for one in 10^27."""
TYPES = compiled(
    f"""message M {{
        google.protobuf.Timestamp at = 1 [{TIME} = {{{JANUARY} {EXACT} resolution: {{seconds: 86400}}}}];
        google.protobuf.Duration took = 2 [{TIME} = {{earliest: "-2s" latest: "2s" {EXACT}
            resolution: {{nanos: 100000000}}}}];
        int64 day = 3 [{TIME} = {{{JANUARY} {EXACT} step: DAY}}];
        uint32 minutes = 4 [{TIME} = {{earliest: "0s" latest: "3600s" {EXACT} step: MINUTE}}];
        repeated google.protobuf.Timestamp all = 5 [{TIME} = {{{JANUARY} epsilon: 64 largest_shift: {{nanos: 1}} resolution: {{seconds: 864000}}}},
            (dpmesh.v1.field).max_items = 3];
        google.protobuf.Int64Value wrapped = 6 [{TIME} = {{earliest: "0s" latest: "10s" {EXACT} step: SECOND}}];
    }}"""
)


def alias(unit, epoch):
    return b"#" * 16


@cache
def plan_of(kind):
    return Policy().plan(kind.DESCRIPTOR)


def field_of(body):
    return plan_of(compiled(f"message F {{ {body} }}").F).fields[0]


def protect(**values):
    return plan_of(TYPES.M).protect(TYPES.M(**values), alias)


def refused(body):
    with pytest.raises(AnnotationError) as error:
        field_of(body)
    return str(error.value)


def test_times_leave_on_their_grid():
    out = protect(
        at=Timestamp(seconds=FIRST + 7 * DAY + 100, nanos=5),
        took=Duration(seconds=-1, nanos=-240_000_000),
        day=20_460,
        minutes=17,
        all=[Timestamp(seconds=FIRST + 10 * DAY)],
        wrapped={"value": 3},
    )
    assert out.at == Timestamp(seconds=FIRST + 7 * DAY)
    assert out.took == Duration(seconds=-1, nanos=-200_000_000)
    assert (out.day, out.minutes, out.wrapped.value) == (20_460, 17, 3)
    assert [at.seconds for at in out.all] == [FIRST + 10 * DAY, FIRST, FIRST]


def test_absent_times_count_as_0_and_leave():
    out = protect()
    assert (out.at.seconds, out.took, out.day, out.minutes) == (FIRST, Duration(), 20_454, 0)
    assert out.HasField("at")
    assert out.HasField("took")
    assert out.HasField("wrapped")
    assert len(out.all) == 3


EXTREMES = [-(2**63), -(10**12), -62_135_596_801, -1, 0, FIRST, 253_402_300_800, 2**63 - 1]


@pytest.mark.parametrize("nanos", [-(2**31), -1, 0, 999_999_999, 2**31 - 1])
@pytest.mark.parametrize("seconds", EXTREMES)
def test_what_no_clock_shows_is_clamped(seconds, nanos):
    at = {"seconds": seconds, "nanos": nanos}
    out = protect(at=at, took=at, all=[at], day=seconds, minutes=abs(nanos), wrapped={"value": seconds})
    total = seconds + Fraction(nanos, 10**9)
    inside = min(max(total, FIRST), FIRST + 30 * DAY)
    assert abs(out.at.seconds - inside) <= DAY / 2
    assert out.at.nanos == 0
    assert out.took.ToNanoseconds() == round(min(max(total, -2), 2) * 10) * 10**8
    assert out.day == min(max(seconds, 20_454), 20_484)
    out.at.ToDatetime()
    out.took.ToTimedelta()
    type(out).FromString(out.SerializeToString())


BOUNDED = [
    ("google.protobuf.Timestamp f = 1", 'earliest: "0001-01-01T00:00:00Z" latest: "0001-01-02T00:00:00Z"'),
    (
        "google.protobuf.Timestamp f = 1",
        'earliest: "9999-12-31T00:00:00Z" latest: "9999-12-31T23:59:59.999999999Z"',
    ),
    ("google.protobuf.Timestamp f = 1", 'earliest: "0001-01-01T00:00:00Z" latest: "9999-12-31T23:59:59Z"'),
    ("google.protobuf.Duration f = 1", 'earliest: "-315576000000s" latest: "315576000000s"'),
    ("google.protobuf.Duration f = 1", 'earliest: "-0.000000010s" latest: "0.000000010s"'),
    ("uint32 f = 1", 'earliest: "0s" latest: "60s" step: SECOND'),
    ("sint32 f = 1", 'earliest: "2000-01-01T00:00:00Z" latest: "2038-01-19T03:14:07Z" step: SECOND'),
    ("fixed64 f = 1", 'earliest: "1970-01-01T00:00:00Z" latest: "2038-01-19T03:14:07Z" step: NANOSECOND'),
]


@pytest.mark.parametrize("shift", ["", "largest_shift: {seconds: 1}"])
@pytest.mark.parametrize("epsilon", [0.01, 1.0])
@pytest.mark.parametrize(("declared", "bounds"), BOUNDED)
def test_outputs_are_valid_at_the_limits_of_the_types(declared, bounds, epsilon, shift):
    types = compiled(f"message F {{ {declared} [{TIME} = {{{bounds} {shift} epsilon: {epsilon}}}]; }}")
    plan = plan_of(types.F)
    for seconds in (-(2**62), 0, 2**62):
        for _ in range(30):
            message = types.F()
            if hasattr(message.f, "seconds"):
                message.f.seconds = seconds
            out = plan.protect(message, alias)
            if hasattr(out.f, "ToJsonString"):
                out.f.ToJsonString()  # Refuses what is no valid time.
    (field,) = plan.fields
    number = field.payload.number
    mean = Reader(types.F).mean("f", [plan.protect(types.F(), alias) for _ in range(50)])
    assert mean.n == 50
    assert field.payload.ticks.in_range == number.in_range


def test_the_default_resolution_is_a_second_or_below():
    def step(bounds, declared="google.protobuf.Duration f = 1"):
        return field_of(f"{declared} [{TIME} = {{{bounds} epsilon: 1}}];").payload.number.grid.step

    assert step('earliest: "0s" latest: "86400s"') == 1
    assert step('earliest: "0s" latest: "9999s"') == 0.1
    assert step('earliest: "0s" latest: "2s"') == 1e-4
    assert step('earliest: "0s" latest: "0.000001s"') == 1e-9
    assert step('earliest: "0s" latest: "2s" step: MILLISECOND', "int32 f = 1") == 1
    # 2^40 steps are few of a nanosecond.
    assert step('earliest: "0s" latest: "86400s" step: NANOSECOND', "int64 f = 1") == 100


def test_fractions_of_a_second_do_not_leave_unless_the_resolution_has_them():
    bounds = 'earliest: "2026-01-01T00:00:00.5Z" latest: "2026-01-01T12:00:00.7Z"'
    types = compiled(f"message F {{ google.protobuf.Timestamp f = 1 [{TIME} = {{{bounds} epsilon: 1}}]; }}")
    outs = [plan_of(types.F).protect(types.F(), alias) for _ in range(200)]
    assert {out.f.nanos for out in outs} == {0}


def test_the_plan_speaks_of_an_integer_in_its_own_steps():
    hours = field_of(f'int64 h = 1 [{TIME} = {{earliest: "0s" latest: "86400s" step: HOUR epsilon: 1}}];')
    shown = hours.kind.describe(hours)
    assert shown.output == "-23 h to 47 h"
    assert shown.error == pytest.approx(24.2, abs=0.1)
    dates = field_of(f"int64 at = 1 [{TIME} = {{{JANUARY} step: MILLISECOND epsilon: 1}}];")
    assert dates.kind.describe(dates).output.endswith("Z, error in ms")


def test_the_range_is_the_sensitivity_and_a_shift_is_a_weaker_promise():
    whole = field_of(f"int64 f = 1 [{TIME} = {{{JANUARY} epsilon: 1 step: DAY}}];")
    shifted = field_of(
        f"int64 f = 1 [{TIME} = {{{JANUARY} epsilon: 1 step: DAY largest_shift: {{seconds: 90000}}}}];"
    )
    # 25 hours are at most two steps of a day.
    assert shifted.payload.number.mechanism.draws.key == (DiscreteLaplace, padded(Fraction(2)))
    assert (whole.model, whole.cost.epsilon, shifted.cost.epsilon) == (Model.LOCAL, AMOUNT, AMOUNT)
    described = shifted.kind.describe(shifted)
    assert described.output.endswith("hides shifts up to 90000 s only")
    assert described.error < whole.kind.describe(whole).error / 3
    body = f"int64 f = 1 [{TIME} = {{{JANUARY} epsilon: 1 step: DAY largest_shift: {{seconds: 60}}}}];"
    findings = Policy().diagnostics(compiled(f"message F {{ {body} }}").F.DESCRIPTOR)
    assert [(entry.severity, entry.rule) for entry in findings] == [(Severity.WARNING, "largest-shift")]


@pytest.mark.parametrize("epsilon", [Fraction(1, 2), Fraction(1), Fraction(4)])
def test_times_within_a_shift_can_be_told_apart_by_no_more_than_epsilon(epsilon):
    """The whole law of six steps with a shift of two, enumerated from the sampler's thresholds."""
    with mpmath.workdps(60):
        rules = f'earliest: "0s" latest: "6s" step: SECOND largest_shift: {{seconds: 2}} epsilon: {float(epsilon)}'
        number = field_of(f"uint32 f = 1 [{TIME} = {{{rules}}}];").payload.number
        assert number.grid == Grid(0, 6, 1, 6, True)
        mechanism = number.mechanism
        assert mechanism.kind == "discrete_laplace"
        assert number.in_range
        scale = mechanism.draws.key[1]
        reach = math.ceil(90 * scale)
        noise = exact.laplace(DiscreteLaplace(scale), reach, 2 * reach)
        tables = [exact.clamped(noise, x, 0, 6) for x in range(7)]
        worst = max(
            exact.worst_ratio([tables[x], tables[y]])
            for x, y in itertools.combinations(range(7), 2)
            if y - x <= 2
        )
        assert mpmath.log(worst) <= mpmath.mpf(epsilon.numerator) / epsilon.denominator
        assert mpmath.log(worst) >= 0.999 * float(epsilon)
        replaced = {0: mechanism.unbiased_low, 6: mechanism.unbiased_high}
        for x, table in enumerate(tables):
            outputs = {replaced.get(y, y): float(p) for y, p in table.items()}
            mean = sum(y * p for y, p in outputs.items())
            assert mean == pytest.approx(x, abs=1e-9)
            variance = sum((y - x) ** 2 * p for y, p in outputs.items())
            assert variance == pytest.approx(mechanism.variance(x), rel=1e-6)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 4.0])
def test_the_variance_is_what_the_plan_says(epsilon):
    """200,000 draws of a shift of 300 s: five standard errors are 3 %, so below 6e-7 false alarms; `make stat` is finer."""
    rules = f'earliest: "0s" latest: "86400s" largest_shift: {{seconds: 300}} epsilon: {epsilon}'
    payload = field_of(f"google.protobuf.Duration f = 1 [{TIME} = {{{rules}}}];").payload
    draw = draw_function(payload.number.mechanism.draws)
    errors = np.fromiter(map(draw, itertools.repeat(43_200)), np.float64, 200_000) - 43_200
    assert abs(errors.var() / payload.number.deviation**2 - 1) < 0.03
    assert abs(errors.mean()) < 5 * payload.number.deviation / math.sqrt(200_000)


def test_a_reader_takes_the_mean_of_timestamps_in_seconds_since_1970():
    types = compiled(
        f"""message F {{ google.protobuf.Timestamp at = 1 [{TIME} = {{{JANUARY} epsilon: 4}}];
        repeated google.protobuf.Duration took = 2 [{TIME} = {{earliest: "0s" latest: "10s" epsilon: 8}},
            (dpmesh.v1.field).max_items = 2]; }}"""
    )
    plan = plan_of(types.F)
    held = types.F(at=Timestamp(seconds=FIRST + 10 * DAY), took=[Duration(seconds=4), Duration(seconds=2)])
    received = [plan.protect(held, alias) for _ in range(400)]
    reader = Reader(types.F)
    mean = reader.mean("at", received, confidence=1 - 1e-9)
    assert mean.covers(FIRST + 10 * DAY)
    assert mean.margin < 5 * DAY
    assert mean.per_place
    took = reader.mean("took", received, confidence=1 - 1e-9)
    assert (took.n, took.covers(3)) == (800, True)
    seconds = [message.at.seconds for message in received]
    assert reader.mean("at", seconds).value == pytest.approx(mean.value)


def test_bad_rules_are_refused_with_what_to_do():
    stamp, length, whole = "google.protobuf.Timestamp f = 1", "google.protobuf.Duration f = 1", "int64 f = 1"

    def text(declared, rules):
        return refused(f"{declared} [{TIME} = {{{rules} epsilon: 1}}];")

    assert "has no earliest and latest" in text(stamp, "")
    assert "must both be dates" in text(stamp, 'earliest: "1s" latest: "2s"')
    assert 'must both be lengths such as "90s"' in text(length, JANUARY)
    assert "must both be dates" in text(whole, 'earliest: "1s" latest: "2026-01-01T00:00:00Z" step: SECOND')
    assert "is not before" in text(length, 'earliest: "2s" latest: "2s"')
    assert "must both be dates" in text(
        stamp, 'earliest: "0000-01-01T00:00:00Z" latest: "10000-01-01T00:00:00Z"'
    )
    assert "must say what 1 means" in text(whole, JANUARY)
    assert "brings its own" in text(stamp, JANUARY + " step: DAY")
    assert "time does not fit double" in text("double f = 1", JANUARY)
    assert "time does not fit string" in text("string f = 1", JANUARY)
    assert "must fit int32" in text("int32 f = 1", JANUARY + " step: MILLISECOND")
    assert "must fit uint64" in text("uint64 f = 1", 'earliest: "-1s" latest: "1s" step: SECOND')
    assert "must be above 0" in text(stamp, JANUARY + " largest_shift: {seconds: 0}")
    assert "above 0" in text(stamp, JANUARY + " resolution: {seconds: 0}")
    assert "above 0" in text(stamp, JANUARY + " resolution: {seconds: -5}")
    assert "whole number of the field's steps" in text(
        whole, JANUARY + " step: DAY resolution: {seconds: 3600}"
    )
    assert "at most the range" in text(length, 'earliest: "0s" latest: "1s" resolution: {seconds: 2}')
    assert "2^40" in text(stamp, JANUARY + " resolution: {nanos: 1}")


def test_the_table_in_the_document_is_what_plans_say():
    page = (Path(__file__).resolve().parents[4] / "docs/kinds/time.md").read_text()
    (heads,) = re.findall(r"^\| epsilon((?: \| [\d.]+)+) \|$", page, re.MULTILINE)
    rows = re.findall(
        r"^\| (?:whole range hidden|`(largest_shift[^`]*)`[^|]*)((?: \| [\d.,]+ h)+) \|$", page, re.MULTILINE
    )
    assert len(rows) == 3
    for shift, cells in rows:
        hours = [float(cell.replace(",", "")) for cell in re.findall(r"[\d.,]+(?= h)", cells)]
        for epsilon, expected in zip(re.findall(r"[\d.]+", heads), hours, strict=True):
            rule = f"{JANUARY} epsilon: {epsilon} {shift}"
            field = field_of(f"google.protobuf.Timestamp at = 1 [{TIME} = {{{rule}}}];")
            assert field.kind.describe(field).error / 3600 == pytest.approx(expected, rel=0.011)
    field = field_of(f"google.protobuf.Timestamp at = 1 [{TIME} = {{{JANUARY} epsilon: 1}}];")
    assert 14 < 1.96 * field.kind.describe(field).error / 3600 / math.sqrt(10_000) < 15
    assert "The mean of 10,000 messages at epsilon 1 is right within 15 h" in page
