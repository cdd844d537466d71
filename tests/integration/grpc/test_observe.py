"""Mode observe: everything is accounted for, and nothing changes."""

from __future__ import annotations

import grpc
import pytest
from stations import rig
from stations import stations_pb2 as pb
from stations.rig import BAD, PREFIX, reading, stream


@pytest.fixture
async def mesh(open_mesh):
    return await open_mesh(mode="observe", epsilon=3.0)


async def test_requests_pass_as_they_are(mesh, serve, connect, caplog):
    seen = rig.Seen()
    stub = await connect(await serve(handlers=seen.handlers()), mesh)
    await stub.Report(reading())
    await stub.ReportAll(stream(reading(), BAD, reading()))
    assert seen == [reading(), reading(), BAD, reading()]
    assert "observe mode" in caplog.text
    (account,) = await mesh.ledger.accounts()
    assert account.spent == 3 * 10**9
    await stub.Report(reading())
    assert seen[-1] == reading()
    assert "would have been refused" in caplog.text


async def test_wrong_types_pass_and_are_logged(mesh, serve, connect, caplog):
    seen = rig.Seen()
    stub = await connect(await serve(handlers=seen.handlers()), mesh)
    await stub.channel.unary_unary(PREFIX + "Report")(reading().SerializeToString())
    assert seen == [reading()]
    assert "WRONG_TYPE" in caplog.text


async def test_calls_are_not_marked_and_stay_compressed(mesh, serve, connect, stack):
    metadata = []

    async def report(request, context):
        metadata.append(dict(context.invocation_metadata()))
        return pb.Plain()

    wire = await stack.enter_async_context(rig.Wire(await serve(handlers={"Report": report})))
    stub = await connect(wire.target, mesh, compression=grpc.Compression.Gzip)
    await stub.Report(reading(payload=bytes(20_000)))
    assert wire.sent < 6_000
    assert "dpmesh-policy" not in metadata[0]


async def test_responses_pass_with_all_their_words(mesh, serve, connect):
    async def ask(request, context):
        context.set_trailing_metadata((("next-page", "7"),))
        return reading()

    def watch(request, context):
        yield reading()
        raise ValueError("all of this text")

    async def ask_all(requests, context):
        await context.abort(grpc.StatusCode.NOT_FOUND, "this text")

    handlers = {"Ask": ask, "Watch": watch, "AskAll": ask_all, "Report": ask_all}
    stub = await connect(await serve(mesh=mesh, handlers=handlers))
    call = stub.Ask(pb.Plain())
    assert await call == reading()
    assert ("next-page", "7") in tuple(await call.trailing_metadata())
    call = stub.Watch(pb.Plain())
    assert await call.read() == reading()
    with pytest.raises(grpc.aio.AioRpcError, match="all of this text"):
        await call.read()
    for call in (stub.AskAll(), stub.Report(reading())):
        with pytest.raises(grpc.aio.AioRpcError, match="this text"):
            await call
    (account,) = await mesh.ledger.accounts()
    assert account.spent == 2 * 10**9


async def test_required_protection_is_not_required(mesh, serve, connect, caplog):
    seen = rig.Seen()
    stub = await connect(await serve(mesh=mesh, handlers=seen.handlers()))
    await stub.Strict(reading())
    assert seen == [reading()]
    assert "requires protected requests" in caplog.text
