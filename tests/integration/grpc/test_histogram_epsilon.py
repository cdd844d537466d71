"""What leaves of histograms through real RPCs shows the promised epsilon and no more.

One unit adds 2 to an aggregate over three keys: 1 to each of two keys, so that both have to be seen together. A unit's own
map is full in one world and empty in the other. A lower bound on epsilon is ln(p / q) for an event with Clopper-Pearson
bounds p (from below, first world) and q (from above, second world), each wrong with probability ALPHA / 2. The events are
known before any message is sent: each key that differs at or above its value in the first world, or in the window of
the optimized Piecewise mechanism about it.

False alarms: a bound above epsilon is at most ALPHA = 2e-4 for any law, and below 1e-6 for these, because p and q have to
be off together. A bound below 0.9 epsilon is below 1e-6: its expectation lies 5 standard errors above.
"""

import asyncio

import pytest

from tests.support.empirical import lower_bound, send_often
from tests.support.protos import compiled

MESSAGES, BATCH, EPSILON = 80_000, 50, 1.0
HIST = "(dpmesh.v1.field).histogram"
TYPES = compiled(
    f"""message M {{ string id = 1 [(dpmesh.v1.field).unit = {{form: SUPPRESSED}}];
    map<string, int64> counts = 2 [{HIST} = {{keys: ["a", "b", "c"] contribution: 2 epsilon: 1}}];
    map<string, uint32> own = 3 [{HIST} = {{keys: ["a", "b"] lower: 0 upper: 10 epsilon: 1}}]; }}
    message Batch {{ repeated M each = 1 [(dpmesh.v1.field).max_items = 50]; }}"""
)
WORLDS = (
    {"counts": {"a": 11, "b": 11, "secret": 1}, "own": {"a": 10, "b": 10}},
    {"counts": {"a": 10, "b": 10}, "own": {}},
)
EVENTS = {
    "counts": lambda message: message.counts["a"] >= 11 and message.counts["b"] >= 11,
    "own": lambda message: message.own["a"] >= 8 and message.own["b"] >= 8,
}


async def hits(world: dict, config: dict) -> dict[str, int]:
    """Sends the messages of one world over a real channel; returns how often the handler saw each event."""
    seen = dict.fromkeys(EVENTS, 0)

    def take(batch):
        for message in batch.each:
            assert len(message.counts) == 3
            for name, event in EVENTS.items():
                seen[name] += event(message)

    batch = TYPES.Batch(each=[TYPES.M(id="device", **world)] * BATCH)
    await send_often(batch, MESSAGES // BATCH, config, take)
    return seen


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> list[dict[str, int]]:
    config = {
        "ledger": {"url": f"sqlite:///{tmp_path_factory.mktemp('ledger')}/ledger.db"},
        "budget": [
            {"name": key, "key": key, "epsilon": 1e7, "accounting": "pure", "window": "lifetime"}
            for key in ("unit", "global")
        ],
    }
    return [asyncio.run(hits(world, config)) for world in WORLDS]


@pytest.mark.parametrize("name", EVENTS)
def test_the_worst_pair_shows_epsilon_and_no_more(worlds, name):
    first, second = (world[name] for world in worlds)
    bound = lower_bound((first, MESSAGES), (second, MESSAGES))
    assert bound <= EPSILON, "more is lost than was promised"
    assert bound >= 0.9 * EPSILON, "more noise was added than was promised"
