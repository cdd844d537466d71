"""ledger.url: which store it means, and what a ledger at rest holds."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from dpmesh.errors import ConfigError
from dpmesh.ledger.budget import Budget
from dpmesh.ledger.memory import MemoryStore
from dpmesh.ledger.store import Account, Store, account_hash

_ALLOWED = 'allowed are "memory:", "sqlite:///relative/path.db" and "sqlite:////absolute/path.db"'


def open_store(url: str) -> Store:
    """The store that a URL names, not open yet.

    Args:
        url: "memory:", "sqlite:///relative/path.db" or "sqlite:////absolute/path.db".

    Raises:
        ConfigError: Anything else.
    """
    path = _path(url)
    if path is None:
        return MemoryStore()
    from dpmesh.ledger.sqlite import SQLiteStore  # sqlite3 is loaded by those who use it

    return SQLiteStore(path)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A ledger at rest.

    Attributes:
        budgets: As they were last configured, in order of creation.
        accounts: Ordered by budget and account.
        secret: What account names are keyed with.
    """

    budgets: tuple[Budget, ...]
    accounts: tuple[Account, ...]
    secret: bytes = field(repr=False)

    def account(self, unit: bytes) -> str:
        """The name of a unit's accounts, as in Account.account."""
        return account_hash(self.secret, unit).hex()


def inspect(url: str, *, budget: str | None = None, unit: bytes | None = None) -> Snapshot:
    """Reads a ledger without changing, locking or creating it; its holders may be at work.

    Args:
        url: As in open_store; "memory:" has nothing to read.
        budget: Only this budget's accounts.
        unit: Only this unit's accounts (canonical bytes; b"" is a global budget's one account).

    Raises:
        ConfigError: The URL is not one, or names memory.
        LedgerError: There is no ledger, or it can't be read.
    """
    path = _path(url)
    if path is None:
        raise ConfigError(f"ledger.url: {url!r} lives in the process that opened it; only files can be read")
    from dpmesh.ledger.reader import read

    budgets, accounts, secret = read(path, budget, unit)
    return Snapshot(budgets, accounts, secret)


def _path(url: str) -> Path | None:
    """The file of a URL, or None for memory."""
    if url == "memory:":
        return None
    rest = url.removeprefix("sqlite:///") if isinstance(url, str) else ""
    if rest in ("", url) or rest.endswith("/") or rest.startswith((":", "//")) or "\0" in rest:
        shown = re.sub(r"//[^@/]*@", "//***@", str(url))  # a URL may carry a password
        raise ConfigError(f"ledger.url: {shown!r} is not a ledger; {_ALLOWED}")
    return Path(rest)
