"""Transfer: moves an SQLite ledger into PostgreSQL. No charge is lost, and none counts twice."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpmesh import sqlite_file
from dpmesh.errors import ConfigError, LedgerError
from dpmesh.ledger.backends import open_admin
from dpmesh.ledger.postgres.admin import PostgresAdmin
from dpmesh.ledger.postgres.queries import write_budgets
from dpmesh.ledger.sqlite import access, errors, queries, schema, wal
from dpmesh.ledger.sqlite.admin import SQLiteAdmin
from dpmesh.ledger.sqlite.rollback_guard import RollbackGuard

_BUSY = 10.0  # seconds to wait for the holder of the file's lock
_COLUMNS = {
    "accounts": ("budget", "account", "window_start", "debited", "cap", "granted", "lifetime"),
    "chains": ("name", "seq", "hash", "pruned_seq", "pruned_hash"),
    "charges": ("day", "chain", "seq", "at", "body", "hash"),
    "spent": ("name", "until"),
    "epochs": ("length", "number", "key"),
}


@dataclass(frozen=True, slots=True)
class Moved:
    """How many budgets, accounts and entries of the charge log were transferred.

    Attributes:
        again: Whether they had been transferred before, and nothing was done now.
    """

    budgets: int
    accounts: int
    entries: int
    again: bool


async def transfer(source: str, target: str) -> Moved:
    """Moves an SQLite ledger into a PostgreSQL ledger that was not used yet. The file takes no charge from then on.

    The file is closed to charges first, and opened again if the transfer fails. At any time all charges are in at least
    one of the two ledgers, and at most one of them takes more. After a failure the transfer can be done again.

    Args:
        source: The SQLite ledger's URL.
        target: The PostgreSQL ledger's URL. It was migrated, and has no budgets.

    Raises:
        ConfigError: One of them is a ledger of another kind, or the target is in use.
        LedgerError: One of them can't be used.
    """
    admin, into = open_admin(source), open_admin(target)
    if not isinstance(admin, SQLiteAdmin):
        raise ConfigError("the source must be an SQLite ledger: sqlite:///path")
    if not isinstance(into, PostgresAdmin):
        raise ConfigError("--ledger: the target must be a PostgreSQL ledger: postgresql://...")
    try:
        wal.check(admin.path)
        async with admin.view():  # checks that the ledger is there and can be read
            access.check(admin.path)
        with closing(sqlite_file.connect(admin.path, "mode=rw", _BUSY)) as connection:
            return await _transfer(connection, admin.path, into)
    except (sqlite3.Error, OSError) as error:
        raise errors.explain(error, admin.path) from error


async def _transfer(connection: sqlite3.Connection, source: Path, target: PostgresAdmin) -> Moved:
    connection.execute("PRAGMA synchronous = FULL")
    secret = schema.read_secret(connection, source)
    schema.upgrade(connection)
    name, _ = _progress(connection)
    _check_elsewhere(connection, source, target.address)
    if (before := await target.change(lambda into: _usable(into, name, target.address))) is None:
        # Not before the target has answered: it may be the wrong one.
        _close(connection, source, target.address)
    elif _moved(connection) == target.address:
        return before

    async def fill(into: Any) -> Moved:
        before = await _usable(into, name, target.address)
        # A transfer that failed may have opened it again meanwhile.
        _close(connection, source, target.address)
        return before or await _fill(connection, into, name, secret)

    async def reopen(into: Any) -> None:
        if await _known(into, name) is None:
            _set_moved(connection, source, None)

    try:
        moved = await target.change(fill)
    except BaseException as error:
        # Opened again only if the target says that it has nothing, in a transaction that keeps others from filling it.
        try:
            await target.change(reopen)
        except LedgerError:
            raise LedgerError(
                f"{error}; {source} stays closed, because {target.address} can't be asked whether it was imported: "
                "import it again"
            ) from error
        raise
    _erase_keys(connection)
    return moved


def _moved(connection: sqlite3.Connection) -> str | None:
    """Where the ledger was moved to, or None."""
    found: str | None = connection.execute("SELECT moved FROM ledger").fetchone()[0]
    return found


def _check_elsewhere(connection: sqlite3.Connection, source: Path, destination: str) -> None:
    moved = _moved(connection)
    if moved not in (None, destination):
        raise LedgerError(f"{source} was imported into {moved}, where its budgets live on")


def _close(connection: sqlite3.Connection, source: Path, destination: str) -> None:
    """Makes the file refuse charges, durably."""
    _check_elsewhere(connection, source, destination)
    _set_moved(connection, source, destination)


def _set_moved(connection: sqlite3.Connection, source: Path, destination: str | None) -> None:
    """Closes or opens the file, in a counted commit: an older copy must not be taken for this file."""
    with closing(RollbackGuard(source, lambda: _progress(connection))) as guard:
        if _moved(connection) != destination:
            with sqlite_file.transaction(connection):
                connection.execute("UPDATE ledger SET moved = ?, commits = commits + 1", (destination,))
                guard.check(_progress(connection)[1])
        guard.reached(_progress(connection)[1])


def _erase_keys(connection: sqlite3.Connection) -> None:
    """Erases the keys of epochs from the file, which nobody would do any more when the epochs are over."""
    connection.execute("PRAGMA secure_delete = FAST")
    with sqlite_file.transaction(connection):
        connection.execute("DELETE FROM epochs")
    sqlite_file.empty_log(connection)


def _progress(connection: sqlite3.Connection) -> tuple[bytes, int]:
    """The ledger's name and commits, moved or not."""
    name, commits = connection.execute("SELECT witness, commits FROM ledger").fetchone()
    return name, commits


