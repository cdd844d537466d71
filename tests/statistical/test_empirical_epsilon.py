"""An attacker's view: what leaves through real RPCs, in the worst pair of worlds, shows the promised epsilon and no more.

A device's every field is at one end of its range in one world and at the other end in the other. A lower bound on
epsilon is ln(p / q) for an event with Clopper-Pearson bounds p (from below, first world) and q (from above, second
world), each wrong with probability ALPHA / 2. The events are those that the mechanisms' laws tell apart best, known
before any message is sent: a number with discrete Laplace noise at or above the upper bound, one of the optimized
Piecewise mechanism (`auto`) above the middle, a category that is the first world's own.

False alarms: a bound above epsilon, at most ALPHA = 2e-4 for each of four fields whatever the law, and below 8e-7 for
these: p and q have to be off together, by 4.8 standard errors of ln(p / q). A bound below the floor, at most 1.3e-6: its
expectation is at least 4.7 deviations above that.
"""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from tests.support.empirical import lower_bound, send_often
from tests.support.protos import compiled

SMALL, LARGE = (50_000, 0.89), (150_000, 0.94)
"""How many messages there are of a world, and what each bound reaches at least, as a share of epsilon."""
EPSILON = 1.0
NUM = "(dpmesh.v1.field).numeric"
CAT = "(dpmesh.v1.field).categorical"
TYPES = compiled(
    f"""message M {{ string id = 1 [(dpmesh.v1.field).unit = {{form: SUPPRESSED}}];
    double number = 2 [{NUM} = {{lower: 0 upper: 1 epsilon: 1 mechanism: DISCRETE_LAPLACE}}];
    Color color = 3 [{CAT} = {{epsilon: 1}}]; bool flag = 4 [{CAT} = {{epsilon: 1}}];
    double auto = 5 [{NUM} = {{lower: 0 upper: 1 epsilon: 1}}]; }}
    enum Color {{ RED = 0; GREEN = 1; BLUE = 2; VIOLET = 3; }}"""
)
WORLDS = (
    {"number": 1.0, "color": 1, "flag": True, "auto": 1.0},
    {"number": 0.0, "color": 0, "flag": False, "auto": 0.0},
)
# From which value on, or at which one, the first world is the likelier.
EVENTS = {
    "number": (np.greater_equal, 1.0),
    "color": (np.equal, 1),
    "flag": (np.equal, True),
    "auto": (np.greater_equal, 0.5),
}


async def received(world: dict, count: int, config: dict) -> list:
    """Sends `count` messages of one world over a real channel; returns what the handler got."""
    got = []

    await send_often(
        TYPES.M(id="device", **world),
        count,
        config,
        lambda message: got.append([getattr(message, name) for name in EVENTS]),
    )
    return got


@pytest.fixture(scope="module")
def size(pytestconfig) -> tuple[int, float]:
    return LARGE if pytestconfig.getoption("--full") else SMALL


@pytest.fixture(scope="module")
def worlds(tmp_path_factory, size) -> Sequence[np.ndarray]:
    config = {
        "ledger": {"url": f"sqlite:///{tmp_path_factory.mktemp('ledger')}/ledger.db"},
        "budget": [{"name": "b", "epsilon": 1e7, "accounting": "pure", "window": "lifetime"}],
    }
    return [np.array(asyncio.run(received(world, size[0], config)), dtype=float) for world in WORLDS]


@pytest.mark.parametrize("field", EVENTS)
def test_the_worst_pair_shows_epsilon_and_no_more(worlds, size, field):
    one, other = (world[:, list(EVENTS).index(field)] for world in worlds)
    event, value = EVENTS[field]
    hits, misses = int(event(one, value).sum()), int(event(other, value).sum())
    bound = lower_bound((hits, len(one)), (misses, len(other)))
    assert bound <= EPSILON, "more is lost than was promised"
    assert bound >= size[1] * EPSILON, "more noise was added than was promised"
