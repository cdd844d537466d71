"""The kinds of handler that grpc.aio serves, and how an interceptor wraps each of them.

gRPC looks at a handler's function to decide how to call it, so a wrapper must be of the same kind:

| kind           | function                 | responses               | runs in                     |
|----------------|--------------------------|-------------------------|-----------------------------|
| unary          | coroutine function       | one                     | the event loop              |
| writer         | coroutine function       | written to its context  | the event loop              |
| generator      | async generator function | a stream                | the event loop              |
| sync unary     | any other                | one                     | a thread of the executor    |
| sync generator | any other                | a stream                | a thread of the executor    |

An interceptor gives an `Interception`. The wrappers here ask it for one object per RPC, and call that object's methods.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import aclosing
from contextvars import copy_context
from typing import Any, Final, Protocol, TypeVar

import grpc

from dpmesh.bounded import BoundedTable
from dpmesh_grpc.status import Failure, end

_T = TypeVar("_T")

_METHODS_KEPT: Final = 1024
_END: Final = object()
# (requests are a stream, responses are a stream) -> where a handler keeps its function, and what makes a handler.
_ARITIES: Final[dict[tuple[bool, bool], tuple[str, Callable[..., Any]]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


class RefusedError(Exception):
    """An interceptor ends an RPC with a status. It never leaves the wrappers."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


class AsyncRpc:
    """One RPC whose handler runs in the event loop. A subclass overrides what its interceptor changes.

    Steps that seldom wait return None where there is nothing to await: a coroutine for each step takes longer than
    everything else that is done for a public response.

    Attributes:
        context: The RPC's context.
        handler_context: The context for the handler, once the RPC has begun.
    """

    __slots__ = ("context", "handler_context")

    def __init__(self, context: Any) -> None:
        self.context = self.handler_context = context

    def begin(self) -> Awaitable[None] | None:
        """Admits the RPC.

        Returns:
            What has to be awaited first, or None.

        Raises:
            RefusedError: The handler must not run. What is awaited may raise it too.
        """

    def run(self, work: Awaitable[_T]) -> Awaitable[_T]:
        """What is awaited instead of the handler, or instead of a generator's next response."""
        return work

    def passes(self, response: Any) -> bool:
        """Whether a response that the handler returned or yielded leaves as it is, without `respond`."""
        return False

    def respond(self, response: Any) -> Awaitable[Any]:
        """What leaves instead of a response that does not pass."""
        raise NotImplementedError

    def failure(self, error: BaseException) -> Failure | None:
        """The status that an exception ends the RPC with; None if the exception goes on to gRPC."""
        return error.failure if isinstance(error, RefusedError) else None

    def close(self) -> Awaitable[None] | None:
        """Frees what the RPC holds. It is called after the handler, whatever its end.

        Returns:
            What has to be awaited for that, or None.
        """

    async def end(self, failure: Failure) -> None:
        """Ends the RPC with a status, after `close`."""
        await end(self.context, failure)


class SyncRpc:
    """One RPC whose handler runs in a thread of the executor. A subclass overrides what its interceptor changes.

    Such an RPC ends with the status that is set when its handler is done.
    """

    __slots__ = ("context",)

    def __init__(self, context: Any) -> None:
        self.context = context

    def begin(self) -> Any:
        """Admits the RPC; gives the context for the handler.

        Raises:
            RefusedError: The handler must not run.
        """
        return self.context

    def requests(self, requests: Iterator[Any]) -> Iterator[Any]:
        """The stream of requests as the handler sees it."""
        return requests

    def respond(self, response: Any) -> Any:
        """What leaves instead of a response that the handler returned or yielded."""
        return response

    def end(self, error: BaseException) -> bool:
        """Sets the status that an exception ends the RPC with.

        Returns:
            False if the exception goes on to gRPC instead.
        """
        if not isinstance(error, RefusedError):
            return False
        set_status(self.context, error.failure)
        return True

    def close(self) -> None:
        """Frees what the RPC holds. It is called after the handler, whatever its end."""


class Interception(Protocol):
    """What an interceptor does around the RPCs of a handler."""

    def asynchronous(self, context: Any) -> AsyncRpc:
        """Makes the object for one RPC of a handler in the event loop."""

    def synchronous(self, context: Any, loop: asyncio.AbstractEventLoop) -> SyncRpc:
        """Makes the object for one RPC of a handler in the executor; `loop` is the server's event loop."""


class InterceptedHandlers:
    """One interception around all handlers of a server, each wrapped once."""

    def __init__(self, interception: Interception) -> None:
        self._interception = interception
        self._wrapped: BoundedTable[str, tuple[Any, Any]] = BoundedTable(_METHODS_KEPT)

    def wrap(self, method: str, handler: Any) -> Any:
        """The wrapped handler of a method. It is made anew when the method has another handler."""
        before, wrapped = self._wrapped.get(method, (None, None))
        if before is not handler:
            if before is not None:
                self._wrapped.clear()  # The others may have changed too, and hold a policy that was replaced.
            function = intercepted(handler, self._interception)
            wrapped = rebuilt(handler, function, handler.request_deserializer, handler.response_serializer)
            self._wrapped[method] = (handler, wrapped)
        return wrapped


