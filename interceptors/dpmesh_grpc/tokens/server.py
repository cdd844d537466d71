"""Server side of anonymous authorisation: who shows no token that was never seen, and no ticket, gets no handler."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import logging
import ssl
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import aclosing
from typing import Any, Final

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2

from dpmesh.errors import DpmeshError, IdentityError, LedgerError
from dpmesh.identity.tokens.tickets import LIFE, Tickets
from dpmesh.identity.tokens.token_format import from_credentials
from dpmesh.identity.tokens.verifier import Verifier
from dpmesh.mesh.refusals import DOMAIN
from dpmesh_grpc import status
from dpmesh_grpc.aio.threads import result_of
from dpmesh_grpc.protection.server import rebuilt
from dpmesh_grpc.status import Failure
from dpmesh_grpc.tokens.ticket_metadata import TICKET_KEY, SyncAnnouncing, announcing

log = logging.getLogger("dpmesh.grpc")

AUTHORIZATION: Final = "authorization"

_KEPT: Final = 1024  # methods
_SCHEME: Final = "privatetoken "


def token_interceptor(
    verifier: Verifier, *, exempt: Collection[str] = (), ticket_life: float = LIFE
) -> grpc.aio.ServerInterceptor:
    """What lets RPCs in that show a token or a ticket, and refuses all others before their handlers run.

    It refuses with UNAUTHENTICATED, and TOKEN_MISSING, TOKEN_INVALID or TOKEN_SPENT in google.rpc.ErrorInfo; with
    UNAVAILABLE where the ledger or the issuer can't be asked. It belongs before all others but those that check
    certificates and those that must see refused RPCs too.

    A token comes as `authorization: PrivateToken token=...` (RFC 9577, section 2.2), and the RPC's initial metadata
    brings a ticket, `dpmesh-ticket`, for the channel's other RPCs. A handler that takes longer than 50 ms to send
    initial metadata of its own finds, in RPCs with a token, that the ticket has gone ahead; its metadata is dropped.

    Args:
        verifier: Checks tokens, by a ledger that all replicas share. Their tickets are good at all of them.
        exempt: Full names of services that anybody may call, as "grpc.health.v1.Health".
        ticket_life: Seconds that a ticket admits.
    """
    return _TokenInterceptor(_Gate(verifier, ticket_life), frozenset(exempt))


class _Gate:
    """Decides about RPCs by what they show."""

    def __init__(self, verifier: Verifier, ticket_life: float) -> None:
        self._verifier = verifier
        self._ticket_life = ticket_life
        self._tickets: Tickets | None = None

    async def admit(self, context: Any) -> str | None:
        """Lets an RPC in; gives the ticket that a token has bought.

        Raises:
            DpmeshError: Or not.
        """
        shown = context.invocation_metadata() or ()
        tickets = [value for key, value in shown if key == TICKET_KEY]
        if tickets:
            self._check(tickets, _holder(context))
            return None
        tokens = [v for key, v in shown if key == AUTHORIZATION and v[: len(_SCHEME)].lower() == _SCHEME]
        if not tokens:
            raise IdentityError("TOKEN_MISSING", "the RPC shows neither a token nor a ticket")
        if len(tokens) > 1:
            raise IdentityError("TOKEN_INVALID", "the RPC shows more than one token")
        issuing = self._issuing()  # before anything is spent
        await self._verifier.redeem(from_credentials(tokens[0]))
        return issuing.issue(_holder(context))

    def _check(self, shown: list[str], holder: bytes) -> None:
        if len(shown) > 1:
            raise IdentityError("TOKEN_INVALID", "the RPC shows more than one ticket")
        self._issuing().check(shown[0], holder)

    def _issuing(self) -> Tickets:
        if self._tickets is None:
            secret = self._verifier.ledger.secret
            self._tickets = Tickets(secret, self._verifier.challenge.digest, life=self._ticket_life)
        return self._tickets

    async def decide(self, context: Any) -> str | Failure | None:
        """The ticket of an RPC that is let in, None where it has one, or why it is not."""
        try:
            return await self.admit(context)
        except LedgerError as error:
            log.warning("a token could not be redeemed: %s", error)
            return status.refusal(error)
        except DpmeshError as error:
            return status.refusal(error)


def _holder(context: Any) -> bytes:
    """SHA-256 of the peer's certificate, or b"" where it has shown none."""
    pem = next(iter(context.auth_context().get("x509_pem_cert", ())), None)
    return b"" if pem is None else hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode())).digest()


