"""Wallet: the device's side of anonymous tokens. It asks the issuer for batches, and hands each token out once.

A wallet is in one of these states; at most one refill is under way at a time:

    IDLE     enough tokens, no refill under way
    WAITING  a refill waits for a random time, so that the issuer can't tell when a token was spent
    ASKING   the issuer is asked for a batch

    from     event                                   to
    IDLE     `take` leaves fewer tokens than `low`   WAITING
    IDLE     `take` finds no token                   ASKING; `take` waits for the answer
    WAITING  the random time ends                    ASKING
    WAITING  `take` finds no token                   ASKING; `take` waits for the answer
    ASKING   the issuer answers                      IDLE, with a batch more
    ASKING   the issuer fails                        IDLE; calls of `take` that wait raise
    any      `close`, or a fork (in the child)       IDLE, without tokens
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from dpmesh import forks
from dpmesh.errors import ConfigError, IdentityError
from dpmesh.identity.tokens import blind_rsa
from dpmesh.identity.tokens.format import (
    NONCE_BYTES,
    VARIANT,
    PublishedKey,
    Token,
    TokenChallenge,
    decode_key,
)

_log = logging.getLogger("dpmesh")

BATCH = 16
"""Tokens in a batch. It is one number for all devices, or it would tell them apart."""
SPREAD = 60.0
"""The longest wait before a refill, in seconds. The time of the refill must not tell when a token was spent."""
_RANDOM = secrets.SystemRandom()


class HeldToken(NamedTuple):
    """A token in a wallet.

    Attributes:
        token: The token.
        not_before: When it begins to be valid, in seconds since 1970.
        not_after: When it expires, in seconds since 1970.
    """

    token: Token
    not_before: float
    not_after: float


Refill = Callable[[int], Awaitable[Iterable[HeldToken]]]
"""Asks the issuer for so many tokens. Raises IdentityError if the issuer gives none."""


class TokenRequestState:
    """One batch: its nonces and blinding factors, from the request until the answer. It can be used once.

    Only the service may see the nonces, and only the issuer the blinded messages. Anybody who sees both for one token,
    or the blinding factors, can link the device to what it does.

    Args:
        key: The issuer's key.
        challenge: What the tokens are for.
        count: How many tokens.

    Attributes:
        truncated_key_id: Names the key to the issuer.
        blinded_messages: What the issuer signs, 256 bytes each.

    Raises:
        IdentityError: MALFORMED or UNTRUSTED: the key is not usable.
    """

    def __init__(self, key: PublishedKey, challenge: TokenChallenge, count: int) -> None:
        self._key = key
        self._public = decode_key(key.public_key)
        self._pending: list[tuple[Token, blind_rsa.Blinded]] = []
        for _ in range(count):
            token = Token(secrets.token_bytes(NONCE_BYTES), challenge.digest, key.key_id, b"")
            self._pending.append((token, blind_rsa.blind(VARIANT, self._public, token.signed)))
        self.truncated_key_id = key.truncated_key_id
        self.blinded_messages = [blinded.message for _, blinded in self._pending]
        forks.register(self)

    def finalize(self, blind_signatures: Sequence[bytes]) -> list[HeldToken]:
        """Turns the issuer's answer into verified tokens.

        Args:
            blind_signatures: In the order of the blinded messages.

        Raises:
            IdentityError: MALFORMED or TOKEN_INVALID: the answer does not fit the request. No token of the batch can be
                used.
        """
        pending, self._pending = self._pending, []
        if not pending or len(blind_signatures) != len(pending):
            text = "the issuer's answer has another number of signatures than asked for"
            raise IdentityError("MALFORMED", text)
        held = []
        for (token, blinded), answer in zip(pending, blind_signatures, strict=True):
            signature = blind_rsa.finalize(VARIANT, self._public, token.signed, answer, blinded.inverse)
            signed = replace(token, authenticator=signature)
            held.append(HeldToken(signed, self._key.not_before, self._key.not_after))
        return held

    def after_fork_in_child(self) -> None:
        """Forgets the batch, which is the parent's."""
        self._pending = []


def choose_key(keys: Iterable[PublishedKey], now: float) -> PublishedKey:
    """The key of the current epoch: the newest of the keys in force.

    Args:
        keys: The keys that the issuer publishes.
        now: Seconds since 1970.

    Raises:
        IdentityError: ISSUER_UNAVAILABLE: no key is in force.
    """
    in_force = [key for key in keys if key.not_before <= now < key.not_after]
    if not in_force:
        raise IdentityError("ISSUER_UNAVAILABLE", "the issuer publishes no token key for this time")
    return max(in_force, key=lambda key: key.not_before)


