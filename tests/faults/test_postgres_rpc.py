"""A thousand RPCs, from sixteen processes, against a budget for a hundred messages."""

from __future__ import annotations

import asyncio
import os
import select
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

import dpmesh
from benchmarks import telemetry_pb2 as pb
from benchmarks import telemetry_pb2_grpc
from dpmesh.accounting import AMOUNT
from dpmesh.ledger import inspect
from dpmesh_grpc import aio_client_interceptors, aio_server_interceptors
from tests.faults.holders import MARGIN, Record, check, feel_pulse
from tests.support import children
from tests.support.postgres import Server
from tests.support.proxy import Proxy

PROCESSES = 16
RPCS = 1000
MESSAGES = 100
EPSILON = 4  # of one message
DEADLINE = 120.0
GOOD = grpc.StatusCode.OK.name
REFUSED = {grpc.StatusCode.RESOURCE_EXHAUSTED.name, grpc.StatusCode.DEADLINE_EXCEEDED.name}


def mesh(url: str, patience: float | None = None) -> dpmesh.Mesh:
    """A mesh whose ledger waits as long as it does, or longer: for tests in which nothing is done to the ledger."""
    budget = {"name": "device", "epsilon": MESSAGES * EPSILON, "accounting": "pure", "window": "lifetime"}
    made = dpmesh.open({"ledger": {"url": url}, "budget": [budget]})
    if patience is not None:
        made.ledger._timeout = patience
        store: Any = made.ledger._store
        if url.startswith("sqlite:"):
            store._busy_timeout = 0.8 * patience
        else:
            store._charging._timeout = store._reading._timeout = 0.8 * patience
    return made


def reading(device: str) -> pb.Reading:
    return pb.Reading(device=device, temperature=21.5, pressure=1013, humidity=55, zone="east")


def hear(told: int, count: int) -> bytes:
    """What children say; fails if they say nothing for some minutes."""
    assert select.select([told], [], [], 240)[0], "a child has failed"
    return os.read(told, count)


class Gate:
    """Processes that wait for one moment: forked children wait until their parent opens it."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()

    async def wait(self) -> None:
        """In a child: until it is open."""
        os.close(self._writer)
        await asyncio.to_thread(os.read, self._reader, 1)

    def open(self) -> None:
        os.close(self._writer)
        os.close(self._reader)


def serve(url: str, tell: int, gate: Gate) -> Callable[[], int]:
    """A server until the gate opens; it returns how many messages its handler has received."""

    async def run() -> int:
        received = 0

        class Telemetry(telemetry_pb2_grpc.TelemetryServicer):
            async def Report(self, request: pb.Reading, context: Any) -> pb.Ack:
                nonlocal received
                received += 1
                return pb.Ack(received=received)

        async with mesh(url) as guard:
            server = grpc.aio.server(interceptors=aio_server_interceptors(guard))
            telemetry_pb2_grpc.add_TelemetryServicer_to_server(Telemetry(), server)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            os.write(tell, port.to_bytes(4, "big"))
            await gate.wait()
            await server.stop(1)
        return received

    return lambda: asyncio.run(run())


@asynccontextmanager
async def connected(url: str, port: int, patience: float | None = None) -> AsyncIterator[Any]:
    async with mesh(url, patience) as guard:
        interceptors = aio_client_interceptors(guard)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", interceptors=interceptors) as channel:
            await channel.channel_ready()
            yield telemetry_pb2_grpc.TelemetryStub(channel)


async def call(stub: Any, deadline: float = DEADLINE, device: str = "one") -> tuple[str, float]:
    """An RPC's status, and how long it took."""
    began = time.monotonic()
    try:
        await stub.Report(reading(device), timeout=deadline)
    except grpc.aio.AioRpcError as error:
        return error.code().name, time.monotonic() - began
    return GOOD, time.monotonic() - began


def many(
    url: str, port: int, count: int, width: int, ready: int, gate: Gate
) -> Callable[[], list[tuple[str, float]]]:
    """A client that makes RPCs when the gate opens, so many at a time."""

    async def run() -> list[tuple[str, float]]:
        async with connected(url, port, DEADLINE / 2) as stub:
            os.write(ready, b".")
            await gate.wait()
            turns = asyncio.Semaphore(width)

            async def one() -> tuple[str, float]:
                async with turns:
                    return await call(stub)

            return await asyncio.gather(*[one() for _ in range(count)])

    return lambda: asyncio.run(run())


def the_rest(url: str, port: int) -> Callable[[], int]:
    """A client that makes RPCs until one is refused; returns how many were not."""

    async def run() -> int:
        async with connected(url, port, DEADLINE / 2) as stub:
            count = 0
            while (await call(stub))[0] == GOOD:
                count += 1
            return count

    return lambda: asyncio.run(run())


