"""SQLiteStore: budgets in one file, shared by the processes of one machine."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from typing_extensions import override

from dpmesh import forks, sqlite_file
from dpmesh.errors import DpmeshError, LedgerError, LostChargesError
from dpmesh.ledger.budget import Budget, check_adoptable, check_names, check_unchanged
from dpmesh.ledger.charge_log import ChainWriter, EntryKind, Posting
from dpmesh.ledger.sqlite import access, queries, schema
from dpmesh.ledger.sqlite.errors import explain
from dpmesh.ledger.sqlite.file_watch import FileWatch
from dpmesh.ledger.sqlite.rollback_guard import RollbackGuard
from dpmesh.ledger.store import (
    Account,
    AccountId,
    Batch,
    EpochKey,
    Opened,
    Outcome,
    Store,
    Window,
    decide,
    window_in_force,
)

_log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Debits of older windows count only on the odometer. The grants of this window are among the values, because SQLite
# checks the constraints of the new row before it finds the old one.
_DEBIT = """
INSERT INTO accounts (budget, account, window_start, debited, cap, granted, lifetime)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
ON CONFLICT (budget, account) DO UPDATE SET
    window_start = excluded.window_start, debited = excluded.debited, cap = excluded.cap, granted = excluded.granted,
    lifetime = CASE WHEN lifetime > 9223372036854775807 - ?7 THEN 9223372036854775807 ELSE lifetime + ?7 END
"""
_CREDIT = """
UPDATE accounts SET
    debited = CASE window_start WHEN :window THEN debited + :amount ELSE debited END,
    lifetime = lifetime + :amount
WHERE budget = :budget AND account = :account AND window_start >= :window AND lifetime + :amount >= 0
    AND (window_start > :window OR debited + :amount >= 0)
