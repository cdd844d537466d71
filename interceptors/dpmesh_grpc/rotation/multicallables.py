"""Multicallables of a rotating channel: each call begins on the channel that is in force then."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, ClassVar

import grpc.aio

from dpmesh_grpc.aio.arities import STREAM_STREAM, STREAM_UNARY, UNARY_STREAM, UNARY_UNARY, Arity
from dpmesh_grpc.rotation.identity_channel import IdentityChannel, NoChannel
from dpmesh_grpc.rotation.linkable_metadata import stripped


class _MultiCallable:
    """What all arities share: gRPC's own multicallable, made once for each identity's channel.

    `usable` finds the channel in force, or what refuses RPCs. It is called at each RPC.
    """

    arity: ClassVar[Arity]

    def __init__(
        self,
        usable: Callable[[], IdentityChannel | NoChannel],
        arguments: tuple[Any, ...],
        linking: Collection[str],
    ) -> None:
        self._usable = usable
        self._arguments = arguments
        self._linking = linking
        self._channel: IdentityChannel | NoChannel | None = None
        self._call: Any = None

    def _bind(self, channel: IdentityChannel | NoChannel) -> None:
        """Makes gRPC's multicallable for another channel."""
        self._call = channel.bind(self.arity, self._arguments)
        self._channel = channel


class _Requests(_MultiCallable):
    """The multicallable of a method with a stream of requests. Calls take grpc.aio's arguments."""

    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        channel = self._usable()
        if channel is not self._channel:
            self._bind(channel)
        metadata = stripped(metadata, self._linking)
        call = self._call(request_iterator, timeout, metadata, credentials, wait_for_ready, compression)
        return channel.hold(call, self.arity)


class _Request(_MultiCallable):
    """The multicallable of a method with one request. Calls take grpc.aio's arguments."""

    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        channel = self._usable()
        if channel is not self._channel:
            self._bind(channel)
        call = self._call(
            request,
            timeout=timeout,
            metadata=stripped(metadata, self._linking),
            credentials=credentials,
            wait_for_ready=wait_for_ready,
            compression=compression,
        )
        return channel.hold(call, self.arity)


class UnaryUnary(_Request, grpc.aio.UnaryUnaryMultiCallable):  # type: ignore[misc]
    """One request, one response."""

    arity = UNARY_UNARY


class UnaryStream(_Request, grpc.aio.UnaryStreamMultiCallable):  # type: ignore[misc]
    """One request, a stream of responses."""

    arity = UNARY_STREAM


class StreamUnary(_Requests, grpc.aio.StreamUnaryMultiCallable):  # type: ignore[misc]
    """A stream of requests, one response."""

    arity = STREAM_UNARY


class StreamStream(_Requests, grpc.aio.StreamStreamMultiCallable):  # type: ignore[misc]
    """Streams both ways."""

    arity = STREAM_STREAM
