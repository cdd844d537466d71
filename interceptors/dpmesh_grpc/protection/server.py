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
from dpmesh.mesh.attestation import is_attested, refusal_without
from dpmesh.mesh.flows import Flow, FlowTable, MethodFlows
from dpmesh.mesh.mesh import Mesh
from dpmesh.mesh.refusals import Refusal, intercepted_twice
from dpmesh.mesh.response_policy import ResponsePolicy
from dpmesh.mesh.untyped import METHODS_KEPT
from dpmesh_grpc.aio.threads import result_of
from dpmesh_grpc.protection.client import SYNCHRONOUS
from dpmesh_grpc.protection.context import AsyncContext, SyncContext
from dpmesh_grpc.status import DETAILS_KEY, end, failure

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
    stands before it sees responses as they leave, and exceptions without their text. So what turns exceptions into
    statuses belongs after it: then the codes pass, and the texts are held back as a handler's own.

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
    """What stands for a handler.

    Attributes:
        handler: The handler.
        method: Its method, under the policy that the mesh had.
        wrapped: The handler with its responses protected.
        unattested: What refuses requests that are not attested; None if the method takes them.
    """

    handler: Any
    method: MethodFlows
    wrapped: Any
    unattested: Any


class ServerInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Wraps all handlers: each response is judged by its own type, whatever its method declares.

    Args:
        mesh: Who releases.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._methods = FlowTable(mesh)
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
        # At each RPC: an interceptor between two of dpmesh's may have answered all before, and servers can share them.
        before = _asking.get()
        if before is not None:
            before.found_another(self)
        asking = _asking.set(self)
        try:
            handler = await continuation(handler_call_details)
        finally:
            _asking.reset(asking)
        if handler is None:
            return None
        name = handler_call_details.method
        method = self._methods[name]
        served = self._served.get(name)
        if served is None or served.handler is not handler or served.method is not method:
            served = self._serve(name, handler, method)
        if served.unattested is None or is_attested(handler_call_details.invocation_metadata):
            return served.wrapped
        return served.unattested

    def found_another(self, other: ServerInterceptor) -> None:
        """Notes that another of dpmesh's interceptors follows: from now on both serve nothing that is protected."""
        if self._twice and other._twice:
            return
        for each in (self, other):
            each._twice = True
            each._served.clear()
        log.error("%s%s", "observe mode: RPCs would be refused: " if self._mesh.observing else "", TWICE)

    def _serve(self, name: str, handler: Any, method: MethodFlows) -> _Served:
        if len(self._served) >= METHODS_KEPT:
            self._served.clear()
        refusal = refusal_without(method)
        unattested = None if refusal is None else self._refusing(handler, method.request, refusal)
        served = self._served[name] = _Served(handler, method, self._wrapped(method, handler), unattested)
        return served

    def _wrapped(self, method: MethodFlows, handler: Any) -> Any:
        policy = ResponsePolicy.of(
            method,
            streams=handler.response_streaming,
            details_key=DETAILS_KEY,
            intercepted_twice=self._twice,
        )
        if policy.intercepted_twice and policy.flow.sensitive():
            return self._refusing(handler, method.response, intercepted_twice(TWICE))
        name, make = _ARITIES[bool(handler.request_streaming), bool(handler.response_streaming)]
        deserializer = handler.request_deserializer
        return make(
            _guarded(getattr(handler, name), policy),
            # Where requests are a stream, gRPC's errors reach the handler.
            request_deserializer=deserializer
            if handler.request_streaming
            else policy.without_text(deserializer),
            response_serializer=policy.without_text(handler.response_serializer),
        )

    def _refusing(self, handler: Any, flow: Flow, refusal: Refusal) -> Any:
        """A handler of the same arity that refuses every RPC, and records that on a flow."""
        status = failure(refusal)

        async def refuse(_request: Any, context: Any) -> None:
            flow.record_refused_rpc(refusal)
            await end(context, status)

        async def refuse_stream(_request: Any, context: Any) -> AsyncIterator[None]:
            await refuse(_request, context)
            yield

        return rebuilt(handler, lambda _: refuse_stream if handler.response_streaming else refuse)


