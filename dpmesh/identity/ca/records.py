"""Records: the issuer's SQLite file, its tables, and how it is made and opened. Enrolments decide what is in it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import ExitStack, closing
from pathlib import Path

from dpmesh import files
from dpmesh.errors import ConfigError, IdentityError
from dpmesh.sqlite_file import connect

VERSION = 1
"""The version of the tables below."""

_BUSY = 5.0  # seconds to wait for another process's lock

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


def create_file(path: Path) -> None:
    """Makes a file with empty tables, for its owner only.

    Raises:
        ConfigError: There is something already.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        raise ConfigError(f"{path} exists already") from None
    with closing(connect(path, "mode=rw", _BUSY)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(f"BEGIN IMMEDIATE; {TABLES} PRAGMA user_version = {VERSION}; COMMIT")


def open_file(path: Path) -> sqlite3.Connection:
    """Opens a file, so that commits survive a power cut.

    Raises:
        IdentityError: MALFORMED: it is not such a file, or others may read it.
    """
    check_private(path)
    try:
        with ExitStack() as unless_opened:
            connection = unless_opened.enter_context(closing(connect(path, "mode=rw", _BUSY)))
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            # Deleted rows are overwritten, so that the file holds no old links of certificates to devices.
            connection.execute("PRAGMA secure_delete = ON")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version != VERSION:
                raise IdentityError("MALFORMED", f"{path} was written by another version of dpmesh")
            # Files from before certificates were counted lack this index.
            connection.execute(
                "CREATE INDEX IF NOT EXISTS certificates_device ON certificates (device, not_after)"
            )
            unless_opened.pop_all()
            return connection
    except sqlite3.Error:
        raise IdentityError("MALFORMED", f"{path} is not the records of an issuer") from None


def check_private(path: Path) -> None:
    """Checks that a file is there, and for its owner only.

    Raises:
        IdentityError: MALFORMED; the text names the path.
    """
    try:
        status = path.stat()
    except OSError:
        raise IdentityError("MALFORMED", f"{path} is missing, or can't be seen") from None
    if files.open_to_others(status):
        raise IdentityError("MALFORMED", f"{path} is open to other users: chmod go= {path}")
