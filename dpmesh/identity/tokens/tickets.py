"""Tickets: a channel that redeems a token gets a ticket, which admits all RPCs of this channel and of no other."""

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
"""Seconds for which a ticket is valid; longer than most identities live."""

_NONCE_BYTES: Final = 16
_BODY_BYTES: Final = _NONCE_BYTES + 8 + 4
_MAC_BYTES: Final = 32
_CHARACTERS: Final = (_BODY_BYTES + _MAC_BYTES) // 3 * 4  # 60 bytes: no padding


class Tickets:
    """Issues and checks tickets. A ticket is a nonce, its end, its life, and a MAC over these and its holder.

    The holder is the certificate of the channel that redeemed the token; the ticket is not valid under any other. If
    peers show no certificate, anybody who has the ticket can use it, and it is as secret as the connection.

    Args:
        secret: 32 bytes that only the replicas of the service have: the ledger's secret.
        service: SHA-256 of the challenge of the tokens. The tickets of another service are not valid here.
        life: Seconds for which a ticket is valid.
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
        """Makes a ticket for a peer that has just redeemed a token.

        Args:
            holder: SHA-256 of the peer's certificate, or b"" if it shows none.
        """
        ends = math.floor(self._clock()) + self._life
        body = secrets.token_bytes(_NONCE_BYTES) + ends.to_bytes(8) + self._life.to_bytes(4)
        return base64.urlsafe_b64encode(body + self._mac(body, holder)).decode()

    def check(self, ticket: str, holder: bytes) -> None:
        """Checks a ticket.

        Raises:
            IdentityError: TOKEN_INVALID: it is not a ticket of this service, has another holder, or has expired.
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
    """The life of a ticket, in seconds from its issue. Its end is by the server's clock, so a client can't use that.

    Raises:
        IdentityError: TOKEN_INVALID: it is not a ticket.
    """
    return float(int.from_bytes(_decoded(ticket)[_NONCE_BYTES + 8 : _BODY_BYTES]))


def _decoded(ticket: str) -> bytes:
    try:
        if len(ticket) == _CHARACTERS:
            return base64.b64decode(ticket.encode(), b"-_", validate=True)
    except (binascii.Error, UnicodeError):
        pass
    raise IdentityError("TOKEN_INVALID", "the ticket has not the form of one")
