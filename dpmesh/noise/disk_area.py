"""The disk area mechanism on finitely many cells: a near one with high probability, any other one otherwise."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from dpmesh.noise import checks, uniform
from dpmesh.noise.coins import Coins
from dpmesh.noise.draws import Draws
from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.thresholds import ONE, logistic


class DiskArea:
    """Ranks of cells, ordered by their distance from the true one: uniform over the `near` first, or over the rest.

    One of the near ranks comes with probability near * E/(near * E + cells - near), E = exp(epsilon), rounded down to a
    multiple of 2^-128. Whatever the orders of two cells, the ratio of an output's probabilities is at most E. With near
    = 1 it is k-ary randomized response. Source: Du et al. 2024, "Numerical Estimation of Spatial Distributions under
    Differential Privacy" (arXiv:2412.06541), whose disk has one radius everywhere. Here it has equally many cells
    everywhere, so that the region's edge needs no special case.

    Args:
        cells: How many there are, at least 2.
        near: 1 to cells - 1.
        epsilon: Above 0 and at most 64.

    Raises:
        ValueError: An argument is out of range.
        TypeError: An argument is not exact.
    """

    __slots__ = ("_coin", "cells", "draws", "epsilon", "inside", "near")

    def __init__(self, cells: int, near: int, epsilon: Fraction) -> None:
        checks.integer("the number of cells", cells, 2, 1 << 31)
        checks.integer("the number of near cells", near, 1, cells - 1)
        checks.epsilon(epsilon)
        self.cells, self.near, self.epsilon = cells, near, epsilon
        threshold = logistic(-epsilon, Fraction(cells - near, near))
        self.inside = Fraction(threshold, ONE)
        self._coin = Coins([threshold])
        # What is drawn is a rank, which no value changes. The caller finds the released cell in the order of its cells.
        self.draws = Draws((DiskArea, cells, near, epsilon), self.block, "y = code")

    def block(self, count: int, stream: KeyStream | None = None) -> NDArray[np.int64]:
        """Makes independent ranks, 0 to cells - 1.

        Args:
            count: How many.
            stream: The bits; a fresh key stream by default.
        """
        stream = stream or KeyStream()
        inside = self._coin.toss(count, stream)[0]
        first = uniform.below(self.near, count, stream)
        rest = uniform.below(self.cells - self.near, count, stream) + self.near
        return np.where(inside, first, rest)
