"""Interceptors that are given twice would charge for each message twice: they are noticed, and nothing leaves."""

from __future__ import annotations

import asyncio
import logging

import grpc
import pytest
from opentelemetry import trace
from stations import rig
from stations import stations_pb2 as pb
from stations.rig import reading, stream

from dpmesh.errors import ConfigError
from dpmesh_grpc import (
    aio_client_interceptors,
    aio_server_interceptors,
    check_server,
    report_health,
    rotating_channel,
)

CALLS = {
    "unary-unary": lambda stub: stub.Report(reading()),
    "unary-stream": lambda stub: stub.ReportWatch(reading()).read(),
    "stream-unary": lambda stub: stub.ReportAll(stream(reading())),
    "stream-stream": lambda stub: stub.ReportChat(stream(reading())).read(),
}
ANSWERS = {
    "unary-unary": lambda stub: stub.Ask(pb.Plain()),
    "unary-stream": lambda stub: stub.Watch(pb.Plain()).read(),
    "stream-unary": lambda stub: stub.AskAll(silence()),
    "stream-stream": lambda stub: stub.Chat(silence()).read(),
}


async def silence():
    """A stream of requests that sends none: gRPC fails one that is written when the RPC has just ended, by chance."""
    await asyncio.Event().wait()
    yield pb.Plain()


class Between(grpc.aio.ServerInterceptor):
    """An interceptor of somebody else, which wraps handlers in its own way."""

    async def intercept_service(self, continuation, details):
        handler = await continuation(details)
        if handler is None or handler.request_streaming or handler.response_streaming:
            return handler

        async def wrapped(request, context):
            return await handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(
            wrapped, handler.request_deserializer, handler.response_serializer
        )


class ClientBetween(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation, details, request):
        return await continuation(details, request)


def answering(mesh):
    async def one(request, context):
        return reading()

    async def many(request, context):
        yield reading()

    return {"Ask": one, "Watch": many, "AskAll": one, "Chat": many, "Echo": echo}


async def echo(request, context):
    return request


async def spent(mesh):
    return sum(account.spent for account in await mesh.ledger.accounts())


@pytest.mark.parametrize("arity", CALLS)
@pytest.mark.parametrize("other", [False, True])
async def test_a_channel_with_two_protects_nothing_and_says_why(open_mesh, serve, connect, arity, other):
    mesh = await open_mesh()
    seen = rig.Seen()
    target = await serve(handlers=seen.handlers())
    more = aio_client_interceptors(await open_mesh() if other else mesh)
    async with grpc.aio.insecure_channel(
        target, interceptors=[*aio_client_interceptors(mesh), ClientBetween(), *more]
    ) as channel:
        stub = rig.stations_pb2_grpc.StationsStub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match="given twice") as caught:
            await CALLS[arity](stub)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert rig.status(caught.value).info.reason == "INTERCEPTED_TWICE"
    assert seen == []
    assert await spent(mesh) == 0


async def test_a_writer_on_a_channel_with_two_hears_of_it(mesh, serve):
    seen = rig.Seen()
    target = await serve(handlers=seen.handlers())
    ours = [*aio_client_interceptors(mesh), *aio_client_interceptors(mesh)]
    async with grpc.aio.insecure_channel(target, interceptors=ours) as channel:
        call = rig.stations_pb2_grpc.StationsStub(channel).ReportAll()
        with pytest.raises(asyncio.InvalidStateError):
            await call.write(reading())
        with pytest.raises(grpc.aio.AioRpcError, match="given twice"):
            await call
    assert seen == []


async def test_two_channels_can_share_interceptors(mesh, serve):
    seen = rig.Seen()
    target = await serve(handlers=seen.handlers())
    ours = aio_client_interceptors(mesh)
    for _ in range(2):
        async with grpc.aio.insecure_channel(target, interceptors=ours) as channel:
            await rig.stations_pb2_grpc.StationsStub(channel).Report(reading())
    assert len(seen) == 2


async def test_the_observe_mode_only_warns(open_mesh, serve, caplog):
    mesh = await open_mesh(mode="observe")
    seen = rig.Seen()
    target = await serve(handlers=seen.handlers(), mesh=mesh, before=aio_server_interceptors(mesh))
    ours = [*aio_client_interceptors(mesh), *aio_client_interceptors(mesh)]
    with caplog.at_level(logging.WARNING, "dpmesh.grpc"):
        async with grpc.aio.insecure_channel(target, interceptors=ours) as channel:
            stub = rig.stations_pb2_grpc.StationsStub(channel)
            await stub.Report(reading())
            await stub.Report(reading())
            await stub.ReportAll(stream(reading()))
    assert len(seen) == 3
    told = [record.getMessage() for record in caplog.records if "given twice" in record.getMessage()]
    assert len(told) == 2, "one of the channel, one of the server"


@pytest.mark.parametrize("arity", ANSWERS)
@pytest.mark.parametrize("between", [(), (Between(),)])
async def test_a_server_with_two_answers_nothing_and_says_why(
    open_mesh, serve, connect, arity, between, caplog
):
    mesh = await open_mesh()
    target = await serve(
        mesh=mesh, handlers=answering(mesh), before=[*aio_server_interceptors(mesh), *between]
    )
    stub = await connect(target)
    assert (await stub.Echo(pb.Plain(text="t"))).text == "t", "what is not protected is served"
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError, match="given twice"):
            await ANSWERS[arity](stub)
    assert await spent(mesh) == 0
    assert sum("given twice" in record.getMessage() for record in caplog.records) == 1


