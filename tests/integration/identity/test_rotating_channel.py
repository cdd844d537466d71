"""A rotating channel is a grpc.aio channel in every respect, and one identity after the other."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import dpmesh
from dpmesh.errors import ConfigError, IdentityError
from dpmesh.identity.ca.authority import LocalSource
from dpmesh.identity.rotation.rotating_identity import RotatingIdentity
from dpmesh_grpc import aio_client_interceptors, check_channel
from dpmesh_grpc.rotation.channel import rotating_channel
from dpmesh_grpc.rotation.identity_channel import EXPIRED, OUTLIVED
from tests.support.mutual_tls import (
    ANSWERS,
    ARITIES,
    Issuer,
    Service,
    authority,
    call,
    method,
    serving,
    stream,
    until,
)

READY = grpc.ChannelConnectivity.READY
BASES = {
    "unary_unary": (grpc.aio.UnaryUnaryMultiCallable, grpc.aio.UnaryUnaryCall),
    "unary_stream": (grpc.aio.UnaryStreamMultiCallable, grpc.aio.UnaryStreamCall),
    "stream_unary": (grpc.aio.StreamUnaryMultiCallable, grpc.aio.StreamUnaryCall),
    "stream_stream": (grpc.aio.StreamStreamMultiCallable, grpc.aio.StreamStreamCall),
}


@pytest.fixture
async def stack():
    async with AsyncExitStack() as entered:
        yield entered


class Rig:
    """A server, a client's identity, and channels between them."""

    async def start(self, stack: AsyncExitStack) -> Rig:
        self.stack = stack
        self.authority = authority()
        self.service = Service()
        self.issuer = Issuer(LocalSource(self.authority))
        ours = RotatingIdentity(LocalSource(self.authority, server=True))
        self.server = await stack.enter_async_context(ours)
        self.client = await stack.enter_async_context(RotatingIdentity(self.issuer))
        self.target = await stack.enter_async_context(serving(self.server, self.service.handlers()))
        return self

    async def channel(self, **options):
        return await self.stack.enter_async_context(rotating_channel(self.target, self.client, **options))

    async def rotate(self, channel) -> None:
        """Rotates, and waits until the channel has followed."""
        before = channel._in_force
        await self.client.renew("test")
        await until(lambda: channel._in_force is not before)


@pytest.fixture
async def rig(stack):
    return await Rig().start(stack)


@pytest.mark.parametrize("arity", ARITIES)
async def test_every_arity_before_and_after_a_rotation(rig, arity):
    channel = await rig.channel()
    assert isinstance(channel, grpc.aio.Channel)
    multicallable = method(channel, arity)
    assert isinstance(multicallable, BASES[arity][0])
    for _ in range(3):
        requests = stream(b"a", b"b") if arity.startswith("stream") else b"ab"
        answer = multicallable(requests)
        assert isinstance(answer, BASES[arity][1])
        got = b"".join([part async for part in answer]) if arity.endswith("stream") else await answer
        assert got == ANSWERS[arity]
        assert await answer.code() is grpc.StatusCode.OK
        assert answer.done()
        await rig.rotate(channel)
    assert len(rig.service.names) == 3
    assert [len(certificates) for certificates in rig.service.connections.values()] == [1, 1, 1]


async def test_write_and_read(rig):
    channel = await rig.channel()
    echo = method(channel, "stream_stream")()
    await echo.write(b"1")
    assert await echo.read() == b"1"
    await rig.rotate(channel)
    await echo.write(b"2")  # It goes on under the identity that it began with.
    assert await echo.read() == b"2"
    await echo.done_writing()
    assert await echo.read() is grpc.aio.EOF
    collect = method(channel, "stream_unary")()
    for part in (b"x", b"y"):
        await collect.write(part)
    await collect.done_writing()
    assert await collect == b"xy"
    ticks = method(channel, "ticks", "unary_stream")(b"t")
    assert [await ticks.read(), await ticks.read()] == [b"t", b"t"]
    assert ticks.cancel()
    assert len(rig.service.names) == 2


