"""Timing: how long a release takes, and how often a device sends."""

from __future__ import annotations

import time
from collections import Counter

import dpmesh
from tests.attacks.attackers import told_apart
from tests.attacks.outcomes import Distinguished, Finding
from tests.attacks.worlds import CAT, HIDDEN, NUM, UNIT, config, served, unary
from tests.support.protos import compiled

TYPES = compiled(
    f"""message Timed {{ string id = 1 {HIDDEN}; optional bool here = 2 [{CAT} = {{epsilon: 0.5}}];
      double load = 3 [{NUM} = {{lower: 0 upper: 100 epsilon: 0.5}}]; Album album = 4; }}
    message Album {{ optional bool full = 1 [{CAT} = {{epsilon: 0.5}}]; bytes photo = 2 [(dpmesh.v1.field).suppress = {{}}]; }}
    message Move {{ string id = 1 [{UNIT} = {{}}]; bool up = 2 [{CAT} = {{epsilon: 0.5}}]; }}
    message Ack {{}}"""
)
SHOTS = 8
"""Each trial shows the shortest of so many releases."""
SMALL = TYPES.Timed(id="d", here=False, load=0)
LARGE = TYPES.Timed(id="d", here=True, load=100)
PHOTO = TYPES.Timed(id="d", here=True, load=100, album={"photo": bytes(1 << 22)})


async def durations(one, other, count: int) -> Distinguished:
    """Tells two messages apart by the time that their release takes, in one process, in turn."""
    worlds: tuple[list, list] = ([], [])
    async with dpmesh.open(config(1e8)) as mesh:
        for _ in range(count):
            for world, message in zip(worlds, (one, other), strict=True):
                world.append((min([await _seconds(mesh, message) for _ in range(SHOTS)]),))
    return told_apart(*worlds)


async def _seconds(mesh, message) -> float:
    begun = time.perf_counter()
    await mesh.release(message)
    return time.perf_counter() - begun


async def counted(units: int, *, protected: bool) -> Distinguished:
    """Tells units that moved from those that did not, if they send a message for each move."""
    seen: Counter = Counter()

    async def moved(request, _context):
        seen[request.id] += 1
        return TYPES.Ack()

    worlds = []
    async with dpmesh.open(config()) as mesh:
        handlers = {"Move": unary(moved, TYPES.Move, TYPES.Ack)}
        async with served("test.Moves", handlers, mesh if protected else None) as channel:
            call = channel.unary_unary("/test.Moves/Move", TYPES.Move.SerializeToString, TYPES.Ack.FromString)
            for moves in (3, 1):
                seen.clear()
                for unit in range(units):
                    for _ in range(moves):
                        await call(TYPES.Move(id=f"{moves}-{unit}"))
                worlds.append([(count,) for count in seen.values()])
    return told_apart(*worlds)


async def findings(count: int) -> list[Finding]:
    """`count` trials in either world, half of them to learn from."""
    copied = await durations(SMALL, PHOTO, 120)
    return [
        Finding(
            "timing: how long a release of the smallest or the largest values takes",
            None,
            "not promised to the nanosecond (unprotected: a suppressed photo of 4 MiB, which is copied)",
            await durations(SMALL, LARGE, count),
            copied,
        ),
        Finding(
            "timing: a unit sends one message or three",
            None,
            "not promised: when and how often a unit sends is not hidden",
            await counted(120, protected=True),
            await counted(120, protected=False),
        ),
    ]