async def _usable(into: Any, name: bytes, destination: str) -> Moved | None:
    """What was transferred to the target before, if anything; ConfigError if it holds something else."""
    if (before := await _known(into, name)) is not None:
        return Moved(before["budgets"], before["accounts"], before["entries"], again=True)
    for table in ("budgets", "accounts", "chains", "spent", "epochs"):
        if await into.fetchval(f"SELECT EXISTS (SELECT FROM dpmesh.{table})"):  # noqa: S608 - constants
            raise ConfigError(
                f"--ledger: {destination} is in use already; import into one that was only migrated"
            )
    return None


async def _known(into: Any, name: bytes) -> Any:
    return await into.fetchrow(
        "SELECT budgets, accounts, entries FROM dpmesh.imports WHERE source = $1", name
    )


async def _fill(connection: sqlite3.Connection, into: Any, name: bytes, secret: bytes) -> Moved:
    """Copies everything, in the target's open transaction."""
    await into.execute("SET LOCAL idle_in_transaction_session_timeout = '10min'")  # the file may take time
    # By COPY, so that no log of statements has the secret.
    await into.execute("CREATE TEMPORARY TABLE dpmesh_secret (secret bytea) ON COMMIT DROP")
    await into.copy_records_to_table("dpmesh_secret", records=[(secret,)])
    await into.execute("UPDATE dpmesh.ledger SET secret = (SELECT secret FROM dpmesh_secret)")
    budgets, starts = queries.read_budgets(connection), queries.window_starts(connection)
    for row, budget in budgets.items():
        await write_budgets(into, [budget])
        await into.execute(
            "UPDATE dpmesh.budgets SET id = $2, window_start = $3 WHERE name = $1",
            budget.name,
            row,
            starts[row],
        )
    await into.execute("SELECT setval('dpmesh.budgets_id_seq', greatest(1, max(id))) FROM dpmesh.budgets")
    (now,) = connection.execute("SELECT now FROM clock").fetchone()
    await into.execute("UPDATE dpmesh.clock SET now = $1", now)
    (pruned,) = connection.execute("SELECT pruned_before FROM ledger").fetchone()
    await into.execute("UPDATE dpmesh.ledger SET pruned_before = $1", pruned)
    for (day,) in connection.execute("SELECT DISTINCT at / 86400 FROM charges").fetchall():
        # Whatever day the clock of the file's machine showed.
        await into.execute("SELECT dpmesh.add_part($1)", day)
    rows = {
        "accounts": connection.execute(f"SELECT {', '.join(_COLUMNS['accounts'])} FROM accounts"),  # noqa: S608
        "chains": connection.execute(f"SELECT {', '.join(_COLUMNS['chains'])} FROM chains"),  # noqa: S608
        # PostgreSQL prunes whole days, and chains from their beginning. So days never go back in a chain, as clocks do.
        "charges": connection.execute(
            "SELECT max(e.at / 86400) OVER (PARTITION BY e.chain ORDER BY e.seq), c.name, e.seq, e.at, e.body, e.hash "
            "FROM charges e JOIN chains c ON c.id = e.chain"
        ),
        "spent": connection.execute("SELECT name, until FROM spent"),
        "epochs": connection.execute("SELECT length, number, key FROM epochs"),
    }
    counts = {table: await _copy(into, table, found) for table, found in rows.items()}
    moved = Moved(len(budgets), counts["accounts"], counts["charges"], again=False)
    await into.execute(
        "INSERT INTO dpmesh.imports VALUES ($1, $2, $3, $4)",
        name,
        moved.budgets,
        moved.accounts,
        moved.entries,
    )
    return moved


async def _copy(into: Any, table: str, rows: Iterable[tuple[Any, ...]]) -> int:
    """Copies rows into a table; returns how many."""
    done = await into.copy_records_to_table(
        table, schema_name="dpmesh", columns=_COLUMNS[table], records=rows
    )
    return int(done.removeprefix("COPY "))
