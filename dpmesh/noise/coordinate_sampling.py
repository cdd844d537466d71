"""Coordinate sampling: a few random coordinates of a vector, each released as a number by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dpmesh.noise import checks, numeric, numeric_choice, uniform
from dpmesh.noise.draws import Draws
from dpmesh.noise.entropy import KeyStream

Array = NDArray[np.float64]

# A coordinate whose part of epsilon is smaller than this tells less than it would together with others.
_LEAST_PART = Fraction(1, 2)
# At how many grid points between the middle and an end the worst case of a mechanism is looked for.
_POINTS = 8
# The grid on which numbers of coordinates are compared.
_SAMPLE_HALF = 1 << 10


class CoordinateSampling:
    """Releases `count` of a vector's coordinates, times dimension/count, and 0 for all others.

    Each coordinate is an index 0..size of a grid whose middle stands for 0. Which ones are sampled is drawn without
    regard to the vector. Each is released by the scalar mechanism with the least worst-case variance at
    epsilon/count, so the whole is epsilon-DP by composition, and unbiased (Wang et al. 2019, "Collecting and Analyzing
    Multidimensional Data with Local Differential Privacy", section 4).

    Args:
        dimension: At least 1.
        epsilon: Above 0 and at most 64.
        half: The grid index that stands for 0; the last one is twice that.
        count: How many coordinates are sampled, 1 to `dimension`.

    Attributes:
        mechanism: The scalar mechanism of one of them.
    """

    __slots__ = ("count", "dimension", "epsilon", "half", "mechanism")

    def __init__(self, dimension: int, epsilon: Fraction, half: int, count: int) -> None:
        checks.epsilon(epsilon)
        checks.integer("count", count, 1, dimension)
        self.dimension, self.epsilon, self.half, self.count = dimension, epsilon, half, count
        size, part = 2 * half, epsilon / count
        kind = numeric_choice.best(size, size, part, in_range=False, local=True)
        self.mechanism = numeric.make(kind, size, size, part)

    def columns(self) -> Sequence[Draws]:
        """What one release takes: the choice of the coordinates in `count` columns, then the codes of their values."""
        first = self.dimension - self.count
        bounds = [first + i + 1 for i in range(self.count)]
        return [*(_below(bound) for bound in bounds), *[self.mechanism.draws] * self.count]

    def chosen(self, codes: Sequence[int]) -> list[int]:
        """Which coordinates are sampled, by the first `count` codes: each set of them is equally likely.

        Floyd's algorithm (Bentley and Floyd 1987, "A Sample of Brilliance").
        """
        chosen: list[int] = []
        first = self.dimension - self.count
        for last, code in enumerate(codes[: self.count], first):
            chosen.append(last if code in chosen else code)
        return chosen

    def variance(self, x: Array | float) -> Array:
        """The variance of each coordinate of a release, by the coordinates of x; all in grid steps."""
        x = np.asarray(x, np.float64)
        points = np.linspace(0, self.half, _POINTS + 1).round()
        scalar = [self.mechanism.variance(self.half + int(point)) for point in points]
        square = np.square(x)
        return (self.dimension / self.count) * (np.interp(np.abs(x), points, scalar) + square) - square

    @property
    def worst_variance(self) -> float:
        """The largest variance of a coordinate, in squared grid steps."""
        return float(self.variance(np.linspace(0, self.half, _POINTS + 1).round()).max())


@lru_cache(1024)
def best_count(dimension: int, epsilon: Fraction) -> int:
    """How many coordinates give the least worst-case variance of a coordinate.

    Wang et al. take floor(epsilon/2.5), which suits their scalar mechanism.
    """
    most = max(1, min(dimension, math.ceil(epsilon / _LEAST_PART)))

    def worst(count: int) -> float:
        return CoordinateSampling(dimension, epsilon, _SAMPLE_HALF, count).worst_variance

    return min(range(1, most + 1), key=worst)


def _below(bound: int) -> Draws:
    """A uniform integer from 0 to bound - 1, which no value changes."""

    def block(count: int, stream: KeyStream) -> NDArray[np.int64]:
        return uniform.below(bound, count, stream)

    return Draws((uniform.below, bound), block, "y = code")
