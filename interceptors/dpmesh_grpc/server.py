"""Server interceptor: responses are protected before they leave, and requests can be required to be."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, NamedTuple

import grpc

from dpmesh.errors import ConfigError
from dpmesh.mesh import Mesh
from dpmesh_grpc.client import POLICY_KEY, SYNCHRONOUS
from dpmesh_grpc.context import AsyncContext, Guard, SyncContext
from dpmesh_grpc.lanes import METHODS_KEPT, Method, Methods
from dpmesh_grpc.status import Failure, not_protected, refusal
from dpmesh_grpc.threads import result_of

log = logging.getLogger("dpmesh.grpc")

TWICE = (
    "dpmesh's interceptors are given twice, and would charge for each message twice; "
    "give them once: interceptors=[..., *aio_server_interceptors(mesh)]"
)

# (requests are a stream, responses are a stream) -> where a handler keeps its function, and what makes a handler.
_ARITIES: dict[tuple[bool, bool], tuple[str, Callable[..., Any]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


def aio_server_interceptors(mesh: Mesh) -> tuple[grpc.aio.ServerInterceptor, ...]:
    """What protects the responses of a grpc.aio server, and refuses requests that had to be protected and are not.

    It belongs next to the handlers, after all others: `interceptors=[*others, *aio_server_interceptors(mesh)]`. What
    stands before it sees responses as they leave, and exceptions without their text.

    Args:
        mesh: Who releases.
    """
    return _Interceptors([ServerInterceptor(mesh)])


class _Interceptors(tuple[grpc.aio.ServerInterceptor, ...]):
    """A tuple that synchronous gRPC refuses to take."""

    __slots__ = ()

    def __iter__(self) -> Iterator[grpc.aio.ServerInterceptor]:
        # grpc.server looks at its interceptors only when an RPC comes; but it makes a tuple of them.
        if sys._getframe(1).f_globals.get("__name__") == "grpc._interceptor":
            raise ConfigError(SYNCHRONOUS)
        return super().__iter__()


# The interceptor of dpmesh that is asking those after it for a handler.
_asking: ContextVar[ServerInterceptor | None] = ContextVar("dpmesh_asking", default=None)


class _Served(NamedTuple):
    """A handler, what stands for it, and what stands for it when a request is not marked as protected."""

    handler: Any
    wrapped: Any
    unmarked: Any


class ServerInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Wraps the handlers of methods with protected messages; all others are served as they are.

    Args:
        mesh: Who releases.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._methods = Methods(mesh)
        self._served: dict[str, _Served] = {}
        self._twice = False

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Awaitable[Any]:
        """See grpc.aio.ServerInterceptor.

        Raises:
            ConfigError: Synchronous gRPC asks, which does so in a thread without an event loop.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigError(SYNCHRONOUS) from None
        return self._intercept(continuation, handler_call_details)

    async def _intercept(self, continuation: Any, handler_call_details: Any) -> Any:
        before = _asking.get()
        if before is not None:
            before.found_another()
        asking = _asking.set(self)
        try:
            handler = await continuation(handler_call_details)
        finally:
            _asking.reset(asking)
        if handler is None:
            return None
        name = handler_call_details.method
        served = self._served.get(name)
        if served is None or served.handler is not handler:
            served = self._serve(name, handler)
        if served.unmarked is None or any(
            key == POLICY_KEY for key, _ in handler_call_details.invocation_metadata
        ):
            return served.wrapped
        return served.unmarked

    def found_another(self) -> None:
        """Notes that another of dpmesh's interceptors follows: from now on nothing that is protected is served."""
        if self._twice:
            return
        self._twice = True
        self._served.clear()
        log.error("%s%s", "observe mode: RPCs would be refused: " if self._mesh.observing else "", TWICE)

    def _serve(self, name: str, handler: Any) -> _Served:
        if len(self._served) >= METHODS_KEPT:
            self._served.clear()
        method = self._methods[name]
        unmarked = self._unmarked(method, handler) if method.requires else None
        served = self._served[name] = _Served(handler, self._wrapped(method, handler), unmarked)
        return served

    def _unmarked(self, method: Method, handler: Any) -> Any:
        if self._mesh.observing:
            log.warning("observe mode: %s requires protected requests, and takes any", method.name)
            return None
        return _refusing(handler, not_protected(method.name, POLICY_KEY))

    def _wrapped(self, method: Method, handler: Any) -> Any:
        guard = Guard.of(method, handler.response_streaming, self._mesh)
        if guard.lane.protected is False and not guard.masks:
            return handler
        if self._twice and not self._mesh.observing:
            return _refusing(handler, refusal(ConfigError(TWICE)))
        return rebuilt(handler, lambda function: _guarded(function, guard, handler.response_streaming))


