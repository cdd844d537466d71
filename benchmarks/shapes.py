"""Finds the shapes of the optimized Piecewise mechanism.

`python -m benchmarks.shapes > shapes.py` takes some minutes; its output is `dpmesh/noise/optimized_shapes.py`.
Other versions of scipy find other shapes, with variances that differ by a few parts in a thousand.

All values are scaled to [-1, 1] here. See `dpmesh.noise.optimized_piecewise` for rows, cells and windows.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import Pool

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from benchmarks.variances import piecewise_variance

Array = NDArray[np.float64]

# Up to here, evenly spaced rows and twice as many cells as a window has are as good as any.
EVEN_TO = 1.0
# The last index of the ring of cells is a byte.
MOST_CELLS = 128
# PM-SUB's worst-case variance is 1.27 to 1.36 times the least possible one for epsilons from .5 to 8.
PM_SUB = 1.31
HEADER = '''"""The shapes of optimized Piecewise mechanisms, which `python -m benchmarks.shapes` found.

A shape is made for one epsilon, and serves those near it, too; which one is taken decides the variance alone, and
neither privacy nor the mean. Both the worst-case variance, beside the least possible one, and the mean variance on
uniform data, beside that of PM-SUB (Zhao et al. 2020), are nearly as small as they can be with so few cells.
"""

from __future__ import annotations

from bisect import bisect_right
from fractions import Fraction


def shape_for(epsilon: Fraction) -> tuple[int, tuple[int, ...]]:
    """The width of a window, and the points of the cells above the middle, up to a factor; they increase."""
    at = bisect_right(_SHAPES, int(epsilon * 10_000), key=lambda shape: shape[0]) - 1
    return _SHAPES[at][1:]


# From which ten-thousandth of epsilon on, the width, the points.
# fmt: off
_SHAPES: tuple[tuple[int, int, tuple[int, ...]], ...] = (
    (0, 1, (1,)),
'''
FOOTER = ")\n# fmt: on\n"


@dataclass(frozen=True)
class Shape:
    """The points of one mechanism.

    Attributes:
        epsilon: What it was made for.
        width: Cells in a window.
        half: The points above the middle, up to a factor.
    """

    epsilon: float
    width: int
    half: tuple[int, ...]

    def variances(self, epsilon: float) -> tuple[float, float]:
        """Worst-case variance, and mean variance on uniform data, at some epsilon."""
        law = Law(2 * len(self.half), self.width, epsilon)
        half = np.array(self.half, np.float64)
        half /= law.means(half)[-1]
        return law.worst(half), law.mean(half)

    def score(self, epsilon: float) -> float:
        """The larger of the two variances, each beside what is good."""
        worst, mean = self.variances(epsilon)
        pm_sub = piecewise_variance(epsilon, math.exp(epsilon / 3))
        return max(PM_SUB * worst / float(pm_sub.max()), mean / float(np.mean(pm_sub)))


class Law:
    """Means and second moments of the rows, as functions of the points above the middle.

    Args:
        cells: How many cells there are, an even number.
        width: Cells in a window.
        epsilon: The loss.
    """

    def __init__(self, cells: int, width: int, epsilon: float) -> None:
        grown = math.exp(epsilon)
        self.rows, half = cells - width, cells // 2
        base = 1 / (cells + width * (grown - 1))
        points = np.zeros((cells, half))  # all points, from those above the middle
        points[np.arange(half), half - 1 - np.arange(half)] = -1
        points[np.arange(half, cells), np.arange(half)] = 1
        window = np.array(
            [(np.arange(cells) - row) // width == 0 for row in range(self.rows + 1)], np.float64
        )
        self._means: Array = base * (grown - 1) * window @ points
        self._seconds: Array = (base + base * (grown - 1) * window) @ np.abs(points)

    def means(self, half: Array) -> Array:
        """Of each row."""
        return np.asarray(self._means @ half)

    def seconds(self, half: Array) -> Array:
        """The second moment of each row."""
        return np.asarray(self._seconds @ half**2)

    def worst(self, half: Array) -> float:
        """The largest variance, of all values in [-1, 1]; the last row's mean is 1."""
        x = np.linspace(-1, 1, 4001)
        return float(np.max(np.interp(x, self.means(half), self.seconds(half)) - x * x))

    def mean(self, half: Array) -> float:
        """The mean variance of uniform values."""
        seconds = self.seconds(half)
        return float((seconds[1:] + seconds[:-1]) @ np.diff(self.means(half))) / 4 - 1 / 3

    def best(self, weight: float) -> Array:
        """The points that make the worst-case variance plus `weight` times the mean one least; the last mean is 1."""
        start: Array = np.arange(self._means.shape[1], dtype=np.float64) + 0.5
        start /= self.means(start)[-1]
        unit = self.worst(start)
        to_mean, to_second = self._means, self._seconds

        def variances(half: Array) -> Array:
            means, seconds = self.means(half), self.seconds(half)
            between = (means[1:] + means[:-1]) / 2
            return np.concatenate([seconds - means**2, (seconds[1:] + seconds[:-1]) / 2 - between**2]) / unit

        def slopes(half: Array) -> Array:
            means, steep = self.means(half), 2 * to_second * half
            between, sums = (means[1:] + means[:-1]) / 2, to_mean[1:] + to_mean[:-1]
            rows = steep - 2 * means[:, np.newaxis] * to_mean
            middles = (steep[1:] + steep[:-1]) / 2 - between[:, np.newaxis] * sums
            return np.vstack([rows, middles]) / unit

        def mean_slope(half: Array) -> Array:
            means, seconds, steep = self.means(half), self.seconds(half), 2 * to_second * half
            by_second = (steep[1:] + steep[:-1]) / 4 * np.diff(means)[:, np.newaxis]
            by_mean = ((seconds[1:] + seconds[:-1]) / 4)[:, np.newaxis] * np.diff(to_mean, axis=0)
            return np.asarray((by_second + by_mean).sum(axis=0) / unit)

        # The first unknown is the bound of all variances.
        ones, order = np.ones((2 * self.rows + 1, 1)), np.diff(np.eye(start.size), axis=0)
        found = minimize(
            lambda v: v[0] + weight * self.mean(v[1:]) / unit,
            np.concatenate([[1], start]),
            jac=lambda v: np.concatenate([[1], weight * mean_slope(v[1:])]),
            constraints=[
                {
                    "type": "ineq",
                    "fun": lambda v: v[0] - variances(v[1:]),
                    "jac": lambda v: np.hstack([ones, -slopes(v[1:])]),
                },
                {
                    "type": "eq",
                    "fun": lambda v: to_mean[-1] @ v[1:] - 1,
                    "jac": lambda v: np.concatenate([[0], to_mean[-1]]),
                },
                {
                    "type": "ineq",
                    "fun": lambda v: order @ v[1:],
                    "jac": lambda v: np.hstack([np.zeros((start.size - 1, 1)), order]),
                },
            ],
            method="SLSQP",
            options={"maxiter": 200, "ftol": 1e-9},
        )
        return np.asarray(found.x[1:])


