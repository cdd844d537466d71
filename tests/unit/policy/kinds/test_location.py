"""Places: what any two of them lose, from the generated code and every draw; what leaves; and rules that make no sense."""

import itertools
import math
import re
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from google.protobuf.message_factory import GetMessageClass
from google.type import latlng_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

import dpmesh
from dpmesh.accounting import AMOUNT
from dpmesh.errors import AnnotationError
from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.hexagonal import HexagonalGeometric, coordinates
from dpmesh.policy import Policy
from dpmesh.policy.kinds.cells import MEAN_SNAP
from dpmesh.policy.kinds.region import cells_at, centres
from dpmesh.v1 import policy_pb2
from dpmesh.v1 import privacy_pb2 as pb
from tests.support import places
from tests.support.places import FIJI, SWITZERLAND, distance, packed, planned, scripted
from tests.support.protos import compiled
from tests.unit.noise import exact

ROOT = Path(__file__).resolve().parents[4]
HEXAGONAL = "mechanism: HEXAGONAL_GEOMETRIC"
LOC = "(dpmesh.v1.field).location"
# The mean of sqrt(A^2 + A B + B^2) for independent A and B with the exponential law of mean 1.
MEAN_OF_CELLS = 1 + 3 / 4 * math.log(3)


def laws(plan, types, latitudes, longitudes, reach):
    """The output's law for each place: (outputs, places) probabilities, by all draws up to `reach` cells away."""
    table = exact.hexagonal(places.law_of(plan).mechanism, reach)
    codes, weights = [packed(*cell) for cell in table], [float(p) for p in table.values()]
    assert 1 - sum(weights) < 1e-9
    columns, found = [], {}
    for latitude, longitude in zip(latitudes, longitudes, strict=True):
        column = {}
        for out, weight in zip(
            scripted(plan, point(types, latitude, longitude), codes), weights, strict=True
        ):
            key = found.setdefault((out.at.latitude, out.at.longitude), len(found))
            column[key] = column.get(key, 0) + weight
        columns.append(column)
    return np.array([[column.get(key, 0) for column in columns] for key in range(len(found))])


def point(types, latitude, longitude):
    return types.M(id="u", at={"latitude": latitude, "longitude": longitude})


@pytest.mark.parametrize(("name", "spacing"), [("switzerland", 60), ("fiji", 180), ("arctic", 700)])
def test_local_any_two_places_of_the_region_lose_at_most_what_is_charged(name, spacing):
    """The largest log-ratio over all outputs, by enumeration; what is beyond the reach, below 1e-9, may count for it."""
    types, plan = planned(f"epsilon: 8 {HEXAGONAL} resolution_km: {spacing} {places.REGIONS[name]}")
    latitudes, longitudes = places.some_places(name, 3)
    table = laws(plan, types, latitudes, longitudes, 28)
    table = table[table.min(axis=1) > 1e-7]
    worst = np.log(table.max(axis=1) / table.min(axis=1)).max()
    assert plan.cost.epsilon == 8 * AMOUNT
    assert 8 * 0.5 <= worst <= 8 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("name", "spacing", "radius"), [("switzerland", 40, 100), ("arctic", 500, 1000), ("fiji", 100, 200)]
)
def test_geo_places_lose_in_proportion_to_their_distance(name, spacing, radius):
    """All pairs: at most epsilon within the radius, and at most epsilon d / radius beyond."""
    rule = f"epsilon: 5 metric: GEO radius_km: {radius} resolution_km: {spacing} {places.REGIONS[name]}"
    types, plan = planned(rule)
    latitudes, longitudes = places.some_places(name, 3)
    table = laws(plan, types, latitudes, longitudes, 28)
    table = table[table.min(axis=1) > 1e-6]
    losses = []
    for one, other in itertools.combinations(range(len(latitudes)), 2):
        far = distance((latitudes[one], longitudes[one]), (latitudes[other], longitudes[other]))
        losses.append(np.abs(np.log(table[:, one] / table[:, other])).max() / max(far, radius))
    assert plan.cost.epsilon == 5 * AMOUNT
    assert 5 / radius * 0.4 <= max(losses) <= 5 / radius * (1 + 1e-4)


