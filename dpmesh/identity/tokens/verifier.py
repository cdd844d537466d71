"""Verifier: the service's side of anonymous tokens. It takes each valid token once, wherever it is shown."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric import rsa

from dpmesh.errors import IdentityError
from dpmesh.identity.tokens import blind_rsa
from dpmesh.identity.tokens.token_format import VARIANT, PublishedKey, Token, TokenChallenge, decode_key
from dpmesh.identity.tokens.token_keys import TokenKeys
from dpmesh.ledger import Ledger

SKEW: Final = 300.0
"""Seconds that a device's clock may be ahead of the service's: its key may have begun already."""

# Seconds between two requests for the issuer's keys. Tokens under made-up keys must not cause a flood of them.
_AGAIN: Final = 60.0
_RETRY: Final = 5.0
# Seconds after which keys that are known are asked for again, since the issuer may have taken one back; and for how
# long they are taken while it does not answer.
_STALE: Final = 300.0
_TRUSTED: Final = 3600.0

log = logging.getLogger("dpmesh")

Fetch = Callable[[], Awaitable[Iterable[PublishedKey]]]
"""Asks the issuer for its keys. Raises IdentityError where it doesn't answer."""


class _Key(NamedTuple):
    public: rsa.RSAPublicKey
    not_before: float
    not_after: float


class Verifier:
    """Checks tokens: type, challenge, key, signature, and that the ledger has not seen them.

    Services that take each other's tokens share the ledger; it alone says what is spent.

    Args:
        challenge: What the tokens must be for.
        fetch: Asks the issuer for its keys: when a token comes under one that is not known, and every five minutes
            for one that it may have taken back. Where it does not answer, known keys are taken for an hour.
        ledger: Where spent tokens are kept; open.
        clock: Seconds since 1970.

    Attributes:
        challenge: See above.
        ledger: See above.
    """

    def __init__(
        self,
        challenge: TokenChallenge,
        fetch: Fetch,
        ledger: Ledger,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.challenge = challenge
        self.ledger = ledger
        self._fetch = fetch
        self._clock = clock
        self._keys: dict[bytes, _Key] = {}
        # On the monotonic clock: when unknown and when known keys may be asked for again, and are taken no more.
        self._due = self._stale = self._trusted = 0.0
        self._failed = False
        self._asking: asyncio.Task[None] | None = None

    async def redeem(self, token: Token) -> None:
        """Takes a token, or refuses it. What was taken, or may have been, is spent.

        Raises:
            IdentityError: TOKEN_INVALID, TOKEN_SPENT, or ISSUER_UNAVAILABLE: its key can't be known now.
            LedgerError: It can't be known whether the token is spent.
        """
        if token.challenge_digest != self.challenge.digest:
            raise IdentityError("TOKEN_INVALID", "the token is for another service or issuer")
        key = await self._key(token.key_id)
        if not key.not_before - SKEW <= self._clock() < key.not_after:
            raise IdentityError("TOKEN_INVALID", "the token's epoch is over, or has not begun")
        if not blind_rsa.verify(VARIANT, key.public, token.signed, token.authenticator):
            raise IdentityError("TOKEN_INVALID", "the token is not signed by the issuer")
        # Only what the issuer signed: nobody else can fill the ledger.
        if not await self.ledger.redeem_once(_name(token), key.not_after):
            raise IdentityError("TOKEN_SPENT", "the token was redeemed before")

    async def _key(self, key_id: bytes) -> _Key:
        now = time.monotonic()
        known = key_id in self._keys and (not self._failed or now < self._trusted)
        if now >= (self._stale if known else self._due):
            asking = self._ask()
            if not known:
                # Shielded: who cancels an RPC must not end what all others wait for, and so have it begun anew.
                await asyncio.shield(asking)
        key = self._keys.get(key_id)
        if key is not None and (not self._failed or time.monotonic() < self._trusted):
            return key
        if self._failed:
            raise IdentityError("ISSUER_UNAVAILABLE", "the issuer's token keys can't be had now")
        raise IdentityError("TOKEN_INVALID", "the token's key is not one of the issuer's")

    def _ask(self) -> asyncio.Task[None]:
        """The request for the issuer's keys that is under way; one for all."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(
                self._refresh(), context=contextvars.Context()
            )
        return self._asking

    async def _refresh(self) -> None:
        try:
            keys = {key.key_id: _Key(decode_key(key[0]), key[1], key[2]) for key in await self._fetch()}
        except Exception as error:  # Whatever it is, its text stays here.
            if not isinstance(error, IdentityError):
                log.error("asking for token keys failed with %s", type(error).__name__)  # noqa: TRY400
            self._failed = True
            self._due = self._stale = time.monotonic() + _RETRY
        else:
            # All that the issuer publishes and nothing else: a key that it took back is not taken any more.
            self._keys = keys
            self._failed = False
            now = time.monotonic()
            self._due, self._stale, self._trusted = now + _AGAIN, now + _STALE, now + _TRUSTED


def published_by(keys: TokenKeys, clock: Callable[[], float] = time.time) -> Fetch:
    """What gives a verifier the keys of an issuer in the same process, or of its file."""

    async def fetch() -> Iterable[PublishedKey]:
        # A new key takes its time to make.
        return await asyncio.to_thread(lambda: keys.published(clock()))

    return fetch


def _name(token: Token) -> bytes:
    """The name under which a token is spent: of what is signed, for a signature could have another form."""
    return hashlib.sha256(b"dpmesh token\0" + token.signed).digest()
