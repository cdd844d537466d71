"""SQLiteBooks: what administrators read of a ledger in an SQLite file, and change in it."""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TypeVar

from dpmesh import sqlite_file
from dpmesh.accounting import MAX_AMOUNT, window_end, window_start
from dpmesh.errors import ConfigError, LedgerError
from dpmesh.ledger import charge_log, clock_rewind
from dpmesh.ledger.admin import Chain, StoredEntry, ahead_of_the_clock, check_grant, check_granted
from dpmesh.ledger.budget import Budget
from dpmesh.ledger.charge_log import CHAIN_BYTES, EntryKind, Head, Posting
from dpmesh.ledger.sqlite import access, rollback_guard, schema, wal
from dpmesh.ledger.sqlite.rollback_guard import RollbackGuard
from dpmesh.ledger.sqlite.store import make_file
from dpmesh.ledger.store import Account

_T = TypeVar("_T")

_TIMEOUT = 4.0  # seconds to wait for a holder's lock
_PAGE = 1000
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


class ReadAgainError(LedgerError):
    """A file that nobody had open was opened by a holder while it was read: what was read may be no ledger's state."""


class SQLiteAdmin:
    """See LedgerAdmin.

    Args:
        path: The ledger's file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()

    @asynccontextmanager
    async def view(self) -> AsyncIterator[SQLiteView]:
        """See LedgerAdmin.

        Raises:
            ReadAgainError: A ledger at rest was opened by a holder meanwhile. Any method of the view may raise it.
        """
        view = await asyncio.to_thread(SQLiteView, self.path)
        try:
            yield view
        finally:
            view.close()

    async def migrate(self) -> tuple[int, int]:
        """See LedgerAdmin."""
        return await asyncio.to_thread(self._migrate)

    async def grant(self, budget: str, account: bytes, raised: int, note: str, *, has: int = 0) -> Account:
        """See LedgerAdmin."""
        return await asyncio.to_thread(self._grant, budget, account, raised, note, has)

    async def prune(self, before: int) -> int:
        """See LedgerAdmin."""
        return await asyncio.to_thread(self._prune, before)

    async def accept(self, note: str, *, unnoticed: bool = False) -> tuple[str, ...]:
        """See LedgerAdmin."""
        return await asyncio.to_thread(self._accept, note, unnoticed)

    def _migrate(self) -> tuple[int, int]:
        with _explained(self.path):
            if not os.path.lexists(self.path):
                make_file(self.path)
                before = 0
            else:
                with closing(_connect(self.path)) as connection:
                    before = schema.version_of(connection)
        with self._writing():  # brings it up to date
            return before, schema.VERSION

    def _grant(self, budget: str, account: bytes, raised: int, note: str, has: int) -> Account:
        check_grant(account, raised)
        with self._writing() as (connection, seen), _commit(connection, seen):
            row, definition = _find(connection, self.path, budget)
            start = _window_in_force(connection, row, definition)
            check_granted(definition.cap, _granted(connection, row, account, start), has, raised)
            line = Posting(row, account, start, raised)
            connection.execute("UPDATE budgets SET window_start = ? WHERE id = ?", (start, row))
            connection.execute(_GRANT, {**line._asdict(), "cap": definition.cap})
            _append(connection, EntryKind.GRANT, [line], note)
            (granted,) = schema.read_accounts(connection, budget, account)
        return granted

    def _prune(self, before: int) -> int:
        with self._writing() as (connection, seen):
            with _commit(connection, seen):
                _check_horizon(_budgets(connection, self.path), before)
                # Written down first: whoever verifies must not miss what a prune that was interrupted took away.
                connection.execute("UPDATE ledger SET pruned_before = max(pruned_before, ?)", (before,))
            pruned = 0
            for (row,) in connection.execute("SELECT id FROM chains").fetchall():
                gone = _PRUNED_AT_ONCE
                while gone == _PRUNED_AT_ONCE:
                    with _commit(connection, seen):
                        gone = _prune_chain(connection, row, before)
                    pruned += gone
            return pruned

    def _accept(self, note: str, unnoticed: bool) -> tuple[str, ...]:
        with _explained(self.path):
            if os.path.lexists(self.path):
                access.check(self.path)
            if wal.gap(self.path):
                wal.discard(self.path)  # It can't be applied to this file; the witness knows what it said.
        with _explained(self.path), closing(_connect(self.path)) as connection:
            schema.make_durable(connection, self.path)
            schema.upgrade(connection)
            if (
                not unnoticed
                and rollback_guard.refusal(self.path, *schema.progress(connection, self.path)) is None
            ):
                self._accept_windows(note)
                return ()
            with sqlite_file.transaction(connection):
                self._refused(connection, unnoticed)
                # The count is going to jump. Were that the first that the log has of it, and stayed there because
                # somebody reads or this process is killed, then the file would seem older than its log. So something
                # else beside the count is changed before, for a moment. (Where nothing changes, SQLite writes nothing.)
                connection.execute("UPDATE ledger SET pruned_before = pruned_before + 1")
            with sqlite_file.transaction(connection):
                name, commits = self._refused(connection, unnoticed)
                budgets = _budgets(connection, self.path)
                _rewind(connection, self.path, note)
                for row, budget in budgets.items():
                    end = window_end(_window_in_force(connection, row, budget), budget.window)
                    if end is not None:
                        connection.execute("UPDATE budgets SET window_start = ? WHERE id = ?", (end, row))
                _append(connection, EntryKind.ACCEPT, (), note)
                # More than anybody saw: the file that this one stands in for is the older copy from now on.
                commits = max(commits, rollback_guard.seen(self.path, name)) + 1
                connection.execute(
                    "UPDATE ledger SET commits = ?, pruned_before = pruned_before - 1", (commits,)
                )
            # Last: were it first, an interruption in between would let the copy be opened as it is.
            rollback_guard.remake(self.path, name, commits)
        return tuple(budget.name for budget in budgets.values() if budget.window is None)

    def _accept_windows(self, note: str) -> None:
        """Undoes what a wrong clock did to a ledger that is no older copy.

        Raises:
            LedgerError: No clock was wrong.
        """
        with self._writing() as (connection, seen), _commit(connection, seen):
            if not _rewind(connection, self.path, note):
                raise LedgerError(
                    f"{self.path} is not an older copy of itself, and none of its windows is ahead of the clock: there "
                    "is nothing to accept, unless you know better (--unnoticed)"
                )

    def _refused(self, connection: sqlite3.Connection, unnoticed: bool) -> tuple[bytes, int]:
        """The name and the commits of a ledger that nobody may open, because it is an older copy.

        Raises:
            LedgerError: It is none, as far as anybody noticed.
        """
        name, commits = schema.progress(connection, self.path)
        if rollback_guard.refusal(self.path, name, commits) is None and not unnoticed:
            raise LedgerError(
                f"{self.path} is not an older copy of itself any more: somebody has accepted it, or put another back"
            )
        return name, commits

    @contextmanager
    def _writing(self) -> Iterator[tuple[sqlite3.Connection, RollbackGuard]]:
        """A connection to a ledger that is up to date and no older copy, and its witness."""
        with _explained(self.path), closing(_connect(self.path)) as connection:
            schema.make_durable(connection, self.path)
            schema.upgrade(connection)
            with closing(RollbackGuard(self.path, lambda: schema.progress(connection, self.path))) as seen:
                yield connection, seen


class SQLiteView:
    """See View. The ledger as it was when this was made.

    Whoever has a ledger open has a write-ahead log beside it. Without one SQLite may take the file as immutable, and
    then it makes no log of its own, which would belong to whoever looks.

    Raises:
        LedgerError: There is no ledger at the path, or it can't be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with _explained(path):
            if not os.path.lexists(path):
                raise _missing(path)
            schema.plain_file(path)
            self._at_rest = _at_rest(path)
            if self._at_rest is not None:
                try:
                    self._open("mode=ro&immutable=1")
                    self._check_settled()
                except (sqlite3.Error, ReadAgainError):
                    # Perhaps it was being written; the other way of reading tells.
                    self._at_rest = None
            if self._at_rest is None:
                self._open("mode=ro")

    @property
    def secret(self) -> bytes:
        """See View."""
        return self._secret

    @property
    def budgets(self) -> Mapping[int, Budget]:
        """See View."""
        return self._budgets

    @property
    def windows(self) -> Mapping[int, int]:
        """See View."""
        return self._windows

    @property
    def remark(self) -> str:
        """See View."""
        return self._remark

    @property
    def pruned_before(self) -> int:
        """See View."""
        return self._pruned_before

    def accounts(self, budget: str | None = None, account: bytes | None = None) -> AsyncIterator[Account]:
        """See View."""
        return self._pages(lambda: schema.read_accounts(self._connection, budget, account))

    async def chains(self) -> list[Chain]:
        """See View."""
        if not self._has_log:
            return []
        return await asyncio.to_thread(self._settled, self._read_chains)

    def entries(self) -> AsyncIterator[StoredEntry]:
        """See View."""
        return self._pages(self._read_entries)

    def close(self) -> None:
        """Lets go of the file."""
        self._connection.close()

    def _open(self, mode: str) -> None:
        self._connection = connection = sqlite_file.connect(self._path, mode, _TIMEOUT)
        self.ahead: tuple[str, ...] = ()
        self.older = False
        try:
            connection.execute("BEGIN")  # everything is read as it is at the first SELECT
            self._secret = schema.read_secret(connection, self._path)
            self._budgets = _budgets(connection, self._path)
            self._windows = {
                row: _window_in_force(connection, row, budget) for row, budget in self._budgets.items()
            }
            self._has_log = schema.version_of(connection) >= 3
            self._pruned_before, self._remark = 0, ""
            if self._has_log:
                (self._pruned_before,) = connection.execute("SELECT pruned_before FROM ledger").fetchone()
                self.ahead = tuple(self._budgets[row].name for row in _ahead(connection, self._budgets))
                self._remark, self.older = _state(connection, self._path, self._at_rest is not None)
                if not self._remark:
                    self._remark = self._notes()
        except BaseException:
            connection.close()
            raise

    def _notes(self) -> str:
        """What else has to be known: that a wrong clock locked it, or that others may use its files."""
        if self.ahead:
            return ahead_of_the_clock(str(self._path), self.ahead, time.time())
        with suppress(OSError):
            return access.remark(self._path)
        return ""

    def _read_chains(self) -> list[Chain]:
        rows = self._connection.execute(
            "SELECT name, pruned_seq, pruned_hash, seq, hash FROM chains ORDER BY name"
        )
        return [Chain(row[0], Head(*row[1:3]), Head(*row[3:])) for row in rows]

    def _read_entries(self) -> Iterator[StoredEntry]:
        if not self._has_log:
            return
        for row, name in self._connection.execute("SELECT id, name FROM chains ORDER BY name").fetchall():
            entries = self._connection.execute(
                "SELECT seq, body, hash FROM charges WHERE chain = ? ORDER BY seq", (row,)
            )
            for entry in entries:
                yield StoredEntry(name, *entry)

    async def _pages(self, read: Callable[[], Iterator[_T]]) -> AsyncIterator[_T]:
        """What an iterator over the file gives, read page by page beside the event loop."""
        rows = read()
        while page := await asyncio.to_thread(self._settled, lambda: list(islice(rows, _PAGE))):
            for row in page:
                yield row

    def _settled(self, read: Callable[[], _T]) -> _T:
        """What is read, if it was read from the file as it was at the beginning."""
        with _explained(self._path):
            try:
                found = read()
            except sqlite3.Error:
                self._check_settled()
                raise
            self._check_settled()
            return found

    def _check_settled(self) -> None:
        if self._at_rest is not None and _at_rest(self._path) != self._at_rest:
            raise ReadAgainError(f"{self._path} was opened by a holder while it was read: read it again")


