"""The hexagonal geometric distribution: two-dimensional noise on a lattice of hexagons, drawn exactly.

A cell has axial coordinates (q, r). Its neighbours are at (1, 0), (0, 1), (-1, 1), (-1, 0), (0, -1) and (1, -1). The
distance of (q, r) from (0, 0), in steps, is max(|q|, |r|, |q + r|).
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from dpmesh.noise import checks, uniform
from dpmesh.noise.coins import Coins
from dpmesh.noise.draws import Draws
from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.geometric import digits
from dpmesh.noise.thresholds import BITS, ONE, exponential

# Beyond, noise might leave the 32 bits of a coordinate: it is more than 500 scales away with probability e^-500.
MAX_SCALE = 1 << 22
MAX_LOSS = 64
# A coordinate's place in a code: a code is (q << SHIFT) + r.
SHIFT = 32
# The six directions, each a sixth of a turn from the one before: steps in q and in r.
_Q = np.array([1, 0, -1, -1, 0, 1], dtype=np.int64)
_R = np.array([0, 1, 1, 0, -1, -1], dtype=np.int64)
_CHUNK = 1 << 13
# Pays for the thresholds of 128 bits; see `numeric.padded`.
_PADDING = 1 + Fraction(1, 1 << 60)
# The bits of `a` from which the threshold of no noise is computed.
_PRECISION = 256


class HexagonalGeometric:
    """P(z) = a^distance(z) / Z for all cells z, with a = exp(-loss) and Z = 1 + 6a/(1-a)^2.

    Z is the same wherever the noise is added, so two cells h steps apart are told apart by at most exp(loss h).

    The noise is 0 with probability 1/Z. Each other cell is A + 1 steps in one of six directions and B steps in the next
    one, in exactly one way. A and B are geometric variables, P(g) = (1-a) a^g, and all six directions are equally
    likely. So a cell at distance h = A + 1 + B has (1 - 1/Z) (1/6) (1-a)^2 a^(h-1) = a^h / Z.

    1/Z is rounded down to a multiple of 2^-128, which makes no ratio larger than it may be. What the other thresholds
    change is paid for by a loss smaller by 2^-60 of itself.

    Args:
        loss: Of one step: above 0 and at most 64. Its inverse is at most 2^22.

    Raises:
        ValueError: The loss is out of range.
        TypeError: It is not exact.
    """

    __slots__ = ("_carry", "_coins", "_rows", "draws", "loss", "zero")

    def __init__(self, loss: Fraction) -> None:
        checks.rational("the loss of one cell", loss, MAX_LOSS)
        if 1 / loss > MAX_SCALE:
            raise ValueError("the cells are too small for so little epsilon")
        self.loss = loss
        scale = _PADDING / loss
        one = digits(scale)
        self._carry, self._rows = one[0], len(one)
        self.zero = _zero(1 / scale)
        self._coins = Coins([self.zero, *one, *one])
        decode = f"y = x + code  # q << {SHIFT} and r"
        self.draws = Draws((HexagonalGeometric, loss), self.block, decode)

    def block(self, count: int, stream: KeyStream | None = None) -> NDArray[np.int64]:
        """Makes independent codes: (q << 32) + r.

        Args:
            count: How many.
            stream: The bits; a fresh key stream by default.
        """
        stream = stream or KeyStream()
        codes = np.empty(count, dtype=np.int64)
        # Chunks keep the words in the processor's cache.
        for start in range(0, count, _CHUNK):
            chunk = codes[start : start + _CHUNK]
            self._fill(chunk, stream)
        return codes

    def _fill(self, codes: NDArray[np.int64], stream: KeyStream) -> None:
        heads = self._coins.toss(len(codes), stream)
        ahead = _geometric(heads[1 : 1 + self._rows], self._carry, stream) + 1
        aside = _geometric(heads[1 + self._rows :], self._carry, stream)
        turn = uniform.below(6, len(codes), stream)
        following = (turn + 1) % 6
        q = ahead * _Q[turn] + aside * _Q[following]
        r = ahead * _R[turn] + aside * _R[following]
        codes[:] = (q << SHIFT) + r
        codes[heads[0]] = 0


def _geometric(heads: NDArray[np.bool_], carry: int, stream: KeyStream) -> NDArray[np.int64]:
    """Geometric variables from the tosses of their coins, one row each: see `geometric.digits`."""
    found: NDArray[np.int64] = heads[0].astype(np.int64)
    for index in np.flatnonzero(heads[0]).tolist():
        while stream.integer(BITS) < carry:
            found[index] += 1
    for digit in heads[1:]:
        found += found
        found += digit
    return found


def _zero(loss: Fraction) -> int:
    """The threshold of no noise: 1/Z = (1-a)^2 / (1 + 4a + a^2), rounded down. It falls as a grows."""
    a, one = exponential(loss, _PRECISION) + 1, 1 << _PRECISION
    return ONE * (one - a) ** 2 // (one * one + 4 * one * a + a * a)


def coordinates(codes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The coordinates q and r of codes."""
    half = 1 << (SHIFT - 1)
    r = ((codes + half) & ((1 << SHIFT) - 1)) - half
    return (codes - r) >> SHIFT, r
