"""Rotation under load and under faults: no RPC fails that an identity would have carried, and none is sent without."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import sys
import time
from contextlib import AsyncExitStack
from types import SimpleNamespace

import grpc
import grpc.aio
import grpc.aio._channel
import pytest

from dpmesh.identity.ca.authority import LocalSource
from dpmesh.identity.rotation.rotating_identity import RotatingIdentity
from dpmesh_grpc.rotation import identity_channel, server_credentials
from dpmesh_grpc.rotation.channel import rotating_channel
from dpmesh_grpc.rotation.identity_channel import EXPIRED
from tests.support.mutual_tls import (
    ANSWERS,
    ARITIES,
    Issuer,
    Service,
    authority,
    call,
    method,
    serving,
    until,
)


@pytest.fixture
async def stack():
    async with AsyncExitStack() as entered:
        yield entered


async def rotating(stack, source, **options) -> RotatingIdentity:
    return await stack.enter_async_context(RotatingIdentity(source, **options))


class Load:
    """Workers in all four arities, as fast as they can.

    Attributes:
        count: RPCs that ended well.
        failed: How the others ended.
    """

    def __init__(self, channel: grpc.aio.Channel, workers: int = 64) -> None:
        self.count, self.failed = 0, []
        self._going = True
        self._tasks = [
            asyncio.ensure_future(self._work(channel, ARITIES[number % len(ARITIES)]))
            for number in range(workers)
        ]

    async def _work(self, channel, arity: str) -> None:
        while self._going:
            try:
                assert await call(channel, arity) == ANSWERS[arity]
            except BaseException as error:
                self.failed.append(error)
                raise
            self.count += 1

    async def stop(self) -> None:
        self._going = False
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def follow(channel, identity) -> None:
    """Rotates, and waits until the channel has followed."""
    before = channel._in_force
    await identity.renew("test")
    await until(lambda: channel._in_force is not before)


@pytest.fixture
def soon_over(monkeypatch):
    """RPCs have all the time that they need, and connections without any still end within two seconds."""
    uniform = identity_channel._random.uniform
    within = SimpleNamespace(uniform=lambda low, high: uniform(low, min(high, 2.0)))
    monkeypatch.setattr(identity_channel, "_random", within)


async def test_thirty_rotations_under_64_workers_in_all_arities(stack, soon_over):
    fleet, service = authority(), Service()
    server = await rotating(stack, LocalSource(fleet, server=True))
    device = await rotating(stack, LocalSource(fleet))
    target = await stack.enter_async_context(serving(server, service.handlers()))
    channel = await stack.enter_async_context(rotating_channel(target, device, drain=60.0))
    load = Load(channel)
    for rotation in range(30):
        if rotation % 2:  # The server's certificate changes under load too.
            await server.renew("test")
        count = load.count
        await follow(channel, device)
        await until(lambda count=count: load.count >= count + 64)
    await load.stop()
    assert load.failed == []
    assert load.count > 30 * 64
    # Each identity has a connection of its own, and each connection one identity; no TLS session was taken up again.
    certificates = [certificate for seen in service.connections.values() for certificate in seen]
    assert len(certificates) == len(set(certificates)) == len(service.connections) == 31
    assert len(service.names) == 31
    assert service.resumed == 0
    await until(lambda: not channel._drains)


async def test_connections_that_the_server_ends_are_made_again_under_the_same_identity(stack, monkeypatch):
    # A connection is asked to end after a second, as if certificates lived for two. They live on: an RPC that meets the
    # end of one fails on a machine that stalls just then.
    monkeypatch.setattr(server_credentials, "_AGE", 0.0)
    fleet, service = authority(), Service()
    server = await rotating(stack, LocalSource(fleet, server=True))
    device = await rotating(stack, LocalSource(fleet))
    target = await stack.enter_async_context(serving(server, service.handlers(), aged=True))
    channel = await stack.enter_async_context(rotating_channel(target, device))
    load = Load(channel, workers=8)
    await until(lambda: len(service.connections) >= 3)
    await load.stop()
    assert load.failed == []
    assert len(service.names) == 1
    assert service.resumed == 0


@pytest.mark.parametrize("lifetimes", [1, 2, 3])
async def test_the_issuer_is_down(stack, lifetimes):
    life = 2.0
    fleet, service = authority(), Service()
    server = await rotating(stack, LocalSource(fleet, server=True))
    issuer = Issuer(LocalSource(fleet, life=life))
    device = await rotating(stack, issuer)
    target = await stack.enter_async_context(serving(server, service.handlers()))
    channel = await stack.enter_async_context(rotating_channel(target, device, drain=1.0))
    await follow(channel, device)  # A whole life is left, and no other identity is on its way.
    issuer.down = True
    back = time.time() + lifetimes * life
    ends = device.current.not_after
    assert await call(channel, "unary_unary") == b"ab"
    stream = method(channel, "ticks", "unary_stream")(b"t")
    assert await stream.read() == b"t"
    outcomes = []
    while time.time() < back or not outcomes:
        begun = time.time()
        found = await outcome(channel)
        outcomes.append((begun, time.time(), found))
        await asyncio.sleep(0.02)
    # An RPC that meets the end may end either way.
    for begun, ended, found in outcomes:
        if ended < ends - 0.05:
            assert found is None  # The last good identity serves until it is over,
        elif begun > ends + 0.05:
            assert (found.code(), found.details()) == (EXPIRED.code, EXPIRED.text)  # and not a moment longer.
    assert outcomes[0][2] is None
    if lifetimes > 1:
        assert outcomes[-1][2] is not None
        # What was under way ended too: at the server's hands, or after the drain.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            while await stream.read() is not grpc.aio.EOF:
                pass
        assert caught.value.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE)
    issuer.source, issuer.down = LocalSource(fleet), False
    await device.renew("test")  # What would come by itself, after at most 30 s.
    async with asyncio.timeout(60):
        await channel.channel_ready()
        while await outcome(channel) is not None:
            await asyncio.sleep(0.02)
    await follow(channel, device)
    assert await call(channel, "unary_unary") == b"ab"
    assert len(service.names) >= 2


async def outcome(channel) -> grpc.aio.AioRpcError | None:
    try:
        await call(channel, "unary_unary", timeout=60)
    except grpc.aio.AioRpcError as error:
        return error
    return None


async def test_a_certificate_expires_in_the_middle_of_a_stream(stack):
    fleet, service = authority(), Service()
    server = await rotating(stack, LocalSource(fleet, server=True))
    issuer = Issuer(LocalSource(fleet, life=2.0))
    device = await rotating(stack, issuer)
    target = await stack.enter_async_context(serving(server, service.handlers()))
    channel = await stack.enter_async_context(rotating_channel(target, device, drain=30.0))
    ends = device.current.not_after
    issuer.source = LocalSource(fleet)  # The next one lives for longer.
    ticks = method(channel, "ticks", "unary_stream")(b"t")
    count = 0
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in ticks:
            count += 1
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert 0 <= time.time() - ends < 10
    assert count > 10
    assert await call(channel, "unary_unary") == b"ab"  # The channel has long had another identity.
    assert len(service.names) >= 2


async def test_the_server_goes_away_and_comes_back_during_rotations(stack):
    fleet, service = authority(), Service()
    server = await rotating(stack, LocalSource(fleet, server=True))
    device = await rotating(stack, LocalSource(fleet))
    options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200)]
    async with serving(server, service.handlers()) as target:
        channel = await stack.enter_async_context(rotating_channel(target, device, options=options))
        assert await call(channel, "unary_unary") == b"ab"
    await device.renew("test")
    found = await outcome(channel)
    assert found.code() is grpc.StatusCode.UNAVAILABLE
    waiting = asyncio.ensure_future(call(channel, "unary_unary", wait_for_ready=True))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    async with serving(server, service.handlers(), port=int(target.rpartition(":")[2])):
        assert await asyncio.wait_for(waiting, 60) == b"ab"
        await until(lambda: channel._in_force.generation == 2)
        assert await call(channel, "unary_unary") == b"ab"


async def test_nothing_is_left_of_40_rotations(stack):
    fleet, service = authority(), Service()
    server = await rotating(stack, LocalSource(fleet, server=True))
    device = await rotating(stack, LocalSource(fleet))
    target = await stack.enter_async_context(serving(server, service.handlers()))
    channel = await stack.enter_async_context(rotating_channel(target, device, drain=0.0))

    async def rotate(times: int) -> tuple[int, int, int]:
        for _ in range(times):
            for arity in ARITIES:
                assert await call(channel, arity) == ANSWERS[arity]
            await follow(channel, device)
        await call(channel, "unary_unary")
        # The server notices later than the client that a connection is over.
        counts = None
        while counts != (counts := count()):
            await asyncio.sleep(0.2)
        return counts

    def count() -> tuple[int, int, int]:
        gc.collect()
        channels = sum(isinstance(thing, grpc.aio._channel.Channel) for thing in gc.get_objects())
        return descriptors(), channels, len(asyncio.all_tasks())

    first = await rotate(5)
    assert first[1] == 1
    await rotate(40)
    # What others left behind may go meanwhile; of each rotation's there would be 40 times as much.
    await until(lambda: all(now <= then for now, then in zip(count(), first, strict=True)))
    assert not channel._drains


async def test_the_example(pytestconfig):
    path = pytestconfig.rootpath / "examples" / "rotation" / "rotation.py"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        path,
        "--seconds",
        "5",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(120):
        out, _ = await process.communicate()
    printed = dict(re.split(r"  +", line) for line in out.decode().splitlines())
    assert process.returncode == 0
    assert printed["failures"] == "0"
    assert int(printed["RPCs"]) > 100
    assert int(printed["client identities"].split()[0]) >= 2


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
