"""Mechanisms as the engine uses them, draw by draw: mean, variance, truth rate, support.

False alarms: a mean is allowed 5 standard errors (6e-7). A variance is allowed 1 %, which is at least 5 standard
errors of the sample's variance (asserted, from its fourth moment), so below 6e-7 too.
"""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from dpmesh.noise import categorical, numeric
from dpmesh.noise.numeric import NumericKind
from dpmesh.policy import Grid
from dpmesh.policy.codegen.source import draw_function

SIZE = 10_000
LOCAL = [
    NumericKind.DUCHI,
    NumericKind.PIECEWISE,
    NumericKind.HYBRID,
    NumericKind.OPTIMIZED_PIECEWISE,
]
EPSILONS = [Fraction(1, 2), Fraction(1), Fraction(3)]
CASES = [
    (NumericKind.DISCRETE_LAPLACE, False, 1_500_000),
    (NumericKind.DISCRETE_LAPLACE, True, 1_000_000),
    (NumericKind.DISCRETE_GAUSSIAN, False, 600_000),
    (NumericKind.DUCHI, False, 1_000_000),
    (NumericKind.DUCHI, True, 1_000_000),
    (NumericKind.PIECEWISE, False, 1_500_000),
    (NumericKind.HYBRID, False, 1_500_000),
    (NumericKind.OPTIMIZED_PIECEWISE, False, 1_500_000),
]


def make(kind, epsilon, *, in_range=False, size=SIZE):
    gaussian = kind is NumericKind.DISCRETE_GAUSSIAN
    return numeric.make(
        kind,
        size,
        size,
        None if gaussian else epsilon,
        rho=epsilon**2 / 2 if gaussian else None,
        in_range=in_range,
    )


def estimates(mechanism, x, count, size=SIZE):
    """Unbiased estimates of x, one from each output."""
    draw = draw_function(mechanism.draws)
    outputs = np.fromiter(map(draw, itertools.repeat(x)), np.float64, count)
    if mechanism.unbiased_low is not None:
        low, high = outputs == 0, outputs == size
        outputs[low], outputs[high] = mechanism.unbiased_low, mechanism.unbiased_high
    return size / 2 + (outputs - size / 2) * mechanism.stretch


def wrong(values, mean, variance, tolerance=0.01):
    """Whether the estimates' mean or variance is not what it should be."""
    centred = values - mean
    off = abs(centred.mean()) > 5 * math.sqrt(variance / len(values))
    return off or abs(np.mean(centred**2) / variance - 1) > tolerance


@pytest.mark.parametrize("epsilon", EPSILONS, ids=str)
@pytest.mark.parametrize(("kind", "in_range", "count"), CASES, ids=str)
def test_mean_and_variance(kind, in_range, count, epsilon):
    x = 1500 if kind is not NumericKind.PIECEWISE else 0
    mechanism = make(kind, epsilon, in_range=in_range)
    values = estimates(mechanism, x, count)
    variance = mechanism.variance(x)
    squares = (values - x) ** 2
    assert 5 * squares.std() / math.sqrt(count) < 0.01 * variance
    assert not wrong(values, x, variance)


@pytest.mark.parametrize("factor", [Fraction(97, 100), Fraction(103, 100)], ids=["too-small", "too-large"])
@pytest.mark.parametrize(("kind", "in_range", "count"), CASES, ids=str)
def test_three_percent_more_or_less_epsilon_is_rejected(kind, in_range, count, factor):
    """3 % in epsilon is 6 % in variance at small epsilon, where the formulas are near 1/epsilon^2."""
    x, epsilon = 1500, Fraction(1, 2)
    values = estimates(make(kind, epsilon * factor, in_range=in_range), x, count // 2)
    assert wrong(values, x, make(kind, epsilon, in_range=in_range).variance(x))


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("kind", LOCAL)
def test_small_grids(kind, size):
    mechanism = make(kind, Fraction(1), size=size)
    for x in {0, size // 2, size}:
        values, variance = estimates(mechanism, x, 200_000, size), mechanism.variance(x)
        # Five standard errors of the sample's variance.
        tolerance = 5 * ((values - x) ** 2).std() / math.sqrt(len(values)) / variance
        assert tolerance < 0.02
        assert not wrong(values, x, variance, tolerance)


@pytest.mark.parametrize(("k", "epsilon"), [(2, Fraction(1, 2)), (5, Fraction(1)), (16, Fraction(3))])
def test_randomized_response_tells_the_truth_as_often_as_it_should_and_lies_evenly(k, epsilon):
    """Truth within 5 standard errors, the lies by chi-square at p >= 1e-6."""
    draw, count = draw_function(categorical.make(k, epsilon).draws), 500_000
    e = math.exp(epsilon)
    truth = e / (e + k - 1)
    for i in (0, k - 1):
        counts = np.bincount(np.fromiter(map(draw, itertools.repeat(i)), np.int64, count), minlength=k)
        assert abs(counts[i] - count * truth) < 5 * math.sqrt(count * truth * (1 - truth))
        lies = np.delete(counts, i)
        assert len(lies) == k - 1
        if k > 2:
            assert stats.chisquare(lies).pvalue >= 1e-6


@pytest.mark.parametrize("factor", [Fraction(97, 100), Fraction(103, 100)], ids=["too-small", "too-large"])
def test_a_wrong_truth_rate_is_rejected(factor):
    count, truth = 500_000, categorical.make(5, Fraction(1)).truth
    draw = draw_function(categorical.make(5, factor).draws)
    told = sum(draw(2) == 2 for _ in range(count))
    assert abs(told - count * truth) > 5 * math.sqrt(count * truth * (1 - truth))


AWKWARD = [
    0.1,
    1 / 3,
    -0.0,
    0.0,
    5e-324,
    1e308,
    -1e308,
    math.inf,
    -math.inf,
    math.nan,
    2 / 3,
    math.nextafter(0.5, 1),
]
# Mechanism, range mode, and the outputs that every input shows often enough.
LATTICES = [
    (NumericKind.DISCRETE_LAPLACE, True, range(13)),
    (NumericKind.DISCRETE_LAPLACE, False, range(-12, 25)),
    (NumericKind.DISCRETE_GAUSSIAN, False, range(-6, 19)),
    (NumericKind.DUCHI, True, (0, 12)),
    (NumericKind.DUCHI, False, None),
    (NumericKind.PIECEWISE, False, None),
    (NumericKind.HYBRID, False, None),
    (NumericKind.OPTIMIZED_PIECEWISE, False, None),
    (NumericKind.OPTIMIZED_PIECEWISE, True, None),
]


@pytest.mark.parametrize(("kind", "in_range", "common"), LATTICES, ids=str)
def test_outputs_of_all_inputs_have_the_same_support(kind, in_range, common):
    """No input shows in which outputs are possible, whatever float it was.

    `common` outputs have a probability above 1e-3 for every input. None: the whole support is compared; the rarest
    output has one of 4.99e-4. That one is missing in 60,000 draws has a probability below 1e-12.
    """
    grid = Grid(lower=0.0, upper=1.0, step=1 / 12, size=12, integral=False)
    draw = draw_function(make(kind, Fraction(1), in_range=in_range, size=grid.size).draws)
    supports = set()
    for value in AWKWARD:
        index = grid.index(value)
        assert 0 <= index <= grid.size
        outputs = {draw(index) for _ in range(60_000)}
        supports.add(frozenset(outputs if common is None else outputs & set(common)))
    assert len(supports) == 1
    if common is not None:
        assert supports == {frozenset(common)}
