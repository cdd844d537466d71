"""Reads and writes of an SQLite ledger's rows, within the transaction that is open."""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from dpmesh.accounting import Accounting, cap, window_start
from dpmesh.errors import ConfigError, LedgerError
from dpmesh.ledger.budget import Budget, stored_terms
from dpmesh.ledger.charge_log import CHAIN_BYTES, ChainWriter, EntryKind, Head, Posting, begin, encode, link
from dpmesh.ledger.store import (
    KEY_BYTES,
    Account,
    EpochKey,
    Window,
    account_end,
    epoch_in_force,
    window_at_opening,
)

# Epsilon, delta and window are the terms of the window in force, which window_start names.
_BUDGET_COLUMNS = "name, key, epsilon, delta, accounting, window, on_exhausted"
_cap = lru_cache(1024)(cap)


def version_of(connection: sqlite3.Connection) -> int:
    """The version of a ledger's tables."""
    return int(connection.execute("SELECT schema_version FROM meta").fetchone()[0])


def progress(connection: sqlite3.Connection, path: Path) -> tuple[bytes, int]:
    """The ledger's random name, and how many commits it holds.

    Raises:
        LedgerError: The ledger was moved elsewhere.
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
    postings: Iterable[Posting],
    note: str = "",
) -> Head:
    """Appends an entry to a chain; returns the new head."""
    at = int(time.time())
    body = encode(kind, at, postings, note)
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


def append(connection: sqlite3.Connection, kind: EntryKind, postings: Iterable[Posting], note: str) -> None:
    """Writes an entry that is no holder's, in a new chain."""
    chain = secrets.token_bytes(CHAIN_BYTES)
    write_entry(connection, chain, begin(chain), kind, postings, note)


class Change:
    """What one transaction changes, which a holder has begun on the connection."""

    def __init__(self, connection: sqlite3.Connection, chain: ChainWriter) -> None:
        self.connection = connection
        self._chain = chain
        self._touched = self._wrote = False

    def touch(self) -> None:
        """Notes that something is written, perhaps beside the accounts."""
        self._touched = True

    def write(self, kind: EntryKind, postings: Iterable[Posting], note: str = "") -> None:
        """Appends an entry to the holder's chain.

        Raises:
            LostChargesError: The chain in the file is not the one that the holder left there.
        """
        row = self.connection.execute(
            "SELECT seq, hash FROM chains WHERE name = ?", (self._chain.name,)
        ).fetchone()
        head = self._chain.settle(None if row is None else Head(*row), "the ledger")
        self._chain.attempt(write_entry(self.connection, self._chain.name, head, kind, postings, note))
        self._touched = self._wrote = True

    def finish(self) -> int:
        """Counts this commit; returns how many there are with it, or 0 if nothing was written."""
        return count_commit(self.connection) if self._touched else 0

    def committed(self) -> None:
        """Tells the chain that its entry is durable. Without an entry, one that failed before stays in doubt."""
        if self._wrote:
            self._chain.acknowledge()


def count_commit(connection: sqlite3.Connection) -> int:
    """Counts this commit; returns how many there are with it."""
    if connection.execute("UPDATE ledger SET commits = commits + 1 WHERE moved IS NULL").rowcount != 1:
        raise LedgerError(
            "the ledger was imported into another while in use: restart with ledger.url set to that"
        )
    return int(connection.execute("SELECT commits FROM ledger").fetchone()[0])


def redeem(connection: sqlite3.Connection, now: int, redemptions: Sequence[tuple[bytes, int]]) -> list[bool]:
    """Redeems names; for each, whether nobody had redeemed it before."""
    connection.execute("UPDATE clock SET now = ? WHERE now < ?", (now, now))
    (latest,) = connection.execute("SELECT now FROM clock").fetchone()
    connection.execute("DELETE FROM spent WHERE until <= ?", (latest,))
    insert = "INSERT INTO spent (name, until) VALUES (?, ?) ON CONFLICT (name) DO NOTHING"
    return [
        until > latest and connection.execute(insert, (name, until)).rowcount == 1
        for name, until in redemptions
    ]


def redeemed(connection: sqlite3.Connection, names: Sequence[bytes]) -> list[bool]:
    """For each name, whether it was redeemed and is not forgotten."""
    find = "SELECT 1 FROM spent WHERE name = ?"
    return [connection.execute(find, (name,)).fetchone() is not None for name in names]


def epoch_keys(
    connection: sqlite3.Connection, now: int, lengths: Sequence[int]
) -> tuple[list[EpochKey], bool]:
    """The key of the epoch in force for each length, and whether one of them is fresh. All are in microseconds."""
    keys, any_fresh = [], False
    for length in lengths:
        row = connection.execute("SELECT number, key FROM epochs WHERE length = ?", (length,)).fetchone()
        number = epoch_in_force(now, length, row and row[0])
        if row is None or row[0] != number:
            row, any_fresh = (number, secrets.token_bytes(KEY_BYTES)), True
            connection.execute(
                "INSERT INTO epochs VALUES (?, ?, ?) "
                "ON CONFLICT (length) DO UPDATE SET number = excluded.number, key = excluded.key",
                (length, *row),
            )
        keys.append(EpochKey(*row))
    return keys, any_fresh


