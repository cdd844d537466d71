"""Methods without protected messages behave exactly as before: words, metadata, compression, cost."""

from __future__ import annotations

import grpc
import pytest
from stations import rig
from stations import stations_pb2 as pb
from stations.rig import stream

from dpmesh_grpc.aio.arities import STREAM_UNARY, UNARY_UNARY
from dpmesh_grpc.protection.client import Sender
from dpmesh_grpc.protection.server import ServerInterceptor


async def echo(request, context):
    await context.send_initial_metadata((("mood", "good"),))
    context.set_trailing_metadata((("next-page", "7"),))
    return request


def sync_echo(request, context):
    return request


async def echo_chat(requests, context):
    async for request in requests:
        yield request


async def echo_watch(request, context):
    for _ in range(3):
        await context.write(request)


async def echo_all(requests, context):
    return pb.Plain(text="".join([request.text async for request in requests]))


HANDLERS = {"Echo": echo, "EchoChat": echo_chat, "EchoWatch": echo_watch, "EchoAll": echo_all}


async def test_all_arities(mesh, serve, connect):
    stub = await connect(await serve(mesh=mesh, handlers=HANDLERS), mesh)
    call = stub.Echo(pb.Plain(text="a"))
    assert (await call).text == "a"
    assert ("mood", "good") in tuple(await call.initial_metadata())
    assert ("next-page", "7") in tuple(await call.trailing_metadata())
    assert [
        response.text async for response in stub.EchoChat(stream(pb.Plain(text="a"), pb.Plain(text="b")))
    ] == [
        "a",
        "b",
    ]
    assert [response.text async for response in stub.EchoWatch(pb.Plain(text="a"))] == ["a"] * 3
    assert (await stub.EchoAll(iter([pb.Plain(text="a"), pb.Plain(text="b")]))).text == "ab"
    call = stub.EchoAll()
    await call.write(pb.Plain(text="c"))
    await call.done_writing()
    assert (await call).text == "c"
    assert not await mesh.ledger.accounts()


async def test_exceptions_and_aborts_keep_their_words(mesh, serve, connect):
    async def fail(request, context):
        raise ValueError("all of this text")

    async def abort(requests, context):
        await context.abort(grpc.StatusCode.NOT_FOUND, "this text", (("and", "this"),))

    errors = []
    for guard in (None, mesh):
        stub = await connect(await serve(mesh=guard, handlers={"Echo": fail, "EchoAll": abort}), guard)
        for call in (stub.Echo(pb.Plain()), stub.EchoAll()):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            errors.append(
                (caught.value.code(), caught.value.details(), tuple(caught.value.trailing_metadata()))
            )
    assert errors[:2] == errors[2:]
    assert "all of this text" in errors[0][1]


async def test_the_call_is_the_very_same(mesh):
    class Details:
        method = rig.PREFIX + "Echo"
        invocation_metadata = ()
        timeout = metadata = credentials = wait_for_ready = None

    async def nothing(details):
        return None

    assert await ServerInterceptor(mesh).intercept_service(nothing, Details) is None

    async def begin(details, request):
        return details, request

    request = pb.Plain()
    assert await Sender(mesh).send_one(begin, Details, request, UNARY_UNARY) == (Details, request)

    async def begin_stream(details, requests):
        return details

    Details.method = (rig.PREFIX + "EchoAll").encode()
    arity = STREAM_UNARY._replace(guarded=lambda call, end: call)
    assert await Sender(mesh).send_many(begin_stream, Details, stream(), arity) is Details


async def test_a_method_that_is_not_served(mesh, serve, connect):
    stub = await connect(await serve(mesh=mesh), mesh)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.channel.unary_unary("/acme.Nowhere/Nothing", pb.Plain.SerializeToString)(pb.Plain())
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
