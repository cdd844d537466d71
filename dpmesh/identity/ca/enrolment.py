"""Enrolments: what the issuer must not forget. One-time tokens, devices, their certificates, their allowances.

The records link certificates to devices for as long as the certificates live; nothing else in a trust domain does. Of a
device they hold a random number, of a token its hash. What has expired is dropped.
"""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Self

from dpmesh.errors import ConfigError, IdentityError
from dpmesh.identity.ca import records
from dpmesh.identity.ca.proof import Proven
from dpmesh.sqlite_file import transaction

TOKEN_LIFE = 3600.0
"""Seconds for which an enrolment token can be used."""

BAD_TOKEN = "the enrolment token is unknown, used or over: ask the issuer for a new one"  # noqa: S105
NOT_ENROLLED = "the device is not enrolled, or no longer: enrol with a new token"
REPLAYED = "the request's proof was used before: prove anew"
USED_UP = "the device has had all anonymous tokens that the epoch allows"
TOO_MANY = "the device has too many certificates in force: renew when one of them has ended"
BROKEN = "the issuer's records can't be read or written now"

# Seconds that allowances outlive their epoch: setting the clock forward and back refills none.
_KEPT = 30 * 86_400.0
_MOST_CERTIFICATES = 256  # in force for one device; with lives of an hour it could rotate every 15 s
_RANDOM = 16  # bytes of tokens and device ids: 128 bits


class Invitation(NamedTuple):
    """A one-time token, and the device that enrols with it.

    Attributes:
        token: For the device only; 128 random bits as 22 characters that are safe in URLs.
        device: For the operator, who revokes the device by it; 32 hex digits that never leave the issuer.
    """

    token: str
    device: str

    def __repr__(self) -> str:
        return "Invitation()"


class Counts(NamedTuple):
    """How many devices, certificates and tokens there are. It identifies none.

    Attributes:
        devices: Devices that were invited, whether or not they enrolled.
        revoked: How many of these are revoked.
        certificates: Certificates in force.
        invitations: Tokens that can still be used.
    """

    devices: int
    revoked: int
    certificates: int
    invitations: int


