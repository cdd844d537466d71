"""Makes the file of a new SQLite ledger: complete or not at all."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from dpmesh import files, sqlite_file
from dpmesh.errors import LedgerError
from dpmesh.ledger.sqlite import access, rollback_guard, schema
from dpmesh.ledger.store import SECRET_BYTES


def make_file(path: Path) -> None:
    """Makes an empty ledger, complete or not at all, also when several processes do so at once."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    with files.locked_folder(path.parent):
        if os.path.lexists(path):
            return
        access.check_folder(path)
        guard = rollback_guard.path_of(path)
        if os.path.lexists(guard):
            raise LedgerError(
                f"{path} is gone, and {guard.name} remembers that there was one: put it back, or remove that too to "
                "start all budgets anew"
            )
        try:
            new.unlink(missing_ok=True)
            os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            _write_tables(new)
            new.rename(path)
        finally:
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