class Wallet:
    """Tokens in memory, each handed out once. A wallet belongs to one event loop, and is empty in a forked child.

    It is refilled before it is empty, in batches of one size and after a random wait. So neither the number nor the
    time of the issuer's requests tells which tokens a service sees. An empty wallet is refilled at once.

    Args:
        refill: Asks the issuer.
        batch: How many tokens to ask for at once.
        low: A refill begins when fewer tokens are left; at most the batch.
        spread: The longest wait before a refill that is not needed yet, in seconds.
        clock: Seconds since 1970.

    Raises:
        ConfigError: The batch or `low` is out of range.
    """

    def __init__(
        self,
        refill: Refill,
        *,
        batch: int = BATCH,
        low: int = BATCH // 4,
        spread: float = SPREAD,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not 1 <= batch <= 1024 or not 0 <= low <= batch:
            raise ConfigError("a wallet's batch must be 1 to 1024 tokens, and `low` at most a batch")
        self._ask_issuer = refill
        self._batch, self._low, self._spread = batch, low, spread
        self._clock = clock
        self._tokens: deque[HeldToken] = deque()
        self._refilling: asyncio.Task[None] | None = None
        self._needed_now = asyncio.Event()
        forks.register(self)

    def __len__(self) -> int:
        """How many tokens are left that have not expired."""
        now = self._clock()
        return sum(now < held.not_after for held in self._tokens)

    async def take(self) -> Token:
        """Returns a valid token, and never returns it again.

        Raises:
            IdentityError: The issuer gives none, or the wallet was closed.
        """
        while (token := self._next()) is None:
            self._needed_now.set()
            refilling = self._request_refill(0.0)
            # Not awaited itself: cancelling one caller must not cancel the refill for all.
            await asyncio.wait({refilling})
            if refilling.cancelled():
                raise IdentityError("ISSUER_UNAVAILABLE", "the wallet was closed")
            if (error := refilling.exception()) is not None:
                raise _safe_error(error) from None
        if len(self) < self._low:
            self._request_refill(_RANDOM.uniform(0.0, self._spread))
        return token

    async def close(self) -> None:
        """Forgets all tokens, and cancels the refill."""
        self._tokens.clear()
        refilling, self._refilling = self._refilling, None
        if refilling is not None:
            refilling.cancel()
            await asyncio.wait({refilling})

    def _next(self) -> Token | None:
        """Removes and returns a token that is valid now. Expired tokens are dropped, and future ones kept."""
        now = self._clock()
        for _ in range(len(self._tokens)):
            held = self._tokens.popleft()
            if held.not_before <= now < held.not_after:
                return held.token
            if now < held.not_before:
                self._tokens.append(held)
        return None

    def _request_refill(self, wait: float) -> asyncio.Task[None]:
        """The refill under way, or else a new one after a wait, which `_needed_now` cuts short."""
        if self._refilling is None or self._refilling.done():
            # It may be set since the last refill was under way.
            self._needed_now.clear()
            self._refilling = asyncio.get_running_loop().create_task(self._refill_after(wait))
            self._refilling.add_done_callback(self._refill_done)
        return self._refilling

    def _refill_done(self, refilling: asyncio.Task[None]) -> None:
        if self._refilling is refilling:
            self._refilling = None
        if not refilling.cancelled() and (error := refilling.exception()) is not None:
            _log.warning("anonymous tokens could not be refilled: %s", _safe_error(error))

    async def _refill_after(self, wait: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._needed_now.wait()
        now = self._clock()
        batch = list(await self._ask_issuer(self._batch))
        self._tokens.extend(batch)
        if not any(held.not_before <= now < held.not_after for held in batch):
            raise IdentityError("ISSUER_UNAVAILABLE", "the issuer gave no token that is taken now")

    def after_fork_in_child(self) -> None:
        """Forgets the tokens and the refill, which are the parent's."""
        self._tokens, self._refilling = deque(), None
        self._needed_now = asyncio.Event()


def _safe_error(error: BaseException) -> IdentityError:
    """An error that may be shown. Texts of other exceptions could quote anything."""
    if isinstance(error, IdentityError):
        return error
    return IdentityError("ISSUER_UNAVAILABLE", f"asking for tokens failed with {type(error).__name__}")
