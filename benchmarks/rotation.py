"""A rotating channel beside gRPC's own: what it costs, what a rotation does to the RPCs around it, and what it leaves.

The server has a process of its own. Channels that are compared take turns, so that the machine's moods hit both alike.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import multiprocessing
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np

from benchmarks.table import Row
from dpmesh.identity.ca.authority import Authority, LocalSource, Root
from dpmesh.identity.rotation.rotating_identity import RotatingIdentity
from dpmesh_grpc import peer_interceptor, rotating_server_credentials
from dpmesh_grpc.rotation.channel import rotating_channel

DOMAIN = "fleet.example"
METHOD = "/bench.Echo/Echo"
REQUEST = b"x" * 100
CONCURRENCY = 32
# Steady state: turns of each channel, and RPCs in a turn. Short turns, and many: other work on the machine would
# otherwise be taken for a difference.
TURNS = 300
WARM_TURNS = 10
CALLS = 160
# Tail latency: phases of each kind, seconds in a phase, and seconds between rotations.
PHASES = 6
PHASE = 6.0
EVERY = 2.0
# Leaks: rotations whose memory is not looked at, because caches fill; and those whose is.
WARM = 100
ROTATIONS = 500


async def echo(request: bytes, context: Any) -> bytes:
    """Answers with the request."""
    return request


async def serve(authority: Authority, orders: Connection) -> None:
    """Serves until it is told to end."""
    handler = grpc.unary_unary_rpc_method_handler(echo)
    async with RotatingIdentity(LocalSource(authority, server=True)) as identity:
        server = grpc.aio.server(interceptors=[peer_interceptor(identity)])
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("bench.Echo", {"Echo": handler}),)
        )
        orders.send(server.add_secure_port("127.0.0.1:0", rotating_server_credentials(identity)))
        await server.start()
        await asyncio.to_thread(orders.recv)
        await server.stop(None)


def worker(certificates: bytes, key: bytes, trust_bundle: bytes, orders: Connection) -> None:
    """The server's process."""
    asyncio.run(serve(Authority.load(certificates, key, trust_bundle), orders))


@asynccontextmanager
async def served() -> AsyncIterator[tuple[str, Authority, int]]:
    """A server; its address, the authority of all, and its process id."""
    now = time.time()
    authority = Root.create(DOMAIN, now=now).sign_intermediate(now=now)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    parts = (authority.certificates, authority.key(), authority.trust_bundle, theirs)
    process = context.Process(target=worker, args=parts)
    process.start()
    theirs.close()
    try:
        port = await asyncio.to_thread(ours.recv)
        yield f"127.0.0.1:{port}", authority, int(process.pid or 0)
    finally:
        ours.send(None)
        await asyncio.to_thread(process.join)


def plain_channel(target: str, identity: RotatingIdentity) -> grpc.aio.Channel:
    """The channel that gRPC has without dpmesh."""
    current = identity.current
    credentials = grpc.ssl_channel_credentials(current.trust_bundle, current.key, current.certificates)
    options = (("grpc.ssl_target_name_override", DOMAIN), ("grpc.use_local_subchannel_pool", 1))
    return grpc.aio.secure_channel(target, credentials, options=options)


async def run(call: Callable[[bytes], Awaitable[bytes]], go_on: Callable[[], bool]) -> list[float]:
    """Seconds of each RPC, at the concurrency above."""
    found: list[float] = []

    async def work() -> None:
        while go_on():
            start = time.perf_counter()
            await call(REQUEST)
            found.append(time.perf_counter() - start)

    await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
    return found


async def steady(target: str, identity: RotatingIdentity) -> list[Row]:
    """The cost of the façade while nothing rotates."""
    wall: dict[str, list[float]] = {"plain": [], "rotating": []}
    cpu: dict[str, list[float]] = {"plain": [], "rotating": []}
    async with plain_channel(target, identity) as plain, rotating_channel(target, identity) as rotating:
        calls = {"plain": plain.unary_unary(METHOD), "rotating": rotating.unary_unary(METHOD)}
        for turn in range(TURNS + WARM_TURNS):
            for name in sorted(calls, reverse=bool(turn % 2)):
                left = itertools.repeat(None, CALLS)
                start, start_cpu = time.perf_counter(), time.process_time()
                await run(calls[name], lambda left=left: next(left, 0) is None)  # type: ignore[misc]
                if turn >= WARM_TURNS:
                    wall[name].append((time.perf_counter() - start) / CALLS)
                    cpu[name].append((time.process_time() - start_cpu) / CALLS)
    name = f"unary RPC over mutual TLS, concurrency {CONCURRENCY}"
    return [
        Row(f"{name}, grpc.aio", statistics.median(wall["plain"]) * 1e6, "us", ""),
        Row(f"{name}, rotating channel at rest", _ratio(wall), "times grpc.aio", "at most 1.03"),
        Row("the same, CPU time of the client's process", _ratio(cpu), "times grpc.aio", ""),
    ]


