"""Histograms: public keys leave with noise, whatever the map holds."""

import math
from fractions import Fraction
from functools import cache

import mpmath
import numpy as np
import pytest
from google.protobuf.message_factory import GetMessageClass

from dpmesh.accounting import AMOUNT, Cost
from dpmesh.errors import AnnotationError, ProtectionError
from dpmesh.noise import partition_selection
from dpmesh.noise.discrete_laplace import DiscreteLaplace
from dpmesh.noise.thresholds import ONE
from dpmesh.policy import Model, Policy
from dpmesh.policy.codegen.source import draw_function
from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.policy.kinds.counts import steps_of_contribution
from dpmesh.policy.kinds.histogram import KIND
from dpmesh.policy.kinds.kind import FieldSite
from dpmesh.v1 import privacy_pb2
from tests.support.protos import ROOT, compiled
from tests.unit.noise import exact

HIST = "(dpmesh.v1.field).histogram"
EXACT = "epsilon: 64"
"""With epsilon 64 and a sensitivity of one step, a value on the grid leaves as it is, but for one in 10^27."""
INTEGERS = [
    "int32",
    "int64",
    "uint32",
    "uint64",
    "sint32",
    "sint64",
    "fixed32",
    "fixed64",
    "sfixed32",
    "sfixed64",
]


def alias(unit, epoch):
    return b"#" * 16


@cache
def plan_of(kind):
    return Policy().plan(kind.DESCRIPTOR)


def map_of(rules, declared="map<string, int64>", more=""):
    return compiled(f"message H {{ {declared} m = 1 [{HIST} = {{{rules}}}{more}]; }}").H


def field_of(rules, declared="map<string, int64>"):
    return plan_of(map_of(rules, declared)).fields[0]


def protect(kind, held):
    return plan_of(kind).protect(kind(m=held), alias).m


def refused(rules, declared="map<string, int64>", more=""):
    with pytest.raises(AnnotationError) as error:
        plan_of(map_of(rules, declared, more))
    return str(error.value)


@pytest.mark.parametrize("number", [*INTEGERS, "double", "float"])
def test_exactly_the_public_keys_leave_in_every_number_type(number):
    kind = map_of(f'keys: ["b", "a", "z"] contribution: 1 resolution: 1 {EXACT}', f"map<string, {number}>")
    out = protect(kind, {"a": 7, "secret": 3, "b": 5})
    assert dict(out) == {"b": 5, "a": 7, "z": 0}


@pytest.mark.parametrize(
    ("key", "names", "keys"),
    [
        ("bool", '"false", "true"', [False, True]),
        ("int32", '"-3", "4"', [-3, 4]),
        ("fixed64", '"0", "18446744073709551615"', [0, 2**64 - 1]),
        ("string", '"", "é"', ["", "é"]),
    ],
)
def test_keys_of_every_type(key, names, keys):
    kind = map_of(f"keys: [{names}] contribution: 1 {EXACT}", f"map<{key}, int64>")
    assert dict(protect(kind, {keys[1]: 9})) == {keys[0]: 0, keys[1]: 9}


def test_what_leaves_does_not_depend_on_the_order_of_insertion():
    kind = map_of(f'keys: ["x", "y", "z"] contribution: 1 {EXACT}')
    one, other = kind(), kind()
    for key in ("x", "q", "z"):
        one.m[key] = 1
    for key in ("z", "q", "x"):
        other.m[key] = 1
    plan = plan_of(kind)
    assert plan.protect(one, alias).SerializeToString() == plan.protect(other, alias).SerializeToString()


def test_an_aggregate_is_clamped_at_0_and_at_what_the_type_holds():
    for number, low, high in [
        ("int32", -(2**31), 2**31 - 1),
        ("uint32", 0, 2**32 - 1),
        ("int64", -(2**63), 2**63 - 1),
    ]:
        kind = map_of('keys: ["a", "b"] contribution: 1 epsilon: 1', f"map<string, {number}>")
        for _ in range(50):
            out = protect(kind, {"a": low, "b": high})
            assert low <= out["a"] < 60
            assert out["b"] > min(high, 2**40) - 100
    double = map_of('keys: ["a", "b"] contribution: 1 epsilon: 1', "map<string, double>")
    out = protect(double, {"a": -math.inf, "b": math.inf})
    assert out["a"] < 60 < 2**30 < out["b"] < math.inf


