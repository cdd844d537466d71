"""Losses: what each value's noise hides is what its message is charged for, in exact numbers."""

import json
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

import dpmesh
from dpmesh.accounting import AMOUNT, Cost, epsilon_delta_to_rho, rho_to_epsilon
from dpmesh.errors import AnnotationError
from dpmesh.noise import categorical, numeric
from dpmesh.noise.draws import Draws
from dpmesh.policy import Model, Policy
from tests.support.protos import compiled

NUM = "(dpmesh.v1.field).numeric"
CAT = "(dpmesh.v1.field).categorical"
ITEMS = "(dpmesh.v1.field).max_items"


def plan_of(body, name="M"):
    return Policy().plan(getattr(compiled(body), name).DESCRIPTOR)


def field_of(body):
    """The one field of a message that is drawn."""
    (field,) = [entry for entry in plan_of(body).fields if entry.mechanism_name]
    return field


def costs(plan):
    return {scope.path: scope.cost for scope in plan.scopes}


def silent(field, noise=0):
    """What a field does to its values, with a noise that is known."""
    draws = Draws(("known", noise), lambda count, _: np.full(count, noise), "y = x + code")
    payload = replace(field.payload, mechanism=replace(field.payload.mechanism, draws=draws))
    return field.kind.transform(replace(field, payload=payload)).function()


# -- elements of a repeated field share its loss ------------------------------------------------------------------

SHARED = {
    "DISCRETE_LAPLACE": numeric.NumericKind.DISCRETE_LAPLACE,
    "DUCHI": numeric.NumericKind.DUCHI,
    "PIECEWISE": numeric.NumericKind.PIECEWISE,
    "HYBRID": numeric.NumericKind.HYBRID,
}


