"""Mechanisms for a number on a public grid, known by its index 0..size.

The caller has clamped the value to the grid; a mechanism's guarantee is for indexes in 0..size.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from textwrap import indent

import numpy as np
from numpy.typing import NDArray

from dpmesh.noise import checks, discrete_gaussian, discrete_laplace, thresholds
from dpmesh.noise.coins import Coins
from dpmesh.noise.discrete_gaussian import DiscreteGaussian
from dpmesh.noise.discrete_laplace import DiscreteLaplace
from dpmesh.noise.draws import Draws
from dpmesh.noise.duchi import Duchi
from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.optimized_piecewise import OptimizedPiecewise
from dpmesh.noise.piecewise import Piecewise

MAX_SIZE = 1 << 40
# Wang et al. 2019, section 3.3: below this epsilon the Hybrid mechanism is Duchi's alone.
HYBRID_FROM = Fraction(61, 100)
# Less than 1e-17 of discrete Laplace noise lies beyond so many scales, and less than 1e-22 of discrete Gaussian
# noise beyond so many sigma. The output is clamped there, so that its range is public and finite. The mean moves
# by less than 1e-17 scales.
_LAPLACE_REACH = 40
_GAUSSIAN_REACH = 10
# So many mechanisms of each kind are kept by their parameters. Fields and types with equal rules share one.
KEPT = 1024


class NumericKind(enum.StrEnum):
    """The mechanisms for numbers."""

    DISCRETE_LAPLACE = "discrete_laplace"
    DISCRETE_GAUSSIAN = "discrete_gaussian"
    DUCHI = "duchi"
    PIECEWISE = "piecewise"
    HYBRID = "hybrid"
    OPTIMIZED_PIECEWISE = "optimized_piecewise"


@dataclass(frozen=True, eq=False)
class NumericMechanism:
    """One mechanism with its parameters.

    Attributes:
        kind: Which one.
        epsilon: The loss of one draw, at most; None for the discrete Gaussian.
        rho: The discrete Gaussian's zCDP loss, else None.
        draws: What is drawn ahead of time, and how an index 0..size takes it in.
        low: The smallest output, in grid steps from index 0.
        high: The largest output.
        variance: Maps an index to the variance of its unbiased estimate, in squared grid steps.
        worst_at: Gives the indexes of which one has the largest variance.
        unbiased_low: With IN_RANGE output of discrete Laplace and Duchi: what an estimate must put in place of output
            0 (and unbiased_high in place of `size`) to be unbiased for every index. None elsewhere.
        unbiased_high: See unbiased_low.
        stretch: How many times further from size/2 than an output its unbiased estimate is: 1, but for IN_RANGE output
            of the optimized Piecewise mechanism.
        outputs: All indexes that can leave, in increasing order, where they are few; else None.
    """

    kind: NumericKind
    epsilon: Fraction | None
    rho: Fraction | None
    draws: Draws
    low: int
    high: int
    variance: Callable[[int], float]
    worst_at: Callable[[], Iterable[int]]
    unbiased_low: float | None = None
    unbiased_high: float | None = None
    stretch: float = 1.0
    outputs: tuple[int, ...] | None = None

    @cached_property
    def worst_variance(self) -> float:
        """The largest variance of any index."""
        return max(map(self.variance, self.worst_at()))


def make(
    kind: NumericKind,
    size: int,
    sensitivity: int,
    epsilon: Fraction | None,
    *,
    rho: Fraction | None = None,
    in_range: bool = False,
) -> NumericMechanism:
    """Makes the mechanism of a numeric field.

    Args:
        kind: Which one.
        size: The grid's last index, 1 to 2^40.
        sensitivity: How far a unit can move the index, at least 1. Duchi and all forms of Piecewise do not use it:
            their guarantee holds for any two indexes.
        epsilon: Above 0 and at most 64; not used by the discrete Gaussian.
        rho: The discrete Gaussian's zCDP loss, above 0 and at most 2048; refused elsewhere.
        in_range: Outputs lie in 0..size. Discrete Laplace, Duchi and the optimized Piecewise mechanism offer it. With
            the first two, an estimate is unbiased once it replaces the two ends by two constants; with the last, once
            it moves outputs away from the middle by `stretch`.

    Raises:
        ValueError: An argument is out of range, or does not go with the others.
        TypeError: A number is not exact.
    """
    kind = NumericKind(kind)
    checks.integer("size", size, 1, MAX_SIZE)
    checks.integer("sensitivity", sensitivity, 1, MAX_SIZE)
    if kind is NumericKind.DISCRETE_GAUSSIAN:
        if rho is None:
            raise ValueError("the discrete Gaussian needs rho")
        checks.rational("rho", rho, checks.MAX_EPSILON**2 // 2)
        _refuse(in_range, kind)
        return _gaussian(size, sensitivity, rho)
    if rho is not None:
        raise ValueError("rho is for the discrete Gaussian alone")
    if epsilon is None:
        raise ValueError(f"{kind} needs epsilon")
    checks.epsilon(epsilon)
    if kind is NumericKind.DISCRETE_LAPLACE:
        return _laplace(size, sensitivity, epsilon, in_range)
    if kind is NumericKind.DUCHI:
        return _duchi(size, epsilon, in_range=in_range)
    if kind is NumericKind.OPTIMIZED_PIECEWISE:
        return _optimized(size, epsilon, in_range=in_range)
    _refuse(in_range, kind)
    return _piecewise(size, epsilon) if kind is NumericKind.PIECEWISE else _hybrid(size, epsilon)


def padded(scale: Fraction) -> Fraction:
    """The scale, or squared scale, enlarged by 2^-60 of itself.

    It pays for the samplers' 128-bit thresholds: they change the logarithm of a probability's ratio by less
    than 1e-28 (1 + epsilon), the padding makes it smaller by 8e-19 epsilon.
    """
    return scale * (1 + Fraction(1, 1 << 60))


def _refuse(in_range: bool, kind: NumericKind) -> None:
    if in_range:
        raise ValueError(f"{kind} has no outputs in range; use optimized_piecewise")


@lru_cache(KEPT)
def _laplace(size: int, sensitivity: int, epsilon: Fraction, in_range: bool) -> NumericMechanism:
    scale = padded(Fraction(sensitivity) / epsilon)
    law = DiscreteLaplace(scale)
    reach = 0 if in_range else math.ceil(_LAPLACE_REACH * scale)
    draws = Draws((DiscreteLaplace, scale), law.block, _add(-reach, size + reach))
    # What the clamp cuts off is geometric whatever the index, with mean a/(1-a): putting that mean in its
    # place keeps the estimate unbiased (Ghosh, Roughgarden, Sundararajan 2009) and removes its variance,
    # a/(1-a)^2.
    tail = 1 / math.expm1(1 / float(scale))
    return NumericMechanism(
        kind=NumericKind.DISCRETE_LAPLACE,
        epsilon=epsilon,
        rho=None,
        draws=draws,
        low=-reach,
        high=size + reach,
        variance=laplace_variance(size, scale, in_range),
        worst_at=lambda: (size // 2,),
        unbiased_low=-tail if in_range else None,
        unbiased_high=size + tail if in_range else None,
    )


def laplace_variance(size: int, scale: Fraction, in_range: bool) -> Callable[[int], float]:
    """What maps an index 0..size to the variance of its unbiased estimate from discrete Laplace noise."""
    rate, full = 1 / float(scale), discrete_laplace.variance(scale)

    def variance(x: int) -> float:
        if not in_range:
            return full
        cut = (math.exp(-rate * x) + math.exp(-rate * (size - x))) / (1 + math.exp(-rate))
        return full - cut * full / 2

    return variance


@lru_cache(KEPT)
def _gaussian(size: int, sensitivity: int, rho: Fraction) -> NumericMechanism:
    sigma2 = padded(Fraction(sensitivity) ** 2 / (2 * rho))
    law = DiscreteGaussian(sigma2)
    reach = _GAUSSIAN_REACH * (math.isqrt(int(sigma2)) + 1)
    draws = Draws((DiscreteGaussian, sigma2), law.block, _add(-reach, size + reach))
    full = discrete_gaussian.variance(sigma2)
    return NumericMechanism(
        kind=NumericKind.DISCRETE_GAUSSIAN,
        epsilon=None,
        rho=rho,
        draws=draws,
        low=-reach,
        high=size + reach,
        variance=lambda x: full,
        worst_at=lambda: (0,),
    )


@lru_cache(KEPT)
def _duchi(size: int, epsilon: Fraction, in_range: bool) -> NumericMechanism:
    law = Duchi(size, epsilon, in_range=in_range)
    made = _bounded(NumericKind.DUCHI, epsilon, law, lambda: (size // 2,))
    if not in_range:
        return made
    return replace(made, unbiased_low=float(-law.margin), unbiased_high=float(size + law.margin))


@lru_cache(KEPT)
def _optimized(size: int, epsilon: Fraction, in_range: bool) -> NumericMechanism:
    law = OptimizedPiecewise(size, epsilon, in_range=in_range)
    made = _bounded(NumericKind.OPTIMIZED_PIECEWISE, epsilon, law, law.worst_at)
    return replace(made, stretch=law.stretch, outputs=law.outputs)


@lru_cache(KEPT)
def _piecewise(size: int, epsilon: Fraction) -> NumericMechanism:
    law = Piecewise(size, epsilon)
    return _bounded(NumericKind.PIECEWISE, epsilon, law, lambda: (0, size // 2))


def _bounded(
    kind: NumericKind,
    epsilon: Fraction,
    law: Duchi | OptimizedPiecewise | Piecewise,
    worst_at: Callable[[], Iterable[int]],
) -> NumericMechanism:
    """The mechanism of a law that has a smallest and a largest output."""
    return NumericMechanism(
        kind=kind,
        epsilon=epsilon,
        rho=None,
        draws=law.draws,
        low=law.low,
        high=law.high,
        variance=law.variance,
        worst_at=worst_at,
    )


@lru_cache(KEPT)
def _hybrid(size: int, epsilon: Fraction) -> NumericMechanism:
    """Piecewise with probability 1 - exp(-epsilon/2), else Duchi: a coin that knows nothing of the value."""
    ends = _duchi(size, epsilon, in_range=False)
    if epsilon <= HYBRID_FROM:
        return replace(ends, kind=NumericKind.HYBRID)
    window = _piecewise(size, epsilon)
    threshold = thresholds.exponential(epsilon / 2)
    coin = Coins([threshold])
    share = threshold / thresholds.ONE

    def block(count: int, stream: KeyStream) -> NDArray[np.int64]:
        """Codes of the one or the other, twice their value, plus 1 for Duchi's."""
        from_duchi = coin.toss(count, stream)[0]
        drawn = np.where(from_duchi, ends.draws.block(count, stream), window.draws.block(count, stream))
        codes: NDArray[np.int64] = drawn << 1 | from_duchi
        return codes

    decode = "\n".join(
        (
            "if code & 1:",
            "    code >>= 1",
            indent(ends.draws.decode, "    "),
            "else:",
            "    code >>= 1",
            indent(window.draws.decode, "    "),
        )
    )
    draws = Draws((NumericKind.HYBRID, size, epsilon), block, decode)

    def variance(x: int) -> float:
        return share * ends.variance(x) + (1 - share) * window.variance(x)

    return NumericMechanism(
        kind=NumericKind.HYBRID,
        epsilon=epsilon,
        rho=None,
        draws=draws,
        low=min(ends.low, window.low),
        high=max(ends.high, window.high),
        variance=variance,
        worst_at=lambda: (0, size // 2),
    )


def _add(low: int, high: int) -> str:
    return f"""\
y = x + code
if not {low} <= y <= {high}:
    y = {low} if y < {low} else {high}"""
