"""Whatever a handler or its parts raise, no text of it reaches the peer; codes that are meant as a status do."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc._cython import cygrpc
from stations import rig
from stations import stations_pb2 as pb
from stations.rig import PREFIX, RAW, reading
from test_words import CALLS, TEXT, everything, failed

from dpmesh.errors import DpmeshError
from dpmesh_grpc.tokens.ticket_metadata import SyncTicketContext, TicketContext
from tests.support.mutual_tls import until

MASKED = "the handler failed; dpmesh keeps its exception's text from the peer"


class OwnAbort(grpc.aio.AbortError):
    pass


class OwnRefusal(DpmeshError):
    pass


class Odd(BaseException):
    pass


def nested():
    """What a call to another service raises."""
    trailing = grpc.aio.Metadata(("reading", str(RAW)))
    return grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), trailing, details=TEXT)


RAISED = {
    "InternalError": lambda: grpc.aio.InternalError(TEXT),
    "UsageError": lambda: grpc.aio.UsageError(TEXT),
    "BaseError": lambda: grpc.aio.BaseError(TEXT),
    "AbortError": lambda: grpc.aio.AbortError(TEXT),
    "its subclass": lambda: OwnAbort(TEXT),
    "a nested call's": nested,
    "RpcError": lambda: grpc.RpcError(TEXT),
    "a group": lambda: ExceptionGroup(TEXT, [ValueError(TEXT), nested()]),
    "a group of all": lambda: BaseExceptionGroup(TEXT, [Odd(TEXT), asyncio.CancelledError(TEXT)]),
    "no Exception": lambda: Odd(TEXT),
    "GeneratorExit": lambda: GeneratorExit(TEXT),
    "StopIteration": lambda: StopIteration(TEXT),
    "StopAsyncIteration": lambda: StopAsyncIteration(TEXT),
    "derived from dpmesh's": lambda: OwnRefusal(TEXT),
    "not implemented": lambda: NotImplementedError(TEXT),
    "a note": lambda: noted(NotImplementedError()),
}
# gRPC ends an RPC without a status where a handler raises these.
SILENT = {
    "CancelledError": lambda: asyncio.CancelledError(TEXT),
    "ExecuteBatchError": lambda: cygrpc.ExecuteBatchError(TEXT),
    "ServerStoppedError": lambda: cygrpc._ServerStoppedError(TEXT),
}


def noted(error):
    error.add_note(TEXT)
    return error


class Swapped(grpc.GenericRpcHandler):
    """Serves one method of the tests' service by whatever function stands in `now`."""

    def __init__(self, method, now=None):
        self.method = PREFIX + method
        self.arity = ARITIES[method]
        self.serializers = SERIALIZERS[method]
        self.now = now

    def service(self, details):
        if details.method != self.method:
            return None
        make = getattr(grpc, f"{self.arity}_rpc_method_handler")
        return make(self.now, *self.serializers)


ARITIES = {
    "Ask": "unary_unary",
    "AskAll": "stream_unary",
    "Watch": "unary_stream",
    "Chat": "stream_stream",
    "Report": "unary_unary",
    "ReportChat": "stream_stream",
}
SERIALIZERS = {
    method: (pb.Reading.FromString, pb.Plain.SerializeToString)
    if method.startswith("Report")
    else (pb.Plain.FromString, pb.Reading.SerializeToString)
    for method in ARITIES
}


def adding(handler):
    return {"stations": False, "add": [lambda server: server.add_generic_rpc_handlers([handler])]}


def raising(make, response):
    """Handlers of all kinds that fail."""

    async def ask(request, context):
        raise make()

    def sync_ask(request, context):
        raise make()

    async def watch(request, context):
        yield response
        raise make()

    async def write(request, context):
        await context.write(response)
        raise make()

    def sync_watch(request, context):
        yield response
        raise make()

    async def ending(request, context):
        try:
            yield response
        finally:
            raise make()

    async def suppressed(request, context):
        try:
            await context.abort(grpc.StatusCode.NOT_FOUND, TEXT)
        except grpc.aio.AbortError:
            raise make() from None

    functions = (ask, sync_ask, watch, write, sync_watch, ending, suppressed)
    return {function.__name__: function for function in functions}