def rebuilt(handler: Any, change: Callable[[Any], Any]) -> Any:
    """A handler of the same arity, with another function."""
    name, make = _ARITIES[bool(handler.request_streaming), bool(handler.response_streaming)]
    return make(
        change(getattr(handler, name)),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _guarded(function: Any, policy: ResponsePolicy) -> Any:
    """A handler's function with its responses protected.

    gRPC asks what kind of function it has, and calls each in its own way; so the wrapper is of the same kind.
    """
    if not policy.streams:
        return (
            _unary(function, policy)
            if inspect.iscoroutinefunction(function)
            else _sync_unary(function, policy)
        )
    if inspect.iscoroutinefunction(function):
        return _writer(function, policy)
    return (
        _generator(function, policy)
        if inspect.isasyncgenfunction(function)
        else _sync_generator(function, policy)
    )


def _unary(function: Any, policy: ResponsePolicy) -> Any:
    async def unary(request: Any, context: Any) -> Any:
        guarded = AsyncContext(context, policy)
        try:
            response = await function(request, guarded)
            if policy.flow.passes(type(response)):
                return response
            return None if guarded.drops() else await guarded.protect(response)
        except BaseException as error:
            if guarded.passes(error):
                raise
            failure = guarded.failure(error)
        # Outside of the handler of the exception, which would otherwise be the context of what abort raises.
        return await guarded.end(failure)

    return unary


def _writer(function: Any, policy: ResponsePolicy) -> Any:
    async def writer(request: Any, context: Any) -> None:
        guarded = AsyncContext(context, policy)
        guarded.begin_stream()
        failure = None
        try:
            await function(request, guarded)
        except BaseException as error:
            if guarded.passes(error):
                raise
            failure = guarded.failure(error)
        finally:
            guarded.close()
        if failure is not None:
            await guarded.end(failure)

    return writer


def _generator(function: Any, policy: ResponsePolicy) -> Any:
    passes = policy.flow.passes

    async def generator(request: Any, context: Any) -> AsyncIterator[Any]:
        guarded = AsyncContext(context, policy)
        guarded.begin_stream()
        failure = None
        closing = False
        try:
            async with aclosing(function(request, guarded)) as responses:
                async for response in responses:
                    protected = response if passes(type(response)) else await guarded.protect(response)
                    try:
                        yield protected
                    except GeneratorExit:
                        closing = True
                        raise
        except BaseException as error:
            if guarded.passes(error) or (closing and isinstance(error, GeneratorExit)):
                raise
            failure = guarded.failure(error)
        finally:
            guarded.close()
        # The RPC of a generator that is being closed is over.
        if failure is not None and not closing:
            await guarded.end(failure)

    return generator


def _sync_unary(function: Any, policy: ResponsePolicy) -> Any:
    loop = asyncio.get_running_loop()

    def unary(request: Any, context: Any) -> Any:
        guarded = SyncContext(context, policy)
        try:
            response = function(request, guarded)
            if policy.flow.passes(type(response)):
                return response
            return None if guarded.aborted or guarded.drops() else _on(loop, guarded, response)
        except BaseException as error:
            if guarded.passes(error):
                raise
            guarded.end(error)
        return None

    return unary


def _sync_generator(function: Any, policy: ResponsePolicy) -> Any:
    loop = asyncio.get_running_loop()
    passes = policy.flow.passes

    def generator(request: Any, context: Any) -> Iterator[Any]:
        guarded = SyncContext(context, policy)
        guarded.begin_stream()
        closing = False
        try:
            for response in function(request, guarded):
                if guarded.aborted:
                    return
                protected = response if passes(type(response)) else _on(loop, guarded, response)
                try:
                    yield protected
                except GeneratorExit:
                    closing = True
                    raise
        except BaseException as error:
            if guarded.passes(error) or (closing and isinstance(error, GeneratorExit)):
                raise
            guarded.end(error)
        finally:
            guarded.close()

    return generator


def _on(loop: asyncio.AbstractEventLoop, context: SyncContext, response: Any) -> Any:
    """Protects a response on the server's loop, waiting in the executor's thread."""
    return result_of(context.protect(response), loop)
