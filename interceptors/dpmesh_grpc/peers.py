"""Peers: each RPC checks its client's certificate again, because a connection outlives the one that it began with."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any, Final, NamedTuple

import grpc
import grpc.aio
from cryptography import x509

from dpmesh.errors import IdentityError
from dpmesh.identity.identity import trust_domain
from dpmesh.identity.rotating import RotatingIdentity
from dpmesh_grpc.server import _rebuilt
from dpmesh_grpc.status import Failure

# How many certificates, and how many methods, are remembered at most.
_KEPT: Final = 1024
_UNAUTHENTICATED: Final = grpc.StatusCode.UNAUTHENTICATED
_NO_PEER: Final = Failure(_UNAUTHENTICATED, "a client certificate of this server's trust domain is required")
_OVER: Final = Failure(_UNAUTHENTICATED, "the client certificate is not valid now")
_NO_SERVER: Final = Failure(grpc.StatusCode.UNAVAILABLE, "the server has no identity that is valid now")


def peer_interceptor(identity: RotatingIdentity) -> grpc.aio.ServerInterceptor:
    """What checks the client's certificate at every RPC, and as long as the RPC lasts. It belongs before all others.

    The certificate must be an X.509-SVID of the server's trust domain and valid now; otherwise the RPC is refused with
    UNAUTHENTICATED. A handler whose client's certificate ends is cancelled; one that runs in an executor can't be, and
    ends with its next message. That the certificate is signed, and its key the client's, gRPC has checked at the
    handshake.

    Args:
        identity: The server's, opened.
    """
    return _PeerInterceptor(_Peers(identity))


class _Peer(NamedTuple):
    """What is known of a certificate.

    Attributes:
        trust_domain: Its trust domain, or None if it is no X.509-SVID.
        not_before: In seconds since 1970.
        not_after: Likewise.
    """

    trust_domain: str | None
    not_before: float
    not_after: float


_NOBODY: Final = _Peer(None, 0.0, 0.0)


class _Peers:
    """Decides about clients; what it read of a certificate is remembered for a while."""

    def __init__(self, identity: RotatingIdentity) -> None:
        self._identity = identity
        self._known: dict[bytes, _Peer] = {}

    def check(self, context: Any) -> tuple[float, Failure | None]:
        """Until when an RPC's client is a good one, in seconds since 1970, and why it is not."""
        try:
            ours = self._identity.current.trust_domain
        except IdentityError:
            return 0.0, _NO_SERVER
        peer = self._peer(context)
        if peer.trust_domain != ours:
            return 0.0, _NO_PEER
        if not peer.not_before <= time.time() < peer.not_after:
            return 0.0, _OVER
        return peer.not_after, None

    def _peer(self, context: Any) -> _Peer:
        pem = next(iter(context.auth_context().get("x509_pem_cert", ())), None)
        if pem is None:
            return _NOBODY
        peer = self._known.get(pem)
        if peer is None:
            if len(self._known) >= _KEPT:
                self._known.clear()
            peer = self._known[pem] = _read(pem)
        return peer


def _read(pem: bytes) -> _Peer:
    try:
        leaf = x509.load_pem_x509_certificate(pem)
        return _Peer(
            trust_domain(leaf), leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
        )
    except (ValueError, IdentityError):
        return _NOBODY


class _PeerInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    def __init__(self, peers: _Peers) -> None:
        self._peers = peers
        self._wrapped: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        name = handler_call_details.method
        before, wrapped = self._wrapped.get(name, (None, None))
        if before is not handler:
            if len(self._wrapped) >= _KEPT:
                self._wrapped.clear()
            wrapped = _rebuilt(handler, lambda function: _wrap(function, handler, self._peers))
            self._wrapped[name] = (handler, wrapped)
        return wrapped


def _wrap(function: Any, handler: Any, peers: _Peers) -> Any:
    """A handler's function behind the check; of the same kind, because gRPC calls each kind in its own way."""
    if inspect.isasyncgenfunction(function):
        return _generator(function, peers)
    if inspect.iscoroutinefunction(function):
        return _coroutine(function, peers)
    sync = _sync_generator if handler.response_streaming else _sync_unary
    return sync(function, handler.request_streaming, peers)


def _coroutine(function: Any, peers: _Peers) -> Any:
    async def coroutine(request: Any, context: Any) -> Any:
        until, failure = peers.check(context)
        if failure is None:
            limit = asyncio.timeout(until - time.time())
            try:
                async with limit:
                    response = await function(request, context)
            except TimeoutError:
                if not limit.expired():
                    raise
            if not limit.expired():
                return response
        return await context.abort(*(failure or _OVER))

    return coroutine


def _generator(function: Any, peers: _Peers) -> Any:
    async def generator(request: Any, context: Any) -> AsyncIterator[Any]:
        until, failure = peers.check(context)
        if failure is None:
            ends = asyncio.get_running_loop().time() + until - time.time()
            async with aclosing(function(request, context)) as responses:
                while True:
                    limit = asyncio.timeout_at(ends)
                    try:
                        async with limit:
                            response = await anext(responses)
                    except StopAsyncIteration:
                        return
                    except TimeoutError:
                        if not limit.expired():
                            raise
                    if limit.expired():
                        break
                    yield response
        await context.abort(*(failure or _OVER))

    return generator


class _Sync:
    """The check for handlers that gRPC runs in an executor, where an RPC ends by what its handler leaves behind."""

    def __init__(self, context: Any, peers: _Peers) -> None:
        self._context = context
        self._until, failure = peers.check(context)
        self.over = failure is not None
        if failure is not None:
            self._end(failure)

    def _end(self, failure: Failure) -> None:
        self._context.set_code(failure.code)
        self._context.set_details(failure.text)

    def each(self, messages: Iterator[Any]) -> Iterator[Any]:
        """Messages, for as long as the certificate is valid."""
        for message in messages:
            if not time.time() < self._until:
                self.over = True
                self._end(_OVER)
                return
            yield message


def _sync_unary(function: Any, streams: bool, peers: _Peers) -> Callable[[Any, Any], Any]:
    def unary(request: Any, context: Any) -> Any:
        check = _Sync(context, peers)
        if check.over:
            return None
        response = function(check.each(request) if streams else request, context)
        return None if check.over else response

    return unary


def _sync_generator(function: Any, streams: bool, peers: _Peers) -> Callable[[Any, Any], Iterator[Any]]:
    def generator(request: Any, context: Any) -> Iterator[Any]:
        check = _Sync(context, peers)
        if check.over:
            return
        yield from check.each(function(check.each(request) if streams else request, context))

    return generator
