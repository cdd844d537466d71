"""Client side of anonymous authorisation: each connection redeems one token, and then shows its ticket.

How it works: a gRPC channel has one `_Connection`, which decides what each RPC shows.

| state     | it has                                   | the next RPC shows                                    |
|-----------|------------------------------------------|-------------------------------------------------------|
| EMPTY     | nothing                                  | a token                                               |
| REDEEMING | an RPC with a token, no ticket           | the ticket of that RPC, which it waits for up to 1 s  |
| ADMITTED  | a ticket                                 | the ticket                                            |
| RENEWABLE | a ticket near its end                    | a token                                               |
| RENEWING  | such a ticket, and an RPC with a token   | the ticket until its end; then as in REDEEMING        |

| from                | event                                           | to                                        |
|---------------------|-------------------------------------------------|-------------------------------------------|
| EMPTY, RENEWABLE    | an RPC takes a token                            | REDEEMING, RENEWING                       |
| REDEEMING, RENEWING | the ticket arrives                              | ADMITTED                                  |
| REDEEMING, RENEWING | the RPC ends without a ticket, or has no token  | EMPTY, RENEWABLE                          |
| REDEEMING           | an RPC has waited 1 s for the ticket            | REDEEMING, with a token of that RPC's own |
| ADMITTED            | the ticket reaches 80 % of its life             | RENEWABLE                                 |
| ADMITTED, RENEWABLE | the server refuses the ticket                   | EMPTY                                     |

A token whose RPC ends with UNAVAILABLE may not have arrived: the connection shows it once more, and no other does.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Coroutine
from typing import Any, Final, NamedTuple

import grpc.aio
from typing_extensions import override

from dpmesh.errors import IdentityError
from dpmesh.identity.tokens.format import Token, to_credentials
from dpmesh.identity.tokens.tickets import ticket_life
from dpmesh.identity.tokens.wallet import Wallet
from dpmesh_grpc import status
from dpmesh_grpc.aio.arities import Arity, ClientInterception, changed, interceptors
from dpmesh_grpc.aio.internals import STATUS_LOST, channel_of
from dpmesh_grpc.status import refusal
from dpmesh_grpc.tokens.server import AUTHORIZATION, reason
from dpmesh_grpc.tokens.ticket_metadata import TICKET_KEY

# The part of a ticket's life after which the next one is redeemed, so that no ticket ends on its way.
_RENEW: Final = 0.8
# Seconds that RPCs wait for the ticket of another RPC: gRPC shows a unary RPC's initial metadata only when it ends.
_PATIENCE: Final = 1.0
# After so many RPCs in a row whose status was lost, the ticket is taken to be refused.
_LOST_AT_MOST: Final = 3
_STATUS_DELAY: Final = 0.05  # seconds after which a status that was lost for a moment is there


def token_interceptors(wallet: Wallet) -> tuple[Any, ...]:
    """Interceptors that authorise the RPCs of a grpc.aio channel without saying which device sends them.

    The first RPC on a connection carries a token, and the ticket that comes back admits the others. They wait for it
    for a second; then one of them redeems a token too, so that a slow RPC does not hold them up.
    Every channel, and every identity's channel inside a rotating one, has its own token and ticket: what was shown on
    one connection is never shown on another. An RPC whose token or ticket is refused ends with UNAUTHENTICATED, and the
    next one redeems a new token; nothing is sent twice.

    Args:
        wallet: Where the tokens come from.

    Returns:
        Four objects, one for each arity; pass all of them. They belong after dpmesh's other interceptors and after
        those that retry: an RPC that an interceptor behind them refuses has used its token.
    """
    return interceptors(_Authorisation(wallet))


class _Redemption:
    """A token that an RPC is redeeming, and the RPCs that wait for its ticket."""

    def __init__(self) -> None:
        self.token: Token | None = None
        self.since = math.inf  # When the wallet gave the token, on the monotonic clock.
        self.over = asyncio.Event()


class _Credential(NamedTuple):
    """A token or a ticket, as metadata that an RPC shows. Only a token has a redemption."""

    pair: tuple[str, str]
    redemption: _Redemption | None


class _Connection:
    """Decides what the RPCs of one gRPC channel show. The states are in the module's docstring."""

    def __init__(self, wallet: Wallet) -> None:
        self._wallet = wallet
        self._ticket = ""
        self._renew_at = self._ends_at = 0.0  # monotonic
        self._lost = 0
        self._returned: Token | None = None  # Its RPC ended with UNAVAILABLE.
        self._redemption: _Redemption | None = None
        self._watching: set[asyncio.Task[None]] = set()

    async def credential(self) -> _Credential:
        """What the next RPC shows. For a token, the caller must `watch` the call, or `abandon` the redemption.

        Raises:
            IdentityError: The wallet has no token.
        """
        while (credential := self.ticket_now()) is None:
            waiting = self._redemption
            if waiting is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(_PATIENCE, waiting.since + _PATIENCE - time.monotonic())):
                        await waiting.over.wait()
                if self._redemption is not waiting or time.monotonic() < waiting.since + _PATIENCE:
                    continue  # The ticket has come, or another RPC redeems a token, or the wallet is slow.
            return await self._redeem()
        return credential

    def ticket_now(self) -> _Credential | None:
        """The ticket, or None if the RPC must wait or redeem a token."""
        if time.monotonic() < (self._renew_at if self._redemption is None else self._ends_at):
            return _Credential((TICKET_KEY, self._ticket), None)
        return None

    async def _redeem(self) -> _Credential:
        redemption = self._redemption = _Redemption()
        try:
            redemption.token = self._returned or await self._wallet.take()
        except BaseException:
            self.abandon(redemption)
            raise
        self._returned = None
        redemption.since = time.monotonic()
        return _Credential((AUTHORIZATION, to_credentials(redemption.token)), redemption)

    def abandon(self, redemption: _Redemption | None) -> None:
        """Ends a redemption. The RPCs that wait for its ticket look again."""
        if redemption is not None:
            redemption.over.set()
            if self._redemption is redemption:
                self._redemption = None

    def watch(self, call: Any, credential: _Credential) -> None:
        """Follows an RPC that has begun: its token brings a ticket, or its ticket may be refused."""
        if credential.redemption is not None:
            watching = asyncio.get_running_loop().create_task(self._receive(call, credential.redemption))
            self._watching.add(watching)
            watching.add_done_callback(self._watching.discard)
            return
        # An interceptor behind this one may have given a response instead of a call; then nothing was refused.
        with contextlib.suppress(NotImplementedError):
            call.add_done_callback(lambda done: self._check(done, credential.pair[1]))

    async def _receive(self, call: Any, redemption: _Redemption) -> None:
        try:
            metadata = await call.initial_metadata()
            ticket = next((value for key, value in metadata or () if key == TICKET_KEY), None)
            if ticket is not None:
                self._accept(ticket)
            elif await call.code() is grpc.StatusCode.UNAVAILABLE:
                # The token may not have arrived. It may be shown again on this connection, and only here.
                self._returned = redemption.token
        except (Exception, asyncio.CancelledError):  # noqa: S110 -- the RPC's own errors are its caller's to see
            pass
        finally:
            self.abandon(redemption)

    def _accept(self, ticket: str) -> None:
        life, now = ticket_life(ticket), time.monotonic()
        self._ticket, self._renew_at, self._ends_at = ticket, now + _RENEW * life, now + life
        self._lost = 0
        # Another RPC may be redeeming a token: nobody needs to wait for it now.
        self.abandon(self._redemption)

    def _check(self, call: Any, ticket: str, *, again: bool = True) -> None:
        """Forgets the ticket if the server refuses it, as after a restart with another secret."""
        code, text = _now(call.code()), _now(call.details())
        lost = (code, text) == STATUS_LOST
        if lost and again:
            asyncio.get_running_loop().call_later(
                _STATUS_DELAY, lambda: self._check(call, ticket, again=False)
            )
            return
        if self._ticket != ticket:
            return
        self._lost = self._lost + 1 if lost else 0
        why = reason(_now(call.trailing_metadata())) if code is grpc.StatusCode.UNAUTHENTICATED else None
        if self._lost >= _LOST_AT_MOST or (why is not None and why.startswith("TOKEN_")):
            self._ticket, self._renew_at, self._ends_at, self._lost = "", 0.0, 0.0, 0


