"""LedgerAdmin: what administrators read of a ledger and change in it, while holders may be at work."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

from dpmesh.accounting import MAX_AMOUNT
from dpmesh.errors import ConfigError, LedgerError
from dpmesh.ledger.budget import Budget
from dpmesh.ledger.charge_log import Head
from dpmesh.ledger.store import ACCOUNT_BYTES, Account, account_hash


@dataclass(frozen=True, slots=True)
class Chain:
    """One holder's chain.

    Attributes:
        name: 16 random bytes.
        pruned: The last entry that was pruned, or the head of an empty chain.
        head: Its last entry.
    """

    name: bytes
    pruned: Head
    head: Head


class StoredEntry(NamedTuple):
    """An entry as the ledger holds it.

    Attributes:
        chain: The name of its chain.
        seq: Its number there, from 1.
        body: Its canonical bytes, which charge_log.decode reads.
        hash: Its hash.
    """

    chain: bytes
    seq: int
    body: bytes
    hash: bytes


class LedgerView(Protocol):
    """A ledger as it was at one moment. All methods raise LedgerError if the ledger can't be read.

    Attributes:
        secret: The key of account names.
        budgets: The budgets as they were last configured, by their numbers, in order of creation.
        windows: When the window in force began, by the budgets' numbers, in seconds since the epoch; 0 for lifetime.
        remark: What a reader has to know: that the ledger was moved, or is an older copy; "" if there is nothing.
        older: Whether the ledger is known to be an older copy of itself.
        ahead: The names of budgets whose windows began by a wrong clock. They do not renew before that time.
        pruned_before: Entries older than this (seconds since the epoch) may have been pruned; 0 if none was.
    """

    secret: bytes
    budgets: Mapping[int, Budget]
    windows: Mapping[int, int]
    remark: str
    older: bool
    ahead: tuple[str, ...]
    pruned_before: int

    def accounts(self, budget: str | None = None, account: bytes | None = None) -> AsyncIterator[Account]:
        """All accounts, or those of one budget, or of one unit's hash, ordered by budget and hash."""

    async def chains(self) -> list[Chain]:
        """All chains, ordered by name."""

    def entries(self) -> AsyncIterator[StoredEntry]:
        """All entries that were not pruned, ordered by chain and number."""


class ReadAgainError(LedgerError):
    """A holder opened the ledger while it was read: what was read may never have been its state. Read it again."""


class LedgerAdmin(Protocol):
    """Administration of one ledger. Every method raises LedgerError if the ledger can't be used."""

    def view(self) -> AbstractAsyncContextManager[LedgerView]:
        """The ledger as it is now; nothing is changed, locked or made.

        Raises:
            ReadAgainError: A holder opened the ledger meanwhile. Any method of the view may raise it.
        """

    async def migrate(self) -> tuple[int, int]:
        """Makes the tables, or brings them up to date, all or nothing.

        Returns:
            The version before (0: there were none) and after.
        """

    async def grant(self, budget: str, account: bytes, raised: int, note: str, *, has: int = 0) -> Account:
        """Raises an account's cap in the window in force, and writes that to the charge log.

        Args:
            budget: The budget's name.
            account: The unit's hash (store.account_hash).
            raised: By how much beyond what is granted already, as a ledger amount; positive.
            note: Why, and who says so.
            has: What the caller knows to be granted in this window already. If another administrator granted more
                meanwhile, nothing is granted.

        Raises:
            ConfigError: There is no such budget.
        """

    async def prune(self, before: int) -> int:
        """Removes old entries from the charge log. Accounts keep what they were debited, and the odometer.

        Args:
            before: Entries older than this go, in seconds since the epoch.

        Returns:
            How many entries went.
        """

    async def accept(self, note: str, *, unnoticed: bool = False) -> tuple[str, ...]:
        """Accepts an older copy of a ledger, or one that a wrong clock locked, and writes that to the charge log.

        What was spent since the copy is unknown. Every tumbling budget therefore continues in the window after the one
        in force, so that nothing is spent twice within a window. Lifetime budgets may be spent twice.

        Windows that are ahead of the clock are brought back, and what was spent in them counts (clock_rewind.py). On
        SQLite every holder has to be restarted then.

        Args:
            note: Why, and who says so.
            unnoticed: The administrator knows that it is an older copy, though the ledger doesn't show it.

        Returns:
            The names of the lifetime budgets, which may have been charged more than the ledger knows. None if the
            ledger was not an older copy.

        Raises:
            LedgerError: Nobody noticed that the ledger is an older copy, and no window is ahead of the clock.
        """


def ahead_of_the_clock(ledger: str, names: Iterable[str], now: float) -> str:
    """What users of a ledger have to know when its windows are ahead of its clock.

    Args:
        ledger: What to call the ledger.
        names: The names of the budgets.
        now: What the clock shows. This clock may be the wrong one: then `accept` would refill the present window.
    """
    try:
        clock = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError, OSError):  # beyond the year 9999
        clock = f"{now:.0f} s since 1970"
    return (
        f"{ledger} is in windows that its clock has not reached, of {', '.join(map(repr, names))}: a clock was wrong, "
        f"and these budgets renew no earlier than it said. `dpmesh ledger accept` undoes that. The clock shows "
        f"{clock}: if that is wrong, correct it, and accept nothing"
    )


def find_budget(budgets: Mapping[int, Budget], name: str) -> tuple[int, Budget]:
    """A budget's number and definition, by its name.

    Raises:
        ConfigError: There is none; the text lists those that there are.
    """
    for number, budget in budgets.items():
        if budget.name == name:
            return number, budget
    listed = ", ".join(budget.name for budget in budgets.values()) or "none"
    raise ConfigError(f"budget.name: {name!r} is not in the ledger; there are {listed}")


def check_grant(account: bytes, raised: int) -> None:
    """Checks the arguments of a grant.

    Raises:
        LedgerError: The grant raises nothing, or the account's name is invalid.
    """
    if type(raised) is not int or raised <= 0:
        raise LedgerError("a grant must raise the cap, by a positive integer of 1e-9")
    if len(account) != ACCOUNT_BYTES:
        raise LedgerError(f"an account's name has {ACCOUNT_BYTES} bytes")


def check_granted(cap: int, granted: int, has: int, raised: int) -> None:
    """Checks a grant against what is granted already.

    Raises:
        LedgerError: The administrator did not know of an earlier grant, or the cap would be too large to count.
    """
    if granted != has:
        raise LedgerError("what is granted to this account has changed meanwhile: look, and grant again")
    if cap + granted + raised > MAX_AMOUNT:
        raise LedgerError("the grant raises the cap beyond what a ledger can count: grant less")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The budgets and accounts of a ledger at one moment.

    Attributes:
        budgets: As they were last configured, in order of creation.
        accounts: Ordered by budget and account.
        secret: The key of account names.
    """

    budgets: tuple[Budget, ...]
    accounts: tuple[Account, ...]
    secret: bytes = field(repr=False)

    def account(self, unit: bytes) -> str:
        """The name of a unit's accounts, as in Account.account."""
        return account_hash(self.secret, unit).hex()
