"""k-ary randomized response, drawn exactly."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from dpmesh.noise import uniform
from dpmesh.noise.coins import Coins
from dpmesh.noise.draws import Draws
from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.thresholds import logistic


class RandomizedResponse:
    """Offsets to add to a symbol's index, modulo k: 0 with probability `truth`, else uniform over 1..k-1.

    truth is E/(E+k-1), E = exp(epsilon), rounded down to a multiple of 2^-128, so the ratio of any two
    outputs' probabilities is at most E (Kairouz, Bonawitz, Ramage 2016, "Discrete Distribution Estimation
    under Local Privacy").

    Args:
        k: The number of symbols, at least 2.
        epsilon: Above 0.
    """

    __slots__ = ("_coin", "draws", "k", "threshold")

    def __init__(self, k: int, epsilon: Fraction) -> None:
        self.k = k
        self.threshold = logistic(-epsilon, k - 1)
        self._coin = Coins([self.threshold])
        decode = f"y = x + code\nif y >= {k}:\n    y -= {k}"
        self.draws = Draws((RandomizedResponse, k, epsilon), self.block, decode)

    def block(self, count: int, stream: KeyStream | None = None) -> NDArray[np.int64]:
        """Makes independent offsets.

        Args:
            count: How many.
            stream: The bits; a fresh key stream by default.
        """
        stream = stream or KeyStream()
        truth = self._coin.toss(count, stream)[0]
        offsets = 1 + uniform.below(self.k - 1, count, stream)
        offsets[truth] = 0
        return offsets
