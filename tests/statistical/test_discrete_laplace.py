"""Discrete Laplace draws pass six checks, and wrong ones do not. False alarms: below 5e-6 a sample."""

from fractions import Fraction

import numpy as np
import pytest

from dpmesh.noise.discrete_laplace import DiscreteLaplace
from tests.statistical import checks

DEFAULT, FULL = 1_000_000, 10_000_000
SCALES = [Fraction(3, 7), Fraction(10, 3), Fraction(1000, 3), Fraction(1000)]


def failures(draws, scale):
    return checks.failures(draws, checks.discrete_laplace(float(scale)))


@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_draws_follow_the_law(scale):
    assert not failures(DiscreteLaplace(scale).block(DEFAULT), scale)


@pytest.mark.full
@pytest.mark.parametrize("scale", [*SCALES, Fraction(2**20), Fraction(1, 2)], ids=str)
def test_many_draws_follow_the_law(scale):
    assert not failures(DiscreteLaplace(scale).block(FULL), scale)


@pytest.mark.parametrize("factor", [Fraction(97, 100), Fraction(103, 100)], ids=["too-small", "too-large"])
@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_a_wrong_scale_is_rejected(scale, factor):
    """The moment alone is off by 18 standard errors or more."""
    assert "moment" in failures(DiscreteLaplace(scale * factor).block(DEFAULT), scale)


@pytest.mark.full
@pytest.mark.parametrize(
    "factor", [Fraction(997, 1000), Fraction(1003, 1000)], ids=["too-small", "too-large"]
)
def test_a_slightly_wrong_scale_is_rejected_by_many_draws(factor):
    assert "moment" in failures(DiscreteLaplace(1000 * factor).block(FULL), 1000)


def test_doubled_zeros_are_rejected():
    """Sign times a geometric magnitude counts 0 twice."""
    rng = np.random.default_rng()
    magnitude = rng.geometric(1 - np.exp(-0.3), DEFAULT) - 1
    assert "zero" in failures(magnitude * rng.choice([-1, 1], DEFAULT), Fraction(10, 3))


def test_rounded_continuous_noise_is_rejected():
    draws = np.rint(np.random.default_rng().laplace(scale=10 / 3, size=DEFAULT)).astype(np.int64)
    assert {"zero", "chi-square"} & failures(draws, Fraction(10, 3)).keys()


def test_shared_words_are_rejected():
    draws = np.repeat(DiscreteLaplace(Fraction(1000)).block(DEFAULT // 2), 2)
    assert "lag" in failures(draws, 1000)


def test_a_short_tail_is_rejected():
    """Noise cut off where 30 of a million draws should lie: what a generator without carries would do."""
    draws = DiscreteLaplace(Fraction(1000)).block(DEFAULT)
    assert "tail" in failures(draws[np.abs(draws) < 10_000], 1000)


def test_a_missing_digit_is_rejected():
    draws = DiscreteLaplace(Fraction(1000)).block(DEFAULT) // 2 * 2
    assert "parity" in failures(draws, 1000)
