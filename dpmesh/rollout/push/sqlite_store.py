"""SQLiteRolloutStore: the push service's store in one SQLite file."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from typing_extensions import override

from dpmesh.errors import RolloutStoreError
from dpmesh.rollout.push import counts
from dpmesh.rollout.push.counts import Answer, Before, Cell, EpochCounts, Kind, Said
from dpmesh.rollout.push.halting import Round
from dpmesh.rollout.push.published import Published
from dpmesh.rollout.push.reports import OutcomeReport, RefusalReport
from dpmesh.rollout.push.store import RolloutStore
from dpmesh.sqlite_file import connect, make_durable, transaction

_T = TypeVar("_T")

_BUSY: Final = 5.0  # seconds to wait for another process's lock
_VERSION: Final = 1

_TABLES: Final = """
CREATE TABLE epochs (
    epoch  INTEGER PRIMARY KEY CHECK (epoch > 0),
    digest BLOB    NOT NULL CHECK (length(digest) = 32),
    share  REAL    NOT NULL,
    halted TEXT    NOT NULL DEFAULT ''
);
CREATE TABLE devices (
    epoch     INTEGER NOT NULL REFERENCES epochs ON DELETE CASCADE,
    pseudonym BLOB    NOT NULL CHECK (length(pseudonym) = 16),
    kind      TEXT    NOT NULL,
    reason    TEXT    NOT NULL,
    PRIMARY KEY (epoch, pseudonym)
) WITHOUT ROWID;
CREATE TABLE cells (
    epoch   INTEGER NOT NULL REFERENCES epochs ON DELETE CASCADE,
    kind    TEXT    NOT NULL,
    reason  TEXT    NOT NULL,
    devices INTEGER NOT NULL CHECK (devices >= 0),
    PRIMARY KEY (epoch, kind, reason)
) WITHOUT ROWID;
CREATE TABLE rounds (
    round           INTEGER PRIMARY KEY,
    epoch           INTEGER NOT NULL REFERENCES epochs ON DELETE CASCADE,
    ring            INTEGER NOT NULL DEFAULT 0,
    ring_refused    INTEGER NOT NULL DEFAULT 0,
    control         INTEGER NOT NULL DEFAULT 0,
    control_refused INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE answered (
    round     INTEGER NOT NULL REFERENCES rounds ON DELETE CASCADE,
    pseudonym BLOB    NOT NULL CHECK (length(pseudonym) = 16),
    PRIMARY KEY (round, pseudonym)
) WITHOUT ROWID;
"""


class SQLiteRolloutStore(RolloutStore):
    """Keeps reports in an SQLite file. Calls run in threads, one after the other."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._turn = threading.Lock()

    @override
    async def open(self, *, create: bool) -> None:
        await asyncio.to_thread(self._open, create)

    @override
    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    @override
    async def publish(self, published: Published) -> None:
        await self._write(lambda connection: _publish(connection, published))

    @override
    async def count_outcomes(self, reports: Sequence[OutcomeReport]) -> Sequence[Answer]:
        return await self._write(lambda connection: _count_outcomes(connection, reports))

    @override
    async def count_refusals(self, newest: int, reports: Sequence[RefusalReport]) -> None:
        await self._write(lambda connection: _count_refusals(connection, newest, reports))

    @override
    async def halt(self, epoch: int, reason: str) -> bool:
        update = "UPDATE epochs SET halted = ? WHERE epoch = ? AND halted = ''"
        return await self._write(
            lambda connection: bool(connection.execute(update, (reason, epoch)).rowcount)
        )

    @override
    async def counts(self) -> list[EpochCounts]:
        return await self._write(_counts)

    def _open(self, create: bool) -> None:
        with self._turn, self._explained():
            if create:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
            elif not self._path.exists():
                raise RolloutStoreError(f"{self._path}: there is no store; `dpmesh policy serve` makes it")
            connection = connect(self._path, "mode=rw", _BUSY)
            try:
                if create:
                    make_durable(connection)
                    with transaction(connection):
                        self._make(connection)
                self._check(connection)
                make_durable(connection)
                connection.execute("PRAGMA foreign_keys = ON")
            except BaseException:
                connection.close()
                raise
            self._connection = connection

    def _make(self, connection: sqlite3.Connection) -> None:
        """Makes the tables in a file that is empty."""
        (objects,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not objects:
            for statement in _TABLES.split(";")[:-1]:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {_VERSION}")

    def _check(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()
        found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'answered'").fetchone()
        if found is None or version != (_VERSION,):
            raise RolloutStoreError(f"{self._path}: is no store of a push service of this version of dpmesh")

    def _close(self) -> None:
        with self._turn:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    async def _write(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        return await asyncio.to_thread(self._do, work)

    def _do(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        with self._turn, self._explained():
            if self._connection is None:
                raise RolloutStoreError(f"{self._path}: is not open")
            with transaction(self._connection):
                return work(self._connection)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise RolloutStoreError(f"{self._path}: {type(error).__name__}: {error}") from None
        except OSError as error:
            raise RolloutStoreError(f"{self._path}: {error.strerror}") from None


def _publish(connection: sqlite3.Connection, published: Published) -> None:
    for epoch, digest, share in published.epochs():
        connection.execute(
            "INSERT INTO epochs (epoch, digest, share) VALUES (?, ?, ?) "
            "ON CONFLICT (epoch) DO UPDATE SET digest = excluded.digest, share = excluded.share",
            (epoch, digest, share),
        )
    connection.execute(
        "DELETE FROM epochs WHERE epoch NOT IN (SELECT epoch FROM epochs ORDER BY epoch DESC LIMIT ?)",
        (counts.KEPT_EPOCHS,),
    )
    connection.execute("DELETE FROM answered WHERE round < ?", (published.version,))


def _count_outcomes(connection: sqlite3.Connection, reports: Sequence[OutcomeReport]) -> Sequence[Answer]:
    said: dict[counts.Device, Said] = {}
    for report in reports:
        device = report.epoch, report.pseudonym
        row = connection.execute(
            "SELECT kind, reason FROM devices WHERE epoch = ? AND pseudonym = ?", device
        ).fetchone()
        if row is not None:
            said[device] = Said(Kind(row[0]), row[1])
    digests = dict(connection.execute("SELECT epoch, digest FROM epochs"))
    found = counts.changes(Before(digests, _cells(connection), said), reports)
    connection.executemany(
        "INSERT INTO devices VALUES (?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET kind = excluded.kind, reason = excluded.reason",
        [(*device, *now) for device, now in found.said.items()],
    )
    # In two steps, because the row of an upsert has to pass the check of the table by itself.
    cells = [cell for cell, change in found.devices.items() if change]
    connection.executemany("INSERT OR IGNORE INTO cells VALUES (?, ?, ?, 0)", cells)
    connection.executemany(
        "UPDATE cells SET devices = devices + ? WHERE epoch = ? AND kind = ? AND reason = ?",
        [(found.devices[cell], *cell) for cell in cells],
    )
    return found.answers


def _count_refusals(connection: sqlite3.Connection, newest: int, reports: Sequence[RefusalReport]) -> None:
    for report in reports:
        connection.execute(
            "INSERT OR IGNORE INTO rounds (round, epoch) VALUES (?, ?)", (report.round, newest)
        )
        row = report.round, report.pseudonym
        if connection.execute("INSERT OR IGNORE INTO answered VALUES (?, ?)", row).rowcount:
            group = "ring" if report.epoch == newest else "control"
            connection.execute(
                f"UPDATE rounds SET {group} = {group} + 1, {group}_refused = {group}_refused + ? "  # noqa: S608
                "WHERE round = ?",
                (report.noisy_refused, report.round),
            )


def _cells(connection: sqlite3.Connection) -> dict[Cell, int]:
    rows = connection.execute("SELECT epoch, kind, reason, devices FROM cells")
    return {(epoch, Kind(kind), reason): devices for epoch, kind, reason, devices in rows}


def _counts(connection: sqlite3.Connection) -> list[EpochCounts]:
    rounds: dict[int, list[Round]] = {}
    rows = connection.execute(
        "SELECT epoch, ring, ring_refused, control, control_refused FROM rounds ORDER BY round"
    )
    for epoch, *numbers in rows:
        rounds.setdefault(epoch, []).append(Round(*numbers))
    cells = _cells(connection)
    epochs = connection.execute(
        "SELECT epoch, digest, share, halted FROM epochs ORDER BY epoch DESC"
    ).fetchall()
    return [
        counts.epoch_counts(epoch, digest, share, halted, cells, rounds.get(epoch, ()))
        for epoch, digest, share, halted in epochs
    ]