def rebuilt(handler: Any, change: Callable[[Any], Any]) -> Any:
    """A handler of the same arity, with another function."""
    name, make = _ARITIES[bool(handler.request_streaming), bool(handler.response_streaming)]
    return make(
        change(getattr(handler, name)),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _refusing(handler: Any, failure: Failure) -> Any:
    """A handler of the same arity that refuses every RPC."""

    async def refuse(_request: Any, context: Any) -> None:
        await context.abort(*failure)

    async def refuse_stream(_request: Any, context: Any) -> AsyncIterator[None]:
        await context.abort(*failure)
        yield

    return rebuilt(handler, lambda _: refuse_stream if handler.response_streaming else refuse)


def _guarded(function: Any, guard: Guard, streams: bool) -> Any:
    """A handler's function with its responses protected.

    gRPC asks what kind of function it has, and calls each in its own way; so the wrapper is of the same kind.
    """
    if not streams:
        return (
            _unary(function, guard) if inspect.iscoroutinefunction(function) else _sync_unary(function, guard)
        )
    if inspect.iscoroutinefunction(function):
        return _writer(function, guard)
    return (
        _generator(function, guard)
        if inspect.isasyncgenfunction(function)
        else _sync_generator(function, guard)
    )


def _unary(function: Any, guard: Guard) -> Any:
    async def unary(request: Any, context: Any) -> Any:
        lane = guard.lane_to(context)
        guarded = AsyncContext(context, guard, lane, lane.release)
        try:
            response = await function(request, guarded)
            if guard.lane.passes(type(response)):
                return response
            return None if guarded.drops() else await guarded.protect(response)
        except BaseException as error:
            if guarded.passes(error):
                raise
            failure = guarded.failure(error)
        # Outside of the handler of the exception, which would otherwise be the context of what abort raises.
        return await guarded.end(failure)

    return unary


def _writer(function: Any, guard: Guard) -> Any:
    async def writer(request: Any, context: Any) -> None:
        lane = guard.lane_to(context)
        stream = lane.stream()
        guarded = AsyncContext(context, guard, lane, stream.release)
        guarded.begin_stream()
        failure = None
        try:
            await function(request, guarded)
        except BaseException as error:
            if guarded.passes(error):
                raise
            failure = guarded.failure(error)
        finally:
            stream.close()
        if failure is not None:
            await guarded.end(failure)

    return writer


def _generator(function: Any, guard: Guard) -> Any:
    async def generator(request: Any, context: Any) -> AsyncIterator[Any]:
        lane = guard.lane_to(context)
        stream = lane.stream()
        guarded = AsyncContext(context, guard, lane, stream.release)
        guarded.begin_stream()
        failure = None
        try:
            async with aclosing(function(request, guarded)) as responses:
                async for response in responses:
                    yield await guarded.protect(response)
        except BaseException as error:
            if guarded.passes(error):
                raise
            failure = guarded.failure(error)
        finally:
            stream.close()
        if failure is not None:
            await guarded.end(failure)

    return generator


def _sync_unary(function: Any, guard: Guard) -> Any:
    loop = asyncio.get_running_loop()

    def unary(request: Any, context: Any) -> Any:
        lane = guard.lane_to(context)
        guarded = SyncContext(context, guard, lane, lane.release)
        try:
            response = function(request, guarded)
            if guard.lane.passes(type(response)):
                return response
            return None if guarded.aborted or guarded.drops() else _on(loop, guarded, response)
        except BaseException as error:
            if guarded.passes(error):
                raise
            guarded.end(error)
        return None

    return unary


def _sync_generator(function: Any, guard: Guard) -> Any:
    loop = asyncio.get_running_loop()

    def generator(request: Any, context: Any) -> Iterator[Any]:
        lane = guard.lane_to(context)
        stream = lane.stream()
        guarded = SyncContext(context, guard, lane, stream.release)
        guarded.begin_stream()
        try:
            for response in function(request, guarded):
                if guarded.aborted:
                    return
                yield _on(loop, guarded, response)
        except BaseException as error:
            if guarded.passes(error):
                raise
            guarded.end(error)
        finally:
            stream.close()

    return generator


def _on(loop: asyncio.AbstractEventLoop, context: SyncContext, response: Any) -> Any:
    """Protects a response on the server's loop, waiting in the executor's thread."""
    return result_of(context.protect(response), loop)
