"""The size of what was compressed tells what it said: protected messages travel uncompressed, all others as before."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from stations import rig
from stations import stations_pb2 as pb
from stations.rig import reading, stream

from dpmesh_grpc.protection.server import ServerInterceptor

SIZE = 20_000
# Compresses a thousandfold; the annotation passes it on purpose.
PAYLOAD = bytes(SIZE)
BIG = reading(payload=PAYLOAD)
PLAIN = pb.Plain(payload=PAYLOAD)
MANY = 3
SMALL = 6_000  # Everything else that passes on a connection in these tests.


@pytest.fixture
async def through(stack, connect):
    """Connects through a relay that counts bytes."""

    async def connected(target, mesh=None, **options):
        wire = await stack.enter_async_context(rig.Wire(target))
        return await connect(wire.target, mesh, **options), wire

    return connected


REPORTS = {
    "Report": lambda stub, **options: stub.Report(BIG, **options),
    "ReportWatch": lambda stub, **options: stub.ReportWatch(BIG, **options),
    "ReportAll": lambda stub, **options: stub.ReportAll(stream(BIG), **options),
    "ReportChat": lambda stub, **options: stub.ReportChat(stream(BIG), **options),
}
OPTIONS = {
    "channel": ({"compression": grpc.Compression.Gzip}, {}),
    "call": ({}, {"compression": grpc.Compression.Gzip}),
    "metadata": ({}, {"metadata": (("grpc-internal-encoding-request", "gzip"),)}),
}


async def finished(call):
    if hasattr(call, "read"):
        return [response async for response in call]
    return await call


@pytest.mark.parametrize("where", OPTIONS)
@pytest.mark.parametrize("method", REPORTS)
async def test_protected_requests_are_not_compressed(mesh, serve, through, where, method):
    of_channel, of_call = OPTIONS[where]
    target = await serve(handlers=rig.Seen().handlers())
    bare, bare_wire = await through(target, **of_channel)
    await finished(REPORTS[method](bare, **of_call))
    assert bare_wire.sent < SMALL
    stub, wire = await through(target, mesh, **of_channel)
    await finished(REPORTS[method](stub, **of_call))
    assert SIZE < wire.sent < SIZE + SMALL


async def ask(request, context):
    context.set_compression(grpc.Compression.Gzip)
    return BIG


def sync_ask(request, context):
    context.set_compression(grpc.Compression.Gzip)
    return BIG


async def ask_with_metadata(request, context):
    context.set_compression(grpc.Compression.Gzip)
    await context.send_initial_metadata(())
    return BIG


async def watch(request, context):
    context.set_compression(grpc.Compression.Gzip)
    for _ in range(MANY):
        yield BIG


async def write(request, context):
    context.set_compression(grpc.Compression.Gzip)
    for _ in range(MANY):
        await context.write(BIG)


def sync_watch(request, context):
    context.set_compression(grpc.Compression.Gzip)
    for _ in range(MANY):
        yield BIG


ASKS = {
    "Ask": (lambda stub: stub.Ask(pb.Plain()), [ask, sync_ask, ask_with_metadata], 1),
    "Watch": (lambda stub: stub.Watch(pb.Plain()), [watch, write, sync_watch], MANY),
}


@pytest.mark.parametrize(
    ("method", "handler"), [(name, one) for name, (_, many, _) in ASKS.items() for one in many]
)
@pytest.mark.parametrize("default", [None, grpc.Compression.Gzip])
async def test_protected_responses_are_not_compressed(mesh, serve, through, method, handler, default):
    call, _, count = ASKS[method]
    stub, wire = await through(await serve(mesh=mesh, handlers={method: handler}, compression=default))
    await finished(call(stub))
    assert SIZE * count < wire.received < SIZE * count + SMALL


async def test_without_dpmesh_they_are(serve, through):
    """The tests above could not fail otherwise."""
    handlers = {"Ask": ask_with_metadata, "Watch": sync_watch}
    stub, wire = await through(await serve(handlers=handlers, compression=grpc.Compression.Gzip))
    await finished(stub.Ask(pb.Plain()))
    await finished(stub.Watch(pb.Plain()))
    assert wire.received < SMALL


async def test_public_methods_are_compressed_as_before(mesh, serve, through):
    async def echo(request, context):
        return request

    async def echo_chat(requests, context):
        async for request in requests:
            yield request

    handlers = {"Echo": echo, "EchoChat": echo_chat}
    target = await serve(mesh=mesh, handlers=handlers, compression=grpc.Compression.Gzip)
    stub, wire = await through(target, mesh, compression=grpc.Compression.Gzip)
    await finished(stub.Echo(PLAIN))
    await finished(stub.EchoChat(stream(PLAIN)))
    assert wire.sent < SMALL
    assert wire.received < SMALL


@pytest.mark.parametrize("function", [watch, write, sync_watch])
async def test_a_streams_compression_is_settled_before_its_first_message(mesh, function):
    """gRPC may write a generator's messages late, when what was said of one would hold for another."""
    told = []

    class Context:
        def invocation_metadata(self):
            return ()

        def set_compression(self, compression):
            told.append(compression)

        def disable_next_message_compression(self):
            told.append("next")

        async def write(self, message):
            told.append("message")

    class Details:
        method = rig.PREFIX + "Watch"
        invocation_metadata = ()

    async def found(details):
        return grpc.unary_stream_rpc_method_handler(function)

    handler = await ServerInterceptor(mesh).intercept_service(found, Details)
    running = handler.unary_stream(pb.Plain(), Context())
    if function is sync_watch:
        await asyncio.to_thread(list, running)
    elif function is watch:
        assert len([message async for message in running]) == MANY
    else:
        await running
    assert told[0] == grpc.Compression.NoCompression
    assert told.count("next") == MANY
    assert grpc.Compression.Gzip not in told