def even(epsilon: float, width: int) -> Shape:
    """Points whose rows are evenly spaced: each window lies half above and half below, and differs by equal steps."""
    grown = math.exp(epsilon)
    middle = (grown + 1) / (grown - 1)
    half = np.array([middle + (2 * cell - width + 1) / width for cell in range(width)])
    return Shape(epsilon, width, _whole(half))


def found(epsilon: float) -> Shape:
    """The best shape for an epsilon, of several numbers of rows and weights."""
    if epsilon <= EVEN_TO:
        return even(epsilon, 4)
    width = 4 if epsilon <= 8 else 3
    # For large epsilons, the window is this part of all cells.
    likely = width * max(1, 0.76 * math.exp(epsilon / 3))
    first, last = max(width, int(0.75 * likely)), min(int(1.15 * likely) + 1, MOST_CELLS - width)
    counts = [rows for rows in range(first, last + 1) if (rows + width) % 2 == 0]
    tried = [counts[i] for i in sorted({*np.linspace(0, len(counts) - 1, 6).astype(int).tolist()})]
    shapes = [
        Shape(epsilon, width, _whole(Law(rows + width, width, epsilon).best(weight)))
        for rows in tried
        for weight in (0.3, 0.6, 1, 1.6, 2.2)
    ]
    return min(shapes, key=lambda shape: shape.score(epsilon))


def _whole(half: Array) -> tuple[int, ...]:
    return tuple(np.rint(10_000 * half / half[-1]).astype(int).tolist())


def start_of(before: Shape, after: Shape) -> int:
    """From which ten-thousandth of epsilon on the second shape has no larger worst-case variance than the first."""
    ends = round(before.epsilon * 10_000), round(after.epsilon * 10_000)
    for at in range(ends[0], ends[1], 25):
        if after.variances(at / 10_000)[0] <= before.variances(at / 10_000)[0]:
            return at
    return ends[1]


def lines() -> Iterator[str]:
    """The table's rows."""
    epsilons = [0.25, 0.375, 0.5, 0.75, *np.arange(1, 12.1, 0.25).tolist()]
    with Pool() as pool:
        shapes = pool.map(found, epsilons, chunksize=1)
    starts = [1875, *map(start_of, shapes, shapes[1:])]
    for start, shape in zip(starts, shapes, strict=True):
        yield from textwrap.wrap(
            f"({start}, {shape.width}, {shape.half}),", 105, initial_indent="    ", subsequent_indent="     "
        )


if __name__ == "__main__":
    print(HEADER + "\n".join(lines()) + "\n" + FOOTER, end="")
