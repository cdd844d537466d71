"""Vectors: what leaves has a public length and grid, bad vectors have the law of zero, aggregates are refused if bad."""

import math
import re
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from dpmesh.accounting import Cost
from dpmesh.errors import AnnotationError, ProtectionError
from dpmesh.noise.numeric import NumericKind
from dpmesh.policy import Model, Policy
from dpmesh.policy.kinds import vector_mechanism
from dpmesh.policy.kinds.vector import KIND
from dpmesh.policy.kinds.vector_mechanism import Room
from tests.support.protos import ROOT, compiled

RULE = "(dpmesh.v1.field).vector"
TYPES = compiled(
    f"""message Own {{ string id = 1 [(dpmesh.v1.field).unit = {{}}];
        repeated float v = 2 [{RULE} = {{l2_norm: 2 dimension: 3 epsilon: 1}}]; }}
    message Cube {{ string id = 1 [(dpmesh.v1.field).unit = {{}}];
        repeated double v = 2 [{RULE} = {{linf_norm: 2 dimension: 3 epsilon: 1}}]; }}
    message Sum {{ repeated float v = 1
        [{RULE} = {{l2_norm: 50 dimension: 4 epsilon: 1 delta: 1e-6 sensitivity: 2}}]; }}
    message Count {{ repeated double v = 1 [{RULE} = {{l1_norm: 50 dimension: 4 epsilon: 1 sensitivity: 2}}]; }}
    message Outer {{ string id = 1 [(dpmesh.v1.field).unit = {{}}]; Inner inner = 2; }}
    message Inner {{ repeated double v = 2 [{RULE} = {{l2_norm: 2 dimension: 3 epsilon: 1}}]; }}"""
)
DOUBLE = Room(52, 1e300, 1e-300, None)
FLOAT = Room(24, 3e38, 2.0**-126, None)
NAN, INF = float("nan"), float("inf")


def plan_of(kind):
    return Policy().plan(kind.DESCRIPTOR)


def field_of(kind):
    return next(field for field in plan_of(kind).fields if field.kind is KIND)


def protected(kind, vector):
    message = kind(v=vector)
    if hasattr(message, "id"):
        message.id = "u"
    return plan_of(kind).protect(message, lambda _id, _epoch: bytes(16))


def held(kind, vector):
    """The vector that the mechanism is given for what a message holds."""
    seen = []
    field = field_of(kind)
    spied = replace(field.payload, release=lambda x: seen.append(x) or x)

    class Site:
        field = kind.DESCRIPTOR.fields_by_name["v"]

    KIND.step(Site, replace(field, payload=spied))(kind(v=vector), kind(), None)
    return seen[0]


@pytest.mark.parametrize(
    "vector", [[], [1], [1, 1], [1, 1, 1, 1], [1] * 10_000, [NAN, 1, 1], [1, INF, 1], [-INF, NAN, 0]]
)
@pytest.mark.parametrize("kind", ["Own", "Cube"])
def test_a_vector_that_is_none_has_the_law_of_zero_and_the_public_length(kind, vector):
    assert held(getattr(TYPES, kind), vector) == [0, 0, 0]
    assert len(protected(getattr(TYPES, kind), vector).v) == 3


def test_a_vector_is_what_the_mechanism_is_given():
    assert held(TYPES.Own, [0.5, -1, 0]) == [0.5, -1, 0]
    assert held(TYPES.Sum, [0.5, -1, INF, 0]) == [0.5, -1, INF, 0]


@pytest.mark.parametrize(
    "vector", [[0, 0, 0], [3e38, 3e38, -3e38], [1e-40, 0, 0], [2, 0, 0], [1.4, 1.4, 1.4]]
)
@pytest.mark.parametrize("kind", ["Own", "Cube"])
def test_what_leaves_is_on_the_grid_of_the_fields_type_and_within_reach(kind, vector):
    kind = getattr(TYPES, kind)
    mechanism = field_of(kind).payload
    for _ in range(20):
        left = kind.FromString(protected(kind, vector).SerializeToString()).v
        steps = np.array(left) / mechanism.step
        assert steps.tolist() == np.rint(steps).tolist()
        assert max(map(abs, left)) <= mechanism.reach


