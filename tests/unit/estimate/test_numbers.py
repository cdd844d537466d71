"""The correction of IN_RANGE outputs, computed exactly: its expectation is the value at every grid point."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from dpmesh.estimate import EstimateError
from dpmesh.estimate.numbers import as_number, indexes, mean_of, sums_of, tally
from dpmesh.noise import numeric
from dpmesh.noise.optimized_piecewise import OptimizedPiecewise
from dpmesh.policy import FieldPlan, Grid, Model
from dpmesh.policy.codegen.source import draw_function
from dpmesh.policy.kinds.numeric import KIND, NumericPayload


def mean(field, values, confidence):
    return mean_of(field.path, as_number(field), sums_of(tally(field).count(values)), confidence)


def field(grid: Grid, mechanism: numeric.NumericMechanism) -> FieldPlan:
    in_range = mechanism.unbiased_low is not None or mechanism.stretch != 1
    payload = NumericPayload(grid, mechanism, in_range)
    return FieldPlan("x", "t.M.x", KIND, "annotation", Model.LOCAL, payload=payload)


def laplace_outputs(x: int, size: int, b: float) -> np.ndarray:
    """P(output = y) for y = 0..size of clamped discrete Laplace noise, from its formula."""
    a = math.exp(-1 / b)
    law = (1 - a) / (1 + a) * a ** np.abs(np.arange(size + 1) - x)
    law[0] = a**x / (1 + a)
    law[-1] = a ** (size - x) / (1 + a)
    return law


@pytest.mark.parametrize("size", [1, 2, 7, 40])
@pytest.mark.parametrize("epsilon", [Fraction(1, 10), Fraction(1), Fraction(5)])
def test_laplace_in_range_is_unbiased_at_every_point(size, epsilon):
    mechanism = numeric.make(numeric.NumericKind.DISCRETE_LAPLACE, size, size, epsilon, in_range=True)
    grid = Grid(-3.0, -3.0 + size * 0.25, 0.25, size, integral=False)
    outputs = [grid.value(index) for index in range(size + 1)]
    corrected = indexes(field(grid, mechanism), outputs)
    for x in range(size + 1):
        law = laplace_outputs(x, size, size / float(epsilon))
        assert law.sum() == pytest.approx(1.0)
        assert float(law @ corrected) == pytest.approx(x, abs=1e-9 * size)


@pytest.mark.parametrize("size", [1, 10, 1000])
def test_duchi_in_range_is_unbiased_at_every_point(size):
    epsilon = Fraction(3, 2)
    mechanism = numeric.make(numeric.NumericKind.DUCHI, size, size, epsilon, in_range=True)
    low, high = indexes(field(Grid(0, size, 1, size, integral=True), mechanism), [0, size])
    truth = math.exp(1.5) / (1 + math.exp(1.5))
    for x in (0, size // 3, size):
        upper = x / size * truth + (1 - x / size) * (1 - truth)
        assert upper * high + (1 - upper) * low == pytest.approx(x, abs=1e-9 * size)


@pytest.mark.parametrize("epsilon", [Fraction(1, 2), Fraction(3)])
@pytest.mark.parametrize("part", [0, 0.3, 0.999, 1e-6])
def test_optimized_piecewise_in_range_moves_outputs_away_from_the_middle(epsilon, part):
    """Its points, weighted as the law says, have the rows' means; upper lies below the last point where part < 1."""
    size = 10_000
    grid = Grid(-3.0, -3.0 + (size - 1 + (part or 1)) * 0.25, 0.25, size, integral=False)
    mechanism = numeric.make(numeric.NumericKind.OPTIMIZED_PIECEWISE, size, size, epsilon, in_range=True)
    law = OptimizedPiecewise(size, epsilon, in_range=True)
    assert law.outputs == mechanism.outputs == law.points
    released = [min(grid.value(point), grid.upper) for point in law.points]
    at = indexes(field(grid, mechanism), released)
    near, far = float(law.inside) / law.width, float(1 - law.inside) / law.rows
    for row, expected in enumerate(law.means):
        window = at[row : row + law.width]
        assert (near - far) * window.sum() + far * at.sum() == pytest.approx(float(expected), abs=1e-8 * size)
    assert at[-1] - size / 2 == pytest.approx(size / 2 * mechanism.stretch)


def test_optimized_piecewise_tells_its_points_only():
    grid = Grid(0.0, 10_000.0, 1.0, 10_000, integral=False)
    mechanism = numeric.make(numeric.NumericKind.OPTIMIZED_PIECEWISE, 10_000, 10_000, Fraction(1))
    assert len(mechanism.outputs) == 8
    assert "outputs" in refusal(lambda: indexes(field(grid, mechanism), [*mechanism.outputs, 4711.0]))
    assert list(indexes(field(grid, mechanism), mechanism.outputs)) == list(mechanism.outputs)


def test_a_mean_of_points_that_senders_can_not_have_is_refused():
    grid = Grid(0.0, 10_000.0, 1.0, 10_000, integral=False)
    mechanism = numeric.make(
        numeric.NumericKind.OPTIMIZED_PIECEWISE, 10_000, 10_000, Fraction(1), in_range=True
    )
    assert "another policy" in refusal(lambda: mean(field(grid, mechanism), [10_000.0] * 1000, 0.95))
    assert mean(field(grid, mechanism), [10_000.0] * 3, 0.95).n == 3


