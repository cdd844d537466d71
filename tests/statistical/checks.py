"""Six checks that a wrong sampler of symmetric integer noise fails.

False alarms, of a right sampler: moment, zero, parity and lag are standardised and allowed 5 standard errors, 6e-7
each; chi-square and tail are allowed p >= 1e-6. Together below 5e-6 for each sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Law:
    """What the noise should be.

    Attributes:
        pmf: P(Z = z) for an array of z.
        tail: P(|Z| >= z) for z >= 1.
        power: The moment that is checked, E|Z|^power.
        moment: Its value.
        spread: The standard deviation of |Z|^power.
        even: P(Z is even).
        reach: Maps n to the last |z| whose cells still expect enough draws for chi-square.
    """

    pmf: Callable[[np.ndarray], np.ndarray]
    tail: Callable[[int], float]
    power: int
    moment: float
    spread: float
    even: float
    reach: Callable[[int], int]


def discrete_laplace(scale: float) -> Law:
    a = math.exp(-1 / scale)
    mean, square = 2 * a / (1 - a * a), 2 * a / (1 - a) ** 2
    return Law(
        pmf=lambda z: (1 - a) / (1 + a) * a ** np.abs(z),
        tail=lambda z: 2 * a**z / (1 + a),
        power=1,
        moment=mean,
        spread=math.sqrt(square - mean * mean),
        even=(1 + a * a) / (1 + a) ** 2,
        reach=lambda n: int(scale * math.log(n / 200)),
    )


def discrete_gaussian(sigma: float) -> Law:
    z = np.arange(int(40 * sigma) + 40)
    weights = np.exp(-0.5 * (z / sigma) ** 2)
    total = 2 * weights.sum() - 1
    mass = weights / total
    square, fourth = 2 * (z**2.0 * mass).sum(), 2 * (z**4.0 * mass).sum()
    return Law(
        pmf=lambda z: np.exp(-0.5 * (z / sigma) ** 2) / total,
        tail=lambda z: 2 * float(mass[z:].sum()),
        power=2,
        moment=square,
        spread=math.sqrt(fourth - square * square),
        even=2 * float(mass[::2].sum()) - float(mass[0]),
        reach=lambda n: int(sigma * math.sqrt(2 * math.log(n / 200))),
    )


def failures(draws: np.ndarray, law: Law) -> dict[str, float]:
    """The checks that the draws fail, with their statistic (standard errors, or a p-value)."""
    results = {
        "moment": _moment(draws, law),
        "zero": _share(draws == 0, float(law.pmf(np.array([0]))[0])),
        "parity": _share(draws % 2 == 0, law.even),
        "lag": _lag(draws),
    }
    failed = {name: z for name, z in results.items() if not abs(z) <= 5}
    p_values = {"chi-square": _chi_square(draws, law), "tail": _tail(draws, law)}
    return failed | {name: p for name, p in p_values.items() if not p >= 1e-6}


def _moment(draws: np.ndarray, law: Law) -> float:
    return (np.mean(np.abs(draws) ** float(law.power)) - law.moment) / law.spread * math.sqrt(len(draws))


def _share(hits: np.ndarray, p: float) -> float:
    return (np.count_nonzero(hits) - len(hits) * p) / math.sqrt(len(hits) * p * (1 - p))


def _lag(draws: np.ndarray) -> float:
    centred = draws - draws.mean()
    return float(np.dot(centred[1:], centred[:-1]) / np.dot(centred, centred) * math.sqrt(len(draws)))


def _chi_square(draws: np.ndarray, law: Law) -> float:
    """Over |z| <= reach, in bins of at least one value and at most some hundred bins, and one bin for the rest."""
    reach = max(law.reach(len(draws)), 1)
    width = max(1, reach // 100)
    z = np.arange(-reach, reach + 1)
    bins = (z + reach) // width
    expected = np.bincount(bins, weights=law.pmf(z)) * len(draws)
    inside = draws[np.abs(draws) <= reach]
    observed = np.bincount((inside + reach) // width, minlength=len(expected))
    rest = len(draws) - expected.sum()
    if rest > 5:
        observed, expected = np.append(observed, len(draws) - len(inside)), np.append(expected, rest)
        degrees = len(expected) - 1
    else:
        degrees = len(expected)
    return float(stats.chi2.sf(((observed - expected) ** 2 / expected).sum(), degrees))


def _tail(draws: np.ndarray, law: Law) -> float:
    """Two-sided Poisson p of the number of draws beyond the z that 30 should exceed."""
    low, high = 1, 2
    while len(draws) * law.tail(high) > 30:
        high *= 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if len(draws) * law.tail(middle) > 30 else (low, middle)
    expected, count = len(draws) * law.tail(high), int(np.count_nonzero(np.abs(draws) >= high))
    return min(1.0, 2 * min(stats.poisson.cdf(count, expected), stats.poisson.sf(count - 1, expected)))
