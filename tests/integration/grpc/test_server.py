"""Server interceptor: every kind of handler has its responses protected, and nothing raw leaves."""

from __future__ import annotations

import asyncio
import contextlib
import functools

import grpc
import pytest
from stations import rig
from stations import stations_pb2 as pb
from stations.rig import BAD, is_protected, reading, stream

from tests.support.mutual_tls import until

COUNT = 3
# Nothing is sent to handlers that read nothing: gRPC fails a call whose peer ends it while it sends.
ASK = {"Ask": lambda stub: stub.Ask(pb.Plain()), "AskAll": lambda stub: stub.AskAll()}
WATCH = {"Watch": lambda stub: stub.Watch(pb.Plain()), "Chat": lambda stub: stub.Chat()}


async def answer(request, context):
    return reading()


def sync_answer(request, context):
    assert not isinstance(request, pb.Plain) or request is not None
    return reading()


class Station:
    async def answer(self, request, context):
        return reading()

    async def watch(self, request, context):
        for _ in range(COUNT):
            yield reading()


async def watch(request, context):
    for _ in range(COUNT):
        yield reading()


async def write(request, context):
    for _ in range(COUNT):
        await context.write(reading())


def sync_watch(request, context):
    for _ in range(COUNT):
        yield reading()


def sync_list(request, context):
    return iter([reading()] * COUNT)


async def partial(message, request, context):
    return message


async def partial_watch(messages, request, context):
    for message in messages:
        yield message


UNARY = [answer, sync_answer, Station().answer, functools.partial(partial, reading())]
STREAMING = [
    watch,
    write,
    sync_watch,
    sync_list,
    Station().watch,
    functools.partial(partial_watch, [reading()] * COUNT),
]


@pytest.mark.parametrize("handler", UNARY)
@pytest.mark.parametrize("method", ASK)
async def test_a_unary_response_is_protected(mesh, serve, connect, handler, method):
    stub = await connect(await serve(mesh=mesh, handlers={method: handler}))
    for _ in range(2):
        assert is_protected(await ASK[method](stub))


@pytest.mark.parametrize("handler", STREAMING)
@pytest.mark.parametrize("method", WATCH)
async def test_streamed_responses_are_protected(mesh, serve, connect, handler, method):
    stub = await connect(await serve(mesh=mesh, handlers={method: handler}))
    for _ in range(2):
        responses = [response async for response in WATCH[method](stub)]
        assert len(responses) == COUNT
        assert all(is_protected(response) for response in responses)


async def test_a_handler_that_reads_and_writes(mesh, serve, connect):
    async def converse(requests, context):
        while await context.read() is not grpc.aio.EOF:
            await context.write(reading())

    stub = await connect(await serve(mesh=mesh, handlers={"Chat": converse}))
    responses = [response async for response in stub.Chat(stream(*[pb.Plain()] * COUNT))]
    assert len(responses) == COUNT
    assert all(is_protected(response) for response in responses)


async def test_handlers_that_read_a_stream(mesh, serve, connect):
    async def collect(requests, context):
        return reading(",".join([request.text async for request in requests]))

    def sync_collect(requests, context):
        return reading(",".join([request.text for request in requests]))

    def sync_echo(requests, context):
        for request in requests:
            yield reading(request.text)

    words = [pb.Plain(text="a"), pb.Plain(text="b")]
    for handler in (collect, sync_collect):
        stub = await connect(await serve(mesh=mesh, handlers={"AskAll": handler, "Chat": sync_echo}))
        response = await stub.AskAll(stream(*words))
        assert response.station == "a,b"
        assert is_protected(response)
        assert [response.station async for response in stub.Chat(iter(words))] == ["a", "b"]


async def test_both_directions_of_one_rpc(mesh, serve, connect):
    """A relay: what it received and answers with is released again, and both are charged."""
    seen = rig.Seen()

    async def ask(request, context):
        await stub.Report(reading("relayed"))
        return reading("answered")

    stub = await connect(await serve(mesh=mesh, handlers={"Ask": ask, **seen.handlers()}), mesh)
    assert is_protected(await stub.Ask(pb.Plain()))
    assert is_protected(seen[0])
    assert len(await mesh.ledger.accounts()) == 2


