"""The confidence interval of a probability, from how often something happened in n independent trials."""

from __future__ import annotations

import math
from statistics import NormalDist

# Up to so many cases on either side the binomial law is too skewed for a normal interval alone. Then it is
# widened to the exact one. Computed exactly for n from 2 to 3,000 and every probability, 95 % intervals cover
# at least 93.8 %, where Wilson's alone cover 82 %.
_FEW = 40
_HALVINGS = 48


def interval(seen: int, n: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval (1927), never narrower than Clopper and Pearson's (1934) where cases are few.

    It also holds for trials of unequal probabilities, whose count varies less than a binomial one of their mean
    (Hoeffding 1956).

    Args:
        seen: How often it happened.
        n: The number of trials, at least 1.
        confidence: Between 0 and 1.
    """
    low, high = _wilson(seen / n, n, NormalDist().inv_cdf((1 + confidence) / 2))
    if min(seen, n - seen) <= _FEW:
        tail = (1 - confidence) / 2
        low = _lowest(seen, n, tail, low)
        high = 1 - _lowest(n - seen, n, tail, 1 - high)
    return low, high


def _wilson(share: float, n: int, z: float) -> tuple[float, float]:
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    margin = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At 0 and n the ends meet what was seen, but for rounding.
    return min(centre - margin, share), max(centre + margin, share)


def _lowest(seen: int, n: int, tail: float, most: float) -> float:
    """The least probability at which `seen` or more of n cases have at least the probability `tail`, or `most`."""
    if not seen or _at_least(seen, n, most) <= tail:
        return most
    low, high = 0.0, most
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _at_least(seen, n, middle) < tail:
            low = middle
        else:
            high = middle
    return low


def _at_least(seen: int, n: int, p: float) -> float:
    """P(X >= seen) of the binomial law, for p up to seen/n: from there on its terms decrease."""
    if p <= 0 or p >= 1:
        return float(p >= 1)
    ways = math.lgamma(n + 1) - math.lgamma(seen + 1) - math.lgamma(n - seen + 1)
    term = math.exp(ways + seen * math.log(p) + (n - seen) * math.log1p(-p))
    total, odds = term, p / (1 - p)
    for k in range(seen, n):
        term *= (n - k) / (k + 1) * odds
        total += term
        if term < 1e-15 * total:
            break
    return min(total, 1.0)
