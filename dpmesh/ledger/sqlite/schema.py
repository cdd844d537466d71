"""The tables of an SQLite ledger, and what its errors mean for whoever runs it."""

from __future__ import annotations

import os
import secrets
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dpmesh import sqlite_file
from dpmesh.accounting import Accounting, window_end
from dpmesh.errors import LedgerError
from dpmesh.ledger.budget import Budget
from dpmesh.ledger.charge_log import CHAIN_BYTES, ChainWriter, EntryKind, Head, Posting, begin, encode, link
from dpmesh.ledger.store import Account

VERSION = 3
"""The version of the tables below. Older files are brought up to date when they are opened."""

# STRICT came with SQLite 3.37; before that a column would take any type, but dpmesh only writes these.
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
# Since version 2: names that were spent, and the latest time that any holder gave: when those that are over may be
# forgotten.
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
# witness beside the file (witness.py) remembers how many there were.
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
# Holders of an older version that have the file open when it is brought up to date: they can't debit any more, because
# they give no cap, and what they hold they may not return past the log.
_NO_OLD_CREDITS = """
CREATE TRIGGER no_old_credits BEFORE UPDATE OF debited ON accounts
WHEN new.debited < old.debited AND new.window_start = old.window_start AND new.lifetime = old.lifetime
BEGIN SELECT RAISE(ABORT, 'the ledger was brought up to date while in use: end the older version of dpmesh'); END
"""

_BUDGET_COLUMNS = "name, key, epsilon, delta, accounting, window, on_exhausted"


def plain_file(path: Path) -> os.stat_result:
    """The status of a file that could be a ledger.

    Raises:
        LedgerError: It is a directory, a pipe, a link or the like.
        OSError: There is none, or it can't be seen.
    """
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        # SQLite keeps its log beside the file that the link means, and dpmesh its witness beside the link.
        raise LedgerError(f"{path} is a symbolic link: set ledger.url to the path of the file itself")
    if not stat.S_ISREG(status.st_mode):
        raise LedgerError(f"{path} is not a plain file: set ledger.url to another path")
    return status


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


def create(connection: sqlite3.Connection, secret: bytes) -> None:
    """Makes all tables of a new ledger, within the transaction that is open."""
    for tables in (BUDGETS, SPENT, ACCOUNTS, LOG):
        execute_all(connection, tables)
    connection.execute("INSERT INTO meta VALUES (1, ?, ?)", (VERSION, secret))
    connection.execute("INSERT INTO ledger VALUES (1, ?, 0, 0, NULL)", (secrets.token_bytes(16),))


def upgrade(connection: sqlite3.Connection) -> None:
    """Brings an older file up to date, all or nothing, also when several processes do so at once.

    Raises:
        sqlite3.Error: It can't be written.
    """
    if version_of(connection) == VERSION:
        return
    with sqlite_file.transaction(connection):
        version = version_of(connection)
        if version < 2:
            execute_all(connection, SPENT)
        if version < 3:
            _add_log(connection)
        connection.execute("UPDATE meta SET schema_version = ?", (VERSION,))


def _add_log(connection: sqlite3.Connection) -> None:
    """Version 3. The log of an older file opens with what was debited in each account's last window."""
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
    lines = [Posting(*row) for row in rows]
    if lines:
        chain = secrets.token_bytes(CHAIN_BYTES)
        write_entry(connection, chain, begin(chain), EntryKind.OPENING, lines)


def version_of(connection: sqlite3.Connection) -> int:
    """The version of a ledger's tables."""
    return int(connection.execute("SELECT schema_version FROM meta").fetchone()[0])


def progress(connection: sqlite3.Connection, path: Path) -> tuple[bytes, int]:
    """The ledger's random name, and how many commits it holds.

    Raises:
        LedgerError: It was moved elsewhere.
    """
    name, commits, moved = connection.execute("SELECT witness, commits, moved FROM ledger").fetchone()
    if moved is not None:
        raise LedgerError(
            f"{path} was imported into {moved}, where its budgets live on: set ledger.url to that"
        )
    return name, commits


def write_entry(
    connection: sqlite3.Connection,
    chain: bytes,
    head: Head,
    kind: EntryKind,
    lines: Iterable[Posting],
    note: str = "",
) -> Head:
    """Writes an entry behind a chain's end, within the transaction that is open; returns the new end."""
    at = int(time.time())
    body = encode(kind, at, lines, note)
    after = link(head, body)
    if head.seq == 0:
        connection.execute(
            "INSERT INTO chains (name, seq, hash, pruned_seq, pruned_hash) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (name) DO NOTHING",
            (chain, *head, *head),
        )
    connection.execute("UPDATE chains SET seq = ?, hash = ? WHERE name = ?", (*after, chain))
    connection.execute(
        "INSERT INTO charges (chain, seq, at, body, hash) SELECT id, ?, ?, ?, ? FROM chains WHERE name = ?",
        (after.seq, at, body, after.hash, chain),
    )
    return after


