"""The tables of an SQLite ledger: how they are made, upgraded and recognized."""

from __future__ import annotations

import os
import secrets
import sqlite3
import stat
from contextlib import closing, suppress
from pathlib import Path

from dpmesh import files, sqlite_file
from dpmesh.errors import LedgerError
from dpmesh.ledger.charge_log import EntryKind, Posting
from dpmesh.ledger.sqlite import access, queries, rollback_guard, wal
from dpmesh.ledger.store import SECRET_BYTES

VERSION = 5
"""The version of the tables below. Older files are brought up to date when they are opened.

Version 5 has the tables of version 4. Since then a budget's window, epsilon and delta are those of the window in force,
which a holder of an older version would change in its midst.
"""

# STRICT came with SQLite 3.37. Before that a column takes any type, but dpmesh writes only the declared ones.
_STRICT = "STRICT" if sqlite3.sqlite_version_info >= (3, 37) else ""
_STRICT_KEYED = f"{_STRICT}, WITHOUT ROWID" if _STRICT else "WITHOUT ROWID"

BUDGETS = f"""
CREATE TABLE meta (
    id             INTEGER PRIMARY KEY CHECK (id = 1),
    schema_version INTEGER NOT NULL,
    secret         BLOB    NOT NULL CHECK (length(secret) = 32)
) {_STRICT};
CREATE TABLE budgets (
    id           INTEGER PRIMARY KEY,
    name         TEXT    NOT NULL UNIQUE,
    key          TEXT    NOT NULL,
    accounting   TEXT    NOT NULL,
    window       INTEGER,
    epsilon      REAL    NOT NULL,
    delta        REAL    NOT NULL,
    on_exhausted TEXT    NOT NULL,
    window_start INTEGER NOT NULL CHECK (window_start >= 0)
) {_STRICT};
"""
# Since version 2: redeemed names, and the latest time that any holder gave, by which names may be forgotten.
SPENT = f"""
CREATE TABLE clock (
    id  INTEGER PRIMARY KEY CHECK (id = 1),
    now INTEGER NOT NULL CHECK (now >= 0)
) {_STRICT};
CREATE TABLE spent (
    name  BLOB    NOT NULL PRIMARY KEY CHECK (length(name) = 32),
    until INTEGER NOT NULL
) {_STRICT_KEYED};
CREATE INDEX spent_until ON spent (until);
INSERT INTO clock VALUES (1, 0);
"""  # noqa: S608 - constants