def test_nothing_overflows_and_no_warning_tells_of_a_value():
    kind = compiled(
        f"""message Wide {{ repeated double v = 1 [{RULE} = {{l2_norm: 1e-200 dimension: 3 epsilon: 1}}]; }}"""
    ).Wide
    with np.errstate(all="raise"):
        for vector in ([1e308] * 3, [1e-300, 0, 0], [1e-200] * 3, [5e-324] * 3):
            assert all(abs(value) <= 1e-190 for value in protected(kind, vector).v)


def test_a_nested_message_that_is_absent_shows_a_vector():
    plan = plan_of(TYPES.Outer)
    assert len(plan.protect(TYPES.Outer(id="u"), lambda _id, _epoch: bytes(16)).inner.v) == 3


@pytest.mark.parametrize(
    ("kind", "vector", "reason"),
    [
        ("Sum", [], "MISSING_AGGREGATE"),
        ("Sum", [1] * 5, "MISSING_AGGREGATE"),
        ("Count", [1, NAN, 1, 1], "NOT_A_NUMBER"),
    ],
)
def test_an_aggregate_that_its_sensitivity_does_not_cover_is_refused(kind, vector, reason):
    with pytest.raises(ProtectionError) as caught:
        protected(getattr(TYPES, kind), vector)
    assert caught.value.reason == reason
    assert f"{kind}.v" in str(caught.value)
    assert "nan" not in str(caught.value)


def test_infinities_of_an_aggregate_are_clamped():
    mechanism = field_of(TYPES.Count).payload
    assert max(map(abs, protected(TYPES.Count, [INF, -INF, 1e308, 0]).v)) <= mechanism.reach


@pytest.mark.parametrize(("kind", "model"), [("Own", Model.LOCAL), ("Count", Model.CENTRAL)])
def test_the_whole_vector_costs_its_epsilon(kind, model):
    field = field_of(getattr(TYPES, kind))
    assert (field.model, field.epsilon, field.cost) == (model, 1, Cost.pure(Fraction(1)))


def test_the_gaussian_costs_what_its_epsilon_and_delta_allow():
    field = field_of(TYPES.Sum)
    assert (field.epsilon, field.delta, field.mechanism_name) == (None, 1e-6, "discrete_gaussian")
    assert field.cost == Cost.gaussian(field.rho)


def scale_of(variance):
    """The scale of discrete Laplace noise: Var = 1/(2 sinh(1/(2 b))^2)."""
    return 0.5 / math.asinh(math.sqrt(0.5 / variance))


@pytest.mark.parametrize("step", [None, 2.0**-3, 4.0])
@pytest.mark.parametrize("dimension", [1, 7, 300])
def test_an_aggregates_noise_covers_all_that_rounding_adds(dimension, step):
    """The loss of the worst neighbours among many, computed from the scale in use, is at most epsilon, or rho."""
    room, sensitivity, bound = replace(DOUBLE, step=step), 2.0, 50.0
    laplace = vector_mechanism.noised(
        dimension, bound, sensitivity, NumericKind.DISCRETE_LAPLACE, (Fraction(1), None), room
    )
    gaussian = vector_mechanism.noised(
        dimension, bound, sensitivity, NumericKind.DISCRETE_GAUSSIAN, (Fraction(1), Fraction(1, 20)), room
    )
    random = np.random.default_rng(dimension)
    scale = scale_of(laplace.worst_variance / laplace.step**2)
    for _ in range(200):
        x = random.uniform(-60, 60, dimension)
        way = random.standard_normal(dimension) * (random.random(dimension) < random.random())
        for mechanism, order in ((laplace, 1), (gaussian, 2)):
            other = x + way * (sensitivity / (np.linalg.norm(way, order) or 1))
            apart = [np.rint(np.clip(v, -bound, bound) / mechanism.step) for v in (x, other)]
            distance = np.linalg.norm(apart[0] - apart[1], order)
            if order == 1:
                assert distance / scale <= 1
            else:
                assert distance**2 / (2 * gaussian.worst_variance / gaussian.step**2) <= 1 / 20


