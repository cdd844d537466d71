"""Heat maps: how many places lie in each cell of a region, from released ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from dpmesh.estimate import spread
from dpmesh.estimate.inverse import Shares, weights_of
from dpmesh.estimate.result import Estimate, EstimateError, not_released
from dpmesh.estimate.tally import Figures, Tally
from dpmesh.noise.disk_area import DiskArea
from dpmesh.noise.hexagonal import HexagonalGeometric
from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.policy.kinds.cells import Cells, cells_of, neighbourhoods
from dpmesh.policy.kinds.location import LocationPayload
from dpmesh.policy.kinds.region import Array, Integers, cells_at, centres
from dpmesh.policy.plan import FieldPlan

CELLS_LIMIT = 400
_DEFAULT_CELLS = 40
# Places of the region by which hexagonal noise is worked out, and how many kinds of noise each cell gets.
_SAMPLES, _NOISES = 1 << 14, 6 << 11
# An inverse that makes the smallest rounding so large is none.
_CONDITION_LIMIT = 1e8
# So many places are in work at a time.
_BLOCK = 1 << 13


@dataclass(frozen=True, slots=True)
class HeatCell:
    """One hexagonal cell of a heat map.

    Attributes:
        latitude: Of its centre, in degrees.
        longitude: Of its centre, in degrees.
        share: The share of all places that lie in it. It may be below 0, because it is unbiased.
        count: How many of the places lie in it.
    """

    latitude: float
    longitude: float
    share: Estimate
    count: Estimate


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Where places are.

    Attributes:
        cells: All cells of the region, in a fixed order. Their shares sum to 1.
        cell_km: The distance of the centres of neighbouring cells.
        latitude: The mean of all latitudes, if places are spread evenly within each cell.
        longitude: The mean of all longitudes, if they are. It counts on beyond 180 where the region crosses the
            antimeridian.
    """

    cells: tuple[HeatCell, ...]
    cell_km: float
    latitude: Estimate
    longitude: Estimate


@dataclass(frozen=True, slots=True)
class _Inverse:
    """What a received cell counts for.

    Attributes:
        cells: The receiver's cells.
        weights: What each received cell adds to the share of each of the receiver's, shape (received, cells).
        law: The probability of each received cell for places all over a cell, shape (received, cells).
    """

    cells: Cells
    weights: Array
    law: Array


def tally(field: FieldPlan, cell_km: float | None) -> Tally:
    """Counts received places by cells.

    Args:
        field: The field.
        cell_km: The distance of neighbouring cells' centres; by default some 40 cells cover the region.

    Raises:
        EstimateError: The field is no place; or there are too many cells, or cells that the noise blurs beyond what
            can be undone.
    """
    at = place_of(field)
    inverse = _inverse(field.path, at, cell_km)

    def count(places: Any) -> Figures:
        each, counts = iter(places), np.zeros(len(inverse.weights), np.int64)
        while block := list(itertools.islice(each, _BLOCK)):
            latitude, longitude = _degrees(field, at, block)
            numbers = _received_numbers(field.path, at, inverse.cells, latitude, longitude)
            counts += np.bincount(numbers, minlength=len(counts))
        return {"n": [int(counts.sum())], "cells": counts.tolist()}

    return Tally({"n": 1, "cells": len(inverse.weights)}, count, cell_km)


def heat_map_of(field: FieldPlan, figures: Figures, cell_km: float | None, confidence: float) -> HeatMap:
    """Takes the noise out of the counts of places by cells.

    The public law says how probable each received cell is for places in each of the receiver's cells. Weights of the
    received cells turn that around: the law of a cell's places gives 1 for this cell and 0 for all others. Of all such
    weights, these have the least variance for places all over the region. So the shares are unbiased if places are
    spread evenly within each cell, whatever they do between cells. No weights are unbiased for all places within cells
    and of any use, because the noise hides on which side of a border a place near it was. If `cell_km` is the policy's
    own spacing, there are such weights for a disk of one cell.

    Args:
        field: The field.
        figures: What its tally has counted.
        cell_km: As for the tally.
        confidence: Of each interval by itself.

    Raises:
        EstimateError: There are no places, or as for `tally`.
    """
    at = place_of(field)
    spread.checked(confidence)
    inverse = _inverse(field.path, at, cell_km)
    cells, (n,) = inverse.cells, figures["n"]
    if not n:
        raise EstimateError(field.path, "there are no values")
    counts = np.array(figures["cells"], np.float64)
    found = Shares(inverse.weights, inverse.law, counts, confidence)
    mean = found.estimates(_middles(at, cells))
    places = zip(cells.latitude.tolist(), cells.longitude.tolist(), found.estimates(), strict=True)
    shown = tuple(HeatCell(north, east, share, share.scaled(n)) for north, east, share in places)
    return HeatMap(shown, cells.spacing, mean[0], mean[1])


