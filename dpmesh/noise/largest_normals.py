"""The expected sizes of the k largest of n absolute standard normal variables, by quadrature."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_NORMAL = NormalDist()
_NODES = 96
# In standard deviations: how far from k of n a tail's share may be before it is certain which side it is on.
_WIDTH = 9.0
# A normal variable is beyond this with probability 1e-35.
_FARTHEST = 12.5


@lru_cache(1024)
def moments(n: int, k: int) -> tuple[float, float]:
    """The expected mean of the k largest of n absolute normals, and of their squares.

    A value of size x is among the k largest if fewer than k of the other n - 1 are larger, so the mean of h(x) over
    them is (n/k) times the integral of h(x) 2 phi(x) P(Binomial(n - 1, 2 Phi(-x)) < k) (David and Nagaraja 2003,
    "Order Statistics", section 3.1). The probability is 1 for large x, where the integrals are known, and 0 for small
    x; between these Gauss-Legendre quadrature is exact to 1e-7, relative.

    Args:
        n: How many variables, at least 2.
        k: 1 to n.
    """
    if k == n:
        return math.sqrt(2 / math.pi), 1.0
    share, spread = k / n, _WIDTH * math.sqrt(k * (n - k) / n) / n + 40 / n
    low = _size(min(1.0, share + spread))
    high = min(_FARTHEST, _size(share - spread)) if share > spread else _FARTHEST
    mean = 2 * _density(high)
    square = 2 * (high * _density(high) + 0.5 * math.erfc(high / math.sqrt(2)))
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    x = low + (high - low) * (nodes + 1) / 2
    tails = np.array([math.erfc(value / math.sqrt(2)) for value in x])
    weight = weights * (high - low) * np.exp(-x * x / 2) / math.sqrt(2 * math.pi) * _fewer(n - 1, k, tails)
    return (mean + float(weight @ x)) * n / k, (square + float(weight @ (x * x))) * n / k


def _density(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _size(share: float) -> float:
    """What a share of all absolute normals exceeds."""
    return 0.0 if share >= 1 else -_NORMAL.inv_cdf(share / 2)


def _fewer(n: int, k: int, probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(Binomial(n, probability) < k), summed term by term where the terms count."""
    p = np.clip(probability, 1e-300, 1 - 1e-16)[:, np.newaxis]
    first = max(0, k - 1 - int(4 * _WIDTH * math.sqrt(n)))
    count = np.arange(first, k)
    factorials = np.array([math.lgamma(i + 1) for i in range(n + 1)])
    choose = factorials[n] - factorials[count] - factorials[n - count]
    return np.asarray(np.exp(choose + count * np.log(p) + (n - count) * np.log1p(-p)).sum(axis=1), np.float64)