@pytest.mark.parametrize("rule", ["epsilon_per_km: 0.05", "epsilon: 5 radius_km: 100"])
def test_local_with_a_loss_per_km_is_charged_over_the_region(rule):
    _, plan = planned(f"{rule} {SWITZERLAND}")
    law, region = places.law_of(plan), plan.fields[1].payload.region
    diameter = distance((45.8, 5.9), (47.9, 10.5))
    assert law.per_km == 0.05
    assert law.over_region == pytest.approx(plan.cost.epsilon / AMOUNT, rel=1e-8)
    # Steps along the three directions of a lattice make a way up to 2/sqrt(3) longer.
    assert 0.99 * 0.05 * diameter <= law.over_region <= 0.05 * diameter * 2 / math.sqrt(3) * 1.01
    step = law.spacing * math.sqrt(3) / 2
    assert float(law.mechanism.loss) == pytest.approx(0.05 * step / region.stretch, rel=1e-6)


@pytest.mark.parametrize("bounds", [SWITZERLAND, FIJI])
@pytest.mark.parametrize("epsilon", [0.05, 0.5, 1, 4])
def test_the_mean_error_is_that_of_the_formula(epsilon, bounds):
    """E r within 1 % of 2.107/eps: 1.824/loss is that of small cells, which 100,000 draws have, within 5 deviations."""
    _, plan = planned(f"epsilon: 2 metric: GEO radius_km: {2 / epsilon} {bounds}")
    law = places.law_of(plan)
    mean = law.spacing * MEAN_OF_CELLS / float(law.mechanism.loss)
    assert mean == pytest.approx(2.107 / epsilon, rel=0.01)
    assert mean <= law.mean_error <= 1.02 * 2.107 / epsilon
    q, r = coordinates(law.mechanism.block(100_000))
    far = law.spacing * np.hypot(q + r / 2, r * math.sqrt(3) / 2)
    assert abs(far.mean() - mean) <= 5 * far.std() / math.sqrt(len(far))
    assert np.mean(far <= law.error_95) == pytest.approx(0.95, abs=5 * 0.0007 + 0.001)


def test_the_table_in_the_document_is_what_plans_say():
    page = (ROOT / "docs/kinds/location.md").read_text()
    rows = re.findall(
        r"^\| `(epsilon[^`]*)` \| ([\d.]+)(?: \(([\d.]+) over the region\))? \| ([\d.]+) km \| ([\d.]+) km \|$",
        page,
        re.MULTILINE,
    )
    assert len(rows) == 4
    for rule, charged, over_region, mean_error, error_95 in rows:
        law = places.law_of(planned(f"{rule} {SWITZERLAND}")[1])
        assert round(float(law.epsilon), 1) == float(charged)
        assert not over_region or round(law.over_region, 1) == float(over_region)
        assert float(mean_error) == pytest.approx(law.mean_error, rel=0.01)
        assert float(error_95) == pytest.approx(law.error_95, rel=0.01)
    (across,) = re.findall(r"the bounds above, (\d+) km across", page)
    assert float(across) == round(float(distance((45.8, 5.9), (47.9, 10.5))))


def test_a_disk_gives_every_cell_one_of_two_probabilities():
    """All codes give all cells once, whatever the place; near codes give the cells nearest to it."""
    types, plan = planned(f"epsilon: 2 resolution_km: 30 {SWITZERLAND}")
    law = places.law_of(plan)
    assert plan.cost.epsilon == 2 * AMOUNT
    everything = None
    for latitude, longitude in zip(*places.some_places("switzerland", 10), strict=True):
        outs = [out.at for out in scripted(plan, point(types, latitude, longitude), range(len(law.cells)))]
        found = [(out.latitude, out.longitude) for out in outs]
        everything = everything or set(found)
        assert set(found) == everything
        assert len(everything) == len(law.cells)
        far = [distance(found[0], other) for other in found]
        assert far == pytest.approx(sorted(far), abs=1e-5)
        assert distance((latitude, longitude), found[0]) <= 30 * 2 / math.sqrt(3)
        assert all(places.in_bounds("switzerland", *each) for each in found)