def _state(connection: sqlite3.Connection, path: Path, at_rest: bool) -> tuple[str, bool]:
    """That nobody may charge a ledger and why, or "" if everybody may; and whether it is an older copy."""
    try:
        name, commits = schema.progress(connection, path)
    except LedgerError as error:
        return str(error), False
    with suppress(OSError):  # Whoever only reads needs no witness.
        # While somebody charges it, that is no matter of the view's.
        if at_rest and (doubt := rollback_guard.doubt(path, name, commits)):
            return doubt, True
    return "", False


def _at_rest(path: Path) -> tuple[int, int, int] | None:
    """What changes when the file does, or None while it has a write-ahead log."""
    if path.with_name(path.name + "-wal").exists():
        return None
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Says what errors of SQLite and of the system mean."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise schema.explain(error, path) from error


def _missing(path: Path) -> LedgerError:
    return LedgerError(f"there is no ledger at {path}; it is made when a mesh first opens it")


def _connect(path: Path) -> sqlite3.Connection:
    """A connection that may write to a ledger that there is."""
    if not os.path.lexists(path):
        raise _missing(path)
    schema.plain_file(path)
    if not os.access(path, os.R_OK | os.W_OK):
        raise LedgerError(f"{path} is read-only: make it and its directory writable for this user")
    access.check(path)
    wal.check(path)  # before SQLite looks at either
    connection = sqlite_file.connect(path, "mode=rw", _TIMEOUT)
    try:
        schema.read_secret(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _commit(connection: sqlite3.Connection, seen: RollbackGuard) -> Iterator[None]:
    """A transaction that is counted and witnessed."""
    with sqlite_file.transaction(connection):
        yield
        commits = schema.count_commit(connection)
        seen.check(commits)
    seen.reached(commits)


def _budgets(connection: sqlite3.Connection, path: Path) -> dict[int, Budget]:
    try:
        return schema.number_budgets(connection)
    except (ConfigError, ValueError) as error:
        raise LedgerError(
            f"{path} holds a budget that this version of dpmesh doesn't know: {error}"
        ) from error


def _find(connection: sqlite3.Connection, path: Path, name: str) -> tuple[int, Budget]:
    """A budget's row and definition."""
    budgets = _budgets(connection, path)
    for row, budget in budgets.items():
        if budget.name == name:
            return row, budget
    listed = ", ".join(budget.name for budget in budgets.values()) or "none"
    raise ConfigError(f"budget.name: {name!r} is not in the ledger; there are {listed}")


def _window_in_force(connection: sqlite3.Connection, row: int, budget: Budget) -> int:
    """When the window began that is charged: the latest that ever was, or by this machine's clock, if that is later."""
    (stored,) = connection.execute("SELECT window_start FROM budgets WHERE id = ?", (row,)).fetchone()
    return max(int(stored), window_start(time.time(), budget.window))


def _windows(connection: sqlite3.Connection) -> dict[int, int]:
    """The latest window that ever was in force, for each budget."""
    return dict(connection.execute("SELECT id, window_start FROM budgets"))


def _ahead(connection: sqlite3.Connection, budgets: Mapping[int, Budget]) -> dict[int, int]:
    """The budgets whose windows a wrong clock began, and where they have to go on."""
    windows, now = _windows(connection), time.time()
    if not clock_rewind.ahead(budgets, windows, now, 0):
        return {}  # The common case, which spares a look at the whole log.
    return clock_rewind.ahead(budgets, windows, now, clock_rewind.accepted_copies(_entries(connection)))


def _entries(connection: sqlite3.Connection) -> Iterator[charge_log.Entry]:
    """All entries, in any order."""
    return (charge_log.decode(body) for (body,) in connection.execute("SELECT body FROM charges"))


def _rewind(connection: sqlite3.Connection, path: Path, note: str) -> bool:
    """Brings back all windows that a wrong clock began, within the transaction that is open; says if there were any."""
    budgets = _budgets(connection, path)
    targets = _ahead(connection, budgets)
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
    nets = clock_rewind.Nets(rows.keys(), targets)
    for entry in _entries(connection):
        nets.add(entry)
    carried = []
    for key, (start, debited) in rows.items():
        at, cap = targets[key[0]], budgets[key[0]].cap
        one = clock_rewind.carry(key, (start, debited), nets.of(key), at, cap=cap, whole=pruned <= at)
        carried.append(one)
        connection.execute(
            "UPDATE accounts SET window_start = ?, debited = ?, granted = ?, cap = ?, lifetime = min(lifetime, ?) + ? "
            "WHERE budget = ? AND account = ?",
            (
                at,
                one.debited,
                one.granted,
                max(cap, one.debited - one.granted),
                MAX_AMOUNT - one.more,
                one.more,
                *key,
            ),
        )
    for row, at in targets.items():
        connection.execute("UPDATE budgets SET window_start = ? WHERE id = ?", (at, row))
    for kind, lines in clock_rewind.entries(carried):
        _append(connection, kind, lines, note)
    return True


def _granted(connection: sqlite3.Connection, row: int, account: bytes, window: int) -> int:
    """What is granted to an account in a window."""
    found = connection.execute(
        "SELECT granted FROM accounts WHERE budget = ? AND account = ? AND window_start = ?",
        (row, account, window),
    ).fetchone()
    return 0 if found is None else int(found[0])


def _check_horizon(budgets: Mapping[int, Budget], before: int) -> None:
    """Refuses to prune what accounts still show the sum of."""
    longest = max((int(budget.window) for budget in budgets.values() if budget.window is not None), default=0)
    horizon = int(time.time()) - longest
    if before > horizon:
        raise LedgerError(
            f"entries of the longest window, {longest} s, have to stay: the charge log can't be pruned beyond "
            f"{datetime.fromtimestamp(horizon, UTC):%Y-%m-%d %H:%M:%S} UTC"
        )


def _prune_chain(connection: sqlite3.Connection, row: int, before: int) -> int:
    """Removes some entries from the beginning of a chain; returns how many.

    One that charges a window that begins later stays, however old it is: its account still shows that sum. (Windows are
    ahead of the clock after a clock was wrong, and after `accept`.)

    Raises:
        LedgerError: The chain is broken there, and whoever asks why will need it.
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
        if entry.at >= before or any(line.window >= before for line in entry.lines):
            break
        head = after
    connection.execute("DELETE FROM charges WHERE chain = ? AND seq <= ?", (row, head.seq))
    connection.execute("UPDATE chains SET pruned_seq = ?, pruned_hash = ? WHERE id = ?", (*head, row))
    return head.seq - begin.seq


def _append(connection: sqlite3.Connection, kind: EntryKind, lines: Iterable[Posting], note: str) -> None:
    """Writes an administrator's entry, in a chain of its own."""
    name = secrets.token_bytes(CHAIN_BYTES)
    schema.write_entry(connection, name, charge_log.begin(name), kind, lines, note)
