"""The tables of an SQLite ledger, and what its errors mean for whoever runs it."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from dpmesh.accounting import Accounting, window_end
from dpmesh.errors import LedgerError
from dpmesh.ledger.budget import Budget
from dpmesh.ledger.store import Account

VERSION = 2
"""The version of the tables below. Files of version 1 lack those of SPENT, and gain them when they are opened."""

# STRICT came with SQLite 3.37; before that a column would take any type, but dpmesh only writes these.
_STRICT = "STRICT" if sqlite3.sqlite_version_info >= (3, 37) else ""
_STRICT_KEYED = f"{_STRICT}, WITHOUT ROWID" if _STRICT else "WITHOUT ROWID"

# Privacy amounts are integers of 1e-9. The CHECKs are the last line of defence behind the code.
TABLES = f"""
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
CREATE TABLE accounts (
    budget       INTEGER NOT NULL REFERENCES budgets (id),
    account      BLOB    NOT NULL CHECK (length(account) = 16),
    window_start INTEGER NOT NULL CHECK (window_start >= 0),
    debited      INTEGER NOT NULL CHECK (debited BETWEEN 0 AND 9223372036854775807),
    PRIMARY KEY (budget, account)
) {_STRICT_KEYED};
"""
# Names that were spent, and the latest time that any holder gave: when those that are over may be forgotten.
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

_BUDGET_COLUMNS = "name, key, epsilon, delta, accounting, window, on_exhausted"


def plain_file(path: Path) -> os.stat_result:
    """The status of a file that could be a ledger.

    Raises:
        LedgerError: It is a directory, a pipe or the like.
        OSError: There is none, or it can't be seen.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise LedgerError(f"{path} is not a plain file: set ledger.url to another path")
    return status


def connect(path: Path, mode: str, timeout: float) -> sqlite3.Connection:
    """Connects to an SQLite file.

    Args:
        path: The file.
        mode: SQLite's URI parameters: "mode=ro", "mode=rw" or "mode=rwc", perhaps more.
        timeout: How long to wait for another process's lock, in seconds.

    Raises:
        sqlite3.Error: It can't be opened.
    """
    return sqlite3.connect(
        f"file:{quote(str(path))}?{mode}",
        uri=True,
        timeout=timeout,
        isolation_level=None,  # transactions are explicit
        check_same_thread=False,  # the store's lock sees to that
    )


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """A write transaction: locked from the start, committed durably or rolled back."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def read_secret(connection: sqlite3.Connection, path: Path) -> bytes:
    """Checks that the file is a ledger of this version or one that it knows, and returns its secret.

    Raises:
        LedgerError: It is not.
        sqlite3.Error: It can't be read.
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
    if version not in (1, VERSION):
        raise LedgerError(
            f"{path} was written by another version of dpmesh (tables {version}, this one knows {VERSION}): "
            "use that version"
        )
    return bytes(row[2])


def execute_all(connection: sqlite3.Connection, statements: str) -> None:
    """Executes statements within the transaction that is open, which sqlite3's executescript would commit."""
    for statement in statements.split(";\n"):
        connection.execute(statement)


def upgrade(connection: sqlite3.Connection) -> None:
    """Brings a file of version 1 up to date, all or nothing, also when several processes do so at once.

    Raises:
        sqlite3.Error: It can't be written.
    """
    if _version(connection) == VERSION:
        return
    with transaction(connection):
        if _version(connection) == 1:
            execute_all(connection, SPENT)
            connection.execute("UPDATE meta SET schema_version = ?", (VERSION,))


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT schema_version FROM meta").fetchone()[0])