def read_budgets(connection: sqlite3.Connection) -> dict[int, Budget]:
    """The budgets that the file holds, by their rows' ids, in order of creation."""
    rows = connection.execute(f"SELECT id, {_BUDGET_COLUMNS} FROM budgets ORDER BY id")  # noqa: S608 - constants
    return {row: Budget(*terms) for row, *terms in rows}


def usable_budgets(connection: sqlite3.Connection, path: Path) -> dict[int, Budget]:
    """The budgets that the file holds, by their rows' ids, in order of creation.

    Raises:
        LedgerError: One of them is invalid for this version of dpmesh.
    """
    try:
        return read_budgets(connection)
    except ConfigError as error:
        raise LedgerError(
            f"{path} holds a budget that this version of dpmesh doesn't know: {error}"
        ) from error


def charged_others(connection: sqlite3.Connection, names: Sequence[str]) -> tuple[tuple[Budget, int], ...]:
    """Budgets of other names of which anything is spent in their latest window, and when that window began."""
    others = {row: budget for row, budget in read_budgets(connection).items() if budget.name not in names}
    if not others:
        return ()  # The common case, which spares a look at all accounts.
    charged = connection.execute(
        "SELECT id, window_start FROM budgets WHERE EXISTS (SELECT 1 FROM accounts WHERE budget = budgets.id "
        "AND accounts.window_start = budgets.window_start AND debited > 0) ORDER BY id"
    )
    return tuple((others[row], start) for row, start in charged if row in others)


def write_budget(connection: sqlite3.Connection, budget: Budget) -> tuple[int, Window]:
    """Stores a holder's terms of a budget; returns its row's id and the latest window that was in force."""
    connection.execute(
        f"INSERT INTO budgets ({_BUDGET_COLUMNS}, window_start) VALUES (?, ?, ?, ?, ?, ?, ?, 0) "  # noqa: S608
        "ON CONFLICT (name) DO UPDATE SET on_exhausted = excluded.on_exhausted",
        stored_terms(budget),
    )
    (row,) = connection.execute("SELECT id FROM budgets WHERE name = ?", (budget.name,)).fetchone()
    stored = windows(connection)[row]
    window = window_at_opening(stored, budget)
    if window != stored:
        write_window(connection, row, window, budget)
    return row, window


def write_window(connection: sqlite3.Connection, row: int, window: Window, budget: Budget) -> None:
    """Stores the window in force of a budget, whose cap is that of a holder's terms."""
    connection.execute(
        "UPDATE budgets SET window_start = ?, window = ?, epsilon = ?, delta = ? WHERE id = ?",
        (window.start, window.length, budget.epsilon, budget.delta, row),
    )


def read_accounts(
    connection: sqlite3.Connection, budget: str | None, account: bytes | None
) -> Iterator[Account]:
    """All accounts, or those of one budget, or of one unit's hash, ordered by budget and hash."""
    since_version_3 = "granted, lifetime" if version_of(connection) >= 3 else "0, debited"
    latest = windows(connection)
    for row, definition in read_budgets(connection).items():
        if budget not in (None, definition.name):
            continue
        rows = connection.execute(
            f"SELECT account, window_start, debited, {since_version_3} FROM accounts "  # noqa: S608 - constants
            "WHERE budget = ? AND account BETWEEN ? AND ? "
            "ORDER BY account",
            (row, account or b"", account or b"\xff" * 16),
        )
        for key, start, debited, granted, lifetime in rows:
            end = account_end(start, latest[row])
            yield Account(definition.name, key.hex(), start, end, debited, definition.cap, granted, lifetime)


def state(connection: sqlite3.Connection, row: int, account: bytes, window: int) -> tuple[int, int]:
    """What an account was debited and granted in a window."""
    found = connection.execute(
        "SELECT debited, granted FROM accounts WHERE budget = ? AND account = ? AND window_start = ?",
        (row, account, window),
    )
    return found.fetchone() or (0, 0)


def windows_in_force(connection: sqlite3.Connection, budgets: Mapping[int, Budget]) -> dict[int, int]:
    """For each budget, the latest window that ever was in force, or a later one by this machine's clock."""
    stored, now = windows(connection), time.time()
    return {row: max(stored[row].start, window_start(now, budget.window)) for row, budget in budgets.items()}


def windows(connection: sqlite3.Connection) -> dict[int, Window]:
    """The latest window that was ever in force, for each budget."""
    rows = connection.execute("SELECT id, window_start, window, accounting, epsilon, delta FROM budgets")
    return {
        row: Window(start, length, _cap(Accounting(accounting), epsilon, delta))
        for row, start, length, accounting, epsilon, delta in rows
    }


def window_starts(connection: sqlite3.Connection) -> dict[int, int]:
    """When the latest window began that was ever in force, for each budget."""
    return dict(connection.execute("SELECT id, window_start FROM budgets"))
