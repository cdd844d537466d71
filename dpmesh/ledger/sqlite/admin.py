"""SQLiteAdmin: what administrators read of a ledger in an SQLite file, and change in it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from typing_extensions import override

from dpmesh import sqlite_file
from dpmesh.accounting import window_end
from dpmesh.errors import LedgerError
from dpmesh.ledger import charge_log
from dpmesh.ledger.admin import LedgerAdmin, check_grant, check_granted, find_budget
from dpmesh.ledger.budget import Budget
from dpmesh.ledger.charge_log import EntryKind, Head, Posting
from dpmesh.ledger.sqlite import access, queries, rewind, rollback_guard, schema, wal
from dpmesh.ledger.sqlite.errors import explained, missing
from dpmesh.ledger.sqlite.rollback_guard import RollbackGuard
from dpmesh.ledger.sqlite.view import SQLiteView
from dpmesh.ledger.store import Account

_TIMEOUT = 4.0  # seconds to wait for a holder's lock
_PRUNED_AT_ONCE = 5000  # entries; holders wait meanwhile

_GRANT = """
INSERT INTO accounts (budget, account, window_start, debited, cap, granted, lifetime)
VALUES (:budget, :account, :window, 0, :cap, :amount, 0)
ON CONFLICT (budget, account) DO UPDATE SET
    debited = CASE window_start WHEN :window THEN debited ELSE 0 END,
    cap = CASE window_start WHEN :window THEN cap ELSE :cap END,
    granted = CASE window_start WHEN :window THEN granted + :amount ELSE :amount END,
    window_start = :window
"""


class SQLiteAdmin(LedgerAdmin):
    """Administration of a ledger in an SQLite file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()

    @override
    @asynccontextmanager
    async def view(self) -> AsyncIterator[SQLiteView]:
        view = await asyncio.to_thread(SQLiteView, self.path)
        try:
            yield view
        finally:
            view.close()

    @override
    async def migrate(self) -> tuple[int, int]:
        return await asyncio.to_thread(self._migrate)

    @override
    async def grant(self, budget: str, account: bytes, raised: int, note: str, *, has: int = 0) -> Account:
        return await asyncio.to_thread(self._grant, budget, account, raised, note, has)

    @override
    async def prune(self, before: int) -> int:
        return await asyncio.to_thread(self._prune, before)

    @override
    async def accept(self, note: str, *, unnoticed: bool = False) -> tuple[str, ...]:
        return await asyncio.to_thread(self._accept, note, unnoticed)

    def _migrate(self) -> tuple[int, int]:
        if os.path.lexists(self.path):
            with self._opened() as connection:
                before = queries.version_of(connection)
        else:
            with explained(self.path):
                schema.make_file(self.path)
            before = 0
        with self._writing():  # brings it up to date
            return before, schema.VERSION

    def _grant(self, budget: str, account: bytes, raised: int, note: str, has: int) -> Account:
        check_grant(account, raised)
        with self._writing() as (connection, guard), _commit(connection, guard):
            budgets = queries.usable_budgets(connection, self.path)
            row, definition = find_budget(budgets, budget)
            start = queries.windows_in_force(connection, budgets)[row]
            _, granted = queries.state(connection, row, account, start)
            check_granted(definition.cap, granted, has, raised)
            posting = Posting(row, account, start, raised)
            connection.execute("UPDATE budgets SET window_start = ? WHERE id = ?", (start, row))
            connection.execute(_GRANT, {**posting._asdict(), "cap": definition.cap})
            queries.append(connection, EntryKind.GRANT, [posting], note)
            (found,) = queries.read_accounts(connection, budget, account)
        return found

    def _prune(self, before: int) -> int:
        with self._writing() as (connection, guard):
            with _commit(connection, guard):
                _check_horizon(queries.usable_budgets(connection, self.path), before)
                # Written first: verification has to know what an interrupted pruning removed.
                connection.execute("UPDATE ledger SET pruned_before = max(pruned_before, ?)", (before,))
            pruned = 0
            for (row,) in connection.execute("SELECT id FROM chains").fetchall():
                removed = _PRUNED_AT_ONCE
                while removed == _PRUNED_AT_ONCE:
                    with _commit(connection, guard):
                        removed = _prune_chain(connection, row, before)
                    pruned += removed
            return pruned

    def _accept(self, note: str, unnoticed: bool) -> tuple[str, ...]:
        with explained(self.path):
            if os.path.lexists(self.path):
                access.check(self.path)
            if wal.gap(self.path):
                # It can't be applied to this file; the rollback guard knows its count.
                wal.discard(self.path)
        with self._opened() as connection:
            schema.make_durable(connection, self.path)
            schema.upgrade(connection)
            progress = queries.progress(connection, self.path)
            if not unnoticed and rollback_guard.refusal(self.path, *progress) is None:
                self._accept_windows(note)
                return ()
            with sqlite_file.transaction(connection):
                self._refused(connection, unnoticed)
                # The count is going to jump. If the jump were the log's first version of the count, and stayed in the
                # log because of a reader or a kill, the file would seem older than its log. So the log first gets a
                # version with the old count. (SQLite writes only pages that change: something beside it has to.)
                connection.execute("UPDATE ledger SET pruned_before = pruned_before + 1")
            with sqlite_file.transaction(connection):
                name, commits = self._refused(connection, unnoticed)
                budgets = queries.usable_budgets(connection, self.path)
                rewind.rewind(connection, self.path, note)
                for row, start in queries.windows_in_force(connection, budgets).items():
                    end = window_end(start, budgets[row].window)
                    if end is not None:
                        connection.execute("UPDATE budgets SET window_start = ? WHERE id = ?", (end, row))
                queries.append(connection, EntryKind.ACCEPT, (), note)
                # More than any process saw: the file that this copy replaces is the older one from now on.
                commits = max(commits, rollback_guard.seen(self.path, name)) + 1
                connection.execute(
                    "UPDATE ledger SET commits = ?, pruned_before = pruned_before - 1", (commits,)
                )
            # Last: an interruption after it would let the copy be opened without the changes above.
            rollback_guard.remake(self.path, name, commits)
        return tuple(budget.name for budget in budgets.values() if budget.window is None)

    def _accept_windows(self, note: str) -> None:
        """Brings back windows that a wrong clock began, in a ledger that is no older copy; refuses if there is none."""
        with self._writing() as (connection, guard), _commit(connection, guard):
            if not rewind.rewind(connection, self.path, note):
                raise LedgerError(
                    f"{self.path} is not an older copy of itself, and none of its windows is ahead of the clock: there "
                    "is nothing to accept, unless you know better (--unnoticed)"
                )

    def _refused(self, connection: sqlite3.Connection, unnoticed: bool) -> tuple[bytes, int]:
        """The name and the commits of a ledger that is refused as an older copy; LedgerError if it is not."""
        name, commits = queries.progress(connection, self.path)
        if rollback_guard.refusal(self.path, name, commits) is None and not unnoticed:
            raise LedgerError(
                f"{self.path} is not an older copy of itself any more: somebody has accepted it, or put another back"
            )
        return name, commits

    @contextmanager
    def _writing(self) -> Iterator[tuple[sqlite3.Connection, RollbackGuard]]:
        """A connection to a ledger of the present version that is not an older copy, and its rollback guard."""
        with self._opened() as connection:
            schema.make_durable(connection, self.path)
            schema.upgrade(connection)
            with closing(RollbackGuard(self.path, lambda: queries.progress(connection, self.path))) as guard:
                yield connection, guard

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """A connection that may write to the ledger, of whatever version that is."""
        with explained(self.path):
            if not os.path.lexists(self.path):
                raise missing(self.path)
            schema.plain_file(self.path)
            with closing(schema.connect(self.path, _TIMEOUT)) as connection:
                schema.read_secret(connection, self.path)
                yield connection