@pytest.mark.parametrize("epsilon", [0.5, 1, 2, 4, 8, 16])
@pytest.mark.parametrize("bounds", [SWITZERLAND, FIJI])
def test_auto_takes_the_nearer_mechanism(epsilon, bounds):
    """The disk's mean distance beside that of hexagons on the same cells, over places all over the region."""
    _, plan = planned(f"epsilon: {epsilon} resolution_km: {45 if bounds is SWITZERLAND else 120} {bounds}")
    law = places.law_of(plan)
    _, other = planned(f"epsilon: {epsilon} {HEXAGONAL} {bounds}")
    hexagonal = places.law_of(other)
    rng = np.random.default_rng(5)
    name = "switzerland" if bounds is SWITZERLAND else "fiji"
    latitude, longitude = places.some_places(name, 3000)
    region = other.fields[1].payload.region
    x, y = region.project(latitude, longitude)
    steps = rng.geometric(-math.expm1(-float(hexagonal.mechanism.loss)), (2, len(x))) - 1
    turn = rng.uniform(0, 6, len(x)).astype(int) * math.pi / 3
    out = region.place(
        x + hexagonal.spacing * (steps[0] * np.cos(turn) + steps[1] * np.cos(turn + math.pi / 3)),
        y + hexagonal.spacing * (steps[0] * np.sin(turn) + steps[1] * np.sin(turn + math.pi / 3)),
    )
    assert law.mean_error <= distance((latitude, longitude), out).mean() + MEAN_SNAP * law.spacing


def test_the_stated_error_of_a_disk_is_that_of_its_draws():
    """Places all over the region, 2,000 draws: the mean within 5 standard errors (false alarm below 1e-6)."""
    types, plan = planned(f"epsilon: 3 {SWITZERLAND}")
    law = places.law_of(plan)
    latitude, longitude = places.some_places("switzerland", 2000)
    keep = slice(5, None)
    outs = [
        plan.protect(point(types, *each), None).at
        for each in zip(latitude[keep], longitude[keep], strict=True)
    ]
    far = distance(
        (latitude[keep], longitude[keep]), ([out.latitude for out in outs], [out.longitude for out in outs])
    )
    margin = 5 * far.std() / math.sqrt(len(far))
    assert far.mean() - margin <= law.mean_error <= far.mean() + margin + 2 * MEAN_SNAP * law.spacing
    assert np.mean(far <= law.error_95) >= 0.93


@pytest.mark.parametrize("name", places.REGIONS)
@pytest.mark.parametrize("mechanism", ["DISK_AREA", "HEXAGONAL_GEOMETRIC"])
def test_what_leaves_lies_within_the_bounds(name, mechanism):
    types, plan = planned(f"epsilon: 6 mechanism: {mechanism} {places.REGIONS[name]}")
    for latitude, longitude in zip(*places.some_places(name, 30), strict=True):
        out = plan.protect(point(types, latitude, longitude), None).at
        assert places.in_bounds(name, out.latitude, out.longitude)
        assert -180 <= out.longitude <= 180


@pytest.mark.parametrize("name", places.REGIONS)
@pytest.mark.parametrize("mechanism", ["DISK_AREA", "HEXAGONAL_GEOMETRIC"])
def test_without_noise_a_place_leaves_as_its_own_cell(name, mechanism):
    types, plan = planned(f"epsilon: 6 mechanism: {mechanism} {places.REGIONS[name]}")
    law = places.law_of(plan)
    for latitude, longitude in zip(*places.some_places(name, 20), strict=True):
        (out,) = scripted(plan, point(types, latitude, longitude), [0])
        far = distance((latitude, longitude), (out.at.latitude, out.at.longitude))
        # The map presses distances together where it is wide, and edges have no cells of their own in a disk's list.
        assert far <= law.spacing * (4 if name == "wide" else 1.3)


@pytest.mark.parametrize("name", ["switzerland", "fiji", "south"])
def test_generated_code_finds_the_nearest_centre(name):
    """By the map's own arithmetic, for places all over large cells."""
    types, plan = planned(f"epsilon: 6 {HEXAGONAL} resolution_km: 150 {places.REGIONS[name]}")
    region = plan.fields[1].payload.region
    latitude, longitude = places.some_places(name, 150)
    expected = region.place(*centres(*cells_at(*region.project(latitude, longitude), 150.0), 150.0))
    for one, other, *centre in zip(latitude, longitude, *expected, strict=True):
        (out,) = scripted(plan, point(types, one, other), [0])
        assert distance(centre, (out.at.latitude, out.at.longitude)) < 1e-6


