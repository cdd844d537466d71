"""dpmesh next to others: OpenTelemetry's interceptors in either order, users' own, health and reflection."""

from __future__ import annotations

import asyncio
import json

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from opentelemetry import trace
from opentelemetry.instrumentation.grpc import aio_client_interceptors as otel_client
from opentelemetry.instrumentation.grpc import aio_server_interceptor as otel_server
from stations import rig
from stations import stations_pb2 as pb
from stations.rig import is_protected, reading, stream

from dpmesh_grpc import aio_server_interceptors
from tests.support.mutual_tls import until

SERVICE = "dpmesh.test.stations.v1.Stations"


async def ask(request, context):
    return reading()


async def watch(request, context):
    for _ in range(3):
        yield reading()


async def abort(requests, context):
    async for _ in requests:
        pass
    await context.abort(grpc.StatusCode.NOT_FOUND, f"temperature was {rig.RAW}")


async def fail(request, context):
    raise ValueError(f"temperature was {rig.RAW}")


@pytest.fixture
async def otel_stub(spans, open_mesh, serve, connect):
    """Client and server with OpenTelemetry on both sides, first or last."""

    async def connected(handlers, *, first: bool):
        mesh = await open_mesh()
        theirs = {"before" if first else "after": otel_client()}
        if first:
            target = await serve(mesh=mesh, handlers=handlers, before=[otel_server()])
        else:
            target = await serve(handlers=handlers, before=[*aio_server_interceptors(mesh), otel_server()])
        return await connect(target, mesh, **theirs)

    return connected


@pytest.mark.parametrize("first", [True, False])
async def test_opentelemetry_in_either_order(otel_stub, first):
    seen = rig.Seen()
    stub = await otel_stub({**seen.handlers(), "Ask": ask, "Watch": watch, "AskAll": abort}, first=first)
    assert (await stub.Report(reading())).text == "1"
    assert [response.text async for response in stub.ReportWatch(reading())] == ["0", "1", "2"]
    assert (await stub.ReportAll(stream(reading(), reading()))).text == "4"
    assert [response.text async for response in stub.ReportChat(stream(reading()))] == ["5"]
    assert all(is_protected(message) for message in seen)
    assert is_protected(await stub.Ask(pb.Plain()))
    assert all([is_protected(response) async for response in stub.Watch(pb.Plain())])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.AskAll(stream())
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    for call in (stub.Report(rig.BAD), stub.ReportAll(stream(reading(), rig.BAD))):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert rig.status(caught.value).info.reason == "MISSING_UNIT"
    for style in (stub.ReportWatch(rig.BAD), stub.ReportChat(stream(rig.BAD))):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in style:
                pass
        assert rig.status(caught.value).info.reason == "MISSING_UNIT"


async def test_releases_lie_under_their_rpcs_spans(otel_stub, spans):
    seen = rig.Seen()
    stub = await otel_stub({**seen.handlers(), "Ask": ask, "Watch": watch}, first=True)
    await stub.Report(reading())
    await stub.ReportAll(stream(reading(), reading()))
    await stub.Ask(pb.Plain())
    assert len([response async for response in stub.Watch(pb.Plain())]) == 3
    found = spans.get_finished_spans()
    by_id = {span.context.span_id: span for span in found}
    releases = [span for span in found if span.name == "dpmesh.release"]
    told = {}
    for span in releases:
        above = by_id[span.parent.span_id]
        kind = (
            trace.SpanKind.CLIENT
            if span.attributes["dpmesh.direction"] == "request"
            else trace.SpanKind.SERVER
        )
        assert above.kind == kind
        assert above.name == span.attributes["rpc.method"]
        told[span.attributes["rpc.method"].split("/")[-1]] = span.attributes["dpmesh.messages.count"]
    assert told == {"Report": 1, "ReportAll": 2, "Ask": 1, "Watch": 3}
    assert {span.attributes["dpmesh.decision"] for span in releases} == {"released"}


async def test_refused_rpcs_have_spans_too(otel_stub, spans):
    stub = await otel_stub(rig.Seen().handlers(), first=True)
    calls = [stub.Report(rig.BAD), stub.ReportWatch(rig.BAD), stub.ReportAll(stream(rig.BAD))]
    for call in (*calls, stub.ReportChat(stream(rig.BAD))):
        with pytest.raises(grpc.aio.AioRpcError):
            await (anext(aiter(call)) if hasattr(call, "read") else call)
    found = [span for span in spans.get_finished_spans() if span.kind == trace.SpanKind.CLIENT]
    assert sorted(span.name.split("/")[-1] for span in found) == [
        "Report",
        "ReportAll",
        "ReportChat",
        "ReportWatch",
    ]
    refused = [span for span in spans.get_finished_spans() if span.name == "dpmesh.release"]
    assert {span.parent.span_id for span in refused} == {span.context.span_id for span in found}
    assert {span.attributes["dpmesh.decision"] for span in refused} == {"refused"}


def said(span):
    """All that a span says but when, which may have the digits of any value."""
    parts = json.loads(span.to_json())
    del parts["start_time"], parts["end_time"]
    for event in parts["events"]:
        del event["timestamp"]
    return json.dumps(parts)


async def test_no_span_quotes_a_handler_when_dpmesh_stands_next_to_it(otel_stub, spans):
    stub = await otel_stub({"Ask": fail, "AskAll": abort}, first=True)
    for call in (stub.Ask(pb.Plain()), stub.AskAll(stream())):
        with pytest.raises(grpc.aio.AioRpcError):
            await call
    await until(lambda: len(spans.get_finished_spans()) >= 4)  # The server's spans end after the call does.
    assert "41.77777777" not in "".join(said(span) for span in spans.get_finished_spans())