def _now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that has nothing to wait for, as those of a call that is done; otherwise None."""
    try:
        coroutine.send(None)
    except StopIteration as result:
        return result.value
    except (Exception, asyncio.CancelledError):
        return None
    coroutine.close()
    return None


class _Authorisation(ClientInterception):
    """The interception that authorises RPCs: one connection for each channel that has the interceptors."""

    only_once = ""

    def __init__(self, wallet: Wallet) -> None:
        self._wallet = wallet
        self._connections: dict[Any, _Connection] = {}

    def connection(self, continuation: Any) -> _Connection:
        """The connection of the channel that an RPC is on.

        A rotating channel gives the same interceptors to each of its channels, and the identity may rotate before the
        channel does. So only gRPC knows the channel.

        Raises:
            IdentityError: This version of gRPC does not tell.
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

    @override
    async def send_one(self, continuation: Any, details: Any, request: Any, arity: Arity) -> Any:
        began = time.monotonic()
        try:
            connection = self.connection(continuation)
            credential = connection.ticket_now()
            if credential is None:
                async with asyncio.timeout(details.timeout):
                    credential = await connection.credential()
        except TimeoutError:
            return arity.refused(status.deadline())
        except IdentityError as error:
            return arity.refused(status.rpc_error(refusal(error)))
        try:
            call = await continuation(_with_credential(details, credential.pair, began), request)
        except BaseException:
            connection.abandon(credential.redemption)
            raise
        connection.watch(call, credential)
        return call

    @override
    def send_many(self, continuation: Any, details: Any, requests: Any, arity: Arity) -> Awaitable[Any]:
        return self.send_one(continuation, details, requests, arity)


def _with_credential(details: Any, pair: tuple[str, str], began: float) -> grpc.aio.ClientCallDetails:
    left = None if details.timeout is None else details.timeout - (time.monotonic() - began)
    metadata = grpc.aio.Metadata(*(details.metadata or ()), pair)
    return changed(details, left, metadata)