# Since version 3: caps and grants beside what is debited, the odometer, and the charge log. Privacy amounts are
# integers of 1e-9. The CHECKs are the last line of defence behind the code. `commits` counts transactions, and the
# rollback guard (rollback_guard.py) remembers how many there were.
ACCOUNTS = f"""
CREATE TABLE accounts (
    budget       INTEGER NOT NULL REFERENCES budgets (id),
    account      BLOB    NOT NULL CHECK (length(account) = 16),
    window_start INTEGER NOT NULL CHECK (window_start >= 0),
    debited      INTEGER NOT NULL CHECK (debited >= 0),
    cap          INTEGER NOT NULL CHECK (cap >= 0),
    granted      INTEGER NOT NULL CHECK (granted >= 0),
    lifetime     INTEGER NOT NULL CHECK (lifetime >= 0),
    PRIMARY KEY (budget, account),
    CHECK (debited - granted <= cap)
) {_STRICT_KEYED};
"""
LOG = f"""
CREATE TABLE ledger (
    id      INTEGER PRIMARY KEY CHECK (id = 1),
    witness BLOB    NOT NULL CHECK (length(witness) = 16),
    commits INTEGER NOT NULL CHECK (commits >= 0),
    pruned_before INTEGER NOT NULL CHECK (pruned_before >= 0),
    moved   TEXT
) {_STRICT};
CREATE TABLE chains (
    id     INTEGER PRIMARY KEY,
    name   BLOB    NOT NULL UNIQUE CHECK (length(name) = 16),
    seq    INTEGER NOT NULL CHECK (seq >= 0),
    hash   BLOB    NOT NULL CHECK (length(hash) = 32),
    pruned_seq  INTEGER NOT NULL CHECK (pruned_seq BETWEEN 0 AND seq),
    pruned_hash BLOB    NOT NULL CHECK (length(pruned_hash) = 32)
) {_STRICT};
CREATE TABLE charges (
    chain INTEGER NOT NULL REFERENCES chains (id),
    seq   INTEGER NOT NULL CHECK (seq > 0),
    at    INTEGER NOT NULL CHECK (at >= 0),
    body  BLOB    NOT NULL,
    hash  BLOB    NOT NULL CHECK (length(hash) = 32),
    PRIMARY KEY (chain, seq)
) {_STRICT};
"""
# Since version 4: for each length of epochs in microseconds, the key of the epoch in force, and no other.
EPOCHS = f"""
CREATE TABLE epochs (
    length INTEGER PRIMARY KEY CHECK (length > 0),
    number INTEGER NOT NULL CHECK (number >= 0),
    key    BLOB    NOT NULL CHECK (length(key) = 32)
) {_STRICT};
"""
# Holders of an older version may have the file open when it is upgraded. They can't debit any more, because they give
# no cap. This keeps them from returning leases, which would not be in the log.
_NO_OLD_CREDITS = """
CREATE TRIGGER no_old_credits BEFORE UPDATE OF debited ON accounts
WHEN new.debited < old.debited AND new.window_start = old.window_start AND new.lifetime = old.lifetime
BEGIN SELECT RAISE(ABORT, 'the ledger was brought up to date while in use: end the older version of dpmesh'); END
"""


def plain_file(path: Path) -> os.stat_result:
    """The status of a file that could be a ledger.

    Raises:
        LedgerError: It is a directory, a pipe, a link or the like.
        OSError: There is no file, or it can't be read.
    """
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        # SQLite keeps its log beside the link's target, and dpmesh its rollback guard beside the link.
        raise LedgerError(f"{path} is a symbolic link: set ledger.url to the path of the file itself")
    if not stat.S_ISREG(status.st_mode):
        raise LedgerError(f"{path} is not a plain file: set ledger.url to another path")
    return status


def connect(path: Path, busy: float) -> sqlite3.Connection:
    """Connects to an existing ledger, to write. Its files are checked first, before SQLite looks at them.

    Args:
        path: The ledger's file.
        busy: How long to wait for another process's lock, in seconds.

    Raises:
        LedgerError: This user may not write it, other users may, or it is older than its log.
        OSError: The files can't be read.
        sqlite3.Error: SQLite can't open the file.
    """
    if not os.access(path, os.R_OK | os.W_OK):
        # SQLite would open it, and leave a read-only log beside it.
        raise LedgerError(f"{path} is read-only: make it and its directory writable for this user")
    access.check(path)
    wal.check(path)
    connection = sqlite_file.connect(path, "mode=rw", busy)
    # What is overwritten or deleted in a page leaves zeros there, whoever writes the page.
    connection.execute("PRAGMA secure_delete = FAST")
    return connection


def read_secret(connection: sqlite3.Connection, path: Path) -> bytes:
    """Checks that the file is a ledger of a known version, and returns its secret.

    Raises:
        LedgerError: It is not a ledger, or of an unknown version.
        sqlite3.Error: The file can't be read.
    """
    found = connection.execute(
        "SELECT count(*) FROM sqlite_master WHERE name IN ('meta', 'budgets', 'accounts')"
    )
    row = None
    if found.fetchone()[0] == 3:
        row = connection.execute("SELECT * FROM meta").fetchone()
    if row is None:
        raise LedgerError(
            f"{path} is an SQLite database, but not a dpmesh ledger: set ledger.url to another path"
        )
    version = row[1]
    if version not in range(1, VERSION + 1):
        raise LedgerError(
            f"{path} was written by another version of dpmesh (tables {version}, this one knows {VERSION}): "
            "use that version"
        )
    return bytes(row[2])