class Everything(
    grpc.aio.UnaryUnaryClientInterceptor,
    grpc.aio.UnaryStreamClientInterceptor,
    grpc.aio.StreamUnaryClientInterceptor,
    grpc.aio.StreamStreamClientInterceptor,
):
    """One object for all arities, as people write it (gRPC uses it for the first only)."""

    def __init__(self):
        self.requests = []

    async def intercept_unary_unary(self, continuation, client_call_details, request):
        self.requests.append(request)
        return await continuation(client_call_details, request)

    intercept_unary_stream = intercept_unary_unary

    async def intercept_stream_unary(self, continuation, client_call_details, request_iterator):
        async def noted():
            async for request in request_iterator:
                self.requests.append(request)
                yield request

        return await continuation(client_call_details, noted())

    intercept_stream_stream = intercept_stream_unary


def only(base):
    """The same for one arity, so that gRPC does use it."""
    name = next(name for name in base.__abstractmethods__)
    return type(base.__name__, (base,), {name: vars(Everything)[name], "__init__": Everything.__init__})()


@pytest.mark.parametrize("place", ["before", "after"])
async def test_users_interceptors(mesh, serve, connect, place):
    seen = rig.Seen()
    others = [Everything(), *[only(base) for base in Everything.__bases__]]
    stub = await connect(await serve(handlers=seen.handlers()), mesh, **{place: others})
    await stub.Report(reading())
    assert len([response async for response in stub.ReportWatch(reading())]) == 3
    await stub.ReportAll(stream(reading()))
    assert len([response async for response in stub.ReportChat(stream(reading()))]) == 1
    call = stub.ReportAll()
    await call.write(reading())
    await call.done_writing()
    await call
    assert len(seen) == 5
    assert all(is_protected(message) for message in seen)
    noted = [request for other in others for request in other.requests]
    assert len(noted) == 6
    assert [is_protected(request) for request in noted] == [place == "after"] * 6
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ReportAll(stream(reading(), rig.BAD))
    assert rig.status(caught.value).info.reason == "MISSING_UNIT"


async def test_interceptors_before_dpmesh_see_a_refusal_as_the_calls_status(mesh, serve, connect):
    calls, done = [], []

    class First(grpc.aio.StreamUnaryClientInterceptor):
        async def intercept_stream_unary(self, continuation, client_call_details, request_iterator):
            call = await continuation(client_call_details, request_iterator)
            call.add_done_callback(done.append)
            calls.append(call)
            return call

    stub = await connect(await serve(handlers=rig.Seen().handlers()), mesh, before=[First()])
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.ReportAll(stream(reading(), rig.BAD), timeout=60)
    assert calls == done
    assert await done[0].code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "station" in await done[0].details()
    assert 0 < done[0].time_remaining() < 60


class Buffering(grpc.aio.StreamStreamClientInterceptor):
    """Collects the whole request stream before it begins, and answers with an iterator of its own."""

    async def intercept_stream_stream(self, continuation, client_call_details, request_iterator):
        requests = [request async for request in request_iterator]
        call = await continuation(client_call_details, iter(requests))

        async def doubled():
            async for response in call:
                yield response
                yield response

        return doubled()


async def test_an_interceptor_that_buffers_requests_and_replaces_responses(mesh, serve, connect):
    seen = rig.Seen()
    stub = await connect(await serve(handlers=seen.handlers()), mesh, after=[Buffering()])
    assert len([response async for response in stub.ReportChat(stream(reading(), reading()))]) == 4
    assert all(is_protected(message) for message in seen)
    call = stub.ReportChat(stream(reading(), rig.BAD))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert rig.status(caught.value).info.reason == "MISSING_UNIT"
    assert await call.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert len(seen) == 2


async def test_a_retrying_interceptor_behind_dpmesh_sends_the_same_bytes(mesh, serve, connect):
    attempts = []

    async def flaky(request, context):
        attempts.append(request)
        if len(attempts) < 3:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return pb.Plain()

    class Retry(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation, client_call_details, request):
            for _ in range(3):
                call = await continuation(client_call_details, request)
                if await call.code() == grpc.StatusCode.OK:
                    break
            return call

    stub = await connect(await serve(handlers={"Report": flaky}), mesh, after=[Retry()])
    await stub.Report(reading())
    assert len(attempts) == 3
    assert attempts[0] == attempts[1] == attempts[2]
    (account,) = await mesh.ledger.accounts()
    assert account.spent == 10**9


async def test_health_and_reflection(mesh, serve, connect):
    def add(server):
        checker = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checker, server)
        reflection.enable_server_reflection([SERVICE, reflection.SERVICE_NAME], server)

    target = await serve(mesh=mesh, add=[add], handlers={"Ask": ask})
    channel = (await connect(target, mesh)).channel
    checks = health_pb2_grpc.HealthStub(channel)
    response = await checks.Check(health_pb2.HealthCheckRequest())
    assert response.status == health_pb2.HealthCheckResponse.SERVING
    watching = checks.Watch(health_pb2.HealthCheckRequest())
    assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
    watching.cancel()

    def described():
        with grpc.insecure_channel(target) as plain:
            database = ProtoReflectionDescriptorDatabase(plain)
            assert SERVICE in database.get_services()
            return (
                DescriptorPool(database)
                .FindServiceByName(SERVICE)
                .methods_by_name["Ask"]
                .output_type.full_name
            )

    assert await asyncio.to_thread(described) == "dpmesh.test.stations.v1.Reading"