class Gate(grpc.aio.ServerInterceptor):
    """An interceptor of somebody else, which refuses RPCs without asking those after it for a handler."""

    shut = True

    async def intercept_service(self, continuation, details):
        if not self.shut:
            return await continuation(details)

        async def refuse(request, context):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "shut")

        return grpc.unary_unary_rpc_method_handler(refuse)


async def test_a_second_one_that_a_methods_first_rpcs_did_not_reach_is_noticed(open_mesh, serve, connect):
    mesh, gate = await open_mesh(), Gate()
    target = await serve(mesh=mesh, handlers=answering(mesh), before=[*aio_server_interceptors(mesh), gate])
    stub = await connect(target)
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Ask(pb.Plain())
    gate.shut = False
    with pytest.raises(grpc.aio.AioRpcError, match="given twice"):
        await stub.Ask(pb.Plain())
    assert await spent(mesh) == 0


async def test_interceptors_that_another_server_has_once_are_noticed_where_they_are_given_twice(mesh):
    ours = aio_server_interceptors(mesh)
    handler = grpc.unary_unary_rpc_method_handler(
        answering(mesh)["Ask"], pb.Plain.FromString, pb.Reading.SerializeToString
    )
    service = pb.DESCRIPTOR.services_by_name["Stations"].full_name
    for interceptors, code in ((ours, grpc.StatusCode.OK), ([*ours, *ours], grpc.StatusCode.INTERNAL)):
        server = grpc.aio.server(interceptors=interceptors)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {"Ask": handler})])
        port = server.add_insecure_port("localhost:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"localhost:{port}") as channel:
                call = channel.unary_unary(f"/{service}/Ask", pb.Plain.SerializeToString)(pb.Plain())
                assert await call.code() is code
        finally:
            await server.stop(None)


async def test_a_server_with_those_of_two_meshes_answers_nothing(open_mesh, serve, connect):
    one, two = await open_mesh(), await open_mesh()
    target = await serve(mesh=one, handlers=answering(one), before=aio_server_interceptors(two))
    stub = await connect(target)
    with pytest.raises(grpc.aio.AioRpcError, match="given twice") as caught:
        await stub.Ask(pb.Plain())
    assert rig.status(caught.value).info.reason == "INTERCEPTED_TWICE"
    assert await spent(one) == await spent(two) == 0


async def test_check_server_counts(mesh):
    ours = aio_server_interceptors(mesh)
    check_server(grpc.aio.server(interceptors=ours))
    check_server(grpc.aio.server(interceptors=[Between(), *ours]))
    for wrong, count in ((None, 0), ([Between()], 0), ([*ours, Between(), *ours], 2)):
        with pytest.raises(ConfigError, match=f"has {count} of dpmesh"):
            check_server(grpc.aio.server(interceptors=wrong))
    with pytest.raises(ConfigError, match=r"not a grpc\.aio server"):
        check_server(object())


async def test_health_does_not_start_on_a_server_with_two(mesh):
    ours = aio_server_interceptors(mesh)
    with pytest.raises(ConfigError, match="given twice"):
        async with report_health(grpc.aio.server(interceptors=[*ours, *ours]), mesh):
            pass


async def test_a_rotating_channel_with_two_is_not_made(mesh):
    ours = aio_client_interceptors(mesh)
    with pytest.raises(ConfigError, match="given twice"):
        rotating_channel("127.0.0.1:1", object(), interceptors=[*ours, *ours])


@pytest.mark.parametrize("arity", ["unary_unary", "unary_stream", "writing"])
async def test_a_protected_message_that_its_method_does_not_declare_is_not_charged_twice(
    open_mesh, serve, connect, arity
):
    mesh = await open_mesh()

    async def one(request, context):
        return reading()

    async def many(request, context):
        yield reading()

    async def write(request, context):
        await context.write(reading())

    handler = {"unary_unary": one, "unary_stream": many, "writing": write}[arity]
    make = grpc.unary_unary_rpc_method_handler if handler is one else grpc.unary_stream_rpc_method_handler
    served = make(handler, pb.Plain.FromString, pb.Reading.SerializeToString)

    class Handlers(grpc.GenericRpcHandler):
        def service(self, details):
            return served

    target = await serve(
        mesh=mesh,
        before=aio_server_interceptors(mesh),
        stations=False,
        add=[lambda server: server.add_generic_rpc_handlers([Handlers()])],
    )
    stub = await connect(target)
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError, match="give them once"):
            if handler is one:
                await stub.Echo(pb.Plain())
            else:
                await stub.EchoWatch(pb.Plain()).read()
    assert await spent(mesh) == 0


async def test_refusals_of_two_have_spans(spans, open_mesh, serve, connect):
    mesh = await open_mesh()
    target = await serve(mesh=mesh, handlers=answering(mesh), before=aio_server_interceptors(mesh))
    ours = [*aio_client_interceptors(mesh), *aio_client_interceptors(mesh)]
    async with grpc.aio.insecure_channel(target, interceptors=ours) as channel:
        for stub, calls, direction in (
            (rig.stations_pb2_grpc.StationsStub(channel), CALLS, "request"),
            (await connect(target), ANSWERS, "response"),
        ):
            for call in calls.values():
                with pytest.raises(grpc.aio.AioRpcError, match="given twice"):
                    await call(stub)
                (span,) = spans.get_finished_spans()
                spans.clear()
                assert span.attributes["dpmesh.direction"] == direction
                assert span.attributes["dpmesh.decision"] == "refused"
                assert span.status.status_code is trace.StatusCode.ERROR
