"""Peer expiry: each RPC checks its client's certificate again, because a connection may outlive the certificate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterator
from typing import Any, Final, TypeVar

import grpc
import grpc.aio
from cryptography import x509
from typing_extensions import override

from dpmesh.errors import IdentityError
from dpmesh.identity.identity import trust_domain
from dpmesh.identity.rotation.rotating_identity import RotatingIdentity
from dpmesh_grpc.aio.handlers import (
    AsyncRpc,
    InterceptedHandlers,
    Interception,
    RefusedError,
    SyncRpc,
    set_status,
)
from dpmesh_grpc.status import Failure

_T = TypeVar("_T")

# How many parsed certificates are kept.
_KEPT: Final = 1024
_UNAUTHENTICATED: Final = grpc.StatusCode.UNAUTHENTICATED
_NO_PEER: Final = Failure(_UNAUTHENTICATED, "a client certificate of this server's trust domain is required")
_OVER: Final = Failure(_UNAUTHENTICATED, "the client certificate is not valid now")
_NO_SERVER: Final = Failure(grpc.StatusCode.UNAVAILABLE, "the server has no identity that is valid now")


def peer_interceptor(identity: RotatingIdentity) -> grpc.aio.ServerInterceptor:
    """An interceptor that checks the client's certificate for as long as an RPC lasts. It belongs before all others.

    The certificate must be an X.509-SVID of the server's trust domain and valid now; otherwise the RPC is refused with
    UNAUTHENTICATED. When the certificate ends, the handler is cancelled. A handler in the executor can't be cancelled;
    its RPC ends with the next message. gRPC has checked at the handshake that the certificate is signed and that the
    client has its key.

    Args:
        identity: The server's opened identity.
    """
    return _PeerInterceptor(identity)


class _Peer:
    """A client's certificate, and the RPCs that end with it. One timer serves all of them, because it costs 10 us.

    Args:
        trust_domain: The certificate's trust domain, or None if it is no X.509-SVID.
        not_before: When it begins to be valid, in seconds since 1970.
        not_after: When it ends, in seconds since 1970.
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
        """Whether the certificate is valid now."""
        return self.not_before <= time.time() < self.not_after

    async def hold(self, work: Awaitable[_T]) -> _T:
        """Awaits a handler's work, and cancels it when the certificate ends, which raises RefusedError."""
        task = asyncio.current_task()
        assert task is not None
        cancels = task.cancelling()
        self._running.add(task)
        if self._timer is None:
            self._timer = task.get_loop().call_later(self.not_after - time.time(), self._expire)
        try:
            result = await work
        except asyncio.CancelledError:
            self._running.discard(task)
            if task in self._cut and task.uncancel() <= cancels:
                raise RefusedError(_OVER) from None
            raise
        finally:
            self._end(task)
        if not self.is_valid():  # The work took no notice of being cancelled.
            raise RefusedError(_OVER)
        return result

    def forget(self) -> None:
        """Cancels the timer once the last RPC has ended; no new RPC will come."""
        self._forgotten = True
        if self._timer is not None and not self._running:
            self._timer.cancel()

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


class _PeerInterceptor(Interception, grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Decides whether a client's certificate is good. It keeps the certificates that it has parsed."""

    def __init__(self, identity: RotatingIdentity) -> None:
        self._identity = identity
        self._parsed: dict[bytes, _Peer] = {}
        self._handlers = InterceptedHandlers(self)

    @override
    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        self.tidy()
        return self._handlers.wrap(handler_call_details.method, handler)

    @override
    def asynchronous(self, context: Any) -> AsyncRpc:
        return _AsyncRpc(context, self)

    @override
    def synchronous(self, context: Any, loop: asyncio.AbstractEventLoop) -> SyncRpc:
        return _SyncRpc(context, self)

    def check(self, context: Any) -> _Peer:
        """An RPC's client.

        Raises:
            RefusedError: Its certificate is not valid now or not of this trust domain, or the server has no identity.
        """
        try:
            ours = self._identity.current.trust_domain
        except IdentityError:
            raise RefusedError(_NO_SERVER) from None
        peer = self._peer(context)
        if peer.trust_domain != ours:
            raise RefusedError(_NO_PEER)
        if not peer.is_valid():
            raise RefusedError(_OVER)
        return peer

    def _peer(self, context: Any) -> _Peer:
        pem = next(iter(context.auth_context().get("x509_pem_cert", ())), None)
        if pem is None:
            return _NOBODY
        peer = self._parsed.get(pem)
        if peer is not None:
            return peer
        try:
            leaf = x509.load_pem_x509_certificate(pem)
            begins, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
            peer = _Peer(trust_domain(leaf), begins.timestamp(), ends.timestamp())
        except (ValueError, IdentityError):
            peer = _NOBODY
        return self._parsed.setdefault(pem, peer)  # Handlers in an executor come here from its threads.

    def tidy(self) -> None:
        """Forgets all certificates if there are many. Call it in the event loop, where their timers are."""
        if len(self._parsed) > _KEPT:
            parsed, self._parsed = self._parsed, {}
            for peer in parsed.values():
                peer.forget()


class _AsyncRpc(AsyncRpc):
    """Checks the client of one RPC whose handler runs in the event loop, and cancels the handler at the end."""

    __slots__ = ("_peer", "_peers")

    def __init__(self, context: Any, peers: _PeerInterceptor) -> None:
        super().__init__(context)
        self._peers = peers
        self._peer = _NOBODY

    @override
    def begin(self) -> None:
        self._peer = self._peers.check(self.context)

    @override
    def run(self, work: Awaitable[_T]) -> Awaitable[_T]:
        return self._peer.hold(work)

    @override
    def passes(self, response: Any) -> bool:
        return True


class _SyncRpc(SyncRpc):
    """Checks the client of one RPC whose handler runs in the executor: at its begin and at each message."""

    __slots__ = ("_over", "_peer", "_peers")

    def __init__(self, context: Any, peers: _PeerInterceptor) -> None:
        super().__init__(context)
        self._peers = peers
        self._peer = _NOBODY
        self._over = False

    @override
    def begin(self) -> Any:
        self._peer = self._peers.check(self.context)
        return self.context

    @override
    def requests(self, requests: Iterator[Any]) -> Iterator[Any]:
        for request in requests:
            if self._is_over():
                set_status(self.context, _OVER)
                return
            yield request

    @override
    def respond(self, response: Any) -> Any:
        if self._is_over():
            raise RefusedError(_OVER)
        return response

    def _is_over(self) -> bool:
        """Whether the certificate has ended since the RPC began, also if the clock was set back afterwards."""
        self._over = self._over or not self._peer.is_valid()
        return self._over
