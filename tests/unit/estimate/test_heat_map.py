"""Heat maps: shares, counts and the mean position, with intervals that hold; and what they refuse."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from dpmesh.estimate import EstimateError, Reader
from dpmesh.estimate.heat_map import _hexagonal_law, _inverse
from dpmesh.policy import Policy
from dpmesh.policy.kinds.cells import cells_of
from tests.support import places
from tests.support.places import FIJI, SWITZERLAND, planned
from tests.support.protos import compiled

ALMOST_SURE = 1 - 1e-9
RULES = [
    ("switzerland", "epsilon: 4", 60),
    ("switzerland", "epsilon_per_km: 0.1", 70),
    ("fiji", "epsilon: 6", 200),
]


def uneven(name, cells, count, seed):
    """Places that are even within cells and not between them: shares in proportion to 1, 2, ... 5 by cell."""
    south, north, west, east = places.BOUNDS[name]
    rng = np.random.default_rng(seed)
    sines = rng.uniform(math.sin(math.radians(south)), math.sin(math.radians(north)), 6 * count)
    latitude = np.degrees(np.arcsin(sines))
    longitude = (rng.uniform(west, east, 6 * count) + 180) % 360 - 180
    numbers = cells.numbers_at(latitude, longitude)
    kept = np.flatnonzero(rng.uniform(0, 5, len(numbers)) < 1 + numbers % 5)[:count]
    return latitude[kept], longitude[kept], np.bincount(numbers[kept], minlength=len(cells)) / count


@pytest.fixture(scope="module", params=RULES, ids=lambda rule: f"{rule[0]}, {rule[1]}")
def mapped(request):
    name, rule, cell_km = request.param
    types, plan = planned(f"{rule} {places.REGIONS[name]}")
    cells = cells_of(plan.fields[1].payload.region, float(cell_km))
    latitude, longitude, shares = uneven(name, cells, 4_000, 3)
    messages = [
        plan.protect(types.M(id="u", at={"latitude": a, "longitude": b}), None)
        for a, b in zip(latitude.tolist(), longitude.tolist(), strict=True)
    ]
    return name, Reader(types.M), messages, cell_km, shares, latitude, longitude


def test_intervals_hold_and_are_no_wider_than_they_have_to_be(mapped):
    """All cells almost surely (false alarm below 1e-6), with margins that the law has for these places, within 15 %."""
    _, reader, messages, cell_km, shares, _, _ = mapped
    sure = reader.heat_map("at", messages, cell_km=cell_km, confidence=ALMOST_SURE)
    assert all(cell.share.covers(share) for cell, share in zip(sure.cells, shares, strict=True))
    inverse = _inverse("at", reader.plan.fields[1].payload, cell_km)
    square = (inverse.law @ shares) @ inverse.weights**2
    margins = NormalDist().inv_cdf((1 + ALMOST_SURE) / 2) * np.sqrt((square - shares**2) / len(messages))
    assert [cell.share.margin for cell in sure.cells] == pytest.approx(margins, rel=0.15)
    assert sum(cell.share.value for cell in sure.cells) == pytest.approx(1)
    assert [cell.count.value for cell in sure.cells] == pytest.approx(
        [4_000 * cell.share.value for cell in sure.cells]
    )
    assert sure.cell_km == cell_km


def test_the_mean_position_is_that_of_the_places(mapped):
    name, reader, messages, cell_km, _, latitude, longitude = mapped
    found = reader.heat_map("at", messages, cell_km=cell_km, confidence=ALMOST_SURE)
    turned = np.where(longitude < places.BOUNDS[name][2] - 1e-9, longitude + 360, longitude)
    slack = cell_km / 111 / 20  # Places are even in cells by chance only.
    assert found.latitude.low - slack <= latitude.mean() <= found.latitude.high + slack
    assert found.longitude.low - slack <= turned.mean() <= found.longitude.high + slack


def test_weights_undo_the_law():
    _, plan = planned(f"epsilon: 3 {SWITZERLAND}")
    inverse = _inverse("at", plan.fields[1].payload, 60.0)
    assert inverse.law.sum(axis=0) == pytest.approx(np.ones(len(inverse.cells)))
    assert inverse.weights.T @ inverse.law == pytest.approx(np.eye(len(inverse.cells)), abs=1e-9)


def test_the_law_of_hexagons_is_that_of_their_draws():
    """Places of one cell, 6,000 draws: each received cell within 5 deviations and 0.003."""
    types, plan = planned(f"epsilon_per_km: 0.08 {SWITZERLAND}")
    at = plan.fields[1].payload
    cells = cells_of(at.region, 50.0)
    law = _hexagonal_law(at, cells)
    cell = cells.nearest_to(46.2, 6.1)
    latitude, longitude = at.region.samples(90_000)
    own = np.flatnonzero(cells.numbers_at(latitude, longitude) == cell)
    chosen = np.random.default_rng(1).choice(
        own, 6_000, p=np.cos(np.radians(latitude[own])) / np.cos(np.radians(latitude[own])).sum()
    )
    outs = [
        plan.protect(types.M(id="u", at={"latitude": latitude[i], "longitude": longitude[i]}), None).at
        for i in chosen
    ]
    numbers = cells.numbers_at(
        np.array([out.latitude for out in outs]), np.array([out.longitude for out in outs])
    )
    seen = np.bincount(numbers, minlength=len(cells)) / len(outs)
    assert (np.abs(seen - law[:, cell]) <= 5 * np.sqrt(law[:, cell] / len(outs)) + 0.003).all()


def test_the_policys_own_cells_are_exact_for_a_disk_of_one_cell():
    types, plan = planned(f"epsilon: 8 resolution_km: 90 {SWITZERLAND}")
    law = places.law_of(plan)
    assert law.mechanism.near == 1
    place = {"latitude": 46.0, "longitude": 6.1}
    messages = [plan.protect(types.M(id="u", at=place), None) for _ in range(2000)]
    found = Reader(types.M).heat_map("at", messages, cell_km=90, confidence=ALMOST_SURE)
    assert len(found.cells) == len(law.cells)
    at = law.cells.numbers_at(np.array([46.0]), np.array([6.1]))[0]
    assert all(cell.share.covers(float(number == at)) for number, cell in enumerate(found.cells))
    assert found.cells[at].share.margin < 0.05


def test_repeated_places_in_floats_are_read():
    text = f"""message Point {{ float lat = 1; float lng = 2; }}
        message M {{ repeated Point at = 1 [(dpmesh.v1.field).location = {{epsilon: 20 latitude: "lat" longitude: "lng" {FIJI}}}, (dpmesh.v1.field).max_items = 2]; }}"""
    types = compiled(text)
    plan = Policy().plan(types.M.DESCRIPTOR)
    message = types.M(at=[{"lat": -18, "lng": 178}, {"lat": -18, "lng": 178}])
    found = Reader(types.M).heat_map("at", [plan.protect(message, None) for _ in range(50)], cell_km=300)
    assert found.cells[0].share.n == 100
    with pytest.raises(EstimateError, match="does not hold it 2 times"):
        Reader(types.M).heat_map("at", [types.M(at=[{"lat": -18, "lng": 178}])])


@pytest.mark.parametrize(
    ("place", "cell_km", "text"),
    [
        ((46.85, 12), 60, "outside of the region"),
        ((math.nan, 8), 60, "outside of the region"),
        ((46.8512, 8.2345), 60, "no cell's centre"),
        ((46.85, 8.2), 5, "10.2"),
        ((46.85, 8.2), 13, "cells"),
        ((46.85, 8.2), -1, "above 0"),
        ((46.85, 8.2), 5000, "leaves one cell"),
    ],
)
def test_places_and_cells_that_make_no_sense_are_refused(place, cell_km, text):
    types, _ = planned(f"epsilon: 4 {SWITZERLAND}")
    message = types.M(at={"latitude": place[0], "longitude": place[1]})
    with pytest.raises(EstimateError, match=text):
        Reader(types.M).heat_map("at", [message], cell_km=cell_km)


def test_no_places_and_fields_of_another_kind_are_refused():
    types, _ = planned(f"epsilon: 4 {SWITZERLAND}")
    with pytest.raises(EstimateError, match="no values"):
        Reader(types.M).heat_map("at", [])
    with pytest.raises(EstimateError, match="is location, not numeric"):
        Reader(types.M).mean("at", [])
    other = compiled("message N { bool on = 1 [(dpmesh.v1.field).categorical = {epsilon: 1}]; }")
    with pytest.raises(EstimateError, match="is categorical, not location"):
        Reader(other.N).heat_map("on", [other.N()])
