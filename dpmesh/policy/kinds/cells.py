"""Cells: the hexagonal cells of a region, by number, with the order of all cells around each of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.policy.kinds.region import RADIUS_KM, Array, Integers, Region, cells_at, centres

# The order of n cells around each of them takes 2 n^2 bytes.
CELLS_LIMIT = 1024
_DEFAULT_CELLS = 900
_SAMPLES = 1 << 16
# A cell and its neighbours, in steps of q and r.
_AROUND = np.array([(0, 0), (1, 0), (0, 1), (-1, 1), (-1, 0), (0, -1), (1, -1)])
# How many cells a place may be from the nearest centre that lies in the region.
_FAR = 1.5
# The mean distance from a place of a cell to its centre, for cells that are 1 km apart: (1/3 + ln(3)/4)/sqrt(3).
MEAN_SNAP = (1 / 3 + math.log(3) / 4) / math.sqrt(3)


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """The cells whose centres lie in a region; where it is narrower than a cell, all cells that it meets.

    Attributes:
        region: The region.
        spacing: The distance of neighbouring centres, in km.
        latitude: Of each centre, or of the point of the region that is nearest to it.
        longitude: Of that point.
        numbers: The number of the cell that places of a lattice cell (q, r) count as: the nearest one of the region.
    """

    region: Region
    spacing: float
    latitude: Array
    longitude: Array
    numbers: dict[tuple[int, int], int]

    def __len__(self) -> int:
        return len(self.latitude)

    def nearest(self, q: int, r: int) -> int:
        """The number of the cell whose centre is nearest, on the Earth, to that of a lattice cell."""
        latitude, longitude = self.region.place(*centres(np.array([q]), np.array([r]), self.spacing))
        return self.nearest_to(float(latitude[0]), float(longitude[0]))

    def nearest_to(self, latitude: float, longitude: float) -> int:
        """The number of the cell whose centre is nearest to a place."""
        place = _vectors(np.array([latitude]), np.array([longitude]))
        return int(np.argmin(_squares(self._vectors(), place)[:, 0]))

    def numbers_at(self, latitude: Array, longitude: Array) -> Integers:
        """The numbers of the cells that places of the region count as."""
        q, r = cells_at(*self.region.project(latitude, longitude), self.spacing)
        pairs, inverse = np.unique(np.stack([q, r], axis=1), axis=0, return_inverse=True)
        found = []
        for pair in map(tuple, pairs.tolist()):
            number = self.numbers.get(pair)
            found.append(self.nearest(*pair) if number is None else number)
        return np.array(found, dtype=np.int64)[inverse.ravel()]

    def distances(self) -> Array:
        """The distances of all centres from each other on the Earth, in km, shape (cells, cells)."""
        vectors = self._vectors()
        found: Array = 2 * RADIUS_KM * np.arcsin(np.minimum(np.sqrt(_squares(vectors, vectors)) / 2, 1))
        return found

    def _vectors(self) -> Array:
        return _vectors(self.latitude, self.longitude)


def _vectors(latitude: Array, longitude: Array) -> Array:
    phi, turned = np.radians(latitude), np.radians(longitude)
    return np.stack([np.cos(phi) * np.cos(turned), np.cos(phi) * np.sin(turned), np.sin(phi)], axis=1)


def _squares(one: Array, other: Array) -> Array:
    """The squared straight distances of unit vectors, shape (ones, others)."""
    found: Array = np.sum((one[:, np.newaxis, :] - other[np.newaxis, :, :]) ** 2, axis=2)
    return found


def cells_of(region: Region, spacing: float | None) -> Cells:
    """The cells of a region.

    Args:
        region: The region.
        spacing: The distance of their centres in km; by default as small as gives some 900 cells.

    Raises:
        BadRuleError: They are fewer than two, or more than CELLS_LIMIT.
    """
    chosen = math.sqrt(region.area / _DEFAULT_CELLS / (math.sqrt(3) / 2)) if spacing is None else spacing
    count = region.area / (chosen**2 * math.sqrt(3) / 2)
    while count <= 4 * CELLS_LIMIT:
        cells = _cells(region, chosen)
        if len(cells) <= CELLS_LIMIT:
            if len(cells) < 2:
                raise BadRuleError(
                    "resolution", "leaves one cell of the region", "use a smaller resolution_km"
                )
            return cells
        if spacing is not None:
            count = len(cells)
            break
        chosen *= max(1.05, math.sqrt(len(cells) / CELLS_LIMIT))
    coarser = chosen * math.sqrt(count / _DEFAULT_CELLS)
    raise BadRuleError(
        "resolution",
        f"makes some {count:.3g} cells of the region, and DISK_AREA takes up to {CELLS_LIMIT}",
        f"resolution_km: {coarser:.2g} will do",
    )


@lru_cache(maxsize=64)
def _cells(region: Region, spacing: float) -> Cells:
    q, r = cells_at(*region.project(*region.samples(_SAMPLES)), spacing)
    met = np.unique(np.stack([q, r], axis=1), axis=0)
    if len(met) > 2 * CELLS_LIMIT:
        return Cells(region, spacing, *region.place(*centres(met[:, 0], met[:, 1], spacing)), {})
    # The samples may miss slivers of the region, which their neighbours hold.
    pairs = np.unique((met[:, np.newaxis, :] + _AROUND).reshape(-1, 2), axis=0)
    x, y = centres(pairs[:, 0], pairs[:, 1], spacing)
    latitude, longitude = region.place(x, y)
    # A centre outside of the region has been moved to its edge.
    x2, y2 = region.project(latitude, longitude)
    chosen = np.hypot(x2 - x, y2 - y) <= 1e-6 * spacing
    if np.count_nonzero(chosen) > CELLS_LIMIT:
        return Cells(region, spacing, latitude[chosen], longitude[chosen], {})
    vectors = _vectors(latitude, longitude)
    known = set(map(tuple, met.tolist()))
    is_met = np.array([pair in known for pair in map(tuple, pairs.tolist())])
    if (
        not chosen.any()
        or _squares(vectors[is_met], vectors[chosen]).min(axis=1).max() > (_FAR * spacing / RADIUS_KM) ** 2
    ):
        # The region is narrower than a cell somewhere. The centres of all cells that it meets stand for it.
        chosen = is_met
    nearest = np.argmin(_squares(vectors, vectors[chosen]), axis=1)
    numbers = dict(zip(map(tuple, pairs.tolist()), nearest.tolist(), strict=True))
    return Cells(region, spacing, latitude[chosen], longitude[chosen], numbers)


@dataclass(frozen=True, slots=True, eq=False)
class Neighbourhoods:
    """The order of all cells around each of them, and what a disk of the best size loses and gives.

    Attributes:
        order: The numbers of all cells by their distance from a cell, shape (cells, cells). The cell itself is first.
        near: How many cells a disk has, for the smallest mean distance at an epsilon.
        mean_error: The mean distance of what leaves from the true place in km, over the whole region: a bound.
        error_95: The distance that it is within 95 times in 100.
    """

    order: NDArray[np.uint16]
    near: int
    mean_error: float
    error_95: float


@lru_cache(maxsize=4)
def _ordered(cells: Cells) -> tuple[NDArray[np.uint16], Array]:
    # Rounded, so that equal distances are equal on all processors, and their order is that of the cells.
    distances = np.round(cells.distances(), 6)
    order = np.argsort(distances, axis=1, kind="stable")
    return order.astype(np.uint16), np.take_along_axis(distances, order, axis=1)


@lru_cache(maxsize=16)
def neighbourhoods(cells: Cells, epsilon: Fraction) -> Neighbourhoods:
    """Orders the cells around each other, and finds the best disk at an epsilon."""
    order, sorted_distances = _ordered(cells)
    count, ratio = len(cells), math.exp(-epsilon)
    within = np.cumsum(sorted_distances, axis=1).mean(axis=0)
    near = np.arange(1, count)
    # Of cells in the disk each has weight 1, of the others exp(-epsilon).
    means = (within[:-1] + ratio * (within[-1] - within[:-1])) / (near + ratio * (count - near))
    best = int(np.argmin(means)) + 1
    weights = np.where(np.arange(count) < best, 1.0, ratio)
    weights /= weights.sum()
    some = sorted_distances[:: max(1, count // 64)]
    flat = np.argsort(some, axis=None)
    total = np.cumsum(np.broadcast_to(weights, some.shape).ravel()[flat])
    at = some.ravel()[flat][int(np.searchsorted(total, 0.95 * total[-1]))]
    snap = cells.spacing / math.sqrt(3)
    return Neighbourhoods(order, best, float(means[best - 1]) + MEAN_SNAP * cells.spacing, float(at) + snap)