@pytest.mark.parametrize("radius", [60, 100, 333])
def test_geo_counts_the_size_of_the_cells(radius):
    """Cells nearly as large as the radius, 100,000 pairs of places in all directions, up to twice the radius apart."""
    _, plan = planned(
        f"epsilon: 1 metric: GEO radius_km: {radius} resolution_km: 40 {places.REGIONS['south']}"
    )
    law, region = places.law_of(plan), plan.fields[1].payload.region
    rng = np.random.default_rng(6)
    latitude, longitude = places.some_places("south", 100_000)
    step = np.degrees(2 * radius * rng.uniform(0.1, 1, len(latitude)) / places.RADIUS_KM)
    turn = rng.uniform(0, 2 * math.pi, len(latitude))
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = latitude + step * np.cos(turn), longitude + step * np.sin(turn) / np.cos(np.radians(latitude))
    kept = (moved[0] > -89) & (moved[0] < -60) & (moved[1] > 100) & (moved[1] < 150) & (latitude > -89)
    q, r = (
        a - b
        for a, b in zip(
            *(cells_at(*region.project(*x), 40.0) for x in ((latitude, longitude), moved)), strict=True
        )
    )
    steps = np.maximum(np.maximum(abs(q), abs(r)), abs(q + r))[kept]
    far = np.maximum(distance((latitude, longitude), moved)[kept], radius)
    assert 0.65 / radius <= (steps * float(law.mechanism.loss) / far).max() <= 1 / radius


def test_the_disk_has_the_best_size():
    _, plan = planned(f"epsilon: 3 resolution_km: 30 {SWITZERLAND}")
    law = places.law_of(plan)
    assert law.cells is not None
    near, growth = law.mechanism.near, math.exp(3)
    sums = np.cumsum(np.sort(law.cells.distances(), axis=1), axis=1).mean(axis=0)
    means = [
        (growth * sums[w - 1] + sums[-1] - sums[w - 1]) / (growth * w + len(law.cells) - w)
        for w in range(1, len(law.cells))
    ]
    assert near == 1 + int(np.argmin(means))
    assert law.mean_error == pytest.approx(min(means) + MEAN_SNAP * law.spacing)


MIDDLE = (46.85, 8.2)
ODD = {
    "a latitude beyond 90": ((91, 8), (47.9, 8)),
    "a latitude without end": ((-math.inf, 8), (45.8, 8)),
    "a longitude beyond 180": ((46, 368), (46, 8)),
    # The way north of the parallel is the shorter one: atan2(sin(46), cos(46) cos(15.9)) is the latitude at its end.
    "a longitude outside of the region": ((46, -10), (47.115824657075, 5.9)),
    "the other side of a pole": ((60, -171.9), (47.9, 10.5)),
    "no latitude": ((math.nan, 8), MIDDLE),
    "no longitude": ((46, math.nan), MIDDLE),
    "a longitude without end": ((46, math.inf), MIDDLE),
    "the largest numbers": ((1.7e308, 8), (47.9, 8)),
}


