"""Uniform integers below a bound, without bias."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpmesh.noise.entropy import KeyStream


def below(bound: int, count: int, stream: KeyStream) -> NDArray[np.int64]:
    """Draws uniform integers from 0 to bound - 1.

    64-bit words at or above the largest multiple of `bound` are thrown away and drawn again, so every
    remainder is equally likely.

    Args:
        bound: 1 to 2^63.
        count: How many.
        stream: The bits.
    """
    words = stream.words(count)
    last = np.uint64((1 << 64) - (1 << 64) % bound - 1)
    again = np.flatnonzero(words > last)
    while again.size:
        words[again] = stream.words(again.size)
        again = again[words[again] > last]
    return (words % np.uint64(bound)).astype(np.int64)
