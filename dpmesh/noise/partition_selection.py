"""Optimal partition selection: which keys of a histogram may leave, and with which noise on their counts."""

from __future__ import annotations

from bisect import bisect_right
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dpmesh.noise import checks
from dpmesh.noise.draws import Draws
from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.thresholds import BITS, ONE, exponential

# A table has about 2 sensitivity/epsilon ln(1/delta) entries.
MAX_ENTRIES = 1 << 18
_HALF = BITS // 2
_LOW_MASK = (1 << _HALF) - 1
# Bits of the rational bounds on exponentials.
_PRECISION = 2 * BITS
# How often delta is lowered by what rounding adds to it.
_PASSES = 8


class PartitionSelection:
    """Additive noise whose threshold releases a key as often as any mechanism with this epsilon and delta can.

    Desfontaines, Voss, Gipson, Mandayam (arXiv:2006.03684): where one unit changes counts by 1, a key of count n may be
    released with probability at most

        pi(0) = 0,  pi(n) = min(pi(n-1) E + delta, 1 - (1 - pi(n-1) - delta)/E, 1),  E = exp(epsilon).

    Here an integer J with P(J <= n) = pi(n) is drawn, and the key is released if J <= n. So its count may be released
    too, as n + middle - J, at no further loss: both are post-processing of n - J. The differences of pi grow by E, fall
    by E, and end with at most delta on both sides, so n - J is (epsilon, delta)-differentially private by itself.

    Where one unit changes the counts of all keys by up to `sensitivity` together, the steps are those of
    epsilon/sensitivity and of delta (E' - 1)/(E - 1), with E' = exp(epsilon/sensitivity). A count that moves by d steps
    loses d epsilon/sensitivity and delta (E'^d - 1)/(E - 1) (group privacy). Over all keys these add up to at most
    epsilon and delta, because the second is convex in d.

    All is computed in integers of 2^-128. E is rounded down, and so are the thresholds. The delta of the table itself,
    the sum over j of max(0, P(J=j) - E P(J=j+-1)), is added up exactly and is at most the delta that was asked for.

    Args:
        epsilon: Above 0 and at most 64.
        sensitivity: How far one unit moves the counts of all keys together, in steps; at least 1.
        delta: Above 0 and below 1.

    Attributes:
        thresholds: 2^128 pi(n) for n = 1, 2, ... up to the first n that is always released.
        middle: The smallest output of a released key; J's mean, rounded.
        mean: J's mean.
        variance: J's variance.
        draws: Codes middle - J. A key is released if the output is at least `middle`.

    Raises:
        ValueError: An argument is out of range, or the table would be too long.
        TypeError: A number is not exact.
    """

    __slots__ = ("_high", "draws", "mean", "middle", "thresholds", "variance")

    def __init__(self, epsilon: Fraction, sensitivity: int, delta: Fraction) -> None:
        checks.epsilon(epsilon)
        checks.integer("sensitivity", sensitivity, 1, 1 << 40)
        checks.rational("delta", delta, 1)
        growth = Fraction(1 << _PRECISION, exponential(epsilon / sensitivity, _PRECISION) + 1)
        whole = Fraction(1 << _PRECISION, exponential(epsilon, _PRECISION))
        allowed = int(ONE * delta * (growth - 1) / (whole - 1))
        self.thresholds = _table(growth, allowed)
        masses = np.diff(np.array([0, *self.thresholds], object)).astype(np.float64) / ONE
        places = np.arange(1, len(masses) + 1)
        self.mean = float(masses @ places)
        self.variance = float(masses @ (places - self.mean) ** 2)
        self.middle = round(self.mean)
        self._high = np.array([threshold >> _HALF for threshold in self.thresholds[:-1]], np.uint64)
        self.draws = Draws((PartitionSelection, epsilon, sensitivity, delta), self.block, "y = x + code")

    def block(self, count: int, stream: KeyStream | None = None) -> NDArray[np.int64]:
        """Makes independent codes, middle - J.

        J is 1 and the number of thresholds, but for the last, that a 128-bit uniform reaches. Its first 64 bits decide,
        unless they equal those of a threshold; only then the others are drawn.

        Args:
            count: How many.
            stream: The bits; a fresh key stream by default.
        """
        stream = stream or KeyStream()
        words = stream.words(count)
        reached = np.searchsorted(self._high, words, side="right").astype(np.int64)
        if self._high.size:
            tied = (reached > 0) & (self._high[np.maximum(reached - 1, 0)] == words)
            for index in np.flatnonzero(tied).tolist():
                uniform = int(words[index]) << _HALF | stream.integer(_HALF)
                reached[index] = bisect_right(self.thresholds, uniform, hi=len(self.thresholds) - 1)
        return self.middle - 1 - reached


@lru_cache(maxsize=256)
def make(epsilon: Fraction, sensitivity: int, delta: Fraction) -> PartitionSelection:
    """One law for all fields with equal rules; see PartitionSelection."""
    return PartitionSelection(epsilon, sensitivity, delta)


def _table(growth: Fraction, allowed: int) -> list[int]:
    """The thresholds whose own delta is at most `allowed`, an integer of 2^-128."""
    delta = allowed
    for _ in range(_PASSES):
        if delta < 1:
            break
        thresholds = _thresholds(growth, delta)
        excess = delta_of(thresholds, growth) - allowed
        if excess <= 0:
            return thresholds
        delta -= excess
    raise ValueError("delta is too small for this epsilon")


def _thresholds(growth: Fraction, delta: int) -> list[int]:
    up, down = growth.numerator, growth.denominator
    thresholds: list[int] = []
    last = 0
    while last < ONE:
        if len(thresholds) == MAX_ENTRIES:
            raise ValueError("one unit moves a count by too many steps")
        left = max(ONE - last - delta, 0)
        last = min(last * up // down + delta, ONE - -(-left * down // up))
        thresholds.append(last)
    return thresholds


def delta_of(thresholds: list[int], growth: Fraction) -> int:
    """The delta of one step, in 2^-128, rounded up: the larger of both directions.

    Args:
        thresholds: 2^128 P(J <= n) for n = 1, 2, ..., the last one 2^128.
        growth: exp of the epsilon of one step, or less.
    """
    up, down = growth.numerator, growth.denominator
    masses = [
        0,
        *(after - before for before, after in zip([0, *thresholds[:-1]], thresholds, strict=True)),
        0,
    ]
    pairs = list(pairwise(masses))
    sides = (
        sum(max(0, right * down - left * up) for left, right in pairs),
        sum(max(0, left * down - right * up) for left, right in pairs),
    )
    return -(-max(sides) // down)