async def test_generated_stubs_do_not_notice(rig, stack):
    servicer = health.aio.HealthServicer()
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    identity = rig.server.current
    credentials = grpc.ssl_server_credentials(
        [(identity.key, identity.certificates)], identity.trust_bundle, True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    stack.push_async_callback(server.stop, None)
    async with rotating_channel(f"127.0.0.1:{port}", rig.client) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        for _ in range(2):
            assert (await stub.Check(health_pb2.HealthCheckRequest())).status == 1
            await rig.rotate(channel)
        watch.cancel()


async def test_what_a_call_is_given_reaches_the_server(rig):
    channel = await rig.channel(compression=grpc.Compression.Gzip)
    await call(channel, "unary_unary", metadata=(("key", "value"),), wait_for_ready=True, timeout=60)
    assert ("key", "value") in rig.service.metadata
    agent = dict(rig.service.metadata)["user-agent"]
    assert agent.startswith("grpc-python-asyncio/")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in method(channel, "ticks", "unary_stream")(b"", timeout=0.1):
            pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/test.Echo/none")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_serializers_and_registered_method_by_position_and_by_name(rig):
    channel = await rig.channel()
    positional = channel.unary_unary("/test.Echo/unary_unary", str.encode, bytes.decode, True)
    named = channel.unary_unary(
        "/test.Echo/unary_unary",
        request_serializer=str.encode,
        response_deserializer=bytes.decode,
        _registered_method=True,
    )
    assert await positional("a") == await named("a") == "a"


class Slow(grpc.aio.UnaryUnaryClientInterceptor):
    """Holds RPCs back before they begin."""

    def __init__(self) -> None:
        self.entered, self.leave, self.count = asyncio.Event(), asyncio.Event(), 0

    async def intercept_unary_unary(self, continuation, client_call_details, request):
        self.count += 1
        self.entered.set()
        await self.leave.wait()
        return await continuation(client_call_details, request)


async def test_an_rpc_that_waits_in_an_interceptor_survives_the_rotation(rig):
    slow = Slow()
    channel = await rig.channel(interceptors=[slow])
    waiting = asyncio.ensure_future(call(channel, "unary_unary"))
    await slow.entered.wait()
    await rig.rotate(channel)
    await asyncio.sleep(0.05)
    slow.leave.set()
    assert await waiting == b"ab"
    await rig.rotate(channel)
    assert await call(channel, "unary_unary") == b"ab"
    assert slow.count == 2


async def test_dpmesh_own_interceptors_are_found(rig, tmp_path):
    # The rig's service has no proto, and its messages are bytes.
    config = {"ledger": {"url": "memory:"}, "grpc": {"pass_unjudged": ["/test.Echo/*"]}}
    async with dpmesh.open(config) as mesh:
        channel = await rig.channel(interceptors=aio_client_interceptors(mesh))
        check_channel(channel)
        assert await call(channel, "unary_unary") == b"ab"
    with pytest.raises(ConfigError):
        check_channel(await rig.channel())


async def test_an_rpc_that_outlives_the_drain_ends_with_unavailable(rig):
    channel = await rig.channel(drain=0.3)
    ticks = method(channel, "ticks", "unary_stream")(b"t")
    echo = method(channel, "stream_stream")()
    collect = method(channel, "stream_unary")()
    never = method(channel, "never", "unary_unary")(b"")
    assert await ticks.read() == b"t"
    await echo.write(b"1")
    await collect.write(b"1")
    assert await echo.read() == b"1"
    started = time.monotonic()
    await rig.rotate(channel)
    for waiting in (
        asyncio.ensure_future(read_all(ticks)),
        asyncio.ensure_future(echo.read()),
        collect,
        never,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await waiting
        assert (caught.value.code(), caught.value.details()) == (OUTLIVED.code, OUTLIVED.text)
    for ended in (ticks, echo, collect, never):
        assert await ended.code() is grpc.StatusCode.UNAVAILABLE
        assert ended.done()
        assert not ended.cancelled()
    assert 0.25 < time.monotonic() - started < 10
    assert await call(channel, "unary_unary") == b"ab"
    await until(lambda: not channel._drains)


async def read_all(ticks):
    while await ticks.read() is not grpc.aio.EOF:
        pass


async def test_a_call_that_its_caller_cancels_is_cancelled(rig):
    channel = await rig.channel()
    ticks = method(channel, "ticks", "unary_stream")(b"t")
    assert await ticks.read() == b"t"
    task = asyncio.ensure_future(read_all(ticks))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await ticks.code() is grpc.StatusCode.CANCELLED


async def test_states(rig):
    channel = await rig.channel()
    assert channel.get_state() is grpc.ChannelConnectivity.IDLE
    async with asyncio.timeout(60):
        await channel.channel_ready()
        assert channel.get_state() is READY
        await rig.rotate(channel)
        assert channel.get_state() is READY  # It was connected before it was put in force.
        watcher = asyncio.ensure_future(channel.wait_for_state_change(READY))
        await rig.rotate(channel)
        await asyncio.sleep(0.05)
        assert not watcher.done()
        await channel.close()
        await asyncio.wait([watcher])
    assert channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
    assert watcher.exception() is None or isinstance(watcher.exception(), grpc.aio.UsageError)
    with pytest.raises(grpc.aio.UsageError):
        method(channel, "unary_unary")(b"")
    with pytest.raises(ValueError):
        await channel.close(-1)
    await channel.close()


async def test_closing_leaves_no_task_and_waits_for_its_grace(rig):
    before = asyncio.all_tasks()
    slow = Slow()
    channel = rotating_channel(rig.target, rig.client)
    old = method(channel, "stream_stream")()
    await old.write(b"1")
    assert await old.read() == b"1"
    await rig.rotate(channel)
    new = method(channel, "stream_stream")()
    await new.write(b"1")
    assert await new.read() == b"1"
    closing = asyncio.ensure_future(channel.close(600))
    await asyncio.sleep(0.1)
    for echo in (old, new):  # Also those that were draining.
        await echo.write(b"2")
        assert await echo.read() == b"2"
        await echo.done_writing()
        assert await echo.read() is grpc.aio.EOF
    await asyncio.wait_for(closing, 60)
    del slow, old, new
    await until(
        lambda: (
            not [
                t
                for t in asyncio.all_tasks() - before
                if t is not asyncio.current_task() and "_server" not in repr(t) and "AioServer" not in repr(t)
            ]
        )
    )


async def test_closing_during_a_rotation(rig):
    channel = await rig.channel()
    await rig.client.renew("test")
    await asyncio.sleep(0)
    await channel.close()
    assert channel._rotation.done()
    assert not channel._drains


async def test_the_old_identity_serves_until_the_new_one_connects(rig, caplog, monkeypatch):
    monkeypatch.setattr("dpmesh_grpc.rotation.channel.CONNECT", 0.3)
    channel = await rig.channel()
    assert await call(channel, "unary_unary") == b"ab"
    stranger = LocalSource(authority())  # Another root: the server refuses it, and it the server.
    good, rig.issuer.source = rig.issuer.source, stranger
    await rig.client.renew("test")
    for _ in range(5):
        assert await call(channel, "unary_unary") == b"ab"
        await asyncio.sleep(0.1)
    await until(lambda: "no connection under the new identity" in caplog.text)
    assert await call(channel, "unary_unary") == b"ab"
    assert len(rig.service.names) == 1
    monkeypatch.setattr("dpmesh_grpc.rotation.channel.CONNECT", 60.0)
    rig.issuer.source = good
    await rig.client.renew("test")
    await until(lambda: channel._in_force.generation == 3)
    assert await call(channel, "unary_unary") == b"ab"
    assert len(rig.service.names) == 2


@pytest.mark.parametrize("arity", ARITIES)
async def test_without_an_identity_rpcs_are_calls_that_end_unavailable(rig, arity):
    identity = RotatingIdentity(LocalSource(rig.authority))
    await identity.__aenter__()
    async with rotating_channel(rig.target, identity) as channel:
        assert await call(channel, arity) == ANSWERS[arity]
        await identity.__aexit__(None, None, None)
        requests = stream(b"a") if arity.startswith("stream") else b"a"
        refused = method(channel, arity)(requests, wait_for_ready=True)
        assert isinstance(refused, BASES[arity][1])
        assert refused.done()
        assert (await refused.code(), await refused.details()) == (EXPIRED.code, EXPIRED.text)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, arity)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        if arity.startswith("stream"):
            with pytest.raises(grpc.aio.AioRpcError):
                await method(channel, arity)().write(b"")
        with pytest.raises(IdentityError):
            rotating_channel(rig.target, identity)


@pytest.mark.parametrize(
    "wrong",
    [
        {"options": [("grpc.use_local_subchannel_pool", 0)]},
        {"options": [("grpc.ssl_session_cache", object())]},
        {"options": [("grpc.ssl_target_name_override", "x")]},
        {"drain": -1.0},
        {"drain": float("inf")},
    ],
)
async def test_what_would_link_identities_is_refused(rig, wrong):
    with pytest.raises(ConfigError):
        rotating_channel(rig.target, rig.client, **wrong)


async def test_a_server_under_another_name_is_refused_and_can_be_named(rig):
    channel = await rig.channel(server_name="other.test")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, "unary_unary")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    named = await rig.channel(server_name="fleet.test", options=[("grpc.use_local_subchannel_pool", 1)])
    assert await call(named, "unary_unary") == b"ab"