KINDS = [
    *[(method, kind) for method in ("Ask", "Report") for kind in ("ask", "sync_ask")],
    *[(method, kind) for method in ("Watch", "Chat", "ReportChat") for kind in ("watch", "write")],
    *[("Watch", kind) for kind in ("sync_watch", "ending")],
]


@pytest.mark.parametrize(("method", "kind"), KINDS)
async def test_no_exception_carries_its_text(mesh, serve, connect, caplog, capfd, method, kind):
    caplog.set_level(logging.DEBUG)
    response = pb.Plain() if method == "ReportChat" else reading()
    handler = Swapped(method)
    stub = await connect(await serve(mesh=mesh, **adding(handler)))
    for make in RAISED.values():
        handler.now = raising(make, response)[kind]
        error = await failed(CALLS[method](stub))
        assert error.code() == grpc.StatusCode.UNKNOWN
        assert error.details() == MASKED
        assert str(RAW) not in everything(error)
    assert str(RAW) not in caplog.text + "".join(capfd.readouterr())


async def test_an_exception_in_place_of_an_abort(mesh, serve, connect, caplog):
    handler = Swapped("Ask")
    stub = await connect(await serve(mesh=mesh, **adding(handler)))
    for make in RAISED.values():
        handler.now = raising(make, reading())["suppressed"]
        error = await failed(stub.Ask(pb.Plain()))
        assert error.code() == grpc.StatusCode.NOT_FOUND
        assert str(RAW) not in everything(error)
    assert str(RAW) not in caplog.text


@pytest.mark.parametrize(("method", "kind"), [KINDS[0], KINDS[1], *KINDS[4:6], ("Watch", "sync_watch")])
async def test_what_ends_an_rpc_without_a_status_says_nothing(mesh, serve, connect, method, kind):
    response = pb.Plain() if method == "ReportChat" else reading()

    async def told(make):
        handler = Swapped(method, raising(make, response)[kind])
        stub = await connect(await serve(mesh=mesh, **adding(handler)))
        call = getattr(stub, method)
        if method in ("Ask", "Watch"):
            call = call(pb.Plain(), timeout=0.3)
        else:
            call = call(reading(), timeout=0.3) if method == "Report" else call(timeout=0.3)
        return everything(await failed(call))

    for text in await asyncio.gather(*map(told, SILENT.values())):
        assert str(RAW) not in text


PROGRAM = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
import grpc
import dpmesh
from stations import rig

async def ask(request, context):
    raise {error}("temperature was 41.77777777")

def sync_ask(request, context):
    raise {error}("temperature was 41.77777777")

async def main():
    async with dpmesh.open({{"ledger": {{"url": "memory:"}}}}) as mesh:
        async with rig.serving(mesh=mesh, handlers={{"Ask": {kind}}}) as target:
            print(target, flush=True)
            await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize(("error", "kind"), [("SystemExit", "ask"), ("KeyboardInterrupt", "sync_ask")])
async def test_what_ends_the_process_says_nothing_to_the_peer(connect, error, kind):
    program = PROGRAM.format(error=error, kind=kind)
    command = [sys.executable, "-c", program, str(Path(__file__).parent)]
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        target = (await process.stdout.readline()).decode().strip()
        stub = await connect(target)
        assert str(RAW) not in everything(await failed(stub.Ask(pb.Plain(), timeout=60)))
    finally:
        process.kill()
        await process.communicate()


# -- what gRPC calls by itself ----------------------------------------------------------------------------------------


def broken(_message):
    raise ValueError(TEXT)


