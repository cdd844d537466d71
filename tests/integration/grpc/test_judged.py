"""Every object is judged by its own type, whatever its method declares, in all arities, directions and styles."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from pathlib import Path

import grpc
import proto
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, duration_pb2, message_factory
from google.protobuf.message import Message
from opentelemetry import trace
from stations import rig
from stations import stations_pb2 as pb
from stations.rig import PREFIX, RAW, is_protected, reading, stream
from test_types import foreign_reading
from test_words import TEXT, TRAILING, Talkative, everything

from dpmesh.mesh.flow_table import FlowTable
from dpmesh.mesh.flows import CLASSES_KEPT
from dpmesh.v1 import privacy_pb2

ARITIES = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]
STYLES = [*ARITIES, "stream_unary by write", "stream_stream by write"]
# Declared, and nothing of what it declares is protected.
PUBLIC = dict(zip(ARITIES, ["Echo", "EchoWatch", "EchoAll", "EchoChat"], strict=True))


class ProtoPlus(proto.Message):
    station = proto.Field(proto.STRING, number=1)
    temperature = proto.Field(proto.DOUBLE, number=2)


class BetterProto:
    """What betterproto's objects are to gRPC: no protobuf message, and `bytes` serializes them."""

    def __bytes__(self):
        return reading().SerializeToString()


class Lookalike(BetterProto):
    """Says that it is of a protected type, and is no message."""

    DESCRIPTOR = pb.Reading.DESCRIPTOR


class Bare(Message):
    """A message class whose descriptor can't be had."""

    def SerializeToString(self, **_):
        return reading().SerializeToString()


class Borrowed(Message):
    """A message class of the application's, which says that it is of a public type."""

    DESCRIPTOR = pb.Plain.DESCRIPTOR

    def SerializeToString(self, **_):
        return reading().SerializeToString()


UNJUDGED = {
    "proto-plus": ProtoPlus(station="s1", temperature=RAW),
    "betterproto": BetterProto(),
    "a lookalike": Lookalike(),
    "a tuple": ("s1", RAW),
    "bytes": reading().SerializeToString(),
    "text": str(RAW),
    "no descriptor": Bare(),
    "a borrowed descriptor": Borrowed(),
}


def serialized(message):
    """A serializer of the application's own, which takes anything."""
    if isinstance(message, Message):
        return message.SerializeToString()
    if isinstance(message, ProtoPlus):
        return ProtoPlus.serialize(message)
    if isinstance(message, tuple):
        return reading().SerializeToString()
    return message.encode() if isinstance(message, str) else bytes(message)


class Any(grpc.GenericRpcHandler):
    """Serves all methods by one function of its arity; they are undeclared, unless a test uses a declared name."""

    def __init__(self, functions=None, serializer=serialized):
        self.got = []
        self.functions = functions or {
            "unary_unary": self.one,
            "unary_stream": self.watch,
            "stream_unary": self.all,
            "stream_stream": self.chat,
        }
        self.serializer = serializer

    def service(self, details):
        for arity, function in self.functions.items():
            if details.method.endswith((f"/{arity}", f"/{PUBLIC[arity]}")):
                make = getattr(grpc, f"{arity}_rpc_method_handler")
                return make(function, response_serializer=self.serializer)
        return None

    async def one(self, request, context):
        self.got.append(request)
        return pb.Plain()

    async def watch(self, request, context):
        self.got.append(request)
        yield pb.Plain()

    async def all(self, requests, context):
        self.got += [request async for request in requests]
        return pb.Plain()

    async def chat(self, requests, context):
        self.got += [request async for request in requests]
        yield pb.Plain()


def adding(handler):
    return {"stations": False, "add": [lambda server: server.add_generic_rpc_handlers([handler])]}


async def called(channel, style, name, *messages):
    """Makes an RPC and gives all of its responses as bytes."""
    arity, _, by_write = style.partition(" ")
    call = getattr(channel, arity)(name, serialized)
    if by_write:
        call = call()
        try:
            for message in messages:
                await call.write(message)
            await call.done_writing()
        except asyncio.InvalidStateError:
            pass  # It was refused, and the response says why.
    elif arity.startswith("stream"):
        call = call(stream(*messages))
    else:
        call = call(messages[0])
    if arity.endswith("unary"):
        return [await call]
    if by_write:
        responses = []
        while (response := await call.read()) is not grpc.aio.EOF:
            responses.append(response)
        return responses
    return [response async for response in call]


