"""Discrete Gaussian draws pass six checks, and wrong ones do not. False alarms: below 5e-6 a sample."""

from fractions import Fraction

import numpy as np
import pytest

from dpmesh.noise.discrete_gaussian import DiscreteGaussian
from tests.statistical import checks

DEFAULT, FULL = 1_000_000, 10_000_000
SIGMAS = [Fraction(3, 5), Fraction(10, 3), Fraction(1000)]


def failures(draws, sigma):
    return checks.failures(draws, checks.discrete_gaussian(float(sigma)))


@pytest.mark.parametrize("sigma", SIGMAS, ids=str)
def test_draws_follow_the_law(sigma):
    assert not failures(DiscreteGaussian(sigma**2).block(DEFAULT), sigma)


@pytest.mark.full
@pytest.mark.parametrize("sigma", [*SIGMAS, Fraction(2**18)], ids=str)
def test_many_draws_follow_the_law(sigma):
    assert not failures(DiscreteGaussian(sigma**2).block(FULL), sigma)


@pytest.mark.parametrize("factor", [Fraction(97, 100), Fraction(103, 100)], ids=["too-small", "too-large"])
@pytest.mark.parametrize("sigma", SIGMAS, ids=str)
def test_a_wrong_scale_is_rejected(sigma, factor):
    """The moment alone is off by 35 standard errors or more."""
    assert "moment" in failures(DiscreteGaussian((sigma * factor) ** 2).block(DEFAULT), sigma)


@pytest.mark.full
@pytest.mark.parametrize(
    "factor", [Fraction(997, 1000), Fraction(1003, 1000)], ids=["too-small", "too-large"]
)
def test_a_slightly_wrong_scale_is_rejected_by_many_draws(factor):
    assert "moment" in failures(DiscreteGaussian((1000 * factor) ** 2).block(FULL), 1000)


def test_rounded_continuous_noise_is_rejected():
    """Rounding adds a twelfth to the variance."""
    draws = np.rint(np.random.default_rng().normal(scale=3 / 5, size=DEFAULT)).astype(np.int64)
    assert "moment" in failures(draws, Fraction(3, 5))


def test_the_proposals_alone_are_rejected():
    law = DiscreteGaussian(Fraction(1000) ** 2)
    assert {"moment", "chi-square", "tail"} <= failures(law._proposals.block(DEFAULT), 1000).keys()
