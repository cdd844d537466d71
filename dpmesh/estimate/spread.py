"""How far the mean of noisy numbers may be from the mean of what their senders held."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

from dpmesh.estimate.binomial import interval
from dpmesh.noise.duchi import Duchi
from dpmesh.noise.numeric import HYBRID_FROM, NumericKind, NumericMechanism

_POINTS = 256
_HALVINGS = 40
# From here on Student's quantile is the normal one times the first term of its expansion, within a thousandth.
_MANY = 200


@dataclass(frozen=True, slots=True)
class LeastVariance:
    """The variance that a mechanism gives to one output, known from the plan.

    Values that are received may have less by chance: a mechanism of large epsilon nearly always releases the value
    itself, and rarely something far away. As long as that has not happened, the sample does not show it.

    Attributes:
        at: Grid indexes, in increasing order, from the first to the last of the grid.
        of: The variance for a sender who holds that index.
    """

    at: tuple[float, ...]
    of: tuple[float, ...]

    @property
    def largest(self) -> float:
        """The largest of them."""
        return max(self.of)

    def __call__(self, mean: float) -> float:
        """The variance where senders hold this mean, by linear interpolation."""
        if mean <= self.at[0]:
            return self.of[0]
        if mean >= self.at[-1]:
            return self.of[-1]
        right = bisect_right(self.at, mean)
        left = right - 1
        part = (mean - self.at[left]) / (self.at[right] - self.at[left])
        return self.of[left] + part * (self.of[right] - self.of[left])


@lru_cache(maxsize=1024)
def least_variance(mechanism: NumericMechanism, size: int) -> LeastVariance:
    """The variances of a mechanism on a grid of the last index `size`."""
    cells = min(size, _POINTS)
    points = [round(size * cell / cells) for cell in range(cells + 1)]
    return LeastVariance(
        tuple(float(point) for point in points), tuple(mechanism.variance(point) for point in points)
    )


@lru_cache(maxsize=1024)
def two_points(mechanism: NumericMechanism, size: int) -> Duchi | None:
    """The law of a mechanism that only ever tells one of two ends; None for any other."""
    epsilon = mechanism.epsilon
    if epsilon is None or not (
        mechanism.kind is NumericKind.DUCHI
        or (mechanism.kind is NumericKind.HYBRID and epsilon <= HYBRID_FROM)
    ):
        return None
    return Duchi(size, epsilon, in_range=mechanism.unbiased_low is not None)


def from_ends(law: Duchi, upper: int, n: int, confidence: float) -> tuple[float, float, float]:
    """The mean index and its interval, from how many of n outputs were the upper end.

    An output is the upper end with probability q + x/size (1 - 2q) for a sender at index x (see `Duchi`), so the
    mean index is what randomized response tells of a share. The margin's random rounding says nothing of x, and is
    left out.

    Args:
        law: The mechanism.
        upper: How many were the upper end.
        n: How many there are.
        confidence: Between 0 and 1.
    """
    lie = float(law.q)

    def index(share: float) -> float:
        return law.size * (share - lie) / (1 - 2 * lie)

    low, high = interval(upper, n, confidence)
    return index(upper / n), index(low), index(high)


def around(
    mean: float, variance: float, n: int, least: LeastVariance, confidence: float
) -> tuple[float, float]:
    """The interval of a mean of n outputs: all means m that the score test accepts (Rao 1948, Wilson 1927).

    It accepts (mean - m)^2 <= (z^2 v + t^2 max(0, s^2 - v))/n: of the variance of one output, v is what the
    mechanism has for senders at m, which is known. The sample's variance s^2 says what there is beyond it, such as
    the differences between senders, and being estimated from n values takes Student's quantile t for the normal
    z. v is taken at m and not at the mean that was observed, because a mean at an end of the range, where the
    noise is least, may come from senders elsewhere.

    Args:
        mean: The outputs' mean, unbiased, in grid steps.
        variance: The outputs' own variance.
        n: How many there are.
        least: What the mechanism has.
        confidence: Between 0 and 1.
    """
    known, estimated = normal(confidence) ** 2 / n, 0.0
    if n > 1:
        estimated = student(confidence, n - 1) ** 2 / n
    widest = math.sqrt(known * least.largest + estimated * variance)

    def end(sign: int) -> float:
        outside, inside = widest, 0.0
        for _ in range(_HALVINGS):
            middle = (outside + inside) / 2
            floor = least(mean + sign * middle)
            if middle * middle <= known * floor + estimated * max(0.0, variance - floor):
                inside = middle
            else:
                outside = middle
        return outside

    return mean - end(-1), mean + end(1)


def normal(confidence: float) -> float:
    """How many standard deviations a two-sided normal interval takes.

    Raises:
        ValueError: The confidence is not between 0 and 1.
    """
    return NormalDist().inv_cdf((1 + checked(confidence)) / 2)


def checked(confidence: float) -> float:
    """A confidence that means something.

    Raises:
        ValueError: It is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence!r}")
    return confidence


@lru_cache(maxsize=4096)
def student(confidence: float, degrees: int) -> float:
    """How many estimated standard deviations a two-sided interval takes, by degrees of freedom (Student 1908)."""
    z = normal(confidence)
    if degrees > _MANY:
        return z * (1 + (z * z + 1) / (4 * degrees))
    low, high = 0.0, math.pi / 2
    for _ in range(64):
        middle = (low + high) / 2
        if _within(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _within(angle: float, degrees: int) -> float:
    """P(|T| <= sqrt(degrees) tan(angle)): Abramowitz and Stegun 26.7.3 and 26.7.4."""
    is_odd = degrees % 2
    square = math.cos(angle) ** 2
    term = total = 0.0 if degrees == 1 else math.cos(angle) if is_odd else 1.0
    for k in range(2 + is_odd, degrees - 1, 2):
        term *= (k - 1) / k * square
        total += term
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if is_odd else total