def broken_by_grpc(_message):
    raise grpc.aio.InternalError(TEXT)


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("function", [broken, broken_by_grpc])
@pytest.mark.parametrize("method", ["Ask", "AskAll", "Watch", "Chat"])
async def test_a_serializer_or_deserializer_that_fails(mesh, serve, connect, caplog, method, function, part):
    caplog.set_level(logging.DEBUG)
    kinds = {"Ask": ["ask", "sync_ask"], "Watch": ["watch", "write", "sync_watch"]}
    kinds = {**kinds, "AskAll": kinds["Ask"], "Chat": kinds["Watch"]}[method]
    handler = Swapped(method)
    handler.serializers = [pb.Plain.FromString, pb.Reading.SerializeToString]
    handler.serializers[part] = function
    stub = await connect(await serve(mesh=mesh, **adding(handler)))
    for kind in kinds:
        handler.now = answering()[kind]
        call = getattr(stub, method)
        streams = ARITIES[method].startswith("stream")
        error = await failed(call(rig.stream(pb.Plain(text="a")) if streams else call_argument()))
        assert error.code() == grpc.StatusCode.UNKNOWN
        assert MASKED in error.details()
        assert str(RAW) not in everything(error)
    assert str(RAW) not in caplog.text


def call_argument():
    return pb.Plain(text="a")


def answering():
    """Handlers of all kinds that read what there is to read, and answer."""

    async def consumed(request):
        if not isinstance(request, pb.Plain):
            async for _ in request:
                pass

    async def ask(request, context):
        await consumed(request)
        return reading()

    def sync_ask(request, context):
        if not isinstance(request, pb.Plain):
            list(request)
        return reading()

    async def watch(request, context):
        await consumed(request)
        yield reading()

    async def write(request, context):
        await consumed(request)
        await context.write(reading())

    def sync_watch(request, context):
        if not isinstance(request, pb.Plain):
            list(request)
        yield reading()

    return {function.__name__: function for function in (ask, sync_ask, watch, write, sync_watch)}


@pytest.mark.parametrize("method", ["Ask", "Report"])
async def test_a_callback_that_fails(mesh, serve, connect, caplog, method):
    caplog.set_level(logging.DEBUG)
    response = pb.Plain() if method == "Report" else reading()
    called = []

    def callback(*_):
        called.append(1)
        raise ValueError(TEXT)

    async def ask(request, context):
        context.add_done_callback(callback)
        return response

    def sync_ask(request, context):
        context.add_callback(callback)
        return response

    handler = Swapped(method, ask)
    stub = await connect(await serve(mesh=mesh, **adding(handler)))
    await CALLS[method](stub)
    await until(lambda: called)
    handler.now = sync_ask
    error = await failed(CALLS[method](stub))
    assert MASKED in error.details()
    assert str(RAW) not in everything(error)
    assert str(RAW) not in caplog.text
    assert len(called) == 2


async def test_a_generator_that_fails_while_it_is_closed(mesh, serve, connect, caplog):
    """The client has gone while a response waits to be read; the RPC is over when the generator ends."""
    caplog.set_level(logging.DEBUG)
    began, ended = asyncio.Event(), asyncio.Event()

    async def watch(request, context):
        try:
            while True:
                began.set()
                yield reading(payload=bytes(1_000_000))
        finally:
            ended.set()
            raise ValueError(TEXT)

    stub = await connect(await serve(mesh=mesh, handlers={"Watch": watch, "Ask": answering()["ask"]}))
    call = stub.Watch(pb.Plain())
    await asyncio.wait_for(began.wait(), 60)
    await asyncio.sleep(0.05)  # Nothing is read, so that gRPC waits in the middle of a response, if it can.
    call.cancel()
    async with asyncio.timeout(60):
        while not ended.is_set():
            gc.collect()
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.01)
    assert str(RAW) not in caplog.text
    assert rig.is_protected(await stub.Ask(pb.Plain()))


# -- what is not implemented ------------------------------------------------------------------------------------------


