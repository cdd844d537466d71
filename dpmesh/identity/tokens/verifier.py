"""Verifier: the service's side of anonymous tokens. It accepts each valid token once, wherever it is shown."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from cryptography.hazmat.primitives.asymmetric import rsa

from dpmesh.errors import IdentityError
from dpmesh.identity.tokens import blind_rsa
from dpmesh.identity.tokens.format import VARIANT, PublishedKey, Token, TokenChallenge, decode_key
from dpmesh.identity.tokens.keys import TokenKeys
from dpmesh.ledger import Ledger

SKEW: Final = 300.0
"""Seconds that a device's clock may be ahead of the service's: its epoch may have begun already."""

# Seconds between two requests for the issuer's keys. Tokens with made-up key ids must not cause a flood of requests.
_UNKNOWN_AGAIN: Final = 60.0
_FAILED_AGAIN: Final = 5.0
# Seconds after which known keys are fetched again, since the issuer may have withdrawn one; and for how long known keys
# are trusted while the issuer does not answer.
_KNOWN_AGAIN: Final = 300.0
_TRUSTED: Final = 3600.0

log = logging.getLogger("dpmesh")


Fetch = Callable[[], Awaitable[Iterable[PublishedKey]]]
"""Asks the issuer for all its published keys. Raises IdentityError if the issuer does not answer."""


class Verifier:
    """Checks tokens: type, challenge, key, signature, and that the ledger has not seen them.

    Services that accept each other's tokens share the ledger, which alone decides what is spent.

    Args:
        challenge: What the tokens must be for.
        fetch: Asks the issuer for its keys: when a token has an unknown key, and every five minutes, because the
            issuer may have withdrawn a key. If the issuer does not answer, known keys are trusted for an hour.
        ledger: Where spent tokens are recorded; open.
        clock: Seconds since 1970.

    Attributes:
        challenge: As given.
        ledger: As given.
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
        self._keys: dict[bytes, tuple[rsa.RSAPublicKey, PublishedKey]] = {}
        # In monotonic seconds: when to fetch unknown keys, when to fetch known keys, and until when those are trusted.
        self._unknown_due = self._known_due = self._trusted_until = 0.0
        self._failed = False
        self._refreshing: asyncio.Task[None] | None = None

    async def redeem(self, token: Token) -> None:
        """Accepts a token and spends it, or refuses it.

        Raises:
            IdentityError: TOKEN_INVALID, TOKEN_SPENT, or ISSUER_UNAVAILABLE: the token's key can't be fetched now.
            LedgerError: The ledger can't tell whether the token was spent. It may be spent now.
        """
        if token.challenge_digest != self.challenge.digest:
            raise IdentityError("TOKEN_INVALID", "the token is for another service or issuer")
        public, key = await self._key(token.key_id)
        if not key.not_before - SKEW <= self._clock() < key.not_after:
            raise IdentityError("TOKEN_INVALID", "the token's epoch is over, or has not begun")
        if not blind_rsa.verify(VARIANT, public, token.signed, token.authenticator):
            raise IdentityError("TOKEN_INVALID", "the token is not signed by the issuer")
        # Without the signature, because that could have another form.
        name = hashlib.sha256(b"dpmesh token\0" + token.signed).digest()
        # Last, so that only tokens that the issuer signed fill the ledger.
        if not await self.ledger.redeem_once(name, key.not_after):
            raise IdentityError("TOKEN_SPENT", "the token was redeemed before")

    async def _key(self, key_id: bytes) -> tuple[rsa.RSAPublicKey, PublishedKey]:
        now = time.monotonic()
        known = key_id in self._keys and (not self._failed or now < self._trusted_until)
        if now >= (self._known_due if known else self._unknown_due):
            refreshing = self._refresh()
            if not known:
                # Shielded: a cancelled RPC must not cancel the request that other RPCs wait for.
                await asyncio.shield(refreshing)
        key = self._keys.get(key_id)
        if key is not None and (not self._failed or time.monotonic() < self._trusted_until):
            return key
        if self._failed:
            raise IdentityError("ISSUER_UNAVAILABLE", "the issuer's token keys can't be had now")
        raise IdentityError("TOKEN_INVALID", "the token's key is not one of the issuer's")

    def _refresh(self) -> asyncio.Task[None]:
        """The request for the issuer's keys that is under way, or else a new one."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.get_running_loop().create_task(
                self._fetch_keys(), context=contextvars.Context()
            )
        return self._refreshing

    async def _fetch_keys(self) -> None:
        try:
            keys = {key.key_id: (decode_key(key.public_key), key) for key in await self._fetch()}
        except Exception as error:  # Its text could quote anything.
            if not isinstance(error, IdentityError):
                log.error("asking for token keys failed with %s", type(error).__name__)  # noqa: TRY400
            self._failed = True
            self._unknown_due = self._known_due = time.monotonic() + _FAILED_AGAIN
        else:
            # Replaced as a whole: a key that the issuer has withdrawn is not accepted any more.
            self._keys = keys
            self._failed = False
            now = time.monotonic()
            self._unknown_due, self._known_due = now + _UNKNOWN_AGAIN, now + _KNOWN_AGAIN
            self._trusted_until = now + _TRUSTED


def published_by(keys: TokenKeys, clock: Callable[[], float] = time.time) -> Fetch:
    """Returns a `Fetch` for the keys of an issuer in this process, or of its file."""

    async def fetch() -> Iterable[PublishedKey]:
        # In a thread, because making a new key takes long.
        return await asyncio.to_thread(lambda: keys.published(clock()))

    return fetch
