"""Enrolments: what the issuer must not forget. One-time tokens, devices, their certificates, their allowances.

The file ties certificates to devices for as long as they live; nothing else in a trust domain does. It says nothing
about a device but a random number, keeps no token but as a hash, and drops what is over.
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
from dpmesh.sqlite_file import connect, transaction

VERSION = 1
"""The version of the tables below."""
TOKEN_LIFE = 3600.0
"""Seconds that an enrolment token can wait for its use."""

BAD_TOKEN = "the enrolment token is unknown, used or over: ask the issuer for a new one"  # noqa: S105
NOT_ENROLLED = "the device is not enrolled, or no longer: enrol with a new token"
REPLAYED = "the request's proof was used before: prove anew"
USED_UP = "the device has had all anonymous tokens that the epoch allows"
TOO_MANY = "the device has too many certificates in force: renew when one of them has ended"
BROKEN = "the issuer's records can't be read or written now"

_KEPT = (
    30 * 86_400.0
)  # seconds that allowances outlive their epoch: a clock set forward and back refills none
_MOST_CERTIFICATES = 256  # of a device in force; one that rotates every 15 s of an hour's life has fewer
_RANDOM = 16  # bytes: 128 bits, of tokens and device ids
_BUSY = 5.0  # seconds to wait for another process' lock

TABLES = """
CREATE TABLE devices (
    device  BLOB    PRIMARY KEY CHECK (length(device) = 16),
    revoked INTEGER NOT NULL DEFAULT 0 CHECK (revoked IN (0, 1))
) WITHOUT ROWID;
CREATE TABLE tokens (
    hash      BLOB    PRIMARY KEY CHECK (length(hash) = 32),
    device    BLOB    NOT NULL REFERENCES devices (device),
    not_after REAL    NOT NULL,
    server    INTEGER NOT NULL CHECK (server IN (0, 1))
) WITHOUT ROWID;
CREATE INDEX tokens_end ON tokens (not_after);
CREATE TABLE certificates (
    fingerprint BLOB PRIMARY KEY CHECK (length(fingerprint) = 32),
    device      BLOB NOT NULL REFERENCES devices (device),
    not_after   REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX certificates_end ON certificates (not_after);
CREATE INDEX certificates_device ON certificates (device, not_after);
CREATE TABLE proofs (
    digest    BLOB PRIMARY KEY CHECK (length(digest) = 32),
    not_after REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX proofs_end ON proofs (not_after);
CREATE TABLE allowances (
    device    BLOB    NOT NULL REFERENCES devices (device),
    epoch     BLOB    NOT NULL,
    tokens    INTEGER NOT NULL CHECK (tokens >= 0),
    not_after REAL    NOT NULL,
    PRIMARY KEY (device, epoch)
) WITHOUT ROWID;
CREATE INDEX allowances_end ON allowances (not_after);
"""


class Invitation(NamedTuple):
    """A one-time token, and the device that enrols with it.

    Attributes:
        token: For the device, and nobody else; 128 random bits as 22 characters that are safe in URLs.
        device: For the operator, to revoke the device by: 32 hex digits that never leave the issuer.
    """

    token: str
    device: str

    def __repr__(self) -> str:
        return "Invitation()"


class Counts(NamedTuple):
    """How many there are; who they are is nobody's business.

    Attributes:
        devices: Devices that were invited, whether they came or not.
        revoked: Those of them that were revoked.
        certificates: Certificates in force.
        invitations: Tokens that wait for their use.
    """

    devices: int
    revoked: int
    certificates: int
    invitations: int


class Proof(NamedTuple):
    """A proof of possession, which must not serve twice.

    Attributes:
        fingerprint: SHA-256 of the certificate.
        digest: SHA-256 of what was signed.
        not_after: When a replay would be refused anyway, in seconds since 1970.
    """

    fingerprint: bytes
    digest: bytes
    not_after: float


class Enrolments:
    """The records in an SQLite file: write-ahead log, synchronous=FULL, so what a method did survives a power cut.

    Several processes may share the file. Methods block for about a commit and may be called in any thread. Times are
    in seconds since 1970.

    Args:
        path: The file, made by `create`.

    Raises:
        IdentityError: MALFORMED: it is no such file, or others may read it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path).absolute()
        self._pid = os.getpid()
        self._lock = threading.Lock()
        check_private(self._path)
        try:
            self._connection = _open(self._path)
        except sqlite3.Error:
            raise IdentityError("MALFORMED", f"{self._path} is not the records of an issuer") from None

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> Self:
        """Makes the file, for its owner only.

        Raises:
            ConfigError: There is something already.
        """
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            raise ConfigError(f"{path} exists already") from None
        connection = connect(Path(path), "mode=rw", _BUSY)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(f"BEGIN IMMEDIATE; {TABLES} PRAGMA user_version = {VERSION}; COMMIT")
        finally:
            connection.close()
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
            life: How long the token can wait for its use, in seconds.
            device: One that was invited before; its allowances go on.
            server: Its certificates are a server's, and so are those that they renew.

        Raises:
            IdentityError: REFUSED: there is no such device, or it is revoked. ISSUER_UNAVAILABLE.
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
                row = _known(connection, _device(device))
            connection.execute(
                "INSERT INTO tokens VALUES (?, ?, ?, ?)", (_hash(token), row, now + life, server)
            )
        return Invitation(token, row.hex())

    def is_server(self, token: str) -> bool:
        """Whether a token is for a server; of an unknown one, no.

        Raises:
            IdentityError: ISSUER_UNAVAILABLE.
        """
        with self._transaction() as connection:
            query = "SELECT 1 FROM tokens WHERE hash = ? AND server"
            return connection.execute(query, (_hash(token),)).fetchone() is not None

    def enrol(self, token: str, fingerprint: bytes, not_after: float, *, now: float) -> None:
        """Uses a token up, and notes whose the certificate is that it was used for.

        Args:
            token: Text from anywhere.
            fingerprint: SHA-256 of the certificate, which must not be handed out before this returns.
            not_after: When the certificate ends.
            now: The time.

        Raises:
            IdentityError: REFUSED: it is unknown, used or over, or its device is revoked. ISSUER_UNAVAILABLE.
        """
        with self._transaction() as connection:
            _prune(connection, now)
            found = connection.execute(
                "SELECT device FROM tokens JOIN devices USING (device) "
                "WHERE hash = ? AND ? < not_after AND NOT revoked",
                (_hash(token), now),
            ).fetchone()
            if found is None:
                raise IdentityError("REFUSED", BAD_TOKEN)
            connection.execute("DELETE FROM tokens WHERE hash = ?", (_hash(token),))
            connection.execute("INSERT INTO certificates VALUES (?, ?, ?)", (fingerprint, *found, not_after))

    def renew(self, proof: Proof, fingerprint: bytes, not_after: float, *, now: float) -> None:
        """Notes that a certificate is the same device's as the one that proves it.

        Args:
            proof: By a certificate of a device.
            fingerprint: SHA-256 of the new certificate, which must not be handed out before this returns.
            not_after: When the new certificate ends.
            now: The time.

        Raises:
            IdentityError: REFUSED: the device is not known, or revoked, or the proof was used. RATE_LIMITED: it has too
                many certificates in force. ISSUER_UNAVAILABLE.
        """
        with self._transaction() as connection:
            _prune(connection, now)
            device = _prover(connection, proof, now)
            query = "SELECT count(*) FROM certificates WHERE device = ? AND ? < not_after"
            (in_force,) = connection.execute(query, (device, now)).fetchone()
            if in_force >= _MOST_CERTIFICATES:
                raise IdentityError("RATE_LIMITED", TOO_MANY)
            connection.execute("INSERT INTO certificates VALUES (?, ?, ?)", (fingerprint, device, not_after))

    def allow(
        self, proof: Proof, epoch: bytes, tokens: int, most: int, not_after: float, *, now: float
    ) -> None:
        """Takes tokens from a device's allowance. They count whether or not they are signed afterwards.

        Args:
            proof: By a certificate of a device.
            epoch: What the epoch is called.
            tokens: How many, positive.
            most: How many a device may have of an epoch.
            not_after: When the epoch is over, and the count forgotten.
            now: The time.

        Raises:
            IdentityError: RATE_LIMITED: that would be more; none is taken. REFUSED: as in `renew`. ISSUER_UNAVAILABLE.
        """
        with self._transaction() as connection:
            _prune(connection, now)
            device = _prover(connection, proof, now)
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
        """Ends a device: no token of it enrols, no certificate of it renews. Those in force last until they end.

        Args:
            device: As in its invitation.

        Raises:
            IdentityError: REFUSED: there is no such device. ISSUER_UNAVAILABLE.
        """
        with self._transaction() as connection:
            changed = connection.execute(
                "UPDATE devices SET revoked = 1 WHERE device = ?", (_device(device),)
            )
            if changed.rowcount != 1:
                raise IdentityError("REFUSED", "there is no such device")

    def counts(self, now: float) -> Counts:
        """How many devices, certificates and tokens there are.

        Raises:
            IdentityError: ISSUER_UNAVAILABLE.
        """
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
            # SQLite can't be carried across a fork: the child would believe in locks that only the parent holds.
            raise IdentityError("ISSUER_UNAVAILABLE", "the issuer's records were opened before a fork")
        with self._lock:
            try:
                with transaction(self._connection):
                    yield self._connection
            except (sqlite3.Error, OSError):
                raise IdentityError("ISSUER_UNAVAILABLE", BROKEN) from None


def check_private(path: Path) -> None:
    """Checks that a file is there, and for its owner only.

    Raises:
        IdentityError: MALFORMED; the text names the path.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        raise IdentityError("MALFORMED", f"{path} is missing, or can't be seen") from None
    if mode & 0o077:
        raise IdentityError("MALFORMED", f"{path} is open to other users: chmod go= {path}")


def _open(path: Path) -> sqlite3.Connection:
    connection = connect(path, "mode=rw", _BUSY)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        # What is dropped is overwritten, so that old ties of certificates to devices are gone from the file.
        connection.execute("PRAGMA secure_delete = ON")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == VERSION:
            # Files that were made before certificates were counted lack it.
            connection.execute(
                "CREATE INDEX IF NOT EXISTS certificates_device ON certificates (device, not_after)"
            )
    except BaseException:
        connection.close()
        raise
    if version != VERSION:
        connection.close()
        raise IdentityError("MALFORMED", f"{path} was written by another version of dpmesh")
    return connection


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _device(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise IdentityError("REFUSED", "a device is named by 32 hex digits") from None


def _known(connection: sqlite3.Connection, device: bytes) -> bytes:
    row = connection.execute("SELECT 1 FROM devices WHERE device = ? AND NOT revoked", (device,)).fetchone()
    if row is None:
        raise IdentityError("REFUSED", "there is no such device, or it is revoked")
    return device


def _prover(connection: sqlite3.Connection, proof: Proof, now: float) -> bytes:
    """The device that proves, whose proof is used up by that."""
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
    """Drops what is over."""
    for table in ("tokens", "certificates", "proofs", "allowances"):
        connection.execute(f"DELETE FROM {table} WHERE not_after <= ?", (now,))  # noqa: S608 - constants
