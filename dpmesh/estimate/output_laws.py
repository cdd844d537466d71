"""The public law of a numeric mechanism: how probable it is that at most a given index leaves, by the index held."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dpmesh.estimate import spread
from dpmesh.estimate.laws import Gaussian, Laplace, law_of
from dpmesh.noise.duchi import Duchi
from dpmesh.noise.numeric import NumericKind, NumericMechanism
from dpmesh.noise.optimized_piecewise import OptimizedPiecewise
from dpmesh.noise.piecewise import Piecewise

Array = NDArray[np.float64]
# Maps held indexes, shape (held,), and whole numbers y, shape (y,), to P(output <= y), shape (y, held).
Cumulative = Callable[[Array, Array], Array]

# Up to so many standard deviations, and steps, the discrete Gaussian is summed up; beyond it is as good as continuous.
_TAIL, _SUMMED = 12, 1 << 12


def cumulative(mechanism: NumericMechanism, size: int) -> Cumulative:
    """P(output <= y) of a mechanism on a grid of the last index `size`, before an estimator moves any output."""
    epsilon, kind = mechanism.epsilon, mechanism.kind
    in_range = mechanism.unbiased_low is not None
    two_points = spread.two_points(mechanism, size)
    if two_points is not None:
        return _duchi(two_points)
    noise = law_of(mechanism)
    if noise is not None:
        added = _laplace(noise) if isinstance(noise, Laplace) else _gaussian(noise)
        return _clamped(added, size) if in_range else added
    assert epsilon is not None
    if kind is NumericKind.OPTIMIZED_PIECEWISE:
        return _optimized(OptimizedPiecewise(size, epsilon, in_range=mechanism.stretch != 1))
    window = _piecewise(Piecewise(size, epsilon))
    if kind is NumericKind.PIECEWISE:
        return window
    ends, share = _duchi(Duchi(size, epsilon)), math.exp(-epsilon / 2)
    return lambda x, y: share * ends(x, y) + (1 - share) * window(x, y)


def _laplace(noise: Laplace) -> Cumulative:
    """Sums of (1-a)/(1+a) a^|z|."""
    rate = 1 / noise.b
    below = 1 / (1 + math.exp(-rate))

    def law(x: Array, y: Array) -> Array:
        distance = y[:, np.newaxis] - x
        tail = np.exp(-rate * np.where(distance < 0, -distance, distance + 1)) * below
        return np.where(distance < 0, tail, 1 - tail)

    return law


def _gaussian(noise: Gaussian) -> Cumulative:
    reach = math.ceil(_TAIL * noise.sigma)
    mass = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * noise.sigma**2)) if reach <= _SUMMED else None
    table = None if mass is None else np.concatenate([[0.0], np.cumsum(mass) / mass.sum()])

    def law(x: Array, y: Array) -> Array:
        distance = y[:, np.newaxis] - x
        if table is not None:
            return np.asarray(
                table[np.clip(distance + reach + 1, 0, 2 * reach + 1).astype(np.int64)], np.float64
            )
        half = noise.beyond(np.abs(distance + 0.5)) / 2
        return np.where(distance < 0, half, 1 - half)

    return law


def _clamped(law: Cumulative, size: int) -> Cumulative:
    def inside(x: Array, y: Array) -> Array:
        at = y[:, np.newaxis]
        return np.where(at < 0, 0.0, np.where(at >= size, 1.0, law(x, y)))

    return inside


def _duchi(law: Duchi) -> Cumulative:
    """Two ends, each rounded to one of two neighbours."""
    in_range = law.low == 0
    margin, lie = 0.0 if in_range else float(law.margin), float(law.q)

    def cumulated(x: Array, y: Array) -> Array:
        upper = lie + (1 - 2 * lie) * x / law.size
        low, high = (_rounded(np.array([point]), y)[:, 0] for point in (-margin, law.size + margin))
        return low[:, np.newaxis] * (1 - upper) + high[:, np.newaxis] * upper

    return cumulated


def _rounded(points: Array, y: Array) -> Array:
    """P(a point <= y, once it is rounded to a neighbour at random, without bias), shape (y, points)."""
    return np.asarray(np.clip(y[:, np.newaxis] + 1 - points, 0.0, 1.0), np.float64)


def _piecewise(law: Piecewise) -> Cumulative:
    """Cells increase, more than a step apart: all up to some cell count fully, and perhaps the next one in part."""
    unit = float(1 << law.shift)
    step, base, inside = law.slope / unit, law.base / unit, float(law.inside)

    def cumulated(x: Array, y: Array) -> Array:
        whole = np.clip(np.floor((y - base) / step) + 1, 0, law.cells)
        part = np.where(whole < law.cells, np.clip(y + 1 - (whole * step + base), 0.0, 1.0), 0.0)
        below, of_next = whole[:, np.newaxis], part[:, np.newaxis]
        first, last = x, x + law.width
        window = np.clip(below - first, 0, law.width) + of_next * ((first <= below) & (below < last))
        rest = below + of_next - window
        return np.asarray(inside * window / law.width + (1 - inside) * rest / law.size, np.float64)

    return cumulated


def _optimized(law: OptimizedPiecewise) -> Cumulative:
    """Rows of cells; a held index is rounded at random to one of the two rows beside it."""
    points = np.array(law.points, np.float64) / (1 << law.fraction_bits)
    means = np.array([float(mean) for mean in law.means])
    cells = np.full((law.rows + 1, law.cells), float(1 - law.inside) / law.rows)
    for row in range(law.rows + 1):
        cells[row, row : row + law.width] = float(law.inside) / law.width
    rows = np.arange(law.rows + 1)

    def cumulated(x: Array, y: Array) -> Array:
        by_row = _rounded(points, y) @ cells.T
        place = np.interp(x, means, rows)
        row = np.minimum(place.astype(np.int64), law.rows - 1)
        return np.asarray(by_row[:, row] + (place - row) * (by_row[:, row + 1] - by_row[:, row]), np.float64)

    return cumulated