async def refused(awaitable, reason="NOT_JUDGED"):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    found = rig.status(caught.value)
    assert (found.code, found.info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, reason)
    assert str(RAW) not in str(caught.value)
    return found


# -- what clients send ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
async def test_what_can_not_be_judged_is_not_sent_on_an_undeclared_method(mesh, serve, connect, style):
    handler = Any()
    channel = (await connect(await serve(**adding(handler)), mesh)).channel
    name = f"/acme.Any/{style.split()[0]}"
    for what in UNJUDGED.values():
        found = await refused(called(channel, style, name, what))
        assert name in found.text
        assert "pass_unjudged" in found.text
    await asyncio.sleep(0.01)
    assert handler.got == []


@pytest.mark.parametrize("style", STYLES)
async def test_it_is_sent_if_the_configuration_says_so(open_mesh, serve, connect, style):
    mesh = await open_mesh(grpc={"pass_unjudged": ["/other.*", "/acme.Any/*"]})
    handler = Any()
    channel = (await connect(await serve(**adding(handler)), mesh)).channel
    for what in UNJUDGED.values():
        await called(channel, style, f"/acme.Any/{style.split()[0]}", what)
    assert handler.got == [serialized(what) for what in UNJUDGED.values()]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", ["public", "undeclared", "misspelled"])
async def test_a_protected_request_is_released_whatever_the_method_declares(
    mesh, serve, connect, style, name
):
    handler = Any()
    channel = (await connect(await serve(**adding(handler)), mesh)).channel
    arity = style.split()[0]
    path = {
        "public": PREFIX + PUBLIC[arity],
        "undeclared": f"/acme.Any/{arity}",
        "misspelled": f"/{PREFIX}{PUBLIC[arity]}",
    }[name]
    await called(channel, style, path, reading())
    (got,) = handler.got
    assert is_protected(pb.Reading.FromString(got))
    (account,) = await mesh.ledger.accounts()
    assert account.spent == 10**9


@pytest.mark.parametrize("style", STYLES)
async def test_public_messages_pass_on_public_and_undeclared_methods(mesh, serve, connect, style):
    handler = Any()
    channel = (await connect(await serve(**adding(handler)), mesh)).channel
    arity = style.split()[0]
    for path in (PREFIX + PUBLIC[arity], f"/acme.Any/{arity}"):
        await called(channel, style, path, pb.Plain(text="as it is"))
    # Nothing of what the method declares is protected, so an application may serialize its messages itself.
    await called(channel, style, PREFIX + PUBLIC[arity], pb.Plain(text="as it is").SerializeToString())
    assert handler.got == [pb.Plain(text="as it is").SerializeToString()] * 3
    assert not await mesh.ledger.accounts()


@pytest.mark.parametrize("style", STYLES)
async def test_another_version_of_a_protected_type_is_protected_everywhere(mesh, serve, connect, style):
    handler = Any()
    channel = (await connect(await serve(**adding(handler)), mesh)).channel
    arity = style.split()[0]
    for path in (PREFIX + PUBLIC[arity], f"/acme.Any/{arity}"):
        await called(channel, style, path, foreign_reading())
    assert len(handler.got) == 2
    assert all(is_protected(pb.Reading.FromString(got)) for got in handler.got)
    assert await mesh.ledger.accounts()


async def test_what_looks_like_the_declared_type_is_refused(mesh, serve, connect):
    seen = rig.Seen()
    channel = (await connect(await serve(handlers=seen.handlers()), mesh)).channel
    names = dict(zip(ARITIES, ["Report", "ReportWatch", "ReportAll", "ReportChat"], strict=True))
    for arity, name in names.items():
        await refused(called(channel, arity, PREFIX + name, Lookalike()), "WRONG_TYPE")
    assert seen == []


class Opaque(type(Message)):
    """The metaclass of a class that does not tell its descriptor."""

    @property
    def DESCRIPTOR(cls):
        raise ValueError(f"temperature was {RAW}")


