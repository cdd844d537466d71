"""Client interceptors: all arities, however the requests are given, and nothing raw leaves."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from stations import rig
from stations import stations_pb2 as pb
from stations.rig import BAD, RAW, SECRET, is_protected, reading, stream

from tests.support.mutual_tls import until


@pytest.fixture
def seen():
    return rig.Seen()


@pytest.fixture
async def stub(mesh, seen, serve, connect):
    return await connect(await serve(handlers=seen.handlers()), mesh)


async def test_a_unary_request_is_protected_and_the_callers_message_is_not_changed(stub, seen):
    message = reading()
    before = message.SerializeToString()
    assert (await stub.Report(message)).text == "1"
    assert message.SerializeToString() == before
    assert len(seen) == 1
    assert is_protected(seen[0])
    assert seen[0].station == "s1"


async def test_responses_are_read_by_iteration(stub, seen):
    assert [response.text async for response in stub.ReportWatch(reading())] == ["0", "1", "2"]
    assert is_protected(seen[0])


async def test_responses_are_read_by_read(stub, seen):
    call = stub.ReportWatch(reading())
    texts = []
    while (response := await call.read()) is not grpc.aio.EOF:
        texts.append(response.text)
    assert texts == ["0", "1", "2"]
    assert await call.code() == grpc.StatusCode.OK
    assert is_protected(seen[0])


@pytest.mark.parametrize("requests", [lambda: stream(*[reading()] * 5), lambda: iter([reading()] * 5)])
async def test_a_request_stream_from_an_iterator(stub, seen, requests):
    assert (await stub.ReportAll(requests())).text == "5"
    assert len(seen) == 5
    assert all(is_protected(message) for message in seen)
    responses = [response.text async for response in stub.ReportChat(requests())]
    assert responses == [str(number) for number in range(6, 11)]
    assert all(is_protected(message) for message in seen)


async def test_a_request_stream_by_write(stub, seen):
    call = stub.ReportAll()
    for _ in range(5):
        await call.write(reading())
    await call.done_writing()
    assert (await call).text == "5"
    assert all(is_protected(message) for message in seen)


async def test_a_conversation_by_write_and_read(stub, seen):
    call = stub.ReportChat()
    for number in range(1, 4):
        await call.write(reading())
        assert (await call.read()).text == str(number)
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() == grpc.StatusCode.OK
    assert all(is_protected(message) for message in seen)


async def test_two_requests_are_two_releases(stub, seen):
    for _ in range(40):
        await stub.Report(reading())
    assert len({message.temperature for message in seen}) > 1


REFUSED = {
    "Report": lambda stub: stub.Report(BAD),
    "ReportAll": lambda stub: stub.ReportAll(stream(reading(), reading(), BAD, reading())),
    "sync": lambda stub: stub.ReportAll(iter([reading(), reading(), BAD, reading()])),
}
STREAMS = {
    "ReportWatch": lambda stub: stub.ReportWatch(BAD),
    "ReportChat": lambda stub: stub.ReportChat(stream(reading(), BAD, reading())),
}


async def write(call, *messages):
    """Writes until gRPC says that the RPC is over; whether it did not."""
    try:
        for message in messages:
            await call.write(message)
    except asyncio.InvalidStateError:
        return False
    return True


async def check_refused(call, error):
    found = rig.status(error)
    assert found.code == grpc.StatusCode.FAILED_PRECONDITION
    assert found.info.reason == "MISSING_UNIT"
    assert found.info.domain == "dpmesh"
    assert found.info.metadata["field"] == "dpmesh.test.stations.v1.Reading.station"
    assert await call.code() == found.code
    assert await call.details() == found.text
    assert tuple(await call.trailing_metadata()) == tuple(error.trailing_metadata())
    assert call.done()
    assert not call.cancelled()
    assert not call.cancel()
    for text in (str(error), repr(error), str(call)):
        assert str(RAW) not in text
        assert SECRET not in text


@pytest.mark.parametrize("name", REFUSED)
async def test_a_refusal_is_the_rpcs_status(stub, seen, name):
    call = REFUSED[name](stub)
    finished = []
    call.add_done_callback(finished.append)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    await check_refused(call, caught.value)
    assert finished == [call]
    assert len(seen) <= 2
    assert all(is_protected(message) for message in seen)


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("style", ["iteration", "read"])
async def test_a_refusal_is_the_status_of_an_rpc_that_streams_responses(stub, seen, name, style):
    call = STREAMS[name](stub)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if style == "iteration":
            async for _ in call:
                pass
        else:
            while await call.read() is not grpc.aio.EOF:
                pass
    await check_refused(call, caught.value)
    assert len(seen) <= 1
    assert all(is_protected(message) for message in seen)


@pytest.mark.parametrize("method", ["ReportAll", "ReportChat"])
async def test_a_refusal_of_what_was_written_is_the_rpcs_status(stub, seen, method):
    call = getattr(stub, method)()
    await call.write(reading())
    assert not await write(call, BAD, reading(), reading(), reading())
    await call.done_writing()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if method == "ReportAll":
            await call
        else:
            while await call.read() is not grpc.aio.EOF:
                pass
    await check_refused(call, caught.value)
    assert len(seen) <= 1


async def test_a_refused_stream_is_cancelled_at_the_server(mesh, serve, connect):
    ended = asyncio.get_running_loop().create_future()
    seen = []

    async def collect(requests, context):
        try:
            async for request in requests:
                seen.append(request)
            # gRPC lets the iterator end like any other, and then cancels the handler.
            await asyncio.sleep(60)
            ended.set_result("completed")
        except asyncio.CancelledError:
            ended.set_result("cancelled")
            raise
        return pb.Plain()

    stub = await connect(await serve(handlers={"ReportAll": collect}), mesh)
    call = stub.ReportAll()
    await call.write(reading())
    await until(lambda: seen)  # An RPC that is cancelled before it arrives has no handler.
    await write(call, BAD)
    with pytest.raises(grpc.aio.AioRpcError, match="station"):
        await call
    assert await asyncio.wait_for(ended, 20) == "cancelled"


@pytest.mark.parametrize("grace", [None, 0.5])
async def test_close_does_not_hang_after_a_refusal(mesh, seen, serve, grace):
    target = await serve(handlers=seen.handlers())
    async with rig.connected(target, mesh) as stub:
        calls = [stub.Report(BAD), stub.ReportAll(stream(reading(), BAD)), stub.ReportChat(stream(BAD))]
        written = stub.ReportAll()
        await write(written, BAD)
        open_call = stub.ReportChat()
        await open_call.write(reading())
        watch = stub.ReportWatch(BAD)
        refused = (*calls, written, watch)
        await until(lambda: all(call.done() for call in refused))
        closing = asyncio.create_task(stub.channel.close(grace))
        if grace:
            await open_call.done_writing()
        await asyncio.wait_for(closing, 20)
        for call in refused:
            assert await call.code() == grpc.StatusCode.FAILED_PRECONDITION


async def test_a_servers_early_end_is_not_replaced_by_a_later_refusal(mesh, serve, connect):
    async def impatient(requests, context):
        await anext(aiter(requests))
        return pb.Plain(text="enough")

    stub = await connect(await serve(handlers={"ReportAll": impatient}), mesh)
    ended = asyncio.Event()

    async def requests():
        yield reading()
        await ended.wait()
        yield BAD

    call = stub.ReportAll(requests())
    assert (await call).text == "enough"
    ended.set()
    await asyncio.sleep(0.05)
    assert await call.code() == grpc.StatusCode.OK


async def test_an_iterators_own_exception_cancels_as_without_dpmesh(mesh, seen, serve, connect):
    target = await serve(handlers=seen.handlers())
    for stub in (await connect(target), await connect(target, mesh)):
        call = stub.ReportAll(stream(reading(), error=KeyError("lost")))
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await call.code() == grpc.StatusCode.CANCELLED
        assert call.cancelled()


async def test_a_servers_status_reaches_the_caller_as_it_is(mesh, serve, connect):
    async def fail(requests, context):
        async for _ in requests:
            pass
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such station", (("hint", "look elsewhere"),))

    async def fail_stream(requests, context):
        await context.send_initial_metadata((("mood", "bad"),))
        yield pb.Plain()
        await fail(requests, context)

    stub = await connect(await serve(handlers={"ReportAll": fail, "ReportChat": fail_stream}), mesh)
    with pytest.raises(grpc.aio.AioRpcError, match="no such station"):
        await stub.ReportAll(stream(reading()))
    call = stub.ReportChat(stream(reading()))
    assert ("mood", "bad") in tuple(await call.initial_metadata())
    await call.wait_for_connection()
    with pytest.raises(grpc.aio.AioRpcError, match="no such station") as caught:
        assert len([response async for response in call]) == 1
    assert ("hint", "look elsewhere") in tuple(caught.value.trailing_metadata())
    assert ("hint", "look elsewhere") in tuple(await call.trailing_metadata())
    assert await call.code() == grpc.StatusCode.NOT_FOUND
    assert not call.cancelled()


async def test_mixing_styles_is_refused_as_without_dpmesh(stub):
    call = stub.ReportAll(stream(reading()))
    with pytest.raises(grpc.aio.UsageError):
        await call.write(reading())
    await call