def variance(field: FieldPlan, cell_km: float | None) -> float:
    """The mean variance that one report gives the share of a cell, for places all over the region; as for `tally`."""
    inverse = _inverse(field.path, place_of(field), cell_km)
    even = inverse.law.mean(axis=1)
    return float(np.mean(even @ inverse.weights**2 - (even @ inverse.weights) ** 2))


def place_of(field: FieldPlan) -> LocationPayload:
    """How a field leaves as a place.

    Raises:
        EstimateError: It leaves as something else.
    """
    at = field.kind.reading(field)
    if not isinstance(at, LocationPayload):
        raise EstimateError(field.path, f"is {field.kind}, not location: it has no heat map")
    return at


def _middles(at: LocationPayload, cells: Cells) -> Array:
    """The mean latitude and longitude of the places of the region in each cell, shape (cells, 2)."""
    latitude, longitude = at.region.samples(_SAMPLES)
    group, area = cells.numbers_at(latitude, longitude), np.cos(np.radians(latitude)) + 1e-12
    total = np.bincount(group, area, minlength=len(cells))
    sums = [np.bincount(group, area * each, minlength=len(cells)) for each in (latitude, longitude)]
    return np.stack(sums, axis=1) / total[:, np.newaxis]


def _degrees(field: FieldPlan, at: LocationPayload, received: Iterable[Any]) -> tuple[Array, Array]:
    try:
        pairs = [(getattr(place, at.latitude), getattr(place, at.longitude)) for place in received]
        found = np.array(pairs, dtype=np.float64).reshape(-1, 2) * at.unit
    except (AttributeError, TypeError, ValueError):
        raise EstimateError(field.path, "one of the values is not a message of places") from None
    south, north = at.region.south, at.region.north
    turned = (found[:, 1] - at.region.longitude + 180) % 360 - 180
    slack = _slack(at)
    fits = (found[:, 0] >= south - slack) & (found[:, 0] <= north + slack)
    fits &= np.abs(turned) <= at.region.half_width + slack
    if not bool(fits.all()):
        raise not_released(field.path, "one of the places is outside of the region")
    # A float rounds what it carries.
    return at.region.clamp(found[:, 0], turned)


def _slack(at: LocationPayload) -> float:
    """How far off rounding may put a place, in degrees."""
    return 1e-4 + at.unit * at.integral


def _received_numbers(
    path: str, at: LocationPayload, cells: Cells, latitude: Array, longitude: Array
) -> Integers:
    """The cells that were received: the policy's own, or, where these are many, those of the receiver."""
    own = at.law.cells
    if own is None:
        return cells.numbers_at(latitude, longitude)
    numbers = own.numbers_at(latitude, longitude)
    apart = np.hypot(latitude - own.latitude[numbers], (longitude - own.longitude[numbers] + 180) % 360 - 180)
    if not bool((apart <= _slack(at)).all()):
        raise not_released(path, "one of the places is no cell's centre")
    return numbers


@lru_cache(maxsize=16)
def _inverse(path: str, at: LocationPayload, cell_km: float | None) -> _Inverse:
    law = at.law
    if cell_km is None:
        cell_km = math.sqrt(at.region.area / _DEFAULT_CELLS / (math.sqrt(3) / 2))
        cell_km = max(cell_km, law.spacing)
    if not (math.isfinite(cell_km) and cell_km > 0):
        raise EstimateError(path, "cell_km must be above 0")
    if law.cells is not None and cell_km < law.spacing:
        raise EstimateError(
            path, f"the policy's cells are {law.spacing!r} km apart, so cell_km must be at least that"
        )
    own = law.cells is not None and cell_km == law.spacing
    try:
        cells = law.cells if own and law.cells is not None else cells_of(at.region, cell_km)
    except BadRuleError as bad:
        raise EstimateError(path, f"cell_km: {bad.text}") from None
    if len(cells) > CELLS_LIMIT and not own:
        least = cell_km * math.sqrt(len(cells) / CELLS_LIMIT)
        text = f"cell_km makes {len(cells)} cells, and {CELLS_LIMIT} are allowed: {least:.3g} will do"
        raise EstimateError(path, text)
    received = _disk_law(at, cells) if law.cells is not None else _hexagonal_law(at, cells)
    weights = weights_of(received, received.mean(axis=1), _CONDITION_LIMIT)
    if weights is None:
        raise EstimateError(
            path, "the noise blurs so small cells beyond what can be undone: use a larger cell_km"
        )
    return _Inverse(cells, weights, received)