def test_nan_in_an_aggregate_is_refused_and_its_value_is_not_told():
    kind = map_of('keys: ["a"] contribution: 1 epsilon: 1', "map<string, double>")
    with pytest.raises(ProtectionError, match="holds NaN, which is refused"):
        protect(kind, {"a": math.nan})
    protect(kind, {"b": math.nan})  # Never leaves, and so is never read.
    field = field_of('keys: ["a"] contribution: 1 epsilon: 1', "map<string, double>")
    assert field.kind.refuses(field)[0] == "NaN"


def test_a_units_own_map_is_hidden_as_a_whole():
    field = field_of('keys: ["a", "b"] lower: 0 upper: 10 epsilon: 2')
    assert (field.model, field.epsilon, field.repeats, field.cost.epsilon) == (Model.LOCAL, 2, 2, 2 * AMOUNT)
    assert field.payload.total is None
    assert field.payload.number.mechanism.epsilon == 1
    aggregate = field_of('keys: ["a", "b"] contribution: 3 epsilon: 2')
    assert (aggregate.model, aggregate.epsilon, aggregate.repeats) == (Model.CENTRAL, 2, 2)
    assert aggregate.cost.epsilon == 2 * AMOUNT


def test_nan_in_a_units_own_map_counts_as_the_middle():
    kind = map_of('keys: ["a"] lower: 0 upper: 2 resolution: 1 epsilon: 64', "map<string, double>")
    assert dict(protect(kind, {"a": math.nan}))["a"] == pytest.approx(1, abs=1)


def test_a_bounded_sum_needs_less_noise_and_is_enforced():
    keys = ", ".join(f'"k{number}"' for number in range(100))
    field = field_of(f"keys: [{keys}] lower: 0 upper: 100 contribution: 100 epsilon: 2")
    assert (field.payload.total, field.cost.epsilon) == (100, 2 * AMOUNT)
    assert field.payload.number.mechanism.kind == "discrete_laplace"
    without = field_of(f"keys: [{keys}] lower: 0 upper: 100 epsilon: 2")
    assert field.payload.number.deviation < without.payload.number.deviation / 20
    # What is beyond the sum is cut in the order of the keys.
    kind = map_of(f"keys: [{keys}] lower: 0 upper: 1 contribution: 1 epsilon: 64")
    assert plan_of(kind).fields[0].payload.total == 1
    for _ in range(20):
        assert [key for key, shown in protect(kind, {"k7": 1, "k3": 1}).items() if shown] == ["k3"]


@pytest.mark.parametrize("epsilon", [Fraction(1, 2), Fraction(1), Fraction(4)])
@pytest.mark.parametrize("number", ["uint32", "int64"])
def test_two_aggregates_that_one_unit_tells_apart_lose_no_more_than_epsilon(number, epsilon):
    """Two keys and a contribution of 2, enumerated from the sampler's thresholds.

    The outputs of two keys are independent, so the log ratios of both add up. Far from the ends the law is one of the
    differences; at 0 the clamp adds up what is below.
    """
    with mpmath.workdps(60):
        field = field_of(
            f'keys: ["a", "b"] contribution: 2 epsilon: {float(epsilon)}', f"map<string, {number}>"
        )
        mechanism = field.payload.number.mechanism
        scale = mechanism.draws.key[1]
        reach = math.ceil(90 * scale)
        noise = exact.laplace(DiscreteLaplace(scale), reach, 2 * reach)
        low = 0 if field.payload.number.in_range else -20
        tables = [exact.clamped(noise, x, low, 20) for x in range(4)]
        loss = {
            moved: max(
                mpmath.log(exact.worst_ratio([tables[x], tables[x + moved]])) for x in range(4 - moved)
            )
            for moved in (1, 2)
        }
        claimed = mpmath.mpf(epsilon.numerator) / epsilon.denominator
        assert max(2 * loss[1], loss[2]) <= claimed
        assert max(2 * loss[1], loss[2]) >= 0.999 * claimed


def test_a_bounded_sum_loses_no_more_than_epsilon():
    """Every pair of maps over two keys with a sum of at most 2, as the step cuts them, enumerated."""
    with mpmath.workdps(60):
        kind = map_of('keys: ["a", "b"] lower: 0 upper: 9 contribution: 2 epsilon: 1', "map<string, uint32>")
        payload = plan_of(kind).fields[0].payload
        noise = exact.laplace(DiscreteLaplace(payload.number.mechanism.draws.key[1]), 300, 600)
        table = [exact.clamped(noise, x, 0, 9) for x in range(3)]
        ratio = [[mpmath.log(exact.worst_ratio([table[x], table[y]])) for y in range(3)] for x in range(3)]
        cut = [(a, b) for a in range(3) for b in range(3) if a + b <= 2]
        worst = max(ratio[x[0]][y[0]] + ratio[x[1]][y[1]] for x in cut for y in cut)
        assert worst <= 1
        assert worst >= 0.99