class Watching(grpc.aio.ServerInterceptor):
    """Another library's, which counts the exceptions of synchronous handlers."""

    def __init__(self):
        self.caught = []

    async def intercept_service(self, continuation, handler_call_details):
        handler = await continuation(handler_call_details)
        if handler.unary_unary is None:
            return handler

        def watched(request, context):
            try:
                return handler.unary_unary(request, context)
            except Exception as error:
                self.caught.append(type(error))
                raise

        return grpc.unary_unary_rpc_method_handler(
            watched, handler.request_deserializer, handler.response_serializer
        )


@pytest.mark.parametrize("method", CALLS)
async def test_a_method_that_nobody_wrote_is_what_it_is_in_grpc(mesh, serve, connect, caplog, method):
    watching, found = Watching(), []
    for guard in (None, mesh):
        caplog.clear()
        stub = await connect(await serve(mesh=guard, before=[watching]))
        error = await failed(CALLS[method](stub))
        logged = [(record.name, record.levelname) for record in caplog.records]
        found.append((error.code(), error.details(), tuple(error.trailing_metadata()), logged))
    assert found[0] == found[1]
    assert found[0][0] == grpc.StatusCode.UNIMPLEMENTED
    assert watching.caught == [NotImplementedError] * 2 * (ARITIES.get(method) == "unary_unary")


# -- exceptions that are meant as a status ----------------------------------------------------------------------------


class NotFound(Exception):
    """As libraries have them: with the code of the status."""

    status_code = grpc.StatusCode.NOT_FOUND


class Translating(grpc.aio.ServerInterceptor):
    """Turns exceptions into statuses, of all kinds of handlers."""

    async def intercept_service(self, continuation, handler_call_details):
        handler = await continuation(handler_call_details)
        if handler.response_streaming:
            function = handler.unary_stream

            async def stream(request, context):
                try:
                    async for response in function(request, context):
                        yield response
                except (ValueError, NotFound) as error:
                    await context.abort(self.code(error), str(error))

            return grpc.unary_stream_rpc_method_handler(
                stream, handler.request_deserializer, handler.response_serializer
            )
        function = handler.unary_unary

        async def unary(request, context):
            try:
                return await function(request, context)
            except (ValueError, NotFound) as error:
                await context.abort(self.code(error), str(error))

        return grpc.unary_unary_rpc_method_handler(
            unary, handler.request_deserializer, handler.response_serializer
        )

    def code(self, error):
        return getattr(error, "status_code", grpc.StatusCode.INVALID_ARGUMENT)


@pytest.mark.parametrize(("method", "kind"), [("Ask", "ask"), ("Watch", "watch")])
async def test_codes_of_exceptions_pass_in_either_order_and_texts_do_not(
    mesh, serve, connect, method, kind, stack
):
    from dpmesh_grpc import aio_server_interceptors

    handler = Swapped(method)
    ours = aio_server_interceptors(mesh)
    for interceptors, known in (((*ours, Translating()), True), ((Translating(), *ours), False)):
        stub = await connect(await serve(before=interceptors, **adding(handler)))
        for error, code in (
            (NotFound, grpc.StatusCode.NOT_FOUND),
            (ValueError, grpc.StatusCode.INVALID_ARGUMENT),
        ):
            handler.now = raising(lambda error=error: error(TEXT), reading())[kind]
            caught = await failed(CALLS[method](stub))
            # Where dpmesh stands nearer to the handler, only what the exception itself says is known.
            expected = code if known or error is NotFound else grpc.StatusCode.UNKNOWN
            assert caught.code() == expected
            assert str(RAW) not in everything(caught)


async def test_a_code_that_can_not_be_read_is_unknown(mesh, serve, connect):
    class Shy(Exception):
        @property
        def status_code(self):
            raise RuntimeError(TEXT)

    class Wrong(Exception):
        status_code = 404
        code = grpc.StatusCode.OK

    handler = Swapped("Ask")
    stub = await connect(await serve(mesh=mesh, **adding(handler)))
    for kind in (Shy, Wrong):
        handler.now = raising(lambda kind=kind: kind(TEXT), reading())["ask"]
        error = await failed(stub.Ask(pb.Plain()))
        assert (error.code(), error.details()) == (grpc.StatusCode.UNKNOWN, MASKED)