@pytest.mark.parametrize("items", [1, 2, 7, 100])
@pytest.mark.parametrize("mechanism", SHARED)
def test_each_number_of_a_repeated_field_takes_its_part_of_epsilon(mechanism, items):
    field = field_of(
        f"message M {{ repeated double a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 3 mechanism: {mechanism}}}, {ITEMS} = {items}]; }}"
    )
    each = Fraction(3 * AMOUNT // items, AMOUNT)
    expected = numeric.make(SHARED[mechanism], field.payload.grid.size, field.payload.grid.size, each)
    assert (field.epsilon, field.repeats, field.payload.mechanism.epsilon) == (3, items, each)
    assert field.payload.mechanism.draws.key == expected.draws.key
    assert field.payload.mechanism.worst_variance == expected.worst_variance
    assert field.cost == Cost(int(each * AMOUNT) * items, Cost.pure(each).rho * items)


@pytest.mark.parametrize("items", [1, 2, 7, 64])
@pytest.mark.parametrize(
    ("kind", "domain", "k"),
    [
        ("bool", "", 2),
        ("string", 'domain: ["x", "y", "z"]', 3),
        ("int64", 'domain: ["4", "5"]', 2),
        ("E", "", 4),
    ],
)
def test_each_category_of_a_repeated_field_takes_its_part_of_epsilon(kind, domain, k, items):
    field = field_of(
        f"message M {{ repeated {kind} a = 1 [{CAT} = {{epsilon: 3 {domain}}}, {ITEMS} = {items}]; }} enum E {{ A = 0; B = 1; C = 2; D = 3; }}"
    )
    each = Fraction(3 * AMOUNT // items, AMOUNT)
    assert (field.epsilon, field.repeats, field.payload.mechanism.epsilon, field.payload.mechanism.k) == (
        3,
        items,
        each,
        k,
    )
    assert field.payload.mechanism.truth == pytest.approx(
        math.exp(each) / (math.exp(each) + k - 1), rel=1e-12
    )
    assert field.payload.mechanism.draws.key == categorical.make(k, each).draws.key
    assert field.cost == Cost(int(each * AMOUNT) * items, Cost.pure(each).rho * items)


@pytest.mark.parametrize("items", [1, 2, 7, 100])
@pytest.mark.parametrize("sensitivity", ["", "sensitivity: 3"])
def test_each_gaussian_of_a_repeated_field_takes_its_part_of_rho(sensitivity, items):
    field = field_of(
        f"""message M {{ repeated int64 a = 1 [{NUM} = {{lower: 0 upper: 1000 epsilon: 3 delta: 1e-6 resolution: 1
        mechanism: DISCRETE_GAUSSIAN {sensitivity}}}, {ITEMS} = {items}]; }}"""
    )
    rho = Fraction(epsilon_delta_to_rho(3.0, 1e-6))
    reach = 3 if sensitivity else 1000
    assert (field.rho, field.epsilon, field.delta, field.payload.mechanism.rho) == (
        rho,
        None,
        1e-6,
        rho / items,
    )
    assert field.payload.mechanism.worst_variance == pytest.approx(reach**2 / (2 * rho / items), rel=1e-9)
    assert (
        field.payload.mechanism.draws.key
        == numeric.make(field.payload.mechanism.kind, 1000, reach, None, rho=rho / items).draws.key
    )
    assert field.cost == Cost.gaussian(rho)


BULK = compiled(
    f"""message M {{ repeated double laplace = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 64 mechanism: DISCRETE_LAPLACE}}, {ITEMS} = 64];
    repeated double gauss = 2 [{NUM} = {{lower: 0 upper: 1 epsilon: 16 delta: 1e-6 mechanism: DISCRETE_GAUSSIAN}}, {ITEMS} = 64];
    repeated double duchi = 3 [{NUM} = {{lower: 0 upper: 1 epsilon: 64 mechanism: DUCHI output: IN_RANGE}}, {ITEMS} = 64];
    repeated google.protobuf.DoubleValue boxes = 6 [{NUM} = {{lower: 0 upper: 1 epsilon: 64 mechanism: DUCHI output: IN_RANGE}}, {ITEMS} = 64];
    repeated bool flag = 4 [{CAT} = {{epsilon: 64}}, {ITEMS} = 64];
    repeated string word = 5 [{CAT} = {{epsilon: 64 domain: ["x", "y"]}}, {ITEMS} = 64]; }}"""
)


def test_elements_leave_with_the_noise_of_their_part():
    """2,560 elements of each field, each with epsilon 1, or a 64th of rho.

    Bounds are 6 standard deviations of a count, and a sixth of a variance, which is 5.4 or more of its own; false alarm
    below 1e-6. Noise for the whole epsilon, or for another number of elements than twice or half of it, is beyond.
    """
    plan = Policy().plan(BULK.M.DESCRIPTOR)
    outs = [
        plan.protect(
            BULK.M(duchi=[1] * 64, boxes=[{"value": 1}] * 64, flag=[True] * 64, word=["y"] * 64), None
        )
        for _ in range(40)
    ]
    count, lie = 40 * 64, 1 / (1 + math.e)
    told = {
        "duchi": sum(x < 0.5 for out in outs for x in out.duchi),
        "boxes": sum(x.value < 0.5 for out in outs for x in out.boxes),
        "flag": sum(not x for out in outs for x in out.flag),
        "word": sum(x == "x" for out in outs for x in out.word),
    }
    for name, lies in told.items():
        assert abs(lies - count * lie) < 6 * math.sqrt(count * lie * (1 - lie)), name
    rho = epsilon_delta_to_rho(16.0, 1e-6)
    for name, variance in {"laplace": 2.0, "gauss": 64 / (2 * rho)}.items():
        noise = [x for out in outs for x in getattr(out, name)]
        assert len(noise) == count
        assert 2 / 3 < sum(x * x for x in noise) / count / variance < 3 / 2, name


# -- what one unit changes is what the noise hides ----------------------------------------------------------------


def hidden(field):
    """The steps that a field's noise hides, from the noise's variance: 1/(2 sinh(1/(2 scale))^2), or sigma^2."""
    mechanism = field.payload.mechanism
    if mechanism.rho is not None:
        return math.sqrt(mechanism.worst_variance * 2 * mechanism.rho)
    scale = 0.5 / math.asinh(math.sqrt(0.5 / mechanism.worst_variance))
    return scale * float(mechanism.epsilon)


@pytest.mark.parametrize(
    ("kind", "rule", "steps"),
    [
        ("int64", "lower: 0 upper: 2", 2),
        ("int64", "lower: -3 upper: 4", 7),
        ("int64", "lower: 0 upper: 1000 resolution: 10", 100),
        ("double", "lower: 0 upper: 1 resolution: 0.5", 2),
        ("double", "lower: 0 upper: 10.6 resolution: 1", 11),
        ("double", "lower: 0 upper: 1", 2**14),
        ("float", "lower: 0 upper: 1", 2**14),
        ("google.protobuf.Int64Value", "lower: 0 upper: 5", 5),
        # An aggregate moves no further than from one end of its range to the other.
        ("int64", "lower: 0 upper: 5 sensitivity: 99", 5),
        ("double", "lower: 0 upper: 1 resolution: 0.125 sensitivity: 99", 8),
        ("int64", "lower: 0 upper: 50 sensitivity: 1", 1),
        ("int64", "lower: 0 upper: 50 resolution: 5 sensitivity: 6", 2),
        ("double", "lower: 0 upper: 16 resolution: 1 sensitivity: 2.5", 3),
    ],
)
@pytest.mark.parametrize("mechanism", ["DISCRETE_LAPLACE", "DISCRETE_GAUSSIAN delta: 1e-6"])
def test_noise_hides_exactly_the_steps_that_a_unit_can_move(kind, rule, steps, mechanism):
    field = field_of(
        f"message M {{ {kind} a = 1 [{NUM} = {{{rule} epsilon: 0.25 mechanism: {mechanism}}}]; }}"
    )
    assert hidden(field) == pytest.approx(steps, rel=1e-6)
    expected = numeric.make(
        field.payload.mechanism.kind,
        field.payload.grid.size,
        steps,
        field.payload.mechanism.epsilon,
        rho=field.payload.mechanism.rho,
    )
    assert field.payload.mechanism.draws.key == expected.draws.key


@pytest.mark.parametrize(("size", "steps"), [(2, 2), (9, 9), (9, 1), (9, 4)])
def test_laplace_that_stays_in_range_hides_them_too(size, steps):
    more = "" if steps == size else f"sensitivity: {steps}"
    field = field_of(
        f"""message M {{ int64 a = 1 [{NUM} = {{lower: 0 upper: {size} epsilon: 0.5 resolution: 1 output: IN_RANGE
        mechanism: DISCRETE_LAPLACE {more}}}]; }}"""
    )
    expected = numeric.make(numeric.NumericKind.DISCRETE_LAPLACE, size, steps, Fraction(1, 2), in_range=True)
    assert field.payload.mechanism.draws.key == expected.draws.key
    # a/(1-a), a = exp(-epsilon/steps): what an estimate puts in place of the lower end.
    assert field.payload.mechanism.unbiased_low == pytest.approx(-1 / math.expm1(0.5 / steps), rel=1e-9)


def _neighbours(lower, upper, step, distance):
    """Pairs of floats at most `distance` apart, beside the places where rounding to the grid changes."""
    for index in range(int((upper - lower) / step)):
        edge = lower + (index + 0.5) * step
        for start in (
            math.nextafter(math.nextafter(edge, -math.inf), -math.inf),
            math.nextafter(edge, -math.inf),
            edge,
        ):
            end = start + distance
            while Fraction(end) - Fraction(start) > Fraction(distance):
                end = math.nextafter(end, -math.inf)
            if lower <= start and end <= upper:
                yield start, end


@pytest.mark.parametrize(
    ("lower", "upper", "step", "distance", "worst"),
    [
        (-0.3, 0.7, 0.1, 0.3, 4),
        (-0.3, 12.2, 0.125, 0.375, 4),
        (-0.1, 9.9, 0.25, 1.0, 5),
        (-0.7, 6.3, 0.1, 0.7, 8),
        (1 / 3, 100 + 1 / 3, 0.5, 2.0, 5),
        (0.0, 8.0, 0.5, 0.75, 2),
        (-1e6, 1e6, 1000.0, 2500.0, 3),
    ],
)
def test_floats_within_the_sensitivity_are_no_more_steps_apart_than_the_noise_hides(
    lower, upper, step, distance, worst
):
    """Rounding is computed in floats, so what is three steps apart in whole numbers may be four on the grid."""
    field = field_of(
        f"""message M {{ double a = 1 [{NUM} = {{lower: {lower!r} upper: {upper!r} resolution: {step!r} epsilon: 0.25
        sensitivity: {distance!r} mechanism: DISCRETE_LAPLACE}}]; }}"""
    )
    release = silent(field)
    pairs = list(_neighbours(lower, upper, step, distance))
    if (lower, step) == (-0.3, 0.1):
        pairs.append((0.15, 0.44999999999999996))
    found = max(round((release(end) - release(start)) / step) for start, end in pairs)
    assert found == worst, "the pairs are not the worst ones any more"
    assert hidden(field) == pytest.approx(worst, rel=1e-6)


@pytest.mark.parametrize("lower", [-7, 0, 3])
@pytest.mark.parametrize("step", [1, 2, 3, 5])
@pytest.mark.parametrize("distance", [1, 2, 4, 5, 6, 11])
def test_integers_within_the_sensitivity_are_as_many_steps_apart_as_the_noise_hides(lower, step, distance):
    upper = lower + 61
    field = field_of(
        f"""message M {{ int64 a = 1 [{NUM} = {{lower: {lower} upper: {upper} resolution: {step} epsilon: 0.25
        sensitivity: {distance} mechanism: DISCRETE_LAPLACE}}]; }}"""
    )
    release = silent(field)
    worst = max((release(x + distance) - release(x)) // step for x in range(lower, upper + 1 - distance))
    assert hidden(field) == pytest.approx(worst, rel=1e-6)


# -- what noise is added to ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "lower", "upper", "step"),
    [
        ("int64", 0, 13, 10),
        ("int64", 0, 15, 10),
        ("int64", -7, 20, 3),
        ("sint32", -5, 5, 1),
        ("uint32", 2, 40, 7),
        ("double", 0.0, 10.25, 1.0),
        ("double", 0.0, 10.75, 1.0),
        ("double", -3.0, 2.0, 0.25),
        ("float", -1.5, 1.5, 0.5),
    ],
)
def test_every_value_becomes_the_nearest_point_of_its_grid(kind, lower, upper, step):
    rule = f"lower: {lower} upper: {upper} resolution: {step} epsilon: 1 mechanism: DISCRETE_LAPLACE"
    field = field_of(f"message M {{ {kind} a = 1 [{NUM} = {{{rule} output: IN_RANGE}}]; }}")
    grid, release = field.payload.grid, silent(field)
    points = [grid.value(index) for index in range(grid.size + 1)]
    assert points == [lower + index * step for index in range(grid.size + 1)]
    assert abs(points[-1] - upper) <= step / 2
    whole = isinstance(step, int)
    scale = 1 if whole else 16
    for number in range(int(lower * scale) - 40, int(upper * scale) + 40):
        value = number if whole else number / 16
        held = min(max(value, lower), upper)
        out, best = release(value), min(abs(point - held) for point in points)
        index = grid.index(value)
        assert points[index] == out or (index == grid.size and out == upper)
        if out not in points:
            # The last point lies above the upper bound, where an output may not go.
            assert (out, index) == (upper, grid.size)
            assert points[-1] > upper
        else:
            assert out <= upper
            assert abs(out - held) == best or index == grid.size
        assert isinstance(out, int) == whole


def test_nothing_is_nearest_to_the_middle_but_what_is_no_number():
    field = field_of(
        f"message M {{ double a = 1 [{NUM} = {{lower: 2 upper: 10 resolution: 1 epsilon: 1}}]; }}"
    )
    release = silent(field)
    assert [release(value) for value in (math.nan, math.inf, -math.inf, 1e308, -1e308)] == [6, 10, 2, 10, 2]


@pytest.mark.parametrize(
    ("kind", "rule", "ends"),
    [
        ("double", "lower: 0 upper: 10.6 resolution: 1", (0, 10.6)),
        ("double", "lower: 0 upper: 10.3 resolution: 1", (0, 10)),
        ("float", "lower: 0 upper: 10.75 resolution: 1", (0, 10.75)),
        ("int64", "lower: 0 upper: 15 resolution: 10", (0, 15)),
        ("uint32", "lower: 3 upper: 8 resolution: 3", (3, 8)),
        ("google.protobuf.DoubleValue", "lower: -0.7 upper: 0.9 resolution: 1", (-0.7, 0.9)),
    ],
)
@pytest.mark.parametrize("mechanism", ["DUCHI", "DISCRETE_LAPLACE"])
@pytest.mark.parametrize("repeated", [False, True])
def test_an_output_in_range_is_never_above_the_upper_bound(kind, rule, ends, mechanism, repeated):
    """Both ends leave: at epsilon 64 by Duchi's an end leaves as it is, but for one draw in 10^27."""
    label, more, one = ("repeated ", f", {ITEMS} = 1", lambda x: [x]) if repeated else ("", "", lambda x: x)
    types = compiled(
        f"message M {{ {label}{kind} a = 1 [{NUM} = {{{rule} epsilon: 64 output: IN_RANGE mechanism: {mechanism}}}{more}]; }}"
    )
    plan = Policy().plan(types.M.DESCRIPTOR)
    lower, upper = ends

    def released(value):
        held = {"value": value} if "protobuf" in kind else value
        out = plan.protect(types.M(a=one(held)), None).a
        out = out[0] if repeated else out
        return getattr(out, "value", out)

    bound = json.loads(rule.partition("upper: ")[2].split()[0])
    assert all(lower <= released(bound) <= bound for _ in range(20))
    if mechanism == "DUCHI":
        assert (released(-100 if kind != "uint32" else 0), released(100)) == (lower, upper)


@pytest.mark.parametrize(
    ("kind", "upper", "step"), [("double", 10.75, 1.0), ("double", 10.25, 1.0), ("int64", 15, 10)]
)
def test_an_unbiased_output_is_not_cut_at_the_bounds(kind, upper, step):
    """Cut at one end, its mean would be off."""
    field = field_of(
        f"message M {{ {kind} a = 1 [{NUM} = {{lower: 0 upper: {upper} resolution: {step} epsilon: 1}}]; }}"
    )
    for noise in (-9, 0, 1, 9):
        assert silent(field, noise)(upper) == (field.payload.grid.size + noise) * step
        assert silent(field, noise)(0) == noise * step


def test_every_category_is_itself_without_noise_and_a_strange_one_is_the_first():
    body = """message M {{ {} a = 1 [(dpmesh.v1.field).categorical = {{epsilon: 1 {}}}]; }} enum E {{ A = 0; C = 7; B = -1; }}"""
    for kind, domain, values, strange in (
        ("string", 'domain: ["x", "y", "z"]', ("x", "y", "z"), "q"),
        ("int32", 'domain: ["4", "-5", "6"]', (4, -5, 6), 0),
        ("bool", "", (False, True), None),
        ("E", "", (0, 7, -1), 3),
        ("E", 'domain: ["B", "C"]', (-1, 7), 0),
    ):
        field = field_of(body.format(kind, domain))
        release = silent(field)
        assert field.payload.domain == values
        assert [release(value) for value in values] == list(values)
        assert release(strange) == values[0]


AGGREGATE = f"[{NUM} = {{lower: 0 upper: 9 epsilon: 0.25 sensitivity: 1}}]"
OWN = f"[{CAT} = {{epsilon: 0.5}}]"

# -- oneofs -------------------------------------------------------------------------------------------------------

MEMBERS = {
    "cheap": f"bool cheap = 1 [{CAT} = {{epsilon: 0.25}}];",
    "dear": f"bool dear = 2 [{CAT} = {{epsilon: 2}}];",
    "gauss": f"double gauss = 3 [{NUM} = {{lower: 0 upper: 1 epsilon: 1 delta: 1e-6 mechanism: DISCRETE_GAUSSIAN}}];",
    "none": "string none = 4 [(dpmesh.v1.field).suppress = {}];",
    "many": "Inner many = 5;",
}
COSTS = {
    "cheap": Cost.pure(Fraction(1, 4)),
    "dear": Cost.pure(Fraction(2)),
    "gauss": Cost.gaussian(Fraction(epsilon_delta_to_rho(1.0, 1e-6))),
    "none": Cost.ZERO,
    "many": Cost.pure(Fraction(3)) + Cost.pure(Fraction(1, 2)),
}
INNER = f"message Inner {{ bool a = 1 [{CAT} = {{epsilon: 3}}]; bool b = 2 [{CAT} = {{epsilon: 0.5}}]; }}"


@pytest.mark.parametrize(
    "order",
    [
        ("cheap", "dear"),
        ("dear", "cheap"),
        ("none", "cheap", "dear"),
        ("cheap", "many", "dear"),
        ("cheap", "gauss"),
        ("gauss", "dear"),
        ("gauss", "none"),
        ("none", "gauss", "many"),
    ],
)
@pytest.mark.parametrize("choice", ["public: true", "epsilon: 0.125"])
def test_a_oneof_costs_its_dearest_member_in_whatever_order(order, choice):
    """A Gaussian among them has no pure epsilon, so the whole has none."""
    members = " ".join(MEMBERS[name] for name in order)
    plan = plan_of(
        f"message M {{ oneof o {{ option (dpmesh.v1.oneof) = {{{choice}}}; {members} }} }} {INNER}"
    )
    own = Cost.ZERO if "public" in choice else Cost.pure(Fraction(1, 8))
    pure = None if "gauss" in order else max(COSTS[name].epsilon for name in order) + own.epsilon
    assert plan.cost.epsilon == pure
    assert plan.cost.rho == max(COSTS[name].rho for name in order) + own.rho


def test_a_oneof_of_aggregates_costs_global_budgets_its_dearest_member():
    rule = f"[{NUM} = {{lower: 0 upper: 9 epsilon: %s sensitivity: 1}}]"
    types = f"""message M {{ string id = 9 [(dpmesh.v1.field).unit = {{}}]; oneof o {{ option (dpmesh.v1.oneof) = {{public: true}};
    int64 a = 1 {rule % 0.25}; int64 b = 2 {rule % 2}; bool c = 3 [{CAT} = {{epsilon: 0.5}}]; bool d = 4 [{CAT} = {{epsilon: 1}}]; }} }}"""
    assert costs(plan_of(types)) == {"id": Cost.pure(Fraction(1)), "": Cost.pure(Fraction(2))}


async def test_a_budget_of_pure_epsilons_refuses_a_oneof_with_a_gaussian():
    types = compiled(
        f"message M {{ oneof o {{ option (dpmesh.v1.oneof) = {{public: true}}; {MEMBERS['cheap']} {MEMBERS['gauss']} }} }}"
    )
    budget = {"name": "all", "key": "global", "epsilon": 10.0, "accounting": "pure"}
    async with dpmesh.open({"ledger": {"url": "memory:"}, "budget": [budget]}) as mesh:
        with pytest.raises(AnnotationError, match="accounting"):
            await mesh.release(types.M(cheap=True))


@pytest.mark.parametrize("members", [2, 3, 5])
def test_a_hidden_choice_is_randomized_over_its_members_and_none(members):
    fields = " ".join(
        f"bool b{number} = {number} [{CAT} = {{epsilon: 1}}];" for number in range(1, members + 1)
    )
    plan = plan_of(f"message M {{ oneof o {{ option (dpmesh.v1.oneof) = {{epsilon: 0.5}}; {fields} }} }}")
    (choice,) = [entry for entry in plan.fields if entry.kind.on_oneof]
    assert (choice.payload.mechanism.k, choice.epsilon, choice.cost) == (
        members + 1,
        Fraction(1, 2),
        Cost.pure(Fraction(1, 2)),
    )
    assert choice.payload.mechanism.truth == pytest.approx(
        math.exp(0.5) / (math.exp(0.5) + members), rel=1e-12
    )
    assert choice.payload.domain == (*(f"b{number}" for number in range(1, members + 1)), "none")


def test_a_hidden_choice_is_the_member_that_is_set():
    """At epsilon 64 the truth leaves, but for one draw in 10^27."""
    types = compiled(
        f"message M {{ oneof o {{ option (dpmesh.v1.oneof) = {{epsilon: 64}}; {' '.join(MEMBERS[n] for n in ('cheap', 'dear', 'none', 'many'))} }} }} {INNER}"
    )
    plan = Policy().plan(types.M.DESCRIPTOR)
    for name, value in {"cheap": False, "dear": True, "none": "x", "many": {}}.items():
        assert plan.protect(types.M(**{name: value}), None).WhichOneof("o") == name
    assert plan.protect(types.M(), None).WhichOneof("o") is None


# -- oneofs beside other fields -----------------------------------------------------------------------------------

HIDDEN_CHOICE = (
    f"oneof h {{ option (dpmesh.v1.oneof) = {{epsilon: 1}}; bool ha = 101 {OWN}; bool hb = 102 {OWN}; }}"
)


def test_a_oneof_takes_no_units_and_no_costs_of_other_fields_away():
    plan = plan_of(
        f"""message M {{ R a = 1; int64 n = 2 {AGGREGATE}; bool own = 3 {OWN};
        oneof o {{ option (dpmesh.v1.oneof) = {{public: true}}; R b = 4; R c = 5; int64 m = 6 {AGGREGATE}; }}
        oneof p {{ option (dpmesh.v1.oneof) = {{public: true}}; R d = 7; int64 k = 8 {AGGREGATE}; }} {HIDDEN_CHOICE} }}
        message R {{ string id = 1 [(dpmesh.v1.field).unit = {{}}]; bool b = 2 {OWN}; }}"""
    )
    half, aggregate, choice = (Cost.pure(Fraction(1, parts)) for parts in (2, 4, 1))
    # Own, and a member of h and its choice; n, and one of each public oneof.
    ownerless = half.times(2) + choice + aggregate.times(3)
    assert costs(plan) == {**dict.fromkeys(("a.id", "b.id", "c.id", "d.id"), half), "": ownerless}


@pytest.mark.parametrize(
    "choice", ["", f"option (dpmesh.v1.oneof) = {{public: true}}; bool c = 6 [{CAT} = {{epsilon: 64}}];"]
)
def test_a_oneof_takes_no_fields_away(choice):
    """Neither from what leaves, nor from what leaves when a budget is spent."""
    types = compiled(
        f"""message M {{ string kept = 1; string id = 2 [(dpmesh.v1.field).unit = {{}}]; bool b = 3 [{CAT} = {{epsilon: 64}}];
        oneof o {{ {choice} string d = 4; string e = 5; }} }}"""
    )
    plan = Policy().plan(types.M.DESCRIPTOR)
    for member in ("d", "e"):
        message = types.M(kept="k", id="u", b=True, **{member: "x"})
        assert plan.protect(message, lambda unit, _: unit) == types.M(
            kept="k", id=b"u".hex(), b=True, **{member: "x"}
        )
        assert plan.blank(message, lambda unit, _: unit) == types.M(kept="k", id=b"u".hex(), **{member: "x"})


def test_a_hidden_choice_is_a_local_value_at_every_place():
    types = compiled(
        f"message M {{ repeated Row rows = 1 [{ITEMS} = 4]; }} message Row {{ {HIDDEN_CHOICE} }}"
    )
    (choice,) = [entry for entry in Policy().plan(types.M.DESCRIPTOR).fields if entry.kind.on_oneof]
    assert (choice.path, choice.name, choice.instances) == ("rows[].h", f"{types.package}.Row.h", 4)
    assert (choice.model, choice.origin) == (Model.LOCAL, "annotation")


@pytest.mark.parametrize("order", [("raw", "word"), ("word", "raw")])
def test_unknown_fields_do_not_pass_in_a_member_that_is_copied(order):
    members = {"raw": "Raw raw = 1;", "word": f"bool word = 2 {OWN};"}
    types = compiled(
        f"""message M {{ oneof o {{ option (dpmesh.v1.oneof) = {{public: true}}; {" ".join(members[name] for name in order)} }} }}
        message Raw {{ string s = 1; }}"""
    )
    message = types.M(raw=types.Raw(s="fine"))
    message.raw.MergeFromString(b"\xfa\x07\x06secret")
    out = Policy().plan(types.M.DESCRIPTOR).protect(message, None).SerializeToString()
    assert b"fine" in out
    assert b"secret" not in out


def found(body):
    return {
        (entry.rule, entry.element.split(".", 1)[1])
        for entry in Policy().diagnostics(compiled(body).M.DESCRIPTOR)
    }


def test_a_oneof_does_not_hide_what_is_shown_beside_it():
    body = f"""message M {{ string id = 1 [(dpmesh.v1.field).unit = {{}}]; C c = 2; }}
    message C {{ string id = 1 [(dpmesh.v1.field).unit = {{form: SUPPRESSED}}]; %s {HIDDEN_CHOICE} }}"""
    assert ("unit-nested", "M.c") in found(body % "string note = 2;")
    assert ("unit-nested", "M.c") not in found(body % "")


def test_a_oneof_does_not_make_a_message_smaller():
    lists = " ".join(
        f"repeated bool a{n} = {n} [{CAT} = {{epsilon: 1}}, {ITEMS} = 90000];" for n in range(1, 6)
    )
    lots = f"repeated bool %s = %d [{CAT} = {{epsilon: 1}}, {ITEMS} = 60000];"
    assert ("size", "M") not in found(f"message M {{ {lists} {HIDDEN_CHOICE} }}")
    assert ("size", "M") in found(f"message M {{ {lists} {lots % ('b', 6)} {HIDDEN_CHOICE} }}")
    inner = f"oneof o {{ option (dpmesh.v1.oneof) = {{epsilon: 1}}; bool b = 7 {OWN}; Big c = 8; }}"
    big = f"message Big {{ {lots % ('c', 1)} }}"
    assert ("size", "M") in found(f"message M {{ {lists} {inner} }} {big}")


# -- a message's epsilon ------------------------------------------------------------------------------------------

TOTAL = "option (dpmesh.v1.message) = {epsilon: 12};"
BARE = f"[{CAT} = {{}}]"
GONE = "[(dpmesh.v1.field).suppress = {}]"


@pytest.mark.parametrize(
    ("fields", "parts", "paths"),
    [
        (f"bool a = 1 {BARE};", 1, "a"),
        (f"bool a = 1 {BARE}; double b = 2 [{NUM} = {{lower: 0 upper: 1}}];", 2, "a b"),
        (f"bool a = 1 {BARE}; bool b = 2 {OWN};", 1, "a"),
        (f"bool a = 1 {BARE}; oneof o {{ bool b = 2 {BARE}; bool c = 3 {BARE}; }}", 3, "a b c o"),
        (f"oneof o {{ bool b = 2 {BARE}; bool c = 3 {OWN}; }}", 2, "b o"),
        (f"oneof o {{ bool b = 2 {OWN}; bool c = 3 {OWN}; }}", 1, "o"),
        (f"oneof o {{ bool b = 2 {BARE}; string c = 3 {GONE}; }}", 2, "b o"),
        (f"oneof o {{ string b = 2 {GONE}; string c = 3 {GONE}; }}", 1, "o"),
        (f"bool a = 1 {BARE}; oneof o {{ Inner b = 2; bool c = 3 {OWN}; }}", 2, "a o"),
        (
            f"oneof o {{ option (dpmesh.v1.oneof) = {{public: true}}; bool b = 2 {BARE}; bool c = 3 {BARE}; }}",
            1,
            "b c",
        ),
        (
            f"oneof o {{ option (dpmesh.v1.oneof) = {{epsilon: 0.5}}; bool b = 2 {BARE}; bool c = 3 {BARE}; }}",
            1,
            "b c",
        ),
        (
            f"oneof o {{ bool b = 2 {BARE}; bool c = 3 {BARE}; }} oneof p {{ bool d = 4 {BARE}; bool e = 5 {BARE}; }}",
            4,
            "b c o d e p",
        ),
        (f"optional bool a = 1 {BARE}; optional bool b = 2 {BARE};", 2, "a b"),
        (f"repeated bool a = 1 [{CAT} = {{}}, {ITEMS} = 3]; bool b = 2 {BARE};", 2, "a b"),
    ],
)
def test_a_messages_epsilon_is_split_over_all_that_take_a_part(fields, parts, paths):
    plan = plan_of(f"message M {{ {TOTAL} {fields} }} {INNER}")
    losses = {entry.path: entry.epsilon for entry in plan.fields if entry.mechanism_name}
    taking = {path for path, epsilon in losses.items() if epsilon == Fraction(12, parts)}
    assert taking == set(paths.split())
    for entry in plan.fields:
        if entry.path in taking:
            assert (
                Fraction(12, parts) - Fraction(entry.repeats, AMOUNT)
                <= Fraction(entry.cost.epsilon, AMOUNT)
                <= Fraction(12, parts)
            )


def test_what_shares_a_messages_epsilon_costs_no_more_than_it():
    """Sevenths are rounded down, in a choice as in a field."""
    fields = " ".join(f"bool a{number} = {number} {BARE};" for number in range(1, 6))
    plan = plan_of(f"message M {{ {TOTAL} {fields} oneof o {{ bool b = 7 {BARE}; bool c = 8 {BARE}; }} }}")
    assert plan.cost.epsilon == 7 * (12 * AMOUNT // 7)
    assert 12 * AMOUNT - 7 <= plan.cost.epsilon <= 12 * AMOUNT


# -- a plan's sums ------------------------------------------------------------------------------------------------


def test_a_plans_delta_is_the_sum_over_every_place_where_a_gaussian_leaves():
    gauss = f"[{NUM} = {{lower: 0 upper: 1 epsilon: 1 mechanism: DISCRETE_GAUSSIAN delta: %s}}]"
    plan = plan_of(
        f"""message M {{ double a = 1 {gauss % "1e-6"}; double b = 2 {gauss % "4e-6"}; bool c = 3 {OWN};
        repeated double d = 4 [{NUM} = {{lower: 0 upper: 1 epsilon: 1 mechanism: DISCRETE_GAUSSIAN delta: 16e-6}}, {ITEMS} = 9];
        Row one = 5; repeated Row rows = 6 [{ITEMS} = 3]; map<string, Row> named = 7 [{ITEMS} = 5]; }}
        message Row {{ double e = 1 {gauss % "64e-6"}; repeated Cell cells = 2 [{ITEMS} = 2]; }}
        message Cell {{ double f = 1 {gauss % "256e-6"}; }}"""
    )
    rows = 1 + 3 + 5
    assert plan.delta == pytest.approx(1e-6 * (1 + 4 + 16 + 64 * rows + 256 * 2 * rows), rel=1e-12)
    assert plan.cost.epsilon is None
    each = Cost.gaussian(Fraction(epsilon_delta_to_rho(1.0, 1e-6))).rho
    assert plan.cost.rho > each


def test_a_plans_cost_is_the_sum_over_every_place_in_both_accountings():
    plan = plan_of(
        f"""message M {{ bool a = 1 [{CAT} = {{epsilon: 1}}]; Row one = 5; repeated Row rows = 6 [{ITEMS} = 3];
        map<string, Row> named = 7 [{ITEMS} = 5]; }}
        message Row {{ bool e = 1 [{CAT} = {{epsilon: 0.25}}]; repeated Cell cells = 2 [{ITEMS} = 2];
        int64 n = 3 [{NUM} = {{lower: 0 upper: 9 epsilon: 0.5 sensitivity: 1}}]; }}
        message Cell {{ repeated bool f = 1 [{CAT} = {{epsilon: 2}}, {ITEMS} = 4]; }}"""
    )
    local = Cost.pure(Fraction(1)) + (
        Cost.pure(Fraction(1, 4)) + Cost.pure(Fraction(1, 2)).times(4 * 2)
    ).times(9)
    assert costs(plan) == {"": local + Cost.pure(Fraction(1, 2)).times(9)}
    assert {entry.path: entry.instances for entry in plan.fields if entry.mechanism_name} == {
        "a": 1,
        "one.e": 1,
        "one.cells[].f": 2,
        "one.n": 1,
        "rows[].e": 3,
        "rows[].cells[].f": 6,
        "rows[].n": 3,
        "named{}.e": 5,
        "named{}.cells[].f": 10,
        "named{}.n": 5,
    }
    assert plan.protected == 10
    assert plan.mechanisms == ("discrete_laplace", "k_randomized_response")


# -- what leaves is what is billed --------------------------------------------------------------------------------

BATCH = compiled(
    f"""message Batch {{ repeated Report reports = 1 [{ITEMS} = 3]; map<string, Report> named = 2 [{ITEMS} = 3]; }}
    message Open {{ repeated Report reports = 1; map<int32, Report> named = 2; }}
    message Report {{ string id = 1 [(dpmesh.v1.field).unit = {{}}]; bool b = 2 {OWN}; }}"""
)


@pytest.mark.parametrize(("kind", "keys", "shown"), [("Batch", "{:02d}".format, 3), ("Open", int, 50)])
def test_the_elements_that_leave_are_those_that_are_billed(kind, keys, shown):
    """Of a map, the first in order of key: its own order may be another one for each reader."""
    numbers = [*range(25, 50), *range(24, -1, -1)]
    message = getattr(BATCH, kind)(
        reports=[BATCH.Report(id=f"r{number:02d}") for number in range(50)],
        named={keys(number): BATCH.Report(id=f"n{number:02d}") for number in numbers},
    )
    plan = Policy().plan(message.DESCRIPTOR)
    out = plan.protect(message, lambda unit, _: unit)
    left = [
        bytes.fromhex(report.id) for report in [*out.reports, *(out.named[key] for key in sorted(out.named))]
    ]
    assert left == [b"r%02d" % number for number in range(shown)] + [
        b"n%02d" % number for number in range(shown)
    ]
    assert [unit for _, unit in plan.owners(message)] == left


def test_what_fills_a_repeated_field_up_is_a_default():
    """At epsilon 32 or more each element leaves as it is, but for one draw in 10^13."""
    duchi = f"{NUM} = {{lower: %s upper: %s epsilon: 64 resolution: 1 mechanism: DUCHI output: IN_RANGE}}, {ITEMS} = 2"
    types = compiled(
        f"""message M {{ repeated int64 a = 1 [{duchi % (0, 1)}]; repeated google.protobuf.DoubleValue b = 2 [{duchi % (-1, 0)}];
        repeated E e = 3 [{CAT} = {{epsilon: 64}}, {ITEMS} = 2]; repeated string s = 4 [{CAT} = {{epsilon: 64 domain: ["x", ""]}}, {ITEMS} = 2];
        repeated int32 i = 5 [{CAT} = {{epsilon: 64 domain: ["1", "0"]}}, {ITEMS} = 2]; }} enum E {{ A = 0; B = 1; }}"""
    )
    out = Policy().plan(types.M.DESCRIPTOR).protect(types.M(), None)
    assert out == types.M(a=[0, 0], b=[{"value": 0}, {"value": 0}], e=[0, 0], s=["", ""], i=[0, 0])


async def test_a_receipt_holds_the_sums_over_all_owners():
    budgets = [
        {"name": name, "key": key, "epsilon": 50.0, "delta": delta, "accounting": "zcdp"}
        for name, key, delta in (("a", "unit", 1e-4), ("b", "unit", 1e-7), ("c", "global", 1e-5))
    ]
    types = compiled(
        f"message M {{ double g = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 1 delta: 1e-6 mechanism: DISCRETE_GAUSSIAN}}]; }}"
    )
    async with dpmesh.open({"ledger": {"url": "memory:"}, "budget": budgets}) as mesh:
        batch = BATCH.Batch(reports=[BATCH.Report(id="a"), BATCH.Report(id="b"), BATCH.Report(id="a")])
        receipt = await mesh.release(batch)
        assert (receipt.epsilon, receipt.rho) == (
            1.5,
            pytest.approx(3 * Cost.pure(Fraction(1, 2)).rho / AMOUNT),
        )
        receipt = await mesh.release(types.M(g=1))
    rho = epsilon_delta_to_rho(1.0, 1e-6)
    assert receipt.rho == pytest.approx(rho, abs=2e-9)
    # At the smallest delta that some budget has.
    assert receipt.epsilon == pytest.approx(rho_to_epsilon(rho, 1e-7), rel=1e-6)


# -- limits of a rule ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", ["0", "1", "1.5", "-0.1", "nan"])
def test_a_delta_that_is_none_is_refused_as_such(delta):
    rule = f"{NUM} = {{lower: 0 upper: 1 epsilon: 1 mechanism: DISCRETE_GAUSSIAN delta: {delta}}}"
    assert found(f"message M {{ double a = 1 [{rule}]; }}") == {("delta", "M.a")}


@pytest.mark.parametrize(
    ("kind", "bounds", "step", "size"),
    [
        ("int64", "lower: 0 upper: 100", 1, 100),
        ("int64", "lower: 0 upper: 1000000", 64, 15625),
        ("double", "lower: 0 upper: 1", 2**-14, 2**14),
        ("double", "lower: 0 upper: 5e-324", 5e-324, 1),
    ],
)
def test_the_default_grid(kind, bounds, step, size):
    grid = field_of(
        f"message M {{ {kind} a = 1 [{NUM} = {{{bounds} epsilon: 1 output: IN_RANGE}}]; }}"
    ).payload.grid
    assert (grid.step, grid.size) == (step, size)


def test_a_domain_may_hold_all_that_its_field_can_and_no_more():
    least, most = -(2**31), 2**31 - 1
    body = f"""message M {{ int32 a = 1 [{CAT} = {{epsilon: 1 domain: ["%d", "%d"]}}]; }}"""
    assert field_of(body % (least, most)).payload.domain == (least, most)
    for wrong in ((least - 1, most), (least, most + 1)):
        assert found(body % wrong) == {("domain", "M.a")}
    strange = (
        f"""message M {{ E a = 1 [{CAT} = {{epsilon: 1 domain: ["A", "Z"]}}]; }} enum E {{ A = 0; B = 1; }}"""
    )
    assert found(strange) == {("domain", "M.a")}