def test_the_sensitivity_counts_the_rounding_of_each_key():
    assert steps_of_contribution(3, 1, 10, integral=True) == 3
    assert steps_of_contribution(2.5, 1, 10, integral=True) == 3
    assert steps_of_contribution(10, 4, 3, integral=True) == 3 + 2
    assert steps_of_contribution(1.0, 0.25, 2, integral=False) == 4 + 2
    # Three values that change by 1, 1 and 8 on a grid of 4: by at most 1, 1 and 2 steps.
    worst = max(
        sum(abs((x + d + 2) // 4 - (x + 2) // 4) for x, d in zip(at, (1, 1, 8), strict=True))
        for at in np.ndindex(4, 4, 4)
    )
    assert worst == 4 <= steps_of_contribution(10, 4, 3, integral=True)
    default = field_of('keys: ["a", "b"] contribution: 1 max_keys: 1 epsilon: 1', "map<string, double>")
    assert default.payload.number.grid.step == 1 / 32
    assert default.payload.number.mechanism.draws.key[1] >= 33


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 4.0])
def test_the_variance_is_what_the_plan_says(epsilon):
    """200,000 draws: five standard errors are at most 4.2 %, so below 6e-7 false alarms; `make stat` is finer."""
    number = field_of(f'keys: ["a"] contribution: 1 epsilon: {epsilon}').payload.number
    draw = draw_function(number.mechanism.draws)
    noise = np.array([draw(1000) for _ in range(200_000)], float) - 1000
    expected = 2 * math.exp(-epsilon) / (1 - math.exp(-epsilon)) ** 2
    assert number.deviation**2 == pytest.approx(expected)
    error = 5 * (noise**2).std() / math.sqrt(len(noise)) / expected
    assert abs(np.mean(noise**2) / expected - 1) < error < 0.07


def site_of(declared):
    field = compiled(f"message H {{ {declared} m = 1; }}").H.DESCRIPTOR.fields_by_name["m"]
    return FieldSite(field, "m", "annotation", None, 0, 1, None, False)


def test_100_000_keys_leave():
    site = site_of("map<uint32, uint64>")
    rules = privacy_pb2.Histogram(keys=map(str, range(100_000)), contribution=1, epsilon=1)
    plan = KIND.plan(site, rules)
    kind = GetMessageClass(site.field.containing_type)
    out = kind()
    KIND.step(site, plan)(kind(m=dict.fromkeys(range(0, 200_000, 2), 1000)), out, alias)
    assert sorted(out.m) == list(range(100_000))
    even = np.array([out.m[number] for number in range(0, 100_000, 2)], float)
    assert abs(even.mean() - 1000) < 0.1  # 17 standard errors.
    rules.keys.append("100000")
    with pytest.raises(BadRuleError, match="100,000 are possible"):
        KIND.plan(site, rules)


