"""Fieller's interval against its textbook form, and where it has no end."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, optimize, stats

from dpmesh.estimate.laws import Gaussian, Laplace
from dpmesh.estimate.ratio import fieller


def textbook(a: float, b: float, sa: float, sb: float, confidence: float) -> tuple[float, float]:
    """Fieller's interval with normal errors: the roots of (A - theta B)^2 = z^2 (sa^2 + theta^2 sb^2)."""
    z = stats.norm.ppf((1 + confidence) / 2)
    roots = np.roots([b * b - z * z * sb * sb, -2 * a * b, a * a - z * z * sa * sa])
    return float(min(roots)), float(max(roots))


@pytest.mark.parametrize(("a", "b"), [(1000, 200), (-1000, 200), (1000, -200), (0, 200), (3, 1000)])
@pytest.mark.parametrize(("sa", "sb"), [(30, 10), (5, 40), (30, 0.5)])
def test_normal_noise_gives_the_textbook_interval(a, b, sa, sb):
    low, high = fieller(a, b, Gaussian(sa), Gaussian(sb), 0.95)
    expected = textbook(a, b, sa, sb, 0.95)
    width = expected[1] - expected[0]
    assert low == pytest.approx(expected[0], abs=0.005 * width)
    assert high == pytest.approx(expected[1], abs=0.005 * width)


def test_laplace_noise_ends_where_the_tail_does():
    a, b, scale_a, scale_b = 5000.0, 900.0, 300.0, 20.0

    def tail(theta: float) -> float:
        """P(|Z1 - theta Z2| > |a - theta b|), by numeric integration over Z2."""
        one, two = stats.laplace(scale=scale_a), stats.laplace(scale=abs(theta) * scale_b)
        t = abs(a - theta * b)
        edges = [-t, 0, t]
        found, _ = integrate.quad(
            lambda s: two.pdf(s) * (one.sf(t - s) + one.cdf(-t - s)), -4000, 4000, points=edges, limit=400
        )
        return found

    low, high = fieller(a, b, Laplace(scale_a), Laplace(scale_b), 0.95)
    centre = a / b
    assert low == pytest.approx(
        optimize.brentq(lambda t: tail(t) - 0.05, 0.5 * centre, centre - 0.01), rel=2e-3
    )
    assert high == pytest.approx(
        optimize.brentq(lambda t: tail(t) - 0.05, centre + 0.01, 2 * centre), rel=2e-3
    )


def test_a_divisor_that_may_be_zero_rules_nothing_out():
    assert fieller(100, 5, Laplace(10), Laplace(10), 0.95) == (-math.inf, math.inf)
    assert fieller(100, -5, Laplace(10), Laplace(10), 0.95) == (-math.inf, math.inf)


def test_an_exact_divisor_gives_the_dividends_own_interval():
    law = Laplace(50)
    low, high = fieller(0, 1000, law, Laplace(1e-9), 0.95)
    margin = 50 * math.log(20)
    assert (low, high) == (pytest.approx(-margin / 1000, rel=1e-6), pytest.approx(margin / 1000, rel=1e-6))