async def bad_answer(request, context):
    return BAD


def sync_bad_answer(request, context):
    return BAD


async def bad_watch(request, context):
    yield reading()
    yield BAD
    yield reading()


async def bad_write(request, context):
    await context.write(reading())
    await context.write(BAD)
    await context.write(reading())


async def stubborn_write(request, context):
    await context.write(reading())
    for message in (BAD, reading(), reading()):
        with contextlib.suppress(Exception):
            await context.write(message)


def sync_bad_watch(request, context):
    yield reading()
    yield BAD


def check_refused(error, reason="MISSING_UNIT"):
    found = rig.status(error)
    assert found.code == grpc.StatusCode.FAILED_PRECONDITION
    assert (found.info.domain, found.info.reason) == ("dpmesh", reason)
    for text in (str(error), repr(error)):
        assert str(rig.RAW) not in text
        assert rig.SECRET not in text


@pytest.mark.parametrize("handler", [bad_answer, sync_bad_answer])
@pytest.mark.parametrize("method", ASK)
async def test_a_refused_response_is_the_rpcs_status(mesh, serve, connect, caplog, handler, method):
    stub = await connect(await serve(mesh=mesh, handlers={method: handler}))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ASK[method](stub)
    check_refused(caught.value)
    assert f"Stations/{method}: a response was refused" in caplog.text


@pytest.mark.parametrize("handler", [bad_watch, bad_write, stubborn_write, sync_bad_watch])
@pytest.mark.parametrize("method", WATCH)
async def test_a_refused_response_ends_the_stream(mesh, serve, connect, handler, method):
    stub = await connect(await serve(mesh=mesh, handlers={method: handler}))
    responses = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for response in WATCH[method](stub):
            responses.append(response)
    check_refused(caught.value)
    assert len(responses) == 1
    assert is_protected(responses[0])


@pytest.mark.parametrize(
    "wrong",
    [pb.Stray(station="s1", rain=True), pb.Plain(text="41.77777777"), b"\n\x0241.77777777", "41.77777777"],
)
async def test_a_response_of_the_wrong_type_is_refused(mesh, serve, connect, wrong):
    async def ask(request, context):
        return wrong

    async def follow(request, context):
        await context.write(wrong)

    stub = await connect(await serve(mesh=mesh, handlers={"Ask": ask, "Watch": follow}))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Ask(pb.Plain())
    check_refused(caught.value, "WRONG_TYPE")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Watch(pb.Plain()).read()
    check_refused(caught.value, "WRONG_TYPE")


async def test_no_response_is_what_it_is_in_grpc(mesh, serve, connect):
    async def nothing(request, context):
        return None

    async def code_alone(request, context):
        context.set_code(grpc.StatusCode.NOT_FOUND)

    found = []
    for guard in (None, mesh):
        stub = await connect(await serve(mesh=guard, handlers={"Ask": nothing, "AskAll": code_alone}))
        for call in (stub.Ask(pb.Plain()), stub.AskAll()):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            found.append((caught.value.code(), caught.value.details()))
    assert found[:2] == found[2:]
    assert [code for code, _ in found[:2]] == [grpc.StatusCode.UNKNOWN, grpc.StatusCode.NOT_FOUND]


async def test_a_response_that_grpc_drops_is_not_charged(mesh, serve, connect):
    async def ask(request, context):
        context.set_code(grpc.StatusCode.NOT_FOUND)
        return reading()

    stub = await connect(await serve(mesh=mesh, handlers={"Ask": ask}))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Ask(pb.Plain())
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert not await mesh.ledger.accounts()


