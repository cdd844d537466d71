"""The correction of IN_RANGE outputs, computed exactly: its expectation is the value at every grid point."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from dpmesh.estimate.numbers import indexes
from dpmesh.noise import numeric
from dpmesh.policy.plan import FieldPlan, Grid, Kind, Model


def field(grid: Grid, mechanism: numeric.NumericMechanism) -> FieldPlan:
    in_range = mechanism.unbiased_low is not None
    return FieldPlan(
        "x",
        "t.M.x",
        Kind.NUMERIC,
        "annotation",
        Model.LOCAL,
        grid=grid,
        in_range=in_range,
        mechanism=mechanism,
    )


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
    mechanism = numeric.make(numeric.Kind.DISCRETE_LAPLACE, size, size, epsilon, in_range=True)
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
    mechanism = numeric.make(numeric.Kind.DUCHI, size, size, epsilon, in_range=True)
    low, high = indexes(field(Grid(0, size, 1, size, integral=True), mechanism), [0, size])
    truth = math.exp(1.5) / (1 + math.exp(1.5))
    for x in (0, size // 3, size):
        upper = x / size * truth + (1 - x / size) * (1 - truth)
        assert upper * high + (1 - upper) * low == pytest.approx(x, abs=1e-9 * size)


@pytest.mark.parametrize("part", [0.3, 0.5, 0.999, 1e-6])
def test_a_cut_last_point_is_told_from_the_one_before(part):
    """upper lies `part` of a step above the last but one point; the sender shows it for the last one."""
    grid = Grid(0.0, 4 + part, 1.0, 5, integral=False)
    mechanism = numeric.make(numeric.Kind.DISCRETE_LAPLACE, 5, 5, Fraction(1), in_range=True)
    at = indexes(field(grid, mechanism), [0.0, 1.0, 3.0, 4.0, 4 + part])
    assert list(at[1:4]) == [1.0, 3.0, 4.0]
    assert at[0] == mechanism.unbiased_low
    assert at[4] == mechanism.unbiased_high


def test_float32_rounding_is_no_offence():
    grid = Grid(0.1, 0.9, 2.0**-14, 13108, integral=False)
    mechanism = numeric.make(numeric.Kind.DISCRETE_LAPLACE, 13108, 13108, Fraction(1), in_range=True)
    ends = [float(np.float32(0.1)), float(np.float32(0.9))]
    assert list(indexes(field(grid, mechanism), ends)) == [mechanism.unbiased_low, mechanism.unbiased_high]


def test_unbiased_outputs_stay_as_they_are():
    grid = Grid(10.0, 20.0, 0.5, 20, integral=False)
    mechanism = numeric.make(numeric.Kind.DISCRETE_LAPLACE, 20, 20, Fraction(1))
    assert list(indexes(field(grid, mechanism), [-90.0, 10.0, 12.5, 20.0, 110.0])) == [-200, 0, 5, 20, 200]