# -- contexts of other libraries --------------------------------------------------------------------------------------


class TwoArguments:
    """A context that another library stands in front of gRPC's, with fewer arguments for `abort`."""

    def __init__(self, context):
        self._context = context

    def __getattr__(self, name):
        return getattr(self._context, name)

    async def abort(self, code, details):
        await self._context.abort(code, details)


class Replacing(grpc.aio.ServerInterceptor):
    async def intercept_service(self, continuation, handler_call_details):
        handler = await continuation(handler_call_details)

        async def unary(request, context):
            return await handler.unary_unary(request, TwoArguments(context))

        return grpc.unary_unary_rpc_method_handler(
            unary, handler.request_deserializer, handler.response_serializer
        )


async def test_abort_hands_on_as_many_arguments_as_the_handler_gave(mesh, serve, connect):
    async def two(request, context):
        await context.abort(grpc.StatusCode.NOT_FOUND, "gone")

    async def status(request, context):
        await context.abort_with_status(Status())

    async def refused(request, context):
        return rig.BAD

    class Status(grpc.Status):
        code, details, trailing_metadata = grpc.StatusCode.NOT_FOUND, "gone", ()

    handler = Swapped("Report", two)
    handler.serializers = (pb.Reading.FromString, pb.Plain.SerializeToString)
    stub = await connect(await serve(mesh=mesh, before=[Replacing()], **adding(handler)))
    for function in (two, status):
        handler.now = function
        error = await failed(stub.Report(reading()))
        assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "gone")
    handler = Swapped("Ask", refused)
    stub = await connect(await serve(mesh=mesh, before=[Replacing()], **adding(handler)))
    found = rig.status(await failed(stub.Ask(pb.Plain())))
    assert (found.code, found.info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MISSING_UNIT")


async def test_abort_takes_what_grpcs_own_takes(mesh, serve, connect):
    gone = grpc.StatusCode.NOT_FOUND
    trailing = (("next-page", "7"),)

    async def code_alone(request, context):
        context.set_details("set before")
        context.set_trailing_metadata(trailing)
        await context.abort(gone)

    async def named(request, context):
        context.set_details("set before")
        await context.abort(gone, trailing_metadata=trailing)

    async def all_named(request, context):
        await context.abort(code=gone, details="set before", trailing_metadata=trailing)

    def sync_code_alone(request, context):
        context.set_details("set before")
        context.set_trailing_metadata(trailing)
        context.abort(gone)

    for function in (code_alone, named, all_named, sync_code_alone):
        for guard in (None, mesh):
            handler = Swapped("Report", function)
            stub = await connect(await serve(mesh=guard, **adding(handler)))
            error = await failed(stub.Report(reading()))
            assert (error.code(), error.details()) == (gone, "set before")
            assert tuple(error.trailing_metadata()) == trailing


async def test_a_context_that_announces_a_ticket_hands_on_as_many_arguments_too():
    class Context:
        def __init__(self):
            self.given = []

        async def send_initial_metadata(self, metadata):
            pass

        async def abort(self, *given, **named):
            self.given.append((given, named))

    class SyncContext(Context):
        def send_initial_metadata(self, metadata):
            pass

        def abort(self, *given, **named):
            self.given.append((given, named))

    context = Context()
    await TicketContext(context, "ticket").abort(1, "gone")
    await TicketContext(context, "ticket").abort(1, trailing_metadata=())
    assert context.given == [((1, "gone"), {}), ((1,), {"trailing_metadata": ()})]
    context = SyncContext()
    SyncTicketContext(context, "ticket").abort(1)
    assert context.given == [((1,), {})]
