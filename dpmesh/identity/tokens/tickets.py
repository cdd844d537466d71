"""Tickets: one redeemed token admits all RPCs of its channel, and of no other."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
import secrets
import time
from collections.abc import Callable
from typing import Final

from dpmesh.errors import ConfigError, IdentityError

LIFE: Final = 3600.0
"""Seconds that a ticket admits; longer than most identities live."""

_NONCE_BYTES: Final = 16
_BODY_BYTES: Final = _NONCE_BYTES + 8 + 4
_MAC_BYTES: Final = 32
_CHARACTERS: Final = (_BODY_BYTES + _MAC_BYTES) // 3 * 4  # 60 bytes: no padding


class Tickets:
    """Issues and checks tickets: a nonce, when it ends, how long it was to live, and a MAC over that and its holder.

    A ticket is made for the certificate of the channel that redeemed the token, and admits under no other. Where peers
    show no certificate, whoever has the ticket can use it, and it is as secret as the connection.

    Args:
        secret: 32 bytes that all replicas of the service have, and nobody else: the ledger's.
        service: SHA-256 of the challenge that the tokens are for: another service's tickets admit here to nothing.
        life: Seconds that a ticket admits.
        clock: Seconds since 1970.

    Raises:
        ConfigError: The life is not a positive number of seconds.
    """

    def __init__(
        self,
        secret: bytes,
        service: bytes,
        *,
        life: float = LIFE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not 1 <= life < 1 << 32:
            raise ConfigError(f"a ticket's life must be at least a second, not {life}")
        self._key = hashlib.blake2b(service, digest_size=32, key=secret, person=b"dpmesh ticket").digest()
        self._life = int(life)
        self._clock = clock

    def issue(self, holder: bytes) -> str:
        """A ticket for whoever has just redeemed a token.

        Args:
            holder: SHA-256 of the peer's certificate, or b"" where there is none.
        """
        ends = math.floor(self._clock()) + self._life
        body = secrets.token_bytes(_NONCE_BYTES) + ends.to_bytes(8) + self._life.to_bytes(4)
        return base64.urlsafe_b64encode(body + self._mac(body, holder)).decode()

    def check(self, ticket: str, holder: bytes) -> None:
        """Checks a ticket.

        Raises:
            IdentityError: TOKEN_INVALID: it is none of this service, of another holder, or over.
        """
        data = _decoded(ticket)
        body, mac = data[:_BODY_BYTES], data[_BODY_BYTES:]
        if not hmac.compare_digest(mac, self._mac(body, holder)):
            raise IdentityError(
                "TOKEN_INVALID", "the ticket is not one of this service, or another channel's"
            )
        if not self._clock() < int.from_bytes(body[_NONCE_BYTES : _NONCE_BYTES + 8]):
            raise IdentityError("TOKEN_INVALID", "the ticket is over")

    def _mac(self, body: bytes, holder: bytes) -> bytes:
        return hashlib.blake2b(body + holder, digest_size=_MAC_BYTES, key=self._key).digest()


def ticket_life(ticket: str) -> float:
    """How many seconds a ticket lives from when it is issued; its end is by the server's clock.

    Raises:
        IdentityError: MALFORMED: it is none.
    """
    try:
        return float(int.from_bytes(_decoded(ticket)[_NONCE_BYTES + 8 : _BODY_BYTES]))
    except IdentityError:
        raise IdentityError("MALFORMED", "the server's ticket is none") from None


def _decoded(ticket: str) -> bytes:
    try:
        if len(ticket) == _CHARACTERS:
            return base64.b64decode(ticket.encode(), b"-_", validate=True)
    except (binascii.Error, UnicodeError):
        pass
    raise IdentityError("TOKEN_INVALID", "the ticket has not the form of one")
