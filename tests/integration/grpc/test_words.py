"""What a handler says besides its messages: exceptions, status details and metadata could all quote a value."""

from __future__ import annotations

import logging

import grpc
import pytest
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status
from stations import rig
from stations import stations_pb2 as pb
from stations.rig import RAW, reading, stream

TEXT = f"temperature was {RAW}"


class Station:
    """Handlers of every kind that fail while they hold a value."""

    async def ask(self, request, context):
        raise ValueError(TEXT)

    def sync_ask(self, request, context):
        raise ValueError(TEXT)

    async def watch(self, request, context):
        yield reading()
        raise ValueError(TEXT)

    async def write(self, request, context):
        await context.write(reading())
        raise ValueError(TEXT)

    def sync_watch(self, request, context):
        yield reading()
        raise ValueError(TEXT)


# Nothing is sent to handlers that read nothing: gRPC fails a call whose peer ends it while it sends.
CALLS = {
    "Ask": lambda stub: stub.Ask(pb.Plain()),
    "AskAll": lambda stub: stub.AskAll(),
    "Watch": lambda stub: stub.Watch(pb.Plain()),
    "Chat": lambda stub: stub.Chat(),
    "Report": lambda stub: stub.Report(reading()),
    "ReportAll": lambda stub: stub.ReportAll(),
    "ReportChat": lambda stub: stub.ReportChat(),
}


async def failed(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "read"):
            async for _ in call:
                pass
        else:
            await call
    return caught.value


FAILING = [
    *[(method, kind) for method in ("Ask", "AskAll", "Report", "ReportAll") for kind in ("ask", "sync_ask")],
    *[(method, kind) for method in ("Watch", "Chat") for kind in ("watch", "write", "sync_watch")],
    ("ReportChat", "watch_plain"),
]


@pytest.mark.parametrize(("method", "kind"), FAILING)
async def test_an_exceptions_text_stays_at_home(mesh, serve, connect, caplog, capfd, method, kind):
    caplog.set_level(logging.DEBUG)

    async def watch_plain(requests, context):
        yield pb.Plain()
        raise ValueError(TEXT)

    handler = watch_plain if kind == "watch_plain" else getattr(Station(), kind)
    stub = await connect(await serve(mesh=mesh, handlers={method: handler}))
    error = await failed(CALLS[method](stub))
    assert error.code() == grpc.StatusCode.UNKNOWN
    assert error.details() == "the handler failed; dpmesh keeps its exception's text from the peer"
    record = next(record for record in caplog.records if record.name == "dpmesh.grpc")
    assert "ValueError" in record.getMessage()
    assert f".Stations/{method}:" in record.getMessage()
    assert "test_words.py:" in record.getMessage()
    told = caplog.text + "".join(capfd.readouterr()) + str(error) + repr(tuple(error.trailing_metadata()))
    assert str(RAW) not in told
    assert rig.SECRET not in told


async def test_an_exception_after_set_code_has_that_code(mesh, serve, connect):
    async def ask(request, context):
        context.set_code(grpc.StatusCode.DATA_LOSS)
        context.set_details(TEXT)
        raise ValueError(TEXT)

    stub = await connect(await serve(mesh=mesh, handlers={"Ask": ask}))
    error = await failed(stub.Ask(pb.Plain()))
    assert error.code() == grpc.StatusCode.DATA_LOSS
    assert "41.77777777" not in str(error)


@pytest.mark.parametrize(
    "kind", [KeyError, LookupError, BaseExceptionGroup, grpc.aio.AbortError, grpc.RpcError]
)
async def test_all_kinds_of_exceptions(mesh, serve, connect, caplog, kind):
    class Odd(BaseException):
        pass

    async def ask(request, context):
        raise kind(TEXT, [Odd(TEXT)]) if kind is BaseExceptionGroup else kind(TEXT)

    stub = await connect(await serve(mesh=mesh, handlers={"Ask": ask}))
    error = await failed(stub.Ask(pb.Plain()))
    assert error.code() == grpc.StatusCode.UNKNOWN
    assert "41.77777777" not in str(error) + caplog.text


async def test_suppressing_an_abort_and_raising_something_else(mesh, serve, connect, caplog):
    async def ask(request, context):
        try:
            await context.abort(grpc.StatusCode.NOT_FOUND, "gone")
        except grpc.aio.AbortError:
            raise ValueError(TEXT) from None

    async def quiet(requests, context):
        try:
            await context.abort(grpc.StatusCode.NOT_FOUND, "gone")
        except grpc.aio.AbortError:
            return reading()

    stub = await connect(await serve(mesh=mesh, handlers={"Ask": ask, "AskAll": quiet}))
    for call in (stub.Ask(pb.Plain()), stub.AskAll()):
        assert (await failed(call)).code() == grpc.StatusCode.NOT_FOUND
    assert "41.77777777" not in caplog.text


