"""An attacker's view of a vector: what leaves through real RPCs shows the promised epsilon of opposite vectors, and no more.

A device holds a unit vector x in one world and -x in the other. Of what arrives, y, the attacker looks at <y, x>, which
tells the two apart best. A lower bound on epsilon is ln(p / q) for the event that it is at least `EVENT`, with
Clopper-Pearson bounds p (from below, first world) and q (from above, second world), each wrong with probability
ALPHA / 2. The event was set before any message was sent: beyond it lie directions of the upper part of x alone, and of
the lower part of -x.

False alarms: a bound above epsilon, at most ALPHA = 2e-4 whatever the law, and below 1e-7 for this one: p and q have to
be off together, by 5.3 standard errors of ln(p / q). A bound below the floor, at most 4e-6: its expectation is at least
4.5 standard errors above that.
"""

import asyncio

import numpy as np

from tests.support.empirical import lower_bound, send_often
from tests.support.protos import compiled

SMALL, LARGE = (10_000, 0.83), (30_000, 0.9)
"""How many vectors there are of a world, and what the bound reaches at least, as a share of epsilon."""
EPSILON, DIMENSION, IN_ONE = 2.0, 16, 20
TYPES = compiled(
    f"""message M {{ string id = 1 [(dpmesh.v1.field).unit = {{form: SUPPRESSED}}];
    repeated Item items = 2 [(dpmesh.v1.field).max_items = {IN_ONE}]; }}
    message Item {{ repeated float v = 1
    [(dpmesh.v1.field).vector = {{l2_norm: 1 dimension: {DIMENSION} epsilon: {EPSILON}}}]; }}"""
)
X = np.array([0.6, 0.8] + [0.0] * (DIMENSION - 2))
EVENT = 1.02


async def received(vector, count, config):
    """Sends `count` vectors of one world over a real channel; returns <y, x> of each that the handler got."""
    got = []

    message = TYPES.M(id="device", items=[TYPES.Item(v=vector)] * IN_ONE)
    await send_often(
        message,
        count // IN_ONE,
        config,
        lambda message: got.extend(float(np.array(item.v[:]) @ X) for item in message.items),
    )
    assert len(got) == count
    return np.array(got)


def test_opposite_vectors_show_epsilon_and_no_more(tmp_path, pytestconfig):
    count, floor = LARGE if pytestconfig.getoption("--full") else SMALL
    config = {
        "ledger": {"url": f"sqlite:///{tmp_path}/ledger.db"},
        "budget": [{"name": "b", "epsilon": 1e7, "accounting": "pure", "window": "lifetime"}],
    }
    one, other = (asyncio.run(received(world, count, config)) for world in (X, -X))
    hits, misses = int((one >= EVENT).sum()), int((other >= EVENT).sum())
    bound = lower_bound((hits, count), (misses, count))
    assert bound <= EPSILON, "more is lost than was promised"
    assert bound >= floor * EPSILON, "more noise was added than was promised"
    assert one.mean() > 0 > other.mean()
