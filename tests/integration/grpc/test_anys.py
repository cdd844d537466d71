"""A protected message packed in google.protobuf.Any leaves protected over real gRPC, in all arities and both ways."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory
from google.rpc import status_pb2
from stations import rig
from stations import stations_pb2 as pb
from stations.rig import SECRET, is_protected, reading, stream

ARITIES = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


def add_service():
    """A service that no module declares, with Anys in what it carries."""
    file = descriptor_pb2.FileDescriptorProto(name="anys_service.proto", package="anys", syntax="proto3")
    file.dependency.extend(["google/protobuf/any.proto", "google/rpc/status.proto"])
    bus = file.message_type.add(name="Bus")
    for number, (name, label) in enumerate((("one", 1), ("many", 3)), start=1):
        field = bus.field.add(name=name, number=number, label=label, type=11)
        field.type_name = ".google.protobuf.Any"
    for kind in ("Bus", "Any", "Status"):
        full = {"Bus": ".anys.Bus", "Any": ".google.protobuf.Any", "Status": ".google.rpc.Status"}[kind]
        service = file.service.add(name=f"Carry{kind}")
        for arity in ARITIES:
            before, _, after = arity.partition("_")
            service.method.add(
                name=arity,
                input_type=full,
                output_type=full,
                client_streaming=before == "stream",
                server_streaming=after == "stream",
            )
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("anys.Bus"))


Bus = add_service()


def packed(message):
    box = any_pb2.Any()
    box.Pack(message)
    return box


MAKE = {
    "Bus": lambda m: Bus(one=packed(m), many=[packed(packed(m)), packed(Bus(one=packed(m)))]),
    "Any": packed,
    "Status": lambda m: status_pb2.Status(code=3, details=[packed(m)]),
}
READ = {
    "Bus": lambda m: m.one,
    "Any": lambda m: m,
    "Status": lambda m: m.details[0],
}


def add_handlers(kind, seen, answer):
    """Adds handlers of all arities that keep what they get, and answer with one message."""
    message = type(answer)

    async def one(request, context):
        seen.append(request)
        return answer

    async def watch(request, context):
        seen.append(request)
        yield answer
        yield answer

    async def many(requests, context):
        async for request in requests:
            seen.append(request)
        return answer

    async def chat(requests, context):
        async for request in requests:
            seen.append(request)
            yield answer

    functions = dict(zip(ARITIES, (one, watch, many, chat), strict=True))

    def add(server):
        handlers = {
            name: getattr(grpc, f"{name}_rpc_method_handler")(
                function, message.FromString, message.SerializeToString
            )
            for name, function in functions.items()
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(f"anys.Carry{kind}", handlers),)
        )

    return add


async def call(channel, kind, arity, message):
    """Sends one message (twice in a stream); what came back."""
    method = getattr(channel, arity)(
        f"/anys.Carry{kind}/{arity}", type(message).SerializeToString, type(message).FromString
    )
    made = method(stream(message, message) if arity.startswith("stream") else message)
    return [entry async for entry in made] if arity.endswith("stream") else [await made]


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("arity", ARITIES)
async def test_what_anys_pack_leaves_protected_on_requests_and_responses(
    open_mesh, serve, connect, kind, arity
):
    seen = []
    raw, plain = MAKE[kind](reading()), MAKE[kind](pb.Plain(text="fine"))
    assert SECRET.encode() in raw.SerializeToString()
    for answer, message in ((plain, raw), (raw, plain)):
        seen.clear()
        server, client = await open_mesh(), await open_mesh()
        target = await serve(mesh=server, add=[add_handlers(kind, seen, answer)])
        channel = (await connect(target, client)).channel
        got = await call(channel, kind, arity, message)
        assert len(seen) == 1 + arity.startswith("stream")
        assert got
        protected, passed = (seen, got) if message is raw else (got, seen)
        for entry in protected:
            assert SECRET.encode() not in entry.SerializeToString()
            inside = pb.Reading()
            assert READ[kind](entry).Unpack(inside), "the type_url is kept"
            assert is_protected(inside)
        assert all(entry == plain for entry in passed)


@pytest.mark.parametrize("arity", ARITIES)
async def test_what_can_not_be_judged_is_refused(mesh, serve, connect, arity):
    seen = []
    bad = Bus(one=any_pb2.Any(type_url="x/dpmesh.test.stations.v1.Reading", value=b"\x0a\x7fsecret"))
    channel = (await connect(await serve(add=[add_handlers("Bus", seen, Bus())]), mesh)).channel
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, "Bus", arity, bad)
    found = rig.status(caught.value)
    assert (found.code, found.info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "WRONG_TYPE")
    assert found.info.metadata["field"] == "anys.Bus.one"
    assert "secret" not in str(caught.value)
    assert not seen