@contextmanager
def _commit(connection: sqlite3.Connection, guard: RollbackGuard) -> Iterator[None]:
    """A transaction that is counted, and checked by the rollback guard."""
    with sqlite_file.transaction(connection):
        yield
        commits = queries.count_commit(connection)
        guard.check(commits)
    guard.reached(commits)


def _check_horizon(budgets: Mapping[int, Budget], before: int) -> None:
    """Refuses to prune entries of windows that may be in force: accounts still show their sums."""
    longest = max((int(budget.window) for budget in budgets.values() if budget.window is not None), default=0)
    horizon = int(time.time()) - longest
    if before > horizon:
        raise LedgerError(
            f"entries of the longest window, {longest} s, have to stay: the charge log can't be pruned beyond "
            f"{datetime.fromtimestamp(horizon, UTC):%Y-%m-%d %H:%M:%S} UTC"
        )


def _prune_chain(connection: sqlite3.Connection, row: int, before: int) -> int:
    """Removes some entries from the beginning of a chain; returns how many.

    An entry that charges a window that begins later stays, however old it is: its account still shows that sum.
    (Windows are ahead of the clock after a wrong clock and after `accept`.)

    Raises:
        LedgerError: The chain is broken there. Its entries stay, as evidence.
    """
    name, *pruned = connection.execute(
        "SELECT name, pruned_seq, pruned_hash FROM chains WHERE id = ?", (row,)
    ).fetchone()
    head = begin = Head(*pruned)
    entries = connection.execute(
        "SELECT seq, body, hash FROM charges WHERE chain = ? AND seq > ? ORDER BY seq LIMIT ?",
        (row, head.seq, _PRUNED_AT_ONCE),
    )
    for seq, body, hash_ in entries.fetchall():
        try:
            after, entry = charge_log.follow(head, seq, body, hash_)
        except LedgerError as error:
            raise LedgerError(f"chain {name.hex()} is broken, so it is not pruned: {error}") from error
        if entry.at >= before or any(posting.window >= before for posting in entry.postings):
            break
        head = after
    connection.execute("DELETE FROM charges WHERE chain = ? AND seq <= ?", (row, head.seq))
    connection.execute("UPDATE chains SET pruned_seq = ?, pruned_hash = ? WHERE id = ?", (*head, row))
    return head.seq - begin.seq