class Change:
    """What one transaction of a holder changes.

    Args:
        connection: In a transaction.
        chain: The holder's.
    """

    def __init__(self, connection: sqlite3.Connection, chain: ChainWriter) -> None:
        self.connection = connection
        self._chain = chain
        self._touched = self._wrote = False

    def touch(self) -> None:
        """Something is written, if only beside the accounts."""
        self._touched = True

    def write(self, kind: EntryKind, lines: Iterable[Posting]) -> None:
        """Writes an entry at the end of the holder's chain.

        Raises:
            LedgerError: The chain does not end where the holder left it.
        """
        row = self.connection.execute(
            "SELECT seq, hash FROM chains WHERE name = ?", (self._chain.name,)
        ).fetchone()
        head = self._chain.settle(None if row is None else Head(*row), "the ledger")
        self._chain.attempt(write_entry(self.connection, self._chain.name, head, kind, lines))
        self._touched = self._wrote = True

    def finish(self) -> int:
        """Counts the commit; returns how many there are with it, or 0 if nothing was written."""
        return count_commit(self.connection) if self._touched else 0

    def committed(self) -> None:
        """Tells the chain that its entry is durable, if this wrote one: an entry that failed before stays in doubt."""
        if self._wrote:
            self._chain.acknowledge()


def count_commit(connection: sqlite3.Connection) -> int:
    """Counts the transaction that is open; returns how many there are with it."""
    if connection.execute("UPDATE ledger SET commits = commits + 1 WHERE moved IS NULL").rowcount != 1:
        raise LedgerError(
            "the ledger was imported into another while in use: restart with ledger.url set to that"
        )
    return int(connection.execute("SELECT commits FROM ledger").fetchone()[0])


def spend(connection: sqlite3.Connection, now: int, spends: Sequence[tuple[bytes, int]]) -> list[bool]:
    """Spends names within the transaction that is open; see Store.spend_once."""
    connection.execute("UPDATE clock SET now = ? WHERE now < ?", (now, now))
    (latest,) = connection.execute("SELECT now FROM clock").fetchone()
    connection.execute("DELETE FROM spent WHERE until <= ?", (latest,))
    insert = "INSERT INTO spent (name, until) VALUES (?, ?) ON CONFLICT (name) DO NOTHING"
    return [
        until > latest and connection.execute(insert, (name, until)).rowcount == 1 for name, until in spends
    ]


def number_budgets(connection: sqlite3.Connection) -> dict[int, Budget]:
    """The budgets that the file holds, by their rows' ids, in order of creation."""
    rows = connection.execute(f"SELECT id, {_BUDGET_COLUMNS} FROM budgets ORDER BY id")  # noqa: S608 - constants
    return {
        row: Budget(name, key, epsilon, delta, Accounting(accounting), window, on_exhausted)
        for row, name, key, epsilon, delta, accounting, window, on_exhausted in rows
    }


def read_budgets(connection: sqlite3.Connection) -> dict[str, Budget]:
    """The budgets that the file holds, by name, in order of creation."""
    return {budget.name: budget for budget in number_budgets(connection).values()}


def charged_others(connection: sqlite3.Connection, names: Sequence[str]) -> tuple[tuple[Budget, int], ...]:
    """Budgets of other names, and when their latest windows began, if anything is spent of them in these."""
    others = {row: budget for row, budget in number_budgets(connection).items() if budget.name not in names}
    if not others:
        return ()  # The common case, which spares a look at all accounts.
    charged = connection.execute(
        "SELECT id, window_start FROM budgets WHERE EXISTS (SELECT 1 FROM accounts WHERE budget = budgets.id "
        "AND accounts.window_start = budgets.window_start AND debited > 0) ORDER BY id"
    )
    return tuple((others[row], start) for row, start in charged if row in others)


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


def read_accounts(
    connection: sqlite3.Connection, budget: str | None, account: bytes | None
) -> Iterator[Account]:
    """All accounts, or those of one budget, or of one unit's hash, ordered by budget and hash."""
    since_version_3 = "granted, lifetime" if version_of(connection) >= 3 else "0, debited"
    for row, definition in number_budgets(connection).items():
        if budget not in (None, definition.name):
            continue
        rows = connection.execute(
            f"SELECT account, window_start, debited, {since_version_3} FROM accounts "  # noqa: S608 - constants
            "WHERE budget = ? AND account BETWEEN ? AND ? "
            "ORDER BY account",
            (row, account or b"", account or b"\xff" * 16),
        )
        for key, start, debited, granted, lifetime in rows:
            end = window_end(start, definition.window)
            yield Account(definition.name, key.hex(), start, end, debited, definition.cap, granted, lifetime)


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
