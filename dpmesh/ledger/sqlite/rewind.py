"""Brings back windows of an SQLite ledger that a wrong clock began; clock_rewind says where to."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from dpmesh.accounting import MAX_AMOUNT
from dpmesh.ledger import charge_log, clock_rewind
from dpmesh.ledger.budget import Budget
from dpmesh.ledger.sqlite import queries


def ahead(connection: sqlite3.Connection, budgets: Mapping[int, Budget]) -> dict[int, int]:
    """The budgets whose windows began by a wrong clock, and the windows in which they have to continue."""
    windows, now = queries.window_starts(connection), time.time()
    if not clock_rewind.ahead(budgets, windows, now, 0):
        return {}  # The common case, which spares a look at the whole log.
    return clock_rewind.ahead(budgets, windows, now, clock_rewind.accepted_copies(entries(connection)))


def entries(connection: sqlite3.Connection) -> Iterator[charge_log.Entry]:
    """All entries, in any order."""
    return (charge_log.decode(body) for (body,) in connection.execute("SELECT body FROM charges"))


def rewind(connection: sqlite3.Connection, path: Path, note: str) -> bool:
    """Brings back all windows that began by a wrong clock, in the open transaction; returns whether there were any."""
    budgets = queries.usable_budgets(connection, path)
    targets = ahead(connection, budgets)
    if not targets:
        return False
    rows = {
        (row, account): state
        for row, at in targets.items()
        for account, *state in connection.execute(
            "SELECT account, window_start, debited FROM accounts WHERE budget = ? AND window_start > ?",
            (row, at),
        )
    }
    (pruned,) = connection.execute("SELECT pruned_before FROM ledger").fetchone()
    charged: clock_rewind.Charged = {key: {} for key in rows}
    for entry in entries(connection):
        clock_rewind.count(entry, charged, targets)
    carried = []
    for key, (start, debited) in rows.items():
        at, cap = targets[key[0]], budgets[key[0]].cap
        one = clock_rewind.carry(key, (start, debited), charged[key], at, cap=cap, complete=pruned <= at)
        carried.append(one)
        raised = max(cap, one.debited - one.granted)
        connection.execute(
            "UPDATE accounts SET window_start = ?, debited = ?, granted = ?, cap = ?, lifetime = min(lifetime, ?) + ? "
            "WHERE budget = ? AND account = ?",
            (at, one.debited, one.granted, raised, MAX_AMOUNT - one.more, one.more, *key),
        )
    for row, at in targets.items():
        connection.execute("UPDATE budgets SET window_start = ? WHERE id = ?", (at, row))
    for kind, postings in clock_rewind.entries(carried):
        queries.append(connection, kind, postings, note)
    return True
