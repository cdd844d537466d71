"""Client side of anonymous authorisation: each connection redeems one token, and then shows its ticket."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Coroutine
from typing import Any, Final, NamedTuple

import grpc.aio

from dpmesh.errors import IdentityError
from dpmesh.identity.tokens.format import Token, to_credentials
from dpmesh.identity.tokens.tickets import ticket_life
from dpmesh.identity.tokens.wallet import Wallet
from dpmesh_grpc import status
from dpmesh_grpc.aio.arities import Arity, interceptors
from dpmesh_grpc.aio.details import changed
from dpmesh_grpc.aio.internals import STATUS_LOST, channel_of
from dpmesh_grpc.status import refusal
from dpmesh_grpc.tokens.server import AUTHORIZATION, reason
from dpmesh_grpc.tokens.ticket_metadata import TICKET_KEY

# The part of a ticket's life after which the next one is redeemed, so that none is over when it arrives.
_RENEW: Final = 0.8
# Seconds that RPCs wait for another one's ticket. gRPC tells the initial metadata of a unary RPC when it ends.
_PATIENCE: Final = 1.0
# So many RPCs in a row whose status was lost may have shown a bad ticket.
_DOUBTS: Final = 3
_MOMENT: Final = 0.05  # seconds


def token_interceptors(wallet: Wallet) -> tuple[Any, ...]:
    """What authorises the RPCs of a grpc.aio channel, whichever device it is.

    The first RPC on a connection carries a token, and the ticket that comes back admits the others, which wait for it
    (for a second; then one of them redeems a token too, lest a slow RPC hold them up).
    Every channel, and every identity's channel inside a rotating one, has its own token and ticket: what was shown on
    one connection is never shown on another. An RPC whose token or ticket is refused ends with UNAUTHENTICATED, and the
    next one redeems a new token; nothing is sent twice.

    Args:
        wallet: Where the tokens come from.

    Returns:
        Four objects, one for each arity, to be passed whole. They belong after dpmesh's own and after those that retry:
        an RPC that is refused behind them has used its token.
    """
    return interceptors(_Access(wallet))


class _Redemption:
    """A token under way, and who waits for its ticket."""

    def __init__(self) -> None:
        self.token: Token | None = None
        self.since = math.inf  # When there was one, on the monotonic clock.
        self.over = asyncio.Event()


class _Pass(NamedTuple):
    """What an RPC shows.

    Attributes:
        pair: Key and value of the metadata.
        redemption: That of the token in it; None if it is a ticket.
    """

    pair: tuple[str, str]
    redemption: _Redemption | None


class _Connection:
    """What one gRPC channel has: a ticket, or a token under way."""

    def __init__(self, wallet: Wallet) -> None:
        self._wallet = wallet
        self._ticket = ""
        self._renew_at = self._ends_at = 0.0  # monotonic
        self._doubts = 0
        self._unsent: Token | None = None
        self._redemption: _Redemption | None = None
        self._watching: set[asyncio.Task[None]] = set()

    async def show(self) -> _Pass:
        """What the next RPC shows. Whoever gets a token must `watch` its call, or `abandon` it.

        Raises:
            IdentityError: There is no token to be had.
        """
        while (shown := self.show_now()) is None:
            waiting = self._redemption
            if waiting is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(_PATIENCE, waiting.since + _PATIENCE - time.monotonic())):
                        await waiting.over.wait()
                if self._redemption is not waiting or time.monotonic() < waiting.since + _PATIENCE:
                    continue  # It came, or somebody else has lost patience, or it is the wallet that is waited for.
            return await self._redeem()
        return shown

    def show_now(self) -> _Pass | None:
        """The ticket, if it will do: also past its renewal, while somebody else renews it."""
        if time.monotonic() < (self._renew_at if self._redemption is None else self._ends_at):
            return _Pass((TICKET_KEY, self._ticket), None)
        return None

    async def _redeem(self) -> _Pass:
        redemption = self._redemption = _Redemption()
        try:
            redemption.token = self._unsent or await self._wallet.take()
        except BaseException:
            self.abandon(redemption)
            raise
        self._unsent = None
        redemption.since = time.monotonic()
        return _Pass((AUTHORIZATION, to_credentials(redemption.token)), redemption)

    def abandon(self, redemption: _Redemption | None) -> None:
        """Ends a redemption: those who wait look again."""
        if redemption is not None:
            redemption.over.set()
            if self._redemption is redemption:
                self._redemption = None

    def watch(self, call: Any, shown: _Pass) -> None:
        """Waits, beside the RPC, for the ticket; or for the end of a ticket that is refused."""
        if shown.redemption is not None:
            watching = asyncio.get_running_loop().create_task(self._receive(call, shown.redemption))
            self._watching.add(watching)
            watching.add_done_callback(self._watching.discard)
            return
        # An interceptor behind this one may have given a bare response; then the RPC was not refused.
        with contextlib.suppress(NotImplementedError):
            call.add_done_callback(lambda done: self._check(done, shown.pair[1]))

    async def _receive(self, call: Any, redemption: _Redemption) -> None:
        try:
            metadata = await call.initial_metadata()
            ticket = next((value for key, value in metadata or () if key == TICKET_KEY), None)
            if ticket is not None:
                self._accept(ticket)
            elif await call.code() is grpc.StatusCode.UNAVAILABLE:
                # Perhaps it never arrived. It may be shown again here, and only here.
                self._unsent = redemption.token
        except (Exception, asyncio.CancelledError):  # noqa: S110 -- the RPC's own errors are its caller's to see
            pass
        finally:
            self.abandon(redemption)

    def _accept(self, ticket: str) -> None:
        life, now = ticket_life(ticket), time.monotonic()
        self._ticket, self._renew_at, self._ends_at = ticket, now + _RENEW * life, now + life
        self._doubts = 0
        self.abandon(self._redemption)  # Of whoever lost patience: the others need not wait for that one too.

    def _check(self, call: Any, ticket: str, *, again: bool = True) -> None:
        """Forgets a ticket that the server does not take, as after a restart that lost its secret."""
        code, text = _now(call.code()), _now(call.details())
        lost = (code, text) == STATUS_LOST
        if lost and again:
            asyncio.get_running_loop().call_later(_MOMENT, lambda: self._check(call, ticket, again=False))
            return
        if self._ticket != ticket:
            return
        self._doubts = self._doubts + 1 if lost else 0
        why = reason(_now(call.trailing_metadata())) if code is grpc.StatusCode.UNAUTHENTICATED else None
        if self._doubts >= _DOUBTS or (why is not None and why.startswith("TOKEN_")):
            self._ticket, self._renew_at, self._ends_at, self._doubts = "", 0.0, 0.0, 0


def _now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine gives that has nothing to wait for, as of a call that is done; None if it has."""
    try:
        coroutine.send(None)
    except StopIteration as result:
        return result.value
    except (Exception, asyncio.CancelledError):
        return None
    coroutine.close()
    return None


