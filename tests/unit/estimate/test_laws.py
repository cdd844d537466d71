"""The noise laws against their definitions, summed up or integrated independently."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from dpmesh.estimate.laws import Gaussian, Laplace, law_of
from dpmesh.noise import numeric

CONFIDENCES = (0.5, 0.9, 0.95, 0.999)


def discrete(weights) -> np.ndarray:
    """P(|Z| <= w) for w = 0, 1, ... of a symmetric law on the integers."""
    mass = np.array(weights)
    mass[1:] *= 2
    return np.cumsum(mass / mass.sum())


@pytest.mark.parametrize("b", [0.2, 1.0, 7.3, 400.0])
@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_laplace_margin_is_the_least_that_covers(b, confidence):
    within = discrete(np.exp(-np.arange(int(40 * b) + 40) / b))
    assert Laplace(b).margin(confidence) == int(np.argmax(within >= confidence - 1e-12))


@pytest.mark.parametrize("sigma", [0.3, 1.0, 7.3, 400.0])
@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_gaussian_margin_covers_and_is_at_most_one_step_too_wide(sigma, confidence):
    within = discrete(np.exp(-(np.arange(int(12 * sigma) + 12) ** 2) / (2 * sigma**2)))
    least = int(np.argmax(within >= confidence - 1e-12))
    assert least <= Gaussian(sigma).margin(confidence) <= least + 1


@pytest.mark.parametrize(
    ("law", "reference"), [(Laplace(3.0), stats.laplace(scale=3)), (Gaussian(3.0), stats.norm(scale=3))]
)
def test_tails_and_quantiles(law, reference):
    distance = np.linspace(0, 40, 200)
    assert np.allclose(law.beyond(distance), 2 * reference.sf(distance), atol=2e-7)
    u = (np.arange(64) + 0.5) / 64
    assert np.allclose(law.quantiles(64), reference.ppf(u))


@pytest.mark.parametrize("sensitivity", [1, 30, 5000])
@pytest.mark.parametrize("in_range", [False, True])
def test_the_law_is_read_off_the_mechanism(sensitivity, in_range):
    made = numeric.make(
        numeric.NumericKind.DISCRETE_LAPLACE, 100_000, sensitivity, Fraction(1, 4), in_range=in_range
    )
    law = law_of(made)
    assert isinstance(law, Laplace)
    assert law.b == pytest.approx(4 * sensitivity, rel=1e-9)
    a = math.exp(-0.25 / sensitivity)
    assert law.scale == pytest.approx(math.sqrt(2 * a) / (1 - a), rel=1e-9)


def test_the_gaussians_law_is_its_sigma():
    made = numeric.make(numeric.NumericKind.DISCRETE_GAUSSIAN, 1000, 10, None, rho=Fraction(1, 8))
    law = law_of(made)
    assert isinstance(law, Gaussian)
    assert law.sigma == pytest.approx(20, rel=1e-6)
    assert law.scale == law.sigma


def test_other_mechanisms_have_no_law_of_their_own():
    assert law_of(numeric.make(numeric.NumericKind.DUCHI, 10, 10, Fraction(1))) is None
