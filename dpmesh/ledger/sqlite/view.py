"""SQLiteView: an SQLite ledger as it was at one moment."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TypeVar

from typing_extensions import override

from dpmesh import sqlite_file
from dpmesh.errors import LedgerError
from dpmesh.ledger.admin import Chain, LedgerView, ReadAgainError, StoredEntry, ahead_of_the_clock
from dpmesh.ledger.charge_log import Head
from dpmesh.ledger.sqlite import access, queries, rewind, rollback_guard, schema
from dpmesh.ledger.sqlite.errors import explained, missing
from dpmesh.ledger.store import Account

_T = TypeVar("_T")

_TIMEOUT = 4.0  # seconds to wait for a holder's lock
_PAGE = 1000


class SQLiteView(LedgerView):
    """An SQLite ledger as it was when this object was made.

    A ledger that is in use has a write-ahead log beside it. A ledger at rest has none, and is opened as immutable, so
    that SQLite makes no log, which would belong to the reading user.

    Raises:
        LedgerError: There is no ledger at the path, or it can't be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with explained(path):
            if not os.path.lexists(path):
                raise missing(path)
            schema.plain_file(path)
            self._at_rest = _at_rest(path)
            if self._at_rest is not None:
                try:
                    self._open("mode=ro&immutable=1")
                    self._check_settled()
                except (sqlite3.Error, ReadAgainError):
                    # It may have been in use; the other way of reading tells.
                    self._at_rest = None
            if self._at_rest is None:
                self._open("mode=ro")

    @override
    def accounts(self, budget: str | None = None, account: bytes | None = None) -> AsyncIterator[Account]:
        return self._pages(lambda: queries.read_accounts(self._connection, budget, account))

    @override
    async def chains(self) -> list[Chain]:
        if not self._has_log:
            return []
        return await asyncio.to_thread(self._settled, self._read_chains)

    @override
    def entries(self) -> AsyncIterator[StoredEntry]:
        return self._pages(self._read_entries)

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def _open(self, mode: str) -> None:
        self._connection = connection = sqlite_file.connect(self._path, mode, _TIMEOUT)
        self.ahead: tuple[str, ...] = ()
        self.older = False
        try:
            connection.execute("BEGIN")  # everything is read as it is at the first SELECT
            self.secret = schema.read_secret(connection, self._path)
            self.budgets = queries.usable_budgets(connection, self._path)
            self.windows = queries.windows_in_force(connection, self.budgets)
            self._has_log = queries.version_of(connection) >= 3
            self.pruned_before, self.remark = 0, ""
            if self._has_log:
                (self.pruned_before,) = connection.execute("SELECT pruned_before FROM ledger").fetchone()
                self.ahead = tuple(self.budgets[row].name for row in rewind.ahead(connection, self.budgets))
                self.remark, self.older = _state(connection, self._path, self._at_rest is not None)
                if not self.remark:
                    self.remark = self._notes()
        except BaseException:
            connection.close()
            raise

    def _notes(self) -> str:
        """Other remarks: a wrong clock locked the ledger, or other users may use its files."""
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
        """The rows of an iterator over the file, read page by page in a thread."""
        rows = read()
        while page := await asyncio.to_thread(self._settled, lambda: list(islice(rows, _PAGE))):
            for row in page:
                yield row

    def _settled(self, read: Callable[[], _T]) -> _T:
        """Reads, and checks that a ledger at rest is still as it was at the beginning."""
        with explained(self._path):
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
    """Why the ledger may not be charged ("" if it may), and whether it is an older copy."""
    try:
        name, commits = queries.progress(connection, path)
    except LedgerError as error:
        return str(error), False
    with suppress(OSError):  # Readers need no rollback guard, and holders check it themselves.
        if at_rest and (doubt := rollback_guard.doubt(path, name, commits)):
            return doubt, True
    return "", False


def _at_rest(path: Path) -> tuple[int, int, int] | None:
    """What changes when the file does, or None while the ledger has a write-ahead log."""
    if path.with_name(path.name + "-wal").exists():
        return None
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