@pytest.mark.parametrize(("place", "meant"), ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("mechanism", ["DISK_AREA", "HEXAGONAL_GEOMETRIC"])
def test_odd_places_have_the_law_of_others(place, meant, mechanism):
    types, plan = planned(f"epsilon: 2 mechanism: {mechanism} {SWITZERLAND}")
    codes = (
        [0, 1, 5]
        if mechanism == "DISK_AREA"
        else [packed(q, r) for q, r in ((0, 0), (40, -3), (-9000, 20_000))]
    )
    found, expected = (scripted(plan, point(types, *each), codes) for each in (place, meant))
    assert all(places.is_close(one.at, other.at) for one, other in zip(found, expected, strict=True))


def test_an_absent_place_leaves_as_the_middle_and_is_always_there():
    types, plan = planned(f"epsilon: 2 {HEXAGONAL} {SWITZERLAND}")
    (out,), (empty,) = scripted(plan, types.M(id="u"), [0]), scripted(plan, types.M(id="u", at={}), [0])
    assert out.HasField("at")
    assert distance(MIDDLE, (out.at.latitude, out.at.longitude)) < 1
    # A message that is there and holds nothing says 0, 0.
    assert (empty.at.latitude, empty.at.longitude) == pytest.approx((45.8, 5.9), abs=2e-3)


def test_a_cell_that_no_place_has_counts_as_the_middle():
    """The ranges of cells decide what is lost, so code forces cells into them whatever the arithmetic gave."""
    _, plan = planned(f"epsilon: 2 {HEXAGONAL} {SWITZERLAND}")
    source = plan.source
    first = source.index("if not (") + len("if not (")
    low = int(source[first:].split(" ")[0])
    assert low == plan.fields[1].payload.region.cell_ranges(places.law_of(plan).spacing)[0][0]
    assert "i, j = 0, 0" in source


def test_nothing_else_of_the_message_leaves_and_a_finding_says_so():
    more = "double altitude = 3; string note = 4 [(dpmesh.v1.field).public = {}];"
    types, plan = planned(f"epsilon: 2 {SWITZERLAND}", more=more)
    out = plan.protect(
        types.M(id="u", at={"latitude": 47, "longitude": 8, "altitude": 4000, "note": "home"}), None
    )
    assert {field.name for field, _ in out.at.ListFields()} == {"latitude", "longitude"}
    found = {entry.rule: entry.text for entry in Policy().diagnostics(types.M.DESCRIPTOR)}
    assert "altitude, note would not" in found["location-drops"]


def test_geo_is_told_of_by_a_finding():
    types = places.types(f"epsilon: 1 metric: GEO radius_km: 5 {SWITZERLAND}")
    (found,) = (entry for entry in Policy().diagnostics(types.M.DESCRIPTOR) if entry.rule == "location-geo")
    assert "places up to 5 km apart" in found.text


def test_integers_hold_degrees_in_units_of_their_own():
    rule = f"epsilon: 2 {HEXAGONAL} degrees_per_unit: 1e-7 {SWITZERLAND}"
    types, plan = planned(rule, number="sfixed32")
    (out,) = scripted(plan, point(types, 470_000_000, 85_000_000), [0])
    assert distance((47, 8.5), (out.at.latitude * 1e-7, out.at.longitude * 1e-7)) < 0.3
    (edge,) = scripted(plan, point(types, 2**31 - 1, -100_000_000), [0])
    assert (edge.at.latitude, edge.at.longitude) == pytest.approx((479_000_000, 59_000_000), abs=10_000)
    types, plan = planned(rule.replace(HEXAGONAL, ""), number="sint64")
    (out,) = scripted(plan, point(types, 470_000_000, 85_000_000), [0])
    assert distance((47, 8.5), (out.at.latitude * 1e-7, out.at.longitude * 1e-7)) < 12


def test_fields_have_the_names_that_the_rule_says():
    types = compiled(
        f"""message Spot {{ float lat = 1; float lng = 2; }}
        message M {{ Spot at = 1 [{LOC} = {{epsilon: 2 latitude: "lat" longitude: "lng" {FIJI}}}]; }}"""
    )
    plan = Policy().plan(types.M.DESCRIPTOR)
    (out,) = scripted(plan, types.M(at={"lat": -18, "lng": 179.9}), [0])
    assert distance((-18, 179.9), (out.at.lat, out.at.lng)) < 60


def test_a_repeated_place_has_a_public_length_and_shares_the_loss():
    text = f"""message Point {{ double latitude = 1; double longitude = 2; }}
        message M {{ repeated Point at = 1 [{LOC} = {{epsilon: 3 {HEXAGONAL} {SWITZERLAND}}}, (dpmesh.v1.field).max_items = 3]; }}"""
    types = compiled(text)
    plan = Policy().plan(types.M.DESCRIPTOR)
    law = places.law_of(plan)
    assert plan.cost.epsilon == 3 * AMOUNT
    assert law.over_region == pytest.approx(3)
    _, single = planned(f"epsilon: 3 {HEXAGONAL} {SWITZERLAND}")
    assert places.law_of(single).mechanism.loss == 3 * law.mechanism.loss
    for count in (0, 1, 3, 7):
        message = types.M(at=[{"latitude": 46, "longitude": 7}] * count)
        assert len(plan.protect(message, None).at) == 3


def test_a_share_of_the_messages_epsilon_is_taken_where_no_loss_is_set():
    types = compiled(
        f"""message Point {{ double latitude = 1; double longitude = 2; }}
        message M {{ option (dpmesh.v1.message) = {{epsilon: 4}}; Point at = 1 [{LOC} = {{{SWITZERLAND}}}];
          Point to = 2 [{LOC} = {{epsilon_per_km: 0.001 {SWITZERLAND}}}]; bool on = 3 [(dpmesh.v1.field).categorical = {{}}]; }}"""
    )
    at, to, on = Policy().plan(types.M.DESCRIPTOR).fields
    assert (at.epsilon, on.epsilon) == (2, 2)
    assert 0.4 < to.epsilon < 0.5


def test_a_place_in_a_hidden_choice_leaves_like_one_of_its_default():
    types = compiled(
        f"""message Point {{ double latitude = 1; double longitude = 2; }}
        message M {{ oneof what {{ option (dpmesh.v1.oneof) = {{epsilon: 1}};
          Point at = 1 [{LOC} = {{epsilon: 2 {SWITZERLAND}}}]; bool on = 2 [(dpmesh.v1.field).categorical = {{epsilon: 1}}]; }} }}"""
    )
    plan = Policy().plan(types.M.DESCRIPTOR)
    seen = {
        plan.protect(types.M(at={"latitude": 46, "longitude": 7}), None).WhichOneof("what") for _ in range(60)
    }
    assert seen == {"at", "on", None}


def stop_at_googles_place():
    """A message class with a google.type.LatLng, without annotations."""
    file = descriptor_pb2.FileDescriptorProto(name="stop_latlng.proto", package="stop", syntax="proto3")
    file.dependency.append("google/type/latlng.proto")
    stop = file.message_type.add(name="Stop")
    stop.field.add(name="id", number=1, type=9, label=1)
    stop.field.add(name="at", number=2, type=11, type_name=".google.type.LatLng", label=1)
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return GetMessageClass(pool.FindMessageTypeByName("stop.Stop"))


async def test_an_overlay_protects_googles_places():
    stop = stop_at_googles_place()
    policy = policy_pb2.Policy()
    policy.fields["stop.Stop.id"].unit.form = pb.Unit.SUPPRESSED
    text_format.Parse(f"epsilon: 60 {SWITZERLAND}", policy.fields["stop.Stop.at"].location)
    budget = {"name": "b", "key": "unit", "epsilon": 60, "accounting": "pure", "window": "24h"}
    bern = latlng_pb2.LatLng(latitude=46.94809, longitude=7.44744)
    async with dpmesh.open({"ledger": {"url": "memory:"}, "budget": [budget]}, policy=policy) as mesh:
        receipt = await mesh.release(stop(id="u", at=bern))
    assert receipt.epsilon == 60
    out = receipt.message.at
    assert isinstance(out, latlng_pb2.LatLng)
    assert 0 < distance((bern.latitude, bern.longitude), (out.latitude, out.longitude)) < 12


SMALL = {
    "a strip": "min_latitude: 46 max_latitude: 46.01 min_longitude: 5 max_longitude: 9",
    "a strip along a meridian": "min_latitude: -60 max_latitude: 60 min_longitude: 9 max_longitude: 9.001",
    "a house": "min_latitude: 46 max_latitude: 46.0001 min_longitude: 9 max_longitude: 9.0001",
    "a pole": "min_latitude: 89.999 max_latitude: 90 min_longitude: -180 max_longitude: 180",
    "a sector at a pole": "min_latitude: 89 max_latitude: 90 min_longitude: 179 max_longitude: -179",
    "a ring": "min_latitude: -0.1 max_latitude: 0.1 min_longitude: -140 max_longitude: 140",
}


ODD_SHAPES = [(name, "HEXAGONAL_GEOMETRIC") for name in SMALL]
ODD_SHAPES += [(name, "DISK_AREA") for name in ("a strip", "a house", "a pole")]


@pytest.mark.parametrize(("shape", "mechanism"), ODD_SHAPES)
def test_regions_of_odd_shapes_have_cells(shape, mechanism):
    types, plan = planned(f"epsilon: 40 mechanism: {mechanism} {SMALL[shape]}")
    region, law = plan.fields[1].payload.region, places.law_of(plan)
    for latitude, longitude in zip(*region.samples(16), strict=True):
        (out,) = scripted(plan, point(types, latitude, longitude), [0])
        assert distance((latitude, longitude), (out.at.latitude, out.at.longitude)) <= 2 * law.spacing + 1e-5
        assert region.south <= out.at.latitude <= region.north
    assert law.mechanism.draws.block(10, KeyStream()).shape == (10,)


BAD = {
    "epsilon: 1": "has no min_latitude and no max_latitude",
    f"{SWITZERLAND}": "has no epsilon",
    f"epsilon: 1 epsilon_per_km: 1 {SWITZERLAND}": "an epsilon and an epsilon_per_km",
    f"epsilon: 1 metric: GEO {SWITZERLAND}": "no radius_km",
    f"epsilon_per_km: 0.1 radius_km: 5 {SWITZERLAND}": "radius_km has no use",
    f"epsilon_per_km: 1 {SWITZERLAND}": "epsilon of 419.4 over the region",
    f"epsilon_per_km: 1 metric: GEO radius_km: 65 {SWITZERLAND}": "epsilon must be from",
    f"epsilon_per_km: 0 {SWITZERLAND}": "epsilon_per_km must be a finite number above 0",
    f"epsilon_per_km: nan {SWITZERLAND}": "epsilon_per_km must be a finite number above 0",
    f"epsilon: 65 {SWITZERLAND}": "epsilon must be from",
    f"epsilon: 1 radius_km: -1 metric: GEO {SWITZERLAND}": "radius_km must be from",
    f"epsilon: 1 radius_km: 5 metric: GEO mechanism: DISK_AREA {SWITZERLAND}": "as much between near places",
    f"epsilon: 1 resolution_km: 0 {SWITZERLAND}": "resolution_km must be a finite number above 0",
    f"epsilon: 1 resolution_km: 1 {SWITZERLAND}": "DISK_AREA takes up to 1024",
    f"epsilon: 1 resolution_km: 1000 {SWITZERLAND}": "leaves one cell",
    f"epsilon: 1 resolution_km: 1e-12 {HEXAGONAL} {SWITZERLAND}": "can't tell cells apart",
    f"epsilon: 1 resolution_km: 1e-7 {HEXAGONAL} {SWITZERLAND}": "too many cells",
    f"epsilon: 0.00001 resolution_km: 0.01 {HEXAGONAL} {SWITZERLAND}": "too small for so little epsilon",
    f"epsilon: 1 degrees_per_unit: 0 {SWITZERLAND}": "degrees_per_unit must be from",
    f'epsilon: 1 latitude: "lat" {SWITZERLAND}': "has no field lat",
    f'epsilon: 1 latitude: "longitude" {SWITZERLAND}': "two fields of one type",
    "epsilon: 1 min_latitude: 46 max_latitude: 48 min_longitude: 170 max_longitude: 190": (
        "min_longitude is the larger: 170 and -170"
    ),
    "epsilon: 1 min_latitude: 48 max_latitude: 46 min_longitude: 5 max_longitude: 10": "has to be below max_latitude",
    "epsilon: 1 min_latitude: 89.9999999 max_latitude: 90 min_longitude: -60 max_longitude: 1": "region of usual size",
}


@pytest.mark.parametrize(("rule", "text"), BAD.items(), ids=BAD.values())
def test_rules_that_make_no_sense_are_refused(rule, text):
    with pytest.raises(AnnotationError, match=text):
        planned(rule)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("double at = 1 [%s]; ", "does not fit double"),
        ("message P { double latitude = 1; } P at = 1 [%s];", "has no field longitude"),
        ("message P { string latitude = 1; string longitude = 2; } P at = 1 [%s];", "has to be one number"),
        (
            "message P { repeated double latitude = 1; double longitude = 2; } P at = 1 [%s];",
            "has to be one number",
        ),
        # The usual case: degrees times 10^7.
        (
            "message P { sint32 latitude = 1; sint32 longitude = 2; } P at = 1 [%s];",
            "set degrees_per_unit: 1e-7",
        ),
        ("message P { uint32 latitude = 1; uint32 longitude = 2; } P at = 1 [%s];", "no place south or west"),
        (
            "message P { oneof o { double latitude = 1; double longitude = 2; } } P at = 1 [%s];",
            "is in a oneof",
        ),
        ("message P { double latitude = 1; float longitude = 2; } P at = 1 [%s];", "two fields of one type"),
        (
            "message P { double latitude = 1; double longitude = 2; } map<string, P> at = 1 [%s];",
            "maps of plain values",
        ),
        ("message P { double latitude = 1; double longitude = 2; } repeated P at = 1 [%s];", "set max_items"),
    ],
)
def test_fields_that_hold_no_place_are_refused(body, text):
    types = compiled(f"message M {{ {body % f'{LOC} = {{epsilon: 1 {SWITZERLAND}}}'} }}")
    with pytest.raises(AnnotationError, match=text):
        Policy().plan(types.M.DESCRIPTOR)


