"""Server-side token check: an RPC needs an unspent token or a valid ticket."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl
from collections.abc import Awaitable, Collection
from typing import Any, Final

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2
from typing_extensions import override

from dpmesh import method_name
from dpmesh.errors import DpmeshError, IdentityError, LedgerError
from dpmesh.identity.tokens.format import from_credentials
from dpmesh.identity.tokens.tickets import LIFE, Tickets
from dpmesh.identity.tokens.verifier import Verifier
from dpmesh.mesh.refusals import DOMAIN
from dpmesh_grpc import status
from dpmesh_grpc.aio.handlers import AsyncRpc, InterceptedHandlers, Interception, RefusedError, SyncRpc
from dpmesh_grpc.aio.threads import result_of
from dpmesh_grpc.tokens.ticket_metadata import TICKET_KEY, SyncTicketContext, TicketContext

log = logging.getLogger("dpmesh.grpc")

AUTHORIZATION: Final = "authorization"

_SCHEME: Final = "privatetoken "


def token_interceptor(
    verifier: Verifier, *, exempt: Collection[str] = (), ticket_life: float = LIFE
) -> grpc.aio.ServerInterceptor:
    """An interceptor that refuses RPCs without a valid token or ticket before their handlers run.

    It refuses with UNAUTHENTICATED, and TOKEN_MISSING, TOKEN_INVALID or TOKEN_SPENT in google.rpc.ErrorInfo. If the
    ledger or the issuer does not answer, it refuses with UNAVAILABLE. It belongs before all other interceptors, except
    those that check certificates and those that must see refused RPCs too.

    A client sends a token as `authorization: PrivateToken token=...` (RFC 9577, section 2.2). The RPC's initial
    metadata brings back a ticket, `dpmesh-ticket`, for the other RPCs of the channel. In an RPC with a token, the
    ticket is sent after 50 ms; initial metadata that the handler sends later is dropped.

    Args:
        verifier: Checks tokens, by a ledger that all replicas share. All replicas take each other's tickets.
        exempt: Full names of services that anybody may call, as "grpc.health.v1.Health".
        ticket_life: Seconds for which a ticket is valid.
    """
    return _TokenInterceptor(verifier, frozenset(exempt), ticket_life)


class _TokenInterceptor(Interception, grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Decides whether RPCs are let in, by the token or the ticket that they show."""

    def __init__(self, verifier: Verifier, exempt: frozenset[str], ticket_life: float) -> None:
        self._verifier = verifier
        self._exempt = exempt
        self._ticket_life = ticket_life
        self._tickets: Tickets | None = None
        self._handlers = InterceptedHandlers(self)

    @override
    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        name = handler_call_details.method
        parts = method_name.parse(name)
        if handler is None or (parts is not None and parts.service in self._exempt):
            return handler
        return self._handlers.wrap(name, handler)

    @override
    def asynchronous(self, context: Any) -> AsyncRpc:
        return _AsyncRpc(context, self)

    @override
    def synchronous(self, context: Any, loop: asyncio.AbstractEventLoop) -> SyncRpc:
        return _SyncRpc(context, self, loop)

    async def admit(self, context: Any) -> str | None:
        """Checks what an RPC shows. Returns the ticket that its token buys, or None if it shows a ticket.

        Raises:
            RefusedError: It shows neither a valid ticket nor an unspent token, or the ledger can't tell.
        """
        try:
            return await self._ticket_for(context)
        except DpmeshError as error:
            if isinstance(error, LedgerError):
                log.warning("a token could not be redeemed: %s", error)
            failure = status.refusal(error)
        raise RefusedError(failure)

    async def _ticket_for(self, context: Any) -> str | None:
        metadata = context.invocation_metadata() or ()
        tickets = [value for key, value in metadata if key == TICKET_KEY]
        if tickets:
            if len(tickets) > 1:
                raise IdentityError("TOKEN_INVALID", "the RPC shows more than one ticket")
            self._service_tickets().check(tickets[0], _holder(context))
            return None
        tokens = [v for key, v in metadata if key == AUTHORIZATION and v[: len(_SCHEME)].lower() == _SCHEME]
        if not tokens:
            raise IdentityError("TOKEN_MISSING", "the RPC shows neither a token nor a ticket")
        if len(tokens) > 1:
            raise IdentityError("TOKEN_INVALID", "the RPC shows more than one token")
        ours = self._service_tickets()  # Before anything is spent.
        await self._verifier.redeem(from_credentials(tokens[0]))
        return ours.issue(_holder(context))

    def _service_tickets(self) -> Tickets:
        if self._tickets is None:
            secret = self._verifier.ledger.secret
            self._tickets = Tickets(secret, self._verifier.challenge.digest, life=self._ticket_life)
        return self._tickets


def _holder(context: Any) -> bytes:
    """The SHA-256 of the peer's certificate; b"" if it has none."""
    pem = next(iter(context.auth_context().get("x509_pem_cert", ())), None)
    return b"" if pem is None else hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode())).digest()


class _AsyncRpc(AsyncRpc):
    """Checks the token or the ticket of one RPC whose handler runs in the event loop."""

    __slots__ = ("_check", "_ticket_context")

    def __init__(self, context: Any, check: _TokenInterceptor) -> None:
        super().__init__(context)
        self._check = check
        self._ticket_context: TicketContext | None = None

    @override
    async def begin(self) -> None:
        ticket = await self._check.admit(self.context)
        if ticket is not None:
            self.handler_context = self._ticket_context = TicketContext(self.context, ticket)
            self._ticket_context.start()

    @override
    def passes(self, response: Any) -> bool:
        return self._ticket_context is None

    @override
    async def respond(self, response: Any) -> Any:
        if self._ticket_context is not None:
            await self._ticket_context.send_ticket()
        return response

    @override
    def close(self) -> Awaitable[None] | None:
        return None if self._ticket_context is None else self._ticket_context.finish()


class _SyncRpc(SyncRpc):
    """Checks the token or the ticket of one RPC whose handler runs in the executor."""

    __slots__ = ("_check", "_loop", "_ticket_context")

    def __init__(self, context: Any, check: _TokenInterceptor, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(context)
        self._check = check
        self._loop = loop
        self._ticket_context: SyncTicketContext | None = None

    @override
    def begin(self) -> Any:
        ticket = result_of(self._check.admit(self.context), self._loop)
        if ticket is None:
            return self.context
        self._ticket_context = SyncTicketContext(self.context, ticket)
        return self._ticket_context

    @override
    def respond(self, response: Any) -> Any:
        self.close()
        return response

    @override
    def close(self) -> None:
        if self._ticket_context is not None:
            self._ticket_context.send_ticket()


def reason(trailing: Any) -> str | None:
    """The reason of a refusal by dpmesh, from the RPC's trailing metadata; None if dpmesh did not refuse."""
    details = next((value for key, value in trailing or () if key == status.DETAILS_KEY), None)
    if details is None:
        return None
    try:
        sent = status_pb2.Status.FromString(details)
        info = error_details_pb2.ErrorInfo()
        found = any(detail.Unpack(info) and info.domain == DOMAIN for detail in sent.details)
    except Exception:  # a peer's bytes
        return None
    return info.reason if found else None
