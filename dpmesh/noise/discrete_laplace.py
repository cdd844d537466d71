"""The discrete Laplace distribution, drawn exactly."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from dpmesh.noise.coins import Coins
from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.geometric import digits
from dpmesh.noise.thresholds import BITS

# A geometric variable has at most 56 digits, so its carries, each of probability below e^-10, have 7 bits left.
MIN_SCALE, MAX_SCALE = Fraction(1, 64), 1 << 52
_CHUNK = 1 << 13


class DiscreteLaplace:
    """P(z) = (1-a)/(1+a) a^|z| for all integers z, a = exp(-1/scale).

    A draw is the difference of two geometric variables, P(g) = (1-a) a^g, whose binary digits are drawn: see
    `geometric.digits`.

    Every coin's probability is off by less than 2^-128, which makes any probability ratio at distance d
    differ from exp(d/scale) by a relative error below 1e-28 (1 + d/scale): see `numeric.padded`, which pays
    for it.

    Args:
        scale: 1/64 to 2^52, in grid steps.

    Raises:
        ValueError: The scale is out of range.
    """

    __slots__ = ("_carry", "_coins", "_rows", "scale")

    def __init__(self, scale: Fraction) -> None:
        if not MIN_SCALE <= scale <= MAX_SCALE:
            raise ValueError("the scale of discrete Laplace noise must be from 1/64 to 2^52 grid steps")
        self.scale = scale
        one = digits(scale)
        self._carry, self._rows = one[0], len(one)
        self._coins = Coins(one + one)

    def block(self, count: int, stream: KeyStream | None = None) -> NDArray[np.int64]:
        """Makes independent draws.

        Args:
            count: How many.
            stream: The bits; a fresh key stream by default.
        """
        stream = stream or KeyStream()
        draws = np.empty(count, dtype=np.int64)
        # Chunks keep the words in the processor's cache.
        for start in range(0, count, _CHUNK):
            chunk = draws[start : start + _CHUNK]
            self._fill(chunk, stream)
        return draws

    def _fill(self, draws: NDArray[np.int64], stream: KeyStream) -> None:
        heads = self._coins.toss(len(draws), stream).view(np.int8)
        plus, minus = heads[: self._rows], heads[self._rows :]
        difference = plus - minus
        draws[:] = difference[0]
        self._count_carries(plus[0], draws, 1, stream)
        self._count_carries(minus[0], draws, -1, stream)
        for digit in difference[1:]:
            draws += draws
            draws += digit

    def _count_carries(
        self, carries: NDArray[np.int8], draws: NDArray[np.int64], sign: int, stream: KeyStream
    ) -> None:
        """Continues the rare geometric variables that left the digits."""
        for index in np.flatnonzero(carries.view(np.bool_)).tolist():
            while stream.integer(BITS) < self._carry:
                draws[index] += sign


def variance(scale: Fraction | float) -> float:
    """The variance 2a/(1-a)^2, which is 1/(2 sinh(1/(2 scale))^2)."""
    return 0.5 / math.sinh(0.5 / float(scale)) ** 2
