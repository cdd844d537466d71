"""Timing: how long a release takes, and how often a device sends."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from contextlib import AsyncExitStack
from itertools import pairwise

import grpc

import dpmesh
from dpmesh_grpc import slot_cover
from tests.attacks.attackers import told_apart
from tests.attacks.outcomes import Distinguished, Finding
from tests.attacks.worlds import CAT, HIDDEN, NUM, UNIT, config, served, unary
from tests.support.protos import compiled

TYPES = compiled(
    f"""message Timed {{ string id = 1 {HIDDEN}; optional bool here = 2 [{CAT} = {{epsilon: 0.5}}];
      double load = 3 [{NUM} = {{lower: 0 upper: 100 epsilon: 0.5}}]; Album album = 4; }}
    message Album {{ optional bool full = 1 [{CAT} = {{epsilon: 0.5}}]; bytes photo = 2 [(dpmesh.v1.field).suppress = {{}}]; }}
    message Move {{ string id = 1 [{UNIT} = {{}}]; bool up = 2 [{CAT} = {{epsilon: 0.5}}]; }}
    message Ack {{}}
    service Moves {{ rpc Follow(stream Move) returns (Ack) {{
      option (dpmesh.v1.method).send_slot = {{nanos: 50000000}}; }} }}"""
)
WATCHED, TOGETHER = 6, 10
"""How many messages of a stream are watched, and how many streams of either world at once."""
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


async def watched(trials: int, *, protected: bool) -> Distinguished:
    """Tells a unit that moves three times from one that moves once, by when its stream of messages shows something."""
    worlds: tuple[list, list] = ([], [])
    service = f"{TYPES.package}.Moves"
    handler = grpc.stream_unary_rpc_method_handler(
        _arrivals, TYPES.Move.FromString, lambda seen: json.dumps(seen).encode()
    )
    async with AsyncExitStack() as entered:
        mesh = await entered.enter_async_context(dpmesh.open(config()))
        server = served(service, {"Follow": handler}, mesh if protected else None)
        channel = await entered.enter_async_context(server)
        call = channel.stream_unary(f"/{service}/Follow", TYPES.Move.SerializeToString, json.loads)

        async def trial(world: list, moves: int, unit: str) -> None:
            with slot_cover(TYPES.Move(id=unit)):
                rpc = call(_moving(moves, unit, hold=protected))
            world.append(tuple(await rpc))

        for first in range(0, trials, TOGETHER):
            batch = [(each, number) for each in (0, 1) for number in range(first, first + TOGETHER)]
            random.shuffle(batch)  # Those that begin first differ from the others.
            async with asyncio.TaskGroup() as group:
                for each, number in batch:
                    group.create_task(trial(worlds[each], (3, 1)[each], f"{each}-{number}"))
    return told_apart(*worlds)


async def _arrivals(requests, _context) -> list:
    """How many messages came, up to WATCHED, and the seconds between them."""
    moments = []
    async for _ in requests:
        moments.append(time.perf_counter())
        if len(moments) == WATCHED:
            break
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    return [len(moments), *gaps, *[-1.0] * (WATCHED - 1 - len(gaps))]


async def _moving(moves: int, unit: str, *, hold: bool):
    """A message for each move, at a random moment; held, the stream ends with its RPC."""
    for _ in range(moves):
        await asyncio.sleep(random.random() * 0.05)
        yield TYPES.Move(id=unit, up=True)
    if hold:
        await asyncio.Event().wait()


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
            "not promised: without `send_slot`, when and how often a unit sends is not hidden",
            await counted(120, protected=True),
            await counted(120, protected=False),
        ),
        Finding(
            "timing: a unit sends one message or three, `send_slot` set",
            0.0,
            "one message at each slot, covers between them",
            await watched(300, protected=True),
            await watched(120, protected=False),
        ),
    ]
