"""Server interceptor: protects responses before they leave, and refuses requests that lack a required attestation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import grpc
from typing_extensions import override

from dpmesh.bounded import BoundedTable
from dpmesh.errors import ConfigError
from dpmesh.mesh.attestation import Requirement, requirement
from dpmesh.mesh.flow_table import METHODS_KEPT, FlowTable, MethodFlows
from dpmesh.mesh.flows import Flow
from dpmesh.mesh.mesh import Mesh
from dpmesh.mesh.refusals import Category, Refusal
from dpmesh.mesh.response_policy import ResponsePolicy
from dpmesh_grpc.aio.arities import SYNCHRONOUS
from dpmesh_grpc.aio.handlers import AsyncRpc, Interception, SyncRpc, intercepted, rebuilt
from dpmesh_grpc.aio.internals import called_by_synchronous_grpc
from dpmesh_grpc.aio.threads import result_of
from dpmesh_grpc.protection.context import AsyncContext, SyncContext
from dpmesh_grpc.protection.peer_policy import serving
from dpmesh_grpc.status import DETAILS_KEY, Failure, end, failure

log = logging.getLogger("dpmesh.grpc")

INTERCEPTED_TWICE = (
    "dpmesh's interceptors are given twice, and would charge for each message twice; "
    "give them once: interceptors=[..., *aio_server_interceptors(mesh)]"
)


def aio_server_interceptors(mesh: Mesh) -> tuple[grpc.aio.ServerInterceptor, ...]:
    """What protects the responses of a grpc.aio server, and refuses requests that lack a required attestation.

    It belongs next to the handlers, after all others: `interceptors=[*others, *aio_server_interceptors(mesh)]`.
    Interceptors before it see responses as they leave, and exceptions without their text. An interceptor that turns
    exceptions into statuses belongs after it: its codes pass, and its texts are withheld as a handler's are.

    Args:
        mesh: Releases the responses.
    """
    return _Interceptors([ServerInterceptor(mesh)])


class _Interceptors(tuple[grpc.aio.ServerInterceptor, ...]):
    """A tuple that raises ConfigError where synchronous gRPC copies it."""

    __slots__ = ()

    def __iter__(self) -> Iterator[grpc.aio.ServerInterceptor]:
        # grpc.server makes a tuple of its interceptors; it uses them only when an RPC comes.
        if called_by_synchronous_grpc():
            raise ConfigError(SYNCHRONOUS)
        return super().__iter__()


# The interceptor of dpmesh that waits for the handler from the interceptors after it.
_outer: ContextVar[ServerInterceptor | None] = ContextVar("dpmesh_asking", default=None)


class _Served(NamedTuple):
    """What gRPC gets instead of a handler.

    Attributes:
        handler: The handler.
        method: The handler's method, under the policy that was in force.
        wrapped: The handler with its responses protected.
        requirement: What the method asks of its requests; None if it takes all.
    """

    handler: Any
    method: MethodFlows
    wrapped: Any
    requirement: Requirement | None


class ServerInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Wraps all handlers. Each response is judged by its own type, whatever its method declares."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._methods = FlowTable(mesh)
        self._served: BoundedTable[str, _Served] = BoundedTable(METHODS_KEPT)
        self._snapshot = mesh.snapshot
        self._is_one_of_two = False

    @override
    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Awaitable[Any]:
        """Gives gRPC a handler whose responses are protected.

        Raises:
            ConfigError: Synchronous gRPC asks, in a thread without an event loop.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigError(SYNCHRONOUS) from None
        return self._intercept(continuation, handler_call_details)

    async def _intercept(self, continuation: Any, handler_call_details: Any) -> Any:
        # Checked at each RPC: an interceptor between two of dpmesh's may have answered all earlier RPCs.
        outer = _outer.get()
        if outer is not None:
            outer.found_another(self)
        token = _outer.set(self)
        try:
            handler = await continuation(handler_call_details)
        finally:
            _outer.reset(token)
        if handler is None:
            return None
        name = handler_call_details.method
        method = self._methods[name]
        served = self._served.get(name)
        if served is None or served.handler is not handler or served.method is not method:
            served = self._serve(name, handler, method)
        if served.requirement is None:
            return served.wrapped
        refusal = served.requirement.refusal(handler_call_details.invocation_metadata)
        return served.wrapped if refusal is None else self._refusing(handler, method.request, refusal)

    def found_another(self, other: ServerInterceptor) -> None:
        """Notes that another of dpmesh's interceptors follows: from now on both refuse to send protected messages."""
        if self._is_one_of_two and other._is_one_of_two:
            return
        for each in (self, other):
            each._is_one_of_two = True
            each._served.clear()
        log.error(
            "%s%s", "observe mode: RPCs would be refused: " if self._mesh.observing else "", INTERCEPTED_TWICE
        )

    def _serve(self, name: str, handler: Any, method: MethodFlows) -> _Served:
        if method.request.snapshot is not self._snapshot:
            self._snapshot = method.request.snapshot
            self._served.clear()  # What serves under an old policy keeps all of that policy in memory.
        served = _Served(handler, method, self._wrapped(method, handler), requirement(method))
        self._served[name] = served
        return served

    def _wrapped(self, method: MethodFlows, handler: Any) -> Any:
        policy = ResponsePolicy.of(
            method,
            streams=handler.response_streaming,
            details_key=DETAILS_KEY,
            intercepted_twice=self._is_one_of_two,
        )
        if policy.intercepted_twice and policy.flow.sensitive():
            refusal = Refusal(Category.INTERNAL, "INTERCEPTED_TWICE", INTERCEPTED_TWICE)
            return self._refusing(handler, method.response, refusal)
        deserializer = handler.request_deserializer
        return rebuilt(
            handler,
            intercepted(handler, _Protection(policy)),
            # Where requests are a stream, gRPC's errors reach the handler.
            deserializer if handler.request_streaming else policy.without_text(deserializer),
            policy.without_text(handler.response_serializer),
        )

    def _refusing(self, handler: Any, flow: Flow, refusal: Refusal) -> Any:
        """A handler of the given one's arity that refuses every RPC, and records that on a flow."""
        status = failure(refusal)

        async def refuse(_request: Any, context: Any) -> None:
            flow.record_refused_rpc(refusal)
            await end(context, status)

        async def refuse_stream(_request: Any, context: Any) -> AsyncIterator[None]:
            await refuse(_request, context)
            yield

        function = refuse_stream if handler.response_streaming else refuse
        return rebuilt(handler, function, handler.request_deserializer, handler.response_serializer)