async def test_a_class_that_fails_when_it_is_judged_is_refused(mesh, serve, connect, caplog):
    class Shy(Message, metaclass=Opaque):
        pass

    handler = Any({"unary_unary": answers(Shy(), "unary_unary", "one")["unary_unary"]})
    target = await serve(mesh=mesh, **adding(handler))
    channel = (await connect(target, mesh)).channel
    calls = [called(channel, style, f"/acme.Any/{style.split()[0]}", Shy()) for style in STYLES]
    calls.append(called((await connect(target)).channel, "unary_unary", "/acme.Any/unary_unary", b""))
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert rig.status(caught.value).info.reason == "INTERNAL"
        assert str(RAW) not in str(caught.value) + caplog.text
    assert handler.got == []


async def test_nothing_is_nothing(mesh, serve, connect):
    """A client's None is no value; its serializer says what is sent instead."""
    handler = Any()
    channel = (await connect(await serve(**adding(handler)), mesh)).channel
    await channel.unary_unary("/acme.Any/unary_unary", lambda _: b"empty")(None)
    assert handler.got == [b"empty"]


# -- what servers answer ----------------------------------------------------------------------------------------------


def answering(message):
    """Handlers of all kinds that answer with a message.

    They take all requests first: gRPC fails a request that is written when the RPC has just ended, by chance.
    """

    async def take(requests):
        if hasattr(requests, "__aiter__"):
            async for _ in requests:
                pass

    def take_all(requests):
        if hasattr(requests, "__next__"):
            for _ in requests:
                pass

    async def one(request, context):
        await take(request)
        return message

    def sync_one(request, context):
        take_all(request)
        return message

    async def generate(request, context):
        await take(request)
        yield message

    async def write(request, context):
        await take(request)
        await context.write(message)

    def sync_generate(request, context):
        take_all(request)
        yield message

    def sync_list(request, context):
        take_all(request)
        return iter([message])

    unary, streaming = [one, sync_one], [generate, write, sync_generate, sync_list]
    return [(arity, f) for arity in ARITIES for f in (unary if arity.endswith("unary") else streaming)]


ANSWERING = [(arity, function.__name__) for arity, function in answering(None)]


def answers(message, arity, kind):
    return {arity: next(f for a, f in answering(message) if (a, f.__name__) == (arity, kind))}


@pytest.mark.parametrize(("arity", "kind"), ANSWERING)
async def test_what_can_not_be_judged_is_no_response_of_an_undeclared_method(
    mesh, serve, connect, arity, kind
):
    handler = Any()
    channel = (await connect(await serve(mesh=mesh, **adding(handler)))).channel
    for what in UNJUDGED.values():
        handler.functions = answers(what, arity, kind)
        found = await refused(called(channel, arity, f"/acme.Any/{arity}", b""))
        assert f"/acme.Any/{arity}" in found.text
        assert "pass_unjudged" in found.text


@pytest.mark.parametrize(("arity", "kind"), ANSWERING)
async def test_it_is_one_if_the_configuration_says_so(open_mesh, serve, connect, arity, kind):
    mesh = await open_mesh(grpc={"pass_unjudged": ["*/unary_*", "*/stream_*"]})
    handler = Any(answers(ProtoPlus(station="s1"), arity, kind))
    channel = (await connect(await serve(mesh=mesh, **adding(handler)))).channel
    assert await called(channel, arity, f"/acme.Any/{arity}", b"") == [b"\n\x02s1"]


@pytest.mark.parametrize(("arity", "kind"), ANSWERING)
async def test_a_protected_response_is_released_whatever_the_method_declares(
    mesh, serve, connect, arity, kind
):
    handler = Any(answers(reading(), arity, kind))
    channel = (await connect(await serve(mesh=mesh, **adding(handler)))).channel
    for count, path in enumerate((PREFIX + PUBLIC[arity], f"/acme.Any/{arity}"), 1):
        (response,) = await called(channel, arity, path, b"")
        assert is_protected(pb.Reading.FromString(response))
        (account,) = await mesh.ledger.accounts()
        assert account.spent == count * 10**9