def test_bad_rules_are_refused_with_what_to_do():
    assert "histogram does not fit int64" in refused('keys: ["a"] contribution: 1 epsilon: 1', "int64")
    assert "does not fit a map to string" in refused(
        'keys: ["a"] contribution: 1 epsilon: 1', "map<string, string>"
    )
    assert "a threshold needs a delta" in refused("contribution: 1 epsilon: 1")
    assert "no int32" in refused('keys: ["x"] contribution: 1 epsilon: 1', "map<int32, int64>")
    assert "no uint32" in refused('keys: ["-1"] contribution: 1 epsilon: 1', "map<uint32, int64>")
    assert "no bool" in refused('keys: ["no"] contribution: 1 epsilon: 1', "map<bool, int64>")
    assert "no int32: 'E7'" in refused('keys: ["7", "E7"] contribution: 1 epsilon: 1', "map<int32, int64>")
    assert "a key twice: '01'" in refused('keys: ["1", "01"] contribution: 1 epsilon: 1', "map<int32, int64>")
    assert "does not say how much one unit adds" in refused('keys: ["a"] epsilon: 1')
    for number in ("0", "-1", "inf", "nan"):
        assert "finite number above 0" in refused(f'keys: ["a"] contribution: {number} epsilon: 1')
    assert "has no lower and upper" in refused('keys: ["a"] lower: 0 epsilon: 1')
    assert "set lower: 0" in refused('keys: ["a"] lower: -1 upper: 1 contribution: 1 epsilon: 1')
    assert "is for aggregates" in refused('keys: ["a"] lower: 0 upper: 1 max_keys: 1 epsilon: 1')
    assert "whole number above 0" in refused('keys: ["a"] contribution: 1 resolution: 0.5 epsilon: 1')
    assert "must be a finite number above 0" in refused(
        'keys: ["a"] contribution: 1 resolution: 0 epsilon: 1', "map<string, double>"
    )
    assert "too fine" in refused(
        'keys: ["a"] contribution: 1 resolution: 1e-300 epsilon: 1', "map<string, double>"
    )
    assert "is for histograms without keys" in refused('keys: ["a"] contribution: 1 delta: 1e-6 epsilon: 1')
    assert "is for histograms without keys" in refused('keys: ["a"] contribution: 1 threshold: 2 epsilon: 1')
    assert "remove max_items" in refused(
        'keys: ["a"] contribution: 1 epsilon: 1', more=", (dpmesh.v1.field).max_items = 3"
    )
    assert "does not fit int32" in refused(
        'keys: ["a"] contribution: 1e9 epsilon: 0.01', "map<string, int32>"
    )


OPEN = "contribution: 1 epsilon: 1 delta: 1e-6"


def test_without_keys_those_leave_that_many_units_share():
    kind = map_of(OPEN, "map<string, uint32>")
    (field,) = plan_of(kind).fields
    assert (field.model, field.mechanism_name, field.epsilon, field.delta) == (
        Model.CENTRAL,
        "partition_selection",
        1,
        1e-6,
    )
    assert field.cost == Cost.approximate(Fraction(1), Fraction(1e-6))
    described = field.kind.describe(field)
    assert (described.output, described.low) == ("keys of about 14 and more, 14 at least", 14)
    # At this delta, one of the 6,000 keys that one unit adds leaves in one of 10^11 runs.
    kind = map_of(OPEN.replace("1e-6", "1e-15"), "map<string, uint32>")
    held = {"many": 500, "alone": 1, "none": 0, **{f"u{number}": 1 for number in range(300)}}
    for _ in range(20):
        out = protect(kind, held)
        assert list(out) == ["many"]
        assert abs(out["many"] - 500) <= 40
    assert field.kind.refuses(field)[0] == "NaN"


def test_what_is_selected_does_not_depend_on_the_order_of_insertion():
    kind = map_of("contribution: 1 epsilon: 64 delta: 0.5")
    names = [f"k{number}" for number in range(100)]
    one, other = kind(), kind()
    for name in names:
        one.m[name] = 50
    for name in reversed(names):
        other.m[name] = 50
    outs = [list(plan_of(kind).protect(message, alias).m) for message in (one, other)]
    assert outs[0] == outs[1]
    assert sorted(outs[0]) == sorted(names)


def test_a_key_that_is_no_text_never_leaves_and_no_message_is_refused_for_it():
    made = compiled(
        f"message M {{ map<string, int64> m = 1 [{HIST} = {{contribution: 1 epsilon: 1 delta: 1e-6}}]; }}",
        "proto2",
    )
    entry = b"\x0a\x02\xff\xfe\x10\xe8\x07"  # "\xff\xfe": 1000
    message = made.M.FromString(b"\x0a" + bytes([len(entry)]) + entry)
    message.m["a"] = 1000
    assert list(Policy().plan(made.M.DESCRIPTOR).protect(message, alias).m) == ["a"]


@pytest.mark.parametrize("number", [*INTEGERS, "double", "float"])
def test_selected_counts_of_every_type_at_its_limits(number):
    kind = map_of(f"{OPEN} max_keys: 1 resolution: 1", f"map<int32, {number}>")
    top = {"32": 2**32 - 1 if number[0] in "uf" else 2**31 - 1}.get(number[-2:], 2**62)
    held = {1: top if number != "sfixed32" else 2**31 - 1, 2: 100}
    for _ in range(20):
        out = protect(kind, held)
        assert abs(out[2] - 100) < 20
        assert out[1] > 2**30
    if number in ("double", "float"):
        assert dict(protect(kind, {1: -math.inf, 2: -5.0})) == {}
        with pytest.raises(ProtectionError, match="NaN"):
            protect(kind, {1: math.nan})


