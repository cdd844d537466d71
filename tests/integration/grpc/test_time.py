"""Deadlines, cancellation and connections: a slow ledger costs the caller's time, and never lets a value out."""

from __future__ import annotations

import asyncio
import socket
import time

import grpc
import pytest
from stations import rig
from stations import stations_pb2 as pb
from stations.rig import BAD, reading, stream

import dpmesh
from dpmesh_grpc.aio.calls import StreamRefusal, translate
from dpmesh_grpc.status import Failure
from tests.support.mutual_tls import until


class Times(rig.Seen):
    """Also notes how much time each RPC has left when it arrives."""

    def __init__(self):
        self.left = []
        self.metadata = []

    async def one(self, request, context):
        self.left.append(context.time_remaining())
        self.metadata.append(dict(context.invocation_metadata()))
        return await super().one(request, context)


@pytest.fixture
async def mesh(open_mesh):
    # As long as a test has it locked, the ledger does not answer.
    return await open_mesh(patience=20)


@pytest.fixture
def seen():
    return Times()


@pytest.fixture
async def stub(mesh, seen, serve, connect):
    stub = await connect(await serve(handlers=seen.handlers()), mesh)
    await stub.Report(reading("warm"))
    seen.clear()
    return stub


async def test_the_time_of_a_release_is_taken_from_the_deadline(mesh, stub, seen):
    # gRPC tells the server of so long a time in tenths of a second, rounded up.
    with rig.stalled(mesh):
        call = stub.Report(reading("slow"), timeout=60.0)
        await until(lambda: rig.is_waited_for(mesh))
        await asyncio.sleep(0.5)
    await call
    assert 30 < seen.left[-1] < 59.65
    await stub.Report(reading("slow"), timeout=60.0)
    assert 30 < seen.left[-1] <= 60.1
    await stub.Report(reading("slow"))
    assert seen.left[-1] is None or seen.left[-1] > 1e6


@pytest.mark.parametrize("method", ["Report", "ReportWatch", "ReportAll", "ReportChat"])
async def test_no_time_left_is_deadline_exceeded(mesh, stub, seen, method):
    streams = method in ("ReportAll", "ReportChat")
    commits = []
    mesh.ledger.on_commit = commits.append
    with rig.stalled(mesh):
        started = time.monotonic()
        call = getattr(stub, method)(stream(reading("slow")) if streams else reading("slow"), timeout=0.3)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            if method in ("ReportWatch", "ReportChat"):
                await call.read()
            else:
                await call
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert await call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert await call.details() == "Deadline Exceeded"
        assert time.monotonic() - started > 0.25
        assert not commits  # It did not wait for the ledger's answer.
    await asyncio.sleep(0.2)
    assert not seen


@pytest.mark.parametrize("timeout", [0, -1.0])
async def test_without_any_time_nothing_is_released(mesh, seen, serve, connect, timeout):
    stub = await connect(await serve(handlers=seen.handlers()), mesh)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Report(reading(), timeout=timeout)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert await mesh.ledger.accounts() == []
    await stub.Report(reading(), timeout=60)
    assert len(await mesh.ledger.accounts()) == 1


async def cancelled(call):
    assert call.cancel()
    with pytest.raises(asyncio.CancelledError):
        if hasattr(call, "read"):
            await call.read()
        else:
            await call
    assert call.cancelled()
    assert call.done()
    assert await call.code() == grpc.StatusCode.CANCELLED


@pytest.mark.parametrize("method", ["Report", "ReportWatch", "ReportAll", "ReportChat"])
@pytest.mark.parametrize("wait", [0.0, 0.1])
async def test_a_call_that_is_cancelled_during_its_release_sends_nothing(mesh, stub, seen, method, wait):
    streams = method in ("ReportAll", "ReportChat")
    with rig.stalled(mesh):
        call = getattr(stub, method)(stream(reading("slow")) if streams else reading("slow"))
        done = []
        call.add_done_callback(done.append)
        await asyncio.sleep(wait)
        await cancelled(call)
    await asyncio.sleep(0.2)
    assert not seen
    assert done == [call]


