"""Attestation: senders that protect say so, and receivers that require it refuse all others."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Hashable

import grpc
import pytest
from stations import rig
from stations import stations_pb2 as pb
from stations.rig import is_protected, reading, stream

from dpmesh.mesh.attestation import POLICY_KEY
from dpmesh.v1 import policy_pb2
from dpmesh_grpc.aio.internals import COMPRESSION_KEY, LazyMetadata


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
    forged = ((POLICY_KEY, "forged"), ("other", "stays"))
    await stub.Report(reading(), metadata=forged)
    await stub.ReportAll(stream(reading()), metadata=forged)
    await drained(stub.ReportChat(stream(reading()), metadata=forged))
    assert [metadata[POLICY_KEY] for metadata in seen] == [mesh.policy_digest] * 3
    assert [metadata["other"] for metadata in seen] == ["stays"] * 3
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
    await (await connect(target, mesh)).Echo(pb.Plain(text="41.7"))
    assert texts == [""]
    assert seen[0][POLICY_KEY] == mesh.policy_digest
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (await connect(target)).Echo(pb.Plain(text="41.7"))
    assert rig.status(caught.value).info.reason == "NOT_PROTECTED"


def test_the_metadata_is_like_grpcs_own():
    pairs = (("a", "1"), ("b", "2"), ("a", "3"))
    theirs = grpc.aio.Metadata(*pairs)
    assert tuple(LazyMetadata(*pairs)) == pairs
    assert len(LazyMetadata(*pairs)) == 3
    changed = LazyMetadata(*pairs)
    changed.add("c", "4")
    theirs.add("c", "4")
    assert tuple(changed) == tuple(theirs)
    assert len(changed) == 4
    assert changed["a"] == "1"
    assert "c" in changed
    assert "c" not in LazyMetadata(*pairs)
    with pytest.raises(AttributeError):
        _ = changed.nothing


PAIRS = (("a", "1"), ("a", "3"), ("b", b"2"))


def _changing(name, *arguments):
    """An operation that changes metadata; its result is the metadata."""

    def run(metadata):
        if name == "del":
            del metadata[arguments[0]]
        else:
            getattr(metadata, name)(*arguments)
        return metadata

    return run


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(run, id=name)
        for name, run in {
            "add": _changing("add", "c", "4"),
            "set": _changing("__setitem__", "a", "9"),
            "set new": _changing("__setitem__", "c", "9"),
            "set_all": _changing("set_all", "b", ["7", "8"]),
            "del": _changing("del", "a"),
            "delete_all": _changing("delete_all", "a"),
            "keys": lambda m: list(m.keys()),
            "values": lambda m: list(m.values()),
            "items": lambda m: list(m.items()),
            "get": lambda m: (m.get("a"), m.get("none"), m.get("none", "x"), m["b"]),
            "get_all": lambda m: (m.get_all("a"), m.get_all("none")),
            "in": lambda m: ("a" in m, "none" in m, 7 in m),
            "length": len,
            "tuple": tuple,
            "true": bool,
            "add tuple": lambda m: operator.add(m, (("c", "4"),)),
            "add metadata": lambda m: m + grpc.aio.Metadata(("c", "4")),
            "add lazy": lambda m: m + LazyMetadata(("c", "4")),
            "added to": lambda m: grpc.aio.Metadata(("c", "4")) + m,
            "add itself": lambda m: m + m,
            "equal": lambda m: (m == grpc.aio.Metadata(*PAIRS), m != grpc.aio.Metadata(*PAIRS)),
            "equal lazy": lambda m: (m == LazyMetadata(*PAIRS), m == LazyMetadata()),
            "equal tuple": lambda m: (m == PAIRS, m == (), m == list(PAIRS)),
            "equal on the right": lambda m: (grpc.aio.Metadata(*PAIRS) == m, operator.eq(PAIRS, m)),
            "copy": copy.copy,
            "deepcopy": copy.deepcopy,
            "pickle": lambda m: pickle.loads(pickle.dumps(m)),
            "pickle once read": lambda m: (m["a"], pickle.loads(pickle.dumps(m)))[1],
            "from_tuple": lambda m: type(m).from_tuple(PAIRS[:1]),
            "from_tuple none": lambda m: type(m).from_tuple(()),
            "from metadata": lambda m: type(m).from_tuple(m),
            "its class": lambda m: type(m)(*m),
            "is metadata": lambda m: isinstance(m, grpc.aio.Metadata),
            "no hash": lambda m: isinstance(m, Hashable),
        }.items()
    ],
)
def test_each_operation_of_the_metadata_gives_what_grpcs_own_gives(run):
    expected, found = run(grpc.aio.Metadata(*PAIRS)), run(LazyMetadata(*PAIRS))
    if isinstance(expected, grpc.aio.Metadata):
        assert isinstance(found, grpc.aio.Metadata)
        assert (tuple(found), len(found)) == (tuple(expected), len(expected))
        assert found == expected
    else:
        assert found == expected


@pytest.mark.parametrize("other", [None, 7, [("c", "4")], {"c": "4"}])
def test_what_grpcs_own_metadata_can_not_add_this_can_not_either(other):
    for metadata in (grpc.aio.Metadata(*PAIRS), LazyMetadata(*PAIRS)):
        with pytest.raises(TypeError):
            metadata + other


async def test_an_interceptor_after_dpmeshs_can_add_metadata(mesh, serve, connect):
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
    assert (seen[0]["x-request"], seen[0][POLICY_KEY]) == ("1", mesh.policy_digest)
