"""The k largest of n absolute normals, against integrals by another quadrature and against what is known."""

import math

import numpy as np
import pytest
from scipy import stats

from dpmesh.noise.largest_normals import moments


def by_quadrature(n, k, power):
    """The trapezoid rule, with scipy's laws."""
    x = np.linspace(0, 12.5, 20_001)
    others = stats.binom.cdf(k - 1, n - 1, 2 * stats.norm.sf(x))
    return float(np.sum(x**power * 2 * stats.norm.pdf(x) * others) * (x[1] - x[0]) * n / k)


@pytest.mark.parametrize(("n", "k"), [(2, 1), (4, 3), (10, 9), (512, 1), (512, 33), (512, 431), (2048, 12)])
def test_both_moments(n, k):
    mean, square = moments(n, k)
    assert mean == pytest.approx(by_quadrature(n, k, 1), rel=1e-7)
    assert square == pytest.approx(by_quadrature(n, k, 2), rel=1e-7)


def test_all_of_them_are_half_normal():
    assert moments(7, 7) == (math.sqrt(2 / math.pi), 1.0)


def test_the_larger_of_two():
    """E max(|X|, |Y|) is 2/sqrt(pi): the distance of two normals is sqrt(2) times a normal."""
    assert moments(2, 1)[0] == pytest.approx(2 / math.sqrt(math.pi), rel=1e-9)


def test_many_are_the_tail_of_the_normal_law():
    share = 0.05
    edge = float(stats.norm.isf(share / 2))
    mean, _ = moments(1 << 17, int(share * (1 << 17)))
    assert mean == pytest.approx(2 * stats.norm.pdf(edge) / share, rel=1e-4)
