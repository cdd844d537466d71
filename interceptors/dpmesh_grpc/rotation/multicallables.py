"""Multicallables that look up at each call which channel is the one in force."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, ClassVar

import grpc.aio

from dpmesh_grpc.aio.arities import STREAM_STREAM, STREAM_UNARY, UNARY_STREAM, UNARY_UNARY, Arity
from dpmesh_grpc.rotation.identity_channel import IdentityChannel, NoChannel
from dpmesh_grpc.rotation.linkable_metadata import stripped


class _MultiCallable:
    """What all arities share: gRPC's own multicallable, made once for each link.

    Args:
        live: Gives the link in force.
        arguments: The method, the serializers, and whether the method is registered.
        linking: Keys that are taken out of metadata.
    """

    arity: ClassVar[Arity]

    def __init__(
        self,
        live: Callable[[], IdentityChannel | NoChannel],
        arguments: tuple[Any, ...],
        linking: Collection[str],
    ) -> None:
        self._live = live
        self._arguments = arguments
        self._linking = linking
        self._link: IdentityChannel | NoChannel | None = None
        self._call: Any = None

    def _bind(self, link: IdentityChannel | NoChannel) -> None:
        self._call = link.bind(self.arity, self._arguments)
        self._link = link


class _Requests(_MultiCallable):
    """Of methods with a stream of requests."""

    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        """See grpc.aio's multicallables."""
        link = self._live()
        if link is not self._link:
            self._bind(link)
        metadata = stripped(metadata, self._linking)
        call = self._call(request_iterator, timeout, metadata, credentials, wait_for_ready, compression)
        return link.hold(call, self.arity)


class _Request(_MultiCallable):
    """Of methods with one request."""

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
        """See grpc.aio's multicallables."""
        link = self._live()
        if link is not self._link:
            self._bind(link)
        call = self._call(
            request,
            timeout=timeout,
            metadata=stripped(metadata, self._linking),
            credentials=credentials,
            wait_for_ready=wait_for_ready,
            compression=compression,
        )
        return link.hold(call, self.arity)


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
