"""Entries of the charge log, as `dpmesh ledger log` shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from dpmesh.accounting import AMOUNT, Accounting
from dpmesh.cli.commands.export import decimal
from dpmesh.cli.options.ledgers import told
from dpmesh.ledger.charge_log import EntryKind, decode

if TYPE_CHECKING:
    from dpmesh.ledger import Budget
    from dpmesh.ledger.admin import StoredEntry

HEAD = f"{'time (UTC)':19}  {'kind':7}  {'chain':8}  {'number':>8}  {'accounts':>8}  amounts"
# What administrators do, and give a reason for.
BY_HAND = (EntryKind.GRANT, EntryKind.ACCEPT)
_CHAIN_SHOWN = 8


class Sum(NamedTuple):
    """What an entry does to all accounts of one budget together.

    Attributes:
        budget: The budget's name.
        letter: Of its accounting.
        amount: A ledger amount, negative for what comes back.
    """

    budget: str
    letter: str
    amount: int


@dataclass(frozen=True, slots=True)
class Shown:
    """One entry.

    Attributes:
        at: When, in seconds since the epoch.
        kind: What it does.
        chain: The name of its chain, in hex.
        number: Its number there.
        accounts: How many accounts it changes.
        amounts: What it debits, or by how much it raises caps, for each budget.
        by: Who had it written; "" for holders.
        reason: Why; "" for holders.
    """

    at: int
    kind: EntryKind
    chain: str
    number: int
    accounts: int
    amounts: tuple[Sum, ...]
    by: str
    reason: str


def shown(entry: StoredEntry, budgets: Mapping[int, Budget]) -> Shown:
    """An entry with the names of its budgets.

    Raises:
        LedgerError: It is none.
    """
    body = decode(entry.body)
    amounts: dict[int, int] = {}
    for line in body.postings:
        amounts[line.budget] = amounts.get(line.budget, 0) + line.amount
    return Shown(
        body.at,
        body.kind,
        entry.chain.hex(),
        entry.seq,
        len({(line.budget, line.account) for line in body.postings}),
        tuple(_sum(number, budgets.get(number), amount) for number, amount in amounts.items()),
        *told(body.note),
    )


def _sum(number: int, budget: Budget | None, amount: int) -> Sum:
    if budget is None:  # a log that fits no budget is for `verify` to find
        return Sum(f"budget {number}", "", amount)
    return Sum(budget.name, "ε" if budget.accounting is Accounting.PURE else "ρ", amount)


def line(entry: Shown) -> str:
    """For people; amounts in each budget's own accounting."""
    parts = [f"{budget} {letter} {amount / AMOUNT:+.4g}" for budget, letter, amount in entry.amounts]
    why = [f"{entry.by}: {entry.reason}" if entry.by else entry.reason] if entry.reason else []
    return (
        f"{_time(entry.at):19}  {entry.kind.name.lower():7}  {entry.chain[:_CHAIN_SHOWN]}  {entry.number:8}  "
        f"{entry.accounts:8}  {'; '.join([', '.join(parts)] * bool(parts) + why)}".rstrip()
    )


def json_line(entry: Shown) -> str:
    """For programs; amounts are numbers with nine digits behind the point."""
    import msgspec

    document = {
        "at": f"{_time(entry.at).replace(' ', 'T')}Z",
        "at_seconds": entry.at,
        "kind": entry.kind.name.lower(),
        "chain": entry.chain,
        "number": entry.number,
        "accounts": entry.accounts,
        "amounts": {budget: msgspec.Raw(decimal(amount).encode()) for budget, _, amount in entry.amounts},
        "by": entry.by,
        "reason": entry.reason,
    }
    return msgspec.json.encode(document).decode()


def _time(at: int) -> str:
    try:
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError):  # beyond the year 9999
        return str(at)
