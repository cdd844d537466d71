"""Location: a place of a public region, released as the centre of a cell, with noise that respects distances."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from typing_extensions import override

from dpmesh.noise.disk_area import DiskArea
from dpmesh.policy.codegen.steps import Step
from dpmesh.policy.descriptors import (
    INTEGER_RANGES,
    F,
    inside_of,
    is_number,
    is_wrapper,
    oneof_of,
    type_name,
)
from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.policy.kinds import place_code
from dpmesh.policy.kinds.cells import neighbourhoods
from dpmesh.policy.kinds.kind import Description, FieldSite
from dpmesh.policy.kinds.noised import NoisedKind
from dpmesh.policy.kinds.place_law import PlaceLaw, disk_law, hexagonal_law
from dpmesh.policy.kinds.region import RADIUS_KM, Region, cells_at, region_of
from dpmesh.policy.kinds.words import number
from dpmesh.policy.plan import FieldPlan, Model
from dpmesh.policy.sizes import NOTHING, Size, nested, of_values, shortest_and_longest
from dpmesh.v1 import privacy_pb2 as pb

_KM_PER_DEGREE = math.radians(RADIUS_KM)
# A cell is at least so many of the field's own steps wide, so that the field can tell cells apart.
_STEPS_A_CELL = 4


@dataclass(frozen=True, slots=True)
class LocationPayload:
    """What leaves of a place, and how it is drawn.

    Attributes:
        region: Where it can be.
        law: What draws, from which cells, and what it loses.
        latitude: The name of the field that holds the latitude in the message.
        longitude: The name of the field that holds the longitude.
        unit: How many degrees a 1 in these fields means.
        integral: They hold integers.
        radius_km: Two places that far apart are what a budget pays for; None if it pays for the whole region.
    """

    region: Region
    law: PlaceLaw
    latitude: str
    longitude: str
    unit: float
    integral: bool
    radius_km: float | None


class Location(NoisedKind):
    """Finds the cell of a place, draws another one, and writes its centre."""

    name = "location"

    @override
    def needs_share(self, rules: pb.Location) -> bool:
        return super().needs_share(rules) and not rules.HasField("epsilon_per_km")

    @override
    def plan(self, site: FieldSite, rules: pb.Location) -> FieldPlan:
        repeats = site.repeats()
        latitude, longitude = _coordinates(site, rules)
        unit, finest = _unit(latitude, rules)
        region = region_of(rules)
        _check_choices(rules)
        by_distance = rules.HasField("epsilon_per_km") or rules.HasField("radius_km")
        hexagonal = by_distance or rules.mechanism == pb.Location.HEXAGONAL_GEOMETRIC
        law = (hexagonal_law if hexagonal else disk_law)(rules, site.share, region, finest, repeats)
        payload = LocationPayload(
            region=region,
            law=law,
            latitude=latitude.name,
            longitude=longitude.name,
            unit=unit,
            integral=latitude.type in INTEGER_RANGES,
            radius_km=rules.radius_km if rules.metric == pb.Location.GEO else None,
        )
        _warn(site, payload)
        return self.noised_plan(
            site,
            model=Model.LOCAL,
            epsilon=law.epsilon,
            repeats=repeats,
            cost=law.cost,
            mechanism_name="hexagonal_geometric" if hexagonal else "disk_area",
            payload=payload,
        )

    @override
    def step(self, site: FieldSite, plan: FieldPlan) -> Step:
        at: LocationPayload = plan.payload
        cell = _text_of_disk(at) if at.law.cells else _text_of_hexagons(at)
        draw = place_code.drawing(at.region, at.unit, at.law.spacing, at.law.mechanism.draws, *cell)
        items = plan.repeats if site.field.is_repeated else 0
        return place_code.pairs(site.field, at.latitude, at.longitude, draw, items)

    @override
    def size(self, site: FieldSite, plan: FieldPlan) -> Size:
        at: LocationPayload = plan.payload
        message, region = inside_of(site.field), at.region
        assert message is not None
        sides = (region.west, region.east) if region.west < region.east else (-180.0, 180.0)
        inner = NOTHING
        for name, ends in ((at.latitude, (region.south, region.north)), (at.longitude, sides)):
            field = message.fields_by_name[name]
            low, high = (place_code.in_units(end, at.unit, integral=at.integral) for end in ends)
            inner += of_values(field, shortest_and_longest(field, low, high))
        return nested(site.field, inner, plan.repeats, plan.repeats)

    @override
    def describe(self, plan: FieldPlan) -> Description:
        at: LocationPayload = plan.payload
        law = at.law
        words = [f"cells {number(law.spacing)} km apart"]
        if law.cells:
            words = [f"one of {len(law.cells)} cells, {number(law.spacing)} km apart; no distance changes ε"]
        elif law.per_km is not None:
            charged = (
                f", {number(float(law.epsilon))} over {number(at.radius_km)} km (charged)"
                if at.radius_km
                else ""
            )
            words.append(
                f"ε {number(law.per_km)} per km, {number(10 * law.per_km)} per 10 km{charged}, "
                f"{number(law.over_region)} over the region"
            )
        words.append(f"mean error at most {number(law.mean_error)} km, 95 % within {number(law.error_95)} km")
        return Description("; ".join(words))

    @override
    def hides_near_values_only(self, plan: FieldPlan) -> bool:
        at: LocationPayload = plan.payload
        return at.radius_km is not None and at.law.over_region > float(at.law.epsilon)


KIND = Location()


def _coordinates(site: FieldSite, rules: pb.Location) -> tuple[FieldDescriptor, FieldDescriptor]:
    """The fields of latitude and longitude."""
    message = inside_of(site.field)
    if message is None or is_wrapper(site.field):
        raise BadRuleError(
            "kind-type", f"location does not fit {type_name(site.field)}", "use it on a message"
        )
    found = []
    for role in ("latitude", "longitude"):
        name = getattr(rules, role) or role
        field = message.fields_by_name.get(name)
        if field is None:
            raise BadRuleError("location", f"{message.full_name} has no field {name}", f"name it in {role}")
        if field.is_repeated or not is_number(field):
            raise BadRuleError("location", f"{name} is {type_name(field)}, and has to be one number")
        if field.type in INTEGER_RANGES and INTEGER_RANGES[field.type][0] == 0:
            raise BadRuleError(
                "location", f"{name} is {type_name(field)}, which holds no place south or west of 0"
            )
        if oneof_of(field) is not None:
            raise BadRuleError("location", f"{name} is in a oneof, and a place always has both numbers")
        found.append(field)
    if found[0] == found[1] or found[0].type != found[1].type:
        raise BadRuleError("location", "latitude and longitude have to be two fields of one type")
    required = [field.name for field in message.fields if field.is_required and field not in found]
    if required:
        raise BadRuleError("required", f"{required[0]} is required and does not leave", "make it optional")
    return found[0], found[1]


def _unit(field: FieldDescriptor, rules: pb.Location) -> tuple[float, float]:
    """How many degrees a 1 means, and the smallest distance of cells that the fields can tell apart, in km."""
    if field.type in INTEGER_RANGES and not rules.HasField("degrees_per_unit"):
        raise BadRuleError(
            "location",
            f"{field.name} is an integer, and the rule does not say how many degrees a 1 means",
            "set degrees_per_unit: 1e-7 for degrees times 10^7",
        )
    unit = rules.degrees_per_unit if rules.HasField("degrees_per_unit") else 1.0
    if not (math.isfinite(unit) and 1e-12 <= unit <= 360):
        raise BadRuleError("location", f"degrees_per_unit must be from 1e-12 to 360, not {unit:g}")
    if field.type in INTEGER_RANGES:
        if 180 / unit > INTEGER_RANGES[field.type][1]:
            raise BadRuleError("location", f"{type_name(field)} can't hold 180 degrees in units of {unit:g}")
        step = unit
    else:
        step = 180 * 2.0 ** (-23 if field.type == F.TYPE_FLOAT else -52)
    return unit, step * _STEPS_A_CELL * _KM_PER_DEGREE


def _check_choices(rules: pb.Location) -> None:
    """Refuses rules that say two things about the loss."""
    per_km, radius = rules.HasField("epsilon_per_km"), rules.HasField("radius_km")
    if per_km and rules.HasField("epsilon"):
        raise BadRuleError("epsilon", "has an epsilon and an epsilon_per_km", "set one of them")
    if rules.metric == pb.Location.GEO and not radius:
        raise BadRuleError("metric", "GEO is charged for a radius, and has no radius_km", "set radius_km")
    if per_km and radius and rules.metric == pb.Location.LOCAL:
        raise BadRuleError(
            "metric", "LOCAL pays for the whole region, so radius_km has no use", "use metric: GEO"
        )
    if radius and not (math.isfinite(rules.radius_km) and 1e-3 <= rules.radius_km <= 20_100):
        raise BadRuleError("radius", f"radius_km must be from 0.001 to 20100, not {rules.radius_km:g}")
    if (per_km or radius) and rules.mechanism == pb.Location.DISK_AREA:
        text = "DISK_AREA loses as much between near places as between far ones"
        raise BadRuleError("mechanism", text, "set epsilon alone, or use HEXAGONAL_GEOMETRIC")


def _warn(site: FieldSite, at: LocationPayload) -> None:
    message = inside_of(site.field)
    assert message is not None
    dropped = [field.name for field in message.fields if field.name not in (at.latitude, at.longitude)]
    if dropped:
        text = f"nothing of its message leaves but the place: {', '.join(dropped)} would not, whatever their rules"
        site.warn("location-drops", text, "move what has to leave to the message around it")
    if at.radius_km is not None:
        text = (
            f"is charged for places up to {number(at.radius_km)} km apart: places n times as far apart lose n times as "
            f"much, up to an epsilon of {number(at.law.over_region)} over the region"
        )
        site.warn("location-geo", text, "use metric: LOCAL to pay for the whole region")


def _text_of_hexagons(at: LocationPayload) -> tuple[str, dict[str, Any]]:
    latitude, longitude = (np.array([value]) for value in at.region.middle)
    q, r = (int(each[0]) for each in cells_at(*at.region.project(latitude, longitude), at.law.spacing))
    ranges, decode = at.region.cell_ranges(at.law.spacing), at.law.mechanism.draws.decode
    text = place_code.hexagons(at.region, at.law.spacing, ranges, f"{q}, {r}", decode)
    return text + place_code.written(at.unit, integral=at.integral), {}


def _text_of_disk(at: LocationPayload) -> tuple[str, dict[str, Any]]:
    assert at.law.cells is not None
    assert isinstance(at.law.mechanism, DiskArea)
    around = neighbourhoods(at.law.cells, at.law.mechanism.epsilon)
    orders = [array("H", row.tobytes()) for row in around.order]
    pairs = zip(at.law.cells.latitude.tolist(), at.law.cells.longitude.tolist(), strict=True)
    shown = tuple(
        tuple(place_code.in_units(value, at.unit, integral=at.integral) for value in pair) for pair in pairs
    )
    names = {
        "number_of": at.law.cells.numbers.get,
        "nearest": at.law.cells.nearest,
        "orders": orders,
        "shown": shown,
    }
    return place_code.disk(at.law.mechanism.draws.decode), names
