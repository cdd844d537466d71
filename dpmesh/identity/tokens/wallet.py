"""Wallet: the device's side of anonymous tokens. It asks for them in batches, and hands each out once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
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
"""Tokens that are asked for at once; the same for all devices, or the number would tell them apart."""
SPREAD = 60.0
"""The longest that a refill waits, in seconds, so that its time does not tell when a token was spent."""
_RANDOM = secrets.SystemRandom()


class HeldToken(NamedTuple):
    """A token in a wallet.

    Attributes:
        token: The token.
        not_before: When it begins to be taken, in seconds since 1970.
        not_after: When it ceases to be.
    """

    token: Token
    not_before: float
    not_after: float


Refill = Callable[[int], Awaitable[Iterable[HeldToken]]]
"""Asks the issuer for so many tokens. Raises IdentityError where there are none to be had."""


class TokenRequestState:
    """One batch: nonces and blinding factors, from the request until the answer. Of use once.

    The nonces are for the service alone and the blinded messages for the issuer alone: whoever sees one of each for
    the same token, or the blinding factors, can link the device to what it does.

    Args:
        key: The issuer's key.
        challenge: What the tokens are for.
        count: How many.

    Attributes:
        truncated_key_id: Names the key to the issuer.
        blinded_messages: What the issuer signs, 256 bytes each.

    Raises:
        IdentityError: MALFORMED or UNTRUSTED: the key is none.
    """

    def __init__(self, key: PublishedKey, challenge: TokenChallenge, count: int) -> None:
        self._key = key
        self._public = decode_key(key.public_key)
        self._unsigned = [
            Token(secrets.token_bytes(NONCE_BYTES), challenge.digest, key.key_id, b"") for _ in range(count)
        ]
        blinded = [blind_rsa.blind(VARIANT, self._public, token.signed) for token in self._unsigned]
        self._inverses = [each.inverse for each in blinded]
        self.truncated_key_id = key.truncated_key_id
        self.blinded_messages = [each.message for each in blinded]
        forks.register(self)

    def finalize(self, blind_signatures: Sequence[bytes]) -> list[HeldToken]:
        """Turns the issuer's answer into tokens, each of them verified.

        Args:
            blind_signatures: In the order of the blinded messages.

        Raises:
            IdentityError: MALFORMED or TOKEN_INVALID: the answer is not what was asked for. None of it is used, and the
                batch is over.
        """
        unsigned, inverses = self._unsigned, self._inverses
        self._unsigned, self._inverses = [], []
        if not unsigned or len(blind_signatures) != len(unsigned):
            raise IdentityError(
                "MALFORMED", "the issuer's answer has another number of signatures than asked for"
            )
        return [
            self._signed(token, blind_signature, inverse)
            for token, blind_signature, inverse in zip(unsigned, blind_signatures, inverses, strict=True)
        ]

    def after_fork_in_child(self) -> None:
        """Ends the batch, which is the parent's."""
        self._unsigned, self._inverses = [], []

    def _signed(self, token: Token, blind_signature: bytes, inverse: int) -> HeldToken:
        signature = blind_rsa.finalize(VARIANT, self._public, token.signed, blind_signature, inverse)
        whole = Token(token.nonce, token.challenge_digest, token.key_id, signature)
        return HeldToken(whole, self._key.not_before, self._key.not_after)


def choose_key(keys: Iterable[PublishedKey], now: float) -> PublishedKey:
    """The key of the epoch that is now: of those in force, the one that began last.

    Args:
        keys: What the issuer publishes.
        now: Seconds since 1970.

    Raises:
        IdentityError: ISSUER_UNAVAILABLE: none is in force.
    """
    in_force = [key for key in keys if key.not_before <= now < key.not_after]
    if not in_force:
        raise IdentityError("ISSUER_UNAVAILABLE", "the issuer publishes no token key for this time")
    return max(in_force, key=lambda key: key.not_before)


class Wallet:
    """Tokens in memory, each handed out once. It belongs to one event loop, and a forked child finds it empty.

    It is filled before it is empty, in batches of one size and after a random wait, so that neither the number nor the
    time of what the issuer sees tells which tokens the service sees. A wallet that ran empty cannot wait.

    Args:
        refill: Asks the issuer.
        batch: How many to ask for at once.
        low: Ask for more when fewer are left; at most the batch.
        spread: The longest that a refill ahead of need waits, in seconds.
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
        self._refill = refill
        self._batch, self._low, self._spread = batch, low, spread
        self._clock = clock
        self._tokens: deque[HeldToken] = deque()
        self._filling: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        forks.register(self)

    def __len__(self) -> int:
        """How many are left that are not over."""
        now = self._clock()
        return sum(now < held.not_after for held in self._tokens)

    async def take(self) -> Token:
        """A token that nobody got before and nobody gets again.

        Raises:
            IdentityError: The issuer gives none, or the wallet was closed.
        """
        while (token := self._pop()) is None:
            self._hurry.set()
            filling = self._fill(0.0)
            # Cancelling one of those who wait must not cancel the request.
            await asyncio.wait({filling})
            if filling.cancelled():
                raise IdentityError("ISSUER_UNAVAILABLE", "the wallet was closed")
            if (error := filling.exception()) is not None:
                raise _refusal(error) from None
        if len(self) < self._low:
            self._fill(_RANDOM.uniform(0.0, self._spread))
        return token

    async def close(self) -> None:
        """Forgets all tokens, and stops asking."""
        self._tokens.clear()
        filling, self._filling = self._filling, None
        if filling is not None:
            filling.cancel()
            await asyncio.wait({filling})

    def _pop(self) -> Token | None:
        """The next token that is taken now. Those that are over are dropped, and those to come kept."""
        now = self._clock()
        for _ in range(len(self._tokens)):
            held = self._tokens.popleft()
            if held.not_before <= now < held.not_after:
                return held.token
            if now < held.not_before:
                self._tokens.append(held)
        return None

    def _fill(self, wait: float) -> asyncio.Task[None]:
        """The request under way, or a new one after a wait, which `_hurry` cuts short."""
        if self._filling is None or self._filling.done():
            # Who found the wallet empty while the last request was under way did not hurry this one.
            self._hurry.clear()
            self._filling = asyncio.get_running_loop().create_task(self._request(wait))
            self._filling.add_done_callback(self._filled)
        return self._filling

    def _filled(self, filling: asyncio.Task[None]) -> None:
        if self._filling is filling:
            self._filling = None
        if not filling.cancelled() and (error := filling.exception()) is not None:
            _log.warning("anonymous tokens could not be refilled: %s", _refusal(error))

    async def _request(self, wait: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._hurry.wait()
        now = self._clock()
        got = list(await self._refill(self._batch))
        self._tokens.extend(got)
        if not any(held.not_before <= now < held.not_after for held in got):
            raise IdentityError("ISSUER_UNAVAILABLE", "the issuer gave no token that is taken now")

    def after_fork_in_child(self) -> None:
        """Forgets the tokens and the request, which are the parent's."""
        self._tokens, self._filling = deque(), None
        self._hurry = asyncio.Event()


def _refusal(error: BaseException) -> IdentityError:
    """An error as it may be shown; the text of others could quote anything."""
    if isinstance(error, IdentityError):
        return error
    return IdentityError("ISSUER_UNAVAILABLE", f"asking for tokens failed with {type(error).__name__}")