@pytest.mark.parametrize(("arity", "kind"), ANSWERING)
async def test_a_protected_response_without_its_unit_is_refused_whatever_the_method_declares(
    mesh, serve, connect, arity, kind
):
    handler = Any(answers(rig.BAD, arity, kind))
    channel = (await connect(await serve(mesh=mesh, **adding(handler)))).channel
    for path in (PREFIX + PUBLIC[arity], f"/acme.Any/{arity}"):
        await refused(called(channel, arity, path, b""), "MISSING_UNIT")


@pytest.mark.parametrize("kind", ["one", "sync_one"])
async def test_a_dropped_response_is_not_charged_whatever_the_method_declares(mesh, serve, connect, kind):
    async def one(request, context):
        context.set_code(grpc.StatusCode.NOT_FOUND)
        return reading()

    def sync_one(request, context):
        context.set_code(grpc.StatusCode.NOT_FOUND)
        return reading()

    handler = Any({"unary_unary": one if kind == "one" else sync_one})
    channel = (await connect(await serve(mesh=mesh, **adding(handler)))).channel
    for path in (PREFIX + "Echo", "/acme.Any/unary_unary"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await called(channel, "unary_unary", path, b"")
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert not await mesh.ledger.accounts()


async def test_no_response_of_an_undeclared_method_is_what_it_is_in_grpc(mesh, serve, connect):
    async def nothing(request, context):
        return None

    found = []
    for guard in (None, mesh):
        handler = Any({"unary_unary": nothing}, serializer=pb.Plain.SerializeToString)
        channel = (await connect(await serve(mesh=guard, **adding(handler)))).channel
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await called(channel, "unary_unary", "/acme.Any/unary_unary", b"")
        found.append((caught.value.code(), caught.value.details()))
    assert found[0] == found[1]


class Failing(Talkative):
    """Handlers that quote a value, in all ways there are."""

    async def fail(self, request, context):
        await context.send_initial_metadata(TRAILING)
        context.set_trailing_metadata(TRAILING)
        context.set_details(TEXT)
        context.set_code(grpc.StatusCode.NOT_FOUND)
        raise ValueError(TEXT)

    def sync_watch(self, request, context):
        context.set_trailing_metadata(TRAILING)
        context.set_code(grpc.StatusCode.NOT_FOUND)
        yield pb.Plain()
        raise ValueError(TEXT)


WORDS = [("unary_unary", way) for way in ("abort", "abort_with_status", "settle", "sync_abort", "fail")]
WORDS += [("unary_stream", way) for way in ("stream_abort", "write_abort", "sync_watch")]


@pytest.mark.parametrize(("arity", "way"), WORDS)
async def test_words_on_an_undeclared_method_stay_at_home(mesh, serve, connect, caplog, arity, way):
    handler = Any({arity: getattr(Failing(), way)})
    channel = (await connect(await serve(mesh=mesh, **adding(handler)))).channel
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await called(channel, arity, f"/acme.Any/{arity}", b"")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert str(RAW) not in everything(caught.value) + caplog.text
    assert "next-page" not in everything(caught.value)


async def test_streams_of_an_undeclared_method_are_not_compressed(mesh, serve, connect, stack):
    async def chat(requests, context):
        context.set_compression(grpc.Compression.Gzip)
        async for _ in requests:
            yield reading(payload=bytes(20_000))

    handler = Any({"stream_stream": chat})
    target = await serve(mesh=mesh, compression=grpc.Compression.Gzip, **adding(handler))
    wire = await stack.enter_async_context(rig.Wire(target))
    channel = (await connect(wire.target, mesh, compression=grpc.Compression.Gzip)).channel
    await called(channel, "stream_stream", "/acme.Any/stream_stream", reading(payload=bytes(20_000)))
    assert 20_000 < wire.sent < 26_000
    assert 20_000 < wire.received < 26_000


# -- what is said of it -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passes", [False, True])
async def test_one_warning_for_each_method(open_mesh, serve, connect, caplog, passes):
    caplog.set_level(logging.WARNING, logger="dpmesh.grpc")
    mesh = await open_mesh(grpc={"pass_unjudged": ["/acme.*"] if passes else []})
    channel = (await connect(await serve(**adding(Any())), mesh)).channel
    for _ in range(3):
        for name in ("/acme.Any/unary_unary", "/acme.Other/unary_unary"):
            call = called(channel, "unary_unary", name, str(RAW))
            await (call if passes else refused(call))
    told = [record.getMessage() for record in caplog.records]
    assert sorted(text.split(":")[0] for text in told) == ["/acme.Any/unary_unary", "/acme.Other/unary_unary"]
    assert all("pass_unjudged" in text for text in told)
    assert str(RAW) not in caplog.text


async def test_observe_mode_lets_it_pass(open_mesh, serve, connect, caplog):
    mesh = await open_mesh(mode="observe")
    handler = Any()
    channel = (await connect(await serve(**adding(handler)), mesh)).channel
    await called(channel, "unary_unary", "/acme.Any/unary_unary", "as it is")
    assert handler.got == [b"as it is"]
    assert "would have been refused" in caplog.text


def check_refused_span(spans, direction, name):
    (span,) = [span for span in spans.get_finished_spans() if span.name == "dpmesh.release"]
    assert span.attributes["dpmesh.decision"] == "refused"
    assert span.attributes["dpmesh.direction"] == direction
    assert span.attributes["rpc.method"] == name
    assert span.status.status_code is trace.StatusCode.ERROR
    assert str(RAW) not in f"{span.attributes} {span.status.description} {span.events}"


WRONG = {
    "WRONG_TYPE": dict(zip(ARITIES, ["Report", "ReportWatch", "ReportAll", "ReportChat"], strict=True)),
    "NOT_JUDGED": {arity: arity for arity in ARITIES},
}


@pytest.mark.parametrize("reason", WRONG)
@pytest.mark.parametrize("style", STYLES)
async def test_a_refusal_for_a_requests_type_has_a_span(spans, open_mesh, serve, connect, style, reason):
    mesh = await open_mesh()
    arity = style.split()[0]
    name = (PREFIX if reason == "WRONG_TYPE" else "/acme.Any/") + WRONG[reason][arity]
    add = [lambda server: server.add_generic_rpc_handlers([Any()])]
    channel = (await connect(await serve(handlers=rig.Seen().handlers(), add=add), mesh)).channel
    await refused(called(channel, style, name, str(RAW)), reason)
    check_refused_span(spans, "request", name)


@pytest.mark.parametrize(("arity", "kind"), ANSWERING)
async def test_a_refusal_for_a_responses_type_has_a_span(spans, open_mesh, serve, connect, arity, kind):
    mesh = await open_mesh()
    handler = Any(answers(str(RAW), arity, kind))
    channel = (await connect(await serve(mesh=mesh, **adding(handler)))).channel
    await refused(called(channel, arity, f"/acme.Any/{arity}", b""))
    check_refused_span(spans, "response", f"/acme.Any/{arity}")


@pytest.mark.parametrize("style", ["unary_unary", "stream_unary"])
async def test_a_refusal_for_a_bad_annotation_or_a_missing_budget_has_a_span(
    spans, open_mesh, serve, connect, style
):
    everyone = {"name": "all", "key": "global", "epsilon": 6.0, "accounting": "pure", "window": "24h"}
    mesh = await open_mesh(budget=[everyone])
    name = PREFIX + ("Report" if style == "unary_unary" else "ReportAll")
    channel = (await connect(await serve(handlers=rig.Seen().handlers()), mesh)).channel
    found = await refused(called(channel, style, name, reading()), "BAD_ANNOTATION")
    assert "no-budget" in found.text
    check_refused_span(spans, "request", name)


@pytest.mark.parametrize("method", ["Strict", "StrictChat"])
async def test_a_refusal_of_requests_that_no_sender_has_protected_has_a_span(
    spans, open_mesh, serve, connect, method
):
    mesh = await open_mesh()
    stub = await connect(await serve(mesh=mesh, handlers=rig.Seen().handlers()))
    call = stub.Strict(reading()) if method == "Strict" else stub.StrictChat(stream(reading())).read()
    await refused(call, "NOT_PROTECTED")
    check_refused_span(spans, "request", PREFIX + method)


# -- methods that carry protected messages which they do not declare --------------------------------------------------


@pytest.mark.parametrize("way", ["unary_unary", "unary_stream", "writing", "sync stream"])
async def test_words_stay_at_home_once_a_method_has_sent_what_it_does_not_declare(
    mesh, serve, connect, caplog, capfd, way
):
    caplog.set_level(logging.DEBUG)
    asked = 0

    async def one(request, context):
        nonlocal asked
        asked += 1
        if asked == 1:
            return reading()
        raise ValueError(TEXT)

    async def many(request, context):
        yield reading()
        raise ValueError(TEXT)

    async def write(request, context):
        await context.write(reading())
        raise ValueError(TEXT)

    def sync_many(request, context):
        yield reading()
        context.set_trailing_metadata(TRAILING)
        context.abort(grpc.StatusCode.NOT_FOUND, TEXT)

    function = {"unary_unary": one, "unary_stream": many, "writing": write, "sync stream": sync_many}[way]
    arity = "unary_unary" if way == "unary_unary" else "unary_stream"
    channel = (await connect(await serve(mesh=mesh, **adding(Any({arity: function}))))).channel
    name = PREFIX + PUBLIC[arity]
    if arity == "unary_unary":
        await called(channel, arity, name, b"")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await called(channel, arity, name, b"")
    told = f"{caught.value} {caught.value.trailing_metadata()} {caplog.text} {capfd.readouterr()}"
    assert str(RAW) not in told
    assert rig.SECRET not in told


LATE = "acme.late.v1"


def late_file():
    """A file with one message, before it has rules."""
    file = descriptor_pb2.FileDescriptorProto(name="acme/late.proto", package=LATE, syntax="proto3")
    message = file.message_type.add(name="Visit")
    for number, field in enumerate(("person", "sick"), 1):
        message.field.add(
            name=field,
            number=number,
            label="LABEL_OPTIONAL",
            type="TYPE_STRING" if number == 1 else "TYPE_BOOL",
        )
    return file


async def test_another_version_is_protected_once_the_one_with_rules_is_imported(mesh, serve, connect):
    pool = descriptor_pool.DescriptorPool()
    file = late_file()
    pool.AddSerializedFile(file.SerializeToString())
    foreign = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{LATE}.Visit"))
    handler = Any()
    channel = (await connect(await serve(**adding(handler)), mesh)).channel
    await called(channel, "unary_unary", "/acme.Any/unary_unary", foreign(person="p1", sick=True))
    file.dependency.append("dpmesh/v1/privacy.proto")
    file.message_type[0].field[1].options.Extensions[privacy_pb2.field].suppress.SetInParent()
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    await called(channel, "unary_unary", "/acme.Any/unary_unary", foreign(person="p1", sick=True))
    first, second = (foreign.FromString(got) for got in handler.got)
    assert (first.sick, second.sick) == (True, False)


async def test_classes_that_are_made_for_each_rpc_are_not_kept(mesh):
    flow = FlowTable(mesh)["/acme.Any/unary_unary"].request
    for _ in range(CLASSES_KEPT + 1):
        pool = descriptor_pool.DescriptorPool()
        pool.AddSerializedFile(duration_pb2.DESCRIPTOR.serialized_pb)
        flow.needs_release(
            message_factory.GetMessageClass(pool.FindMessageTypeByName("google.protobuf.Duration"))
        )
    assert len(flow._needs_release) <= CLASSES_KEPT


# -- before any rule is in force --------------------------------------------------------------------------------------

PROGRAM = Path(__file__).parent / "stations" / "without_rules.py"


def test_without_a_rule_undeclared_methods_are_grpcs_own_until_one_is_imported():
    done = subprocess.run(
        [sys.executable, str(PROGRAM)], capture_output=True, text=True, check=True, timeout=120
    )
    found = json.loads(done.stdout.splitlines()[-1])
    # Compressed, with all words, and no warning: nothing is protected, so nothing changes.
    assert found["before"] == found["bare"]
    assert found["bare"]["sent"] < 6_000
    assert found["bare"]["received"] < 6_000
    assert "temperature was 41.77777777" in found["bare"]["words"]
    assert found["after"] == {
        "request": "NOT_JUDGED",
        "response": "NOT_JUDGED",
        "words": "the handler failed; dpmesh keeps its exception's text from the peer",
        "during": "NOT_JUDGED",
    }