class _Access:
    """The connections of all channels that the interceptors were given to."""

    only_once = ""

    def __init__(self, wallet: Wallet) -> None:
        self._wallet = wallet
        self._connections: dict[Any, _Connection] = {}

    def connection(self, continuation: Any) -> _Connection:
        """That of the channel which an RPC is on.

        A rotating channel gives the same interceptors to each of its channels, and an identity's number may change
        before its channel does. So the channel itself is asked for, which only gRPC's own continuation knows.

        Raises:
            IdentityError: gRPC does not tell.
        """
        try:
            channel = channel_of(continuation)
        except LookupError as error:
            raise IdentityError("TOKEN_MISSING", str(error)) from None
        found = self._connections.get(channel)
        if found is None:
            self._connections = {each: kept for each, kept in self._connections.items() if not each.closed()}
            found = self._connections[channel] = _Connection(self._wallet)
        return found

    async def send_one(self, continuation: Any, details: Any, request: Any, arity: Arity) -> Any:
        """Lets an RPC begin with a token or a ticket. See ClientInterception."""
        began = time.monotonic()
        try:
            connection = self.connection(continuation)
            shown = connection.show_now()
            if shown is None:
                async with asyncio.timeout(details.timeout):
                    shown = await connection.show()
        except TimeoutError:
            return arity.refused(status.deadline())
        except IdentityError as error:
            return arity.refused(status.rpc_error(refusal(error)))
        try:
            call = await continuation(_showing(details, shown.pair, began), request)
        except BaseException:
            connection.abandon(shown.redemption)
            raise
        connection.watch(call, shown)
        return call

    def send_many(self, continuation: Any, details: Any, requests: Any, arity: Arity) -> Awaitable[Any]:
        """See ClientInterception."""
        return self.send_one(continuation, details, requests, arity)


def _showing(details: Any, pair: tuple[str, str], began: float) -> grpc.aio.ClientCallDetails:
    left = None if details.timeout is None else details.timeout - (time.monotonic() - began)
    metadata = grpc.aio.Metadata(*(details.metadata or ()), pair)
    return changed(details, left, metadata)
