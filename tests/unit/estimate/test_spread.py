"""Intervals of means: against scipy's quantiles, against their definition, and their coverage computed exactly."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from dpmesh.estimate import spread
from dpmesh.noise import numeric
from dpmesh.noise.numeric import NumericKind

EVERY = [
    (NumericKind.DISCRETE_LAPLACE, False),
    (NumericKind.DISCRETE_LAPLACE, True),
    (NumericKind.DISCRETE_GAUSSIAN, False),
    (NumericKind.DUCHI, False),
    (NumericKind.DUCHI, True),
    (NumericKind.PIECEWISE, False),
    (NumericKind.HYBRID, False),
    (NumericKind.OPTIMIZED_PIECEWISE, False),
    (NumericKind.OPTIMIZED_PIECEWISE, True),
]


def made(kind: NumericKind, in_range: bool, size: int, epsilon: Fraction) -> numeric.NumericMechanism:
    rho = epsilon**2 / 2 if kind is NumericKind.DISCRETE_GAUSSIAN else None
    return numeric.make(kind, size, size, epsilon, rho=rho, in_range=in_range)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 30, 101, 200, 201, 5000])
@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95, 0.999])
def test_students_quantile(degrees, confidence):
    expected = stats.t.ppf((1 + confidence) / 2, degrees)
    assert spread.student(confidence, degrees) == pytest.approx(
        expected, rel=1e-8 if degrees <= 200 else 1e-3
    )


@pytest.mark.parametrize(("kind", "in_range"), EVERY)
@pytest.mark.parametrize("size", [1, 7, 300, 10_000])
def test_the_least_variance_is_the_mechanisms(kind, in_range, size):
    mechanism = made(kind, in_range, size, Fraction(3))
    least = spread.least_variance(mechanism, size)
    for x in {0, 1, size // 3, size // 2, size - 1, size}:
        assert least(x) == pytest.approx(mechanism.variance(x), rel=2e-2)
    assert (least(-5), least(size + 5)) == (mechanism.variance(0), mechanism.variance(size))
    assert least.largest == pytest.approx(mechanism.worst_variance, rel=2e-2)


@pytest.mark.parametrize(("kind", "in_range"), EVERY)
@pytest.mark.parametrize("epsilon", [Fraction(1, 2), Fraction(4), Fraction(12)])
@pytest.mark.parametrize("n", [1, 2, 10, 99, 100, 3000])
def test_an_interval_is_never_narrower_than_the_mechanisms_noise(kind, in_range, epsilon, n):
    """Whatever n: outputs that are all the same by chance do not mean that there is no noise."""
    size = 1000
    mechanism = made(kind, in_range, size, epsilon)
    if spread.two_points(mechanism, size) is not None:
        return
    least = spread.least_variance(mechanism, size)
    for mean in (0.0, 10.0, 400.0, 1000.0, 1010.0):
        low, high = spread.around(mean, 0.0, n, least, 0.95)
        for end in (low, high):
            assert abs(end - mean) == pytest.approx(1.959964 * math.sqrt(least(end) / n), rel=1e-6)


def test_what_the_sample_shows_beyond_the_noise_takes_students_quantile():
    least = spread.least_variance(made(NumericKind.DISCRETE_LAPLACE, False, 1000, Fraction(4)), 1000)
    noise = least(0)
    low, high = spread.around(500.0, 3 * noise, 10, least, 0.95)
    margin = math.sqrt((1.959964**2 * noise + stats.t.ppf(0.975, 9) ** 2 * 2 * noise) / 10)
    assert (low, high) == (pytest.approx(500 - margin, rel=1e-6), pytest.approx(500 + margin, rel=1e-6))


@pytest.mark.parametrize("in_range", [False, True])
@pytest.mark.parametrize("epsilon", [Fraction(1, 2), Fraction(2), Fraction(4), Fraction(8), Fraction(12)])
@pytest.mark.parametrize("n", [10, 50, 100, 300, 1000])
def test_duchis_intervals_cover_exactly_computed(in_range, epsilon, n):
    """For senders who all hold the same, at 9 places of the range, ends and their neighbourhood included."""
    size = 10_000
    law = spread.two_points(made(NumericKind.DUCHI, in_range, size, epsilon), size)
    ends = np.array([spread.from_ends(law, upper, n, 0.95)[1:] for upper in range(n + 1)])
    lie = 1 / (1 + math.exp(epsilon))
    for x in (0, 1, 10, 100, 1000, 5000, 9000, 9999, 10_000):
        mass = stats.binom.pmf(np.arange(n + 1), n, lie + x / size * (1 - 2 * lie))
        assert float(mass[(ends[:, 0] <= x + 1e-6) & (x - 1e-6 <= ends[:, 1])].sum()) >= 0.93


def test_a_hybrid_of_small_epsilon_tells_one_of_two_ends_too():
    assert spread.two_points(made(NumericKind.HYBRID, False, 100, Fraction(1, 2)), 100) is not None
    assert spread.two_points(made(NumericKind.HYBRID, False, 100, Fraction(1)), 100) is None
    assert spread.two_points(made(NumericKind.DISCRETE_GAUSSIAN, False, 100, Fraction(1)), 100) is None