@pytest.mark.parametrize("width", [RPCS, 2], ids=["all at once", "two at a time"])
def test_a_thousand_rpcs_against_a_budget_for_a_hundred(make_ledger, width):
    """Sixteen processes with a ledger in PostgreSQL make a thousand RPCs for one unit, all at once
    or two in each process, which then takes slices.

    The handler receives at most what the budget covers. All others are refused before their deadline, because the
    budget is used up or the rest of it is in other processes' slices. When these are returned, one more process gets
    exactly the rest.
    """
    with Server(max_connections=60) as server:
        url = make_ledger(server)
        told, tell = os.pipe()
        end = Gate()
        serving = children.start(serve(url, tell, end))
        start = Gate()  # not before: the server would keep it shut
        port = int.from_bytes(hear(told, 4), "big")
        shares = [RPCS // PROCESSES + (i < RPCS % PROCESSES) for i in range(PROCESSES)]
        clients = [children.start(many(url, port, share, width, tell, start)) for share in shares]
        for _ in range(PROCESSES):
            assert hear(told, 1) == b"."
        began = time.monotonic()
        start.open()
        results = [result for client in clients for result in children.finish(client)]
        took = time.monotonic() - began
        codes = Counter(code for code, _ in results)
        debited = sum(account.spent for account in inspect(url).accounts)
        rest = children.run(the_rest(url, port))
        end.open()
        received = children.finish(serving)
        os.close(told)
        os.close(tell)

        assert len(results) == RPCS
        assert codes[GOOD] <= MESSAGES
        assert set(codes) <= {GOOD, *REFUSED}, codes
        assert max(seconds for _, seconds in results) <= DEADLINE + MARGIN
        # What had an answer was received; what was given up at its deadline may have been, or was charged in vain.
        in_vain = codes[grpc.StatusCode.DEADLINE_EXCEEDED.name]
        assert codes[GOOD] + rest <= received <= MESSAGES
        assert codes[GOOD] + rest >= MESSAGES - in_vain
        assert codes[GOOD] >= MESSAGES // 2
        # The leases are returned: what is debited is what was received.
        assert codes[GOOD] * EPSILON * AMOUNT <= debited <= (codes[GOOD] + in_vain) * EPSILON * AMOUNT
        assert inspect(url).accounts[0].spent <= MESSAGES * EPSILON * AMOUNT
        check(url, [])
        print(f"{dict(codes)} in {took:.1f} s, then {rest} more; {MESSAGES - codes[GOOD]} stuck in slices")


def test_rpcs_in_a_partition_end_by_their_deadline(postgres, make_ledger):
    """The database can't be reached: an RPC is refused at its own deadline, or when the ledger's limit is over.

    Nothing reaches the handler, and RPCs are served again as soon as the network is back.
    """
    url = make_ledger(postgres)

    def client(proxy: Proxy, port: int) -> Callable[[], dict[str, list[tuple[str, float]]]]:
        async def run() -> dict[str, list[tuple[str, float]]]:
            found = {}
            stops: list[Record] = []
            threading.Thread(target=feel_pulse, args=(stops.append,), daemon=True).start()
            async with connected(proxy.url, port) as stub:
                found["before"] = [await call(stub)]
                os.write(tell, b"1")
                await asyncio.to_thread(os.read, go_on, 1)
                calls = [call(stub, deadline, f"device {deadline}") for deadline in (0.5, 1, 2, 20, 30)]
                found["during"] = await asyncio.gather(*calls)
                os.write(tell, b"2")
                await asyncio.to_thread(os.read, go_on, 1)
                found["after"] = [await call(stub, device="another") for _ in range(3)]
            found["stopped"] = [("", stop.amount / 1e9) for stop in stops]
            return found

        return lambda: asyncio.run(run())

    told, tell = os.pipe()
    go_on, order = os.pipe()
    end = Gate()
    serving = children.start(serve(url, tell, end))
    port = int.from_bytes(hear(told, 4), "big")
    with Proxy.before(url) as proxy:
        sending = children.start(client(proxy, port))
        assert hear(told, 1) == b"1"
        proxy.stall()
        os.write(order, b".")
        assert hear(told, 1) == b"2"
        proxy.resume()
        os.write(order, b".")
        found = children.finish(sending)
    end.open()
    received = children.finish(serving)
    for pipe in (told, tell, go_on, order):
        os.close(pipe)

    assert [code for code, _ in found["before"]] == [GOOD]
    codes = [code for code, _ in found["during"]]
    assert codes == ["DEADLINE_EXCEEDED"] * 3 + ["UNAVAILABLE"] * 2
    stopped = sum(seconds for _, seconds in found["stopped"])
    for (_, seconds), most in zip(found["during"], (0.5, 1, 2, 5, 5), strict=True):
        assert seconds <= most + MARGIN + stopped
    assert found["after"][-1][0] == GOOD
    assert received == 1 + sum(code == GOOD for code, _ in found["after"])
    check(url, [])
    print(found)