def test_a_fine_default_grid_adds_next_to_nothing_to_the_noise():
    laplace = vector_mechanism.noised(
        64, 50.0, 2.0, NumericKind.DISCRETE_LAPLACE, (Fraction(1), None), DOUBLE
    )
    assert laplace.worst_variance == pytest.approx(2 * 2.0**2, rel=0.005)


def test_a_float_takes_a_coarser_grid_than_a_double():
    fine, coarse = (
        vector_mechanism.noised(64, 1e6, 2.0, NumericKind.DISCRETE_LAPLACE, (Fraction(1), None), room)
        for room in (DOUBLE, FLOAT)
    )
    assert fine.step < coarse.step
    assert coarse.reach / coarse.step <= 1 << 24


@pytest.mark.parametrize(("epsilon", "dimension"), [(0.5, 3), (1, 3), (2, 64), (4, 64), (8, 3), (8, 64)])
def test_of_a_cube_auto_takes_what_errs_less(epsilon, dimension):
    rule = f"linf_norm: 2 dimension: {dimension} epsilon: {epsilon}"
    types = compiled(
        f"""message Auto {{ repeated double v = 1 [{RULE} = {{{rule}}}]; }}
        message Unit {{ repeated double v = 1 [{RULE} = {{{rule} mechanism: PRIV_UNIT_G}}]; }}
        message Some {{ repeated double v = 1 [{RULE} = {{{rule} mechanism: COORDINATE_SAMPLING}}]; }}"""
    )
    auto, unit, some = (field_of(getattr(types, name)).payload for name in ("Auto", "Unit", "Some"))
    assert (unit.name, some.name) == ("priv_unit_g", "coordinate_sampling")
    assert auto.worst_error == min(unit.worst_error, some.worst_error)


def test_plan_says_how_far_off_and_how_many_reports():
    field = field_of(TYPES.Own)
    shown = KIND.describe(field)
    error = math.sqrt(field.payload.worst_error)
    assert f"L2 error {error:.4g}" in shown.output
    assert f"{math.ceil((error / 2 / 0.1) ** 2)} reports for a mean within 10% of the norm" in shown.output
    assert shown.error == pytest.approx(error / math.sqrt(3), rel=0.01)
    assert shown.high == -shown.low == field.payload.reach
    assert "reports" not in KIND.describe(field_of(TYPES.Sum)).output


BAD = [
    ("kind-type", "double", "l2_norm: 1 dimension: 3 epsilon: 1"),
    ("kind-type", "repeated int64", "l2_norm: 1 dimension: 3 epsilon: 1"),
    ("bounds", "repeated float", "dimension: 3 epsilon: 1"),
    ("bounds", "repeated float", "l2_norm: 0 dimension: 3 epsilon: 1"),
    ("bounds", "repeated float", "linf_norm: nan dimension: 3 epsilon: 1"),
    ("bounds", "repeated float", "l2_norm: -inf dimension: 3 epsilon: 1"),
    ("dimension", "repeated float", "l2_norm: 1 epsilon: 1"),
    ("dimension", "repeated float", "l2_norm: 1 dimension: 100001 epsilon: 1"),
    ("epsilon", "repeated float", "l2_norm: 1 dimension: 3"),
    ("epsilon", "repeated float", "l2_norm: 1 dimension: 3 epsilon: 0"),
    ("norm", "repeated float", "l1_norm: 1 dimension: 3 epsilon: 1"),
    ("delta", "repeated float", "l2_norm: 1 dimension: 3 epsilon: 1 delta: 1e-6"),
    ("delta", "repeated float", "l2_norm: 1 dimension: 3 epsilon: 1 delta: 1 sensitivity: 1"),
    (
        "delta",
        "repeated float",
        "l2_norm: 1 dimension: 3 epsilon: 1 sensitivity: 1 mechanism: DISCRETE_GAUSSIAN",
    ),
    (
        "delta",
        "repeated float",
        "l1_norm: 1 dimension: 3 epsilon: 1 sensitivity: 1 delta: 1e-6 mechanism: DISCRETE_LAPLACE",
    ),
    ("mechanism", "repeated float", "l2_norm: 1 dimension: 3 epsilon: 1 mechanism: DISCRETE_LAPLACE"),
    ("mechanism", "repeated float", "l2_norm: 1 dimension: 3 epsilon: 1 mechanism: COORDINATE_SAMPLING"),
    (
        "mechanism",
        "repeated float",
        "l2_norm: 1 dimension: 3 epsilon: 1 sensitivity: 1 mechanism: PRIV_UNIT_G",
    ),
    ("sensitivity", "repeated float", "l2_norm: 1 dimension: 3 epsilon: 1 sensitivity: 0"),
    ("resolution", "repeated float", "l2_norm: 1 dimension: 3 epsilon: 1 resolution: 0"),
    ("resolution", "repeated float", "l2_norm: 1 dimension: 3 epsilon: 1 resolution: 100"),
    ("resolution", "repeated float", "linf_norm: 1 dimension: 3 epsilon: 1 resolution: 1"),
    ("output-range", "repeated float", "l2_norm: 1 dimension: 3 epsilon: 1 resolution: 1e-9"),
    ("output-range", "repeated float", "l2_norm: 1e38 dimension: 3 epsilon: 0.01"),
    ("output-range", "repeated float", "l2_norm: 1e-38 dimension: 3 epsilon: 1"),
    ("bounds", "repeated double", "l2_norm: 1 dimension: 3 epsilon: 1 sensitivity: 1e308"),
    ("bounds", "repeated double", "l2_norm: 1e308 dimension: 3 epsilon: 1 sensitivity: 1 resolution: 1e-9"),
    ("output-range", "repeated float", "l2_norm: 1e9 dimension: 3 epsilon: 1 sensitivity: 1 resolution: 1"),
    (
        "output-range",
        "repeated float",
        "linf_norm: 1 dimension: 3 epsilon: 1e-6 mechanism: COORDINATE_SAMPLING",
    ),
]