def test_required_fields_that_would_not_leave_are_refused():
    types = compiled(
        f"""message P {{ required double latitude = 1; required double longitude = 2; required string name = 3; }}
        message M {{ optional P at = 1 [{LOC} = {{epsilon: 1 {SWITZERLAND}}}]; }}""",
        syntax="proto2",
    )
    with pytest.raises(AnnotationError, match="name is required and does not leave"):
        Policy().plan(types.M.DESCRIPTOR)


def test_what_plan_prints():
    texts = {
        f"epsilon: 1 {SWITZERLAND}": (
            "one of 913 cells, 10.24 km apart; no distance changes ε; "
            "mean error at most 128.2 km, 95 % within 277.3 km"
        ),
        f"epsilon_per_km: 0.1 {SWITZERLAND}": (
            "cells 0.2123 km apart; ε 0.1 per km, 1 per 10 km, 41.94 over the region; "
            "mean error at most 21.15 km, 95 % within 50.3 km"
        ),
        f"epsilon: 1 radius_km: 5 metric: GEO {SWITZERLAND}": (
            "cells 0.005 km apart; ε 0.2 per km, 2 per 10 km, 1 over 5 km (charged), 83.75 over the region; "
            "mean error at most 10.56 km, 95 % within 25.08 km"
        ),
    }
    for rule, text in texts.items():
        _, plan = planned(rule)
        assert plan.fields[1].kind.describe(plan.fields[1]).output == text


