"""Metadata: what a receiver reads beside the messages, of two devices that name themselves in every key that they can."""

from __future__ import annotations

import dpmesh
from tests.attacks.attackers import told_apart
from tests.attacks.outcomes import Distinguished, Finding
from tests.attacks.worlds import CAT, HIDDEN, config, served, unary
from tests.support.protos import compiled

TYPES = compiled(
    f"""message Ping {{ string id = 1 {HIDDEN}; bool up = 2 [{CAT} = {{epsilon: 0.5}}]; }}
    message Ack {{}}
    service Inside {{ rpc Send(Ping) returns (Ack); }}
    service Outside {{ rpc Send(Ping) returns (Ack) {{ option (dpmesh.v1.method).trust_boundary = true; }} }}"""
)
TRACES = ("traceparent", "tracestate", "b3", "uber-trace-id")


def own_keys(device: int) -> list[tuple[str, str | bytes]]:
    """Keys that applications and interceptors use."""
    name = f"device-{device}"
    keys = ("x-device", "x-request-id", "baggage", "authorization", "x-forwarded-for", "cookie", f"x-{name}")
    return [*((key, name) for key in keys), ("device-bin", name.encode()), ("grpc-tags-bin", name.encode())]


def trace_keys(device: int) -> list[tuple[str, str | bytes]]:
    """Keys of traces; both devices go on with one trace for ever."""
    return [(key, f"00-{device:032x}-{device:016x}-01") for key in TRACES]


async def seen(service: str, metadata, count: int, *, protected: bool) -> Distinguished:
    """Tells the devices apart by all metadata of a request."""
    rows: list = []

    async def note(_request, context):
        rows.append((tuple(sorted((key, value) for key, value in context.invocation_metadata())),))
        return TYPES.Ack()

    worlds = []
    name = f"{TYPES.package}.{service}"
    handlers = {"Send": unary(note, TYPES.Ping, TYPES.Ack)}
    async with dpmesh.open(config()) as mesh, served(name, handlers, mesh if protected else None) as channel:
        call = channel.unary_unary(f"/{name}/Send", TYPES.Ping.SerializeToString, TYPES.Ack.FromString)
        for device in (1, 2):
            rows = []
            for _ in range(count):
                await call(TYPES.Ping(id=f"device-{device}"), metadata=metadata(device))
            worlds.append(rows)
    return told_apart(*worlds)


ROWS = (
    ("metadata: keys that name the device", "Inside", own_keys, 0.0, "an allow-list"),
    ("metadata: a trace across a trust boundary", "Outside", trace_keys, 0.0, "cut at the boundary"),
    (
        "metadata: a trace, by default",
        "Inside",
        trace_keys,
        None,
        "not promised: a trace goes on without a boundary",
    ),
)


async def findings(count: int) -> list[Finding]:
    """`count` requests of either device, half of them to learn from."""
    return [
        Finding(
            name,
            allowed,
            claim,
            await seen(service, metadata, count, protected=True),
            await seen(service, metadata, 120, protected=False),
        )
        for name, service, metadata, allowed, claim in ROWS
    ]
