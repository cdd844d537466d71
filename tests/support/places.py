"""Regions, rules and distances for tests of places."""

import math

import numpy as np

from dpmesh.policy import Policy
from tests.support.protos import compiled

RADIUS_KM = 6371.0088
SWITZERLAND = "min_latitude: 45.8 max_latitude: 47.9 min_longitude: 5.9 max_longitude: 10.5"
FIJI = "min_latitude: -21 max_latitude: -12 min_longitude: 176 max_longitude: -178"
ARCTIC = "min_latitude: 70 max_latitude: 90 min_longitude: -180 max_longitude: 180"
SOUTH = "min_latitude: -90 max_latitude: -60 min_longitude: 100 max_longitude: 150"
WIDE = "min_latitude: -60 max_latitude: 75 min_longitude: -180 max_longitude: 180"
REGIONS = {"switzerland": SWITZERLAND, "fiji": FIJI, "arctic": ARCTIC, "south": SOUTH, "wide": WIDE}
BOUNDS = {
    "switzerland": (45.8, 47.9, 5.9, 10.5),
    "fiji": (-21, -12, 176, 182),
    "arctic": (70, 90, -180, 180),
    "south": (-90, -60, 100, 150),
    "wide": (-60, 75, -180, 180),
}
"""South, north, west and east, which is above west."""


def types(rule, number="double", options="", more=""):
    """Message types M and Point: `at` of M is a Point with the rule."""
    return compiled(
        f"""message Point {{ {number} latitude = 1; {number} longitude = 2; {more} }}
        message M {{ string id = 1 [(dpmesh.v1.field).unit = {{form: SUPPRESSED}}];
          Point at = 2 [(dpmesh.v1.field).location = {{{rule}}}{options}]; }}"""
    )


def planned(rule, **kwargs):
    """The types and the plan of M."""
    made = types(rule, **kwargs)
    return made, Policy().plan(made.M.DESCRIPTOR)


def law_of(plan):
    """The PlaceLaw of the plan's only place."""
    (payload,) = (field.payload for field in plan.fields if field.mechanism_name)
    return payload.law


def scripted(plan, message, codes):
    """What the generated code makes of a message with each of these codes in place of drawn ones."""
    items = law_of(plan).mechanism.draws.pool()._items
    items[:] = reversed(codes)
    found = [plan.protect(message, _no_alias) for _ in codes]
    assert items == []
    return found


def _no_alias(_unit, _epoch):
    raise AssertionError("the unit is suppressed")


def packed(q, r):
    """The code of a cell of noise."""
    return (q << 32) + r


def distance(one, other):
    """Kilometres between places (latitude, longitude) on the sphere; either may be arrays."""
    (a, b), (c, d) = ([np.radians(np.asarray(value, float)) for value in place] for place in (one, other))
    square = np.sin((a - c) / 2) ** 2 + np.cos(a) * np.cos(c) * np.sin((b - d) / 2) ** 2
    return 2 * RADIUS_KM * np.arcsin(np.minimum(np.sqrt(square), 1))


def some_places(name, count, seed=1):
    """Places of a region, its corners and middle first: latitudes and longitudes."""
    south, north, west, east = BOUNDS[name]
    rng = np.random.default_rng(seed)
    latitude = np.concatenate(
        [[south, south, north, north, (south + north) / 2], rng.uniform(south, north, count)]
    )
    longitude = np.concatenate([[west, east, west, east, (west + east) / 2], rng.uniform(west, east, count)])
    return latitude, (longitude + 180) % 360 - 180


def in_bounds(name, latitude, longitude):
    """Whether a place lies within the region's bounds."""
    south, north, west, east = BOUNDS[name]
    return south <= latitude <= north and (west <= longitude <= east or west <= longitude + 360 <= east)


def is_close(one, other, km=1e-6):
    """Whether two messages of places are as near as `km`."""
    pairs = ((place.latitude, place.longitude) for place in (one, other))
    return bool(distance(*pairs) <= km) and not any(
        math.isnan(value) for value in (one.latitude, other.latitude)
    )
