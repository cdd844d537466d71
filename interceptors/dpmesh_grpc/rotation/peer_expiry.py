"""Peers: each RPC checks its client's certificate again, because a connection outlives the one that it began with."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any, Final, TypeVar

import grpc
import grpc.aio
from cryptography import x509

from dpmesh.errors import IdentityError
from dpmesh.identity.identity import trust_domain
from dpmesh.identity.rotation.rotating_identity import RotatingIdentity
from dpmesh_grpc.protection.server import rebuilt
from dpmesh_grpc.status import Failure, end

_T = TypeVar("_T")

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


class _OverError(Exception):
    """The client's certificate ended during an RPC."""


class _Peer:
    """What is known of a certificate, and the RPCs that end with it: one timer for all, because each would cost 10 us.

    Args:
        trust_domain: Its trust domain, or None if it is no X.509-SVID.
        not_before: In seconds since 1970.
        not_after: Likewise.
    """

    def __init__(self, trust_domain: str | None, not_before: float, not_after: float) -> None:
        self.trust_domain = trust_domain
        self.not_before = not_before
        self.not_after = not_after
        self._running: set[asyncio.Task[Any]] = set()
        self._cut: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._forgotten = False

    def is_valid(self) -> bool:
        """Whether it is valid now."""
        return self.not_before <= time.time() < self.not_after

    async def hold(self, work: Awaitable[_T]) -> _T:
        """Awaits a handler's work, and cancels it when the certificate ends.

        Raises:
            _OverError: It ended.
        """
        task = asyncio.current_task()
        assert task is not None
        cancels = task.cancelling()
        self._begin(task)
        try:
            result = await work
        except asyncio.CancelledError:
            self._running.discard(task)
            if task in self._cut and task.uncancel() <= cancels:
                raise _OverError from None
            raise
        finally:
            self._end(task)
        if not self.is_valid():  # The work took no notice of being cancelled.
            raise _OverError
        return result

    def forget(self) -> None:
        """Nobody will ask for it any more: its timer goes with its last RPC."""
        self._forgotten = True
        if self._timer is not None and not self._running:
            self._timer.cancel()

    def _begin(self, task: asyncio.Task[Any]) -> None:
        self._running.add(task)
        if self._timer is None:
            self._timer = task.get_loop().call_later(self.not_after - time.time(), self._expire)

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        self._cut.discard(task)
        if self._forgotten:
            self.forget()

    def _expire(self) -> None:
        self._timer = None
        if self.is_valid():  # The clock was set back.
            self._timer = asyncio.get_running_loop().call_later(self.not_after - time.time(), self._expire)
            return
        for task in self._running:
            self._cut.add(task)
            task.cancel()


_NOBODY: Final = _Peer(None, 0.0, 0.0)


class _Peers:
    """Decides about clients; what it read of a certificate is remembered for a while."""

    def __init__(self, identity: RotatingIdentity) -> None:
        self._identity = identity
        self._known: dict[bytes, _Peer] = {}

    def check(self, context: Any) -> tuple[_Peer, Failure | None]:
        """An RPC's client, and why it is refused."""
        try:
            ours = self._identity.current.trust_domain
        except IdentityError:
            return _NOBODY, _NO_SERVER
        peer = self._peer(context)
        if peer.trust_domain != ours:
            return peer, _NO_PEER
        return peer, None if peer.is_valid() else _OVER

    def _peer(self, context: Any) -> _Peer:
        pem = next(iter(context.auth_context().get("x509_pem_cert", ())), None)
        if pem is None:
            return _NOBODY
        peer = self._known.get(pem)
        return self._read(pem) if peer is None else peer

    def _read(self, pem: bytes) -> _Peer:
        try:
            leaf = x509.load_pem_x509_certificate(pem)
            begins, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
            peer = _Peer(trust_domain(leaf), begins.timestamp(), ends.timestamp())
        except (ValueError, IdentityError):
            peer = _NOBODY
        return self._known.setdefault(pem, peer)  # Handlers in an executor come here from its threads.

    def tidy(self) -> None:
        """Forgets all certificates when there are many. To be called in the event loop, where their timers are."""
        if len(self._known) > _KEPT:
            known, self._known = self._known, {}
            for peer in known.values():
                peer.forget()


class _PeerInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    def __init__(self, peers: _Peers) -> None:
        self._peers = peers
        self._wrapped: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        self._peers.tidy()
        name = handler_call_details.method
        before, wrapped = self._wrapped.get(name, (None, None))
        if before is not handler:
            if len(self._wrapped) >= _KEPT:
                self._wrapped.clear()
            wrapped = rebuilt(handler, lambda function: _wrap(function, handler, self._peers))
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
        peer, failure = peers.check(context)
        if failure is None:
            try:
                return await peer.hold(function(request, context))
            except _OverError:
                failure = _OVER
        return await end(context, failure)

    return coroutine


def _generator(function: Any, peers: _Peers) -> Any:
    async def generator(request: Any, context: Any) -> AsyncIterator[Any]:
        peer, failure = peers.check(context)
        if failure is None:
            async with aclosing(function(request, context)) as responses:
                try:
                    while True:
                        yield await peer.hold(anext(responses))
                except StopAsyncIteration:
                    return
                except _OverError:
                    failure = _OVER
        await end(context, failure)

    return generator


class _Sync:
    """The check for handlers that gRPC runs in an executor, where an RPC ends by what its handler leaves behind."""

    def __init__(self, context: Any, peers: _Peers) -> None:
        self._context = context
        self._peer, failure = peers.check(context)
        self.over = failure is not None
        if failure is not None:
            self._end(failure)

    def _end(self, failure: Failure) -> None:
        self._context.set_code(failure.code)
        self._context.set_details(failure.text)

    def again(self) -> bool:
        """Whether the RPC may go on; if the certificate has ended meanwhile, it ends."""
        if not self.over and not self._peer.is_valid():
            self.over = True
            self._end(_OVER)
        return not self.over

    def each(self, messages: Iterator[Any]) -> Iterator[Any]:
        """Messages, for as long as the certificate is valid."""
        for message in messages:
            if not self.again():
                return
            yield message


def _sync_unary(function: Any, streams: bool, peers: _Peers) -> Callable[[Any, Any], Any]:
    def unary(request: Any, context: Any) -> Any:
        check = _Sync(context, peers)
        if check.over:
            return None
        response = function(check.each(request) if streams else request, context)
        return response if check.again() else None

    return unary


def _sync_generator(function: Any, streams: bool, peers: _Peers) -> Callable[[Any, Any], Iterator[Any]]:
    def generator(request: Any, context: Any) -> Iterator[Any]:
        check = _Sync(context, peers)
        if check.over:
            return
        yield from check.each(function(check.each(request) if streams else request, context))

    return generator
