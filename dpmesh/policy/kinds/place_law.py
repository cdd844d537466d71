"""PlaceLaw: what draws the place that leaves, from which cells, and what that loses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from dpmesh.accounting import Cost, exact
from dpmesh.noise.disk_area import DiskArea
from dpmesh.noise.hexagonal import HexagonalGeometric
from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.policy.kinds.cells import MEAN_SNAP, Cells, cells_of, neighbourhoods
from dpmesh.policy.kinds.checks import above_zero
from dpmesh.policy.kinds.loss import EPSILON_LIMIT, checked_epsilon, field_epsilon, split
from dpmesh.policy.kinds.region import RADIUS_KM, Region
from dpmesh.v1 import privacy_pb2 as pb

# The noise's mean distance, and the distance that it is within 95 times in 100, times the loss per km, for small cells.
# The first is (2 + 3/2 ln 3)/sqrt(3).
_MEAN, _WITHIN_95 = 2.1062, 5.005
# sqrt(3)/2, rounded down.
_SIN_60 = Fraction(math.isqrt(3 * 10**30), 2 * 10**15)
# What rounding adds to the coordinates of a place in cells, by far.
_ROUNDING = Fraction(1, 10**6)
# How many cells there are along a region and along a radius by default. Noise is wider than 1/32 of the region, because
# an epsilon is at most 64, so smaller cells would hardly make it better.
_ALONG_REGION, _ALONG_RADIUS = 2000, 1000
_STEPS_LIMIT = 1 << 28


@dataclass(frozen=True, slots=True)
class PlaceLaw:
    """What draws a place, and what it loses.

    Attributes:
        epsilon: What all elements of the field are charged together.
        cost: What budgets count for that.
        spacing: The distance of the centres of neighbouring cells, in km.
        mechanism: What draws.
        cells: What the disk area mechanism draws from; None for the hexagonal geometric one.
        over_region: The loss between any two places, all elements together, at most.
        per_km: The loss per km of distance, all elements together; None for the disk area mechanism. It holds between
            places that are radius_km apart or further, and 4/3 cells more have to be counted where they are nearer.
        mean_error: The mean distance of what leaves from the place, in km: a bound.
        error_95: The distance within which it is 95 times in 100, in km: a bound.
    """

    epsilon: Fraction
    cost: Cost
    spacing: float
    mechanism: HexagonalGeometric | DiskArea
    cells: Cells | None
    over_region: float
    per_km: float | None
    mean_error: float
    error_95: float


def disk_law(
    rules: pb.Location, share: Fraction | None, region: Region, finest: float, repeats: int
) -> PlaceLaw:
    """The disk area mechanism with the best disk for its epsilon.

    Args:
        rules: The field's rule.
        share: Its part of the message's epsilon, if the message set one.
        region: Where places can be.
        finest: The smallest distance of cells that the fields can tell apart, in km.
        repeats: How many places one message shows, which share the loss.

    Raises:
        BadRuleError: The rule contradicts itself or what is possible.
    """
    total = field_epsilon(rules, share)
    each = split(total, repeats)
    cells = cells_of(region, _declared_spacing(rules, finest))
    if cells.spacing < finest:
        raise _too_fine(cells.spacing, finest)
    around = neighbourhoods(cells, each)
    return PlaceLaw(
        epsilon=total,
        cost=Cost.pure(each).times(repeats),
        spacing=cells.spacing,
        mechanism=DiskArea(len(cells), around.near, each),
        cells=cells,
        over_region=float(each * repeats),
        per_km=None,
        mean_error=around.mean_error,
        error_95=around.error_95,
    )


def hexagonal_law(
    rules: pb.Location, share: Fraction | None, region: Region, finest: float, repeats: int
) -> PlaceLaw:
    """The hexagonal geometric mechanism with the most loss that the rule allows. Arguments as for `disk_law`.

    Two cells h steps apart are told apart by at most exp(h times the loss of a step). Two places d km apart are at
    most d * stretch apart on the map, and their cells' centres 2 spacing/sqrt(3) more. A step is at least
    spacing * sqrt(3)/2 long. So the cells are at most d * stretch/(spacing * sqrt(3)/2) + 4/3 steps apart.

    Raises:
        BadRuleError: The rule contradicts itself or what is possible.
        ValueError: The sampler can't draw so wide noise.
    """
    if rules.HasField("epsilon_per_km"):
        above_zero(rules.epsilon_per_km, "epsilon", name="epsilon_per_km")
    spacing = _declared_spacing(rules, finest) or _default_spacing(rules, region, finest)
    steps_over = _steps_over(region, spacing)
    step_km = exact(spacing) * _SIN_60 / Fraction(region.stretch)
    if rules.metric == pb.Location.GEO:
        total = _over_radius(rules, share)
        each = split(total, repeats)
        # The ceiling makes the loss of more than radius_km at most in proportion.
        steps_within = math.ceil(exact(rules.radius_km) / step_km + Fraction(4, 3) + _ROUNDING)
        loss, rate = each / min(steps_within, steps_over), total / exact(rules.radius_km)
    elif rules.HasField("epsilon_per_km") or rules.HasField("radius_km"):
        rate = _declared_rate(rules, share)
        loss = _rounded_down(rate * step_km / repeats)
        each = loss * steps_over
        total = _checked_over_region(each * repeats)
    else:
        total = field_epsilon(rules, share)
        each = split(total, repeats)
        loss = each / steps_over
        rate = loss / step_km * repeats
    scale = 1 / (float(loss) * math.cos(region.reach / 2)) * spacing * float(_SIN_60)
    most = 2 * RADIUS_KM * region.reach
    return PlaceLaw(
        epsilon=total,
        cost=Cost.pure(each).times(repeats),
        spacing=spacing,
        mechanism=HexagonalGeometric(loss),
        cells=None,
        over_region=float(loss * steps_over * repeats),
        per_km=float(rate),
        mean_error=min(_MEAN * scale + MEAN_SNAP * spacing, most),
        error_95=min(_WITHIN_95 * scale + spacing, most),
    )


def _over_radius(rules: pb.Location, share: Fraction | None) -> Fraction:
    """What GEO is charged."""
    if not rules.HasField("epsilon_per_km"):
        return field_epsilon(rules, share)
    total = exact(rules.epsilon_per_km) * exact(rules.radius_km)
    checked_epsilon(float(total))
    return total


def _declared_rate(rules: pb.Location, share: Fraction | None) -> Fraction:
    """The loss per km."""
    if rules.HasField("epsilon_per_km"):
        return exact(rules.epsilon_per_km)
    return field_epsilon(rules, share) / exact(rules.radius_km)


def _rounded_down(value: Fraction) -> Fraction:
    """A loss with few digits."""
    found = Fraction(math.floor(value * (1 << 60)), 1 << 60)
    if not found:
        raise BadRuleError(
            "epsilon", "is too little for its cells", "raise it, or use a larger resolution_km"
        )
    return found


def _checked_over_region(total: Fraction) -> Fraction:
    if total > EPSILON_LIMIT:
        raise BadRuleError(
            "epsilon",
            f"comes to an epsilon of {float(total):.4g} over the region, and {EPSILON_LIMIT:g} are allowed",
            "use a smaller region or epsilon_per_km, or metric: GEO and radius_km",
        )
    return total


def _declared_spacing(rules: pb.Location, finest: float) -> float | None:
    if not rules.HasField("resolution_km"):
        return None
    spacing = above_zero(rules.resolution_km, "resolution", name="resolution_km")
    if spacing < finest:
        raise _too_fine(spacing, finest)
    return spacing


def _too_fine(spacing: float, finest: float) -> BadRuleError:
    return BadRuleError(
        "resolution",
        f"the fields can't tell cells apart that are {spacing:.2g} km from each other",
        f"resolution_km: {finest:.2g} will do",
    )


def _default_spacing(rules: pb.Location, region: Region, finest: float) -> float:
    spacing = 4 * RADIUS_KM * math.sin(region.reach / 2) / _ALONG_REGION
    if rules.HasField("radius_km"):
        spacing = min(spacing, rules.radius_km / _ALONG_RADIUS)
    return max(spacing, finest)


def _steps_over(region: Region, spacing: float) -> int:
    """How many steps the cells that are furthest apart are from each other, at most."""
    steps_over = max(high - low for low, high in region.cell_ranges(spacing))
    if steps_over < 1:
        raise BadRuleError("resolution", "leaves one cell of the region", "use a smaller resolution_km")
    if steps_over > _STEPS_LIMIT:
        coarser = spacing * steps_over / _STEPS_LIMIT
        raise BadRuleError("resolution", "makes too many cells", f"resolution_km: {coarser:.2g} will do")
    return steps_over