def _disk_law(at: LocationPayload, cells: Cells) -> Array:
    """The probability of each of the policy's cells, for places all over each of the receiver's: (own, receiver's)."""
    own, mechanism = at.law.cells, at.law.mechanism
    assert own is not None
    assert isinstance(mechanism, DiskArea)
    order = neighbourhoods(own, mechanism.epsilon).order
    inside = float(mechanism.inside)
    table = np.full((len(own), len(own)), (1 - inside) / (len(own) - mechanism.near))
    columns = np.arange(len(own))[:, np.newaxis]
    table[order[:, : mechanism.near], columns] = inside / mechanism.near
    if cells is own:
        return table
    group = cells.numbers_at(own.latitude, own.longitude)
    member = np.zeros((len(own), len(cells)))
    member[np.arange(len(own)), group] = 1
    sizes = member.sum(axis=0)
    # A receiver's cell at the edge may hold none of the policy's centres: it counts as the nearest one that does.
    for empty in np.flatnonzero(sizes == 0).tolist():
        member[own.nearest_to(float(cells.latitude[empty]), float(cells.longitude[empty])), empty] = 1
    spread_out: Array = table @ (member / member.sum(axis=0))
    return spread_out


def _hexagonal_law(at: LocationPayload, cells: Cells) -> Array:
    """The probability of each of the receiver's cells, for places all over each of them: (received, true).

    By places of each cell, each with some of the noises of a list that stands for the law: the quantiles of both of its
    geometric variables, in each of the six directions.
    """
    mechanism, region = at.law.mechanism, at.region
    assert isinstance(mechanism, HexagonalGeometric)
    q, r = _noises(float(mechanism.loss))
    latitude, longitude = region.samples(_SAMPLES)
    group = cells.numbers_at(latitude, longitude)
    area = np.cos(np.radians(latitude)) + 1e-12
    x, y = region.project(latitude, longitude)
    table = np.zeros((len(cells), len(cells)))
    for cell in range(len(cells)):
        (members,) = np.nonzero(group == cell)
        # Places in proportion to the area that they stand for, in an order that has nothing to do with the noise.
        at_quantile = (np.arange(len(q)) * 0.6180339887498949) % 1
        quantiles = np.cumsum(area[members]) / area[members].sum()
        chosen = members[np.searchsorted(quantiles[:-1], at_quantile, side="right")]
        own_q, own_r = cells_at(x[chosen], y[chosen], at.law.spacing)
        found = region.place(*centres(own_q + q, own_r + r, at.law.spacing))
        table[:, cell] = np.bincount(cells.numbers_at(*found), minlength=len(cells)) / len(q)
    return table


def _noises(loss: float) -> tuple[Integers, Integers]:
    """Cells of noise that stand for the hexagonal geometric law, all equally likely."""
    count = _NOISES
    number = np.arange(count)
    turn = number % 6
    # Two low-discrepancy sequences (Roberts 2018), by the inverse of the geometric law.
    first, second = ((0.5 + number * step) % 1 for step in (0.7548776662466927, 0.5698402909980532))
    ahead, aside = (np.floor(-np.log1p(-each) / loss).astype(np.int64) for each in (first, second))
    directions = np.array([(1, 0), (0, 1), (-1, 1), (-1, 0), (0, -1), (1, -1)])
    following = directions[(turn + 1) % 6]
    cells = directions[turn] * (ahead + 1)[:, np.newaxis] + following * aside[:, np.newaxis]
    a = math.exp(-loss)
    none = (1 - a) ** 2 / (1 + 4 * a + a * a)
    cells[(number * 0.8191725133961645) % 1 < none] = 0
    return cells[:, 0], cells[:, 1]
