"""Mechanisms for a category: one of k public symbols, known by their index."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from dpmesh.noise import checks
from dpmesh.noise.draws import Draws
from dpmesh.noise.local_hashing import FINGERPRINTS, LocalHashing
from dpmesh.noise.randomized_response import RandomizedResponse
from dpmesh.noise.subset_selection import SubsetSelection
from dpmesh.noise.thresholds import ONE

# More hashes take more bits of a report, and improve nothing that could be measured.
MOST_HASHES = 1 << 16
# A subset is a few hundred symbols then.
MOST_SYMBOLS_OF_SUBSETS = 1024


class CategoricalKind(enum.StrEnum):
    """What draws a category."""

    K_RANDOMIZED_RESPONSE = "k_randomized_response"
    SUBSET_SELECTION = "subset_selection"
    OPTIMIZED_LOCAL_HASHING = "optimized_local_hashing"


@dataclass(frozen=True, eq=False)
class CategoricalMechanism:
    """A mechanism whose reports each support some symbols: itself, the symbols of a subset, or those with a hash.

    Attributes:
        kind: What it is.
        k: The number of symbols; for local hashing that of fingerprints, which then are the indexes.
        size: How many symbols a report names: 1, or the length of its subset. For local hashing the number of hashes.
        epsilon: The loss of one draw, at most.
        draws: The codes, and how an index 0..k-1 takes one in. What comes out is an index; a list of `size` indexes in
            increasing order; or (seed, hash).
        truth: The probability that a report supports the symbol itself.
        lie: The probability that it supports any other given symbol.
        allows: Whether something is an output.
    """

    kind: CategoricalKind
    k: int
    size: int
    epsilon: Fraction
    draws: Draws
    truth: float
    lie: float
    allows: Callable[[Any], bool]

    def variance(self, share: float = 0.0) -> float:
        """The variance of a symbol's share as estimated from n reports, times n.

        With p = `truth` and q = `lie` it is (f p (1-p) + (1-f) q (1-q)) / (p-q)^2 (Wang, Blocki, Li, Jha 2017, theorem
        2). The one of a symbol that nobody has is what mechanisms are compared by: few symbols of many are held by
        many.

        Args:
            share: f, the true share of the reports' senders that have the symbol.
        """
        p, q = self.truth, self.lie
        return (share * p * (1 - p) + (1 - share) * q * (1 - q)) / (p - q) ** 2


def make(k: int, epsilon: Fraction) -> CategoricalMechanism:
    """Makes k-ary randomized response, whose variance for symbols that nobody has is (E+k-2)/(E-1)^2.

    Args:
        k: The number of symbols, 2 to 2^31.
        epsilon: Above 0 and at most 64.

    Raises:
        ValueError: An argument is out of range.
        TypeError: An argument is not exact.
    """
    checks.integer("the number of symbols", k, 2, 1 << 31)
    checks.epsilon(epsilon)
    return _randomized_response(k, epsilon)


def make_subset(k: int, epsilon: Fraction) -> CategoricalMechanism:
    """Makes subset selection with the length that has the least variance for symbols that nobody has.

    Length 1 is k-ary randomized response, so it is never worse than that.

    Args:
        k: The number of symbols, 2 to MOST_SYMBOLS_OF_SUBSETS.
        epsilon: Above 0 and at most 64.

    Raises:
        ValueError: An argument is out of range.
        TypeError: An argument is not exact.
    """
    checks.integer("the number of symbols", k, 2, MOST_SYMBOLS_OF_SUBSETS)
    checks.epsilon(epsilon)
    return _subset(k, epsilon)


def make_hashing(epsilon: Fraction) -> CategoricalMechanism:
    """Makes optimized local hashing: g = E + 1, rounded, has the least variance for symbols that nobody has.

    Args:
        epsilon: Above 0 and at most 64.

    Raises:
        ValueError: It is out of range.
        TypeError: It is not exact.
    """
    checks.epsilon(epsilon)
    return _hashing(epsilon)


@lru_cache(maxsize=1024)
def _randomized_response(k: int, epsilon: Fraction) -> CategoricalMechanism:
    law = RandomizedResponse(k, epsilon)
    truth, lie = Fraction(law.threshold, ONE), Fraction(ONE - law.threshold, ONE * (k - 1))
    return CategoricalMechanism(
        kind=CategoricalKind.K_RANDOMIZED_RESPONSE,
        k=k,
        size=1,
        epsilon=epsilon,
        draws=law.draws,
        truth=float(truth),
        lie=float(lie),
        allows=range(k).__contains__,
    )


@lru_cache(maxsize=256)
def _subset(k: int, epsilon: Fraction) -> CategoricalMechanism:
    w = _best_length(k, epsilon)
    law = SubsetSelection(k, w, epsilon)
    truth = Fraction(law.threshold, ONE)
    lie = (truth * (w - 1) + (1 - truth) * w) / (k - 1)

    def allows(output: Any) -> bool:
        return len(output) == w == len(set(output)) and all(0 <= index < k for index in output)

    return CategoricalMechanism(
        kind=CategoricalKind.SUBSET_SELECTION,
        k=k,
        size=w,
        epsilon=epsilon,
        draws=law.draws,
        truth=float(truth),
        lie=float(lie),
        allows=allows,
    )


def _best_length(k: int, epsilon: Fraction) -> int:
    """The length w with the least q (1-q) / (p-q)^2: an integer near k/(E+1), found by trying all."""
    ratio = math.exp(-float(epsilon))  # Rounding only matters between lengths that are as good as each other.

    def variance(w: int) -> float:
        p, not_p = w / (w + (k - w) * ratio), (k - w) * ratio / (w + (k - w) * ratio)
        q = (p * (w - 1) + not_p * w) / (k - 1)
        return q * (1 - q) / (p - q) ** 2

    return min(range(1, k), key=variance)


@lru_cache(maxsize=256)
def _hashing(epsilon: Fraction) -> CategoricalMechanism:
    g = min(max(2, round(math.exp(epsilon) + 1)), MOST_HASHES)
    law = LocalHashing(g, epsilon)

    def allows(output: Any) -> bool:
        seed, noisy = output
        return bool(0 <= seed < FINGERPRINTS and 0 <= noisy < g)

    return CategoricalMechanism(
        kind=CategoricalKind.OPTIMIZED_LOCAL_HASHING,
        k=FINGERPRINTS,
        size=g,
        epsilon=epsilon,
        draws=law.draws,
        truth=law.threshold / ONE,
        lie=1 / g,
        allows=allows,
    )
