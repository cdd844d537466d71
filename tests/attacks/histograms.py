"""Histograms: whether a rare key is told, how many units share a key, and what a unit's own map holds."""

from __future__ import annotations

import dpmesh
from tests.attacks.attackers import told_apart
from tests.attacks.outcomes import Distinguished, Finding, between_two
from tests.attacks.worlds import ENFORCE, HIDDEN, OBSERVE, config, received
from tests.support.protos import compiled

EPSILON, DELTA = 1.0, 0.01
HIST = "(dpmesh.v1.field).histogram"
TYPES = compiled(
    f"""message Pages {{ map<int64, int64> visits = 1 [{HIST} = {{contribution: 1 epsilon: 1 delta: 0.01}}]; }}
    message Day {{ string id = 1 {HIDDEN};
      map<string, uint32> hours = 2 [{HIST} = {{keys: ["work", "home", "road"] lower: 0 upper: 24 epsilon: 1}}]; }}"""
)
GLOBAL = {"name": "all", "key": "global", "epsilon": 100.0, "delta": 1e-6, "threshold_delta": 0.5}


async def shared(units: tuple[int, int], count: int, mode: str) -> Distinguished:
    """Tells keys that so many units share from those that one unit less shares.

    A budget admits few messages with so large a delta. So all keys of a world are in one message, and each is a trial:
    the noise of each key is drawn by itself.
    """
    worlds = []
    for units_of_a_key in units:
        message = TYPES.Pages(visits=dict.fromkeys(range(count), units_of_a_key) if units_of_a_key else {})
        budgets = [{**GLOBAL, "window": "lifetime"}]
        async with dpmesh.open({"ledger": {"url": "memory:"}, "budget": budgets, "mode": mode}) as mesh:
            seen, _ = await received(mesh, message)
        worlds.append([(seen.visits.get(key, 0),) for key in range(count)])
    return told_apart(*worlds)


async def owned(count: int, mode: str) -> Distinguished:
    """Tells a unit's full map from an empty one."""
    full, empty = TYPES.Day(id="d", hours={"work": 24, "home": 24, "road": 24}), TYPES.Day(id="d")
    async with dpmesh.open(config(mode=mode)) as mesh:
        worlds = [[await _day(mesh, message) for _ in range(count)] for message in (full, empty)]
    return told_apart(*worlds)


async def _day(mesh, message) -> tuple:
    seen, size = await received(mesh, message)
    return (size, *(float(seen.hours.get(key, 0)) for key in ("work", "home", "road")), len(seen.hours))


async def findings(count: int) -> list[Finding]:
    """`count` trials in either world, half of them to learn from."""
    return [
        Finding(
            "histograms: a key that one unit alone adds, no public keys",
            DELTA,
            "delta 0.01, with which such a key leaves",
            await shared((1, 0), count, ENFORCE),
            await shared((1, 0), 200, OBSERVE),
        ),
        Finding(
            "histograms: a key of five units or of four, no public keys",
            between_two(EPSILON, DELTA),
            "epsilon 1 and delta 0.01: (E - 1 + 2 delta)/(E + 1)",
            await shared((5, 4), count, ENFORCE),
            await shared((5, 4), 200, OBSERVE),
        ),
        Finding(
            "histograms: a unit's own map, full or empty",
            between_two(EPSILON),
            "epsilon 1 of the map",
            await owned(count, ENFORCE),
            await owned(200, OBSERVE),
        ),
    ]