def _ratio(found: dict[str, list[float]]) -> float:
    return statistics.median(b / a for a, b in zip(found["plain"], found["rotating"], strict=True))


async def tail(target: str, identity: RotatingIdentity) -> list[Row]:
    """The latency of RPCs around rotations, and of the same channel without."""
    still: list[float] = []
    moving: list[float] = []
    async with rotating_channel(target, identity) as channel:
        call = channel.unary_unary(METHOD)
        before = identity.generation
        for phase in range(2 * PHASES + 1):
            gc.collect()
            rotates = phase % 2 == 0
            rotation = asyncio.ensure_future(_rotate(identity)) if rotates else None
            ends = time.perf_counter() + PHASE
            found = await run(call, lambda ends=ends: time.perf_counter() < ends)  # type: ignore[misc]
            if rotation is not None:
                rotation.cancel()
            if phase:  # The first one warms up.
                (moving if rotates else still).extend(found)
        rotations = identity.generation - before
    p99 = [float(np.percentile(found, 99)) for found in (still, moving)]
    name = f"p99 of unary RPCs, concurrency {CONCURRENCY}"
    return [
        Row(f"{name}, no rotation", p99[0] * 1e3, "ms", ""),
        Row(f"{name}, rotating every {EVERY:.0f} s", p99[1] / p99[0], "times without", "at most 1.5"),
        Row("longest of these RPCs, no rotation", max(still) * 1e3, "ms", ""),
        Row("longest of these RPCs, rotating", max(moving) * 1e3, "ms", ""),
        Row("rotations meanwhile", rotations, "", ""),
    ]


async def _rotate(identity: RotatingIdentity) -> None:
    while True:
        await asyncio.sleep(EVERY / 2)
        await identity.renew("benchmark")
        await asyncio.sleep(EVERY / 2)


async def leaks(target: str, authority: Authority, server: int) -> list[Row]:
    """What is left of many rotations, in the client's process and in the server's."""
    async with RotatingIdentity(LocalSource(authority)) as identity:
        async with rotating_channel(target, identity, drain=0) as channel:
            call = channel.unary_unary(METHOD)

            async def rotation() -> None:
                replaced = channel._replaced
                await identity.renew("benchmark")
                await replaced.wait()
                await asyncio.gather(*channel._drains.values())
                await call(REQUEST)

            rotating = await _watch(rotation, server)

        async def reopening() -> None:
            await identity.renew("benchmark")
            async with plain_channel(target, identity) as plain:
                await plain.unary_unary(METHOD)(REQUEST)

        peer = await _watch(reopening, server)
    name = f"{ROTATIONS} rotations"
    slope, error = rotating["slope"]
    return [
        Row(f"{name}: file descriptors, client", rotating["client"], "more", "none"),
        Row(f"{name}: file descriptors, server", rotating["server"], "more", "none"),
        Row(f"{name}: channels", rotating["channels"], "more", "none"),
        Row(f"{name}: tasks", rotating["tasks"], "more", "none"),
        Row(f"{name}: memory, client", slope, f"KiB each (+-{2 * error:.2g})", "within noise"),
        Row(f"{name}, by hand with grpc.aio: memory", peer["slope"][0], "KiB each", ""),
    ]


async def _watch(step: Callable[[], Awaitable[None]], server: int) -> dict[str, Any]:
    """What grows over many steps."""

    async def look() -> dict[str, int]:
        await asyncio.sleep(1)  # The server notices later than the client that a connection is over.
        gc.collect()
        channels = sum(isinstance(thing, grpc.aio.Channel) for thing in gc.get_objects())
        found = {"client": _descriptors(os.getpid()), "server": _descriptors(server)}
        return {**found, "channels": channels, "tasks": len(asyncio.all_tasks())}

    for _ in range(WARM):
        await step()
    before, memory = await look(), []
    for number in range(ROTATIONS):
        await step()
        if number % 10 == 9:
            gc.collect()
            memory.append(_resident())
    after = await look()
    return {**{name: after[name] - before[name] for name in before}, "slope": _slope(memory)}


def _descriptors(process: int) -> int:
    return len(os.listdir(f"/proc/{process}/fd"))


def _resident() -> float:
    """Memory of this process, in KiB."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1024


def _slope(memory: list[float]) -> tuple[float, float]:
    """The slope of memory over rotations, and its standard error, in KiB each.

    The error takes blocks for independent, not points: memory grows in steps.
    """
    blocks = [
        float(np.polyfit(np.arange(len(part)) * 10, part, 1)[0])
        for part in np.array_split(np.array(memory), 5)
    ]
    return float(np.polyfit(np.arange(len(memory)) * 10, memory, 1)[0]), statistics.stdev(blocks) / 5**0.5


async def _rows() -> list[Row]:
    async with served() as (target, authority, server):
        async with RotatingIdentity(LocalSource(authority)) as identity:
            found = await steady(target, identity)
            found += await tail(target, identity)
        return found + await leaks(target, authority, server)


def rows() -> list[Row]:
    """All figures of the rotating channel."""
    return asyncio.run(_rows())
