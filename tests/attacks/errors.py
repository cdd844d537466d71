"""Error text and refusals: what a peer reads when a handler fails over a private value, and which messages are refused."""

from __future__ import annotations

import grpc

import dpmesh
from dpmesh.errors import DpmeshError
from tests.attacks.attackers import told_apart
from tests.attacks.outcomes import Distinguished, Finding
from tests.attacks.worlds import CAT, HIDDEN, ITEMS, NUM, config, served, unary
from tests.support.places import SWITZERLAND
from tests.support.protos import compiled

TYPES = compiled(
    f"""message Ask {{ int32 way = 1; bool second = 2; }}
    message Told {{ string id = 1 {HIDDEN};
      double load = 2 [{NUM} = {{lower: 0 upper: 100 epsilon: 1 nan: REJECT}}]; }}
    message Place {{ double latitude = 1; double longitude = 2; }}
    message All {{ string id = 1 {HIDDEN}; double load = 2 [{NUM} = {{lower: 0 upper: 100 epsilon: 1}}];
      string word = 3 [{CAT} = {{epsilon: 1 domain: ["yes", "no"]}}];
      Place at = 4 [(dpmesh.v1.field).location = {{epsilon: 1 {SWITZERLAND}}}];
      repeated double gait = 5 [(dpmesh.v1.field).vector = {{l2_norm: 1 dimension: 4 epsilon: 1}}];
      repeated int32 list = 6 [{NUM} = {{lower: 0 upper: 9 epsilon: 1 output: IN_RANGE}}, {ITEMS} = 2]; }}"""
)
ORDINARY = TYPES.All(
    id="d", load=50, word="no", at={"latitude": 47, "longitude": 8}, gait=[0.5] * 4, list=[1, 2]
)
IMPOSSIBLE = TYPES.All(
    id="d",
    load=float("nan"),
    word="maybe" * 1000,
    at={"latitude": 1e300, "longitude": float("-inf")},
    gait=[float("nan")] * 7,
    list=[2**31 - 1] * 100,
)
SECRETS = ("alice's pulse was 171", "bob's pulse was 58")
SERVICE, METHOD = "test.Errors", "/test.Errors/Ask"


async def raised(text: str, _context):
    raise ValueError(text)


async def of_grpc(text: str, _context):
    raise grpc.aio.UsageError(text)


async def of_another_call(text: str, _context):
    trailing = grpc.aio.Metadata(("pulse", text))
    raise grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), trailing, details=text)


async def with_details(text: str, context):
    context.set_details(text)
    raise KeyError(text)


async def with_metadata(text: str, context):
    context.set_trailing_metadata((("pulse", text), ("pulse-bin", text.encode())))
    raise KeyError(text)


async def as_a_group(text: str, _context):
    raise ExceptionGroup(text, [ValueError(text)])


async def unprotectable(text: str, _context):
    return TYPES.Told(id=text, load=float("nan"))


async def of_a_wrong_type(text: str, _context):
    return text


WAYS = (
    raised,
    of_grpc,
    of_another_call,
    with_details,
    with_metadata,
    as_a_group,
    unprotectable,
    of_a_wrong_type,
)


async def answer(request, context):
    """A handler that fails in one of the ways, with one of the secrets."""
    return await WAYS[request.way](SECRETS[request.second], context)


async def seen(count: int, *, protected: bool) -> Distinguished:
    """Tells the secrets apart by codes, texts and metadata of all failures."""
    handlers = {"Ask": unary(answer, TYPES.Ask, TYPES.Told)}
    async with (
        dpmesh.open(config()) as mesh,
        served(SERVICE, handlers, mesh if protected else None) as channel,
    ):
        call = channel.unary_unary(METHOD, TYPES.Ask.SerializeToString, TYPES.Told.FromString)
        worlds = [[await _failures(call, second=second) for _ in range(count)] for second in (False, True)]
    return told_apart(*worlds)


async def _failures(call, *, second: bool) -> tuple:
    shown: list = []
    for way in range(len(WAYS)):
        try:
            shown.append((await call(TYPES.Ask(way=way, second=second))).id)
        except grpc.aio.AioRpcError as error:
            trailing = tuple(sorted((key, value) for key, value in error.trailing_metadata() or ()))
            shown.append((error.code(), error.details(), trailing))
    return tuple(shown)


async def refusals(one, other, count: int) -> Distinguished:
    """Tells messages apart by whether, when and with which words they are refused: three of each unit, for two of which it pays."""
    worlds = []
    for message in (one, other):
        async with dpmesh.open(config(10.0)) as mesh:
            worlds.append([await _refused(mesh, message, f"unit-{unit}") for unit in range(count)])
    return told_apart(*worlds)


async def _refused(mesh, message, unit: str) -> tuple:
    message = type(message).FromString(message.SerializeToString())
    message.id = unit
    shown: list = []
    for _ in range(3):
        try:
            await mesh.release(message)
            shown.append("")
        except DpmeshError as error:
            shown.append(f"{type(error).__name__} {error}")
    return tuple(shown)


async def findings(count: int) -> list[Finding]:
    """At most 400 trials of all ways in either world, because RPCs are slow."""
    return [
        Finding(
            "error text: eight ways in which a handler fails over a value",
            0.0,
            "no text, detail or metadata of a failed handler leaves",
            await seen(min(count, 400), protected=True),
            await seen(120, protected=False),
        ),
        Finding(
            "refusals: messages of ordinary or of impossible values",
            0.0,
            "bad values leave as defaults (unprotected: a rule that refuses NaN)",
            await refusals(ORDINARY, IMPOSSIBLE, count),
            await refusals(TYPES.Told(load=1), TYPES.Told(load=float("nan")), 200),
        ),
    ]
