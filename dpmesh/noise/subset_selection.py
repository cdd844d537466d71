"""Subset selection, drawn exactly."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from dpmesh.noise import uniform
from dpmesh.noise.coins import Coins
from dpmesh.noise.draws import Draws
from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.thresholds import logistic


class SubsetSelection:
    """Subsets of w offsets to add to a symbol's index, modulo k.

    With probability p the subset holds 0, and its other w - 1 offsets are uniform among the subsets of 1..k-1 of that
    size; else it is a uniform subset of w of 1..k-1. So the released subset holds the symbol with probability p, and is
    uniform among those that do, or among those that do not. p is wE/(wE+k-w), E = exp(epsilon), rounded down to a
    multiple of 2^-128, so the ratio of any subset's probabilities under two symbols, p/(1-p) (k-w)/w, is at most E
    (Ye, Barg 2018, "Optimal Schemes for Discrete Distribution Estimation Under Locally Differential Privacy").

    An offset plus the index is a cyclic shift, which maps uniform subsets to uniform subsets: the code knows nothing of
    the symbol.

    Args:
        k: The number of symbols, at least 2.
        w: The length of the subset, 1 to k - 1.
        epsilon: Above 0.
    """

    __slots__ = ("_coin", "draws", "k", "threshold", "w")

    def __init__(self, k: int, w: int, epsilon: Fraction) -> None:
        self.k = k
        self.w = w
        self.threshold = logistic(-epsilon, Fraction(k - w, w))
        self._coin = Coins([self.threshold])
        decode = f"y = sorted(map(({k}).__rmod__, map(x.__add__, code)))"
        self.draws = Draws((SubsetSelection, k, w, epsilon), self.block, decode, width=w)

    def block(self, count: int, stream: KeyStream | None = None) -> NDArray[np.int64]:
        """Makes independent subsets of offsets.

        Args:
            count: How many.
            stream: The bits; a fresh key stream by default.

        Returns:
            Each subset in increasing order, shape (count, w).
        """
        stream = stream or KeyStream()
        holds = self._coin.toss(count, stream)[0]
        # The first w steps of Fisher and Yates's shuffle, in each column by itself.
        others = np.repeat(np.arange(1, self.k, dtype=np.int32)[:, np.newaxis], count, axis=1)
        column = np.arange(count)
        for step in range(self.w):
            chosen = step + uniform.below(self.k - 1 - step, count, stream)
            taken = others[chosen, column]
            others[chosen, column] = others[step]
            others[step] = taken
        subsets = others[: self.w]
        subsets[self.w - 1, holds] = 0
        return np.sort(subsets.T, axis=1).astype(np.int64)