def spend(connection: sqlite3.Connection, now: int, spends: Sequence[tuple[bytes, int]]) -> list[bool]:
    """Spends names within the transaction that is open; see Store.spend_once."""
    connection.execute("UPDATE clock SET now = ? WHERE now < ?", (now, now))
    (latest,) = connection.execute("SELECT now FROM clock").fetchone()
    connection.execute("DELETE FROM spent WHERE until <= ?", (latest,))
    insert = "INSERT INTO spent (name, until) VALUES (?, ?) ON CONFLICT (name) DO NOTHING"
    return [
        until > latest and connection.execute(insert, (name, until)).rowcount == 1 for name, until in spends
    ]


def read_budgets(connection: sqlite3.Connection) -> dict[str, Budget]:
    """The budgets that the file holds, by name, in order of creation."""
    rows = connection.execute(f"SELECT {_BUDGET_COLUMNS} FROM budgets ORDER BY id")  # noqa: S608 - constants
    return {
        name: Budget(name, key, epsilon, delta, Accounting(accounting), window, on_exhausted)
        for name, key, epsilon, delta, accounting, window, on_exhausted in rows
    }


def write_budget(connection: sqlite3.Connection, budget: Budget) -> tuple[int, int]:
    """Stores a budget's definition; returns its row's id and the latest window that was charged."""
    window = None if budget.window is None else int(budget.window)
    connection.execute(
        f"INSERT INTO budgets ({_BUDGET_COLUMNS}, window_start) VALUES (?, ?, ?, ?, ?, ?, ?, 0) "  # noqa: S608
        "ON CONFLICT (name) DO UPDATE SET epsilon = excluded.epsilon, delta = excluded.delta, "
        "on_exhausted = excluded.on_exhausted",
        (
            budget.name,
            budget.key,
            float(budget.epsilon),
            float(budget.delta),
            budget.accounting.value,
            window,
            budget.on_exhausted,
        ),
    )
    found = connection.execute("SELECT id, window_start FROM budgets WHERE name = ?", (budget.name,))
    row: tuple[int, int] = found.fetchone()
    return row


def read_accounts(connection: sqlite3.Connection, budget: str | None, account: bytes | None) -> list[Account]:
    """All accounts, or those of one budget, or of one unit's hash, ordered by budget and hash."""
    accounts = []
    for definition in read_budgets(connection).values():
        if budget not in (None, definition.name):
            continue
        rows = connection.execute(
            "SELECT account, window_start, debited FROM accounts "
            "WHERE budget = (SELECT id FROM budgets WHERE name = ?) AND account BETWEEN ? AND ? "
            "ORDER BY account",
            (definition.name, account or b"", account or b"\xff" * 16),
        )
        for key, start, debited in rows:
            end = window_end(start, definition.window)
            accounts.append(Account(definition.name, key.hex(), start, end, debited, definition.cap))
    return accounts


def explain(error: Exception, path: Path) -> LedgerError:
    """What an error of SQLite or the system means, with the path and what to do."""
    if isinstance(error, OSError):
        return LedgerError(f"{path} can't be used as a ledger: {error.strerror}")
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    for prefix, text in _MEANINGS.items():
        if name.startswith(prefix):
            return LedgerError(f"{path} {text} [{name}]")
    return LedgerError(f"{path} failed: {error} [{name}]")


_MEANINGS = {
    "SQLITE_BUSY": "is locked by another process: end the one that keeps its transaction open",
    "SQLITE_LOCKED": "is locked: end the transaction that holds it",
    "SQLITE_READONLY": "is read-only: make it and its directory writable for this user",
    "SQLITE_PERM": "may not be accessed: make it and its directory writable for this user",
    "SQLITE_AUTH": "may not be accessed: make it and its directory writable for this user",
    "SQLITE_FULL": "can't grow, the disk is full: free some space",
    "SQLITE_NOTADB": "is not an SQLite database: restore it from a backup, or set ledger.url to another path",
    "SQLITE_CORRUPT": "is damaged: restore it from a backup, or set ledger.url to another path",
    "SQLITE_CANTOPEN": "can't be opened: its directory must be writable, and it must be a plain file",
    "SQLITE_IOERR": "can't be read or written: free some space, and check the disk and its limits",
}