def test_the_loss_of_a_step_is_exact():
    """It is a fraction of the declared epsilon: no float decides it."""
    _, plan = planned(f"epsilon: 0.3 {HEXAGONAL} resolution_km: 50 {SWITZERLAND}")
    loss = places.law_of(plan).mechanism.loss
    assert isinstance(places.law_of(plan).mechanism, HexagonalGeometric)
    assert (Fraction(3, 10) / loss).denominator == 1


def test_geo_promises_nothing_of_near_places_outside_of_the_region():
    """docs/kinds/location.md says so: 2 km on the other side of the Earth are the whole width of the region."""
    types, plan = planned(f"epsilon: 1 radius_km: 5 metric: GEO {SWITZERLAND}")
    found = []
    for longitude in (-171.79, -171.81):
        (out,) = scripted(plan, point(types, 10, longitude), [0])
        found.append(out.at.longitude)
    assert found == pytest.approx([5.9, 10.5], abs=0.01)


@pytest.mark.parametrize("mechanism", ["DISK_AREA", "HEXAGONAL_GEOMETRIC"])
@pytest.mark.parametrize("name", places.REGIONS)
@given(latitude=st.floats(-90, 90), longitude=st.floats(-180, 180))
@settings(max_examples=30, deadline=None)
def test_without_noise_a_place_leaves_as_a_cell_next_to_the_nearest_of_the_region(
    name, mechanism, latitude, longitude
):
    """Across the antimeridian and over the poles; to within two cells, because a centre may lie outside, too."""
    types, plan = plan_of(name, mechanism)
    region, spacing = plan.fields[1].payload.region, places.law_of(plan).spacing
    (out,) = scripted(plan, point(types, latitude, longitude), [0])
    shown = distance((latitude, longitude), (out.at.latitude, out.at.longitude))
    assert (
        shown <= distance((latitude, longitude), region.samples(20_000)).min() + 2 * spacing * region.stretch
    )


@lru_cache
def plan_of(name, mechanism):
    return planned(f"epsilon: 2 mechanism: {mechanism} {places.REGIONS[name]}")