"""

_ERASE_AGAIN = 1.0  # seconds between two tries to empty the log while others read it
_FORK_WAIT = 10.0  # seconds that a fork waits for the transaction under way


class SQLiteStore(Store):
    """Keeps debits in an SQLite file, with a write-ahead log and synchronous=FULL: a commit survives a power cut.

    One worker thread makes all calls. Every transaction begins with the write lock, so processes that share the file
    never overspend together. The file holds keyed hashes of units, never their ids, and only its owner may read it.

    An SQLite connection can't be carried across a fork: the child would believe in locks that only the parent holds. So
    the connection is closed before a fork, and parent and child each open one of their own when they need it.

    Args:
        path: The file. It is made, with its directory, where there is none.
        busy_timeout: How long to wait for another process's lock, in seconds.
    """

    def __init__(self, path: str | os.PathLike[str], *, busy_timeout: float = 4.0) -> None:
        self.path = Path(path).absolute()  # a later chdir must not lead to another ledger
        self._busy_timeout = busy_timeout
        self._budgets: tuple[Budget, ...] = ()
        self._rows: tuple[int, ...] = ()  # for each budget, its id in the file
        self._secret = b""
        self._file: tuple[int, int] | None = None  # device and inode
        self._connection: sqlite3.Connection | None = None
        self._rollback_guard: RollbackGuard | None = None
        self._chain = ChainWriter()
        self._latest: dict[int, int] = {}  # by budget id: the latest window that this holder found
        self._failed = False  # whether the last write failed
        self._erase_at = math.inf  # when to empty the log of keys of past epochs, by the monotonic clock
        self._watch = FileWatch(self.path)
        self._executor: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()  # held while SQLite works, and during a fork
        self._paused = False  # whether a fork holds the lock, or nothing used SQLite since one did
        self._lost = False  # whether this is a child that was forked while SQLite worked
        forks.register_paused(self)

    @override
    async def open(self, budgets: Sequence[Budget]) -> Opened:
        return await self._run(self._open, tuple(budgets))

    @override
    async def may_adopt(self, budgets: Sequence[Budget]) -> None:
        await self._run(lambda: self._check_adoptable(self._connect(), budgets))

    @override
    async def adopt(self, budgets: Sequence[Budget], now: float) -> tuple[Window, ...]:
        return await self._run(self._adopt, tuple(budgets), now)

    @override
    async def debit(self, batch: Batch) -> Outcome:
        return await self._run(self._debit, batch)

    @override
    async def credit(self, windows: tuple[int, ...], unspent: Mapping[AccountId, int]) -> None:
        await self._run(self._credit, windows, unspent)

    @override
    async def redeem_once(self, now: int, redemptions: Sequence[tuple[bytes, int]]) -> list[bool]:
        return await self._run(self._redeem_once, now, redemptions)

    @override
    async def redeemed(self, names: Sequence[bytes]) -> list[bool]:
        return await self._run(self._redeemed, names)

    @override
    async def epoch_keys(self, now: int, lengths: Sequence[int]) -> list[EpochKey]:
        return await self._run(self._epoch_keys, now, lengths)

    @override
    async def accounts(self, budget: str | None, account: bytes | None) -> list[Account]:
        return await self._run(self._accounts, budget, account)

    @override
    async def record(self, note: str) -> None:
        await self._run(self._record, note)

    @override
    async def ping(self) -> None:
        await self._run(self._ping)

    @override
    async def close(self) -> None:
        await self._run(self._disconnect)
        if self._executor is not None:
            self._executor.shutdown(wait=False)
            self._executor = None

    # Everything below runs in the worker thread.

    async def _run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="dpmesh-ledger")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: self._guard(function, *args, **kwargs))

    def _guard(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        with self._lock:
            self._paused = False
            try:
                result = function(*args, **kwargs)
                self._erase()
            except (sqlite3.Error, OSError) as error:
                # After any error but a lock held elsewhere, connect anew: the fault may pass.
                if not getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
                    self._disconnect()
                raise explain(error, self.path) from error
            return result

    def _open(self, budgets: tuple[Budget, ...]) -> Opened:
        check_names(budgets)
        self._disconnect()
        self._file, self._secret = None, b""
        self._chain = ChainWriter()  # of what earlier chains left in the file, the rollback guard knows
        if not os.path.lexists(self.path):
            schema.make_file(self.path)
        connection = self._connect()
        if remark := access.remark(self.path):
            _log.warning("%s", remark)
        try:
            with sqlite_file.transaction(connection):
                stored = {budget.name: budget for budget in queries.read_budgets(connection).values()}
                for budget in budgets:
                    check_unchanged(stored.get(budget.name, budget), budget)
                others = queries.charged_others(connection, [budget.name for budget in budgets])
                written = [queries.write_budget(connection, budget) for budget in budgets]
                # Written even if nothing changes: a file that can't be written is found now, not later.
                connection.execute("UPDATE meta SET schema_version = schema_version")
        except DpmeshError:
            self._disconnect()
            raise
        self._budgets = budgets
        self._rows = tuple(row for row, _ in written)
        self._latest = {row: window.start for row, window in written}
        return Opened(self._secret, tuple(window for _, window in written), others)

    def _adopt(self, budgets: tuple[Budget, ...], now: float) -> tuple[Window, ...]:
        with self._change() as change:
            self._check_adoptable(change.connection, budgets)
            self._advance(change, [now] * len(self._budgets))
            written = [queries.write_budget(change.connection, budget) for budget in budgets]
            change.touch()
        self._budgets = budgets
        self._rows = tuple(row for row, _ in written)
        self._latest |= {row: window.start for row, window in written}
        return tuple(window for _, window in written)

    def _check_adoptable(self, connection: sqlite3.Connection, budgets: Sequence[Budget]) -> None:
        stored = {budget.name: budget for budget in queries.read_budgets(connection).values()}
        for budget in budgets:
            check_adoptable(stored.get(budget.name, budget), budget)

    def _connect(self) -> sqlite3.Connection:
        """The connection, which is made if there is none. It is always to the file that was opened first."""
        if self._lost:
            raise LedgerError(f"{self.path} was being written when this process was forked: start it afresh")
        file = self._identity()
        if self._file not in (None, file):
            raise self._replaced()
        if self._watch.stale:
            self._disconnect()
        if self._connection is None:
            connection = schema.connect(self.path, self._busy_timeout)
            try:
                self._secret = self._prepare(connection)
                self._rollback_guard = RollbackGuard(
                    self.path, lambda: queries.progress(connection, self.path)
                )
            except BaseException:
                connection.close()
                raise
            self._connection, self._file = connection, file
            self._watch.restart()
        return self._connection

    def _prepare(self, connection: sqlite3.Connection) -> bytes:
        """Makes commits durable and the tables current, and returns the ledger's secret."""
        schema.make_durable(connection, self.path)
        secret = schema.read_secret(connection, self.path)
        if self._secret not in (b"", secret):
            raise self._replaced()
        schema.upgrade(connection)
        return secret

    def _replaced(self) -> LostChargesError:
        return LostChargesError(
            f"{self.path} was replaced while in use: restore it, or restart to use the new one"
        )

    def _identity(self) -> tuple[int, int]:
        """The file's device and inode."""
        try:
            status = schema.plain_file(self.path)
        except FileNotFoundError as error:
            raise LedgerError(f"{self.path} was removed while in use: restore it, or restart") from error
        if status.st_size == 0:
            raise LedgerError(
                f"{self.path} is empty, so what was spent is lost: restore it from a backup, "
                "or remove it and its witness to start all budgets anew"
            )
        return status.st_dev, status.st_ino

    def _disconnect(self) -> None:
        if self._lost:
            return  # it is the parent's
        guard, self._rollback_guard = self._rollback_guard, None
        if guard is not None:
            with suppress(OSError):
                guard.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    @contextmanager
    def _change(self) -> Iterator[queries.Change]:
        """A transaction. If it succeeds, it is durable and counted by the rollback guard; if it fails, it may be."""
        connection = self._connect()
        change = queries.Change(connection, self._chain)
        self._failed = True
        with sqlite_file.transaction(connection):
            yield change
            commits = change.finish()
            if commits and self._rollback_guard is not None:
                self._rollback_guard.check(commits)
                self._watch.check(self._rollback_guard)
        self._failed = False
        change.committed()
        if commits and self._rollback_guard is not None:
            self._rollback_guard.reached(commits)

    def _debit(self, batch: Batch) -> Outcome:
        with self._change() as change:
            windows = self._advance(change, [batch.time(index) for index in range(len(self._budgets))])
            starts = tuple(window.start for window in windows)
            states = {
                a: queries.state(change.connection, self._rows[a[0]], a[1], starts[a[0]])
                for a in batch.leased
            }
            outcome = decide(
                batch,
                windows,
                {a: debited for a, (debited, _) in states.items()},
                {a: granted for a, (_, granted) in states.items()},
            )
            if outcome.debits:
                postings = {a: self._posting(a, starts, n) for a, n in outcome.debits.items()}
                change.write(EntryKind.DEBIT, postings.values())
                change.connection.executemany(
                    _DEBIT,
                    [
                        (
                            *posting[:3],
                            outcome.debited[a],
                            windows[a[0]].cap,
                            states[a][1],
                            posting.amount,
                        )
                        for a, posting in postings.items()
                    ],
                )
        return outcome

    def _posting(self, account: AccountId, windows: tuple[int, ...], amount: int) -> Posting:
        return Posting(self._rows[account[0]], account[1], windows[account[0]], amount)

    def _advance(self, change: queries.Change, times: Sequence[float]) -> tuple[Window, ...]:
        """Begins the windows that are due, at a time for each budget, and lowers caps; returns those in force."""
        stored = self._windows(change.connection)
        for row, budget, now in zip(self._rows, self._budgets, times, strict=True):
            window = window_in_force(stored[row], budget, now)
            if window != stored[row]:
                change.touch()
                queries.write_window(change.connection, row, window, budget)
                stored[row] = window
        self._latest = {row: window.start for row, window in stored.items()}
        return tuple(stored[row] for row in self._rows)

    def _windows(self, connection: sqlite3.Connection) -> dict[int, Window]:
        """The latest window of each budget, by its row.

        Raises:
            LostChargesError: Some went back: an administrator brought them back, and this holder would begin them
                again, or an older copy overwrites the file right now.
        """
        stored = queries.windows(connection)
        if any(row not in stored or stored[row].start < start for row, start in self._latest.items()):
            raise LostChargesError(
                f"windows of {self.path} went back: `dpmesh ledger accept` brought them back, or an older copy "
                "overwrites the file: restart this holder"
            )
        return stored

    def _credit(self, windows: tuple[int, ...], unspent: Mapping[AccountId, int]) -> None:
        with self._change() as change:
            postings = []
            for a, amount in unspent.items():
                posting = self._posting(a, windows, -amount)
                if amount > 0 and change.connection.execute(_CREDIT, posting._asdict()).rowcount == 1:
                    postings.append(posting)
            if postings:
                change.write(EntryKind.CREDIT, postings)

    def _record(self, note: str) -> None:
        with self._change() as change:
            change.write(EntryKind.POLICY, (), note)

    def _redeem_once(self, now: int, redemptions: Sequence[tuple[bytes, int]]) -> list[bool]:
        with self._change() as change:
            change.touch()
            return queries.redeem(change.connection, now, redemptions)

    def _redeemed(self, names: Sequence[bytes]) -> list[bool]:
        connection = self._connect()
        self._windows(connection)
        return queries.redeemed(connection, names)

    def _epoch_keys(self, now: int, lengths: Sequence[int]) -> list[EpochKey]:
        with self._change() as change:
            windows = self._windows(change.connection)
            latest = max([now, *[windows[row].start * 1_000_000 for row in self._rows]])
            keys, any_fresh = queries.epoch_keys(change.connection, latest, lengths)
            if any_fresh:
                change.touch()
        # Also where another process replaced a key, which may have ended before it emptied the log.
        self._erase_at = 0.0
        return keys

    def _erase(self) -> None:
        """Empties the log, which holds older pages with the keys of past epochs, as soon as nobody reads it."""
        if time.monotonic() < self._erase_at or self._connection is None or self._rollback_guard is None:
            return
        self._erase_at = time.monotonic() + _ERASE_AGAIN
        self._watch.check(self._rollback_guard)
        with suppress(sqlite3.Error):  # What the call did is done; this is tried again.
            if sqlite_file.empty_log(self._connection):
                self._erase_at = math.inf

    def _ping(self) -> None:
        connection = self._connect()
        self._windows(connection)
        if not self._failed:
            queries.progress(connection, self.path)
            return
        with self._change() as change:
            change.touch()

    def _accounts(self, budget: str | None, account: bytes | None) -> list[Account]:
        return list(queries.read_accounts(self._connect(), budget, account))

    # Forks: see the class.

    def before_fork(self) -> None:
        """Waits for the transaction under way, and closes the connection."""
        if self._lock.acquire(timeout=_FORK_WAIT):
            self._paused = True
            self._disconnect()

    def after_fork_in_parent(self) -> None:
        """Goes on; the next call connects again."""
        if self._paused:
            self._paused = False
            self._lock.release()

    @override
    def after_fork_in_child(self) -> None:
        # Without a pause SQLite may have been at work: then the store refuses to answer, here and in its own children.
        self._lost = self._lost or not self._paused or self._connection is not None
        self._lock = threading.Lock()
        self._executor = None
        self._chain = ChainWriter()