def make_durable(connection: sqlite3.Connection, path: Path) -> None:
    """Makes a writer's commits survive a power cut.

    Raises:
        LedgerError: The file system can't do that.
        sqlite3.Error: The file can't be written.
    """
    if not sqlite_file.make_durable(connection):
        raise LedgerError(f"{path} can't have a write-ahead log: put it on a local file system")


def execute_all(connection: sqlite3.Connection, statements: str) -> None:
    """Executes statements within the transaction that is open, which sqlite3's executescript would commit."""
    for statement in statements.split(";\n"):
        connection.execute(statement)


def make_file(path: Path) -> None:
    """Makes an empty ledger, complete or not at all, also when several processes do so at once."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    with files.locked_folder(path.parent):
        if os.path.lexists(path):
            return
        access.check_folder(path)
        guard = rollback_guard.path_of(path)
        if os.path.lexists(guard):
            raise LedgerError(
                f"{path} is gone, and {guard.name} remembers that there was one: put it back, or remove that too to "
                "start all budgets anew"
            )
        try:
            new.unlink(missing_ok=True)
            os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            _write_tables(new)
            new.rename(path)
        finally:
            for suffix in ("", "-wal", "-shm"):
                with suppress(OSError):
                    new.with_name(new.name + suffix).unlink(missing_ok=True)


def _write_tables(path: Path) -> None:
    with closing(sqlite_file.connect(path, "mode=rw", timeout=0)) as connection:
        sqlite_file.make_durable(connection)
        secret = secrets.token_bytes(SECRET_BYTES)
        with sqlite_file.transaction(connection):
            create(connection, secret)
        # Closing would do this too, and say nothing if the disk is full; and the log is not renamed with the file.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def create(connection: sqlite3.Connection, secret: bytes) -> None:
    """Makes all tables of a new ledger, within the transaction that is open."""
    for tables in (BUDGETS, SPENT, ACCOUNTS, LOG, EPOCHS):
        execute_all(connection, tables)
    connection.execute("INSERT INTO meta VALUES (1, ?, ?)", (VERSION, secret))
    connection.execute("INSERT INTO ledger VALUES (1, ?, 0, 0, NULL)", (secrets.token_bytes(16),))


def upgrade(connection: sqlite3.Connection) -> None:
    """Upgrades an older file, all or nothing. Several processes may do so at once.

    Raises:
        sqlite3.Error: The file can't be written.
    """
    if queries.version_of(connection) == VERSION:
        return
    with sqlite_file.transaction(connection):
        version = queries.version_of(connection)
        if version < 2:
            execute_all(connection, SPENT)
        if version < 3:
            _add_log(connection)
        if version < 4:
            execute_all(connection, EPOCHS)
        connection.execute("UPDATE meta SET schema_version = ?", (VERSION,))


def _add_log(connection: sqlite3.Connection) -> None:
    """Upgrades to version 3. The log begins with what was debited in each account's last window."""
    connection.execute("ALTER TABLE accounts RENAME TO old_accounts")
    execute_all(connection, ACCOUNTS)
    execute_all(connection, LOG)
    connection.execute(
        "INSERT INTO accounts SELECT budget, account, window_start, debited, debited, 0, debited FROM old_accounts"
    )
    connection.execute("DROP TABLE old_accounts")
    connection.execute(_NO_OLD_CREDITS)
    connection.execute("INSERT INTO ledger VALUES (1, ?, 0, 0, NULL)", (secrets.token_bytes(16),))
    rows = connection.execute("SELECT budget, account, window_start, debited FROM accounts WHERE debited > 0")
    postings = [Posting(*row) for row in rows]
    if postings:
        queries.append(connection, EntryKind.OPENING, postings, "")
