"""What leaves of times through real RPCs shows the promised epsilon and no more.

A device's times are at one end of their range in one world and at the other end in the other; those of `within` are as far
apart as their largest shift. A lower bound on epsilon is ln(p / q) for an event with Clopper-Pearson bounds p (from
below, first world) and q (from above, second world), each wrong with probability ALPHA / 2. The events are those that
the mechanisms' laws tell apart best, known before any message is sent: a time at or above the upper one.

False alarms: a bound above epsilon is at most ALPHA = 2e-4 for any law, and below 1e-6 for these, because p and q have to
be off together. A bound below 0.9 epsilon is below 1e-6: its expectation lies 5 standard errors above.
"""

import asyncio

import numpy as np
import pytest

from tests.support.empirical import lower_bound, send_often
from tests.support.protos import compiled

MESSAGES, BATCH, EPSILON = 60_000, 50, 1.0
TIME = "(dpmesh.v1.field).time"
DAY, FIRST = 86_400, 1_767_225_600
BOUNDS = 'earliest: "2026-01-01T00:00:00Z" latest: "2026-01-31T00:00:00Z" epsilon: 1'
TYPES = compiled(
    f"""message M {{ string id = 1 [(dpmesh.v1.field).unit = {{form: SUPPRESSED}}];
    google.protobuf.Timestamp at = 2 [{TIME} = {{{BOUNDS}}}];
    google.protobuf.Duration took = 3 [{TIME} = {{earliest: "0s" latest: "5s" epsilon: 1}}];
    int64 within = 4 [{TIME} = {{{BOUNDS} step: HOUR largest_shift: {{seconds: 7200}}}}]; }}
    message Batch {{ repeated M each = 1 [(dpmesh.v1.field).max_items = 50]; }}"""
)
MIDDLE = FIRST // 3600 + 360
WORLDS = (
    {"at": {"seconds": FIRST + 30 * DAY}, "took": {"seconds": 5}, "within": MIDDLE + 2},
    {"at": {"seconds": FIRST}, "took": {}, "within": MIDDLE},
)


async def received(world: dict, config: dict) -> np.ndarray:
    """Sends the messages of one world over a real channel; returns what the handler got."""
    got = []

    def take(batch):
        for message in batch.each:
            took = message.took.seconds + message.took.nanos / 1e9
            got.append((message.at.seconds, took, message.within))

    batch = TYPES.Batch(each=[TYPES.M(id="device", **world)] * BATCH)
    await send_often(batch, MESSAGES // BATCH, config, take)
    assert len(got) == MESSAGES
    return np.array(got, dtype=float)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> list[np.ndarray]:
    config = {
        "ledger": {"url": f"sqlite:///{tmp_path_factory.mktemp('ledger')}/ledger.db"},
        "budget": [{"name": "b", "epsilon": 1e7, "accounting": "pure", "window": "lifetime"}],
    }
    return [asyncio.run(received(world, config)) for world in WORLDS]


@pytest.mark.parametrize(
    ("column", "upper"), [(0, FIRST + 30 * DAY), (1, 5.0), (2, MIDDLE + 2)], ids=["at", "took", "within"]
)
def test_the_worst_pair_shows_epsilon_and_no_more(worlds, column, upper):
    hits, misses = (int((world[:, column] >= upper).sum()) for world in worlds)
    bound = lower_bound((hits, MESSAGES), (misses, MESSAGES))
    assert bound <= EPSILON, "more is lost than was promised"
    assert bound >= 0.9 * EPSILON, "more noise was added than was promised"
