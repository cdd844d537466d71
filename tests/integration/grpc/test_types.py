"""A message that is not of the type that its method declares can't slip by; methods that nobody knows are judged by it."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from stations import rig
from stations import stations_pb2 as pb
from stations.rig import PREFIX, is_protected, reading, stream

from dpmesh.v1 import privacy_pb2  # noqa: F401


def foreign_reading():
    """A class of the same name from another pool, where nothing is annotated."""
    file = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    del file.service[:], file.dependency[:]
    for message in file.message_type:
        message.ClearField("options")
        for field in message.field:
            field.ClearField("options")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = message_factory.GetMessageClass(pool.FindMessageTypeByName("dpmesh.test.stations.v1.Reading"))
    return found.FromString(reading().SerializeToString())


WRONG = {
    "bytes": reading().SerializeToString(),
    "str": "41.77777777",
    "another protected type": pb.Stray(station="s1", rain=True),
    "an unprotected type": pb.Plain(text="41.77777777"),
    "none": None,
    "another version": foreign_reading(),
}


def serialized(message):
    return message.SerializeToString() if hasattr(message, "SerializeToString") else message


@pytest.fixture
def seen():
    return rig.Seen()


@pytest.fixture
async def channel(mesh, seen, serve, connect):
    return (await connect(await serve(handlers=seen.handlers()), mesh)).channel


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("arity", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"])
async def test_a_request_of_another_type_than_the_methods_is_refused(channel, seen, arity, wrong):
    names = {"unary_unary": "Report", "unary_stream": "ReportWatch", "stream_unary": "ReportAll"}
    method = getattr(channel, arity)(PREFIX + names.get(arity, "ReportChat"), serialized)
    call = method(stream(wrong) if arity.startswith("stream") else wrong)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if arity.endswith("stream"):
            await call.read()
        else:
            await call
    found = rig.status(caught.value)
    assert (found.code, found.info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "WRONG_TYPE")
    assert found.info.metadata["field"] == "dpmesh.test.stations.v1.Reading"
    assert "41.77777777" not in str(caught.value)
    await asyncio.sleep(0.02)
    assert not seen


async def test_a_protected_request_on_a_public_method_is_released(mesh, serve, connect):
    got = []

    class Anything(grpc.GenericRpcHandler):
        def service(self, details):
            async def handle(request, context):
                got.append(pb.Reading.FromString(request))
                return b""

            return grpc.unary_unary_rpc_method_handler(handle)

    target = await serve(add=[lambda server: server.add_generic_rpc_handlers([Anything()])])
    channel = (await connect(target, mesh)).channel
    for name in (PREFIX + "Unheard", "/acme.Nowhere/Known"):
        await channel.unary_unary(name, serialized)(reading())
    assert len(got) == 2
    assert all(is_protected(message) for message in got)


class Mirror(grpc.GenericRpcHandler):
    """Answers with what it got, on methods that no descriptor knows, without serializers."""

    def __init__(self):
        self.got = []

    def service(self, details):
        async def chat(requests, context):
            async for request in requests:
                self.got.append((request, dict(context.invocation_metadata())))
                yield request

        async def echo(request, context):
            self.got.append((request, dict(context.invocation_metadata())))
            return request

        if details.method == "/acme.Mirror/Chat":
            return grpc.stream_stream_rpc_method_handler(chat)
        return grpc.unary_unary_rpc_method_handler(echo) if details.method == "/acme.Mirror/Echo" else None


async def test_methods_that_nobody_knows_pass_what_is_no_message_if_told_to(open_mesh, serve, connect):
    mesh = await open_mesh(grpc={"pass_unjudged": ["/acme.Mirror/*"]})
    mirror = Mirror()
    target = await serve(mesh=mesh, add=[lambda server: server.add_generic_rpc_handlers([mirror])])
    channel = (await connect(target, mesh)).channel
    assert await channel.unary_unary("/acme.Mirror/Echo")(b"as it is") == b"as it is"
    call = channel.stream_stream("/acme.Mirror/Chat")(iter([b"one", b"two"]))
    assert [response async for response in call] == [b"one", b"two"]
    assert all("dpmesh-policy" not in metadata for _, metadata in mirror.got)


async def test_methods_that_nobody_knows_release_protected_messages(mesh, serve, connect):
    mirror = Mirror()
    target = await serve(add=[lambda server: server.add_generic_rpc_handlers([mirror])])
    channel = (await connect(target, mesh)).channel
    await channel.unary_unary("/acme.Mirror/Echo", serialized)(reading())
    call = channel.stream_stream("/acme.Mirror/Chat", serialized)(
        stream(reading(), pb.Plain(text="as it is"))
    )
    assert len([response async for response in call]) == 2
    first, second, third = (request for request, _ in mirror.got)
    assert is_protected(pb.Reading.FromString(first))
    assert is_protected(pb.Reading.FromString(second))
    assert pb.Plain.FromString(third).text == "as it is"
    assert "dpmesh-policy" in mirror.got[0][1]


async def test_unknown_methods_of_a_server_release_protected_responses(mesh, serve, connect):
    class Answers(grpc.GenericRpcHandler):
        def service(self, details):
            async def watch(request, context):
                yield reading()
                yield pb.Plain(text="as it is")
                await context.write(reading())
                raise ValueError("temperature was 41.77777777")

            return grpc.unary_stream_rpc_method_handler(watch, response_serializer=serialized)

    target = await serve(mesh=mesh, add=[lambda server: server.add_generic_rpc_handlers([Answers()])])
    call = (await connect(target)).channel.unary_stream("/acme.Answers/Watch")(b"")
    assert is_protected(pb.Reading.FromString(await call.read()))
    assert pb.Plain.FromString(await call.read()).text == "as it is"
    assert is_protected(pb.Reading.FromString(await call.read()))
    with pytest.raises(grpc.aio.AioRpcError, match="the handler failed"):
        await call.read()


async def test_names_of_methods_do_not_pile_up(mesh, serve, connect):
    """A generic handler that takes any name must not let peers fill the memory."""
    from dpmesh.mesh.flow_table import METHODS_KEPT
    from dpmesh_grpc.protection.server import ServerInterceptor

    interceptor = ServerInterceptor(mesh)
    handler = grpc.unary_unary_rpc_method_handler(rig.Seen().one)

    async def found(details):
        return handler

    class Details:
        invocation_metadata = ()

    for number in range(METHODS_KEPT + 10):
        Details.method = f"/acme.Any/M{number}"
        assert await interceptor.intercept_service(found, Details) is not None
    assert len(interceptor._served) <= METHODS_KEPT
    kept = len(interceptor._methods._declared) + len(interceptor._methods._undeclared)
    assert kept <= METHODS_KEPT
