"""A stolen receiver: everything that it ever got through real RPCs, put together for each unit."""

from __future__ import annotations

from collections import defaultdict

import grpc

import dpmesh
from tests.attacks.attackers import told_apart
from tests.attacks.outcomes import Distinguished, Finding, between_two
from tests.attacks.worlds import CAT, NUM, UNIT, config, served
from tests.support.protos import compiled

BUDGET, MESSAGES = 4.0, 2
"""A message costs epsilon 2, so a unit's budget covers two of them."""
TYPES = compiled(
    f"""message Report {{ string id = 1 [{UNIT} = {{}}];
      bool sick = 2 [{CAT} = {{epsilon: 0.5}}]; Mood mood = 3 [{CAT} = {{epsilon: 0.5}}];
      double load = 4 [{NUM} = {{lower: 0 upper: 100 epsilon: 0.5}}];
      repeated double gait = 5 [(dpmesh.v1.field).vector = {{l2_norm: 1 dimension: 4 epsilon: 0.5}}];
      string note = 6 [(dpmesh.v1.field).suppress = {{}}]; }}
    enum Mood {{ CALM = 0; TENSE = 1; GLAD = 2; TIRED = 3; }}
    message Ack {{ int32 count = 1; }}"""
)
WORLDS = (
    {"sick": True, "mood": 1, "load": 100.0, "gait": [1, 0, 0, 0], "note": "the first world"},
    {"sick": False, "mood": 0, "load": 0.0, "gait": [-1, 0, 0, 0], "note": "the second world"},
)
METHOD = "/test.Collector/Report"


async def database(world: int, units: int, *, protected: bool) -> list[tuple]:
    """What a receiver stored of each unit of a world."""
    rows = defaultdict(list)

    async def collect(requests, _context):
        async for request in requests:
            rows[request.id].append(request)
        return TYPES.Ack(count=len(rows))

    handler = grpc.stream_unary_rpc_method_handler(
        collect, request_deserializer=TYPES.Report.FromString, response_serializer=TYPES.Ack.SerializeToString
    )
    sent = (TYPES.Report(id=f"u{unit}", **WORLDS[world]) for unit in range(units) for _ in range(MESSAGES))
    handlers = {"Report": handler}
    async with (
        dpmesh.open(config(BUDGET)) as mesh,
        served("test.Collector", handlers, mesh if protected else None) as channel,
    ):
        call = channel.stream_unary(METHOD, TYPES.Report.SerializeToString, TYPES.Ack.FromString)
        assert (await call(sent)).count == units
    return [sum(map(features, reports), ()) for reports in rows.values()]


def features(report) -> tuple:
    """All that one stored report shows."""
    return (report.sick, report.mood, report.load, *report.gait, report.note, report.ByteSize())


async def stolen(units: int, *, protected: bool) -> Distinguished:
    """Tells the units of the worlds apart."""
    return told_apart(*[await database(world, units, protected=protected) for world in (0, 1)])


async def findings(count: int) -> list[Finding]:
    """`count` units in either world, half of them to learn from."""
    return [
        Finding(
            "a stolen receiver: all fields of all messages of a unit",
            between_two(BUDGET),
            "the budget, epsilon 4",
            await stolen(count, protected=True),
            await stolen(2000, protected=False),
        )
    ]