class _AsyncRpc(AsyncRpc):
    """Protects the responses of one RPC whose handler runs in the event loop."""

    __slots__ = ("_policy",)

    handler_context: AsyncContext

    def __init__(self, context: Any, policy: ResponsePolicy) -> None:
        self.handler_context = AsyncContext(context, policy)
        self._policy = policy

    @override
    def begin(self) -> None:
        serving(self.handler_context)
        if self._policy.streams:
            self.handler_context.begin_stream()

    @override
    def passes(self, response: Any) -> bool:
        return self._policy.flow.passes(type(response))

    @override
    def respond(self, response: Any) -> Awaitable[Any]:
        if not self._policy.streams and self.handler_context.drops_response():
            return _nothing()
        return self.handler_context.protect(response)

    @override
    def failure(self, error: BaseException) -> Failure | None:
        return None if self.handler_context.passes(error) else self.handler_context.failure(error)

    @override
    def close(self) -> None:
        self.handler_context.close()

    @override
    async def end(self, failure: Failure) -> None:
        await self.handler_context.end(failure)


async def _nothing() -> None:
    pass


class _SyncRpc(SyncRpc):
    """Protects the responses of one RPC whose handler runs in the executor."""

    __slots__ = ("_handler_context", "_loop", "_policy")

    def __init__(self, context: Any, policy: ResponsePolicy, loop: asyncio.AbstractEventLoop) -> None:
        self._handler_context = SyncContext(context, policy)
        self._policy = policy
        self._loop = loop

    @override
    def begin(self) -> SyncContext:
        serving(self._handler_context)
        if self._policy.streams:
            self._handler_context.begin_stream()
        return self._handler_context

    @override
    def respond(self, response: Any) -> Any:
        context, policy = self._handler_context, self._policy
        if context.aborted and policy.streams:
            raise grpc.aio.AbortError("The handler has aborted the RPC.")  # `end` takes it.
        if policy.flow.passes(type(response)):
            return response
        if not policy.streams and (context.aborted or context.drops_response()):
            return None
        return result_of(context.protect(response), self._loop)

    @override
    def end(self, error: BaseException) -> bool:
        if self._handler_context.passes(error):
            return False
        self._handler_context.end(error)
        return True

    @override
    def close(self) -> None:
        self._handler_context.close()


class _Protection(Interception):
    """Protects the responses of one handler."""

    def __init__(self, policy: ResponsePolicy) -> None:
        self._policy = policy

    @override
    def asynchronous(self, context: Any) -> AsyncRpc:
        return _AsyncRpc(context, self._policy)

    @override
    def synchronous(self, context: Any, loop: asyncio.AbstractEventLoop) -> SyncRpc:
        return _SyncRpc(context, self._policy, loop)