def rebuilt(handler: Any, function: Any, request_deserializer: Any, response_serializer: Any) -> Any:
    """A handler of the same arity with another function and other serializers."""
    _, make = _ARITIES[bool(handler.request_streaming), bool(handler.response_streaming)]
    return make(function, request_deserializer, response_serializer)


def intercepted(handler: Any, interception: Interception) -> Any:
    """A handler's function with an interception around it; of the same kind."""
    name, _ = _ARITIES[bool(handler.request_streaming), bool(handler.response_streaming)]
    function = getattr(handler, name)
    if inspect.iscoroutinefunction(function):
        return _coroutine(function, interception, responds=not handler.response_streaming)
    if inspect.isasyncgenfunction(function):
        return _generator(function, interception)
    wrapper = _sync_generator if handler.response_streaming else _sync_unary
    return wrapper(function, interception, bool(handler.request_streaming))


def set_status(context: Any, failure: Failure) -> None:
    """Sets the status with which an RPC ends when its handler in the executor is done."""
    context.set_code(failure.code)
    context.set_details(failure.text)
    if failure.trailing:
        context.set_trailing_metadata(failure.trailing)


# The asynchronous wrappers end RPCs outside of `except`: what `abort` raises would have the exception as its context.


def _coroutine(function: Any, interception: Interception, responds: bool) -> Any:
    """Wraps a coroutine function that returns its response, or writes its responses if not `responds`."""

    async def coroutine(request: Any, context: Any) -> Any:
        rpc = interception.asynchronous(context)
        try:
            if (beginning := rpc.begin()) is not None:
                await beginning
            response = await rpc.run(function(request, rpc.handler_context))
            if not responds:
                return None
            return response if rpc.passes(response) else await rpc.respond(response)
        except BaseException as error:
            failure = rpc.failure(error)
            if failure is None:
                raise
        finally:
            if (closing := rpc.close()) is not None:
                await closing
        return await rpc.end(failure)

    return coroutine


def _generator(function: Any, interception: Interception) -> Any:
    async def generator(request: Any, context: Any) -> AsyncIterator[Any]:
        rpc = interception.asynchronous(context)
        failure = None
        is_closed = False
        try:
            if (beginning := rpc.begin()) is not None:
                await beginning
            async with aclosing(function(request, rpc.handler_context)) as responses:
                while True:
                    try:
                        response = await rpc.run(anext(responses))
                    except StopAsyncIteration:
                        break
                    leaving = response if rpc.passes(response) else await rpc.respond(response)
                    try:
                        yield leaving
                    except GeneratorExit:
                        is_closed = True
                        raise
        except BaseException as error:
            if is_closed and isinstance(error, GeneratorExit):
                raise
            failure = rpc.failure(error)
            if failure is None:
                raise
        finally:
            if (closing := rpc.close()) is not None:
                await closing
        # The RPC of a generator that is being closed is over.
        if failure is not None and not is_closed:
            await rpc.end(failure)

    return generator


# A thread of the executor serves many RPCs, and the responses of one stream may come from several threads. So each RPC
# of a synchronous handler has context variables of its own.
def _sync_unary(function: Any, interception: Interception, requests: bool) -> Any:
    loop = asyncio.get_running_loop()

    def serve(request: Any, context: Any) -> Any:
        rpc = interception.synchronous(context, loop)
        try:
            inner = rpc.begin()
            return rpc.respond(function(rpc.requests(request) if requests else request, inner))
        except BaseException as error:
            if not rpc.end(error):
                raise
        finally:
            rpc.close()
        return None

    def unary(request: Any, context: Any) -> Any:
        return copy_context().run(serve, request, context)

    return unary


def _sync_generator(function: Any, interception: Interception, requests: bool) -> Any:
    loop = asyncio.get_running_loop()

    def serve(request: Any, context: Any) -> Generator[Any, None, None]:
        rpc = interception.synchronous(context, loop)
        closing = False
        try:
            inner = rpc.begin()
            for response in function(rpc.requests(request) if requests else request, inner):
                leaving = rpc.respond(response)
                try:
                    yield leaving
                except GeneratorExit:
                    closing = True
                    raise
        except BaseException as error:
            if (closing and isinstance(error, GeneratorExit)) or not rpc.end(error):
                raise
        finally:
            rpc.close()

    def generator(request: Any, context: Any) -> Iterator[Any]:
        own, responses = copy_context(), serve(request, context)
        try:
            while (response := own.run(next, responses, _END)) is not _END:
                yield response
        finally:
            own.run(responses.close)

    return generator
