"""Client interceptors: requests are protected before they leave."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Iterable, Iterator
from typing import Any

import grpc.aio

from dpmesh.errors import ConfigError, DpmeshError
from dpmesh.mesh.attestation import message_metadata, stream_metadata
from dpmesh.mesh.flows import Flow, FlowTable
from dpmesh.mesh.mesh import Mesh, ReleaseStream
from dpmesh.mesh.refusals import intercepted_twice
from dpmesh_grpc import status
from dpmesh_grpc.aio.calls import (
    GuardedStreamStreamCall,
    GuardedStreamUnaryCall,
    Outcome,
    RefusedUnaryStreamCall,
    RefusedUnaryUnaryCall,
)

log = logging.getLogger("dpmesh.grpc")

# Chooses a call's compression in gRPC; the size of what was compressed tells what it said.
COMPRESSION_KEY = "grpc-internal-encoding-request"
_UNCOMPRESSED = ((COMPRESSION_KEY, "identity"),)
TWICE = (
    "dpmesh's interceptors are given twice, and would charge for each message twice; "
    "give them once: interceptors=[*aio_client_interceptors(mesh), ...]"
)
SYNCHRONOUS = (
    "dpmesh's interceptors are for grpc.aio: use grpc.aio.insecure_channel or grpc.aio.secure_channel, and "
    "grpc.aio.server; synchronous gRPC is not supported yet"
)


class Sender:
    """What the interceptors of all four arities do.

    Args:
        mesh: Who releases.
        consumer: Who receives it, for quotas.
    """

    def __init__(self, mesh: Mesh, consumer: str = "") -> None:
        self._mesh = mesh
        self._methods = FlowTable(mesh, consumer)
        self._warned = False

    def send_one(self, continuation: Any, details: Any, request: Any, refused_type: Any) -> Awaitable[Any]:
        """Releases the request, and only then lets the RPC begin."""
        if more_follow(continuation):
            twice = self._twice(details)
            if twice is not None:
                return _done(refused_type(twice))
        flow = self._methods[details.method].request
        left = details.timeout
        if left is None or left > 0:
            try:
                # Without waiting, next to nothing is taken from the call's time.
                protected = flow.protect_now(request)
            except DpmeshError as error:
                return _done(_refused(refused_type, error))
            if protected is not None:
                return self._send(flow, continuation, details, request, protected, left)
        return self._send_later(flow, continuation, details, request, refused_type)

    async def _send_later(
        self, flow: Flow, continuation: Any, details: Any, request: Any, refused_type: Any
    ) -> Any:
        """Does what `send_one` does where the ledger has to be waited for."""
        left = details.timeout
        try:
            if left is None:
                protected = await flow.protect(request)
            else:
                protected, left = await _in_time(flow, request, left)
        except DpmeshError as error:
            return _refused(refused_type, error)
        except grpc.aio.AioRpcError as late:
            return refused_type(late.with_traceback(None))
        return await self._send(flow, continuation, details, request, protected, left)

    def _send(
        self, flow: Flow, continuation: Any, details: Any, request: Any, protected: Any, left: float | None
    ) -> Awaitable[Any]:
        metadata = message_metadata(flow, request, protected, details.metadata, _UNCOMPRESSED)
        if metadata is not details.metadata:
            details = _changed(details, left, LazyMetadata(*metadata))
        elif left != details.timeout:
            details = _changed(details, left, details.metadata)
        sent: Awaitable[Any] = continuation(details, protected)
        return sent

    async def send_many(self, continuation: Any, details: Any, requests: Any, call_type: Any) -> Any:
        """Lets the RPC begin with a stream in which each request is released as gRPC asks for it."""
        if more_follow(continuation):
            twice = self._twice(details)
            if twice is not None:
                raise twice
        flow = self._methods[details.method].request
        stream = flow.stream()
        # Only sensitive flows lose compression, but on all of them each message is judged by its own type.
        metadata = stream_metadata(flow, details.metadata, _UNCOMPRESSED)
        if metadata is not details.metadata:
            details = _changed(details, details.timeout, LazyMetadata(*metadata))
        outcome = Outcome()
        return call_type(await continuation(details, _released(flow, stream, requests, outcome)), outcome)

    def _twice(self, details: Any) -> grpc.aio.AioRpcError | None:
        """Why an RPC is refused whose requests would be protected twice, or None in observe mode, which only warns."""
        if not self._mesh.observing:
            refusal = intercepted_twice(TWICE)
            self._methods[details.method].request.record_refused_rpc(refusal)
            return status.rpc_error(status.failure(refusal))
        if not self._warned:
            self._warned = True
            log.warning("observe mode: RPCs would be refused: %s", TWICE)
        return None


class LazyMetadata(grpc.aio.Metadata):  # type: ignore[misc]
    """The same as its base, which takes as long to fill as a message takes to be released.

    Args:
        *pairs: Keys and values.
    """

    def __init__(self, *pairs: tuple[str, str | bytes]) -> None:
        self._pairs = pairs

    def __getattr__(self, name: str) -> Any:
        # The base keeps everything in this attribute; whoever looks a key up or changes one gets it filled.
        if name != "_metadata":
            raise AttributeError(name)
        super().__init__(*self._pairs)
        return self._metadata

    def __len__(self) -> int:
        return super().__len__() if "_metadata" in self.__dict__ else len(self._pairs)

    def __iter__(self) -> Iterator[tuple[str, str | bytes]]:
        return super().__iter__() if "_metadata" in self.__dict__ else iter(self._pairs)

    # The base takes only operands of the class of `self`, which would leave its own objects out.

    def __add__(self, other: Any) -> Any:
        return grpc.aio.Metadata(*self) + other

    def __eq__(self, other: object) -> bool:
        return bool(grpc.aio.Metadata(*self) == other)

    __hash__ = None  # type: ignore[assignment]  # It can be changed.


def more_follow(continuation: Any) -> bool:
    """Whether more of dpmesh's interceptors follow on a channel: its requests would be charged for, and noised, twice.

    Args:
        continuation: What gRPC gives an interceptor to go on with. The interceptors that are left are its first
            argument.
    """
    left = continuation.args[0] if isinstance(continuation, functools.partial) and continuation.args else ()
    # Most often none is left, and there is nothing to look through.
    return bool(left) and isinstance(left, list) and any(isinstance(other, _Interceptor) for other in left)


async def _done(call: Any) -> Any:
    return call


def _refused(refused_type: Any, error: DpmeshError) -> Any:
    """The call of an RPC whose request was refused."""
    refusal = status.rpc_error(status.refusal(error))
    # Without its traceback: the call keeps the refusal, and would keep the request with it.
    refusal.__cause__ = error.with_traceback(None)
    return refused_type(refusal)


def _changed(details: Any, seconds: float | None, metadata: Any) -> grpc.aio.ClientCallDetails:
    return grpc.aio.ClientCallDetails(
        details.method, seconds, metadata, details.credentials, details.wait_for_ready
    )


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
    flow: Flow, stream: ReleaseStream, requests: AsyncIterable[Any] | Iterable[Any], outcome: Outcome
) -> AsyncIterator[Any]:
    """The stream as it may leave; the first refusal ends it."""
    passes = flow.passes
    try:
        async for request in requests if isinstance(requests, AsyncIterable) else _each(requests):
            yield request if passes(type(request)) else await flow.protect(request, stream)
    except DpmeshError as error:
        failure = status.refusal(error)
        outcome.refuse(failure)
        raise status.rpc_error(failure) from error
    finally:
        stream.close()


async def _each(requests: Iterable[Any]) -> AsyncIterator[Any]:
    for request in requests:
        yield request


class _Interceptor:
    def __init__(self, sender: Sender) -> None:
        self._sender = sender


class _OfSynchronousGrpc(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """Stands where Python looks, when `grpc.intercept_channel` asks whether it has an interceptor of its own kind.

    Without it gRPC says only that it wants another class.
    """

    @classmethod
    def __subclasshook__(cls, kind: type) -> Any:
        if issubclass(kind, _Interceptor):
            raise ConfigError(SYNCHRONOUS)
        return NotImplemented


# What these return is awaited by gRPC; a coroutine of their own would only pass it on.
class UnaryUnaryInterceptor(_Interceptor, grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """Protects the request of unary RPCs."""

    def intercept_unary_unary(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Awaitable[Any]:
        """See grpc.aio.UnaryUnaryClientInterceptor."""
        return self._sender.send_one(continuation, client_call_details, request, RefusedUnaryUnaryCall)


class UnaryStreamInterceptor(_Interceptor, grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[misc]
    """Protects the request of response-streaming RPCs."""

    def intercept_unary_stream(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Awaitable[Any]:
        """See grpc.aio.UnaryStreamClientInterceptor."""
        return self._sender.send_one(continuation, client_call_details, request, RefusedUnaryStreamCall)


class StreamUnaryInterceptor(_Interceptor, grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[misc]
    """Protects the requests of request-streaming RPCs."""

    def intercept_stream_unary(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Awaitable[Any]:
        """See grpc.aio.StreamUnaryClientInterceptor."""
        return self._sender.send_many(
            continuation, client_call_details, request_iterator, GuardedStreamUnaryCall
        )


class StreamStreamInterceptor(_Interceptor, grpc.aio.StreamStreamClientInterceptor):  # type: ignore[misc]
    """Protects the requests of RPCs that stream both ways."""

    def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Awaitable[Any]:
        """See grpc.aio.StreamStreamClientInterceptor."""
        return self._sender.send_many(
            continuation, client_call_details, request_iterator, GuardedStreamStreamCall
        )
