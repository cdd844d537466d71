"""Every kind of handler is wrapped as its kind, and an interceptor's steps happen around it in order."""

from __future__ import annotations

import asyncio
import gc
import inspect
import weakref

import grpc
import grpc.aio
import pytest

from dpmesh_grpc.aio.handlers import AsyncRpc, InterceptedHandlers, RefusedError, SyncRpc, intercepted
from dpmesh_grpc.status import Failure

REFUSAL = Failure(grpc.StatusCode.PERMISSION_DENIED, "refused", (("key", "value"),))


class Context:
    """A handler's context that notes what it is told."""

    def __init__(self):
        self.seen = []

    def set_code(self, code):
        self.seen.append(code)

    def set_details(self, text):
        self.seen.append(text)

    def set_trailing_metadata(self, pairs):
        self.seen.append(pairs)

    async def abort(self, code, text):
        self.seen += [code, text]
        raise grpc.aio.AbortError

    async def write(self, message):
        self.seen.append(message)


async def unary(request, context):
    return request


async def writer(request, context):
    await context.write(request)


async def generator(request, context):
    yield request
    yield request


def sync_unary(request, context):
    return request


def sync_generator(request, context):
    yield request
    yield request


UNARY, STREAM = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
KINDS = {
    "unary": UNARY(unary),
    "writer": STREAM(writer),
    "generator": STREAM(generator),
    "sync unary": UNARY(sync_unary),
    "sync generator": STREAM(sync_generator),
}
kinds = pytest.mark.parametrize("kind", KINDS)


class Steps:
    """An interception that notes its steps, and refuses RPCs at one of them."""

    def __init__(self, refused_at=None):
        steps = self.steps = []

        def note(step):
            steps.append(step)
            if step == refused_at:
                raise RefusedError(REFUSAL)

        class Async(AsyncRpc):
            def begin(self):
                note("begin")
                return super().begin()

            async def respond(self, response):
                note("respond")
                return response + "!"

            def close(self):
                note("close")

        class Sync(SyncRpc):
            def begin(self):
                note("begin")
                return super().begin()

            def respond(self, response):
                note("respond")
                return super().respond(response) + "!"

            def close(self):
                note("close")

        self.asynchronous = Async
        self.synchronous = lambda context, loop: Sync(context)


async def called(handler, interception, context):
    """The responses of a wrapped handler, called as gRPC would."""
    function = intercepted(handler, interception)
    if inspect.isasyncgenfunction(function):
        return [response async for response in function("hello", context)]
    if inspect.iscoroutinefunction(function):
        response = await function("hello", context)
    else:
        response = function("hello", context)
        if handler.response_streaming:
            return list(response)
    return [] if response is None else [response]


def kind_of(function):
    return [each(function) for each in (inspect.iscoroutinefunction, inspect.isasyncgenfunction)]


@kinds
async def test_a_wrapper_is_of_its_handlers_kind(kind):
    handler = KINDS[kind]
    before = handler.unary_stream or handler.unary_unary
    assert kind_of(intercepted(handler, Steps())) == kind_of(before)


@kinds
async def test_steps_happen_in_order(kind):
    interception, context = Steps(), Context()
    responses = await called(KINDS[kind], interception, context)
    count = {"writer": 0, "unary": 1, "sync unary": 1}.get(kind, 2)
    assert responses == ["hello!"] * count
    assert context.seen == (["hello"] if kind == "writer" else [])
    assert interception.steps == ["begin", *["respond"] * count, "close"]


@pytest.mark.parametrize("step", ["begin", "respond"])
@kinds
async def test_a_refusal_ends_the_rpc_with_its_status(kind, step):
    interception, context = Steps(step), Context()
    try:
        responses = await called(KINDS[kind], interception, context)
    except grpc.aio.AbortError as error:
        responses = [error.__context__] if kind.startswith("sync") or error.__context__ else []
    assert responses == []
    if (kind, step) == ("writer", "respond"):
        assert context.seen == ["hello"]
        return
    assert sorted(map(str, context.seen)) == sorted(map(str, [REFUSAL.trailing, REFUSAL.code, REFUSAL.text]))
    assert interception.steps == ["begin", *["respond"] * (step == "respond"), "close"]


@kinds
async def test_a_handlers_own_exception_goes_on(kind):
    class OwnError(Exception):
        pass

    class Failing(Context):
        def __getattr__(self, name):
            raise OwnError

    async def writes(request, context):
        await context.nothing

    async def generates(request, context):
        yield context.nothing

    def generates_sync(request, context):
        yield context.nothing

    handler = {
        "unary": UNARY(writes),
        "writer": STREAM(writes),
        "generator": STREAM(generates),
        "sync unary": UNARY(lambda request, context: context.nothing),
        "sync generator": STREAM(generates_sync),
    }[kind]
    interception = Steps()
    with pytest.raises(OwnError):
        await called(handler, interception, Failing())
    assert interception.steps == ["begin", "close"]


@pytest.mark.parametrize("kind", ["generator", "sync generator"])
async def test_a_stream_that_nobody_reads_on_is_closed(kind):
    interception, context = Steps(), Context()
    responses = intercepted(KINDS[kind], interception)("hello", context)
    if kind == "generator":
        assert await anext(responses) == "hello!"
        await responses.aclose()
    else:
        assert next(responses) == "hello!"
        responses.close()
    assert (interception.steps, context.seen) == (["begin", "respond", "close"], [])


async def test_handlers_are_wrapped_once():
    handlers = InterceptedHandlers(Steps())
    first = handlers.wrap("/a.B/C", KINDS["unary"])
    assert handlers.wrap("/a.B/C", KINDS["unary"]) is first
    other = grpc.unary_unary_rpc_method_handler(unary, bytes, str)
    again = handlers.wrap("/a.B/C", other)
    assert again is not first
    assert (again.request_deserializer, again.response_serializer) == (bytes, str)
    assert await again.unary_unary("hello", Context()) == "hello!"


async def test_handlers_that_were_replaced_are_not_kept():
    handlers = InterceptedHandlers(Steps())
    kept = [weakref.ref(handlers.wrap(f"/a.B/M{n}", KINDS["unary"]).unary_unary) for n in range(3)]
    handlers.wrap("/a.B/M0", grpc.unary_unary_rpc_method_handler(unary))
    gc.collect()
    assert not any(function() for function in kept)


async def test_a_handlers_stream_of_requests_may_be_replaced():
    class Rpc(SyncRpc):
        def requests(self, requests):
            return iter(["other"])

    class Interception:
        def synchronous(self, context, loop):
            return Rpc(context)

    for make in (grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler):
        function = intercepted(make(lambda requests, context: list(requests)), Interception())
        assert list(await asyncio.to_thread(lambda run=function: list(run(iter(["hello"]), Context())))) == [
            "other"
        ]
