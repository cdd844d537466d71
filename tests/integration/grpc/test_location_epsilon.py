"""An attacker's view: places that leave through real RPCs show the promised epsilon in the worst pair, and no more.

A device is at one place in one world and at another one in the other: for the disk at two ends of the region, for hexagons
100 km further north. A lower bound on epsilon is ln(p / q) for an event with Clopper-Pearson bounds p (from below, first
world) and q (from above, second world), each wrong with probability ALPHA / 2. The events are those that the laws tell
apart best, known before any message is sent: a disk's cells that are near the first place and not near the second one, and
the sixth of all hexagons that is as much nearer to the first place as the two are apart.

Each message holds several places, which are independent. False alarms: a bound above epsilon, at most ALPHA whatever the
law, and below 1e-6 for these laws, because p and q have to be off together. A bound below 0.9 of epsilon, below 1e-5.
"""

import asyncio
import math

import numpy as np
import pytest

from dpmesh.policy import Policy
from dpmesh.policy.kinds.cells import neighbourhoods
from dpmesh.policy.kinds.region import cells_at
from tests.support.empirical import lower_bound, send_often
from tests.support.places import SWITZERLAND
from tests.support.protos import compiled

MESSAGES = 15_000
EPSILON = 2.0
RULE = "(dpmesh.v1.field).location"
ITEMS = "(dpmesh.v1.field).max_items"
TYPES = compiled(
    f"""message LatLng {{ double latitude = 1; double longitude = 2; }}
    message M {{ string id = 1 [(dpmesh.v1.field).unit = {{form: SUPPRESSED}}];
    repeated LatLng disk = 2 [{RULE} = {{epsilon: 4 {SWITZERLAND}}}, {ITEMS} = 2];
    repeated LatLng hexagons = 3 [{RULE} = {{epsilon: 20 metric: GEO radius_km: 100 {SWITZERLAND}}}, {ITEMS} = 10]; }}"""
)
ENDS = (45.9, 6.0), (47.8, 10.4)
SOUTH = (46.4, 8.2)
NORTH = (46.4 + math.degrees(100 / 6371.0088), 8.2)


def message(end, spot):
    """A device that is at one place in all elements of a field."""
    one, other = ({"latitude": place[0], "longitude": place[1]} for place in (end, spot))
    return TYPES.M(id="device", disk=[one] * 2, hexagons=[other] * 10)


async def received(sent, config):
    """Sends a message often over a real channel; returns the places that the handler got, by field."""
    got = {"disk": [], "hexagons": []}

    def take(message):
        for name, places in got.items():
            places += [(place.latitude, place.longitude) for place in getattr(message, name)]

    await send_often(sent, MESSAGES, config, take)
    return {name: np.array(places) for name, places in got.items()}


@pytest.fixture(scope="module")
def worlds():
    budget = {"name": "b", "epsilon": 1e7, "accounting": "pure", "window": "lifetime"}
    config = {"ledger": {"url": "memory:"}, "budget": [budget]}
    pairs = zip(ENDS, (SOUTH, NORTH), strict=True)
    return [asyncio.run(received(message(*pair), config)) for pair in pairs]


def near_the_first_only(payload, places):
    """Whether a disk's cell is near the first end of the region and not near the second one."""
    cells, mechanism = payload.law.cells, payload.law.mechanism
    order = neighbourhoods(cells, mechanism.epsilon).order
    first, second = cells.numbers_at(*np.transpose(ENDS))
    only = set(order[first, : mechanism.near].tolist()) - set(order[second, : mechanism.near].tolist())
    return np.isin(cells.numbers_at(*places.T), list(only))


def south_of_the_first(payload, places):
    """Whether a hexagon lies in the sixth of all that the way from the second place to the first one points to."""
    region, spacing = payload.region, payload.law.spacing
    q, r = cells_at(*region.project(*places.T), spacing)
    (q0,), (r0,) = cells_at(*region.project(*np.transpose([SOUTH])), spacing)
    return (q >= q0) & (q - q0 <= r0 - r)


@pytest.mark.parametrize(
    ("field", "event"), [("disk", near_the_first_only), ("hexagons", south_of_the_first)]
)
def test_the_worst_pair_shows_epsilon_and_no_more(worlds, field, event):
    plan = Policy().plan(TYPES.M.DESCRIPTOR)
    payload = next(entry.payload for entry in plan.fields if entry.path == field)
    one, other = (event(payload, world[field]) for world in worlds)
    hits, misses = int(one.sum()), int(other.sum())
    bound = lower_bound((hits, len(one)), (misses, len(other)))
    assert bound <= EPSILON, "more is lost than was promised"
    assert bound >= 0.9 * EPSILON, "more noise was added than was promised"