async def test_a_client_that_leaves_during_the_release_gets_nothing(mesh, serve, connect, caplog):
    finished = asyncio.Event()

    async def follow(request, context):
        try:
            yield reading("slow")
            yield reading("slow")
        finally:
            finished.set()

    stub = await connect(await serve(mesh=mesh, handlers={"Watch": follow}))
    with rig.stalled(mesh):
        call = stub.Watch(pb.Plain())
        await until(lambda: rig.is_waited_for(mesh))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call.read()
        await asyncio.wait_for(finished.wait(), 20)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_the_context_is_grpcs_own_in_all_else(mesh, serve, connect):
    done = asyncio.get_running_loop().create_future()
    found = {}

    async def ask(request, context):
        context.add_done_callback(done.set_result)
        found["peer"] = context.peer()
        found["left"] = context.time_remaining()
        found["metadata"] = dict(context.invocation_metadata())
        found["context"] = context
        found["over"] = (context.done(), context.cancelled(), context.code(), context.details())
        with pytest.raises(AttributeError):
            _ = context.no_such_thing
        return reading()

    stub = await connect(await serve(mesh=mesh, handlers={"Ask": ask}))
    await stub.Ask(pb.Plain(), timeout=60, metadata=(("who", "me"),))
    assert await asyncio.wait_for(done, 20) is found["context"]
    assert found["peer"].startswith("ipv4:127.0.0.1")
    assert 0 < found["left"] <= 60.1
    assert found["metadata"]["who"] == "me"
    assert found["over"] == (False, False, None, "")


async def test_handlers_that_are_looked_up_anew_are_protected_each_time(mesh, serve, connect):
    """A generic handler may make a new RpcMethodHandler for every RPC, of another kind even."""

    async def other(request, context):
        return reading("other")

    kinds = [sync_answer, other]

    class Fresh(grpc.GenericRpcHandler):
        def service(self, details):
            kinds.append(kinds.pop(0))
            return grpc.unary_unary_rpc_method_handler(
                kinds[0],
                request_deserializer=pb.Plain.FromString,
                response_serializer=pb.Reading.SerializeToString,
            )

    target = await serve(mesh=mesh, add=[lambda server: server.add_generic_rpc_handlers([Fresh()])])
    stub = await connect(target)
    ask = stub.channel.unary_unary("/acme.Unknown/Ask", pb.Plain.SerializeToString, pb.Reading.FromString)
    responses = [await ask(pb.Plain()) for _ in range(4)]
    assert all(is_protected(response) for response in responses)
    assert [response.station for response in responses] == ["other", "s1"] * 2


async def swallowing(context):
    with contextlib.suppress(grpc.aio.AbortError):
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such station")


async def ended_answer(request, context):
    await swallowing(context)
    return reading()


async def ended_watch(request, context):
    await swallowing(context)
    yield reading()


async def ended_write(request, context):
    await swallowing(context)
    for _ in range(COUNT):
        with contextlib.suppress(grpc.aio.AbortError):
            await context.write(reading())


@pytest.mark.parametrize(
    ("method", "handler"), [("Ask", ended_answer), ("Watch", ended_watch), ("Watch", ended_write)]
)
async def test_what_comes_after_the_end_of_an_rpc_is_not_charged(mesh, serve, connect, method, handler):
    stub = await connect(await serve(mesh=mesh, handlers={method: handler}))
    call = getattr(stub, method)(pb.Plain())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call if method == "Ask" else call.read())
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    await asyncio.sleep(0.05)
    assert not await mesh.ledger.accounts()


async def test_what_comes_after_a_refusal_is_not_charged(mesh, serve, connect):
    written = asyncio.Event()

    async def watch(request, context):
        for message in (BAD, reading(), reading()):
            with contextlib.suppress(grpc.aio.AbortError):
                await context.write(message)
        written.set()

    stub = await connect(await serve(mesh=mesh, handlers={"Watch": watch}))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Watch(pb.Plain()).read()
    assert rig.status(caught.value).info.reason == "MISSING_UNIT"
    await asyncio.wait_for(written.wait(), 20)
    assert not await mesh.ledger.accounts()