class _TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    def __init__(self, gate: _Gate, exempt: frozenset[str]) -> None:
        self._gate = gate
        self._exempt = exempt
        self._wrapped: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        name = handler_call_details.method
        if handler is None or name.strip("/").rpartition("/")[0] in self._exempt:
            return handler
        before, wrapped = self._wrapped.get(name, (None, None))
        if before is not handler:
            if len(self._wrapped) >= _KEPT:
                self._wrapped.clear()
            wrapped = rebuilt(handler, lambda function: _wrap(function, handler, self._gate))
            self._wrapped[name] = (handler, wrapped)
        return wrapped


def _wrap(function: Any, handler: Any, gate: _Gate) -> Any:
    """A handler's function behind the gate; of the same kind, because gRPC calls each kind in its own way."""
    if inspect.isasyncgenfunction(function):
        return _generator(function, gate)
    if inspect.iscoroutinefunction(function):
        return _coroutine(function, gate)
    return (_sync_generator if handler.response_streaming else _sync_unary)(function, gate)


def _coroutine(function: Any, gate: _Gate) -> Any:
    async def coroutine(request: Any, context: Any) -> Any:
        decision = await gate.decide(context)
        if decision is None:
            return await function(request, context)
        if isinstance(decision, Failure):
            return await status.end(context, decision)
        async with announcing(context, decision) as announced:
            return await function(request, announced)

    return coroutine


def _generator(function: Any, gate: _Gate) -> Any:
    async def generator(request: Any, context: Any) -> AsyncIterator[Any]:
        decision = await gate.decide(context)
        if isinstance(decision, Failure):
            await status.end(context, decision)
        elif decision is None:
            async with aclosing(function(request, context)) as responses:
                async for response in responses:
                    yield response
        else:
            async with (
                announcing(context, decision) as announced,
                aclosing(function(request, announced)) as responses,
            ):
                async for response in responses:
                    await announced.announce()
                    yield response

    return generator


def _enter(gate: _Gate, context: Any, loop: asyncio.AbstractEventLoop) -> Any:
    """The context for a handler in an executor, or None if the RPC was refused."""
    decision = result_of(gate.decide(context), loop)
    if isinstance(decision, Failure):
        context.set_code(decision.code)
        context.set_details(decision.text)
        context.set_trailing_metadata(decision.trailing)
        return None
    return context if decision is None else SyncAnnouncing(context, decision)


def _sync_unary(function: Any, gate: _Gate) -> Any:
    loop = asyncio.get_running_loop()

    def unary(request: Any, context: Any) -> Any:
        entered = _enter(gate, context, loop)
        if entered is None:
            return None
        try:
            return function(request, entered)
        finally:
            if entered is not context:
                entered.announce()

    return unary


def _sync_generator(function: Any, gate: _Gate) -> Any:
    loop = asyncio.get_running_loop()

    def generator(request: Any, context: Any) -> Iterator[Any]:
        entered = _enter(gate, context, loop)
        if entered is None:
            return
        if entered is context:
            yield from function(request, context)
            return
        try:
            for response in function(request, entered):
                entered.announce()
                yield response
        finally:
            entered.announce()

    return generator


def reason(trailing: Any) -> str | None:
    """The reason in a refusal of dpmesh, from the RPC's trailing metadata; None where there is none."""
    details = next((value for key, value in trailing or () if key == status.DETAILS_KEY), None)
    if details is None:
        return None
    try:
        told = status_pb2.Status.FromString(details)
        info = error_details_pb2.ErrorInfo()
        found = any(
            detail.Unpack(info) and info.domain == DOMAIN
            for detail in told.details
            if detail.Is(info.DESCRIPTOR)
        )
    except Exception:  # a peer's bytes
        return None
    return info.reason if found else None
