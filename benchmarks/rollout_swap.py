"""What swaps cost: the event loop's time, the RPCs' time, and memory.

RPCs with swaps and without take turns, second by second, so that the machine's moods hit both alike.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio

import dpmesh
from benchmarks import telemetry_pb2 as pb
from benchmarks import telemetry_pb2_grpc
from benchmarks.release import CONFIG, reading
from benchmarks.rpc import Collector
from benchmarks.table import Row
from dpmesh.mesh.mesh import Mesh
from dpmesh.v1 import policy_pb2
from dpmesh_grpc import aio_client_interceptors, aio_server_interceptors

CONCURRENCY = 8
ROUNDS = 15
SECONDS = 1.0
LEAK_SWAPS = 10_000
WARM_SWAPS = 1000


def policies() -> tuple[policy_pb2.Policy, policy_pb2.Policy]:
    """Two policies with other costs."""
    made = policy_pb2.Policy(), policy_pb2.Policy()
    for policy, epsilon in zip(made, (2.0, 1.0), strict=True):
        policy.messages[pb.Reading.DESCRIPTOR.full_name].epsilon = epsilon
    return made


@asynccontextmanager
async def rig() -> AsyncIterator[tuple[Mesh, Any]]:
    """A mesh, and the stub of a server that it protects on both sides."""
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(dpmesh.open(CONFIG))
        server = grpc.aio.server(interceptors=aio_server_interceptors(mesh))
        telemetry_pb2_grpc.add_TelemetryServicer_to_server(Collector(), server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, None)
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", interceptors=aio_client_interceptors(mesh))
        await stack.enter_async_context(channel)
        yield mesh, telemetry_pb2_grpc.TelemetryStub(channel)  # type: ignore[no-untyped-call]


def _p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100)[98]


async def _calls(stub: Any, until: float, times: list[float]) -> None:
    message = reading("s")
    while time.perf_counter() < until:
        began = time.perf_counter()
        await stub.Report(message)
        times.append(time.perf_counter() - began)


async def rpcs() -> tuple[float, float]:
    """The 99th percentile of an RPC's time: with one swap a second over that without, and the swap's own on the loop.

    Returns:
        The median of the rounds' ratios; and milliseconds from the end of a swap's thread to the policy in force.
    """
    made = policies()
    async with rig() as (mesh, stub):
        await _calls(stub, time.perf_counter() + 2, [])
        ratios: list[float] = []
        swaps: list[float] = []
        for _ in range(ROUNDS):
            found = []
            for swapping in (False, True):
                times: list[float] = []
                until = time.perf_counter() + SECONDS
                calls = [asyncio.create_task(_calls(stub, until, times)) for _ in range(CONCURRENCY)]
                if swapping:
                    await asyncio.sleep(SECONDS / 2)
                    await mesh.swap(made[len(swaps) % 2])
                    swaps.append(_assignment(mesh))
                await asyncio.gather(*calls)
                found.append(_p99(times))
            ratios.append(found[1] / found[0])
        for _ in range(200):
            await mesh.swap(made[len(swaps) % 2])
            swaps.append(_assignment(mesh))
        return statistics.median(ratios), _p99(swaps) * 1000


def _assignment(mesh: Mesh) -> float:
    """Seconds that the event loop itself spends on a swap: the assignment, and the first flow under the new policy."""
    began = time.perf_counter()
    mesh.snapshot = mesh.snapshot
    mesh.snapshot.billing.price(pb.Reading, "", "request")
    mesh.snapshot.has_rules()
    return time.perf_counter() - began


def _resident() -> float:
    """MB of memory that the process has."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 1e6


async def memory() -> float:
    """How many MB more a process has after 10,000 swaps than after 1,000, with releases between them."""
    made = policies()
    async with dpmesh.open(CONFIG) as mesh:
        before = 0.0
        for number in range(LEAK_SWAPS):
            if number == WARM_SWAPS:
                before = _resident()
            await mesh.swap(made[number % 2])
            await mesh.release(reading("s"))
        return _resident() - before


def rows() -> Iterator[Row]:
    """RPCs under swaps, the event loop, and memory."""
    ratio, blocked = asyncio.run(rpcs())
    yield Row(
        "RPC, p99 with one swap a second over p99 without, median of rounds", ratio, "times", "at most 1.2"
    )
    yield Row("swap, p99 of what the event loop does itself", blocked, "ms", "below 1")
    yield Row(
        f"memory after {LEAK_SWAPS:,} swaps over that after {WARM_SWAPS:,}",
        asyncio.run(memory()),
        "MB",
        "flat",
    )
