"""The Piecewise mechanism on a grid: near the value with high probability, anywhere otherwise."""

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

_WORD_BITS = 60
_MIN_SHIFT = 8
_MAX_EXACT_CELLS = 1 << 16


class Piecewise:
    """An integer form of the Piecewise mechanism of Wang et al. 2019.

    ("Collecting and Analyzing Multidimensional Data with Local Differential Privacy", algorithm 2.)

    There are size + width cells; index x of 0..size has the window of `width` cells that begins at cell x.
    With probability `inside` the drawn cell is uniform over the window, else uniform over the `size` cells
    out of it. As inside <= width E / (width E + size), the ratio of a cell's probabilities is at most E
    whatever the two windows.

    The rest is post-processing, in integers. Cell y stands for the point (y slope + base) / 2^shift, which is
    rounded to the grid at random, up with the probability of its fractional part. The slope is the smallest
    even integer for which inside = (width + size 2^shift / slope) / cells keeps its bound: with that
    probability the point's mean is x, exactly (but for the rounding of `inside` to a multiple of 2^-128).

    The paper's window is the part 1/(h+1) of the whole, h = exp(epsilon/2), so width = size/h, here
    floor(size/h) + 1. Small grids gain from the rounding up.

    Args:
        size: The last index of the grid.
        epsilon: Above 0.

    Raises:
        ValueError: The range of outputs is too wide for 64-bit integers.
    """

    __slots__ = (
        "_coin",
        "base",
        "cells",
        "draws",
        "high",
        "inside",
        "low",
        "shift",
        "size",
        "slope",
        "width",
    )

    def __init__(self, size: int, epsilon: Fraction) -> None:
        self.size = size
        self.width = int(size * math.exp(-epsilon / 2)) + 1
        self.cells = size + self.width
        bound = logistic(-epsilon, Fraction(size, self.width))
        # The steepest slope, in grid steps a cell, is rise / run.
        rise, run = size * ONE, self.cells * bound - self.width * ONE
        self.shift = _WORD_BITS - (self.cells * (rise + run) // run).bit_length()
        if self.shift < _MIN_SHIFT:
            raise ValueError("the grid is too fine for the Piecewise mechanism at this epsilon")
        self.slope = -2 * (-(rise << (self.shift - 1)) // run)
        self.base = ((size << self.shift) - (self.cells - 1) * self.slope) // 2
        threshold = (self.width * self.slope + (size << self.shift)) * ONE // (self.slope * self.cells)
        self.inside = Fraction(threshold, ONE)
        self._coin = Coins([threshold])
        self.low = self.base >> self.shift
        self.high = -(-((self.cells - 1) * self.slope + self.base) >> self.shift)
        self.draws = Draws((Piecewise, size, epsilon), self.block, self._decode())

    def block(self, count: int, stream: KeyStream) -> NDArray[np.int64]:
        """Makes codes: j slope + v for cell j of the window, ~(r 2^shift + v) for cell r of those out of it.

        v is uniform over 0..2^shift-1 and rounds the point.
        """
        inside = self._coin.toss(count, stream)[0]
        v = uniform.below(1 << self.shift, count, stream)
        window = uniform.below(self.width, count, stream)
        rest = uniform.below(self.size, count, stream)
        return np.where(inside, window * self.slope + v, ~((rest << self.shift) | v))

    def _decode(self) -> str:
        """A cell is j or, of those out of the window, r or r + width; its point is rounded by v."""
        return f"""\
if code >= 0:
    y = (x * {self.slope} + {self.base} + code) >> {self.shift}
else:
    y = ~code >> {self.shift}
    code = ~code & {(1 << self.shift) - 1}
    if y >= x:
        y += {self.width}
    y = (y * {self.slope} + {self.base} + code) >> {self.shift}"""

    def variance(self, x: int) -> float:
        """Of the output, in squared grid steps."""
        inside, outside = self.inside, 1 - self.inside
        # Moments of the cell's distance from the middle of the window. Out of the window lie x cells below it and
        # size - x above.
        half = Fraction(self.width, 2)
        mean, square = Fraction(0), inside * Fraction(self.width**2 - 1, 12)
        for cells, centre in (
            (x, -half - Fraction(x, 2)),
            (self.size - x, half + Fraction(self.size - x, 2)),
        ):
            share = outside * cells / self.size
            mean += share * centre
            square += share * (Fraction(cells**2 - 1, 12) + centre**2)
        step = Fraction(self.slope, 1 << self.shift)
        return float((square - mean**2) * step**2) + self._rounding(x)

    def _rounding(self, x: int) -> float:
        """The variance that rounding adds: the mean of f(1-f), f the fractional part of the cell's point."""
        if self.cells > _MAX_EXACT_CELLS:
            return 0.25  # its bound; nothing beside the rest, unless epsilon is huge
        points = np.arange(self.cells, dtype=np.int64) * self.slope + self.base
        fraction = (points & ((1 << self.shift) - 1)) / float(1 << self.shift)
        added = fraction * (1 - fraction)
        window = float(added[x : x + self.width].sum())
        rest = float(added.sum()) - window
        return float(self.inside) * window / self.width + float(1 - self.inside) * rest / self.size


def estimated_variance(size: int, epsilon: float, x: int) -> float | None:
    """The variance of `Piecewise`, but for what rounding its points adds: from 0 to 1/4.

    It is computed in floats, from the parameters alone. None where 64-bit integers are too coarse for a slope or an
    `outside` that floats tell well, or nearly so: there the mechanism itself has to be asked.
    """
    grown = math.exp(epsilon)
    width = int(size * math.exp(-epsilon / 2)) + 1
    cells = size + width
    step = (width * grown + size) / (width * (grown - 1))
    if cells * (step + 1) > 2 ** (_WORD_BITS - _MIN_SHIFT - 1):
        return None
    slope = step * 2 ** (_WORD_BITS - math.ceil(math.log2(cells * (step + 1))) - 1)
    outside = (size - size / step) / cells
    if outside * slope < 1 << 16:
        return None
    half, mean, square = width / 2, 0.0, (1 - outside) * (width**2 - 1) / 12
    for count, centre in ((x, -half - x / 2), (size - x, half + (size - x) / 2)):
        share = outside * count / size
        mean += share * centre
        square += share * ((count**2 - 1) / 12 + centre**2)
    return (square - mean**2) * step**2
