"""Reads an SQLite ledger that may be in use, and changes nothing."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from dpmesh.errors import ConfigError, LedgerError
from dpmesh.ledger import schema
from dpmesh.ledger.budget import Budget
from dpmesh.ledger.store import Account, account_hash

_TIMEOUT = 4.0

Contents = tuple[tuple[Budget, ...], tuple[Account, ...], bytes]
"""A ledger's budgets, accounts and secret."""


def read(path: Path, budget: str | None, unit: bytes | None) -> Contents:
    """The budgets, the accounts (of one budget, of one unit) and the secret, all of one moment.

    Raises:
        LedgerError: There is no ledger at the path, or it can't be read.
    """
    path = path.absolute()
    try:
        if not path.exists():
            raise LedgerError(f"there is no ledger at {path}; it is made when a mesh first opens it")
        schema.plain_file(path)
        return _read_at_rest(path, budget, unit) or _read(path, "mode=ro", budget, unit)
    except ConfigError as error:
        raise LedgerError(
            f"{path} holds a budget that this version of dpmesh doesn't know: {error}"
        ) from error
    except (sqlite3.Error, OSError) as error:
        raise schema.explain(error, path) from error


def _read_at_rest(path: Path, budget: str | None, unit: bytes | None) -> Contents | None:
    """Reads a file that nobody has open, leaving no trace; None if somebody has, or opens it meanwhile.

    Whoever has a ledger open has a write-ahead log beside it. Without one SQLite may take the file as
    immutable, and then it makes no log of its own, which would belong to whoever looks.
    """
    before = _at_rest(path)
    if before is None:
        return None
    try:
        contents = _read(path, "mode=ro&immutable=1", budget, unit)
    except sqlite3.Error:
        return None  # perhaps it was being written; the other way of reading tells
    return contents if _at_rest(path) == before else None


def _at_rest(path: Path) -> tuple[int, int, int] | None:
    """What changes when the file does, or None while it has a write-ahead log."""
    if path.with_name(path.name + "-wal").exists():
        return None
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _read(path: Path, mode: str, budget: str | None, unit: bytes | None) -> Contents:
    connection = schema.connect(path, mode, _TIMEOUT)
    try:
        connection.execute("BEGIN")
        secret = schema.read_secret(connection, path)
        account = None if unit is None else account_hash(secret, unit)
        budgets = tuple(schema.read_budgets(connection).values())
        return budgets, tuple(schema.read_accounts(connection, budget, account)), secret
    finally:
        connection.close()