@pytest.mark.parametrize("method", ["ReportAll", "ReportChat"])
async def test_what_was_written_before_a_cancellation_does_not_leave_after_it(mesh, stub, seen, method):
    call = getattr(stub, method)()
    await call.write(reading("warm"))
    await until(lambda: seen)
    with rig.stalled(mesh):
        await call.write(reading("slow"))
        await until(lambda: rig.is_waited_for(mesh))
        await cancelled(call)
    await asyncio.sleep(0.2)
    assert [message.station for message in seen] == ["warm"]


async def test_a_callers_own_cancellation_wins_over_a_refusal():
    async def wait(refusal, future):
        try:
            await future
        except asyncio.CancelledError as error:
            translate(error, refusal.failure(None))
            raise

    refusal = StreamRefusal()
    refusal.refuse(Failure(grpc.StatusCode.FAILED_PRECONDITION, "refused"))
    for cancel in ("the caller", "the call"):
        future = asyncio.get_running_loop().create_future()
        waiting = asyncio.create_task(wait(refusal, future))
        await asyncio.sleep(0)
        (waiting if cancel == "the caller" else future).cancel()
        with pytest.raises(asyncio.CancelledError if cancel == "the caller" else grpc.aio.AioRpcError):
            await waiting


async def test_wait_for_ready_waits_and_its_absence_does_not(mesh, seen, connect, stack):
    # Nobody listens on this socket, so connections are refused; it keeps the port for the server, which shares it.
    kept = stack.enter_context(socket.socket())
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    kept.bind(("127.0.0.1", 0))
    target = f"127.0.0.1:{kept.getsockname()[1]}"
    stub = await connect(target, mesh, options=[("grpc.initial_reconnect_backoff_ms", 100)])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Report(reading(), timeout=60)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ReportAll(stream(reading()), timeout=60)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    calls = [stub.Report(reading(), wait_for_ready=True, timeout=60)]
    calls.append(stub.ReportAll(stream(reading()), wait_for_ready=True, timeout=60))
    await asyncio.sleep(0.05)
    server = grpc.aio.server()
    rig.add_handlers(server, seen.handlers())
    server.add_insecure_port(target)
    await server.start()
    stack.push_async_callback(server.stop, None)
    await asyncio.gather(*calls)
    assert len(seen) == 2


async def test_metadata_and_credentials_go_along(open_mesh, seen, stack, connect, serve):
    """Call credentials need a secure channel; local credentials make one over loopback."""
    mesh = await open_mesh(grpc={"pass_metadata": ["who"]})
    server = grpc.aio.server()
    rig.add_handlers(server, seen.handlers())
    port = server.add_secure_port("127.0.0.1:0", grpc.local_server_credentials())
    await server.start()
    stack.push_async_callback(server.stop, None)
    stub = await connect(f"127.0.0.1:{port}", mesh, credentials=grpc.local_channel_credentials())
    sent = grpc.aio.Metadata(("who", "me"), ("dpmesh-policy", "forged"))
    call = stub.Report(reading(), metadata=sent, credentials=grpc.access_token_call_credentials("token"))
    await call
    assert seen.metadata[-1]["who"] == "me"
    assert seen.metadata[-1]["authorization"] == "Bearer token"
    assert seen.metadata[-1]["dpmesh-policy"] == "protected"
    assert tuple(sent) == (("who", "me"), ("dpmesh-policy", "forged"))
    assert tuple(await call.trailing_metadata()) == ()
    assert await call.details() == ""


async def test_concurrent_streams_keep_their_messages_apart(mesh, serve, connect):
    async def stations(requests, context):
        return pb.Plain(text=",".join([request.station async for request in requests]))

    stub = await connect(await serve(handlers={"ReportAll": stations}), mesh)
    calls = [stub.ReportAll(stream(*[reading(f"s{number}")] * 20)) for number in range(20)]
    for number, response in enumerate(await asyncio.gather(*calls)):
        assert response.text == ",".join([f"s{number}"] * 20)


async def test_a_mesh_that_is_closed_refuses(seen, serve, connect, tmp_path):
    closed = dpmesh.open({"ledger": {"url": f"sqlite:///{tmp_path}/closed.db"}})
    stub = await connect(await serve(handlers=seen.handlers()), closed)
    for call in (stub.Report(reading()), stub.ReportAll(stream(reading())), stub.Report(BAD)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        found = rig.status(caught.value)
        assert (found.code, found.info.reason) == (grpc.StatusCode.UNAVAILABLE, "LEDGER_UNAVAILABLE")
    assert not seen
