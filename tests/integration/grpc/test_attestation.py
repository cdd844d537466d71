"""Attestation: senders that protect say so, and receivers that require it refuse all others."""

from __future__ import annotations

import grpc
import pytest
from stations import rig
from stations import stations_pb2 as pb
from stations.rig import is_protected, reading, stream

from dpmesh.mesh.attestation import POLICY_KEY
from dpmesh.v1 import policy_pb2
from dpmesh_grpc.aio.internals import COMPRESSION_KEY


class Marks(rig.Seen):
    """Handlers that keep the metadata of their RPCs."""

    def keep(self, context):
        self.append(dict(context.invocation_metadata()))

    async def one(self, request, context):
        self.keep(context)
        return pb.Plain()

    async def chat(self, requests, context):
        self.keep(context)
        async for _ in requests:
            yield pb.Plain()

    async def all(self, requests, context):
        self.keep(context)
        return pb.Plain(text=str(len([request async for request in requests])))


async def test_protected_requests_are_marked_and_others_are_not(mesh, serve, connect):
    seen = Marks()
    handlers = {
        "Report": seen.one,
        "ReportAll": seen.all,
        "ReportChat": seen.chat,
        "Echo": seen.one,
        "EchoAll": seen.all,
    }
    stub = await connect(await serve(handlers=handlers), mesh)
    forged = ((POLICY_KEY, "forged"), ("traceparent", "stays"))
    await stub.Report(reading(), metadata=forged)
    await stub.ReportAll(stream(reading()), metadata=forged)
    await drained(stub.ReportChat(stream(reading()), metadata=forged))
    assert [metadata[POLICY_KEY] for metadata in seen] == ["protected"] * 3
    assert [metadata["traceparent"] for metadata in seen] == ["stays"] * 3
    seen.clear()
    await stub.Echo(pb.Plain(), metadata=(("other", "stays"),))
    await stub.EchoAll(stream(pb.Plain()))
    assert [POLICY_KEY in metadata for metadata in seen] == [False] * 2


STRICT = {
    "Strict": lambda stub: stub.Strict(reading()),
    "StrictChat": lambda stub: drained(stub.StrictChat(stream(reading()))),
}


async def drained(call):
    return [response async for response in call]


@pytest.mark.parametrize("method", STRICT)
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_receiver_that_requires_it_refuses_unmarked_requests(mesh, serve, connect, method, kind):
    seen = rig.Seen()

    def sync_one(request, context):
        seen.append(request)
        return pb.Plain()

    def sync_chat(requests, context):
        for request in requests:
            seen.append(request)
            yield pb.Plain()

    handlers = seen.handlers() if kind == "async" else {"Strict": sync_one, "StrictChat": sync_chat}
    target = await serve(mesh=mesh, handlers=handlers)
    bare = await connect(target)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await STRICT[method](bare)
    found = rig.status(caught.value)
    assert found.code == grpc.StatusCode.FAILED_PRECONDITION
    assert (found.info.domain, found.info.reason) == ("dpmesh", "NOT_PROTECTED")
    assert POLICY_KEY in found.text
    assert not seen
    await STRICT[method](await connect(target, mesh))
    assert len(seen) == 1
    assert is_protected(seen[0])


async def test_any_policy_will_do(mesh, serve, connect):
    """During a roll-out, sender and receiver have different policies."""
    stub = await connect(await serve(mesh=mesh, handlers=rig.Seen().handlers()))
    assert (await stub.Strict(reading(), metadata=((POLICY_KEY, "another"),))).text == "1"


async def test_a_method_that_does_not_require_it_takes_unmarked_requests(mesh, serve, connect):
    stub = await connect(await serve(mesh=mesh, handlers=rig.Seen().handlers()))
    assert (await stub.Report(reading())).text == "1"


async def test_the_metadata_of_a_protected_call(mesh, serve, connect):
    """What interceptors behind dpmesh see."""
    details = []

    class Last(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation, client_call_details, request):
            details.append(client_call_details)
            assert is_protected(request)
            return await continuation(client_call_details, request)

    stub = await connect(await serve(handlers=rig.Seen().handlers()), mesh, after=[Last()])
    await stub.Report(reading(), wait_for_ready=True, timeout=60, compression=grpc.Compression.Gzip)
    (found,) = details
    assert isinstance(found, grpc.aio.ClientCallDetails)
    assert isinstance(found.metadata, grpc.aio.Metadata)
    assert found.metadata.get_all(COMPRESSION_KEY) == ["identity"]
    assert found.wait_for_ready is True
    # Less by what the release took.
    assert 30 < found.timeout < 60


async def test_overlays_protect_and_require_what_no_annotation_does(open_mesh, serve, connect):
    policy = policy_pb2.Policy()
    policy.fields["dpmesh.test.stations.v1.Plain.text"].suppress.SetInParent()
    policy.methods[rig.PREFIX + "Echo"].require = True
    mesh = await open_mesh(policy=policy)
    seen = Marks()
    texts = []

    async def echo(request, context):
        texts.append(request.text)
        return await seen.one(request, context)

    target = await serve(mesh=mesh, handlers={"Echo": echo})
    await (await connect(target, mesh)).Echo(pb.Plain(text="41.77777777"))
    assert texts == [""]
    assert seen[0][POLICY_KEY] == "protected"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (await connect(target)).Echo(pb.Plain(text="41.77777777"))
    assert rig.status(caught.value).info.reason == "NOT_PROTECTED"


async def test_an_interceptor_after_dpmeshs_can_add_metadata(open_mesh, serve, connect):
    mesh = await open_mesh(grpc={"pass_metadata": ["x-request"]})

    class Adding(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation, details, request):
            more = details.metadata + grpc.aio.Metadata(("x-request", "1"))
            return await continuation(details._replace(metadata=more), request)

    seen = []

    async def report(request, context):
        seen.append(dict(context.invocation_metadata()))
        return pb.Plain()

    stub = await connect(await serve(handlers={"Report": report}), mesh, after=[Adding()])
    await stub.Report(rig.reading())
    assert (seen[0]["x-request"], seen[0][POLICY_KEY]) == ("1", "protected")