@pytest.mark.parametrize("part", [0.3, 0.5, 0.999, 1e-6])
def test_a_cut_last_point_is_told_from_the_one_before(part):
    """upper lies `part` of a step above the last but one point; the sender shows it for the last one."""
    grid = Grid(0.0, 4 + part, 1.0, 5, integral=False)
    mechanism = numeric.make(numeric.NumericKind.DISCRETE_LAPLACE, 5, 5, Fraction(1), in_range=True)
    at = indexes(field(grid, mechanism), [0.0, 1.0, 3.0, 4.0, 4 + part])
    assert list(at[1:4]) == [1.0, 3.0, 4.0]
    assert at[0] == mechanism.unbiased_low
    assert at[4] == mechanism.unbiased_high


def test_float32_rounding_is_no_offence():
    grid = Grid(0.1, 0.9, 2.0**-14, 13108, integral=False)
    mechanism = numeric.make(numeric.NumericKind.DISCRETE_LAPLACE, 13108, 13108, Fraction(1), in_range=True)
    ends = [float(np.float32(0.1)), float(np.float32(0.9))]
    assert list(indexes(field(grid, mechanism), ends)) == [mechanism.unbiased_low, mechanism.unbiased_high]


def test_unbiased_outputs_stay_as_they_are():
    grid = Grid(10.0, 20.0, 0.5, 20, integral=False)
    mechanism = numeric.make(numeric.NumericKind.DISCRETE_LAPLACE, 20, 20, Fraction(1))
    assert list(indexes(field(grid, mechanism), [-90.0, 10.0, 12.5, 20.0, 110.0])) == [-200, 0, 5, 20, 200]


SECRET = 4711.125


def refusal(call) -> str:
    """What a refusal says, which is never the value."""
    with pytest.raises(EstimateError) as caught:
        call()
    assert "4711" not in str(caught.value)
    assert str(caught.value).startswith("x: ")
    return str(caught.value)


@pytest.mark.parametrize("in_range", [False, True])
def test_values_between_the_points_of_the_grid_are_not_this_policys(in_range):
    grid = Grid(0.0, 10_000.0, 0.5, 20_000, integral=False)
    mechanism = numeric.make(
        numeric.NumericKind.DISCRETE_LAPLACE, 20_000, 20_000, Fraction(1), in_range=in_range
    )
    assert indexes(field(grid, mechanism), [17.5, 18.0])[0] == 35
    assert "none of its policy's outputs" in refusal(lambda: indexes(field(grid, mechanism), [17.5, SECRET]))


@pytest.mark.parametrize("kind", [numeric.NumericKind.DUCHI, numeric.NumericKind.HYBRID])
@pytest.mark.parametrize("size", [1, 3, 10_000])
@pytest.mark.parametrize("in_range", [False, True])
def test_mechanisms_of_two_ends_tell_nothing_in_between(kind, size, in_range):
    if kind is numeric.NumericKind.HYBRID and in_range:
        return
    grid = Grid(0.0, float(size), 1.0, size, integral=False)
    mechanism = numeric.make(kind, size, size, Fraction(1, 2), in_range=in_range)
    draw = draw_function(mechanism.draws)
    outputs = [float(draw(x)) for x in (0, size // 2, size) for _ in range(50)]
    assert len(indexes(field(grid, mechanism), outputs)) == 150
    if size > 1:
        assert "outputs" in refusal(lambda: indexes(field(grid, mechanism), [*outputs, size // 2 + 0.0]))
    far = min(mechanism.high + 1, 4711)
    assert "released" in refusal(lambda: indexes(field(grid, mechanism), [*outputs, float(far)]))


@pytest.mark.parametrize("kind", list(numeric.NumericKind))
@pytest.mark.parametrize("as_float32", [False, True])
def test_all_that_a_policy_releases_is_its_output(kind, as_float32):
    """Also after a float field, or a table that holds floats, has rounded it."""
    grid = Grid(-0.1, 0.9, 2.0**-14, 16_384, integral=False)
    rho = Fraction(1, 8) if kind is numeric.NumericKind.DISCRETE_GAUSSIAN else None
    mechanism = numeric.make(kind, 16_384, 16_384, Fraction(2), rho=rho)
    draw = draw_function(mechanism.draws)
    released = [grid.value(draw(x)) for x in (0, 8000, 16_384) for _ in range(300)]
    if as_float32:
        released = [float(np.float32(value)) for value in released]
    assert len(indexes(field(grid, mechanism), released)) == 900


def test_a_mean_that_the_policy_can_not_give_is_refused():
    """Outputs of senders under other bounds, which are on the grid and in reach, yet too many on one side."""
    grid = Grid(0.0, 100.0, 0.5, 200, integral=False)
    mechanism = numeric.make(numeric.NumericKind.DISCRETE_LAPLACE, 200, 200, Fraction(1))
    assert "another policy" in refusal(lambda: mean(field(grid, mechanism), [600.0] * 1000, 0.95))
    assert mean(field(grid, mechanism), [600.0] * 2, 0.95).n == 2
