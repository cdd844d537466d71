"""Client interceptor: protects requests before they leave, within the deadline of their RPC."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Iterable
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc.aio
from typing_extensions import override

from dpmesh.errors import DpmeshError
from dpmesh.mesh.attestation import later_metadata, message_metadata, stream_metadata
from dpmesh.mesh.flow_table import FlowTable
from dpmesh.mesh.flows import Flow
from dpmesh.mesh.mesh import Mesh
from dpmesh.mesh.refusals import Category, Refusal
from dpmesh.mesh.slots import Slots, in_slots
from dpmesh.mesh.stream import ReleaseStream
from dpmesh_grpc import status
from dpmesh_grpc.aio.arities import Arity, ArityInterceptor, ClientInterception, changed, interceptor
from dpmesh_grpc.aio.calls import StreamRefusal
from dpmesh_grpc.aio.internals import COMPRESSION_KEY, LazyMetadata, followed_by, following_interceptors
from dpmesh_grpc.protection.slots import Turn, current_cover, take_turn

log = logging.getLogger("dpmesh.grpc")

# Without compression: the size of a compressed message tells what the message says.
_UNCOMPRESSED = ((COMPRESSION_KEY, "identity"),)
INTERCEPTED_TWICE = (
    "dpmesh's interceptors are given twice, and would charge for each message twice; "
    "give them once: interceptors=[*aio_client_interceptors(mesh), ...]"
)


class Sender(ClientInterception):
    """Protects the requests of a channel's RPCs; all four arities share one."""

    only_once = INTERCEPTED_TWICE

    def __init__(self, mesh: Mesh, consumer: str = "") -> None:
        self._mesh = mesh
        self._methods = FlowTable(mesh, consumer)
        self._warned = False

    @override
    def send_one(self, continuation: Any, details: Any, request: Any, arity: Arity) -> Awaitable[Any]:
        """Releases the request, and only then lets the RPC begin."""
        following = following_interceptors(continuation)
        if following and any(map(protects, following)):
            refusal = self._refusal_of_two(details)
            if refusal is not None:
                return _done(arity.refused(refusal))
        flow = self._methods[details.method].request
        if following:
            continuation = _filtering_last(continuation, flow, arity)
        left = details.timeout
        turn = None if flow.send_slot is None else take_turn(flow.method)
        if turn is not None:
            return self._send_in_turn(flow, continuation, details, request, arity, turn)
        if left is None or left > 0:
            try:
                # This does not wait, so that the deadline need not be watched.
                protected = flow.protect_now(request)
            except DpmeshError as error:
                return _done(_refused(arity, error))
            if protected is not None:
                return self._send(flow, continuation, details, request, protected, left)
        return self._send_later(flow, continuation, details, request, arity)

    async def _send_in_turn(
        self, flow: Flow, continuation: Any, details: Any, request: Any, arity: Arity, turn: Turn
    ) -> Any:
        """Releases the request, and lets the RPC begin at its slot."""
        try:
            async with asyncio.timeout(details.timeout):
                released, protected = await turn.protect(flow, request)
        except DpmeshError as error:
            return _refused(arity, error)
        except TimeoutError:
            return arity.refused(status.deadline())
        await turn.end()
        return await self._send(flow, continuation, details, released, protected, details.timeout)

    async def _send_later(
        self, flow: Flow, continuation: Any, details: Any, request: Any, arity: Arity
    ) -> Any:
        """Releases the request once the ledger has answered, and only then lets the RPC begin."""
        left = details.timeout
        try:
            if left is None:
                protected = await flow.protect(request)
            else:
                protected, left = await _in_time(flow, request, left)
        except DpmeshError as error:
            return _refused(arity, error)
        except grpc.aio.AioRpcError as late:
            return arity.refused(late.with_traceback(None))
        return await self._send(flow, continuation, details, request, protected, left)

    def _send(
        self, flow: Flow, continuation: Any, details: Any, request: Any, protected: Any, left: float | None
    ) -> Awaitable[Any]:
        """Lets the RPC begin with the protected request and the seconds that are left."""
        metadata = message_metadata(flow, request, protected, details.metadata, _UNCOMPRESSED)
        if metadata is not details.metadata:
            details = changed(details, left, LazyMetadata(*metadata))
        elif left != details.timeout:
            details = changed(details, left, details.metadata)
        sent: Awaitable[Any] = continuation(details, protected)
        return sent

    @override
    async def send_many(self, continuation: Any, details: Any, requests: Any, arity: Arity) -> Any:
        """Lets the RPC begin with a stream in which each request is released as gRPC asks for it."""
        following = following_interceptors(continuation)
        if following and any(map(protects, following)):
            refusal = self._refusal_of_two(details)
            if refusal is not None:
                raise refusal
        flow = self._methods[details.method].request
        if following:
            continuation = _filtering_last(continuation, flow, arity)
        stream = flow.stream()
        # Only sensitive flows lose compression, but on all of them each message is judged by its own type.
        metadata = stream_metadata(flow, details.metadata, _UNCOMPRESSED)
        if metadata is not details.metadata:
            details = changed(details, details.timeout, LazyMetadata(*metadata))
        end = StreamRefusal()
        call = await continuation(details, _released(flow, stream, requests, end, current_cover()))
        end.call = call
        return arity.guarded(call, end)

    def _refusal_of_two(self, details: Any) -> grpc.aio.AioRpcError | None:
        """The refusal of an RPC that two interceptors would protect; None in observe mode, which only warns."""
        if not self._mesh.observing:
            refusal = Refusal(Category.INTERNAL, "INTERCEPTED_TWICE", INTERCEPTED_TWICE)
            self._methods[details.method].request.record_refused_rpc(refusal)
            return status.rpc_error(status.failure(refusal))
        if not self._warned:
            self._warned = True
            log.warning("observe mode: RPCs would be refused: %s", INTERCEPTED_TWICE)
        return None


