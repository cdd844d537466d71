"""Duchi's mechanism on a grid: one of two points, beyond both ends of the range."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from dpmesh.noise import uniform
from dpmesh.noise.coins import Coins
from dpmesh.noise.draws import Draws
from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.thresholds import ONE, logistic


class Duchi:
    """Stochastic rounding to an end of the range, then randomized response (Duchi, Jordan, Wainwright 2018).

    Index x of 0..size becomes the upper end with probability x/size, else the lower one; with probability
    `lie`, 1/(1+E) rounded up to a multiple of 2^-128, the ends are swapped, so the ratio of an output's
    probabilities is at most E whatever the two inputs. Releasing -margin for the lower and size + margin for
    the upper end, margin = size lie/(1 - 2 lie), makes the mean x. The margin itself is rounded to the grid
    at random, up with the probability of its fractional part, independently of everything else.

    Args:
        size: The last index of the grid.
        epsilon: Above 0.
        in_range: Release 0 and size instead; an estimator puts the margin back.
    """

    __slots__ = ("_coins", "draws", "high", "low", "margin", "q", "rounding", "size")

    def __init__(self, size: int, epsilon: Fraction, *, in_range: bool = False) -> None:
        lie = logistic(epsilon) + 1
        self.size = size
        part, whole = size * lie, ONE - 2 * lie
        self.margin = Fraction(part, whole)
        self.q = Fraction(lie, ONE)
        floor, rest = (0, 0) if in_range else divmod(part, whole)
        up = rest * ONE // whole
        self.rounding = up * (ONE - up) / ONE**2
        self._coins = Coins([lie, up])
        lower, upper = (-floor, -floor - 1), (size + floor, size + floor + 1)
        # What to release, by the last two bits of a code, for an x that was rounded to the upper or lower end.
        # x > u is 4x > code, because a code is below 4u + 4.
        above, below = (*upper, *lower), (*lower, *upper)
        decode = f"y = ({above} if 4 * x > code else {below})[code & 3]"
        self.draws = Draws((Duchi, size, epsilon, in_range), self.block, decode)
        margin = floor + (up > 0)
        self.low, self.high = -margin, size + margin

    def block(self, count: int, stream: KeyStream) -> NDArray[np.int64]:
        """Makes codes 4u + 2[lie] + [margin rounded up], u uniform in 0..size-1."""
        codes = uniform.below(self.size, count, stream) << 2
        lie, up = self._coins.toss(count, stream)
        codes += lie.view(np.int8) << 1
        codes += up
        return codes

    def variance(self, x: int) -> float:
        """Of the unbiased estimate, in squared grid steps."""
        q = float(self.q)
        upper = q + (1 - 2 * q) * x / self.size
        return upper * (1 - upper) * float(self.size + 2 * self.margin) ** 2 + self.rounding


def estimated_variance(size: int, epsilon: float, x: int) -> float:
    """The variance of `Duchi`, but for what rounding its margin adds: from 0 to 1/4.

    It is computed in floats, from the parameters alone: epsilon is at least 2^-40.
    """
    lie = 1 / (1 + math.exp(epsilon))
    upper = lie + (1 - 2 * lie) * x / size
    return upper * (1 - upper) * (size + 2 * size / math.expm1(epsilon)) ** 2
