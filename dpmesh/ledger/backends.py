"""ledger.url: which store and which administration a URL names."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from dpmesh import extras
from dpmesh.errors import ConfigError
from dpmesh.ledger.admin import LedgerAdmin, ReadAgainError, Snapshot
from dpmesh.ledger.memory import MemoryStore
from dpmesh.ledger.store import Store, account_hash

_ALLOWED = (
    'allowed are "memory:", "sqlite:///relative/path.db", "sqlite:////absolute/path.db" and '
    '"postgresql://user@host/database"'
)
_POSTGRES = ("postgresql://", "postgres://")
# Other tools' URLs have parameters, and lines read from files have control characters. A ledger's path has neither.
_NO_PATH = re.compile(r"[?]\w+=|[\x01-\x1f\x7f]")
_TRIES = 3  # A holder that opens the ledger meanwhile makes one fail.


def open_store(url: str) -> Store:
    """The store that a URL names, not open yet.

    Args:
        url: "memory:", "sqlite:///relative/path.db", "sqlite:////absolute/path.db" or "postgresql://...".

    Raises:
        ConfigError: The URL has another form, or a package that it needs is not installed.
    """
    if _is_postgres(url):
        with _explains_a_missing_package():
            from dpmesh.ledger.postgres.store import PostgresStore
        return PostgresStore(url)
    path = _path(url)
    if path is None:
        return MemoryStore()
    from dpmesh.ledger.sqlite.store import SQLiteStore  # here, so that sqlite3 is loaded only if it is used

    return SQLiteStore(path)


def open_admin(url: str) -> LedgerAdmin:
    """The administration of the ledger that a URL names; nothing is opened yet.

    Args:
        url: As in open_store, but not "memory:".

    Raises:
        ConfigError: The URL is invalid or names memory, or a package that it needs is not installed.
    """
    if _is_postgres(url):
        with _explains_a_missing_package():
            from dpmesh.ledger.postgres.admin import PostgresAdmin
        return PostgresAdmin(url)
    path = _path(url)
    if path is None:
        raise ConfigError(
            f"ledger.url: {url!r} lives in the process that opened it; only files and databases can be read"
        )
    from dpmesh.ledger.sqlite.admin import SQLiteAdmin

    return SQLiteAdmin(path)


def inspect(url: str, *, budget: str | None = None, unit: bytes | None = None) -> Snapshot:
    """Reads a ledger without changing, locking or creating it; its holders may be at work.

    Args:
        url: As in open_store; "memory:" has nothing to read.
        budget: Only this budget's accounts.
        unit: Only this unit's accounts (canonical bytes; b"" is a global budget's one account).

    Raises:
        ConfigError: The URL is invalid, or names memory.
        LedgerError: There is no ledger, or it can't be read.
    """
    admin = open_admin(url)
    with ThreadPoolExecutor(1) as thread:  # the caller may be in an event loop
        for _ in range(_TRIES - 1):
            try:
                return thread.submit(asyncio.run, _snapshot(admin, budget, unit)).result()
            except ReadAgainError:
                pass
        return thread.submit(asyncio.run, _snapshot(admin, budget, unit)).result()


async def _snapshot(admin: LedgerAdmin, budget: str | None, unit: bytes | None) -> Snapshot:
    async with admin.view() as view:
        account = None if unit is None else account_hash(view.secret, unit)
        accounts = [found async for found in view.accounts(budget, account)]
        return Snapshot(tuple(view.budgets.values()), tuple(accounts), view.secret)


@contextmanager
def _explains_a_missing_package() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "asyncpg":
            raise
        raise ConfigError(f"ledger.url: PostgreSQL needs asyncpg: {extras.install('postgres')}") from error


def _is_postgres(url: str) -> bool:
    return isinstance(url, str) and url.startswith(_POSTGRES)


def _path(url: str) -> Path | None:
    """The file of a URL, or None for memory."""
    if url == "memory:":
        return None
    rest = url.removeprefix("sqlite:///") if isinstance(url, str) else ""
    if rest not in ("", url) and (_NO_PATH.search(rest) or rest != rest.strip()):
        raise ConfigError(
            f"ledger.url: {redacted_url(url)!r}: a file's path has no parameters (?...), no control characters and no "
            "space at its end. It would be another file, of which nothing is spent"
        )
    if rest in ("", url) or rest.endswith("/") or rest.startswith((":", "//")) or "\0" in rest:
        raise ConfigError(f"ledger.url: {redacted_url(str(url))!r} is not a ledger; {_ALLOWED}")
    return Path(rest)


def relative_file(url: str) -> Path | None:
    """The relative path of a URL that names an SQLite file by one; None for any other, right or wrong."""
    rest = url.removeprefix("sqlite:///")
    return None if rest in ("", url) or rest.startswith(("/", ":")) or rest.endswith("/") else Path(rest)


def sqlite_url(path: Path) -> str:
    """The URL of an SQLite file, which is given by its absolute path."""
    return f"sqlite:///{path}"


def redacted_url(url: str) -> str:
    """A URL without what may be secret: user and password (in front of the last @), and parameters."""
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", url)
    beginning = scheme[0] if scheme else ""
    rest, mark, parameters = url[len(beginning) :].partition("?")
    if "@" in parameters:  # then they may be the rest of a password
        return f"{beginning}***"
    _, at, rest = rest.rpartition("@")
    return f"{beginning}{at and '***@'}{rest}{mark and '?***'}"
