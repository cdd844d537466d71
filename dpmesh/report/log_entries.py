"""Entries of the charge log as data: when, what, on how many accounts, how much, by whom and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from dpmesh.accounting import Accounting
from dpmesh.ledger.charge_log import EntryKind, decode

if TYPE_CHECKING:
    from dpmesh.ledger import Budget
    from dpmesh.ledger.admin import StoredEntry

# The entries that administrators make, and give a reason for.
BY_ADMINISTRATORS = (EntryKind.GRANT, EntryKind.ACCEPT)
# The entries that say why.
WITH_REASON = (*BY_ADMINISTRATORS, EntryKind.POLICY)
# Joins a name and a reason in the charge log.
NOTE_SEPARATOR = ": "


class EntryAmount(NamedTuple):
    """What an entry does to all accounts of one budget together.

    Attributes:
        budget: The budget's name.
        symbol: "ε" or "ρ", as the budget accounts; "" if the ledger does not hold the budget.
        amount: A ledger amount (1e-9 of epsilon or rho), negative for what comes back.
    """

    budget: str
    symbol: str
    amount: int


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry.

    Attributes:
        at: When, in seconds since 1970.
        kind: What it does.
        chain: The name of its chain, in hex.
        number: Its number in the chain, from 1.
        accounts: How many accounts it changes.
        amounts: What it debits, or by how much it raises caps, for each budget.
        by: Which administrator made it; "" for a holder.
        reason: Why, or which policy and why; "" for debits and credits.
    """

    at: int
    kind: EntryKind
    chain: str
    number: int
    accounts: int
    amounts: tuple[EntryAmount, ...]
    by: str
    reason: str

    @property
    def time(self) -> str:
        """When, to the second, in UTC."""
        try:
            return f"{datetime.fromtimestamp(self.at, UTC):%Y-%m-%d %H:%M:%S}"
        except (ValueError, OverflowError):  # beyond the year 9999
            return str(self.at)

    def document(self) -> dict[str, Any]:
        """The entry for JSON, with amounts as ledger amounts."""
        return {
            "at": f"{self.time.replace(' ', 'T')}Z",
            "at_seconds": self.at,
            "kind": self.kind.name.lower(),
            "chain": self.chain,
            "number": self.number,
            "accounts": self.accounts,
            "amounts": {budget: amount for budget, _, amount in self.amounts},
            "by": self.by,
            "reason": self.reason,
        }


def log_entry(entry: StoredEntry, budgets: Mapping[int, Budget]) -> LogEntry:
    """Reads an entry, and names its budgets.

    Args:
        entry: As the ledger holds it.
        budgets: By their numbers.

    Raises:
        LedgerError: It is not an entry.
    """
    body = decode(entry.body)
    amounts: dict[int, int] = {}
    for posting in body.postings:
        amounts[posting.budget] = amounts.get(posting.budget, 0) + posting.amount
    name, separator, reason = body.note.partition(NOTE_SEPARATOR)
    if body.kind not in BY_ADMINISTRATORS:
        name, separator, reason = "", "", body.note
    return LogEntry(
        body.at,
        body.kind,
        entry.chain.hex(),
        entry.seq,
        len({(posting.budget, posting.account) for posting in body.postings}),
        tuple(_amount(number, budgets.get(number), amount) for number, amount in amounts.items()),
        *((name, reason) if separator else ("", body.note)),
    )


def _amount(number: int, budget: Budget | None, amount: int) -> EntryAmount:
    if budget is None:  # `dpmesh ledger verify` finds a log that does not fit its budgets.
        return EntryAmount(f"budget {number}", "", amount)
    return EntryAmount(budget.name, "ε" if budget.accounting is Accounting.PURE else "ρ", amount)
