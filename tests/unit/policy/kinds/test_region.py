"""Regions: their maps stretch no distance by more than they say, and lead back to where a place was."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.policy.kinds.region import cells_at, centres, region_of
from dpmesh.v1 import privacy_pb2 as pb
from tests.support.places import BOUNDS, distance, some_places

NAMES = ("min_latitude", "max_latitude", "min_longitude", "max_longitude")


def rule(south, north, west, east):
    return pb.Location(min_latitude=south, max_latitude=north, min_longitude=west, max_longitude=east)


def made(name):
    south, north, west, east = BOUNDS[name]
    return region_of(rule(south, north, west, east if east <= 180 else east - 360))


@pytest.mark.parametrize("name", BOUNDS)
def test_no_distance_on_the_map_is_longer_than_the_stretch_allows(name):
    """By random pairs, near ones and the corners; on the ellipsoid by its own metric, for near ones."""
    region = made(name)
    latitude, longitude = some_places(name, 3000)
    other = np.roll(latitude, 1), np.roll(longitude, 1)
    x, y = region.project(latitude, longitude)
    far = np.hypot(x - np.roll(x, 1), y - np.roll(y, 1))
    # The sphere's distances are shorter than the ellipsoid's at most by what a meridian's radius exceeds the mean one.
    assert (far <= region.stretch * 6399.6 / 6371 * distance((latitude, longitude), other)).all()
    turns = np.random.default_rng(2).uniform(0, 2 * math.pi, len(latitude))
    phi, a, square = np.radians(latitude), 6378.137, 0.00669437999014
    step, curve = 1e-6, 1 - square * np.sin(phi) ** 2
    north, east = a * (1 - square) / curve**1.5 * step * np.cos(turns), a / curve**0.5 * step * np.sin(turns)
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = (
            latitude + np.degrees(step * np.cos(turns)),
            longitude + np.degrees(step * np.sin(turns) / np.cos(phi)),
        )
    kept = np.abs(latitude) < 89.99
    x2, y2 = region.project(*moved)
    assert (np.hypot(x2 - x, y2 - y)[kept] <= region.stretch * np.hypot(north, east)[kept] * (1 + 1e-4)).all()


def test_the_stretch_is_the_projections_own_and_the_ellipsoids():
    """1/cos(c/2) is 1.00077 for 500 km and 1.01245 for 2,000 km; a meridian has a radius of 6335.439 km at the equator."""
    for km, expected in ((500, 1.00077), (2000, 1.01245)):
        angle = math.degrees(km / 6371.0088)
        region = region_of(rule(-angle, angle, 20, 20.001))
        assert region.latitude == 0
        assert region.stretch == pytest.approx(expected * 6371.0088 / 6335.439, abs=2e-5)
    assert region_of(rule(89, 90, -180, 180)).stretch == pytest.approx(6371.0088 / 6399.59, abs=1e-4)


@pytest.mark.parametrize("name", BOUNDS)
def test_places_come_back_from_the_map_and_others_to_the_bounds(name):
    region = made(name)
    latitude, longitude = some_places(name, 500)
    back = region.place(*region.project(latitude, longitude))
    assert distance((latitude, longitude), back).max() < 1e-6
    rng = np.random.default_rng(3)
    south, north, west, east = BOUNDS[name]
    outside = region.place(rng.uniform(-30_000, 30_000, 500), rng.uniform(-30_000, 30_000, 500))
    assert (outside[0] >= south).all()
    assert (outside[0] <= north).all()
    assert (np.where(outside[1] < west - 1e-9, outside[1] + 360, outside[1]) <= east + 1e-9).all()


@pytest.mark.parametrize("name", BOUNDS)
def test_all_places_lie_within_reach_and_their_cells_within_the_ranges(name):
    region = made(name)
    latitude, longitude = some_places(name, 5000)
    reached = distance((latitude, longitude), (region.latitude, region.longitude)) / 6371.0088
    assert reached.max() <= region.reach <= reached.max() * 1.1 + 2e-4
    for spacing in (region.reach * 6371 / 3, region.reach * 6371 / 500):
        q, r = cells_at(*region.project(latitude, longitude), spacing)
        for found, (low, high) in zip((q, r, q + r), region.cell_ranges(spacing), strict=True):
            assert low <= found.min()
            assert found.max() <= high
            assert high - low <= found.max() - found.min() + 2 + 0.2 * (found.max() - found.min())


@pytest.mark.parametrize("bounds", [(-60, 80, -180, 180), (10, 11, -3, 9)])
def test_curved_edges_lie_within_the_ranges_of_small_cells(bounds):
    """A place out of the ranges counts as the middle, so GEO would charge too little between it and its neighbours."""
    region, spacing = region_of(rule(*bounds)), 0.02
    turned = np.linspace(-region.half_width, region.half_width, 50_001)
    for latitude in bounds[:2]:
        places = np.full(len(turned), float(latitude)), region.longitude + turned
        q, r = cells_at(*region.project(*places), spacing)
        for found, (low, high) in zip((q, r, q + r), region.cell_ranges(spacing), strict=True):
            assert low <= found.min()
            assert found.max() <= high


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_place_outside_counts_as_the_nearest_one(data):
    """Nothing of the region is nearer to a place than what it counts as, wherever both are."""
    south = data.draw(st.floats(-90, 89))
    north = data.draw(st.floats(south + 0.5, 90))
    west, width = data.draw(st.floats(-180, 180)), data.draw(st.floats(0.5, 359.5))
    rules = rule(south, north, west, (west + width + 180) % 360 - 180)
    try:
        region = region_of(rules)
    except BadRuleError:
        assume(False)  # Too large for the map.
    latitude, turned = np.array([data.draw(st.floats(-90, 90))]), np.array([data.draw(st.floats(-180, 180))])
    found = region.clamp(latitude, turned)
    assert south <= found[0] <= north
    assert abs((found[1] - region.longitude + 180) % 360 - 180) <= region.half_width + 1e-9
    place = latitude, turned + region.longitude
    nearest = distance(place, region.samples(5000)).min()
    assert distance(place, found) <= nearest + 1e-4
    inside = abs(turned[0]) <= region.half_width and south <= latitude[0] <= north
    assert not inside or distance(place, found) < 1e-4


def test_a_places_cell_has_the_nearest_centre():
    rng = np.random.default_rng(4)
    x, y = rng.uniform(-50, 50, 2000), rng.uniform(-50, 50, 2000)
    q, r = cells_at(x, y, 7.0)
    x0, y0 = centres(q, r, 7.0)
    own = np.hypot(x - x0, y - y0)
    assert own.max() <= 7 / math.sqrt(3) + 1e-9
    for dq, dr in [(1, 0), (0, 1), (-1, 1), (-1, 0), (0, -1), (1, -1)]:
        x1, y1 = centres(q + dq, r + dr, 7.0)
        assert np.hypot(x1 - x0, y1 - y0) == pytest.approx(np.full(2000, 7.0))
        assert (own <= np.hypot(x - x1, y - y1) + 1e-9).all()


def test_longitudes_that_cross_the_antimeridian_are_turned():
    region = made("fiji")
    assert (region.half_width, region.longitude) == (3, 179)
    assert region.middle == (-16.5, 179)
    x, _ = region.project(np.array([-16.5, -16.5]), np.array([176.0, -178.0]))
    assert x[0] == pytest.approx(-x[1])


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        ((50, 40, 0, 10), "min_latitude has to be below"),
        ((40, 40, 0, 10), "min_latitude has to be below"),
        ((-91, 40, 0, 10), "from -90 to 90"),
        ((40, math.nan, 0, 10), "from -90 to 90"),
        ((40, 50, 0, 181), "from -180 to 180"),
        ((40, 50, math.nan, 10), "from -180 to 180"),
        ((40, 50, 10, 10), "are equal"),
        ((-90, 90, -180, 180), "no map shows more than 150"),
    ],
)
def test_regions_that_are_none_are_refused(bounds, text):
    with pytest.raises(BadRuleError, match=text):
        region_of(rule(*bounds))


@pytest.mark.parametrize("name", NAMES)
def test_a_region_needs_all_bounds(name):
    rules = rule(1, 2, 3, 4)
    rules.ClearField(name)
    with pytest.raises(BadRuleError, match=f"has no {name}"):
        region_of(rules)