@pytest.mark.parametrize(("rule", "field", "text"), BAD)
def test_bad_rules_are_refused_by_name(rule, field, text):
    types = compiled(f"message M {{ {field} v = 1 [{RULE} = {{{text}}}]; }}")
    with pytest.raises(AnnotationError) as caught:
        plan_of(types.M)
    assert f"[{rule}]" in str(caught.value) or caught.value.rule == rule


def test_a_length_of_its_own_is_refused():
    types = compiled(
        f"""message M {{ repeated double v = 1
        [{RULE} = {{l2_norm: 1 dimension: 3 epsilon: 1}}, (dpmesh.v1.field).max_items = 4]; }}"""
    )
    with pytest.raises(AnnotationError, match="the length of a vector is its dimension"):
        plan_of(types.M)


def test_the_errors_in_the_document_are_those_of_the_mechanism():
    text = (ROOT / "docs/kinds/vector.md").read_text()
    rows = [
        [float(cell) for cell in line.strip("| ").split(" | ")]
        for line in text.splitlines()
        if re.fullmatch(r"(\| [\d.]+ ){5}\|", line)
    ]
    assert len(rows) == 5
    for epsilon, *errors, reports in rows:
        laws = [
            vector_mechanism.directions(dimension, 1.0, False, Fraction(epsilon), DOUBLE)
            for dimension in (16, 64, 256)
        ]
        assert errors == [round(math.sqrt(law.worst_error), 2) for law in laws]
        assert reports == math.ceil(laws[-1].worst_error * 100)


def test_the_document_says_how_far_from_the_best_many_draws_are():
    """The optimum is dimension/m^2 with m = phi(m) (p/q - (1-p)/(1-q)), q = 1 - Phi(m) (Asi, Feldman, Talwar 2022)."""
    m, grown = 4.561345, math.exp(16)
    q = math.erfc(m / math.sqrt(2)) / 2
    p = grown * q / (grown * q + 1 - q)
    assert math.exp(-m * m / 2) / math.sqrt(2 * math.pi) * (p / q - (1 - p) / (1 - q)) == pytest.approx(
        m, rel=1e-5
    )
    for dimension in (16, 64, 256):
        law = vector_mechanism.directions(dimension, 1.0, False, Fraction(16), DOUBLE)
        assert law.worst_error / (dimension / m**2) == pytest.approx(1.39, abs=0.005)
