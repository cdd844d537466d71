"""The four client arities of grpc.aio: for each one its interceptor, and the calls that dpmesh gives for its RPCs.

grpc.aio wants an interceptor of its own class for each arity. The four classes here pass each RPC to one
`ClientInterception`, together with the arity.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, ClassVar, Final, NamedTuple, NoReturn, Protocol

import grpc
import grpc.aio
from typing_extensions import override

from dpmesh.errors import ConfigError
from dpmesh_grpc.aio import calls

SYNCHRONOUS: Final = (
    "dpmesh's interceptors are for grpc.aio: use grpc.aio.insecure_channel or grpc.aio.secure_channel, and "
    "grpc.aio.server; synchronous gRPC is not supported yet"
)


class Arity(NamedTuple):
    """Whether an RPC's requests and responses are streams.

    Attributes:
        name: As grpc.aio spells it: "unary_stream" has one request and a stream of responses.
        refused: Makes the call of an RPC that never began.
        guarded: Wraps a call of gRPC that dpmesh may end.
    """

    name: str
    refused: Callable[[grpc.aio.AioRpcError], Any]
    guarded: Callable[[Any, calls.CallEnd], Any]


UNARY_UNARY: Final = Arity("unary_unary", calls.RefusedUnaryUnaryCall, calls.GuardedUnaryUnaryCall)
UNARY_STREAM: Final = Arity("unary_stream", calls.RefusedUnaryStreamCall, calls.GuardedUnaryStreamCall)
STREAM_UNARY: Final = Arity("stream_unary", calls.RefusedStreamUnaryCall, calls.GuardedStreamUnaryCall)
STREAM_STREAM: Final = Arity("stream_stream", calls.RefusedStreamStreamCall, calls.GuardedStreamStreamCall)
ARITIES: Final = {arity.name: arity for arity in (UNARY_UNARY, UNARY_STREAM, STREAM_UNARY, STREAM_STREAM)}


class ClientInterception(Protocol):
    """What an interceptor does with the RPCs of a channel. gRPC awaits the result, which is a call.

    Attributes:
        only_once: The error for a channel that is given this kind of interception twice; empty if that does no harm.
    """

    only_once: str

    def send_one(self, continuation: Any, details: Any, request: Any, arity: Arity) -> Awaitable[Any]:
        """Lets an RPC with one request begin."""

    def send_many(self, continuation: Any, details: Any, requests: Any, arity: Arity) -> Awaitable[Any]:
        """Lets an RPC with a stream of requests begin."""


class ArityInterceptor:
    """Passes the RPCs of one arity to an interception."""

    arity: ClassVar[Arity]

    def __init__(self, interception: ClientInterception) -> None:
        self.interception = interception

    # gRPC awaits what these return; a coroutine of their own would only pass it on.

    def _send_one(self, continuation: Any, client_call_details: Any, request: Any) -> Awaitable[Any]:
        return self.interception.send_one(continuation, client_call_details, request, self.arity)

    def _send_many(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Awaitable[Any]:
        return self.interception.send_many(continuation, client_call_details, request_iterator, self.arity)


class _UnaryUnary(ArityInterceptor, grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    arity = UNARY_UNARY
    intercept_unary_unary = ArityInterceptor._send_one


class _UnaryStream(ArityInterceptor, grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[misc]
    arity = UNARY_STREAM
    intercept_unary_stream = ArityInterceptor._send_one


class _StreamUnary(ArityInterceptor, grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[misc]
    arity = STREAM_UNARY
    intercept_stream_unary = ArityInterceptor._send_many


class _StreamStream(ArityInterceptor, grpc.aio.StreamStreamClientInterceptor):  # type: ignore[misc]
    arity = STREAM_STREAM
    intercept_stream_stream = ArityInterceptor._send_many


_INTERCEPTORS: Final = {kind.arity: kind for kind in (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream)}


class InterceptorSet(tuple[Any, ...]):
    """A tuple that can't be taken apart by index or slice: one interceptor alone protects only one arity."""

    __slots__ = ()

    @override
    def __getitem__(self, index: Any) -> NoReturn:
        raise ConfigError(
            "take all of dpmesh's interceptors: interceptors=[*aio_client_interceptors(mesh), ...]"
        )


def interceptor(interception: ClientInterception, arity: Arity) -> Any:
    """The interceptor of one arity, around an interception."""
    return _INTERCEPTORS[arity](interception)


def interceptors(interception: ClientInterception) -> InterceptorSet:
    """One interceptor for each arity, around one interception."""
    return InterceptorSet(kind(interception) for kind in _INTERCEPTORS.values())


def changed(details: Any, timeout: float | None, metadata: Any) -> grpc.aio.ClientCallDetails:
    """The details that an interceptor passes on instead of those that it was given."""
    return grpc.aio.ClientCallDetails(
        details.method, timeout, metadata, details.credentials, details.wait_for_ready
    )


def refuse_twice(given: Iterable[Any]) -> None:
    """Checks that no interception of a channel that does harm twice is given twice.

    Raises:
        ConfigError: One is.
    """
    seen = set()
    for each in given:
        if isinstance(each, ArityInterceptor) and each.interception.only_once:
            kind = (each.arity, type(each.interception))
            if kind in seen:
                raise ConfigError(each.interception.only_once)
            seen.add(kind)


class _OfSynchronousGrpc(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """Makes `grpc.intercept_channel` say why it can't take these interceptors.

    gRPC asks whether an interceptor is of one of its own classes; Python then asks all their subclasses, and so this
    one. Without it gRPC says only that it wants another class.
    """

    @classmethod
    def __subclasshook__(cls, kind: type) -> Any:
        if issubclass(kind, ArityInterceptor):
            raise ConfigError(SYNCHRONOUS)
        return NotImplemented
