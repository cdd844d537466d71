"""Coins with fixed 128-bit probabilities, tossed in blocks with 16 bits each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.thresholds import BITS

_LOW_BITS = BITS - 16
_LOW_MASK = (1 << _LOW_BITS) - 1


class Coins:
    """Independent coins; coin r shows heads with probability thresholds[r] / 2^128, exactly.

    A toss compares the first 16 bits of a 128-bit uniform with those of the threshold. Only when they are
    equal, once in 65,536 times, do the other 112 bits of the same uniform decide, and only then are they
    drawn. That is the law of comparing all 128 bits at once.

    Args:
        thresholds: At least 0 and below 2^128.
    """

    __slots__ = ("_high", "_low")

    def __init__(self, thresholds: Sequence[int]) -> None:
        self._high = np.array([[threshold >> _LOW_BITS] for threshold in thresholds], dtype=np.uint16)
        self._low = [threshold & _LOW_MASK for threshold in thresholds]

    def toss(self, count: int, stream: KeyStream) -> NDArray[np.bool_]:
        """Tosses every coin `count` times.

        Returns:
            True for heads, shape (coins, count).
        """
        words = np.empty((len(self._low), count), dtype=np.uint16)
        stream.fill(words)
        heads = words < self._high
        for tie in np.flatnonzero(words == self._high).tolist():
            row, column = divmod(tie, count)
            heads[row, column] = stream.integer(_LOW_BITS) < self._low[row]
        return heads
