"""What the rows of `dpmesh budget export` hold: one row for each account, with exact amounts."""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from dpmesh.accounting import AMOUNT

if TYPE_CHECKING:
    from dpmesh.ledger import Account, Budget


class Row(NamedTuple):
    """One account in the last window in which it was charged.

    Amounts are ledger amounts: integers of 1e-9 of epsilon if the accounting is pure, of rho if it is zcdp.

    Attributes:
        budget: The budget's name.
        key: "unit" or "global", with "/consumer" behind it for a quota.
        accounting: "pure" or "zcdp".
        delta: The budget's delta.
        account: A keyed hash.
        window_start: In ISO 8601, UTC; None beyond the year 9999.
        window_start_seconds: In seconds since 1970.
        window_end: In ISO 8601, UTC; None beyond the year 9999 and for lifetime.
        window_end_seconds: In seconds since 1970; None for lifetime.
        spent: What was debited in the window.
        cap: What the budget admits in one window.
        granted: By how much the cap was raised in the window.
        remaining: What is left.
        lifetime: What was debited in all windows together.
    """

    budget: str
    key: str
    accounting: str
    delta: float
    account: str
    window_start: str | None
    window_start_seconds: int
    window_end: str | None
    window_end_seconds: int | None
    spent: int
    cap: int
    granted: int
    remaining: int
    lifetime: int


# The columns that are amounts; they come last.
AMOUNTS = Row._fields[-5:]


def row(budget: Budget, account: Account) -> Row:
    """The row of one account of a budget."""
    return Row(
        budget.name,
        budget.key,
        str(budget.accounting),
        float(budget.delta),
        account.account,
        _iso(account.window_start),
        account.window_start,
        _iso(account.window_end),
        account.window_end,
        account.spent,
        account.cap,
        account.granted,
        max(0, account.cap + account.granted - account.spent),
        account.lifetime,
    )


@functools.lru_cache(maxsize=1024)
def _iso(at: int | None) -> str | None:
    """A time in ISO 8601, UTC; None beyond the year 9999, which it can't name."""
    try:
        return None if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError):
        return None


def decimal(amount: int) -> str:
    """A ledger amount as an exact decimal with nine digits behind the point."""
    whole, part = divmod(abs(amount), AMOUNT)
    return f"{'-' if amount < 0 else ''}{whole}.{part:09d}"