async def test_a_wrong_abort_still_ends_the_rpc(mesh, serve, connect, caplog):
    async def ask(request, context):
        await context.abort(grpc.StatusCode.NOT_FOUND, "gone", ((f"key-{RAW}", RAW),))

    stub = await connect(await serve(mesh=mesh, handlers={"Report": ask, "Ask": ask}))
    for call in (stub.Report(reading(), timeout=30), stub.Ask(pb.Plain(), timeout=30)):
        error = await failed(call)
        assert error.code() in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.NOT_FOUND)
        assert "41.77777777" not in str(error) + caplog.text


TRAILING = (("next-page", "7"), ("reading", str(RAW)), ("reading-bin", b"41.77777777"))


class Talkative:
    """Says the same in all ways there are."""

    async def abort(self, request, context):
        await context.send_initial_metadata(TRAILING)
        await context.abort(grpc.StatusCode.NOT_FOUND, TEXT, TRAILING)

    async def abort_with_status(self, request, context):
        await context.send_initial_metadata(TRAILING)
        rich = status_pb2.Status(code=code_pb2.NOT_FOUND, message=TEXT)
        status = rpc_status.to_status(rich)
        await context.abort_with_status(
            status._replace(trailing_metadata=(*status.trailing_metadata, *TRAILING))
        )

    async def settle(self, request, context):
        await context.send_initial_metadata(TRAILING)
        context.set_code(grpc.StatusCode.NOT_FOUND)
        context.set_details(TEXT)
        context.set_trailing_metadata(TRAILING)

    def sync_abort(self, request, context):
        context.send_initial_metadata(TRAILING)
        context.set_trailing_metadata(TRAILING)
        context.abort(grpc.StatusCode.NOT_FOUND, TEXT)

    async def stream_abort(self, request, context):
        await context.send_initial_metadata(TRAILING)
        context.set_trailing_metadata(TRAILING)
        yield reading()
        await context.abort(grpc.StatusCode.NOT_FOUND, TEXT)

    async def write_abort(self, request, context):
        await context.send_initial_metadata(TRAILING)
        await context.write(reading())
        await context.abort(grpc.StatusCode.NOT_FOUND, TEXT, TRAILING)


WAYS = [
    *[
        (method, way)
        for method in ("Ask", "AskAll")
        for way in ("abort", "abort_with_status", "settle", "sync_abort")
    ],
    *[(method, way) for method in ("Watch", "Chat") for way in ("stream_abort", "write_abort")],
]


def everything(error):
    return repr(
        (error.details(), tuple(error.trailing_metadata()), tuple(error.initial_metadata()), str(error))
    )


@pytest.mark.parametrize(("method", "way"), WAYS)
async def test_deliberate_words_keep_their_code_and_lose_their_text(
    mesh, serve, connect, caplog, method, way
):
    stub = await connect(await serve(mesh=mesh, handlers={method: getattr(Talkative(), way)}))
    error = await failed(CALLS[method](stub))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert "pass_status_details" in error.details()
    assert "41.77777777" not in everything(error)
    assert "next-page" not in everything(error)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize(("method", "way"), WAYS)
async def test_allowed_words_pass(open_mesh, serve, connect, method, way):
    mesh = await open_mesh(grpc={"pass_metadata": ["Next-Page"], "pass_status_details": True})
    stub = await connect(await serve(mesh=mesh, handlers={method: getattr(Talkative(), way)}))
    error = await failed(CALLS[method](stub))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert error.details() == TEXT
    assert ("next-page", "7") in tuple(error.trailing_metadata())
    assert ("next-page", "7") in tuple(error.initial_metadata())
    assert "reading" not in everything(error)
    if way == "abort_with_status":
        assert rpc_status.from_call(error).message == TEXT


async def test_words_on_methods_with_a_public_response_pass(mesh, serve, connect):
    stub = await connect(await serve(mesh=mesh, handlers={"Report": Talkative().abort}))
    error = await failed(stub.Report(reading()))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert error.details() == TEXT
    assert ("next-page", "7") in tuple(error.trailing_metadata())


async def test_trailing_metadata_of_a_good_response(mesh, serve, connect):
    async def ask(request, context):
        context.set_trailing_metadata(TRAILING)
        return reading()

    call = (await connect(await serve(mesh=mesh, handlers={"Ask": ask}))).Ask(pb.Plain())
    await call
    assert tuple(await call.trailing_metadata()) == ()


async def test_no_raw_value_is_logged_whatever_happens(mesh, serve, connect, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    bad = pb.Stray(station=rig.SECRET, rain=True)

    async def ask(request, context):
        return bad

    stub = await connect(await serve(mesh=mesh, handlers={"Ask": ask, **rig.Seen().handlers()}), mesh)
    calls = [stub.Report(rig.BAD), stub.ReportAll(stream(reading(), bad)), stub.Ask(pb.Plain())]
    calls += [stub.Report(reading(exact=float("nan"))), stub.Report(bad), stub.ReportChat(stream(rig.BAD))]
    errors = [str(await failed(call)) for call in calls]
    told = caplog.text + "".join(capfd.readouterr()) + "".join(errors)
    assert str(RAW) not in told
    assert rig.SECRET not in told