class _MetadataFilter(ClientInterception):
    """Drops what other interceptors have added to the metadata of one RPC, after all of them."""

    only_once = ""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow

    @override
    def send_one(self, continuation: Any, details: Any, request: Any, arity: Arity) -> Awaitable[Any]:
        return continuation(self._cut(details, streams=False), request)  # type: ignore[no-any-return]

    @override
    def send_many(self, continuation: Any, details: Any, requests: Any, arity: Arity) -> Awaitable[Any]:
        return continuation(self._cut(details, streams=True), requests)  # type: ignore[no-any-return]

    def _cut(self, details: Any, *, streams: bool) -> Any:
        metadata = later_metadata(self._flow, details.metadata, streams=streams)
        if metadata is details.metadata:
            return details
        return changed(details, details.timeout, LazyMetadata(*metadata))


def _filtering_last(continuation: Any, flow: Flow, arity: Arity) -> Any:
    """The continuation of an RPC whose metadata are looked at once more, after the interceptors that follow."""
    return followed_by(continuation, interceptor(_MetadataFilter(flow), arity))


def protects(interceptor: Any) -> bool:
    """Whether an interceptor is one of dpmesh's that protect requests."""
    return isinstance(interceptor, ArityInterceptor) and isinstance(interceptor.interception, Sender)


async def _done(call: Any) -> Any:
    return call


def _refused(arity: Arity, error: DpmeshError) -> Any:
    """The call of an RPC whose request was refused."""
    refusal = status.rpc_error(status.refusal(error))
    # Without its traceback: the call keeps the refusal, and would keep the request with it.
    refusal.__cause__ = error.with_traceback(None)
    return arity.refused(refusal)


async def _in_time(flow: Flow, request: Any, seconds: float) -> tuple[Any, float]:
    """Releases a request within the call's deadline, which gRPC starts to count only when it has the request.

    Returns:
        The protected request, and how many seconds are left.

    Raises:
        DpmeshError: It was refused.
        grpc.aio.AioRpcError: No time is left.
    """
    if seconds <= 0:
        raise status.deadline()
    ends = time.monotonic() + seconds
    try:
        async with asyncio.timeout(seconds):
            protected = await flow.protect(request)
    except TimeoutError:
        raise status.deadline() from None
    left = ends - time.monotonic()
    if left <= 0:
        raise status.deadline()
    return protected, left


async def _released(
    flow: Flow,
    stream: ReleaseStream,
    requests: AsyncIterable[Any] | Iterable[Any],
    end: StreamRefusal,
    cover: Any,
) -> AsyncIterator[Any]:
    """The stream of protected requests; the first refusal ends it."""
    passes = flow.passes
    given = requests if isinstance(requests, AsyncIterable) else _each(requests)
    try:
        if flow.send_slot is None:
            async for request in given:
                yield request if passes(type(request)) else await flow.protect(request, stream)
        elif cover is None:
            async for request in given:
                await flow.protect(request, stream)  # Refuses it.
        else:
            flow.check_cover(cover, stream)
            protect = partial(flow.protect, stream=stream, in_slot=True)
            async with aclosing(in_slots(Slots(flow.send_slot), given, cover, protect)) as slotted:
                async for protected in slotted:
                    yield protected
    except DpmeshError as error:
        failure = status.refusal(error)
        end.refuse(failure)
        raise status.rpc_error(failure) from error
    finally:
        stream.close()


async def _each(requests: Iterable[Any]) -> AsyncIterator[Any]:
    for request in requests:
        yield request