class Enrolments:
    """The issuer's records in an SQLite file. What a method did survives a power cut.

    Several processes may share the file. Any thread may call the methods, which block for about a commit, and raise
    IdentityError with ISSUER_UNAVAILABLE if the file can't be read or written. Times are in seconds since 1970.

    Args:
        path: The file, made by `create`.

    Raises:
        IdentityError: MALFORMED: it is not such a file, or others may read it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path).absolute()
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._connection = records.open_file(self._path)

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> Self:
        """Makes the file, for its owner only, and opens it.

        Raises:
            ConfigError: There is something already.
        """
        records.create_file(Path(path))
        return cls(path)

    def close(self) -> None:
        """Closes the file."""
        with self._lock, suppress(sqlite3.Error):
            self._connection.close()

    def invite(
        self, *, now: float, life: float = TOKEN_LIFE, device: str | None = None, server: bool = False
    ) -> Invitation:
        """Makes a one-time token, for a new device or for one that lost its certificate.

        Args:
            now: The time.
            life: For how many seconds the token can be used.
            device: A device that was invited before, which keeps its allowances; a new one by default.
            server: Whether the device is a server. Its renewals are a server's certificates, too.

        Raises:
            IdentityError: REFUSED: there is no such device, or it is revoked.
            ConfigError: The life is not positive.
        """
        if not 0 < life < math.inf:
            raise ConfigError("a token's life must be a positive number of seconds")
        token = secrets.token_urlsafe(_RANDOM)
        with self._transaction() as connection:
            _prune(connection, now)
            if device is None:
                row = secrets.token_bytes(_RANDOM)
                connection.execute("INSERT INTO devices (device) VALUES (?)", (row,))
            else:
                row = _device(device)
                query = "SELECT 1 FROM devices WHERE device = ? AND NOT revoked"
                if connection.execute(query, (row,)).fetchone() is None:
                    raise IdentityError("REFUSED", "there is no such device, or it is revoked")
            connection.execute(
                "INSERT INTO tokens VALUES (?, ?, ?, ?)", (_hash(token), row, now + life, server)
            )
        return Invitation(token, row.hex())

    def is_server(self, token: str) -> bool:
        """Whether a token is for a server. An unknown token is not."""
        with self._transaction() as connection:
            query = "SELECT 1 FROM tokens WHERE hash = ? AND server"
            return connection.execute(query, (_hash(token),)).fetchone() is not None

    def enrol(self, token: str, fingerprint: bytes, not_after: float, *, now: float) -> None:
        """Uses a token up, and records the device of the certificate that it was used for.

        The certificate, whose SHA-256 is the fingerprint, must not be handed out before this returns.

        Raises:
            IdentityError: REFUSED: the token is unknown, used or expired, or its device is revoked.
        """
        with self._transaction() as connection:
            _prune(connection, now)
            row = connection.execute(
                "SELECT device FROM tokens JOIN devices USING (device) "
                "WHERE hash = ? AND ? < not_after AND NOT revoked",
                (_hash(token), now),
            ).fetchone()
            if row is None:
                raise IdentityError("REFUSED", BAD_TOKEN)
            connection.execute("DELETE FROM tokens WHERE hash = ?", (_hash(token),))
            connection.execute("INSERT INTO certificates VALUES (?, ?, ?)", (fingerprint, *row, not_after))

    def renew(self, proof: Proven, fingerprint: bytes, not_after: float, *, now: float) -> None:
        """Records that a new certificate belongs to the device that proves to have another one.

        The new certificate, whose SHA-256 is the fingerprint, must not be handed out before this returns.

        Raises:
            IdentityError: REFUSED: the device is unknown or revoked, or the proof was used before. RATE_LIMITED: the
                device has too many certificates in force.
        """
        with self._transaction() as connection:
            _prune(connection, now)
            device = _proving_device(connection, proof, now)
            query = "SELECT count(*) FROM certificates WHERE device = ? AND ? < not_after"
            (in_force,) = connection.execute(query, (device, now)).fetchone()
            if in_force >= _MOST_CERTIFICATES:
                raise IdentityError("RATE_LIMITED", TOO_MANY)
            connection.execute("INSERT INTO certificates VALUES (?, ?, ?)", (fingerprint, device, not_after))

    def allow(
        self, proof: Proven, epoch: bytes, tokens: int, most: int, not_after: float, *, now: float
    ) -> None:
        """Takes anonymous tokens from a device's allowance. They count whether or not they are signed afterwards.

        Args:
            proof: A proof by a certificate of the device.
            epoch: The epoch's name.
            tokens: How many tokens, positive.
            most: How many tokens a device may have in an epoch.
            not_after: When the epoch ends.
            now: The time.

        Raises:
            IdentityError: RATE_LIMITED: the allowance does not cover them, and none is taken. REFUSED: as in `renew`.
        """
        with self._transaction() as connection:
            _prune(connection, now)
            device = _proving_device(connection, proof, now)
            row = connection.execute(
                "SELECT tokens FROM allowances WHERE device = ? AND epoch = ?", (device, epoch)
            ).fetchone()
            total = tokens + (0 if row is None else row[0])
            if total > most:
                raise IdentityError("RATE_LIMITED", USED_UP)
            connection.execute(
                "INSERT INTO allowances VALUES (?, ?, ?, ?) "
                "ON CONFLICT (device, epoch) DO UPDATE SET tokens = excluded.tokens",
                (device, epoch, total, not_after + _KEPT),
            )

    def revoke(self, device: str) -> None:
        """Revokes a device: it can neither enrol nor renew. Its certificates stay in force until they expire.

        Raises:
            IdentityError: REFUSED: there is no such device.
        """
        with self._transaction() as connection:
            update = "UPDATE devices SET revoked = 1 WHERE device = ?"
            if connection.execute(update, (_device(device),)).rowcount != 1:
                raise IdentityError("REFUSED", "there is no such device")

    def counts(self, now: float) -> Counts:
        """How many devices, certificates and tokens there are."""
        with self._transaction() as connection:
            row = connection.execute(
                "SELECT (SELECT count(*) FROM devices), (SELECT count(*) FROM devices WHERE revoked), "
                "(SELECT count(*) FROM certificates WHERE not_after > :now), "
                "(SELECT count(*) FROM tokens WHERE not_after > :now)",
                {"now": now},
            ).fetchone()
        return Counts(*row)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        if os.getpid() != self._pid:
            # SQLite does not survive a fork: the child would rely on locks that only the parent holds.
            raise IdentityError("ISSUER_UNAVAILABLE", "the issuer's records were opened before a fork")
        with self._lock:
            try:
                with transaction(self._connection):
                    yield self._connection
            except (sqlite3.Error, OSError):
                raise IdentityError("ISSUER_UNAVAILABLE", BROKEN) from None


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _device(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise IdentityError("REFUSED", "a device is named by 32 hex digits") from None


def _proving_device(connection: sqlite3.Connection, proof: Proven, now: float) -> bytes:
    """The device that made a proof. Uses the proof up."""
    row = connection.execute(
        "SELECT device FROM certificates JOIN devices USING (device) "
        "WHERE fingerprint = ? AND ? < not_after AND NOT revoked",
        (proof.fingerprint, now),
    ).fetchone()
    if row is None:
        raise IdentityError("REFUSED", NOT_ENROLLED)
    try:
        connection.execute("INSERT INTO proofs VALUES (?, ?)", (proof.digest, proof.not_after))
    except sqlite3.IntegrityError:
        raise IdentityError("REFUSED", REPLAYED) from None
    return bytes(row[0])


def _prune(connection: sqlite3.Connection, now: float) -> None:
    """Drops what has expired."""
    for table in ("tokens", "certificates", "proofs", "allowances"):
        connection.execute(f"DELETE FROM {table} WHERE not_after <= ?", (now,))  # noqa: S608 - constants
