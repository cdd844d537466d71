"""SQLite ledgers as older versions of dpmesh made them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpmesh import sqlite_file
from dpmesh.ledger import Budget
from dpmesh.ledger.sqlite import queries, schema

SECRET = b"s" * 32

_ACCOUNTS = """
CREATE TABLE accounts (
    budget       INTEGER NOT NULL REFERENCES budgets (id),
    account      BLOB    NOT NULL CHECK (length(account) = 16),
    window_start INTEGER NOT NULL CHECK (window_start >= 0),
    debited      INTEGER NOT NULL CHECK (debited BETWEEN 0 AND 9223372036854775807),
    PRIMARY KEY (budget, account)
) STRICT, WITHOUT ROWID;
"""


def make(path: Path, version: int, accounts: Sequence[tuple[Budget, bytes, int, int]]) -> None:
    """Makes a ledger of version 1 or 2.

    Args:
        path: Its file.
        version: 1 or 2.
        accounts: (budget, keyed hash, window, debited) each.
    """
    connection = sqlite_file.connect(path, "mode=rwc", 4.0)
    connection.execute("PRAGMA journal_mode = WAL")
    schema.execute_all(connection, schema.BUDGETS)
    schema.execute_all(connection, _ACCOUNTS)
    if version == 2:
        schema.execute_all(connection, schema.SPENT)
    connection.execute("INSERT INTO meta VALUES (1, ?, ?)", (version, SECRET))
    for budget, account, window, debited in accounts:
        row, _ = queries.write_budget(connection, budget)
        connection.execute(
            "UPDATE budgets SET window_start = max(window_start, ?) WHERE id = ?", (window, row)
        )
        connection.execute("INSERT INTO accounts VALUES (?, ?, ?, ?)", (row, account, window, debited))
    connection.close()
