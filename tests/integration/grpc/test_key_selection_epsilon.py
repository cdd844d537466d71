"""Which keys of a histogram without public keys leave through real RPCs shows the promised (epsilon, delta), and no more.

A budget admits few releases whose delta is large, so each message holds many keys. Each key is drawn by itself, and is a
pair of neighbouring aggregates of its own: one unit adds 1 to it in the first world and nothing in the second one.

- Rising keys have a value of 3 or 2. There, the law grows by e^epsilon and delta exactly (arXiv:2006.03684), so "the
  key leaves" shows all of epsilon: ln((p - delta) / q), with Clopper-Pearson bounds p (from below, first world) and q
  (from above, second world), each wrong with probability ALPHA / 2.
- Lone keys are those of one unit, or absent. They leave with probability delta, which is as much as is promised.

False alarms: a bound above the claim is at most ALPHA = 2e-4 for any law, and below 1e-6 for the rising keys, because p and
q have to be off together. For the lone ones p is a bound with probability 1e-6. A bound below 0.9 of the claim is below
1e-6: its expectation lies 5 standard errors above. An epsilon of 1.1 or 0.85 fails, and a delta of 0.055 or 0.043.
"""

import asyncio
import math

import pytest
from scipy.stats import beta

from tests.support.empirical import ALPHA, send_often
from tests.support.protos import compiled

LONE_ALPHA, EPSILON, DELTA = 1e-6, 1.0, 0.05
MESSAGES, KEYS = 10, 20_000
TYPES = compiled(
    """message M { map<int64, int64> counts = 1
      [(dpmesh.v1.field).histogram = {contribution: 1 epsilon: 1 delta: 0.05}]; }"""
)
RISING, LONE = range(KEYS), range(KEYS, 2 * KEYS)
WORLDS = (
    dict.fromkeys(RISING, 3) | dict.fromkeys(LONE, 1),
    dict.fromkeys(RISING, 2) | dict.fromkeys(LONE, 0),
)
BUDGET = {"name": "all", "key": "global", "epsilon": 1000.0, "delta": 1e-6, "threshold_delta": 0.9}


async def left(world: dict[int, int]) -> tuple[int, int]:
    """Sends the messages of one world over a real channel; returns how many rising and how many lone keys arrived."""
    seen: list[int] = []

    config = {"ledger": {"url": "memory:"}, "budget": [{**BUDGET, "window": "lifetime"}]}
    await send_often(TYPES.M(counts=world), MESSAGES, config, lambda message: seen.extend(message.counts))
    rising = sum(key < KEYS for key in seen)
    return rising, len(seen) - rising


@pytest.fixture(scope="module")
def worlds() -> list[tuple[int, int]]:
    return [asyncio.run(left(world)) for world in WORLDS]


def at_least(hits: int, alpha: float) -> float:
    """The Clopper-Pearson bound of a rate from below."""
    return float(beta.ppf(alpha, hits, MESSAGES * KEYS - hits + 1))


def test_rising_keys_show_epsilon_and_no_more(worlds):
    (first, _), (second, _) = worlds
    q = beta.ppf(1 - ALPHA / 2, second + 1, MESSAGES * KEYS - second)
    bound = math.log((at_least(first, ALPHA / 2) - DELTA) / q)
    assert bound <= EPSILON, "more is lost than was promised"
    assert bound >= 0.9 * EPSILON, "keys leave less often than was promised"


def test_lone_keys_show_delta_and_no_more(worlds):
    (_, first), (_, second) = worlds
    assert second == 0, "a key that nobody added left"
    bound = at_least(first, LONE_ALPHA)
    assert bound <= DELTA, "more is lost than was promised"
    assert bound >= 0.9 * DELTA, "keys leave less often than was promised"
