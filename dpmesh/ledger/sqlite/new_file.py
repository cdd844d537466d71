"""Makes the file of a new SQLite ledger: complete or not at all."""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import suppress
from pathlib import Path

from dpmesh import sqlite_file
from dpmesh.errors import LedgerError
from dpmesh.ledger.sqlite import access, rollback_guard, schema
from dpmesh.ledger.store import SECRET_BYTES


def make_file(path: Path) -> None:
    """Makes an empty ledger, complete or not at all, also when several processes do so at once."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        if os.path.lexists(path):
            return
        access.check_folder(path)
        if os.path.lexists(rollback_guard.path_of(path)):
            raise LedgerError(
                f"{path} is gone, and {rollback_guard.path_of(path).name} remembers that there was one: "
                "put it back, or "
                "remove that too to start all budgets anew"
            )
        new.unlink(missing_ok=True)
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        _write_tables(new)
        new.rename(path)
        os.fsync(directory)
    finally:
        os.close(directory)
        for suffix in ("", "-wal", "-shm"):
            with suppress(OSError):
                new.with_name(new.name + suffix).unlink(missing_ok=True)


def _write_tables(path: Path) -> None:
    connection = sqlite_file.connect(path, "mode=rw", timeout=0)
    try:
        sqlite_file.make_durable(connection)
        secret = secrets.token_bytes(SECRET_BYTES)
        with sqlite_file.transaction(connection):
            schema.create(connection, secret)
        # Closing would do this too, and say nothing if the disk is full; and the log is not renamed with the file.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()
