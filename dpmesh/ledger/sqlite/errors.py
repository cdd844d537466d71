"""What errors of SQLite and of the system mean for the operator of a ledger."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dpmesh.errors import LedgerError


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns errors of SQLite and of the system into a LedgerError that says what to do."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise explain(error, path) from error


def explain(error: Exception, path: Path) -> LedgerError:
    """What an error of SQLite or of the system means, with the path and what to do."""
    if isinstance(error, OSError):
        return LedgerError(f"{path} can't be used as a ledger: {error.strerror}")
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    for prefix, text in _MEANINGS.items():
        if name.startswith(prefix):
            return LedgerError(f"{path} {text} [{name}]")
    return LedgerError(f"{path} failed: {error} [{name}]")


def missing(path: Path) -> LedgerError:
    """The error of a path where no ledger is."""
    return LedgerError(f"there is no ledger at {path}; it is made when a mesh first opens it")


_MEANINGS = {
    "SQLITE_BUSY": "is locked by another process: end the one that keeps its transaction open",
    "SQLITE_LOCKED": "is locked: end the transaction that holds it",
    "SQLITE_READONLY": "is read-only: make it and its directory writable for this user",
    "SQLITE_PERM": "may not be accessed: make it and its directory writable for this user",
    "SQLITE_AUTH": "may not be accessed: make it and its directory writable for this user",
    "SQLITE_FULL": "can't grow, the disk is full: free some space",
    "SQLITE_NOTADB": "is not an SQLite database: restore it from a backup, or set ledger.url to another path",
    "SQLITE_CORRUPT": "is damaged: restore it from a backup, or set ledger.url to another path",
    "SQLITE_CANTOPEN": "can't be opened: its directory must be writable, and it must be a plain file",
    "SQLITE_IOERR": "can't be read or written: free some space, and check the disk and its limits",
}