@pytest.mark.parametrize(("declared", "resolution", "steps"), [("double", "0.5", 8), ("int64", "2", 6)])
def test_without_keys_rounding_adds_a_step_for_each_key_of_a_unit(declared, resolution, steps):
    """2 in steps of 0.5 are 4 of them, and 4 keys may add one each; 5 in steps of 2 are up to 3, and 4 keys add 3."""
    contribution = 5 if declared == "int64" else 2
    rule = f"contribution: {contribution} epsilon: 1 delta: 1e-6 max_keys: 4 resolution: {resolution}"
    law = field_of(rule, f"map<string, {declared}>").payload.law
    assert law is partition_selection.make(Fraction(1), steps, Fraction(1e-6))


def test_a_key_below_the_threshold_never_leaves():
    kind = map_of(f"{OPEN} threshold: 40")
    assert plan_of(kind).fields[0].kind.describe(plan_of(kind).fields[0]).low == 14 + 39
    for _ in range(50):
        out = protect(kind, {"a": 39, "b": 200})
        assert list(out) == ["b"]
        assert abs(out["b"] - 200) < 20


def test_bad_rules_without_keys_are_refused_with_what_to_do():
    assert "a threshold needs a delta" in refused("contribution: 1 epsilon: 1")
    assert "a threshold needs a delta" in refused("contribution: 1 epsilon: 1 delta: 1")
    assert "set max_keys" in refused(OPEN, "map<string, double>")
    assert "set max_keys" in refused(f"{OPEN} resolution: 2")
    assert "does not say how much one unit adds" in refused("epsilon: 1 delta: 1e-6")
    assert "which keys it holds is hidden too" in refused("lower: 0 upper: 1 epsilon: 1 delta: 1e-6")
    assert "threshold" in refused(f"{OPEN} threshold: 0")
    assert "threshold" in refused(f"{OPEN} threshold: inf")
    assert "can't hold what passes" in refused(f"{OPEN} threshold: 3e9", "map<string, int32>")
    assert "use a coarser resolution" in refused("contribution: 1e5 epsilon: 1 delta: 1e-6")


def test_100_000_keys_are_selected_from():
    site = site_of("map<uint32, uint64>")
    plan = KIND.plan(site, privacy_pb2.Histogram(contribution=1, epsilon=1, delta=1e-6))
    kind = GetMessageClass(site.field.containing_type)
    out = kind()
    KIND.step(site, plan)(kind(m={number: number % 100 for number in range(100_000)}), out, alias)
    assert all(number % 100 > 0 for number in out.m)
    assert 80_000 < len(out.m) < 92_000


TABLE = {0.5: (2.80, 2.81, 35), 1: (1.36, 1.42, 19), 2: (0.60, 0.70, 10), 4: (0.19, 0.33, 6)}


@pytest.mark.parametrize("epsilon", TABLE)
def test_the_documented_errors(epsilon):
    with_keys = field_of(f'keys: ["a"] contribution: 1 epsilon: {epsilon}')
    without = field_of(f"contribution: 1 epsilon: {epsilon} delta: 1e-8")
    half = next(n for n, threshold in enumerate(without.payload.law.thresholds, 1) if 2 * threshold >= ONE)
    found = (with_keys.kind.describe(with_keys).error, without.kind.describe(without).error, half)
    assert found == pytest.approx(TABLE[epsilon], abs=0.006)
    page = (ROOT / "docs/kinds/histogram.md").read_text()
    for row, start in enumerate(("| with `keys` |", "| without |", "| a key leaves half of the time from |")):
        (line,) = [line for line in page.splitlines() if line.startswith(start)]
        assert float(line.split("|")[2 + list(TABLE).index(epsilon)]) == TABLE[epsilon][row]


def test_the_documented_error_of_a_map_whose_sum_is_bounded():
    """sqrt(2) times a scale of twice the contribution over epsilon."""
    keys = ", ".join(f'"k{number}"' for number in range(20))
    field = field_of(f"keys: [{keys}] lower: 0 upper: 1000 contribution: 1000 epsilon: 1")
    assert field.kind.describe(field).error == pytest.approx(2.83 * 1000, rel=0.001)
    assert "2.83 contribution/epsilon" in (ROOT / "docs/kinds/histogram.md").read_text()
